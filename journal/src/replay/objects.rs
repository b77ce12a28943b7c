//! The objects that are being changed: what is to be written, what is in flight, and what their map must say before.
//!
//! At most one operation per object is in flight, so that nothing is reordered; what comes meanwhile is merged and goes
//! with the next one.
//!
//! Object map: before an object is written its state is [`ObjectState::Exists`], before it is removed `Pending`, and after
//! that `NonExistent`. States are changed in batches, one at a time. An object that the map says does not exist needs
//! nothing done when it would only lose data, unless a parent shines through it.
//!
//! Reference: `src/librbd/io/ObjectRequest.cc`. Everything here is pure.

use std::collections::{BTreeMap, HashMap, VecDeque};

use rbd::{ObjectMap, ObjectNumber, ObjectState};

use super::delta::{ObjectChange, ObjectDelta};
use super::shape::{Part, Shape};

/// Operations on objects in flight.
const IN_FLIGHT_MAX: usize = 64;

/// Number of an entry, in the order in which they were taken on.
pub(super) type EntryNumber = u64;

/// A write of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObjectWrite {
    /// The object.
    pub object: ObjectNumber,
    /// What becomes of it.
    pub change: ObjectChange,
    /// It certainly does not exist.
    pub absent: bool,
    /// It is to be gone afterwards; otherwise it exists, if only to hide its parent.
    pub remove: bool,
}

#[derive(Default)]
struct Slot {
    delta: ObjectDelta,
    /// Entries that `delta` holds a part of.
    entries: Vec<EntryNumber>,
    /// Entries that the operation in flight completes.
    in_flight: Option<Vec<EntryNumber>>,
    /// It is in one of the lists.
    listed: bool,
    /// It does not exist, although its state was changed for what is to be written.
    absent: bool,
}

/// What an object needs before it can be written.
enum Verdict {
    /// There is nothing to do.
    Skip,
    /// Another state in the map.
    Map(ObjectState),
    /// Nothing.
    Ready { remove: bool },
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Objects {
    slots: HashMap<ObjectNumber, Slot>,
    /// To be looked at.
    fresh: VecDeque<ObjectNumber>,
    /// May be written.
    armed: VecDeque<ObjectNumber>,
    /// Wait for the map.
    waiting: Vec<ObjectNumber>,
    in_flight: usize,
    /// The head's map, when there is a valid one.
    map: Option<ObjectMap>,
    /// States that are being stored.
    changing: HashMap<ObjectNumber, ObjectState>,
    /// States that are to be stored next.
    wanted: BTreeMap<ObjectNumber, ObjectState>,
}

impl Objects {
    /// Nothing to do on an image whose head has this map, if a valid one.
    pub fn new(map: Option<ObjectMap>) -> Objects {
        Objects { map, ..Objects::default() }
    }

    /// True when everything is on disk, the map included.
    pub fn is_idle(&self) -> bool {
        self.slots.is_empty() && self.wanted.is_empty() && self.changing.is_empty()
    }

    /// Number of objects that something is to be done on.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// True when there is something that the next [`Objects::next_write`] might give.
    pub fn is_armed(&self) -> bool {
        !self.armed.is_empty()
    }

    /// Takes on a part of an entry; answers whether it is the entry's first part of this object.
    pub fn add(&mut self, object: ObjectNumber, part: Part, entry: EntryNumber) -> bool {
        let slot = self.slots.entry(object).or_default();
        part.merge_into(&mut slot.delta);
        if slot.in_flight.is_none() && !std::mem::replace(&mut slot.listed, true) {
            self.fresh.push_back(object);
        }
        let first = slot.entries.last() != Some(&entry);
        if first {
            slot.entries.push(entry);
        }
        first
    }

    /// Sorts what is new; entries that turn out to have nothing to do on an object are appended to `completed`.
    pub fn sort(&mut self, shape: &Shape, completed: &mut Vec<EntryNumber>) {
        while let Some(object) = self.fresh.pop_front() {
            if let Some(Verdict::Ready { .. }) = self.judge(shape, object, completed) {
                self.armed.push_back(object);
            }
        }
    }

