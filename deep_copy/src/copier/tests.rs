//! Many objects at once, in simulated clusters: the prefix that is stored, errors, cancellation, what it costs.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use proptest::prelude::*;
use rados::fault::{Fault, FaultPlan, Faulty, Matcher, OperationKind};
use rados::{IoCtx, Location, SnapContext, SnapId, WriteOp, WriteSub};

use super::*;
use crate::budget::Budget;
use crate::checksum::Comparison;
use crate::object_copy::{Method, Side};
use crate::sim::{Crash, SimBackend};
use crate::steps::CopySteps;

const OBJECTS: u64 = 40;
const OBJECT_BYTES: u64 = 32;

/// Two clusters, and what each remote snapshot held.
struct World {
    remote: Arc<SimBackend>,
    local: Arc<SimBackend>,
    pairs: Vec<(SnapId, SnapId)>,
    history: HashMap<SnapId, Vec<Option<Vec<u8>>>>,
    saved: Arc<AtomicU64>,
}

impl World {
    fn new() -> World {
        World {
            remote: SimBackend::new(),
            local: SimBackend::new(),
            pairs: Vec::new(),
            history: HashMap::new(),
            saved: Arc::default(),
        }
    }

    async fn write(&self, object: u64, sub: WriteSub) {
        let snap_context = SnapContext::new(self.pairs.iter().map(|(remote, _)| *remote).collect());
        let op = WriteOp::new(format!("r.{object:016x}")).under(snap_context).with(sub);
        self.remote.ioctx().write(op).await.ok();
    }

    fn contents(cluster: &Arc<SimBackend>, prefix: &str, snap: SnapId) -> Vec<Option<Vec<u8>>> {
        let bytes = |object: u64| {
            cluster.object(&format!("{prefix}.{object:016x}")).bytes_at(snap).map(<[u8]>::to_vec)
        };
        (0..OBJECTS).map(bytes).collect()
    }

    fn snapshot(&mut self) {
        let (remote, local) = (self.remote.new_snap(), self.local.new_snap());
        self.history.insert(remote, World::contents(&self.remote, "r", SnapId::HEAD));
        self.pairs.push((remote, local));
    }

    /// A copy of all snapshots behind the first `copied` ones.
    fn copier(&self, copied: usize, resumed: bool, cancel: &CancellationToken) -> Copier {
        let existing: Vec<SnapId> = self.pairs.iter().map(|(_, local)| *local).collect();
        let start = copied.checked_sub(1).map(|last| self.pairs[last].0);
        let side = |data, prefix: &str| Side { data, object_prefix: prefix.into() };
        let saved = self.saved.clone();
        Copier {
            objects: ObjectCopier {
                remote: side(self.remote.ioctx(), "r"),
                local: side(self.local.ioctx(), "l"),
                steps: Arc::new(CopySteps::new(start, &self.pairs[copied..], &existing).unwrap()),
                object_size: OBJECT_BYTES,
                method: Method::Replay,
                comparison: Comparison::default(),
                resumed,
                has_parent: false,
                copy_up_at: Vec::new(),
                parents: None,
                budget: Budget::new(64 << 10).part(),
                cancel: cancel.clone(),
            },
            visits: Visits::all(OBJECTS).from(self.saved.load(Ordering::Relaxed)),
            object_count: OBJECTS,
            maps: None,
            progress: watch::Sender::new(Progress::default()),
            checkpoint: Box::new(move |below| {
                assert!(saved.fetch_max(below, Ordering::Relaxed) < below, "progress only grows");
                async { Ok(()) }.boxed()
            }),
            options: Options { objects_in_flight: 7, checkpoint_interval: Duration::ZERO },
        }
    }

    fn check(&self, below: u64) {
        for (remote, local) in &self.pairs {
            let found = World::contents(&self.local, "l", *local);
            let expected = &self.history[remote];
            for object in 0..below as usize {
                assert_eq!(found[object], expected[object], "object {object} at {local}");
            }
        }
    }
}

