//! One round, from the planner's decision to a complete local mirror-snapshot.
//!
//! While data is copied the session listens: to be told to end, to changes of the local header that take the ground
//! from under the round (a promotion), and to whoever asks for the exclusive lock. Each of these stops the copy; it is
//! awaited to its last request before anything else happens.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deep_copy::checksum::Comparison;
use deep_copy::copier::{Copier, CopyFailed, Options, Progress as CopyProgress};
use deep_copy::diff::{Changes, Visits};
use deep_copy::local_maps;
use deep_copy::map_trust::{Candidates, History, SeenSnapshots};
use deep_copy::object_copy::{Method, ObjectCopier};
use deep_copy::pair::{Pair, failure, side};
use futures::FutureExt;
use rados::error::ResultExt;
use rados::{Error, Result, SnapId};
use rbd::exclusive_lock::LockState;
use rbd::header_update::HeaderUpdate;
use rbd::image_state::{read_image_state, resync_key};
use rbd::mirroring::MirrorImageMode;
use rbd::pool_metadata::pool_metadata;
use rbd::rollback::undo_later_writes;
use rbd::{Features, Snapshot, snapshots};
use snapshot::begin::{self, Begun};
use snapshot::commit;
use snapshot::history::{NotedHistory, read_history};
use snapshot::plan::{CopyMode, Sync};
use tokio::sync::watch;

use super::bootstrap;
use super::session::{End, Session};
use crate::settings::object_map_trust;

/// How often progress is published while data is copied.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// How long whoever stopped a copy has before it is taken up again.
const YIELD_PAUSE: Duration = Duration::from_secs(1);

/// Objects that are rolled back at once.
const STRAYS_IN_FLIGHT: usize = 32;

/// What stopped a copy before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Interruption {
    /// The task was told to end.
    Cancelled,
    /// The pair has changed: open it anew.
    Changed,
    /// There is no room for the copy.
    Full,
}

