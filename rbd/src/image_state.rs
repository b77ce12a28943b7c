//! What mirroring keeps beside an image: the state of the image at a mirror-snapshot, and the wish for a resync.
//!
//! A primary mirror-snapshot does not hold name, features, metadata and user snapshots of its image, so they are written
//! to objects of their own, and the snapshot is marked complete when they are there:
//!
//! ```text
//! rbd_mirror_snapshot.IMAGE_ID.SNAP_ID.INDEX     all ids and the index in decimal
//!
//! object 0:  header (versioned 1: u32 number of objects), then the first part of the state
//! object N:  the next part
//! ```
//!
//! Parts are cut at the default object size (`rbd_default_order`); the header counts into the first one. Objects are
//! written, and removed, from the last to the first, so that what has an object 0 is whole, and what is left of an
//! interrupted removal can be found again.
//!
//! | value | version | fields |
//! |---|---|---|
//! | [`ImageState`] | 1 | string name, u64 features, u64 snapshot limit, map of u64 id to [`SnapState`], map of string to blob |
//! | [`SnapState`] | 1 | snapshot namespace, string name, u8 protection |
//!
//! The wish for a resync is a key of the image's metadata, `.rbd_mirror.MIRROR_UUID` with the namespace's own uuid; its
//! value is JSON: `{"resync_requested": true}`.
//!
//! Reference: `src/librbd/mirror/snapshot/` (`Types.cc`, `Utils.cc`, `WriteImageStateRequest.cc`,
//! `GetImageStateRequest.cc`, `RemoveImageStateRequest.cc`, `ImageMeta.cc`).

use std::collections::BTreeMap;

use bytes::Bytes;
use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};
use rados::error::ResultExt;
use rados::{Error, Extent, IoCtx, Result, SnapId, WriteOp, WriteSub};

use crate::header_update::HeaderUpdate;
use crate::layout::header_object;
use crate::limits::METADATA_BYTES_MAX;
use crate::types::{Features, ImageId, ProtectionStatus, SnapshotNamespace};
use crate::watch_notify::notify_header_update;

/// Default of `rbd_default_order`: state objects of 4 MiB.
const ORDER_DEFAULT: u32 = 22;
/// State objects that are read at most, so that a corrupt header cannot send us on a long errand. At 4 MiB each, this is
/// far more than any image has.
const OBJECTS_MAX: u32 = 1024;
/// Bytes that are read of one state object at most: the largest that librbd can be told to write. All of them together
/// are [`METADATA_BYTES_MAX`] at most.
const OBJECT_BYTES_MAX: u64 = 1 << 25;
/// Bytes of an encoded header.
const HEADER_BYTES: usize = 6 + 4;

/// An image at the time of a primary mirror-snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageState {
    /// Its name.
    pub name: String,
    /// Its features, without the implicit ones ([`Features::IMPLICIT`]).
    pub features: Features,
    /// How many snapshots it may have; `None` for no limit.
    pub snap_limit: Option<u64>,
    /// Its user snapshots.
    pub snapshots: BTreeMap<SnapId, SnapState>,
    /// Its metadata.
    pub metadata: BTreeMap<String, Bytes>,
}

/// A user snapshot at the time of a primary mirror-snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapState {
    /// What it is for: always the user's, as far as librbd writes it.
    pub namespace: SnapshotNamespace,
    /// Its name.
    pub name: String,
    /// Whether it may be removed.
    pub protection: ProtectionStatus,
}

impl Encode for SnapState {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.value(&self.namespace).string(&self.name).value(&self.protection);
        });
    }
}

impl Decode for SnapState {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        d.versioned("SnapState", 1, |d, _| {
            Ok(SnapState {
                namespace: SnapshotNamespace::decode(d)?,
                name: d.string()?,
                protection: ProtectionStatus::decode(d)?,
            })
        })
    }
}

