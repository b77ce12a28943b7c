//! Reading ranges of an image at a snapshot or its head, natively, through all of its parents.
//!
//! An object that is absent shows what the parent has at the same offset, as far as the two overlap; so does the parent's
//! own absent object, and so on. Each image of that chain may lie in another pool and namespace and be cut in its own way.
//!
//! A chain is looked up once. It stays right as long as its first snapshot exists: snapshots do not change, and when a
//! parent is detached from its own parent, all that came from there has been copied before.
//!
//! Reference: `src/librbd/io/ObjectRequest.cc` (`ObjectReadRequest`), `src/librbd/image/RefreshParentRequest.cc`.

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use rados::error::ResultExt;
use rados::{Error, Extent, ReadAnswer, ReadOp, ReadSub, Result, SnapId};

use crate::children::parent_ioctx;
use crate::header::ImageHeader;
use crate::image::Image;
use crate::layout::ObjectExtent;
use crate::types::{ObjectNumber, Parent};

/// Parents that are followed at most, so that a circle ends.
const DEPTH_MAX: usize = 64;

/// A run of bytes of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Offset of the first byte in the image.
    pub offset: u64,
    /// The bytes.
    pub data: Bytes,
}

/// One image of a chain.
#[derive(Debug, Clone)]
struct Layer {
    image: Image,
    snap: SnapId,
    size: u64,
    /// Bytes from the start that may come from the next layer.
    overlap: u64,
}

/// An image at a snapshot or its head, with its parents. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reader {
    layers: std::sync::Arc<[Layer]>,
}

impl Reader {
    /// A reader of `image` at `snap`. ENOENT when the snapshot, or one that it is a clone of, is gone; EINVAL when one of
    /// the images is in migration.
    pub async fn open(image: &Image, header: &ImageHeader, snap: SnapId) -> Result<Reader> {
        let mut layers = Vec::new();
        let (mut image, mut header, mut snap) = (image.clone(), header.clone(), snap);
        while layers.len() < DEPTH_MAX {
            header.refuse_in_migration()?;
            let gone = || Error::new(libc::ENOENT, format!("image {} has no snapshot {snap}", image.id()));
            let size = header.size_at(snap).ok_or_else(gone)?;
            let parent = header.parent_at(snap).cloned();
            let overlap = parent.as_ref().map_or(0, |parent| parent.overlap);
            layers.push(Layer { image: image.clone(), snap, size, overlap });
            let Some(parent) = parent.filter(|parent| parent.overlap > 0) else {
                return Ok(Reader { layers: layers.into() });
            };
            (image, header) = open_parent(&image, &parent).await?;
            snap = parent.snap;
        }
        let what =
            format!("cannot read image {}: it has more than {DEPTH_MAX} parents", layers[0].image.id());
        Err(Error::new(libc::ELOOP, what))
    }

    /// A reader of the parent of `image`'s head; `None` when it has none.
    pub async fn open_parent(image: &Image, header: &ImageHeader) -> Result<Option<Reader>> {
        let Some(parent) = header.parent.as_ref().filter(|parent| parent.overlap > 0) else {
            return Ok(None);
        };
        let (of, header) = open_parent(image, parent).await?;
        Reader::open(&of, &header, parent.snap).await.map(Some)
    }

    /// What is allocated of `ranges`; all that no run of the answer holds is zero. Runs come in no order and do not
    /// overlap if the ranges do not. Cancel-safe.
    pub async fn read(&self, ranges: &[Extent]) -> Result<Vec<Run>> {
        self.read_layer(0, ranges.to_vec()).await
    }

    fn read_layer(&self, depth: usize, ranges: Vec<Extent>) -> BoxFuture<'_, Result<Vec<Run>>> {
        async move {
            let Some(layer) = self.layers.get(depth) else { return Ok(Vec::new()) };
            let objects = ranges
                .iter()
                .filter_map(|range| clip(*range, layer.size))
                .flat_map(|range| layer.image.layout().object_extents(range));
            let reads = objects.map(|object| self.read_object(depth, layer, object));
            Ok(try_join_all(reads).await?.into_iter().flatten().collect())
        }
        .boxed()
    }

    async fn read_object(&self, depth: usize, layer: &Layer, object: ObjectExtent) -> Result<Vec<Run>> {
        let name = layer.image.data_object(object.object);
        let op = ReadOp::new(&name).at(layer.snap).with(ReadSub::SparseRead(object.extent));
        let Some(reply) = layer.image.data_ioctx().read(op).await.optional()? else {
            let ranges = object.image.iter().filter_map(|range| clip(*range, layer.overlap));
            return self.read_layer(depth + 1, ranges.collect()).await;
        };
        let runs = match reply.answers.into_iter().next() {
            Some(ReadAnswer::Sparse { extents, data }) => {
                runs(&layer.image, object.object, object.extent, &extents, &data)
            }
            _ => None,
        };
        let what = || format!("cannot use the answer to a sparse read of object '{name}'");
        runs.ok_or_else(|| Error::new(libc::EBADMSG, what()))
    }
}

async fn open_parent(image: &Image, parent: &Parent) -> Result<(Image, ImageHeader)> {
    let ioctx = parent_ioctx(image.header_ioctx(), &parent.spec());
    let header = ImageHeader::read(&ioctx, &parent.image).await;
    let header = header.context(format!("cannot open the parent of image {}", image.id()))?;
    Ok((Image::of(&ioctx, "", &header), header))
}

fn clip(range: Extent, size: u64) -> Option<Extent> {
    let length = size.checked_sub(range.offset)?.min(range.length);
    (length > 0).then_some(Extent::new(range.offset, length))
}

/// What a sparse read of `asked` found, at its places in the image; `None` when it makes no sense.
fn runs(
    image: &Image,
    object: ObjectNumber,
    asked: Extent,
    extents: &[Extent],
    data: &Bytes,
) -> Option<Vec<Run>> {
    let mut runs = Vec::new();
    let mut at = 0usize;
    for extent in extents {
        let end = extent.offset.checked_add(extent.length)?;
        if extent.offset < asked.offset || end > asked.end() {
            return None;
        }
        for range in image.layout().image_extents(object, *extent) {
            let next = at.checked_add(usize::try_from(range.length).ok()?)?;
            if next > data.len() {
                return None;
            }
            runs.push(Run { offset: range.offset, data: data.slice(at..next) });
            at = next;
        }
    }
    Some(runs)
}
