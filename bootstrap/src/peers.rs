//! The peers of a pool: the table of its default namespace, and what the config-key store says about each.
//!
//! A pool pulls from one peer at most: a second one that it would receive from is refused, as `rbd` refuses it.
//!
//! Reference: `peer_site_*` in `src/librbd/api/Mirror.cc`, `execute_peer_*` in `src/tools/rbd/action/MirrorPool.cc`.

use rados::error::ResultExt;
use rados::{Cluster, Error, PoolId, Result};
use rbd::mirroring::{MirrorPeer, Mirroring, PeerDirection};
use rbd::types::Timestamp;

use crate::{PeerAttributes, Secret, attributes};

/// How often another uuid is tried when one is taken.
const UUIDS_MAX: u32 = 8;

/// A peer to be added.
#[derive(Debug, Clone)]
pub struct NewPeer {
    /// Which way data flows.
    pub direction: PeerDirection,
    /// Name of the site.
    pub site_name: String,
    /// The client that we are there, with its type (`client.…`).
    pub client_name: String,
    /// Its monitors and our key there, as far as known.
    pub attributes: PeerAttributes,
}

/// The peers of one pool.
#[derive(Clone)]
pub struct Peers {
    cluster: Cluster,
    pool: PoolId,
    mirroring: Mirroring,
    cluster_name: String,
}

impl Peers {
    /// Of `pool`. `cluster_name` is the name that our own cluster goes by here (`--cluster`), which no peer may have.
    pub fn new(cluster: &Cluster, pool: PoolId, cluster_name: &str) -> Peers {
        let mirroring = Mirroring::new(&cluster.pool(pool));
        Peers { cluster: cluster.clone(), pool, mirroring, cluster_name: cluster_name.to_string() }
    }

    /// All of them.
    pub async fn list(&self) -> Result<Vec<MirrorPeer>> {
        self.mirroring.peers().await
    }

    /// How a peer is reached; `None` when nothing is stored about it.
    pub async fn attributes(&self, uuid: &str) -> Result<Option<PeerAttributes>> {
        attributes::read(&self.cluster, self.pool, uuid).await
    }

    /// Registers a peer and answers with its uuid. EINVAL when it is the second one to receive from, when it has our own
    /// name, or when its direction is tx-only; EEXIST when there is a peer of that name.
    pub async fn add(&self, new: &NewPeer) -> Result<String> {
        let what = format!("cannot add peer '{}'", new.site_name);
        refuse_second_receiver(&self.list().await.context(&what)?, None).context(&what)?;
        let uuid = self.register(new).await.context(&what)?;
        if !new.attributes.is_empty() {
            attributes::write(&self.cluster, self.pool, &uuid, &new.attributes).await.context(&what)?;
        }
        Ok(uuid)
    }

    /// Adds a peer to the table, without looking at the others.
    pub(crate) async fn register(&self, new: &NewPeer) -> Result<String> {
        self.refuse_own_name(&new.site_name)?;
        if !new.direction.receives() {
            let why = "a peer that only pulls from here registers itself (tx-only)";
            return Err(Error::new(libc::EINVAL, why));
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            let peer = MirrorPeer {
                uuid: uuid::Uuid::new_v4().to_string(),
                direction: new.direction,
                site_name: new.site_name.clone(),
                client_name: new.client_name.clone(),
                mirror_uuid: String::new(),
                last_seen: Timestamp::default(),
            };
            match self.mirroring.peer_add(&peer).await {
                Ok(()) => return Ok(peer.uuid),
                Err(e) if e.is(libc::ESTALE) && attempt < UUIDS_MAX => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Strikes out a peer and forgets how it is reached; no error when there is none of this uuid. Mirror-snapshots that
    /// wait for it are the caller's to unlink.
    pub async fn remove(&self, uuid: &str) -> Result<()> {
        attributes::remove(&self.cluster, self.pool, uuid).await?;
        self.mirroring.peer_remove(uuid).await
    }

    /// Sets the client that we are at a peer. ENOENT when there is no such peer.
    pub async fn set_client(&self, uuid: &str, client_name: &str) -> Result<()> {
        self.mirroring.peer_set_client(uuid, client_name).await
    }

    /// Names a peer. ENOENT when there is no such peer, EEXIST when another one has the name, EINVAL when we have it.
    pub async fn set_site_name(&self, uuid: &str, site_name: &str) -> Result<()> {
        self.refuse_own_name(site_name)?;
        self.mirroring.peer_set_site_name(uuid, site_name).await
    }

    /// Sets which way data flows. ENOENT when there is no such peer, EINVAL when it would be the second one to receive
    /// from.
    pub async fn set_direction(&self, uuid: &str, direction: PeerDirection) -> Result<()> {
        if direction.receives() {
            refuse_second_receiver(&self.list().await?, Some(uuid))
                .context(format!("cannot set the direction of peer {uuid}"))?;
        }
        self.mirroring.peer_set_direction(uuid, direction).await
    }

    /// Sets the monitors of a peer; forgets them when empty. ENOENT when there is no such peer.
    pub async fn set_mon_host(&self, uuid: &str, mon_host: &str) -> Result<()> {
        self.update_attributes(uuid, |attributes| attributes.set_mon_host(mon_host)).await
    }

    /// Sets our key at a peer; forgets it when empty. ENOENT when there is no such peer.
    pub async fn set_key(&self, uuid: &str, key: Secret) -> Result<()> {
        self.update_attributes(uuid, |attributes| attributes.set_key(key)).await
    }

    /// Stores how a peer is reached. ENOENT when there is no such peer.
    pub async fn set_attributes(&self, uuid: &str, attributes: &PeerAttributes) -> Result<()> {
        if !self.list().await?.iter().any(|peer| peer.uuid == uuid) {
            let what = format!("cannot store how peer {uuid} is reached: there is no such peer");
            return Err(Error::new(libc::ENOENT, what));
        }
        attributes::write(&self.cluster, self.pool, uuid, attributes).await
    }

    async fn update_attributes(&self, uuid: &str, change: impl FnOnce(&mut PeerAttributes)) -> Result<()> {
        let mut attributes = self.attributes(uuid).await?.unwrap_or_default();
        change(&mut attributes);
        self.set_attributes(uuid, &attributes).await
    }

    fn refuse_own_name(&self, site_name: &str) -> Result<()> {
        if site_name != self.cluster_name {
            return Ok(());
        }
        let why = format!("'{site_name}' is what our own cluster is called here");
        Err(Error::new(libc::EINVAL, why))
    }
}

/// Refuses (EINVAL) another peer to receive from than `except`.
fn refuse_second_receiver(peers: &[MirrorPeer], except: Option<&str>) -> Result<()> {
    let receives =
        |peer: &&MirrorPeer| peer.direction != PeerDirection::Tx && Some(peer.uuid.as_str()) != except;
    let Some(other) = peers.iter().find(receives) else { return Ok(()) };
    let why = format!(
        "the pool receives from peer '{}' ({}), and more than one such peer is not supported: remove it first",
        other.site_name, other.uuid
    );
    Err(Error::new(libc::EINVAL, why))
}
