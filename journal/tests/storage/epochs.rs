//! Journals made, promoted, demoted and removed: stored as stock librbd stores them, and of use to it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use journal::append::Appender;
use journal::entry::{EntryReader, Found, RawEntry};
use journal::event::{Event, EventEntry, OpTid};
use journal::image_journal::ImageJournal;
use journal::metadata::JournalLayout;
use journal::promotion::create_image_journal;
use journal::types::{
    ClientData, CommitPosition, EntryPosition, EntryTid, LOCAL_MIRROR_UUID, ObjectSet, TagData,
    TagPredecessor,
};
use journal::{Journal, Tail, TailOptions};
use rados::Extent;
use rbd::Timestamp;
use tests::LibrbdImage;

use crate::world::{CLIENT, IMAGE_BYTES, SMALL_JOURNAL, World, walked};

const SMALL_LAYOUT: JournalLayout = JournalLayout { order: 16, splay_width: 4, pool: None };
/// A mirror uuid that no pool here has.
const SOMEWHERE: &str = "b3a1b5b0-0000-4000-8000-00000000feed";

/// Everything that is stored of two journals, except for the data of entries with a time in them.
async fn expect_alike(world: &World, ours: &Journal, theirs: &Journal) -> Result<()> {
    let keys = async |journal: &Journal| -> Result<BTreeMap<String, Bytes>> {
        let stored = world.stored(journal).await?.into_iter();
        Ok(stored.filter(|(key, _)| !key.starts_with("object")).collect())
    };
    let (a, b) = (keys(ours).await?, keys(theirs).await?);
    for key in a.keys().chain(b.keys()) {
        let (a, b) = (a.get(key).map(hex::encode), b.get(key).map(hex::encode));
        ensure!(a == b, "key {key}: ours {a:?}, theirs {b:?}");
    }
    let entries = async |journal: &Journal| -> Result<Vec<_>> {
        let (stored, mut entries) = (world.stored(journal).await?, Vec::new());
        for (name, bytes) in stored.into_iter().filter(|(key, _)| key.starts_with("object")) {
            let mut reader = EntryReader::new(bytes, 0, journal.layout().object_bytes());
            while let Found::Entry(RawEntry { position, data }) = reader.find()? {
                let event = EventEntry::decode(&data)?;
                let timeless = event.timestamp == Timestamp::default();
                entries.push((name.clone(), position, timeless.then_some(data)));
            }
            ensure!(reader.find()? == Found::End, "{name} ends within an entry");
        }
        Ok(entries)
    };
    let (a, b) = (entries(ours).await?, entries(theirs).await?);
    ensure!(a == b, "entries: ours {a:?}, theirs {b:?}");
    Ok(())
}

/// Two mirrored images alike.
async fn pair(world: &World, name: &str) -> Result<[(String, Journal); 2]> {
    let make = async |name: String| {
        let journal = world.image(&name, &SMALL_JOURNAL).await?;
        world.stock().rbd(&["mirror", "image", "enable", &world.spec(&name), "journal"]).await?;
        anyhow::Ok((world.spec(&name), journal))
    };
    Ok([make(format!("{name}-ours")).await?, make(format!("{name}-theirs")).await?])
}

async fn is_primary(world: &World, image: &str) -> Result<bool> {
    world.stock().rbd_json(&["info", image]).await?["mirroring"]["primary"].as_bool().context("mirroring")
}

pub async fn journals_are_made_as_librbd_makes_them(world: &World) -> Result<()> {
    let stock = world.stock();
    for name in ["made", "stock-made"] {
        let features = ["--image-feature", "layering,exclusive-lock"];
        stock.create_image(&world.spec(name), IMAGE_BYTES, &features).await?;
    }
    let theirs = world.spec("stock-made");
    let enable = [&["feature", "enable", &theirs, "journaling"][..], &SMALL_JOURNAL].concat();
    stock.rbd(&enable).await?;
    let theirs = Journal::open(&world.io, &world.id_of("stock-made").await?).await?;
    let id = world.id_of("made").await?;
    let ours = create_image_journal(&world.io, &id, SMALL_LAYOUT, LOCAL_MIRROR_UUID).await?;
    expect_alike(world, &ours, &theirs).await?;
    let again = create_image_journal(&world.io, &id, SMALL_LAYOUT, LOCAL_MIRROR_UUID).await;
    ensure!(again.is_err_and(|error| error.is(libc::EEXIST)));
    expect_alike(world, &ours, &theirs).await?;
    for (order, splay_width) in [(11, 4), (27, 4), (24, 0)] {
        let layout = JournalLayout { order, splay_width, pool: None };
        let refused = Journal::create(&world.io, &id, layout).await;
        ensure!(refused.is_err_and(|error| error.is(libc::EINVAL)));
    }
    Ok(())
}

