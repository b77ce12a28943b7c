//! Parents and their clones.
//!
//! | | who knows the clone | what the parent's snapshot needs |
//! |---|---|---|
//! | v1 | `rbd_children` in the clone's pool: parent (pool, image, snapshot) to image ids | protection |
//! | v2 | the parent's header, per snapshot; operation features `clone-parent` and `clone-child` | nothing: when removed, it goes to the trash until its last clone is gone |
//!
//! v1 clones lie in the same namespace as their parent, in any pool; v2 clones may lie anywhere.
//!
//! Reference: `src/librbd/image/AttachChildRequest.cc`, `DetachChildRequest.cc`, `src/cls/rbd/cls_rbd.cc`.

use std::collections::BTreeSet;

use rados::encoding::{Decode, Decoder, Encoder};
use rados::error::ResultExt;
use rados::{Error, IoCtx, PoolId, Result, SnapId};

use crate::header::ImageHeader;
use crate::header_update::HeaderUpdate;
use crate::image::Image;
use crate::layout::header_object;
use crate::types::{ChildImage, ImageId, OpFeatures, ParentSpec, Snapshot, SnapshotNamespace};

/// Object that lists v1 clones.
const CHILDREN_OBJECT: &str = "rbd_children";

/// How a clone and its parent know each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CloneFormat {
    /// By `rbd_children`; the parent's snapshot must be protected.
    V1,
    /// By the parent's header.
    #[default]
    V2,
}

impl ImageHeader {
    /// The format of this clone.
    pub fn clone_format(&self) -> CloneFormat {
        if self.op_features.has(OpFeatures::CLONE_CHILD) { CloneFormat::V2 } else { CloneFormat::V1 }
    }
}

fn parent_and_child(parent: &ParentSpec, child: Option<&ImageId>) -> Encoder {
    let mut e = Encoder::new();
    e.i64(parent.pool.0).string(&parent.image.0).u64(parent.snap.0);
    if let Some(child) = child {
        e.string(&child.0);
    }
    e
}

/// Lists a v1 clone; `ioctx` is the clone's. It is no error when it is listed already.
pub async fn add_v1_child(ioctx: &IoCtx, parent: &ParentSpec, child: &ImageId) -> Result<()> {
    let input = parent_and_child(parent, Some(child)).finish();
    match ioctx.exec_write(CHILDREN_OBJECT, "rbd", "add_child", input).await {
        Err(error) if error.is(libc::EEXIST) => Ok(()),
        other => other.context(format!("cannot list image {child} as a clone of image {}", parent.image)),
    }
}

/// Strikes out a v1 clone; `ioctx` is the clone's. It is no error when it is not listed.
pub async fn remove_v1_child(ioctx: &IoCtx, parent: &ParentSpec, child: &ImageId) -> Result<()> {
    let input = parent_and_child(parent, Some(child)).finish();
    let removed = ioctx.exec_write(CHILDREN_OBJECT, "rbd", "remove_child", input).await.optional();
    removed.map(drop).context(format!("cannot strike out image {child} as a clone of image {}", parent.image))
}

/// The v1 clones of a snapshot that lie in the pool and namespace of `ioctx`.
pub async fn v1_children(ioctx: &IoCtx, parent: &ParentSpec) -> Result<BTreeSet<ImageId>> {
    let input = parent_and_child(parent, None).finish();
    let what = || format!("cannot list the clones of image {} in pool {}", parent.image, ioctx.pool_id());
    let Some(output) =
        ioctx.exec(CHILDREN_OBJECT, "rbd", "get_children", input).await.optional().context(what())?
    else {
        return Ok(BTreeSet::new());
    };
    let ids = Decoder::new(&output, "clones").seq(4, |d| d.string()).map_err(Error::from).context(what())?;
    Ok(ids.into_iter().map(ImageId).collect())
}

