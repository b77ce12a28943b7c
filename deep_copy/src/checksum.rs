//! Compares an object of the two images without moving it: by checksums that the OSDs compute.
//!
//! Most objects of most copies are equal: one checksum over each whole object, together with its size, says so. Of those
//! that differ, checksums of chunks tell where. Either takes the OSDs the reading of the whole object, so objects are
//! asked at once for the sums of their chunks as long as the last ones that were compared differed ([`Comparison`]).
//!
//! The checksum is xxHash of 64 bits. Two different chunks pass for equal with a chance of 2^-64, which is less than
//! that of all the checks below us to let a flipped bit through; with the 32 bits of CRC-32C it would be one in four
//! milliards for each.
//!
//! A difference of size is a difference of the bytes behind the shorter end. An object that does not exist differs from
//! one that holds zeros: behind it, a parent may show.
//!
//! What an OSD makes of a range that reaches behind the end of an object (`PrimaryLogPG::do_checksum`): it cuts the range
//! there, refuses what is left with EINVAL unless that is a number of whole chunks, and answers nothing at all when
//! nothing is left. In the last two cases the object is asked again, for its size and one sum.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::try_join;
use rados::error::ResultExt;
use rados::{ChecksumKind, Extent, IoCtx, ReadAnswer, ReadOp, ReadSub, SnapId};

use crate::object_copy::CopyError;
use crate::object_plan::Action;
use crate::ranges::RangeSet;

/// Bytes that one checksum covers when an object is looked at closely: what small writes usually change. The sums of an
/// object are 0.2 % of its bytes.
const CHUNK_BYTES: u64 = 4096;

/// What the comparisons of all objects of a round have in common. Clones share it.
#[derive(Debug, Clone)]
pub struct Comparison {
    chunk_bytes: u64,
    /// The last two objects that were compared differed.
    closely: Arc<AtomicBool>,
}

impl Default for Comparison {
    fn default() -> Self {
        Comparison::by_chunks_of(CHUNK_BYTES)
    }
}

/// One of the two objects to be compared.
#[derive(Debug, Clone, Copy)]
pub struct Compared<'a> {
    /// Where it lies.
    pub data: &'a IoCtx,
    /// Its name.
    pub object: &'a str,
    /// The snapshot at which it is looked at.
    pub snap: SnapId,
}

/// Size and checksums of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Digest {
    size: u64,
    sums: Sums,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Sums {
    /// Of all of its bytes.
    Whole(Vec<u64>),
    /// Of each of its chunks; its size is a number of whole chunks.
    Chunks(Vec<u64>),
}

impl Comparison {
    /// Looks closely by chunks of so many bytes.
    pub(crate) fn by_chunks_of(chunk_bytes: u64) -> Self {
        Comparison { chunk_bytes, closely: Arc::new(AtomicBool::new(true)) }
    }

    /// Compares `remote` with `local`. Answers with the size of the remote one (`None` when it does not exist) and with
    /// what makes the local one equal to it.
    pub async fn compare(
        &self,
        remote: Compared<'_>,
        local: Compared<'_>,
        object_size: u64,
    ) -> Result<(Option<u64>, Action), CopyError> {
        let theirs = async { self.digest(remote, object_size).await.map_err(CopyError::Remote) };
        let ours = async { self.digest(local, object_size).await.map_err(CopyError::Local) };
        let (theirs, ours) = match try_join(theirs, ours).await? {
            (None, None) => return Ok((None, Action::Nothing)),
            (None, Some(_)) => return Ok((None, Action::Remove)),
            (Some(theirs), None) => {
                let size = theirs.size.min(object_size);
                return Ok((Some(size), Action::Replace { size }));
            }
            (Some(theirs), Some(ours)) => (theirs, ours),
        };
        self.closely.store(theirs != ours, Ordering::Relaxed);
        let size = theirs.size.min(object_size);
        if theirs == ours {
            return Ok((Some(size), Action::Nothing));
        }
        let chunks = theirs.size.min(ours.size).min(object_size) / self.chunk_bytes;
        let theirs = async {
            match self.chunk_sums(remote, theirs.sums, chunks).await.optional() {
                Ok(Some(sums)) => Ok(sums),
                Ok(None) => {
                    Err(CopyError::SnapshotGone { object: remote.object.to_string(), snap: remote.snap })
                }
                Err(error) => Err(CopyError::Remote(error)),
            }
        };
        let ours = async { self.chunk_sums(local, ours.sums, chunks).await.map_err(CopyError::Local) };
        let (theirs, ours) = try_join(theirs, ours).await?;
        Ok((Some(size), Action::Update { size, ranges: differing(&theirs, &ours, self.chunk_bytes, size) }))
    }

