//! The other site of a pool: found as the daemon finds it, or as the command line says.
//!
//! Nothing that the other site does or does not do may hold a command up for ever: connecting, every request to it and
//! every monitor command is given `--peer-timeout` seconds, by librados' own options and by a clock of ours around it.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use bootstrap::{PeerConnector, RemotePeer, site_name};
use control::{Options, Pool};
use rados::{Cluster, ConnectOptions, Limits};
use rbd::mirroring::{MirrorPeer, Mirroring};

use crate::connection::Site;
use crate::failure::Failure;
use crate::grammar::own::PeerArgs;

/// How much longer than librados our clock waits, so that librados' own error is heard if there is one.
const GRACE: Duration = Duration::from_secs(2);

/// The other site, as far as one pool (or namespace) is concerned.
pub struct OtherSite {
    /// The site's name.
    pub name: String,
    /// Its cluster.
    pub cluster: Cluster,
    /// The pool (or namespace) there.
    pub pool: Pool,
    /// The mirror uuid of that pool, by which copies of its images name it (in whichever namespace).
    pub mirror_uuid: String,
    /// How long any one answer may take.
    pub timeout: Duration,
}

impl OtherSite {
    /// Connects to the other site of `pool`. ETIMEDOUT when it does not answer, EINVAL when it is not known how to reach
    /// it or when what answers is not the peer.
    pub async fn connect(site: &Site, pool: &Pool, args: &PeerArgs) -> Result<OtherSite, Failure> {
        let timeout = Duration::from_secs(args.peer_timeout.max(1));
        let peer = peer_of(pool).await?;
        let options = connect_options(site, pool, peer.as_ref(), args).await?;
        let what = match &peer {
            Some(peer) if !peer.site_name.is_empty() => format!("site '{}'", peer.site_name),
            _ => "the other site".to_string(),
        };
        let cluster = bounded(timeout, &what, rados::connect(options)).await?;
        if cluster.fsid() == site.cluster.fsid() {
            return Err(Failure::invalid("the configuration of the other site leads to this very cluster"));
        }
        let name = bounded(timeout, &what, site_name(&cluster)).await?;
        let namespace = Mirroring::new(pool.ioctx()).remote_namespace().await?;
        let options = Options { cluster_name: name.clone(), ..Options::default() };
        let opened = Pool::open(&cluster, pool.name(), &namespace, options);
        let pool_there = bounded(timeout, &format!("site '{name}'"), opened).await?;
        let there = Mirroring::new(&pool_there.ioctx().with_namespace(""));
        let uuid = bounded(timeout, &format!("site '{name}'"), there.uuid()).await?;
        let mirror_uuid = uuid.unwrap_or_default();
        if mirror_uuid.is_empty() {
            return Err(Failure::invalid(format!(
                "mirroring is not enabled in {pool_there} of site '{name}'"
            )));
        }
        Ok(OtherSite { name, cluster, pool: pool_there, mirror_uuid, timeout })
    }

    /// Waits for an answer of the other site, but not for ever.
    pub async fn answer<T>(&self, request: impl Future<Output = rados::Result<T>>) -> Result<T, Failure> {
        bounded(self.timeout, &format!("site '{}'", self.name), request).await
    }
}

/// The peer that images of the pool are received from; if there is none, one that receives from here.
async fn peer_of(pool: &Pool) -> Result<Option<MirrorPeer>, Failure> {
    let mut peers = pool.peers().list().await?;
    peers.sort_by_key(|peer| !peer.direction.receives());
    Ok(peers.into_iter().next())
}

async fn connect_options(
    site: &Site,
    pool: &Pool,
    peer: Option<&MirrorPeer>,
    args: &PeerArgs,
) -> Result<ConnectOptions, Failure> {
    let mut options = match (&args.peer_conf, peer) {
        (Some(conf), _) => ConnectOptions {
            cluster_name: String::new(),
            client_name: args.peer_name.clone().unwrap_or_else(|| "client.admin".to_string()),
            conf_file: Some(conf.clone()),
            no_conf_file: false,
            options: BTreeMap::new(),
            limits: Limits::default(),
        },
        (None, Some(peer)) => {
            let attributes = pool.peers().attributes(&peer.uuid).await?.unwrap_or_default();
            let connector: PeerConnector = site.peer_connector();
            let known = connector.peer_options(&RemotePeer::new(peer, attributes));
            let mut options = known.map_err(|e| {
                Failure::new(e.errno(), format!("{e}; or name its configuration file (--peer-conf)"))
            })?;
            if let Some(name) = &args.peer_name {
                options.client_name = name.clone();
                // The key that is known belongs to the client that is known.
                options.options.remove("key");
            }
            options
        }
        (None, None) => {
            let sentence = format!(
                "{pool} has no peer: import a token of the other site (mirror pool peer bootstrap import), or name its \
                 configuration file (--peer-conf)"
            );
            return Err(Failure::invalid(sentence));
        }
    };
    if options.client_name.is_empty() {
        let sentence =
            "the client name at the other site is not known: name it (--peer-name, with --peer-keyring)";
        return Err(Failure::invalid(sentence));
    }
    if let Some(keyring) = &args.peer_keyring {
        options.options.remove("key");
        options.options.insert("keyring".to_string(), keyring.display().to_string());
    }
    let seconds = args.peer_timeout.max(1).to_string();
    for option in ["client_mount_timeout", "rados_osd_op_timeout", "rados_mon_op_timeout"] {
        options.options.insert(option.to_string(), seconds.clone());
    }
    Ok(options)
}

async fn bounded<T>(
    timeout: Duration,
    whom: &str,
    request: impl Future<Output = rados::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(timeout + GRACE, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Failure::new(error.errno(), format!("{whom}: {error}"))),
        Err(_) => {
            let sentence = format!("{whom} has not answered for {} seconds", timeout.as_secs());
            Err(Failure::new(libc::ETIMEDOUT, sentence))
        }
    }
}
