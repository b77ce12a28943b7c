//! Damaged journals: what comes before the damage is handed out, then an error tells precisely what is wrong.

use std::ops::ControlFlow;

use anyhow::{Context, Result, ensure};
use journal::entry::OVERHEAD_BYTES;
use journal::types::{ClientState, CommitPosition, IMAGE_CLIENT_ID};
use journal::{Entry, Journal, Tail, TailError, TailOptions};
use rados::{Extent, SnapId, WriteOp, WriteSub};

use crate::world::{CLIENT, World, walked};

/// An image with entries in several sets and tags.
async fn written(world: &World, name: &str) -> Result<(Journal, Vec<Entry>)> {
    let journal = world.followed_image(name).await?;
    for snapshot in ["one", "two"] {
        world.bench(name, 150).await?;
        world.stock().snap_create(&world.spec(&format!("{name}@{snapshot}"))).await?;
    }
    let entries = walked(&journal).await?;
    ensure!(entries.len() > 300);
    Ok((journal, entries))
}

/// What is read before the error, and the error.
async fn read_damaged(journal: &Journal) -> Result<(Vec<Entry>, TailError)> {
    let mut entries = Vec::new();
    let end = journal::tail::walk(journal, CLIENT, CommitPosition::default(), |entry| {
        entries.push(entry);
        ControlFlow::Continue(())
    });
    let error = end.await.err().context("the damage was not seen")?;
    Ok((entries, error))
}

/// Offset of an entry in its object, from those before it there.
fn offset_of(entries: &[Entry], index: usize) -> u64 {
    let before = entries[..index].iter().filter(|entry| entry.object == entries[index].object);
    before.map(|entry| (entry.data.len() + OVERHEAD_BYTES) as u64).sum()
}

pub async fn spoiled_objects_are_told(world: &World) -> Result<()> {
    let (journal, entries) = written(world, "spoiled").await?;
    let io = journal.data_ioctx();
    for index in [0, 1, 77, 200, entries.len() - 1] {
        let name = journal.data_object(entries[index].object);
        let offset = offset_of(&entries, index);
        let whole = io.read_extent(&name, SnapId::HEAD, Extent::new(0, 1 << 20)).await?;
        let restore = WriteOp::new(&name).with(WriteSub::WriteFull(whole.clone()));

        let spoiled = bytes::Bytes::from(vec![whole[offset as usize + 30] ^ 1]);
        let spoil = WriteSub::Write { offset: offset + 30, data: spoiled };
        io.write(WriteOp::new(&name).with(spoil)).await?;
        let (read, error) = read_damaged(&journal).await?;
        ensure!(read == entries[..index], "entry {index}: {} were read", read.len());
        let TailError::Corrupt { object, offset: at, .. } = &error else { anyhow::bail!("{error}") };
        ensure!(*object == name && *at == offset, "{error}");
        ensure!(error.to_string().contains("checksum"), "{error}");

        io.write(restore.clone()).await?;
        io.write(WriteOp::new(&name).with(WriteSub::Truncate(offset + 20))).await?;
        let (read, error) = read_damaged(&journal).await?;
        ensure!(read == entries[..index], "entry {index}: {} were read", read.len());
        let TailError::Corrupt { object, offset: at, .. } = &error else { anyhow::bail!("{error}") };
        ensure!(*object == name && *at == offset && error.to_string().contains("ends within"), "{error}");

        // Cut between two entries: nothing is wrong with what is there, but it is not all.
        io.write(restore.clone()).await?;
        io.write(WriteOp::new(&name).with(WriteSub::Truncate(offset))).await?;
        let (read, error) = read_damaged(&journal).await?;
        ensure!(read == entries[..index], "entry {index}: {} were read", read.len());
        let TailError::Missing { object, position, .. } = &error else { anyhow::bail!("{error}") };
        ensure!(*object == name && *position == entries[index].position, "{error}");
        io.write(restore).await?;
    }
    ensure!(walked(&journal).await? == entries);
    Ok(())
}

pub async fn missing_objects_are_told(world: &World) -> Result<()> {
    let (journal, entries) = written(world, "missing").await?;
    let io = journal.data_ioctx();
    for index in [0, 120, 240, entries.len() - 1] {
        let gone = entries[index].object;
        let first = entries.iter().position(|entry| entry.object == gone).context("an entry of it")?;
        let name = journal.data_object(gone);
        let whole = io.read_extent(&name, SnapId::HEAD, Extent::new(0, 1 << 20)).await?;
        io.remove(&name).await?;
        let (read, error) = read_damaged(&journal).await?;
        ensure!(read == entries[..first], "object {gone}: {} were read, not {first}", read.len());
        let TailError::Missing { position, .. } = &error else { anyhow::bail!("{error}") };
        ensure!(*position == entries[first].position, "{error}");
        io.write(WriteOp::new(&name).with(WriteSub::WriteFull(whole))).await?;
    }
    Ok(())
}

/// A client that was away for too long is disconnected by the primary, which then trims what that client has not read.
pub async fn clients_too_far_behind_are_told(world: &World) -> Result<()> {
    let (journal, entries) = written(world, "behind").await?;
    let middle = entries.len() / 2;
    let committed =
        journal::types::ObjectPosition { object: entries[middle].object, position: entries[middle].position };
    journal.client_commit(CLIENT, &CommitPosition(vec![committed])).await?;
    journal.client_update_state(CLIENT, ClientState::Disconnected).await?;
    world.bench("behind", 100).await?;
    journal::trim::trim(&journal).await?;
    let minimum_set = journal.mutable().await?.minimum_set;
    ensure!(minimum_set > journal.layout().set_of(committed.object), "{minimum_set}");
    for position in [CommitPosition(vec![committed]), CommitPosition::default()] {
        let mut tail = Tail::open(&journal, CLIENT, position, TailOptions::default()).await?;
        let error = loop {
            match tail.next().await {
                Ok(batch) => ensure!(batch.entries.is_empty(), "{:?} were read", batch.entries.len()),
                Err(error) => break error,
            }
        };
        ensure!(matches!(error, TailError::TooFarBehind { .. }), "{error}");
        ensure!(error.to_string().contains("too far behind"), "{error}");
    }
    Ok(())
}

pub async fn struck_out_clients_are_told(world: &World) -> Result<()> {
    let (journal, entries) = written(world, "struck").await?;
    let start = || CommitPosition::default();
    let mut tail = Tail::open(&journal, CLIENT, start(), TailOptions::default()).await?;
    let watch = journal.watch().await?;
    tail.follow(watch.changes());
    let mut read = 0;
    while read < entries.len() {
        read += tail.next().await?.entries.len();
    }
    ensure!(tail.metadata().client(IMAGE_CLIENT_ID).is_some());
    journal.client_unregister(CLIENT).await?;
    let error = loop {
        match tail.next().await {
            Ok(batch) => ensure!(batch.entries.is_empty()),
            Err(error) => break error,
        }
    };
    let TailError::Unregistered { client, .. } = &error else { anyhow::bail!("{error}") };
    ensure!(client == CLIENT);
    let opened = Tail::open(&journal, CLIENT, start(), TailOptions::default()).await;
    ensure!(opened.is_err_and(|again| again == error));
    Ok(())
}
