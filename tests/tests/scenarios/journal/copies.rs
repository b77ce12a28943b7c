//! First copies: of every shape, with user snapshots and clones, while somebody writes.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tests::{Extents, Tool};

use super::stage::{FEATURES, has_sync_point, journaling, wait_pruned};
use crate::common::{LIMIT, MIB, Stage, scattered, until};

const SIZE: u64 = 32 * MIB;
/// Shapes of images: striping, object sizes, a data pool, no object map. Each has snapshots with data, zeroes and other
/// sizes between, one of them protected, and metadata.
#[tokio::test(flavor = "multi_thread")]
async fn first_copies_of_all_shapes_while_a_writer_runs() -> Result<()> {
    let stage = Stage::set("j-shapes").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    stage.clusters.create_pool("j-shapes-data").await?;
    let shapes: [(&str, &[&str]); 5] = [
        ("plain", &[]),
        ("small-objects", &["--object-size", "64K"]),
        ("striped", &["--object-size", "1M", "--stripe-unit", "64K", "--stripe-count", "4"]),
        ("data-pool", &["--data-pool", "j-shapes-data"]),
        ("journal-pool", &["--journal-pool", "j-shapes-data", "--journal-splay-width", "3"]),
    ];
    for (name, args) in shapes {
        stage.create_journalled(name, SIZE, args).await?;
    }
    let bare = ["--image-feature", "exclusive-lock,journaling"];
    a.create_image(&stage.spec("bare"), SIZE, &bare).await?;
    stage.create_journalled("never-written", SIZE, &[]).await?;
    let names: Vec<_> = shapes.into_iter().map(|(name, _)| name).chain(["bare"]).collect();
    for (seed, name) in names.iter().enumerate() {
        let (spec, seed) = (stage.spec(name), seed as u64);
        a.apply(&spec, Extents::default().fill(0, 20 * MIB, seed)).await?;
        a.snap_create(&format!("{spec}@first")).await?;
        a.apply(&spec, Extents::default().random(&scattered(seed, 200, 0..SIZE)).zeroes(3 * MIB, 9 * MIB))
            .await?;
        a.resize(&spec, 24 * MIB + 5000).await?;
        a.snap_create(&format!("{spec}@second")).await?;
        a.resize(&spec, SIZE).await?;
        a.apply(&spec, Extents::default().random(&scattered(seed + 50, 200, 0..SIZE))).await?;
        a.rbd(&["image-meta", "set", &spec, "color", "red"]).await?;
    }
    a.snap_protect(&stage.spec("plain@first")).await?;
    for name in names.iter().chain([&"never-written"]) {
        stage.enable_journal(name).await?;
    }
    let spec = stage.spec("plain");
    let writer =
        a.tool("rbd").args(["bench", "--io-type", "write", "--io-pattern", "rand", "--io-size", "4K"]);
    let writer = writer.args(["--io-total", "24M", "--io-threads", "4", &spec]);
    let mut daemon = stage.daemon(b).await?;
    let (wrote, copied) = tokio::join!(writer.run(), stage.state(b, "plain", "up+replaying"));
    wrote?;
    copied?;
    for name in &names {
        stage.replayed(name).await.with_context(|| format!("image '{name}'"))?;
        wait_pruned(&stage, &stage.spec(name)).await?;
    }
    stage.state(b, "never-written", "up+replaying").await?;
    stage.replayed("never-written").await?;
    daemon.stop(LIMIT).await?;
    for name in names.iter().filter(|name| **name != "bare") {
        b.rbd(&["mirror", "image", "promote", "--force", &stage.spec(name)]).await?;
        b.rbd(&["object-map", "check", "--no-progress", &stage.spec(name)]).await?;
    }
    a.delete_pool("j-shapes-data").await?;
    b.delete_pool("j-shapes-data").await?;
    stage.strike().await
}

/// What a client with many writes in flight writes while he makes snapshots, the sync point of the first copy among them:
/// nothing is lost between a copy and its replay, and user snapshots hold what they hold at the primary.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_flight_at_snapshots_arrives() -> Result<()> {
    let stage = Stage::set("j-in-flight").await?;
    let mut daemon = stage.daemon(&stage.clusters.b).await?;
    // No block twice, so that nothing that comes later hides what is missing.
    let once = written_while_copied(&stage, "once", 96 * MIB, &[]);
    // No block twice at the same time: librbd promises no order then.
    let again = ["--norandommap", "--serialize_overlap=1", "--time_based", "--runtime=20"];
    let again = written_while_copied(&stage, "again", 4 * MIB, &again);
    tokio::try_join!(once, again)?;
    daemon.stop(LIMIT).await?;
    // The owner of the lock makes the sync point's object map, too.
    let log = String::from_utf8_lossy(&std::fs::read(daemon.log())?).into_owned();
    ensure!(!log.contains("an object map cannot be used"), "a sync point has no object map:\n{log}");
    stage.strike().await
}

