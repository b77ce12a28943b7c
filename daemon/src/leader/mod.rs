//! Which daemon works on a pool: the leader lock.
//!
//! Exactly one daemon at a time leads a pool. Here it is also the one that does all of the pool's work; the others
//! stand by. Ceph's daemons use the same lock, so that one of theirs and one of ours never work on one pool at once:
//!
//! * While one of ours leads, Ceph's see its lock and its heartbeats and idle: they replay only what a leader assigns
//!   to them, and ours assigns nothing and takes back what an earlier leader had assigned (`namespace/instances.rs`).
//! * While one of Ceph's leads, ours must not look like an instance to which images can be assigned. It does not
//!   register as one, and does not answer heartbeats; it does not even watch the leader object, but looks at the lock
//!   twice a second. For the same reason it registers no instance while it leads: should it die, the next leader would
//!   wait for an instance that is not there.
//!
//! ## When a leader is dead
//! A leader watches the leader object and answers notifications at once. The owner of a lock who does not watch is
//! dead. One that was killed still counts as a watcher for half a minute; so [`Leader::acquire`] asks the owner for an
//! answer every [`PROBE_INTERVAL`] and, after one that did not come, without a pause. The owner is taken for dead after
//! [`MISSES_MAX`] unanswered probes in a row, of which all but the first were answered, through a watch of our own on
//! the same object, by ourselves: a slow OSD or a broken network at our end silences both and proves nothing. Even
//! then it is fenced (blocklisted) before its lock is broken, so that a leader that merely slept can do no harm: its
//! operations fail from then on, and it starts over with a new connection.
//!
//! Reference: `src/tools/rbd_mirror/LeaderWatcher.cc`.

mod ears;
mod message;

use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rados::encoding::Encode;
use rados::{Cluster, Error, ErrorClass, IoCtx, Result};
use rbd::managed_lock::{Attempt, Breaking, LockOwner, ManagedLock};
use rbd::mirroring::{LEADER_OBJECT, MirrorDaemons};
use tokio::time::{Instant, sleep, timeout};

use ears::{Ears, Heard};
use message::Message;

/// How often the lock is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How often its owner is asked for a sign of life.
const PROBE_INTERVAL: Duration = Duration::from_millis(2500);
/// How long an answer may take. OSDs count in whole seconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Unanswered probes after which the owner is dead.
const MISSES_MAX: u32 = 3;
/// How long other daemons may take to answer a leader.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that each step of a release may take: a daemon must end even when its cluster does not answer.
const RELEASE_STEP_TIMEOUT: Duration = Duration::from_secs(1);

/// A daemon's part in the contest for one pool.
///
/// Drop it only after [`Leader::release`]: a lock that is left behind makes others wait until they find its owner dead.
pub struct Leader {
    ioctx: IoCtx,
    instance_id: u64,
    heartbeat_interval: Duration,
    lock: ManagedLock,
    ears: Option<Ears>,
    /// Who leads, as last seen.
    owner: Option<u64>,
}

/// What is suspected of the current owner.
#[derive(Default)]
struct Suspicion {
    of: Option<LockOwner>,
    misses: u32,
    asked: Option<Instant>,
}

/// How the owner took a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    /// It answered.
    Alive,
    /// It did not answer in time.
    Silent,
    /// We did not hear ourselves either.
    Unsure,
}

impl Leader {
    /// Joins the contest for the pool of `ioctx`, a connection that belongs to `cluster`.
    pub async fn open(cluster: &Cluster, ioctx: &IoCtx, heartbeat_interval: Duration) -> Result<Self> {
        MirrorDaemons::new(ioctx).create().await?;
        Ok(Leader {
            ioctx: ioctx.clone(),
            instance_id: cluster.instance_id(),
            heartbeat_interval,
            lock: ManagedLock::new(ioctx, LEADER_OBJECT),
            ears: None,
            owner: None,
        })
    }

