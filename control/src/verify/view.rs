//! An image at a snapshot as a reader sees it: its objects, and the parents behind those that do not exist.
//!
//! A range resolves to pieces: each lies in one object of one layer, or is zeros. An object that exists hides its parent
//! wholly, also where it is shorter than the range. One that does not shows what the parent has at the snapshot that was
//! cloned, up to the overlap, which in turn may come from the parent's parent. Layers may be cut differently.
//!
//! Reference: `src/librbd/io/ObjectRequest.cc` (reading through parents), `src/librbd/io/ImageRequest.cc`.

use futures::FutureExt;
use futures::future::BoxFuture;
use rados::error::ResultExt;
use rados::{ChecksumKind, Extent, IoCtx, ReadAnswer, ReadOp, ReadSub, Result, SnapId};
use rbd::{Image, ImageHeader, ObjectNumber, Parent};

/// Parents of parents of … beyond which something must be wrong.
const LAYERS_MAX: usize = 64;

/// An image at a snapshot.
#[derive(Debug)]
pub struct View {
    size: u64,
    /// The image, its parent, and so on.
    layers: Vec<Layer>,
}

#[derive(Debug)]
struct Layer {
    image: Image,
    snap: SnapId,
    /// What the next layer is, and how much of it shows.
    parent: Option<Parent>,
}

/// A run of bytes of a range that comes from one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// First byte within the range.
    pub start: u64,
    /// Number of bytes.
    pub length: u64,
    /// Where they are.
    pub source: Source,
}

/// Where bytes are.
#[derive(Debug, Clone)]
pub enum Source {
    /// Nowhere: they are zeros.
    Zeros,
    /// In an object.
    Object {
        /// Its pool and namespace.
        ioctx: IoCtx,
        /// Its name.
        name: String,
        /// The snapshot to read at.
        snap: SnapId,
        /// First byte within it.
        offset: u64,
    },
}

impl PartialEq for Source {
    fn eq(&self, other: &Source) -> bool {
        match (self, other) {
            (Source::Zeros, Source::Zeros) => true,
            (
                Source::Object { name, snap, offset, .. },
                Source::Object { name: n, snap: s, offset: o, .. },
            ) => (name, snap, offset) == (n, s, o),
            _ => false,
        }
    }
}

impl Eq for Source {}

/// Size and checksum of a whole object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    /// Its size in bytes.
    pub size: u64,
    /// Its version: it changes with every write, and only then. A clone has that of the head that it was made of.
    pub version: u64,
    sums: Vec<u64>,
}

impl Digest {
    /// True when both are of the same bytes.
    pub fn is_of_same_data_as(&self, other: &Digest) -> bool {
        self.size == other.size && self.sums == other.sums
    }
}

impl View {
    /// Looks at `image`, whose header was read, at `snap`; reads the headers of its parents. EINVAL when one of them is in
    /// migration.
    pub async fn open(image: &Image, header: &ImageHeader, snap: SnapId) -> Result<View> {
        header.refuse_in_migration()?;
        let missing = |snap: SnapId| {
            rados::Error::new(libc::ENOENT, format!("image {} has no snapshot {snap}", image.id()))
        };
        let size = header.size_at(snap).ok_or_else(|| missing(snap))?;
        let mut layers = vec![Layer { image: image.clone(), snap, parent: header.parent_at(snap).cloned() }];
        while let Some(parent) = layers.last().and_then(|layer| layer.parent.clone()) {
            if layers.len() == LAYERS_MAX {
                let what =
                    format!("image {} has more than {LAYERS_MAX} parents, one behind the other", image.id());
                return Err(rados::Error::new(libc::ELOOP, what));
            }
            let ioctx = image.header_ioctx().with_pool(parent.pool).with_namespace(&parent.namespace);
            let (image, header) =
                Image::open(&ioctx, &parent.image).await.context("cannot open the parent image")?;
            header.refuse_in_migration()?;
            let next = header.parent_at(parent.snap).cloned();
            layers.push(Layer { image, snap: parent.snap, parent: next });
        }
        Ok(View { size, layers })
    }

    /// The image's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of objects of the image itself.
    pub fn object_count(&self) -> u64 {
        self.top().image.layout().object_count(self.size)
    }

    /// The image itself.
    pub fn image(&self) -> &Image {
        &self.top().image
    }

    /// True when the same parent shows as much as in `other`.
    pub fn has_parent_like(&self, other: &View) -> bool {
        self.top().parent == other.top().parent
    }

    /// True when no parent shows in any of these ranges of the image.
    pub fn stands_alone(&self, ranges: &[Extent]) -> bool {
        let overlap = self.top().parent.as_ref().map_or(0, |parent| parent.overlap);
        ranges.iter().all(|range| range.offset >= overlap)
    }

