//! Making images, and clones of snapshots.
//!
//! The order is librbd's: directory entry, id object, header, striping, object map; for a clone then the link to the
//! parent, the operation feature, the registration with the parent, the parent's metadata. Stock tools see the image
//! from the id object on. Called again with the same id and the same properties, each function completes what was cut
//! off. When it fails for good it removes what this very call made, so that the name is free again; behind a failure that
//! may go away, it is to be called again. Note the id elsewhere first (mirroring does), or it is lost with the process.
//!
//! Mirroring and journals are left to the caller.
//!
//! Reference: `src/librbd/image/CreateRequest.cc`, `CloneRequest.cc`.

use bytes::Bytes;
use rados::encoding::Encoder;
use rados::error::ResultExt;
use rados::{Error, ErrorClass, IoCtx, PoolId, Result, SnapId, WriteOp, WriteSub};

use crate::children::{self, CloneFormat, parent_ioctx};
use crate::directory;
use crate::header::ImageHeader;
use crate::header_update::{HeaderUpdate, set_metadata};
use crate::image::Image;
use crate::layout::{IMAGE_ID_LENGTH_MAX, Layout, ORDERS, header_object, object_prefix};
use crate::object_map::{OBJECT_COUNT_MAX, ObjectMapObject, ObjectState};
use crate::types::{Features, ImageId, ParentSpec, ProtectionStatus};

/// The smallest stripe unit that librbd creates, in bytes.
const STRIPE_UNIT_MIN: u64 = 512;

/// An image to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImage {
    /// Its name.
    pub name: String,
    /// Its id, from [`generate_id`].
    pub id: ImageId,
    /// Its size in bytes.
    pub size: u64,
    /// Bytes per object, as a power of two (12 to 25).
    pub order: u8,
    /// Its features. What follows from the rest (striping, data pool, fast-diff from object map) need not be named.
    pub features: Features,
    /// Stripe unit in bytes; 0 for the usual layout.
    pub stripe_unit: u64,
    /// Stripe count; 0 for the usual layout.
    pub stripe_count: u64,
    /// Pool for the data, when it is not the header's.
    pub data_pool: Option<PoolId>,
}

/// A new image id, as librbd makes them: from this client's global id and a random number.
pub fn generate_id(ioctx: &IoCtx) -> ImageId {
    let id = format!("{:x}{:x}", ioctx.backend().instance_id(), rand::random::<u32>());
    ImageId(id[id.len().saturating_sub(IMAGE_ID_LENGTH_MAX)..].to_string())
}

impl NewImage {
    fn data_pool(&self, ioctx: &IoCtx) -> Option<PoolId> {
        self.data_pool.filter(|pool| *pool != ioctx.pool_id())
    }

    /// The layout; EINVAL or EDOM when it is not one that librbd would make.
    fn layout(&self) -> Result<Layout> {
        let refuse =
            |errno, why: &str| Err(Error::new(errno, format!("cannot create image '{}': {why}", self.name)));
        if !ORDERS.contains(&self.order) {
            return refuse(libc::EDOM, "objects have 4 KiB to 32 MiB");
        }
        match (self.stripe_unit, self.stripe_count) {
            (0, 0) => Layout::simple(self.order),
            (0, _) | (_, 0) => refuse(libc::EINVAL, "stripe unit and stripe count go together"),
            (unit, _) if unit < STRIPE_UNIT_MIN => {
                refuse(libc::EINVAL, "a stripe unit has at least 512 bytes")
            }
            (unit, count) => Layout::new(self.order, unit, count),
        }
    }

    /// The features with those that follow from others.
    fn features(&self, ioctx: &IoCtx, layout: &Layout) -> Features {
        let implied = Features::IMPLICIT.without(Features::NON_PRIMARY);
        let mut features = self.features.without(implied);
        if features.has(Features::OBJECT_MAP) {
            features = features.with(Features::FAST_DIFF);
        }
        if self.data_pool(ioctx).is_some() {
            features = features.with(Features::DATA_POOL);
        }
        if is_striped(layout) {
            features = features.with(Features::STRIPINGV2);
        }
        features
    }

