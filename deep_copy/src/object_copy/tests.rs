//! Whole histories of an object, copied from one simulated cluster to another: random writes, snapshots and removals
//! of snapshots remotely, also in the midst of a round and of an attempt at it; rounds with any number of user snapshots;
//! crashes at any write, with lost answers; parents. After each completed round every local snapshot that gets its name and
//! the head must hold exactly what the primary's did. Counterparts of removed snapshots go when the round is complete.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use rados::{Extent, SnapContext, WriteOp, WriteSub};
use rbd::{ImageFlags, ProtectionStatus, Snapshot, SnapshotNamespace, Timestamp};

use super::*;
use crate::sim::{Crash, SimBackend};
use crate::steps::not_whole;

const OBJECT_BYTES: u64 = 48;
const CHUNK_BYTES: u64 = 8;
const OBJECT: ObjectNumber = ObjectNumber(0);

#[derive(Debug, Clone)]
enum Event {
    Write(u64, u8, u8),
    Zero(u64, u64),
    Truncate(u64),
    Remove,
    /// A first write to a clone's object: librbd brings the parent's bytes first, for all snapshots at once.
    CopyUp(u64, u8),
    UserSnapshot,
    /// Of a namespace that is not copied.
    OtherSnapshot,
    DropSnapshot(prop::sample::Index),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mirror,
    User,
    Other,
}

#[derive(Debug, Clone)]
struct Round {
    events: Vec<Event>,
    crashes: Vec<Crash>,
    /// A user snapshot that is removed after the first crash.
    drop_in_between: Option<prop::sample::Index>,
    /// One that is removed in each attempt, after so many reads.
    drop_midway: Option<(prop::sample::Index, u64)>,
    repair: bool,
    /// Its snapshot is removed before it is complete.
    abandoned: bool,
    after: Vec<Event>,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => (0..OBJECT_BYTES - 8, 1u8..9, any::<u8>()).prop_map(|(o, l, b)| Event::Write(o, l, b)),
        2 => (0..OBJECT_BYTES, 1..20u64).prop_map(|(o, l)| Event::Zero(o, l.min(OBJECT_BYTES - o))),
        2 => (0..OBJECT_BYTES).prop_map(Event::Truncate),
        1 => Just(Event::Remove),
        1 => (0..OBJECT_BYTES, any::<u8>()).prop_map(|(o, b)| Event::CopyUp(o, b)),
        3 => Just(Event::UserSnapshot),
        1 => Just(Event::OtherSnapshot),
        1 => any::<prop::sample::Index>().prop_map(Event::DropSnapshot),
    ]
}

fn round() -> impl Strategy<Value = Round> {
    let crash = (0u64..4, any::<bool>()).prop_map(|(after_writes, applied)| Crash { after_writes, applied });
    (
        prop::collection::vec(event(), 0..16),
        prop::collection::vec(crash, 0..4),
        prop::option::weighted(0.2, any::<prop::sample::Index>()),
        prop::option::weighted(0.4, (any::<prop::sample::Index>(), 0u64..5)),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        prop::collection::vec(event(), 0..4),
    )
        .prop_map(|(events, crashes, drop_in_between, drop_midway, repair, abandoned, after)| Round {
            events,
            crashes,
            drop_in_between,
            drop_midway,
            repair,
            abandoned,
            after,
        })
}

/// A remote snapshot, its local counterpart if it has one, and what the image showed then.
#[derive(Debug, Clone)]
struct Known {
    remote: SnapId,
    local: Option<SnapId>,
    shown: Vec<u8>,
    /// What the object held, if it existed (a copy-up may give it existence later).
    bytes: Option<Vec<u8>>,
    kind: Kind,
}

struct World {
    remote: Arc<SimBackend>,
    local: Arc<SimBackend>,
    parent: Option<Vec<u8>>,
    snaps: Vec<Known>,
    /// Local snapshots whose remote ones are gone; they go when a round is complete.
    left: Vec<SnapId>,
    /// The same for all rounds, so that some begin by looking closely and others don't.
    comparison: Comparison,
}

impl World {
    fn new(parent: Option<Vec<u8>>) -> World {
        // Ids of the two clusters must not happen to be the same.
        let (remote, local) = (SimBackend::new(), SimBackend::new());
        for _ in 0..100 {
            local.new_snap();
        }
        let comparison = Comparison::by_chunks_of(CHUNK_BYTES);
        World { remote, local, parent, snaps: Vec::new(), left: Vec::new(), comparison }
    }

    /// What an image shows of an object: the parent's bytes when there is none, zeros behind its end.
    fn shown(&self, bytes: Option<&[u8]>) -> Vec<u8> {
        let mut shown = bytes.map(<[u8]>::to_vec).or_else(|| self.parent.clone()).unwrap_or_default();
        shown.resize(OBJECT_BYTES as usize, 0);
        shown
    }

