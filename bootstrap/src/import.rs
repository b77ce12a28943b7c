//! Importing a token: from two clusters that do not know each other to two peers.
//!
//! [`Import::open`] connects to the other site and looks at all that could forbid it; nothing is changed before. When
//! mirroring is not enabled here, [`Import::mode_to_copy`] tells the mode that the other site has, for the caller to set;
//! then [`Import::register`] writes. Every step may be repeated: peers that are there are updated.
//!
//! | refused | error |
//! |---|---|
//! | token of this very cluster, or of another one than answers | EINVAL |
//! | both sites have the same name | EINVAL |
//! | user or key not known there (any more) | EACCES |
//! | monitors do not answer | ETIMEDOUT |
//! | no pool of that name there | ENOENT |
//! | mirroring not enabled there | ENOSYS |
//! | another peer is there already | EINVAL |
//!
//! Where Ceph leaves a peer that only pulls from here (tx-only, made when its daemon announced itself) as it is and so
//! never pulls from it, such a peer becomes the one that was asked for.
//!
//! Reference: `Mirror<I>::peer_bootstrap_import` in `src/librbd/api/Mirror.cc`.

use rados::error::ResultExt;
use rados::{Cluster, Error, PoolId, Result};
use rbd::mirroring::{MirrorMode, MirrorPeer, Mirroring, PeerDirection};

use crate::peers::{NewPeer, Peers};
use crate::site::site_name;
use crate::token::mon_host;
use crate::user::create_peer_user;
use crate::{PeerAttributes, PeerConnector, Token};

/// Which way images are to be mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ImportDirection {
    /// From the site of the token to this one.
    RxOnly,
    /// Both ways: this site is registered there, too.
    #[default]
    RxTx,
}

impl ImportDirection {
    fn of_peer(self) -> PeerDirection {
        match self {
            ImportDirection::RxOnly => PeerDirection::Rx,
            ImportDirection::RxTx => PeerDirection::RxTx,
        }
    }
}

/// Where and how to import.
#[derive(Debug, Clone)]
pub struct ImportOptions {
    /// Name of the pool, the same on both sites.
    pub pool: String,
    /// Which way images are to be mirrored.
    pub direction: ImportDirection,
    /// The name that our own cluster goes by here (`--cluster`).
    pub cluster_name: String,
    /// How to connect to the other site.
    pub connector: PeerConnector,
}

/// What an import registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The other site's name.
    pub remote_site_name: String,
    /// Its uuid as a peer of the pool here.
    pub peer_uuid: String,
    /// Our uuid as a peer of the pool there, when we were registered there.
    pub remote_peer_uuid: Option<String>,
}

/// One of the two sites.
struct Site {
    cluster: Cluster,
    pool: PoolId,
    name: String,
    mode: MirrorMode,
}

impl Site {
    async fn read(cluster: &Cluster, pool_name: &str) -> Result<Site> {
        let name = site_name(cluster).await?;
        let pool = cluster.pool_by_name(pool_name).await?;
        let mode = Mirroring::new(&cluster.pool(pool)).mode().await?;
        Ok(Site { cluster: cluster.clone(), pool, name, mode })
    }
}

/// An import that nothing forbids.
pub struct Import {
    local: Site,
    remote: Site,
    token: Token,
    options: ImportOptions,
}

impl Import {
    /// Connects to the site that `token` describes and checks that it may become a peer.
    pub async fn open(local: &Cluster, token: &Token, options: ImportOptions) -> Result<Import> {
        let what = "cannot import the bootstrap token";
        let refuse = |errno, why: String| Err(Error::new(errno, format!("{what}: {why}")));
        if token.fsid == local.fsid() {
            return refuse(
                libc::EINVAL,
                "it was made by this very cluster; import it on the other one".into(),
            );
        }
        let remote = match options.connector.connect_by_token(token).await {
            Err(e) if e.is(libc::EACCES) || e.is(libc::EPERM) => {
                let why = format!(
                    "client.{} or its key is not known there: the token is no longer valid; make a new one",
                    token.client_id
                );
                return refuse(libc::EACCES, why);
            }
            remote => remote.context(what)?,
        };
        if remote.fsid() == local.fsid() {
            return refuse(libc::EINVAL, "its monitors are those of this very cluster".into());
        }
        if remote.fsid() != token.fsid {
            let why = format!("its monitors belong to cluster {}, not to {}", remote.fsid(), token.fsid);
            return refuse(libc::EINVAL, why);
        }
        let (local_name, remote_name) =
            (site_name(local).await.context(what)?, site_name(&remote).await.context(what)?);
        if local_name == remote_name {
            return refuse(
                libc::EINVAL,
                format!("both sites are called '{local_name}': rename one (--site-name)"),
            );
        }
        let local = Site::read(local, &options.pool).await.context(what)?;
        let remote =
            Site::read(&remote, &options.pool).await.context(format!("{what} of site '{remote_name}'"))?;
        if remote.mode == MirrorMode::Disabled {
            let why = format!("mirroring is not enabled in pool '{}' of site '{remote_name}'", options.pool);
            return refuse(libc::ENOSYS, why);
        }
        Ok(Import { local, remote, token: token.clone(), options })
    }

