//! A journal in memory, with writers that append to many objects at once, overflow them, crash and follow each other as
//! librbd does; and a reader whose requests are carried out late and answered later.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::lane::{LaneRead, ReadSizes, Stamp};
use super::super::{Entry, TailError};
use super::{Knowledge, Order};
use crate::commit::advanced;
use crate::entry::RawEntry;
use crate::metadata::JournalLayout;
use crate::types::{
    CommitPosition, EntryPosition, EntryTid, JournalObject, ObjectPosition, ObjectSet, TagTid,
};

/// The smallest order there is: some ten entries fit into an object.
const ORDER: u8 = 12;

/// A request of the reader.
enum Request {
    Read(LaneRead, Option<Option<Bytes>>),
    Metadata(Stamp, Option<TagTid>, Option<Knowledge>),
}

/// The journal, its writer, and its reader.
pub struct Sim {
    pub rng: StdRng,
    layout: JournalLayout,
    objects: BTreeMap<u64, Vec<u8>>,
    minimum_set: u64,
    active_set: u64,
    /// Each with the last committed entry of its predecessor.
    tags: Vec<(TagTid, Option<EntryPosition>)>,
    committed: Option<EntryPosition>,
    /// The writer's next entry.
    next: u64,
    /// Appends under way, by lane: they land in order.
    appends: Vec<VecDeque<RawEntry>>,
    /// Objects that entries of the running tag landed in.
    landed: BTreeMap<u64, u64>,
    /// All entries that count, in order: those of every tag up to its first gap.
    pub truth: Vec<EntryPosition>,
    pub order: Order,
    requests: Vec<Request>,
    /// What the reader was handed.
    pub read: Vec<Entry>,
    /// What it committed.
    position: CommitPosition,
    pub fault: Option<TailError>,
    /// How often the reader reads the metadata without need.
    metadata_rate: f64,
}

impl Sim {
    pub fn new(seed: u64) -> Sim {
        let mut rng = StdRng::seed_from_u64(seed);
        let splay_width = [1, 2, 3, 4, 7][rng.random_range(0..5)];
        let metadata_rate = [0.0, 0.01, 0.2][rng.random_range(0..3)];
        let layout = JournalLayout { order: ORDER, splay_width, pool: None };
        let mut sim = Sim {
            rng,
            layout,
            objects: BTreeMap::new(),
            minimum_set: 0,
            active_set: 0,
            tags: vec![(TagTid(0), None), (TagTid(1), None)],
            committed: None,
            next: 0,
            appends: vec![VecDeque::new(); splay_width.into()],
            landed: BTreeMap::new(),
            truth: Vec::new(),
            order: order(layout, CommitPosition::default(), Knowledge::default()),
            requests: Vec::new(),
            read: Vec::new(),
            position: CommitPosition::default(),
            fault: None,
            metadata_rate,
        };
        sim.restart();
        sim
    }

    fn tag(&self) -> TagTid {
        self.tags.last().unwrap().0
    }

    /// The reader begins anew where it committed; requests under way are lost.
    pub fn restart(&mut self) {
        self.requests.clear();
        self.read.truncate(match self.position.newest() {
            Some(newest) => self.read.iter().position(|entry| entry.position == newest).unwrap() + 1,
            None => 0,
        });
        let after = self.position.newest().map(|newest| newest.tag);
        self.order = order(self.layout, self.position.clone(), self.knowledge(after));
    }

    fn knowledge(&self, after: Option<TagTid>) -> Knowledge {
        Knowledge {
            minimum_set: ObjectSet(self.minimum_set),
            active_set: ObjectSet(self.active_set),
            disconnected: false,
            committed: self.committed,
            tags: self.tags.iter().filter(|(tid, _)| Some(*tid) > after).copied().collect(),
        }
    }

