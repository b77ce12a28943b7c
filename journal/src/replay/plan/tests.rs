//! The planner against a naive image: steps taken in any order, killed anywhere, begun again from any commit position.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use rbd::{Layout, SnapshotNamespace};

use super::*;
use crate::event::OpTid;
use crate::types::EntryTid;

const OBJECT: u64 = 512;
const SIZE_MAX: u64 = 5 * OBJECT + 100;

impl Ticket for () {
    fn bytes(&self) -> u64 {
        1
    }
    fn yield_shared(&mut self) {}
}

/// An entry of the journal, or the end of a tag.
#[derive(Debug, Clone)]
enum Line {
    Entry(EntryPosition, Event),
    TagEnd(TagTid),
}

/// What a reader sees.
#[derive(Debug, Clone, PartialEq, Eq)]
struct View {
    bytes: Vec<u8>,
    snaps: BTreeMap<String, Vec<u8>>,
}

impl View {
    fn op(&mut self, op: &Op) {
        match op {
            Op::SnapCreate { name, .. } => {
                self.snaps.entry(name.clone()).or_insert_with(|| self.bytes.clone());
            }
            Op::SnapRemove { name, .. } => drop(self.snaps.remove(name)),
            Op::SnapRollback { name, .. } => {
                if let Some(snap) = self.snaps.get(name) {
                    self.bytes.clone_from(snap);
                }
            }
            Op::Resize { size } => self.bytes.resize(*size as usize, 0),
            _ => {}
        }
    }

    fn write(&mut self, extent: Extent, byte: impl Fn(usize) -> u8) {
        for at in 0..extent.length as usize {
            if let Some(place) = self.bytes.get_mut(extent.offset as usize + at) {
                *place = byte(at);
            }
        }
    }
}

/// What happened on the primary: the view after each line, and the lines behind which an epoch ends.
struct History {
    lines: Vec<Line>,
    views: Vec<View>,
    barriers: BTreeSet<usize>,
}

impl History {
    /// `views[0]` is the beginning, `views[n]` the view behind line n - 1.
    fn of(start: View, lines: Vec<Line>) -> History {
        let mut views = vec![start];
        let mut barriers = BTreeSet::from([0]);
        let mut open: BTreeMap<(TagTid, OpTid), Op> = BTreeMap::new();
        for (number, line) in lines.iter().enumerate() {
            let mut view = views[number].clone();
            let mut alone = false;
            match line {
                Line::Entry(_, Event::Write { extent, data }) => view.write(*extent, |at| data[at]),
                Line::Entry(_, Event::WriteSame { extent, data }) => {
                    view.write(*extent, |at| data[at % data.len()]);
                }
                Line::Entry(_, Event::Discard { extent, .. }) => view.write(*extent, |_| 0),
                Line::Entry(_, Event::CompareAndWrite { extent, compare, write }) => {
                    let end = (extent.end() as usize).min(view.bytes.len());
                    let there = view.bytes.get(extent.offset as usize..end).unwrap_or(&[]);
                    if *there == compare[..there.len()] {
                        view.write(*extent, |at| write[at]);
                    }
                    alone = true;
                }
                Line::Entry(_, Event::Flush) => drop(barriers.insert(number + 1)),
                Line::Entry(position, Event::Op { tid, op }) => {
                    let result = lines[number..].iter().find_map(|line| match line {
                        Line::Entry(p, Event::OpFinish { tid: of, result })
                            if of == tid && p.tag == position.tag =>
                        {
                            Some(*result)
                        }
                        _ => None,
                    });
                    let grows = matches!(op, Op::Resize { size } if *size > view.bytes.len() as u64);
                    if grows || matches!(op, Op::SnapCreate { .. }) {
                        if result.is_none_or(|result| result >= 0) {
                            view.op(op);
                            alone = true;
                        }
                    } else {
                        open.insert((position.tag, *tid), op.clone());
                    }
                }
                Line::Entry(position, Event::OpFinish { tid, result }) => {
                    if let Some(op) = open.remove(&(position.tag, *tid)).filter(|_| *result >= 0) {
                        view.op(&op);
                        alone = true;
                    }
                }
                Line::Entry(..) => {}
                Line::TagEnd(_) => {
                    std::mem::take(&mut open).values().for_each(|op| view.op(op));
                    alone = true;
                }
            }
            if alone {
                barriers.extend([number, number + 1]);
            }
            views.push(view);
        }
        barriers.insert(lines.len());
        History { lines, views, barriers }
    }

