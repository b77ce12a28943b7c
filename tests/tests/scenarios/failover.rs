//! Promotion, demotion and resync with the stock `rbd`, planned and forced.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rados::SnapId;
use rbd::SnapshotNamespace;
use tests::{Cluster, Extents};

use crate::common::{LIMIT, MIB, Stage, expect_copy_of, scattered, until};
use crate::content::{self, Reader};

/// There and back again, with writes and user snapshots on whichever side is primary; nothing is ever copied whole.
#[tokio::test(flavor = "multi_thread")]
async fn planned_failover_and_failback_in_a_loop() -> Result<()> {
    let stage = Stage::set("relocation").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    a.create_image(&spec, 16 * MIB, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, 16 * MIB, 1)).await?;
    let mut daemons = [stage.daemon(a).await?, stage.daemon(b).await?];
    stage.enable("image").await?;
    stage.first_copy("image").await?;
    let id = image_id(b, &spec).await?;

    let sides: [(&Cluster, &Reader); 2] = [(a, &stage.a), (b, &stage.b)];
    for turn in 0..4_usize {
        let ((from, from_reader), (to, to_reader)) = (sides[turn % 2], sides[(turn + 1) % 2]);
        let writes = scattered(turn as u64, 40, 0..16 * MIB);
        from.apply(&spec, Extents::default().random(&writes).zeroes(turn as u64 * MIB, 8192)).await?;
        from.snap_create(&format!("{spec}@turn-{turn}")).await?;
        from.apply(&spec, Extents::default().random(&scattered(50 + turn as u64, 40, 0..16 * MIB))).await?;
        from.rbd(&["mirror", "image", "demote", &spec]).await?;
        let demotion = from.mirror_snapshots(&spec).await?.last().context("a demotion makes a snapshot")?.id;
        to.wait_copied(&spec, demotion, LIMIT).await.with_context(|| format!("turn {turn}"))?;
        expect_copy_of(from_reader, to_reader, &spec).await.with_context(|| format!("turn {turn}"))?;
        to.rbd(&["mirror", "image", "promote", &spec]).await.with_context(|| format!("turn {turn}"))?;
        to.apply(&spec, Extents::default().random(&scattered(90 + turn as u64, 20, 0..16 * MIB))).await?;
        let snap = to.mirror_snapshot(&spec).await?;
        from.wait_copied(&spec, snap, LIMIT).await.with_context(|| format!("turn {turn}, back"))?;
        expect_copy_of(to_reader, from_reader, &spec).await.with_context(|| format!("turn {turn}, back"))?;
    }
    ensure!(image_id(b, &spec).await? == id, "the copy was made anew");
    for daemon in &mut daemons {
        daemon.stop(LIMIT).await?;
    }
    stage.strike().await
}

pub async fn image_id(cluster: &Cluster, spec: &str) -> Result<String> {
    let info = cluster.rbd_json(&["info", spec]).await?;
    Ok(info["id"].as_str().context("an image has an id")?.to_string())
}

/// At many seeded instants, with the daemon alive and with it killed: a forced promotion continues exactly from the
/// newest primary snapshot that had arrived whole.
#[tokio::test(flavor = "multi_thread")]
async fn forced_promotion_at_any_instant() -> Result<()> {
    let stage = Stage::set("forced").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    for seed in 0..4_u64 {
        let name = format!("image-{seed}");
        let spec = stage.spec(&name);
        let size = 64 * MIB;
        a.create_image(&spec, size, if seed % 3 == 2 { &["--image-feature", "layering"] } else { &[] })
            .await?;
        a.apply(&spec, Extents::default().fill(0, size, seed)).await?;
        let mut daemon = stage.daemon(b).await?;
        stage.enable(&name).await?;
        stage.first_copy(&name).await?;
        for round in 0..3 {
            let writes = scattered(seed * 10 + round, 200, 0..size);
            a.apply(&spec, Extents::default().random(&writes).fill(round * 8 * MIB, 6 * MIB, seed)).await?;
            if round == 1 {
                a.snap_create(&format!("{spec}@user")).await?;
            }
            a.mirror_snapshot(&spec).await?;
        }
        tokio::time::sleep(Duration::from_millis(seed * 60)).await;
        if seed % 2 == 0 {
            daemon.kill(tests::Signal::SIGKILL);
        }
        let arrived = newest_arrived(b, &spec).await?;
        b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
        let from = promoted_from(&stage, &spec, arrived).await.with_context(|| format!("seed {seed}"))?;
        ensure!(seed % 2 == 1 || from == arrived, "seed {seed}: promoted from {from}, not from {arrived}");
        daemon.kill(tests::Signal::SIGKILL);
        daemon.wait(LIMIT).await?;
        if b.rbd_json(&["info", &spec]).await?["features"].to_string().contains("object-map") {
            b.rbd(&["object-map", "check", "--no-progress", &spec]).await?;
        }
        a.rbd(&["mirror", "image", "disable", &spec]).await?;
        b.rbd(&["mirror", "image", "disable", &spec]).await?;
    }
    stage.strike().await
}