fn data(byte: u8, length: usize) -> Bytes {
    vec![byte; length].into()
}

#[derive(Debug, Clone)]
struct Delta {
    writes: Vec<(u64, u64, u8)>,
    snapshots_between: usize,
    crashes: Vec<Crash>,
}

fn delta() -> impl Strategy<Value = Delta> {
    let write = (0..OBJECTS, 0..OBJECT_BYTES - 4, any::<u8>());
    let crash = (0u64..60, any::<bool>()).prop_map(|(after_writes, applied)| Crash { after_writes, applied });
    (prop::collection::vec(write, 0..120), 0usize..3, prop::collection::vec(crash, 0..4))
        .prop_map(|(writes, snapshots_between, crashes)| Delta { writes, snapshots_between, crashes })
}

async fn play(deltas: &[Delta]) {
    let (mut world, cancel) = (World::new(), CancellationToken::new());
    for delta in deltas {
        let copied = world.pairs.len();
        world.saved = Arc::default();
        for (index, (object, offset, byte)) in delta.writes.iter().enumerate() {
            let sub = match byte % 8 {
                0 => WriteSub::Remove,
                1 => WriteSub::Truncate(*offset),
                _ => WriteSub::Write { offset: *offset, data: data(*byte, 4) },
            };
            world.write(*object, sub).await;
            if delta.snapshots_between > 0
                && index % (delta.writes.len() / (delta.snapshots_between + 1) + 1) == 9
            {
                world.snapshot();
            }
        }
        world.snapshot();
        for (attempt, crash) in delta.crashes.iter().map(Some).chain([None]).enumerate() {
            world.local.set_crash(crash.copied());
            match world.copier(copied, attempt > 0, &cancel).run().await {
                Ok(progress) => {
                    assert_eq!(progress.copied_below, OBJECTS);
                    break;
                }
                Err(CopyFailed::Object { source, .. }) => {
                    assert!(
                        crash.is_some() && source.rados().is_some_and(|e| e.is(libc::ESHUTDOWN)),
                        "{source}"
                    );
                    world.check(world.saved.load(Ordering::Relaxed));
                }
                Err(error) => panic!("{error}"),
            }
        }
        world.local.set_crash(None);
        assert_eq!(world.saved.load(Ordering::Relaxed), OBJECTS);
        world.check(OBJECTS);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn interrupted_anywhere_it_goes_on_where_it_was(deltas in prop::collection::vec(delta(), 1..4)) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(play(&deltas));
    }
}

#[tokio::test]
async fn a_first_copy_takes_one_read_and_one_write_per_object() {
    let mut world = World::new();
    for object in 0..10 {
        world.write(object, WriteSub::Write { offset: 8, data: data(1, 8) }).await;
    }
    world.snapshot();
    let (_, before) = world.remote.counts();
    let progress = world.copier(0, false, &CancellationToken::new()).run().await.unwrap();
    let (_, reads) = world.remote.counts();
    assert_eq!(reads - before, OBJECTS);
    assert_eq!(world.local.counts(), (10, 0));
    assert_eq!((progress.objects_done, progress.read_bytes, progress.written_bytes), (OBJECTS, 80, 170));
    world.check(OBJECTS);
}

#[tokio::test]
async fn an_unchanged_object_costs_one_read_and_a_changed_one_brings_its_ranges_only() {
    let mut world = World::new();
    for object in 0..10 {
        world.write(object, WriteSub::Write { offset: 0, data: data(1, 32) }).await;
    }
    world.snapshot();
    world.copier(0, false, &CancellationToken::new()).run().await.unwrap();
    world.saved = Arc::default();
    world.write(3, WriteSub::Write { offset: 4, data: data(2, 4) }).await;
    world.snapshot();
    let ((_, reads), (writes, _)) = (world.remote.counts(), world.local.counts());
    let progress = world.copier(1, false, &CancellationToken::new()).run().await.unwrap();
    assert_eq!(world.remote.counts().1 - reads, OBJECTS + 1);
    assert_eq!(world.local.counts().0 - writes, 1);
    assert_eq!(progress.read_bytes, 4);
    world.check(OBJECTS);
}

