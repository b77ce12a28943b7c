//! Copies that have to be compared with their primaries: because the snapshot that both have in common is gone, or
//! because they were told to resync; also when the daemon is killed in the midst of it.

use anyhow::{Context, Result, ensure};
use rados::SnapId;
use rbd::snapshots;
use tests::{Cluster, Extents, Signal};

use crate::common::{LIMIT, MIB, Stage, scattered, until};
use crate::content::Reader;
use crate::failover::image_id;

const SIZE: u64 = 96 * MIB;

/// Removes a mirror-snapshot of a primary, in spite of its peer: an accident that the stock tools do not let happen.
pub async fn lose_snapshot(reader: &Reader, spec: &str, snap: u64) -> Result<()> {
    let (image, header) = reader.open(spec).await?;
    snapshots::remove(&image, &header, SnapId(snap)).await.map(drop).context("removing a snapshot")?;
    Ok(rbd::watch_notify::notify_header_update(image.header_ioctx(), image.id()).await?)
}

async fn is_half_filled(cluster: &Cluster, spec: &str) -> Result<bool> {
    Ok(cluster.mirror_snapshots(spec).await?.last().is_some_and(|newest| !newest.complete))
}

/// The base of the next delta is removed on the primary: while the daemon is away, and while it copies. The copy is
/// compared and mended, under the same id; nobody speaks of a split-brain.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_base_is_no_split_brain() -> Result<()> {
    let stage = Stage::set("lost-base").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    a.create_image(&spec, SIZE, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    a.snap_create(&format!("{spec}@user")).await?;
    stage.enable("image").await?;
    let mut daemon = stage.daemon(b).await?;
    stage.first_copy("image").await?;
    let id = image_id(b, &spec).await?;
    daemon.stop(LIMIT).await?;

    let base = a.newest_primary_snapshot(&spec).await?;
    a.apply(&spec, Extents::default().random(&scattered(2, 200, 0..SIZE)).zeroes(8 * MIB, 5 * MIB)).await?;
    let snap = a.mirror_snapshot(&spec).await?;
    lose_snapshot(&stage.a, &spec, base).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.arrived("image", snap).await.context("the base was lost while the daemon was away")?;

    let base = snap;
    a.apply(&spec, Extents::default().fill(0, SIZE, 3)).await?;
    let snap = a.mirror_snapshot(&spec).await?;
    until("the copy to be under way, or over", async || {
        Ok(is_half_filled(b, &spec).await?
            || b.wait_copied(&spec, snap, std::time::Duration::ZERO).await.is_ok())
    })
    .await?;
    lose_snapshot(&stage.a, &spec, base).await?;
    stage.arrived("image", snap).await.context("the base was lost while it was copied")?;
    stage.sync("image").await?;
    ensure!(image_id(b, &spec).await? == id, "the copy was made anew");
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// The daemon is killed in the midst of a resync, again and again: it is finished by the next one, and not taken for
/// finished before.
#[tokio::test(flavor = "multi_thread")]
async fn a_resync_that_was_cut_off_is_finished() -> Result<()> {
    let stage = Stage::set("cut-resync").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    a.create_image(&spec, SIZE, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    stage.enable("image").await?;
    let mut daemon = stage.daemon(b).await?;
    stage.first_copy("image").await?;
    let id = image_id(b, &spec).await?;
    b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
    b.apply(&spec, Extents::default().fill(0, SIZE, 2)).await?;
    b.rbd(&["mirror", "image", "demote", &spec]).await?;
    stage.state(b, "image", "up+error").await?;

    b.rbd(&["mirror", "image", "resync", &spec]).await?;
    for _ in 0..3 {
        until("the resync to be under way", async || {
            Ok(is_half_filled(b, &spec).await? || !is_resync_requested(b, &spec).await?)
        })
        .await?;
        daemon.kill(Signal::SIGKILL);
        daemon.wait(LIMIT).await?;
        if !is_half_filled(b, &spec).await? {
            stage.expect_copied("image").await.context("the resync was declared finished")?;
        }
        daemon = stage.daemon(b).await?;
    }
    until("the resync to be finished", async || Ok(!is_resync_requested(b, &spec).await?)).await?;
    stage.expect_copied("image").await?;
    stage.sync("image").await?;
    ensure!(image_id(b, &spec).await? == id, "the copy was made anew");
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

pub async fn is_resync_requested(cluster: &Cluster, spec: &str) -> Result<bool> {
    let metadata = cluster.rbd(&["image-meta", "list", spec]).await?;
    Ok(metadata.contains("resync"))
}
