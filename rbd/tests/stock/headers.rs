//! Reading headers.

use std::cell::Cell;
use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rados::SnapId;
use rados::lock::{LockKind, LockRequest};
use rbd::header_update::LOCK_NAME;
use rbd::types::{MirrorSnapshot, MirrorSnapshotState};
use rbd::{
    Features, HeaderUpdate, Image, ImageFlags, ImageHeader, NewSnapshot, SnapshotNamespace, create,
    header_update, snapshots,
};

use crate::world::{DEFAULT_FEATURES, POOL, World};

pub async fn headers_tell_what_stock_tools_tell(world: &World) -> Result<()> {
    let spec = format!("{POOL}/told");
    world.stock.create_image(&spec, 50 << 20, &[]).await?;
    for command in [
        vec!["image-meta", "set", &spec, "colour", "blue"],
        vec!["config", "image", "set", &spec, "rbd_cache", "false"],
        vec!["snap", "create", "--no-progress", &format!("{spec}@one")],
        vec!["snap", "protect", &format!("{spec}@one")],
        vec!["snap", "limit", "set", &spec, "--limit", "17"],
        vec!["group", "create", &format!("{POOL}/set")],
        vec!["group", "image", "add", &format!("{POOL}/set"), &spec],
        vec!["resize", "--no-progress", &spec, "--size", "60M"],
    ] {
        world.stock.rbd(&command).await?;
    }
    let (image, header) = Image::open_by_name(&world.pool, "told").await?;
    let info = world.stock.rbd_json(&["info", &spec]).await?;
    ensure!(info["size"] == header.size && info["objects"] == header.object_count(), "size: {info}");
    ensure!(info["block_name_prefix"] == header.object_prefix.as_str(), "prefix: {info}");
    ensure!(info["id"] == header.id.0.as_str(), "id: {info}");
    let names = |value: &serde_json::Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|name| name.as_str().map(String::from)).collect()
    };
    ensure!(names(&info["features"]) == header.features.names(), "features: {info} {}", header.features);
    let snap = header.user_snapshot("one").context("a snapshot")?;
    ensure!(snap.image_size == 50 << 20 && header.size == 60 << 20, "sizes");
    ensure!(snap.protection == rbd::ProtectionStatus::Protected, "protection");
    ensure!(header.snapshot_limit == Some(17), "limit: {:?}", header.snapshot_limit);
    ensure!(header.group.is_some(), "group");
    ensure!(header.metadata.get("colour").map(|value| &value[..]) == Some(b"blue"), "metadata");
    ensure!(header.metadata.contains_key("conf_rbd_cache"), "configuration");
    ensure!(header.created.seconds > 1_500_000_000 && header.modified >= header.created, "times");
    ensure!(header.snap_context.snaps == [snap.id] && header.snap_context.seq >= snap.id.0, "context");
    ensure!(header.lock.lockers.is_empty(), "lock");

    world.stock.rbd(&["lock", "add", &spec, "mine"]).await?;
    let locked = image.read_header().await?;
    ensure!(locked.lock.lockers.len() == 1, "a lock was not seen: {:?}", locked.lock);
    HeaderUpdate::of(image.id()).remove_metadata("colour").apply(&world.pool).await?;
    let left = world.stock.rbd_json(&["image-meta", "ls", &spec]).await?;
    ensure!(left.get("colour").is_none(), "metadata was not removed: {left}");
    HeaderUpdate::of(image.id()).set_snapshot_limit(None).apply(&world.pool).await?;
    ensure!(image.read_header().await?.snapshot_limit.is_none(), "the limit was not lifted");
    Ok(())
}

