//! Entries that wait, and the decision what to do at each: maintenance operations are tied to how they ended.
//!
//! On the primary an operation is journalled before it is carried out, and its result behind it:
//!
//! * Those that change what later writes do (a snapshot, a larger size, features) are carried out with writes suspended;
//!   writes journalled behind the event are behind the operation. So they take effect **at their own entry**, and what
//!   follows waits for the [`Event::OpFinish`] that tells whether they succeeded.
//! * All others take effect **at their [`Event::OpFinish`]**: a rollback suspends writes until its result is journalled;
//!   the others do not touch what is written. (A smaller size: writes behind the event lie within it.)
//! * One whose result never comes is carried out where its tag ends: the writer died, and librbd, when it opens the image
//!   next, replays the journal and carries it out before it begins a new tag.
//!
//! A result is a barrier even when nothing is left to do at it: a replay that begins between the two does not know what it
//! ends.
//!
//! An operation that failed is passed over, unless it may have left the primary's data half changed: then no replay can
//! make the copy equal.
//!
//! Entries that were applied before are passed over, too, but their operations are remembered when their result is still
//! to come.
//!
//! Reference: `src/librbd/journal/Replay.cc`, `src/librbd/operation/`, `src/librbd/Journal.cc` (`handle_replay_complete`).

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use rados::Extent;

use super::error::ReplayError;
use crate::event::{Event, Op, OpTid};
use crate::types::{EntryPosition, EntryTid, TagTid};

/// Entries that may wait for the result of an operation. Behind so many it is taken for successful: the writer was able
/// to go on. (It suspends writes meanwhile, so that a handful is usual.)
const WAITING_ENTRIES_MAX: usize = 4096;
/// Bytes of such entries.
const WAITING_BYTES_MAX: u64 = 16 << 20;

/// What an entry holds on to while it is not on disk.
pub(super) trait Ticket {
    /// Bytes of data that it stands for.
    fn bytes(&self) -> u64;
    /// The entry may have to wait for entries that are still to come: give up what others wait for.
    fn yield_shared(&mut self);
}

/// What is to be done at a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing.
    Pass,
    /// Bytes are written; never empty.
    Write { extent: Extent, data: Bytes },
    /// A range is discarded.
    Discard { extent: Extent, granularity: u32 },
    /// A pattern, never empty, is repeated.
    WriteSame { extent: Extent, data: Bytes },
    /// Bytes are written if others are there.
    CompareAndWrite { extent: Extent, compare: Bytes, write: Bytes },
    /// All before is on disk before anything behind is.
    Flush,
    /// A maintenance operation, which was journalled at `began`.
    Op { op: Op, began: EntryPosition },
    /// A tag has ended, all of its operations are carried out.
    TagEnd,
    /// Somebody wants to know when all before is on disk.
    Sync(u64),
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next<T> {
    /// There is no entry.
    Empty,
    /// The result of an operation must come first.
    Waiting,
    /// This.
    Work(EntryPosition, Work, Option<T>),
}

enum Queued<T> {
    Entry(EntryPosition, Event, T),
    TagEnd(TagTid),
    Sync(u64),
}

impl<T> Queued<T> {
    fn token(&self) -> Option<u64> {
        match self {
            Queued::Sync(token) => Some(*token),
            _ => None,
        }
    }
}

/// The queue. `T` is dropped when an entry is on disk.
pub(super) struct Queue<T> {
    entries: VecDeque<Queued<T>>,
    bytes: u64,
    /// Everything up to here was applied before.
    applied_before: Option<EntryPosition>,
    /// Results that are in the queue.
    results: HashMap<(TagTid, OpTid), i32>,
    /// Operations whose result is not reached yet, by the position of their event.
    open: BTreeMap<EntryPosition, (OpTid, Op)>,
    /// Per operation that is not carried out: the entry before its event. The commit position must not get past it, or
    /// the operation would be forgotten.
    holds: BTreeMap<EntryPosition, Option<EntryPosition>>,
    /// The last entry that was taken out.
    last: Option<EntryPosition>,
    ended_tags: VecDeque<TagTid>,
    /// Operations that were taken for successful before their result came.
    assumed: HashMap<OpTid, (EntryPosition, String)>,
    /// The first entry waits for a result.
    waiting: bool,
}

/// The position behind all entries of a tag, and what its end carries out.
pub(super) fn tag_end(tag: TagTid) -> EntryPosition {
    EntryPosition { tag, entry: EntryTid(u64::MAX) }
}