#[tokio::test]
async fn a_cancelled_copy_says_so_and_keeps_what_it_has() {
    let mut world = World::new();
    for object in 0..OBJECTS {
        world.write(object, WriteSub::Write { offset: 0, data: data(1, 8) }).await;
    }
    world.snapshot();
    let cancel = CancellationToken::new();
    let copier = world.copier(0, false, &cancel);
    let mut progress = copier.progress.subscribe();
    let running = tokio::spawn(copier.run());
    progress.wait_for(|progress| progress.copied_below >= 5).await.unwrap();
    cancel.cancel();
    assert!(matches!(running.await.unwrap(), Err(CopyFailed::Cancelled)));
    let saved = world.saved.load(Ordering::Relaxed);
    assert!((5..OBJECTS).contains(&saved), "{saved}");
    world.check(saved);
    world.copier(0, true, &CancellationToken::new()).run().await.unwrap();
    world.check(OBJECTS);
}

#[tokio::test]
async fn a_snapshot_that_others_wrote_behind_is_not_filled() {
    let mut world = World::new();
    world.write(2, WriteSub::Write { offset: 0, data: data(1, 8) }).await;
    world.snapshot();
    let local = world.pairs[0].1;
    let op = WriteOp::new(format!("l.{:016x}", 2)).under(SnapContext::new(vec![local]));
    world.local.ioctx().write(op.with(WriteSub::WriteFull(data(9, 4)))).await.unwrap();
    match world.copier(0, false, &CancellationToken::new()).run().await {
        Err(CopyFailed::Object { object: ObjectNumber(2), source: CopyError::Overtaken { snap, .. } }) => {
            assert_eq!(snap, local);
        }
        other => panic!("{other:?}"),
    }
}

/// An image of which no read is answered does not keep another one from being copied, however little memory there is.
#[tokio::test]
async fn an_image_whose_reads_hang_holds_up_no_other_one() {
    let (hung, mut world, cancel) = (World::new(), World::new(), CancellationToken::new());
    for object in 0..OBJECTS {
        world.write(object, WriteSub::WriteFull(data(7, OBJECT_BYTES as usize))).await;
    }
    world.snapshot();
    let budget = Budget::new(4 * OBJECT_BYTES);
    let with_part = |mut copier: Copier, remote: Option<IoCtx>| {
        copier.objects.budget = budget.part();
        copier.objects.remote.data = remote.unwrap_or(copier.objects.remote.data);
        copier
    };
    let silent = FaultPlan::none().from(1, Matcher::kind(OperationKind::Read), Fault::LoseAnswer(None));
    let remote = world.remote.ioctx();
    let location = Location { pool: remote.pool_id(), namespace: remote.namespace().into() };
    let remote = IoCtx::new(Faulty::new(remote.backend().clone(), silent, &[]), location);
    let hung = World { pairs: world.pairs.clone(), ..hung };
    let never = with_part(hung.copier(0, false, &cancel), Some(remote)).run();
    let mut never = std::pin::pin!(never);
    assert!((&mut never).now_or_never().is_none());
    let copied = with_part(world.copier(0, false, &cancel), None).run();
    tokio::select! {
        _ = &mut never => panic!("nothing was answered"),
        copied = tokio::time::timeout(Duration::from_secs(60), copied) => {
            copied.expect("it is not held up").expect("it is copied");
        }
    }
    world.check(OBJECTS);
    cancel.cancel();
    assert!(matches!(never.await, Err(CopyFailed::Cancelled)));
}
