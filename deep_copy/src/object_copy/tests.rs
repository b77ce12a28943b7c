//! Whole histories of an object, copied from one simulated cluster to another: random writes, snapshots and removals
//! of snapshots remotely; rounds with any number of user snapshots; crashes at any write, with lost answers; parents.
//! After each completed round every local snapshot and the head must hold exactly what the primary's did.

use bytes::Bytes;
use proptest::prelude::*;
use rados::{Extent, SnapContext, WriteOp, WriteSub};

use super::*;
use crate::sim::{Crash, SimBackend};

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
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
        prop::collection::vec(event(), 0..4),
    )
        .prop_map(|(events, crashes, drop_in_between, repair, abandoned, after)| Round {
            events,
            crashes,
            drop_in_between,
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
        World { remote, local, parent, snaps: Vec::new(), comparison }
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

    fn drop_snapshot(&mut self, index: &prop::sample::Index) {
        let droppable: Vec<usize> =
            (0..self.snaps.len()).filter(|i| self.snaps[*i].kind != Kind::Mirror).collect();
        if !droppable.is_empty() {
            let known = self.snaps.remove(droppable[index.index(droppable.len())]);
            self.remote.remove_snap(known.remote);
            known.local.into_iter().for_each(|snap| self.local.remove_snap(snap));
        }
    }

    fn copier(&self, start: Option<SnapId>, method: Method, resumed: bool) -> ObjectCopier {
        let waiting = self.snaps.iter().filter(|k| start.is_none_or(|start| k.remote > start));
        let pairs: Vec<_> = waiting.filter_map(|k| k.local.map(|l| (k.remote, l))).collect();
        let existing: Vec<SnapId> = self.snaps.iter().filter_map(|k| k.local).collect();
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
            copy_up_at: None,
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
        for event in &round.after {
            // A user snapshot made now belongs to the next round.
            if !matches!(event, Event::UserSnapshot) {
                self.happen(event).await;
            }
        }
        let mut resumed = false;
        let reason = if round.events.len().is_multiple_of(2) { Reason::Claimed } else { Reason::Doubt };
        for (attempt, crash) in round.crashes.iter().map(Some).chain([None]).enumerate() {
            if let (1, Some(index)) = (attempt, &round.drop_in_between) {
                self.drop_snapshot(index);
            }
            self.local.set_crash(crash.copied());
            let copier = self.copier(start, method, resumed);
            match copier.copy(OBJECT, Local::Untested, reason, async { Ok(()) }).await {
                Ok(copied) => {
                    self.check_states(&copier, &copied);
                    self.local.set_crash(None);
                    return Some(end);
                }
                Err(CopyError::Local(error)) if crash.is_some() => {
                    assert!(error.is(libc::ESHUTDOWN), "{error}")
                }
                Err(error) => panic!("{error}"),
            }
            resumed = true;
            if round.abandoned {
                break;
            }
        }
        self.local.set_crash(None);
        let at = self.snaps.iter().position(|k| k.remote == end).unwrap();
        let known = self.snaps.remove(at);
        self.remote.remove_snap(known.remote);
        known.local.into_iter().for_each(|snap| self.local.remove_snap(snap));
        None
    }

    fn check_states(&self, copier: &ObjectCopier, copied: &Copied) {
        let object = self.local.object("l.0000000000000000");
        for (step, state) in copier.steps.steps().iter().zip(&copied.states) {
            assert_eq!(
                object.bytes_at(step.local).is_some(),
                state.may_exist(),
                "object map at {}",
                step.local
            );
        }
    }

    fn check(&self) {
        let local = self.local.object("l.0000000000000000");
        for known in &self.snaps {
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

/// A client writes with the snapshot context from before a snapshot that has been copied: the clones tell of no change.
#[test]
fn a_write_that_was_under_way_while_a_snapshot_was_taken_arrives() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let round = |events| Round {
            events,
            crashes: Vec::new(),
            drop_in_between: None,
            repair: false,
            abandoned: false,
            after: Vec::new(),
        };
        let mut world = World::new(None);
        let start = world.play_round(None, &round(vec![Event::Write(0, 8, 1)]), Method::Replay).await;
        let late = WriteSub::Write { offset: 4, data: Bytes::from_static(&[2; 8]) };
        world.write(SnapContext::default(), vec![late]).await;
        // With an even number of events the object is visited because its map says that it was written.
        let end = world.play_round(start, &round(Vec::new()), Method::Replay).await;
        assert!(end > start);
        let local = world.local.object("l.0000000000000000");
        assert_eq!(local.bytes_at(SnapId::HEAD), world.remote_now().as_deref());
        let newest = world.snaps.last().and_then(|known| known.local).unwrap();
        assert_eq!(local.bytes_at(newest), world.remote_now().as_deref());
    });
}
