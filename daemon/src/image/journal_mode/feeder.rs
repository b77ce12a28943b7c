//! Takes entries from the end of the remote journal to the replay, one after the other.
//!
//! Each call of [`Feeder::step`] does one thing, and may be cut off anywhere and begun again: it reads a batch; or, when
//! the next entry belongs to another tag than the one before it, waits until all before is on disk and committed, and
//! makes the local tag; or waits for `rbd_mirroring_replay_delay`; or hands entries over.
//!
//! A demotion of the primary is an entry alone in its tag. When it is replayed, the copy is tied to nobody any more, and
//! may be promoted.
//!
//! Reference: `handle_replay_ready`, `allocate_local_tag`, `preprocess_entry` in
//! `src/tools/rbd_mirror/image_replayer/journal/Replayer.cc`.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use journal::event::{Event, EventEntry};
use journal::image_journal::{ImageJournal, decoded};
use journal::local_tag::{LocalTag, local_tag};
use journal::replay::{Replay, ReplayError};
use journal::tail::TailError;
use journal::types::{EntryPosition, TagTid};
use journal::{Entry, Journal, Tail};
use rados::Error;
use rbd::Timestamp;

use super::commits::Commits;
use super::replay::{Ended, Until};
use super::session::End;
use crate::image::ImageContext;

/// Entries handed over in one step.
const ENTRIES_PER_STEP: usize = 256;

/// Entries that were handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Moved {
    /// How many.
    pub(super) entries: u64,
    /// What they take in the journal, in bytes.
    pub(super) bytes: u64,
}

/// Why a step failed.
#[derive(Debug)]
pub(super) enum StepError {
    /// The journal cannot be read.
    Tail(TailError),
    /// Entries cannot be applied.
    Replay(ReplayError),
    /// Something else.
    Other(Error),
}

impl From<ReplayError> for StepError {
    fn from(error: ReplayError) -> Self {
        StepError::Replay(error)
    }
}

impl From<Error> for StepError {
    fn from(error: Error) -> Self {
        StepError::Other(error)
    }
}

/// What entries pass on their way.
pub(super) struct Stations<'a> {
    /// The local journal.
    pub(super) own: &'a mut ImageJournal,
    /// The remote one.
    pub(super) theirs: &'a Journal,
    /// The replay.
    pub(super) replay: &'a mut Replay,
    /// Who commits positions.
    pub(super) commits: &'a Commits,
    /// The image.
    pub(super) ctx: &'a ImageContext,
}

/// How the entries of a tag are met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meet {
    /// They are replayed.
    Replay,
    /// The one entry is replayed, and nothing behind it.
    Demotion,
    /// They have been replayed before.
    PassOver,
}

/// The entries on their way.
pub(super) struct Feeder {
    tail: Tail,
    entries: VecDeque<Entry>,
    /// Nothing was there behind the last entry.
    caught_up: bool,
    /// The tag of the entries that are being handed over.
    tag: Option<(TagTid, Meet)>,
    /// The demotion was handed over.
    demoted: bool,
    /// Entries are held back until they are so old.
    pub(super) delay: Duration,
    pub(super) until: Until,
    moved: Moved,
}

impl Feeder {
    /// Feeds from the end of a journal.
    pub(super) fn new(tail: Tail, delay: Duration, until: Until) -> Feeder {
        let (entries, caught_up, tag, demoted) = (VecDeque::new(), false, None, false);
        Feeder { tail, entries, caught_up, tag, demoted, delay, until, moved: Moved::default() }
    }

    /// What was handed over since this was last asked.
    pub(super) fn moved(&mut self) -> Moved {
        std::mem::take(&mut self.moved)
    }

    /// Does the next thing; answers why, when the replay is at an end. Cancel-safe.
    pub(super) async fn step(&mut self, stations: Stations<'_>) -> Result<Option<Ended>, StepError> {
        if self.demoted {
            stations.replay.end_tag().await?;
            // A copy that only this was missing in is one now.
            return Ok(Some(if self.until == Until::Changed { Ended::Changed } else { Ended::Settled }));
        }
        let Some(entry) = self.entries.front() else { return self.read(stations).await };
        let tag = entry.position.tag;
        match self.tag {
            Some((entered, meet)) if entered == tag => self.hand_over(stations, meet).await,
            _ => self.enter(stations, tag).await,
        }
    }

    /// Reads the next batch.
    async fn read(&mut self, stations: Stations<'_>) -> Result<Option<Ended>, StepError> {
        if self.caught_up && self.until != Until::Changed {
            stations.replay.flush().await?;
            return Ok(Some(Ended::Settled));
        }
        let batch = self.tail.next().await.map_err(StepError::Tail)?;
        self.caught_up = batch.caught_up;
        let without_data = |entry: &Entry| Entry { data: Bytes::new(), ..entry.clone() };
        stations.commits.handed_out(batch.entries.iter().map(without_data).collect());
        self.entries = batch.entries.into();
        Ok(None)
    }

