//! Rolling an image back to one of its snapshots.
//!
//! Each object becomes what it was then; objects behind the end that the image had then go; then the head's object map
//! becomes the snapshot's, and last the size and the overlap with the parent become what they were. So a rollback that
//! was cut off still knows what there is to be done, and can be repeated. (librbd, which never repeats one, begins with
//! size and object map, and does not give a clone back the overlap that it had.)
//!
//! Nobody may write to the image meanwhile: the exclusive lock is the caller's to hold. Those who have the image open
//! learn of it from a notification, which is the caller's to send, too.
//!
//! Reference: `src/librbd/operation/SnapshotRollbackRequest.cc`, `src/librbd/object_map/SnapshotRollbackRequest.cc`.

use futures::{StreamExt, TryStreamExt};
use rados::error::ResultExt;
use rados::{Error, Result, SnapId, WriteOp, WriteSub};

use crate::header::ImageHeader;
use crate::header_update::HeaderUpdate;
use crate::image::Image;
use crate::object_map::{ObjectMap, ObjectState};
use crate::snapshots::invalidate_object_map;
use crate::types::{Features, ImageFlags, ObjectNumber};

/// How to roll back.
#[derive(Debug, Clone, Copy)]
pub struct RollbackOptions {
    /// Objects worked on at once.
    pub in_flight: usize,
    /// Objects that neither the head's object map nor the snapshot's knows are passed over. Not to be set when an earlier
    /// rollback by another program was cut off: the head's map may then say what is not so yet.
    pub trust_object_maps: bool,
}

/// Rolls the head back to `snap`. `header` must be fresh. `progress` hears how many of how many objects are done. ENOENT
/// when there is no such snapshot.
pub async fn rollback(
    image: &Image,
    header: &ImageHeader,
    snap: SnapId,
    options: RollbackOptions,
    progress: impl FnMut(u64, u64),
) -> Result<()> {
    let what = || format!("cannot roll image {} back to snapshot {snap}", image.id());
    let Some(size) = header.snapshots.get(&snap).map(|snapshot| snapshot.image_size) else {
        return Err(Error::new(libc::ENOENT, format!("{}: there is no such snapshot", what())));
    };
    rollback_objects(image, header, snap, options, progress).await.context(what())?;
    rollback_object_map(image, header, snap).await.context(what())?;
    if header.size != size {
        HeaderUpdate::of(image.id()).set_size(size).apply(image.header_ioctx()).await.context(what())?;
    }
    restore_overlap(image, header, snap).await.context(what())
}

async fn rollback_objects(
    image: &Image,
    header: &ImageHeader,
    snap: SnapId,
    options: RollbackOptions,
    mut progress: impl FnMut(u64, u64),
) -> Result<()> {
    let count = |size| header.layout.object_count(size);
    let (head_count, snap_count) = (header.object_count(), count(header.size_at(snap).unwrap_or(0)));
    let maps = match options.trust_object_maps {
        true => {
            (believable_map(image, header, SnapId::HEAD).await?, believable_map(image, header, snap).await?)
        }
        false => (None, None),
    };
    let total = head_count.max(snap_count);
    let passed_over = |object: &u64| match &maps {
        (Some(of_head), Some(of_snap)) => {
            let object = ObjectNumber(*object);
            object.0 < head_count && !of_head.get(object).may_exist() && !of_snap.get(object).may_exist()
        }
        _ => false,
    };
    let objects = (0..total).filter(|object| !passed_over(object));
    rollback_each(image, header, snap, options.in_flight, objects, |done| progress(done, total)).await?;
    progress(total, total);
    Ok(())
}

async fn rollback_each(
    image: &Image,
    header: &ImageHeader,
    snap: SnapId,
    in_flight: usize,
    objects: impl Iterator<Item = u64>,
    mut progress: impl FnMut(u64),
) -> Result<()> {
    let snap_count = header.layout.object_count(header.size_at(snap).unwrap_or(0));
    let mut changes = futures::stream::iter(objects)
        .map(|object| async move {
            let sub = if object < snap_count { WriteSub::Rollback(snap) } else { WriteSub::Remove };
            let name = image.data_object(ObjectNumber(object));
            let op = WriteOp::new(name).under(header.snap_context.clone()).with(sub);
            image.data_ioctx().write(op).await.optional()
        })
        .buffer_unordered(in_flight.max(1));
    let mut done = 0;
    while changes.try_next().await?.is_some() {
        done += 1;
        progress(done);
    }
    Ok(())
}

