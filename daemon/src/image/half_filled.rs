//! User snapshots of a promoted copy that a round was still filling.
//!
//! Such a snapshot has a pending name until its round is complete (`snapshot::begin`). A promotion by force makes the image
//! what it was before the round, and with stock tools these snapshots stay behind, half filled. They are removed when the
//! image may be written to, and as such an image is treated: by the owner of the exclusive lock when he lives, who is not
//! asked to give it up, else under the lock.
//!
//! A pending name ends with the snapshot's own id. Where it does, in an image with this program's marker, nobody else made
//! it.

use std::time::Duration;

use rados::error::ResultExt;
use rados::{Error, Result, SnapId};
use rbd::exclusive_lock::{ExclusiveLock, LockOptions};
use rbd::header::ImageHeader;
use rbd::image::Image;
use rbd::watch_notify::{Operation, notify_header_update};
use rbd::{Features, Snapshot, snapshots};
use snapshot::begin::{is_pending, read_marker};
use tokio_util::sync::CancellationToken;

use super::bootstrap::{Role, role};

/// The pause before another attempt, when the owner of the lock could not do it.
const RETRY_PAUSE: Duration = Duration::from_secs(10);

/// The half-filled snapshots of an image that may be written to; none while it is being promoted.
pub(super) fn half_filled(header: &ImageHeader) -> Vec<&Snapshot> {
    // What is done to a journalled image belongs in its journal; no copy in snapshot mode has one.
    let ready = role(header, "") == Role::Primary
        && !header.features.has(Features::NON_PRIMARY)
        && !header.features.has(Features::JOURNALING);
    if ready { header.snapshots.values().filter(|s| is_pending(s)).collect() } else { Vec::new() }
}

/// Removes them, however long their owner takes.
pub(super) async fn remove(image: Image, cancel: CancellationToken) {
    while let Err(error) = try_to_remove(&image, &cancel).await {
        tracing::debug!(image = %image.id(), "cannot remove half-filled snapshots, trying again: {error}");
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(RETRY_PAUSE) => {}
        }
    }
}

async fn try_to_remove(image: &Image, cancel: &CancellationToken) -> Result<()> {
    if read_marker(image).await?.is_none() {
        return Ok(());
    }
    let features = image.read_header().await?.features;
    if !features.has(Features::EXCLUSIVE_LOCK) {
        return remove_here(image).await;
    }
    let options = LockOptions { object_map: features.has(Features::OBJECT_MAP), ..LockOptions::default() };
    let lock = ExclusiveLock::open(image.header_ioctx(), image.id(), options).await?;
    let removed = match lock.try_acquire().await {
        Ok(true) => remove_here(image).await,
        Ok(false) => ask_owner(image, &lock, cancel).await,
        Err(error) => Err(error),
    };
    lock.close().await?;
    removed
}

/// Nobody else may have the lock.
async fn remove_here(image: &Image) -> Result<()> {
    let header = image.read_header().await?;
    let ids: Vec<SnapId> = half_filled(&header).iter().map(|snapshot| snapshot.id).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let kept = snapshots::remove_all(image, &header, &ids).await?;
    let (count, kept) = (ids.len(), kept.len());
    tracing::info!(image = %image.id(), "removed {count} snapshots half filled at a promotion, {kept} as soon as their clones go");
    notify_header_update(image.header_ioctx(), image.id()).await
}

async fn ask_owner(image: &Image, lock: &ExclusiveLock, cancel: &CancellationToken) -> Result<()> {
    let header = image.read_header().await?;
    for snapshot in half_filled(&header) {
        let (namespace, name) = (snapshot.namespace.clone(), snapshot.name.clone());
        let removed = tokio::select! {
            () = cancel.cancelled() => return Err(Error::new(libc::ECANCELED, "the task is told to end")),
            removed = lock.ask_owner(Operation::SnapRemove { namespace, name }) => removed,
        };
        removed.optional()?;
        tracing::info!(image = %image.id(), "the owner removed snapshot {}, half filled at a promotion", snapshot.id);
    }
    Ok(())
}