/// The primary snapshot whose newest copy is complete.
pub async fn newest_arrived(cluster: &Cluster, spec: &str) -> Result<SnapId> {
    let copies = cluster.mirror_snapshots(spec).await?;
    let newest = copies.iter().rfind(|s| s.complete).and_then(|s| s.primary_snap_id);
    newest.map(SnapId).context("nothing had arrived whole")
}

/// The primary's mirror-snapshot, `arrived` or one that arrived since, that the promoted image equals; its user
/// snapshots are the primary's.
pub async fn promoted_from(stage: &Stage, spec: &str, arrived: SnapId) -> Result<SnapId> {
    let (primary, primary_header) = stage.a.open(spec).await?;
    let (promoted, header) = stage.b.open(spec).await?;
    for snapshot in header.snapshots.values().filter(|s| s.namespace == SnapshotNamespace::User) {
        if snapshot.name.starts_with(".mirror.pending") {
            continue;
        }
        let theirs =
            primary_header.user_snapshot(&snapshot.name).context("a user snapshot out of nowhere")?;
        content::expect_equal((&primary, &primary_header, theirs.id), (&promoted, &header, snapshot.id))
            .await
            .with_context(|| format!("user snapshot '{}'", snapshot.name))?;
    }
    let mut differences = Vec::new();
    for (snap, _) in
        content::mirror_snapshots(&primary_header).into_iter().filter(|(snap, _)| *snap >= arrived)
    {
        let equal =
            content::expect_equal((&primary, &primary_header, snap), (&promoted, &header, SnapId::HEAD))
                .await;
        match equal {
            Ok(()) => return Ok(snap),
            Err(difference) => differences.push(format!("{snap}: {difference}")),
        }
    }
    bail!("the promoted image equals no mirror-snapshot from {arrived} on: {}", differences.join("; "))
}

/// Both sides primary: reported, nothing written. After demote and resync the copy keeps its id and follows again.
#[tokio::test(flavor = "multi_thread")]
async fn split_brain_is_detected_and_resync_mends_it() -> Result<()> {
    let stage = Stage::set("split").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    a.create_image(&spec, 64 * MIB, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, 64 * MIB, 1)).await?;
    a.snap_create(&format!("{spec}@before")).await?;
    let mut daemons = [stage.daemon(a).await?, stage.daemon(b).await?];
    stage.enable("image").await?;
    stage.first_copy("image").await?;
    let id = image_id(b, &spec).await?;

    b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
    stage.state(b, "image", "up+stopped").await?;
    let (astray, untouched) = (0..32 * MIB, 32 * MIB..64 * MIB);
    b.apply(&spec, Extents::default().random(&scattered(2, 30, astray.clone()))).await?;
    b.snap_create(&format!("{spec}@astray")).await?;
    let diverged = b.sha256(&spec).await?;
    a.apply(&spec, Extents::default().random(&scattered(3, 30, astray))).await?;
    a.mirror_snapshot(&spec).await?;
    b.rbd(&["mirror", "image", "demote", &spec]).await?;
    let status = stage.state(b, "image", "up+error").await?;
    ensure!(status["description"].as_str().is_some_and(|d| d.contains("split-brain")), "{status}");
    ensure!(
        b.sha256(&spec).await? == diverged,
        "something was written to an image with a history of its own"
    );

    let versions = stage.b.versions(&spec, untouched.clone()).await?;
    b.rbd(&["mirror", "image", "resync", &spec]).await?;
    let newest = a.newest_primary_snapshot(&spec).await?;
    stage.arrived("image", newest).await?;
    stage.state(b, "image", "up+replaying").await?;
    ensure!(image_id(b, &spec).await? == id, "a resync made the image anew");
    let resynced = stage.b.versions(&spec, untouched).await?;
    ensure!(resynced == versions, "a resync wrote to what had not gone astray: {versions:?}, {resynced:?}");
    stage.sync("image").await?;

    // Once more: the other site is lost where a round begins, which reads from it with the lock held.
    let arrived = b.sha256(&spec).await?;
    a.freeze()?;
    let promoted = async {
        b.rbd(&["mirror", "image", "resync", &spec]).await?;
        until("the daemon to begin a round", async || {
            let status = b.rbd_json(&["mirror", "image", "status", &spec]).await?;
            Ok(status["description"].as_str().is_some_and(|told| told.contains("syncing")))
        })
        .await?;
        b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
        let content = b.sha256(&spec).await?;
        b.snap_create(&format!("{spec}@promoted")).await?;
        Ok::<_, anyhow::Error>(content)
    };
    let promoted = promoted.await;
    a.thaw().await?;
    ensure!(promoted? == arrived, "the promoted image is not what had arrived");
    for daemon in &mut daemons {
        daemon.stop(LIMIT).await?;
    }
    stage.strike().await
}
