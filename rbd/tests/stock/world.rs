//! The cluster that the scenarios share, and what they ask of it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rados::{ConnectOptions, Extent, IoCtx, SnapId};
use rbd::{Features, ImageId, NewImage, generate_id};

/// Pool of the headers.
pub const POOL: &str = "images";
/// Another pool: for data, and for clones.
pub const OTHER_POOL: &str = "other";
/// A namespace in both pools.
pub const NAMESPACE: &str = "ns";

/// What `rbd create` gives an image by default.
pub const DEFAULT_FEATURES: Features = Features(
    Features::LAYERING.0
        | Features::EXCLUSIVE_LOCK.0
        | Features::OBJECT_MAP.0
        | Features::FAST_DIFF.0
        | Features::DEEP_FLATTEN.0,
);

/// A cluster and a connection to it.
pub struct World {
    /// The cluster, driven by stock tools.
    pub stock: tests::Cluster,
    /// The same, natively: headers.
    pub pool: IoCtx,
    /// The other pool.
    pub other: IoCtx,
    _folder: tempfile::TempDir,
}

impl tests::World for World {
    /// Starts the cluster.
    async fn start() -> Result<World> {
        let folder = tempfile::tempdir()?;
        let mut options = tests::ClusterOptions::default();
        // On what looks like a hard disk, OSDs pause for 5 s behind every object that they trim.
        options.conf.push(("osd".into(), "osd snap trim sleep hdd".into(), "0.001".into()));
        let stock = tests::Cluster::start(&folder.path().join("c"), &options).await?;
        for pool in [POOL, OTHER_POOL] {
            stock.create_pool(pool).await?;
            stock.rbd(&["namespace", "create", &format!("{pool}/{NAMESPACE}")]).await?;
        }
        let options = ConnectOptions {
            client_name: "client.admin".to_string(),
            conf_file: Some(stock.conf_path()),
            ..ConnectOptions::default()
        };
        let cluster = rados::connect(options).await?;
        let pool = cluster.pool(cluster.pool_by_name(POOL).await?);
        let other = cluster.pool(cluster.pool_by_name(OTHER_POOL).await?);
        Ok(World { stock, pool, other, _folder: folder })
    }
}

impl World {
    /// A plain image to be made, of 4 MiB objects.
    pub fn new_image(&self, name: &str, size: u64, features: Features) -> NewImage {
        NewImage {
            name: name.to_string(),
            id: generate_id(&self.pool),
            size,
            order: 22,
            features,
            stripe_unit: 0,
            stripe_count: 0,
            data_pool: None,
        }
    }

    /// A new id of the same length as another one, so that what is encoded around them can be compared.
    pub fn id_like(&self, other: &ImageId) -> ImageId {
        let random = format!("{:032x}", u128::from_le_bytes(rand::random()));
        ImageId(random[..other.0.len()].to_string())
    }

    /// Everything that is stored about an image outside of its data objects, with its id and its name replaced, and
    /// without times: what must be alike for two images made alike.
    pub async fn traces(&self, ioctx: &IoCtx, name: &str, id: &ImageId) -> Result<BTreeMap<String, Bytes>> {
        let mut traces = BTreeMap::new();
        for object in ioctx.list_objects().await? {
            let of_image =
                [format!("rbd_header.{id}"), format!("rbd_id.{name}"), format!("rbd_object_map.{id}")];
            let shared = ["rbd_directory", "rbd_trash"].contains(&object.as_str());
            if !shared && !of_image.iter().any(|own| object == *own || object.starts_with(&format!("{own}.")))
            {
                continue;
            }
            for (key, value) in ioctx.omap_all(&object, "").await? {
                let mine =
                    key == format!("name_{name}") || key == format!("id_{id}") || contains(&value, &id.0);
                if (!shared || mine) && !key.ends_with("_timestamp") {
                    let key = neutral(key.as_bytes(), name, id);
                    let place = format!("{} {}", neutral_text(&object, name, id), key.escape_ascii());
                    traces.insert(place, neutral(&value, name, id).into());
                }
            }
            let content = ioctx.read_extent(&object, SnapId::HEAD, Extent::new(0, 1 << 20)).await?;
            let place = format!("{} content", neutral_text(&object, name, id));
            traces.insert(place, neutral(&content, name, id).into());
        }
        ensure!(!traces.is_empty(), "there is no trace of image {name}");
        Ok(traces)
    }

    /// Fails unless two images of one pool left the same traces.
    pub async fn expect_same_traces(
        &self,
        ioctx: &IoCtx,
        a: (&str, &ImageId),
        b: (&str, &ImageId),
    ) -> Result<()> {
        let of_a = self.traces(ioctx, a.0, a.1).await?;
        let of_b = self.traces(ioctx, b.0, b.1).await?;
        let places: std::collections::BTreeSet<_> = of_a.keys().chain(of_b.keys()).collect();
        for place in places {
            let (in_a, in_b) = (of_a.get(place), of_b.get(place));
            ensure!(in_a == in_b, "{place}: {} has {in_a:?}, {} has {in_b:?}", a.0, b.0);
        }
        Ok(())
    }

    /// Id of an image made by stock tools.
    pub async fn id_of(&self, ioctx: &IoCtx, name: &str) -> Result<ImageId> {
        rbd::directory::id_of(ioctx, name).await.context("an id")
    }

    /// Reads a whole image natively, object by object, at a snapshot; absent parts are zero. Clones are not followed.
    pub async fn read_native(&self, image: &rbd::Image, size: u64, snap: SnapId) -> Result<Vec<u8>> {
        let mut content = vec![0; size as usize];
        for extent in image.layout().object_extents(Extent::new(0, size)) {
            let name = image.data_object(extent.object);
            let data = match image.data_ioctx().read_extent(&name, snap, extent.extent).await {
                Err(error) if error.is_not_found() => continue,
                other => other?,
            };
            let mut rest = &data[..];
            for range in extent.image {
                let part = rest.len().min(range.length as usize);
                content[range.offset as usize..range.offset as usize + part].copy_from_slice(&rest[..part]);
                rest = &rest[part..];
            }
        }
        Ok(content)
    }

    /// Waits until nobody watches an image any more.
    pub async fn wait_unwatched(&self, ioctx: &IoCtx, id: &ImageId) -> Result<()> {
        let object = format!("rbd_header.{id}");
        tests::wait::until("the watcher to be gone", Duration::from_secs(60), || async {
            Ok(ioctx.list_watchers(&object).await?.is_empty().then_some(()))
        })
        .await
    }
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

fn neutral_text(text: &str, name: &str, id: &ImageId) -> String {
    String::from_utf8_lossy(&neutral(text.as_bytes(), name, id)).into_owned()
}

/// Replaces an image's id and name by placeholders. Both must have the same length in images to be compared, because
/// encodings tell lengths.
fn neutral(bytes: &[u8], name: &str, id: &ImageId) -> Vec<u8> {
    let replaced = replace(bytes, id.0.as_bytes(), b"<id>");
    replace(&replaced, name.as_bytes(), b"<name>")
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}