    /// Fails unless `view` is a state that a disk with a write cache may have been in, not older than what was on disk
    /// behind `floor` lines.
    fn judge(&self, view: &View, floor: usize) -> Result<(), TestCaseError> {
        // An epoch in which nothing changes is as good as none.
        let mut floor = floor;
        while floor > 0 && self.views[floor - 1] == self.views[floor] {
            floor -= 1;
        }
        let barriers: Vec<usize> = self.barriers.iter().copied().collect();
        let epochs = barriers.windows(2).filter(|epoch| epoch[1] >= floor);
        let legal = |from: usize, to: usize| {
            let views = &self.views[from..=to];
            views.iter().any(|v| v.snaps == view.snaps)
                && views.iter().any(|v| v.bytes.len() == view.bytes.len())
                && view
                    .bytes
                    .iter()
                    .enumerate()
                    .all(|(place, byte)| views.iter().any(|v| v.bytes.get(place) == Some(byte)))
        };
        let mut epochs = epochs.map(|epoch| (epoch[0], epoch[1]));
        let last = self.lines.len();
        prop_assert!(
            epochs.any(|(from, to)| legal(from, to)) || legal(last, last),
            "the image is in no state that it was in behind line {floor}: {view:?}"
        );
        Ok(())
    }
}

/// The copy as its cluster stores it.
struct Copy {
    layout: Layout,
    size: u64,
    objects: BTreeMap<ObjectNumber, Vec<u8>>,
    map: Option<ObjectMap>,
    parent: Vec<u8>,
    snaps: BTreeMap<String, Vec<u8>>,
    marker: Option<EntryPosition>,
}

impl Copy {
    fn shape(&self) -> Shape {
        Shape { size: self.size, layout: self.layout, parent_overlap: self.parent.len() as u64 }
    }

    fn byte(&self, place: u64) -> u8 {
        let (object, at) = self.layout.locate(place);
        match self.objects.get(&object) {
            Some(bytes) => bytes[at as usize],
            None => self.parent.get(place as usize).copied().unwrap_or(0),
        }
    }

    fn view(&self) -> View {
        View { bytes: (0..self.size).map(|place| self.byte(place)).collect(), snaps: self.snaps.clone() }
    }

    fn state(&self, object: ObjectNumber) -> Option<ObjectState> {
        self.map.as_ref().map(|map| map.get(object))
    }

    fn take_effect(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Marker(done) => {
                prop_assert!(self.marker.is_none_or(|marker| marker <= *done));
                self.marker = Some(*done);
            }
            Step::Map(states) => {
                for (object, state) in states {
                    self.map.as_mut().expect("a map").set(*object, *state);
                }
            }
            Step::Write(write) => self.write(write)?,
            Step::Op { op, .. } => {
                let mut view = self.view();
                view.op(op);
                self.replace(view);
            }
            Step::Compare { .. } | Step::Synced(_) => {}
        }
        Ok(())
    }

    fn write(&mut self, write: &ObjectWrite) -> Result<(), TestCaseError> {
        let (object, change) = (write.object, write.change.clone());
        if write.remove {
            prop_assert!(matches!(self.state(object), None | Some(ObjectState::Pending)));
            self.objects.remove(&object);
            return Ok(());
        }
        prop_assert!(!(write.absent && self.objects.contains_key(&object)));
        prop_assert!(matches!(self.state(object), None | Some(ObjectState::Exists)));
        let covered = self.shape().overlap(object) > 0;
        // As an OSD, which does not create objects to cut or zero them; under a parent they are copied up.
        if !self.objects.contains_key(&object) && change.writes.is_empty() && !covered {
            return Ok(());
        }
        let bytes = (0..OBJECT).map(|at| self.byte(self.layout.image_offset(object, at))).collect();
        let bytes: &mut Vec<u8> = self.objects.entry(object).or_insert(bytes);
        for sub in change.subs(OBJECT) {
            match sub {
                rados::WriteSub::Write { offset, data } => {
                    bytes[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
                }
                rados::WriteSub::Zero(zero) => bytes[zero.offset as usize..zero.end() as usize].fill(0),
                rados::WriteSub::Truncate(size) => bytes[size as usize..].fill(0),
                other => prop_assert!(false, "{:?}", other),
            }
        }
        Ok(())
    }

    /// What a maintenance operation leaves: every object exists, and the map says so.
    fn replace(&mut self, view: View) {
        self.size = view.bytes.len() as u64;
        self.snaps = view.snaps;
        self.parent.truncate(self.size as usize);
        let count = self.layout.object_count(self.size);
        if let Some(map) = &mut self.map {
            map.resize(count);
        }
        self.objects.clear();
        for object in (0..count).map(ObjectNumber) {
            let place = |at| self.layout.image_offset(object, at) as usize;
            let bytes: Vec<u8> =
                (0..OBJECT).map(|at| view.bytes.get(place(at)).copied().unwrap_or(0)).collect();
            self.objects.insert(object, bytes);
            if let Some(map) = &mut self.map {
                map.set(object, ObjectState::ExistsClean);
            }
        }
    }
}

