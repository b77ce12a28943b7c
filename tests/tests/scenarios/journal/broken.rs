//! A journal object that is corrupt, cut short or missing stops its image with a precise error; the copy stays at the last
//! good point, and other images go on.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tests::{Cluster, Extents};

use crate::common::{LIMIT, MIB, Stage, scattered};
use crate::failover::image_id;

const SIZE: u64 = 16 * MIB;

/// What is done to the object that holds the first new entry, of which `kept` bytes were there before.
#[derive(Debug, Clone, Copy)]
enum Damage {
    FlipBit,
    CutShort,
    Remove,
}

async fn damage(cluster: &Cluster, pool: &str, object: &str, kept: usize, damage: Damage) -> Result<()> {
    let file = tempfile::NamedTempFile::new_in(cluster.folder())?;
    let path = path(file.path())?;
    cluster.rados(&["-p", pool, "get", object, path]).await?;
    let mut bytes = std::fs::read(path)?;
    ensure!(bytes.len() > kept + 100, "there is no new entry in '{object}'");
    match damage {
        Damage::FlipBit => bytes[kept + 60] ^= 1,
        Damage::CutShort => bytes.truncate(kept + 60),
        Damage::Remove => {
            cluster.rados(&["-p", pool, "rm", object]).await?;
            return Ok(());
        }
    }
    std::fs::write(path, bytes)?;
    cluster.rados(&["-p", pool, "put", object, path]).await?;
    Ok(())
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("paths of tests are text")
}

async fn size(cluster: &Cluster, pool: &str, object: &str) -> Result<usize> {
    let stat = cluster.rados(&["-p", pool, "stat", object]).await;
    let Ok(stat) = stat else { return Ok(0) };
    Ok(stat.trim().rsplit(' ').next().context("a stat ends with the size")?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_journals_stop_their_images_only() -> Result<()> {
    let stage = Stage::set("j-broken").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let damages =
        [("flipped", Damage::FlipBit), ("cut-short", Damage::CutShort), ("removed", Damage::Remove)];
    let names = damages.iter().map(|(name, _)| *name).chain(["whole"]);
    for (seed, name) in names.clone().enumerate() {
        stage.create_journalled(name, SIZE, &[]).await?;
        a.apply(&stage.spec(name), Extents::default().fill(0, SIZE, seed as u64)).await?;
        stage.enable_journal(name).await?;
    }
    let mut daemon = stage.daemon(b).await?;
    let mut held = Vec::new();
    for name in names.clone() {
        stage.state(b, name, "up+replaying").await?;
        stage.replayed(name).await?;
        super::stage::wait_pruned(&stage, &stage.spec(name)).await?;
        held.push(b.sha256(&stage.spec(name)).await?);
    }
    daemon.stop(LIMIT).await?;
    let pool_id = a.ceph_json(&["osd", "pool", "ls", "detail"]).await?;
    let pools = pool_id.as_array().context("pools are listed")?;
    let pool = pools.iter().find(|pool| pool["pool_name"] == *stage.pool).context("the pool is there")?;
    for name in names.clone() {
        let spec = stage.spec(name);
        let id = image_id(a, &spec).await?;
        // Whoever writes next begins a tag, and the first entry of a tag lies in the first object of a set.
        let object = format!("journal_data.{}.{id}.0", pool["pool_id"]);
        let kept = size(a, &stage.pool, &object).await?;
        a.apply(&spec, Extents::default().random(&scattered(7, 100, 0..SIZE))).await?;
        if let Some((_, kind)) = damages.iter().find(|(damaged, _)| *damaged == name) {
            damage(a, &stage.pool, &object, kept, *kind).await.with_context(|| name.to_string())?;
        }
    }
    let mut daemon = stage.daemon(b).await?;
    stage.replayed("whole").await?;
    for ((name, kind), held) in damages.iter().zip(&held) {
        let status = stage.state(b, name, "up+error").await.with_context(|| name.to_string())?;
        let description = status["description"].as_str().context("an error is described")?;
        let id = image_id(a, &stage.spec(name)).await?;
        ensure!(description.contains("journal_data") && description.contains(&id), "{kind:?}: {description}");
        ensure!(
            b.sha256(&stage.spec(name)).await? == *held,
            "{kind:?}: the copy of '{name}' is not what it was"
        );
        // What is missing can be got by a resync.
        b.rbd(&["mirror", "image", "resync", &stage.spec(name)]).await?;
        stage.state(b, name, "up+replaying").await.with_context(|| name.to_string())?;
        stage.replayed(name).await.with_context(|| format!("'{name}' after a resync"))?;
    }
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
