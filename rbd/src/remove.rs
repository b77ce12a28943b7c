//! Removing images.
//!
//! The order is librbd's: snapshots, data objects, registration with the parent, header, object map, id object,
//! directory entry. The header goes after the data, so that a removal that was cut off still knows what to remove; the
//! directory entry goes last, so that it still knows the name. Every step may be repeated. Other than with librbd, the
//! record of the newest mirror-snapshot goes with the header: as long as one is there, [`crate::removal_mark`] keeps
//! others from promoting the image.
//!
//! Mirroring, the journal and getting hold of the exclusive lock come before and are the caller's.
//!
//! Reference: `src/librbd/image/PreRemoveRequest.cc`, `RemoveRequest.cc`, `src/librbd/trash/RemoveRequest.cc`.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt};
use rados::error::ResultExt;
use rados::{Error, IoCtx, Result, SnapId};

use crate::children;
use crate::directory;
use crate::header::ImageHeader;
use crate::image::Image;
use crate::layout::header_object;
use crate::object_map::{ObjectMap, ObjectMapObject};
use crate::snapshots::{self, Removal};
use crate::trash::{self, TrashState};
use crate::types::{Features, ImageFlags, ImageId, ObjectNumber, ProtectionStatus, SnapshotNamespace};

/// How an image is to be removed.
#[derive(Debug, Clone)]
pub struct RemoveOptions {
    /// Snapshots of users and groups are removed, too, and unprotected when needed; otherwise the image is left alone
    /// (ENOTEMPTY) when it has some. Snapshots of mirroring and in the trash namespace always go.
    pub user_snapshots: bool,
    /// The image is removed although it is watched.
    pub despite_watchers: bool,
    /// Global ids of clients whose watches do not count, besides this one's.
    pub ignored_watchers: BTreeSet<u64>,
    /// Data objects removed at once.
    pub in_flight: usize,
}

impl Default for RemoveOptions {
    fn default() -> Self {
        RemoveOptions {
            user_snapshots: false,
            despite_watchers: false,
            ignored_watchers: BTreeSet::new(),
            in_flight: 64,
        }
    }
}

/// Removes an image by its id. Nothing left of it is no error. `progress` hears how many of how many data objects are
/// gone. EBUSY when it is watched or being migrated, EMLINK when it is in a group, ENOTEMPTY when it has snapshots
/// (see [`RemoveOptions`]) or clones.
pub async fn remove_image(
    ioctx: &IoCtx,
    id: &ImageId,
    options: &RemoveOptions,
    progress: impl FnMut(u64, u64),
) -> Result<()> {
    let name = directory::name_of(ioctx, id).await?;
    let what = || format!("cannot remove image '{}' ({id})", name.as_deref().unwrap_or_default());
    if let Some(header) = ImageHeader::read(ioctx, id).await.optional()? {
        let image = Image::of(ioctx, name.as_deref().unwrap_or_default(), &header);
        refuse_in_use(&image, &header, options).await.context(what())?;
        remove_snapshots(&image, header, options).await.context(what())?;
        let header = image.read_header().await?;
        remove_data(&image, &header, options, progress).await.context(what())?;
        children::detach_child(&image, &header).await.context(what())?;
        ioctx.remove(&header_object(id)).await.optional().context(what())?;
    }
    ObjectMapObject::new(ioctx, id, SnapId::HEAD).remove().await.context(what())?;
    if let Some(name) = &name {
        directory::remove_id_object(ioctx, name, id).await.context(what())?;
        directory::remove(ioctx, name, id).await.context(what())?;
    }
    Ok(())
}

/// Removes an image that lies in the trash, whether or not its deferment has ended, and its entry. Nothing left of it
/// is no error. When it cannot be removed it stays in the trash as it was.
pub async fn remove_from_trash(
    ioctx: &IoCtx,
    id: &ImageId,
    options: &RemoveOptions,
    progress: impl FnMut(u64, u64),
) -> Result<()> {
    remove_from_trash_with(ioctx, id, options, progress, std::future::ready(Ok(()))).await
}

/// As [`remove_from_trash`]; `rest` removes what else belonged to the image (its journal, say), when all of the image is
/// gone and before its entry is. It must be repeatable.
pub async fn remove_from_trash_with(
    ioctx: &IoCtx,
    id: &ImageId,
    options: &RemoveOptions,
    progress: impl FnMut(u64, u64),
    rest: impl Future<Output = Result<()>>,
) -> Result<()> {
    match trash::set_state(ioctx, id, TrashState::Removing, TrashState::Normal).await {
        Err(error) if error.is_not_found() => return Ok(()),
        other => other?,
    }
    let removed = match remove_image(ioctx, id, options, progress).await {
        Ok(()) => rest.await,
        Err(error) => Err(error),
    };
    if let Err(error) = removed {
        let reset = trash::set_state(ioctx, id, TrashState::Normal, TrashState::Removing).await;
        if let Err(error) = reset {
            tracing::warn!(image = %id, "{error}");
        }
        return Err(error);
    }
    trash::remove_entry(ioctx, id).await?;
    trash::notify_removed(ioctx, id).await;
    Ok(())
}