/// One life of a replay.
struct Life {
    planner: Planner<()>,
    /// Steps under way, and whether they took effect.
    running: Vec<(Step, bool)>,
    /// Lines that were pushed.
    pushed: usize,
}

impl Life {
    fn begin(copy: &Copy, history: &History, commit: Option<EntryPosition>) -> Life {
        let base = commit.max(copy.marker);
        let behind = |line: &Line| match line {
            Line::Entry(position, _) => Some(*position) > commit,
            // The commit position may be the last entry of its tag.
            Line::TagEnd(tag) => commit.is_none_or(|commit| commit.tag <= *tag),
        };
        let pushed = history.lines.iter().position(behind).unwrap_or(history.lines.len());
        Life { planner: Planner::new(copy.shape(), copy.map.clone(), base), running: Vec::new(), pushed }
    }

    fn push(&mut self, line: &Line) {
        match line {
            Line::Entry(position, event) => self.planner.push(*position, event.clone(), ()),
            Line::TagEnd(tag) => self.planner.end_tag(*tag),
        }
        self.pushed += 1;
    }

    /// Begins the next step; answers whether there was one.
    fn step(&mut self) -> Result<bool, TestCaseError> {
        let step = self.planner.next().map_err(|e| TestCaseError::fail(e.to_string()))?;
        let some = step.is_some();
        self.running.extend(step.map(|step| (step, false)));
        Ok(some)
    }

    fn finish(&mut self, index: usize, copy: &mut Copy) -> Result<(), TestCaseError> {
        let (step, effected) = self.running.swap_remove(index);
        if !effected {
            copy.take_effect(&step)?;
        }
        match step {
            Step::Marker(_) => self.planner.marker_written(),
            Step::Map(_) => self.planner.map_stored(),
            Step::Write(write) => self.planner.written(write.object, write.remove),
            Step::Compare { extent, compare } => {
                let there: Vec<u8> = (extent.offset..extent.end()).map(|place| copy.byte(place)).collect();
                self.planner.compared(there == compare);
            }
            Step::Op { .. } => self.planner.op_carried_out(copy.shape(), copy.map.clone()),
            Step::Synced(_) => {}
        }
        Ok(())
    }
}

/// What chance decides.
#[derive(Debug, Clone, Copy)]
enum Dice {
    Push,
    Step,
    Effect(u8),
    Finish(u8),
    Commit,
    Kill(u8),
    /// Push a line and do all that can be done.
    Settle,
}

fn dice() -> impl Strategy<Value = Dice> {
    prop_oneof![
        6 => Just(Dice::Push),
        8 => Just(Dice::Step),
        4 => any::<u8>().prop_map(Dice::Effect),
        6 => any::<u8>().prop_map(Dice::Finish),
        1 => Just(Dice::Commit),
        1 => any::<u8>().prop_map(Dice::Kill),
        2 => Just(Dice::Settle),
    ]
}

