//! A session: both images open and watched, followed until the pair changes its nature.
//!
//! The task waits in one cancel-safe place ([`Session::wait`]); everything that changes the local image runs to its end
//! before the session looks at events again, except the copying of data, during which it listens.
//!
//! Whoever promotes the local image by force first makes an orphan snapshot, then waits until no mirror daemon watches
//! the image's header, and only then rolls back. So a session that sees its link replaced stops writing, awaits what is
//! in flight, gives up lock and watch, and only then ends; and the next one does not watch again before the promotion
//! is over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use deep_copy::apply::{Counterparts, apply};
use deep_copy::map_trust::{self, SeenSnapshots};
use rados::error::ResultExt;
use rados::{ErrorClass, Result, SnapId};
use rbd::exclusive_lock::{ExclusiveLock, LockOptions, LockReport, LockState};
use rbd::header::ImageHeader;
use rbd::header_update::HeaderUpdate;
use rbd::image::{Image, OpenImage};
use rbd::image_state::{read_image_state, resync_key};
use rbd::mirroring::{Mirroring, StatusState};
use rbd::watch_notify::notify_header_update;
use rbd::{Features, MirrorSnapshotState, Snapshot, children};
use snapshot::begin::{Identity, read_marker};
use snapshot::link::link_to_peer;
use snapshot::plan::{Chores, Plan, Stop, View, chores, plan};
use snapshot::prune;
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinHandle};

use super::bootstrap::Parentage;
use super::lifeline::Lifeline;
use super::name::NameFollower;
use super::remote_watch::RemoteWatch;
use super::status::Progress;
use super::{ImageContext, bootstrap};
use crate::flush;
use crate::report::Report;

/// How often an idle image is looked at although nobody announced a change.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_secs(300);
/// How often an image that is waited for is looked at.
const WAITING_CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// How often an image that is being promoted is looked at.
pub(super) const PROMOTION_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How often it is looked whether the parent of a clone's copy is still the right one.
const PARENT_CHECK_INTERVAL: Duration = Duration::from_secs(120);

/// How long the last mirror-snapshot to be superseded is kept: whoever began to promote the image by force just before
/// then rolls back to it.
const PRUNE_DELAY: Duration = Duration::from_secs(5);

/// How long the end of the remote watch is waited for.
const REMOTE_CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// What is said when the remote pool does not know this site by the uuid that it knew it by.
pub(super) const UNKNOWN_TO_REMOTE: &str =
    "waiting for the remote pool to know this site as a peer that it sends to";

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The task was told to end.
    Cancelled,
    /// Find out anew what there is, after a pause.
    Again(Duration),
}

/// Both images, open.
pub struct Session<'a> {
    pub(super) ctx: &'a ImageContext,
    pub(super) local: OpenImage,
    pub(super) remote: OpenImage,
    /// Watches the local header, too.
    pub(super) lock: ExclusiveLock,
    pub(super) lock_report: watch::Receiver<LockReport>,
    /// Changes of the local header that have been looked at.
    updates_seen: u64,
    remote_watch: RemoteWatch,
    /// Snapshots of the primary when it was last looked at; empty before.
    seen: SeenSnapshots,
    pub(super) progress: Progress,
    /// The newest round was complete by then.
    pub(super) completed: Instant,
    pruning: Option<JoinHandle<Result<()>>>,
    /// To be answered when the copy has what the primary had when they were taken.
    flushing: Vec<oneshot::Sender<()>>,
    name: NameFollower,
    /// When it was looked whether the copy of a clone has the right parent, and whether it surely has.
    parent_looked_at: Option<Instant>,
    pub(super) parent_known: bool,
    /// What of the newest image state could not be applied, as sentences, and since when.
    not_applied: (Vec<String>, Instant),
}

impl<'a> Session<'a> {
    /// Opens a session on two images. The local one must not be in the midst of a promotion: it must not be watched then.
    pub async fn open(
        ctx: &'a ImageContext,
        mut local: OpenImage,
        remote: OpenImage,
        lifeline: &mut Lifeline,
    ) -> Result<Self> {
        let options = LockOptions {
            object_map: local.header.features.has(Features::OBJECT_MAP),
            ..LockOptions::default()
        };
        let lock = ExclusiveLock::open(&ctx.local, local.image.id(), options).await?;
        lifeline.sever_when_wanted(&local.image, lock.report());
        let remote_watch = RemoteWatch::open(&ctx.remote, remote.image.id()).await?;
        // What changed before the watches were there was not announced to them.
        local.refresh().await?;
        let mut session = Session {
            ctx,
            local,
            remote,
            lock_report: lock.report(),
            lock,
            updates_seen: 0,
            remote_watch,
            seen: SeenSnapshots::new(),
            progress: Progress::default(),
            completed: Instant::now(),
            pruning: None,
            flushing: Vec::new(),
            name: NameFollower::default(),
            parent_looked_at: None,
            parent_known: true,
            not_applied: (Vec::new(), Instant::now()),
        };
        session.remote.refresh().await?;
        Ok(session)
    }