pub async fn large_headers_are_read_whole(world: &World) -> Result<()> {
    let new = world.new_image("large", 4 << 20, Features::LAYERING);
    let image = create::create(&world.pool, &new).await?;
    let metadata: BTreeMap<String, Bytes> =
        (0..2500).map(|i| (format!("key {i:05}"), Bytes::from(format!("value {i}")))).collect();
    header_update::set_metadata(&world.pool, &new.id, &metadata).await?;
    let mut header = image.read_header().await?;
    ensure!(header.metadata == metadata, "metadata: {} entries", header.metadata.len());

    // More snapshots than fit into one operation.
    for i in 0..150 {
        let name = format!("snap {i}");
        let snapshot =
            NewSnapshot { name, namespace: SnapshotNamespace::User, id: None, skip_object_map: false };
        snapshots::create(&image, &header, &snapshot).await?;
    }
    header = image.read_header().await?;
    ensure!(header.snapshots.len() == 150, "{} snapshots", header.snapshots.len());
    ensure!((0..150).all(|i| header.user_snapshot(&format!("snap {i}")).is_some()), "names");
    let listed = world.stock.rbd_json(&["snap", "ls", &format!("{POOL}/large")]).await?;
    ensure!(listed.as_array().is_some_and(|list| list.len() == 150), "rbd snap ls: {listed}");
    Ok(())
}

/// While snapshots and metadata come and go in pairs, no reading ever sees half a pair.
pub async fn headers_are_consistent_under_changes(world: &World) -> Result<()> {
    let new = world.new_image("busy", 4 << 20, DEFAULT_FEATURES);
    let image = create::create(&world.pool, &new).await?;
    let first = image.read_header().await?;
    let (reads, with_snapshot) = (Cell::new(0), Cell::new(0));
    let writer = async {
        for round in 0..=30 {
            let id = world.pool.snap_create().await?;
            let name = format!("round {round}");
            let tag: BTreeMap<String, String> = [(format!("meta {round}"), name.clone())].into();
            let both = HeaderUpdate::of(&new.id)
                .snapshot_add(id, &name, &SnapshotNamespace::User)
                .set_metadata(&tag);
            both.apply(&world.pool).await?;
            // The last pair stays until it was seen: all others may be gone by the time that a reading is done.
            while round == 30 && with_snapshot.get() == 0 {
                tokio::task::yield_now().await;
            }
            let (key, _) = tag.first_key_value().context("a key")?;
            HeaderUpdate::of(&new.id).snapshot_remove(id).remove_metadata(key).apply(&world.pool).await?;
        }
        anyhow::Ok(())
    };
    let reader = async {
        loop {
            let header = match ImageHeader::read(&world.pool, &new.id).await {
                Err(error) if error.is(libc::EAGAIN) => continue,
                other => other?,
            };
            let snapshots: Vec<_> = header.snapshots.values().map(|snap| snap.name.clone()).collect();
            let tags: Vec<_> =
                header.metadata.values().map(|tag| String::from_utf8_lossy(tag).into_owned()).collect();
            if snapshots != tags {
                return anyhow::Ok(Some(format!("snapshots {snapshots:?}, metadata {tags:?}")));
            }
            reads.set(reads.get() + 1);
            with_snapshot.set(with_snapshot.get() + snapshots.len());
        }
    };
    tokio::select! {
        written = writer => written?,
        mixed = reader => anyhow::bail!("a header mixed two states: {:?}", mixed?),
    }
    ensure!(first.version < image.read_header().await?.version, "the version did not grow");
    ensure!(reads.get() > 10, "{} readings are too few to see a mixture", reads.get());
    Ok(())
}

