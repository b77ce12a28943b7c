//! What is to be done next, and what must be done before: the order of a replay.
//!
//! An *epoch* is what lies between two barriers: flushes, compare-and-writes, maintenance operations. Within an epoch
//! writes go to different objects in any order and at the same time, and are merged per object. An epoch begins when all
//! before it is on disk.
//!
//! **Never back in time.** The commit position lags behind, so a replay that begins anew meets entries that were applied
//! before. Applied again over newer ones they would show an older block beside a newer one, across a flush. So the image
//! carries a marker ([`super::marker`]): everything up to it is applied. It is rewritten, and on disk, before a byte is
//! changed that an earlier epoch behind the marker changed, and before the first write behind an epoch that changed a byte
//! twice ([`super::touched`]). Hence, whenever we are killed:
//!
//! * everything up to the marker is applied;
//! * behind it whole epochs may be applied, in which no byte was changed twice, and after these a part of one epoch that
//!   changed none of their bytes. Or, when nothing but one epoch was begun behind the marker, any part of that.
//!
//! A replay that passes over all entries up to the marker therefore changes nothing, or goes through states of one epoch
//! only, until it is where it was. Compare-and-write and maintenance operations are epochs of their own: what they do depends
//! on what they find, so the marker is rewritten before and behind them, and nothing is applied again across them.
//!
//! The planner is pure: it gives [`Step`]s and hears when they are done. Whoever carries them out may do so at the same
//! time and in any order.

use std::collections::VecDeque;

use bytes::Bytes;
use rados::Extent;
use rbd::{ObjectMap, ObjectNumber, ObjectState};

use super::error::ReplayError;
use super::objects::{EntryNumber, ObjectWrite, Objects};
use super::queue::{Next, Queue, Ticket, Work};
use super::shape::{Part, Shape};
use super::touched::Touched;
use crate::event::{Event, Op};
use crate::types::{EntryPosition, TagTid};

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Write the marker: everything up to here is applied.
    Marker(EntryPosition),
    /// Store states in the head's object map.
    Map(Vec<(ObjectNumber, ObjectState)>),
    /// Change an object.
    Write(ObjectWrite),
    /// Tell whether a range of the image holds these bytes.
    Compare {
        /// The range; as long as the bytes.
        extent: Extent,
        /// The bytes.
        compare: Bytes,
    },
    /// Carry out a maintenance operation, journalled at `began`. Nothing else is under way.
    Op {
        /// The operation.
        op: Op,
        /// The place of its event.
        began: EntryPosition,
    },
    /// Tell whoever gave this token that all before it is on disk.
    Synced(u64),
}

/// Whether the marker on disk lets a write be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MarkerState {
    /// It does.
    Good,
    /// It must be rewritten before.
    Stale,
    /// It is being rewritten.
    Writing,
}

/// Objects that an entry may wait for before the rest of it is taken on: a discard or a repeated pattern may be of a whole
/// image.
const OBJECTS_MAX: usize = 4096;

/// The rest of an entry, of which the last item stands for all.
type Rest = Box<dyn Iterator<Item = (ObjectNumber, Part)> + Send>;

/// What runs alone.
enum Alone {
    Op { began: EntryPosition, entry: EntryNumber, position: EntryPosition },
    Compare { extent: Extent, write: Bytes, entry: EntryNumber, position: EntryPosition },
}

/// An entry that was taken on.
struct Item<T> {
    position: EntryPosition,
    /// Objects that it is not yet on disk on.
    outstanding: usize,
    ticket: Option<T>,
}