    /// Follows the pair. The session is closed when this returns, whatever it returns.
    pub async fn run(mut self) -> Result<End> {
        let end = self.follow().await;
        let promoted = is_orphan(&self.local);
        let (ctx, local_id) = (self.ctx, self.local.image.id().clone());
        if self.pruning.is_some() {
            let outcome = ended(&mut self.pruning).await;
            self.pruned(outcome).await.unwrap_or_else(|error| tracing::debug!(image = %local_id, "{error}"));
        }
        if let Err(error) = self.lock.close().await {
            tracing::debug!(image = %local_id, "cannot close an image in order: {error}");
        }
        // A remote cluster that was lost would never answer.
        if tokio::time::timeout(REMOTE_CLOSE_LIMIT, self.remote_watch.close()).await.is_err() {
            tracing::debug!(image = %local_id, "the remote cluster does not confirm the end of a watch");
        }
        if promoted {
            // Whoever promotes looks again as soon as the header is announced to have changed.
            let told = notify_header_update(&ctx.local, &local_id).await;
            told.unwrap_or_else(|error| tracing::debug!(image = %local_id, "{error}"));
        }
        end
    }

    async fn follow(&mut self) -> Result<End> {
        self.finish_last_round().await?;
        loop {
            bootstrap::refuse_in_migration(self.remote.image.name(), &self.remote.header)?;
            let marker = read_marker(&self.local.image).await?;
            let remote_marker =
                if self.was_demoted() { read_marker(&self.remote.image).await? } else { None };
            let resync_key = resync_key(&self.ctx.local_mirror_uuid);
            let view = View {
                local: &self.local.header.snapshots,
                remote: &self.remote.header.snapshots,
                local_mirror_uuid: &self.ctx.local_mirror_uuid,
                remote_mirror_uuid: &self.ctx.remote_mirror_uuid,
                remote_peer_uuid: &self.ctx.remote_peer_uuid,
                local_peer_uuid: &self.ctx.local_peer_uuid,
                marker,
                remote_marker,
                resync_requested: self.local.header.metadata.contains_key(&resync_key),
            };
            let (plan, due) = (plan(&view), chores(&view));
            self.note_timestamps();
            let now = map_trust::seen(self.remote.header.snapshots.values());
            let before = std::mem::replace(&mut self.seen, now);
            // A sync does not wait for the remote directory: the name follows when there is nothing to copy.
            if matches!(plan, Plan::Idle | Plan::AwaitRemote) {
                self.follow_name().await?;
            }
            if matches!(plan, Plan::Sync(_) | Plan::Idle | Plan::AwaitRemote) {
                self.follow_parent(matches!(plan, Plan::Sync(_))).await?;
            }
            match plan {
                Plan::Sync(sync) => {
                    // Rounds may follow each other for long, or wait for room, and the copy is to have no more snapshots than it
                    // needs.
                    if self.do_chores(due).await? {
                        self.seen = before;
                        continue;
                    }
                    if let Some(end) = self.round(&sync, before).await? {
                        return Ok(end);
                    }
                    continue;
                }
                Plan::Stop(Stop::Orphan) => {
                    self.say(StatusState::Stopped, "orphan (force promoting)");
                    return Ok(End::Again(PROMOTION_CHECK_INTERVAL));
                }
                Plan::Link(snap) => {
                    let (remote, peer_uuid) = (&self.remote.image, &self.ctx.remote_peer_uuid);
                    let linked = link_to_peer(remote, snap, peer_uuid).await?;
                    self.remote.refresh().await?;
                    if linked {
                        self.seen = before;
                        continue;
                    }
                    self.say(StatusState::Unknown, UNKNOWN_TO_REMOTE);
                }
                Plan::Stop(Stop::LocalPrimary) => return Ok(End::Again(Duration::ZERO)),
                Plan::Stop(ref stop) => {
                    let (state, description) = describe(stop);
                    self.say(state, &description);
                    self.flushing.clear();
                    self.lock.release().await?;
                    if *stop == Stop::RemoteNotPrimary {
                        self.do_chores(due).await?;
                    }
                }
                Plan::Idle | Plan::AwaitRemote => {
                    self.retry_image_state().await?;
                    self.say_replaying();
                    flush::answer(&mut self.flushing);
                    self.do_chores(due).await?;
                }
            }
            let interval = match plan {
                Plan::Idle | Plan::Stop(Stop::RemoteNotPrimary) if self.may_be_rolled_back_to().is_some() => {
                    PRUNE_DELAY
                }
                Plan::Idle if self.local.header.parent.is_some() => PARENT_CHECK_INTERVAL,
                Plan::Idle if self.not_applied.0.is_empty() => IDLE_CHECK_INTERVAL,
                _ => WAITING_CHECK_INTERVAL,
            };
            let interval = self.name.retry_interval().map_or(interval, |sooner| sooner.min(interval));
            if let Some(end) = self.wait(interval).await? {
                return Ok(end);
            }
        }
    }