    /// The other site's name.
    pub fn remote_site_name(&self) -> &str {
        &self.remote.name
    }

    /// The mode to be set in the pool here before [`Import::register`]: that of the other site, when mirroring is not
    /// enabled here.
    pub fn mode_to_copy(&self) -> Option<MirrorMode> {
        (self.local.mode == MirrorMode::Disabled).then_some(self.remote.mode)
    }

    /// Registers the other site here and, with [`ImportDirection::RxTx`], this site there. EINVAL when a pool has another
    /// peer, or when its mirroring is not enabled.
    pub async fn register(&self) -> Result<Imported> {
        let remote_peer_uuid = match self.options.direction {
            ImportDirection::RxTx => Some(self.register_there().await?),
            ImportDirection::RxOnly => None,
        };
        let new = NewPeer {
            direction: self.options.direction.of_peer(),
            site_name: self.remote.name.clone(),
            client_name: format!("client.{}", self.token.client_id),
            attributes: self.token.attributes(),
        };
        let peer_uuid = add_or_update(&self.local, &self.options.cluster_name, &self.token.fsid, &new).await;
        let peer_uuid =
            peer_uuid.context(format!("cannot register site '{}' as our peer", self.remote.name))?;
        Ok(Imported { remote_site_name: self.remote.name.clone(), peer_uuid, remote_peer_uuid })
    }

    async fn register_there(&self) -> Result<String> {
        let what = || format!("cannot register this site as a peer of site '{}'", self.remote.name);
        let user = create_peer_user(&self.local.cluster).await.context(what())?;
        let mon_host = mon_host(&self.local.cluster).await.context(what())?;
        let new = NewPeer {
            direction: PeerDirection::RxTx,
            site_name: self.local.name.clone(),
            client_name: format!("client.{}", user.client_id),
            attributes: PeerAttributes::new(&mon_host, user.key),
        };
        // A connection without a configuration file is to a cluster that goes by the default name.
        add_or_update(&self.remote, "ceph", self.local.cluster.fsid(), &new).await.context(what())
    }
}

/// Registers `new` at `site`, or updates the peer that has its name, or its fsid for a name.
async fn add_or_update(site: &Site, cluster_name: &str, fsid: &str, new: &NewPeer) -> Result<String> {
    let peers = Peers::new(&site.cluster, site.pool, cluster_name);
    let registered = peers.list().await?;
    let uuid = match registered.iter().find(|peer| peer.site_name == new.site_name || peer.site_name == fsid)
    {
        Some(peer) => update(&peers, peer, new).await?,
        None if registered.is_empty() => peers.register(new).await?,
        None => {
            let others: Vec<_> = registered.iter().map(|peer| format!("'{}'", peer.site_name)).collect();
            let why = format!(
                "the pool has another peer ({}), and more than one is not supported: remove it first",
                others.join(", ")
            );
            return Err(Error::new(libc::EINVAL, why));
        }
    };
    peers.set_attributes(&uuid, &new.attributes).await?;
    Ok(uuid)
}

async fn update(peers: &Peers, peer: &MirrorPeer, new: &NewPeer) -> Result<String> {
    if peer.site_name != new.site_name
        && let Err(e) = peers.set_site_name(&peer.uuid, &new.site_name).await
    {
        tracing::warn!("peer {} keeps the name '{}': {e}", peer.uuid, peer.site_name);
    }
    if !peer.direction.receives() {
        peers.set_client(&peer.uuid, &new.client_name).await?;
        peers.set_direction(&peer.uuid, new.direction).await?;
    }
    Ok(peer.uuid.clone())
}