    /// The last entry of the running tag such that all before it have landed, too.
    fn contiguous(&self) -> Option<EntryPosition> {
        let count = (0..).take_while(|entry| self.landed.contains_key(entry)).count() as u64;
        count.checked_sub(1).map(|last| EntryPosition { tag: self.tag(), entry: EntryTid(last) })
    }

    /// The writer begins to append an entry.
    fn append(&mut self) {
        let position = EntryPosition { tag: self.tag(), entry: EntryTid(self.next) };
        let data = vec![self.next as u8 + 1; self.rng.random_range(0..600)];
        self.appends[(self.next % self.layout.splay_width()) as usize]
            .push_back(RawEntry { position, data: data.into() });
        self.next += 1;
    }

    /// The first append of a lane lands, or its object is full: then the writer goes on to the next set.
    fn land(&mut self, lane: usize) {
        let object = self.active_set * self.layout.splay_width() + lane as u64;
        let Some(entry) = self.appends[lane].front() else { return };
        let bytes = entry.encode();
        let content = self.objects.get(&object).map_or(0, Vec::len);
        if content + bytes.len() > self.layout.object_bytes() as usize {
            // Some of what is under way to the other objects of the set still lands there.
            for other in 0..self.appends.len() {
                while other != lane && self.rng.random_bool(0.5) && self.fits(other) {
                    self.land(other);
                }
            }
            self.active_set += 1;
            return;
        }
        let entry = self.appends[lane].pop_front().unwrap();
        let pad = if self.rng.random_bool(0.2) { 64 } else { 1 };
        let content = self.objects.entry(object).or_default();
        content.extend_from_slice(&bytes);
        content.resize(content.len().next_multiple_of(pad), 0);
        self.landed.insert(entry.position.entry.0, object);
    }

    fn fits(&self, lane: usize) -> bool {
        let object = self.active_set * self.layout.splay_width() + lane as u64;
        let content = self.objects.get(&object).map_or(0, Vec::len);
        let front = self.appends[lane].front();
        front.is_some_and(|front| content + front.encode().len() <= self.layout.object_bytes() as usize)
    }

    /// The writer ends, in good order or not; what has not landed never will. Another one begins.
    pub fn next_writer(&mut self) {
        if self.rng.random_bool(0.4) {
            for lane in 0..self.appends.len() {
                while !self.appends[lane].is_empty() {
                    self.land(lane);
                }
            }
        }
        self.appends.iter_mut().for_each(VecDeque::clear);
        self.settle();
        // It replays what it finds, up to the first gap, commits it, and makes a tag.
        self.committed = self.contiguous().or(self.committed);
        let tag = TagTid(self.tag().0 + 1);
        self.tags.push((tag, self.committed));
        (self.next, self.landed) = (0, BTreeMap::new());
    }

    /// Adds the running tag's entries to the truth.
    pub fn settle(&mut self) {
        if let Some(last) = self.contiguous() {
            let tag = last.tag;
            self.truth.retain(|position| position.tag != tag);
            self.truth.extend((0..=last.entry.0).map(|entry| EntryPosition { tag, entry: EntryTid(entry) }));
        }
    }

    /// The writer commits some of what has landed.
    pub fn commit(&mut self) {
        if let Some(last) = self.contiguous() {
            let entry = EntryTid(self.rng.random_range(0..=last.entry.0));
            self.committed = self.committed.max(Some(EntryPosition { entry, ..last }));
        }
    }

    /// The reader commits some of what it was handed, and sets that both have passed are removed.
    fn reader_commits(&mut self) {
        let known = self.position.newest();
        let mut new: Vec<ObjectPosition> = Vec::new();
        for entry in self.read.iter().filter(|entry| Some(entry.position) > known) {
            new.insert(0, ObjectPosition { object: entry.object, position: entry.position });
        }
        new.drain(..self.rng.random_range(0..=new.len()));
        self.position = advanced(&self.position, &new, &self.layout);
        // The writer is ahead of the reader here, so the reader's position alone tells what may go.
        let sets = self.position.0.iter().map(|at| self.layout.set_of(at.object).0);
        let passed = sets.min().unwrap_or(0).max(self.minimum_set).min(self.active_set);
        if self.committed >= self.position.newest() {
            self.minimum_set = passed;
            let kept = JournalObject(passed * self.layout.splay_width());
            self.objects = self.objects.split_off(&kept.0);
        }
    }

