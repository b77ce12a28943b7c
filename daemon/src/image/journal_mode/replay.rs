//! Following the remote journal: entries are read, tied to a tag of the local journal, applied, and their position is
//! committed.
//!
//! The session waits in one place ([`Session::next`]), in which every future may be dropped. An entry goes through it in
//! steps, each of which may be cut off and begun again: read a batch; when the entry belongs to another tag than the one
//! before it, wait until all before is on disk and make the local tag; wait for `rbd_mirroring_replay_delay`; hand the
//! entry on.
//!
//! Whatever ends the replay, what is in flight is awaited before the lock may be given up.
//!
//! Reference: `src/tools/rbd_mirror/image_replayer/journal/Replayer.cc`.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use journal::bootstrap::Owner;
use journal::event::EventEntry;
use journal::local_tag::{LocalTag, local_tag};
use journal::replay::{Replay, ReplayError, ReplayOptions};
use journal::tail::{PollOptions, TailError};
use journal::types::{EntryPosition, TagTid};
use journal::{Committer, Entry, Tail, TailOptions, TailStart};
use rados::{Error, ErrorClass, Result};
use rbd::image::OpenImage;
use tokio::sync::watch;

use super::commits::Commits;
use super::session::{End, Session, is_there, lost};
use super::status::Progress;
use crate::image::bootstrap;
use crate::report::ReplayState;

/// How often a replaying image's report is renewed while something goes on.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// For so long after the last entry the report is renewed: as long as rates are remembered.
const REPORT_AFTER_ENTRY: Duration = Duration::from_secs(32);
/// The pause before the remote journal's metadata are read after they were announced to have changed.
const METADATA_PAUSE: Duration = Duration::from_millis(500);

/// How long to replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// Until something about the pair changes.
    Changed,
    /// Until all entries of this tag, or all that there are, have been replayed.
    Settled(Option<TagTid>),
}

/// Why a replay ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// It was told to, or the pair must be opened anew.
    Session(End),
    /// Look at both journals again.
    Changed,
    /// All that was to be replayed is on disk.
    Settled,
}

/// Why the journal of `image` could not be read.
pub(super) fn tail_error(image: &OpenImage, error: TailError) -> Error {
    let what = format!("cannot read the journal of image '{}'", image.image.name());
    match error {
        TailError::Rados(error) => error.context(what),
        other => Error::new(libc::EBADMSG, format!("{what}: {other}")),
    }
}

fn replay_error(error: &ReplayError) -> Error {
    let errno = error.rados().map_or(libc::EIO, Error::errno);
    Error::new(errno, error.to_string())
}

impl Session<'_> {
    /// Replays until something about the pair changes. Answers with how to end the session, if so.
    pub(super) async fn follow_journal(&mut self) -> Result<Option<End>> {
        self.tidy().await?;
        self.replay(Until::Changed).await
    }

    /// Replays the remote journal from where the copy is. Nothing is in flight when this returns, whatever it returns.
    pub(super) async fn replay(&mut self, until: Until) -> Result<Option<End>> {
        let journal = self.their_journal();
        let id = self.ctx.local_mirror_uuid.to_string();
        let client = journal.client(&id).await?;
        let start = client.map(|client| client.commit_position).unwrap_or_default();
        let committer = Committer::new(&journal, &id, start.clone());
        let poll = PollOptions {
            idle_max: self.ctx.journal.poll_age,
            budget: Some(self.ctx.shared.poll_budget.clone()),
            ..PollOptions::default()
        };
        let options = TailOptions { poll, ..TailOptions::default() };
        let tail = Tail::open(&journal, &id, TailStart::After(start.clone()), options).await;
        let mut tail = tail.map_err(|error| tail_error(&self.remote.image, error))?;
        tail.follow(self.their_watch.changes());
        let replay = Replay::open(&self.local.image, &self.lock, ReplayOptions::default()).await;
        let mut replay = replay.map_err(|error| replay_error(&error))?;
        let mut feeder = Feeder {
            tail,
            entries: VecDeque::new(),
            next: None,
            caught_up: false,
            tag: None,
            delay: self.delay(),
        };
        let mut commits = Commits::new(committer, self.ctx.journal.commit_age);
        let ended = self.feed(&mut feeder, &mut replay, &mut commits, until).await;
        let stopped = replay.stop().await;
        if let Some(position) = stopped.position {
            commits.safe_up_to(position);
        }
        if ended.as_ref().err().is_none_or(|error| error.class() != ErrorClass::Fenced) {
            let stored = commits.flush().await;
            stored.unwrap_or_else(|error| tracing::debug!(image = %self.ctx.global_image_id, "{error}"));
        }
        match ended? {
            Ended::Session(end) => Ok(Some(end)),
            Ended::Changed if until == Until::Changed => Ok(None),
            Ended::Changed => Ok(Some(End::Again(Duration::ZERO))),
            Ended::Settled => Ok(None),
        }
    }
}

