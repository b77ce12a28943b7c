//! Making the copy larger or smaller.
//!
//! Growing: the object map first, then the header. Shrinking: what lies behind the new end goes (and with it, in the
//! header, the overlap with the parent), then the header, then the object map. A map that is larger than its image is cut
//! when it is read (`head_map.rs`), so either order survives being cut off.
//!
//! Once begun it is not cut off by a promotion: a part of what lies behind the new end would be gone, within the old size.
//!
//! With snapshots, an object that shows the parent and now leaves the image is copied up before: the snapshots keep it,
//! also when the image is flattened later.
//!
//! Reference: `src/librbd/operation/ResizeRequest.cc`, `TrimRequest.cc`.

use rados::error::ResultExt;
use rados::{Result, WriteSub};
use rbd::{ObjectNumber, ObjectState, limits};

use super::{Maintainer, OBJECTS_PER_BATCH, for_each_object};
use crate::replay::head_map::HeadMap;
use crate::replay::target::Target;

impl Maintainer {
    pub(super) async fn resize(&mut self, size: u64) -> Result<()> {
        let current = self.local.header.size;
        if size == current {
            return Ok(());
        }
        limits::judge_size(&self.local.header.layout, self.local.header.features, size)?;
        let objects = self.local.header.layout.object_count(size);
        let map = self.map.is_some().then(|| self.local.image.object_map(rados::SnapId::HEAD));
        if size > current {
            if let Some(map) = &map {
                map.resize(objects, ObjectState::NonExistent).await?;
            }
            self.apply(self.header_update().set_size(size)).await?;
        } else {
            self.trim(size).await?;
            self.apply(self.header_update().set_size(size)).await?;
            if let Some(map) = &map {
                map.resize(objects, ObjectState::NonExistent).await?;
            }
        }
        self.local.refresh().await?;
        self.map = HeadMap::load(&self.local).await?;
        Ok(())
    }

    /// Does away with everything behind `size`.
    async fn trim(&mut self, size: u64) -> Result<()> {
        let target = self.target().await?;
        let layout = self.local.header.layout;
        let current = self.local.header.size;
        // Within a set, objects end at different places; sets before the new end are whole.
        let first = size / layout.period() * layout.stripe_count();
        let mut left = first..layout.object_count(current);
        loop {
            let cut = left.by_ref().map(ObjectNumber).filter(|object| {
                let keeps = layout.used_bytes(*object, size);
                let kept_whole = keeps == layout.used_bytes(*object, current);
                !kept_whole && (self.may_exist(*object) || target.is_covered(*object))
            });
            let batch: Vec<ObjectNumber> = cut.take(OBJECTS_PER_BATCH).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let keeps = |object: &ObjectNumber| layout.used_bytes(*object, size);
            let state = |object: &ObjectNumber| match keeps(object) {
                0 => ObjectState::Pending,
                _ => ObjectState::Exists,
            };
            // One that does not exist is copied up, or left as it is.
            let copied_up = target.has_snapshots();
            let there = batch.iter().filter(|object| copied_up || self.may_exist(**object));
            self.mark(there.map(|object| (*object, state(object))).collect()).await?;
            let cut = |object| cut_object(&target, object, keeps(&object));
            for_each_object(batch.clone(), cut).await?;
            let gone = batch.iter().filter(|object| keeps(object) == 0);
            self.mark(gone.map(|object| (*object, ObjectState::NonExistent)).collect()).await?;
        }
    }
}

/// Leaves only the first `keeps` bytes of an object.
async fn cut_object(target: &Target, object: ObjectNumber, keeps: u64) -> Result<()> {
    let cut = match keeps {
        0 => WriteSub::Remove,
        keeps => WriteSub::Truncate(keeps),
    };
    let cut = target.op(object).with(WriteSub::AssertExists).with(cut);
    match target.send(cut.clone()).await {
        Err(error) if error.is_not_found() => {}
        other => return other,
    }
    // The head's overlap with the parent ends with the head; that of the snapshots does not.
    if target.has_snapshots() && target.copy_up(object).await? {
        target.send(cut).await.optional()?;
    }
    Ok(())
}
