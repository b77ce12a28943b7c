//! The marker of a copy: how far it is, on the copy itself.
//!
//! The commit position in the primary's journal lags behind and lies in another cluster. What was applied is noted in an
//! extended attribute `rbd_mirror.replayed` of the copy's header, in an operation that also asserts that the exclusive
//! lock is still ours:
//!
//! | field | bytes |
//! |---|---|
//! | version, oldest compatible version, length of what follows | u8 1, u8 1, u32 |
//! | mirror uuid of the primary's pool | string |
//! | newest tag of the copy's own journal when it was written | u64 |
//! | everything up to this entry is applied: tag, entry | u64, u64 |
//!
//! An entry of `u64::MAX` stands for the end of its tag. [`super::plan`] says when it is written.
//!
//! A marker counts only while the copy's own journal has the newest tag that it names. Every mirror daemon, and every
//! promotion, begins with a new tag there; so whatever somebody else did to the copy makes the marker void. Whoever
//! allocates a tag of ours brings the commit position up to date before, so that nothing is lost when he dies between
//! the tag and the next marker.

use bytes::Bytes;
use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};
use rados::error::ResultExt;
use rados::{Error, ReadAnswer, ReadSub, Result, SnapId, WriteSub};
use rbd::exclusive_lock::{LockReport, LockState};
use rbd::image::Image;
use rbd::layout::header_object;
use rbd::managed_lock::LOCK_TAG;
use rbd::{HeaderUpdate, ImageId};
use tokio::sync::watch;

use super::error::ReplayError;
use crate::types::{EntryPosition, EntryTid, TagTid};

const XATTR: &str = "rbd_mirror.replayed";
/// How long a lock whose cookie is being renamed may be unknown.
const COOKIE_WAIT: std::time::Duration = std::time::Duration::from_secs(5);

/// What a copy holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// The mirror uuid of the primary's pool.
    pub remote_mirror_uuid: String,
    /// The newest tag of the copy's own journal.
    pub local_tag: TagTid,
    /// Everything up to here is applied, and nothing behind the first barrier behind it.
    pub done: EntryPosition,
}

impl Encode for Marker {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.string(&self.remote_mirror_uuid).u64(self.local_tag.0);
            e.u64(self.done.tag.0).u64(self.done.entry.0);
        });
    }
}

impl Decode for Marker {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        d.versioned("marker of a replay", 1, |d, _| {
            Ok(Marker {
                remote_mirror_uuid: d.string()?,
                local_tag: TagTid(d.u64()?),
                done: EntryPosition { tag: TagTid(d.u64()?), entry: EntryTid(d.u64()?) },
            })
        })
    }
}

/// Reads the marker of `image`. One that cannot be understood is none.
pub async fn read_marker(image: &Image) -> Result<Option<Marker>> {
    let object = header_object(image.id());
    let answer = image.header_ioctx().read_one(&object, SnapId::HEAD, ReadSub::GetXattr(XATTR.into())).await;
    match answer {
        Ok(ReadAnswer::Data(bytes)) => match Marker::from_bytes(&bytes, "marker of a replay") {
            Ok(marker) => Ok(Some(marker)),
            Err(error) => {
                tracing::warn!(image = %image.id(), "passing over the marker of an earlier replay: {error}");
                Ok(None)
            }
        },
        Ok(_) => Err(Error::new(libc::EBADMSG, format!("cannot read the marker of image {}", image.id()))),
        Err(error) if error.is(libc::ENODATA) => Ok(None),
        Err(error) => Err(error.context(format!("cannot read the marker of image {}", image.id()))),
    }
}

/// Removes the marker: the data of the copy is about to be changed in another way than by a replay.
pub async fn clear_marker(image: &Image) -> Result<()> {
    let op = HeaderUpdate::of(image.id()).into_op().with(WriteSub::RemoveXattr(XATTR.into()));
    match image.header_ioctx().write(op).await {
        Err(error) if error.is(libc::ENODATA) => Ok(()),
        other => other.map(drop).context(format!("cannot clear the marker of image {}", image.id())),
    }
}