impl Session<'_> {
    /// Copies a mirror-snapshot. Answers with how to end the session, if so. `seen` are the snapshots of the primary when it
    /// was last looked at.
    pub(super) async fn round(&mut self, sync: &Sync, seen: SeenSnapshots) -> Result<Option<End>> {
        let ctx = self.ctx;
        let data_pool = self.local.image.data_ioctx().pool_id();
        ctx.expect_room(data_pool)?;
        let kept_since_last_round = self.lock.is_held();
        if self.local.header.features.has(Features::EXCLUSIVE_LOCK) {
            self.lock.acquire().await?;
        }
        if !kept_since_last_round && !self.undo_strays(sync).await? {
            return Ok(None);
        }
        let peers = if sync.demoted { self.local_peer_uuids().await? } else { Default::default() };
        let ids = ctx.shared.snap_ids(self.local.image.data_ioctx());
        let who = self.identity(peers);
        let first = sync.mode == CopyMode::First && sync.resume.is_none();
        let timestamp = self.remote.header.snapshots.get(&sync.remote_end).map_or(0, |s| s.timestamp.seconds);
        self.progress.begin(timestamp, Instant::now());
        self.say_replaying();

        let begun = begin::begin(&mut self.local, &self.remote, sync, &who, &ids).await?;
        if first {
            bootstrap::enable_local(ctx, self.local.image.id(), MirrorImageMode::Snapshot).await?;
        }
        for snap in &sync.discard {
            snapshots::remove(&self.local.image, &self.local.header, *snap).await?;
            self.local.refresh().await?;
        }
        let history = self.history(sync, &begun).await?;
        let changes = self.changes(sync, &history).await?;
        if let Some(interruption) = self.copy(sync, &begun, changes.visits).await? {
            return Ok(Some(match interruption {
                Interruption::Cancelled => End::Cancelled,
                Interruption::Changed => End::Again(YIELD_PAUSE),
                // Unless there is room again.
                Interruption::Full => return ctx.expect_room(data_pool).map(|()| None),
            }));
        }
        if self.lock_report.borrow().requested.is_some() {
            // Most likely a promotion by force, which has chosen to roll back to the snapshot before.
            self.lock.release().await?;
            return Ok(Some(End::Again(YIELD_PAUSE)));
        }
        self.remote.refresh().await?;
        self.expect_ends_kept(sync)?;
        let objects = self.local.image.layout().object_count(self.local.header.size);
        let resync_key = resync_key(&ctx.local_mirror_uuid);
        let resync = sync.resync.then_some(&*resync_key);
        let noted = NotedHistory {
            snap: begun.local_end,
            settled: changes.settled,
            before: if seen.contains_key(&sync.remote_end) { history.before_start } else { seen },
        };
        let local_end = begun.local_end;
        commit::commit(&mut self.local, &self.remote, begun, objects, resync, &noted).await?;
        self.completed = Instant::now();
        self.progress.complete(self.completed);
        self.say_replaying();
        tracing::info!(
            image = %ctx.global_image_id,
            "copied snapshot {} of '{}' as snapshot {}",
            sync.remote_end,
            self.remote.image.name(),
            local_end
        );
        self.await_pruning().await?;
        self.apply_image_state(local_end).await?;
        Ok(None)
    }

    /// Undoes what others wrote to the image since it became what the round goes on from: a client who had it open when
    /// it was demoted, and was not told before, writes what was in his queue by then. Such writes are in no delta, so
    /// they would stay. False when the image changed meanwhile: plan anew.
    async fn undo_strays(&mut self, sync: &Sync) -> Result<bool> {
        // All else compares, or begins with what is in the head.
        let goes_on = matches!(sync.mode, CopyMode::Delta | CopyMode::Clean)
            && sync.resume.is_none()
            && !sync.anchor
            && sync.discard.is_empty();
        // Without the lock nobody can tell when somebody wrote: it is looked at once.
        let looked_at = self.local.header.features.has(Features::EXCLUSIVE_LOCK) || self.was_demoted();
        let Some(base) = sync.local_start.filter(|_| goes_on && looked_at) else { return Ok(true) };
        self.local.refresh().await?;
        let (image, header) = (&self.local.image, &self.local.header);
        if header.snapshots.values().rev().find(|s| s.mirror().is_some()).map(|s| s.id) != Some(base) {
            return Ok(false);
        }
        let undone = undo_later_writes(image, header, base, STRAYS_IN_FLIGHT).await?;
        if undone > 0 {
            tracing::warn!(
                image = %self.ctx.global_image_id,
                "rolled {undone} objects back to snapshot {base}: somebody may have written to them since"
            );
        }
        Ok(true)
    }

    /// Both ends of what was copied must have been there all the time. One that is being removed leaves the namespace of
    /// mirroring before anything else happens to it; then the end shows its objects as absent, and without the start the
    /// clones no longer tell all that changed since.
    fn expect_ends_kept(&self, sync: &Sync) -> Result<()> {
        let kept =
            |snap: SnapId| self.remote.header.snapshots.get(&snap).is_some_and(|s| s.mirror().is_some());
        let start = sync.remote_start.filter(|_| sync.mode == CopyMode::Delta);
        match start.into_iter().chain([sync.remote_end]).find(|snap| !kept(*snap)) {
            None => Ok(()),
            Some(gone) => {
                let name = self.remote.image.name();
                let what = format!(
                    "cannot complete the copy of '{name}': its snapshot {gone} was removed meanwhile"
                );
                Err(Error::new(libc::EAGAIN, what))
            }
        }
    }

    /// Copies the data of a round, listening meanwhile.
    async fn copy(&mut self, sync: &Sync, begun: &Begun, visits: Visits) -> Result<Option<Interruption>> {
        let maps = local_maps::load(&self.local, &begun.steps).await?;
        let visits = match &maps {
            _ if sync.resume.is_none() => visits,
            Some(maps) => visits.with_changed(maps.head()),
            // What was written before the interruption is not known.
            None => visits.and_all_others(self.pair().objects_max()),
        };
        let visits = visits.from(begun.first_object);
        if visits.is_empty() && sync.mode == CopyMode::Clean {
            return Ok(None);
        }
        let first =
            begun.steps.steps().first().filter(|_| sync.mode == CopyMode::Repair && !self.parent_known);
        let parents = match first {
            Some(step) => self.pair().parents(step.remote).await?,
            None => None,
        };
        let stop = self.ctx.cancel.child_token();
        let (progress, mut published) = watch::channel(CopyProgress::default());
        let copier = Copier {
            objects: ObjectCopier {
                remote: side(&self.remote),
                local: side(&self.local),
                steps: Arc::new(begun.steps.clone()),
                object_size: self.local.image.layout().object_size(),
                method: if sync.mode == CopyMode::Repair { Method::Repair } else { Method::Replay },
                comparison: Comparison::default(),
                resumed: sync.resume.is_some() || !sync.discard.is_empty(),
                has_parent: self.local.header.parent_spec.is_some(),
                copy_up_at: self.copy_up_at(begun),
                parents,
                budget: self.ctx.shared.budget.part(),
                cancel: stop.clone(),
            },
            visits,
            object_count: self.pair().objects_max(),
            maps,
            progress,
            checkpoint: self.checkpoint(begun.local_end),
            options: Options::default(),
        };
        let mut copy = copier.run().boxed();
        let mut interruption = None;
        let pools = [self.ctx.local.pool_id(), self.local.image.data_ioctx().pool_id()];
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        let ctx = self.ctx;
        // Nothing in this loop may return before the copy has: its writes would go on unwatched.
        let outcome = loop {
            let heard = tokio::select! {
                outcome = &mut copy => break outcome,
                () = ctx.cancel.cancelled(), if interruption.is_none() => Some(Interruption::Cancelled),
                _ = ctx.shared.space.full(&pools), if interruption.is_none() => Some(Interruption::Full),
                () = ctx.changed.notified(), if interruption.is_none() => {
                    // Ours at the beginning of a first copy is among what is announced.
                    let same = bootstrap::is_pair(ctx, self.local.image.id(), self.remote.image.id()).await;
                    (!same).then_some(Interruption::Changed)
                }
                changed = self.lock_report.changed(), if interruption.is_none() => {
                    let must_stop = changed.is_err() || self.must_stop(begun.local_end).await;
                    must_stop.then_some(Interruption::Changed)
                }
                _ = ticks.tick() => {
                    let now = *published.borrow_and_update();
                    self.progress.advance(now.objects_done, now.objects_total, now.written_bytes, Instant::now());
                    self.say_replaying();
                    None
                }
            };
            if heard.is_some() && interruption.is_none() {
                interruption = heard;
                stop.cancel();
            }
        };
        match outcome {
            Ok(done) => {
                self.progress.advance(
                    done.objects_done,
                    done.objects_total,
                    done.written_bytes,
                    Instant::now(),
                );
                Ok(interruption.filter(|reason| *reason == Interruption::Changed))
            }
            Err(CopyFailed::Cancelled) => Ok(Some(interruption.unwrap_or(Interruption::Cancelled))),
            Err(failed) => Err(failure(self.remote.image.name(), failed)),
        }
    }

    /// Judges a change of the local header or of its lock; true when the copy must stop: somebody wants the lock, it
    /// was taken away, or the snapshot being filled is no longer the newest one.
    async fn must_stop(&mut self, local_end: SnapId) -> bool {
        let report = self.lock_report.borrow_and_update().clone();
        let locked = report.is_held() || !self.local.header.features.has(Features::EXCLUSIVE_LOCK);
        if !locked || report.requested.is_some() || matches!(report.state, LockState::Fenced(_)) {
            return true;
        }
        match self.local.image.read_header().await {
            Ok(header) => {
                let newest = header.snapshots.values().rev().find(|s| s.mirror().is_some());
                newest.map(|s| s.id) != Some(local_end)
            }
            Err(_) => true,
        }
    }

    /// The objects to look at.
    async fn changes(&self, sync: &Sync, history: &History) -> Result<Changes> {
        let pair = self.pair();
        let nothing_to_roll_back_to = || {
            let snapshots: Vec<_> = self.remote.header.snapshots.values().cloned().collect();
            Candidates::new(&snapshots, None, sync.remote_end, history).is_empty()
        };
        Ok(match sync.mode {
            CopyMode::Clean if !pair.flattened(sync.remote_end) => {
                Changes { visits: Visits::default(), settled: history.settled }
            }
            CopyMode::Repair => {
                Changes { visits: Visits::all(pair.objects_max()), settled: nothing_to_roll_back_to() }
            }
            _ => {
                let of_pool = pool_metadata(&self.ctx.local).await?;
                let trust = self.ctx.object_map_trust;
                let trust = object_map_trust(&self.remote.header.metadata, &of_pool, trust);
                pair.changes(sync.remote_start, sync.remote_end, trust, history).await?
            }
        })
    }

    /// What is known of the primary from before the start of a sync, and from when start and end were made.
    async fn history(&self, sync: &Sync, begun: &Begun) -> Result<History> {
        let users_at_end = begun.image_state.snapshots.keys().copied().collect();
        let (Some(start), Some(local_start)) = (sync.remote_start, sync.local_start) else {
            return Ok(History { users_at_end, settled: true, ..History::default() });
        };
        let noted = read_history(&self.local.image, local_start).await?;
        let (before_start, settled) = noted.map(|noted| (noted.before, noted.settled)).unwrap_or_default();
        let users_at_start = self.users_at_start(start).await?;
        Ok(History { before_start, users_at_start, users_at_end, settled })
    }

    /// The user snapshots that the primary had when it made `start`, or when it was a copy itself and completed it.
    async fn users_at_start(&self, start: SnapId) -> Result<Option<BTreeSet<SnapId>>> {
        let snapshot = self.remote.header.snapshots.get(&start);
        let Some(mirror) = snapshot.and_then(|snapshot| snapshot.mirror()) else { return Ok(None) };
        if mirror.state.is_non_primary() {
            return Ok(Some(mirror.snap_seqs.values().copied().filter(|snap| !snap.is_head()).collect()));
        }
        let state = read_image_state(self.remote.image.header_ioctx(), self.remote.image.id(), start).await;
        Ok(state.optional()?.map(|state| state.snapshots.keys().copied().collect()))
    }

    fn pair(&self) -> Pair<'_> {
        Pair { local: &self.local, remote: &self.remote }
    }

    /// Remote snapshots that older local ones are copies of, when objects that come into existence must be whole in older
    /// snapshots, too: with the deep-flatten feature these lose their parent when the head does.
    fn copy_up_at(&self, begun: &Begun) -> Vec<SnapId> {
        let deep_clone =
            self.local.header.parent_spec.is_some() && self.local.header.features.has(Features::DEEP_FLATTEN);
        let link = self.local.header.snapshots.get(&begun.local_end).and_then(Snapshot::mirror);
        let (true, Some(link), Some(first)) = (deep_clone, link, begun.steps.steps().first()) else {
            return Vec::new();
        };
        let older = link.snap_seqs.iter().filter(|(_, local)| **local < first.local);
        let there = older.filter(|(remote, _)| self.remote.header.snapshots.contains_key(remote));
        there.map(|(remote, _)| *remote).collect()
    }

    /// Stores how far the copy is in the local mirror-snapshot, as Ceph's daemon does.
    fn checkpoint(&self, local_end: SnapId) -> deep_copy::copier::Checkpoint {
        let (ioctx, id) = (self.ctx.local.clone(), self.local.image.id().clone());
        Box::new(move |below| {
            let (ioctx, id) = (ioctx.clone(), id.clone());
            async move {
                HeaderUpdate::of(&id)
                    .set_copy_progress(local_end, false, below)
                    .apply(&ioctx)
                    .await
            }
            .boxed()
        })
    }
}
