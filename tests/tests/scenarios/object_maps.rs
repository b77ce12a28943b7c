//! Object maps of a primary that call objects clean although they changed: after rollbacks, and after writes that were under
//! way while a snapshot was taken.

use anyhow::{Context, Result};
use bytes::Bytes;
use rados::{SnapContext, SnapId, WriteOp, WriteSub};
use rbd::object_map::{MapUpdate, ObjectState};
use rbd::{Image, ObjectNumber};
use tests::{Extents, MirrorDaemon};

use crate::common::{LIMIT, MIB, Stage, ours};

const SIZE: u64 = 16 * MIB;

/// A mirrored image with a user snapshot that the copy has, and other content everywhere behind it. Every object of the
/// snapshot's map is clean.
async fn with_a_snapshot(stage: &Stage) -> Result<(String, MirrorDaemon)> {
    let a = &stage.clusters.a;
    let spec = stage.spec("image");
    a.create_image(&spec, SIZE, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    let daemon = stage.daemon(&stage.clusters.b).await?;
    stage.enable("image").await?;
    stage.first_copy("image").await?;
    a.snap_create(&format!("{spec}@user")).await?;
    a.apply(&spec, Extents::default().fill(0, SIZE, 2)).await?;
    stage.sync("image").await?;
    Ok((spec, daemon))
}

/// What a rollback brought back is in the next mirror-snapshot's copy: of the whole image, of one that shrank in between, and
/// to a snapshot that is removed right after.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_is_copied() -> Result<()> {
    let stage = Stage::set("rollback").await?;
    let a = &stage.clusters.a;
    let (spec, mut daemon) = with_a_snapshot(&stage).await?;
    let user = format!("{spec}@user");
    a.rbd(&["snap", "rollback", "--no-progress", &user]).await?;
    stage.sync("image").await.context("after a rollback")?;
    a.apply(&spec, Extents::default().fill(0, MIB, 3)).await?;
    stage.sync("image").await.context("after a write behind it")?;

    a.apply(&spec, Extents::default().fill(0, SIZE, 4)).await?;
    stage.sync("image").await?;
    a.resize(&spec, SIZE / 2).await?;
    stage.sync("image").await?;
    daemon.stop(LIMIT).await?;
    a.rbd(&["snap", "rollback", "--no-progress", &user]).await?;
    a.mirror_snapshot(&spec).await?;
    a.snap_remove(&user).await?;
    let mut daemon = stage.daemon(&stage.clusters.b).await?;
    stage.first_copy("image").await.context("after a rollback to a snapshot that is gone")?;
    stage.sync("image").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// A mirror-snapshot is taken right after a rollback has written its map, before it has rolled back a single object; what was
/// written before is in the mirror-snapshot. Then the rollback goes on, between mirror-snapshots.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_under_way_hides_nothing() -> Result<()> {
    let stage = Stage::set("rollback-under-way").await?;
    let a = &stage.clusters.a;
    let (spec, mut daemon) = with_a_snapshot(&stage).await?;
    a.apply(&spec, Extents::default().fill(0, SIZE, 3)).await?;
    let (image, header) = stage.a.open(&spec).await?;
    let user = header.user_snapshot("user").context("the primary has the snapshot")?.id;
    image.object_map(SnapId::HEAD).save(&image.object_map(user).load().await?).await?;
    stage.sync("image").await.context("before an object was rolled back")?;

    let context = SnapContext::new(stage.a.open(&spec).await?.1.snapshots.keys().copied().collect());
    for object in 0..2 {
        let op = WriteOp::new(image.data_object(ObjectNumber(object)));
        image.data_ioctx().write(op.under(context.clone()).with(WriteSub::Rollback(user))).await?;
    }
    stage.sync("image").await.context("after two objects were rolled back")?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// A client carries a write out with the snapshot context from before the newest mirror-snapshot, as librbd did before
/// 16.2.14: it changes the mirror-snapshot, before that is copied or after.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_under_way_at_a_snapshot_is_copied() -> Result<()> {
    let stage = Stage::set("late-write").await?;
    let a = &stage.clusters.a;
    let spec = stage.spec("image");
    a.create_image(&spec, SIZE, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    let mut daemon = stage.daemon(&stage.clusters.b).await?;
    stage.enable("image").await?;
    stage.first_copy("image").await?;
    let (image, _) = stage.a.open(&spec).await?;

    // Behind the copy of the mirror-snapshot: the next one must bring it.
    write_late(&image, SnapContext::default(), ObjectNumber(1)).await?;
    stage.sync("image").await.context("written after the copy")?;

    // Before the copy: in the very snapshot.
    daemon.stop(LIMIT).await?;
    let before = stage.a.open(&spec).await?.1.snapshots.keys().copied().collect();
    a.mirror_snapshot(&spec).await?;
    write_late(&image, SnapContext::new(before), ObjectNumber(2)).await?;
    let trust = ["--rbd-mirror-object-map-trust=auto".to_string()];
    let mut daemon = stage.daemon_with(&ours(), &stage.clusters.b, &trust).await?;
    stage.first_copy("image").await.context("written before the copy")?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// Marks an object as written, as a client does first, and writes to it under `context`.
async fn write_late(image: &Image, context: SnapContext, object: ObjectNumber) -> Result<()> {
    let objects = object.0..object.0 + 1;
    let update = MapUpdate { objects, state: ObjectState::Exists, current: None };
    image.object_map(SnapId::HEAD).update(&update).await?;
    let op = WriteOp::new(image.data_object(object)).under(context);
    let late = WriteSub::Write { offset: 4096, data: Bytes::from(vec![9; 8192]) };
    image.data_ioctx().write(op.with(late)).await?;
    Ok(())
}

/// A sync was interrupted when it had written an object that only a user snapshot has; that is removed at the primary, and the
/// copy's own object map cannot be used: the object goes all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_sync_without_a_local_map_leaves_nothing_over() -> Result<()> {
    const OBJECT: u64 = 31;
    const OBJECT_BYTES: u64 = 4 * MIB;
    let stage = Stage::set("resumed-unmapped").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    a.create_image(&spec, (OBJECT + 1) * OBJECT_BYTES, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, OBJECT * OBJECT_BYTES, 1)).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.enable("image").await?;
    stage.first_copy("image").await?;
    daemon.stop(LIMIT).await?;

    a.apply(&spec, Extents::default().fill(0, (OBJECT + 1) * OBJECT_BYTES, 2)).await?;
    a.snap_create(&format!("{spec}@user")).await?;
    a.apply(&spec, Extents::default().zeroes(OBJECT * OBJECT_BYTES, OBJECT_BYTES)).await?;
    let snap = a.mirror_snapshot(&spec).await?;
    let daemon = stage.daemon(b).await?;
    stage.kill_half_way(daemon, "image").await?;
    // What the sync does to this object first.
    let (image, header) = stage.b.open(&spec).await?;
    let op = WriteOp::new(image.data_object(ObjectNumber(OBJECT)));
    image.data_ioctx().write(op.with(WriteSub::WriteFull(Bytes::from(vec![2; 4096])))).await?;
    rbd::snapshots::invalidate_object_map(&image, &header, SnapId::HEAD).await?;
    a.snap_remove(&format!("{spec}@user")).await?;

    // Left to itself, it looks at every object because a snapshot was removed.
    a.rbd(&["image-meta", "set", &spec, "rbd_mirror_object_map_trust", "always"]).await?;
    let pool = ["-p", &stage.pool, "setomapval", "rbd_info", "metadata_rbd_mirror_object_map_trust", "never"];
    b.rados(&pool).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.arrived("image", snap).await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
