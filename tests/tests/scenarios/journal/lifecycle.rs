//! Mirroring is disabled, images are removed and trashed: the copy follows, with its journal.

use anyhow::{Context, Result, ensure};
use tests::{Cluster, Extents};

use super::stage::wait_replayed;
use crate::common::{LIMIT, MIB, Stage, scattered, until};

const SIZE: u64 = 8 * MIB;

async fn names(cluster: &Cluster, pool: &str) -> Result<Vec<String>> {
    let list = cluster.rbd_json(&["ls", pool]).await?;
    let list = list.as_array().context("images are listed")?;
    Ok(list.iter().filter_map(|name| name.as_str().map(str::to_string)).collect())
}

/// With the daemon up and with it down: mirroring disabled, image removed, image moved to the trash. Nothing stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn copies_go_with_their_primaries() -> Result<()> {
    let stage = Stage::set("j-goings").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let all =
        ["disabled-up", "removed-up", "trashed-up", "disabled-down", "removed-down", "trashed-down", "kept"];
    let mut daemon = stage.daemon(b).await?;
    for name in all {
        stage.create_journalled(name, SIZE, &[]).await?;
        a.apply(&stage.spec(name), Extents::default().random(&scattered(1, 20, 0..SIZE))).await?;
        a.snap_create(&format!("{}@user", stage.spec(name))).await?;
        stage.enable_journal(name).await?;
    }
    for name in all {
        stage.state(b, name, "up+replaying").await?;
        stage.replayed(name).await?;
    }
    let go = async |kind: &str| -> Result<()> {
        let spec = |what: &str| stage.spec(&format!("{what}-{kind}"));
        a.rbd(&["mirror", "image", "disable", &spec("disabled")]).await?;
        a.rbd(&["snap", "purge", "--no-progress", &spec("removed")]).await?;
        a.rbd(&["rm", "--no-progress", &spec("removed")]).await?;
        a.rbd(&["trash", "mv", &spec("trashed")]).await?;
        Ok(())
    };
    let gone = async |kind: &str| {
        until("copies to follow their primaries", async || {
            let left = names(b, &stage.pool).await?;
            let trash = b.rbd_json(&["trash", "ls", "--all", &stage.pool]).await?;
            Ok(!left.iter().any(|name| name.ends_with(kind)) && trash.as_array().is_some_and(Vec::is_empty))
        })
        .await
    };
    go("up").await?;
    gone("up").await?;
    daemon.stop(LIMIT).await?;
    go("down").await?;
    let mut daemon = stage.daemon(b).await?;
    gone("down").await?;
    ensure!(names(b, &stage.pool).await? == ["kept"], "an image that stayed lost its copy");
    stage.state(b, "kept", "up+replaying").await?;
    stage.replayed("kept").await?;
    let objects = b.rados(&["-p", &stage.pool, "ls"]).await?;
    let journals: Vec<_> = objects.lines().filter(|name| name.starts_with("journal.")).collect();
    ensure!(journals.len() == 1, "journals of removed copies are left: {journals:?}");
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// Half of the images are primary on each side, and written to at once.
#[tokio::test(flavor = "multi_thread")]
async fn both_sides_are_primary_for_some() -> Result<()> {
    let stage = Stage::set("j-two-way").await?;
    let sides = [(&stage.clusters.a, &stage.a), (&stage.clusters.b, &stage.b)];
    let mut daemons = [stage.daemon(sides[0].0).await?, stage.daemon(sides[1].0).await?];
    let images: Vec<_> =
        (0..6_usize).map(|index| (stage.spec(&format!("image-{index}")), index % 2)).collect();
    for (spec, side) in &images {
        let (primary, _) = sides[*side];
        primary.create_image(spec, SIZE, &super::stage::journaling()).await?;
        primary.apply(spec, Extents::default().fill(0, SIZE, 1)).await?;
        primary.rbd(&["mirror", "image", "enable", spec, "journal"]).await?;
    }
    for round in 0..2_u64 {
        for (spec, side) in &images {
            sides[*side].0.apply(spec, Extents::default().random(&scattered(round, 100, 0..SIZE))).await?;
        }
        for (spec, side) in &images {
            let ((from, from_reader), (to, to_reader)) = (sides[*side], sides[1 - *side]);
            to.wait_mirror_state(spec, "up+replaying", LIMIT).await?;
            wait_replayed(from, to, spec).await?;
            super::stage::expect_same(from_reader, to_reader, spec).await?;
        }
    }
    for daemon in &mut daemons {
        daemon.stop(LIMIT).await?;
    }
    stage.strike().await
}
