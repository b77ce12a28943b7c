//! Crash consistency of journal mode: at whatever instant a copy is promoted, it is in a state that the primary's disk may
//! have been in. Nothing that was written before a flush is missing while something from behind it is there.
//!
//! A stock librbd client writes stamped blocks in batches, with a flush behind each and a user snapshot now and then.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::stamped::{Pattern, Writing, stamps_of};
use tests::{Cluster, MirrorDaemon, Signal, StampedWriter};

use crate::common::{LIMIT, Stage, until};

/// After how many batches there is a user snapshot.
const SNAP_EVERY: u64 = 40;

/// How the daemon that makes the copy is treated before the copy is promoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Treatment {
    /// It works on.
    Alive,
    /// It is killed.
    Killed,
    /// It is killed, another one is started, and is killed in the midst of what it does first. So is the one at the primary.
    KilledTwice,
    /// It works on, and the primary's cluster is frozen: whoever promotes does not wait for that.
    SiteLost,
}

/// Promotions by force at many seeded instants, of an image that is written to all the time; the copy then becomes the
/// primary, is written to itself, and the old primary is brought in line with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_copy_is_a_state_of_the_primarys_disk() -> Result<()> {
    let stage = Stage::set("prefix").await?;
    let treatments = [
        Treatment::Alive,
        Treatment::Killed,
        Treatment::KilledTwice,
        Treatment::SiteLost,
        Treatment::KilledTwice,
        Treatment::Killed,
    ];
    for (seed, treatment) in (0..).zip(treatments) {
        let image = format!("image-{seed}");
        one_promotion(&stage, &image, seed, treatment)
            .await
            .with_context(|| format!("seed {seed}, {treatment:?}"))?;
    }
    stage.strike().await
}

async fn one_promotion(stage: &Stage, image: &str, seed: u64, treatment: Treatment) -> Result<()> {
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec(image);
    // Small batches make many barriers, large ones many writes between two of them.
    let batch_max = [300, 4, 60][seed as usize % 3];
    let pattern = Pattern { seed, blocks: 2048, batch_min: 1, batch_max, discards: seed % 3 };
    let writing = Writing { pattern, depth: 16, snap_every: SNAP_EVERY, batches: 0, pause: Duration::ZERO };
    let features =
        ["--image-feature", "layering,exclusive-lock,object-map,fast-diff,deep-flatten,journaling"];
    let narrow = ["--object-size", "64K", "--journal-object-size", "1M"];
    a.create_image(&spec, 8 << 20, &[&features[..], &narrow[..]].concat()).await?;
    a.rbd(&["mirror", "image", "enable", &spec, "journal"]).await?;
    let mut writer = StampedWriter::start(a, &spec, &writing)?;
    let (mut daemon, mut at_primary) = (stage.daemon(b).await?, stage.daemon(a).await?);
    stage.state(b, image, "up+replaying").await?;
    writer.reach(writer.batch() + 20 + seed * 7, LIMIT).await?;
    let arrived = follows(stage, image, &pattern, &mut writer).await?;

    writer.reach(writer.batch() + 10 + seed * 13, LIMIT).await?;
    if matches!(treatment, Treatment::Killed | Treatment::KilledTwice) {
        kill(&mut daemon).await?;
    }
    if treatment == Treatment::KilledTwice {
        writer.reach(writer.batch() + 30, LIMIT).await?;
        kill(&mut at_primary).await?;
        let before = stamps(b, &spec).await?;
        (daemon, at_primary) = (stage.daemon(b).await?, stage.daemon(a).await?);
        until("the daemon to go on", async || Ok(stamps(b, &spec).await? != before)).await?;
        kill(&mut daemon).await?;
    }
    if treatment == Treatment::SiteLost {
        a.freeze()?;
        let promoted = promote_and_use(b, &spec).await;
        a.thaw().await?;
        promoted?;
    } else {
        b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
    }
    let begun = writer.kill().await? + 1;
    kill(&mut daemon).await?;
    kill(&mut at_primary).await?;

    let promoted = stamps(b, &spec).await?;
    let batch = pattern.batch_of(&promoted, begun)?;
    // Batches that change nothing may be told to be earlier ones.
    ensure!(
        batch >= arrived || promoted == pattern.stamps_after(arrived),
        "batch {arrived} had arrived, and the promoted copy is of batch {batch}"
    );
    let mut expected: Vec<u64> = (1..arrived).filter(|number| number % SNAP_EVERY == 0).collect();
    let snapshots = b.rbd_json(&["snap", "ls", &spec]).await?;
    for snapshot in snapshots.as_array().context("rbd lists snapshots")? {
        let name = snapshot["name"].as_str().context("a snapshot has a name")?;
        // Sync points are Ceph's and ours, and end when they are no longer needed.
        let Some(number) = name.strip_prefix("batch-") else { continue };
        let number: u64 = number.parse()?;
        ensure!(number <= batch, "snapshot '{name}' is newer than the head, which is of batch {batch}");
        let held = stamps(b, &format!("{spec}@{name}")).await?;
        ensure!(held == pattern.stamps_after(number), "snapshot '{name}' is not of batch {number}");
        expected.retain(|missing| *missing != number);
    }
    ensure!(expected.is_empty(), "the snapshots of batches {expected:?} are missing");
    b.rbd(&["object-map", "check", "--no-progress", &spec]).await?;
    if treatment == Treatment::Alive {
        fail_back(stage, image, seed).await.context("failing back")?;
    }
    Ok(())
}

