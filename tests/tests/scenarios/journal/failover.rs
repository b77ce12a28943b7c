//! Promotion, demotion and resync with the stock `rbd`, planned and forced.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::Extents;

use super::prefix::promote_and_use;
use super::stage::{expect_same, wait_replayed};
use crate::common::{LIMIT, MIB, Stage, scattered, until};
use crate::failover::image_id;

pub(super) const SIZE: u64 = 32 * MIB;

/// There and back again, with writes and user snapshots on whichever side is primary; nothing is ever copied anew.
#[tokio::test(flavor = "multi_thread")]
async fn planned_failover_and_failback_in_a_loop() -> Result<()> {
    let stage = Stage::set("j-relocation").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    stage.create_journalled("image", SIZE, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    let mut daemons = [stage.daemon(a).await?, stage.daemon(b).await?];
    stage.enable_journal("image").await?;
    stage.state(b, "image", "up+replaying").await?;
    stage.replayed("image").await?;
    let id = image_id(b, &spec).await?;
    there_and_back(&stage, &spec, 5).await?;
    ensure!(image_id(b, &spec).await? == id, "the copy was made anew");
    for daemon in &mut daemons {
        daemon.stop(LIMIT).await?;
    }
    stage.strike().await
}

/// Relocates an image so many times in order, beginning at `a`, where it is primary.
pub(super) async fn there_and_back(stage: &Stage, spec: &str, turns: usize) -> Result<()> {
    let sides = [(&stage.clusters.a, &stage.a), (&stage.clusters.b, &stage.b)];
    for turn in 0..turns {
        let ((from, from_reader), (to, to_reader)) = (sides[turn % 2], sides[(turn + 1) % 2]);
        let writes = scattered(turn as u64, 40, 0..SIZE);
        from.apply(spec, Extents::default().random(&writes).zeroes(turn as u64 * MIB, 8192)).await?;
        from.snap_create(&format!("{spec}@turn-{turn}")).await?;
        from.apply(spec, Extents::default().random(&scattered(50 + turn as u64, 40, 0..SIZE))).await?;
        from.rbd(&["mirror", "image", "demote", spec]).await?;
        until("the copy to be promotable", async || {
            Ok(to.rbd(&["mirror", "image", "promote", spec]).await.is_ok())
        })
        .await
        .with_context(|| format!("turn {turn}"))?;
        expect_same(from_reader, to_reader, spec).await.with_context(|| format!("turn {turn}"))?;
        to.apply(spec, Extents::default().random(&scattered(90 + turn as u64, 20, 0..SIZE))).await?;
        from.wait_mirror_state(spec, "up+replaying", LIMIT).await.with_context(|| format!("turn {turn}"))?;
        wait_replayed(to, from, spec).await.with_context(|| format!("turn {turn}, back"))?;
        expect_same(to_reader, from_reader, spec).await.with_context(|| format!("turn {turn}, back"))?;
    }
    Ok(())
}

/// Both sides primary: reported, nothing written. After demote and resync the copy keeps its id and follows again.
#[tokio::test(flavor = "multi_thread")]
async fn split_brain_is_detected_and_resync_mends_it() -> Result<()> {
    let stage = Stage::set("j-split").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    stage.create_journalled("image", SIZE, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    a.snap_create(&format!("{spec}@before")).await?;
    // What changed between two snapshots is copied in any case: those of the copy are made anew.
    let (astray, untouched) = (0..SIZE / 2, SIZE / 2..SIZE);
    a.apply(&spec, Extents::default().random(&scattered(8, 100, astray.clone()))).await?;
    let mut daemons = [stage.daemon(a).await?, stage.daemon(b).await?];
    stage.enable_journal("image").await?;
    stage.state(b, "image", "up+replaying").await?;
    stage.replayed("image").await?;
    let id = image_id(b, &spec).await?;

    b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
    stage.state(b, "image", "up+stopped").await?;
    b.apply(&spec, Extents::default().random(&scattered(2, 30, astray.clone())).zeroes(MIB, 7 * MIB)).await?;
    b.snap_create(&format!("{spec}@astray")).await?;
    b.resize(&spec, SIZE + 9 * MIB).await?;
    a.apply(&spec, Extents::default().random(&scattered(3, 30, astray))).await?;
    b.rbd(&["mirror", "image", "demote", &spec]).await?;
    let diverged = b.sha256(&spec).await?;
    let status = stage.state(b, "image", "up+error").await?;
    ensure!(status["description"].as_str().is_some_and(|d| d.contains("split-brain")), "{status}");
    ensure!(
        b.sha256(&spec).await? == diverged,
        "something was written to an image with a history of its own"
    );

    let versions = stage.b.versions(&spec, untouched.clone()).await?;
    b.rbd(&["mirror", "image", "resync", &spec]).await?;
    stage.state(b, "image", "up+replaying").await?;
    stage.replayed("image").await?;
    ensure!(image_id(b, &spec).await? == id, "a resync made the image anew");
    let resynced = stage.b.versions(&spec, untouched).await?;
    ensure!(resynced == versions, "a resync wrote to what had not gone astray: {versions:?}, {resynced:?}");
    a.apply(&spec, Extents::default().random(&scattered(4, 30, 0..SIZE))).await?;
    stage.replayed("image").await?;

    // Once more: the other site is lost where the daemon asks it what there is to do. Then killed half-way.
    let arrived = a.sha256(&spec).await?;
    a.freeze()?;
    let promoted = async {
        b.rbd(&["mirror", "image", "resync", &spec]).await?;
        promote_and_use(b, &spec).await
    };
    let promoted = promoted.await;
    a.thaw().await?;
    promoted?;
    ensure!(b.sha256(&spec).await? == arrived, "the promoted image is not what had arrived");
    stage.state(b, "image", "up+stopped").await?;
    b.apply(&spec, Extents::default().fill(0, SIZE, 99)).await?;
    b.rbd(&["mirror", "image", "demote", &spec]).await?;
    b.rbd(&["mirror", "image", "resync", &spec]).await?;
    for seed in 0..3 {
        tokio::time::sleep(Duration::from_millis(100 + 250 * seed)).await;
        daemons[1].kill(tests::Signal::SIGKILL);
        daemons[1].wait(LIMIT).await?;
        daemons[1] = stage.daemon(b).await?;
    }
    stage.state(b, "image", "up+replaying").await?;
    stage.replayed("image").await?;
    ensure!(image_id(b, &spec).await? == id, "a resync made the image anew");
    for daemon in &mut daemons {
        daemon.stop(LIMIT).await?;
    }
    stage.strike().await
}

/// Promoted by force in the middle of replay: the image is usable at once, and nothing is written to it any more but by
/// its users.
#[tokio::test(flavor = "multi_thread")]
async fn forced_promotion_in_the_middle_of_replay() -> Result<()> {
    let stage = Stage::set("j-forced").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    for seed in 0..3_u64 {
        let name = format!("image-{seed}");
        let spec = stage.spec(&name);
        stage.create_journalled(&name, SIZE, &[]).await?;
        a.apply(&spec, Extents::default().fill(0, SIZE, seed)).await?;
        let mut daemon = stage.daemon(b).await?;
        stage.enable_journal(&name).await?;
        stage.state(b, &name, "up+replaying").await?;
        stage.replayed(&name).await?;
        let writer = a.tool("rbd").args(["bench", "--io-type", "write", "--io-pattern", "rand"]);
        let writer = writer.args(["--io-size", "4K", "--io-total", "64M", "--io-threads", "8", &spec]);
        let promotion = async {
            tokio::time::sleep(Duration::from_millis(300 + 300 * seed)).await;
            b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
            b.apply(&spec, Extents::default().fill(MIB, MIB, 77)).await?;
            b.snap_create(&format!("{spec}@promoted")).await?;
            anyhow::Ok(b.sha256(&spec).await?)
        };
        let (wrote, promoted) = tokio::join!(writer.run(), promotion);
        wrote?;
        let promoted = promoted.with_context(|| format!("seed {seed}"))?;
        let status = stage.state(b, &name, "up+stopped").await?;
        ensure!(status["description"] == "local image is primary", "{status}");
        ensure!(b.sha256(&spec).await? == promoted, "seed {seed}: a promoted image was written to");
        b.rbd(&["object-map", "check", "--no-progress", &spec]).await?;
        daemon.stop(LIMIT).await?;
    }
    stage.strike().await
}