impl<T: Ticket> Queue<T> {
    /// An empty queue of an image that holds everything up to `applied_before`.
    pub fn new(applied_before: Option<EntryPosition>) -> Queue<T> {
        Queue {
            entries: VecDeque::new(),
            bytes: 0,
            applied_before,
            results: HashMap::new(),
            open: BTreeMap::new(),
            holds: BTreeMap::new(),
            last: None,
            ended_tags: VecDeque::new(),
            assumed: HashMap::new(),
            waiting: false,
        }
    }

    /// Appends an entry.
    pub fn push(&mut self, position: EntryPosition, event: Event, mut ticket: T) {
        if let Event::OpFinish { tid, result } = &event {
            self.results.insert((position.tag, *tid), *result);
        }
        if self.waiting {
            ticket.yield_shared();
        }
        self.bytes += ticket.bytes();
        self.entries.push_back(Queued::Entry(position, event, ticket));
    }

    /// No entry of `tag` will come any more.
    pub fn end_tag(&mut self, tag: TagTid) {
        self.ended_tags.push_back(tag);
        self.entries.push_back(Queued::TagEnd(tag));
    }

    /// Appends a [`Work::Sync`].
    pub fn sync(&mut self, token: u64) {
        self.entries.push_back(Queued::Sync(token));
    }

    /// Takes out all tokens of [`Queue::sync`].
    pub fn take_syncs(&mut self) -> impl Iterator<Item = u64> + use<T> {
        let tokens: Vec<u64> = self.entries.iter().filter_map(Queued::token).collect();
        self.entries.retain(|entry| entry.token().is_none());
        tokens.into_iter()
    }

    /// The entry behind which the commit position must stay: the one before the first operation that is not carried out.
    /// `None` when there is no such operation; `Some(None)` when it is the first entry of all.
    pub fn hold(&self) -> Option<Option<EntryPosition>> {
        self.holds.values().next().copied()
    }

    /// The operation journalled at `began` is carried out.
    pub fn carried_out(&mut self, began: EntryPosition) {
        self.holds.remove(&began);
    }

    /// Takes out what comes next. `size` is that of the image when all before is done.
    pub fn next(&mut self, size: u64) -> Result<Next<T>, ReplayError> {
        match self.entries.front() {
            None => return Ok(Next::Empty),
            Some(Queued::TagEnd(tag)) => {
                let tag = *tag;
                return Ok(self.next_at_tag_end(tag));
            }
            Some(Queued::Sync(token)) => {
                let position = self.last.unwrap_or(EntryPosition { tag: TagTid(0), entry: EntryTid(0) });
                let work = Work::Sync(*token);
                self.entries.pop_front();
                return Ok(Next::Work(position, work, None));
            }
            Some(Queued::Entry(position, Event::Op { tid, op }, _)) => {
                let skipped = self.was_applied(*position);
                if !skipped && at_its_own_entry(op, size) && self.must_wait(*position, *tid) {
                    self.begin_waiting();
                    return Ok(Next::Waiting);
                }
            }
            Some(Queued::Entry(..)) => {}
        }
        self.waiting = false;
        let Some(Queued::Entry(position, event, ticket)) = self.entries.pop_front() else {
            return Ok(Next::Empty);
        };
        self.bytes -= ticket.bytes();
        let work = match self.was_applied(position) {
            true => self.remember(position, event),
            false => self.resolve(position, event, size)?,
        };
        self.last = Some(position);
        Ok(Next::Work(position, work, Some(ticket)))
    }

    fn was_applied(&self, position: EntryPosition) -> bool {
        self.applied_before.is_some_and(|applied| position <= applied)
    }

    /// True when the result of the operation at the front is not known.
    fn must_wait(&self, position: EntryPosition, tid: OpTid) -> bool {
        !self.results.contains_key(&(position.tag, tid))
            && !self.ended_tags.contains(&position.tag)
            && self.entries.len() < WAITING_ENTRIES_MAX
            && self.bytes < WAITING_BYTES_MAX
    }

    fn begin_waiting(&mut self) {
        if !std::mem::replace(&mut self.waiting, true) {
            for entry in &mut self.entries {
                if let Queued::Entry(_, _, ticket) = entry {
                    ticket.yield_shared();
                }
            }
        }
    }

    /// An entry that was applied before: only operations whose result may still come matter.
    fn remember(&mut self, position: EntryPosition, event: Event) -> Work {
        match event {
            // Those of the first kind took effect where they stand. A size either did, too, or is still to come: setting
            // it once more does no harm.
            Event::Op { op: Op::SnapCreate { .. } | Op::UpdateFeatures { .. }, .. } => {}
            Event::Op { tid, op } => self.open_op(position, tid, op),
            Event::OpFinish { tid, .. } => {
                self.results.remove(&(position.tag, tid));
                if let Some((began, _)) = self.take_open(position.tag, tid) {
                    self.carried_out(began);
                }
            }
            _ => {}
        }
        Work::Pass
    }