/// Promotes a copy, and does what only the owner of its lock may do.
pub(super) async fn promote_and_use(cluster: &Cluster, spec: &str) -> Result<()> {
    cluster.rbd(&["mirror", "image", "promote", "--force", spec]).await?;
    Ok(cluster.snap_create(&format!("{spec}@promoted")).await?)
}

/// The copy arrives at what the writer has written, while it writes on: answers with the batch that has arrived.
pub(super) async fn follows(
    stage: &Stage,
    image: &str,
    pattern: &Pattern,
    writer: &mut StampedWriter,
) -> Result<u64> {
    let target = writer.batch();
    until("the copy to reach the writer", async || {
        // It is not read in one instant, so it may look like no state at all.
        let copy = stamps(&stage.clusters.b, &stage.spec(image)).await?;
        Ok(pattern.batch_of(&copy, writer.batch() + 1).is_ok_and(|batch| batch >= target))
    })
    .await?;
    Ok(target)
}

/// The promoted copy is written to; the old primary is demoted, resynced from it, and follows.
async fn fail_back(stage: &Stage, image: &str, seed: u64) -> Result<()> {
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec(image);
    let from = stamps(b, &spec).await?;
    let pattern = Pattern { seed: seed + 100, blocks: 2048, batch_min: 1, batch_max: 20, discards: 1 };
    let writing = Writing { pattern, depth: 8, snap_every: 0, batches: 30, pause: Duration::ZERO };
    let mut writer = StampedWriter::start(b, &spec, &writing)?;
    writer.reach(30, LIMIT).await?;
    writer.stop(LIMIT).await?;
    let mut expected = from;
    for (block, stamp) in pattern.batches().take(30).flatten() {
        expected[block as usize] = stamp;
    }
    ensure!(stamps(b, &spec).await? == expected, "the promoted image does not hold what was written to it");
    a.rbd(&["mirror", "image", "demote", &spec]).await?;
    a.rbd(&["mirror", "image", "resync", &spec]).await?;
    let mut daemon = stage.daemon(a).await?;
    until("the old primary to be in line", async || {
        Ok(stamps(a, &spec).await.is_ok_and(|is| is == expected))
    })
    .await?;
    stage.state(a, image, "up+replaying").await?;
    daemon.stop(LIMIT).await?;
    b.rbd(&["mirror", "image", "disable", &spec]).await?;
    Ok(())
}

pub(super) async fn stamps(cluster: &Cluster, spec: &str) -> Result<Vec<u64>> {
    stamps_of(&cluster.read(spec).await?)
}

pub(super) async fn kill(daemon: &mut MirrorDaemon) -> Result<()> {
    daemon.kill(Signal::SIGKILL);
    daemon.wait(LIMIT).await.map(drop)
}