    /// Waits until this daemon leads. `on_owner` is told the global id of whoever leads, whenever that changes.
    /// Cancel-safe as long as [`Leader::release`] follows.
    pub async fn acquire(&mut self, mut on_owner: impl FnMut(Option<u64>)) -> Result<()> {
        let mut suspicion = Suspicion::default();
        loop {
            let owner = match self.lock.owner().await {
                // Only a person can undo this.
                Err(e) if e.is(libc::EBUSY) => {
                    tracing::warn!("{e}; waiting until it is not");
                    sleep(self.heartbeat_interval.max(POLL_INTERVAL)).await;
                    continue;
                }
                owner => owner?,
            };
            let id = owner.as_ref().and_then(|owner| u64::try_from(owner.entity.number).ok());
            if id != self.owner {
                self.owner = id;
                on_owner(id);
            }
            let free = match &owner {
                None => true,
                Some(owner) => !self.lock.is_alive(owner).await?,
            };
            match owner {
                Some(owner) if !free => self.watch_over(owner, &mut suspicion).await?,
                _ if self.take().await? => {
                    self.owner = Some(self.instance_id);
                    on_owner(self.owner);
                    return Ok(());
                }
                _ => {}
            }
        }
    }

    /// Takes the lock when it is free or its owner watches no more.
    async fn take(&mut self) -> Result<bool> {
        let cookie = self.listen().await?.cookie;
        if let Attempt::Owned(_) = self.lock.try_acquire(cookie).await? {
            self.stop_listening().await;
            return Ok(false);
        }
        if let Some(ears) = &self.ears {
            ears.lead();
        }
        let announcement = self.notification(Message::LockAcquired, NOTIFY_TIMEOUT);
        tokio::spawn(announcement.map(|told| {
            if let Err(e) = told {
                tracing::debug!("could not tell the other daemons who leads: {e}");
            }
        }));
        Ok(true)
    }

    /// One look at an owner who watches; takes the lock away from it when it is dead all the same.
    async fn watch_over(&mut self, owner: LockOwner, suspicion: &mut Suspicion) -> Result<()> {
        if suspicion.of.as_ref() != Some(&owner) {
            *suspicion = Suspicion { of: Some(owner.clone()), ..Suspicion::default() };
        }
        let asked_lately = suspicion.asked.is_some_and(|at| at.elapsed() < PROBE_INTERVAL);
        if suspicion.misses == 0 && asked_lately {
            sleep(POLL_INTERVAL).await;
            return Ok(());
        }
        if suspicion.misses > 0 {
            self.listen().await?;
        }
        suspicion.asked = Some(Instant::now());
        match self.probe(&owner).await? {
            Sign::Alive => {
                suspicion.misses = 0;
                self.stop_listening().await;
            }
            Sign::Silent => suspicion.misses += 1,
            Sign::Unsure => sleep(POLL_INTERVAL).await,
        }
        if suspicion.misses < MISSES_MAX {
            return Ok(());
        }
        tracing::warn!(
            "the pool's leader {} at {} is dead: it left {} probes in a row unanswered; fencing it and taking over",
            owner.entity,
            owner.address,
            suspicion.misses
        );
        self.lock.break_lock(&owner, Breaking::Forced).await?;
        *suspicion = Suspicion::default();
        Ok(())
    }

    async fn probe(&mut self, owner: &LockOwner) -> Result<Sign> {
        let reply = self.notification(Message::Probe, PROBE_TIMEOUT).await?;
        let answered = |client: i64| reply.answers.iter().any(|(id, _, _)| i64::try_from(*id) == Ok(client));
        let me = i64::try_from(self.instance_id).unwrap_or_default();
        Ok(if answered(owner.entity.number) {
            Sign::Alive
        } else if self.ears.is_some() && !answered(me) {
            Sign::Unsure
        } else {
            Sign::Silent
        })
    }

    /// Leads, with heartbeats, until the lock is lost; says why. Cancel-safe.
    pub async fn hold(&mut self) -> Error {
        let mut heartbeat: Option<BoxFuture<'static, Result<()>>> = None;
        let mut next = Instant::now() + self.heartbeat_interval;
        loop {
            let Some(ears) = &mut self.ears else {
                return Error::new(libc::ENOLCK, "cannot lead: the leader lock is not held");
            };
            tokio::select! {
                heard = ears.hear() => {
                    if let Err(lost) = self.react(heard).await {
                        return lost;
                    }
                }
                () = tokio::time::sleep_until(next), if heartbeat.is_none() => {
                    next = Instant::now() + self.heartbeat_interval;
                    heartbeat = Some(self.heartbeat());
                }
                Some(beaten) = maybe(&mut heartbeat) => {
                    heartbeat = None;
                    match beaten {
                        Err(e) if e.class() != ErrorClass::Transient => return e,
                        Err(e) => tracing::warn!("a leader's heartbeat failed: {e}"),
                        Ok(()) => {}
                    }
                }
            }
        }
    }

