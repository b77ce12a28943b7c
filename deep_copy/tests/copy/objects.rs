//! Random histories of raw objects with self-managed snapshots on one cluster, copied to another by rounds, with writes
//! that fail or lose their answers in between, and compared byte for byte at every snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use deep_copy::budget::Budget;
use deep_copy::checksum::{Compared, Comparison};
use deep_copy::copier::{Copier, CopyFailed, Options, Progress};
use deep_copy::diff::Visits;
use deep_copy::object_copy::{CopyError, Method, ObjectCopier, Side};
use deep_copy::object_plan::Action;
use deep_copy::ranges::RangeSet;
use deep_copy::steps::CopySteps;
use futures::FutureExt;
use rados::error::ResultExt;
use rados::fault::{Fault, FaultPlan, Faulty, Matcher, OperationKind};
use rados::{Extent, IoCtx, Location, SnapContext, SnapId, WriteOp, WriteSub};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{Random, clusters, pool, run};

const OBJECTS: u64 = 12;
const OBJECT_BYTES: u64 = 256 << 10;
const ROUNDS: u64 = 4;

type Contents = Vec<Option<Vec<u8>>>;

/// An image's worth of objects on both sides.
struct World {
    remote: IoCtx,
    local: IoCtx,
    prefix: String,
    random: Random,
    now: Contents,
    /// Remote snapshots with their local counterparts.
    pairs: BTreeMap<SnapId, SnapId>,
    held: BTreeMap<SnapId, Contents>,
}

impl World {
    async fn new(seed: u64) -> World {
        let clusters = clusters().await;
        let epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        World {
            remote: pool(&clusters.a).await,
            local: pool(&clusters.b).await,
            prefix: format!("objects.{seed}.{:x}", epoch.as_nanos()),
            random: Random(seed),
            now: vec![None; OBJECTS as usize],
            pairs: BTreeMap::new(),
            held: BTreeMap::new(),
        }
    }

    fn name(&self, object: u64) -> String {
        format!("{}.{object:016x}", self.prefix)
    }

    /// Changes an object of the primary, and what is expected of it.
    async fn change(&mut self) {
        let object = self.random.below(OBJECTS);
        let offset = self.random.below(OBJECT_BYTES - 1);
        let length = 1 + self.random.below(20_000.min(OBJECT_BYTES - offset));
        let state = &mut self.now[object as usize];
        let sub = match self.random.below(10) {
            0 => {
                *state = None;
                WriteSub::Remove
            }
            1 => {
                state.iter_mut().for_each(|bytes| bytes.resize(offset as usize, 0));
                WriteSub::Truncate(offset)
            }
            2 | 3 => {
                for bytes in state.iter_mut() {
                    let end = bytes.len().min((offset + length) as usize);
                    bytes[(offset as usize).min(end)..end].fill(0);
                }
                // What a zero without a byte makes of an OSD is its end.
                WriteSub::Zero(Extent::new(offset, length))
            }
            _ => {
                let data = self.random.bytes(length);
                let bytes = state.get_or_insert_default();
                let size = bytes.len().max((offset + length) as usize);
                bytes.resize(size, 0);
                bytes[offset as usize..(offset + length) as usize].copy_from_slice(&data);
                WriteSub::Write { offset, data: data.into() }
            }
        };
        let context = SnapContext::new(self.pairs.keys().copied().collect());
        let op = WriteOp::new(self.name(object)).under(context).with(sub);
        self.remote.write(op).await.optional().expect("a write");
    }

    async fn snapshot(&mut self) {
        let (remote, local) =
            tokio::try_join!(self.remote.snap_create(), self.local.snap_create()).expect("snapshots");
        self.pairs.insert(remote, local);
        self.held.insert(remote, self.now.clone());
    }

