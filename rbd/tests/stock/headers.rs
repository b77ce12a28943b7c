//! Reading headers.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rbd::{
    HeaderUpdate, Image, ImageHeader, NewSnapshot, SnapshotNamespace, create, header_update, snapshots,
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
    let new = world.new_image("large", 4 << 20, rbd::Features::LAYERING);
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
    let writer = async {
        for round in 0..30 {
            let id = world.pool.snap_create().await?;
            let name = format!("round {round}");
            let tag: BTreeMap<String, String> = [(format!("meta {round}"), name.clone())].into();
            let both = HeaderUpdate::of(&new.id)
                .snapshot_add(id, &name, &SnapshotNamespace::User)
                .set_metadata(&tag);
            both.apply(&world.pool).await?;
            let (key, _) = tag.first_key_value().context("a key")?;
            HeaderUpdate::of(&new.id).snapshot_remove(id).remove_metadata(key).apply(&world.pool).await?;
        }
        anyhow::Ok(())
    };
    let mut reads = 0;
    let mut with_snapshot = 0;
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
            reads += 1;
            with_snapshot += snapshots.len();
        }
    };
    tokio::select! {
        written = writer => written?,
        mixed = reader => anyhow::bail!("a header mixed two states: {:?}", mixed?),
    }
    ensure!(first.version < image.read_header().await?.version, "the version did not grow");
    ensure!(reads > 10 && with_snapshot > 0, "{reads} readings saw {with_snapshot} snapshots");
    Ok(())
}
