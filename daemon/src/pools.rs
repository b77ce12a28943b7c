//! Which pools are mirrored from which peers: looked at all the time, so that a new pool, peer or key is acted on within
//! a second or two.
//!
//! Nobody announces that a pool was created, that mirroring was enabled in it or that a peer was added; so each pool's
//! `rbd_mirroring` is read again and again. The whole daemon spends at most [`LOOKS_PER_SECOND_MAX`] such reads a
//! second: with few pools each is looked at every second, with many pools less often.
//!
//! A pool that cannot be read keeps what was known of it, and calls out.

use std::collections::BTreeMap;
use std::time::Duration;

use bootstrap::{PeerAttributes, RemotePeer, attributes, site_name};
use futures::future::join_all;
use rados::{Cluster, ErrorClass, PoolId, Result};
use rbd::mirroring::{MirrorMode, Mirroring, PeerDirection};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::service::{Level, ServiceDaemon};

/// How often pools are looked at when there are few.
const LOOK_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// What all pools together may cost.
const LOOKS_PER_SECOND_MAX: u32 = 20;
/// How often the peers' keys are read again.
const KEYS_INTERVAL: Duration = Duration::from_secs(10);
/// A pool whose OSDs do not answer in this time is left for the next round.
const LOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// Who calls out.
const CALLOUT: &str = "pools";

/// A pool with mirroring enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirroredPool {
    /// Its name.
    pub name: String,
    /// The peers that we pull from, by uuid.
    pub peers: BTreeMap<String, RemotePeer>,
}

/// Mirrored pools by id.
pub type MirroredPools = BTreeMap<PoolId, MirroredPool>;

/// The search for mirrored pools.
pub struct Discovery {
    /// What was found, and the site's name.
    found: watch::Sender<Found>,
    service: ServiceDaemon,
    keys: BTreeMap<(PoolId, String), (Instant, PeerAttributes)>,
}

/// The result of the search.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The mirrored pools.
    pub pools: MirroredPools,
    /// Name of this site; empty as long as it is unknown.
    pub site_name: String,
}

impl Discovery {
    /// A search that publishes what it finds.
    pub fn new(service: ServiceDaemon) -> Self {
        Discovery { found: watch::Sender::default(), service, keys: BTreeMap::new() }
    }

    /// What was found, whenever it changes.
    pub fn found(&self) -> watch::Receiver<Found> {
        self.found.subscribe()
    }

    /// Searches until `cluster` is fenced or otherwise beyond repair.
    pub async fn run(&mut self, cluster: &Cluster) -> Result<()> {
        let mut site_name_read: Option<Instant> = None;
        loop {
            let round = Instant::now();
            if site_name_read.is_none_or(|at| at.elapsed() >= KEYS_INTERVAL)
                && let Some(site_name) = tolerate("the site's name", site_name(cluster).await)?
            {
                self.found.send_if_modified(|found| replace(&mut found.site_name, site_name));
                site_name_read = Some(round);
            }
            let mut interval = LOOK_INTERVAL_MIN;
            if let Some(pools) = tolerate("the pools", pools(cluster).await)? {
                interval = interval.max(Duration::from_secs(1) * pools.len() as u32 / LOOKS_PER_SECOND_MAX);
                let mirrored = self.look(cluster, pools).await?;
                self.found.send_if_modified(|found| replace(&mut found.pools, mirrored));
            }
            sleep(interval.saturating_sub(round.elapsed())).await;
        }
    }

