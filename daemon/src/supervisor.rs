//! The whole daemon: one connection for what concerns all pools, and a replayer for each pool and peer.
//!
//! Through its own connection the supervisor looks for mirrored pools and tells the manager about the daemon. When that
//! connection is fenced it makes a new one; the pool replayers, which have connections of their own, go on meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use bootstrap::RemotePeer;
use rados::{Cluster, ErrorClass, PoolId};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::connect::Connector;
use crate::control::Control;
use crate::pool_replayer::PoolReplayer;
use crate::pools::{Discovery, Found};
use crate::retry::{Backoff, GaveUp, pause, transient};
use crate::service::ServiceDaemon;

/// Pauses between attempts to connect.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Runs the daemon until cancelled, then ends everything in order. Fails only when the first connection is impossible
/// for a reason that does not go away by itself, such as a wrong key.
pub async fn run(connector: Connector, control: Control, cancel: CancellationToken) -> anyhow::Result<()> {
    let service = ServiceDaemon::default();
    let mut discovery = Discovery::new(service.clone());
    let backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
    let connect =
        || transient("connecting to the local cluster", &cancel, backoff.clone(), || connector.local());
    let mut cluster = match connect().await {
        Ok(cluster) => cluster,
        Err(GaveUp::Cancelled) => return Ok(()),
        Err(GaveUp::Failed(e)) => return Err(e.into()),
    };
    tracing::info!("connected to cluster {} as client.{}", cluster.fsid(), cluster.instance_id());
    let replayers = Replayers::new(connector.clone(), control, service.clone(), discovery.found());
    let replayers_ended = tokio::spawn(replayers.run(cancel.clone()));
    let mut reconnects = backoff.clone();
    loop {
        let failed = tokio::select! {
            () = cancel.cancelled() => break,
            failed = attend(&mut discovery, &service, &connector, &cluster, &cancel) => failed,
        };
        tracing::error!("{failed}; connecting to the local cluster anew");
        drop(cluster);
        if !pause(&mut reconnects, &cancel).await {
            break;
        }
        cluster = loop {
            match connect().await {
                Ok(cluster) => break cluster,
                Err(GaveUp::Cancelled) => return Ok(replayers_ended.await?),
                Err(GaveUp::Failed(e)) => tracing::error!("{e}; trying again"),
            }
            if !pause(&mut reconnects, &cancel).await {
                return Ok(replayers_ended.await?);
            }
        };
    }
    Ok(replayers_ended.await?)
}

/// Looks for pools and talks to the manager until the connection is of no use any more; says why.
async fn attend(
    discovery: &mut Discovery,
    service: &ServiceDaemon,
    connector: &Connector,
    cluster: &Cluster,
    cancel: &CancellationToken,
) -> rados::Error {
    let name = &connector.configuration().options().name;
    let backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
    let publish = async {
        let publish = || service.publish(cluster, name, cancel);
        match transient("telling the manager of this daemon", cancel, backoff, publish).await {
            // A daemon without permission to register can still mirror.
            Err(GaveUp::Failed(e)) if e.class() != ErrorClass::Fenced => {
                tracing::error!("{e}; the manager will not show this daemon");
                std::future::pending().await
            }
            Err(GaveUp::Failed(e)) => e,
            Ok(()) | Err(GaveUp::Cancelled) => std::future::pending().await,
        }
    };
    tokio::select! {
        failed = discovery.run(cluster) => match failed {
            Err(e) => e,
            Ok(()) => rados::Error::new(libc::ECANCELED, "the search for mirrored pools ended"),
        },
        failed = publish => failed,
    }
}

/// One replayer for each pool and peer that was found.
struct Replayers {
    connector: Connector,
    control: Control,
    service: ServiceDaemon,
    found: watch::Receiver<Found>,
    running: BTreeMap<(PoolId, String), Running>,
}

struct Running {
    pool_name: String,
    peer: RemotePeer,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Replayers {
    fn new(
        connector: Connector,
        control: Control,
        service: ServiceDaemon,
        found: watch::Receiver<Found>,
    ) -> Self {
        Replayers { connector, control, service, found, running: BTreeMap::new() }
    }

    async fn run(mut self, cancel: CancellationToken) {
        loop {
            let found = self.found.borrow_and_update().clone();
            // Nothing can be done without the site's name, which the remote is told.
            if !found.site_name.is_empty() {
                self.reconcile(&found);
            }
            tokio::select! {
                () = cancel.cancelled() => break,
                Ok(()) = self.found.changed() => {}
            }
        }
        for running in self.running.values() {
            running.cancel.cancel();
        }
        for running in self.running.into_values() {
            running.task.await.unwrap_or_else(report_panic);
        }
    }

    fn reconcile(&mut self, found: &Found) {
        let wanted = found.pools.iter().flat_map(|(id, pool)| {
            pool.peers.values().map(|peer| ((*id, peer.uuid.clone()), (pool.name.clone(), peer.clone())))
        });
        let wanted: BTreeMap<_, _> = wanted.collect();
        let is_wanted = |key: &(PoolId, String), running: &Running| {
            wanted.get(key).is_some_and(|(name, peer)| *name == running.pool_name && *peer == running.peer)
        };
        let stale: Vec<_> = self
            .running
            .iter()
            .filter(|(key, running)| !is_wanted(key, running))
            .map(|(key, _)| key.clone())
            .collect();
        for key in stale {
            let Some(old) = self.running.remove(&key) else {
                continue;
            };
            old.cancel.cancel();
            // One whose name or peer changed comes back when the old one has ended.
            if let Some((pool_name, peer)) = wanted.get(&key) {
                self.start(key, pool_name.clone(), peer.clone(), Some(old.task));
            }
        }
        for (key, (pool_name, peer)) in wanted {
            if !self.running.contains_key(&key) {
                self.start(key, pool_name, peer, None);
            }
        }
    }

    fn start(
        &mut self,
        key: (PoolId, String),
        pool_name: String,
        peer: RemotePeer,
        after: Option<JoinHandle<()>>,
    ) {
        tracing::info!("pool '{pool_name}': mirroring from {peer}");
        let replayer = PoolReplayer {
            pool: key.0,
            pool_name: pool_name.clone(),
            peer: peer.clone(),
            connector: self.connector.clone(),
            found: self.found.clone(),
            service: self.service.clone(),
            control: self.control.clone(),
        };
        let cancel = CancellationToken::new();
        let token = cancel.clone();
        let task = tokio::spawn(async move {
            if let Some(before) = after {
                before.await.unwrap_or_else(report_panic);
            }
            replayer.run(token).await;
        });
        self.running.insert(key, Running { pool_name, peer, cancel, task });
    }
}

fn report_panic(e: tokio::task::JoinError) {
    tracing::error!("a pool replayer broke: {e}; this is a bug, please report it");
}
