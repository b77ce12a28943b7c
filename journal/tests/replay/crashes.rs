//! Replays that are cut off at every turn, and begun again behind what they had reported.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use journal::event::{Event, EventEntry, Op, OpTid};
use journal::replay::{Replay, ReplayContext, ReplayError, clear_marker, read_marker};
use journal::types::{EntryPosition, EntryTid, TagTid};
use rados::fault::{Fault, FaultPlan, Faulty, Matcher, OperationKind};
use rados::{Extent, IoCtx};
use rbd::{SnapshotNamespace, Timestamp};
use serde_json::json;

use crate::events::everything;
use crate::run;
use crate::world::{Copy, LOCAL_TAG, Primary, REMOTE_UUID, clusters, push};

const MB: u64 = 1 << 20;

/// Replays until the backend crashes or all is applied; answers with what was reported last, and whether it is all.
async fn life(
    copy: &Copy,
    entries: &[(EntryPosition, EventEntry)],
    commit: Option<EntryPosition>,
    plan: FaultPlan,
) -> Result<(Option<EntryPosition>, bool)> {
    let faulty = Faulty::new(copy.ioctx.backend().clone(), plan, &[]);
    let ioctx = IoCtx::new(
        faulty.clone(),
        rados::Location { pool: copy.ioctx.pool_id(), namespace: copy.ioctx.namespace().into() },
    );
    let mut applied = None;
    let work = async {
        let mut replay = Replay::open(copy.context(&ioctx, commit).await?).await?;
        applied = Some(replay.applied());
        let from = entries.partition_point(|(position, _)| Some(*position) <= commit);
        push(&mut replay, &entries[from..]).await?;
        replay.end_tag().await?;
        replay.stop().await?;
        Ok::<_, anyhow::Error>(true)
    };
    let done = tokio::select! {
        done = work => done?,
        () = faulty.crashed() => false,
    };
    Ok((applied.map_or(commit, |applied| *applied.borrow()), done))
}

/// Crashes again and again, later and later, each time in the middle of a request or behind it.
async fn cut_off(name: &str, primary: &Primary, step: u64) -> Result<()> {
    let (copy, entries) = (Copy::open(name).await?, primary.entries().await?);
    let (mut commit, mut lives) = (None, 0u64);
    loop {
        let fault = if lives.is_multiple_of(2) { Fault::CrashBefore } else { Fault::CrashAfter };
        let matcher = match lives % 3 {
            0 => Matcher::default(),
            _ => Matcher::kind(OperationKind::Write),
        };
        // At least a few requests, in the end as many as the longest operation takes.
        let nth = 2 + lives % 7 + lives / step;
        let plan = FaultPlan::none().at(nth, matcher, fault);
        let (applied, done) = life(&copy, &entries, commit, plan).await?;
        ensure!(applied >= commit, "it went back from {commit:?} to {applied:?}");
        lives += 1;
        if done {
            break;
        }
        // Every other life begins from where the one before it did, as if nothing had been committed.
        if lives.is_multiple_of(2) {
            commit = applied;
        }
    }
    println!("{name} was cut off {} times", lives - 1);
    ensure!(lives > 10, "{name} was cut off only {lives} times");
    copy.compare_after_cuts(primary, name).await
}

#[test]
fn replays_may_be_cut_off_anywhere() {
    run(async {
        let primary = Primary::create("cut", 21 * MB + 4096, &["--object-size", "1M"]).await?;
        primary.carry_out(&everything(true)).await?;
        cut_off("cut", &primary, 3).await
    });
}

#[test]
fn replays_of_clones_may_be_cut_off_anywhere() {
    run(async {
        let parent = format!("{}/cut-parent", crate::world::POOL);
        for cluster in clusters().await?.both() {
            cluster.create_image(&parent, 9 * MB, &["--object-size", "512K"]).await?;
            cluster.apply(&parent, tests::Extents::default().fill(MB + 100, 7 * MB, 1)).await?;
            cluster.snap_create(&format!("{parent}@base")).await?;
            cluster
                .clone_image(&format!("{parent}@base"), &format!("{}/cut-clone", crate::world::POOL), 2)
                .await?;
        }
        let primary = Primary::of("cut-clone").await?;
        let changes = [
            json!(["burst", 10, 4096, 1, 9 * MB]),
            json!(["snap_create", "one"]),
            json!(["burst", 10, 4096, 2, 9 * MB]),
            json!(["discard", 4 * MB, 2 * MB]),
            json!(["resize", 6 * MB]),
            json!(["snap_create", "two"]),
            json!(["snap_rollback", "one"]),
            json!(["burst", 10, 4096, 3, 6 * MB]),
            json!(["flatten"]),
            json!(["burst", 10, 4096, 4, 6 * MB]),
        ];
        primary.carry_out(&changes).await?;
        cut_off("cut-clone", &primary, 2).await
    });
}

