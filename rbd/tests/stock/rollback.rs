//! Rolling back, and removing many snapshots at once: what the stock tool does to one twin is done natively to the other.

use anyhow::{Context, Result, ensure};
use rados::SnapId;
use rbd::exclusive_lock::{ExclusiveLock, LockOptions};
use rbd::rollback::{RollbackOptions, rollback, undo_later_writes};
use rbd::{Image, ObjectMap, snapshots};

use crate::world::{POOL, World};

const SIZE: u64 = 40 << 20;

fn spec(name: &str) -> String {
    format!("{POOL}/{name}")
}

async fn write(world: &World, name: &str, offset: u64, length: u64, seed: u64) -> Result<()> {
    world.stock.apply(&spec(name), tests::Extents::default().fill(offset, length, seed)).await
}

/// Rolls back natively, under the lock.
async fn roll_back(world: &World, name: &str, snapshot: &str, trust_object_maps: bool) -> Result<()> {
    let (image, _) = Image::open_by_name(&world.pool, name).await?;
    let lock = ExclusiveLock::open(&world.pool.gated(), image.id(), LockOptions::default()).await?;
    lock.acquire().await?;
    let header = image.read_header().await?;
    let snap = header.user_snapshot(snapshot).context("a snapshot")?.id;
    let options = RollbackOptions { in_flight: 8, trust_object_maps };
    let mut last = (0, 0);
    rollback(&image, &header, snap, options, |done, total| last = (done, total)).await?;
    ensure!(last.0 == last.1 && last.1 >= header.object_count(), "progress ended with {last:?}");
    // Done again, nothing changes.
    rollback(&image, &image.read_header().await?, snap, options, |_, _| {}).await?;
    Ok(lock.close().await?)
}

async fn head_map(world: &World, name: &str) -> Result<ObjectMap> {
    let (image, _) = Image::open_by_name(&world.pool, name).await?;
    Ok(image.object_map(SnapId::HEAD).load().await?)
}

/// Of images that were written, grown and shrunk since.
pub async fn rollbacks_leave_the_same(world: &World) -> Result<()> {
    for (number, size) in [SIZE, SIZE + (10 << 20), 11 << 20].into_iter().enumerate() {
        let names = [format!("roll-stock{number}"), format!("roll--ours{number}")];
        for name in &names {
            world.stock.create_image(&spec(name), SIZE, &[]).await?;
            write(world, name, 3 << 20, 9 << 20, 1).await?;
            world.stock.snap_create(&format!("{}@before", spec(name))).await?;
            write(world, name, 9 << 20, 1 << 20, 2).await?;
            if size != SIZE {
                world.stock.resize(&spec(name), size).await?;
            }
            write(world, name, 0, 1 << 20, 3).await?;
            write(world, name, size - (1 << 20), 1 << 20, 4).await?;
            world.stock.discard(&spec(name), 4 << 20, 4 << 20).await?;
        }
        world
            .stock
            .rbd(&["snap", "rollback", "--no-progress", &format!("{}@before", spec(&names[0]))])
            .await?;
        roll_back(world, &names[1], "before", number != 1).await?;
        let [stock, ours] =
            [world.stock.read(&spec(&names[0])).await?, world.stock.read(&spec(&names[1])).await?];
        ensure!(stock == ours && stock.len() as u64 == SIZE, "size {size}: the images differ");
        ensure!(
            ours == world.stock.read(&format!("{}@before", spec(&names[1]))).await?,
            "it is not what it was"
        );
        ensure!(
            head_map(world, &names[0]).await? == head_map(world, &names[1]).await?,
            "size {size}: the maps differ"
        );
        world.stock.rbd(&["object-map", "check", &spec(&names[1])]).await?;
    }
    Ok(())
}

