//! Writers of every kind at once, while everything that can be done to an image is done to it, and the daemon replays.

use anyhow::{Context, Result, ensure};
use tests::{Extents, LibrbdImage, MirrorDaemon};

use super::prefix::kill;
use super::stage::FEATURES;
use crate::common::{LIMIT, MIB, Stage, until};

/// Threads of one client that write, each in a part of its own.
const WRITERS: u64 = 8;
const PART: u64 = 3 * MIB;
const SIZE: u64 = WRITERS * PART;

/// A client writes, discards, writes zeroes and the same bytes over and over, compares and writes, and flushes, from many
/// threads; meanwhile others resize the image, make, protect, rename and remove snapshots, roll back, flatten, rename, change
/// features, limits and metadata, for which the lock goes back and forth; and the daemon is killed in the midst of it.
#[tokio::test(flavor = "multi_thread")]
async fn writers_of_every_kind_at_once() -> Result<()> {
    let stage = Stage::set("j-crowd").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let (parent, spec) = (stage.spec("parent"), stage.spec("image"));
    stage.create_journalled("parent", SIZE, &["--object-size", "256K"]).await?;
    a.apply(&parent, Extents::default().fill(0, SIZE / 2, 1)).await?;
    a.snap_create(&format!("{parent}@base")).await?;
    a.snap_protect(&format!("{parent}@base")).await?;
    let features = ["--image-feature", FEATURES, "--journal-object-size", "1M"];
    a.rbd(&[&["clone"], &features[..], &[&format!("{parent}@base"), &spec]].concat()).await?;
    for name in ["parent", "image"] {
        stage.enable_journal(name).await?;
    }
    let mut daemon = stage.daemon(b).await?;
    stage.state(b, "image", "up+replaying").await?;

    for round in 0..3_u64 {
        let name = if round < 2 { "image" } else { "renamed" };
        let mut client = LibrbdImage::open(a, &stage.spec(name)).await?;
        client.run(&format!("crowd {WRITERS} 60 {PART} {round}")).await?;
        maintain(&stage, name, round, &mut client, &mut daemon)
            .await
            .with_context(|| format!("round {round}"))?;
        let rarest = client.run("disperse").await?;
        ensure!(rarest > 0, "round {round}: a kind of write came about {rarest} times");
        // He commits what he has written, which is what is waited for.
        client.close().await?;
        let name = if round < 1 { "image" } else { "renamed" };
        stage.replayed(name).await.with_context(|| format!("round {round}"))?;
    }
    let spec = stage.spec("renamed");
    let info = b.rbd_json(&["info", &spec]).await?;
    ensure!(info["parent"].is_null(), "the image was flattened, its copy not: {info}");
    daemon.stop(LIMIT).await?;
    b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
    b.rbd(&["object-map", "check", "--no-progress", &spec]).await?;
    stage.strike().await
}

/// Does everything to an image but write to it.
async fn maintain(
    stage: &Stage,
    name: &str,
    round: u64,
    client: &mut LibrbdImage,
    daemon: &mut MirrorDaemon,
) -> Result<()> {
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec(name);
    let snapshot = |of: &str| format!("{spec}@{round}-{of}");
    a.snap_create(&snapshot("kept")).await?;
    a.snap_protect(&snapshot("kept")).await?;
    a.rbd(&["image-meta", "set", &spec, &format!("round-{round}"), "begun"]).await?;
    a.resize(&spec, SIZE - PART / 2 - round * 4096).await?;
    a.snap_create(&snapshot("short")).await?;
    a.resize(&spec, SIZE).await?;
    if round.is_multiple_of(2) {
        kill(daemon).await?;
    }
    a.rbd(&["snap", "limit", "set", &spec, "--limit", &(40 + round).to_string()]).await?;
    a.snap_create(&snapshot("gone")).await?;
    a.snap_rename(&snapshot("short"), &snapshot("renamed")).await?;
    // Only who has the lock can do that.
    let rolled_back = client.run(&format!("rollback {round}-kept")).await?;
    ensure!(rolled_back == 0, "a rollback ended with {rolled_back}");
    a.snap_remove(&snapshot("gone")).await?;
    if round.is_multiple_of(2) {
        *daemon = stage.daemon(b).await?;
    }
    a.rbd(&["feature", "disable", &spec, "fast-diff"]).await?;
    a.rbd(&["image-meta", "rm", &spec, &format!("round-{round}")]).await?;
    a.rbd(&["image-meta", "set", &spec, "color", ["red", "green", "blue"][round as usize]]).await?;
    a.rbd(&["feature", "enable", &spec, "fast-diff"]).await?;
    a.snap_unprotect(&snapshot("kept")).await?;
    match round {
        0 => a.snap_create(&snapshot("last")).await?,
        1 => {
            let renamed = stage.spec("renamed");
            a.rbd(&["rename", &spec, &renamed]).await?;
            until("the copy to be renamed", async || Ok(b.rbd_json(&["info", &renamed]).await.is_ok()))
                .await?;
        }
        _ => a.flatten(&spec).await?,
    }
    Ok(())
}