fn extent() -> impl Strategy<Value = Extent> {
    (0..SIZE_MAX / 4, prop_oneof![1u64..8, 1u64..200])
        .prop_map(|(block, blocks)| Extent::new(block * 4, blocks * 4))
}

/// An event, as its generator sees it: results and sizes are filled in later.
#[derive(Debug, Clone)]
enum Draft {
    Write(Extent, u8),
    Same(Extent, u8),
    Discard(Extent),
    Compare(Extent, u8, u8),
    Flush,
    Op(Op, Option<i32>, usize),
    TagEnd,
}

fn draft() -> impl Strategy<Value = Draft> {
    let namespace = || SnapshotNamespace::User;
    let name = || prop_oneof![Just("a".to_string()), Just("b".to_string())];
    let op = prop_oneof![
        3 => name().prop_map(move |name| Op::SnapCreate { namespace: namespace(), name }),
        1 => name().prop_map(move |name| Op::SnapRemove { namespace: namespace(), name }),
        2 => name().prop_map(move |name| Op::SnapRollback { namespace: namespace(), name }),
        3 => (1..SIZE_MAX).prop_map(|size| Op::Resize { size }),
        1 => Just(Op::MetadataRemove { key: "k".into() }),
    ];
    let small = || (0..4u64, 1..3u64).prop_map(|(block, blocks)| Extent::new(block * 4, blocks * 4));
    let apart = || (0..SIZE_MAX / 4).prop_map(|block| Extent::new(block * 4, 4));
    prop_oneof![
        4 => (extent(), 1u8..4).prop_map(|(extent, byte)| Draft::Write(extent, byte)),
        8 => (small(), 1u8..4).prop_map(|(extent, byte)| Draft::Write(extent, byte)),
        8 => (apart(), 1u8..4).prop_map(|(extent, byte)| Draft::Write(extent, byte)),
        1 => (extent(), 0u8..3).prop_map(|(extent, byte)| Draft::Same(extent, byte)),
        2 => extent().prop_map(Draft::Discard),
        1 => small().prop_map(Draft::Discard),
        3 => (small(), 0u8..4, 1u8..4).prop_map(|(extent, from, to)| Draft::Compare(extent, from, to)),
        4 => Just(Draft::Flush),
        3 => (op, prop_oneof![4 => Just(Some(0)), 1 => Just(Some(-17)), 1 => Just(None)], 0usize..5)
            .prop_map(|(op, result, delay)| Draft::Op(op, result, delay)),
        1 => Just(Draft::TagEnd),
    ]
}

/// Makes a journal that a primary could have written: one operation at a time.
fn journal(drafts: Vec<Draft>, size: u64) -> Vec<Line> {
    let (mut lines, mut tag, mut entry, mut size) = (Vec::new(), 0, 0, size);
    let mut pending: Option<(OpTid, Op, Option<i32>, usize)> = None;
    let mut push = |lines: &mut Vec<Line>, tag: u64, event: Event| {
        lines.push(Line::Entry(EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) }, event));
        entry += 1;
    };
    // An operation that leaves half-done data behind when it fails ends a replay: here they succeed.
    let fails = |op: &Op| matches!(op, Op::SnapCreate { .. } | Op::MetadataRemove { .. });
    for (number, draft) in drafts.into_iter().enumerate() {
        if let Some((tid, op, Some(result), 0)) = &pending {
            push(&mut lines, tag, Event::OpFinish { tid: *tid, result: *result });
            if let (Op::Resize { size: new }, 0) = (op, result) {
                size = *new;
            }
            pending = None;
        }
        if let Some((.., delay)) = &mut pending {
            *delay = delay.saturating_sub(1);
        }
        // While the image shrinks nothing is written behind its new end; while it is set back nothing is written.
        let limit = match &pending {
            Some((_, Op::Resize { size: new }, ..)) => size.min(*new),
            _ => size,
        };
        let within = |extent: Extent| {
            let length = limit.checked_sub(extent.offset).map_or(0, |rest| rest.min(extent.length));
            (length > 0).then_some(Extent::new(extent.offset, length))
        };
        let event = match draft {
            Draft::Write(extent, byte) => within(extent).map(|extent| Event::Write {
                extent,
                data: vec![byte + (number % 80) as u8 * 3; extent.length as usize].into(),
            }),
            Draft::Same(extent, byte) => within(extent).map(|extent| Event::WriteSame {
                extent: Extent::new(extent.offset, extent.length / 4 * 4),
                data: vec![byte, byte, 0, byte].into(),
            }),
            Draft::Discard(extent) => within(extent).map(|extent| Event::Discard { extent, granularity: 0 }),
            Draft::Compare(extent, from, to) => within(extent).map(|extent| Event::CompareAndWrite {
                extent,
                compare: vec![from; extent.length as usize].into(),
                write: vec![to; extent.length as usize].into(),
            }),
            Draft::Flush => Some(Event::Flush),
            Draft::Op(op, result, delay) if pending.is_none() => {
                let op = match op {
                    Op::Resize { size: new } if new % 4 == 0 => Op::Resize { size },
                    op => op,
                };
                let result = result.map(|result| if fails(&op) { result } else { 0 });
                let tid = OpTid(number as u64);
                pending = Some((tid, op.clone(), result, delay));
                Some(Event::Op { tid, op })
            }
            Draft::Op(..) => None,
            Draft::TagEnd => {
                if let Some((_, Op::Resize { size: new }, ..)) = pending.take() {
                    size = new;
                }
                lines.push(Line::TagEnd(TagTid(tag)));
                tag += 1;
                None
            }
        };
        if let Some(event) = event {
            push(&mut lines, tag, event);
        }
    }
    lines.push(Line::TagEnd(TagTid(tag)));
    lines
}