    /// One look at every pool.
    async fn look(&mut self, cluster: &Cluster, pools: Vec<(PoolId, String)>) -> Result<MirroredPools> {
        let known = self.found.borrow().pools.clone();
        let looks = pools.into_iter().map(async |(id, name)| {
            let peers = match timeout(LOOK_TIMEOUT, receiving_peers(cluster, id)).await {
                Ok(peers) => peers,
                Err(_) => Err(rados::Error::new(libc::ETIMEDOUT, "cannot read its mirroring settings")),
            };
            (id, name, peers)
        });
        let mut mirrored = MirroredPools::new();
        for (id, name, peers) in join_all(looks).await {
            match peers {
                Ok(None) => {}
                Ok(Some(peers)) => {
                    self.service.add_pool(id, &name);
                    let (peers, trouble) = self.complete(cluster, id, peers).await?;
                    self.service.callout(id, CALLOUT, trouble.map(|sentence| (Level::Warning, sentence)));
                    mirrored.insert(id, MirroredPool { name, peers });
                }
                Err(e) if e.class() == ErrorClass::Fenced => return Err(e),
                // It was deleted while we looked.
                Err(e) if e.is_not_found() => {}
                Err(e) => {
                    if let Some(known) = known.get(&id) {
                        tracing::warn!("pool '{name}': {e}; going on with what is known of it");
                        self.service.callout(id, CALLOUT, Some((Level::Warning, e.to_string())));
                        mirrored.insert(id, known.clone());
                    } else {
                        // We may well have no access to a pool that is none of our business.
                        tracing::debug!("pool '{name}': {e}");
                    }
                }
            }
        }
        for gone in known.keys().filter(|id| !mirrored.contains_key(id)) {
            self.service.remove_pool(*gone);
        }
        self.keys.retain(|(id, uuid), _| mirrored.get(id).is_some_and(|pool| pool.peers.contains_key(uuid)));
        Ok(mirrored)
    }

    /// Adds the peers' keys. A peer whose keys cannot be read keeps those that it had; the sentence says why.
    async fn complete(
        &mut self,
        cluster: &Cluster,
        pool: PoolId,
        peers: Vec<RemotePeer>,
    ) -> Result<(BTreeMap<String, RemotePeer>, Option<String>)> {
        let mut complete = BTreeMap::new();
        let mut trouble = None;
        for mut peer in peers {
            let slot = (pool, peer.uuid.clone());
            let known = self.keys.get(&slot);
            if known.is_none_or(|(read, _)| read.elapsed() >= KEYS_INTERVAL) {
                match attributes::read(cluster, pool, &peer.uuid).await {
                    Ok(keys) => {
                        self.keys.insert(slot.clone(), (Instant::now(), keys.unwrap_or_default()));
                    }
                    Err(e) if e.class() == ErrorClass::Fenced => return Err(e),
                    Err(e) => trouble = Some(e.to_string()),
                }
            }
            peer.attributes = self.keys.get(&slot).map(|(_, keys)| keys.clone()).unwrap_or_default();
            complete.insert(peer.uuid.clone(), peer);
        }
        Ok((complete, trouble))
    }
}

async fn pools(cluster: &Cluster) -> Result<Vec<(PoolId, String)>> {
    cluster.wait_for_latest_osdmap().await?;
    cluster.pools().await
}

/// The peers from which a pool pulls, without their keys; `None` when it is not mirrored.
async fn receiving_peers(cluster: &Cluster, pool: PoolId) -> Result<Option<Vec<RemotePeer>>> {
    let mirroring = Mirroring::new(&cluster.pool(pool));
    if mirroring.mode().await? == MirrorMode::Disabled {
        return Ok(None);
    }
    let peers = mirroring.peers().await?.into_iter().filter(|peer| peer.direction != PeerDirection::Tx);
    let peers = peers.map(|peer| RemotePeer::new(&peer, PeerAttributes::default()));
    Ok(Some(peers.collect()))
}

/// Passes on a fence; logs any other failure.
fn tolerate<T>(what: &str, outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.class() == ErrorClass::Fenced => Err(e),
        Err(e) => {
            tracing::warn!("cannot look for {what}: {e}; trying again");
            Ok(None)
        }
    }
}

/// Sets `slot`; true when that changed it.
fn replace<T: PartialEq>(slot: &mut T, value: T) -> bool {
    let changed = *slot != value;
    *slot = value;
    changed
}