    /// Size and checksum of one of the image's own objects; `None` when it does not exist.
    pub async fn digest(&self, object: ObjectNumber) -> Result<Option<Digest>> {
        let layer = self.top();
        let name = layer.image.data_object(object);
        let whole = ReadSub::Checksum { kind: ChecksumKind::XxHash64, extent: Extent::new(0, 0), chunk: 0 };
        let op = ReadOp::new(name.clone()).at(layer.snap).with(ReadSub::Stat).with(whole);
        let Some(reply) = layer.image.data_ioctx().read(op).await.optional()? else {
            return Ok(None);
        };
        match reply.answers.as_slice() {
            // Of nothing there is no checksum.
            [ReadAnswer::Stat { size, .. }, ReadAnswer::Checksums(sums)]
                if sums.len() == usize::from(*size > 0) =>
            {
                Ok(Some(Digest { size: *size, version: reply.version, sums: sums.clone() }))
            }
            _ => Err(rados::Error::new(libc::EBADMSG, format!("cannot use the checksum of object '{name}'"))),
        }
    }

    /// The version of an object of the image itself; `None` when there is no such object.
    pub async fn version(&self, object: ObjectNumber) -> Result<Option<u64>> {
        let layer = self.top();
        let op = ReadOp::new(layer.image.data_object(object)).at(layer.snap).with(ReadSub::Stat);
        Ok(layer.image.data_ioctx().read(op).await.optional()?.map(|reply| reply.version))
    }

    /// Where the bytes of these ranges of the image are, one range after the other. What lies behind the end of the
    /// image is zeros.
    pub async fn pieces(&self, ranges: &[Extent]) -> Result<Vec<Piece>> {
        let mut pieces = Pieces::default();
        for range in ranges {
            let inside = Extent::new(range.offset, self.size.saturating_sub(range.offset).min(range.length));
            self.resolve(0, inside, &mut pieces).await?;
            pieces.push(range.length - inside.length, Source::Zeros);
        }
        Ok(pieces.all)
    }

    fn top(&self) -> &Layer {
        // There is one for the image itself.
        &self.layers[0]
    }

    fn resolve<'a>(
        &'a self,
        depth: usize,
        range: Extent,
        pieces: &'a mut Pieces,
    ) -> BoxFuture<'a, Result<()>> {
        async move {
            let Some(layer) = self.layers.get(depth) else {
                pieces.push(range.length, Source::Zeros);
                return Ok(());
            };
            for piece in layer.image.layout().pieces(range) {
                let name = layer.image.data_object(piece.object);
                match layer.object_size(&name).await? {
                    Some(size) => {
                        let stored = size.saturating_sub(piece.object_offset).min(piece.length);
                        let (ioctx, snap) = (layer.image.data_ioctx().clone(), layer.snap);
                        pieces
                            .push(stored, Source::Object { ioctx, name, snap, offset: piece.object_offset });
                        pieces.push(piece.length - stored, Source::Zeros);
                    }
                    None => {
                        let overlap = layer.parent.as_ref().map_or(0, |parent| parent.overlap);
                        let behind = overlap.saturating_sub(piece.image_offset).min(piece.length);
                        if behind > 0 {
                            self.resolve(depth + 1, Extent::new(piece.image_offset, behind), pieces).await?;
                        }
                        pieces.push(piece.length - behind, Source::Zeros);
                    }
                }
            }
            Ok(())
        }
        .boxed()
    }
}

impl Layer {
    async fn object_size(&self, name: &str) -> Result<Option<u64>> {
        let stat = self.image.data_ioctx().read_one(name, self.snap, ReadSub::Stat).await.optional()?;
        match stat {
            None => Ok(None),
            Some(ReadAnswer::Stat { size, .. }) => Ok(Some(size)),
            Some(_) => {
                Err(rados::Error::new(libc::EBADMSG, format!("cannot use the size of object '{name}'")))
            }
        }
    }
}

/// Pieces one after the other; neighbours that continue each other become one.
#[derive(Debug, Default)]
struct Pieces {
    all: Vec<Piece>,
    end: u64,
}

impl Pieces {
    fn push(&mut self, length: u64, source: Source) {
        if length == 0 {
            return;
        }
        let start = self.end;
        self.end += length;
        if let Some(last) = self.all.last_mut()
            && continues(last, &source)
        {
            last.length += length;
            return;
        }
        self.all.push(Piece { start, length, source });
    }
}

fn continues(last: &Piece, next: &Source) -> bool {
    match (&last.source, next) {
        (Source::Zeros, Source::Zeros) => true,
        (Source::Object { name, snap, offset, .. }, Source::Object { name: n, snap: s, offset: o, .. }) => {
            name == n && snap == s && offset + last.length == *o
        }
        _ => false,
    }
}
