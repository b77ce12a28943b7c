//! What the stock librbd wrote is what we read.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use journal::event::{Event, EventEntry, Op};
use journal::types::{ClientData, JournalObject};
use journal::{Entry, Journal};
use tests::LibrbdImage;

use crate::world::{CLIENT, IMAGE_BYTES, SMALL_JOURNAL, World, expect_same, walked};

/// Decodes events, checks that each is encoded as librbd does it, and gives them.
fn events(entries: &[Entry]) -> Result<Vec<Event>> {
    let decode = |entry: &Entry| {
        let event = EventEntry::decode(&entry.data)?;
        ensure!(event.encode() == entry.data, "{} is encoded otherwise", entry.position);
        Ok(event.event)
    };
    entries.iter().map(decode).collect()
}

/// Events of all kinds that librbd writes, in several epochs and many object sets.
pub async fn every_entry_is_as_exported(world: &World) -> Result<()> {
    let journal = world.followed_image("kinds").await?;
    let stock = world.stock();
    let image = world.spec("kinds");
    world.bench("kinds", 200).await?;
    let mut open = LibrbdImage::open(stock, &image).await?;
    open.write(12345, b"a few bytes").await?;
    open.write(4194304, &[0; 512]).await?;
    let results = [
        (open.run("same 8192 65536 73616d65").await?, 65536),
        (open.run(&format!("compare 4194304 {} {}", "00".repeat(512), "61".repeat(512))).await?, 512),
        (open.run(&format!("compare 4194304 {} {}", "00".repeat(512), "62".repeat(512))).await?, -84),
        (open.run("discard 65536 131072").await?, 131072),
        (open.run("zeroes 1048576 1048576").await?, 1048576),
        (open.run("flush").await?, 0),
    ];
    for (index, (result, expected)) in results.into_iter().enumerate() {
        ensure!(result == expected, "operation {index} gave {result}");
    }
    open.burst(100, 16384, 16, 7, IMAGE_BYTES).await?;
    open.close().await?;
    stock.snap_create(&format!("{image}@one")).await?;
    stock.snap_protect(&format!("{image}@one")).await?;
    stock.snap_unprotect(&format!("{image}@one")).await?;
    stock.snap_rename(&format!("{image}@one"), &format!("{image}@two")).await?;
    stock.rbd(&["snap", "limit", "set", "--limit", "9", &image]).await?;
    stock.rbd(&["image-meta", "set", &image, "key", "value"]).await?;
    stock.rbd(&["image-meta", "remove", &image, "key"]).await?;
    stock.resize(&image, IMAGE_BYTES / 2).await?;
    stock.rbd(&["snap", "rollback", "--no-progress", &format!("{image}@two")]).await?;
    stock.snap_remove(&format!("{image}@two")).await?;
    stock.rbd(&["feature", "disable", &image, "fast-diff"]).await?;
    stock.rbd(&["feature", "enable", &image, "fast-diff"]).await?;
    stock.rbd(&["rename", &image, &world.spec("renamed")]).await?;

    let entries = walked(&journal).await?;
    expect_same(&entries, &world.exported("renamed").await?)?;
    ensure!(world.inspected("renamed").await? == (entries.len(), 0));
    let sets: BTreeSet<_> = entries.iter().map(|entry| journal.layout().set_of(entry.object)).collect();
    let tags: BTreeSet<_> = entries.iter().map(|entry| entry.position.tag).collect();
    ensure!(sets.len() > 10 && tags.len() > 10, "{} sets, {} tags", sets.len(), tags.len());
    expect_all_kinds(&events(&entries)?)
}

fn expect_all_kinds(events: &[Event]) -> Result<()> {
    let count = |kind: fn(&Event) -> bool| events.iter().filter(|event| kind(event)).count();
    let counts = [
        count(|event| matches!(event, Event::Write { .. })),
        count(|event| matches!(event, Event::WriteSame { .. })),
        count(|event| matches!(event, Event::CompareAndWrite { .. })),
        count(|event| matches!(event, Event::Discard { .. })),
        count(|event| matches!(event, Event::Flush)),
        count(|event| matches!(event, Event::Op { op: Op::SnapCreate { .. }, .. })),
        count(|event| matches!(event, Event::Op { op: Op::SnapProtect { .. }, .. })),
        count(|event| matches!(event, Event::Op { op: Op::SnapUnprotect { .. }, .. })),
        count(|event| matches!(event, Event::Op { op: Op::SnapRename { .. }, .. })),
        count(|event| matches!(event, Event::Op { op: Op::SnapLimit { limit: 9 }, .. })),
        count(|event| matches!(event, Event::Op { op: Op::MetadataSet { .. }, .. })),
        count(|event| matches!(event, Event::Op { op: Op::MetadataRemove { .. }, .. })),
        count(|event| matches!(event, Event::Op { op: Op::Resize { .. }, .. })),
        count(|event| matches!(event, Event::Op { op: Op::SnapRollback { .. }, .. })),
        count(|event| matches!(event, Event::Op { op: Op::SnapRemove { .. }, .. })),
        count(|event| matches!(event, Event::Op { op: Op::UpdateFeatures { .. }, .. })),
        count(|event| matches!(event, Event::Op { op: Op::Rename { .. }, .. })),
        count(|event| matches!(event, Event::OpFinish { result: 0, .. })),
    ];
    ensure!(counts.iter().all(|count| *count > 0), "some kind is missing: {counts:?}");
    ensure!(counts[0] >= 300, "{} writes", counts[0]);
    ensure!(count(|event| matches!(event, Event::Unknown { .. })) == 0);
    Ok(())
}