async fn refuse_in_use(image: &Image, header: &ImageHeader, options: &RemoveOptions) -> Result<()> {
    let refuse = |errno, why: String| Err(Error::new(errno, why));
    if header.features.has(Features::MIGRATING) {
        return refuse(libc::EBUSY, "it is being migrated".to_string());
    }
    if let Some(group) = &header.group {
        return refuse(libc::EMLINK, format!("it is in group {}", group.id));
    }
    for snap in header.snapshots.values() {
        let goes = matches!(snap.namespace, SnapshotNamespace::Mirror(_) | SnapshotNamespace::Trash { .. });
        if !goes && !options.user_snapshots {
            return refuse(libc::ENOTEMPTY, format!("it has snapshot '{}'", snap.name));
        }
        if snap.child_count > 0 {
            return refuse(
                libc::ENOTEMPTY,
                format!("snapshot '{}' has {} clones", snap.name, snap.child_count),
            );
        }
    }
    if options.despite_watchers {
        return Ok(());
    }
    match open_by(image.header_ioctx(), image.id(), &options.ignored_watchers).await? {
        clients if clients.is_empty() => Ok(()),
        clients => refuse(libc::EBUSY, format!("it is open: close it first ({})", clients.join(" and "))),
    }
}

/// Global ids of the clients that watch the header and that count.
/// Who has an image open, this client and the `ignored` ones aside: in the form `client.4123 at 10.0.0.5:0/77`. Nobody,
/// when there is no such image.
pub async fn open_by(ioctx: &IoCtx, image: &ImageId, ignored: &BTreeSet<u64>) -> Result<Vec<String>> {
    let watchers = ioctx.list_watchers(&header_object(image)).await.optional()?.unwrap_or_default();
    let this = ioctx.backend().instance_id();
    let others = watchers.into_iter().filter(|w| w.client != this && !ignored.contains(&w.client));
    let clients: BTreeSet<_> = others.map(|w| format!("client.{} at {}", w.client, w.address)).collect();
    Ok(clients.into_iter().collect())
}

/// Removes all snapshots, oldest first; of the newest one of mirroring, the record stays.
async fn remove_snapshots(image: &Image, mut header: ImageHeader, options: &RemoveOptions) -> Result<()> {
    let ids: Vec<SnapId> = header.snapshots.keys().copied().collect();
    let newest =
        header.snapshots.values().rev().find(|snap| snapshots::is_of_mirroring(snap)).map(|snap| snap.id);
    for id in ids {
        let protected = |header: &ImageHeader| {
            header.snapshots.get(&id).is_some_and(|snap| snap.protection != ProtectionStatus::Unprotected)
        };
        if options.user_snapshots && protected(&header) {
            snapshots::unprotect(image, &header, id).await?;
            header = image.read_header().await?;
        }
        let removal = match Some(id) == newest {
            true => snapshots::remove_all_but_record(image, &header, id).await?,
            false => snapshots::remove(image, &header, id).await?,
        };
        if removal == Removal::KeptForClones {
            let what = format!("snapshot {id} has clones: remove or flatten them first");
            return Err(Error::new(libc::ENOTEMPTY, what));
        }
        header.snapshots.remove(&id);
    }
    Ok(())
}

/// The head's object map, when it may be believed.
async fn believable_object_map(image: &Image, header: &ImageHeader) -> Result<Option<ObjectMap>> {
    if !header.features.has(Features::OBJECT_MAP) || header.flags.has(ImageFlags::OBJECT_MAP_INVALID) {
        return Ok(None);
    }
    match image.object_map(SnapId::HEAD).load().await {
        Ok(map) if map.len() >= header.object_count() => Ok(Some(map)),
        Ok(_) => Ok(None),
        Err(error) if error.is_not_found() || error.is(libc::EINVAL) || error.is(libc::EBADMSG) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn remove_data(
    image: &Image,
    header: &ImageHeader,
    options: &RemoveOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<()> {
    let map = believable_object_map(image, header).await?;
    let may_exist = |object: &u64| map.as_ref().is_none_or(|map| map.get(ObjectNumber(*object)).may_exist());
    let total = header.object_count();
    let mut removals = futures::stream::iter((0..total).filter(may_exist))
        .map(|object| async move {
            let name = image.data_object(ObjectNumber(object));
            let removed = image.data_ioctx().remove(&name).await.optional();
            removed.context(format!("cannot remove object '{name}'")).map(|_| object)
        })
        .buffer_unordered(options.in_flight.max(1));
    let mut gone = 0;
    while removals.try_next().await?.is_some() {
        gone += 1;
        progress(gone, total);
    }
    progress(total, total);
    Ok(())
}