/// Every kind of update, told by stock tools or read back.
pub async fn updates_take_effect(world: &World) -> Result<()> {
    let new = world.new_image("updated", 40 << 20, DEFAULT_FEATURES);
    let image = create::create(&world.pool, &new).await?;
    let spec = format!("{POOL}/updated");
    let update = || HeaderUpdate::of(&new.id);
    update().set_size(30 << 20).apply(&world.pool).await?;
    update().set_features(Features::NON_PRIMARY, Features::NON_PRIMARY).apply(&world.pool).await?;
    let bad = ImageFlags::OBJECT_MAP_INVALID;
    update().set_flags(bad, bad, SnapId::HEAD).apply(&world.pool).await?;
    let info = world.stock.rbd_json(&["info", &spec]).await?;
    ensure!(info["size"] == 30 << 20, "size: {info}");
    ensure!(info["features"].to_string().contains("non-primary"), "features: {info}");
    ensure!(info["flags"].to_string().contains("object map invalid"), "flags: {info}");
    update().set_flags(ImageFlags::default(), bad, SnapId::HEAD).apply(&world.pool).await?;
    update().set_features(Features::default(), Features::NON_PRIMARY).apply(&world.pool).await?;
    let refused = update().set_features(Features::STRIPINGV2, Features::STRIPINGV2).apply(&world.pool).await;
    ensure!(refused.as_ref().is_err_and(|e| e.is(libc::EINVAL)), "an immutable feature: {refused:?}");
    let before = image.read_header().await?;
    ensure!(before.flags.0 == 0 && before.features == DEFAULT_FEATURES, "{before:?}");
    update().touch_modified().touch_accessed().apply(&world.pool).await?;
    let after = image.read_header().await?;
    ensure!(after.modified > before.modified && after.accessed > before.accessed, "times");

    // Nothing happens without the lock.
    let refused = update().if_locked("auto 1", "internal").set_size(1).apply(&world.pool).await;
    ensure!(refused.as_ref().is_err_and(|e| e.is(libc::EBUSY)), "changed without the lock: {refused:?}");
    let lock = LockRequest::new(LOCK_NAME, LockKind::Exclusive, "auto 1").tagged("internal");
    world.pool.lock(&format!("rbd_header.{}", new.id), &lock).await?;
    update().if_locked("auto 1", "internal").set_size(20 << 20).apply(&world.pool).await?;
    world.pool.unlock(&format!("rbd_header.{}", new.id), LOCK_NAME, "auto 1").await?;
    ensure!(image.read_header().await?.size == 20 << 20, "size under the lock");
    Ok(())
}

pub async fn mirror_snapshots_are_updated(world: &World) -> Result<()> {
    let new = world.new_image("mirrored", 8 << 20, DEFAULT_FEATURES);
    let image = create::create(&world.pool, &new).await?;
    let mirror = |state, peers: &[&str]| MirrorSnapshot {
        state,
        complete: false,
        mirror_peer_uuids: peers.iter().map(|peer| peer.to_string()).collect(),
        primary_mirror_uuid: "primary uuid".to_string(),
        primary_snap_id: SnapId(123),
        last_copied_object_number: 0,
        snap_seqs: [(SnapId(5), SnapId(6)), (SnapId(7), SnapId(9))].into(),
    };
    let make = async |name: &str, mirror: MirrorSnapshot| {
        let namespace = SnapshotNamespace::Mirror(mirror);
        let new = NewSnapshot { name: name.to_string(), namespace, id: None, skip_object_map: true };
        anyhow::Ok(snapshots::create(&image, &image.read_header().await?, &new).await?)
    };
    let primary =
        make(".mirror.primary.x", mirror(MirrorSnapshotState::Primary, &["peer a", "peer b"])).await?;
    let copy = make(".mirror.non_primary.x", mirror(MirrorSnapshotState::NonPrimary, &[])).await?;
    let update = || HeaderUpdate::of(&new.id);
    update().unlink_peer(primary, "peer a").apply(&world.pool).await?;
    let refused = update().unlink_peer(primary, "peer a").apply(&world.pool).await;
    ensure!(refused.as_ref().is_err_and(|e| e.is_not_found()), "unlinked twice: {refused:?}");
    update().set_copy_progress(copy, false, 17).apply(&world.pool).await?;

    let header = image.read_header().await?;
    let of =
        |header: &ImageHeader, snap| header.snapshots[&snap].mirror().cloned().context("a mirror-snapshot");
    let expected = mirror(MirrorSnapshotState::Primary, &["peer b"]);
    ensure!(of(&header, primary)? == expected, "{:?}", header.snapshots[&primary]);
    let mut expected = mirror(MirrorSnapshotState::NonPrimary, &[]);
    expected.last_copied_object_number = 17;
    ensure!(of(&header, copy)? == expected, "{:?}", header.snapshots[&copy]);
    update().set_copy_progress(copy, true, 2).apply(&world.pool).await?;
    ensure!(of(&image.read_header().await?, copy)?.complete, "not complete");
    ensure!(image.object_map(copy).load().await.is_err(), "an object map was made against the wish");

    let listed = world.stock.rbd_json(&["snap", "ls", "--all", &format!("{POOL}/mirrored")]).await?;
    let listed = listed.to_string();
    ensure!(listed.contains("peer b") && !listed.contains("peer a"), "rbd snap ls: {listed}");
    ensure!(
        listed.contains(r#""state":"non-primary""#) && listed.contains("primary uuid"),
        "rbd snap ls: {listed}"
    );
    Ok(())
}
