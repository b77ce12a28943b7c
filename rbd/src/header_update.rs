//! Changes of an image's header.
//!
//! A [`HeaderUpdate`] gathers class method calls on `rbd_header.ID` into one atomic write. Mind that an OSD does not
//! see, within one operation, what earlier parts of it wrote: calls that read and write the same key must not be
//! combined. Keys: `size` and `parent` (`set_size`, `parent_*`), `features` (`set_features`, `op_features_set`, and
//! every call on snapshots and children, which derive operation features), `flags`, and one per snapshot.
//!
//! librbd does not assert its lock in these writes: a client that lost it is blocklisted before the next one gets it.
//! [`HeaderUpdate::if_locked`] asserts it anyway, for a writer that wants to be sure.
//!
//! Those who have the image open learn of it from a notification, which is the caller's to send, once for all he does:
//! [`crate::watch_notify::notify_header_update`].
//!
//! Reference: `src/cls/rbd/cls_rbd.cc`, `src/cls/lock/cls_lock.cc`.

use std::collections::BTreeMap;

use bytes::Bytes;
use rados::encoding::Encoder;
use rados::error::ResultExt;
use rados::lock::{LockKind, LockRequest};
use rados::{IoCtx, Result, SnapId, WriteOp, WriteSub};

use crate::layout::header_object;
use crate::types::{
    ChildImage, Features, ImageFlags, ImageId, OpFeatures, ParentSpec, ProtectionStatus, SnapshotNamespace,
};

/// Name of the class lock on headers and object maps.
pub const LOCK_NAME: &str = "rbd_lock";

/// One atomic change of an image's header. Nothing happens before [`HeaderUpdate::apply`].
#[derive(Debug, Clone)]
#[must_use = "a header update does nothing until it is applied"]
pub struct HeaderUpdate {
    op: WriteOp,
    image: ImageId,
    what: Vec<&'static str>,
}

/// Adds to `op` the assertion that this client holds the exclusive class lock of the object under this cookie and tag
/// (EBUSY otherwise).
pub(crate) fn assert_locked(op: WriteOp, cookie: &str, tag: &str) -> WriteOp {
    op.with(LockRequest::new(LOCK_NAME, LockKind::Exclusive, cookie).tagged(tag).assert_locked_sub())
}

impl HeaderUpdate {
    /// A change of nothing yet.
    pub fn of(image: &ImageId) -> HeaderUpdate {
        HeaderUpdate { op: WriteOp::new(header_object(image)), image: image.clone(), what: Vec::new() }
    }

    /// Nothing is changed (EBUSY) unless this client holds the image's exclusive lock under this cookie and tag.
    pub fn if_locked(mut self, cookie: &str, tag: &str) -> HeaderUpdate {
        self.op = assert_locked(self.op, cookie, tag);
        self
    }

    fn call(mut self, method: &'static str, input: impl FnOnce(&mut Encoder)) -> HeaderUpdate {
        let mut e = Encoder::new();
        input(&mut e);
        self.op = self.op.exec("rbd", method, e.finish());
        self.what.push(method);
        self
    }

    /// Sets the size in bytes; shrinks the overlap with the parent, too.
    pub fn set_size(self, size: u64) -> HeaderUpdate {
        self.call("set_size", |e| {
            e.u64(size);
        })
    }

    /// Sets the feature bits of `mask` to those of `features`. EINVAL for bits that may not be changed.
    pub fn set_features(self, features: Features, mask: Features) -> HeaderUpdate {
        self.call("set_features", |e| {
            e.u64(features.0).u64(mask.0);
        })
    }

    /// Sets the operation feature bits of `mask` to those of `features`.
    pub fn set_op_features(self, features: OpFeatures, mask: OpFeatures) -> HeaderUpdate {
        self.call("op_features_set", |e| {
            e.u64(features.0).u64(mask.0);
        })
    }

    /// Sets the flag bits of `mask` of the head or of a snapshot to those of `flags`.
    pub fn set_flags(self, flags: ImageFlags, mask: ImageFlags, snap: SnapId) -> HeaderUpdate {
        self.call("set_flags", |e| {
            e.u64(flags.0).u64(mask.0).u64(snap.0);
        })
    }

    /// Sets stripe unit (bytes) and count (objects) of an image that has the striping feature.
    pub fn set_stripe(self, stripe_unit: u64, stripe_count: u64) -> HeaderUpdate {
        self.call("set_stripe_unit_count", |e| {
            e.u64(stripe_unit).u64(stripe_count);
        })
    }

    /// Makes the image a clone, `overlap` bytes of which (at most its size) come from the parent. EEXIST when it
    /// already is one, unless `reattach`.
    pub fn parent_attach(self, parent: &ParentSpec, overlap: u64, reattach: bool) -> HeaderUpdate {
        self.call("parent_attach", |e| {
            e.value(parent).u64(overlap).bool(reattach);
        })
    }

    /// Makes the image no clone any more; snapshots stay clones unless it has the deep-flatten feature. ENOENT when it
    /// is none.
    pub fn parent_detach(self) -> HeaderUpdate {
        self.call("parent_detach", |_| {})
    }

    /// The older form of [`HeaderUpdate::parent_detach`], for parents outside of namespaces.
    pub fn remove_parent(self) -> HeaderUpdate {
        self.call("remove_parent", |_| {})
    }

