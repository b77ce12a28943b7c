//! Snapshots of an image: making, removing, renaming and protecting them.
//!
//! Each operation follows librbd's order, so that a crash between two steps leaves nothing that librbd could not leave
//! as well, and each can be repeated after it was cut off.
//!
//! Making one: allocate an id (a monitor round) in the pool of the data; add the record to the header, which refuses
//! an id that is older than the newest (ESTALE); copy the head's object map; with fast-diff, mark everything in the
//! head's map as clean. From the moment the record is there, writers must use it in their snapshot context: nobody may
//! write to the image meanwhile.
//!
//! Removing one: move it to the trash namespace, so that nobody clones it; stop there when it has clones; let go of the
//! parent when nothing else refers to it; merge its object map into the next newer one; remove mirroring's image state;
//! give back the id (OSDs trim the data); remove the record last.
//!
//! Those who have the image open learn of it from a notification, which is the caller's to send, once for all he does:
//! [`crate::watch_notify::notify_header_update`].
//!
//! Reference: `src/librbd/operation/Snapshot*Request.cc`, `src/librbd/object_map/Snapshot*Request.cc`.

use rados::error::ResultExt;
use rados::{Error, Result, SnapId};

use crate::children;
use crate::encodings::namespace_type;
use crate::header::ImageHeader;
use crate::header_update::HeaderUpdate;
use crate::image::Image;
use crate::types::{Features, ImageFlags, ParentSpec, ProtectionStatus, Snapshot, SnapshotNamespace};

/// How often an id is allocated anew because somebody else's newer one came first.
const ALLOCATIONS_MAX: u32 = 8;

/// A snapshot to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub namespace: SnapshotNamespace,
    /// An id allocated before, from the pool of the data; one is allocated when absent.
    pub id: Option<SnapId>,
    /// Leave the object maps alone: the caller takes care of them.
    pub skip_object_map: bool,
}

/// What became of a snapshot that was to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Gone,
    /// It is in the trash namespace until its last clone is gone.
    KeptForClones,
}

/// Makes a snapshot of the present state and answers with its id.
///
/// With an id given it may be repeated: a snapshot of that id and name that is there is completed. ESTALE when the
/// given id is older than the newest ever used, EEXIST when the name is taken, EDQUOT at the image's snapshot limit.
pub async fn create(image: &Image, header: &ImageHeader, new: &NewSnapshot) -> Result<SnapId> {
    let (id, resumed) = match new.id {
        Some(id) => (id, add_record_with_id(image, new, id).await?),
        None => (allocate_and_add_record(image, new).await?, false),
    };
    if header.features.has(Features::OBJECT_MAP) && !new.skip_object_map {
        snapshot_object_map(image, header, id, resumed).await?;
    }
    Ok(id)
}

