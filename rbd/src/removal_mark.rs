//! The mark with which the removal of a copy begins.
//!
//! A copy may be promoted by force at any moment, with stock tools, and without any lock. A promotion cannot do without a
//! new snapshot in the image's header: the orphan that disconnects the image from its primary, or a primary snapshot. So a
//! removal begins with one write of the header that
//!
//! * fails unless the header is the very one that was looked at and found to be that of a copy, and
//! * sets the snapshot limit to 0: from then on the header takes no snapshot (EDQUOT).
//!
//! Whichever of the two writes comes first decides, and makes the other one fail: a promotion that comes first is seen, and
//! the image stays; one that comes later fails. What follows (mirroring metadata, directory, trash, data) needs no
//! proof of its own. The limit of 0 holds as long as the header has a snapshot, so the newest mirror-snapshot is
//! removed last, after the data.
//!
//! | extended attribute `rbd_mirror.removal` | |
//! |---|---|
//! | u8 1 · u8 1 · u32 length | version, oldest version that can read it, bytes that follow |
//! | u64 | the snapshot limit before, 2^64-1 for none |

use rados::encoding::{Decoder, Encoder};
use rados::error::ResultExt;
use rados::{Error, IoCtx, ReadAnswer, ReadSub, Result, SnapId, WriteOp, WriteSub};

use crate::header::ImageHeader;
use crate::layout::header_object;
use crate::types::{ImageId, MirrorSnapshotState, Snapshot, Timestamp};

const MARK_XATTR: &str = "rbd_mirror.removal";
/// The omap key of the header that holds the snapshot limit, as u64.
const LIMIT_KEY: &str = "snap_limit";
/// How often a change is tried again because somebody else changed the header meanwhile.
const ATTEMPTS_MAX: u32 = 16;

/// What came of the attempt to begin the removal of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marking {
    /// It is marked: nobody promotes it any more.
    Marked,
    /// It is not one that may be removed.
    Refused,
    /// There is no such image.
    Gone,
}

/// Marks an image for removal if `may_go` says of its header, at the moment of the write, that it may be removed. It may
/// be marked already.
pub async fn mark(ioctx: &IoCtx, image: &ImageId, may_go: impl Fn(&ImageHeader) -> bool) -> Result<Marking> {
    let what = || format!("cannot begin to remove image {image}");
    for _ in 0..ATTEMPTS_MAX {
        let Some(header) = ImageHeader::read(ioctx, image).await.optional()? else {
            return Ok(Marking::Gone);
        };
        if !may_go(&header) {
            return Ok(Marking::Refused);
        }
        let before = match read(ioctx, image).await.context(what())? {
            Some(limit) => limit,
            None => header.snapshot_limit,
        };
        let op = unless_changed(&header)
            .with(WriteSub::SetXattr(MARK_XATTR.into(), encode(before)))
            .with(set_limit(0));
        match ioctx.write(op).await {
            Ok(_) => return Ok(Marking::Marked),
            Err(error) if is_changed(&error) => {}
            Err(error) if error.is_not_found() => return Ok(Marking::Gone),
            Err(error) => return Err(error.context(what())),
        }
    }
    Err(Error::new(libc::EAGAIN, format!("{}: others keep changing its header", what())))
}

/// Takes the mark away: the image is not removed, or not yet. No error when there is none.
pub async fn unmark(ioctx: &IoCtx, image: &ImageId) -> Result<()> {
    let what = || format!("cannot undo the beginning of the removal of image {image}");
    for _ in 0..ATTEMPTS_MAX {
        let Some(header) = ImageHeader::read(ioctx, image).await.optional()? else { return Ok(()) };
        let Some(before) = read(ioctx, image).await.context(what())? else { return Ok(()) };
        let limit = match before {
            Some(limit) => set_limit(limit),
            None => WriteSub::OmapRemove(vec![LIMIT_KEY.into()]),
        };
        let op = unless_changed(&header).with(WriteSub::RemoveXattr(MARK_XATTR.into())).with(limit);
        match ioctx.write(op).await {
            Ok(_) => return Ok(()),
            Err(error) if is_changed(&error) => {}
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.context(what())),
        }
    }
    Err(Error::new(libc::EAGAIN, format!("{}: others keep changing its header", what())))
}

/// True when the image is marked.
pub async fn is_marked(ioctx: &IoCtx, image: &ImageId) -> Result<bool> {
    let read = read(ioctx, image).await;
    Ok(read.context(format!("cannot tell whether image {image} is being removed"))?.is_some())
}

/// True for an image that may have been marked; [`is_marked`] tells for sure.
pub fn may_be_marked(header: &ImageHeader) -> bool {
    header.snapshot_limit == Some(0)
}

/// True for an image that was promoted, or is being promoted by force.
pub fn is_promoted(header: &ImageHeader) -> bool {
    let newest = header.snapshots.values().rev().find_map(Snapshot::mirror);
    newest.is_some_and(|mirror| mirror.state == MirrorSnapshotState::Primary || mirror.is_orphan())
}

/// The present by the clock of the cluster, as the OSD that has the header of `image` tells it; the time of the image's
/// last access is set to it. ENOENT when there is no such image.
pub async fn cluster_time(ioctx: &IoCtx, image: &ImageId) -> Result<Timestamp> {
    let touch = WriteOp::new(header_object(image)).with(WriteSub::AssertExists).despite_full();
    let touch = touch.exec("rbd", "set_access_timestamp", bytes::Bytes::new());
    ioctx.write(touch).await.context(format!("cannot tell the time of the cluster by image {image}"))?;
    Ok(ImageHeader::read(ioctx, image).await?.accessed)
}

/// The snapshot limit before the mark; `None` when there is no mark.
async fn read(ioctx: &IoCtx, image: &ImageId) -> Result<Option<Option<u64>>> {
    let sub = ReadSub::GetXattr(MARK_XATTR.into());
    match ioctx.read_one(&header_object(image), SnapId::HEAD, sub).await {
        Ok(ReadAnswer::Data(bytes)) => {
            let mut d = Decoder::new(&bytes, "removal mark");
            let limit = d.versioned("removal mark", 1, |d, _| d.u64())?;
            Ok(Some((limit != u64::MAX).then_some(limit)))
        }
        Ok(_) => Err(Error::new(libc::EBADMSG, "cannot read the removal mark")),
        Err(error) if error.is(libc::ENODATA) || error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn encode(limit: Option<u64>) -> bytes::Bytes {
    let mut e = Encoder::new();
    e.versioned(1, 1, |e| {
        e.u64(limit.unwrap_or(u64::MAX));
    });
    e.finish()
}

/// The class method refuses a limit below the number of snapshots.
fn set_limit(limit: u64) -> WriteSub {
    let mut e = Encoder::new();
    e.u64(limit);
    WriteSub::OmapSet(vec![(LIMIT_KEY.into(), e.finish())])
}

/// A change of a header that fails when the header is not the one that was read. It goes through in a full pool, too: a
/// removal frees space.
fn unless_changed(header: &ImageHeader) -> WriteOp {
    let op = WriteOp::new(header_object(&header.id)).with(WriteSub::AssertVersion(header.version));
    op.despite_full()
}

fn is_changed(error: &Error) -> bool {
    error.is(libc::ERANGE) || error.is(libc::EOVERFLOW)
}