    /// Looks at a listed object: the verdict, unless it waits for the map now or is done.
    fn judge(
        &mut self,
        shape: &Shape,
        object: ObjectNumber,
        completed: &mut Vec<EntryNumber>,
    ) -> Option<Verdict> {
        let slot = self.slots.get_mut(&object)?;
        // One that was just removed is soon known not to exist.
        let gone = self.wanted.get(&object) == Some(&ObjectState::NonExistent);
        if gone || self.changing.contains_key(&object) {
            self.waiting.push(object);
            return None;
        }
        let state = self.map.as_ref().map(|map| map.get(object));
        match verdict(shape, object, slot, state) {
            Verdict::Skip => {
                completed.append(&mut slot.entries);
                // What was to be written when its state was changed was taken away again.
                if slot.absent {
                    self.wanted.insert(object, ObjectState::NonExistent);
                }
                self.slots.remove(&object);
                None
            }
            Verdict::Map(new) => {
                slot.absent = state == Some(ObjectState::NonExistent);
                self.wanted.insert(object, new);
                self.waiting.push(object);
                None
            }
            ready => Some(ready),
        }
    }

    /// States to be stored in the map now, at once.
    pub fn next_map_change(&mut self) -> Option<Vec<(ObjectNumber, ObjectState)>> {
        if !self.changing.is_empty() || self.wanted.is_empty() {
            return None;
        }
        self.changing.extend(std::mem::take(&mut self.wanted));
        Some(self.changing.iter().map(|(object, state)| (*object, *state)).collect())
    }

    /// The states that [`Objects::next_map_change`] gave are stored.
    pub fn map_stored(&mut self) {
        for (object, state) in self.changing.drain() {
            if let Some(map) = &mut self.map {
                map.set(object, state);
            }
        }
        self.fresh.extend(self.waiting.drain(..));
    }

    /// The next write, if one may be begun. Call [`Objects::sort`] first.
    pub fn next_write(&mut self, shape: &Shape, completed: &mut Vec<EntryNumber>) -> Option<ObjectWrite> {
        while self.in_flight < IN_FLIGHT_MAX {
            let object = self.armed.pop_front()?;
            // What was merged since may ask for another state.
            let Some(Verdict::Ready { remove }) = self.judge(shape, object, completed) else { continue };
            let slot = self.slots.get_mut(&object)?;
            let change = slot.delta.take();
            // An entry is complete with its last part.
            let entries = if slot.delta.is_empty() { std::mem::take(&mut slot.entries) } else { Vec::new() };
            slot.in_flight = Some(entries);
            slot.listed = false;
            self.in_flight += 1;
            let remove = remove && change.removes();
            return Some(ObjectWrite { object, change, absent: std::mem::take(&mut slot.absent), remove });
        }
        None
    }

    /// A write is on disk; answers with the entries that have nothing left to do on this object.
    pub fn written(&mut self, object: ObjectNumber, removed: bool) -> Vec<EntryNumber> {
        self.in_flight -= 1;
        let Some(slot) = self.slots.get_mut(&object) else { return Vec::new() };
        let completed = slot.in_flight.take().unwrap_or_default();
        if !slot.delta.is_empty() {
            slot.listed = true;
            self.fresh.push_back(object);
        } else {
            self.slots.remove(&object);
            if removed && self.map.is_some() {
                self.wanted.insert(object, ObjectState::NonExistent);
            }
        }
        completed
    }
}

fn verdict(shape: &Shape, object: ObjectNumber, slot: &Slot, state: Option<ObjectState>) -> Verdict {
    let covered = shape.overlap(object) > 0;
    let absent = slot.absent || state == Some(ObjectState::NonExistent);
    if !covered && absent && slot.delta.only_takes_away() {
        return Verdict::Skip;
    }
    let remove = !covered && slot.delta.removes();
    let needed = if remove { ObjectState::Pending } else { ObjectState::Exists };
    match state {
        Some(state) if state != needed => Verdict::Map(needed),
        _ => Verdict::Ready { remove },
    }
}
