//! The metadata object: what we change is what the stock tools show, and the other way round.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use journal::types::{
    ClientData, ClientState, CommitPosition, EntryPosition, EntryTid, IMAGE_CLIENT_ID, JournalObject,
    MirrorPeer, MirrorPeerState, ObjectPosition, ObjectSet, SyncPoint, TagClass, TagData, TagTid,
};
use journal::watch::JournalEvent;
use journal::{Committer, Journal, Tail, TailOptions};
use rados::SnapId;
use rbd::{ImageId, SnapshotNamespace};
use tests::LibrbdImage;
use tokio::time::timeout;

use crate::world::{CLIENT, IMAGE_BYTES, SMALL_JOURNAL, World};

const LIMIT: Duration = Duration::from_secs(60);

fn at(object: u64, tag: u64, entry: u64) -> ObjectPosition {
    let position = EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) };
    ObjectPosition { object: JournalObject(object), position }
}

pub async fn clients_are_as_the_stock_tool_shows_them(world: &World) -> Result<()> {
    let journal = world.image("clients", &SMALL_JOURNAL).await?;
    let layout = *journal.layout();
    ensure!((layout.order, layout.splay_width, layout.pool) == (16, 4, None), "{layout:?}");
    let status = async || {
        let args = ["journal", "status", "--pool", &world.pool, "--image", "clients", "--format", "json"];
        anyhow::Ok(world.stock().tool("rbd").args(args).run().await?)
    };
    let point = SyncPoint {
        namespace: SnapshotNamespace::User,
        name: "point".to_string(),
        from_name: String::new(),
        object_number: Some(3),
    };
    let peer = ClientData::MirrorPeer(MirrorPeer {
        image: ImageId("a copy".to_string()),
        state: MirrorPeerState::Syncing,
        sync_object_count: 7,
        sync_points: vec![point],
        snap_seqs: BTreeMap::from([(SnapId(4), SnapId(5))]),
    });
    journal.client_register(CLIENT, &peer).await?;
    let again = journal.client_register(CLIENT, &peer).await;
    ensure!(again.is_err_and(|error| error.is(libc::EEXIST)));
    let position = CommitPosition(vec![at(1, 3, 5), at(0, 3, 4), at(7, 1, 3)]);
    journal.client_commit(CLIENT, &position).await?;
    let shown = status().await?;
    for part in [
        "\"id\":\"ours\"",
        "{\"object_number\":1,\"tag_tid\":3,\"entry_tid\":5},{\"object_number\":0,\"tag_tid\":3,\"entry_tid\":4}",
        "\"state\":\"connected\"",
        "\"minimum_set\":0",
    ] {
        ensure!(shown.contains(part), "{part} is not in {shown}");
    }
    let image = ["--pool", &world.pool, "--image", "clients", "--client-id", CLIENT];
    world.stock().rbd(&[&["journal", "client", "disconnect"], &image[..]].concat()).await?;
    let client = journal.client(CLIENT).await?.context("our client")?;
    ensure!((client.state, client.client_data()?) == (ClientState::Disconnected, peer));
    journal.client_update_state(CLIENT, ClientState::Connected).await?;
    ensure!(!status().await?.contains("disconnected"));
    journal.client_update_data(CLIENT, &ClientData::Cli).await?;
    ensure!(journal.mutable().await?.client(CLIENT).context("ours")?.client_data()? == ClientData::Cli);
    journal.client_unregister(CLIENT).await?;
    ensure!(journal.client(CLIENT).await?.is_none() && !status().await?.contains("ours"));
    ensure!(journal.client_commit(CLIENT, &position).await.is_err_and(|error| error.is_not_found()));
    Ok(())
}