/// The v2 clones of a snapshot. ENOENT when there is no such snapshot.
pub async fn v2_children(ioctx: &IoCtx, parent: &ImageId, snap: SnapId) -> Result<BTreeSet<ChildImage>> {
    let mut e = Encoder::new();
    e.u64(snap.0);
    let what = || format!("cannot list the clones of snapshot {snap} of image {parent}");
    let listed = ioctx.exec(&header_object(parent), "rbd", "children_list", e.finish()).await;
    let Some(output) = listed.optional().context(what())? else {
        return Ok(BTreeSet::new());
    };
    let children = Decoder::new(&output, "clones").seq(6, ChildImage::decode);
    Ok(children.map_err(Error::from).context(what())?.into_iter().collect())
}

/// The v1 clones of a snapshot in any of `pools`.
pub async fn v1_children_anywhere(
    ioctx: &IoCtx,
    pools: impl IntoIterator<Item = PoolId>,
    parent: &ParentSpec,
) -> Result<BTreeSet<ChildImage>> {
    let mut children = BTreeSet::new();
    for pool in pools {
        let there = ioctx.with_pool(pool);
        // The pool may have been removed since it was listed.
        for image in v1_children(&there, parent).await? {
            children.insert(ChildImage { pool, namespace: parent.namespace.clone(), image });
        }
    }
    Ok(children)
}

/// Makes `image` a clone in its own header and in its parent's books, in librbd's order: parent link, operation
/// feature, registration. May be repeated after a failure.
pub async fn attach(image: &Image, parent: &ParentSpec, overlap: u64, format: CloneFormat) -> Result<()> {
    let header = image.header_ioctx();
    // `reattach` makes it repeatable; it is for the caller to know that the image has no other parent.
    HeaderUpdate::of(image.id()).parent_attach(parent, overlap, true).apply(header).await?;
    match format {
        CloneFormat::V1 => attach_v1(image, parent).await,
        CloneFormat::V2 => {
            let bit = OpFeatures::CLONE_CHILD;
            HeaderUpdate::of(image.id()).set_op_features(bit, bit).apply(header).await?;
            register_v2(image, parent).await
        }
    }
}

/// Makes a clone one of another parent, from which it shows the same bytes or the right ones. May be repeated after a
/// failure; one between the last two steps leaves it in the books of the old parent, from where [`forget_old_parents`]
/// strikes it out. EINVAL when the head is no clone.
pub async fn reattach(image: &Image, header: &ImageHeader, parent: &ParentSpec) -> Result<()> {
    let Some(old) = &header.parent else {
        let what = format!("cannot give image {} another parent: it is no clone", image.id());
        return Err(Error::new(libc::EINVAL, what));
    };
    // The new parent knows the clone before it is one, and the old one until it is none: neither goes in between.
    match header.clone_format() {
        CloneFormat::V1 => attach_v1(image, parent).await?,
        CloneFormat::V2 => register_v2(image, parent).await?,
    }
    let attach = HeaderUpdate::of(image.id()).parent_attach(parent, old.overlap, true);
    attach.apply(image.header_ioctx()).await?;
    detach_child(image, header).await
}

/// Strikes a v2 clone out of the books of snapshots of its parent's image that it is no clone of.
pub async fn forget_old_parents(image: &Image, parent: &ParentSpec) -> Result<()> {
    let ioctx = parent_ioctx(image.header_ioctx(), parent);
    let header = ImageHeader::read(&ioctx, &parent.image).await?;
    let in_trash = |snap: &&Snapshot| matches!(snap.namespace, SnapshotNamespace::Trash { .. });
    for snap in header.snapshots.values().filter(in_trash).filter(|snap| snap.id != parent.snap) {
        if v2_children(&ioctx, &parent.image, snap.id).await?.contains(&image.as_child()) {
            let old = ParentSpec { snap: snap.id, ..parent.clone() };
            let detach = HeaderUpdate::of(&old.image).child_detach(old.snap, &image.as_child());
            detach.apply(&ioctx).await.optional()?;
            remove_unused_trash_snapshot(&ioctx, &old).await?;
        }
    }
    Ok(())
}