impl Encode for ImageState {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.string(&self.name).u64(self.features.0).u64(self.snap_limit.unwrap_or(u64::MAX));
            e.count(self.snapshots.len());
            for (id, snapshot) in &self.snapshots {
                e.u64(id.0).value(snapshot);
            }
            e.string_map(&self.metadata);
        });
    }
}

impl Decode for ImageState {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        d.versioned("ImageState", 1, |d, _| {
            let (name, features, snap_limit) = (d.string()?, Features(d.u64()?), d.u64()?);
            let snapshots = d.seq(14, |d| Ok((SnapId(d.u64()?), SnapState::decode(d)?)))?;
            Ok(ImageState {
                name,
                features,
                snap_limit: (snap_limit != u64::MAX).then_some(snap_limit),
                snapshots: snapshots.into_iter().collect(),
                metadata: d.string_map()?,
            })
        })
    }
}

/// Name of a state object.
pub fn image_state_object(image: &ImageId, snap: SnapId, index: u32) -> String {
    format!("rbd_mirror_snapshot.{image}.{}.{index}", snap.0)
}

/// Reads the state of an image at one of its mirror-snapshots. ENOENT when it was not written (yet), EBADMSG when it is
/// not to be understood. Cancel-safe.
pub async fn read_image_state(ioctx: &IoCtx, image: &ImageId, snap: SnapId) -> Result<ImageState> {
    let what = || format!("cannot read the state of image {image} at snapshot {snap}");
    let first = read_part(ioctx, image, snap, 0).await.context(what())?;
    let (count, mut state) = split_header(&first).map_err(Error::from).context(what())?;
    if count > OBJECTS_MAX {
        let why = format!("its header tells of {count} objects, more than {OBJECTS_MAX}");
        return Err(Error::new(libc::EBADMSG, why).context(what()));
    }
    for index in 1..count {
        if state.len() as u64 > METADATA_BYTES_MAX {
            let why = format!("it has more than {METADATA_BYTES_MAX} bytes");
            return Err(Error::new(libc::EFBIG, why).context(what()));
        }
        state.extend_from_slice(&read_part(ioctx, image, snap, index).await.context(what())?);
    }
    ImageState::from_bytes(&state, "ImageState").map_err(Error::from).context(what())
}

/// Writes the state of an image at one of its mirror-snapshots; overwrites what is there. A state whose writing was
/// interrupted lacks object 0, or has the one of an earlier attempt with the same content.
pub async fn write_image_state(
    ioctx: &IoCtx,
    image: &ImageId,
    snap: SnapId,
    state: &ImageState,
) -> Result<()> {
    let order = ioctx.backend().config("rbd_default_order").and_then(|order| order.parse().ok());
    let order: u32 = order.filter(|order| (12..=25).contains(order)).unwrap_or(ORDER_DEFAULT);
    for (index, part) in parts(state, 1 << order).into_iter().enumerate().rev() {
        let object = image_state_object(image, snap, index as u32);
        let written = ioctx.write(WriteOp::new(object).with(WriteSub::WriteFull(part))).await;
        written.context(format!("cannot write the state of image {image} at snapshot {snap}"))?;
    }
    Ok(())
}

/// Removes the state of an image at one of its mirror-snapshots; no error when there is none.
pub async fn remove_image_state(ioctx: &IoCtx, image: &ImageId, snap: SnapId) -> Result<()> {
    let what = || format!("cannot remove the state of image {image} at snapshot {snap}");
    let count = match read_part(ioctx, image, snap, 0).await {
        // What is not to be understood goes all the same.
        Ok(first) => split_header(&first).map_or(1, |(count, _)| count.clamp(1, OBJECTS_MAX)),
        Err(e) if e.is_not_found() => return Ok(()),
        Err(e) => return Err(e.context(what())),
    };
    for index in (0..count).rev() {
        ioctx.remove(&image_state_object(image, snap, index)).await.optional().context(what())?;
    }
    Ok(())
}

