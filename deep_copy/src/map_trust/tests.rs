//! A model of an image whose object maps are kept as librbd keeps them, rollbacks that take their time or are cut off
//! included: no object that differs between two copied snapshots may be missed.

use proptest::prelude::*;
use rbd::fast_diff::{FastDiffVersion, diff};
use rbd::layout::Layout;
use rbd::types::ImageFlags;
use rbd::{Features, MirrorSnapshot, MirrorSnapshotState, ObjectNumber, ProtectionStatus, Timestamp};

use super::*;

const OBJECTS: u64 = 5;
const OBJECT_BYTES: u64 = 4096;

#[derive(Debug, Clone)]
enum Event {
    Write(u64),
    Discard(u64),
    UserSnapshot,
    MirrorSnapshot,
    Remove(usize),
    /// Writes the map of a snapshot over the head's.
    BeginRollback(usize),
    /// Rolls so many objects back.
    RollBack(u64),
    /// Ends a rollback where it is.
    Crash,
    /// The daemon reads the header.
    Observe,
    /// The daemon copies the newest mirror-snapshot; older ones are removed.
    Copy,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..OBJECTS).prop_map(Event::Write),
        2 => (0..OBJECTS).prop_map(Event::Discard),
        4 => Just(Event::UserSnapshot),
        4 => Just(Event::MirrorSnapshot),
        2 => (0..8usize).prop_map(Event::Remove),
        3 => (0..8usize).prop_map(Event::BeginRollback),
        4 => (1..=OBJECTS).prop_map(Event::RollBack),
        1 => Just(Event::Crash),
        1 => Just(Event::Observe),
        5 => Just(Event::Copy),
    ]
}

type Content = Vec<Option<u64>>;

#[derive(Debug, Clone)]
struct Version {
    snapshot: Snapshot,
    content: Content,
    map: ObjectMap,
    /// User snapshots when it was made.
    users: BTreeSet<SnapId>,
}

#[derive(Debug)]
struct Rollback {
    to: SnapId,
    content: Content,
    next: usize,
}

/// What the daemon keeps with the copy.
#[derive(Debug)]
struct Copied {
    snap: SnapId,
    content: Content,
    before: SeenSnapshots,
    settled: bool,
}

struct Model {
    newest_id: u64,
    written: u64,
    content: Content,
    map: ObjectMap,
    versions: Vec<Version>,
    rollback: Option<Rollback>,
    /// Rollbacks that were cut off.
    cut_off: BTreeSet<SnapId>,
    seen: SeenSnapshots,
    copied: Option<Copied>,
    believed: u32,
}

impl Model {
    fn new() -> Model {
        Model {
            newest_id: 0,
            written: 0,
            content: vec![None; OBJECTS as usize],
            map: ObjectMap::new(OBJECTS),
            versions: Vec::new(),
            rollback: None,
            cut_off: BTreeSet::new(),
            seen: SeenSnapshots::new(),
            copied: None,
            believed: 0,
        }
    }

    fn play(&mut self, event: &Event) {
        let idle = self.rollback.is_none();
        match event {
            Event::Write(object) if idle => {
                self.written += 1;
                self.content[*object as usize] = Some(self.written);
                self.map.set(ObjectNumber(*object), ObjectState::Exists);
            }
            Event::Discard(object) if idle => {
                if self.content[*object as usize].take().is_some() {
                    self.map.set(ObjectNumber(*object), ObjectState::NonExistent);
                }
            }
            Event::UserSnapshot => self.snapshot(SnapshotNamespace::User),
            Event::MirrorSnapshot => self.snapshot(mirror()),
            Event::Remove(index) => {
                let users: Vec<_> =
                    self.users().into_iter().filter(|snap| self.may_be_removed(*snap)).collect();
                if !users.is_empty() {
                    self.remove(users[index % users.len()]);
                }
            }
            Event::BeginRollback(index) if idle => {
                let users: Vec<_> = self.users().into_iter().collect();
                if !users.is_empty() {
                    let to = users[index % users.len()];
                    let version = self.versions.iter().find(|v| v.snapshot.id == to).unwrap();
                    self.map = version.map.clone();
                    self.rollback = Some(Rollback { to, content: version.content.clone(), next: 0 });
                }
            }
            Event::RollBack(objects) => {
                let Some(rollback) = &mut self.rollback else { return };
                for _ in 0..*objects {
                    if let Some(content) = rollback.content.get(rollback.next) {
                        self.content[rollback.next] = *content;
                        rollback.next += 1;
                    }
                }
                if rollback.next == OBJECTS as usize {
                    self.rollback = None;
                    self.cut_off.clear();
                }
            }
            Event::Crash => self.cut_off.extend(self.rollback.take().map(|rollback| rollback.to)),
            Event::Observe => self.seen = seen(&self.snapshots()),
            Event::Copy => self.copy(),
            Event::Write(_) | Event::Discard(_) | Event::BeginRollback(_) => {}
        }
    }

