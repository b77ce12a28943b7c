//! One lane of a journal: the data objects at one place of their sets, read one after another.
//!
//! Entry n of a tag lies in lane n modulo the splay width. Within a lane entries lie in order: in each object, and from
//! set to set. An object takes no more entries once a later set is active. So a lane's object has been read to its end
//! for good when a read that began after the later set was known found its end.
//!
//! "Began after" is told by stamps: a logical clock that ticks whenever something begins or is learned.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{Entry, TailError};
use crate::entry::{EntryReader, Found, OVERHEAD_BYTES};
use crate::metadata::JournalLayout;
use crate::types::{EntryPosition, JournalObject};

/// A point of the logical clock.
pub(super) type Stamp = u64;

/// Reads grow by this factor while they come back full.
const READ_GROWTH: u64 = 8;

/// How much is read at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadSizes {
    /// When little or nothing is expected.
    pub(super) poll: u64,
    /// At most.
    pub(super) max: u64,
}

/// A read that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LaneRead {
    pub(super) lane: usize,
    pub(super) object: JournalObject,
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) begun: Stamp,
}

#[derive(Debug)]
pub(super) struct Lane {
    /// The object that is read.
    pub(super) object: JournalObject,
    /// Up to here it has been decoded.
    pub(super) offset: u64,
    /// When the newest read began that found its end behind `offset`; none while more is known to be there, or nothing
    /// is known.
    pub(super) ended: Option<Stamp>,
    /// Decoded entries that were not handed out yet; some may be of earlier objects.
    pub(super) queue: VecDeque<Entry>,
    /// What they take.
    pub(super) queued_bytes: u64,
    /// The read under way.
    pub(super) reading: Option<LaneRead>,
    /// What is wrong at `offset`: nothing behind it can be read.
    pub(super) fault: Option<TailError>,
    /// An entry that was committed lies in the object and has not been read yet. What is no good before it harms nobody.
    pub(super) committed: Option<EntryPosition>,
    /// An object was removed before it was read to its end, and nothing has been handed out since.
    pub(super) trimmed: bool,
    /// The object of the newest entry that was handed out; before that, the first object.
    last: JournalObject,
    /// Objects behind `last` that held nothing when they were read.
    empty: Vec<JournalObject>,
    /// Length of the next read, if that is not too much.
    length: u64,
    /// What the next read must bring at least: an entry of which a part is known.
    needed: u64,
    sizes: ReadSizes,
}

impl Lane {
    pub(super) fn new(object: JournalObject, sizes: ReadSizes) -> Lane {
        Lane {
            object,
            offset: 0,
            ended: None,
            queue: VecDeque::new(),
            queued_bytes: 0,
            reading: None,
            fault: None,
            committed: None,
            trimmed: false,
            last: object,
            empty: Vec::new(),
            // Nobody knows where in the object the first entry lies that was not committed yet.
            length: sizes.max,
            needed: 0,
            sizes,
        }
    }

    /// Goes on to another object.
    pub(super) fn go_to(&mut self, object: JournalObject) {
        self.object = object;
        self.offset = 0;
        self.ended = None;
        self.reading = None;
        self.committed = None;
        self.length = self.sizes.max;
        self.needed = 0;
    }

    /// Begins a read of what follows, of `length_max` bytes at most unless an entry needs more.
    pub(super) fn begin(&mut self, lane: usize, begun: Stamp, length_max: u64) -> LaneRead {
        let (object, offset, length) = (self.object, self.offset, self.next_length(length_max));
        let read = LaneRead { lane, object, offset, length, begun };
        self.reading = Some(read);
        read
    }

    /// Length of the next read.
    pub(super) fn next_length(&self, length_max: u64) -> u64 {
        self.length.min(length_max).max(self.needed)
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        let entry = self.queue.pop_front()?;
        self.queued_bytes -= bytes_of(&entry);
        self.last = entry.object;
        self.empty.retain(|object| *object > entry.object);
        Some(entry)
    }

