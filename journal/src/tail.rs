//! The end of a journal, followed: entries in order, as soon as they are there.
//!
//! Nobody announces entries, so a caught-up [`Tail`] looks for the next one, in the only object that can hold it, and
//! more often the more recently entries came ([`PollOptions`]). While entries are known to be there, reads follow at
//! once: all objects of a set in parallel when they come in numbers, the next reads under way while the caller works on
//! the last [`Batch`].
//!
//! # Bounds
//! Entries read but not handed out, and reads under way, take at most [`TailOptions::buffered_bytes_max`] and this tail's
//! part of a [`Budget`] that many may share, or one read when that is less. A batch has at most
//! [`TailOptions::batch_bytes_max`] and an entry; what was handed out is the caller's to bound. An entry's data is a slice of
//! the read that brought it, and keeps that in memory.
//!
//! # Cost
//! A tail has no task. It makes one small read per poll, and reads the metadata when they change (if it is told of
//! changes, by [`Tail::follow`]), when it sees a newer tag, and else once per [`TailOptions::metadata_age_max`].
//!
//! How the next entry is known is told in `order`, which does no I/O.
//!
//! Reference: `src/journal/JournalPlayer.cc`, `src/journal/ObjectPlayer.cc`.

mod lane;
mod order;
mod pace;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use rados::error::ResultExt;
use rados::{Extent, SnapId};
use tokio::time::Instant;

use crate::budget::{Budget, Part, Piece};
use crate::metadata::{Journal, MutableMetadata};
use crate::types::{
    ClientState, CommitPosition, EntryPosition, IMAGE_CLIENT_ID, JournalObject, LOCAL_MIRROR_UUID,
    ORPHAN_MIRROR_UUID, ObjectSet, Tag, TagTid,
};
use crate::watch::JournalChanges;
use lane::{LaneRead, ReadSizes, Stamp};
use order::{Knowledge, Order};
use pace::Pace;

pub use pace::{PollBudget, PollOptions};

/// Metadata is not read more often than this because of changes that others tell of.
const METADATA_PAUSE: Duration = Duration::from_millis(200);

/// An entry in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the order.
    pub position: EntryPosition,
    /// The object that it was in.
    pub object: JournalObject,
    /// What it holds: an encoded [`crate::event::EventEntry`].
    pub data: Bytes,
}

/// Entries that follow each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// The entries, in order. Empty only when the tail has just caught up with nothing to hand out.
    pub entries: Vec<Entry>,
    /// Nothing was there behind them when last looked.
    pub caught_up: bool,
}

/// How a tail reads.
#[derive(Debug, Clone)]
pub struct TailOptions {
    /// A batch has no more bytes than this and one entry.
    pub batch_bytes_max: u64,
    /// Bytes read at once while there is a backlog.
    pub read_bytes_max: u64,
    /// Bytes read at once while there is none.
    pub poll_bytes: u64,
    /// What is read but not handed out, with the reads under way, takes no more than this and one read.
    pub buffered_bytes_max: u64,
    /// Of that, no more than a part of this, when there is one.
    pub budget: Option<Arc<Budget>>,
    /// How often to look.
    pub poll: PollOptions,
    /// Metadata is read at least so often.
    pub metadata_age_max: Duration,
}

impl Default for TailOptions {
    fn default() -> Self {
        TailOptions {
            batch_bytes_max: 8 << 20,
            read_bytes_max: 4 << 20,
            poll_bytes: 256 << 10,
            buffered_bytes_max: 32 << 20,
            budget: None,
            poll: PollOptions::default(),
            metadata_age_max: Duration::from_secs(60),
        }
    }
}

