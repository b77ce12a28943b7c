//! What becomes of writes that are under way when whoever made them is gone: the lock of the copy stays where it is until
//! each of them is answered.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use deep_copy::ids::SnapIds;
use journal::budget::Budget;
use journal::event::{Event, EventEntry};
use journal::replay::{Replay, ReplayContext};
use journal::types::{EntryPosition, EntryTid, TagTid};
use rados::fault::{Fault, FaultPlan, Faulty, Matcher, OperationKind};
use rados::{Extent, IoCtx, Location};
use rbd::Timestamp;
use rbd::exclusive_lock::{ExclusiveLock, LockOptions};
use rbd::image::{Image, OpenImage};
use tests::wait;
use tokio_util::sync::CancellationToken;

use crate::run;
use crate::world::{LOCAL_TAG, POOL, REMOTE_UUID, clusters, connect, pool};

/// How long the write that is under way takes to reach the OSD.
const LATE: Duration = Duration::from_secs(4);
/// Longest that anything else takes.
const LIMIT: Duration = Duration::from_secs(60);

/// An owner of a copy, as a daemon is: connection, lock, replay.
struct Owner {
    lock: ExclusiveLock,
    image: OpenImage,
}

impl Owner {
    /// Opens the copy, and takes its lock.
    async fn open(ioctx: IoCtx, name: &str) -> Result<Owner> {
        let ioctx = ioctx.gated();
        let (image, header) = Image::open_by_name(&ioctx, name).await?;
        let lock = ExclusiveLock::open(&ioctx, image.id(), LockOptions::default()).await?;
        tokio::time::timeout(LIMIT, lock.acquire()).await.context("the lock does not come")??;
        Ok(Owner { lock, image: OpenImage { image, header } })
    }

    async fn replay(&self) -> Result<Replay> {
        let context = ReplayContext {
            ids: SnapIds::new(self.image.image.data_ioctx().clone(), 1),
            local: self.image.clone(),
            lock: self.lock.report(),
            remote_mirror_uuid: REMOTE_UUID.into(),
            local_tag: LOCAL_TAG,
            commit: None,
            holds: None,
            snap_seqs: Default::default(),
            budget: Budget::new(64 << 20),
            cancel: CancellationToken::new(),
        };
        Ok(Replay::open(context).await?)
    }
}

fn entry(number: u64, byte: u8) -> (EntryPosition, EventEntry) {
    let event = Event::Write { extent: Extent::new(0, 4096), data: Bytes::from(vec![byte; 4096]) };
    let position = EntryPosition { tag: TagTid(1), entry: EntryTid(number) };
    (position, EventEntry { event, timestamp: Timestamp::default() })
}

/// The content of a copy whose first owner is gone, by `end`, while a write of ones is under way, and whose next owner
/// writes twos as soon as it has the lock.
async fn after(name: &str, end: impl AsyncFnOnce(Owner, Replay) -> Result<()>) -> Result<u8> {
    let cluster = &clusters().await?.b;
    let spec = format!("{POOL}/{name}");
    cluster.create_image(&spec, 8 << 20, &["--object-size", "1M"]).await?;
    let direct = pool(cluster, POOL).await?;
    let faulty = Faulty::new(direct.backend().clone(), FaultPlan::none(), &[]);
    let place = Location { pool: direct.pool_id(), namespace: "".into() };
    let first = Owner::open(IoCtx::new(faulty.clone(), place), name).await?;
    let data = Matcher::kind(OperationKind::Write).on_prefix("rbd_data.");
    faulty.set_plan(FaultPlan::none().at(1, data, Fault::Delay(LATE)));
    let mut replay = first.replay().await?;
    let (position, ones) = entry(0, 1);
    replay.push(position, ones).await?;
    wait::until("the write to be under way", LIMIT, || async { Ok((faulty.matched() == [1]).then_some(())) })
        .await?;
    end(first, replay).await?;

    let connection = connect(cluster).await?;
    let next = Owner::open(connection.pool(direct.pool_id()), name).await?;
    let mut replay = next.replay().await?;
    let (position, twos) = entry(1, 2);
    replay.push(position, twos).await?;
    replay.flush().await?;
    replay.stop().await?;
    tokio::time::sleep(LATE + Duration::from_secs(1)).await;
    next.lock.close().await?;
    Ok(cluster.read(&spec).await?[0])
}

/// A session is dropped with everything that belongs to it, as a task that does not end in time is.
#[test]
fn a_write_of_a_dropped_session_does_not_come_after_those_of_the_next_owner() {
    run(async {
        let content = after("dropped", async |owner, replay| {
            drop(replay);
            drop(owner);
            Ok(())
        });
        ensure!(content.await? == 2, "the older write came last");
        Ok(())
    });
}

/// A task that owned a session panics.
#[test]
fn a_write_of_a_session_that_panicked_does_not_come_after_those_of_the_next_owner() {
    run(async {
        let content = after("panicked", async |owner, replay| {
            let task = tokio::spawn(async move {
                let _session = (owner, replay);
                panic!("on purpose");
            });
            ensure!(task.await.is_err_and(|error| error.is_panic()), "it panics");
            Ok(())
        });
        ensure!(content.await? == 2, "the older write came last");
        Ok(())
    });
}

/// A session gives up its lock in order, but has left a replay running.
#[test]
fn a_lock_is_not_given_up_before_a_replay_that_was_forgotten() {
    run(async {
        let content = after("forgotten", async |owner, replay| {
            drop(replay);
            owner.lock.close().await?;
            Ok(())
        });
        ensure!(content.await? == 2, "the older write came last");
        Ok(())
    });
}