async fn register_v2(image: &Image, parent: &ParentSpec) -> Result<()> {
    let attach = HeaderUpdate::of(&parent.image).child_attach(parent.snap, &image.as_child());
    match attach.apply(&parent_ioctx(image.header_ioctx(), parent)).await {
        Err(error) if error.is(libc::EEXIST) => Ok(()),
        other => other,
    }
}

async fn attach_v1(image: &Image, parent: &ParentSpec) -> Result<()> {
    let header = image.header_ioctx();
    if parent.namespace != header.namespace() {
        let what = format!("cannot make image {} a v1 clone of an image in another namespace", image.id());
        return Err(Error::new(libc::EXDEV, what));
    }
    add_v1_child(header, parent, image.id()).await?;
    // Protection is looked at after listing, so that whoever unprotects sees the clone or is seen here.
    let of_parent = ImageHeader::read(&parent_ioctx(header, parent), &parent.image).await?;
    let protected = of_parent.snapshots.get(&parent.snap).map(|snap| snap.protection);
    if protected == Some(crate::types::ProtectionStatus::Protected) {
        return Ok(());
    }
    remove_v1_child(header, parent, image.id()).await?;
    let what =
        format!("cannot clone snapshot {} of image {}: it is not protected", parent.snap, parent.image);
    Err(Error::new(libc::EINVAL, what))
}

/// The pool and namespace of a parent.
pub fn parent_ioctx(ioctx: &IoCtx, parent: &ParentSpec) -> IoCtx {
    ioctx.with_pool(parent.pool).with_namespace(&parent.namespace)
}

/// Strikes the image out of its parent's books; the link in its own header stays. When it was the last v2 clone of a
/// snapshot in the trash, that snapshot is removed, too. May be repeated.
pub async fn detach_child(image: &Image, header: &ImageHeader) -> Result<()> {
    let Some(parent) = &header.parent_spec else {
        return Ok(());
    };
    if header.clone_format() == CloneFormat::V1 {
        return remove_v1_child(image.header_ioctx(), parent, image.id()).await;
    }
    let ioctx = parent_ioctx(image.header_ioctx(), parent);
    let detach = HeaderUpdate::of(&parent.image).child_detach(parent.snap, &image.as_child());
    detach.apply(&ioctx).await.optional()?;
    // The clone is struck out; failing to tidy up behind it is no reason to fail.
    if let Err(error) = remove_unused_trash_snapshot(&ioctx, parent).await {
        tracing::warn!(image = %parent.image, snapshot = %parent.snap, "cannot remove a trash snapshot: {error}");
    }
    Ok(())
}

async fn remove_unused_trash_snapshot(ioctx: &IoCtx, parent: &ParentSpec) -> Result<()> {
    let Some(header) = ImageHeader::read(ioctx, &parent.image).await.optional()? else {
        return Ok(());
    };
    let Some(snap) = header.snapshots.get(&parent.snap) else {
        return Ok(());
    };
    if snap.child_count > 0 || !matches!(snap.namespace, SnapshotNamespace::Trash { .. }) {
        return Ok(());
    }
    let image = Image::of(ioctx, "", &header);
    // The removal may in turn detach the parent from its own parent.
    Box::pin(crate::snapshots::remove(&image, &header, parent.snap)).await.map(drop)
}

/// Makes the image no clone any more, after all that came from its parent was copied. May be repeated.
pub async fn detach(image: &Image, header: &ImageHeader) -> Result<()> {
    let deep = header.features.has(crate::types::Features::DEEP_FLATTEN);
    let snapshots_are_clones = header.snapshots.values().any(|snap| snap.parent.is_some());
    // The books go first where librbd closes them: when nothing refers to the parent any more.
    if deep || !snapshots_are_clones {
        detach_child(image, header).await?;
    }
    let detached = HeaderUpdate::of(image.id()).parent_detach().apply(image.header_ioctx()).await;
    detached.optional().map(drop)
}