/// The journal of a copy has a first tag that names the primary's pool.
pub async fn forced_promotion_leaves_what_librbd_leaves(world: &World) -> Result<()> {
    let pair = pair(world, "forced").await?;
    let mut journals = Vec::new();
    for (image, journal) in &pair {
        journal.remove().await?;
        journals.push(create_image_journal(&world.io, journal.image(), SMALL_LAYOUT, SOMEWHERE).await?);
        ensure!(!is_primary(world, image).await?);
    }
    let [ours, theirs] = &journals[..] else { unreachable!() };
    expect_alike(world, ours, theirs).await?;
    let mut own = ImageJournal::read(ours).await?;
    ensure!(own.demote().await.is_err_and(|error| error.is(libc::EINVAL)));
    own.promote().await?;
    let [(our_image, _), (their_image, _)] = &pair;
    let orderly = world.stock().rbd(&["mirror", "image", "promote", their_image]).await;
    ensure!(orderly.is_err(), "the stock tool wants to be forced");
    world.stock().rbd(&["mirror", "image", "promote", "--force", their_image]).await?;
    expect_alike(world, ours, theirs).await?;
    ensure!(is_primary(world, our_image).await?);
    Ok(())
}

/// A promotion by force that was cut off behind its tag names an entry that nobody ever wrote. A mirror that registers
/// then does not miss it.
pub async fn what_a_forced_promotion_names_is_not_missed(world: &World) -> Result<()> {
    let journal = world.image("named", &SMALL_JOURNAL).await?;
    let image = journal.image().clone();
    journal.remove().await?;
    let journal = create_image_journal(&world.io, &image, SMALL_LAYOUT, SOMEWHERE).await?;
    let own = ImageJournal::read(&journal).await?;
    let commit = Some(EntryPosition { tag: own.newest.0, entry: EntryTid(0) });
    let predecessor = TagPredecessor { mirror_uuid: LOCAL_MIRROR_UUID.to_string(), commit };
    let tag = TagData { mirror_uuid: LOCAL_MIRROR_UUID.to_string(), predecessor };
    let tag = journal.allocate_tag(own.tag_class, &tag).await?;
    journal.client_register(CLIENT, &ClientData::Cli).await?;
    let mut tail = Tail::open(&journal, CLIENT, CommitPosition::default(), TailOptions::default()).await?;
    ensure!(tail.next().await?.entries.is_empty(), "nothing was written");
    let mut appender = Appender::new(&journal, tag.tid).await?;
    let event = EventEntry { event: Event::DemotePromote, timestamp: Timestamp::default() };
    let written = appender.append(&event).await?;
    let found = tail.next().await?.entries;
    ensure!(found.len() == 1 && found[0].position == written.position, "{found:?}");
    Ok(())
}