    /// Sets metadata.
    pub fn set_metadata<V: AsRef<[u8]>>(self, metadata: &BTreeMap<String, V>) -> HeaderUpdate {
        self.call("metadata_set", |e| {
            e.string_map(metadata);
        })
    }

    /// Removes a key of the metadata; it is no error when it is absent.
    pub fn remove_metadata(self, key: &str) -> HeaderUpdate {
        self.call("metadata_remove", |e| {
            e.string(key);
        })
    }

    /// Adds a snapshot of the present state. ESTALE when a newer id was in use before, EEXIST when the id or name is
    /// taken, EDQUOT at the limit.
    pub fn snapshot_add(self, snap: SnapId, name: &str, namespace: &SnapshotNamespace) -> HeaderUpdate {
        self.call("snapshot_add", |e| {
            e.string(name).u64(snap.0).value(namespace);
        })
    }

    /// Removes a snapshot. ENOENT when there is none, EBUSY when it is protected or has clones.
    pub fn snapshot_remove(self, snap: SnapId) -> HeaderUpdate {
        self.call("snapshot_remove", |e| {
            e.u64(snap.0);
        })
    }

    /// Moves a snapshot to the trash namespace, so that nobody clones it any more. EEXIST when it is there, EBUSY when
    /// it is protected.
    pub fn snapshot_trash_add(self, snap: SnapId) -> HeaderUpdate {
        self.call("snapshot_trash_add", |e| {
            e.u64(snap.0);
        })
    }

    /// Renames a user snapshot. EEXIST when the name is taken.
    pub fn snapshot_rename(self, snap: SnapId, name: &str) -> HeaderUpdate {
        self.call("snapshot_rename", |e| {
            e.u64(snap.0).string(name);
        })
    }

    /// Sets whether a snapshot may be removed.
    pub fn set_protection(self, snap: SnapId, status: ProtectionStatus) -> HeaderUpdate {
        self.call("set_protection_status", |e| {
            e.u64(snap.0).value(&status);
        })
    }

    /// Sets (`None`: lifts) the number of snapshots the image may have.
    pub fn set_snapshot_limit(self, limit: Option<u64>) -> HeaderUpdate {
        self.call("snapshot_set_limit", |e| {
            e.u64(limit.unwrap_or(u64::MAX));
        })
    }

    /// Registers a v2 clone of one of this image's snapshots. EEXIST when it is registered, ENOENT when the snapshot
    /// is gone or in the trash.
    pub fn child_attach(self, snap: SnapId, child: &ChildImage) -> HeaderUpdate {
        self.call("child_attach", |e| {
            e.u64(snap.0).value(child);
        })
    }

    /// Strikes out a v2 clone. ENOENT when it is not registered.
    pub fn child_detach(self, snap: SnapId, child: &ChildImage) -> HeaderUpdate {
        self.call("child_detach", |e| {
            e.u64(snap.0).value(child);
        })
    }

    /// Sets the time of the last change to the OSD's present.
    pub fn touch_modified(self) -> HeaderUpdate {
        self.call("set_modify_timestamp", |_| {})
    }

    /// Sets the time of the last access to the OSD's present.
    pub fn touch_accessed(self) -> HeaderUpdate {
        self.call("set_access_timestamp", |_| {})
    }

    /// Strikes a peer out of a primary mirror-snapshot: it has copied it. ENOENT when it is not in it.
    pub fn unlink_peer(self, snap: SnapId, mirror_peer_uuid: &str) -> HeaderUpdate {
        self.call("mirror_image_snapshot_unlink_peer", |e| {
            e.u64(snap.0).string(mirror_peer_uuid);
        })
    }

    /// Sets how far a mirror-snapshot is copied. The object number is kept of non-primary ones only.
    pub fn set_copy_progress(
        self,
        snap: SnapId,
        complete: bool,
        last_copied_object_number: u64,
    ) -> HeaderUpdate {
        self.call("mirror_image_snapshot_set_copy_progress", |e| {
            e.u64(snap.0).bool(complete).u64(last_copied_object_number);
        })
    }

    /// Adds what no class method does.
    pub(crate) fn with(mut self, sub: WriteSub) -> HeaderUpdate {
        self.op = self.op.with(sub);
        self
    }

    /// The write, for a caller who sends it by himself.
    pub fn into_op(self) -> WriteOp {
        self.op
    }

    /// Carries it out; `ioctx` is the header's. All or nothing; whether it took effect is unknown when the future is
    /// dropped.
    pub async fn apply(self, ioctx: &IoCtx) -> Result<()> {
        let what = format!("cannot change the header of image {} ({})", self.image, self.what.join(", "));
        ioctx.write(self.op).await.map(drop).context(what)
    }
}

/// Sets many metadata keys at once without exceeding the size of one operation.
pub async fn set_metadata(ioctx: &IoCtx, image: &ImageId, metadata: &BTreeMap<String, Bytes>) -> Result<()> {
    const KEYS_PER_WRITE: usize = 128;
    let entries: Vec<_> = metadata.iter().collect();
    for page in entries.chunks(KEYS_PER_WRITE) {
        let page: BTreeMap<String, &Bytes> =
            page.iter().map(|(key, value)| (key.to_string(), *value)).collect();
        HeaderUpdate::of(image).set_metadata(&page).apply(ioctx).await?;
    }
    Ok(())
}
