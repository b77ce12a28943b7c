//! Following the remote journal: entries are read, tied to a tag of the local journal, applied, and their position is
//! committed.
//!
//! The session waits in one place ([`Session::feed`]), in which every future may be dropped. Whatever ends the replay,
//! what is in flight is awaited before the lock may be given up; a promotion stops it at once.
//!
//! Reference: `src/tools/rbd_mirror/image_replayer/journal/Replayer.cc`.

use rbd::mirroring::StatusState;
use std::time::{Duration, Instant};

use journal::bootstrap::Owner;
use journal::first_copy::marker;
use journal::replay::{Replay, ReplayContext, ReplayError};
use journal::tail::{PollOptions, TailError};
use journal::types::{ClientState, CommitPosition, EntryPosition, IMAGE_CLIENT_ID, MirrorPeer, TagTid};
use journal::{Committer, Tail, TailOptions};
use rados::{Error, ErrorClass, Result};
use rbd::image::{Image, OpenImage};
use rbd::pool_metadata::pool_metadata;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::commits::{CommitTask, Commits};
use super::feeder::{Feeder, Stations, StepError};
use super::session::{End, Session, is_there, lost};
use super::status::Progress;
use super::tidy::tidied;
use crate::flush;
use crate::image::bootstrap;

/// The longest pause between polls of an idle journal, in poll ages. A primary commits what it has written within seconds,
/// and of that the watch tells.
const IDLE_POLL_AGES: u32 = 6;

/// How often a replaying image's report is renewed while something goes on.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// For so long after the last entry the report is renewed: as long as rates are remembered.
const REPORT_AFTER_ENTRY: Duration = Duration::from_secs(32);
/// The pause before the remote journal's metadata are read after they were announced to have changed.
const METADATA_PAUSE: Duration = Duration::from_millis(500);
/// Bytes of a journal that are read ahead.
const READ_AHEAD_BYTES_MAX: u64 = 16 << 20;

/// How long to replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Until something about the pair changes.
    Changed,
    /// Until all entries of this tag, or all that there are, have been replayed.
    Settled(Option<TagTid>),
    /// Until all that there are and need not be held back have been replayed.
    Flushed,
}

/// Why a replay ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// End the session.
    Session(End),
    /// Look at both journals again, or at what is asked of this session.
    Changed,
    /// All that was to be replayed is on disk.
    Settled,
}

const OPEN_ANEW: Ended = Ended::Session(End::Again(Duration::ZERO));

/// Why the journal of `image` could not be read.
pub(super) fn tail_error(image: &OpenImage, error: TailError) -> Error {
    let what = format!("cannot read the journal of image '{}'", image.image.name());
    match error {
        TailError::Rados(error) => error.context(what),
        other => Error::new(libc::EBADMSG, format!("{what}: {other}")),
    }
}

/// Why a replay stopped, as an error whose class tells how to go on.
fn replay_error(error: &ReplayError) -> Error {
    let class = error.class();
    let errno = match error.rados().filter(|source| source.class() == class) {
        Some(source) => source.errno(),
        // A lock that was lost, however that was noticed.
        None if class == ErrorClass::Transient => libc::EAGAIN,
        None => libc::EIO,
    };
    Error::new(errno, error.to_string())
}

