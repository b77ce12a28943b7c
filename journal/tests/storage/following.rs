//! Following the end of a journal while stock librbd writes to it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use journal::event::{Event, EventEntry};
use journal::types::{ClientData, CommitPosition};
use journal::{Committer, Entry, Journal, Tail, TailError, TailOptions};
use rados::fault::{Fault, FaultPlan, Faulty, Matcher, OperationKind};
use tests::LibrbdImage;
use tokio::time::timeout;

use crate::world::{CLIENT, IMAGE_BYTES, World, expect_order, expect_same};

const LIMIT: Duration = Duration::from_secs(90);

/// A tail from where our client is.
async fn tail(journal: &Journal, options: TailOptions) -> Result<Tail> {
    let client = journal.client(CLIENT).await?.context("our client")?;
    Ok(Tail::open(journal, CLIENT, client.commit_position, options).await?)
}

/// Reads on until there are so many entries.
async fn read_to(tail: &mut Tail, entries: &mut Vec<Entry>, count: usize) -> Result<()> {
    while entries.len() < count {
        let batch =
            timeout(LIMIT, tail.next()).await.with_context(|| format!("stuck at {}", entries.len()))??;
        entries.extend(batch.entries);
    }
    Ok(())
}

/// Small bounds, so that every one of them matters.
fn small() -> TailOptions {
    TailOptions {
        batch_bytes_max: 20_000,
        read_bytes_max: 30_000,
        poll_bytes: 5_000,
        buffered_bytes_max: 60_000,
        ..TailOptions::default()
    }
}

/// Writers come and go; the tail sees what the stock tool exports afterwards, under large and small bounds.
pub async fn a_live_writer_is_followed(world: &World) -> Result<()> {
    for (name, options) in [("live", TailOptions::default()), ("live-small", small())] {
        let journal = world.followed_image(name).await?;
        let mut tail = tail(&journal, options).await?;
        let watch = journal.watch().await?;
        tail.follow(watch.changes());
        let first = timeout(LIMIT, tail.next()).await??;
        ensure!(first.entries.is_empty() && first.caught_up, "nothing was written yet");
        let write = async {
            for round in 0..3 {
                let mut open = LibrbdImage::open(world.stock(), &world.spec(name)).await?;
                open.burst(500, 4096, 16, round, IMAGE_BYTES).await?;
                open.burst(20, 512, 1, round, IMAGE_BYTES).await?;
                open.close().await?;
                world.stock().snap_create(&world.spec(&format!("{name}@{round}"))).await?;
            }
            anyhow::Ok(())
        };
        let mut entries = Vec::new();
        let (written, read) = tokio::join!(write, read_to(&mut tail, &mut entries, 3 * 520));
        written?;
        read?;
        let exported = world.exported(name).await?;
        read_to(&mut tail, &mut entries, exported.len()).await?;
        expect_same(&entries, &exported)?;
        watch.unregister().await?;
    }
    Ok(())
}

/// Applies the writes of entries to a copy in memory, as a mirror would.
fn apply(copy: &mut [u8], entries: &[Entry]) -> Result<()> {
    for entry in entries {
        if let Event::Write { extent, data } = EventEntry::decode(&entry.data)?.event {
            copy[extent.offset as usize..extent.end() as usize].copy_from_slice(&data);
        }
    }
    Ok(())
}

