//! Setting the copy's head back to a snapshot.
//!
//! The size first, then object by object: the OSDs do it themselves. Once begun it is not cut off by a promotion, which would
//! find a head of two times. With a fast-diff that may be believed only objects
//! that were changed since the snapshot are touched; the others are equal already.
//!
//! librbd copies the snapshot's object map to the head. Here the head's map says of each object that was touched that it
//! was written since the newest snapshot, which is what happened to it, and before it is touched that it may exist.
//!
//! This is not [`rbd::rollback`], which promotion uses: that one gives a clone that was shrunk the overlap with its parent
//! back, as the snapshot had it. librbd does not, and the copy is to be what librbd made of the primary.
//!
//! Reference: `src/librbd/operation/SnapshotRollbackRequest.cc`.

use std::ops::Range;

use futures::future::try_join_all;
use rados::error::ResultExt;
use rados::{Error, ErrorClass, Result, SnapId, WriteSub};
use rbd::{Features, ImageFlags, ObjectMap, ObjectNumber, ObjectState, SnapshotNamespace};

use super::{Maintainer, OBJECTS_PER_BATCH, for_each_object};

impl Maintainer {
    pub(super) async fn rollback(&mut self, namespace: &SnapshotNamespace, name: &str) -> Result<()> {
        let Some(snap) = self.find(namespace, name) else {
            return Err(Error::new(libc::ENOENT, format!("the copy has no snapshot '{name}'")));
        };
        let (snap, size) = (snap.id, snap.image_size);
        self.resize(size).await?;
        let then = self.map_at(snap).await?;
        let changed = self.changed_since(snap, then.as_ref()).await?;
        let target = self.target().await?;
        let mut changed = changed.into_iter().flatten().map(ObjectNumber);
        loop {
            let batch: Vec<ObjectNumber> = changed.by_ref().take(OBJECTS_PER_BATCH).collect();
            if batch.is_empty() {
                return Ok(());
            }
            let exists = |object: &ObjectNumber| then.as_ref().is_none_or(|map| map.get(*object).may_exist());
            let state = |object: &ObjectNumber| (*object, ObjectState::Exists);
            let may_exist = batch.iter().filter(|object| exists(object) || self.may_exist(**object));
            self.mark(may_exist.map(state).collect()).await?;
            let target = &target;
            let back = |object| async move {
                let back = target.op(object).with(WriteSub::Rollback(snap));
                target.send(back).await.optional().map(drop)
            };
            for_each_object(batch.clone(), back).await?;
            let gone = batch.iter().filter(|object| !exists(object));
            self.mark(gone.map(|object| (*object, ObjectState::NonExistent)).collect()).await?;
        }
    }

    /// The object map of a snapshot; `None` when there is none that may be believed.
    async fn map_at(&self, snap: SnapId) -> Result<Option<ObjectMap>> {
        let header = &self.local.header;
        let flags = header.flags_at(snap).unwrap_or(ImageFlags::OBJECT_MAP_INVALID);
        if !header.features.has(Features::OBJECT_MAP) || flags.has(ImageFlags::OBJECT_MAP_INVALID) {
            return Ok(None);
        }
        match self.local.image.object_map(snap).load().await {
            Ok(map) => Ok(Some(map)),
            Err(error) if error.class() == ErrorClass::Permanent => {
                tracing::warn!(image = %self.local.image.id(), "doing without an object map: {error}");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Objects that may be other than they were at `snap`, as runs; the image has the size that it had then.
    async fn changed_since(&self, snap: SnapId, then: Option<&ObjectMap>) -> Result<Vec<Range<u64>>> {
        let header = &self.local.header;
        let all = 0..header.object_count();
        let (Some(then), Some(now)) = (then, self.stored_map()) else { return Ok(vec![all]) };
        let newer: Vec<SnapId> = header.snapshots.keys().copied().filter(|id| *id > snap).collect();
        let believed =
            |id: &SnapId| header.flags_at(*id).is_some_and(|flags| !flags.has(ImageFlags::FAST_DIFF_INVALID));
        let fast_diff =
            header.features.has(Features::FAST_DIFF) && newer.iter().chain([&SnapId::HEAD]).all(believed);
        let between =
            if fast_diff { try_join_all(newer.iter().map(|id| self.map_at(*id))).await? } else { Vec::new() };
        let fast_diff = fast_diff && between.iter().all(Option::is_some);
        let changed = |object: &ObjectNumber| {
            let states = [then.get(*object), now.get(*object)];
            if states == [ObjectState::NonExistent; 2] {
                return false;
            }
            // In each map an object is clean when it was not written since the snapshot before.
            let clean = |map: &ObjectMap| map.get(*object) == ObjectState::ExistsClean;
            !(fast_diff && clean(now) && between.iter().flatten().all(clean))
        };
        let mut runs: Vec<Range<u64>> = Vec::new();
        for object in all.filter(|object| changed(&ObjectNumber(*object))) {
            match runs.last_mut() {
                Some(run) if run.end == object => run.end += 1,
                _ => runs.push(object..object + 1),
            }
        }
        Ok(runs)
    }
}
