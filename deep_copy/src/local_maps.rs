//! Object maps of the copy around a round: made for the snapshots that are going to be filled, loaded for the copy, cut
//! when it is done.
//!
//! A map that makes no sense is flagged as invalid, and keeps nobody from copying or promoting.

use rados::{ErrorClass, Result, SnapId};
use rbd::image::OpenImage;
use rbd::object_map::ObjectState;
use rbd::{Features, ImageFlags, limits, snapshots};

use crate::object_map_sync::MapSync;
use crate::steps::CopySteps;

/// Maps that are made at the same time.
const MAPS_IN_FLIGHT: usize = 4;

/// Gives each of `snaps` the head's object map, cut to its size in bytes and with everything clean: the head equals
/// the snapshot before. The copy corrects them.
pub async fn copy_head_map(local: &OpenImage, snaps: &[(SnapId, u64)]) -> Result<()> {
    if !local.header.features.has(Features::OBJECT_MAP) {
        return Ok(());
    }
    let head = match local.image.object_map(SnapId::HEAD).load().await {
        Ok(head) => head,
        // The copy finds out by itself, and flags it.
        Err(error) if error.class() == ErrorClass::Permanent => return Ok(()),
        Err(error) => return Err(error),
    };
    // Of large images a map takes tens of megabytes, and there may be many snapshots.
    for snaps in snaps.chunks(MAPS_IN_FLIGHT) {
        let mut copies = Vec::new();
        for (snap, size) in snaps {
            limits::judge_size(&local.header.layout, local.header.features, *size)?;
            let mut map = head.clone();
            map.resize(local.header.layout.object_count(*size));
            if local.header.features.has(Features::FAST_DIFF) {
                map.snap_add();
            }
            let object = local.image.object_map(*snap);
            copies.push(async move { object.save(&map).await });
        }
        futures::future::try_join_all(copies).await?;
    }
    Ok(())
}

/// While it is being filled the head has room for every object of every step; the commit cuts its map.
pub async fn grow_head_map(local: &OpenImage, objects: u64) -> Result<()> {
    if !local.header.features.has(Features::OBJECT_MAP) {
        return Ok(());
    }
    let map = local.image.object_map(SnapId::HEAD);
    match map.load().await {
        Ok(stored) if stored.len() < objects => map.resize(objects, ObjectState::NonExistent).await,
        // The copy finds out by itself that a map makes no sense, and flags it.
        Err(error) if error.class() != ErrorClass::Permanent => Err(error),
        _ => Ok(()),
    }
}

/// The maps of the head and of the snapshots that `steps` fill; `None` when the image has none, or when they must not be
/// believed.
pub async fn load(local: &OpenImage, steps: &CopySteps) -> Result<Option<MapSync>> {
    let (features, flags) = (local.header.features, local.header.flags);
    if !features.has(Features::OBJECT_MAP) {
        return Ok(None);
    }
    let image = &local.image;
    let snapshots = steps.steps().iter().map(|step| image.object_map(step.local)).collect();
    let maps =
        MapSync::load(image.object_map(SnapId::HEAD), snapshots, features.has(Features::FAST_DIFF)).await;
    match maps {
        Ok(maps) if !flags.has(ImageFlags::OBJECT_MAP_INVALID) => Ok(Some(maps)),
        Ok(_) => Ok(None),
        Err(error) if error.class() == ErrorClass::Permanent => {
            tracing::warn!(image = %image.id(), "leaving the object map alone: {error}");
            snapshots::invalidate_object_map(image, &local.header, SnapId::HEAD).await?;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Cuts the head's object map to the size that the image has now; the round may have needed a larger one.
pub async fn cut_head_map(local: &OpenImage) -> Result<()> {
    if !local.header.features.has(Features::OBJECT_MAP) {
        return Ok(());
    }
    let objects = local.header.layout.object_count(local.header.size);
    match local.image.object_map(SnapId::HEAD).resize(objects, ObjectState::NonExistent).await {
        // A map that makes no sense is flagged as such, and keeps nobody from promoting.
        Err(error) if error.class() == ErrorClass::Permanent => {
            tracing::warn!(image = %local.image.id(), "leaving the object map alone: {error}");
            snapshots::invalidate_object_map(&local.image, &local.header, SnapId::HEAD).await
        }
        other => other,
    }
}
