//! Which entry comes next, what has to be read to know it, and when it is missing: all of that without any I/O.
//!
//! # The order of entries
//! Tags follow each other by number; within a tag entries are numbered from 0 without gaps. Whoever writes begins a tag
//! of his own after everybody before him has ended or was fenced off, and appends to many objects at once. So the
//! entries of a tag that can ever be seen are those up to the first one that is not there when it is known that a newer
//! tag exists: what was appended behind a gap was never acknowledged to anybody, because librbd completes writes in
//! order. That gap must be looked for *after* the newer tag is known, up to the end of the newest object.
//!
//! # What must not be taken for such a gap
//! An entry that is known to have been written is missing, not void. Two things tell: the image's own client committed
//! that entry or a later one of the tag; or a later tag names one as the last committed entry of its predecessor.
//!
//! Reference: `src/journal/JournalPlayer.cc`, which skips what is missing; `src/journal/JournalRecorder.cc`.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::lane::{Lane, LaneRead, ReadSizes, Stamp};
use super::{Entry, TailError};
use crate::metadata::JournalLayout;
use crate::types::{
    CommitPosition, EntryPosition, EntryTid, JournalObject, ObjectPosition, ObjectSet, TagTid,
};

/// Reads are never bounded to less than this, in bytes.
const READ_BYTES_MIN: u64 = 64 << 10;

/// Where the next entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Nothing was handed out: at the first entry of lane 0.
    Start,
    /// At this entry.
    In(EntryPosition),
    /// This tag is over: at entry 0 of a later one, in lane 0.
    After(TagTid),
}

/// What the metadata tells of one moment.
#[derive(Debug, Clone)]
pub(super) struct Knowledge {
    pub(super) minimum_set: ObjectSet,
    pub(super) active_set: ObjectSet,
    /// Our client does not keep the journal from being trimmed.
    pub(super) disconnected: bool,
    /// The newest entry that the image's own client committed.
    pub(super) committed: Option<EntryPosition>,
    /// Tags behind the current one, each with the last committed entry of its predecessor if it is a local one.
    pub(super) tags: Vec<(TagTid, Option<EntryPosition>)>,
}

/// The order of entries as far as it is known.
pub(super) struct Order {
    layout: JournalLayout,
    prefix: String,
    sizes: ReadSizes,
    /// What is read ahead takes no more than this and one read.
    buffered_bytes_max: u64,
    lanes: Vec<Lane>,
    at: At,
    clock: Stamp,
    known: Knowledge,
    /// When the newest metadata was asked for.
    asked: Stamp,
    /// The active set at the beginning.
    first_active_set: ObjectSet,
    /// Since when the active set is known.
    active_since: Stamp,
    /// Since when it is known that `known.committed` was written.
    committed_since: Stamp,
    /// Later tags of which the metadata told, and since when they are known.
    told: BTreeMap<TagTid, (Stamp, Option<EntryPosition>)>,
    /// The newest tag that an entry was seen of, and since when.
    seen: Option<(TagTid, Stamp)>,
    /// When the last poll began that brought an entry. What was there by then is read at once, in all lanes; what is
    /// written later is left to the next poll.
    round: Stamp,
    /// When the last poll began.
    polled: Stamp,
    /// Entries come faster than one by one: other lanes are read ahead.
    burst: bool,
    /// An object went away: the metadata will tell why.
    vanished: bool,
}

impl Order {
    pub(super) fn new(
        layout: JournalLayout,
        prefix: String,
        start: &CommitPosition,
        sizes: ReadSizes,
        known: Knowledge,
    ) -> Order {
        let first = |offset| layout.object(known.minimum_set, offset);
        let mut lanes: Vec<Lane> =
            (0..layout.splay_width()).map(|offset| Lane::new(first(offset), sizes)).collect();
        let is_trimmed = |at: &ObjectPosition| layout.set_of(at.object) < known.minimum_set;
        let trimmed = start.0.iter().any(is_trimmed);
        lanes.iter_mut().for_each(|lane| lane.trimmed = trimmed);
        for committed in start.0.iter().filter(|at| !is_trimmed(at)) {
            let lane = &mut lanes[layout.offset_of(committed.object) as usize];
            lane.object = committed.object;
            lane.committed = Some(committed.position);
        }
        let at = start.newest().map_or(At::Start, |newest| At::In(after(newest)));
        let mut order = Order {
            layout,
            prefix,
            sizes,
            buffered_bytes_max: sizes.max,
            lanes,
            at,
            clock: 1,
            known: known.clone(),
            asked: 1,
            first_active_set: known.active_set,
            active_since: 1,
            committed_since: 1,
            told: BTreeMap::new(),
            seen: None,
            round: 0,
            polled: 0,
            burst: false,
            vanished: false,
        };
        order.learn_tags(&known.tags);
        order
    }

