//! Connections: to this cluster, and to a pool's peer, with what the command line says for both.

use std::collections::BTreeMap;

use bootstrap::{PeerConnector, RemotePeer};
use rados::{Cluster, ConnectOptions, Limits};

use crate::conf_file::Configuration;
use crate::settings::OBJECT_MAP_TRUST;

/// Options that this program acts on itself.
const OWN_OPTIONS: &[&str] =
    &["admin_socket", "daemonize", "log_file", "pid_file", "setgroup", "setuser", OBJECT_MAP_TRUST];
/// How long to wait for monitors that do not answer, in seconds, unless configured.
const MOUNT_TIMEOUT_SECONDS: &str = "30";

/// Makes connections from what was configured.
#[derive(Debug, Clone)]
pub struct Connector {
    configuration: Configuration,
}

impl Connector {
    /// A connector for this configuration.
    pub fn new(configuration: Configuration) -> Self {
        Connector { configuration }
    }

    /// The configuration.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// Connects to this cluster.
    pub async fn local(&self) -> rados::Result<Cluster> {
        rados::connect(self.local_options()).await
    }

    /// Connects to a peer.
    pub async fn peer(&self, peer: &RemotePeer) -> rados::Result<Cluster> {
        self.peers().connect(peer).await
    }

    fn peers(&self) -> PeerConnector {
        PeerConnector { conf_file: self.configuration.conf_file.clone(), options: self.common_options() }
    }

    fn local_options(&self) -> ConnectOptions {
        let options = self.configuration.options();
        ConnectOptions {
            cluster_name: options.cluster.clone(),
            client_name: options.name.clone(),
            conf_file: self.configuration.conf_file.clone(),
            no_conf_file: self.configuration.conf_file.is_none(),
            options: self.common_options(),
            limits: Limits::default(),
        }
    }

    /// The command line's options for librados, which opens no log of its own.
    fn common_options(&self) -> BTreeMap<String, String> {
        let mut options = self.configuration.options().ceph_options.clone();
        options.retain(|option, _| !OWN_OPTIONS.contains(&option.as_str()));
        options.insert("log_file".to_string(), String::new());
        if self.configuration.get("client_mount_timeout").is_none() {
            options.insert("client_mount_timeout".to_string(), MOUNT_TIMEOUT_SECONDS.to_string());
        }
        options
    }
}

#[cfg(test)]
mod tests {
    use bootstrap::{PeerAttributes, Secret};

    use super::*;
    use crate::options::{Options, Request, parse};

    fn options(line: &str) -> Options {
        match parse("", line.split_whitespace().map(Into::into)) {
            Ok(Request::Run(options)) => options,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn peer(mon_host: &str) -> RemotePeer {
        RemotePeer {
            uuid: "u".into(),
            site_name: "no-such-site".into(),
            client_name: "client.peer".into(),
            attributes: PeerAttributes::new(mon_host, Secret::new("secret")),
        }
    }

    #[test]
    fn nothing_of_our_cluster_is_applied_to_a_peer() -> anyhow::Result<()> {
        let line =
            "--cluster no-such-cluster -m 10.0.0.1 -k /our/keyring --log-file /l --ms-type async+posix";
        let connector = Connector::new(Configuration::load(options(line))?);
        let local = connector.local_options();
        assert_eq!(local.options["keyring"], "/our/keyring");
        assert_eq!(local.options["log_file"], "");

        let remote = connector.peers().peer_options(&peer("10.0.0.2"))?;
        assert!(remote.no_conf_file);
        assert_eq!(remote.options["mon_host"], "10.0.0.2");
        assert_eq!(remote.options["key"], "secret");
        assert_eq!(remote.options["ms_type"], "async+posix");
        assert!(!remote.options.contains_key("keyring"));
        assert!(!format!("{:?}", peer("10.0.0.2")).contains("secret"));

        let unknown = connector.peers().peer_options(&peer("")).err().map(|e| e.to_string());
        assert!(unknown.is_some_and(|sentence| sentence.contains("no-such-site.conf")));
        Ok(())
    }

    #[test]
    fn a_peers_file_lies_beside_ours() -> anyhow::Result<()> {
        let folder = std::env::temp_dir().join(format!("rbd-mirror-connect-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("mine.conf"), "[global]\n")?;
        std::fs::write(folder.join("no-such-site.conf"), "[global]\n")?;
        let line = format!("-c {}", folder.join("mine.conf").display());
        let connector = Connector::new(Configuration::load(options(&line))?);
        assert_eq!(
            connector.peers().peer_options(&peer(""))?.conf_file,
            Some(folder.join("no-such-site.conf"))
        );
        std::fs::remove_dir_all(folder)?;
        Ok(())
    }
}
