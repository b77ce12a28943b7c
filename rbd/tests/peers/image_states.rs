//! Image-state objects and requests for resync.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rados::encoding::Encode;
use rados::{Extent, IoCtx, SnapId, WriteOp, WriteSub};
use rbd::image_state::{
    SnapState, clear_resync_request, image_state_object, read_image_state, remove_image_state,
    resync_requested, set_resync_requested, write_image_state,
};
use rbd::layout::header_object;
use rbd::{Features, ImageHeader, ImageId, ProtectionStatus, SnapshotNamespace};

use crate::world::{DEFAULT_FEATURES, World, spec};

/// Makes a mirror-snapshot with the stock tool.
async fn mirror_snapshot(world: &World, name: &str, args: &[&str]) -> Result<SnapId> {
    let spec = spec(name);
    let told = world.stock.rbd(&[args, &["mirror", "image", "snapshot", &spec]].concat()).await?;
    let id = told.trim().strip_prefix("Snapshot ID:").context("an id")?;
    Ok(SnapId(id.trim().parse()?))
}

async fn content(pool: &IoCtx, image: &ImageId, snap: SnapId, index: u32) -> Result<Bytes> {
    let object = image_state_object(image, snap, index);
    Ok(pool.read_extent(&object, SnapId::HEAD, Extent::new(0, 1 << 23)).await?)
}

pub async fn states_are_those_of_stock(world: &World) -> Result<()> {
    world.mirroring().await?;
    let image = world.image("state").await?;
    world.stock.rbd(&["image-meta", "set", &spec("state"), "key", "value"]).await?;
    world.stock.snap_create(&format!("{}@kept", spec("state"))).await?;
    world.stock.snap_protect(&format!("{}@kept", spec("state"))).await?;
    world.stock.rbd(&["mirror", "image", "enable", &spec("state"), "snapshot"]).await?;
    let snap = mirror_snapshot(world, "state", &[]).await?;

    let state = read_image_state(&world.pool, &image, snap).await?;
    ensure!(state.name == "state" && state.snap_limit.is_none(), "{state:?}");
    ensure!(state.features == DEFAULT_FEATURES.without(Features::IMPLICIT), "{state:?}");
    ensure!(
        state.metadata == BTreeMap::from([("key".to_string(), Bytes::from_static(b"value"))]),
        "{state:?}"
    );
    let header = ImageHeader::read(&world.pool, &image).await?;
    let kept = header.user_snapshot("kept").context("the snapshot")?.id;
    let expected = SnapState {
        namespace: SnapshotNamespace::User,
        name: "kept".into(),
        protection: ProtectionStatus::Protected,
    };
    ensure!(state.snapshots == BTreeMap::from([(kept, expected)]), "{state:?}");

    let by_stock = content(&world.pool, &image, snap, 0).await?;
    // What a header claims is not read to its end.
    let vast = SnapId(snap.0 + 2000);
    let claims = [1, 1, 4, 0, 0, 0, 0, 4, 0, 0];
    for index in 0..3 {
        let mut part = vec![0; 1 << 25];
        part[..claims.len()].copy_from_slice(&claims);
        let write =
            WriteOp::new(image_state_object(&image, vast, index)).with(WriteSub::WriteFull(part.into()));
        world.pool.write(write).await?;
    }
    let read = read_image_state(&world.pool, &image, vast).await;
    ensure!(read.as_ref().is_err_and(|error| error.is(libc::EFBIG)), "{read:?}");
    for index in 0..3 {
        world.pool.remove(&image_state_object(&image, vast, index)).await?;
    }

    let elsewhere = SnapId(snap.0 + 1000);
    write_image_state(&world.pool, &image, elsewhere, &state).await?;
    ensure!(content(&world.pool, &image, elsewhere, 0).await? == by_stock, "the same bytes");
    ensure!(by_stock.ends_with(&state.to_bytes()), "header and state");
    remove_image_state(&world.pool, &image, elsewhere).await?;
    remove_image_state(&world.pool, &image, elsewhere).await?;
    let gone = read_image_state(&world.pool, &image, elsewhere).await.expect_err("removed");
    ensure!(gone.is_not_found(), "{gone}");
    Ok(())
}

pub async fn large_states_span_objects(world: &World) -> Result<()> {
    world.mirroring().await?;
    let image = world.image("large-state").await?;
    for number in 0..5 {
        let value = "v".repeat(4000);
        world.stock.rbd(&["image-meta", "set", &spec("large-state"), &format!("k{number}"), &value]).await?;
    }
    world.stock.rbd(&["mirror", "image", "enable", &spec("large-state"), "snapshot"]).await?;
    let snap = mirror_snapshot(world, "large-state", &["--rbd-default-order", "12"]).await?;
    let (_cluster, pool) = world.stranger(&[("rbd_default_order", "12")]).await?;
    let state = read_image_state(&pool, &image, snap).await?;
    ensure!(state.metadata.len() == 5, "{} keys", state.metadata.len());

    let elsewhere = SnapId(snap.0 + 1000);
    write_image_state(&pool, &image, elsewhere, &state).await?;
    for index in 0..5 {
        let by_stock = content(&pool, &image, snap, index).await?;
        ensure!(content(&pool, &image, elsewhere, index).await? == by_stock, "object {index}");
        ensure!(index == 4 || by_stock.len() == 4096, "object {index} of {} bytes", by_stock.len());
    }
    ensure!(read_image_state(&pool, &image, elsewhere).await? == state, "read again");
    remove_image_state(&pool, &image, elsewhere).await?;
    let left: Vec<String> =
        pool.list_objects().await?.into_iter().filter(|o| o.contains(&elsewhere.to_string())).collect();
    ensure!(left.iter().all(|object| !object.starts_with("rbd_mirror_snapshot")), "{left:?}");
    Ok(())
}

pub async fn resyncs_are_requested(world: &World) -> Result<()> {
    let uuid = world.mirroring().await?.uuid().await?.context("a mirror uuid")?;
    let (image, _) = world.mirrored("resync").await?;
    ensure!(!resync_requested(&world.pool, &image, &uuid).await?, "not yet");
    world.stock.rbd(&["mirror", "image", "demote", &spec("resync")]).await?;
    world.stock.rbd(&["mirror", "image", "resync", &spec("resync")]).await?;
    ensure!(resync_requested(&world.pool, &image, &uuid).await?, "requested by the stock tool");
    set_resync_requested(&world.pool, &image, &uuid, false).await?;
    ensure!(!resync_requested(&world.pool, &image, &uuid).await?, "taken back");
    set_resync_requested(&world.pool, &image, &uuid, true).await?;
    ensure!(resync_requested(&world.pool, &image, &uuid).await?, "requested by us");
    clear_resync_request(&world.pool, &image, &uuid).await?;
    clear_resync_request(&world.pool, &image, &uuid).await?;
    ensure!(!resync_requested(&world.pool, &image, &uuid).await?, "cleared");
    let left = world.pool.omap_all(&header_object(&image), "metadata_").await?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