/// Adds the record under a given id; answers whether it was there before.
async fn add_record_with_id(image: &Image, new: &NewSnapshot, id: SnapId) -> Result<bool> {
    match add_record(image, new, id).await {
        Ok(()) => Ok(false),
        Err(error) if error.is(libc::EEXIST) || error.is(libc::ESTALE) => {
            let header = image.read_header().await?;
            let there = header.snapshots.get(&id).is_some_and(|snap| snap.name == new.name);
            if there { Ok(true) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
}

async fn add_record(image: &Image, new: &NewSnapshot, id: SnapId) -> Result<()> {
    let add = HeaderUpdate::of(image.id()).snapshot_add(id, &new.name, &new.namespace);
    add.apply(image.header_ioctx()).await.context(format!("cannot make snapshot '{}'", new.name))
}

async fn allocate_and_add_record(image: &Image, new: &NewSnapshot) -> Result<SnapId> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let id =
            image.data_ioctx().snap_create().await.context(format!("cannot make snapshot '{}'", new.name))?;
        let Err(error) = add_record(image, new, id).await else {
            return Ok(id);
        };
        if let Err(error) = image.data_ioctx().snap_remove(id).await {
            tracing::warn!(image = %image.id(), "cannot give back snapshot id {id}: {error}");
        }
        if !error.is(libc::ESTALE) || attempt == ALLOCATIONS_MAX {
            return Err(error);
        }
    }
}

/// Gives a new snapshot its object map. A map that cannot be read is flagged as invalid, for the head and the snapshot.
async fn snapshot_object_map(image: &Image, header: &ImageHeader, id: SnapId, resumed: bool) -> Result<()> {
    let (of_head, of_snap) = (image.object_map(SnapId::HEAD), image.object_map(id));
    // A map that is there was copied before the head's was cleaned: copying again would lose what had changed.
    if resumed && of_snap.load().await.optional()?.is_some() {
        return Ok(());
    }
    let map = match of_head.load().await {
        Ok(map) => map,
        Err(error) if error.is_not_found() || error.is(libc::EINVAL) || error.is(libc::EBADMSG) => {
            tracing::warn!(image = %image.id(), "flagging the object map as invalid: {error}");
            invalidate_object_map(image, header, SnapId::HEAD).await?;
            return invalidate_object_map(image, header, id).await;
        }
        Err(error) => return Err(error),
    };
    of_snap.save(&map).await?;
    // Whether the head was written since a snapshot that was cut off is unknown: its map then keeps claiming more
    // changes than there were, which is safe.
    if header.features.has(Features::FAST_DIFF) && !resumed {
        of_head.snap_add().await?;
    }
    Ok(())
}

/// Flags the object map of the head or of a snapshot as not to be believed.
pub async fn invalidate_object_map(image: &Image, header: &ImageHeader, snap: SnapId) -> Result<()> {
    let mut flags = ImageFlags::OBJECT_MAP_INVALID;
    if header.features.has(Features::FAST_DIFF) {
        flags = flags.with(ImageFlags::FAST_DIFF_INVALID);
    }
    HeaderUpdate::of(image.id()).set_flags(flags, flags, snap).apply(image.header_ioctx()).await
}

/// Removes snapshots, oldest first, as [`remove`] removes each; the ids are given back all at once, in one round of the
/// monitors. Answers with those that are kept for their clones.
pub async fn remove_all(image: &Image, header: &ImageHeader, ids: &[SnapId]) -> Result<Vec<SnapId>> {
    let mut left = header.clone();
    let (mut prepared, mut kept) = (Vec::new(), Vec::new());
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    for id in ids {
        match prepare_removal(image, &left, id).await? {
            Some(Removal::KeptForClones) => {
                kept.push(id);
                continue;
            }
            Some(Removal::Gone) => {}
            None => prepared.push(id),
        }
        left.snapshots.remove(&id);
    }
    let given_back = prepared.iter().map(|id| async { image.data_ioctx().snap_remove(*id).await.optional() });
    let what = || format!("cannot remove snapshots of image {}", image.id());
    futures::future::try_join_all(given_back).await.context(what())?;
    for id in prepared {
        let removed = HeaderUpdate::of(image.id()).snapshot_remove(id).apply(image.header_ioctx()).await;
        removed.optional().context(what())?;
    }
    Ok(kept)
}

/// Removes a snapshot. `header` must be fresh, in that all snapshots of the image are in it. Nothing is done when the
/// snapshot is not in it. EBUSY when it is protected.
pub async fn remove(image: &Image, header: &ImageHeader, id: SnapId) -> Result<Removal> {
    if let Some(removal) = prepare_removal(image, header, id).await? {
        return Ok(removal);
    }
    let what = || format!("cannot remove snapshot {id} of image {}", image.id());
    image.data_ioctx().snap_remove(id).await.optional().context(what())?;
    let removed = HeaderUpdate::of(image.id()).snapshot_remove(id).apply(image.header_ioctx()).await;
    removed.optional().context(what())?;
    Ok(Removal::Gone)
}

/// As [`remove`], but leaves the record in the header: in one that is itself removed next.
pub(crate) async fn remove_all_but_record(
    image: &Image,
    header: &ImageHeader,
    id: SnapId,
) -> Result<Removal> {
    if let Some(removal) = prepare_removal(image, header, id).await? {
        return Ok(removal);
    }
    let what = || format!("cannot remove snapshot {id} of image {}", image.id());
    image.data_ioctx().snap_remove(id).await.optional().context(what())?;
    Ok(Removal::Gone)
}

/// True for a mirror-snapshot, also for one whose removal was cut off.
pub(crate) fn is_of_mirroring(snap: &Snapshot) -> bool {
    match &snap.namespace {
        SnapshotNamespace::Mirror(_) => true,
        SnapshotNamespace::Trash { original_namespace_type, .. } => {
            *original_namespace_type == namespace_type::MIRROR
        }
        _ => false,
    }
}

/// Does all of a removal but giving back the id and removing the record; `None` when these are left to be done.
async fn prepare_removal(image: &Image, header: &ImageHeader, id: SnapId) -> Result<Option<Removal>> {
    let Some(snap) = header.snapshots.get(&id) else {
        return Ok(Some(Removal::Gone));
    };
    let what = || format!("cannot remove snapshot '{}' ({id}) of image {}", snap.name, image.id());
    if !matches!(snap.namespace, SnapshotNamespace::Trash { .. }) {
        let trash = HeaderUpdate::of(image.id()).snapshot_trash_add(id).apply(image.header_ioctx()).await;
        match trash {
            Err(error) if error.is(libc::EEXIST) => {}
            // Somebody else removed it meanwhile.
            Err(error) if error.is_not_found() => return Ok(Some(Removal::Gone)),
            other => other.context(what())?,
        }
    }
    if has_living_children(image, id).await.context(what())? {
        return Ok(Some(Removal::KeptForClones));
    }
    if is_last_reference_to_parent(header, snap) {
        children::detach_child(image, header).await.context(what())?;
    }
    if header.features.has(Features::OBJECT_MAP) {
        remove_object_map(image, header, snap).await.context(what())?;
    }
    if has_image_state(&snap.namespace) {
        crate::image_state::remove_image_state(image.header_ioctx(), image.id(), id).await.context(what())?;
    }
    Ok(None)
}

/// True when v2 clones are registered. Those in pools that are gone are struck out.
async fn has_living_children(image: &Image, id: SnapId) -> Result<bool> {
    let children = children::v2_children(image.header_ioctx(), image.id(), id).await?;
    if children.is_empty() {
        return Ok(false);
    }
    let pools = image.header_ioctx().backend().pools().await?;
    let mut living = false;
    for child in children {
        if pools.iter().any(|(pool, _)| *pool == child.pool) {
            living = true;
            continue;
        }
        let detach = HeaderUpdate::of(image.id()).child_detach(id, &child);
        detach.apply(image.header_ioctx()).await.optional()?;
    }
    Ok(living)
}

fn is_last_reference_to_parent(header: &ImageHeader, snap: &Snapshot) -> bool {
    let others = header.snapshots.values().any(|other| other.id != snap.id && other.parent.is_some());
    snap.parent.is_some() && header.parent.is_none() && !others
}

/// True when mirroring may have stored the image's state with the snapshot.
fn has_image_state(namespace: &SnapshotNamespace) -> bool {
    match namespace {
        SnapshotNamespace::Mirror(mirror) => !mirror.is_orphan(),
        // A removal that was cut off: what the snapshot was is all that is still known.
        SnapshotNamespace::Trash { original_namespace_type, .. } => {
            *original_namespace_type == namespace_type::MIRROR
        }
        _ => false,
    }
}

/// Merges a snapshot's object map into the next newer one, and removes it.
async fn remove_object_map(image: &Image, header: &ImageHeader, snap: &Snapshot) -> Result<()> {
    let map = image.object_map(snap.id);
    if header.features.has(Features::FAST_DIFF) {
        let next = header.next_snapshot(snap.id);
        match map.load().await {
            // Already merged and removed.
            Err(error) if error.is_not_found() => return Ok(()),
            Ok(content) if !snap.flags.has(ImageFlags::OBJECT_MAP_INVALID) => {
                merge_object_map(image, header, next, &content).await?;
            }
            Ok(_) => invalidate_object_map(image, header, next).await?,
            Err(error) if error.is(libc::EINVAL) || error.is(libc::EBADMSG) => {
                tracing::warn!(image = %image.id(), "flagging the next object map as invalid: {error}");
                invalidate_object_map(image, header, next).await?;
            }
            Err(error) => return Err(error),
        }
    }
    map.remove().await
}

async fn merge_object_map(
    image: &Image,
    header: &ImageHeader,
    next: SnapId,
    removed: &crate::object_map::ObjectMap,
) -> Result<()> {
    match image.object_map(next).snap_remove(removed).await {
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) if error.is(libc::EINVAL) => {
            tracing::warn!(image = %image.id(), "flagging the next object map as invalid: {error}");
            invalidate_object_map(image, header, next).await
        }
        other => other,
    }
}