    fn users(&self) -> BTreeSet<SnapId> {
        let users = self.versions.iter().filter(|v| v.snapshot.namespace == SnapshotNamespace::User);
        users.map(|v| v.snapshot.id).collect()
    }

    /// What cannot be told is left out: see the head of the module.
    fn may_be_removed(&self, snap: SnapId) -> bool {
        let under_way = self.rollback.as_ref().is_some_and(|rollback| rollback.to == snap);
        let newer = self.copied.as_ref().is_none_or(|copied| snap > copied.snap);
        !(under_way || self.cut_off.contains(&snap) && newer)
    }

    fn snapshot(&mut self, namespace: SnapshotNamespace) {
        self.newest_id += 1;
        let snapshot = Snapshot {
            id: SnapId(self.newest_id),
            name: String::new(),
            namespace,
            image_size: OBJECTS * OBJECT_BYTES,
            timestamp: Timestamp::default(),
            child_count: 0,
            protection: ProtectionStatus::Unprotected,
            parent: None,
            flags: ImageFlags(0),
        };
        let users = self.users();
        self.versions.push(Version { snapshot, content: self.content.clone(), map: self.map.clone(), users });
        self.map.snap_add();
    }

    fn remove(&mut self, snap: SnapId) {
        let index = self.versions.iter().position(|v| v.snapshot.id == snap).unwrap();
        let removed = self.versions.remove(index);
        let next = self.versions.get_mut(index).map_or(&mut self.map, |next| &mut next.map);
        next.snap_remove(&removed.map);
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        self.versions.iter().map(|v| v.snapshot.clone()).collect()
    }

    fn copy(&mut self) {
        let Some(end) = self.versions.iter().rev().find(|v| v.snapshot.mirror().is_some()).cloned() else {
            return;
        };
        let (start, content, mut history) = match &self.copied {
            Some(copied) if copied.snap == end.snapshot.id => return,
            Some(copied) => {
                let start = self.versions.iter().find(|v| v.snapshot.id == copied.snap).unwrap();
                let history = History {
                    before_start: copied.before.clone(),
                    users_at_start: Some(start.users.clone()),
                    users_at_end: end.users.clone(),
                    settled: copied.settled,
                };
                (Some(copied.snap), copied.content.clone(), history)
            }
            None => {
                let users_at_end = end.users.clone();
                let history = History { settled: true, users_at_end, ..History::default() };
                (None, vec![None; OBJECTS as usize], history)
            }
        };
        let (missed, settled) = self.judge(start, &end, &history, &content);
        assert!(missed.is_empty(), "objects {missed:?} of snapshot {} are missed", end.snapshot.id);
        let before = match self.seen.contains_key(&end.snapshot.id) {
            true => std::mem::take(&mut history.before_start),
            false => self.seen.clone(),
        };
        self.copied = Some(Copied { snap: end.snapshot.id, content: end.content, before, settled });
        let older =
            self.versions.iter().filter(|v| v.snapshot.mirror().is_some() && v.snapshot.id < end.snapshot.id);
        let older: Vec<_> = older.map(|v| v.snapshot.id).collect();
        for snap in older {
            self.remove(snap);
        }
        self.seen = seen(&self.snapshots());
    }

