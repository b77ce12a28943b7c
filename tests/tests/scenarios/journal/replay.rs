//! Replay: what is written arrives, and the stock tools see the same as we do.

use anyhow::{Context, Result, ensure};
use tests::Extents;

use super::stage::{clients, newest, wait_replayed};
use crate::common::{LIMIT, MIB, Stage, scattered, until};

const SIZE: u64 = 32 * MIB;

/// Writes, zeroes, discards, sizes, snapshots, rollback, names and metadata, while the daemon runs and while it is away.
#[tokio::test(flavor = "multi_thread")]
async fn everything_that_happens_is_replayed() -> Result<()> {
    let stage = Stage::set("j-replay").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    stage.create_journalled("image", SIZE, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    stage.enable_journal("image").await?;
    let mut daemon = stage.daemon(b).await?;
    stage.state(b, "image", "up+replaying").await?;
    stage.replayed("image").await?;
    for round in 0..3_u64 {
        if round == 1 {
            daemon.stop(LIMIT).await?;
        }
        a.apply(&spec, Extents::default().random(&scattered(round, 300, 0..SIZE)).zeroes(5 * MIB, 6 * MIB))
            .await?;
        a.snap_create(&format!("{spec}@{round}-a")).await?;
        a.discard(&spec, round * MIB + 4096, 3 * MIB).await?;
        a.resize(&spec, 20 * MIB + round * 4096).await?;
        a.snap_create(&format!("{spec}@{round}-b")).await?;
        a.resize(&spec, SIZE).await?;
        a.apply(&spec, Extents::default().random(&scattered(round + 10, 300, 0..SIZE))).await?;
        a.snap_rename(&format!("{spec}@{round}-b"), &format!("{spec}@{round}-renamed")).await?;
        a.snap_protect(&format!("{spec}@{round}-a")).await?;
        a.rbd(&["snap", "rollback", "--no-progress", &format!("{spec}@{round}-a")]).await?;
        a.apply(&spec, Extents::default().random(&scattered(round + 20, 100, 0..SIZE))).await?;
        a.snap_create(&format!("{spec}@{round}-c")).await?;
        a.snap_remove(&format!("{spec}@{round}-c")).await?;
        a.rbd(&["image-meta", "set", &spec, "round", &round.to_string()]).await?;
        if round == 1 {
            daemon = stage.daemon(b).await?;
        }
        stage.replayed("image").await.with_context(|| format!("round {round}"))?;
    }
    a.rbd(&["image-meta", "rm", &spec, "round"]).await?;
    let renamed = stage.spec("renamed");
    a.rbd(&["rename", &spec, &renamed]).await?;
    a.apply(&renamed, Extents::default().random(&scattered(40, 50, 0..SIZE))).await?;
    until("the copy to be renamed", async || Ok(b.rbd_json(&["info", &renamed]).await.is_ok())).await?;
    stage.replayed("renamed").await?;

    // The stock tools tell the same.
    let reached = wait_replayed(a, b, &renamed).await?;
    let (own, mirror) = clients(a, &renamed).await?;
    let mirror = mirror.context("this site is registered")?;
    ensure!(mirror["state"] == "connected" && newest(&mirror) >= reached, "{mirror}");
    ensure!(newest(&own) == newest(&mirror), "the primary is at {own}, the copy at {mirror}");
    // A status tells of progress once in a second.
    let position = newest(&own).map(|(tag, entry)| (Some(tag), Some(entry)));
    until("the status to tell that the copy is current", async || {
        let status = stage.state(b, "renamed", "up+replaying").await?;
        let description = status["description"].as_str().context("a status has a description")?;
        let fields = description.strip_prefix("replaying, ").context("Ceph's words")?;
        let fields: serde_json::Value = serde_json::from_str(fields)?;
        let told = |side: &str| {
            let position = &fields[side];
            Some((position["tag_tid"].as_u64(), position["entry_tid"].as_u64()))
        };
        let both = [told("primary_position"), told("non_primary_position")];
        Ok(fields["entries_behind_primary"] == 0 && both == [position, position])
    })
    .await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