    /// Applies the image state of the newest complete mirror-snapshot, in case a daemon stopped before it did.
    async fn finish_last_round(&mut self) -> Result<()> {
        let newest = self.local.header.snapshots.values().rev();
        let complete = newest.clone().find(|s| s.mirror().is_some_and(|m| m.complete));
        let Some((link, mirror)) = complete.and_then(|s| Some((s.id, s.mirror()?))) else {
            return Ok(());
        };
        if !mirror.state.is_non_primary() || mirror.primary_mirror_uuid != *self.ctx.remote_mirror_uuid {
            return Ok(());
        }
        self.apply_image_state(link).await
    }

    /// Applies the image state stored with the complete mirror-snapshot `link`.
    pub(super) async fn apply_image_state(&mut self, link: SnapId) -> Result<()> {
        let state = read_image_state(&self.ctx.local, self.local.image.id(), link).await.optional()?;
        let Some(state) = state else { return Ok(()) };
        let seqs = self.local.header.snapshots.get(&link).and_then(|s| s.mirror()).map(|m| &m.snap_seqs);
        let counterparts = Counterparts::of(seqs.unwrap_or(&BTreeMap::new()), link);
        let left = apply(&mut self.local, &counterparts, &state).await?;
        for left in left.iter().filter(|left| !self.not_applied.0.contains(left)) {
            tracing::warn!(image = %self.ctx.global_image_id, "part of the image state cannot be applied: {left}");
        }
        self.not_applied = (left, Instant::now());
        Ok(())
    }

    /// Applies the newest image state once more when a part of it could not be.
    async fn retry_image_state(&mut self) -> Result<()> {
        let (left, since) = &self.not_applied;
        if left.is_empty() || since.elapsed() < WAITING_CHECK_INTERVAL {
            return Ok(());
        }
        self.finish_last_round().await
    }

    /// Gives the copy the name of its primary.
    async fn follow_name(&mut self) -> Result<()> {
        let (local, remote) = (self.local.image.id(), self.remote.image.id());
        let name = self.name.follow(self.ctx, local, remote).await?;
        if let Some(name) = name.filter(|name| name != self.local.image.name()) {
            self.local.image = Image::of(&self.ctx.local, &name, &self.local.header);
        }
        Ok(())
    }

    pub(super) fn identity(&self, local_peer_uuids: BTreeSet<String>) -> Identity {
        Identity {
            global_image_id: self.ctx.global_image_id.to_string(),
            remote_mirror_uuid: self.ctx.remote_mirror_uuid.to_string(),
            local_peer_uuids,
        }
    }

    /// Peers of the local pool that may copy from it.
    pub(super) async fn local_peer_uuids(&self) -> Result<BTreeSet<String>> {
        let peers = Mirroring::new(&self.ctx.local.with_namespace("")).peers().await?;
        Ok(peers.into_iter().filter(|peer| peer.direction.transmits()).map(|peer| peer.uuid).collect())
    }