/// Why no more entries come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TailError {
    /// A request failed. The next call tries again.
    #[error(transparent)]
    Rados(#[from] rados::Error),
    /// An object holds what cannot be an entry. What comes before it was handed out.
    #[error(
        "journal object '{object}' is corrupt at offset {offset}: {why}; the entries behind it cannot be read, and the \
         image must be copied anew"
    )]
    Corrupt {
        /// The object.
        object: String,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        why: String,
    },
    /// An entry that was written is not there. What comes before it was handed out.
    #[error(
        "entry {} of tag {} is missing from journal object '{object}': {why}; the image must be copied anew",
        .position.entry.0,
        .position.tag.0
    )]
    Missing {
        /// The object that ought to hold it.
        object: String,
        /// The entry.
        position: EntryPosition,
        /// How that is known.
        why: String,
    },
    /// Entries were trimmed before they were read.
    #[error(
        "journal entries from {position} on may have been removed before they were read (the journal now begins with \
         object set {minimum_set}): this client was too far behind, and the image must be copied anew"
    )]
    TooFarBehind {
        /// The first entry that may be gone.
        position: EntryPosition,
        /// Sets before this one are gone.
        minimum_set: ObjectSet,
    },
    /// Somebody struck out our client.
    #[error("client '{client}' is not registered in {journal} any more; the image must be copied anew")]
    Unregistered {
        /// The client.
        client: String,
        /// The journal.
        journal: String,
    },
}

/// Follows the end of a journal for one of its clients.
pub struct Tail {
    journal: Journal,
    client: String,
    options: TailOptions,
    order: Order,
    pace: Pace,
    /// This tail's part of the budget, and what it holds of it.
    part: Option<(Arc<Part>, Piece)>,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    changes: Option<JournalChanges>,
    metadata: MutableMetadata,
    /// When to look for the next entry, unless there is reason to look at once.
    poll_at: Instant,
    /// When to read the metadata, unless there is reason to do it at once.
    metadata_at: Instant,
    metadata_asked: Instant,
    metadata_under_way: bool,
    /// They were announced to have changed since they were asked for.
    metadata_stale: bool,
    /// The caller knows that the tail is caught up.
    told_caught_up: bool,
    /// A request failed, and the caller does not know.
    failed: Option<TailError>,
}

/// A request that was answered.
enum Done {
    Read(LaneRead, rados::Result<Option<Bytes>>),
    Metadata(Stamp, Result<(MutableMetadata, Vec<Tag>), TailError>),
}

impl Tail {
    /// Begins to follow a journal for a registered client: behind `after`, or at the first entry of all when that is empty.
    pub async fn open(
        journal: &Journal,
        client: &str,
        after: CommitPosition,
        options: TailOptions,
    ) -> Result<Tail, TailError> {
        let current = after.newest().map(|newest| newest.tag);
        let (metadata, tags) = read_metadata(journal.clone(), client.to_string(), current).await?;
        let layout = *journal.layout();
        let width = layout.splay_width();
        let max = options.read_bytes_max.min(options.buffered_bytes_max / width).max(options.poll_bytes);
        let sizes = ReadSizes { poll: options.poll_bytes, max };
        let known = knowledge(&metadata, &tags, client);
        let order = Order::new(layout, journal.data_prefix().to_string(), &after, sizes, known);
        let part = options.budget.as_ref().map(|budget| {
            let part = budget.part();
            (part.clone(), part.hold(0))
        });
        let now = Instant::now();
        Ok(Tail {
            journal: journal.clone(),
            client: client.to_string(),
            pace: Pace::new(options.poll.clone()),
            order,
            part,
            jobs: FuturesUnordered::new(),
            changes: None,
            metadata,
            poll_at: now,
            metadata_at: now + options.metadata_age_max,
            metadata_asked: now,
            metadata_under_way: false,
            metadata_stale: false,
            told_caught_up: false,
            failed: None,
            options,
        })
    }

    /// Listens to changes of the metadata from now on. Without it, sets and tags that begin are seen a little later.
    pub fn follow(&mut self, changes: JournalChanges) {
        self.changes = Some(changes);
    }

    /// The metadata as last read, for reports.
    pub fn metadata(&self) -> &MutableMetadata {
        &self.metadata
    }

