//! Journals go and come, mirroring is disabled and enabled again, and names change hands, with the daemon up and with it
//! down: the copies follow.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use tests::{Cluster, Extents};

use crate::common::{LIMIT, MIB, Stage, scattered, until};

const SIZE: u64 = 8 * MIB;

async fn names_of(cluster: &Cluster, pool: &str) -> Result<BTreeSet<String>> {
    let list = cluster.rbd_json(&["ls", pool]).await?;
    let names = list.as_array().into_iter().flatten().filter_map(|name| name.as_str());
    Ok(names.map(str::to_string).collect())
}

/// The images at both sides are the same, by name, and nothing is left in the trash of the copies.
async fn same_images(stage: &Stage) -> Result<()> {
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let (mut theirs, mut ours) = (BTreeSet::new(), BTreeSet::new());
    let same = until("copies to follow their primaries", async || {
        (theirs, ours) = (names_of(a, &stage.pool).await?, names_of(b, &stage.pool).await?);
        let trash = b.rbd_json(&["trash", "ls", "--all", &stage.pool]).await?;
        Ok(theirs == ours && trash.as_array().is_some_and(Vec::is_empty))
    });
    let same = same.await;
    same.with_context(|| format!("primaries: {theirs:?}, copies: {ours:?}"))
}

async fn write(stage: &Stage, image: &str, seed: u64) -> Result<()> {
    let extents = Extents::default().random(&scattered(seed, 40, 0..SIZE)).zeroes(seed * 65536, 8192);
    stage.clusters.a.apply(&stage.spec(image), extents).await
}

/// Waits until the copy is that of the image as it is mirrored now, and compares.
async fn follows(stage: &Stage, image: &str) -> Result<()> {
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec(image);
    let global_id = async |cluster: &Cluster| -> Result<Option<String>> {
        let info = cluster.rbd_json(&["info", &spec]).await.ok();
        Ok(info.and_then(|info| info["mirroring"]["global_id"].as_str().map(str::to_string)))
    };
    until("the copy to be one of the image as it is mirrored now", async || {
        let (theirs, ours) = (global_id(a).await?, global_id(b).await?);
        Ok(theirs.is_some() && theirs == ours)
    })
    .await
    .with_context(|| image.to_string())?;
    stage.state(b, image, "up+replaying").await?;
    stage.replayed(image).await.with_context(|| format!("image '{image}'"))
}

/// Single images: an image loses its journal, is written to, and gets another one; mirroring is disabled and enabled; an
/// image is trashed, and another one takes its name.
#[tokio::test(flavor = "multi_thread")]
async fn copies_of_single_images_follow() -> Result<()> {
    let stage = Stage::set("j-journals").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let kinds = ["rejournalled", "again", "trashed", "renamed"];
    let mut daemon = stage.daemon(b).await?;
    let all = |suffix: &'static str| kinds.into_iter().map(move |kind| format!("{kind}-{suffix}"));
    for (seed, name) in all("up").chain(all("down")).enumerate() {
        stage.create_journalled(&name, SIZE, &["--journal-object-size", "256K"]).await?;
        stage.enable_journal(&name).await?;
        write(&stage, &name, seed as u64).await?;
        a.snap_create(&format!("{}@user", stage.spec(&name))).await?;
    }
    for name in all("up").chain(all("down")) {
        follows(&stage, &name).await?;
    }
    for suffix in ["up", "down"] {
        if suffix == "down" {
            daemon.stop(LIMIT).await?;
        }
        let spec = |kind: &str| stage.spec(&format!("{kind}-{suffix}"));
        let rejournalled = spec("rejournalled");
        // Its journal goes with its mirroring.
        a.rbd(&["mirror", "image", "disable", &rejournalled]).await?;
        let info = a.rbd_json(&["info", &rejournalled]).await?;
        ensure!(!info["features"].to_string().contains("journaling"), "{info}");
        write(&stage, &format!("rejournalled-{suffix}"), 30).await?;
        a.rbd(&["feature", "enable", &rejournalled, "journaling"]).await?;
        stage.enable_journal(&format!("rejournalled-{suffix}")).await?;
        write(&stage, &format!("rejournalled-{suffix}"), 31).await?;

        a.rbd(&["mirror", "image", "disable", &spec("again")]).await?;
        write(&stage, &format!("again-{suffix}"), 32).await?;
        stage.enable_journal(&format!("again-{suffix}")).await?;

        a.rbd(&["trash", "mv", &spec("trashed")]).await?;
        // The freed name is taken by another image at once.
        a.rbd(&["rename", &spec("renamed"), &spec("trashed")]).await?;
        write(&stage, &format!("trashed-{suffix}"), 33).await?;
        if suffix == "down" {
            daemon = stage.daemon(b).await?;
        }
        same_images(&stage).await.with_context(|| format!("with the daemon {suffix}"))?;
        for kind in ["rejournalled", "again", "trashed"] {
            let name = format!("{kind}-{suffix}");
            follows(&stage, &name).await?;
            write(&stage, &name, 40).await?;
            stage.replayed(&name).await.with_context(|| format!("image '{name}'"))?;
        }
    }
    // Mirroring ends for the rest.
    for name in names_of(a, &stage.pool).await? {
        a.rbd(&["mirror", "image", "disable", &stage.spec(&name)]).await?;
    }
    until("all copies to go", async || Ok(names_of(b, &stage.pool).await?.is_empty())).await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// A whole pool: with the journaling feature an image gains and loses its copy.
#[tokio::test(flavor = "multi_thread")]
async fn copies_of_a_mirrored_pool_follow() -> Result<()> {
    let stage = Stage::set("j-pool-goings").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    for cluster in [a, b] {
        cluster.rbd(&["mirror", "pool", "enable", &stage.pool, "pool"]).await?;
    }
    for name in ["toggled-up", "toggled-down", "kept", "removed"] {
        stage.create_journalled(name, SIZE, &[]).await?;
        write(&stage, name, 1).await?;
    }
    let mut daemon = stage.daemon(b).await?;
    for name in ["toggled-up", "toggled-down", "kept", "removed"] {
        follows(&stage, name).await?;
    }
    let toggle = async |name: &str| -> Result<()> {
        a.rbd(&["feature", "disable", &stage.spec(name), "journaling"]).await?;
        write(&stage, name, 2).await?;
        a.rbd(&["feature", "enable", &stage.spec(name), "journaling"]).await?;
        write(&stage, name, 3).await
    };
    toggle("toggled-up").await?;
    follows(&stage, "toggled-up").await?;
    daemon.stop(LIMIT).await?;
    toggle("toggled-down").await?;
    a.rbd(&["rm", "--no-progress", &stage.spec("removed")]).await?;
    write(&stage, "kept", 4).await?;
    let mut daemon = stage.daemon(b).await?;
    for name in ["toggled-up", "toggled-down", "kept"] {
        follows(&stage, name).await?;
    }
    same_images(&stage).await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
