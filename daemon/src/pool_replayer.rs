//! One pool and one peer that it is mirrored from: connections, leadership, namespaces.
//!
//! A *session* is everything from connecting to losing a connection. It joins the contest for the pool's leadership
//! and, each time that it leads, mirrors the pool's namespaces. Whatever goes wrong with the session as a whole (a
//! connection was fenced, the remote pool is not there, …) ends it: it is said in a callout, and after a pause the next
//! session begins from scratch, with new connections.
//!
//! Order at the end of leadership: image tasks, statuses, watches, and only then the leader lock, so that the next
//! leader never works beside this one. All that is written locally in a term of leadership goes through its gate
//! ([`rados::gate`]): when that is not empty soon after its end, because an OSD does not answer, the leader lock is left as it
//! is, and the connection is given up. The next leader, wherever it is, fences it then, and with it what is under way.
//!
//! Reference: `src/tools/rbd_mirror/PoolReplayer.cc`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bootstrap::RemotePeer;
use rados::{Cluster, ErrorClass, IoCtx, PoolId};
use rbd::mirroring::{MirrorMode, Mirroring};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::connect::Connector;
use crate::control::{Control, Orders, PoolControl};
use crate::image::Shared;
use crate::leader::Leader;
use crate::namespace::{self, NamespaceContext};
use crate::peer_ping::{self, RemotePool};
use crate::pools::Found;
use crate::reports::Reports;
use crate::retry::{Backoff, pause};
use crate::service::{Level, ServiceDaemon};
use crate::settings::Settings;
use crate::space;

/// Pauses between sessions.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// How often the pool's namespaces are listed.
const NAMESPACES_INTERVAL: Duration = Duration::from_secs(2);
/// How often it is looked whether the peer has enabled mirroring, as long as it has not.
const REMOTE_INTERVAL: Duration = Duration::from_secs(2);
/// How often it is looked whether the remote pool was made anew.
const REMAKE_INTERVAL: Duration = Duration::from_secs(10);
/// Bytes that all copies of the pool together may hold in memory, and all its replays, unless `rbd_mirror_memory_target` is
/// small.
const BYTES_MAX: u64 = 64 << 20;
/// Who calls out.
const CALLOUT: &str = "pool_replayer";
/// How long what was written in a term of leadership may take to be answered when that is over.
const WRITES_TIMEOUT: Duration = Duration::from_secs(2);

/// The replayer of one pool from one peer.
pub struct PoolReplayer {
    /// The pool.
    pub pool: PoolId,
    /// Its name, the same in both clusters.
    pub pool_name: String,
    /// The peer.
    pub peer: RemotePeer,
    /// Makes the connections.
    pub connector: Connector,
    /// Tells this site's name.
    pub found: watch::Receiver<Found>,
    /// Where it calls out.
    pub service: ServiceDaemon,
    /// Where it is shown and gets its orders.
    pub control: Control,
}

/// Why a session ended.
enum Ended {
    /// It was told to.
    Cancelled,
    /// What it was built on changed: the next one can begin at once.
    Changed(String),
}

/// Why a session failed: what the operator reads in `rbd mirror pool status`, and the details for the log.
struct Failure {
    callout: &'static str,
    level: Level,
    details: String,
}

fn failure<E: std::fmt::Display>(callout: &'static str) -> impl FnOnce(E) -> Failure {
    move |e| Failure { callout, level: Level::Error, details: e.to_string() }
}

impl PoolReplayer {
    /// Mirrors the pool until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let control = self.control.register((self.pool, &self.pool_name), &self.peer);
        let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
        let what = format!("pool '{}' from '{}'", self.pool_name, self.peer.site_name);
        loop {
            control.show(|view| view.state = "starting".to_string());
            match self.session(&control, &cancel, &mut backoff).await {
                Ok(Ended::Cancelled) => break,
                Ok(Ended::Changed(why)) => tracing::info!("{what}: starting over: {why}"),
                Err(failed) => {
                    tracing::error!("{what}: {}: {}; trying again", failed.callout, failed.details);
                    self.call_out(Some((failed.level, failed.callout.to_string())));
                    control
                        .show(|view| view.state = format!("error: {}: {}", failed.callout, failed.details));
                }
            }
            if !pause(&mut backoff, &cancel).await {
                break;
            }
        }
        self.call_out(None);
    }

    fn call_out(&self, callout: Option<(Level, String)>) {
        let source = format!("{CALLOUT} {}", self.peer.uuid);
        self.service.callout(self.pool, &source, callout);
    }

    fn attribute(&self, key: &str, value: impl Into<Value>) {
        self.service.attribute(self.pool, "", key, value);
    }

    async fn session(
        &self,
        control: &Arc<PoolControl>,
        cancel: &CancellationToken,
        backoff: &mut Backoff,
    ) -> Result<Ended, Failure> {
        let session = tokio::select! {
            () = cancel.cancelled() => return Ok(Ended::Cancelled),
            session = Session::open(self) => session?,
        };
        backoff.reset();
        self.call_out(None);
        self.attribute("instance_id", session.local.instance_id().to_string());
        control.show(|view| {
            view.state = "running".to_string();
            view.instance_id = session.local.instance_id().to_string();
        });
        session.run(control, cancel).await
    }
}

