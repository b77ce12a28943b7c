//! Images that somebody else holds: a VM's writer, one that died, one that does not give up, a person.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use control::{Pool, Quiesce, Role};
use journal::Journal;
use journal::append::Appender;
use journal::event::{Event, EventEntry};
use journal::image_journal::ImageJournal;
use journal::types::{IMAGE_CLIENT_ID, LOCAL_MIRROR_UUID, TagData, TagPredecessor};
use rados::{Extent, SnapId};
use rbd::exclusive_lock::{ExclusiveLock, LockOptions, RequestPolicy};
use rbd::mirroring::MirrorImageMode;
use rbd::object_map::ObjectState;
use rbd::types::Timestamp;
use rbd::{Image, ImageHeader};
use tokio::process::Child;

use crate::picture::expect_same_picture;
use crate::world::{LIMIT, SIZE, World, expect_same_refusal};

const IMAGE: &str = "vm";

/// A stock client that writes without end, as a VM does.
struct Writer {
    child: Child,
}

impl Writer {
    async fn start(world: &World, pool: &Pool, name: &str) -> Result<Writer> {
        let args = ["--name=vm", "--ioengine=rbd", "--clientname=admin", "--rw=randwrite", "--bs=4k"];
        let pace = ["--iodepth=8", "--rate_iops=1000", "--size=100%", "--time_based", "--runtime=600"];
        let image = [format!("--pool={}", pool.name()), format!("--rbdname={name}")];
        let tool = tests::Tool::new("fio").env("CEPH_CONF", world.a.stock.conf_path());
        let child = tool.args(args).args(pace).args(image).start()?;
        let writer = Writer { child };
        locked(pool, name).await?;
        Ok(writer)
    }

    /// Waits until it ends by itself, with an error.
    async fn fails(mut self) -> Result<()> {
        let ended = tokio::time::timeout(LIMIT, self.child.wait()).await.context("it goes on writing")??;
        ensure!(!ended.success(), "it ended well");
        Ok(())
    }