/// Writes the marker, if the exclusive lock is still ours.
pub(super) async fn write_marker(
    image: Image,
    mut lock: watch::Receiver<LockReport>,
    marker: Marker,
) -> std::result::Result<(), ReplayError> {
    let bytes = marker.to_bytes();
    loop {
        let cookie = held_cookie(&mut lock, image.id())?;
        let written = write_locked(&image, &cookie, bytes.clone()).await;
        match written {
            // The watch came back after a gap, and the lock with another cookie.
            Err(error) if error.is(libc::EBUSY) && renamed(&mut lock, &cookie).await => {}
            Err(error) if error.is(libc::EBUSY) || error.is_not_found() => {
                return Err(ReplayError::LockLost(error));
            }
            other => return other.map_err(ReplayError::Local),
        }
    }
}

async fn write_locked(image: &Image, cookie: &str, marker: Bytes) -> Result<()> {
    let op = HeaderUpdate::of(image.id()).if_locked(cookie, LOCK_TAG).into_op();
    let op = op.with(WriteSub::SetXattr(XATTR.into(), marker));
    let written = image.header_ioctx().write(op).await.map(drop);
    written.context(format!("cannot note how far image {} is", image.id()))
}

fn held_cookie(
    lock: &mut watch::Receiver<LockReport>,
    image: &ImageId,
) -> std::result::Result<String, ReplayError> {
    match &lock.borrow_and_update().state {
        LockState::Locked(cookie) => Ok(cookie.clone()),
        LockState::Lost(error) | LockState::Fenced(error) => Err(ReplayError::LockLost(error.clone())),
        LockState::Unlocked | LockState::Acquiring => {
            let what = format!("image {image} is not locked");
            Err(ReplayError::LockLost(Error::new(libc::ENOLCK, what)))
        }
    }
}

/// Waits a little for a lock to be known by another cookie, or to be lost.
async fn renamed(lock: &mut watch::Receiver<LockReport>, cookie: &str) -> bool {
    let other = |report: &LockReport| !matches!(&report.state, LockState::Locked(held) if held == cookie);
    matches!(tokio::time::timeout(COOKIE_WAIT, lock.wait_for(other)).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn marker(uuid: &str, numbers: [u64; 3]) -> Marker {
        let done = EntryPosition { tag: TagTid(numbers[1]), entry: EntryTid(numbers[2]) };
        Marker { remote_mirror_uuid: uuid.into(), local_tag: TagTid(numbers[0]), done }
    }

    #[test]
    fn its_bytes_are_these() {
        let bytes = marker("ab", [3, 1, 2]).to_bytes();
        let expected = [&[1, 1, 30, 0, 0, 0, 2, 0, 0, 0, b'a', b'b'][..], &[3, 0, 0, 0, 0, 0, 0, 0]];
        let numbers = [[1, 0, 0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(bytes, [expected.concat(), numbers].concat());
    }

    proptest! {
        #[test]
        fn damage_neither_panics_nor_costs_memory(
            uuid in "[a-f0-9]{0,40}",
            numbers in any::<[u64; 3]>(),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
            length in any::<prop::sample::Index>(),
        ) {
            let whole = marker(&uuid, numbers);
            let bytes = whole.to_bytes();
            prop_assert_eq!(Marker::from_bytes(&bytes, "marker"), Ok(whole));
            let mut damaged = bytes.to_vec();
            damaged[at.index(bytes.len())] ^= flip;
            if let Ok(read) = Marker::from_bytes(&damaged, "marker") {
                prop_assert!(read.remote_mirror_uuid.len() <= damaged.len());
            }
            prop_assert!(Marker::from_bytes(&bytes[..length.index(bytes.len())], "marker").is_err());
        }
    }
}
