//! Whether what came back for a sub-operation of a read is an answer to it: pure.
//!
//! The result of the operation as a whole is the OSD's. What librados makes of the answers is another matter: when it
//! cannot decode one (`sparse_read`, `list_snaps`, `list_watchers`, omap and `stat` are decoded), or when the reply has
//! fewer parts than the request, the operation counts as done, the place for the answer stays empty, and only the result
//! of that sub-operation tells. Taken for an answer, such a place says that a range holds zeros or that an object never
//! existed. So no answer is used whose result was not looked at, nor one that is longer than what was asked for.
//!
//! A write needs none of this: it has one result, of all of its parts together.
//!
//! Reference: `Objecter::handle_osd_op_reply` in `src/osdc/Objecter.cc`, `CB_ObjectOperation_*` in `src/osdc/Objecter.h`.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::op::{OmapPage, ReadAnswer, ReadSub};
use crate::types::Extent;

/// `rval` of a sub-operation about which the reply said nothing (as in `shim.cc`).
pub(super) const NO_RESULT: i32 = i32::MIN;

/// Judges the result of a sub-operation of a read that succeeded as a whole.
pub(super) fn check_result(sub: &ReadSub, result: i32) -> Result<()> {
    match result {
        // They ask for nothing: when one does not hold, the whole operation fails.
        _ if matches!(sub, ReadSub::AssertExists | ReadSub::AssertVersion(_)) => Ok(()),
        NO_RESULT => {
            Err(Error::new(libc::EBADMSG, "the OSD's reply has no answer to this part of the operation"))
        }
        errno if errno < 0 => {
            Err(Error::new(errno, "the OSD's reply to this part of the operation could not be decoded"))
        }
        _ => Ok(()),
    }
}

/// Judges what an answer holds by what was asked for.
pub(super) fn check_answer(sub: &ReadSub, answer: &ReadAnswer) -> Result<()> {
    let wrong = match (sub, answer) {
        // A read of no bytes asks for the whole object.
        (ReadSub::Read(asked), ReadAnswer::Data(data)) => {
            (asked.length > 0 && data.len() as u64 > asked.length).then_some("more bytes than were asked for")
        }
        (ReadSub::SparseRead(asked), ReadAnswer::Sparse { extents, data }) => {
            wrong_extents(asked, extents, data)
        }
        (ReadSub::Checksum { extent, chunk, .. }, ReadAnswer::Checksums(sums)) => {
            (sums.len() as u64 > sums_max(extent, *chunk)).then_some("more checksums than were asked for")
        }
        (ReadSub::OmapGet { after, prefix, max }, ReadAnswer::Omap(page)) => wrong_page(page, *max, |key| {
            key.starts_with(prefix.as_str()) && (after.is_empty() || key > after.as_str())
        }),
        (ReadSub::OmapGetByKeys(keys), ReadAnswer::Omap(page)) => {
            wrong_page(page, keys.len() as u64, |key| keys.iter().any(|asked| asked == key))
        }
        _ => None,
    };
    match wrong {
        Some(wrong) => Err(Error::new(libc::EBADMSG, format!("the OSD answered with {wrong}"))),
        None => Ok(()),
    }
}

/// Users slice `data` by `extents`: they must agree.
fn wrong_extents(asked: &Extent, extents: &[Extent], data: &Bytes) -> Option<&'static str> {
    let mut end = asked.offset;
    let mut total = 0u64;
    for extent in extents {
        let extent_end = extent.offset.checked_add(extent.length).filter(|end| *end <= asked.end());
        match extent_end {
            Some(extent_end) if extent.offset >= end => end = extent_end,
            _ => return Some("extents that overlap or were not asked for"),
        }
        total += extent.length;
    }
    (total != data.len() as u64).then_some("extents and data that differ in length")
}

fn sums_max(extent: &Extent, chunk: u32) -> u64 {
    if chunk == 0 { 1 } else { extent.length / u64::from(chunk) }
}

