//! Making, removing, renaming and protecting snapshots.

use anyhow::{Context, Result, ensure};
use rados::SnapId;
use rbd::{
    CloneFormat, HeaderUpdate, Image, ImageFlags, NewImage, NewSnapshot, ObjectMap, ParentSpec,
    ProtectionStatus, Removal, SnapshotNamespace, children, create, snapshots,
};

use crate::world::{DEFAULT_FEATURES, POOL, World};

fn user(name: &str) -> NewSnapshot {
    NewSnapshot {
        name: name.to_string(),
        namespace: SnapshotNamespace::User,
        id: None,
        skip_object_map: false,
    }
}

async fn snapshot(image: &Image, name: &str) -> Result<SnapId> {
    Ok(snapshots::create(image, &image.read_header().await?, &user(name)).await?)
}

/// The object maps of all snapshots, oldest first, and of the head.
async fn maps(image: &Image) -> Result<Vec<ObjectMap>> {
    let header = image.read_header().await?;
    let mut maps = Vec::new();
    for snap in header.snapshots.keys().copied().chain([SnapId::HEAD]) {
        maps.push(image.object_map(snap).load().await?);
    }
    Ok(maps)
}

async fn twins(world: &World, stock: &str, ours: &str) -> Result<(Image, Image)> {
    for name in [stock, ours] {
        world.stock.create_image(&format!("{POOL}/{name}"), 64 << 20, &[]).await?;
    }
    Ok((Image::open_by_name(&world.pool, stock).await?.0, Image::open_by_name(&world.pool, ours).await?.0))
}

async fn write_both(world: &World, names: [&str; 2], offset: u64, length: u64, seed: u64) -> Result<()> {
    for name in names {
        let extents = tests::Extents::default().fill(offset, length, seed);
        world.stock.apply(&format!("{POOL}/{name}"), extents).await?;
    }
    Ok(())
}

pub async fn snapshots_leave_the_same(world: &World) -> Result<()> {
    let names = ["twin-stock", "twin-ours"];
    let (stock, ours) = twins(world, names[0], names[1]).await?;
    for (round, offset) in [0u64, 13 << 20, 30 << 20, 14 << 20].into_iter().enumerate() {
        write_both(world, names, offset, 6 << 20, round as u64).await?;
        world.stock.snap_create(&format!("{POOL}/{}@{round}", names[0])).await?;
        snapshot(&ours, &round.to_string()).await?;
        ensure!(maps(&stock).await? == maps(&ours).await?, "the maps differ after making snapshot {round}");
    }
    let (of_stock, of_ours) = (stock.read_header().await?, ours.read_header().await?);
    let alike = |header: &rbd::ImageHeader| -> Vec<_> {
        header.snapshots.values().map(|s| (s.name.clone(), s.image_size, s.flags, s.protection)).collect()
    };
    ensure!(alike(&of_stock) == alike(&of_ours), "the records differ");

    // The oldest, one in the middle, the newest.
    for name in ["1", "0", "3"] {
        world.stock.snap_remove(&format!("{POOL}/{}@{name}", names[0])).await?;
        let header = ours.read_header().await?;
        let id = header.user_snapshot(name).context("a snapshot")?.id;
        ensure!(snapshots::remove(&ours, &header, id).await? == Removal::Gone, "it was kept");
        snapshots::remove(&ours, &header, id).await?;
        ensure!(maps(&stock).await? == maps(&ours).await?, "the maps differ after removing snapshot {name}");
        ensure!(
            ours.object_map(id).load().await.is_err_and(|e| e.is_not_found()),
            "the map of {name} is left"
        );
    }
    ensure!(
        ours.read_header().await?.op_features == stock.read_header().await?.op_features,
        "operation features"
    );
    for name in names {
        world.stock.rbd(&["object-map", "check", &format!("{POOL}/{name}")]).await?;
        world.stock.rbd(&["object-map", "check", &format!("{POOL}/{name}@2")]).await?;
    }
    Ok(())
}

pub async fn snapshots_hold_their_content(world: &World) -> Result<()> {
    let spec = format!("{POOL}/held");
    world.stock.create_image(&spec, 64 << 20, &[]).await?;
    let (image, _) = Image::open_by_name(&world.pool, "held").await?;
    let mut contents = Vec::new();
    for round in 0..3u64 {
        world.stock.apply(&spec, tests::Extents::default().fill(round * (5 << 20), 9 << 20, round)).await?;
        contents.push(world.stock.read(&spec).await?);
        snapshot(&image, &format!("s{round}")).await?;
    }
    world.stock.apply(&spec, tests::Extents::default().fill(0, 64 << 20, 9)).await?;
    let header = image.read_header().await?;
    for (round, content) in contents.iter().enumerate() {
        let id = header.user_snapshot(&format!("s{round}")).context("a snapshot")?.id;
        ensure!(
            &world.stock.read(&format!("{spec}@s{round}")).await? == content,
            "stock reads s{round} otherwise"
        );
        ensure!(&world.read_native(&image, header.size, id).await? == content, "we read s{round} otherwise");
    }
    let id = header.user_snapshot("s1").context("a snapshot")?.id;
    snapshots::rename(&image, &header, id, "renamed").await?;
    snapshots::rename(&image, &image.read_header().await?, id, "renamed").await?;
    ensure!(world.stock.read(&format!("{spec}@renamed")).await? == contents[1], "renaming changed it");
    world.stock.snap_rename(&format!("{spec}@renamed"), &format!("{spec}@again")).await?;
    let header = image.read_header().await?;
    ensure!(header.user_snapshot("again").is_some(), "a stock rename was not seen");
    snapshots::remove(&image, &header, id).await?;
    ensure!(world.stock.read(&format!("{spec}@s0")).await? == contents[0], "removing s1 changed s0");
    ensure!(world.stock.read(&format!("{spec}@s2")).await? == contents[2], "removing s1 changed s2");
    world.stock.rbd(&["snap", "purge", "--no-progress", &spec]).await?;
    Ok(())
}

