//! The pool of the copies reaches its quota, in the midst of a copy and of a replay: the statuses and a callout say so, copies
//! are removed all the same, and mirroring goes on by itself when there is room again.

use anyhow::{Context, Result, ensure};
use rbd::mirroring::{Mirroring, SiteStatus, StatusState};
use tests::{Cluster, Extents, Signal};

use crate::common::{LIMIT, MIB, Stage, until};
use crate::lifecycle::exists;

/// What part of an image is full before the quota is reached.
const BEFORE: u64 = 32 * MIB;

/// Sets the quota of a pool in bytes (0: none), and waits until the monitors have found out what follows from it.
async fn set_quota(cluster: &Cluster, pool: &str, bytes: u64) -> Result<()> {
    cluster.ceph(&["osd", "pool", "set-quota", pool, "max_bytes", &bytes.to_string()]).await?;
    until("the pool's flags to change", async || {
        let pools = cluster.ceph_json(&["osd", "pool", "ls", "detail"]).await?;
        let found = pools.as_array().into_iter().flatten().find(|found| found["pool_name"] == pool);
        let flags = found.and_then(|found| found["flags_names"].as_str()).context("the pool has flags")?;
        Ok(flags.contains("full_quota") == (bytes > 0))
    })
    .await
}

/// True when the daemon at `b` says of an image that the pool is full. (The stock `rbd mirror image status` opens the image,
/// for which it waits as long as that is so.)
async fn is_told(stage: &Stage, image: &str) -> Result<bool> {
    let (image, _) = stage.b.open(&stage.spec(image)).await?;
    let statuses = Mirroring::new(image.header_ioctx()).statuses().await?;
    let local = statuses.get(image.id()).and_then(|(_, status)| status.as_ref()?.local.as_ref());
    let told = |site: &SiteStatus| {
        site.up
            && site.state == StatusState::Error
            && site.description.starts_with("local pool 'full' is full: it has reached its quota")
    };
    Ok(local.is_some_and(told))
}

/// Whether the daemon calls out that the pool is full.
async fn called_out(cluster: &Cluster) -> Result<bool> {
    Ok(cluster.ceph(&["service", "status"]).await?.contains("local pool 'full' is full"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_is_told_and_mirroring_goes_on_when_there_is_room() -> Result<()> {
    let stage = Stage::set("full").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let mut daemon = stage.daemon(b).await?;
    stage.create_journalled("journalled", 2 * BEFORE, &[]).await?;
    stage.enable_journal("journalled").await?;
    stage.create_journalled("gone-journalled", MIB, &[]).await?;
    stage.enable_journal("gone-journalled").await?;
    for (name, size) in [("snapshots", 8 * BEFORE), ("gone", MIB)] {
        a.create_image(&stage.spec(name), size, &[]).await?;
        a.apply(&stage.spec(name), Extents::default().fill(0, size.min(BEFORE), 1)).await?;
        stage.enable(name).await?;
        stage.first_copy(name).await?;
    }
    a.apply(&stage.spec("journalled"), Extents::default().fill(0, BEFORE, 2)).await?;
    for name in ["journalled", "gone-journalled"] {
        stage.state(b, name, "up+replaying").await?;
        stage.replayed(name).await?;
    }

    let spec = stage.spec("snapshots");
    a.apply(&spec, Extents::default().fill(0, 7 * BEFORE, 3)).await?;
    let snap = a.mirror_snapshot(&spec).await?;
    stage.stop_half_way(&mut daemon, "snapshots").await?;
    a.apply(&stage.spec("journalled"), Extents::default().fill(BEFORE / 2, BEFORE, 4)).await?;
    set_quota(b, &stage.pool, MIB).await?;
    daemon.kill(Signal::SIGCONT);
    for name in ["snapshots", "journalled"] {
        until("the status to say that the pool is full", async || is_told(&stage, name).await)
            .await
            .with_context(|| name.to_string())?;
    }
    until("a callout", async || called_out(b).await).await?;
    for name in ["gone", "gone-journalled"] {
        a.rbd(&["mirror", "image", "disable", &stage.spec(name)]).await?;
        until("the copy to go", async || Ok(!exists(b, &stage.pool, name).await?)).await?;
        let trash = b.rbd_json(&["trash", "ls", "--all", &stage.pool]).await?;
        until("the trash to be emptied", async || {
            Ok(b.rbd_json(&["trash", "ls", "--all", &stage.pool]).await?.as_array().is_none_or(Vec::is_empty))
        })
        .await
        .with_context(|| format!("{name}: {trash}"))?;
    }
    ensure!(daemon.alive(), "the daemon ended");

    set_quota(b, &stage.pool, 0).await?;
    stage.arrived("snapshots", snap).await?;
    for name in ["snapshots", "journalled"] {
        stage.state(b, name, "up+replaying").await?;
    }
    stage.replayed("journalled").await?;
    until("the end of the callout", async || Ok(!called_out(b).await?)).await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