/// Connections and what was learnt through them.
struct Session<'a> {
    replayer: &'a PoolReplayer,
    local: Cluster,
    local_pool: IoCtx,
    remote_pool: IoCtx,
    local_mirror_uuid: Arc<str>,
    site_name: String,
    known: RemotePool,
    settings: Settings,
    shared: Arc<Shared>,
}

impl<'a> Session<'a> {
    async fn open(replayer: &'a PoolReplayer) -> Result<Self, Failure> {
        let unreachable = "unable to connect to remote cluster";
        let local =
            replayer.connector.local().await.map_err(failure("unable to connect to local cluster"))?;
        let remote = replayer.connector.peer(&replayer.peer).await.map_err(failure(unreachable))?;
        if local.fsid() == remote.fsid() {
            let details = format!("the peer is this very cluster (fsid {})", local.fsid());
            return Err(failure(unreachable)(details));
        }
        let local_pool = local.pool(replayer.pool);
        let mirror_uuid = Mirroring::new(&local_pool).uuid().await;
        let mirror_uuid = mirror_uuid.map_err(failure("unable to query local mirror uuid"))?;
        let Some(local_mirror_uuid) = mirror_uuid.filter(|uuid| !uuid.is_empty()) else {
            return Err(failure("unable to query local mirror uuid")("mirroring is not enabled in the pool"));
        };
        let remote_pool = remote.pool_by_name(&replayer.pool_name).await.map_err(|e| Failure {
            callout: "unable to access remote pool",
            level: Level::Warning,
            details: e.to_string(),
        })?;
        let remote_pool = remote.pool(remote_pool);
        let site_name = replayer.found.borrow().site_name.clone();
        let known = first_ping(replayer, &remote_pool, &site_name, &local_mirror_uuid).await?;
        // librados refuses to tell of an option that it does not know.
        let configured = replayer.connector.configuration();
        let settings = Settings::read(|option| local.config(option).or_else(|| configured.get(option)));
        let shared = Arc::new(Shared::new(BYTES_MAX.min(settings.memory_target_bytes / 8)));
        Ok(Session {
            replayer,
            local,
            local_pool,
            remote_pool,
            local_mirror_uuid: local_mirror_uuid.into(),
            site_name,
            known,
            settings,
            shared,
        })
    }

    /// Contends for the leadership, and leads, until something ends the session.
    async fn run(&self, control: &Arc<PoolControl>, cancel: &CancellationToken) -> Result<Ended, Failure> {
        let leader = Leader::open(&self.local, &self.local_pool, self.settings.leader_heartbeat_interval);
        let mut leader = leader.await.map_err(failure("unable to initialize leader messenger object"))?;
        let stop = cancel.child_token();
        let ended = {
            let contest = self.contend(&mut leader, control, &stop);
            tokio::pin!(contest);
            tokio::select! {
                ended = &mut contest => ended,
                changed = self.changed() => {
                    // Not dropped: it ends what it began in order.
                    stop.cancel();
                    contest.await.and(changed)
                }
            }
        };
        leader.release().await;
        self.show_leader(control, None);
        ended
    }

