//! Compares one object of two images.
//!
//! First size and checksum of the whole object on either side: most objects are equal, and one request to each side says
//! so. Otherwise what a reader would see is compared: the object's range of the image is resolved to pieces on both
//! sides, cut where either side's pieces end, and the checksums of the parts are compared; those that differ are cut into
//! chunks and then into blocks, to tell where. The checksum of zeros is computed here.

use std::num::NonZeroU64;

use rados::{ChecksumKind, Extent, IoCtx, ReadAnswer, ReadOp, ReadSub, SnapId};
use rbd::ObjectNumber;
use twox_hash::XxHash64;

use super::VerifyError;
use super::pace::Pace;
use super::view::{Digest, Piece, Source, View};

/// Bytes per checksum at the first and the second closer look.
const CUTS: [u64; 2] = [64 << 10, 4 << 10];
/// Checksums asked for in one operation.
const SUMS_PER_READ: usize = 128;
/// The seed of all checksums.
const SEED: u64 = u64::MAX;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What comparing an object found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Bytes that the OSDs of one side have read.
    pub bytes: u64,
    /// Ranges of the image that differ, ascending.
    pub ranges: Vec<Extent>,
    /// An object went away while it was looked at: its snapshot must be gone, and nothing is known.
    pub unclear: bool,
    /// Of which versions of the two objects this was found.
    pub of: Option<Versions>,
    /// These versions are certain even if a snapshot went away meanwhile: they came with the checksums.
    pub certain: bool,
    /// The versions were those that were known to be equal, and no data was read.
    pub known: bool,
}

/// The versions of an object of the primary and of its counterpart; `None` for one that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// At the primary.
    pub primary: Option<NonZeroU64>,
    /// At the copy.
    pub copy: Option<NonZeroU64>,
}

impl Versions {
    fn new(primary: Option<u64>, copy: Option<u64>) -> Versions {
        Versions { primary: primary.and_then(NonZeroU64::new), copy: copy.and_then(NonZeroU64::new) }
    }
}

/// Compares the range that `object` has in the primary's layout, unless the objects have the versions that are known to
/// be `equal`.
pub async fn object(
    primary: &View,
    copy: &View,
    object: ObjectNumber,
    equal: Option<Versions>,
    pace: &Pace,
) -> Result<Outcome, VerifyError> {
    if equal.is_some() && equal == Some(versions(primary, copy, object).await?) {
        return Ok(Outcome { of: equal, certain: true, known: true, ..Outcome::default() });
    }
    let layout = primary.image().layout();
    let used = layout.used_bytes(object, primary.size().max(copy.size()));
    let _turn = pace.turn(used).await;
    let ranges = layout.image_extents(object, Extent::new(0, used));
    let (mut bytes, mut of) = (0, None);
    if layout == copy.image().layout() {
        let theirs = async { primary.digest(object).await.map_err(VerifyError::Primary) };
        let ours = async { copy.digest(object).await.map_err(VerifyError::Copy) };
        let (theirs, ours) = futures::try_join!(theirs, ours)?;
        let version = |digest: &Option<Digest>| digest.as_ref().map(|digest| digest.version);
        of = Some(Versions::new(version(&theirs), version(&ours)));
        match (theirs, ours) {
            (None, None) if primary.stands_alone(&ranges) && copy.stands_alone(&ranges) => {
                return Ok(Outcome { of, certain: true, ..Outcome::default() });
            }
            (Some(theirs), Some(ours)) => {
                bytes = theirs.size.max(ours.size);
                // Bytes behind the end of the image are the same then, too.
                if theirs.is_of_same_data_as(&ours) {
                    return Ok(Outcome { bytes, of, certain: true, ..Outcome::default() });
                }
            }
            _ => {}
        }
    }
    let outcome = as_read(primary, copy, &ranges).await?;
    Ok(Outcome { bytes: outcome.bytes + bytes, of, ..outcome })
}

async fn versions(primary: &View, copy: &View, object: ObjectNumber) -> Result<Versions, VerifyError> {
    let theirs = async { primary.version(object).await.map_err(VerifyError::Primary) };
    let ours = async { copy.version(object).await.map_err(VerifyError::Copy) };
    let (theirs, ours) = futures::try_join!(theirs, ours)?;
    Ok(Versions::new(theirs, ours))
}