    async fn remove_snapshot(&mut self, remote: SnapId) {
        let local = self.pairs.remove(&remote).expect("a snapshot");
        self.held.remove(&remote);
        tokio::try_join!(self.remote.snap_remove(remote), self.local.snap_remove(local))
            .expect("removed snapshots");
    }

    /// Writes to the copy as no mirroring does, after the local snapshot of `start` and before those that wait.
    async fn stray(&mut self, start: SnapId) {
        for _ in 0..5 {
            let (object, offset) = (self.random.below(OBJECTS), self.random.below(OBJECT_BYTES - 5000));
            let data = self.random.bytes(5000).into();
            let context = SnapContext::new(self.pairs.range(..=start).map(|(_, local)| *local).collect());
            let op = WriteOp::new(self.name(object)).under(context);
            self.local.write(op.with(WriteSub::Write { offset, data })).await.expect("a stray write");
        }
    }

    fn copier(
        &self,
        local: IoCtx,
        start: Option<SnapId>,
        method: Method,
        resumed: bool,
        saved: &Arc<AtomicU64>,
    ) -> Copier {
        let waiting = self.pairs.iter().filter(|(remote, _)| start.is_none_or(|start| **remote > start));
        let pairs: Vec<_> = waiting.map(|(remote, local)| (*remote, *local)).collect();
        let existing: Vec<SnapId> = self.pairs.values().copied().collect();
        let side = |data| Side { data, object_prefix: self.prefix.clone() };
        let (first, saved) = (saved.load(Ordering::Relaxed), saved.clone());
        Copier {
            objects: ObjectCopier {
                remote: side(self.remote.clone()),
                local: side(local),
                steps: Arc::new(CopySteps::new(start, &pairs, &existing).expect("steps")),
                object_size: OBJECT_BYTES,
                method,
                comparison: Comparison::default(),
                resumed,
                has_parent: false,
                copy_up_at: Vec::new(),
                parents: None,
                budget: Budget::new(4 << 20).part(),
                cancel: CancellationToken::new(),
            },
            visits: Visits::all(OBJECTS).from(first),
            object_count: OBJECTS,
            maps: None,
            progress: watch::Sender::new(Progress::default()),
            checkpoint: Box::new(move |below| {
                saved.store(below, Ordering::Relaxed);
                async { Ok(()) }.boxed()
            }),
            options: Options { objects_in_flight: 5, checkpoint_interval: Duration::ZERO },
        }
    }

