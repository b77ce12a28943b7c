//! Which moment of the primary a copy holds: told without asking the primary, which may be lost.
//!
//! The extended attribute `rbd_mirror.point` of the copy's header: u64 id of the newest local mirror-snapshot that is
//! complete, u32 seconds and u32 nanoseconds of when its primary snapshot was made. It is written in the one write that
//! completes that snapshot, so that it never speaks of one that is half filled. Of snapshots that another daemon
//! completed it says nothing.

use rados::encoding::{DecodeError, Decoder, Encoder};
use rados::{Error, ReadAnswer, ReadSub, Result, SnapId, WriteSub};
use rbd::layout::header_object;
use rbd::{Image, Timestamp};

const POINT_XATTR: &str = "rbd_mirror.point";

/// A copied mirror-snapshot and the moment that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The local mirror-snapshot.
    pub snap: SnapId,
    /// When the primary's was made.
    pub primary_timestamp: Timestamp,
}

/// Reads the point of a copy; `None` when it has none.
pub async fn read_point(image: &Image) -> Result<Option<Point>> {
    let object = header_object(image.id());
    let sub = ReadSub::GetXattr(POINT_XATTR.into());
    let what = || format!("cannot read which moment of its primary image {} holds", image.id());
    match image.header_ioctx().read_one(&object, SnapId::HEAD, sub).await {
        Ok(ReadAnswer::Data(bytes)) => Ok(Some(decode(&bytes).map_err(Error::from)?)),
        Ok(_) => Err(Error::new(libc::EBADMSG, what())),
        Err(error) if error.is(libc::ENODATA) => Ok(None),
        Err(error) => Err(error.context(what())),
    }
}

fn decode(bytes: &[u8]) -> std::result::Result<Point, DecodeError> {
    let mut d = Decoder::new(bytes, "mirror point");
    let snap = SnapId(d.u64()?);
    Ok(Point { snap, primary_timestamp: Timestamp { seconds: d.u32()?, nanoseconds: d.u32()? } })
}

/// Writes the point of a copy as part of a change of its header.
pub(crate) fn write_point(point: Point) -> WriteSub {
    let mut e = Encoder::new();
    e.u64(point.snap.0).u32(point.primary_timestamp.seconds).u32(point.primary_timestamp.nanoseconds);
    WriteSub::SetXattr(POINT_XATTR.into(), e.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_point_is_sixteen_bytes() {
        let point =
            Point { snap: SnapId(0x0102), primary_timestamp: Timestamp { seconds: 3, nanoseconds: 4 } };
        let WriteSub::SetXattr(_, bytes) = write_point(point) else { panic!("not an attribute") };
        assert_eq!(&bytes[..], [2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(decode(&bytes), Ok(point));
        assert!((0..bytes.len()).all(|length| decode(&bytes[..length]).is_err()));
    }
}