/// Epochs that we and the stock tool begin in turn.
pub async fn stock_tools_use_images_that_we_promoted(world: &World) -> Result<()> {
    let journal = world.followed_image("turns").await?;
    let image = world.spec("turns");
    let stock = world.stock();
    stock.rbd(&["mirror", "image", "enable", &image, "journal"]).await?;
    let mut own = ImageJournal::read(&journal).await?;
    for _ in 0..2 {
        world.bench("turns", 20).await?;
        own.refresh().await?;
        own.demote().await?;
        ensure!(world.bench("turns", 1).await.is_err(), "a demoted image was written");
        stock.rbd(&["mirror", "image", "promote", &image]).await?;
        world.bench("turns", 20).await?;
        stock.rbd(&["mirror", "image", "demote", &image]).await?;
        own.refresh().await?;
        own.promote().await?;
        world.bench("turns", 20).await?;
    }
    // Of our own entries, as of the others, the stock tool thinks that all is well.
    let entries = walked(&journal).await?;
    crate::world::expect_same(&entries, &world.exported("turns").await?)?;
    let events = entries.iter().map(|entry| EventEntry::decode(&entry.data));
    let marks = events.filter(|event| event.as_ref().is_ok_and(|event| event.event == Event::DemotePromote));
    ensure!(marks.count() == 8);
    ensure!(world.inspected("turns").await? == (entries.len(), 0));
    // A wish for a resync is the stock tool's to make and ours to see.
    own.refresh().await?;
    own.demote().await?;
    stock.rbd(&["mirror", "image", "resync", &image]).await?;
    own.refresh().await?;
    ensure!(own.resync_requested);
    own.set_resync(false).await?;
    ensure!(!ImageJournal::read(&journal).await?.resync_requested);
    Ok(())
}

pub async fn unapplied_entries_keep_an_image_from_being_demoted(world: &World) -> Result<()> {
    let journal = world.image("unapplied", &SMALL_JOURNAL).await?;
    let image = world.spec("unapplied");
    let mut open = LibrbdImage::open(world.stock(), &image).await?;
    open.burst(200, 4096, 16, 3, IMAGE_BYTES).await?;
    let address = open.address().to_string();
    open.kill().await?;
    world.stock().blocklist_add(&address).await?;
    let mut own = ImageJournal::read(&journal).await?;
    let refused = own.require_applied().await.err().context("entries that were not applied were not seen")?;
    ensure!(refused.is(libc::EBUSY) && refused.to_string().contains("open it once to write"), "{refused}");
    world.stock().resize(&image, 2 * IMAGE_BYTES).await?;
    own.refresh().await?;
    own.require_applied().await?;
    own.demote().await?;
    Ok(())
}

/// Appends go on in the next set when an object is full, as the stock reader expects it.
pub async fn full_sets_are_left(world: &World) -> Result<()> {
    let journal =
        world.image("full", &["--journal-object-size", "4096", "--journal-splay-width", "3"]).await?;
    journal.client_register(CLIENT, &ClientData::Cli).await?;
    let own = ImageJournal::read(&journal).await?;
    let tag = journal.allocate_tag(own.tag_class, &TagData::default()).await?;
    let mut appender = Appender::new(&journal, tag.tid).await?;
    let mut places = Vec::new();
    for n in 0..400 {
        let event = Event::OpFinish { tid: OpTid(n), result: 0 };
        places.push(appender.append(&EventEntry { event, timestamp: Timestamp::now() }).await?);
    }
    let entries = walked(&journal).await?;
    let found = entries.iter().map(|entry| (entry.object, entry.position));
    ensure!(found.eq(places.iter().map(|place| (place.object, place.position))));
    crate::world::expect_same(&entries, &world.exported("full").await?)?;
    let active = journal.mutable().await?.active_set;
    ensure!(active >= ObjectSet(2), "{active}");
    let event = Event::Write { extent: Extent::new(0, 5000), data: vec![0; 5000].into() };
    let refused = appender.append(&EventEntry { event, timestamp: Timestamp::now() }).await;
    ensure!(refused.is_err_and(|error| error.is(libc::EFBIG)));
    Ok(())
}

pub async fn removal_leaves_nothing(world: &World) -> Result<()> {
    let journal = world.followed_image("removed").await?;
    world.bench("removed", 200).await?;
    journal.remove().await?;
    ensure!(
        world
            .stored(&journal)
            .await
            .is_err_and(|error| error.to_string().contains(journal.metadata_object()))
    );
    let left = world.io.list_objects().await?;
    let left: Vec<_> = left.iter().filter(|name| name.contains(&journal.image().0)).collect();
    ensure!(!left.iter().any(|name| name.starts_with("journal")), "{left:?}");
    Ok(())
}