    /// Frees what no round needs any longer. Removing a snapshot takes a monitor round, so it goes on in the
    /// background; no round touches a snapshot that is being removed. True when the remote image was changed.
    async fn do_chores(&mut self, due: Chores) -> Result<bool> {
        for snap in &due.unlink {
            let update =
                HeaderUpdate::of(self.remote.image.id()).unlink_peer(*snap, &self.ctx.remote_peer_uuid);
            update.apply(&self.ctx.remote).await.optional()?;
        }
        if !due.unlink.is_empty() {
            let (remote, id) = (self.ctx.remote.clone(), self.remote.image.id().clone());
            tokio::spawn(async move { notify_header_update(&remote, &id).await });
            self.remote.refresh().await?;
        }
        if self.pruning.as_ref().is_some_and(JoinHandle::is_finished) {
            self.await_pruning().await?;
        }
        let kept = self.may_be_rolled_back_to();
        let prune: Vec<_> = due.prune.into_iter().filter(|snap| Some(*snap) != kept).collect();
        let wanted = self.lock_report.borrow().requested.is_some();
        if let (false, false, None) = (wanted, prune.is_empty(), &self.pruning)
            && let Some(newest) = mirror_snapshots(&self.local).next()
        {
            let (image, newest) = (self.local.image.clone(), newest.id);
            // The lock is not given up in the midst of it.
            let inside = image.header_ioctx().enter()?;
            self.pruning = Some(tokio::spawn(async move {
                let pruned = prune::prune(&image, newest, &prune).await;
                drop(inside);
                pruned
            }));
        }
        Ok(!due.unlink.is_empty())
    }

    /// Waits until no snapshot is being removed in the background. Two removals must not go on beside each other: each
    /// merges the snapshot's object map into the next one's.
    pub(super) async fn await_pruning(&mut self) -> Result<()> {
        if self.pruning.is_none() {
            return Ok(());
        }
        let outcome = ended(&mut self.pruning).await;
        self.pruned(outcome).await
    }

    /// The mirror-snapshot before the newest one, while that was completed only just.
    fn may_be_rolled_back_to(&self) -> Option<SnapId> {
        let superseded = mirror_snapshots(&self.local).nth(1)?;
        (self.completed.elapsed() < PRUNE_DELAY).then_some(superseded.id)
    }