    fn validate(&self, features: Features, layout: &Layout) -> Result<()> {
        let refuse = |errno, why: String| {
            Err(Error::new(errno, format!("cannot create image '{}': {why}", self.name)))
        };
        if features.unknown().0 != 0 {
            return refuse(libc::ENOSYS, format!("features {} are not known", features.unknown()));
        }
        for needy in [Features::OBJECT_MAP, Features::JOURNALING] {
            if features.has(needy) && !features.has(Features::EXCLUSIVE_LOCK) {
                return refuse(libc::EINVAL, format!("{needy} needs exclusive-lock"));
            }
        }
        if features.has(Features::OBJECT_MAP) && layout.object_count(self.size) > OBJECT_COUNT_MAX {
            return refuse(libc::EINVAL, "it has too many objects for an object map".to_string());
        }
        let alphanumeric = self.id.0.bytes().all(|b| b.is_ascii_alphanumeric());
        if self.name.is_empty()
            || self.id.0.is_empty()
            || self.id.0.len() > IMAGE_ID_LENGTH_MAX
            || !alphanumeric
        {
            return refuse(libc::EINVAL, format!("its name or its id '{}' is not valid", self.id));
        }
        Ok(())
    }
}

fn is_striped(layout: &Layout) -> bool {
    layout.stripe_unit() != layout.object_size() || layout.stripe_count() != 1
}

/// What a call made, to be undone in reverse when it fails.
#[derive(Debug, Default)]
struct Made {
    directory: bool,
    id_object: bool,
    header: bool,
}

/// Makes an image in the pool and namespace of `ioctx`. EEXIST when the name is taken, EBADF when the id is, ENOENT
/// when there is no such namespace or data pool. The journal of an image with the journaling feature is not made.
pub async fn create(ioctx: &IoCtx, new: &NewImage) -> Result<Image> {
    let layout = new.layout()?;
    let features = new.features(ioctx, &layout);
    new.validate(features, &layout)?;
    let data = new.data_pool(ioctx).map_or_else(|| ioctx.clone(), |pool| ioctx.with_pool(pool));
    directory::validate_pool(&data.with_namespace("")).await?;

    let mut made = Made::default();
    match create_parts(ioctx, new, features, &layout, &mut made).await {
        Ok(header) => Ok(Image::of(ioctx, &new.name, &header)),
        Err(error) => {
            // What a failure that may go away has left is unknown, and of use to the next call.
            if error.class() == ErrorClass::Permanent {
                undo(ioctx, new, &made).await;
            }
            Err(error.context(format!("cannot create image '{}' ({})", new.name, new.id)))
        }
    }
}

async fn create_parts(
    ioctx: &IoCtx,
    new: &NewImage,
    features: Features,
    layout: &Layout,
    made: &mut Made,
) -> Result<ImageHeader> {
    made.directory = directory::add(ioctx, &new.name, &new.id).await?;
    made.id_object = directory::create_id_object(ioctx, &new.name, &new.id).await?;
    made.header = create_header(ioctx, new, features).await?;
    if is_striped(layout) {
        let stripe = HeaderUpdate::of(&new.id).set_stripe(layout.stripe_unit(), layout.stripe_count());
        stripe.apply(ioctx).await?;
    }
    if features.has(Features::OBJECT_MAP) {
        let map = ObjectMapObject::new(ioctx, &new.id, SnapId::HEAD);
        // A map that is there has content when a creation is repeated, and then is of the right size.
        map.resize(layout.object_count(new.size), ObjectState::NonExistent).await?;
    }
    ImageHeader::read(ioctx, &new.id).await
}

