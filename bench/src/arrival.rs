//! When a copy has arrived, judged from the copy itself.
//!
//! A copy of a primary mirror-snapshot has arrived at the first look at which
//! 1. the head of the copy holds the bytes of every probe: blocks that the writer remembers, written last before the
//!    snapshot was made, read directly from the copy's data objects; and
//! 2. the copy's header has a non-primary mirror-snapshot of that primary snapshot, or a later one, marked complete:
//!    from then on a promotion continues from it.
//!
//! Nobody's status is asked. Looks are native reads, [`LOOK_INTERVAL`] apart: one read of one probe per look until that
//! one is there, then the others and the header. Both daemons are looked at in the same way.
//!
//! After the clock has stopped, [`verify`] compares the head of the copy with the primary's snapshot, every object, by
//! checksums from the OSDs; objects whose checksums differ are read.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use rados::error::ResultExt;
use rados::{ChecksumKind, Extent, IoCtx, ReadAnswer, ReadOp, ReadSub, SnapId};
use rbd::{Image, ImageHeader, ObjectNumber, directory};

use crate::ground::Ground;
use crate::work::BLOCK_BYTES;

/// Time between two looks.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// Objects compared at once, when nobody is waited for any more.
const COMPARED_AT_ONCE: usize = 32;

/// Objects looked at at once, while the daemon works.
const LOOKED_AT_ONCE: usize = 4;

/// Bytes that an image must hold. They must not cross the border of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Where in the image.
    pub offset: u64,
    /// What must be there.
    pub bytes: Vec<u8>,
}

/// The newest primary mirror-snapshot of an image that was already there, to tell a new one from it.
pub async fn newest_primary(ground: &Ground, image: &str) -> Result<Option<SnapId>> {
    let (_, header) = Image::open_by_name(&ground.primary, image).await?;
    Ok(newest_primary_of(&header))
}

fn newest_primary_of(header: &ImageHeader) -> Option<SnapId> {
    let mut newest = header.snapshots.values().rev();
    newest.find(|snap| snap.mirror().is_some_and(|m| m.state.is_primary() && m.complete)).map(|snap| snap.id)
}

