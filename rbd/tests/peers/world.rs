//! The cluster that the scenarios share, and what they ask of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rados::{Cluster, ConnectOptions, IoCtx};
use rbd::exclusive_lock::{ExclusiveLock, LockOptions, LockReport, RequestPolicy};
use rbd::managed_lock::{LockOwner, ManagedLock};
use rbd::mirroring::{GlobalImageId, Mirroring};
use rbd::{Features, ImageId, directory};
use tests::wait;
use tokio::process::Child;

/// Pool of the images.
pub const POOL: &str = "images";
/// A pool in which nothing is mirrored.
pub const OTHER_POOL: &str = "other";
/// Mirror uuid of the site that pulls.
pub const FAR_UUID: &str = "5ee0c4f0-0000-4000-8000-000000000001";
/// Longest that anything but the death of a watcher takes.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Longest until a dead watcher is forgotten, and the lock that it held broken.
pub const DEATH_LIMIT: Duration = Duration::from_secs(60);

/// A cluster and a connection to it.
pub struct World {
    /// The cluster, driven by stock tools.
    pub stock: tests::Cluster,
    /// Our connection.
    pub cluster: Cluster,
    /// The pool through it.
    pub pool: IoCtx,
    _folder: tempfile::TempDir,
}

impl tests::World for World {
    /// Starts the cluster.
    async fn start() -> Result<World> {
        let folder = tempfile::tempdir()?;
        let stock =
            tests::Cluster::start(&folder.path().join("c"), &tests::ClusterOptions::default()).await?;
        for pool in [POOL, OTHER_POOL] {
            stock.create_pool(pool).await?;
        }
        let cluster = connect(&stock, &[]).await?;
        let pool = cluster.pool(cluster.pool_by_name(POOL).await?);
        Ok(World { stock, cluster, pool, _folder: folder })
    }
}

impl World {
    /// The pool through a connection of its own.
    pub async fn stranger(&self, options: &[(&str, &str)]) -> Result<(Cluster, IoCtx)> {
        let cluster = connect(&self.stock, options).await?;
        let pool = cluster.pool(self.pool.pool_id());
        Ok((cluster, pool))
    }

    /// A new image of 1 GiB, made by the stock tool, with Ceph's default features.
    pub async fn image(&self, name: &str) -> Result<ImageId> {
        self.stock.create_image(&spec(name), 1 << 30, &[]).await?;
        self.id(name).await
    }

    /// Mirroring of the pool, enabled, with a site that pulls from it.
    pub async fn mirroring(&self) -> Result<Mirroring> {
        let ours = Mirroring::new(&self.pool);
        if !ours.mode().await?.is_enabled() {
            self.stock.rbd(&["mirror", "pool", "enable", "--site-name", "here", POOL, "image"]).await?;
        }
        if ours.peers().await?.iter().all(|peer| peer.site_name != "far") {
            self.stock.rbd(&["mirror", "pool", "peer", "add", POOL, "client.far@far"]).await?;
            ours.peer_ping("far", FAR_UUID).await?;
        }
        Ok(ours)
    }

    /// A new image that is mirrored by snapshots.
    pub async fn mirrored(&self, name: &str) -> Result<(ImageId, GlobalImageId)> {
        let image = self.image(name).await?;
        self.stock.rbd(&["mirror", "image", "enable", &spec(name), "snapshot"]).await?;
        let mirror = Mirroring::new(&self.pool).image(&image).await?.context("mirrored")?;
        Ok((image, mirror.global_id))
    }

    /// The id of an image.
    pub async fn id(&self, name: &str) -> Result<ImageId> {
        Ok(directory::id_of(&self.pool, name).await?)
    }

    /// A lock on an image through our connection.
    pub async fn lock(&self, image: &ImageId, policy: RequestPolicy) -> Result<ExclusiveLock> {
        open_lock(&self.pool, image, policy).await
    }

    /// Who holds an image's lock.
    pub async fn owner(&self, image: &ImageId) -> Result<Option<LockOwner>> {
        Ok(ManagedLock::new(&self.pool, rbd::layout::header_object(image)).owner().await?)
    }

    /// A stock client that writes to an image without an end, and holds its lock. Killed when dropped.
    pub async fn writer(&self, name: &str) -> Result<Child> {
        let id = self.id(name).await?;
        let writer = self.spawn_bench(name, "1T")?;
        let ours = self.cluster.instance_id() as i64;
        wait::until("the writer to have the lock", LIMIT, || async {
            Ok(self.owner(&id).await?.filter(|owner| owner.entity.number != ours))
        })
        .await?;
        Ok(writer)
    }

    /// A stock client that writes so much to an image. Killed when dropped.
    pub fn spawn_bench(&self, name: &str, total: &str) -> Result<Child> {
        let tool = self.stock.tool("rbd");
        let tool = tool.args(["bench", "--io-type", "write", "--io-size", "4K", "--io-threads", "1"]);
        Ok(tool.args(["--io-total", total, &spec(name)]).start()?)
    }
}

/// An image in the pool as stock tools name it.
pub fn spec(name: &str) -> String {
    format!("{POOL}/{name}")
}

/// A lock on an image.
pub async fn open_lock(pool: &IoCtx, image: &ImageId, policy: RequestPolicy) -> Result<ExclusiveLock> {
    open_lock_in(&pool.gated(), image, policy).await
}

/// A lock on an image that is written to through `session`.
pub async fn open_lock_in(session: &IoCtx, image: &ImageId, policy: RequestPolicy) -> Result<ExclusiveLock> {
    Ok(ExclusiveLock::open(session, image, LockOptions { policy, ..LockOptions::default() }).await?)
}

/// Waits until a lock's report is as wanted.
pub async fn wait_report(
    lock: &ExclusiveLock,
    what: &str,
    limit: Duration,
    wanted: impl Fn(&LockReport) -> bool,
) -> Result<LockReport> {
    let mut report = lock.report();
    let waited = tokio::time::timeout(limit, report.wait_for(|report| wanted(report))).await;
    let now = || format!("gave up waiting for {what}; the lock's report is {:?}", lock.report().borrow());
    let found = waited.ok().with_context(now)?.with_context(now)?.clone();
    Ok(found)
}

/// Waits for the end of a stock client, and expects it to have worked.
pub async fn expect_success(child: Child, what: &str) -> Result<()> {
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
    let output = output.with_context(|| format!("{what} does not end"))??;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{what} ended with {}: {errors}", output.status);
    Ok(())
}

async fn connect(stock: &tests::Cluster, options: &[(&str, &str)]) -> Result<Cluster> {
    let options = ConnectOptions {
        client_name: "client.admin".to_string(),
        conf_file: Some(stock.conf_path()),
        options: options.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        ..ConnectOptions::default()
    };
    Ok(rados::connect(options).await?)
}

/// Features with which stock tools make images.
pub const DEFAULT_FEATURES: Features = Features(
    Features::LAYERING.0
        | Features::EXCLUSIVE_LOCK.0
        | Features::OBJECT_MAP.0
        | Features::FAST_DIFF.0
        | Features::DEEP_FLATTEN.0,
);
