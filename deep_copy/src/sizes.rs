//! Sizes of snapshots that are being filled.
//!
//! The class method that adds a snapshot records the size that the head has at that moment. A round must add its
//! snapshots before it resizes the head (see `begin.rs`), so it corrects what was recorded: in the same atomic write
//! that resizes the head, the stored records of its snapshots get their own sizes.
//!
//! A record is the value of the key `snapshot_%016x` in the omap of the image's header (`cls_rbd_snap`):
//!
//! | field | bytes |
//! |---|---|
//! | version, oldest compatible version, length of what follows | u8 8, u8 8, u32 |
//! | id | u64 |
//! | name | string |
//! | image size | u64 |
//! | protection status | u8 |
//! | flags | u64 |
//! | namespace | struct |
//! | time | u32 seconds, u32 nanoseconds |
//! | number of v1 clones | u32 |
//! | overlap with the parent | u8 1 and u64, or u8 0 |
//!
//! Reference: `src/cls/rbd/cls_rbd.h`. A record of another version is refused, not guessed at.

use bytes::Bytes;
use rados::encoding::{Decode, DecodeError, Decoder};
use rados::error::ResultExt;
use rados::{Error, ReadAnswer, ReadOp, ReadSub, Result, SnapId, WriteSub};
use rbd::SnapshotNamespace;
use rbd::header_update::HeaderUpdate;
use rbd::image::{Image, OpenImage};
use rbd::layout::header_object;

use crate::local_maps;

/// The version of the record that is understood.
const RECORD_VERSION: u8 = 8;
/// How often the records are read again because somebody changed the header meanwhile.
const ATTEMPTS_MAX: u32 = 8;

/// What a snapshot's record is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotSize {
    /// The snapshot.
    pub snap: SnapId,
    /// Size of the image then, in bytes.
    pub image_size: u64,
    /// Bytes that may come from the parent; `None` when the image was no clone then.
    pub parent_overlap: Option<u64>,
}

/// Gives the head, and the snapshots that are being filled, the sizes that they have remotely. `pairs` are remote and
/// local snapshots, ascending; the head gets the size of the last one. Repeatable. On success the header of `local` is
/// fresh.
pub async fn resize(local: &mut OpenImage, remote: &OpenImage, pairs: &[(SnapId, SnapId)]) -> Result<()> {
    let end = pairs.last().map(|(remote, _)| *remote).unwrap_or(SnapId::HEAD);
    let Some(head_size) = remote.header.size_at(end) else {
        return Err(Error::new(
            libc::ENOENT,
            format!("cannot copy snapshot {end}: the remote image lost it"),
        ));
    };
    let sizes = pairs.iter().filter_map(|(remote_snap, local_snap)| {
        let remote_snapshot = remote.header.snapshots.get(remote_snap)?;
        let clone = local.header.parent_spec.is_some();
        Some(SnapshotSize {
            snap: *local_snap,
            image_size: remote_snapshot.image_size,
            parent_overlap: remote_snapshot.parent.as_ref().filter(|_| clone).map(|p| p.overlap),
        })
    });
    let sizes: Vec<_> = sizes.collect();
    let differs = |s: &SnapshotSize| {
        let stored = &local.header.snapshots[&s.snap];
        stored.image_size != s.image_size || stored.parent.as_ref().map(|p| p.overlap) != s.parent_overlap
    };
    if local.header.size == head_size && !sizes.iter().any(differs) {
        return Ok(());
    }
    let largest = sizes.iter().map(|s| s.image_size).chain([head_size]).max().unwrap_or(0);
    local_maps::grow_head_map(local, local.header.layout.object_count(largest)).await?;
    set_sizes(&local.image, head_size, &sizes).await?;
    local.refresh().await
}

/// Resizes the head of `image` to `head_size` bytes and corrects the records of `snapshots`, in one atomic write, made only
/// on the header whose records were read. Repeatable. EAGAIN when others keep changing the header.
pub async fn set_sizes(image: &Image, head_size: u64, snapshots: &[SnapshotSize]) -> Result<()> {
    let what = || format!("cannot correct the sizes of snapshots of image {}", image.id());
    for _ in 0..ATTEMPTS_MAX {
        let (entries, version) = corrected_records(image, snapshots).await.context(what())?;
        let op = HeaderUpdate::of(image.id()).set_size(head_size).into_op();
        let op = op.with(WriteSub::AssertVersion(version)).with(WriteSub::OmapSet(entries));
        match image.header_ioctx().write(op).await {
            Ok(_) => return Ok(()),
            // What the assertion fails with: somebody changed the header in between.
            Err(error) if error.is(libc::ERANGE) || error.is(libc::EOVERFLOW) => {}
            Err(error) => return Err(error.context(what())),
        }
    }
    Err(Error::new(libc::EAGAIN, format!("{}: others keep changing its header", what())))
}

