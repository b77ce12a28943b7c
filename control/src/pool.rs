//! The handle: a pool, or one of its namespaces.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bootstrap::peers::Peers;
use deep_copy::ids::SnapIds;
use rados::error::ResultExt;
use rados::{Cluster, Error, IoCtx, PoolId, Result};
use rbd::directory;
use rbd::mirroring::Mirroring;
use tokio::sync::OnceCell;

/// What an operator may set.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name that the cluster goes by here (`--cluster`): no peer may have it.
    pub cluster_name: String,
    /// Images of a pool that are worked on at once.
    pub images_in_flight: usize,
    /// Objects of one image that are worked on at once.
    pub objects_in_flight: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { cluster_name: "ceph".into(), images_in_flight: 256, objects_in_flight: 64 }
    }
}

/// A pool, or one of its namespaces, whose mirroring is looked at or changed. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) cluster: Cluster,
    pub(crate) name: String,
    pub(crate) ioctx: IoCtx,
    pub(crate) options: Options,
    /// Metadata of the pool, where configuration may be overridden.
    pub(crate) overrides: OnceCell<BTreeMap<String, String>>,
    /// Snapshot ids allocated ahead, by data pool.
    snap_ids: Mutex<BTreeMap<PoolId, SnapIds>>,
}

impl Pool {
    /// A pool by its name, and a namespace of it unless empty. ENOENT when there is no such thing.
    pub async fn open(cluster: &Cluster, pool: &str, namespace: &str, options: Options) -> Result<Pool> {
        let id = cluster.pool_by_name(pool).await?;
        let ioctx = cluster.namespace(id, namespace);
        if !namespace.is_empty() && !directory::namespaces(&ioctx).await?.contains(namespace) {
            let what = format!("namespace '{namespace}' of pool '{pool}' does not exist");
            return Err(Error::new(libc::ENOENT, what));
        }
        Ok(Pool::of(cluster, pool, ioctx, options))
    }

    fn of(cluster: &Cluster, name: &str, ioctx: IoCtx, options: Options) -> Pool {
        let (cluster, name) = (cluster.clone(), name.to_string());
        let (overrides, snap_ids) = (OnceCell::new(), Mutex::default());
        Pool { inner: Arc::new(Inner { cluster, name, ioctx, options, overrides, snap_ids }) }
    }

    /// The cluster.
    pub fn cluster(&self) -> &Cluster {
        &self.inner.cluster
    }

    /// The pool's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The pool's number.
    pub fn id(&self) -> PoolId {
        self.inner.ioctx.pool_id()
    }

    /// The namespace; empty for the default one.
    pub fn namespace(&self) -> &str {
        self.inner.ioctx.namespace()
    }

    /// Where the images are.
    pub fn ioctx(&self) -> &IoCtx {
        &self.inner.ioctx
    }

    /// What was set.
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Names of its images, sorted.
    pub async fn images(&self) -> Result<Vec<String>> {
        let images = directory::list(self.ioctx()).await;
        Ok(images.context(format!("cannot list the images of {self}"))?.into_keys().collect())
    }

    /// Another namespace of the same pool; that it exists is for the caller to know.
    pub(crate) fn in_namespace(&self, namespace: &str) -> Pool {
        let ioctx = self.ioctx().with_namespace(namespace);
        Pool::of(self.cluster(), self.name(), ioctx, self.options().clone())
    }

    /// Its peers: those of the pool, whichever the namespace.
    pub fn peers(&self) -> Peers {
        Peers::new(self.cluster(), self.id(), &self.options().cluster_name)
    }

    /// The reserve of snapshot ids of a data pool. It begins to be filled when it is first asked for.
    pub(crate) fn snap_ids(&self, data: &IoCtx) -> SnapIds {
        let mut reserves = self.inner.snap_ids.lock().unwrap_or_else(PoisonError::into_inner);
        reserves.entry(data.pool_id()).or_insert_with(|| SnapIds::new(data.clone(), 1)).clone()
    }

    pub(crate) fn mirroring(&self) -> Mirroring {
        Mirroring::new(self.ioctx())
    }

    /// As people call an image in it.
    pub(crate) fn image_spec(&self, image: &str) -> String {
        match self.namespace() {
            "" => format!("{}/{image}", self.name()),
            namespace => format!("{}/{namespace}/{image}", self.name()),
        }
    }
}

/// `pool 'p'` or `namespace 'p/n'`.
impl std::fmt::Display for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.namespace() {
            "" => write!(f, "pool '{}'", self.name()),
            namespace => write!(f, "namespace '{}/{namespace}'", self.name()),
        }
    }
}