    /// The tag that is being read, or that was last.
    pub(super) fn tag(&self) -> Option<TagTid> {
        match self.at {
            At::Start => None,
            At::In(next) => Some(next.tag),
            At::After(last) => Some(last),
        }
    }

    /// The next entries in order, while they take less than `bytes_max`; and what keeps more from being handed out.
    pub(super) fn take(&mut self, bytes_max: u64) -> (Vec<Entry>, Option<TailError>) {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while bytes < bytes_max {
            match self.step() {
                Ok(Some(entry)) => {
                    bytes += entry.data.len() as u64;
                    entries.push(entry);
                }
                Ok(None) => break,
                Err(fault) => return (entries, Some(fault)),
            }
        }
        (entries, None)
    }

    fn step(&mut self) -> Result<Option<Entry>, TailError> {
        loop {
            self.drop_stale();
            let needed = self.needed();
            let lane = &mut self.lanes[needed];
            match (self.at, lane.front()) {
                (At::In(next), Some(front)) if front == next => {
                    self.at = At::In(after(next));
                    lane.trimmed = false;
                    return Ok(self.lanes[needed].pop());
                }
                (At::In(next), Some(front)) if front.tag == next.tag => {
                    return Err(self.missing(next, format!("{front} follows instead")));
                }
                // A lane's entries lie in order, so the next one is not in this lane any more.
                (At::In(next), Some(_)) => {
                    if self.newer_since(next.tag).is_none() {
                        return Ok(None);
                    }
                    self.end_tag(next)?;
                }
                (At::Start | At::After(_), Some(front)) => {
                    if !self.is_explained(front.tag) {
                        return Ok(None);
                    }
                    self.begin_tag(front)?;
                }
                (_, None) => {
                    if let Some(fault) = &lane.fault {
                        return Err(fault.clone());
                    }
                    if !self.end_if_void()? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// The needed lane has no entry. Ends the tag if there will never be one; fails if there ought to be one. Answers
    /// whether the tag was ended.
    fn end_if_void(&mut self) -> Result<bool, TailError> {
        let needed = self.needed();
        match self.at {
            At::In(next) => {
                if self.newer_since(next.tag).is_some_and(|since| self.is_void(needed, since)) {
                    self.end_tag(next)?;
                    return Ok(true);
                }
                let committed = self.known.committed.filter(|at| at.tag == next.tag && *at >= next);
                if let Some(committed) = committed.filter(|_| self.is_void(needed, self.committed_since)) {
                    return Err(self.missing(next, format!("its writer has committed {committed}")));
                }
            }
            At::Start | At::After(_) => {
                let committed = self.known.committed.filter(|at| Some(at.tag) > self.tag());
                if let Some(committed) = committed.filter(|_| self.is_void(needed, self.committed_since)) {
                    let first = self.committed_between(self.tag(), committed.tag).unwrap_or(committed);
                    return Err(self.first_missing(first));
                }
            }
        }
        Ok(false)
    }

    /// The tag has no entry `next`, and never will have.
    fn end_tag(&mut self, next: EntryPosition) -> Result<(), TailError> {
        let later = self.told.range(TagTid(next.tag.0 + 1)..);
        let ends = later.filter_map(|(_, (_, end))| end.filter(|end| end.tag == next.tag));
        if let Some(last) = ends.max().filter(|last| *last >= next) {
            return Err(self.missing(next, format!("{last} was committed when the tag ended")));
        }
        let trimmed = self.lanes[self.needed()].trimmed || self.lanes[0].trimmed;
        if trimmed && self.known.disconnected {
            return Err(self.too_far_behind(next));
        }
        self.at = At::After(next.tag);
        Ok(())
    }

    /// An entry of the next tag is there.
    fn begin_tag(&mut self, front: EntryPosition) -> Result<(), TailError> {
        if let Some(committed) = self.committed_between(self.tag(), front.tag) {
            return Err(self.first_missing(committed));
        }
        if front.entry != EntryTid(0) {
            let first = EntryPosition { entry: EntryTid(0), ..front };
            return Err(self.missing(first, format!("{front} follows instead")));
        }
        self.at = At::In(front);
        Ok(())
    }

    /// The last committed entry of the first tag between two that is known to have one; from the beginning for none.
    fn committed_between(&self, last: Option<TagTid>, next: TagTid) -> Option<EntryPosition> {
        let ends = self.told.values().filter_map(|(_, end)| *end);
        ends.filter(|end| last < Some(end.tag) && end.tag < next).min()
    }

    /// All entries of a tag are gone, of which `committed` was committed.
    fn first_missing(&self, committed: EntryPosition) -> TailError {
        let first = EntryPosition { entry: EntryTid(0), ..committed };
        self.missing(first, format!("its writer has committed {committed}"))
    }

    /// Passes over what is before the next entry at the front of the lane that is needed.
    fn drop_stale(&mut self) {
        let (at, needed) = (self.at, self.needed());
        let lane = &mut self.lanes[needed];
        while lane.front().is_some_and(|front| !is_wanted(at, front)) {
            lane.pop();
        }
    }

    /// Whether a lane holds the next entry, if there is one.
    pub(super) fn needs(&self, lane: usize) -> bool {
        lane == self.needed()
    }

    /// The lane that holds the next entry, if there is one.
    fn needed(&self) -> usize {
        match self.at {
            At::In(next) => self.lane_of(next.entry),
            At::Start | At::After(_) => 0,
        }
    }

    fn lane_of(&self, entry: EntryTid) -> usize {
        (entry.0 % self.layout.splay_width()) as usize
    }

    /// Since when it is known that a tag newer than `tag` exists, with metadata that was read after that tag was made;
    /// so the active set that is known is not before the one in which `tag` ended.
    fn newer_since(&self, tag: TagTid) -> Option<Stamp> {
        let told = self.told.range(TagTid(tag.0 + 1)..).map(|(_, (since, _))| *since).min();
        told.or(self.seen_newer(tag).filter(|since| self.asked > *since))
    }

    /// True when the metadata were read after this tag was made: they tell of all before it.
    fn is_explained(&self, tag: TagTid) -> bool {
        let told = self.told.last_key_value().is_some_and(|(newest, _)| *newest >= tag);
        told || self.seen.is_some_and(|(seen, since)| seen >= tag && self.asked > since)
    }

    fn seen_newer(&self, tag: TagTid) -> Option<Stamp> {
        self.seen.and_then(|(seen, since)| (seen > tag).then_some(since))
    }

    /// True when a lane has no entry left, up to the end of the active set, as of a read that began after `since`.
    fn is_void(&self, lane: usize, since: Stamp) -> bool {
        let lane = &self.lanes[lane];
        lane.queue.is_empty()
            && lane.fault.is_none()
            && self.layout.set_of(lane.object) >= self.known.active_set
            && lane.ended.is_some_and(|begun| begun > since)
    }

    fn missing(&self, position: EntryPosition, why: String) -> TailError {
        let lane = &self.lanes[self.lane_of(position.entry)];
        let began_late = self.at == At::Start && self.known.minimum_set > ObjectSet(0);
        if lane.trimmed || began_late {
            return self.too_far_behind(position);
        }
        let name = |object: JournalObject| format!("{}{object}", self.prefix);
        let (object, why) = match lane.lacking() {
            (Some(empty), last) if empty != last => {
                let before = name(last);
                let why = format!("that object is gone or empty, or '{before}' lost its end, and {why}");
                (name(empty), why)
            }
            (_, last) => (name(last), why),
        };
        TailError::Missing { object, position, why }
    }

    fn too_far_behind(&self, position: EntryPosition) -> TailError {
        TailError::TooFarBehind { position, minimum_set: self.known.minimum_set }
    }

    /// True when, as far as is known, everything has been handed out.
    pub(super) fn is_caught_up(&self) -> bool {
        let lane = &self.lanes[self.needed()];
        lane.queue.is_empty()
            && lane.fault.is_none()
            && lane.ended.is_some()
            && self.layout.set_of(lane.object) >= self.known.active_set
            && !self.is_tag_over()
    }

    /// True when everything has been handed out that was there at the beginning.
    pub(super) fn is_at_end(&self) -> bool {
        let lane = &self.lanes[self.needed()];
        let set = self.layout.set_of(lane.object);
        let seen = set > self.first_active_set || (set == self.first_active_set && lane.ended.is_some());
        seen && lane.queue.is_empty() && lane.fault.is_none() && !self.is_tag_over()
    }

    /// A newer tag is known than the one that is being read.
    fn is_tag_over(&self) -> bool {
        match self.at {
            At::In(next) => self.newer_since(next.tag).or(self.seen_newer(next.tag)).is_some(),
            At::Start | At::After(_) => false,
        }
    }

    /// The metadata must be read before anything else can be known.
    pub(super) fn needs_metadata(&self) -> bool {
        let unexplained = match (self.at, self.lanes[0].front()) {
            (At::In(next), _) => self.newer_since(next.tag).is_none() && self.seen_newer(next.tag).is_some(),
            (At::Start | At::After(_), Some(front)) => !self.is_explained(front.tag),
            _ => false,
        };
        unexplained || self.vanished
    }

    /// True when the active set may have changed: an object has little room left.
    pub(super) fn may_be_full(&self) -> bool {
        let nearly = self.layout.object_bytes().saturating_sub(self.sizes.poll);
        self.lanes.iter().any(|lane| lane.offset >= nearly)
    }

    /// True when the needed lane is neither being read nor has anything that was read.
    pub(super) fn can_poll(&self) -> bool {
        let lane = &self.lanes[self.needed()];
        lane.reading.is_none() && lane.queue.is_empty() && lane.fault.is_none()
    }

    /// Bytes that are kept in memory, or may be when they have been read. What a mere poll may bring does not count.
    pub(super) fn held_bytes(&self) -> u64 {
        let held = self.lanes.iter().map(buffered_bytes).sum();
        if held > self.sizes.poll { held } else { 0 }
    }

    /// From now on what is read ahead takes no more than this and one read.
    pub(super) fn bound(&mut self, buffered_bytes_max: u64) {
        self.buffered_bytes_max = buffered_bytes_max;
    }

    /// Bytes of one read at most.
    fn length_max(&self) -> u64 {
        (self.buffered_bytes_max / self.layout.splay_width()).max(READ_BYTES_MIN.min(self.sizes.poll))
    }

    /// Begins to read the needed lane.
    pub(super) fn poll(&mut self) -> LaneRead {
        let (lane, begun, length_max) = (self.needed(), self.tick(), self.length_max());
        self.polled = begun;
        self.lanes[lane].begin(lane, begun, length_max)
    }

    /// Begins all reads that need not wait: of the lane that is needed, if there is reason to expect something, and of
    /// others ahead of their turn, within the bound of buffered bytes.
    pub(super) fn begin_reads(&mut self) -> Vec<LaneRead> {
        self.advance();
        let needed = self.needed();
        let (width, length_max) = (self.lanes.len(), self.length_max());
        let mut reads = Vec::new();
        let mut buffered: u64 = self.lanes.iter().map(buffered_bytes).sum();
        for lane in (0..width).map(|i| (needed + i) % width) {
            let must = lane == needed && self.can_poll() && self.expects(needed);
            let may = self.burst && self.is_worth_reading_ahead(lane);
            let length = self.lanes[lane].next_length(length_max);
            if must || (may && buffered + length <= self.buffered_bytes_max) {
                buffered += length;
                let begun = self.tick();
                reads.push(self.lanes[lane].begin(lane, begun, length_max));
            }
        }
        reads
    }

    /// There is reason to look into the needed lane at once.
    fn expects(&self, needed: usize) -> bool {
        let lane = &self.lanes[needed];
        let Some(begun) = lane.ended else { return true };
        let newer = match self.at {
            At::In(next) => self.newer_since(next.tag),
            At::Start | At::After(_) => self.told.last_key_value().map(|(_, (since, _))| *since),
        };
        let owed = self.known.committed.is_some_and(|committed| match self.at {
            At::In(next) => committed >= next,
            At::After(last) => committed.tag > last,
            At::Start => true,
        });
        begun < self.round
            || self.layout.set_of(lane.object) < self.known.active_set
            || newer.is_some_and(|since| begun <= since)
            || (owed && begun <= self.committed_since)
    }

    fn is_worth_reading_ahead(&self, lane: usize) -> bool {
        let lane = &self.lanes[lane];
        let more = lane.ended.is_none_or(|begun| begun < self.round);
        lane.reading.is_none() && lane.fault.is_none() && more && lane.queued_bytes < self.sizes.max / 2
    }

    /// Lanes go on to the next set when their object is read to the end and takes no more, or was removed.
    fn advance(&mut self) {
        let known = &self.known;
        for (offset, lane) in self.lanes.iter_mut().enumerate() {
            let set = self.layout.set_of(lane.object);
            let finished = lane.ended.is_some_and(|begun| begun > self.active_since) && lane.fault.is_none();
            let removed = set < known.minimum_set && lane.fault.is_none();
            let next = match (finished, removed) {
                (true, _) if set < known.active_set => ObjectSet(set.0 + 1).max(known.minimum_set),
                (false, true) => known.minimum_set,
                _ => continue,
            };
            lane.trimmed |= !finished || next.0 != set.0 + 1;
            lane.go_to(self.layout.object(next, offset as u64));
        }
    }

    /// Takes the answer of a read; answers whether it brought entries. `None` when there is no such object.
    pub(super) fn absorb_read(&mut self, read: LaneRead, found: Option<Bytes>) -> bool {
        let lane = &mut self.lanes[read.lane];
        self.vanished |= found.is_none() && read.offset > 0 && lane.reading == Some(read);
        let (at, prefix) = (self.at, &self.prefix);
        let names = |object: JournalObject| format!("{prefix}{object}");
        let wanted = |position| is_wanted(at, position);
        let kept = lane.absorb(read, found, wanted, &self.layout, &names);
        let more = lane.ended.is_none();
        let newest = lane.queue.back().map(|entry| entry.position.tag);
        if let Some(tag) = newest.filter(|tag| self.seen.is_none_or(|(seen, _)| *tag > seen)) {
            self.seen = Some((tag, self.tick()));
        }
        if kept > 0 {
            if read.begun == self.polled {
                self.round = read.begun;
            }
            self.burst |= kept > 1 || more;
        } else if read.lane == self.needed() && !more {
            self.burst = false;
        }
        self.advance();
        kept > 0
    }

    /// A read failed: it will be made again.
    pub(super) fn give_up(&mut self, read: LaneRead) {
        let lane = &mut self.lanes[read.lane];
        lane.reading = lane.reading.filter(|under_way| *under_way != read);
    }

    /// The moment of asking for metadata.
    pub(super) fn begin_metadata(&mut self) -> Stamp {
        self.tick()
    }

    /// Takes what the metadata told when it was asked at `asked`.
    pub(super) fn absorb_metadata(&mut self, asked: Stamp, told: Knowledge) {
        let now = self.tick();
        self.asked = asked;
        self.vanished = false;
        if told.active_set > self.known.active_set {
            self.active_since = now;
        }
        if told.committed > self.known.committed {
            self.committed_since = now;
        }
        self.learn_tags(&told.tags);
        self.known = Knowledge {
            minimum_set: told.minimum_set.max(self.known.minimum_set),
            active_set: told.active_set.max(self.known.active_set),
            committed: told.committed.max(self.known.committed),
            ..told
        };
        self.advance();
    }

    fn learn_tags(&mut self, tags: &[(TagTid, Option<EntryPosition>)]) {
        let now = self.tick();
        for (tag, predecessor) in tags {
            self.told.entry(*tag).or_insert((now, *predecessor));
        }
        if let Some(current) = self.tag() {
            self.told = self.told.split_off(&TagTid(current.0 + 1));
        }
    }

    fn tick(&mut self) -> Stamp {
        self.clock += 1;
        self.clock
    }
}

/// Whether an entry at the front of a lane may still have to be handed out.
fn is_wanted(at: At, position: EntryPosition) -> bool {
    match at {
        At::Start => true,
        At::In(next) => position >= next,
        At::After(last) => position.tag > last,
    }
}

fn buffered_bytes(lane: &Lane) -> u64 {
    lane.queued_bytes + lane.reading.map_or(0, |read| read.length)
}

/// The entry after one, in the same tag.
fn after(position: EntryPosition) -> EntryPosition {
    EntryPosition { tag: position.tag, entry: EntryTid(position.entry.0 + 1) }
}

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