/// The records of `snapshots`, corrected, and the version of the header that they were read from.
async fn corrected_records(image: &Image, snapshots: &[SnapshotSize]) -> Result<(Vec<(String, Bytes)>, u64)> {
    let keys: Vec<_> = snapshots.iter().map(|s| format!("snapshot_{:016x}", s.snap.0)).collect();
    let op = ReadOp::new(header_object(image.id())).with(ReadSub::OmapGetByKeys(keys.clone()));
    let reply = image.header_ioctx().read(op).await?;
    let [ReadAnswer::Omap(page)] = reply.answers.as_slice() else {
        return Err(Error::new(libc::EBADMSG, "the answer is not a list of records".to_string()));
    };
    let mut entries = Vec::new();
    for (key, size) in keys.into_iter().zip(snapshots) {
        let stored = page.entries.iter().find(|(k, _)| *k == key).map(|(_, value)| value);
        let stored =
            stored.ok_or_else(|| Error::new(libc::ENOENT, format!("snapshot {} is gone", size.snap)))?;
        entries.push((key, corrected(stored, size).map_err(Error::from)?));
    }
    Ok((entries, reply.version))
}

/// The record `stored` with another size and overlap.
fn corrected(stored: &[u8], size: &SnapshotSize) -> std::result::Result<Bytes, DecodeError> {
    const HEAD_BYTES: usize = 6;
    let mut d = Decoder::new(stored, "snapshot record");
    let (version, compat) = (d.u8()?, d.u8()?);
    if version != RECORD_VERSION || compat != RECORD_VERSION {
        return Err(
            d.invalid(format!("it has version {version} (compatible with {compat}), not {RECORD_VERSION}"))
        );
    }
    let length = d.u32()? as usize;
    let mut d = Decoder::new(d.raw(length)?, "snapshot record");
    d.u64()?;
    d.string()?;
    let size_at = length - d.left();
    d.u64()?;
    d.u8()?;
    d.u64()?;
    SnapshotNamespace::decode(&mut d)?;
    d.raw(8 + 4)?;
    let overlap_at = length - d.left();
    let fields = &stored[HEAD_BYTES..HEAD_BYTES + length];

    let mut record = Vec::with_capacity(stored.len() + 8);
    record.extend_from_slice(&fields[..size_at]);
    record.extend_from_slice(&size.image_size.to_le_bytes());
    record.extend_from_slice(&fields[size_at + 8..overlap_at]);
    match size.parent_overlap {
        Some(overlap) => {
            record.push(1);
            record.extend_from_slice(&overlap.to_le_bytes());
        }
        None => record.push(0),
    }
    let mut bytes = vec![version, compat];
    bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&record);
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rados::encoding::{Encode, Encoder};

    fn record(version: u8, size: u64, overlap: Option<u64>) -> Bytes {
        let mut e = Encoder::new();
        e.versioned(version, version, |e| {
            e.u64(7).string("snap").u64(size).u8(2).u64(1);
            SnapshotNamespace::User.encode(e);
            e.u32(1600).u32(5).u32(3);
            match overlap {
                Some(overlap) => e.u8(1).u64(overlap),
                None => e.u8(0),
            };
        });
        e.finish()
    }

    #[test]
    fn only_size_and_overlap_change() {
        for (before, after) in [(None, None), (None, Some(5)), (Some(9), None), (Some(9), Some(5))] {
            let size = SnapshotSize { snap: SnapId(7), image_size: 4096, parent_overlap: after };
            assert_eq!(corrected(&record(8, 1 << 30, before), &size).unwrap(), record(8, 4096, after));
        }
    }

    #[test]
    fn another_version_or_a_truncated_record_is_refused() {
        let size = SnapshotSize { snap: SnapId(7), image_size: 4096, parent_overlap: None };
        assert!(corrected(&record(9, 1 << 30, None), &size).is_err());
        let whole = record(8, 1 << 30, Some(3));
        for end in 0..whole.len() {
            assert!(corrected(&whole[..end], &size).is_err(), "{end} bytes");
        }
    }
}