    async fn kill(mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

/// Waits until a writer has the lock. One that gave it up takes it again with his next write, unless he was fenced.
async fn locked(pool: &Pool, name: &str) -> Result<()> {
    tests::wait::until("the writer to have the lock", LIMIT, || async {
        let (_, header) = open(pool, name).await?;
        Ok((header.lock.lockers.len() == 1).then_some(()))
    })
    .await
}

async fn open(pool: &Pool, name: &str) -> Result<(Image, ImageHeader)> {
    Ok(Image::open_by_name(pool.ioctx(), name).await?)
}

async fn mirrored(world: &World, mode: MirrorImageMode) -> Result<Pool> {
    let pool = world.a.pool(&world.mirrored_pool().await?).await?;
    world.a.image(&format!("{}/{IMAGE}", pool.name()), &[]).await?;
    pool.enable(IMAGE, mode).await?;
    Ok(pool)
}

/// What a writer's librbd does for us while the writer goes on.
pub async fn the_owner_makes_and_removes_snapshots(world: &World) -> Result<()> {
    let pool = mirrored(world, MirrorImageMode::Snapshot).await?;
    let mut writer = Writer::start(world, &pool, IMAGE).await?;
    for quiesce in [None, Some(Quiesce::Skip), Some(Quiesce::IgnoreError)] {
        let id = pool.snapshot(IMAGE, quiesce).await?;
        let (_, header) = open(&pool, IMAGE).await?;
        let mirror = header.snapshots.get(&id).and_then(|s| s.mirror()).context("a mirror-snapshot")?;
        ensure!(mirror.complete, "{header:?}");
        locked(&pool, IMAGE).await?;
    }
    pool.disable(IMAGE, false).await?;
    let (_, header) = open(&pool, IMAGE).await?;
    ensure!(header.snapshots.is_empty(), "{header:?}");
    locked(&pool, IMAGE).await?;
    ensure!(writer.runs()?, "the writer was disturbed");
    pool.enable(IMAGE, MirrorImageMode::Snapshot).await?;
    ensure!(writer.runs()?, "the writer was disturbed");
    writer.kill().await
}

/// A demotion takes the lock from a writer, who may write no more; and what he was told is written is in the snapshot.
pub async fn a_demotion_stops_a_writer(world: &World) -> Result<()> {
    for mode in [MirrorImageMode::Snapshot, MirrorImageMode::Journal] {
        let pool = mirrored(world, mode).await?;
        let writer = Writer::start(world, &pool, IMAGE).await?;
        pool.demote(IMAGE).await?;
        writer.fails().await.context("the writer")?;
        ensure!(pool.image_info(IMAGE).await?.role == Role::Orphan, "it is not demoted");
        let spec = format!("{}/{IMAGE}", pool.name());
        let content = world.a.stock.sha256(&spec).await?;
        if mode == MirrorImageMode::Snapshot {
            // The writer's librbd marks an object before it writes to it.
            let head = open(&pool, IMAGE).await?.0.object_map(SnapId::HEAD).load().await?;
            let written = head.iter().filter(|state| *state == ObjectState::Exists).count();
            ensure!(written == 0, "{written} objects were written to behind the last snapshot");
        }
        pool.promote(IMAGE, false).await?;
        ensure!(world.a.stock.sha256(&spec).await? == content, "somebody wrote behind the demotion");
        world.a.scribble(&spec, 9).await?;
    }
    Ok(())
}

/// One that was killed is fenced, and its lock broken, as soon as the cluster takes it for dead.
pub async fn a_dead_writer_is_fenced(world: &World) -> Result<()> {
    let pool = mirrored(world, MirrorImageMode::Journal).await?;
    Writer::start(world, &pool, IMAGE).await?.kill().await?;
    pool.demote(IMAGE).await?;
    pool.promote(IMAGE, false).await?;
    let spec = format!("{}/{IMAGE}", pool.name());
    world.a.scribble(&spec, 9).await?;
    world.a.stock.rbd(&["journal", "inspect", "--image", &spec]).await?;
    Ok(())
}

/// The journal of an image is taken away from under a writer, and given to it.
pub async fn a_writer_gains_and_loses_a_journal(world: &World) -> Result<()> {
    let pool = mirrored(world, MirrorImageMode::Journal).await?;
    let mut writer = Writer::start(world, &pool, IMAGE).await?;
    pool.disable(IMAGE, false).await?;
    ensure!(
        Journal::open(pool.ioctx(), open(&pool, IMAGE).await?.0.id()).await.is_err(),
        "the journal is there"
    );
    pool.enable(IMAGE, MirrorImageMode::Journal).await?;
    ensure!(writer.runs()?, "the writer was disturbed");
    writer.kill().await
}

/// Who holds an image on purpose keeps it.
pub async fn who_does_not_give_up_is_left_alone(world: &World) -> Result<()> {
    let pool = mirrored(world, MirrorImageMode::Snapshot).await?;
    let spec = format!("{}/{IMAGE}", pool.name());
    let (image, _) = open(&pool, IMAGE).await?;
    // A cluster connection of its own: nobody asks himself.
    let own = world.a.pool_apart(pool.name()).await?;
    let options = LockOptions { policy: RequestPolicy::Refuse, ..LockOptions::default() };
    let lock = ExclusiveLock::open(&own.ioctx().gated(), image.id(), options).await?;
    lock.acquire().await?;
    let stock = world.a.stock.rbd(&["mirror", "image", "demote", &spec]).await;
    expect_same_refusal(stock, pool.demote(IMAGE).await)?;
    let stock = world.a.stock.rbd(&["mirror", "image", "snapshot", &spec]).await;
    expect_same_refusal(stock, pool.snapshot(IMAGE, None).await)?;
    ensure!(pool.image_info(IMAGE).await?.is_primary(), "it was demoted");
    lock.close().await?;
    pool.demote(IMAGE).await?;
    pool.promote(IMAGE, false).await?;

    // The stock tool asks without end, at full speed.
    world.a.stock.rbd(&["lock", "add", &spec, "a-person"]).await?;
    let refused = pool.demote(IMAGE).await.err().context("it was demoted")?;
    ensure!(refused.is(libc::EBUSY) && refused.to_string().contains("rbd lock ls"), "{refused}");
    ensure!(pool.image_info(IMAGE).await?.is_primary(), "it was demoted");
    Ok(())
}

/// What a dead writer had only journalled is written when the lock is taken: the same as librbd writes.
pub async fn what_was_only_journalled_is_written(world: &World) -> Result<()> {
    let names = ["stock", "ours_"];
    let pool = world.a.pool(&world.mirrored_pool().await?).await?;
    for name in names {
        world.a.image(&format!("{}/{name}", pool.name()), &[]).await?;
        pool.enable(name, MirrorImageMode::Journal).await?;
        journal_only(&pool, name).await?;
    }
    let [stock, ours] = names.map(|name| format!("{}/{name}", pool.name()));
    let before = world.a.stock.sha256(&ours).await?;
    world.a.stock.rbd(&["mirror", "image", "demote", &stock]).await?;
    pool.demote("ours_").await?;
    let (of_stock, of_ours) = (world.a.stock.sha256(&stock).await?, world.a.stock.sha256(&ours).await?);
    ensure!(of_ours != before && of_ours == of_stock, "stock {of_stock}, ours {of_ours}, before {before}");
    let (image, _) = open(&pool, "ours_").await?;
    let own = ImageJournal::read(&Journal::open(pool.ioctx(), image.id()).await?).await?;
    let mut left = 0;
    let start = own.commit_position.clone();
    let walked = journal::tail::walk(&own.journal, IMAGE_CLIENT_ID, start, |_| {
        left += 1;
        std::ops::ControlFlow::Continue(())
    });
    walked.await.map_err(|e| anyhow::anyhow!("{e}"))?;
    ensure!(left == 0, "{left} entries are not committed");
    expect_same_picture(&pool, "stock", "ours_").await
}

/// Journals writes that are never written.
async fn journal_only(pool: &Pool, name: &str) -> Result<()> {
    let (image, _) = open(pool, name).await?;
    let own = ImageJournal::read(&Journal::open(pool.ioctx(), image.id()).await?).await?;
    let predecessor =
        TagPredecessor { mirror_uuid: LOCAL_MIRROR_UUID.into(), commit: own.commit_position.newest() };
    let tag = TagData { mirror_uuid: LOCAL_MIRROR_UUID.into(), predecessor };
    let tag = own.journal.allocate_tag(own.tag_class, &tag).await?;
    let mut appender = Appender::new(&own.journal, tag.tid).await?;
    for (offset, length, byte) in
        [(0, 5000, 1u8), (4 << 20, 100_000, 2), (100, 900, 3), (SIZE - 4096, 4096, 4)]
    {
        let (extent, data) = (Extent::new(offset, length), Bytes::from(vec![byte; length as usize]));
        let event = Event::Write { extent, data };
        appender.append(&EventEntry { event, timestamp: Timestamp::now() }).await?;
    }
    let event = Event::Discard { extent: Extent::new(8 << 20, 4 << 20), granularity: 0 };
    appender.append(&EventEntry { event, timestamp: Timestamp::now() }).await?;
    Ok(())
}