    /// The next entries, as soon as there are any; and an empty batch when the tail has caught up and has not said so
    /// yet. Cancel-safe: nothing is lost.
    ///
    /// After [`TailError::Rados`] the next call goes on; the caller waits a little first. Other errors come again.
    pub async fn next(&mut self) -> Result<Batch, TailError> {
        loop {
            if let Some(batch) = self.take()? {
                return Ok(batch);
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            if self.order.is_caught_up() && !self.told_caught_up {
                self.told_caught_up = true;
                return Ok(Batch { entries: Vec::new(), caught_up: true });
            }
            if !self.begin() {
                self.wait().await;
            }
        }
    }

    /// The next entries, at least all that were there when the tail was opened; then `None`.
    pub async fn next_to_end(&mut self) -> Result<Option<Batch>, TailError> {
        loop {
            if let Some(batch) = self.take()? {
                return Ok(Some(batch));
            }
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            if self.order.is_at_end() {
                return Ok(None);
            }
            if !self.begin() {
                self.wait().await;
            }
        }
    }

    /// Entries that can be handed out. Begins the next reads, for the time that the caller needs for these.
    fn take(&mut self) -> Result<Option<Batch>, TailError> {
        let (entries, fault) = self.order.take(self.options.batch_bytes_max);
        if entries.is_empty() {
            return fault.map_or(Ok(None), Err);
        }
        let now = Instant::now();
        self.poll_at = now + self.pace.arrived(now);
        let caught_up = self.order.is_caught_up();
        self.told_caught_up = caught_up;
        self.begin_reads();
        self.send();
        Ok(Some(Batch { entries, caught_up }))
    }

    /// Tells the budget what is held, and the order what may be.
    fn bound(&mut self) {
        let mut bytes_max = self.options.buffered_bytes_max;
        if let Some((part, held)) = &mut self.part {
            // The new piece first, so that what stays held is never missing.
            *held = part.hold(self.order.held_bytes());
            bytes_max = bytes_max.min(part.bytes_max());
        }
        self.order.bound(bytes_max);
    }

    /// Begins all requests that are due. Answers whether something was answered meanwhile: then there may be nothing to
    /// wait for.
    fn begin(&mut self) -> bool {
        self.begin_reads();
        let now = Instant::now();
        if now >= self.poll_at && self.order.can_poll() {
            self.bound();
            let read = self.order.poll();
            self.push_read(read);
        }
        if !self.metadata_under_way && (now >= self.metadata_at || self.order.needs_metadata()) {
            self.metadata_under_way = true;
            self.metadata_stale = false;
            self.metadata_asked = now;
            let asked = self.order.begin_metadata();
            let read = read_metadata(self.journal.clone(), self.client.clone(), self.order.tag());
            self.jobs.push(read.map(move |told| Done::Metadata(asked, told)).boxed());
        }
        self.send()
    }

    fn begin_reads(&mut self) {
        self.bound();
        for read in self.order.begin_reads() {
            self.push_read(read);
        }
    }

    fn push_read(&mut self, read: LaneRead) {
        let job = read_lane(self.journal.clone(), read);
        self.jobs.push(job.map(move |found| Done::Read(read, found)).boxed());
    }

    /// A request begins when it is first polled: sends all that were pushed. Answers whether something was answered.
    fn send(&mut self) -> bool {
        let mut answered = false;
        while let Some(Some(done)) = self.jobs.next().now_or_never() {
            self.absorb(done);
            answered = true;
        }
        answered
    }

    /// Waits until a request was answered, or the next one is due.
    async fn wait(&mut self) {
        let mut wake = Instant::now() + self.options.metadata_age_max;
        if self.order.can_poll() {
            wake = wake.min(self.poll_at);
        }
        if !self.metadata_under_way {
            wake = wake.min(self.metadata_at);
        }
        let changes = &mut self.changes;
        let changed = async {
            match changes {
                Some(changes) => changes.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.absorb(done),
            () = changed => self.metadata_changed(),
            () = tokio::time::sleep_until(wake) => {}
        }
    }

    fn metadata_changed(&mut self) {
        let earliest = Instant::now().max(self.metadata_asked + METADATA_PAUSE);
        self.metadata_at = self.metadata_at.min(earliest);
        self.metadata_stale = true;
    }

    fn absorb(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Read(read, Ok(found)) => {
                let in_vain = !self.order.absorb_read(read, found) && self.order.needs(read.lane);
                if in_vain {
                    self.poll_at = now + self.pace.pause(now);
                }
                if in_vain && self.order.may_be_full() {
                    self.metadata_changed();
                }
            }
            Done::Read(read, Err(error)) => {
                self.order.give_up(read);
                self.poll_at = now + self.pace.pause(now);
                self.failed = Some(error.into());
            }
            Done::Metadata(asked, Ok((metadata, tags))) => {
                self.metadata_under_way = false;
                // What was announced meanwhile may be newer than the answer.
                let stale = self.metadata_stale.then(|| self.metadata_asked + METADATA_PAUSE);
                self.metadata_at = stale.unwrap_or(now + self.options.metadata_age_max);
                self.order.absorb_metadata(asked, knowledge(&metadata, &tags, &self.client));
                self.metadata = metadata;
            }
            Done::Metadata(_, Err(error)) => {
                self.metadata_under_way = false;
                self.metadata_at = now + METADATA_PAUSE;
                self.failed = Some(error);
            }
        }
    }
}

/// Reads the entries of a journal behind `after`, at least all that are there at the call, in order, and lets `visit` see
/// them until it breaks. `client` is a registered one: [`IMAGE_CLIENT_ID`] always is. A gap at the end of a
/// dead writer's tag ends that tag, as for a tail; a missing or corrupt entry is an error.
pub async fn walk(
    journal: &Journal,
    client: &str,
    after: CommitPosition,
    mut visit: impl FnMut(Entry) -> ControlFlow<()>,
) -> Result<(), TailError> {
    let mut tail = Tail::open(journal, client, after, TailOptions::default()).await?;
    while let Some(batch) = tail.next_to_end().await? {
        for entry in batch.entries {
            if visit(entry).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Reads a part of a data object; `None` when there is no such object.
async fn read_lane(journal: Journal, read: LaneRead) -> rados::Result<Option<Bytes>> {
    let extent = Extent::new(read.offset, read.length);
    journal.data_ioctx().read_extent(&journal.data_object(read.object), SnapId::HEAD, extent).await.optional()
}

async fn read_metadata(
    journal: Journal,
    client: String,
    after: Option<TagTid>,
) -> Result<(MutableMetadata, Vec<Tag>), TailError> {
    match journal.mutable_with_tags(&client, after).await {
        // Either the client is gone, or the whole journal is: then this is an error, too.
        Err(error) if error.is_not_found() && journal.client(&client).await?.is_none() => {
            Err(TailError::Unregistered { client, journal: journal.to_string() })
        }
        told => Ok(told?),
    }
}

/// What the order of entries needs to know of the metadata.
fn knowledge(metadata: &MutableMetadata, tags: &[Tag], client: &str) -> Knowledge {
    // While the image is a copy nothing is written to its journal; all the same, a promotion by force calls the first
    // entry of that time's tag committed.
    let of_copy = |tid: TagTid| {
        let tag = tags.iter().find(|tag| tag.tid == tid).and_then(|tag| tag.tag_data().ok());
        tag.is_some_and(|data| ![LOCAL_MIRROR_UUID, ORPHAN_MIRROR_UUID].contains(&data.mirror_uuid.as_str()))
    };
    let predecessor = |tag: &Tag| {
        let data = tag.tag_data().ok()?;
        let here = data.predecessor.mirror_uuid == LOCAL_MIRROR_UUID;
        data.predecessor.commit.filter(|commit| here && !of_copy(commit.tag))
    };
    Knowledge {
        minimum_set: metadata.minimum_set,
        active_set: metadata.active_set,
        disconnected: metadata.client(client).is_some_and(|own| own.state == ClientState::Disconnected),
        committed: metadata.client(IMAGE_CLIENT_ID).and_then(|image| image.commit_position.newest()),
        tags: tags.iter().map(|tag| (tag.tid, predecessor(tag))).collect(),
    }
}