pub async fn making_can_be_repeated(world: &World) -> Result<()> {
    let image = create::create(&world.pool, &world.new_image("repeat", 64 << 20, DEFAULT_FEATURES)).await?;
    world.stock.apply(&format!("{POOL}/repeat"), tests::Extents::default().fill(0, 9 << 20, 1)).await?;
    let (old, id) = (image.data_ioctx().snap_create().await?, image.data_ioctx().snap_create().await?);
    let new = NewSnapshot { id: Some(id), ..user("mine") };

    // Cut off behind the record: the map is made, and the head's is not cleaned.
    let add = HeaderUpdate::of(image.id()).snapshot_add(id, &new.name, &new.namespace);
    add.apply(&world.pool).await?;
    for _ in 0..2 {
        let header = image.read_header().await?;
        ensure!(snapshots::create(&image, &header, &new).await? == id, "another id");
    }
    world.stock.rbd(&["object-map", "check", &format!("{POOL}/repeat@mine")]).await?;
    ensure!(image.object_map(SnapId::HEAD).load().await? == image.object_map(id).load().await?, "maps");

    let header = image.read_header().await?;
    let late = NewSnapshot { id: Some(old), ..user("late") };
    let refused = snapshots::create(&image, &header, &late).await;
    ensure!(refused.as_ref().is_err_and(|e| e.is(libc::ESTALE)), "an old id: {refused:?}");
    let refused = snapshots::create(&image, &header, &user("mine")).await;
    ensure!(refused.as_ref().is_err_and(|e| e.is(libc::EEXIST)), "a taken name: {refused:?}");

    // A map that is lost is flagged.
    image.object_map(SnapId::HEAD).remove().await?;
    let id = snapshot(&image, "flagged").await?;
    let header = image.read_header().await?;
    for snap in [SnapId::HEAD, id] {
        let flags = header.flags_at(snap).context("flags")?;
        ensure!(
            flags.has(ImageFlags::OBJECT_MAP_INVALID) && flags.has(ImageFlags::FAST_DIFF_INVALID),
            "{snap}"
        );
    }
    world.stock.rbd(&["object-map", "rebuild", "--no-progress", &format!("{POOL}/repeat")]).await?;
    ensure!(image.read_header().await?.flags == ImageFlags::default(), "stock tools did not rebuild the map");
    Ok(())
}

pub async fn protection_sees_clones(world: &World) -> Result<()> {
    let new = world.new_image("guarded", 16 << 20, DEFAULT_FEATURES);
    let image = create::create(&world.pool, &new).await?;
    let id = snapshot(&image, "s").await?;
    let header = image.read_header().await?;
    snapshots::protect(&image, &header, id).await?;
    let refused = world.stock.snap_remove(&format!("{POOL}/guarded@s")).await;
    ensure!(refused.is_err(), "stock tools removed a protected snapshot");
    let of =
        ParentSpec { pool: world.pool.pool_id(), namespace: String::new(), image: new.id.clone(), snap: id };

    let clone = NewImage { ..world.new_image("guarded-v1", 16 << 20, DEFAULT_FEATURES) };
    let clone = create::create_clone(&world.other, &clone, &of, CloneFormat::V1).await?;
    let header = image.read_header().await?;
    let refused = snapshots::unprotect(&image, &header, id).await;
    ensure!(refused.as_ref().is_err_and(|e| e.is(libc::EBUSY)), "unprotected under a clone: {refused:?}");
    let header = image.read_header().await?;
    ensure!(header.snapshots[&id].protection == ProtectionStatus::Protected, "protection was not restored");
    children::detach(&clone, &clone.read_header().await?).await?;
    snapshots::unprotect(&image, &header, id).await?;

    // A v2 clone keeps it in the trash namespace, until the clone goes.
    let clone = world.new_image("guarded-v2", 16 << 20, DEFAULT_FEATURES);
    let clone = create::create_clone(&world.pool, &clone, &of, CloneFormat::V2).await?;
    let header = image.read_header().await?;
    ensure!(snapshots::remove(&image, &header, id).await? == Removal::KeptForClones, "removed under a clone");
    let kept = image.read_header().await?;
    ensure!(matches!(kept.snapshots[&id].namespace, SnapshotNamespace::Trash { .. }), "not in the trash");
    children::detach(&clone, &clone.read_header().await?).await?;
    ensure!(image.read_header().await?.snapshots.is_empty(), "the last clone did not take it along");
    Ok(())
}