/// Compares ranges of the image as a reader sees them.
async fn as_read(primary: &View, copy: &View, ranges: &[Extent]) -> Result<Outcome, VerifyError> {
    let theirs = async { primary.pieces(ranges).await.map_err(VerifyError::Primary) };
    let ours = async { copy.pieces(ranges).await.map_err(VerifyError::Copy) };
    let (theirs, ours) = futures::try_join!(theirs, ours)?;
    let mut parts = aligned(&theirs, &ours);
    let mut outcome = Outcome::default();
    for cut in [None, Some(CUTS[0]), Some(CUTS[1])] {
        if let Some(bytes) = cut {
            parts = parts.into_iter().flat_map(|part| part.cut(bytes)).collect();
        }
        let Some((differing, bytes)) = differing(parts).await? else {
            return Ok(Outcome { unclear: true, ..outcome });
        };
        outcome.bytes += bytes;
        parts = differing;
        if parts.is_empty() {
            return Ok(outcome);
        }
    }
    outcome.ranges = in_image(ranges, parts.iter().map(|part| Extent::new(part.start, part.length)));
    Ok(outcome)
}

/// A run of bytes that comes from one place on either side.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    start: u64,
    length: u64,
    primary: Source,
    copy: Source,
}

impl Part {
    /// The part cut at multiples of `bytes`.
    fn cut(self, bytes: u64) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = 0;
        while at < self.length {
            let length = (bytes - (self.start + at) % bytes).min(self.length - at);
            parts.push(Part {
                start: self.start + at,
                length,
                primary: moved(&self.primary, at),
                copy: moved(&self.copy, at),
            });
            at += length;
        }
        parts
    }
}

fn moved(source: &Source, by: u64) -> Source {
    match source.clone() {
        Source::Zeros => Source::Zeros,
        Source::Object { ioctx, name, snap, offset } => {
            Source::Object { ioctx, name, snap, offset: offset + by }
        }
    }
}

/// The parts that begin or end where pieces of either side do. Both cover the same range.
fn aligned(primary: &[Piece], copy: &[Piece]) -> Vec<Part> {
    let mut parts = Vec::new();
    let (mut theirs, mut ours) = (primary.iter().peekable(), copy.iter().peekable());
    let mut at = 0;
    while let (Some(a), Some(b)) = (theirs.peek(), ours.peek()) {
        let (a_end, b_end) = (a.start + a.length, b.start + b.length);
        let end = a_end.min(b_end);
        let (primary, copy) = (moved(&a.source, at - a.start), moved(&b.source, at - b.start));
        parts.push(Part { start: at, length: end - at, primary, copy });
        at = end;
        theirs.next_if(|_| a_end == end);
        ours.next_if(|_| b_end == end);
    }
    parts
}

/// The parts whose checksums differ, and how many bytes one side has read; `None` when an object was gone.
async fn differing(parts: Vec<Part>) -> Result<Option<(Vec<Part>, u64)>, VerifyError> {
    let extents: Vec<u64> = parts.iter().map(|part| part.length).collect();
    let (theirs, ours): (Vec<&Source>, Vec<&Source>) =
        parts.iter().map(|part| (&part.primary, &part.copy)).unzip();
    // What is zeros on both sides needs no look.
    let empty: Vec<bool> =
        theirs.iter().zip(&ours).map(|pair| matches!(pair, (Source::Zeros, Source::Zeros))).collect();
    let theirs = async { sums(&theirs, &extents, &empty).await.map_err(VerifyError::Primary) };
    let ours = async { sums(&ours, &extents, &empty).await.map_err(VerifyError::Copy) };
    let (Some(theirs), Some(ours)) = futures::try_join!(theirs, ours)? else { return Ok(None) };
    let bytes = extents.iter().zip(&empty).filter(|(_, empty)| !**empty).map(|(length, _)| length).sum();
    let equal: Vec<bool> = theirs.iter().zip(&ours).map(|(a, b)| a == b).collect();
    let differing = parts.into_iter().zip(equal).filter(|(_, equal)| !equal).map(|(part, _)| part).collect();
    Ok(Some((differing, bytes)))
}

/// The checksum of each source over its length; 0 where it is not to be looked at. `None` when an object was gone.
async fn sums(sources: &[&Source], lengths: &[u64], skip: &[bool]) -> rados::Result<Option<Vec<u64>>> {
    let mut all = vec![0; sources.len()];
    let mut at = 0;
    while at < sources.len() {
        let Source::Object { ioctx, name, snap, .. } = sources[at] else {
            if !skip[at] {
                all[at] = sum_of_zeros(lengths[at]);
            }
            at += 1;
            continue;
        };
        let mut extents = Vec::new();
        while let Some(Source::Object { name: next, snap: next_snap, offset, .. }) =
            sources.get(at + extents.len())
            && next == name
            && next_snap == snap
            && extents.len() < SUMS_PER_READ
        {
            extents.push(Extent::new(*offset, lengths[at + extents.len()]));
        }
        match sums_in_object(ioctx, name, *snap, &extents).await {
            Ok(found) => all[at..at + extents.len()].copy_from_slice(&found),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        }
        at += extents.len();
    }
    Ok(Some(all))
}