/// Renames a user snapshot. It is no error when it already has the name. EEXIST when another one has it.
pub async fn rename(image: &Image, header: &ImageHeader, id: SnapId, name: &str) -> Result<()> {
    if header.snapshots.get(&id).is_some_and(|snap| snap.name == name) {
        return Ok(());
    }
    HeaderUpdate::of(image.id()).snapshot_rename(id, name).apply(image.header_ioctx()).await
}

/// Protects a snapshot against removal. It is no error when it is protected.
pub async fn protect(image: &Image, header: &ImageHeader, id: SnapId) -> Result<()> {
    if header.snapshots.get(&id).is_some_and(|snap| snap.protection == ProtectionStatus::Protected) {
        return Ok(());
    }
    set_protection(image, id, ProtectionStatus::Protected).await
}

/// Lifts the protection of a snapshot. It is no error when it is not protected. EBUSY when it has v1 clones in any
/// pool: it then stays protected.
pub async fn unprotect(image: &Image, header: &ImageHeader, id: SnapId) -> Result<()> {
    if header.snapshots.get(&id).is_some_and(|snap| snap.protection == ProtectionStatus::Unprotected) {
        return Ok(());
    }
    // Whoever clones it looks at the protection after listing the clone: one of both sees the other.
    set_protection(image, id, ProtectionStatus::Unprotecting).await?;
    match refuse_v1_children(image, id).await {
        Ok(()) => set_protection(image, id, ProtectionStatus::Unprotected).await,
        Err(error) => {
            set_protection(image, id, ProtectionStatus::Protected).await?;
            Err(error)
        }
    }
}

async fn set_protection(image: &Image, id: SnapId, status: ProtectionStatus) -> Result<()> {
    HeaderUpdate::of(image.id()).set_protection(id, status).apply(image.header_ioctx()).await
}

async fn refuse_v1_children(image: &Image, id: SnapId) -> Result<()> {
    let ioctx = image.header_ioctx();
    ioctx.backend().wait_for_latest_osdmap().await?;
    let pools = ioctx.backend().pools().await?;
    let parent = ParentSpec {
        pool: ioctx.pool_id(),
        namespace: ioctx.namespace().to_string(),
        image: image.id().clone(),
        snap: id,
    };
    let clones =
        children::v1_children_anywhere(ioctx, pools.into_iter().map(|(pool, _)| pool), &parent).await?;
    let Some(clone) = clones.first() else {
        return Ok(());
    };
    let what = format!(
        "cannot unprotect snapshot {id} of image {}: it has {} clones, one of them image {} in pool {}",
        image.id(),
        clones.len(),
        clone.image,
        clone.pool
    );
    Err(Error::new(libc::EBUSY, what))
}