/// Requests fail, hang and lose their answers: the replay says so and stops; begun again it does the rest.
#[test]
fn failing_requests_stop_a_replay_and_harm_nothing() {
    run(async {
        let primary = Primary::create("failing", 21 * MB + 4096, &["--object-size", "1M"]).await?;
        primary.carry_out(&everything(false)).await?;
        let (copy, entries) = (Copy::open("failing").await?, primary.entries().await?);
        let (mut commit, mut failures) = (None, 0);
        for seed in 0.. {
            let plan = if seed < 12 { FaultPlan::seeded(seed, 40 + 20 * seed, 4) } else { FaultPlan::none() };
            match life(&copy, &entries, commit, plan).await {
                Ok((_, true)) => break,
                Ok((applied, false)) => commit = applied,
                Err(error) => {
                    let class = error.downcast_ref::<ReplayError>().map(ReplayError::class);
                    ensure!(class != Some(rados::ErrorClass::Permanent), "{error:#}");
                    failures += 1;
                }
            }
        }
        ensure!(failures > 3, "only {failures} failures");
        copy.compare_after_cuts(&primary, "failing").await
    });
}

fn position(tag: u64, entry: u64) -> EntryPosition {
    EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) }
}

fn entry(event: Event) -> EventEntry {
    EventEntry { event, timestamp: Timestamp::default() }
}

fn write(offset: u64, byte: u8) -> Event {
    Event::Write { extent: Extent::new(offset, 4096), data: Bytes::from(vec![byte; 4096]) }
}

fn snap_create(tid: u64, name: &str) -> Event {
    let op = Op::SnapCreate { namespace: SnapshotNamespace::User, name: name.into() };
    Event::Op { tid: OpTid(tid), op }
}

async fn bare(name: &str) -> Result<Copy> {
    let spec = format!("{}/{name}", crate::world::POOL);
    clusters().await?.b.create_image(&spec, 8 * MB, &["--object-size", "1M"]).await?;
    Copy::open(name).await
}

/// What follows a snapshot waits for its result; without one it is taken when its tag ends.
#[test]
fn operations_wait_for_their_results() {
    run(async {
        let copy = bare("results").await?;
        let mut replay = copy.replay(None).await?;
        let applied = replay.applied();
        let head = [write(0, 1), snap_create(1, "failed"), write(0, 2)];
        for (number, event) in (0..).zip(head) {
            replay.push(position(1, number), entry(event)).await?;
        }
        replay.flush().await?;
        ensure!(*applied.borrow() == Some(position(1, 0)), "{:?}", *applied.borrow());
        let rest = [
            Event::OpFinish { tid: OpTid(1), result: -libc::EEXIST },
            snap_create(2, "made"),
            write(0, 3),
            Event::OpFinish { tid: OpTid(2), result: 0 },
            snap_create(3, "orphan"),
            write(0, 4),
        ];
        for (number, event) in (3..).zip(rest) {
            replay.push(position(1, number), entry(event)).await?;
        }
        replay.flush().await?;
        ensure!(*applied.borrow() == Some(position(1, 6)), "{:?}", *applied.borrow());
        replay.push(position(2, 0), entry(write(4096, 5))).await?;
        replay.flush().await?;
        ensure!(*applied.borrow() == Some(position(2, 0)), "{:?}", *applied.borrow());
        replay.stop().await?;
        let cluster = copy.cluster;
        copy.lock.close().await?;
        let spec = format!("{}/results", crate::world::POOL);
        for (snap, byte) in [("@made", 2), ("@orphan", 3), ("", 4)] {
            let content = cluster.read(&format!("{spec}{snap}")).await?;
            ensure!(content[0] == byte, "'{snap}' holds {}", content[0]);
        }
        ensure!(cluster.read(&format!("{spec}@failed")).await.is_err(), "a failed snapshot is there");
        Ok(())
    });
}

