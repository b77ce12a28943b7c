//! A journal that lost something: entries that were changed, an object that was cut short, one that is gone. The image
//! says what is wrong, and where; its copy stays at the last good point; the others go on; and an operator can mend it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::stamped::{Pattern, Writing};
use tests::{Cluster, StampedWriter};

use super::prefix::stamps;
use crate::common::{LIMIT, MIB, Stage, until};
use crate::failover::image_id;

const PATTERN: Pattern = Pattern { seed: 11, blocks: 512, batch_min: 1, batch_max: 9, discards: 1 };
/// The batches that are replayed before the damage, and all.
const BATCHES: [u64; 2] = [10, 60];

/// What is done to a journal object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// A byte in the middle of its entries is another.
    Flipped,
    /// It ends within an entry.
    Truncated,
    /// It is gone.
    Missing,
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_journals_stop_their_images_alone() -> Result<()> {
    let stage = Stage::set("j-damage").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let damages =
        [("flipped", Damage::Flipped), ("truncated", Damage::Truncated), ("missing", Damage::Missing)];
    let names = ["flipped", "truncated", "missing", "sound"];
    let mut daemon = stage.daemon(b).await?;
    for name in names {
        let narrow = ["--journal-object-size", "64K", "--journal-splay-width", "2"];
        stage.create_journalled(name, 2 * MIB, &narrow).await?;
        stage.enable_journal(name).await?;
    }
    for name in names {
        stage.state(b, name, "up+replaying").await?;
        write(&stage, name, BATCHES[0]).await?;
    }
    for name in names {
        stage.replayed(name).await.with_context(|| name.to_string())?;
    }
    daemon.stop(LIMIT).await?;
    let mut objects = Vec::new();
    for name in names {
        write(&stage, name, BATCHES[1]).await?;
    }
    for (name, what) in damages {
        objects.push((name, what, damage(a, &stage, name, what).await?));
    }
    let mut daemon = stage.daemon(b).await?;
    stage.replayed("sound").await?;
    for (name, what, object) in &objects {
        stops(&stage, name, *what, object).await.with_context(|| format!("{name}, object {object}"))?;
    }
    write(&stage, "sound", 5).await?;
    stage.replayed("sound").await.context("an image beside broken ones")?;

    let ids = [image_id(b, &stage.spec("truncated")).await?, image_id(b, &stage.spec("missing")).await?];
    a.rbd(&["mirror", "image", "disable", &stage.spec("flipped")]).await?;
    stage.enable_journal("flipped").await?;
    b.rbd(&["mirror", "image", "resync", &stage.spec("truncated")]).await?;
    // Asked for while no daemon runs.
    daemon.stop(LIMIT).await?;
    b.rbd(&["mirror", "image", "resync", &stage.spec("missing")]).await?;
    let mut daemon = stage.daemon(b).await?;
    for (name, ..) in &objects {
        stage.state(b, name, "up+replaying").await.with_context(|| format!("{name} is mended"))?;
        stage.replayed(name).await.with_context(|| format!("{name} is mended"))?;
        write(&stage, name, 5).await?;
        stage.replayed(name).await.with_context(|| format!("{name} is written to again"))?;
    }
    let after = [image_id(b, &stage.spec("truncated")).await?, image_id(b, &stage.spec("missing")).await?];
    ensure!(after == ids, "a resync made the image anew");
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// Writes the first batches of the pattern.
async fn write(stage: &Stage, image: &str, batches: u64) -> Result<()> {
    let writing = Writing { pattern: PATTERN, depth: 8, snap_every: 0, batches, pause: Duration::ZERO };
    let mut writer = StampedWriter::start(&stage.clusters.a, &stage.spec(image), &writing)?;
    writer.reach(batches, LIMIT).await?;
    writer.stop(LIMIT).await.map(drop)
}

/// Damages an object in the middle of what is yet to be replayed; answers with its name.
async fn damage(cluster: &Cluster, stage: &Stage, image: &str, what: Damage) -> Result<String> {
    let id = image_id(cluster, &stage.spec(image)).await?;
    let all = cluster.rados(&["-p", &stage.pool, "ls"]).await?;
    let mut objects: Vec<(u64, &str)> = all
        .lines()
        .filter(|name| name.starts_with("journal_data.") && name.contains(&format!(".{id}.")))
        .filter_map(|name| Some((name.rsplit('.').next()?.parse().ok()?, name)))
        .collect();
    objects.sort_unstable();
    ensure!(objects.len() >= 6, "the backlog takes few objects: {objects:?}");
    let object = objects[objects.len() / 2].1;
    let file = cluster.folder().join("journal-object");
    let path = file.to_str().context("the folder of a cluster has a printable name")?;
    cluster.rados(&["-p", &stage.pool, "get", object, path]).await?;
    let mut bytes = std::fs::read(&file)?;
    let length = bytes.len();
    match what {
        Damage::Flipped => bytes[length / 2] ^= 0x10,
        Damage::Truncated => bytes.truncate(length / 2),
        Damage::Missing => {}
    }
    std::fs::write(&file, bytes)?;
    match what {
        Damage::Missing => cluster.rados(&["-p", &stage.pool, "rm", object]).await?,
        _ => cluster.rados(&["-p", &stage.pool, "put", object, path]).await?,
    };
    Ok(object.to_string())
}

/// The image reports the damage, and its copy is in a state of the primary's disk, on the way to the last one.
async fn stops(stage: &Stage, image: &str, what: Damage, object: &str) -> Result<()> {
    let (b, spec) = (&stage.clusters.b, stage.spec(image));
    let said = match what {
        Damage::Flipped => "checksum",
        Damage::Truncated => "ends within an entry",
        Damage::Missing => "missing",
    };
    let mut description = String::new();
    let told = until("the status to tell of the damage", async || {
        let status = b.mirror_status(&spec).await?;
        description = format!("{}: {}", status["state"], status["description"]);
        Ok(status["state"] == "up+error" && description.contains(object) && description.contains(said))
    });
    let told = told.await;
    told.with_context(|| format!("it says {description}"))?;
    let is = stamps(b, &spec).await?;
    let batch = PATTERN.batch_of(&is, BATCHES[1])?;
    let (before, last) = (PATTERN.stamps_after(BATCHES[0]), PATTERN.stamps_after(BATCHES[1]));
    ensure!(is != before && is != last, "the copy is in batch {batch}: not up to the damage");
    Ok(())
}