    async fn pruned(&mut self, outcome: std::result::Result<Result<()>, JoinError>) -> Result<()> {
        self.pruning = None;
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err(error)) if error.class() == ErrorClass::Fenced => return Err(error),
            Ok(Err(error)) => tracing::warn!(image = %self.ctx.global_image_id, "{error}"),
            Err(error) => {
                tracing::error!(image = %self.ctx.global_image_id, "removing snapshots broke: {error}")
            }
        }
        self.local.refresh().await
    }

    /// Waits for something to happen, at most for `interval`. Answers with how to end the session, if so.
    async fn wait(&mut self, interval: Duration) -> Result<Option<End>> {
        let ctx = self.ctx;
        tokio::select! {
            biased;
            () = ctx.cancel.cancelled() => Ok(Some(End::Cancelled)),
            () = ctx.changed.notified() => {
                // After a gap in which news may have been missed, every image is told so.
                if !bootstrap::is_pair(ctx, self.local.image.id(), self.remote.image.id()).await {
                    return Ok(Some(End::Again(Duration::ZERO)));
                }
                self.local.refresh().await?;
                self.remote.refresh().await?;
                Ok(None)
            }
            changed = self.lock_report.changed() => match changed {
                Ok(()) => self.local_changed().await,
                Err(_) => Ok(Some(End::Again(Duration::ZERO))),
            },
            there = self.remote_watch.changed() => {
                if !there {
                    return Ok(Some(End::Again(Duration::ZERO)));
                }
                self.remote.refresh().await?;
                Ok(None)
            }
            outcome = ended(&mut self.pruning) => {
                self.pruned(outcome).await?;
                Ok(None)
            }
            () = ctx.flushes.asked() => {
                self.flushing.extend(ctx.flushes.take());
                self.remote.refresh().await?;
                Ok(None)
            }
            () = tokio::time::sleep(interval) => {
                self.local.refresh().await?;
                self.remote.refresh().await?;
                Ok(None)
            }
        }
    }

    /// Something happened to the local header, or to its lock.
    async fn local_changed(&mut self) -> Result<Option<End>> {
        let report = self.lock_report.borrow_and_update().clone();
        match report.state {
            LockState::Fenced(error) if error.class() == ErrorClass::Fenced => return Err(error),
            LockState::Fenced(_) => return Ok(Some(End::Again(Duration::ZERO))),
            _ => {}
        }
        if report.requested.is_some() {
            // Nothing is being written: whoever wants the lock may have it.
            self.lock.release().await?;
        }
        if self.updates_seen != report.header_updates {
            self.updates_seen = report.header_updates;
            self.local.refresh().await?;
        }
        Ok(None)
    }

    pub(super) fn say(&self, state: StatusState, description: &str) {
        self.ctx.publish(Report::new(state, description), self.local.image.name());
    }

    /// Gives the copy of a clone the right parent; looks for it now and then unless it must be known.
    async fn follow_parent(&mut self, must_be_known: bool) -> Result<()> {
        let known = self.parent_looked_at.is_some_and(|at| at.elapsed() < PARENT_CHECK_INTERVAL);
        if self.local.header.parent.is_none() || known && !must_be_known {
            return Ok(());
        }
        if let (None, Some(parent)) = (self.parent_looked_at, &self.local.header.parent_spec) {
            children::forget_old_parents(&self.local.image, parent).await?;
        }
        self.parent_looked_at = Some(Instant::now());
        let parentage = bootstrap::parentage(self.ctx, &self.local.header, &self.remote).await?;
        if let Parentage::Wrong(_) = parentage {
            if self.local.header.features.has(Features::EXCLUSIVE_LOCK) {
                self.lock.acquire().await?;
            }
            bootstrap::follow_parent(self.ctx, &mut self.local, &self.remote).await?;
        }
        self.parent_known = parentage != Parentage::Unknown;
        Ok(())
    }

    /// Says how far the copy is, or what about it is not as its primary is, though its data is.
    pub(super) fn say_replaying(&mut self) {
        let not_applied = self.not_applied.0.first();
        let not_applied =
            not_applied.map(|left| format!("part of the image state cannot be applied: {left}"));
        if let Some(trouble) = self.name.trouble().map(String::from).or(not_applied) {
            return self.say(StatusState::Error, &trouble);
        }
        let description = self.progress.describe(Instant::now());
        self.say(StatusState::Replaying, &description);
    }

    /// True when the local image was primary until its newest mirror-snapshot.
    pub(super) fn was_demoted(&self) -> bool {
        let newest = self.local.header.snapshots.values().rev().find_map(Snapshot::mirror);
        newest.is_some_and(|mirror| mirror.state == MirrorSnapshotState::PrimaryDemoted)
    }

    /// When the newest snapshots of both sides were made, on the primary.
    fn note_timestamps(&mut self) {
        let complete = |s: &&Snapshot| s.mirror().is_some_and(|m| m.complete);
        let remote = &self.remote.header.snapshots;
        self.progress.remote_timestamp = remote.values().rev().find(complete).map(|s| s.timestamp.seconds);
        let held = self.local.header.snapshots.values().rev().find(complete).and_then(Snapshot::mirror);
        let held = held.and_then(|m| remote.get(&m.primary_snap_id));
        if let Some(held) = held {
            self.progress.local_timestamp = Some(held.timestamp.seconds);
        }
    }
}

/// Mirror-snapshots, newest first.
fn mirror_snapshots(image: &OpenImage) -> impl Iterator<Item = &Snapshot> {
    image.header.snapshots.values().rev().filter(|snapshot| snapshot.mirror().is_some())
}

/// The outcome of a background task; never, when there is none. Cancel-safe.
async fn ended<T>(task: &mut Option<JoinHandle<T>>) -> std::result::Result<T, JoinError> {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}

/// True while somebody promotes the image by force.
pub(super) fn is_orphan(image: &OpenImage) -> bool {
    has_orphan(&image.header)
}

pub(super) fn has_orphan(header: &ImageHeader) -> bool {
    let newest = header.snapshots.values().rev().find_map(Snapshot::mirror);
    newest.is_some_and(|mirror| mirror.is_orphan())
}

fn describe(stop: &Stop) -> (StatusState, String) {
    match stop {
        Stop::LocalPrimary => (StatusState::Stopped, "local image is primary".into()),
        Stop::Orphan => (StatusState::Stopped, "orphan (force promoting)".into()),
        Stop::UnknownPeer(uuid) => (
            StatusState::Error,
            format!("local image linked to unknown peer: its primary is in the pool {uuid}"),
        ),
        Stop::SplitBrain(why) => (
            StatusState::Error,
            format!(
                "split-brain detected: {why}; 'rbd mirror image resync' of this image gives up what it holds and makes it \
                 a copy of the remote one"
            ),
        ),
        Stop::ResyncAwaitsPrimary => (
            StatusState::Error,
            "resync requested: it begins when the image is promoted at the other site; to keep this image instead \
             promote it"
                .into(),
        ),
        Stop::RemoteNotPrimary => (StatusState::Unknown, "remote image is not primary".into()),
    }
}