/// Creates the header; answers whether it was this call that did. EBADF when there is one of another image.
async fn create_header(ioctx: &IoCtx, new: &NewImage, features: Features) -> Result<bool> {
    let data_pool = new.data_pool(ioctx);
    let prefix = object_prefix(&new.id, data_pool.map(|_| ioctx.pool_id()));
    let mut e = Encoder::new();
    e.u64(new.size).u8(new.order).u64(features.0).string(&prefix).i64(data_pool.map_or(-1, |pool| pool.0));
    let op = WriteOp::new(header_object(&new.id)).with(WriteSub::Create { exclusive: true });
    match ioctx.write(op.exec("rbd", "create", e.finish())).await {
        Ok(_) => Ok(true),
        Err(error) if error.is(libc::EEXIST) => {
            let header = ImageHeader::read(ioctx, &new.id).await?;
            let same = header.size == new.size
                && header.order == new.order
                && header.features.without(Features::INTERNAL) == features
                && header.object_prefix == prefix
                && header.data_pool == data_pool;
            if same {
                Ok(false)
            } else {
                Err(Error::new(libc::EBADF, format!("image id {} is in use", new.id)))
            }
        }
        Err(error) => Err(error),
    }
}

/// Removes what a failed call made. Failures are only logged: the error that led here counts.
async fn undo(ioctx: &IoCtx, new: &NewImage, made: &Made) {
    let warn = |what: &str, undone: Result<()>| {
        if let Err(error) = undone {
            tracing::warn!(image = %new.name, id = %new.id, "cannot remove the {what} of an image half made: {error}");
        }
    };
    if made.header {
        warn("object map", ObjectMapObject::new(ioctx, &new.id, SnapId::HEAD).remove().await);
        warn("header", ioctx.remove(&header_object(&new.id)).await.optional().map(drop));
    }
    if made.id_object {
        warn("id object", directory::remove_id_object(ioctx, &new.name, &new.id).await);
    }
    if made.directory {
        warn("directory entry", directory::remove(ioctx, &new.name, &new.id).await);
    }
}

/// Makes a clone of a snapshot, with the parent's metadata. `new.size` is the clone's size: usually that of the
/// snapshot, by which the overlap is bounded. Beyond what [`create`] answers: ENOENT when there is no such snapshot,
/// ENOSYS when either image lacks layering, EINVAL for a v1 clone of an unprotected snapshot, EXDEV for one in another
/// namespace.
pub async fn create_clone(
    ioctx: &IoCtx,
    new: &NewImage,
    parent: &ParentSpec,
    format: CloneFormat,
) -> Result<Image> {
    let what =
        || format!("cannot clone snapshot {} of image {} to '{}'", parent.snap, parent.image, new.name);
    let refuse = |errno, why: &str| Err(Error::new(errno, format!("{}: {why}", what())));
    let of_parent = ImageHeader::read(&parent_ioctx(ioctx, parent), &parent.image).await.context(what())?;
    let Some(snap) = of_parent.snapshots.get(&parent.snap) else {
        return refuse(libc::ENOENT, "there is no such snapshot");
    };
    if !of_parent.features.has(Features::LAYERING) || !new.features.has(Features::LAYERING) {
        return refuse(libc::ENOSYS, "both images need the layering feature");
    }
    if format == CloneFormat::V1 && snap.protection != ProtectionStatus::Protected {
        return refuse(libc::EINVAL, "the snapshot is not protected");
    }
    if format == CloneFormat::V1 && parent.namespace != ioctx.namespace() {
        return refuse(libc::EXDEV, "a v1 clone lies in the namespace of its parent");
    }
    let image = create(ioctx, new).await?;
    let overlap = snap.image_size.min(new.size);
    // An overlap of nothing is no link: the parent is of no use to the clone.
    if overlap > 0 {
        children::attach(&image, parent, overlap, format).await.context(what())?;
    }
    let metadata = of_parent.metadata.iter().map(|(key, value)| (key.clone(), Bytes::clone(value))).collect();
    set_metadata(ioctx, &new.id, &metadata).await.context(what())?;
    Ok(image)
}