    /// The objects that differ and are not looked at; and whether the end is settled.
    fn judge(
        &mut self,
        start: Option<SnapId>,
        end: &Version,
        history: &History,
        content: &Content,
    ) -> (Vec<usize>, bool) {
        let snapshots = self.snapshots();
        let candidates = Candidates::new(&snapshots, start, end.snapshot.id, history);
        let from = start.unwrap_or(SnapId(0));
        let versions: Vec<_> = self
            .versions
            .iter()
            .filter(|v| v.snapshot.id >= from && v.snapshot.id <= end.snapshot.id)
            .collect();
        let layout = Layout::simple(12).unwrap();
        let features = Features(Features::OBJECT_MAP.0 | Features::FAST_DIFF.0);
        let maps: Vec<_> = versions
            .iter()
            .map(|v| {
                FastDiffVersion::new(
                    features,
                    v.snapshot.flags,
                    &layout,
                    v.snapshot.image_size,
                    v.map.clone(),
                )
                .unwrap()
            })
            .collect();
        let (first, rest) = maps.split_at(usize::from(start.is_some()));
        let ends: Vec<_> =
            versions[first.len()..].iter().zip(rest).map(|(v, map)| (v.snapshot.id, map.map())).collect();
        let mut suspicion =
            if candidates.lost { Suspicion::all(ends.len()) } else { Suspicion::none(ends.len()) };
        for candidate in &candidates.present {
            let of = &self.versions.iter().find(|v| v.snapshot.id == candidate.snap).unwrap().map;
            suspicion.judge(candidate, Some(of), ends.iter().copied());
        }
        let settled_before = history.settled || candidates.is_empty();
        let settled = suspicion.is_settled_after(settled_before, rest.last().unwrap().map());
        if !suspicion.is_dispelled(settled_before) {
            return (Vec::new(), settled);
        }
        self.believed += u32::from(!candidates.is_empty());
        let diffs = diff(first.first(), rest);
        let missed = (0..OBJECTS as usize)
            .filter(|object| content[*object] != end.content[*object] && !diffs[*object].is_changed());
        (missed.collect(), settled)
    }
}

fn mirror() -> SnapshotNamespace {
    SnapshotNamespace::Mirror(MirrorSnapshot {
        state: MirrorSnapshotState::Primary,
        complete: true,
        mirror_peer_uuids: BTreeSet::new(),
        primary_mirror_uuid: String::new(),
        primary_snap_id: SnapId::HEAD,
        last_copied_object_number: 0,
        snap_seqs: BTreeMap::new(),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn no_rollback_hides_a_change(events in prop::collection::vec(event(), 1..80)) {
        let mut model = Model::new();
        for event in &events {
            model.play(event);
        }
    }
}

/// What the property test takes for granted: maps lie, and the rule believes them when it may.
#[test]
fn a_rollback_is_suspected_and_a_write_refutes_it() {
    let mut model = Model::new();
    let all = |model: &mut Model| (0..OBJECTS).for_each(|object| model.play(&Event::Write(object)));
    all(&mut model);
    for event in [Event::MirrorSnapshot, Event::Copy, Event::UserSnapshot] {
        model.play(&event);
    }
    all(&mut model);
    for event in [Event::MirrorSnapshot, Event::Copy, Event::BeginRollback(0), Event::RollBack(OBJECTS)] {
        model.play(&event);
    }
    model.play(&Event::MirrorSnapshot);
    // Every object was rolled back, and the map calls all of them clean.
    assert!(model.map.iter().all(|state| state == ObjectState::ExistsClean));
    model.play(&Event::Copy);
    assert_eq!(model.believed, 0);
    for _ in 0..3 {
        model.play(&Event::Write(0));
        model.play(&Event::MirrorSnapshot);
        model.play(&Event::Copy);
    }
    assert_eq!(model.believed, 2, "what was written since refutes another rollback");
}

#[test]
fn daily_snapshots_of_a_thick_image_cost_nothing_between() {
    let mut model = Model::new();
    (0..OBJECTS).for_each(|object| model.play(&Event::Write(object)));
    let mut looked = Vec::new();
    for round in 0..40u64 {
        if round % 10 == 4 {
            model.play(&Event::UserSnapshot);
        }
        model.play(&Event::Write(round % OBJECTS));
        model.play(&Event::MirrorSnapshot);
        let before = model.believed;
        let candidates = !model.users().is_empty();
        model.play(&Event::Copy);
        if candidates && model.believed == before {
            looked.push(round);
        }
    }
    // The one that brings a new snapshot, the one whose start may still have changed its map, and the one whose start may have
    // been made while a rollback to it was under way.
    assert_eq!(looked, [4, 5, 6, 14, 15, 16, 24, 25, 26, 34, 35, 36]);
}
