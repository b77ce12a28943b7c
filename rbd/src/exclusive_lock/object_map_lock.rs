//! The lock on an image's head object map, which the owner of the exclusive lock takes, too: the OSD refuses changes of
//! the map from anybody else. It has neither cookie nor tag. Whoever owns the exclusive lock may break it, since its
//! owner is gone; breaking needs no blocklisting, which happened when the exclusive lock was broken.
//!
//! As in librbd, a map that cannot be locked does not keep the image from being locked.
//!
//! Reference: `src/librbd/object_map/LockRequest.cc`, `UnlockRequest.cc`.

use rados::lock::{LockKind, LockRequest, break_lock_sub};
use rados::{ErrorClass, IoCtx, Result, SnapId, WriteOp};

use crate::header_update::LOCK_NAME;
use crate::object_map::object_map_object;
use crate::types::ImageId;

/// Locks the map. Fails only when this connection is fenced.
pub(super) async fn lock(ioctx: &IoCtx, image: &ImageId) -> Result<()> {
    match try_lock(ioctx, image).await {
        Err(e) if e.class() == ErrorClass::Fenced => Err(e),
        Err(e) => {
            tracing::warn!("the object map of image {image} stays unlocked: {e}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

async fn try_lock(ioctx: &IoCtx, image: &ImageId) -> Result<()> {
    let object = object_map_object(image, SnapId::HEAD);
    let request = LockRequest::new(LOCK_NAME, LockKind::Exclusive, "");
    match ioctx.lock(&object, &request).await {
        // EEXIST: it is ours already.
        Err(e) if e.is(libc::EEXIST) => return Ok(()),
        Err(e) if e.is(libc::EBUSY) => {}
        locked => return locked,
    }
    let mut breaking = WriteOp::new(object.clone());
    for locker in ioctx.lock_info(&object, LOCK_NAME).await?.lockers {
        breaking = breaking.with(break_lock_sub(LOCK_NAME, locker.entity, &locker.cookie));
    }
    if !breaking.subs.is_empty() {
        match ioctx.write(breaking).await {
            Err(e) if !e.is_not_found() => return Err(e),
            _ => {}
        }
    }
    match ioctx.lock(&object, &request).await {
        Err(e) if e.is(libc::EEXIST) => Ok(()),
        locked => locked,
    }
}

/// Unlocks the map.
pub(super) async fn unlock(ioctx: &IoCtx, image: &ImageId) {
    match ioctx.unlock(&object_map_object(image, SnapId::HEAD), LOCK_NAME, "").await {
        Err(e) if !e.is_not_found() => tracing::warn!("the object map of image {image} stays locked: {e}"),
        _ => {}
    }
}
