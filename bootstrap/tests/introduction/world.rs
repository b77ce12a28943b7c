//! The two clusters that the scenarios share, and what they ask of them.

use anyhow::{Context, Result, ensure};
use bootstrap::{ImportDirection, ImportOptions, Imported, PeerConnector, Token};
use rados::{Cluster, ConnectOptions, Error, PoolId};
use serde_json::Value;
use tests::{ToolError, TwoClusters};

/// How the names of the scenarios' pools begin.
const POOL_PREFIX: &str = "introduction-";

/// One cluster: driven by stock tools, and natively.
pub struct Site {
    /// Stock tools.
    pub stock: tests::Cluster,
    /// Ours.
    pub cluster: Cluster,
}

impl Site {
    async fn connect(stock: &tests::Cluster) -> Result<Site> {
        let stock = tests::Cluster::attach(stock.folder())?;
        let options = ConnectOptions {
            client_name: "client.admin".to_string(),
            conf_file: Some(stock.conf_path()),
            ..ConnectOptions::default()
        };
        Ok(Site { cluster: rados::connect(options).await?, stock })
    }

    /// The number of a pool.
    pub async fn pool(&self, pool: &str) -> Result<PoolId> {
        Ok(self.cluster.pool_by_name(pool).await?)
    }

    /// Runs `rbd mirror pool …`.
    pub async fn rbd(&self, words: &[&str]) -> Result<String, ToolError> {
        self.stock.rbd(&[&["mirror", "pool"], words].concat()).await
    }

    /// Runs `rbd mirror pool peer bootstrap import`.
    pub async fn stock_import(&self, pool: &str, token: &str, direction: &str) -> Result<String, ToolError> {
        let args = ["mirror", "pool", "peer", "bootstrap", "import", "--direction", direction, pool, "-"];
        self.stock.tool("rbd").args(args).stdin(token).run().await
    }

    /// The same, natively. The mode that is copied is image mode.
    pub async fn import(
        &self,
        pool: &str,
        token: &Token,
        direction: ImportDirection,
    ) -> rados::Result<Imported> {
        let options = ImportOptions {
            pool: pool.to_string(),
            direction,
            cluster_name: self.stock.name().to_string(),
            connector: PeerConnector::default(),
        };
        let import = bootstrap::Import::open(&self.cluster, token, options).await?;
        if import.mode_to_copy().is_some() {
            let enabled = self.rbd(&["enable", pool, "image"]).await;
            enabled.map_err(|e| Error::new(e.exit_code().unwrap_or(libc::EIO), e.to_string()))?;
        }
        import.register().await
    }

    /// What is stored about the peers of a pool, as stock tools show it, without what differs from time to time.
    pub async fn peers(&self, pool: &str) -> Result<Vec<Value>> {
        let info = self.stock.rbd_json(&["mirror", "pool", "info", "--all", pool]).await?;
        let mut peers = info["peers"].as_array().cloned().unwrap_or_default();
        for peer in &mut peers {
            peer["uuid"] = Value::Null;
        }
        Ok(peers)
    }
}

/// The clusters.
pub struct World {
    clusters: TwoClusters,
    /// The first.
    pub a: Site,
    /// The second.
    pub b: Site,
}

impl tests::World for World {
    /// Starts them, or attaches to those that run.
    async fn start() -> Result<World> {
        let clusters = TwoClusters::for_tests().await?;
        Ok(World { a: Site::connect(&clusters.a).await?, b: Site::connect(&clusters.b).await?, clusters })
    }

    /// Removes the pools that scenarios have made.
    async fn tidy(&self) -> Result<()> {
        for site in [&self.a, &self.b] {
            for (_, pool) in site.cluster.pools().await? {
                if pool.starts_with(POOL_PREFIX) {
                    site.stock.delete_pool(&pool).await?;
                }
            }
        }
        Ok(())
    }
}

impl World {
    /// A new pool on both clusters, mirrored at site a. Both sites have their names.
    pub async fn pool(&self) -> Result<String> {
        let pool = format!("{POOL_PREFIX}{:08x}", rand::random::<u32>());
        self.clusters.create_pool(&pool).await?;
        for site in [&self.a, &self.b] {
            bootstrap::set_site_name(&site.cluster, site.stock.name()).await?;
        }
        self.a.rbd(&["enable", &pool, "image"]).await?;
        Ok(pool)
    }
}

/// Fails unless the stock tool and ours refuse with the same error number, and ours in a sentence of its own that does
/// not quote the token.
pub fn expect_same_refusal<T, U>(
    token: &Token,
    stock: Result<T, ToolError>,
    ours: rados::Result<U>,
) -> Result<()> {
    let stock = stock.err().context("the stock tool does it")?;
    let ours = ours.err().context("ours does it")?;
    let code = stock.exit_code().context("the stock tool was killed")?;
    ensure!(code == ours.errno(), "stock: {code} ({stock}), ours: {ours}");
    let said = ours.to_string();
    ensure!(said.starts_with("cannot ") && !said.contains(token.key.expose()), "{said}");
    Ok(())
}