/// See the head of this file. `T` is dropped when an entry is on disk.
pub(super) struct Planner<T> {
    shape: Shape,
    queue: Queue<T>,
    /// Work that waits until all before it is on disk.
    stalled: Option<(EntryPosition, Work, Option<T>)>,
    objects: Objects,
    alone: Option<Alone>,
    /// What of the newest item is not yet taken on; nothing else is before that.
    rest: Option<Rest>,
    /// The next barrier stands here, as soon as all before is on disk.
    barrier: Option<EntryPosition>,
    items: VecDeque<Item<T>>,
    /// Number of the first of `items`.
    first: EntryNumber,
    /// The epoch lies behind this.
    base: Option<EntryPosition>,
    /// What was changed since the marker was written.
    touched: Touched,
    marker: MarkerState,
    /// A [`Step::Marker`] is under way: one at a time, so that an older one never comes last.
    marker_under_way: bool,
    /// All up to here is on disk.
    on_disk: Option<EntryPosition>,
    ready: VecDeque<Step>,
}

impl<T: Ticket> Planner<T> {
    /// A planner for an image of this shape and with this object map of its head (if it has a valid one), which holds
    /// everything up to `base`, and nothing behind the first barrier behind that.
    pub fn new(shape: Shape, map: Option<ObjectMap>, base: Option<EntryPosition>) -> Planner<T> {
        Planner {
            shape,
            queue: Queue::new(base),
            stalled: None,
            objects: Objects::new(map),
            alone: None,
            rest: None,
            barrier: None,
            items: VecDeque::new(),
            first: 0,
            base,
            touched: Touched::default(),
            // Without a base there is nothing to tell.
            marker: if base.is_some() { MarkerState::Stale } else { MarkerState::Good },
            marker_under_way: false,
            on_disk: None,
            ready: VecDeque::new(),
        }
    }

    /// Appends an entry.
    pub fn push(&mut self, position: EntryPosition, event: Event, ticket: T) {
        self.queue.push(position, event, ticket);
    }

    /// No entry of `tag` will come any more: operations without a result are carried out.
    pub fn end_tag(&mut self, tag: TagTid) {
        self.queue.end_tag(tag);
    }

    /// Asks for a [`Step::Synced`] when all that was pushed is on disk, as far as it need not wait for the result of an
    /// operation that was not pushed.
    pub fn sync(&mut self, token: u64) {
        self.queue.sync(token);
    }

    /// The marker must be written anew before the next write, because something else in it changes.
    pub fn renew_marker(&mut self) {
        if self.base.is_some() {
            self.marker = MarkerState::Stale;
        }
    }

    /// The newest entry such that a replay that begins behind it leaves nothing out. `None` when there is none yet.
    pub fn applied(&self) -> Option<EntryPosition> {
        match self.queue.hold() {
            Some(hold) => hold.min(self.on_disk),
            None => self.on_disk,
        }
    }

    /// The next step, if one can be begun now.
    pub fn next(&mut self) -> Result<Option<Step>, ReplayError> {
        loop {
            if let Some(step) = self.ready.pop_front() {
                return Ok(Some(step));
            }
            self.admit()?;
            let mut completed = Vec::new();
            self.objects.sort(&self.shape, &mut completed);
            let step = self.next_io(&mut completed);
            // An entry that turned out to have nothing to do may have been what held up the next one.
            let progress = !completed.is_empty();
            self.complete(&completed);
            if step.is_some() {
                return Ok(step);
            }
            if !progress && self.ready.is_empty() {
                return Ok(None);
            }
        }
    }

    fn next_io(&mut self, completed: &mut Vec<EntryNumber>) -> Option<Step> {
        if let Some(states) = self.objects.next_map_change() {
            return Some(Step::Map(states));
        }
        if !self.objects.is_armed() || !self.has_good_marker() {
            return None;
        }
        self.objects.next_write(&self.shape, completed).map(Step::Write)
    }

    /// Asks for the marker when it must be rewritten.
    fn has_good_marker(&mut self) -> bool {
        if let (MarkerState::Stale, Some(base), false) = (self.marker, self.base, self.marker_under_way) {
            self.marker = MarkerState::Writing;
            self.marker_under_way = true;
            self.touched.marked();
            self.ready.push_back(Step::Marker(base));
        }
        self.marker == MarkerState::Good
    }

