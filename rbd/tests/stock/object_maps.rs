//! Object maps and fast-diff.

use anyhow::{Context, Result, ensure};
use rados::SnapId;
use rados::encoding::Decode;
use rados::lock::{LockKind, LockRequest};
use rbd::header_update::LOCK_NAME;
use rbd::{
    Diff, FastDiffVersion, Image, MapUpdate, ObjectMap, ObjectNumber, ObjectState, create, fast_diff,
    object_map,
};

use crate::world::{DEFAULT_FEATURES, POOL, World};

/// What the methods of class rbd do to a map is what this crate says they do.
pub async fn maps_agree_with_the_class_methods(world: &World) -> Result<()> {
    const OBJECTS: u64 = 40_000;
    let new = world.new_image("mapped", OBJECTS << 22, DEFAULT_FEATURES);
    let image = create::create(&world.pool, &new).await?;
    let stored = image.object_map(SnapId::HEAD);
    let mut map = stored.load().await?;
    ensure!(map == ObjectMap::new(OBJECTS), "a new map: {map:?}");

    let update = |from: u64, to: u64, state, current| MapUpdate { objects: from..to, state, current };
    for update in [
        update(3, 30_000, ObjectState::Exists, None),
        update(16_000, 16_500, ObjectState::ExistsClean, Some(ObjectState::Exists)),
        update(0, OBJECTS, ObjectState::Pending, Some(ObjectState::NonExistent)),
        update(16_100, 16_200, ObjectState::NonExistent, Some(ObjectState::Exists)),
    ] {
        stored.update(&update).await?;
        map.update(&update);
        ensure!(stored.load().await? == map, "after {update:?}");
    }
    let mut removed = ObjectMap::new(20_000);
    removed.set(ObjectNumber(16_300), ObjectState::Exists);
    stored.snap_remove(&removed).await?;
    map.snap_remove(&removed);
    ensure!(stored.load().await? == map, "after merging a removed snapshot");
    stored.snap_add().await?;
    map.snap_add();
    ensure!(stored.load().await? == map, "after a snapshot");

    // Scattered changes go range by range, many at once go whole; both end the same.
    for (step, many) in [(9_973, false), (7, true)] {
        let before = map.clone();
        for object in (0..OBJECTS).step_by(step) {
            map.set(ObjectNumber(object), if many { ObjectState::Exists } else { ObjectState::NonExistent });
        }
        stored.store(&before, &map).await?;
        ensure!(stored.load().await? == map, "after storing with steps of {step}");
    }
    stored.resize(50_000, ObjectState::NonExistent).await?;
    map.resize(50_000);
    ensure!(stored.load().await? == map, "after growing");

    // The bytes in the object are those that we would write, CRCs included.
    let object = object_map::object_map_object(&new.id, SnapId::HEAD);
    let bytes = world.pool.read_extent(&object, SnapId::HEAD, rados::Extent::new(0, 1 << 20)).await?;
    ensure!(bytes == map.to_object(), "the bytes differ");
    ensure!(ObjectMap::from_bytes(&bytes, "object map")? == map, "decoding differs");
    let refused = stored.resize(10, ObjectState::NonExistent).await;
    ensure!(refused.as_ref().is_err_and(|e| e.is(libc::ESTALE)), "shrunk below what exists: {refused:?}");
    Ok(())
}

/// The objects that `rbd diff --whole-object` names, with whether they exist.
async fn stock_diff(world: &World, spec: &str, from: Option<&str>) -> Result<Vec<(u64, bool)>> {
    let mut args = vec!["diff", "--whole-object", spec];
    args.extend(from.into_iter().flat_map(|from| ["--from-snap", from]));
    let listed = world.stock.rbd_json(&args).await?;
    let mut objects = Vec::new();
    for entry in listed.as_array().context("a list")? {
        let (offset, length) = (entry["offset"].as_u64(), entry["length"].as_u64());
        let (offset, length) = (offset.context("offset")?, length.context("length")?);
        let exists = entry["exists"] == "true" || entry["exists"] == true;
        objects.extend((offset >> 22..(offset + length).div_ceil(1 << 22)).map(|object| (object, exists)));
    }
    objects.sort_unstable();
    Ok(objects)
}

async fn version(image: &Image, snap: SnapId) -> Result<FastDiffVersion> {
    let header = image.read_header().await?;
    let (size, flags) = (header.size_at(snap).context("size")?, header.flags_at(snap).context("flags")?);
    let map = image.object_map(snap).load().await?;
    Ok(FastDiffVersion::new(header.features, flags, &header.layout, size, map)?)
}

pub async fn fast_diff_agrees_with_stock(world: &World) -> Result<()> {
    let spec = format!("{POOL}/diffed");
    world.stock.create_image(&spec, 96 << 20, &[]).await?;
    let extents = || tests::Extents::default();
    world.stock.apply(&spec, extents().fill(0, 40 << 20, 1)).await?;
    world.stock.snap_create(&format!("{spec}@a")).await?;
    world.stock.apply(&spec, extents().fill(8 << 20, 4096, 2).fill(60 << 20, 4096, 3)).await?;
    world.stock.snap_create(&format!("{spec}@b")).await?;
    world.stock.discard(&spec, 16 << 20, 8 << 20).await?;
    world.stock.snap_create(&format!("{spec}@c")).await?;
    world.stock.apply(&spec, extents().fill(20 << 20, 4096, 4)).await?;

    let (image, header) = Image::open_by_name(&world.pool, "diffed").await?;
    let ids: Vec<SnapId> = header.snapshots.keys().copied().chain([SnapId::HEAD]).collect();
    let names = ["a", "b", "c", ""];
    for end in 0..ids.len() {
        let end_spec = if ids[end].is_head() { spec.clone() } else { format!("{spec}@{}", names[end]) };
        for start in 0..end {
            let mut versions = Vec::new();
            for id in &ids[start + 1..=end] {
                versions.push(version(&image, *id).await?);
            }
            let diff = fast_diff::diff(Some(&version(&image, ids[start]).await?), &versions);
            let changed = diff.iter().enumerate().filter(|(_, state)| state.is_changed());
            let ours: Vec<_> =
                changed.map(|(object, state)| (object as u64, *state == Diff::Updated)).collect();
            let theirs = stock_diff(world, &end_spec, Some(names[start])).await?;
            ensure!(
                ours == theirs,
                "from {} to {end_spec}: {ours:?}, but stock says {theirs:?}",
                names[start]
            );
            ensure!(!ours.is_empty(), "nothing changed from {} to {end_spec}", names[start]);
        }
    }
    Ok(())
}

pub async fn a_lock_guards_the_map(world: &World) -> Result<()> {
    let image = create::create(&world.pool, &world.new_image("locked", 8 << 20, DEFAULT_FEATURES)).await?;
    let guarded = image.object_map(SnapId::HEAD).asserting_lock(true);
    let update = MapUpdate { objects: 0..1, state: ObjectState::Exists, current: None };
    let refused = guarded.update(&update).await;
    ensure!(refused.as_ref().is_err_and(|e| e.is(libc::EBUSY)), "changed without the lock: {refused:?}");
    let lock = LockRequest::new(LOCK_NAME, LockKind::Exclusive, "");
    world.pool.lock(guarded.name(), &lock).await?;
    guarded.update(&update).await?;
    world.pool.unlock(guarded.name(), LOCK_NAME, "").await?;
    ensure!(guarded.update(&update).await.is_err(), "changed after unlocking");
    ensure!(guarded.load().await?.get(ObjectNumber(0)) == ObjectState::Exists, "the map");
    Ok(())
}