async fn sums_in_object(
    ioctx: &IoCtx,
    name: &str,
    snap: SnapId,
    extents: &[Extent],
) -> rados::Result<Vec<u64>> {
    let checksum =
        |extent: &Extent| ReadSub::Checksum { kind: ChecksumKind::XxHash64, extent: *extent, chunk: 0 };
    let op = extents.iter().fold(ReadOp::new(name).at(snap), |op, extent| op.with(checksum(extent)));
    let reply = ioctx.read(op).await?;
    let sum = |answer: &ReadAnswer| match answer {
        ReadAnswer::Checksums(sums) => sums.first().copied().filter(|_| sums.len() == 1),
        _ => None,
    };
    let found: Option<Vec<u64>> = reply.answers.iter().map(sum).collect();
    found.filter(|found| found.len() == extents.len()).ok_or_else(|| {
        rados::Error::new(libc::EBADMSG, format!("cannot use the checksums of object '{name}'"))
    })
}

fn sum_of_zeros(mut length: u64) -> u64 {
    use std::hash::Hasher;
    let mut hasher = XxHash64::with_seed(SEED);
    while length > 0 {
        let chunk = length.min(ZEROS.len() as u64);
        hasher.write(&ZEROS[..chunk as usize]);
        length -= chunk;
    }
    hasher.finish()
}

/// Maps runs of bytes that are counted along `ranges` to ranges of the image, ascending, neighbours joined.
fn in_image(ranges: &[Extent], runs: impl Iterator<Item = Extent>) -> Vec<Extent> {
    let mut found: Vec<Extent> = Vec::new();
    for run in runs {
        let mut base = 0;
        for range in ranges {
            let (from, to) = (run.offset.max(base), run.end().min(base + range.length));
            if from < to {
                found.push(Extent::new(range.offset + from - base, to - from));
            }
            base += range.length;
        }
    }
    found.sort_unstable();
    let mut joined: Vec<Extent> = Vec::new();
    for extent in found {
        match joined.last_mut() {
            Some(last) if last.end() == extent.offset => last.length += extent.length,
            _ => joined.push(extent),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn zeros(start: u64, length: u64) -> Piece {
        Piece { start, length, source: Source::Zeros }
    }

    #[test]
    fn parts_end_where_pieces_of_either_side_end() {
        let parts = aligned(&[zeros(0, 10), zeros(10, 20)], &[zeros(0, 15), zeros(15, 15)]);
        let spans: Vec<_> = parts.iter().map(|part| (part.start, part.length)).collect();
        assert_eq!(spans, [(0, 10), (10, 5), (15, 15)]);
    }

    #[test]
    fn parts_are_cut_at_multiples() {
        let part = Part { start: 5, length: 20, primary: Source::Zeros, copy: Source::Zeros };
        let spans: Vec<_> = part.cut(8).iter().map(|part| (part.start, part.length)).collect();
        assert_eq!(spans, [(5, 3), (8, 8), (16, 8), (24, 1)]);
    }

    #[test]
    fn differences_are_told_in_the_image() {
        let ranges = [Extent::new(100, 10), Extent::new(300, 10)];
        let runs = [Extent::new(5, 10), Extent::new(0, 5)];
        assert_eq!(in_image(&ranges, runs.into_iter()), [Extent::new(100, 10), Extent::new(300, 5)]);
    }

    proptest! {
        #[test]
        fn parts_cover_all_once(cuts_a in prop::collection::btree_set(1u64..100, 0..6),
                                cuts_b in prop::collection::btree_set(1u64..100, 0..6), cut in 1u64..30) {
            let pieces = |cuts: &std::collections::BTreeSet<u64>| {
                let ends: Vec<u64> = cuts.iter().copied().chain([100]).collect();
                let starts = std::iter::once(0).chain(ends.iter().copied());
                starts.zip(&ends).map(|(start, end)| zeros(start, end - start)).collect::<Vec<_>>()
            };
            let parts: Vec<Part> =
                aligned(&pieces(&cuts_a), &pieces(&cuts_b)).into_iter().flat_map(|part| part.cut(cut)).collect();
            let mut at = 0;
            for part in &parts {
                prop_assert_eq!(part.start, at);
                prop_assert!(part.length > 0 && part.start / cut == (part.start + part.length - 1) / cut);
                at += part.length;
            }
            prop_assert_eq!(at, 100);
        }
    }
}
