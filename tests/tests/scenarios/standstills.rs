//! What copies must not stand still at: a demotion while a resync is asked for or under way, snapshots that were made for no
//! site, a limit on snapshots; and what they have no more of than they need when they do stand still.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::two_clusters::Direction;
use tests::{Cluster, Extents, MirrorDaemon, Signal};

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

/// A copy that was promoted by force and written to is to be made a copy again, which the daemon begins.
async fn begin_resync(stage: &Stage, daemon: &mut MirrorDaemon, image: &str) -> Result<()> {
    let (b, spec) = (&stage.clusters.b, stage.spec(image));
    b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
    b.apply(&spec, Extents::default().fill(0, SIZE, 2)).await?;
    b.rbd(&["mirror", "image", "demote", &spec]).await?;
    stage.state(b, image, "up+error").await?;
    b.rbd(&["mirror", "image", "resync", &spec]).await?;
    stage.stop_half_way(daemon, image).await
}

/// The primary is demoted after a resync of its copy was requested, and in the midst of one: what was written before the
/// demotion arrives, and the copy is promoted without force.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_is_demoted_although_a_resync_is_due() -> Result<()> {
    let stage = Stage::set("demoted-resync").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let mut daemon = stage.daemon(b).await?;
    copied(&stage, "requested").await?;
    copied(&stage, "under-way").await?;
    let write_and_demote = async |image: &str| -> Result<()> {
        let spec = stage.spec(image);
        a.apply(&spec, Extents::default().random(&scattered(3, 100, 0..SIZE))).await?;
        a.rbd(&["mirror", "image", "demote", &spec]).await?;
        Ok(())
    };

    begin_resync(&stage, &mut daemon, "under-way").await?;
    write_and_demote("under-way").await?;
    daemon.kill(Signal::SIGCONT);
    expect_caught_up(&stage, "under-way").await.context("demoted in the midst of a resync")?;
    daemon.stop(LIMIT).await?;

    write_and_demote("requested").await?;
    b.rbd(&["mirror", "image", "resync", &stage.spec("requested")]).await?;
    let mut daemon = stage.daemon(b).await?;
    expect_caught_up(&stage, "requested").await.context("demoted after a resync was requested")?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
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

async fn remove_peers(cluster: &Cluster, pool: &str) -> Result<()> {
    let info = cluster.rbd_json(&["mirror", "pool", "info", pool]).await?;
    for peer in info["peers"].as_array().into_iter().flatten() {
        let uuid = peer["uuid"].as_str().context("a peer without uuid")?;
        cluster.rbd(&["mirror", "pool", "peer", "remove", pool, uuid]).await?;
    }
    Ok(())
}

/// The peer is removed and added again while copies are behind, one of them by a demotion, and an image is enabled in
/// between: all of them arrive, without another mirror-snapshot.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_removed_and_added_again() -> Result<()> {
    let stage = Stage::set("peer-again").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let mut daemon = stage.daemon(b).await?;
    copied(&stage, "behind").await?;
    copied(&stage, "demoted").await?;
    daemon.stop(LIMIT).await?;
    for image in ["behind", "demoted"] {
        let spec = stage.spec(image);
        a.apply(&spec, Extents::default().random(&scattered(4, 100, 0..SIZE))).await?;
        let action = if image == "behind" { "snapshot" } else { "demote" };
        a.rbd(&["mirror", "image", action, &spec]).await?;
    }
    for cluster in [a, b] {
        remove_peers(cluster, &stage.pool).await?;
    }
    let spec = stage.spec("between");
    a.create_image(&spec, SIZE, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, MIB, 5)).await?;
    stage.enable("between").await?;
    stage.clusters.connect_peers(&stage.pool, Direction::Both).await?;

    let images = ["behind", "demoted", "between"];
    let mut made = Vec::new();
    for image in images {
        made.push(a.mirror_snapshots(&stage.spec(image)).await?.last().map(|newest| newest.id));
    }
    let mut daemon = stage.daemon(b).await?;
    for (image, newest) in images.into_iter().zip(made) {
        let newest = newest.with_context(|| format!("{image} has no mirror-snapshot"))?;
        stage.arrived(image, newest).await.context(image)?;
        let now = a.mirror_snapshots(&stage.spec(image)).await?.last().map(|newest| newest.id);
        ensure!(now == Some(newest), "{image}: another mirror-snapshot was made");
    }
    for image in ["behind", "between"] {
        stage.state(b, image, "up+replaying").await?;
        stage.sync(image).await.context(image)?;
    }
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

/// Nobody is advised to demote what is demoted; and that a resync waits for a primary is not "all is synced".
#[tokio::test(flavor = "multi_thread")]
async fn a_split_brain_and_its_resync_say_what_is_so() -> Result<()> {
    let stage = Stage::set("split-words").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    let mut daemon = stage.daemon(b).await?;
    copied(&stage, "image").await?;
    b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
    b.rbd(&["mirror", "image", "demote", &spec]).await?;
    let describes =
        |status: &Value, word: &str| status["description"].as_str().is_some_and(|d| d.contains(word));
    let status = stage.state(b, "image", "up+error").await?;
    ensure!(describes(&status, "split-brain") && !describes(&status, "demote this image"), "{status}");
    a.rbd(&["mirror", "image", "demote", &spec]).await?;
    b.rbd(&["mirror", "image", "resync", &spec]).await?;
    until("the request to be noticed", async || {
        Ok(describes(&b.mirror_status(&spec).await?, "resync requested"))
    })
    .await?;
    ensure!(!describes(&b.mirror_status(&spec).await?, "remote image is not primary"));
    a.rbd(&["mirror", "image", "promote", &spec]).await?;
    until("the resync to be over", async || Ok(!is_resync_requested(b, &spec).await?)).await?;
    stage.sync("image").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
