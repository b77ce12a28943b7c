//! Compares an object of the two images without moving it: by checksums that the OSDs compute.
//!
//! First one checksum over each whole object, together with its size: most objects are equal, and one request to each
//! side says so. Of those that differ, checksums of chunks tell where.
//!
//! The checksum is xxHash of 64 bits. Two different chunks pass for equal with a chance of 2^-64, which is less than
//! that of all the checks below us to let a flipped bit through; with the 32 bits of CRC-32C it would be one in four
//! milliards for each.
//!
//! A difference of size is a difference of the bytes behind the shorter end. An object that does not exist differs from
//! one that holds zeros: behind it, a parent may show.

use futures::future::try_join;
use rados::error::ResultExt;
use rados::{ChecksumKind, Extent, IoCtx, ReadAnswer, ReadOp, ReadSub, SnapId};

use crate::object_copy::CopyError;
use crate::object_plan::Action;
use crate::ranges::RangeSet;

/// Bytes that one checksum covers when an object is looked at closely.
pub const CHUNK_BYTES: u64 = 64 << 10;

/// Size and checksum of a whole object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Digest {
    size: u64,
    sums: Vec<u64>,
}

/// Compares `remote_object` at `snap` with the head of `local_object`. Answers with the size of the remote one (`None`
/// when it does not exist) and with what makes the local one equal to it.
pub async fn compare(
    remote: &IoCtx,
    remote_object: &str,
    snap: SnapId,
    local: &IoCtx,
    local_object: &str,
    object_size: u64,
) -> Result<(Option<u64>, Action), CopyError> {
    let theirs = async { digest(remote, remote_object, snap).await.map_err(CopyError::Remote) };
    let ours = async { digest(local, local_object, SnapId::HEAD).await.map_err(CopyError::Local) };
    let (theirs, ours) = match try_join(theirs, ours).await? {
        (None, None) => return Ok((None, Action::Nothing)),
        (None, Some(_)) => return Ok((None, Action::Remove)),
        (Some(theirs), None) => {
            let size = theirs.size.min(object_size);
            return Ok((Some(size), Action::Replace { size }));
        }
        (Some(theirs), Some(ours)) if theirs == ours => {
            return Ok((Some(theirs.size.min(object_size)), Action::Nothing));
        }
        (Some(theirs), Some(ours)) => (theirs.size.min(object_size), ours.size.min(object_size)),
    };
    let chunks = theirs.min(ours) / CHUNK_BYTES;
    let theirs_sums = async {
        let sums = chunk_sums(remote, remote_object, snap, chunks).await;
        match sums.optional() {
            Ok(Some(sums)) => Ok(sums),
            Ok(None) => Err(CopyError::SnapshotGone { object: remote_object.to_string(), snap }),
            Err(error) => Err(CopyError::Remote(error)),
        }
    };
    let ours_sums =
        async { chunk_sums(local, local_object, SnapId::HEAD, chunks).await.map_err(CopyError::Local) };
    let (a, b) = try_join(theirs_sums, ours_sums).await?;
    Ok((Some(theirs), Action::Update { size: theirs, ranges: differing(&a, &b, theirs) }))
}

/// Chunks whose sums differ, and all bytes behind the last of them.
fn differing(theirs: &[u64], ours: &[u64], size: u64) -> RangeSet {
    let chunks = theirs.len().min(ours.len());
    let pairs = theirs.iter().zip(ours).enumerate();
    let mut extents: Vec<Extent> = pairs
        .filter(|(_, (a, b))| a != b)
        .map(|(chunk, _)| Extent::new(chunk as u64 * CHUNK_BYTES, CHUNK_BYTES))
        .collect();
    let rest = chunks as u64 * CHUNK_BYTES;
    extents.push(Extent::new(rest, size.saturating_sub(rest)));
    RangeSet::from_extents(&extents)
}

async fn digest(ioctx: &IoCtx, object: &str, snap: SnapId) -> rados::Result<Option<Digest>> {
    let whole = ReadSub::Checksum { kind: ChecksumKind::XxHash64, extent: Extent::new(0, 0), chunk: 0 };
    let op = ReadOp::new(object).at(snap).with(ReadSub::Stat).with(whole);
    let Some(reply) = ioctx.read(op).await.optional()? else {
        return Ok(None);
    };
    match reply.answers.as_slice() {
        [ReadAnswer::Stat { size, .. }, ReadAnswer::Checksums(sums)] => {
            Ok(Some(Digest { size: *size, sums: sums.clone() }))
        }
        _ => Err(unexpected(object)),
    }
}

async fn chunk_sums(ioctx: &IoCtx, object: &str, snap: SnapId, chunks: u64) -> rados::Result<Vec<u64>> {
    if chunks == 0 {
        return Ok(Vec::new());
    }
    let extent = Extent::new(0, chunks * CHUNK_BYTES);
    let sub = ReadSub::Checksum { kind: ChecksumKind::XxHash64, extent, chunk: CHUNK_BYTES as u32 };
    match ioctx.read_one(object, snap, sub).await? {
        ReadAnswer::Checksums(sums) if sums.len() as u64 == chunks => Ok(sums),
        _ => Err(unexpected(object)),
    }
}

fn unexpected(object: &str) -> rados::Error {
    rados::Error::new(libc::EBADMSG, format!("cannot use the checksums of object '{object}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_copied_and_what_lies_behind() {
        let chunk = CHUNK_BYTES;
        let found = differing(&[1, 2, 3, 4], &[1, 9, 3, 4], 4 * chunk + 100);
        let expected = [Extent::new(chunk, chunk), Extent::new(4 * chunk, 100)];
        assert_eq!(found, RangeSet::from_extents(&expected));
        assert!(differing(&[1], &[1], chunk).is_empty());
        assert_eq!(differing(&[], &[], 7), RangeSet::below(7));
    }
}