    fn remote_now(&self) -> Option<Vec<u8>> {
        self.remote.object("r.0000000000000000").bytes_at(SnapId::HEAD).map(<[u8]>::to_vec)
    }

    fn snapshot(&mut self, kind: Kind) {
        let bytes = self.remote_now();
        let shown = self.shown(bytes.as_deref());
        self.snaps.push(Known { remote: self.remote.new_snap(), local: None, shown, bytes, kind });
    }

    async fn write(&self, context: SnapContext, subs: Vec<WriteSub>) {
        let op = WriteOp { subs, ..WriteOp::new("r.0000000000000000").under(context) };
        self.remote.ioctx().write(op).await.optional().unwrap();
    }

    async fn happen(&mut self, event: &Event) {
        let context = SnapContext::new(self.snaps.iter().map(|s| s.remote).collect());
        let data = |length: u8, byte| Bytes::from(vec![byte; usize::from(length)]);
        // Without an object the parent shows through: librbd then copies up before anything else.
        if self.parent.is_some() && self.remote_now().is_none() {
            if let Event::CopyUp(offset, byte) = event {
                let parent = self.parent.clone().unwrap_or_default();
                self.write(SnapContext::default(), vec![WriteSub::WriteFull(parent.into())]).await;
                self.write(context.clone(), vec![WriteSub::Write { offset: *offset, data: data(1, *byte) }])
                    .await;
            }
            if !matches!(event, Event::UserSnapshot | Event::OtherSnapshot | Event::DropSnapshot(_)) {
                return;
            }
        }
        let sub = match event {
            Event::Write(offset, length, byte) => {
                WriteSub::Write { offset: *offset, data: data(*length, *byte) }
            }
            Event::CopyUp(offset, byte) => WriteSub::Write { offset: *offset, data: data(1, *byte) },
            Event::Zero(offset, length) => WriteSub::Zero(Extent::new(*offset, *length)),
            Event::Truncate(size) => WriteSub::Truncate(*size),
            Event::Remove => WriteSub::Remove,
            Event::UserSnapshot => return self.snapshot(Kind::User),
            Event::OtherSnapshot => return self.snapshot(Kind::Other),
            Event::DropSnapshot(index) => return self.drop_snapshot(index),
        };
        self.write(context, vec![sub]).await;
    }

    fn droppable(&self, index: &prop::sample::Index) -> Option<SnapId> {
        let droppable: Vec<_> = self.snaps.iter().filter(|known| known.kind != Kind::Mirror).collect();
        (!droppable.is_empty()).then(|| droppable[index.index(droppable.len())].remote)
    }

    fn drop_snapshot(&mut self, index: &prop::sample::Index) {
        if let Some(snap) = self.droppable(index) {
            self.remote.remove_snap(snap);
            self.forget(snap);
        }
    }

    /// The remote snapshot `snap` was removed.
    fn forget(&mut self, snap: SnapId) {
        let at = self.snaps.iter().position(|known| known.remote == snap).expect("it was there");
        self.left.extend(self.snaps.remove(at).local);
    }

    /// The remote image's snapshots as its header would tell them.
    fn remote_snapshots(&self) -> BTreeMap<SnapId, Snapshot> {
        let snapshot = |known: &Known| Snapshot {
            id: known.remote,
            name: String::new(),
            namespace: SnapshotNamespace::User,
            image_size: OBJECT_BYTES,
            timestamp: Timestamp::default(),
            child_count: 0,
            protection: ProtectionStatus::Unprotected,
            parent: None,
            flags: ImageFlags(0),
        };
        let users = self.snaps.iter().filter(|known| known.kind == Kind::User);
        users.map(|known| (known.remote, snapshot(known))).collect()
    }

    fn copier(&self, start: Option<SnapId>, method: Method, resumed: bool) -> ObjectCopier {
        let waiting = self.snaps.iter().filter(|k| start.is_none_or(|start| k.remote > start));
        let pairs: Vec<_> = waiting.filter_map(|k| k.local.map(|l| (k.remote, l))).collect();
        let existing = self.snaps.iter().filter_map(|k| k.local).chain(self.left.iter().copied());
        let existing: Vec<SnapId> = existing.collect();
        let side = |data, prefix: &str| Side { data, object_prefix: prefix.into() };
        ObjectCopier {
            remote: side(self.remote.ioctx(), "r"),
            local: side(self.local.ioctx(), "l"),
            steps: Arc::new(CopySteps::new(start, &pairs, &existing).unwrap()),
            object_size: OBJECT_BYTES,
            method,
            comparison: self.comparison.clone(),
            resumed,
            has_parent: self.parent.is_some(),
            copy_up_at: Vec::new(),
            parents: None,
            budget: crate::budget::Budget::new(1 << 20).part(),
            cancel: CancellationToken::new(),
        }
    }

