//! Connections to a peer.
//!
//! A peer is described by its record in the pool (site name, client name) and by what the config-key store says
//! ([`PeerAttributes`]). What the store does not say comes from a configuration file named after the site: beside ours,
//! or in Ceph's default places. Nothing that identifies *our* cluster (monitors, keys) is applied to the peer, so that
//! both clusters may go by the same name.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use rados::{Cluster, ConnectOptions, Error, Limits, Result};
use rbd::mirroring::MirrorPeer;

use crate::{PeerAttributes, Token};

/// Options that say which cluster is meant and who we are there.
const CLUSTER_OPTIONS: &[&str] = &["monmap", "mon_host", "mon_dns_srv_name", "key", "keyfile", "keyring"];

/// A peer of a pool, and how to reach it.
#[derive(Clone, PartialEq, Eq)]
pub struct RemotePeer {
    /// Its uuid in the local pool's peer table.
    pub uuid: String,
    /// Name of its site; names a configuration file when the rest is not given.
    pub site_name: String,
    /// The client that we are there, with its type.
    pub client_name: String,
    /// Its monitors and our key there.
    pub attributes: PeerAttributes,
}

impl RemotePeer {
    /// A peer as the pool and the config-key store tell of it.
    pub fn new(peer: &MirrorPeer, attributes: PeerAttributes) -> RemotePeer {
        RemotePeer {
            uuid: peer.uuid.clone(),
            site_name: peer.site_name.clone(),
            client_name: peer.client_name.clone(),
            attributes,
        }
    }
}

/// As Ceph's tools name a peer.
impl fmt::Display for RemotePeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uuid: {} cluster: {} client: {}", self.uuid, self.site_name, self.client_name)
    }
}

impl fmt::Debug for RemotePeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {:?}", self.attributes)
    }
}

/// Makes connections to peers.
#[derive(Debug, Clone, Default)]
pub struct PeerConnector {
    /// The configuration file that our own connection was made with. It says nothing about a peer, but files of peers
    /// are looked for beside it.
    pub conf_file: Option<PathBuf>,
    /// Options for librados. Those that describe a cluster are left out.
    pub options: BTreeMap<String, String>,
}

impl PeerConnector {
    /// Connects to a peer. EINVAL when neither the config-key store nor a file tells of its monitors; what
    /// [`rados::connect`] answers.
    pub async fn connect(&self, peer: &RemotePeer) -> Result<Cluster> {
        rados::connect(self.peer_options(peer)?).await
    }

    /// Connects to the cluster that a token describes.
    pub async fn connect_by_token(&self, token: &Token) -> Result<Cluster> {
        rados::connect(ConnectOptions {
            client_name: format!("client.{}", token.client_id),
            no_conf_file: true,
            options: self.options_with(&token.attributes()),
            limits: Limits::default(),
            ..ConnectOptions::default()
        })
        .await
    }

    /// How [`PeerConnector::connect`] connects.
    pub fn peer_options(&self, peer: &RemotePeer) -> Result<ConnectOptions> {
        if !is_plain(&peer.client_name) {
            let what = format!(
                "the client name {:?} of peer {} is no name of a client: set another one with 'rbd mirror pool peer set'",
                peer.client_name, peer.uuid
            );
            return Err(Error::new(libc::EINVAL, what));
        }
        // A file that describes our own cluster says nothing about a peer of the same name.
        let own = self.conf_file.as_ref();
        let conf_file =
            self.conf_places(&peer.site_name).into_iter().find(|place| place.is_file() && Some(place) != own);
        if peer.attributes.mon_host().is_empty() && conf_file.is_none() {
            let what = format!(
                "the monitors of peer '{}' are unknown: they are neither in the config-key store (rbd mirror pool peer \
                 set POOL {} mon-host …) nor is there a file {}.conf beside our configuration file or in /etc/ceph",
                peer.site_name, peer.uuid, peer.site_name
            );
            return Err(Error::new(libc::EINVAL, what));
        }
        Ok(ConnectOptions {
            // Names of files are made of it, too.
            cluster_name: match is_plain(&peer.site_name) {
                true => peer.site_name.clone(),
                false => "ceph".to_string(),
            },
            client_name: peer.client_name.clone(),
            no_conf_file: conf_file.is_none(),
            conf_file,
            options: self.options_with(&peer.attributes),
            limits: Limits::default(),
        })
    }