/// Sets sizes that roll back with snapshots right: drops what lies behind the end, as a primary would have refused it.
fn fitting(start: View, lines: Vec<Line>) -> History {
    let mut lines = lines;
    loop {
        let history = History::of(start.clone(), lines);
        let wrong = history.lines.iter().zip(&history.views).position(|(line, view)| match line {
            Line::Entry(
                _,
                Event::Write { extent, .. }
                | Event::Discard { extent, .. }
                | Event::WriteSame { extent, .. }
                | Event::CompareAndWrite { extent, .. },
            ) => extent.end() > view.bytes.len() as u64,
            _ => false,
        });
        let Some(wrong) = wrong else { return history };
        lines = history.lines;
        lines.remove(wrong);
    }
}

fn layouts() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::simple(9).expect("a layout")), Just(Layout::new(9, 128, 2).expect("a layout"))]
}

fn run(mut copy: Copy, history: &History, dice: Vec<Dice>) -> Result<(), TestCaseError> {
    let line_of = |position: EntryPosition| {
        let at = |line: &Line| matches!(line, Line::Entry(p, _) if *p == position);
        history.lines.iter().position(at).map_or(0, |line| line + 1)
    };
    let (mut life, mut commit, mut floor) = (Life::begin(&copy, history, None), None, 0);
    let killed = dice.iter().any(|dice| matches!(dice, Dice::Kill(_)));
    for dice in dice {
        match dice {
            Dice::Push if life.pushed < history.lines.len() => life.push(&history.lines[life.pushed]),
            Dice::Settle if life.pushed < history.lines.len() => {
                life.push(&history.lines[life.pushed]);
                while life.step()? || !life.running.is_empty() {
                    if !life.running.is_empty() {
                        life.finish(0, &mut copy)?;
                        history.judge(&copy.view(), floor)?;
                    }
                }
            }
            Dice::Push | Dice::Settle => {}
            Dice::Step => drop(life.step()?),
            Dice::Effect(which) if !life.running.is_empty() => {
                let which = which as usize % life.running.len();
                if !std::mem::replace(&mut life.running[which].1, true) {
                    copy.take_effect(&life.running[which].0.clone())?;
                }
            }
            Dice::Finish(which) if !life.running.is_empty() => {
                let which = which as usize % life.running.len();
                life.finish(which, &mut copy)?;
            }
            Dice::Effect(_) | Dice::Finish(_) => {}
            Dice::Commit => commit = commit.max(life.planner.applied()),
            Dice::Kill(which) => {
                for (number, (step, effected)) in life.running.iter().enumerate() {
                    if !effected && which >> (number % 8) & 1 == 1 {
                        copy.take_effect(step)?;
                    }
                }
                life = Life::begin(&copy, history, commit);
            }
        }
        floor = floor.max(life.planner.applied().map_or(0, line_of));
        history.judge(&copy.view(), floor)?;
    }
    // To the end, undisturbed.
    while life.pushed < history.lines.len() {
        life.push(&history.lines[life.pushed]);
    }
    life.planner.sync(7);
    let mut synced = false;
    while !synced {
        let step = life.planner.next().map_err(|e| TestCaseError::fail(e.to_string()))?;
        match step {
            Some(Step::Synced(7)) => synced = true,
            Some(step) => life.running.push((step, false)),
            None => {
                prop_assert!(!life.running.is_empty(), "nothing is under way, and nothing to do");
                life.finish(0, &mut copy)?;
            }
        }
        history.judge(&copy.view(), floor)?;
    }
    prop_assert_eq!(&copy.view(), history.views.last().expect("a view"));
    let last = history.lines.iter().rev().find_map(|line| match line {
        Line::Entry(position, _) => Some(*position),
        Line::TagEnd(_) => None,
    });
    prop_assert_eq!(life.planner.applied().max(commit), last);
    if let Some(map) = &copy.map {
        let count = copy.layout.object_count(copy.size);
        for object in (0..count).map(ObjectNumber) {
            let exists = copy.objects.contains_key(&object);
            let state = map.get(object);
            // One whose write was cut off may be thought to exist.
            let right = exists == state.may_exist() || (killed && !exists);
            prop_assert!(right && state != ObjectState::Pending, "{} {:?}", object, state);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, max_shrink_iters: 3000, ..ProptestConfig::default() })]

    #[test]
    fn never_wrong_and_never_back_in_time(
        layout in layouts(),
        size in OBJECT..SIZE_MAX,
        mapped in any::<bool>(),
        parent in prop_oneof![Just(0u64), 1..SIZE_MAX],
        drafts in prop::collection::vec(draft(), 1..40),
        dice in prop::collection::vec(dice(), 0..400),
    ) {
        let parent = vec![254u8; parent.min(size) as usize];
        let map = mapped.then(|| ObjectMap::new(layout.object_count(size)));
        let copy = Copy {
            layout, size, objects: BTreeMap::new(), map, parent, snaps: BTreeMap::new(), marker: None,
        };
        let history = fitting(copy.view(), journal(drafts, size));
        run(copy, &history, dice)?;
    }
}