/// Waits until the image on the primary has a complete mirror-snapshot newer than `known`; tells when, and its id.
pub async fn primary_snapshot(
    ground: &Ground,
    image: &str,
    known: Option<SnapId>,
    limit: Duration,
) -> Result<(Instant, SnapId)> {
    let (image, _) = Image::open_by_name(&ground.primary, image).await?;
    let started = Instant::now();
    loop {
        let newest = newest_primary_of(&image.read_header().await?);
        if let Some(snap) = newest.filter(|snap| known.is_none_or(|known| *snap > known)) {
            return Ok((Instant::now(), snap));
        }
        ensure!(started.elapsed() < limit, "no primary mirror-snapshot of {} after {limit:?}", image.name());
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Waits until the copy of an image has arrived, as the head of this file says; tells when.
pub async fn copied(
    ground: &Ground,
    image: &str,
    primary_snap_id: SnapId,
    probes: &[Probe],
    limit: Duration,
) -> Result<Instant> {
    let started = Instant::now();
    let mut opened = None;
    let mut seen = 0;
    loop {
        match look(ground, image, primary_snap_id, probes, &mut opened, &mut seen).await {
            Ok(true) => return Ok(Instant::now()),
            Ok(false) => {}
            // It is being made, removed or replaced.
            Err(error) if error.is_not_found() => (opened, seen) = (None, 0),
            Err(error) => return Err(error.into()),
        }
        if started.elapsed() > limit {
            let state = match &opened {
                None => "there is no such image".to_owned(),
                Some(_) => format!("{seen} of {} probes are there", probes.len()),
            };
            bail!("the copy of {image} has not arrived after {:.1} s: {state}", limit.as_secs_f64());
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Whether the copy has arrived already.
pub async fn is_copied(
    ground: &Ground,
    image: &str,
    primary_snap_id: SnapId,
    probes: &[Probe],
) -> Result<bool> {
    match look(ground, image, primary_snap_id, probes, &mut None, &mut 0).await {
        Err(error) if error.is_not_found() => Ok(false),
        looked => Ok(looked?),
    }
}

/// One look. `seen` counts the probes that were found and need not be looked at again.
async fn look(
    ground: &Ground,
    name: &str,
    primary_snap_id: SnapId,
    probes: &[Probe],
    opened: &mut Option<Image>,
    seen: &mut usize,
) -> rados::Result<bool> {
    let image = match opened {
        Some(image) => image,
        None => opened.insert(Image::open_by_name(&ground.copy, name).await?.0),
    };
    while let Some(probe) = probes.get(*seen) {
        if !holds(image, probe).await? {
            // A copy that is made anew under the same name has another id.
            if directory::id_of(&ground.copy, name).await? != *image.id() {
                (*opened, *seen) = (None, 0);
            }
            return Ok(false);
        }
        *seen += 1;
    }
    let header = image.read_header().await?;
    let complete = header.snapshots.values().filter_map(|snap| snap.mirror()).any(|mirror| {
        mirror.state.is_non_primary() && mirror.complete && mirror.primary_snap_id >= primary_snap_id
    });
    Ok(complete)
}

/// Waits until the head of a copy equals that of the primary, to which nobody writes any more, of which the blocks at
/// `newest` were written last; tells when it was seen.
///
/// Reading two whole images takes the processors and the disk from the daemon that is waited for. So the newest blocks are
/// looked at first, one at a time, and then it is late enough to compare everything, by checksums from the OSDs. A daemon
/// that brought something after the newest blocks is found out by that: then the time counts at which the last of it came.
/// What is written must consist of whole blocks of [`BLOCK_BYTES`].
pub async fn equals_primary(ground: &Ground, name: &str, newest: &[u64], limit: Duration) -> Result<Instant> {
    let (primary, header) = Image::open_by_name(&ground.primary, name).await?;
    let (copy, _) = Image::open_by_name(&ground.copy, name).await?;
    let started = Instant::now();
    for offset in newest {
        let (object, offset) = primary.layout().locate(*offset);
        same_block(&primary, &copy, object, offset, started, limit).await?;
    }
    let seen = Instant::now();
    let objects = 0..primary.layout().object_count(header.size);
    let late = stream::iter(objects)
        .map(|object| same_blocks(&primary, &copy, ObjectNumber(object), started, limit))
        .buffer_unordered(LOOKED_AT_ONCE)
        .try_fold(None, async |late, came| Ok(late.max(came)))
        .await?;
    Ok(late.unwrap_or(seen))
}

/// Waits until an object of the copy is the same as the primary's; tells when, unless it was so at once. Checksums tell
/// which blocks differ, and one of these alone is looked at until it has come.
async fn same_blocks(
    primary: &Image,
    copy: &Image,
    object: ObjectNumber,
    started: Instant,
    limit: Duration,
) -> Result<Option<Instant>> {
    let whole = Extent::new(0, primary.layout().object_size());
    let wanted = block_sums(primary.data_ioctx(), &primary.data_object(object), whole).await?;
    let mut came = None;
    loop {
        let held = block_sums(copy.data_ioctx(), &copy.data_object(object), whole).await?;
        let blocks = wanted.len().max(held.len());
        let Some(block) = (0..blocks).find(|block| wanted.get(*block) != held.get(*block)) else {
            return Ok(came);
        };
        same_block(primary, copy, object, block as u64 * BLOCK_BYTES, started, limit).await?;
        came = Some(Instant::now());
    }
}

/// Waits until a block of the copy is the same as the primary's.
async fn same_block(
    primary: &Image,
    copy: &Image,
    object: ObjectNumber,
    offset: u64,
    started: Instant,
    limit: Duration,
) -> Result<()> {
    let (theirs, ours) = (primary.data_object(object), copy.data_object(object));
    let block = Extent::new(offset, BLOCK_BYTES);
    let bytes = primary.data_ioctx().read_extent(&theirs, SnapId::HEAD, block).await?;
    while copy.data_ioctx().read_extent(&ours, SnapId::HEAD, block).await.optional()?.as_ref() != Some(&bytes)
    {
        ensure!(
            started.elapsed() < limit,
            "{} still differs after {limit:?}: {ours} does not hold at {offset} what was written",
            primary.name()
        );
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(())
}

/// The checksum of each block of an object as far as it reaches; none when it does not exist.
async fn block_sums(ioctx: &IoCtx, object: &str, extent: Extent) -> Result<Vec<u64>> {
    let sums = ReadSub::Checksum { kind: ChecksumKind::XxHash64, extent, chunk: BLOCK_BYTES as u32 };
    let reply = ioctx.read(ReadOp::new(object).with(sums)).await.optional()?;
    match reply.map(|reply| reply.answers).as_deref() {
        None => Ok(Vec::new()),
        Some([ReadAnswer::Checksums(sums)]) => Ok(sums.clone()),
        Some(other) => bail!("{object} was asked for checksums, and answered {other:?}"),
    }
}

/// How many of the first probes the head of a copy holds. Answers when it holds all of them, when the image is no longer
/// the one of its name, or after `limit`.
pub async fn probes_held(image: &Image, probes: &[Probe], limit: Duration) -> Result<usize> {
    let started = Instant::now();
    let mut seen = 0;
    while let Some(probe) = probes.get(seen) {
        if holds(image, probe).await? {
            seen += 1;
            continue;
        }
        let id = directory::directory_id_of(image.header_ioctx(), image.name()).await?;
        if id.as_ref() != Some(image.id()) || started.elapsed() > limit {
            break;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    Ok(seen)
}

async fn holds(image: &Image, probe: &Probe) -> rados::Result<bool> {
    let (object, offset) = image.layout().locate(probe.offset);
    let extent = Extent::new(offset, probe.bytes.len() as u64);
    let read =
        image.data_ioctx().read_extent(&image.data_object(object), SnapId::HEAD, extent).await.optional()?;
    Ok(read.is_some_and(|bytes| bytes[..] == probe.bytes[..]))
}

/// Compares the head of the copy with the primary's mirror-snapshot.
pub async fn verify(ground: &Ground, name: &str, primary_snap_id: SnapId) -> Result<()> {
    let (primary, primary_header) = Image::open_by_name(&ground.primary, name).await?;
    let (copy, copy_header) = Image::open_by_name(&ground.copy, name).await?;
    let size = primary_header.size_at(primary_snap_id).context("the primary's snapshot is gone")?;
    ensure!(copy_header.size == size, "{name} has {size} bytes, its copy {}", copy_header.size);
    let objects = 0..primary.layout().object_count(size);
    stream::iter(objects)
        .map(|object| same_object(&primary, &copy, primary_snap_id, ObjectNumber(object)))
        .buffer_unordered(COMPARED_AT_ONCE)
        .try_collect::<()>()
        .await
        .with_context(|| format!("comparing {name} with its copy"))
}

async fn same_object(primary: &Image, copy: &Image, snap: SnapId, object: ObjectNumber) -> Result<()> {
    let (theirs, ours) = (primary.data_object(object), copy.data_object(object));
    let (a, b) = futures::try_join!(
        checksum(primary.data_ioctx(), &theirs, snap),
        checksum(copy.data_ioctx(), &ours, SnapId::HEAD)
    )?;
    if a == b {
        return Ok(());
    }
    let whole = Extent::new(0, primary.layout().object_size());
    let read = async |ioctx: &IoCtx, object: &str, snap| -> rados::Result<Vec<u8>> {
        let mut bytes = ioctx.read_extent(object, snap, whole).await.optional()?.unwrap_or_default().to_vec();
        // What lies behind the end of an object, or where there is none, reads as zeros.
        bytes.resize(whole.length as usize, 0);
        Ok(bytes)
    };
    let (a, b) = futures::try_join!(
        read(primary.data_ioctx(), &theirs, snap),
        read(copy.data_ioctx(), &ours, SnapId::HEAD)
    )?;
    if let Some(offset) = a.iter().zip(&b).position(|(a, b)| a != b) {
        bail!(
            "object {object} differs at offset {offset}: {ours} holds {:#x}, not {:#x}",
            b[offset],
            a[offset]
        );
    }
    Ok(())
}

async fn checksum(ioctx: &IoCtx, object: &str, snap: SnapId) -> rados::Result<Option<Vec<ReadAnswer>>> {
    let sum = ReadSub::Checksum { kind: ChecksumKind::XxHash64, extent: Extent::new(0, 0), chunk: 0 };
    let reply = ioctx.read(ReadOp::new(object).at(snap).with(sum)).await.optional()?;
    Ok(reply.map(|reply| reply.answers))
}
