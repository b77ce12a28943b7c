//! The copier on real clusters. One pair of clusters serves all tests of this program.

mod images;
mod objects;
mod sizes;

use std::sync::LazyLock;

use rados::{ConnectOptions, IoCtx};
use tests::{Cluster, TwoClusters};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

const POOL: &str = "snapshot-tests";

/// Runs a test on the threads of a runtime that outlives it: the clusters end with the thread that started them.
fn run(test: impl Future<Output = ()> + Send + 'static) {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));
    RUNTIME.block_on(RUNTIME.spawn(test)).expect("a test that does not panic");
}

async fn clusters() -> &'static TwoClusters {
    static CLUSTERS: OnceCell<TwoClusters> = OnceCell::const_new();
    let start = async || {
        let clusters = TwoClusters::for_tests().await?;
        clusters.create_pool(POOL).await?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(clusters)
    };
    CLUSTERS.get_or_try_init(start).await.expect("two clusters")
}

async fn pool(cluster: &Cluster) -> IoCtx {
    let options = ConnectOptions { conf_file: Some(cluster.conf_path()), ..ConnectOptions::default() };
    let cluster = rados::connect(options).await.expect("a connection");
    cluster.pool(cluster.pool_by_name(POOL).await.expect("the pool"))
}

/// SplitMix64: what a seed determines.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.below(256) as u8).collect()
    }
}
