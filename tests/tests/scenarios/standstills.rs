//! What copies must not stand still at: a limit on snapshots; and what they have no more of than they need when they do stand
//! still.

use anyhow::{Context, Result, ensure};
use tests::Extents;

use crate::common::{LIMIT, MIB, Stage, scattered, until};
use crate::content;
use crate::repairs::is_resync_requested;

const SIZE: u64 = 48 * MIB;

/// An image of small objects, full, whose first copy has arrived.
async fn copied(stage: &Stage, image: &str) -> Result<()> {
    let spec = stage.spec(image);
    stage.clusters.a.create_image(&spec, SIZE, &["--object-size", "256K"]).await?;
    stage.clusters.a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    stage.enable(image).await?;
    stage.first_copy(image).await
}

/// The demoted snapshot, and no other mirror-snapshot, is at the copy, which is promoted without force and has everything.
async fn expect_caught_up(stage: &Stage, image: &str) -> Result<()> {
    let (a, b, spec) = (&stage.clusters.a, &stage.clusters.b, stage.spec(image));
    let demoted =
        a.mirror_snapshots(&spec).await?.last().map(|newest| newest.id).context("a demoted snapshot")?;
    b.wait_copied(&spec, demoted, LIMIT).await.context("the last changes do not arrive")?;
    until("the resync to be over", async || Ok(!is_resync_requested(b, &spec).await?)).await?;
    until("superseded snapshots to go", async || Ok(b.mirror_snapshots(&spec).await?.len() == 1)).await?;
    stage.expect_copied(image).await?;
    let status = stage.state(b, image, "up+unknown").await?;
    ensure!(status["description"] == "remote image is not primary", "{status}");
    b.rbd(&["mirror", "image", "promote", &spec]).await?;
    Ok(())
}

/// With its primary demoted, a copy keeps the one mirror-snapshot that it can be promoted at.
#[tokio::test(flavor = "multi_thread")]
async fn a_demotion_leaves_one_mirror_snapshot() -> Result<()> {
    let stage = Stage::set("demoted-once").await?;
    let mut daemon = stage.daemon(&stage.clusters.b).await?;
    copied(&stage, "image").await?;
    stage.sync("image").await?;
    stage.clusters.a.rbd(&["mirror", "image", "demote", &stage.spec("image")]).await?;
    expect_caught_up(&stage, "image").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// The copy has as many snapshots as its primary's limit was: it goes on, and then has the primary's new limit. With
/// mirror-snapshots in quick succession it has no more of them than it needs.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_limit_at_the_copy_holds_nothing_up() -> Result<()> {
    let stage = Stage::set("snapshot-limit").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    a.create_image(&spec, 16 * MIB, &[]).await?;
    a.rbd(&["snap", "limit", "set", "--limit", "4", &spec]).await?;
    for name in ["one", "two", "three"] {
        a.snap_create(&format!("{spec}@{name}")).await?;
    }
    let mut daemon = stage.daemon(b).await?;
    stage.enable("image").await?;
    stage.first_copy("image").await?;
    let has_limit = async |wanted: Option<u64>| {
        let what = format!("the copy to have the limit {wanted:?}");
        until(&what, async || Ok(stage.b.open(&spec).await?.1.snapshot_limit == wanted)).await
    };
    has_limit(Some(4)).await?;
    a.rbd(&["snap", "limit", "clear", &spec]).await?;
    stage.sync("image").await.context("as many snapshots as the limit was")?;
    has_limit(None).await?;

    a.rbd(&["snap", "limit", "set", "--limit", "6", &spec]).await?;
    for seed in 0..6 {
        a.apply(&spec, Extents::default().random(&scattered(seed, 20, 0..16 * MIB))).await?;
        a.mirror_snapshot(&spec).await?;
        let (_, header) = stage.b.open(&spec).await?;
        let count = content::mirror_snapshots(&header).len();
        ensure!(count <= 4, "the copy has {count} mirror-snapshots");
    }
    stage.sync("image").await?;
    has_limit(Some(6)).await?;
    until("superseded snapshots to go", async || Ok(b.mirror_snapshots(&spec).await?.len() == 1)).await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