    /// `None` when the object does not exist.
    async fn digest(&self, of: Compared<'_>, object_size: u64) -> rados::Result<Option<Digest>> {
        let closely = self.closely.load(Ordering::Relaxed) && object_size.is_multiple_of(self.chunk_bytes);
        if closely {
            match digest(of, Extent::new(0, object_size), self.chunk_bytes).await {
                Ok(Some((size, sums))) if sums.len() as u64 == size.min(object_size) / self.chunk_bytes => {
                    return Ok(Some(Digest { size, sums: Sums::Chunks(sums) }));
                }
                Ok(None) => return Ok(None),
                // It is not a number of whole chunks, or empty.
                Ok(Some(_)) => {}
                Err(error) if matches!(error.errno(), libc::EINVAL | libc::EBADMSG) => {}
                Err(error) => return Err(error),
            }
        }
        match digest(of, Extent::new(0, 0), 0).await? {
            // Of nothing there is no sum.
            Some((size, sums)) if sums.len() != usize::from(size > 0) => Err(unexpected(of.object)),
            found => Ok(found.map(|(size, sums)| Digest { size, sums: Sums::Whole(sums) })),
        }
    }

    /// The sums of the first `chunks` chunks, all of which lie within the object; taken from `known` if they are there.
    async fn chunk_sums(&self, of: Compared<'_>, known: Sums, chunks: u64) -> rados::Result<Vec<u64>> {
        if let Sums::Chunks(mut sums) = known {
            sums.truncate(chunks as usize);
            return Ok(sums);
        }
        if chunks == 0 {
            return Ok(Vec::new());
        }
        let extent = Extent::new(0, chunks * self.chunk_bytes);
        match of.data.read_one(of.object, of.snap, checksum(extent, self.chunk_bytes)).await? {
            ReadAnswer::Checksums(sums) if sums.len() as u64 == chunks => Ok(sums),
            _ => Err(unexpected(of.object)),
        }
    }
}

fn checksum(extent: Extent, chunk_bytes: u64) -> ReadSub {
    ReadSub::Checksum { kind: ChecksumKind::XxHash64, extent, chunk: chunk_bytes as u32 }
}

/// Size and sums of an object; `None` when it does not exist.
async fn digest(
    of: Compared<'_>,
    extent: Extent,
    chunk_bytes: u64,
) -> rados::Result<Option<(u64, Vec<u64>)>> {
    let op = ReadOp::new(of.object).at(of.snap).with(ReadSub::Stat).with(checksum(extent, chunk_bytes));
    let Some(reply) = of.data.read(op).await.optional()? else {
        return Ok(None);
    };
    match reply.answers.as_slice() {
        [ReadAnswer::Stat { size, .. }, ReadAnswer::Checksums(sums)] => Ok(Some((*size, sums.clone()))),
        _ => Err(unexpected(of.object)),
    }
}

fn unexpected(object: &str) -> rados::Error {
    rados::Error::new(libc::EBADMSG, format!("cannot use the checksums of object '{object}'"))
}

/// Chunks whose sums differ, and all bytes behind the last of them.
fn differing(theirs: &[u64], ours: &[u64], chunk_bytes: u64, size: u64) -> RangeSet {
    let chunks = theirs.len().min(ours.len());
    let pairs = theirs.iter().zip(ours).enumerate();
    let mut extents: Vec<Extent> = pairs
        .filter(|(_, (a, b))| a != b)
        .map(|(chunk, _)| Extent::new(chunk as u64 * chunk_bytes, chunk_bytes))
        .collect();
    let rest = chunks as u64 * chunk_bytes;
    extents.push(Extent::new(rest, size.saturating_sub(rest)));
    RangeSet::from_extents(&extents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_copied_and_what_lies_behind() {
        let chunk = 4096;
        let found = differing(&[1, 2, 3, 4], &[1, 9, 3, 4], chunk, 4 * chunk + 100);
        let expected = [Extent::new(chunk, chunk), Extent::new(4 * chunk, 100)];
        assert_eq!(found, RangeSet::from_extents(&expected));
        assert!(differing(&[1], &[1], chunk, chunk).is_empty());
        assert_eq!(differing(&[], &[], chunk, 7), RangeSet::below(7));
    }
}