    /// Leads whenever it can; comes back only when the session cannot go on.
    async fn contend(
        &self,
        leader: &mut Leader,
        control: &Arc<PoolControl>,
        cancel: &CancellationToken,
    ) -> Result<Ended, Failure> {
        let mut orders = control.orders();
        loop {
            let acquired = tokio::select! {
                () = cancel.cancelled() => return Ok(Ended::Cancelled),
                acquired = leader.acquire(|owner| self.show_leader(control, owner)) => acquired,
            };
            acquired.map_err(failure("unable to acquire the leadership of the pool"))?;
            tracing::info!("pool '{}': leading", self.replayer.pool_name);
            // Begins to allocate ids ahead, while the images are still being looked for.
            drop(self.shared.snap_ids(&self.local_pool));
            drop(self.shared.remote_snap_ids(&self.remote_pool));
            let releases = orders.borrow_and_update().leader_releases;
            let term = self.local_pool.gated();
            let mut namespaces = Namespaces::new(self, control, &term);
            let (space, replayer) = (&self.shared.space, self.replayer);
            // Namespaces are ended in order whatever ends the leadership, also when the session is cancelled.
            let lost = tokio::select! {
                () = cancel.cancelled() => None,
                lost = leader.hold() => Some(Err(failure("lost the leadership of the pool")(lost))),
                failed = namespaces.work() => Some(Err(failed)),
                failed = space::watch(&self.local, space, replayer.pool, &replayer.service) => {
                    Some(Err(failure("lost the connection to the local cluster")(failed)))
                }
                _ = orders.wait_for(|orders| orders.leader_releases != releases) => None,
            };
            namespaces.end().await;
            if let Err(unanswered) = self.end_term(&term).await {
                leader.abandon().await;
                self.show_leader(control, None);
                return lost.unwrap_or(Err(unanswered));
            }
            leader.release().await;
            self.show_leader(control, None);
            match lost {
                Some(ended) => return ended,
                None if cancel.is_cancelled() => return Ok(Ended::Cancelled),
                None => {
                    tracing::info!("pool '{}': leadership released", self.replayer.pool_name);
                    // The others go first now, as long as two heartbeats take.
                    let turn = sleep(2 * self.settings.leader_heartbeat_interval);
                    cancel.run_until_cancelled(turn).await;
                }
            }
        }
    }

    /// Nothing is written any more through the context of a term of leadership; fails when what was is not answered in time.
    async fn end_term(&self, term: &IoCtx) -> Result<(), Failure> {
        let Some(gate) = term.gate() else { return Ok(()) };
        gate.close();
        if timeout(WRITES_TIMEOUT, gate.drained()).await == Ok(true) {
            return Ok(());
        }
        let details = format!(
            "{} writes to the copies are under way and not answered, an OSD of the pool may be down; giving up the \
             connection, so that they cannot take effect after those of the next leader",
            gate.inside()
        );
        Err(failure("unable to release the leadership of the pool in order")(details))
    }

    fn show_leader(&self, control: &PoolControl, owner: Option<u64>) {
        let leads = owner == Some(self.local.instance_id());
        self.replayer.attribute("leader", if leads { Value::Bool(true) } else { Value::Null });
        control.show(|view| {
            view.leader = leads;
            view.leader_instance_id = owner.map(|id| id.to_string()).unwrap_or_default();
        });
    }

    /// Waits until something that the session is built on changes.
    async fn changed(&self) -> Result<Ended, Failure> {
        let mut found = self.replayer.found.clone();
        let ping = peer_ping::watch(&self.remote_pool, &self.site_name, &self.local_mirror_uuid, &self.known);
        tokio::select! {
            _ = found.wait_for(|found| !found.site_name.is_empty() && found.site_name != self.site_name) => {
                Ok(Ended::Changed("this site got a new name".to_string()))
            }
            () = self.made_anew() => Ok(Ended::Changed("the remote pool was made anew".to_string())),
            answer = ping => match answer {
                Ok(_) => Ok(Ended::Changed("the remote pool's mirror uuid or peer table changed".to_string())),
                Err(e) => Err(failure("lost the connection to the remote cluster")(e)),
            }
        }
    }

    /// Waits until the remote pool's name stands for another pool than that of this session.
    async fn made_anew(&self) {
        let cluster = Cluster::new(self.remote_pool.backend().clone());
        loop {
            sleep(REMAKE_INTERVAL).await;
            if let Err(error) = cluster.wait_for_latest_osdmap().await {
                tracing::debug!("cannot look for the remote pool '{}': {error}", self.replayer.pool_name);
                continue;
            }
            match cluster.pool_by_name(&self.replayer.pool_name).await {
                Ok(pool) if pool != self.remote_pool.pool_id() => return,
                _ => {}
            }
        }
    }

    fn namespace_context(
        &self,
        term: &IoCtx,
        name: &str,
        remote_name: &str,
        reports: Reports,
    ) -> NamespaceContext {
        NamespaceContext {
            pool: self.replayer.pool,
            local: term.with_namespace(name),
            remote: self.remote_pool.with_namespace(remote_name),
            local_mirror_uuid: self.local_mirror_uuid.clone(),
            local_peer_uuid: self.replayer.peer.uuid.as_str().into(),
            remote_pool: self.known.clone(),
            shared: self.shared.clone(),
            delete_delay: self.settings.delete_delay,
            object_map_trust: self.settings.object_map_trust,
            journal: Arc::new(self.settings.journal.clone()),
            refresh_interval: self.settings.refresh_interval,
            retry_interval_max: self.settings.image_state_check_interval,
            reports,
            service: self.replayer.service.clone(),
        }
    }
}

