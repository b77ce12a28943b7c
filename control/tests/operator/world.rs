//! The two clusters that the scenarios share, and what they ask of them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use control::{Options, Pool};
use rados::{Cluster, ConnectOptions, Error};
use tests::image::RandomWrites;
use tests::two_clusters::Direction;
use tests::{ToolError, TwoClusters};

/// How long something may take that waits for a daemon.
pub const LIMIT: Duration = Duration::from_secs(120);
/// How the names of the scenarios' pools begin.
const POOL_PREFIX: &str = "operator-";
/// Size of most images: a few objects.
pub const SIZE: u64 = 24 << 20;

/// One cluster: driven by stock tools, and natively.
pub struct Site {
    /// Stock tools.
    pub stock: tests::Cluster,
    /// Ours.
    pub cluster: Cluster,
}

impl Site {
    async fn connect(stock: tests::Cluster) -> Result<Site> {
        let cluster = rados::connect(connect_options(&stock)).await?;
        Ok(Site { stock, cluster })
    }

    /// A pool, through a connection of its own.
    pub async fn pool_apart(&self, pool: &str) -> Result<Pool> {
        let cluster = rados::connect(connect_options(&self.stock)).await?;
        Ok(Pool::open(&cluster, pool, "", Options::default()).await?)
    }

    /// A pool of this cluster.
    pub async fn pool(&self, pool: &str) -> Result<Pool> {
        Ok(Pool::open(&self.cluster, pool, "", Options::default()).await?)
    }

    /// Makes an image with the stock `rbd` and writes something to it.
    pub async fn image(&self, spec: &str, args: &[&str]) -> Result<()> {
        self.stock.create_image(spec, SIZE, args).await?;
        self.scribble(spec, 1).await
    }

    /// Writes here and there.
    pub async fn scribble(&self, spec: &str, seed: u64) -> Result<()> {
        let writes = RandomWrites { seed, count: 20, block_bytes: 16 << 10, within: 0..SIZE };
        self.stock.write_random(spec, &writes).await
    }
}

fn connect_options(stock: &tests::Cluster) -> ConnectOptions {
    ConnectOptions {
        client_name: "client.admin".to_string(),
        conf_file: Some(stock.conf_path()),
        ..ConnectOptions::default()
    }
}

/// The clusters.
pub struct World {
    /// Both, to be ended with the world.
    pub clusters: TwoClusters,
    /// The first.
    pub a: Site,
    /// The second.
    pub b: Site,
}

impl tests::World for World {
    /// Starts them, or attaches to those that run.
    async fn start() -> Result<World> {
        let clusters = TwoClusters::for_tests().await?;
        let attach = |cluster: &tests::Cluster| tests::Cluster::attach(cluster.folder());
        let (a, b) = (attach(&clusters.a)?, attach(&clusters.b)?);
        Ok(World { a: Site::connect(a).await?, b: Site::connect(b).await?, clusters })
    }

    /// Removes the pools that scenarios have made: a cluster holds only so many placement groups.
    async fn tidy(&self) -> Result<()> {
        for site in [&self.a, &self.b] {
            let pools = site.cluster.pools().await?;
            for (_, pool) in pools.iter().filter(|(_, pool)| pool.starts_with(POOL_PREFIX)) {
                site.stock.delete_pool(pool).await?;
            }
        }
        Ok(())
    }
}

impl World {
    /// A new pool on both clusters, whose two sides are peers.
    pub async fn mirrored_pool(&self) -> Result<String> {
        let pool = self.new_pool().await?;
        self.clusters.connect_peers(&pool, Direction::Both).await?;
        Ok(pool)
    }

    /// A new pool on both clusters.
    pub async fn new_pool(&self) -> Result<String> {
        let pool = format!("{POOL_PREFIX}{:08x}", rand::random::<u32>());
        self.clusters.create_pool(&pool).await?;
        Ok(pool)
    }
}

/// Fails unless the stock tool and ours refuse with the same error number, and ours in a sentence of its own.
pub fn expect_same_refusal<T, U>(stock: Result<T, ToolError>, ours: Result<U, Error>) -> Result<()> {
    let stock = stock.err().context("the stock tool does it")?;
    let ours = ours.err().context("ours does it")?;
    let code = stock.exit_code().context("the stock tool was killed")?;
    ensure!(code == ours.errno(), "stock: {code} ({stock}), ours: {ours}");
    ensure!(ours.to_string().starts_with("cannot ") || ours.to_string().starts_with("mirroring "), "{ours}");
    Ok(())
}