    fn options_with(&self, attributes: &PeerAttributes) -> BTreeMap<String, String> {
        let mut options = self.options.clone();
        options.retain(|option, _| !CLUSTER_OPTIONS.contains(&option.as_str()));
        for (option, value) in [("mon_host", attributes.mon_host()), ("key", attributes.key().expose())] {
            if !value.is_empty() {
                options.insert(option.to_string(), value.to_string());
            }
        }
        options
    }

    /// Where the file of a site may be; nowhere when its name would lead to another folder.
    fn conf_places(&self, site_name: &str) -> Vec<PathBuf> {
        if !is_plain(site_name) {
            return Vec::new();
        }
        let beside = self.conf_file.as_ref().and_then(|own| own.parent());
        let beside = beside.map(|folder| folder.join(format!("{site_name}.conf")));
        beside.into_iter().chain(default_conf_places(site_name)).collect()
    }
}

/// True for a name that may be part of the name of a file: peers of ours write such names into our pools.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(|c: char| c == '/' || c.is_control())
}

/// Where Ceph looks for a cluster's configuration file.
pub fn default_conf_places(cluster: &str) -> Vec<PathBuf> {
    let file = format!("{cluster}.conf");
    let mut places = vec![Path::new("/etc/ceph").join(&file)];
    if let Some(home) = std::env::var_os("HOME") {
        places.push(Path::new(&home).join(".ceph").join(&file));
    }
    places.push(PathBuf::from(file));
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;

    fn peer(mon_host: &str) -> RemotePeer {
        RemotePeer {
            uuid: "u".into(),
            site_name: "no-such-site".into(),
            client_name: "client.peer".into(),
            attributes: PeerAttributes::new(mon_host, Secret::new("secret")),
        }
    }

    #[test]
    fn nothing_of_our_cluster_is_applied_to_a_peer() {
        let ours = [("mon_host", "10.0.0.1"), ("keyring", "/our/keyring"), ("ms_type", "async+posix")];
        let options = ours.map(|(option, value)| (option.to_string(), value.to_string())).into();
        let connector = PeerConnector { conf_file: None, options };
        let remote = connector.peer_options(&peer("10.0.0.2")).unwrap();
        assert!(remote.no_conf_file);
        assert_eq!(remote.options["mon_host"], "10.0.0.2");
        assert_eq!(remote.options["key"], "secret");
        assert_eq!(remote.options["ms_type"], "async+posix");
        assert!(!remote.options.contains_key("keyring"));
        assert!(!format!("{:?}", peer("10.0.0.2")).contains("secret"));
        let unknown = connector.peer_options(&peer("")).err().unwrap();
        assert!(unknown.is(libc::EINVAL) && unknown.to_string().contains("no-such-site.conf"), "{unknown}");
    }

    #[test]
    fn a_peers_file_lies_beside_ours() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["mine.conf", "no-such-site.conf"] {
            std::fs::write(folder.path().join(file), "[global]\n").unwrap();
        }
        let of =
            |conf: &str| PeerConnector { conf_file: Some(folder.path().join(conf)), ..Default::default() };
        let found = of("mine.conf").peer_options(&peer("")).unwrap();
        assert_eq!(found.conf_file, Some(folder.path().join("no-such-site.conf")));
        assert!(of("no-such-site.conf").peer_options(&peer("")).is_err());
    }

    #[test]
    fn names_do_not_lead_to_other_folders() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (folder.path().join("etc"), folder.path().join("theirs.conf"));
        std::fs::create_dir(&ours).unwrap();
        std::fs::write(&theirs, "[global]\n").unwrap();
        let connector = PeerConnector { conf_file: Some(ours.join("mine.conf")), ..Default::default() };
        for site_name in ["../theirs", theirs.to_str().unwrap().trim_end_matches(".conf"), ".", "", "a\nb"] {
            let peer = RemotePeer { site_name: site_name.into(), ..peer("10.0.0.2") };
            let options = connector.peer_options(&peer).unwrap();
            assert!(
                options.conf_file.is_none() && options.cluster_name == "ceph",
                "{site_name:?}: {options:?}"
            );
        }
        let peer = RemotePeer { client_name: "client.a/../../root".into(), ..peer("10.0.0.2") };
        assert!(connector.peer_options(&peer).is_err_and(|error| error.is(libc::EINVAL)));
    }
}
