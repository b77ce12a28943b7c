//! What is known of the primary from before a mirror-snapshot that has been copied: what it takes to tell later whether the
//! primary may have been rolled back since (`deep_copy::map_trust`).
//!
//! The extended attribute `rbd_mirror.history` of the copy's header, written in the one write that completes the local
//! mirror-snapshot that it names, and worth nothing beside any other one. Little endian:
//!
//! | field | bytes |
//! |---|---|
//! | version, oldest compatible version, length of what follows | u8 1, u8 1, u32 |
//! | id of the local mirror-snapshot | u64 |
//! | no rollback of the primary was under way when its snapshot was made | u8 |
//! | number of snapshots that the primary had before it made that one; 0 when unknown | u32 |
//! | for each: its id in the remote cluster, whether an image can be rolled back to it | u64, u8 |

use deep_copy::map_trust::SeenSnapshots;
use rados::encoding::{DecodeError, Decoder, Encoder};
use rados::{Error, ReadAnswer, ReadSub, Result, SnapId, WriteSub};
use rbd::Image;
use rbd::layout::header_object;

const HISTORY_XATTR: &str = "rbd_mirror.history";
/// Snapshots that are noted at most; of an image that has more, none.
const SNAPSHOTS_MAX: usize = 4096;

/// What is noted beside a local mirror-snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotedHistory {
    /// The local mirror-snapshot.
    pub snap: SnapId,
    /// No rollback of the primary was under way when it made the snapshot that this one is a copy of.
    pub settled: bool,
    /// The snapshots that the primary had at some moment before; empty when unknown.
    pub before: SeenSnapshots,
}

/// Reads what is noted beside the local mirror-snapshot `snap`; `None` when nothing is.
pub async fn read_history(image: &Image, snap: SnapId) -> Result<Option<NotedHistory>> {
    let object = header_object(image.id());
    let sub = ReadSub::GetXattr(HISTORY_XATTR.into());
    let what = || format!("cannot read what is noted of the primary beside image {}", image.id());
    let noted = match image.header_ioctx().read_one(&object, SnapId::HEAD, sub).await {
        Ok(ReadAnswer::Data(bytes)) => decode(&bytes).map_err(Error::from)?,
        Ok(_) => return Err(Error::new(libc::EBADMSG, what())),
        Err(error) if error.is(libc::ENODATA) => return Ok(None),
        Err(error) => return Err(error.context(what())),
    };
    Ok(Some(noted).filter(|noted| noted.snap == snap))
}

fn decode(bytes: &[u8]) -> std::result::Result<NotedHistory, DecodeError> {
    let mut d = Decoder::new(bytes, "mirror history");
    d.versioned("mirror history", 1, |d, _| {
        let (snap, settled, count) = (SnapId(d.u64()?), d.bool()?, d.u32()? as usize);
        if count > SNAPSHOTS_MAX {
            return Err(d.invalid(format!("it lists {count} snapshots, more than {SNAPSHOTS_MAX}")));
        }
        let mut before = SeenSnapshots::new();
        for _ in 0..count {
            before.insert(SnapId(d.u64()?), d.bool()?);
        }
        Ok(NotedHistory { snap, settled, before })
    })
}

/// Notes `history` as part of a change of the copy's header.
pub(crate) fn write_history(history: &NotedHistory) -> WriteSub {
    let before = Some(&history.before).filter(|before| before.len() <= SNAPSHOTS_MAX);
    let mut e = Encoder::new();
    e.versioned(1, 1, |e| {
        e.u64(history.snap.0).bool(history.settled).u32(before.map_or(0, |before| before.len() as u32));
        for (snap, may_be_source) in before.into_iter().flatten() {
            e.u64(snap.0).bool(*may_be_source);
        }
    });
    WriteSub::SetXattr(HISTORY_XATTR.into(), e.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(history: &NotedHistory) -> bytes::Bytes {
        match write_history(history) {
            WriteSub::SetXattr(_, bytes) => bytes,
            other => panic!("not an attribute: {other:?}"),
        }
    }

    #[test]
    fn what_is_noted_is_read_again_and_nothing_shorter() {
        let before = SeenSnapshots::from([(SnapId(3), true), (SnapId(0x0405), false)]);
        let history = NotedHistory { snap: SnapId(7), settled: true, before };
        let bytes = written(&history);
        let expected: &[u8] = &[
            1, 1, 31, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 5, 4, 0, 0,
            0, 0, 0, 0, 0,
        ];
        assert_eq!(&bytes[..], expected);
        assert_eq!(decode(&bytes), Ok(history));
        assert!((0..bytes.len()).all(|length| decode(&bytes[..length]).is_err()));
    }

    #[test]
    fn of_too_many_snapshots_none_is_noted() {
        let before = (0..=SNAPSHOTS_MAX as u64).map(|id| (SnapId(id), true)).collect();
        let bytes = written(&NotedHistory { snap: SnapId(7), settled: false, before });
        assert_eq!(decode(&bytes).map(|noted| noted.before.len()), Ok(0));
        let mut hostile = bytes.to_vec();
        hostile[15..19].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(decode(&hostile).is_err());
    }
}