/// What was written, removed and brought into being behind the newest snapshot is undone, and nothing else is touched.
pub async fn later_writes_are_undone(world: &World) -> Result<()> {
    for (name, features, touched) in
        [("late-maps", "layering,exclusive-lock,object-map,fast-diff", 3), ("late-bare", "layering", 10)]
    {
        world.stock.create_image(&spec(name), SIZE, &["--image-feature", features]).await?;
        write(world, name, 3 << 20, 9 << 20, 1).await?;
        let (image, header) = Image::open_by_name(&world.pool, name).await?;
        world.stock.snap_create(&format!("{}@base", spec(name))).await?;
        let before = world.stock.read(&spec(name)).await?;
        let lock = ExclusiveLock::open(&world.pool.gated(), image.id(), LockOptions::default()).await?;
        let undo = async || {
            if header.features.has(rbd::Features::EXCLUSIVE_LOCK) {
                lock.acquire().await?;
            }
            let header = image.read_header().await?;
            let snap = header.user_snapshot("base").context("a snapshot")?.id;
            let undone = undo_later_writes(&image, &header, snap, 4).await?;
            lock.release().await?;
            Ok::<_, anyhow::Error>(undone)
        };
        let map = async || image.object_map(SnapId::HEAD).load().await.ok();
        let clean = map().await;
        write(world, name, 1 << 20, 4096, 2).await?;
        write(world, name, 30 << 20, 4096, 3).await?;
        world.stock.discard(&spec(name), 8 << 20, 4 << 20).await?;
        ensure!(
            world.stock.read(&spec(name)).await? != before && map().await.is_none_or(|m| Some(m) != clean)
        );
        ensure!(undo().await? == touched, "{name}: others were rolled back");
        ensure!(world.stock.read(&spec(name)).await? == before, "{name}: it is not what it was");
        ensure!(map().await == clean, "{name}: the map is not what it was");
        if clean.is_some() {
            ensure!(undo().await? == 0, "there was nothing left to undo");
        }
        lock.close().await?;
    }
    Ok(())
}

/// A clone that was shrunk since sees its parent again as it did. (Behind a stock rollback it does not.)
pub async fn a_clone_sees_its_parent_again(world: &World) -> Result<()> {
    world.stock.create_image(&spec("roll-parent"), SIZE, &[]).await?;
    write(world, "roll-parent", 0, SIZE, 7).await?;
    world.stock.snap_create(&spec("roll-parent@base")).await?;
    world.stock.clone_image(&spec("roll-parent@base"), &spec("roll-clone"), 2).await?;
    write(world, "roll-clone", 5 << 20, 1 << 20, 8).await?;
    world.stock.snap_create(&spec("roll-clone@before")).await?;
    let before = world.stock.read(&spec("roll-clone@before")).await?;
    world.stock.resize(&spec("roll-clone"), 9 << 20).await?;
    roll_back(world, "roll-clone", "before", true).await?;
    ensure!(world.stock.read(&spec("roll-clone")).await? == before, "the clone is not what it was");
    let (_, header) = Image::open_by_name(&world.pool, "roll-clone").await?;
    ensure!(header.parent.is_some_and(|parent| parent.overlap == SIZE), "the overlap is lost");
    world.stock.rbd(&["object-map", "check", &spec("roll-clone")]).await?;
    Ok(())
}

/// Snapshots that are removed all at once leave what those leave that go one after the other.
pub async fn removing_many_leaves_the_same(world: &World) -> Result<()> {
    let names = ["many-stock", "many--ours"];
    for name in names {
        world.stock.create_image(&spec(name), SIZE, &[]).await?;
        for round in 0..5u64 {
            write(world, name, round * (7 << 20), 2 << 20, round).await?;
            world.stock.snap_create(&format!("{}@s{round}", spec(name))).await?;
        }
        world.stock.clone_image(&format!("{}@s3", spec(name)), &format!("{}-clone", spec(name)), 2).await?;
    }
    for gone in ["s0", "s2", "s3"] {
        // The clone keeps the last of them in the trash.
        world.stock.snap_remove(&format!("{}@{gone}", spec(names[0]))).await?;
    }
    let (image, header) = Image::open_by_name(&world.pool, names[1]).await?;
    let ids: Vec<SnapId> = ["s3", "s0", "s2"]
        .iter()
        .filter_map(|name| header.user_snapshot(name).map(|snapshot| snapshot.id))
        .collect();
    let kept = snapshots::remove_all(&image, &header, &ids).await?;
    ensure!(kept == ids[..1], "kept {kept:?} of {ids:?}");
    ensure!(snapshots::remove_all(&image, &image.read_header().await?, &ids).await? == ids[..1], "again");
    for name in names {
        let (image, header) = Image::open_by_name(&world.pool, name).await?;
        ensure!(header.snapshots.len() == 3, "{:?}", header.snapshots);
        for snap in ids.iter().filter(|snap| !kept.contains(snap)) {
            ensure!(image.object_map(*snap).load().await.is_err(), "a map is left");
        }
    }
    let maps = async |name: &str| {
        let (image, header) = Image::open_by_name(&world.pool, name).await?;
        let mut maps = Vec::new();
        for snap in header.snapshots.keys().copied().chain([SnapId::HEAD]) {
            maps.push(image.object_map(snap).load().await?);
        }
        Ok::<_, anyhow::Error>(maps)
    };
    ensure!(maps(names[0]).await? == maps(names[1]).await?, "the maps differ");
    Ok(())
}
