//! A connection to one cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::backend::{Backend, Location};
use crate::error::Result;
use crate::ioctx::IoCtx;
use crate::types::PoolId;

/// How to reach a cluster, in the order in which it is applied: configuration file, environment (`CEPH_ARGS`), then
/// `options`.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// Cluster name, `ceph` when empty: names the default configuration file and keyring.
    pub cluster_name: String,
    /// Client name with its type, for example `client.rbd-mirror.a`.
    pub client_name: String,
    /// Configuration file to read; the default places when `None`.
    pub conf_file: Option<PathBuf>,
    /// Read no configuration file at all (a peer described by `mon_host` and `key` alone).
    pub no_conf_file: bool,
    /// Configuration options by name, for example `mon_host`, `key`, `keyring`.
    pub options: BTreeMap<String, String>,
    /// Bounds on what is in flight.
    pub limits: Limits,
}

/// Bounds on what one connection has in flight; more waits its turn. They hold for requests that move data
/// ([`crate::IoCtx::for_data`]), and again for all others, which so never wait for those. A request that the cluster does not
/// answer for ten seconds no longer counts: placement groups that are inactive must not stop what goes to others.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Object operations.
    pub operations: usize,
    /// Bytes of data being written or read.
    pub bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { operations: 1024, bytes: 256 << 20 }
    }
}

/// Who answers a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandTarget {
    /// The monitors.
    Mon,
    /// The active manager.
    Mgr,
}

/// Answer to a command.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandReply {
    /// What the command printed.
    pub output: Bytes,
    /// Its status line.
    pub status: String,
}

/// What is to follow the name of an option of Ceph on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// Nothing: it is true or false.
    Flag,
    /// A value.
    Value,
}

/// The kind of an option of Ceph by its name (with underscores); `None` when there is no such option.
pub fn option_kind(option: &str) -> Option<OptionKind> {
    crate::librados::option_kind(option)
}

/// Connects to a cluster. Not cancel-safe in time (librados cannot give up a connection attempt); the attempt ends by
/// itself after `client_mount_timeout`.
pub async fn connect(options: ConnectOptions) -> Result<Cluster> {
    let backend = crate::librados::connect(options).await?;
    Ok(Cluster::new(backend))
}

/// Waits until every connection of this process that was dropped is closed, at most for `timeout`; true when none is left.
///
/// Closing happens in the background, because librados waits for its own threads meanwhile. A connection that is still
/// held, or has operations in flight, counts as open. The exit of the process waits by itself for connections that are
/// being closed, for up to five seconds.
pub async fn all_closed(timeout: Duration) -> bool {
    crate::librados::all_closed(timeout).await
}

/// Ends the process with `code` once every connection that was dropped is closed, at the latest after `timeout`. Unlike an
/// ordinary exit, this is safe also while a connection is held by a call that waits for a lost cluster. Output must have
/// been flushed before. Blocks: not for an async worker thread.
pub fn end_process(code: u8, timeout: Duration) -> ! {
    crate::librados::end_process(code, timeout)
}

/// A connected cluster: cheap to clone, closed when the last clone and everything opened from it is gone.
#[derive(Clone)]
pub struct Cluster {
    backend: Arc<dyn Backend>,
}

impl Cluster {
    /// A cluster behind any backend.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Cluster { backend }
    }

    /// The backend, to wrap or to call directly.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// The cluster's fsid.
    pub fn fsid(&self) -> &str {
        self.backend.fsid()
    }

    /// This client's global id.
    pub fn instance_id(&self) -> u64 {
        self.backend.instance_id()
    }

    /// This client's address as blocklists know it.
    pub fn address(&self) -> &str {
        self.backend.address()
    }

    /// The value of a configuration option.
    pub fn config(&self, option: &str) -> Option<String> {
        self.backend.config(option)
    }

    /// The default namespace of a pool.
    pub fn pool(&self, pool: PoolId) -> IoCtx {
        self.namespace(pool, "")
    }

    /// A namespace of a pool.
    pub fn namespace(&self, pool: PoolId, namespace: &str) -> IoCtx {
        IoCtx::new(self.backend.clone(), Location { pool, namespace: namespace.into() })
    }

    /// Every pool: number and name.
    pub async fn pools(&self) -> Result<Vec<(PoolId, String)>> {
        self.backend.pools().await
    }

    /// Number of the pool called `name`; ENOENT when there is none.
    pub async fn pool_by_name(&self, name: &str) -> Result<PoolId> {
        let find = async || {
            let pools = self.backend.pools().await?;
            Result::Ok(pools.into_iter().find(|(_, n)| n == name).map(|(id, _)| id))
        };
        if let Some(id) = find().await? {
            return Ok(id);
        }
        // It may be newer than what this client knows.
        self.wait_for_latest_osdmap().await?;
        find().await?.ok_or_else(|| crate::Error::new(libc::ENOENT, format!("cannot find pool '{name}'")))
    }

    /// Runs a JSON command, for example `{"prefix": "osd blocklist ls", "format": "json"}`.
    pub async fn command(
        &self,
        target: CommandTarget,
        command: serde_json::Value,
        input: impl Into<Bytes>,
    ) -> Result<CommandReply> {
        self.backend.command(target, command.to_string(), input.into()).await
    }

    /// Value of a key of the monitors' config-key store; `None` when there is no such key.
    pub async fn config_key_get(&self, key: &str) -> Result<Option<Bytes>> {
        let command = serde_json::json!({"prefix": "config-key get", "key": key});
        match self.command(CommandTarget::Mon, command, Bytes::new()).await {
            Ok(reply) => Ok(Some(reply.output)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Waits until this client has the newest OSD map.
    pub async fn wait_for_latest_osdmap(&self) -> Result<()> {
        self.backend.wait_for_latest_osdmap().await
    }

    /// Registers this connection with the manager as a service daemon.
    pub async fn service_register(
        &self,
        service: &str,
        daemon: &str,
        metadata: Vec<(String, String)>,
    ) -> Result<()> {
        self.backend.service_register(service, daemon, metadata).await
    }

    /// Publishes the status of the service daemon registered before.
    pub async fn service_update_status(&self, status: Vec<(String, String)>) -> Result<()> {
        self.backend.service_update_status(status).await
    }

    /// Fences another client: blocklists its address (as in [`Cluster::address`]) for `seconds` (the monitors'
    /// default when `None`), and waits until this client knows of it.
    pub async fn blocklist_add(&self, address: &str, seconds: Option<f64>) -> Result<()> {
        let mut command =
            serde_json::json!({"prefix": "osd blocklist", "blocklistop": "add", "addr": address});
        if let Some(seconds) = seconds {
            command["expire"] = seconds.into();
        }
        self.command(CommandTarget::Mon, command, Bytes::new()).await?;
        self.wait_for_latest_osdmap().await
    }
}