    /// Enters a tag of the remote journal: all of the one before is on disk, and the local journal gets one like it.
    async fn enter(&mut self, stations: Stations<'_>, tag: TagTid) -> Result<Option<Ended>, StepError> {
        let Stations { own, theirs, replay, commits, ctx } = stations;
        replay.end_tag().await?;
        if matches!(self.until, Until::Settled(Some(last)) if tag > last) {
            return Ok(Some(Ended::Settled));
        }
        let Some(remote) = theirs.tag(tag).await? else {
            let what = format!("cannot replay entries of tag {} of {theirs}: there is no such tag", tag.0);
            return Err(Error::new(libc::EBADMSG, what).into());
        };
        let (_, remote) = decoded(theirs, &remote)?;
        let (meet, data) =
            match local_tag(&remote, &own.newest.1, &ctx.local_mirror_uuid, &ctx.remote_mirror_uuid) {
                LocalTag::Allocate(data) => (Meet::Replay, data),
                LocalTag::Demote(data) => (Meet::Demotion, data),
                LocalTag::Stale => {
                    self.tag = Some((tag, Meet::PassOver));
                    return Ok(None);
                }
                LocalTag::Contradiction => {
                    let what = format!(
                        "cannot replay tag {} of {theirs}: it says that this image was the primary then",
                        tag.0
                    );
                    return Err(Error::new(libc::EBADMSG, what).into());
                }
            };
        // Where the copy is must be known without the marker, which goes with the newest local tag.
        if let Some(position) = *replay.applied().borrow() {
            commits.safe_up_to(position);
        }
        commits.flush().await?;
        if !own.follow(&data).await? {
            return Ok(Some(Ended::Session(End::Again(Duration::ZERO))));
        }
        replay.set_local_tag(own.newest.0).await?;
        self.tag = Some((tag, meet));
        Ok(None)
    }

    /// Hands entries over, when it is time.
    async fn hand_over(&mut self, stations: Stations<'_>, meet: Meet) -> Result<Option<Ended>, StepError> {
        for _ in 0..ENTRIES_PER_STEP {
            let same_tag = |entry: &&Entry| self.tag.is_some_and(|(tag, _)| tag == entry.position.tag);
            let Some(entry) = self.entries.front().filter(same_tag) else { break };
            let (position, bytes) = (entry.position, entry.data.len() as u64);
            if meet == Meet::PassOver {
                stations.commits.safe_up_to(position);
                self.entries.pop_front();
                continue;
            }
            let event = EventEntry::decode(&entry.data);
            let event = event.map_err(|error| undecodable(stations.theirs, entry, &error))?;
            if let Event::Unknown { kind } = event.event {
                // Before it is handed over: what comes before it can still be replayed.
                return Err(ReplayError::UnknownEvent { position, kind }.into());
            }
            let left = left_of(self.delay, event.timestamp);
            if !left.is_zero() && self.until == Until::Flushed {
                stations.replay.flush().await?;
                return Ok(Some(Ended::Settled));
            }
            if !left.is_zero() {
                tokio::time::sleep(left).await;
            }
            stations.replay.push(position, event).await?;
            self.entries.pop_front();
            self.moved.entries += 1;
            self.moved.bytes += bytes;
            if meet == Meet::Demotion {
                self.demoted = true;
                break;
            }
        }
        Ok(None)
    }
}

/// How long an event of this age is still to be held back.
fn left_of(delay: Duration, timestamp: Timestamp) -> Duration {
    if delay.is_zero() {
        return Duration::ZERO;
    }
    let since_epoch = |t: Timestamp| Duration::new(t.seconds.into(), t.nanoseconds);
    since_epoch(timestamp).saturating_add(delay).saturating_sub(since_epoch(Timestamp::now()))
}

fn undecodable(journal: &Journal, entry: &Entry, error: &rados::encoding::DecodeError) -> StepError {
    let EntryPosition { tag, entry: number } = entry.position;
    let what = format!(
        "cannot understand entry {} of tag {} in object '{}' of {journal}: {error}; the entries behind it cannot be \
         replayed, and the image must be copied anew",
        number.0,
        tag.0,
        journal.data_object(entry.object)
    );
    StepError::Other(Error::new(libc::EBADMSG, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_held_back_until_they_are_old_enough() {
        let ago = |seconds: u32| Timestamp { seconds: Timestamp::now().seconds - seconds, nanoseconds: 0 };
        let delay = Duration::from_secs(100);
        assert_eq!(left_of(Duration::ZERO, Timestamp::now()), Duration::ZERO);
        assert_eq!(left_of(delay, ago(101)), Duration::ZERO);
        let left = left_of(delay, ago(40));
        assert!(left > Duration::from_secs(58) && left <= Duration::from_secs(60), "{left:?}");
        assert!(left_of(Duration::from_secs(u64::MAX), Timestamp::now()) > delay);
    }
}
