//! Where it happens: two clusters that are each other's peers, a pool in both, and native connections to both for
//! looking at images without spawning tools.

use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Context, Result};
use rados::{ConnectOptions, IoCtx};
use tests::two_clusters::Direction;
use tests::{Cluster, ClusterOptions, TwoClusters};

use crate::turn::Peaks;

/// The mirrored pool.
pub const POOL: &str = "bench";
/// A pool of the copies' cluster that is not mirrored, for `rados bench`.
pub const RAW_POOL: &str = "raw";

/// Everything that scenarios work on.
#[derive(Debug)]
pub struct Ground {
    /// Images are primary in `a` and copied to `b`.
    pub clusters: TwoClusters,
    /// The pool in the cluster of the primary images.
    pub primary: IoCtx,
    /// The pool in the cluster of the copies.
    pub copy: IoCtx,
    /// Our daemon.
    pub program: PathBuf,
    /// Our command for operators.
    pub ctl: PathBuf,
    /// Fewer and smaller repetitions.
    pub quick: bool,
    /// The most memory that each of the daemons has had.
    pub(crate) peaks: Mutex<Peaks>,
}

impl Ground {
    /// Starts the clusters in a temporary folder, with Ceph's defaults, and makes them peers.
    pub async fn prepare(program: PathBuf, ctl: PathBuf, quick: bool) -> Result<Self> {
        let options = ClusterOptions { paxos_propose_interval_s: None, ..ClusterOptions::default() };
        let clusters = TwoClusters::start_temporary(&options).await?;
        clusters.create_pool(POOL).await?;
        clusters.b.create_pool(RAW_POOL).await?;
        clusters.connect_peers(POOL, Direction::Both).await?;
        let (primary, copy) = (connect(&clusters.a).await?, connect(&clusters.b).await?);
        Ok(Ground { clusters, primary, copy, program, ctl, quick, peaks: Mutex::default() })
    }

    /// The cluster of the primary images, for stock tools.
    pub fn a(&self) -> &Cluster {
        &self.clusters.a
    }

    /// The cluster of the copies, for stock tools.
    pub fn b(&self) -> &Cluster {
        &self.clusters.b
    }

    /// `full` repetitions, or `quick` ones when there is little time.
    pub fn repetitions(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// CPU time that the OSDs of both clusters have used so far, in seconds.
    pub fn osd_cpu_s(&self) -> Result<f64> {
        let mut sum = 0.0;
        for cluster in self.clusters.both() {
            let osds = cluster.daemons()?.into_iter().filter(|(name, _, _)| name.starts_with("osd."));
            sum += osds.filter_map(|(_, _, usage)| Some(usage?.cpu_s)).sum::<f64>();
        }
        Ok(sum)
    }

    /// The most memory that each of the daemons has had so far.
    pub fn peaks(&self) -> Peaks {
        self.peaks.lock().map_or_else(|broken| broken.into_inner().clone(), |peaks| peaks.clone())
    }
}

/// `POOL/NAME`, as the stock tools want it.
pub fn spec(image: &str) -> String {
    format!("{POOL}/{image}")
}

async fn connect(cluster: &Cluster) -> Result<IoCtx> {
    let options = ConnectOptions {
        client_name: "client.admin".to_owned(),
        conf_file: Some(cluster.conf_path()),
        ..ConnectOptions::default()
    };
    let failed = || format!("connecting to cluster {}", cluster.name());
    let connection = rados::connect(options).await.with_context(failed)?;
    let pool = connection.pool_by_name(POOL).await.with_context(failed)?;
    Ok(connection.pool(pool))
}