/// What an event of a type that is not known did to the primary is not known either: nothing behind it is applied.
#[test]
fn an_event_that_is_not_known_stops_a_replay() {
    run(async {
        let copy = bare("unknown").await?;
        let mut replay = copy.replay(None).await?;
        let events = [write(0, 1), Event::Flush, Event::Unknown { kind: 99 }, write(0, 2)];
        let (before, after) = events.split_at(2);
        for (number, event) in (0..).zip(before) {
            replay.push(position(1, number), entry(event.clone())).await?;
        }
        replay.flush().await?;
        let applied = replay.applied();
        let mut ended = Ok(());
        for (number, event) in (2..).zip(after) {
            ended = ended.and(replay.push(position(1, number), entry(event.clone())).await);
        }
        let error =
            ended.and(replay.flush().await).err().context("it went on behind what it does not know")?;
        ensure!(matches!(error, ReplayError::UnknownEvent { kind: 99, .. }), "{error}");
        ensure!(*applied.borrow() == Some(position(1, 1)), "{:?}", *applied.borrow());
        let content = copy.cluster.read(&format!("{}/unknown", crate::world::POOL)).await?;
        ensure!(content[0] == 1, "what follows was applied: {}", content[0]);
        Ok(())
    });
}

/// A marker counts for its primary and until somebody else has had the copy.
#[test]
fn markers_count_for_their_owners() {
    run(async {
        let copy = bare("marked").await?;
        let entries: Vec<_> = [write(0, 1), Event::Flush, write(0, 2), Event::Flush, write(4096, 3)]
            .into_iter()
            .enumerate()
            .map(|(number, event)| (position(1, number as u64), entry(event)))
            .collect();
        copy.replay_all(&entries).await?;
        let image = copy.context(&copy.ioctx, None).await?.local.image;
        let marker = read_marker(&image).await?.context("a marker")?;
        // Rewritten before the block was changed a second time, and not for the one that is changed for the first time.
        ensure!(marker.done == position(1, 1) && marker.local_tag == LOCAL_TAG, "{marker:?}");
        ensure!(marker.remote_mirror_uuid == REMOTE_UUID, "{marker:?}");
        let writes = async |change: fn(&mut ReplayContext)| {
            let mut context = copy.context(&copy.ioctx, None).await?;
            change(&mut context);
            let mut replay = Replay::open(context).await?;
            push(&mut replay, &entries).await?;
            replay.flush().await?;
            let writes = replay.counters().writes;
            replay.stop().await?;
            Ok::<_, anyhow::Error>(writes)
        };
        ensure!(writes(|_| {}).await? == 2, "only what lies behind the marker is applied again");
        ensure!(writes(|context| context.local_tag = TagTid(8)).await? == 3, "another tag was begun");
        ensure!(writes(|context| context.remote_mirror_uuid = "other".into()).await? == 3, "another primary");
        ensure!(writes(|context| context.holds = Some(position(1, 4))).await? == 0, "it is said to hold all");
        clear_marker(&image).await?;
        clear_marker(&image).await?;
        ensure!(read_marker(&image).await?.is_none(), "the marker is cleared");
        Ok(())
    });
}

/// Whoever lost the lock writes nothing any more.
#[test]
fn a_lost_lock_ends_a_replay() {
    run(async {
        let copy = bare("lost").await?;
        let mut replay = copy.replay(None).await?;
        replay.push(position(1, 0), entry(write(0, 1))).await?;
        replay.push(position(1, 1), entry(Event::Flush)).await?;
        replay.flush().await?;
        // As if somebody had broken it.
        let image = copy.context(&copy.ioctx, None).await?.local.image;
        let cookie = match copy.lock.report().borrow().state.clone() {
            rbd::exclusive_lock::LockState::Locked(cookie) => cookie,
            state => anyhow::bail!("{state:?}"),
        };
        copy.ioctx.unlock(&rbd::layout::header_object(image.id()), "rbd_lock", &cookie).await?;
        replay.push(position(1, 2), entry(write(0, 2))).await?;
        let error = replay.flush().await.err().context("an error")?;
        ensure!(matches!(error, ReplayError::LockLost(_)), "{error}");
        ensure!(replay.push(position(1, 3), entry(write(0, 3))).await.is_err(), "it goes on");
        ensure!(replay.stop().await.is_err(), "it says nothing");
        let content = copy.cluster.read(&format!("{}/lost", crate::world::POOL)).await?;
        ensure!(content[0] == 1, "{} was written without the lock", content[0]);
        Ok(())
    });
}
