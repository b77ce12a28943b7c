//! The daemon is away for so long that the primary's journal no longer keeps entries for it: it is disconnected, says so,
//! and comes back by a resync, asked for or, with `rbd_mirroring_resync_after_disconnect`, by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::StampedWriter;
use tests::stamped::{Pattern, Writing};

use super::stage::clients;
use crate::common::{LIMIT, MIB, Stage, until};
use crate::failover::image_id;

const PATTERN: Pattern = Pattern { seed: 21, blocks: 512, batch_min: 10, batch_max: 40, discards: 1 };
/// Makes the primary give up clients that lag behind by more object sets than this.
const SETS_MAX: &str = "conf_rbd_journal_max_concurrent_object_sets";

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnected_copy_comes_back() -> Result<()> {
    let stage = Stage::set("j-disconnect").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let names = ["asked", "itself", "struck"];
    for name in names {
        let narrow = ["--journal-object-size", "64K", "--journal-splay-width", "2"];
        stage.create_journalled(name, 2 * MIB, &narrow).await?;
        let spec = stage.spec(name);
        a.rbd(&["image-meta", "set", &spec, SETS_MAX, "2"]).await?;
        if name != "asked" {
            a.rbd(&["image-meta", "set", &spec, "conf_rbd_mirroring_resync_after_disconnect", "true"])
                .await?;
        }
        stage.enable_journal(name).await?;
    }
    let mut daemon = stage.daemon(b).await?;
    let mut ids = Vec::new();
    for name in names {
        stage.state(b, name, "up+replaying").await?;
        stage.replayed(name).await?;
        ids.push(image_id(b, &stage.spec(name)).await?);
    }
    daemon.stop(LIMIT).await?;
    for name in ["asked", "itself"] {
        write_until_disconnected(&stage, name).await?;
    }
    let mut daemon = stage.daemon(b).await?;

    // By itself.
    stage.state(b, "itself", "up+replaying").await?;
    stage.replayed("itself").await?;

    // It waits for the operator.
    let status = stage.state(b, "asked", "up+error").await?;
    let description = status["description"].as_str().unwrap_or_default();
    ensure!(description.contains("disconnected") && description.contains("resync"), "{status}");
    let stale = b.sha256(&stage.spec("asked")).await?;
    ensure!(stale != a.sha256(&stage.spec("asked")).await?, "the copy has what it cannot have");
    b.rbd(&["mirror", "image", "resync", &stage.spec("asked")]).await?;
    stage.state(b, "asked", "up+replaying").await?;
    stage.replayed("asked").await?;

    // While it is replayed.
    let disconnect = async |name: &str| {
        let args = ["journal", "client", "disconnect", "--pool", &stage.pool, "--image", name];
        a.rbd(&args).await
    };
    disconnect("asked").await?;
    let status = stage.state(b, "asked", "up+error").await?;
    ensure!(status["description"].as_str().is_some_and(|d| d.contains("disconnected")), "{status}");
    b.rbd(&["mirror", "image", "resync", &stage.spec("asked")]).await?;
    disconnect("struck").await?;
    for (name, id) in names.into_iter().zip(ids) {
        until("the client to count again", async || Ok(connected(&stage, name).await?)).await?;
        stage.state(b, name, "up+replaying").await.with_context(|| name.to_string())?;
        // Positions are committed every few seconds: so short a leash is none to live with.
        a.rbd(&["image-meta", "rm", &stage.spec(name), SETS_MAX]).await?;
        write(&stage, name).await?;
        stage.replayed(name).await.with_context(|| name.to_string())?;
        ensure!(image_id(b, &stage.spec(name)).await? == id, "{name}: the copy was made anew");
    }
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// This site's client in the primary's journal counts.
async fn connected(stage: &Stage, image: &str) -> Result<bool> {
    let (_, mirror) = clients(&stage.clusters.a, &stage.spec(image)).await?;
    Ok(mirror.is_some_and(|client| client["state"] == "connected"))
}

/// Writes sets of objects until nobody waits for the copy any more.
async fn write_until_disconnected(stage: &Stage, image: &str) -> Result<()> {
    let writing =
        Writing { pattern: PATTERN, depth: 8, snap_every: 0, batches: 0, pause: Duration::from_millis(5) };
    let mut writer = StampedWriter::start(&stage.clusters.a, &stage.spec(image), &writing)?;
    until("the copy to be disconnected", async || Ok(!connected(stage, image).await?)).await?;
    // What was written when it still counted is not all that it lacks.
    writer.reach(writer.batch() + 10, LIMIT).await?;
    writer.stop(LIMIT).await.map(drop)
}

async fn write(stage: &Stage, image: &str) -> Result<()> {
    let writing = Writing { pattern: PATTERN, depth: 8, snap_every: 3, batches: 6, pause: Duration::ZERO };
    let mut writer = StampedWriter::start(&stage.clusters.a, &stage.spec(image), &writing)?;
    writer.reach(6, LIMIT).await?;
    writer.stop(LIMIT).await.map(drop)
}