/// OSDs pad appends to their allocation unit once every client is from Octopus on.
pub async fn padded_objects_are_read(world: &World) -> Result<()> {
    let stock = world.stock();
    let before = stock.ceph_json(&["osd", "dump"]).await?;
    let release = before["require_min_compat_client"].as_str().unwrap_or("luminous").to_string();
    let require = async |release: &str| {
        let args = ["osd", "set-require-min-compat-client", release, "--yes-i-really-mean-it"];
        stock.ceph(&args).await.map(drop)
    };
    let journal = world.followed_image("padded").await?;
    require("octopus").await?;
    let written = async {
        world.bench("padded", 64).await?;
        stock.snap_create(&world.spec("padded@one")).await?;
        world.bench("padded", 64).await
    };
    let written = written.await;
    require(&release).await?;
    written?;
    let objects = world.stored(&journal).await?;
    let sizes = objects.iter().filter(|(name, _)| name.starts_with("object")).map(|(_, bytes)| bytes.len());
    ensure!(
        sizes.clone().all(|bytes| bytes % 4096 == 0),
        "objects are not padded: {:?}",
        sizes.collect::<Vec<_>>()
    );
    let entries = walked(&journal).await?;
    expect_same(&entries, &world.exported("padded").await?)?;
    ensure!(entries.len() >= 128);
    Ok(())
}

/// The journal of an image in a namespace, with its entries in a pool of their own.
pub async fn journals_in_other_pools_are_read(world: &World) -> Result<()> {
    let stock = world.stock();
    stock.rbd(&["namespace", "create", &world.spec("ns")]).await?;
    let image = world.spec("ns/apart");
    let features = ["--image-feature", "layering,exclusive-lock,journaling", "--journal-pool", &world.other];
    stock.create_image(&image, IMAGE_BYTES, &[&features[..], &SMALL_JOURNAL].concat()).await?;
    let io = world.io.with_namespace("ns");
    let journal = Journal::open(&io, &rbd::directory::id_of(&io, "apart").await?).await?;
    journal.client_register(CLIENT, &ClientData::Cli).await?;
    stock.rbd(&["bench", "--io-type", "write", "--io-size", "8K", "--io-total", "1M", &image]).await?;
    let other = world.connection.pool_by_name(&world.other).await?;
    ensure!(journal.data_ioctx().pool_id() == other && journal.data_ioctx().namespace().is_empty());
    ensure!(journal.data_ioctx().stat(&journal.data_object(JournalObject(0))).await? > 0);
    expect_same(&walked(&journal).await?, &world.exported(&image).await?)?;
    // What stock tools cannot see any more is gone.
    stock.rbd(&["feature", "disable", &image, "journaling"]).await?;
    ensure!(Journal::open(&io, journal.image()).await.is_err_and(|error| error.is_not_found()));
    let left = journal.data_ioctx().list_objects().await?;
    ensure!(!left.iter().any(|name| name.starts_with("journal")), "{left:?}");
    Ok(())
}

/// A writer that is killed leaves a gap behind what it had under way; the next one begins a tag.
pub async fn a_killed_writer_leaves_nothing_that_others_do_not_see(world: &World) -> Result<()> {
    let journal = world.followed_image("killed").await?;
    let stock = world.stock();
    for round in 0..4_u64 {
        let before = walked(&journal).await?.len();
        let mut open = LibrbdImage::open(stock, &world.spec("killed")).await?;
        open.begin(&format!("burst 100000 4096 32 {round} {IMAGE_BYTES}")).await?;
        tests::wait::until("some entries", std::time::Duration::from_secs(60), || async {
            Ok((walked(&journal).await?.len() > before + 300).then_some(()))
        })
        .await?;
        let address = open.address().to_string();
        open.kill().await?;
        // Without this others wait until the cluster has forgotten it.
        stock.blocklist_add(&address).await?;
        world.bench("killed", 16).await?;
        expect_same(&walked(&journal).await?, &world.exported("killed").await?)?;
    }
    let entries = walked(&journal).await?;
    let tags: BTreeSet<_> = entries.iter().map(|entry| entry.position.tag).collect();
    ensure!(tags.len() >= 8, "{} tags", tags.len());
    Ok(())
}
