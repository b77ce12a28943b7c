//! The mirror daemons of a pool, as the manager's service map tells of them.
//!
//! `service dump` tells which daemons run and on which machines; `service status` carries a JSON text of each daemon's
//! own making, with an object per pool number: `instance_id`, `leader`, `callouts` (of which `level` and `text` count).
//! Anything else in either is passed over.
//!
//! Reference: `src/tools/rbd/MirrorDaemonServiceInfo.cc`.

use std::collections::BTreeMap;

use rados::error::ResultExt;
use rados::{Cluster, CommandTarget, Error, PoolId, Result};
use serde_json::{Value, json};

use crate::report::{Daemon, Health};

/// The daemons of a pool and how well they are all together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Daemons {
    /// By service id.
    pub daemons: Vec<Daemon>,
    /// The worst of all; unknown when there is none.
    pub health: Health,
}

impl Daemons {
    /// Asks the monitors.
    pub async fn read(cluster: &Cluster, pool: PoolId) -> Result<Daemons> {
        let ask =
            |prefix| cluster.command(CommandTarget::Mon, json!({"prefix": prefix, "format": "json"}), "");
        let (dump, status) = futures::try_join!(ask("service dump"), ask("service status"))
            .context("cannot tell which mirror daemons run")?;
        let parse = |what: &str, text: &[u8]| {
            let damaged = |_| Error::new(libc::EBADMSG, format!("cannot understand the answer to '{what}'"));
            serde_json::from_slice::<Value>(text).map_err(damaged)
        };
        Daemons::from_json(
            &parse("service dump", &dump.output)?,
            &parse("service status", &status.output)?,
            pool,
        )
    }

    /// The daemon that images refer to by `instance_id`.
    pub fn by_instance(&self, instance_id: &str) -> Option<&Daemon> {
        self.daemons.iter().find(|daemon| !instance_id.is_empty() && daemon.instance_id == instance_id)
    }

