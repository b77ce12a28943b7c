//! The crate on a real cluster. One cluster serves all tests of this program; each uses objects of its own.

mod connection;
mod faults;
mod full;
mod locks;
mod objects;
mod snapshots;
mod watches;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rados::{ConnectOptions, IoCtx};
use tests::{Cluster, TwoClusters};
use tokio::sync::OnceCell;

/// How long anything may take that is under way, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

const POOL: &str = "rados-tests";

/// The cluster with the pool [`POOL`].
async fn ceph() -> &'static Cluster {
    static CLUSTERS: OnceCell<TwoClusters> = OnceCell::const_new();
    let start = async || {
        let clusters = TwoClusters::for_tests().await?;
        clusters.a.ceph(&["osd", "pool", "create", POOL, "8"]).await?;
        anyhow::Ok(clusters)
    };
    &CLUSTERS.get_or_try_init(start).await.expect("a cluster").a
}

/// How to connect as administrator.
async fn options() -> ConnectOptions {
    ConnectOptions { conf_file: Some(ceph().await.conf_path()), ..ConnectOptions::default() }
}

async fn connect() -> rados::Cluster {
    rados::connect(options().await).await.expect("a connection")
}

/// The pool, over a new connection.
async fn pool() -> IoCtx {
    pool_of(&connect().await).await
}

async fn pool_of(cluster: &rados::Cluster) -> IoCtx {
    cluster.pool(cluster.pool_by_name(POOL).await.expect("the pool"))
}

/// A name that nobody else uses, also not an earlier run on the same cluster.
fn unique(stem: &str) -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
    format!("{stem}-{}-{}", epoch.as_nanos(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Fails the test when `future` takes too long.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what} takes more than {LIMIT:?}"))
}

/// Bytes that differ from place to place and from seed to seed.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