    /// Answers with the remote snapshot that was copied; `None` when the round was abandoned.
    async fn play_round(&mut self, start: Option<SnapId>, round: &Round, method: Method) -> Option<SnapId> {
        for event in &round.events {
            self.happen(event).await;
        }
        self.snapshot(Kind::Mirror);
        let local = self.local.clone();
        let copied = |k: &&mut Known| k.local.is_none() && k.kind != Kind::Other;
        self.snaps.iter_mut().filter(copied).for_each(|k| k.local = Some(local.new_snap()));
        let end = self.snaps[self.snaps.len() - 1].remote;
        let filled = self.snaps.iter().filter(|k| k.kind == Kind::User && start.is_none_or(|s| k.remote > s));
        let filled: Vec<Known> = filled.cloned().collect();
        for event in &round.after {
            // A user snapshot made now belongs to the next round.
            if !matches!(event, Event::UserSnapshot) {
                self.happen(event).await;
            }
        }
        let reason = if round.events.len().is_multiple_of(2) { Reason::Claimed } else { Reason::Doubt };
        let mut crashes = round.crashes.iter();
        let mut attempts = 0;
        while attempts == 0 || !round.abandoned {
            if let (1, Some(index)) = (attempts, &round.drop_in_between) {
                self.drop_snapshot(index);
            }
            if self.attempt(start, (method, reason), round, crashes.next(), attempts > 0).await {
                self.end_round(&filled);
                return Some(end);
            }
            attempts += 1;
        }
        let at = self.snaps.iter().position(|k| k.remote == end).unwrap();
        let known = self.snaps.remove(at);
        self.remote.remove_snap(known.remote);
        known.local.into_iter().for_each(|snap| self.local.remove_snap(snap));
        None
    }

    /// True when the object was copied.
    async fn attempt(
        &mut self,
        start: Option<SnapId>,
        (method, reason): (Method, Reason),
        round: &Round,
        crash: Option<&Crash>,
        resumed: bool,
    ) -> bool {
        let midway = round.drop_midway.as_ref();
        let midway = midway.and_then(|(index, reads)| Some((*reads, self.droppable(index)?)));
        if let Some((reads, snap)) = midway {
            self.remote.remove_snap_after(reads, snap);
        }
        self.local.set_crash(crash.copied());
        let copier = self.copier(start, method, resumed);
        let outcome = copier.copy(OBJECT, Local::Untested, reason, async { Ok(()) }).await;
        self.local.set_crash(None);
        let removed = midway.and_then(|(_, snap)| self.remote.end_removal(snap));
        removed.into_iter().for_each(|snap| self.forget(snap));
        match outcome {
            Ok(copied) => {
                self.check_states(&copier, &copied);
                true
            }
            Err(CopyError::Local(error)) if crash.is_some() => {
                assert!(error.is(libc::ESHUTDOWN), "{error}");
                false
            }
            Err(CopyError::SnapshotGone { snap, .. }) => {
                assert_eq!(Some(snap), removed);
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// What the round filled gets its names, if it is whole; what the primary has no more goes.
    fn end_round(&mut self, filled: &[Known]) {
        let pairs = filled.iter().filter_map(|known| Some((known.remote, known.local?))).collect();
        let nameless: BTreeSet<SnapId> = not_whole(&pairs, &self.remote_snapshots());
        self.check_all(filled.iter().filter(|known| known.local.is_some_and(|l| !nameless.contains(&l))));
        self.left.drain(..).for_each(|snap| self.local.remove_snap(snap));
    }

    fn check_states(&self, copier: &ObjectCopier, copied: &Copied) {
        let object = self.local.object("l.0000000000000000");
        for (step, state) in copier.steps.steps().iter().zip(&copied.states) {
            // An earlier attempt may have filled what is gone now; its map goes with it.
            if self.left.contains(&step.local) {
                continue;
            }
            assert_eq!(
                object.bytes_at(step.local).is_some(),
                state.may_exist(),
                "object map at {}",
                step.local
            );
        }
    }

    fn check_all<'a>(&self, snaps: impl Iterator<Item = &'a Known>) {
        let local = self.local.object("l.0000000000000000");
        for known in snaps {
            let Some(snap) = known.local else { continue };
            assert_eq!(
                self.shown(local.bytes_at(snap)),
                known.shown,
                "local {snap}, remote {}",
                known.remote
            );
            if self.parent.is_none() {
                assert_eq!(
                    local.bytes_at(snap),
                    known.bytes.as_deref(),
                    "size and existence at local {snap}"
                );
            }
        }
    }

    fn check(&self) {
        self.check_all(self.snaps.iter());
        let local = self.local.object("l.0000000000000000");
        let newest = self.snaps.iter().rev().find_map(|k| k.local);
        assert_eq!(newest.map(|s| local.bytes_at(s).is_some()), Some(local.bytes_at(SnapId::HEAD).is_some()));
        assert_eq!(
            newest.and_then(|s| local.bytes_at(s)),
            local.bytes_at(SnapId::HEAD),
            "head and newest snapshot"
        );
    }
}

fn play(parent: Option<Vec<u8>>, rounds: &[Round]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(parent);
        let (mut start, mut dirty) = (None, false);
        for round in rounds {
            let method = if round.repair || dirty { Method::Repair } else { Method::Replay };
            match world.play_round(start, round, method).await {
                Some(end) => {
                    (start, dirty) = (Some(end), false);
                    world.check();
                }
                None => dirty = true,
            }
        }
    });
}

