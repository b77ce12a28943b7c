//! Reads images at any snapshot, mirror-snapshots included, which the stock `rbd` of older releases cannot export.
//!
//! Deliberately naive: object by object, reading what there is and falling back to the parent. It shares the reading of
//! headers with the daemon, and nothing else.

use anyhow::{Context, Result, bail, ensure};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt};
use rados::error::ResultExt;
use rados::{ConnectOptions, Extent, ReadOp, ReadSub, SnapId};
use rbd::header::ImageHeader;
use rbd::image::Image;
use tests::Cluster;

/// Objects read at once.
const OBJECTS_IN_FLIGHT: usize = 16;

/// Reads a cluster's images.
pub struct Reader {
    cluster: rados::Cluster,
}

impl Reader {
    /// Connects with the administrator's key.
    pub async fn new(cluster: &Cluster) -> Result<Reader> {
        let options = ConnectOptions {
            client_name: "client.admin".into(),
            conf_file: Some(cluster.conf_path()),
            ..ConnectOptions::default()
        };
        Ok(Reader { cluster: rados::connect(options).await? })
    }

    /// A pool.
    pub async fn pool(&self, name: &str) -> Result<rados::IoCtx> {
        // The pool may be newer than the map that this client has.
        self.cluster.wait_for_latest_osdmap().await?;
        Ok(self.cluster.pool(self.cluster.pool_by_name(name).await?))
    }

    /// Opens `pool/[namespace/]image`.
    pub async fn open(&self, spec: &str) -> Result<(Image, ImageHeader)> {
        let parts: Vec<_> = spec.split('/').collect();
        let (pool, namespace, name) = match parts[..] {
            [pool, name] => (pool, "", name),
            [pool, namespace, name] => (pool, namespace, name),
            _ => bail!("'{spec}' is no pool/[namespace/]image"),
        };
        // The pool may be newer than the map that this client has.
        self.cluster.wait_for_latest_osdmap().await?;
        let pool = self.cluster.pool_by_name(pool).await?;
        Ok(Image::open_by_name(&self.cluster.namespace(pool, namespace), name).await?)
    }
}

impl Reader {
    /// The versions of the objects that hold a range of an image. A version changes with every write to its object.
    pub async fn versions(&self, spec: &str, range: std::ops::Range<u64>) -> Result<Vec<Option<u64>>> {
        let (image, _) = self.open(spec).await?;
        let extents = image.layout().object_extents(Extent::new(range.start, range.end - range.start));
        let versions = extents.into_iter().map(|extent| {
            let (image, op) = (&image, ReadOp::new(image.data_object(extent.object)).with(ReadSub::Stat));
            async move {
                let reply = image.data_ioctx().read(op).await.optional()?;
                Ok(reply.map(|reply| reply.version))
            }
        });
        futures::stream::iter(versions).buffered(OBJECTS_IN_FLIGHT).try_collect().await
    }
}

/// Ids of the image's mirror-snapshots, oldest first, each with what the header says of it.
pub fn mirror_snapshots(header: &ImageHeader) -> Vec<(SnapId, rbd::MirrorSnapshot)> {
    header.snapshots.values().filter_map(|s| Some((s.id, s.mirror()?.clone()))).collect()
}

/// Compares two images, each at a snapshot or at its head, byte for byte; an error names the first difference.
pub async fn expect_equal(
    (a, a_header, a_snap): (&Image, &ImageHeader, SnapId),
    (b, b_header, b_snap): (&Image, &ImageHeader, SnapId),
) -> Result<()> {
    let size = a_header.size_at(a_snap).context("the first image lost the snapshot")?;
    let other = b_header.size_at(b_snap).context("the second image lost the snapshot")?;
    ensure!(size == other, "sizes differ: {size} and {other} bytes");
    let object_size = a.layout().object_size();
    let chunks = (0..size).step_by(object_size as usize).map(|offset| {
        let extent = Extent::new(offset, object_size.min(size - offset));
        async move {
            let one = read(a, a_header, a_snap, extent);
            let two = read(b, b_header, b_snap, extent);
            let (one, two) = futures::try_join!(one, two)?;
            if one == two {
                return Ok(());
            }
            let at = one.iter().zip(&two).position(|(x, y)| x != y).unwrap_or(one.len().min(two.len()));
            bail!("first difference at byte {} of {size}", offset + at as u64)
        }
    });
    futures::stream::iter(chunks).buffered(OBJECTS_IN_FLIGHT).try_collect::<()>().await
}

/// Bytes of an image range at a snapshot, from the image's objects and where these are absent from its parent.
fn read<'a>(
    image: &'a Image,
    header: &'a ImageHeader,
    snap: SnapId,
    extent: Extent,
) -> BoxFuture<'a, Result<Vec<u8>>> {
    async move {
        let mut bytes = vec![0; extent.length as usize];
        for piece in image.layout().pieces(extent) {
            let at = (piece.image_offset - extent.offset) as usize;
            let into = &mut bytes[at..at + piece.length as usize];
            let object = image.data_object(piece.object);
            let range = Extent::new(piece.object_offset, piece.length);
            match image.data_ioctx().read_extent(&object, snap, range).await.optional()? {
                Some(data) => into[..data.len()].copy_from_slice(&data),
                None => read_parent(image, header, snap, piece.image_offset, into).await?,
            }
        }
        Ok(bytes)
    }
    .boxed()
}

async fn read_parent(
    image: &Image,
    header: &ImageHeader,
    snap: SnapId,
    offset: u64,
    into: &mut [u8],
) -> Result<()> {
    let Some(parent) = header.parent_at(snap).filter(|parent| parent.overlap > offset) else { return Ok(()) };
    let ioctx = image.header_ioctx().with_pool(parent.pool).with_namespace(&parent.namespace);
    let (parent_image, parent_header) = Image::open(&ioctx, &parent.image).await?;
    let length = (into.len() as u64).min(parent.overlap - offset);
    let data = read(&parent_image, &parent_header, parent.snap, Extent::new(offset, length)).await?;
    into[..data.len()].copy_from_slice(&data);
    Ok(())
}