/// More clients and tags than one answer has.
pub async fn long_lists_are_read_whole(world: &World) -> Result<()> {
    let journal = world.image("lists", &[]).await?;
    let mut ids: Vec<String> = (0..600).map(|n| format!("client {n}")).collect();
    for id in &ids {
        journal.client_register(id, &ClientData::Cli).await?;
    }
    ids.push(String::new());
    ids.sort();
    let listed = |clients: Vec<journal::types::Client>| clients.into_iter().map(|c| c.id).collect::<Vec<_>>();
    let (all, mutable) = (listed(journal.clients().await?), listed(journal.mutable().await?.clients));
    ensure!(all == ids, "{} of {} clients: {all:?}", all.len(), ids.len());
    ensure!(mutable == ids, "{} of {} clients: {mutable:?}", mutable.len(), ids.len());
    let other = TagData { mirror_uuid: "another class".to_string(), ..TagData::default() };
    let other = journal.allocate_tag(TagClass::NEW, &other).await?;
    let mut tids = vec![TagTid(0)];
    for n in 0..600 {
        let data = TagData { mirror_uuid: format!("uuid {n}"), ..TagData::default() };
        let tag = journal.allocate_tag(TagClass(0), &data).await?;
        ensure!(journal.tag(tag.tid).await?.as_ref() == Some(&tag) && tag.tag_data()? == data);
        tids.push(tag.tid);
    }
    let list = async |class, after| {
        let tags = journal.tags(IMAGE_CLIENT_ID, class, after).await?;
        anyhow::Ok(tags.iter().map(|tag| tag.tid).collect::<Vec<_>>())
    };
    ensure!(list(Some(TagClass(0)), None).await? == tids);
    ensure!(list(Some(TagClass(0)), Some(TagTid(0))).await? == tids[1..]);
    ensure!(list(Some(TagClass(0)), Some(tids[400])).await? == tids[401..]);
    ensure!(list(Some(other.class), None).await? == [other.tid]);
    tids.insert(1, other.tid);
    ensure!(list(None, None).await? == tids);
    ensure!(list(None, tids.last().copied()).await?.is_empty());
    ensure!(journal.tag(TagTid(9999)).await?.is_none());
    let nobody = journal.tags("nobody", None, None).await;
    ensure!(nobody.is_err_and(|error| error.is_not_found()));
    Ok(())
}

/// A virtual machine's librbd hears of our commits and removes what we have passed.
pub async fn an_open_image_trims_what_we_commit(world: &World) -> Result<()> {
    let journal = world.followed_image("open").await?;
    let mut open = LibrbdImage::open(world.stock(), &world.spec("open")).await?;
    open.burst(400, 4096, 8, 1, IMAGE_BYTES).await?;
    open.run("flush").await?;
    ensure!(journal.mutable().await?.minimum_set == ObjectSet(0), "our client has committed nothing");
    let start = CommitPosition::default();
    let mut tail = Tail::open(&journal, CLIENT, start, TailOptions::default()).await?;
    let mut committer = Committer::new(&journal, CLIENT, CommitPosition::default());
    loop {
        let batch = timeout(LIMIT, tail.next()).await??;
        committer.handed_out(&batch.entries);
        if let Some(last) = batch.entries.last() {
            committer.safe_up_to(last.position);
            committer.commit().await?;
        }
        let active = journal.mutable().await?.active_set;
        let passed = committer.safe().0.iter().map(|at| journal.layout().set_of(at.object)).min();
        if batch.caught_up && passed.is_some_and(|passed| passed.0 + 2 >= active.0) {
            break;
        }
    }
    // Its own client commits at intervals.
    tests::wait::until("librbd to trim", LIMIT, || async {
        Ok((journal.mutable().await?.minimum_set > ObjectSet(5)).then_some(()))
    })
    .await?;
    open.close().await
}

pub async fn changes_are_heard(world: &World) -> Result<()> {
    let journal = world.image("heard", &[]).await?;
    let mut watch = journal.watch().await?;
    let mut changes = watch.changes();
    world.bench("heard", 1).await?;
    let event = timeout(LIMIT, watch.next()).await?.context("an event")?;
    ensure!(matches!(event, JournalEvent::Changed), "{event:?}");
    timeout(LIMIT, changes.changed()).await?;
    // Nobody waits for events, and still the next change is acknowledged at once.
    let before = std::time::Instant::now();
    for _ in 0..3 {
        journal.client_register("another", &ClientData::Cli).await?;
        journal.client_unregister("another").await?;
    }
    ensure!(before.elapsed() < journal::metadata::NOTIFY_TIMEOUT, "{:?}", before.elapsed());
    watch.unregister().await?;
    ensure!(world.io.list_watchers(journal.metadata_object()).await?.is_empty());
    Ok(())
}

pub async fn there_need_not_be_a_journal(world: &World) -> Result<()> {
    let nobody = ImageId("nobody".to_string());
    let error = Journal::open(&world.io, &nobody).await.err().context("there is no such journal")?;
    ensure!(error.is_not_found(), "{error}");
    ensure!(error.to_string().contains("cannot open the journal of image nobody"), "{error}");
    let journal = world.image("gone", &[]).await?;
    journal.remove().await?;
    journal.remove().await?;
    ensure!(journal.mutable().await.is_err_and(|error| error.is_not_found()));
    ensure!(journal.client("").await.is_err_and(|error| error.is_not_found()));
    ensure!(journal.tag(TagTid(0)).await.is_err_and(|error| error.is_not_found()));
    ensure!(journal.watch().await.is_err_and(|error| error.is_not_found()));
    let options = TailOptions::default();
    let tail = Tail::open(&journal, CLIENT, CommitPosition::default(), options).await;
    let error = tail.err().context("nothing to follow")?;
    ensure!(matches!(&error, journal::TailError::Rados(error) if error.is_not_found()), "{error}");
    Ok(())
}
