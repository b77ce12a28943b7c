//! Beside stock tools and under stock writers: `rbd journal` agrees with what we do, images of all layouts are followed
//! through kills, and Ceph's daemon takes turns with ours under a running writer.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::stamped::{Pattern, Writing};
use tests::{Cluster, DaemonKind, Extents, StampedWriter};

use super::prefix::{follows, kill, stamps};
use super::stage::{clients, newest};
use crate::common::{LIMIT, MIB, Stage, ours, scattered, until};
use crate::failover::image_id;

/// `rbd journal COMMAND` of an image.
async fn journal(cluster: &Cluster, stage: &Stage, command: &str, image: &str) -> Result<String> {
    Ok(cluster.rbd(&["journal", command, "--pool", &stage.pool, "--image", image]).await?)
}

/// What a replaying image says of itself behind "replaying, ".
async fn progress(stage: &Stage, image: &str) -> Result<Option<Value>> {
    let status = stage.clusters.b.mirror_status(&stage.spec(image)).await?;
    let fields = status["description"].as_str().and_then(|text| text.strip_prefix("replaying, "));
    fields.map(serde_json::from_str).transpose().context("the description of a replaying image is JSON")
}

/// Info, status, inspect and export of the stock `rbd` tell of the entries that we see, disturb nothing, and an exported
/// journal can be imported into an image that is then mirrored.
#[tokio::test(flavor = "multi_thread")]
async fn the_stock_journal_tool_agrees() -> Result<()> {
    let stage = Stage::set("j-tool").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let pattern = Pattern { seed: 3, blocks: 512, batch_min: 1, batch_max: 9, discards: 2 };
    let writing = Writing { pattern, depth: 8, snap_every: 0, batches: 40, pause: Duration::ZERO };
    let narrow = ["--journal-object-size", "128K", "--journal-splay-width", "3"];
    for name in ["image", "imported"] {
        stage.create_journalled(name, 2 * MIB, &narrow).await?;
    }
    stage.enable_journal("image").await?;
    let mut daemon = stage.daemon(b).await?;
    stage.state(b, "image", "up+replaying").await?;
    stage.replayed("image").await?;
    let info: Value = a.rbd_json(&["journal", "info", "--pool", &stage.pool, "--image", "image"]).await?;
    ensure!(info["order"] == 17 && info["splay_width"] == 3, "{info}");
    // The copy's journal is one like those of other images of its cluster.
    let info: Value = b.rbd_json(&["journal", "info", "--pool", &stage.pool, "--image", "image"]).await?;
    ensure!(info["order"] == 24 && info["splay_width"] == 4, "{info}");

    // Held back, so that there are entries to be seen.
    let spec = stage.spec("image");
    let key = "conf_rbd_mirroring_replay_delay";
    a.rbd(&["image-meta", "set", &spec, key, "3600"]).await?;
    stage.replayed("image").await?;
    daemon.stop(LIMIT).await?;
    let before = clients(a, &spec).await?.1.as_ref().and_then(newest).context("this site is registered")?;
    let mut writer = StampedWriter::start(a, &spec, &writing)?;
    writer.reach(40, LIMIT).await?;
    writer.stop(LIMIT).await?;
    let file = tempfile::NamedTempFile::new_in(a.folder())?;
    let path = file.path().with_extension("journal");
    let path = path.to_str().context("the folder of a cluster has a printable name")?;
    a.rbd(&["journal", "export", "--pool", &stage.pool, "--image", "image", "--path", path]).await?;
    let tags = exported_tags(&std::fs::read_to_string(path)?)?;
    let said = journal(a, &stage, "inspect", "image").await?;
    ensure!(inspected(&said)? == (tags.len(), 0), "{said}; {} were exported", tags.len());
    ensure!(tags.len() as u64 >= pattern.operations(40), "{} entries: fewer than were written", tags.len());
    let mut daemon = stage.daemon(b).await?;
    // Between two tags, Ceph and we count one less.
    let newer: BTreeSet<_> = tags.iter().filter(|tag| **tag > before.0).collect();
    let behind = tags.len() - newer.len();
    until("the status to tell of the entries that `rbd journal inspect` finds", async || {
        let fields = progress(&stage, "image").await?;
        Ok(fields.is_some_and(|fields| fields["entries_behind_primary"] == behind))
    })
    .await
    .with_context(|| format!("{behind} entries"))?;
    daemon.stop(LIMIT).await?;
    let header = format!("rbd_header.{}", image_id(b, &spec).await?);
    b.rados(&["-p", &stage.pool, "rmomapkey", &header, &format!("metadata_{key}")]).await?;
    a.rbd(&["image-meta", "rm", &spec, key]).await?;

    // The same while we replay: nobody is in anybody's way.
    let mut daemon = stage.daemon(b).await?;
    let mut writer = StampedWriter::start(a, &spec, &Writing { batches: 0, ..writing })?;
    for _ in 0..3 {
        journal(a, &stage, "status", "image").await?;
        let said = journal(a, &stage, "inspect", "image").await?;
        ensure!(inspected(&said)?.1 == 0, "{said}");
        journal(b, &stage, "inspect", "image").await?;
        writer.reach(writer.batch() + 5, LIMIT).await?;
    }
    writer.stop(LIMIT).await?;
    stage.replayed("image").await?;
    until("the status to tell what `rbd journal status` tells", async || {
        let (own, mirror) = clients(a, &spec).await?;
        let Some(fields) = progress(&stage, "image").await? else { return Ok(false) };
        let told = |key: &str| Some((fields[key]["tag_tid"].as_u64()?, fields[key]["entry_tid"].as_u64()?));
        Ok(fields["entries_behind_primary"] == 0
            && told("primary_position") == newest(&own)
            && told("non_primary_position") == mirror.as_ref().and_then(newest))
    })
    .await?;

    let imported = stage.spec("imported");
    a.rbd(&["journal", "import", "--dest-pool", &stage.pool, "--dest", "imported", "--path", path]).await?;
    // librbd replays it when it opens the image for writing.
    a.snap_create(&format!("{imported}@replayed")).await?;
    ensure!(stamps(a, &imported).await? == pattern.stamps_after(40), "the import is not what was exported");
    // An imported journal has entries of tags that it knows nothing of; the next writers' tags would be the same.
    for action in ["disable", "enable"] {
        a.rbd(&["feature", action, &imported, "journaling"]).await?;
    }
    stage.enable_journal("imported").await?;
    stage.state(b, "imported", "up+replaying").await?;
    stage.replayed("imported").await?;
    a.apply(&imported, Extents::default().random(&scattered(1, 30, 0..2 * MIB))).await?;
    stage.replayed("imported").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// Entries and errors that `rbd journal inspect` counts.
fn inspected(said: &str) -> Result<(usize, usize)> {
    let line = said.lines().find(|line| line.contains("entries inspected")).context("a summary")?;
    let numbers: Vec<usize> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    Ok((*numbers.first().context("a number of entries")?, *numbers.get(1).context("a number of errors")?))
}

/// Tags of the entries of an exported journal: a line of text, then a line for each entry, its length before it.
fn exported_tags(text: &str) -> Result<Vec<u64>> {
    let entries = text.lines().filter(|line| !line.starts_with('#'));
    entries
        .map(|line| {
            let (_, entry) = line.split_once(' ').context("the length of an entry comes before it")?;
            let entry: Value = serde_json::from_str(entry)?;
            entry["tag_id"].as_u64().context("an exported entry has a tag")
        })
        .collect()
}

/// Images of all layouts under stamped writers; the daemon is killed in the midst, and each copy is in a state of its
/// primary's disk.
#[tokio::test(flavor = "multi_thread")]
async fn layouts_under_stamped_writers() -> Result<()> {
    let stage = Stage::set("j-layouts").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    stage.clusters.create_pool("j-layouts-data").await?;
    let layouts: [(&str, &[&str]); 4] = [
        ("data-pool", &["--data-pool", "j-layouts-data", "--journal-pool", "j-layouts-data"]),
        ("striped", &["--object-size", "1M", "--stripe-unit", "16K", "--stripe-count", "5"]),
        ("small", &["--object-size", "64K"]),
        ("large", &["--object-size", "32M"]),
    ];
    let patterns = [(2, 40), (1, 4), (8, 200), (1, 80)].into_iter().enumerate();
    let patterns: Vec<_> = patterns
        .map(|(seed, (batch_min, batch_max))| {
            let (seed, discards) = (seed as u64, seed as u64);
            Pattern { seed, blocks: 1024, batch_min, batch_max, discards }
        })
        .collect();
    let mut writers = Vec::new();
    for ((name, args), pattern) in layouts.iter().zip(&patterns) {
        let narrow = ["--journal-object-size", "1M", "--journal-splay-width", "3"];
        stage.create_journalled(name, 4 * MIB, &[args, &narrow[..]].concat()).await?;
        stage.enable_journal(name).await?;
        let writing =
            Writing { pattern: *pattern, depth: 8, snap_every: 50, batches: 0, pause: Duration::ZERO };
        writers.push(StampedWriter::start(a, &stage.spec(name), &writing)?);
    }
    for round in 0..3_u64 {
        let mut daemon = stage.daemon(b).await?;
        for (((name, _), pattern), writer) in layouts.iter().zip(&patterns).zip(&mut writers) {
            stage.state(b, name, "up+replaying").await?;
            follows(&stage, name, pattern, writer).await.with_context(|| format!("{name}, round {round}"))?;
        }
        let writer = &mut writers[round as usize];
        writer.reach(writer.batch() + 3, LIMIT).await?;
        kill(&mut daemon).await?;
        for (((name, _), pattern), writer) in layouts.iter().zip(&patterns).zip(&mut writers) {
            let is = stamps(b, &stage.spec(name)).await?;
            let batch = pattern.batch_of(&is, writer.batch() + 1);
            batch.with_context(|| format!("{name}, killed in round {round}"))?;
        }
    }
    let mut daemon = stage.daemon(b).await?;
    for ((name, _), writer) in layouts.iter().zip(&mut writers) {
        writer.stop(LIMIT).await?;
        // Another writer: large and small, overlapping, by another client.
        a.fio(
            &stage.spec(name),
            "",
            &[
                "--rw=randwrite",
                "--bsrange=512-96k",
                "--size=4m",
                "--iodepth=8",
                "--fsync=16",
                "--randseed=7",
            ],
        )
        .await?;
        stage.replayed(name).await.with_context(|| name.to_string())?;
    }
    daemon.stop(LIMIT).await?;
    a.delete_pool("j-layouts-data").await?;
    b.delete_pool("j-layouts-data").await?;
    stage.strike().await
}

/// Ceph's daemon and ours take turns while a stamped writer runs; each is killed.
#[tokio::test(flavor = "multi_thread")]
async fn daemons_take_turns_under_a_writer() -> Result<()> {
    let stage = Stage::set("j-stamped-turns").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let pattern = Pattern { seed: 9, blocks: 1024, batch_min: 1, batch_max: 30, discards: 1 };
    let pause = Duration::from_millis(20);
    let writing = Writing { pattern, depth: 8, snap_every: 60, batches: 0, pause };
    let narrow = ["--journal-object-size", "1M", "--journal-splay-width", "2"];
    stage.create_journalled("image", 4 * MIB, &narrow).await?;
    stage.enable_journal("image").await?;
    let mut writer = StampedWriter::start(a, &stage.spec("image"), &writing)?;
    for turn in 0..2_u64 {
        for kind in [ours(), DaemonKind::Ceph] {
            let mut daemon = stage.daemon_of(&kind, b).await?;
            // Behind what the one before may have written without having committed it.
            let begun = writer.batch() + 1;
            stage.state(b, "image", "up+replaying").await?;
            writer.reach(begun, LIMIT).await?;
            follows(&stage, "image", &pattern, &mut writer)
                .await
                .with_context(|| format!("turn {turn} of {kind:?}"))?;
            writer.reach(writer.batch() + 3 + 5 * turn, LIMIT).await?;
            kill(&mut daemon).await?;
            let is = stamps(b, &stage.spec("image")).await?;
            let batch = pattern.batch_of(&is, writer.batch() + 1);
            let batch = batch.with_context(|| format!("turn {turn}, {kind:?} killed"))?;
            ensure!(
                batch >= begun,
                "turn {turn}, {kind:?}: the copy went back to batch {batch}, before {begun}"
            );
        }
    }
    let mut daemon = stage.daemon_of(&ours(), b).await?;
    writer.stop(LIMIT).await?;
    stage.state(b, "image", "up+replaying").await?;
    stage.replayed("image").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
