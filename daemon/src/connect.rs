//! Connections: to this cluster, and to a pool's peer.
//!
//! A peer is described by its record in the pool (site name, client name) and by the monitors' config-key store, where
//! `rbd/mirror/peer/POOL-ID/PEER-UUID` holds `{"mon_host": "…", "key": "…"}`. What the store does not say comes from a
//! configuration file named after the site: beside ours, or in Ceph's default places. Nothing that identifies *our*
//! cluster (monitors, keys) is applied to the peer, so that both clusters may go by the same name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use rados::{Cluster, ConnectOptions, Limits, PoolId};
use serde::Deserialize;

use crate::conf_file::{Configuration, default_places};

/// Options that say which cluster is meant and who we are there.
const CLUSTER_OPTIONS: &[&str] = &["monmap", "mon_host", "mon_dns_srv_name", "key", "keyfile", "keyring"];
/// Options that this program acts on itself.
const OWN_OPTIONS: &[&str] = &["admin_socket", "daemonize", "log_file", "pid_file", "setgroup", "setuser"];
/// How long to wait for monitors that do not answer, in seconds, unless configured.
const MOUNT_TIMEOUT_SECONDS: &str = "30";

/// A peer of a pool, and how to reach it.
#[derive(Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its uuid in the local pool's peer table.
    pub uuid: String,
    /// Name of its site; names a configuration file when the rest is not given.
    pub site_name: String,
    /// The client that we are there, with its type.
    pub client_name: String,
    /// Its monitors and our key there, from the config-key store.
    pub keys: PeerKeys,
}

/// What the config-key store says about a peer.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
pub struct PeerKeys {
    /// Addresses of its monitors.
    #[serde(default)]
    mon_host: String,
    /// Our secret there.
    #[serde(default)]
    key: String,
}

// The key must not reach a log.
impl fmt::Debug for PeerKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = if self.key.is_empty() { "none" } else { "given" };
        write!(f, "PeerKeys(mon_host '{}', key {secret})", self.mon_host)
    }
}

/// As Ceph's tools name a peer.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uuid: {} cluster: {} client: {}", self.uuid, self.site_name, self.client_name)
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {:?}", self.keys)
    }
}

/// Why there is no connection to a peer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The connection failed.
    #[error("{0}")]
    Rados(#[from] rados::Error),
    /// It was not tried: a sentence that says what is missing.
    #[error("{0}")]
    Described(String),
}

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
    pub async fn peer(&self, peer: &Peer) -> Result<Cluster, PeerError> {
        Ok(rados::connect(self.peer_options(peer)?).await?)
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

    fn peer_options(&self, peer: &Peer) -> Result<ConnectOptions, PeerError> {
        let described = !peer.keys.mon_host.is_empty();
        // A file that describes our own cluster says nothing about a peer of the same name.
        let own = self.configuration.conf_file.as_ref();
        let conf_file =
            self.peer_conf_places(&peer.site_name).into_iter().find(|p| p.is_file() && Some(p) != own);
        if !described && conf_file.is_none() {
            return Err(PeerError::Described(format!(
                "the monitors of peer '{}' are unknown: they are neither in the config-key store (rbd mirror pool peer \
                 set POOL {} mon-host …) nor is there a file {}.conf beside our configuration file or in /etc/ceph",
                peer.site_name, peer.uuid, peer.site_name
            )));
        }
        let mut options = self.common_options();
        options.retain(|option, _| !CLUSTER_OPTIONS.contains(&option.as_str()));
        for (option, value) in [("mon_host", &peer.keys.mon_host), ("key", &peer.keys.key)] {
            if !value.is_empty() {
                options.insert(option.to_string(), value.clone());
            }
        }
        Ok(ConnectOptions {
            cluster_name: peer.site_name.clone(),
            client_name: peer.client_name.clone(),
            no_conf_file: conf_file.is_none(),
            conf_file,
            options,
            limits: Limits::default(),
        })
    }

    fn peer_conf_places(&self, site_name: &str) -> Vec<PathBuf> {
        let beside = self.configuration.conf_file.as_ref().and_then(|own| own.parent());
        let beside = beside.map(|folder| folder.join(format!("{site_name}.conf")));
        beside.into_iter().chain(default_places(site_name)).collect()
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

/// What the config-key store of `cluster` says about a peer of `pool`; nothing when it has no entry.
pub async fn peer_keys(cluster: &Cluster, pool: PoolId, peer_uuid: &str) -> Result<PeerKeys, PeerError> {
    let key = format!("rbd/mirror/peer/{pool}/{peer_uuid}");
    let Some(value) = cluster.config_key_get(&key).await? else {
        return Ok(PeerKeys::default());
    };
    if value.is_empty() {
        return Ok(PeerKeys::default());
    }
    // The error would quote the value, and with it the key.
    serde_json::from_slice(&value).map_err(|_| {
        PeerError::Described(format!("the config-key '{key}' does not hold the JSON object that it should"))
    })
}

/// The name of this site: as set (`rbd mirror pool enable --site-name`), else the cluster's fsid.
pub async fn site_name(cluster: &Cluster) -> rados::Result<String> {
    let name = cluster.config_key_get("rbd/mirror/site_name").await?;
    let name = name.map(|name| String::from_utf8_lossy(&name).trim().to_string());
    Ok(name.filter(|name| !name.is_empty()).unwrap_or_else(|| cluster.fsid().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Options, Request, parse};

    fn options(line: &str) -> Options {
        match parse("", line.split_whitespace().map(Into::into)) {
            Ok(Request::Run(options)) => options,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn peer(mon_host: &str) -> Peer {
        Peer {
            uuid: "u".into(),
            site_name: "no-such-site".into(),
            client_name: "client.peer".into(),
            keys: PeerKeys { mon_host: mon_host.into(), key: "secret".into() },
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

        let remote = connector.peer_options(&peer("10.0.0.2"))?;
        assert!(remote.no_conf_file);
        assert_eq!(remote.options["mon_host"], "10.0.0.2");
        assert_eq!(remote.options["key"], "secret");
        assert_eq!(remote.options["ms_type"], "async+posix");
        assert!(!remote.options.contains_key("keyring"));
        assert!(!format!("{:?}", peer("10.0.0.2")).contains("secret"));

        let unknown = connector.peer_options(&peer("")).err().map(|e| e.to_string());
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
        assert_eq!(connector.peer_options(&peer(""))?.conf_file, Some(folder.join("no-such-site.conf")));
        std::fs::remove_dir_all(folder)?;
        Ok(())
    }
}
