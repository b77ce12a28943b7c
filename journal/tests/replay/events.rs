//! Every kind of event, from stock librbd.

use anyhow::{Result, ensure};
use rbd::image::Image;
use serde_json::{Value, json};

use crate::run;
use crate::world::{Copy, OTHER_POOL, POOL, Primary, push};

const MB: u64 = 1 << 20;
const SIZE: u64 = 21 * MB + 4096;

/// Writes of all kinds, around all kinds of borders.
fn writes(seed: u64) -> Vec<Value> {
    vec![
        json!(["burst", 200, 4096, seed, SIZE]),
        json!(["write", 3 * MB - 5000, 10_000, seed + 1]),
        json!(["write_same", 5 * MB + 512, 2 * MB, 512, seed + 2]),
        json!(["write_same", 8 * MB, 4 * MB, 4096, 0]),
        json!(["flush"]),
        json!(["discard", 4 * MB, 4 * MB]),
        json!(["discard", 12 * MB - 70_000, 100_000]),
        json!(["discard", 13 * MB, SIZE - 13 * MB]),
        json!(["write", 14 * MB, 5 * MB, seed + 3]),
        json!(["compare_and_write", 14 * MB, 512, seed + 3, seed + 4]),
        json!(["compare_and_write", 14 * MB + 1024, 512, seed + 9, seed + 4]),
        json!(["write", 3 * MB, 512, seed + 5]),
        json!(["compare_and_write", 3 * MB, 512, seed + 5, seed + 6]),
        json!(["compare_and_write", 3 * MB, 512, seed + 6, seed + 5]),
        json!(["flush"]),
        json!(["flush"]),
        json!(["burst", 60, 16384, seed + 7, SIZE]),
    ]
}

/// Operations of all kinds among writes.
pub fn everything(mapped: bool) -> Vec<Value> {
    let mut all = writes(1);
    let mut add = |operations: Vec<Value>| all.extend(operations);
    add(vec![json!(["snap_create", "one"]), json!(["metadata_set", "colour", "blue"])]);
    add(writes(20));
    add(vec![
        json!(["snap_create", "two"]),
        json!(["snap_protect", "one"]),
        json!(["resize", 33 * MB]),
        json!(["write", 30 * MB, MB, 41]),
        json!(["snap_rename", "two", "zwei"]),
        json!(["snap_create", "large"]),
        json!(["resize", 17 * MB + 512]),
        json!(["snap_limit", 9]),
        json!(["burst", 50, 4096, 42, 17 * MB]),
        json!(["snap_create", "small"]),
        json!(["resize", SIZE]),
        json!(["burst", 50, 4096, 43, SIZE]),
        json!(["snap_rollback", "zwei"]),
        json!(["write", 100, 1000, 44]),
        json!(["snap_create", "late"]),
        json!(["snap_remove", "small"]),
        json!(["snap_unprotect", "one"]),
        json!(["metadata_set", "shape", "round"]),
        json!(["metadata_remove", "colour"]),
        json!(["snap_rollback", "large"]),
        json!(["burst", 50, 4096, 45, SIZE]),
        json!(["snap_remove", "one"]),
    ]);
    if mapped {
        const MAPS: u64 = 8 | 16;
        add(vec![json!(["features", MAPS, 0])]);
        add(writes(50));
        add(vec![json!(["features", MAPS, 1])]);
        add(writes(60));
    }
    all
}

async fn replayed(name: &str, args: &[&str], mapped: bool) -> Result<()> {
    let primary = Primary::create(name, SIZE, args).await?;
    primary.carry_out(&everything(mapped)).await?;
    let copy = Copy::open(name).await?;
    copy.replay_all(&primary.entries().await?).await?;
    copy.compare(&primary, name).await
}

#[test]
fn every_event_arrives() {
    run(async { replayed("events", &["--object-size", "1M"], false).await });
}

#[test]
fn features_come_and_go() {
    run(async { replayed("features", &["--object-size", "1M"], true).await });
}

#[test]
fn striped_images_with_data_elsewhere_arrive() {
    run(async {
        let args = ["--object-size", "1M", "--stripe-unit", "64K", "--stripe-count", "3"];
        replayed("striped", &[&args[..], &["--data-pool", OTHER_POOL]].concat(), false).await
    });
}

#[test]
fn images_without_object_maps_arrive() {
    run(async {
        let args = ["--object-size", "256K", "--image-feature", "layering,exclusive-lock"];
        replayed("unmapped", &args, false).await
    });
}

/// Many short tags, one per tool, and a change of the name.
#[test]
fn tags_follow_each_other() {
    run(async {
        let primary = Primary::create("tags", 8 * MB, &["--object-size", "256K"]).await?;
        let (cluster, spec) = (primary.cluster, primary.spec());
        for round in 0..3u64 {
            primary.carry_out(&[json!(["burst", 20, 4096, round + 1, 8 * MB])]).await?;
            cluster.snap_create(&format!("{spec}@{round}")).await?;
        }
        cluster.resize(&spec, 4 * MB).await?;
        cluster.rbd(&["snap", "rollback", "--no-progress", &format!("{spec}@1")]).await?;
        cluster.rbd(&["rename", &spec, &format!("{POOL}/tags-renamed")]).await?;
        let entries = primary.entries().await?;
        let tags: std::collections::BTreeSet<_> = entries.iter().map(|(position, _)| position.tag).collect();
        ensure!(tags.len() >= 5, "{tags:?}");
        let copy = Copy::open("tags").await?;
        copy.replay_all(&entries).await?;
        ensure!(Image::open_by_name(&copy.ioctx, "tags").await.is_err_and(|error| error.is_not_found()));
        copy.compare(&primary, "tags-renamed").await
    });
}

/// A replay that begins anew, however far behind, does nothing twice.
#[test]
fn nothing_is_applied_twice() {
    run(async {
        let primary = Primary::create("twice", SIZE, &["--object-size", "1M"]).await?;
        primary.carry_out(&everything(false)).await?;
        let (copy, entries) = (Copy::open("twice").await?, primary.entries().await?);
        copy.replay_all(&entries).await?;
        let mut again = copy.replay(None).await?;
        push(&mut again, &entries).await?;
        again.end_tag().await?;
        // The last operation is the last barrier, and needs no marker before something comes behind it.
        let counters = again.counters();
        ensure!(counters.writes == 0, "{counters:?}");
        again.stop().await?;
        copy.compare(&primary, "twice").await
    });
}
