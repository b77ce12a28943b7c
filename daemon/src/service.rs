//! What the manager knows of this daemon: `ceph -s`, `rbd mirror pool status`, the dashboard.
//!
//! The daemon registers as service `rbd-mirror` under its client's global id and publishes one status value, `json`:
//!
//! ```text
//! {"<pool id>": {"name": "…", "callouts": {"<number>": {"level": "info|warning|error", "text": "…"}},
//!                "instance_id": "…", "leader": true, "image_local_count": 3, …,
//!                "namespaces": {"<name>": {"image_local_count": 3, …}}}}
//! ```
//!
//! `instance_id` is the global id of the connection that works on the pool: by it `rbd mirror image status` finds the
//! daemon behind a status. `leader` is there only while it is true.
//!
//! Reference: `src/tools/rbd_mirror/ServiceDaemon.cc`, read by `src/tools/rbd/MirrorDaemonServiceInfo.cc`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rados::{Cluster, PoolId};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// The shortest time between two publications.
const PUBLISH_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The prefix of client ids that Ceph's tools leave out of a daemon's name.
const ID_PREFIX: &str = "rbd-mirror.";

/// How serious a callout is. Errors and warnings set the daemon's health for the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Good to know.
    Info,
    /// Somebody should look at it.
    Warning,
    /// Mirroring of the pool does not work.
    Error,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warning => "warning",
            Level::Error => "error",
        }
    }
}

/// What the daemon says about itself; a cheap handle, shared by all of its parts.
#[derive(Clone, Default)]
pub struct ServiceDaemon {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    pools: Mutex<BTreeMap<PoolId, Pool>>,
    changed: Notify,
}

#[derive(Default)]
struct Pool {
    name: String,
    /// By the part of the daemon that calls out; an entry stays for its number, empty when all is well.
    callouts: BTreeMap<String, Option<(Level, String)>>,
    attributes: Map<String, Value>,
    namespaces: BTreeMap<String, Map<String, Value>>,
}

impl ServiceDaemon {
    /// Says that a pool is being worked on.
    pub fn add_pool(&self, pool: PoolId, name: &str) {
        self.pools().entry(pool).or_default().name = name.to_string();
        self.shared.changed.notify_one();
    }

    /// Forgets a pool.
    pub fn remove_pool(&self, pool: PoolId) {
        self.pools().remove(&pool);
        self.shared.changed.notify_one();
    }

    /// Calls out for attention, or takes back what the same `source` called out before.
    pub fn callout(&self, pool: PoolId, source: &str, callout: Option<(Level, String)>) {
        self.with(pool, |pool| {
            if callout.is_some() || pool.callouts.contains_key(source) {
                pool.callouts.insert(source.to_string(), callout);
            }
        });
    }

    /// Sets an attribute of a pool or, with a name that is not empty, of one of its namespaces; null removes it.
    pub fn attribute(&self, pool: PoolId, namespace: &str, key: &str, value: impl Into<Value>) {
        let value = value.into();
        self.with(pool, |pool| {
            let attributes = match namespace {
                "" => &mut pool.attributes,
                name => pool.namespaces.entry(name.to_string()).or_default(),
            };
            match value {
                Value::Null => attributes.remove(key),
                value => attributes.insert(key.to_string(), value),
            };
        });
    }

    /// Forgets a namespace.
    pub fn remove_namespace(&self, pool: PoolId, namespace: &str) {
        self.with(pool, |pool| {
            pool.namespaces.remove(namespace);
        });
    }

    /// Registers with the manager through `cluster`, then publishes every change until cancelled.
    pub async fn publish(
        &self,
        cluster: &Cluster,
        client_name: &str,
        cancel: &CancellationToken,
    ) -> rados::Result<()> {
        let id = client_name.split_once('.').map_or(client_name, |(_, id)| id);
        let instance_id = cluster.instance_id().to_string();
        let metadata = vec![
            ("id".to_string(), id.strip_prefix(ID_PREFIX).unwrap_or(id).to_string()),
            ("instance_id".to_string(), instance_id.clone()),
        ];
        cluster.service_register("rbd-mirror", &instance_id, metadata).await?;
        loop {
            cluster.service_update_status(vec![("json".to_string(), self.json().to_string())]).await?;
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = tokio::time::sleep(PUBLISH_INTERVAL_MIN) => {}
            }
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = self.shared.changed.notified() => {}
            }
        }
    }

    fn json(&self) -> Value {
        let pools = self.pools();
        pools.iter().map(|(id, pool)| (id.to_string(), pool.json())).collect::<Map<_, _>>().into()
    }

    fn with(&self, pool: PoolId, change: impl FnOnce(&mut Pool)) {
        if let Some(pool) = self.pools().get_mut(&pool) {
            change(pool);
            self.shared.changed.notify_one();
        }
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<PoolId, Pool>> {
        self.shared.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    fn json(&self) -> Value {
        let numbered = self.callouts.values().zip(1..);
        let callouts: Map<_, _> = numbered
            .filter_map(|(callout, number)| {
                let (level, text) = callout.as_ref()?;
                Some((number.to_string(), json!({"level": level.as_str(), "text": text})))
            })
            .collect();
        let mut object = self.attributes.clone();
        object.insert("name".into(), self.name.clone().into());
        object.insert("callouts".into(), callouts.into());
        if !self.namespaces.is_empty() {
            let namespaces: Map<_, _> = self
                .namespaces
                .iter()
                .map(|(name, attributes)| (name.clone(), attributes.clone().into()))
                .collect();
            object.insert("namespaces".into(), namespaces.into());
        }
        object.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_has_cephs_form() {
        let service = ServiceDaemon::default();
        let pool = PoolId(2);
        service.attribute(pool, "", "leader", true);
        assert_eq!(service.json(), json!({}), "a pool that was not added has no attributes");
        service.add_pool(pool, "data");
        service.attribute(pool, "", "leader", true);
        service.attribute(pool, "", "instance_id", "4711");
        service.attribute(pool, "ns", "image_local_count", 3);
        service.callout(pool, "connect", Some((Level::Error, "unable to connect to remote cluster".into())));
        assert_eq!(
            service.json(),
            json!({"2": {
                "name": "data", "leader": true, "instance_id": "4711",
                "callouts": {"1": {"level": "error", "text": "unable to connect to remote cluster"}},
                "namespaces": {"ns": {"image_local_count": 3}}}})
        );
        service.callout(pool, "connect", None);
        service.attribute(pool, "", "leader", Value::Null);
        service.remove_namespace(pool, "ns");
        assert_eq!(service.json(), json!({"2": {"name": "data", "instance_id": "4711", "callouts": {}}}));
        service.remove_pool(pool);
        assert_eq!(service.json(), json!({}));
    }
}