/// The snapshots of a clone that is flattened deeply must hold an object of their own, also when one of those that show its
/// bytes at the primary is being removed.
#[test]
fn a_copy_up_reaches_all_older_snapshots_while_one_is_removed() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(Some(vec![7; 20]));
        [Kind::User, Kind::User, Kind::Mirror].into_iter().for_each(|kind| world.snapshot(kind));
        for known in &mut world.snaps {
            known.local = Some(world.local.new_snap());
        }
        let [removed, kept, start] = [0, 1, 2].map(|at| world.snaps[at].clone());
        world.happen(&Event::CopyUp(3, 9)).await;
        world.snapshot(Kind::Mirror);
        world.snaps[3].local = Some(world.local.new_snap());
        world.remote.remove_snap(removed.remote);
        let mut copier = world.copier(Some(start.remote), Method::Replay, false);
        copier.copy_up_at = vec![removed.remote, kept.remote];
        copier.copy(OBJECT, Local::Absent, Reason::Doubt, async { Ok(()) }).await.unwrap();
        let local = world.local.object("l.0000000000000000");
        assert_eq!(local.bytes_at(kept.local.unwrap()), Some(&[7; 20][..]));
        world.check_all(world.snaps[1..].iter());
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn every_snapshot_arrives_exactly(rounds in prop::collection::vec(round(), 1..5)) {
        play(None, &rounds);
    }

    #[test]
    fn clones_arrive_exactly(
        parent in prop::collection::vec(1u8..9, 1..OBJECT_BYTES as usize),
        rounds in prop::collection::vec(round(), 1..5),
    ) {
        play(Some(parent), &rounds);
    }
}

/// A round in which nothing goes wrong.
fn undisturbed(events: Vec<Event>) -> Round {
    Round {
        events,
        crashes: Vec::new(),
        drop_in_between: None,
        drop_midway: None,
        repair: false,
        abandoned: false,
        after: Vec::new(),
    }
}

/// An object was there, was removed, and comes back: in the snapshots between it stays absent.
#[test]
fn a_copy_up_leaves_alone_what_once_existed() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(None);
        let written = undisturbed(vec![Event::Write(0, 8, 1), Event::UserSnapshot]);
        let start = world.play_round(None, &written, Method::Replay).await;
        let removed = undisturbed(vec![Event::Remove, Event::UserSnapshot]);
        let start = world.play_round(start, &removed, Method::Replay).await;
        let users: Vec<_> = world.snaps.iter().filter(|k| k.kind == Kind::User).map(|k| k.remote).collect();

        world.happen(&Event::Write(0, 8, 3)).await;
        world.snapshot(Kind::Mirror);
        let local = world.local.new_snap();
        world.snaps.last_mut().unwrap().local = Some(local);
        let mut copier = world.copier(start, Method::Replay, false);
        copier.copy_up_at = users;
        copier.copy(OBJECT, Local::Absent, Reason::Doubt, async { Ok(()) }).await.unwrap();
        world.check();
    });
}

/// A client writes with the snapshot context from before a snapshot that has been copied: the clones tell of no change.
#[test]
fn a_write_that_was_under_way_while_a_snapshot_was_taken_arrives() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(None);
        let start = world.play_round(None, &undisturbed(vec![Event::Write(0, 8, 1)]), Method::Replay).await;
        let late = WriteSub::Write { offset: 4, data: Bytes::from_static(&[2; 8]) };
        world.write(SnapContext::default(), vec![late]).await;
        // With an even number of events the object is visited because its map says that it was written.
        let end = world.play_round(start, &undisturbed(Vec::new()), Method::Replay).await;
        assert!(end > start);
        let local = world.local.object("l.0000000000000000");
        assert_eq!(local.bytes_at(SnapId::HEAD), world.remote_now().as_deref());
        let newest = world.snaps.last().and_then(|known| known.local).unwrap();
        assert_eq!(local.bytes_at(newest), world.remote_now().as_deref());
    });
}