fn wrong_page(page: &OmapPage, max: u64, asked: impl Fn(&str) -> bool) -> Option<&'static str> {
    if page.entries.len() as u64 > max || page.entries.iter().any(|(key, _)| !asked(key)) {
        return Some("omap entries that were not asked for");
    }
    // Whoever reads page after page would never come to an end.
    (page.more && page.entries.is_empty()).then_some("a page of omap entries without an entry")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(sub: &ReadSub, answer: ReadAnswer) -> bool {
        check_answer(sub, &answer).is_ok()
    }

    #[test]
    fn a_result_that_is_missing_or_an_error_is_no_answer() {
        let sparse = ReadSub::SparseRead(Extent::new(0, 4096));
        for sub in [&sparse, &ReadSub::ListSnaps, &ReadSub::Stat, &ReadSub::ListWatchers] {
            assert!(check_result(sub, 0).is_ok());
            assert!(check_result(sub, 7).is_ok());
            assert!(check_result(sub, NO_RESULT).unwrap_err().is(libc::EBADMSG));
            assert!(check_result(sub, -libc::EIO).unwrap_err().is(libc::EIO));
        }
        assert!(check_result(&ReadSub::AssertExists, NO_RESULT).is_ok());
    }

    #[test]
    fn an_answer_holds_no_more_than_was_asked_for() {
        let data = |length| Bytes::from(vec![1; length]);
        let read = |length| ReadSub::Read(Extent::new(8, length));
        assert!(accepted(&read(4), ReadAnswer::Data(data(4))));
        assert!(accepted(&read(4), ReadAnswer::Data(data(0))), "at the end of the object");
        assert!(!accepted(&read(4), ReadAnswer::Data(data(5))));
        assert!(accepted(&read(0), ReadAnswer::Data(data(5))), "the whole object");

        let sums = |count| ReadAnswer::Checksums(vec![0; count]);
        let checksum = |chunk| ReadSub::Checksum {
            kind: crate::op::ChecksumKind::Crc32c,
            extent: Extent::new(0, 8),
            chunk,
        };
        assert!(accepted(&checksum(4), sums(2)) && accepted(&checksum(4), sums(1)));
        assert!(!accepted(&checksum(4), sums(3)));
        assert!(accepted(&checksum(0), sums(1)) && !accepted(&checksum(0), sums(2)));
    }

    #[test]
    fn extents_of_a_sparse_read_lie_within_it_and_have_their_data() {
        let sub = ReadSub::SparseRead(Extent::new(100, 50));
        let answer = |extents: &[(u64, u64)], length| ReadAnswer::Sparse {
            extents: extents.iter().map(|(offset, length)| Extent::new(*offset, *length)).collect(),
            data: vec![1; length].into(),
        };
        assert!(accepted(&sub, answer(&[], 0)));
        assert!(accepted(&sub, answer(&[(100, 10), (110, 5), (140, 10)], 25)));
        for (extents, length) in [
            (&[(100, 10)][..], 9),
            (&[(100, 10)], 11),
            (&[(99, 2)], 2),
            (&[(140, 11)], 11),
            (&[(100, 10), (109, 10)], 20),
            (&[(120, 10), (100, 10)], 20),
            (&[(u64::MAX, 2)], 2),
        ] {
            assert!(!accepted(&sub, answer(extents, length)), "{extents:?}, {length} bytes");
        }
    }

    #[test]
    fn omap_entries_are_those_that_were_asked_for() {
        let page = |keys: &[&str], more| {
            let entries = keys.iter().map(|key| (key.to_string(), Bytes::new())).collect();
            ReadAnswer::Omap(OmapPage { entries, more })
        };
        let sub = ReadSub::OmapGet { after: "k1".into(), prefix: "k".into(), max: 2 };
        assert!(accepted(&sub, page(&["k2", "k3"], true)) && accepted(&sub, page(&[], false)));
        assert!(!accepted(&sub, page(&["k1"], false)), "again");
        assert!(!accepted(&sub, page(&["l"], false)), "of another prefix");
        assert!(!accepted(&sub, page(&["k2", "k3", "k4"], false)), "too many");
        assert!(!accepted(&sub, page(&[], true)), "no end would come");
        let sub = ReadSub::OmapGetByKeys(vec!["a".into(), "b".into()]);
        assert!(accepted(&sub, page(&["b"], false)) && !accepted(&sub, page(&["c"], false)));
    }
}