    /// Takes on entries, as far as they need not wait.
    fn admit(&mut self) -> Result<(), ReplayError> {
        loop {
            if let Some(mut rest) = self.rest.take()
                && !self.take_parts(&mut rest)
            {
                self.rest = Some(rest);
            }
            if self.alone.is_some() || self.rest.is_some() || !self.ready.is_empty() {
                return Ok(());
            }
            if let Some(position) = self.barrier {
                if !self.is_idle() {
                    return Ok(());
                }
                self.cross(position);
            }
            let work = match self.stalled.take() {
                Some(stalled) => Some(stalled),
                None => match self.queue.next(self.shape.size)? {
                    Next::Empty => None,
                    Next::Waiting => {
                        if self.is_idle() {
                            self.ready.extend(self.queue.take_syncs().map(Step::Synced));
                        }
                        None
                    }
                    Next::Work(position, work, ticket) => Some((position, work, ticket)),
                },
            };
            let Some((position, work, ticket)) = work else { return Ok(()) };
            if let Some(stalled) = self.take_on(position, work, ticket) {
                self.stalled = Some(stalled);
                return Ok(());
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.items.is_empty() && self.objects.is_idle()
    }

    /// A new epoch begins behind `position`; all before is on disk.
    fn cross(&mut self, position: EntryPosition) {
        self.barrier = None;
        // What was applied before has no barriers any more.
        if self.base >= Some(position) {
            return;
        }
        self.base = Some(position);
        if self.touched.end_epoch() {
            self.marker = MarkerState::Stale;
        }
    }

    /// Takes on one piece of work, or gives it back when it must wait.
    fn take_on(
        &mut self,
        position: EntryPosition,
        work: Work,
        ticket: Option<T>,
    ) -> Option<(EntryPosition, Work, Option<T>)> {
        match work {
            Work::Pass => self.data(position, ticket, []),
            Work::Write { extent, data } => {
                let parts = self.shape.write(extent, data);
                self.data(position, ticket, parts);
            }
            Work::Discard { extent, granularity } => {
                let parts = self.shape.discard(extent, granularity);
                self.data(position, ticket, parts);
            }
            Work::WriteSame { extent, data } => {
                let parts = self.shape.write_same(extent, &data);
                self.data(position, ticket, parts);
            }
            Work::Flush => {
                self.data(position, ticket, []);
                self.barrier = Some(position);
            }
            Work::TagEnd => self.barrier = Some(position),
            Work::Sync(token) if self.is_idle() => self.ready.push_back(Step::Synced(token)),
            Work::CompareAndWrite { .. } | Work::Op { .. } if self.may_run_alone() => {
                self.run_alone(position, work, ticket);
            }
            work => return Some((position, work, ticket)),
        }
        None
    }

    /// Takes on an entry that changes `parts`.
    fn data(
        &mut self,
        position: EntryPosition,
        ticket: Option<T>,
        parts: impl IntoIterator<Item = (ObjectNumber, Part), IntoIter: Send + 'static>,
    ) {
        self.begin(position, ticket);
        if let Some(item) = self.items.back_mut() {
            // Until all of it is taken on.
            item.outstanding = 1;
        }
        let mut parts = parts.into_iter();
        if !self.take_parts(&mut parts) {
            self.rest = Some(Box::new(parts));
        }
    }

    /// Takes on parts of the newest item, as long as not too many objects are waited for. True when it has all of them.
    fn take_parts(&mut self, parts: &mut dyn Iterator<Item = (ObjectNumber, Part)>) -> bool {
        let entry = self.first + self.items.len() as EntryNumber - 1;
        let mut outstanding = 0;
        let ended = loop {
            if self.objects.len() >= OBJECTS_MAX {
                break false;
            }
            let Some((object, part)) = parts.next() else { break true };
            // Even if it comes to nothing together with what follows: alone it would not.
            if self.touched.change(object, part.extent()) {
                self.marker = MarkerState::Stale;
            }
            outstanding += usize::from(self.objects.add(object, part, entry));
        };
        if let Some(item) = self.items.back_mut() {
            item.outstanding += outstanding;
            item.outstanding -= usize::from(ended);
        }
        self.finish_items();
        ended
    }

    fn begin(&mut self, position: EntryPosition, ticket: Option<T>) -> EntryNumber {
        self.items.push_back(Item { position, outstanding: 0, ticket });
        self.first + self.items.len() as EntryNumber - 1
    }

    /// True when nothing is under way and the marker says that all before is applied.
    fn may_run_alone(&mut self) -> bool {
        if !self.is_idle() {
            return false;
        }
        if let Some(on_disk) = self.on_disk {
            self.cross(on_disk);
        }
        if !self.touched.is_empty() {
            self.marker = MarkerState::Stale;
        }
        self.has_good_marker()
    }

    fn run_alone(&mut self, position: EntryPosition, work: Work, ticket: Option<T>) {
        let entry = self.begin(position, ticket);
        if let Some(item) = self.items.back_mut() {
            item.outstanding = 1;
        }
        self.touched.repeat();
        match work {
            Work::Op { op, began } => {
                self.alone = Some(Alone::Op { began, entry, position });
                self.ready.push_back(Step::Op { op, began });
            }
            Work::CompareAndWrite { extent, compare, write } => {
                let extent = Extent::new(extent.offset, extent.length.min(compare.len() as u64));
                let extent = self.shape.clip(extent).unwrap_or(Extent::new(extent.offset, 0));
                let compare = compare.slice(..extent.length as usize);
                let write = write.slice(..write.len().min(extent.length as usize));
                self.alone = Some(Alone::Compare { extent, write, entry, position });
                self.ready.push_back(Step::Compare { extent, compare });
            }
            _ => {}
        }
    }

    /// A [`Step::Marker`] is on disk.
    pub fn marker_written(&mut self) {
        self.marker_under_way = false;
        // A tag that was entered meanwhile, or an epoch, made it stale again.
        if self.marker == MarkerState::Writing {
            self.marker = MarkerState::Good;
        }
    }

    /// A [`Step::Map`] is on disk.
    pub fn map_stored(&mut self) {
        self.objects.map_stored();
    }

    /// A [`Step::Write`] is on disk.
    pub fn written(&mut self, object: ObjectNumber, removed: bool) {
        let completed = self.objects.written(object, removed);
        self.complete(&completed);
    }

    /// A [`Step::Compare`] is answered.
    pub fn compared(&mut self, equal: bool) {
        let Some(Alone::Compare { extent, write, entry, position }) = self.alone.take() else { return };
        if equal {
            for (object, part) in self.shape.write(extent, write) {
                let first = self.objects.add(object, part, entry);
                if let Some(item) = self.items.back_mut() {
                    item.outstanding += usize::from(first);
                }
            }
        }
        self.barrier = Some(position);
        self.complete(&[entry]);
    }

    /// A [`Step::Op`] is carried out; the image has this shape and object map now.
    pub fn op_carried_out(&mut self, shape: Shape, map: Option<ObjectMap>) {
        let Some(Alone::Op { began, entry, position }) = self.alone.take() else { return };
        self.shape = shape;
        self.objects = Objects::new(map);
        self.queue.carried_out(began);
        self.barrier = Some(position);
        self.complete(&[entry]);
    }

    fn complete(&mut self, entries: &[EntryNumber]) {
        for entry in entries {
            let item = entry.checked_sub(self.first).and_then(|index| self.items.get_mut(index as usize));
            if let Some(item) = item {
                item.outstanding = item.outstanding.saturating_sub(1);
                if item.outstanding == 0 {
                    item.ticket = None;
                }
            }
        }
        self.finish_items();
    }

    fn finish_items(&mut self) {
        while self.items.front().is_some_and(|item| item.outstanding == 0) {
            if let Some(item) = self.items.pop_front() {
                self.first += 1;
                self.on_disk = self.on_disk.max(Some(item.position));
            }
        }
    }
}

#[cfg(test)]
mod tests;