    /// The reader hands out what it can and begins requests.
    fn think(&mut self, poll: bool) {
        let (entries, fault) = self.order.take(2000);
        self.read.extend(entries);
        self.fault = fault;
        // What others leave changes all the time.
        self.order.bound(self.rng.random_range(0..=6000));
        let reads = self.order.begin_reads();
        self.requests.extend(reads.into_iter().map(|read| Request::Read(read, None)));
        if poll && self.order.can_poll() {
            let read = self.order.poll();
            self.requests.push(Request::Read(read, None));
        }
        let asking = self.requests.iter().any(|request| matches!(request, Request::Metadata(..)));
        if !asking && (self.order.needs_metadata() || (poll && self.rng.random_bool(self.metadata_rate))) {
            let asked = self.order.begin_metadata();
            self.requests.push(Request::Metadata(asked, self.order.tag(), None));
        }
    }

    /// The cluster carries out a request, or answers one that was carried out before.
    fn serve(&mut self) {
        if self.requests.is_empty() {
            return;
        }
        let index = self.rng.random_range(0..self.requests.len());
        let request = self.requests.swap_remove(index);
        match request {
            Request::Read(read, None) => {
                let found = self.objects.get(&read.object.0).map(|content| {
                    let from = content.len().min(read.offset as usize);
                    let to = content.len().min((read.offset + read.length) as usize);
                    Bytes::copy_from_slice(&content[from..to])
                });
                self.requests.push(Request::Read(read, Some(found)));
            }
            Request::Read(read, Some(found)) => {
                self.order.absorb_read(read, found);
            }
            Request::Metadata(asked, after, None) => {
                self.requests.push(Request::Metadata(asked, after, Some(self.knowledge(after))));
            }
            Request::Metadata(asked, _, Some(told)) => self.order.absorb_metadata(asked, told),
        }
    }

    /// Something happens.
    pub fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..25 => self.append(),
            25..50 => {
                let lane = self.rng.random_range(0..self.appends.len());
                self.land(lane);
            }
            50..53 => self.commit(),
            53..55 => self.next_writer(),
            55..58 => self.reader_commits(),
            58 => self.restart(),
            59..75 => {
                let poll = self.rng.random_bool(0.5);
                self.think(poll);
            }
            _ => self.serve(),
        }
    }

    /// The reader goes on, while nobody writes, until it fails or has found nothing for long.
    pub fn drain(&mut self) {
        self.metadata_rate = 0.2;
        let (mut idle, mut read) = (0, self.read.len());
        while idle < 1000 && self.fault.is_none() {
            self.think(true);
            self.serve();
            self.serve();
            idle = if self.read.len() == read { idle + 1 } else { 0 };
            read = self.read.len();
        }
    }

    /// What the reader was handed.
    pub fn positions(&self) -> Vec<EntryPosition> {
        self.read.iter().map(|entry| entry.position).collect()
    }

    /// Objects that hold entries, with their content.
    pub fn objects(&mut self) -> &mut BTreeMap<u64, Vec<u8>> {
        &mut self.objects
    }

    pub fn committed(&self) -> Option<EntryPosition> {
        self.committed
    }
}

impl Default for Knowledge {
    fn default() -> Self {
        Knowledge {
            minimum_set: ObjectSet(0),
            active_set: ObjectSet(0),
            disconnected: false,
            committed: None,
            tags: Vec::new(),
        }
    }
}

fn order(layout: JournalLayout, position: CommitPosition, known: Knowledge) -> Order {
    let sizes = ReadSizes { poll: 256, max: 2048 };
    Order::new(layout, "data.".to_string(), &position, sizes, known)
}