    async fn react(&mut self, heard: Option<Heard>) -> Result<()> {
        match heard {
            None => Err(Error::new(libc::ENOLCK, "cannot lead: the watch on the leader object is gone")),
            Some(Heard::Lost(e)) if e.class() == ErrorClass::Fenced => Err(e),
            Some(Heard::Lost(e)) => {
                tracing::warn!("the watch on the leader object broke: {e}");
                Ok(())
            }
            Some(Heard::Restored(cookie)) => self.lock.reacquire(cookie).await,
            Some(Heard::Message { message: Message::Probe, .. }) => Ok(()),
            Some(Heard::Message { message, sender }) => {
                tracing::debug!("heard {message:?} of client.{sender} while leading");
                Ok(())
            }
        }
    }

    /// Tells the others that we live, and looks whether the lock is still ours.
    fn heartbeat(&self) -> BoxFuture<'static, Result<()>> {
        let told = self.notification(Message::Heartbeat, NOTIFY_TIMEOUT);
        let mut lock = self.lock.clone();
        async move {
            told.await?;
            lock.verify().await
        }
        .boxed()
    }

    /// Stops listening, and leaves the lock as it is if it is held: the next leader finds its owner dead, and fences this
    /// connection, which must not be used any more. Takes a second at most.
    pub async fn abandon(&mut self) {
        self.lock.forget();
        self.stop_listening().await;
        self.owner = None;
    }

    /// Gives up the lock if it is held, tells the others, and stops listening. Takes a few seconds at most.
    pub async fn release(&mut self) {
        if self.lock.is_held() {
            match timeout(RELEASE_STEP_TIMEOUT, self.lock.release()).await {
                Ok(Ok(())) => {
                    let told = self.notification(Message::LockReleased, RELEASE_STEP_TIMEOUT);
                    if let Ok(Err(e)) = timeout(RELEASE_STEP_TIMEOUT, told).await {
                        tracing::debug!("could not tell the other daemons that nobody leads: {e}");
                    }
                }
                Ok(Err(e)) if e.class() == ErrorClass::Fenced => {}
                Ok(Err(e)) => tracing::warn!("could not release the leader lock: {e}"),
                Err(_) => tracing::warn!("could not release the leader lock: the cluster does not answer"),
            }
        }
        // Whatever came of it, the lock is ours no more.
        self.lock = ManagedLock::new(&self.ioctx, LEADER_OBJECT);
        self.stop_listening().await;
        self.owner = None;
    }

    async fn listen(&mut self) -> Result<&Ears> {
        let ears = match self.ears.take() {
            Some(ears) => ears,
            None => Ears::open(&self.ioctx, self.instance_id).await?,
        };
        Ok(self.ears.insert(ears))
    }

    async fn stop_listening(&mut self) {
        let Some(ears) = self.ears.take() else { return };
        match timeout(RELEASE_STEP_TIMEOUT, ears.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!("could not stop watching the leader object: {e}"),
            Err(_) => {
                tracing::debug!("could not stop watching the leader object: the cluster does not answer")
            }
        }
    }

    fn notification(
        &self,
        message: Message,
        timeout: Duration,
    ) -> impl Future<Output = Result<rados::NotifyReply>> + Send + 'static {
        let ioctx = self.ioctx.clone();
        async move { ioctx.notify(LEADER_OBJECT, message.to_bytes(), timeout).await }
    }
}

/// Waits for a future that may not be there; for ever when it is not.
async fn maybe<T>(future: &mut Option<BoxFuture<'static, T>>) -> Option<T> {
    match future {
        Some(future) => Some(future.await),
        None => std::future::pending().await,
    }
}