    fn resolve(&mut self, position: EntryPosition, event: Event, size: u64) -> Result<Work, ReplayError> {
        Ok(match event {
            Event::Write { extent, data } if !data.is_empty() => Work::Write { extent, data },
            Event::Discard { extent, granularity } => Work::Discard { extent, granularity },
            Event::WriteSame { extent, data } if !data.is_empty() => Work::WriteSame { extent, data },
            Event::CompareAndWrite { extent, compare, write } => {
                Work::CompareAndWrite { extent, compare, write }
            }
            Event::Flush => Work::Flush,
            Event::Op { tid, op } if at_its_own_entry(&op, size) => self.resolve_own(position, tid, op),
            Event::Op { tid, op } => {
                self.open_op(position, tid, op);
                Work::Pass
            }
            Event::OpFinish { tid, result } => self.resolve_finish(position, tid, result, size)?,
            // None is known to change nothing: all types of Ceph 16 to 20 are known here.
            Event::Unknown { kind } => return Err(ReplayError::UnknownEvent { position, kind }),
            Event::Write { .. } | Event::WriteSame { .. } | Event::DemotePromote => Work::Pass,
        })
    }

    /// An operation that takes effect here, as far as its result tells.
    fn resolve_own(&mut self, position: EntryPosition, tid: OpTid, op: Op) -> Work {
        match self.results.get(&(position.tag, tid)) {
            Some(result) if *result < 0 => {
                tracing::info!("passing over {op:?} of {position}: it failed with {result}");
                Work::Pass
            }
            result => {
                if result.is_none() && !self.ended_tags.contains(&position.tag) {
                    tracing::warn!("{op:?} of {position} has no result for long: taking it for successful");
                    self.assumed.insert(tid, (position, format!("{op:?}")));
                }
                self.holds.insert(position, self.last);
                Work::Op { op, began: position }
            }
        }
    }

    fn resolve_finish(
        &mut self,
        position: EntryPosition,
        tid: OpTid,
        result: i32,
        size: u64,
    ) -> Result<Work, ReplayError> {
        self.results.remove(&(position.tag, tid));
        let Some((began, op)) = self.take_open(position.tag, tid) else {
            // It was carried out before, or where it stood.
            return match self.assumed.remove(&tid) {
                Some((position, op)) if result < 0 => Err(ReplayError::HalfDone { position, op, result }),
                _ => Ok(Work::Flush),
            };
        };
        // The size that there is: a larger one that took effect at its own entry in an earlier replay, or no new one.
        let pending = !matches!(&op, Op::Resize { size: new } if *new == size);
        if result >= 0 && pending {
            return Ok(Work::Op { op, began });
        }
        self.carried_out(began);
        if result >= 0 {
            return Ok(Work::Flush);
        }
        let half_done = match &op {
            Op::SnapRollback { .. } => true,
            Op::Resize { size: new } => *new < size,
            _ => false,
        };
        if half_done {
            return Err(ReplayError::HalfDone { position: began, op: format!("{op:?}"), result });
        }
        tracing::info!("passing over {op:?} of {began}: it failed with {result}");
        Ok(Work::Flush)
    }

    fn open_op(&mut self, position: EntryPosition, tid: OpTid, op: Op) {
        self.holds.insert(position, self.last);
        self.open.insert(position, (tid, op));
    }

    fn take_open(&mut self, tag: TagTid, tid: OpTid) -> Option<(EntryPosition, Op)> {
        let mut of_tag = self.open.iter().filter(|(began, (open, _))| began.tag == tag && *open == tid);
        let began = *of_tag.next()?.0;
        self.open.remove(&began).map(|(_, op)| (began, op))
    }

    fn next_at_tag_end(&mut self, tag: TagTid) -> Next<T> {
        let last = self.last.filter(|last| last.tag == tag).unwrap_or(tag_end(tag));
        if self.was_applied(tag_end(tag)) {
            self.open.clear();
            self.holds.clear();
        } else if let Some((began, (_, op))) = self.open.pop_first() {
            tracing::info!("carrying out {op:?} of {began}: its writer did not live to see its end");
            return Next::Work(last, Work::Op { op, began }, None);
        }
        self.entries.pop_front();
        self.ended_tags.pop_front();
        // Numbers begin anew with each tag.
        self.results.retain(|(of, _), _| *of != tag);
        self.assumed.clear();
        Next::Work(tag_end(tag), Work::TagEnd, None)
    }
}

/// True for operations that take effect at their own entry, false for those that do at their result.
fn at_its_own_entry(op: &Op, size: u64) -> bool {
    match op {
        Op::SnapCreate { .. } | Op::UpdateFeatures { .. } => true,
        Op::Resize { size: new } => *new > size,
        _ => false,
    }
}