/// A discard of a whole image, and a pattern repeated over it, are taken on piece by piece; the entry is applied when all
/// of it is.
#[test]
fn the_objects_of_one_entry_are_bounded() {
    const OBJECTS: u64 = 3 * OBJECTS_MAX as u64 + 1;
    let layouts =
        [(1, 1), (9, 3)].map(|(order, count)| Layout::new(9 + order, 512, count).expect("a layout"));
    for layout in layouts {
        let whole = Extent::new(0, OBJECTS * layout.object_size());
        let shape = Shape { size: whole.length, layout, parent_overlap: 0 };
        let events = [
            Event::Discard { extent: whole, granularity: 0 },
            Event::WriteSame { extent: whole, data: Bytes::from_static(&[7; 512]) },
        ];
        for event in events {
            let position = EntryPosition { tag: TagTid(1), entry: EntryTid(0) };
            let mut planner = Planner::new(shape.clone(), None, None);
            planner.push(position, event, ());
            planner.sync(1);
            let (mut written, mut most, mut synced) = (BTreeSet::new(), 0, false);
            while let Some(step) = planner.next().expect("no error") {
                most = most.max(planner.objects.len());
                match step {
                    Step::Write(write) => {
                        assert!(planner.applied().is_none(), "it is not applied yet");
                        written.insert(write.object);
                        planner.written(write.object, write.remove);
                    }
                    Step::Synced(1) => synced = true,
                    step => panic!("{step:?}"),
                }
            }
            assert!(most <= OBJECTS_MAX, "{most} objects at once");
            assert_eq!(written.len() as u64, layout.object_count(whole.length));
            assert!(synced && planner.applied() == Some(position));
        }
    }
}