impl Session<'_> {
    /// Feeds entries to the replay, and listens, until something ends it.
    async fn feed(
        &mut self,
        feeder: &mut Feeder,
        replay: &mut Replay,
        commits: &mut Commits,
        until: Until,
    ) -> Result<Ended> {
        let ctx = self.ctx;
        let journal = self.their_journal();
        let mut applied = replay.applied();
        let mut progress = Progress { tags: self.registered.tags.iter().cloned().collect(), ..Progress::default() };
        let mut look_at = Some(tokio::time::Instant::now());
        let mut entry_at: Option<Instant> = None;
        let mut ticks = tokio::time::interval(REPORT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let moving = entry_at.is_some_and(|at| at.elapsed() < REPORT_AFTER_ENTRY);
            tokio::select! {
                () = ctx.cancel.cancelled() => return Ok(Ended::Session(End::Cancelled)),
                () = ctx.changed.notified() => {
                    if !bootstrap::is_pair(ctx, self.local.image.image.id(), self.remote.image.image.id()).await {
                        return Ok(Ended::Session(End::Again(Duration::ZERO)));
                    }
                }
                changed = self.lock_report.changed() => {
                    if changed.is_err() || self.lock_changed(feeder).await? {
                        return Ok(Ended::Session(End::Again(Duration::ZERO)));
                    }
                }
                event = self.own_watch.next() => {
                    if !is_there(event) {
                        return Ok(Ended::Session(End::Again(Duration::ZERO)));
                    }
                    if self.own_journal_changed().await? {
                        return Ok(Ended::Changed);
                    }
                }
                event = self.their_watch.next() => {
                    if !is_there(event) {
                        return Ok(Ended::Session(End::Again(Duration::ZERO)));
                    }
                    look_at.get_or_insert_with(|| tokio::time::Instant::now() + METADATA_PAUSE);
                }
                () = sleep_until(look_at), if look_at.is_some() => {
                    look_at = None;
                    if !self.look_at_remote(&mut progress).await? {
                        return Ok(Ended::Changed);
                    }
                    self.say_replaying(&mut progress, commits);
                }
                error = commits.failed() => return Err(error),
                Ok(()) = applied.changed() => {
                    if let Some(position) = *applied.borrow_and_update() {
                        commits.safe_up_to(position);
                    }
                }
                _ = ticks.tick(), if moving => self.say_replaying(&mut progress, commits),
                fed = feeder.step(&mut self.local.journal, &journal, ctx, replay, commits, until) => match fed {
                    Ok(Fed::Nothing) => {}
                    Ok(Fed::Entry { bytes }) => {
                        entry_at = Some(Instant::now());
                        progress.replayed(1, bytes, Instant::now());
                    }
                    Ok(Fed::Ended(ended)) => return Ok(ended),
                    Err(error) => return Err(self.explain(error, replay).await),
                },
            }
        }
    }
}