/// Undoes what was written to the head since `snap`, its newest snapshot, was made; the size must not have changed since.
/// Answers with how many objects were rolled back: those that the object maps call written, or all where these do not
/// tell. Can be repeated, like a rollback. `header` must be fresh, and the exclusive lock is the caller's to hold.
pub async fn undo_later_writes(
    image: &Image,
    header: &ImageHeader,
    snap: SnapId,
    in_flight: usize,
) -> Result<u64> {
    let what = || format!("cannot undo what was written to image {} since snapshot {snap}", image.id());
    let undone = async {
        let fast_diff = header.features.has(Features::FAST_DIFF);
        let maps = match fast_diff && fast_diff_is_valid(header, snap) {
            true => believable_map(image, header, SnapId::HEAD)
                .await?
                .zip(believable_map(image, header, snap).await?),
            false => None,
        };
        let all = 0..header.object_count();
        let Some((of_head, mut of_snap)) = maps else {
            let count = all.end;
            rollback_each(image, header, snap, in_flight, all, |_| {}).await?;
            return Ok(count);
        };
        let written = |object: &u64| {
            written_since(of_head.get(ObjectNumber(*object)), of_snap.get(ObjectNumber(*object)))
        };
        let objects: Vec<u64> = all.filter(written).collect();
        let count = objects.len() as u64;
        rollback_each(image, header, snap, in_flight, objects.iter().copied(), |_| {}).await?;
        if count > 0 {
            let mut target = of_head.clone();
            of_snap.snap_add();
            objects.iter().map(|object| ObjectNumber(*object)).for_each(|o| target.set(o, of_snap.get(o)));
            image.object_map(SnapId::HEAD).asserting_lock(true).store(&of_head, &target).await?;
        }
        Ok(count)
    };
    undone.await.context(what())
}

fn fast_diff_is_valid(header: &ImageHeader, snap: SnapId) -> bool {
    let valid = |flags: ImageFlags| !flags.has(ImageFlags::FAST_DIFF_INVALID);
    [SnapId::HEAD, snap].into_iter().all(|at| header.flags_at(at).is_some_and(valid))
}

/// True when an object was written or removed since a snapshot, as the states in the maps of the head and of that newest
/// snapshot tell.
fn written_since(in_head: ObjectState, in_snap: ObjectState) -> bool {
    match in_head {
        ObjectState::Exists | ObjectState::Pending => true,
        ObjectState::ExistsClean => !in_snap.may_exist(),
        ObjectState::NonExistent => in_snap.may_exist(),
    }
}

/// The object map of the head or of a snapshot, when it may be believed.
async fn believable_map(image: &Image, header: &ImageHeader, snap: SnapId) -> Result<Option<ObjectMap>> {
    let valid = |flags: ImageFlags| !flags.has(ImageFlags::OBJECT_MAP_INVALID);
    if !header.features.has(Features::OBJECT_MAP) || !header.flags_at(snap).is_some_and(valid) {
        return Ok(None);
    }
    let objects = header.layout.object_count(header.size_at(snap).unwrap_or(0));
    match image.object_map(snap).load().await {
        Ok(map) if map.len() >= objects => Ok(Some(map)),
        Ok(_) => Ok(None),
        Err(error) if is_unreadable(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// True when an object map is absent or corrupt.
fn is_unreadable(error: &Error) -> bool {
    error.is_not_found() || error.is(libc::EINVAL) || error.is(libc::EBADMSG)
}

async fn rollback_object_map(image: &Image, header: &ImageHeader, snap: SnapId) -> Result<()> {
    if !header.features.has(Features::OBJECT_MAP) {
        return Ok(());
    }
    match image.object_map(snap).load().await {
        Ok(map) => image.object_map(SnapId::HEAD).asserting_lock(true).save(&map).await,
        Err(error) if is_unreadable(&error) => {
            tracing::warn!(image = %image.id(), "flagging the object maps as invalid: {error}");
            invalidate_object_map(image, header, snap).await?;
            invalidate_object_map(image, header, SnapId::HEAD).await
        }
        Err(error) => Err(error),
    }
}

/// Gives a clone that was shrunk since, and so lost sight of the end of its parent, the overlap that it had.
async fn restore_overlap(image: &Image, header: &ImageHeader, snap: SnapId) -> Result<()> {
    let Some(then) = header.parent_at(snap).filter(|parent| parent.overlap > 0) else {
        return Ok(());
    };
    let now = header.parent.as_ref().map_or(0, |parent| parent.overlap);
    // Growing does not lessen it, and shrinking lessens it to what it was at the most.
    if now.min(header.size_at(snap).unwrap_or(0)) >= then.overlap {
        return Ok(());
    }
    let attach = HeaderUpdate::of(image.id()).parent_attach(&then.spec(), then.overlap, true);
    attach.apply(image.header_ioctx()).await
}