async fn read_part(ioctx: &IoCtx, image: &ImageId, snap: SnapId, index: u32) -> Result<Bytes> {
    let object = image_state_object(image, snap, index);
    ioctx.read_extent(&object, SnapId::HEAD, Extent::new(0, OBJECT_BYTES_MAX)).await
}

/// Number of objects, and the first part of the state.
fn split_header(first: &[u8]) -> std::result::Result<(u32, Vec<u8>), DecodeError> {
    let mut d = Decoder::new(first, "ImageStateHeader");
    let count = d.versioned("ImageStateHeader", 1, |d, _| d.u32())?;
    Ok((count, first[first.len() - d.left()..].to_vec()))
}

/// The content of every state object.
fn parts(state: &ImageState, object_bytes: usize) -> Vec<Bytes> {
    let state = state.to_bytes();
    // As librbd counts: a state that ends with an object has an empty one behind it.
    let count = 1 + (HEADER_BYTES + state.len()) / object_bytes;
    let mut e = Encoder::new();
    e.versioned(1, 1, |e| {
        e.count(count);
    });
    let mut rest = e.raw(&state).finish();
    let part = |_| rest.split_to(object_bytes.min(rest.len()));
    (0..count).map(part).collect()
}

/// Whether a resync of the copy `image` was asked for (`rbd mirror image resync`). `mirror_uuid` is that of the copy's
/// own namespace. Cancel-safe.
pub async fn resync_requested(ioctx: &IoCtx, image: &ImageId, mirror_uuid: &str) -> Result<bool> {
    let what = || format!("cannot tell whether a resync of image {image} was requested");
    let key = Encoder::new().string(&resync_key(mirror_uuid)).finish();
    let found = match ioctx.exec(&header_object(image), "rbd", "metadata_get", key).await {
        Ok(found) => found,
        Err(e) if e.is_not_found() => return Ok(false),
        Err(e) => return Err(e.context(what())),
    };
    let value = Decoder::new(&found, "resync request").blob().map_err(Error::from).context(what())?;
    parse_resync(value).map_err(Error::from).context(what())
}

/// Asks for a resync of the copy `image`, as `rbd mirror image resync` does, or takes the wish back; then notifies those
/// who have it open.
pub async fn set_resync_requested(
    ioctx: &IoCtx,
    image: &ImageId,
    mirror_uuid: &str,
    requested: bool,
) -> Result<()> {
    let value = format!("{{\"resync_requested\": {requested}}}");
    let metadata = BTreeMap::from([(resync_key(mirror_uuid), value)]);
    HeaderUpdate::of(image).set_metadata(&metadata).apply(ioctx).await?;
    notify_header_update(ioctx, image).await
}

/// Forgets that a resync was asked for, when it is done; no error when it was not. Then notifies those who have the
/// image open.
pub async fn clear_resync_request(ioctx: &IoCtx, image: &ImageId, mirror_uuid: &str) -> Result<()> {
    match HeaderUpdate::of(image).remove_metadata(&resync_key(mirror_uuid)).apply(ioctx).await {
        Err(e) if !e.is_not_found() => return Err(e),
        _ => {}
    }
    notify_header_update(ioctx, image).await
}

/// Key of the image metadata that holds the wish for a resync.
pub fn resync_key(mirror_uuid: &str) -> String {
    format!(".rbd_mirror.{mirror_uuid}")
}

fn parse_resync(value: &[u8]) -> std::result::Result<bool, DecodeError> {
    let json: Option<serde_json::Value> = serde_json::from_slice(value).ok();
    let requested =
        json.as_ref().and_then(|json| json.get("resync_requested")).and_then(|value| value.as_bool());
    let invalid = || DecodeError::Invalid {
        what: "resync request",
        why: format!("'{}' does not tell whether a resync is requested", String::from_utf8_lossy(value)),
    };
    requested.ok_or_else(invalid)
}

#[cfg(test)]
mod tests;