impl Session<'_> {
    /// Replays until something about the pair changes. Answers with how to end the session, if so.
    pub(super) async fn follow_journal(&mut self) -> Result<Option<End>> {
        self.tidy().await?;
        self.flushing.extend(self.ctx.flushes.take());
        if !self.flushing.is_empty() {
            return self.replay(Until::Flushed).await;
        }
        self.replay(Until::Changed).await
    }

    /// Replays the remote journal from where the copy is. Nothing is in flight when this returns, whatever it returns.
    pub(super) async fn replay(&mut self, until: Until) -> Result<Option<End>> {
        self.ctx.expect_room(self.local.image.image.data_ioctx().pool_id())?;
        let (journal, id) = (self.their_journal(), self.ctx.local_mirror_uuid.to_string());
        let client = journal.client(&id).await?;
        let start = client.map(|client| client.commit_position).unwrap_or_default();
        let holds = self.holds(start.newest()).await?;
        self.local.image.refresh().await?;
        let replay = Replay::open(self.replay_context(start.newest(), holds)).await;
        let mut replay = replay.map_err(|error| replay_error(&error))?;
        let opened = self.open_tail(start.clone()).await;
        let ended = match opened {
            Ok(tail) => {
                let mut feeder = Feeder::new(tail, self.delay(), until);
                let committer = Committer::new(&journal, &id, start);
                let (commits, mut task) = Commits::new(committer, self.ctx.journal.commit_age);
                let ended = self.feed(&mut feeder, &mut replay, &commits, &mut task).await;
                self.finish(replay, commits, &ended).await;
                ended
            }
            Err(error) => {
                replay.stop().await.unwrap_or_else(|error| tracing::debug!(image = %id, "{error}"));
                Err(error)
            }
        };
        match ended? {
            Ended::Session(end) => Ok(Some(end)),
            Ended::Changed if matches!(until, Until::Settled(_)) => Ok(Some(End::Again(Duration::ZERO))),
            Ended::Settled if until == Until::Flushed => {
                flush::answer(&mut self.flushing);
                Ok(None)
            }
            Ended::Changed | Ended::Settled => Ok(None),
        }
    }

    /// What the copy is known to hold beyond what was committed: it was made from a sync point.
    async fn holds(&mut self, committed: Option<EntryPosition>) -> Result<Option<EntryPosition>> {
        self.copy_holds = None;
        let Some(marker) = marker::read(&self.local.image.image).await? else { return Ok(None) };
        if marker.remote_image == *self.remote.image.image.id() {
            self.copy_holds = marker.start;
            self.forget_copy(committed).await?;
        } else {
            // The remote image was made anew. Its journal counts from the beginning again.
            marker::remove(&self.local.image.image).await?;
        }
        Ok(self.copy_holds)
    }

    /// The marker of the copy goes when its purpose is served: everything that the sync point holds is committed.
    async fn forget_copy(&mut self, committed: Option<EntryPosition>) -> Result<()> {
        if self.copy_holds.is_some_and(|holds| committed >= Some(holds)) {
            marker::remove(&self.local.image.image).await?;
            self.copy_holds = None;
        }
        Ok(())
    }

    fn replay_context(&self, commit: Option<EntryPosition>, holds: Option<EntryPosition>) -> ReplayContext {
        ReplayContext {
            local: self.local.image.clone(),
            lock: self.lock.report(),
            remote_mirror_uuid: self.ctx.remote_mirror_uuid.to_string(),
            local_tag: self.local.journal.newest.0,
            commit,
            holds,
            snap_seqs: self.registered.peer(self.local.image.image.id()).snap_seqs,
            ids: self.ctx.shared.snap_ids(self.local.image.image.data_ioctx()),
            budget: self.ctx.shared.journal_budget.clone(),
            // It is stopped by name, so that it never seems to have failed.
            cancel: CancellationToken::new(),
        }
    }

    async fn open_tail(&self, start: CommitPosition) -> Result<Tail> {
        let poll = PollOptions {
            idle_max: self.ctx.journal.poll_age.saturating_mul(IDLE_POLL_AGES),
            budget: Some(self.ctx.shared.poll_budget.clone()),
            ..PollOptions::default()
        };
        let options = TailOptions {
            poll,
            buffered_bytes_max: READ_AHEAD_BYTES_MAX,
            budget: Some(self.ctx.shared.journal_budget.clone()),
            ..TailOptions::default()
        };
        let tail = Tail::open(&self.their_journal(), &self.ctx.local_mirror_uuid, start, options).await;
        let mut tail = tail.map_err(|error| tail_error(&self.remote.image, error))?;
        tail.follow(self.their_watch.changes());
        Ok(tail)
    }

    /// `rbd_mirroring_replay_delay` of the copy.
    fn delay(&self) -> Duration {
        self.settings().replay_delay
    }

    /// Awaits what is in flight, and stores how far the copy is.
    async fn finish(&mut self, mut replay: Replay, commits: Commits, ended: &Result<Ended>) {
        let image = self.ctx.global_image_id.clone();
        let say = |error: &dyn std::fmt::Display| tracing::debug!(image = %image, "at the end of a replay: {error}");
        if let Err(error) = ended
            && error.class() == ErrorClass::Permanent
            && !self.lifeline.is_severed()
        {
            // What came before the entry that is no good is applied.
            replay.flush().await.unwrap_or_else(|error| say(&error));
        }
        let applied = replay.applied();
        replay.stop().await.unwrap_or_else(|error| say(&error));
        if let Some(position) = *applied.borrow() {
            commits.safe_up_to(position);
        }
        if ended.as_ref().err().is_none_or(|error| error.class() != ErrorClass::Fenced) {
            commits.flush().await.unwrap_or_else(|error| say(&error));
        }
    }

    /// Feeds entries to the replay, and listens, until something ends it.
    async fn feed(
        &mut self,
        feeder: &mut Feeder,
        replay: &mut Replay,
        commits: &Commits,
        commit_task: &mut CommitTask,
    ) -> Result<Ended> {
        let ctx = self.ctx;
        let journal = self.their_journal();
        let (mut applied, mut snap_seqs) = (replay.applied(), replay.snap_seqs());
        let mut progress = Progress::new(self.registered.tags.iter().cloned().collect());
        let mut look_at = Some(tokio::time::Instant::now());
        let mut name_at = Some(tokio::time::Instant::now());
        let mut entry_at: Option<Instant> = None;
        let pools = [self.ctx.local.pool_id(), self.local.image.image.data_ioctx().pool_id()];
        let mut ticks = tokio::time::interval(REPORT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let moved = feeder.moved();
            if moved.entries > 0 {
                entry_at = Some(Instant::now());
                progress.replayed(moved.entries, moved.bytes, Instant::now());
            }
            let moving = entry_at.is_some_and(|at| at.elapsed() < REPORT_AFTER_ENTRY);
            let stations = Stations { own: &mut self.local.journal, theirs: &journal, replay, commits, ctx };
            tokio::select! {
                () = ctx.cancel.cancelled() => return Ok(Ended::Session(End::Cancelled)),
                full = ctx.shared.space.full(&pools) => return Err(full),
                () = ctx.flushes.asked(), if feeder.until == Until::Changed => return Ok(Ended::Changed),
                () = ctx.changed.notified() => {
                    let (local, remote) = (self.local.image.image.id(), self.remote.image.image.id());
                    if !bootstrap::is_pair(ctx, local, remote).await {
                        return Ok(OPEN_ANEW);
                    }
                    name_at.get_or_insert_with(tokio::time::Instant::now);
                }
                changed = self.lock_report.changed() => {
                    if changed.is_err() || lost(&self.lock_report.borrow().state)? {
                        return Ok(OPEN_ANEW);
                    }
                    if self.header_changed(feeder).await? {
                        name_at.get_or_insert_with(tokio::time::Instant::now);
                    }
                }
                () = at(name_at) => {
                    name_at = self.follow_name().await?;
                    self.say_replaying(&mut progress, commits);
                }
                event = self.own_watch.next() => {
                    if !is_there(event) {
                        return Ok(OPEN_ANEW);
                    }
                    if let Some(ended) = self.own_journal_changed().await? {
                        return Ok(ended);
                    }
                }
                event = self.their_watch.next() => {
                    if !is_there(event) {
                        return Ok(OPEN_ANEW);
                    }
                    look_at.get_or_insert_with(|| tokio::time::Instant::now() + METADATA_PAUSE);
                }
                () = at(look_at) => {
                    look_at = None;
                    if !self.look_at_remote(&mut progress).await? {
                        return Ok(Ended::Changed);
                    }
                    self.say_replaying(&mut progress, commits);
                }
                finished = tidied(&mut self.tidying) => {
                    finished?;
                    self.forget_sync_points().await?;
                    return Ok(Ended::Changed);
                }
                changed = applied.changed() => {
                    if changed.is_err() {
                        return Err(replay_error(&replay.failed().await));
                    }
                    if let Some(position) = *applied.borrow_and_update() {
                        commits.safe_up_to(position);
                    }
                }
                Ok(()) = snap_seqs.changed() => {
                    let peer = self.registered.peer(self.local.image.image.id());
                    let snap_seqs = snap_seqs.borrow_and_update().clone();
                    self.store_peer(MirrorPeer { snap_seqs, ..peer }).await?;
                }
                error = commit_task.failed() => return Err(error),
                _ = ticks.tick(), if moving => self.say_replaying(&mut progress, commits),
                fed = feeder.step(stations) => match fed {
                    Ok(None) => {}
                    Ok(Some(ended)) => return Ok(ended),
                    Err(StepError::Tail(error)) => return Err(tail_error(&self.remote.image, error)),
                    Err(StepError::Replay(error)) => return Err(replay_error(&error)),
                    Err(StepError::Other(error)) => return Err(error),
                },
            }
        }
    }

    /// Gives the copy the name of its primary. Answers when to look again, if that is known.
    async fn follow_name(&mut self) -> Result<Option<tokio::time::Instant>> {
        let (local, remote) = (self.local.image.image.id(), self.remote.image.image.id());
        let name = self.name.follow(self.ctx, local, remote).await?;
        if let Some(name) = name.filter(|name| name != self.local.image.image.name()) {
            self.local.image.image = Image::of(&self.ctx.local, &name, &self.local.image.header);
        }
        Ok(self.name.retry_interval().map(|pause| tokio::time::Instant::now() + pause))
    }

    /// The local header was changed, by the replay or otherwise: the image may have another name or other options. False
    /// when it was looked at since.
    async fn header_changed(&mut self, feeder: &mut Feeder) -> Result<bool> {
        let updates = self.lock_report.borrow_and_update().header_updates;
        if std::mem::replace(&mut self.updates_seen, updates) == updates {
            return Ok(false);
        }
        if let Some(image) = bootstrap::open(&self.ctx.local, self.local.image.image.id()).await? {
            self.local.image = image;
            self.pool_metadata = pool_metadata(&self.ctx.local).await?;
            feeder.delay = self.delay();
        }
        Ok(true)
    }

    /// Something happened to the local journal: a promotion ends the replay, and so does a wish for a resync.
    async fn own_journal_changed(&mut self) -> Result<Option<Ended>> {
        self.local.journal.refresh().await?;
        if self.local.journal.owner() == Owner::Primary {
            self.say(StatusState::Stopped, "force promoted");
            return Ok(Some(OPEN_ANEW));
        }
        Ok(self.local.journal.resync_requested.then_some(Ended::Changed))
    }

    /// Reads how far both are. False when this site's client does not count any more.
    async fn look_at_remote(&mut self, progress: &mut Progress) -> Result<bool> {
        let journal = self.their_journal();
        let metadata = journal.mutable().await?;
        let ours = metadata.client(&self.ctx.local_mirror_uuid);
        let Some(ours) = ours.filter(|client| client.state == ClientState::Connected) else {
            return Ok(false);
        };
        self.forget_copy(ours.commit_position.newest()).await?;
        if let Some(primary) = metadata.client(IMAGE_CLIENT_ID) {
            progress.primary = primary.commit_position.clone();
        }
        while let Some(missing) = progress.missing_tag() {
            let Some(tag) = journal.tag(missing).await? else { break };
            let (tid, data) = journal::image_journal::decoded(&journal, &tag)?;
            progress.tags.insert(tid, data);
        }
        Ok(true)
    }

    fn say_replaying(&self, progress: &mut Progress, commits: &Commits) {
        progress.copy = commits.safe();
        let not_applied = self.not_applied.as_ref();
        let not_applied =
            not_applied.map(|left| format!("part of the image state cannot be applied: {left}"));
        if let Some(trouble) = self.name.trouble().map(String::from).or(not_applied) {
            return self.say(StatusState::Error, &trouble);
        }
        self.say(StatusState::Replaying, &progress.describe(Instant::now()));
    }
}

/// Waits until then; for ever when there is no such time.
async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