/// What is committed is trimmed behind the reader, and what it read makes a copy that equals the image. Now and then the
/// reader begins anew.
pub async fn committed_sets_are_trimmed_and_the_copy_is_whole(world: &World) -> Result<()> {
    let journal = world.followed_image("trimmed").await?;
    let mut copy = vec![0; IMAGE_BYTES as usize];
    let mut read = 0;
    for round in 0..4_u64 {
        let client = journal.client(CLIENT).await?.context("our client")?;
        let mut committer = Committer::new(&journal, CLIENT, client.commit_position);
        let mut tail = tail(&journal, small()).await?;
        let write = async {
            let mut open = LibrbdImage::open(world.stock(), &world.spec("trimmed")).await?;
            open.burst(400, 4096, 8, 100 + round, IMAGE_BYTES).await?;
            open.close().await
        };
        let mut entries = Vec::new();
        let follow = async {
            while entries.len() < 400 {
                let batch = timeout(LIMIT, tail.next()).await??;
                committer.handed_out(&batch.entries);
                apply(&mut copy, &batch.entries)?;
                if let Some(last) = batch.entries.last() {
                    committer.safe_up_to(last.position);
                    committer.commit().await?;
                    journal::trim::trim(&journal).await?;
                }
                entries.extend(batch.entries);
            }
            anyhow::Ok(())
        };
        let (written, followed) = tokio::join!(write, follow);
        written?;
        followed?;
        expect_order(&entries)?;
        read += entries.len();
        ensure!(committer.pending() == 0 && !committer.is_due());
        let stored = journal.client(CLIENT).await?.context("our client")?.commit_position;
        ensure!(stored == *committer.safe() && stored.0.len() == 4, "{stored:?}");
    }
    // The last entries may still be on their way in.
    let client = journal.client(CLIENT).await?.context("our client")?;
    journal::tail::walk(&journal, CLIENT, client.commit_position, |entry| {
        read += 1;
        apply(&mut copy, &[entry]).map_or(std::ops::ControlFlow::Break(()), std::ops::ControlFlow::Continue)
    })
    .await?;
    ensure!(copy == world.stock().read(&world.spec("trimmed")).await?, "the copy differs");
    ensure!(read >= 1600, "{read} entries");
    // The writer's own last commit may have been the one that was behind.
    journal::trim::trim(&journal).await?;
    let metadata = journal.mutable().await?;
    ensure!(metadata.minimum_set.0 > 10, "{metadata:?}");
    let first = journal.data_object(journal.layout().object(metadata.minimum_set, 0));
    let number = |name: &str| name.rsplit('.').next().and_then(|number| number.parse::<u64>().ok());
    for object in world.stored(&journal).await?.keys().filter_map(|key| key.strip_prefix("object ")) {
        ensure!(number(object) >= number(&first), "object {object} is left, {first} is the first");
    }
    Ok(())
}

/// Requests that fail are told and made again.
pub async fn a_failed_request_loses_nothing(world: &World) -> Result<()> {
    world.followed_image("faulty").await?;
    world.bench("faulty", 300).await?;
    world.stock().snap_create(&world.spec("faulty@one")).await?;
    world.bench("faulty", 300).await?;
    let reads = |prefix: &str| Matcher::kind(OperationKind::Read).on_prefix(prefix);
    let mut plan = FaultPlan::none();
    for nth in [2, 3, 5, 8, 13, 21, 34] {
        plan = plan.at(nth, reads("journal_data."), Fault::Fail(libc::ETIMEDOUT));
    }
    plan = plan.at(4, reads("journal."), Fault::Fail(libc::EAGAIN));
    let faulty = Faulty::new(world.connection.backend().clone(), plan, &["journal_data.", "journal."]);
    let io = rados::Cluster::new(faulty).pool(world.io.pool_id());
    let journal = Journal::open(&io, &world.id_of("faulty").await?).await?;
    let exported = world.exported("faulty").await?;
    let mut tail = tail(&journal, small()).await?;
    let (mut entries, mut failures) = (Vec::new(), 0);
    while entries.len() < exported.len() {
        match timeout(LIMIT, tail.next()).await? {
            Ok(batch) => entries.extend(batch.entries),
            Err(TailError::Rados(error)) => {
                ensure!(error.to_string().contains("injected"), "{error}");
                failures += 1;
            }
            Err(other) => return Err(other.into()),
        }
    }
    ensure!(failures >= 5, "{failures} failures");
    expect_same(&entries, &exported)
}

/// A caller who waits for other things, too, drops the call again and again.
pub async fn dropped_calls_lose_nothing(world: &World) -> Result<()> {
    let journal = world.followed_image("dropped").await?;
    let mut tail = tail(&journal, small()).await?;
    let (mut entries, mut dropped) = (Vec::new(), 0);
    let write = async {
        world.bench("dropped", 300).await?;
        world.bench("dropped", 300).await?;
        world.exported("dropped").await
    };
    tokio::pin!(write);
    let mut exported = None;
    while exported.as_ref().is_none_or(|exported: &Vec<_>| entries.len() < exported.len()) {
        tokio::select! {
            found = &mut write, if exported.is_none() => exported = Some(found?),
            batch = timeout(Duration::from_micros(700), tail.next()) => match batch {
                Ok(batch) => entries.extend(batch?.entries),
                Err(_) => dropped += 1,
            }
        }
    }
    ensure!(dropped > 100, "{dropped} calls were dropped");
    expect_same(&entries, &exported.unwrap_or_default())?;
    // One that never was anywhere begins at the beginning.
    journal.client_register("another", &ClientData::Cli).await?;
    let another = journal.client("another").await?.context("the other client")?;
    ensure!(another.commit_position == CommitPosition::default());
    Ok(())
}