/// Pings the remote pool until it answers who it is, and until it knows us.
async fn first_ping(
    replayer: &PoolReplayer,
    remote_pool: &IoCtx,
    site_name: &str,
    local_mirror_uuid: &str,
) -> Result<RemotePool, Failure> {
    let mut said = false;
    loop {
        let pinged = peer_ping::ping(remote_pool, site_name, local_mirror_uuid).await;
        let missing = match pinged.map_err(failure("unable to initialize remote pool poller"))? {
            Some(known) if !known.peer_uuid.is_empty() => return Ok(known),
            Some(_) => "the remote pool does not know this site as a peer",
            None => "mirroring is not enabled in the remote pool",
        };
        if !std::mem::replace(&mut said, true) {
            tracing::warn!("pool '{}': {missing}; waiting for it", replayer.pool_name);
            replayer.call_out(Some((Level::Warning, missing.to_string())));
        }
        sleep(REMOTE_INTERVAL).await;
    }
}

/// The replayers of a pool's namespaces, the default one included.
struct Namespaces<'a> {
    session: &'a Session<'a>,
    control: &'a Arc<PoolControl>,
    /// The local pool, through the gate of this term of leadership.
    term: IoCtx,
    orders: watch::Receiver<Orders>,
    running: BTreeMap<String, (CancellationToken, Id)>,
    tasks: JoinSet<rados::Result<()>>,
}

impl<'a> Namespaces<'a> {
    fn new(session: &'a Session<'a>, control: &'a Arc<PoolControl>, term: &IoCtx) -> Self {
        let (running, tasks) = (BTreeMap::new(), JoinSet::new());
        Namespaces { session, control, term: term.clone(), orders: control.orders(), running, tasks }
    }

    /// Starts and ends replayers as namespaces come and go; comes back only with a reason to end the session.
    async fn work(&mut self) -> Failure {
        let mut looks = interval(NAMESPACES_INTERVAL);
        loop {
            tokio::select! {
                _ = looks.tick() => match mirrored_namespaces(&self.session.local_pool).await {
                    Ok(names) => self.reconcile(names),
                    Err(e) if e.class() == ErrorClass::Fenced => {
                        return failure("lost the connection to the local cluster")(e);
                    }
                    Err(e) => tracing::warn!("pool '{}': {e}; trying again", self.session.replayer.pool_name),
                },
                Some(ended) = self.tasks.join_next_with_id() => {
                    let (id, outcome) = match ended {
                        Ok((id, outcome)) => (id, outcome.map_err(|e| e.to_string())),
                        Err(e) => (e.id(), Err(format!("a namespace's replayer broke: {e}; this is a bug"))),
                    };
                    self.running.retain(|_, (_, task)| *task != id);
                    if let Err(details) = outcome {
                        return failure("unable to replay a namespace")(details);
                    }
                }
            }
        }
    }

    fn reconcile(&mut self, names: BTreeMap<String, String>) {
        for (name, (cancel, _)) in &self.running {
            if !names.contains_key(name) && !cancel.is_cancelled() {
                cancel.cancel();
                self.control.show(|view| drop(view.namespaces.remove(name)));
                self.session.replayer.service.remove_namespace(self.session.replayer.pool, name);
            }
        }
        for (name, remote_name) in names {
            if self.running.contains_key(&name) {
                continue;
            }
            let reports = Reports::default();
            self.control.show(|view| drop(view.namespaces.insert(name.clone(), reports.clone())));
            let context = self.session.namespace_context(&self.term, &name, &remote_name, reports);
            let cancel = CancellationToken::new();
            let task = self.tasks.spawn(namespace::run(context, self.orders.clone(), cancel.clone()));
            self.running.insert(name, (cancel, task.id()));
        }
    }

    async fn end(mut self) {
        for (cancel, _) in self.running.values() {
            cancel.cancel();
        }
        while self.tasks.join_next().await.is_some() {}
        self.control.show(|view| view.namespaces.clear());
    }
}

/// The namespaces of a pool in which mirroring is enabled, and what they are called in the remote pool.
async fn mirrored_namespaces(pool: &IoCtx) -> rados::Result<BTreeMap<String, String>> {
    let mut mirrored = BTreeMap::new();
    let named = rbd::directory::namespaces(pool).await?;
    for name in std::iter::once(String::new()).chain(named) {
        let mirroring = Mirroring::new(&pool.with_namespace(&name));
        if !matches!(mirroring.mode().await?, MirrorMode::Image | MirrorMode::Pool) {
            continue;
        }
        mirrored.insert(name, mirroring.remote_namespace().await?);
    }
    Ok(mirrored)
}