async fn written_while_copied(stage: &Stage, name: &str, size: u64, how: &[&str]) -> Result<()> {
    let (a, spec) = (&stage.clusters.a, stage.spec(name));
    stage.create_journalled(name, size, &["--object-size", "256K"]).await?;
    let writer = Tool::new("fio").env("CEPH_CONF", a.conf_path()).args([
        "--name=writer",
        "--ioengine=rbd",
        "--clientname=admin",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=64",
        "--rate_iops=1500",
    ]);
    let writer = writer.args([format!("--pool={}", stage.pool), format!("--rbdname={name}")]).args(how);
    let snapshots = async {
        until("the writer to begin", async || Ok(a.rbd(&["lock", "ls", &spec]).await?.contains("auto")))
            .await?;
        stage.enable_journal(name).await?;
        until("the sync point to be made", async || {
            // It may come and go between two looks.
            Ok(has_sync_point(&stage.a, &spec).await? || stage.replays(name).await)
        })
        .await?;
        let made = Instant::now();
        for number in 0..3 {
            a.snap_create(&format!("{spec}@{number}")).await?;
        }
        anyhow::Ok(made)
    };
    let written = async {
        writer.run().await?;
        anyhow::Ok(Instant::now())
    };
    let (written, made) = tokio::try_join!(written, snapshots)?;
    ensure!(made < written, "the sync point of {spec} was not made by the writer, who had ended before");
    stage.replayed(name).await.with_context(|| format!("image '{name}'"))
}

/// Clones of both formats, and a clone of a clone, are copied when the copies of their parents are whole.
#[tokio::test(flavor = "multi_thread")]
async fn clones_follow_their_parents() -> Result<()> {
    let stage = Stage::set("j-clones").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let parent = stage.spec("parent");
    stage.create_journalled("parent", SIZE, &[]).await?;
    a.apply(&parent, Extents::default().fill(0, 24 * MIB, 1)).await?;
    let base = stage.spec("parent@base");
    a.snap_create(&base).await?;
    a.snap_protect(&base).await?;
    a.apply(&parent, Extents::default().random(&scattered(2, 50, 0..SIZE))).await?;
    let clone = async |from: &str, to: &str, format: &str| {
        let to = stage.spec(to);
        let args = ["clone", "--rbd-default-clone-format", format, "--image-feature", FEATURES, from, &to];
        a.rbd(&args).await
    };
    clone(&base, "v1", "1").await?;
    clone(&base, "v2", "2").await?;
    a.apply(&stage.spec("v2"), Extents::default().random(&scattered(3, 20, 0..SIZE))).await?;
    let middle = stage.spec("v2@middle");
    a.snap_create(&middle).await?;
    clone(&middle, "grandchild", "2").await?;
    a.apply(&stage.spec("grandchild"), Extents::default().random(&scattered(4, 20, 0..SIZE))).await?;
    a.apply(&stage.spec("v1"), Extents::default().random(&scattered(5, 20, 0..SIZE))).await?;

    for name in ["parent", "v1", "v2", "grandchild"] {
        stage.enable_journal(name).await?;
    }
    // The clones wait until the copy of what they are clones of is whole.
    let mut daemon = stage.daemon(b).await?;
    for name in ["parent", "v1", "v2", "grandchild"] {
        stage.replayed(name).await.with_context(|| format!("image '{name}'"))?;
    }
    let image = b.rbd_json(&["info", &stage.spec("grandchild")]).await?;
    ensure!(image["parent"]["image"] == "v2", "{image}");
    // What is written to a clone's objects that were never copied arrives with the parent's bytes around it.
    for name in ["v1", "v2", "grandchild"] {
        let spec = stage.spec(name);
        a.apply(&spec, Extents::default().random(&scattered(9, 30, 0..SIZE))).await?;
        a.snap_create(&format!("{spec}@later")).await?;
        a.apply(&spec, Extents::default().random(&scattered(10, 30, 0..SIZE))).await?;
        stage.replayed(name).await.with_context(|| format!("image '{name}' written to"))?;
    }
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// In pool mode every journalled image is mirrored, from its creation on or from when it gets a journal.
#[tokio::test(flavor = "multi_thread")]
async fn every_journalled_image_of_a_pool_is_mirrored() -> Result<()> {
    let stage = Stage::set("j-pool").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    for cluster in [a, b] {
        cluster.rbd(&["mirror", "pool", "enable", &stage.pool, "pool"]).await?;
    }
    stage.create_journalled("before", SIZE, &[]).await?;
    a.create_image(&stage.spec("later"), SIZE, &[]).await?;
    a.apply(&stage.spec("later"), Extents::default().random(&scattered(1, 100, 0..SIZE))).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.create_journalled("meanwhile", SIZE, &[]).await?;
    a.apply(&stage.spec("meanwhile"), Extents::default().random(&scattered(2, 100, 0..SIZE))).await?;
    a.rbd(&["feature", "enable", &stage.spec("later"), "journaling"]).await?;
    a.apply(&stage.spec("later"), Extents::default().random(&scattered(3, 100, 0..SIZE))).await?;
    for name in ["before", "meanwhile", "later"] {
        stage.state(b, name, "up+replaying").await?;
        stage.replayed(name).await.with_context(|| format!("image '{name}'"))?;
    }
    // Without its journal it is mirrored no more.
    a.rbd(&["feature", "disable", &stage.spec("later"), "journaling"]).await?;
    until("the copy to go with the primary's journal", async || {
        let list = b.rbd_json(&["ls", &stage.pool]).await?;
        Ok(!list.as_array().is_some_and(|names| names.iter().any(|name| name == "later")))
    })
    .await?;
    a.rbd(&["feature", "enable", &stage.spec("later"), "journaling"]).await?;
    stage.state(b, "later", "up+replaying").await?;
    stage.replayed("later").await?;
    ensure!(journaling()[1].contains("journaling"), "images of this scenario are journalled");
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