    /// Where the next entry ought to be, which no object holds: in the first object behind the last entry that holds
    /// nothing, if there is one; or in the object of the last entry.
    pub(super) fn lacking(&self) -> (Option<JournalObject>, JournalObject) {
        let end = self.queue.front().map(|entry| entry.object);
        let empty = self.empty.iter().copied().filter(|object| end.is_none_or(|end| *object < end)).min();
        (empty, self.last)
    }

    pub(super) fn front(&self) -> Option<EntryPosition> {
        self.queue.front().map(|entry| entry.position)
    }

    /// Takes the answer of a read: the bytes found, or that there is no such object. Entries that are not `wanted` are
    /// passed over. Answers how many were kept.
    pub(super) fn absorb(
        &mut self,
        read: LaneRead,
        found: Option<Bytes>,
        wanted: impl Fn(EntryPosition) -> bool,
        layout: &JournalLayout,
        names: &dyn Fn(JournalObject) -> String,
    ) -> usize {
        // The lane may have gone on meanwhile, because its object was removed.
        if self.reading != Some(read) {
            return 0;
        }
        self.reading = None;
        let bytes = found.unwrap_or_default();
        let length = bytes.len() as u64;
        let at_end = length < read.length;
        let mut reader = EntryReader::new(bytes, read.offset, layout.object_bytes());
        let (mut kept, mut needed, mut found_any) = (0, 0, false);
        loop {
            match reader.find() {
                Ok(Found::Entry(raw)) => {
                    let belongs =
                        raw.position.entry.0 % layout.splay_width() == layout.offset_of(read.object);
                    if belongs && self.committed.is_some_and(|committed| raw.position >= committed) {
                        self.committed = None;
                    }
                    if !belongs && self.committed.is_none() {
                        let why = format!("{} does not belong into this object", raw.position);
                        self.fault = Some(corrupt(names(read.object), self.offset, why));
                        break;
                    }
                    self.offset = reader.offset();
                    found_any = true;
                    if belongs && wanted(raw.position) {
                        let entry = Entry { position: raw.position, object: read.object, data: raw.data };
                        self.queued_bytes += bytes_of(&entry);
                        self.queue.push_back(entry);
                        kept += 1;
                    } else if self.queue.is_empty() {
                        self.last = read.object;
                    }
                }
                Ok(Found::End) => {
                    self.offset = reader.offset();
                    break;
                }
                Ok(Found::Partial(bytes)) => {
                    if at_end && self.committed.is_some() {
                        reader.skip();
                        continue;
                    }
                    self.offset = reader.offset();
                    needed = bytes;
                    if at_end {
                        let why =
                            format!("the object ends within an entry that takes at least {bytes} bytes");
                        self.fault = Some(corrupt(names(read.object), self.offset, why));
                    }
                    break;
                }
                Err(_) if self.committed.is_some() => reader.skip(),
                Err(error) => {
                    self.offset = error.offset;
                    self.fault = Some(corrupt(names(read.object), error.offset, error.why));
                    break;
                }
            }
        }
        if found_any {
            self.empty.retain(|object| *object != read.object);
        } else if at_end && read.offset == 0 && !self.empty.contains(&read.object) {
            self.empty.push(read.object);
        }
        self.ended = at_end.then_some(read.begun);
        // As much again may have been written by the next time, and some more.
        let grown = if at_end { length * 2 } else { read.length * READ_GROWTH };
        self.length = grown.clamp(self.sizes.poll, self.sizes.max);
        self.needed = needed;
        kept
    }
}

fn bytes_of(entry: &Entry) -> u64 {
    (entry.data.len() + OVERHEAD_BYTES) as u64
}

fn corrupt(object: String, offset: u64, why: String) -> TailError {
    TailError::Corrupt { object, offset, why }
}
