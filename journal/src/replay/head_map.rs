//! The object map of the copy's head, as it is stored. Nobody else changes it: the image's lock is held.
//!
//! A map that is flagged as invalid is left alone, and so is whatever it says. One that is larger than the image (resizing
//! was cut off) is cut; one that cannot be used otherwise is flagged.
//!
//! Reference: `src/librbd/object_map/RefreshRequest.cc`.

use futures::future::{BoxFuture, FutureExt, join_all};
use rados::{ErrorClass, Result, SnapId};
use rbd::image::OpenImage;
use rbd::object_map::{ObjectMapObject, coalesced};
use rbd::{Features, ImageFlags, ObjectMap, ObjectNumber, ObjectState, snapshots};

/// Ranges up to which a map is updated range by range; else it is written whole.
const RANGES_MAX: usize = 4;
/// One more for so many objects: a larger map costs more to write.
const OBJECTS_PER_RANGE: u64 = 8192;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct HeadMap {
    object: ObjectMapObject,
    stored: ObjectMap,
}

impl HeadMap {
    /// Reads the map; `None` when there is no valid one.
    pub async fn load(local: &OpenImage) -> Result<Option<HeadMap>> {
        let OpenImage { image, header } = local;
        let valid = !header.flags.has(ImageFlags::OBJECT_MAP_INVALID);
        if !header.features.has(Features::OBJECT_MAP) || !valid {
            return Ok(None);
        }
        let (object, objects) = (image.object_map(SnapId::HEAD), header.object_count());
        let why = match object.load().await {
            Ok(stored) if stored.len() == objects => return Ok(Some(HeadMap { object, stored })),
            Ok(mut stored) if stored.len() > objects => {
                stored.resize(objects);
                object.save(&stored).await?;
                return Ok(Some(HeadMap { object, stored }));
            }
            Ok(stored) => format!("it is for {} objects, not {objects}", stored.len()),
            Err(error) if error.class() == ErrorClass::Permanent => error.to_string(),
            Err(error) => return Err(error),
        };
        tracing::warn!(image = %image.id(), "flagging the object map as invalid: {why}");
        snapshots::invalidate_object_map(image, header, SnapId::HEAD).await?;
        Ok(None)
    }

    /// The map as it is stored.
    pub fn stored(&self) -> &ObjectMap {
        &self.stored
    }

    /// Stores states, when the future is driven. It must be driven to its end before the next change.
    pub fn change(&mut self, states: Vec<(ObjectNumber, ObjectState)>) -> BoxFuture<'static, Result<()>> {
        for (object, state) in &states {
            self.stored.set(*object, *state);
        }
        let (object, updates) = (self.object.clone(), coalesced(states));
        let ranges_max = RANGES_MAX + (self.stored.len() / OBJECTS_PER_RANGE) as usize;
        if updates.len() > ranges_max {
            let whole = self.stored.clone();
            return async move { object.save(&whole).await }.boxed();
        }
        let all = async move { join_all(updates.iter().map(|update| object.update(update))).await };
        // All are awaited, so that none is in flight behind an error.
        async move { all.await.into_iter().collect() }.boxed()
    }
}