    fn from_json(dump: &Value, status: &Value, pool: PoolId) -> Result<Daemons> {
        let mut daemons: BTreeMap<String, Daemon> = BTreeMap::new();
        let running = dump["services"]["rbd-mirror"]["daemons"].as_object();
        for (service_id, daemon) in running.into_iter().flatten() {
            // Beside the daemons there are entries of other kinds.
            if let Some(metadata) = daemon.get("metadata").filter(|metadata| metadata.is_object()) {
                daemons.insert(service_id.clone(), running_daemon(service_id, metadata));
            }
        }
        let mut reporting = Vec::new();
        let statuses = status["rbd-mirror"].as_object();
        for (service_id, status) in statuses.into_iter().flatten() {
            if let Some(daemon) = daemons.get_mut(service_id) {
                reporting.extend(add_status(daemon, &status["status"], pool)?);
            }
        }
        let mut health = match reporting.as_slice() {
            _ if daemons.is_empty() || statuses.is_none() => Health::Unknown,
            [] => Health::Error,
            leaders if leaders.contains(&true) => Health::Ok,
            _ => Health::Warning,
        };
        let daemons: Vec<_> = daemons.into_values().collect();
        if health != Health::Unknown {
            health = daemons.iter().map(|daemon| daemon.health).fold(health, Health::max);
        }
        Ok(Daemons { daemons, health })
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

fn running_daemon(service_id: &str, metadata: &Value) -> Daemon {
    Daemon {
        service_id: service_id.to_string(),
        instance_id: String::new(),
        client_id: text(&metadata["id"]),
        hostname: text(&metadata["hostname"]),
        ceph_version: text(&metadata["ceph_version_short"]),
        leader: false,
        health: Health::Unknown,
        callouts: Vec::new(),
    }
}

/// Adds what a daemon tells of `pool`. Answers whether it leads there; nothing when it tells nothing of it.
fn add_status(daemon: &mut Daemon, status: &Value, pool: PoolId) -> Result<Option<bool>> {
    let mut warn = |text: &str| {
        daemon.callouts.push(text.to_string());
        daemon.health = Health::Warning;
        Ok(None)
    };
    let Some(json) = status["json"].as_str() else {
        return warn("not reporting status");
    };
    let Ok(told) = serde_json::from_str::<Value>(json) else {
        let what = format!("cannot understand the status of mirror daemon {}", daemon.service_id);
        return Err(Error::new(libc::EBADMSG, what));
    };
    let told = &told[pool.0.to_string()];
    if told.is_null() {
        return warn("not reporting status for pool");
    }
    daemon.instance_id = text(&told["instance_id"]);
    daemon.leader = told["leader"].as_bool().unwrap_or(false);
    daemon.health = Health::Ok;
    for callout in told["callouts"].as_object().into_iter().flatten().map(|(_, callout)| callout) {
        let level = match callout["level"].as_str() {
            Some("error") => Health::Error,
            Some("warning") => Health::Warning,
            Some(_) => Health::Ok,
            None => continue,
        };
        daemon.health = daemon.health.max(level);
        daemon.callouts.extend(callout["text"].as_str().map(str::to_string));
    }
    Ok(Some(daemon.leader))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dump() -> Value {
        json!({"services": {"rbd-mirror": {"daemons": {
            "summary": "",
            "4212": {"gid": 4212, "metadata": {"id": "m", "hostname": "h", "ceph_version_short": "16.2.15"}},
            "4300": {"gid": 4300, "metadata": {"id": "n"}},
        }}}})
    }

    fn status(of_4212: Value, of_4300: Value) -> Value {
        let daemon = |pools: Value| json!({"status": {"json": pools.to_string()}});
        json!({"rbd-mirror": {"4212": daemon(of_4212), "4300": daemon(of_4300)}})
    }

    #[test]
    fn the_worst_daemon_counts() {
        let leading = json!({"2": {"instance_id": "4215", "leader": true}});
        let ill = json!({"2": {"instance_id": "9", "callouts": {
            "1": {"level": "warning", "text": "no peer"}, "2": {"level": "error", "text": "no cluster"}, "3": {},
        }}});
        let read = |status| Daemons::from_json(&dump(), &status, PoolId(2)).unwrap();
        let well = read(status(leading.clone(), leading.clone()));
        assert_eq!(well.health, Health::Ok);
        assert_eq!(well.by_instance("4215").map(Daemon::description).as_deref(), Some("m on h"));
        assert_eq!(well.by_instance(""), None);

        let mixed = read(status(leading.clone(), ill));
        assert_eq!((mixed.health, mixed.daemons[1].health), (Health::Error, Health::Error));
        assert_eq!(mixed.daemons[1].callouts, ["no peer", "no cluster"]);
        assert_eq!(read(status(leading, json!({}))).health, Health::Warning);
    }

    #[test]
    fn pools_that_no_daemon_leads_are_not_well() {
        let following = json!({"2": {"instance_id": "1"}});
        let read = |status, pool| Daemons::from_json(&dump(), &status, PoolId(pool)).unwrap().health;
        assert_eq!(read(status(following.clone(), following.clone()), 2), Health::Warning);
        assert_eq!(read(status(following.clone(), following), 3), Health::Error);
        assert_eq!(read(json!({"rbd-mirror": {"4212": {}}}), 2), Health::Error);
        let none = Daemons::from_json(&json!({"services": {}}), &json!({}), PoolId(2)).unwrap();
        assert_eq!((none.health, none.daemons.len()), (Health::Unknown, 0));
    }

    /// JSON of the words that matter here, in any arrangement.
    fn any_json() -> impl Strategy<Value = Value> {
        let word = prop::sample::select(vec![
            "services",
            "rbd-mirror",
            "daemons",
            "metadata",
            "status",
            "json",
            "2",
        ]);
        let leaf =
            prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), ".*".prop_map(Value::from)];
        leaf.prop_recursive(6, 40, 4, move |inner| {
            let pairs = prop::collection::vec((word.clone(), inner.clone()), 0..4);
            let object = pairs
                .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.into(), v)).collect()));
            prop_oneof![prop::collection::vec(inner, 0..4).prop_map(Value::from), object]
        })
    }

    proptest! {
        #[test]
        fn no_answer_of_the_monitors_makes_it_panic(dump in any_json(), status in any_json()) {
            let _ = Daemons::from_json(&dump, &status, PoolId(2));
        }
    }
}