    /// Copies what is behind `start`, and is interrupted up to three times.
    async fn copy(&mut self, start: Option<SnapId>, method: Method) {
        let saved = Arc::new(AtomicU64::new(0));
        for attempt in 0..4 {
            let plan = match attempt {
                3 => FaultPlan::none(),
                _ => self.interruption(),
            };
            let faulty = Faulty::new(self.local.backend().clone(), plan, &[]);
            let place = Location { pool: self.local.pool_id(), namespace: self.local.namespace().into() };
            let local = IoCtx::new(faulty, place);
            match self.copier(local, start, method, attempt > 0, &saved).run().await {
                Ok(progress) => {
                    assert_eq!(progress.copied_below, OBJECTS);
                    return;
                }
                Err(CopyFailed::Object { source, .. }) => {
                    assert!(source.rados().is_some_and(|e| e.is(libc::ESHUTDOWN)), "{source}");
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("a copy without faults failed");
    }

    /// From some write on nothing works any more; that write may yet take effect.
    fn interruption(&mut self) -> FaultPlan {
        let write = Matcher { kind: Some(OperationKind::Write), ..Matcher::default() };
        let (nth, failed) = (1 + self.random.below(12), Some(libc::ESHUTDOWN));
        let fault =
            if self.random.below(2) == 0 { Fault::LoseAnswer(failed) } else { Fault::Fail(libc::ESHUTDOWN) };
        FaultPlan::none().at(nth, write.clone(), fault).from(nth + 1, write, Fault::Fail(libc::ESHUTDOWN))
    }

    async fn check(&self) {
        let newest = self.held.last_key_value().map(|(remote, contents)| (SnapId::HEAD, contents, *remote));
        let all = self.held.iter().map(|(remote, contents)| (self.pairs[remote], contents, *remote));
        for (snap, contents, remote) in all.chain(newest) {
            for (object, expected) in contents.iter().enumerate() {
                let whole = Extent::new(0, OBJECT_BYTES);
                let found = self.local.read_extent(&self.name(object as u64), snap, whole).await;
                let found = found.optional().expect("a read").map(|bytes| bytes.to_vec());
                let same = found == *expected;
                assert!(same, "object {object} at local {snap}, remote {remote}: {}", told(&found, expected));
            }
        }
    }
}

/// Where two objects differ first.
fn told(found: &Option<Vec<u8>>, expected: &Option<Vec<u8>>) -> String {
    match (found, expected) {
        (Some(a), Some(b)) => {
            let at = a.iter().zip(b).position(|(a, b)| a != b);
            format!("{} bytes instead of {}, the first other one at {at:?}", a.len(), b.len())
        }
        (a, b) => format!("exists: {}, not {}", a.is_some(), b.is_some()),
    }
}

async fn play(seed: u64) {
    let mut world = World::new(seed).await;
    let mut start = None;
    for _ in 0..ROUNDS {
        for _ in 0..world.random.below(3) {
            for _ in 0..world.random.below(20) {
                world.change().await;
            }
            world.snapshot().await;
        }
        for _ in 0..world.random.below(25) {
            world.change().await;
        }
        world.snapshot().await;
        let end = *world.pairs.last_key_value().expect("a snapshot").0;
        // The primary is written to while the copy runs.
        for _ in 0..world.random.below(10) {
            world.change().await;
        }
        let mut method = Method::Replay;
        if let (Some(start), 0) = (start, world.random.below(3)) {
            world.stray(start).await;
            method = Method::Repair;
        }
        world.copy(start, method).await;
        world.check().await;
        let user: Vec<SnapId> = world.pairs.keys().copied().filter(|snap| *snap != end).collect();
        if !user.is_empty() && world.random.below(2) == 0 {
            let gone = user[world.random.below(user.len() as u64) as usize];
            world.remove_snapshot(gone).await;
        }
        start = Some(end);
    }
}

#[test]
fn every_snapshot_arrives_exactly() {
    run(async {
        for seed in 1..=6 {
            eprintln!("seed {seed}");
            play(seed).await;
        }
    });
}

/// What was written behind the snapshot to be filled stays as it is: the copy says so and writes nothing.
#[test]
fn a_snapshot_that_others_wrote_behind_is_not_filled() {
    run(async {
        let mut world = World::new(78).await;
        let (name, size) = (world.name(0), 10_000);
        let write = |ioctx: IoCtx, op: WriteOp| async move { ioctx.write(op).await.expect("a write") };
        let full = |byte: u8| WriteSub::WriteFull(vec![byte; size].into());
        write(world.remote.clone(), WriteOp::new(&name).with(full(1))).await;
        world.snapshot().await;
        let all: Vec<SnapId> = world.pairs.values().copied().collect();
        write(world.local.clone(), WriteOp::new(&name).with(full(2))).await;
        write(world.local.clone(), WriteOp::new(&name).under(SnapContext::new(all)).with(full(3))).await;
        for method in [Method::Replay, Method::Repair] {
            let saved = Arc::new(AtomicU64::new(0));
            let copy = world.copier(world.local.clone(), None, method, false, &saved).run().await;
            let failed = copy.expect_err("a copy that was overtaken");
            let overtaken = matches!(failed, CopyFailed::Object { source: CopyError::Overtaken { .. }, .. });
            assert!(overtaken, "{failed}");
            let held = world.local.read_extent(&name, SnapId::HEAD, Extent::new(0, OBJECT_BYTES)).await;
            assert_eq!(held.expect("a read"), vec![3; size], "{method:?}");
        }
    });
}

/// Objects of all kinds of sizes, in both orders, looked at closely and from afar: what is to be copied is what differs.
#[test]
fn comparisons_find_what_differs() {
    const KIB: u64 = 1 << 10;
    /// Sizes of the primary's and of the copy's object (`None`: there is none), and a byte of the copy that is wrong.
    type Case = (Option<u64>, Option<u64>, Option<u64>);
    const CASES: [Case; 12] = [
        (Some(OBJECT_BYTES), Some(OBJECT_BYTES), None),
        (Some(OBJECT_BYTES), Some(OBJECT_BYTES), Some(70_000)),
        (Some(64 * KIB), Some(64 * KIB), None),
        (Some(64 * KIB), Some(64 * KIB), Some(0)),
        (Some(64 * KIB), Some(OBJECT_BYTES), Some(9000)),
        (Some(OBJECT_BYTES), Some(64 * KIB + 1), Some(64 * KIB)),
        (Some(10_000), Some(10_000), None),
        (Some(10_000), Some(10_000), Some(9_999)),
        (Some(0), Some(0), None),
        (Some(0), Some(5000), None),
        (Some(5000), Some(0), None),
        (None, Some(0), None),
    ];
    run(async {
        let world = World::new(77).await;
        let content = Random(5).bytes(OBJECT_BYTES);
        for (case, (theirs, ours, wrong)) in CASES.into_iter().enumerate() {
            let name = world.name(case as u64);
            for (ioctx, size, wrong) in [(&world.remote, theirs, None), (&world.local, ours, wrong)] {
                let Some(size) = size else { continue };
                let mut bytes = content[..size as usize].to_vec();
                wrong.into_iter().for_each(|at: u64| bytes[at as usize] ^= 1);
                ioctx
                    .write(WriteOp::new(&name).with(WriteSub::WriteFull(bytes.into())))
                    .await
                    .expect("a write");
            }
        }
        // Of several that look closely or not by turns, each starts from what the one before has found.
        for order in [(0..CASES.len()).collect::<Vec<_>>(), (0..CASES.len()).rev().collect()] {
            let comparison = Comparison::default();
            for case in order {
                let (theirs, ours, wrong) = CASES[case];
                let object = world.name(case as u64);
                let side = |data| Compared { data, object: &object, snap: SnapId::HEAD };
                let found = comparison.compare(side(&world.remote), side(&world.local), OBJECT_BYTES).await;
                let (size, action) = found.expect("a comparison");
                assert_eq!(size, theirs, "case {case}");
                check_action(case, &action, (theirs, ours, wrong));
            }
        }
    });

    fn check_action(case: usize, action: &Action, (theirs, ours, wrong): Case) {
        let (Some(theirs), Some(ours)) = (theirs, ours) else {
            return assert_eq!(*action, Action::Remove, "case {case}");
        };
        if theirs == ours && wrong.is_none() {
            return assert_eq!(*action, Action::Nothing, "case {case}");
        }
        let Action::Update { size, ranges } = action else { panic!("case {case}: {action:?}") };
        assert_eq!(*size, theirs, "case {case}");
        let must: Vec<Extent> = wrong.map(|at| Extent::new(at, 1)).into_iter().collect();
        let must =
            RangeSet::from_extents(&[must, vec![Extent::new(ours, theirs.saturating_sub(ours))]].concat());
        let must = must.intersection(&RangeSet::below(theirs));
        assert_eq!(must.without(ranges), RangeSet::default(), "case {case}: {ranges:?} lacks something");
        // A chunk around the wrong byte, and what lies behind the last whole chunk that both have.
        let needless = ranges.bytes() - must.bytes();
        assert!(needless < 2 * 4096, "case {case}: {needless} bytes too many in {ranges:?}");
    }
}
