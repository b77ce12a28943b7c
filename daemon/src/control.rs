//! What the admin socket shows and orders: the seam between it and the pool replayers.
//!
//! Every pool replayer registers a [`PoolControl`]: it writes its view there, and follows the orders that it finds. An
//! order is a state ("stopped"), not an event, so that it outlives a restart of the pool replayer, also one that gets
//! another key or address of its peer; restarts and releases are counted up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bootstrap::RemotePeer;
use futures::future::join_all;
use rados::PoolId;
use rbd::mirroring::StatusState;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::admin_socket::Command;
use crate::report::Report;
use crate::reports::Reports;

/// An image within a pool: namespace and global image id.
pub type ImageKey = (String, Arc<str>);

/// The command that is not done before it is answered.
const FLUSH: &str = "rbd mirror flush";
/// How often an image that is being flushed is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A pool and the uuid of a peer of it.
type PeerKey = (PoolId, String);

/// What an operator ordered for a pool.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Orders {
    /// Follow no image.
    pub stopped: bool,
    /// Do not follow these.
    pub stopped_images: BTreeSet<ImageKey>,
    /// Counted up whenever every image is to be started over.
    pub restarts: u64,
    /// Counted up whenever that image is to be started over.
    pub image_restarts: BTreeMap<ImageKey, u64>,
    /// Counted up whenever the leadership is to be released.
    pub leader_releases: u64,
}

/// What a pool replayer shows.
#[derive(Clone, Default)]
pub struct PoolView {
    /// What it is doing: `running`, or why it is not.
    pub state: String,
    /// Global id of its connection.
    pub instance_id: String,
    /// True when it is the pool's leader.
    pub leader: bool,
    /// Global id of the leader, if known.
    pub leader_instance_id: String,
    /// The images' reports by namespace.
    pub namespaces: BTreeMap<String, Reports>,
}

/// One pool replayer as the admin socket sees it.
pub struct PoolControl {
    pool_name: String,
    site_name: String,
    peer: String,
    view: Mutex<PoolView>,
    orders: watch::Sender<Orders>,
}

impl PoolControl {
    /// Changes the view.
    pub fn show(&self, change: impl FnOnce(&mut PoolView)) {
        change(&mut self.view());
    }

    /// The orders to follow.
    pub fn orders(&self) -> watch::Receiver<Orders> {
        self.orders.subscribe()
    }

    fn view(&self) -> MutexGuard<'_, PoolView> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status(&self) -> Value {
        let view = self.view().clone();
        let state = if self.orders.borrow().stopped { "stopped (manual)" } else { &view.state };
        let mut namespaces = view.namespaces.iter();
        let images = |reports: &Reports| {
            let reports = reports.shown();
            reports
                .into_iter()
                .map(|(id, report)| image_status(&self.pool_name, &id, &report))
                .collect::<Vec<_>>()
        };
        let default =
            namespaces.next().filter(|(name, _)| name.is_empty()).map(|(_, reports)| images(reports));
        let named = view.namespaces.iter().filter(|(name, _)| !name.is_empty());
        let named: Vec<_> =
            named.map(|(name, reports)| json!({"name": name, "image_replayers": images(reports)})).collect();
        json!({
            "peer": self.peer,
            "pool": self.pool_name,
            "instance_id": view.instance_id,
            "state": state,
            "leader_instance_id": view.leader_instance_id,
            "leader": view.leader,
            "image_replayers": default.unwrap_or_default(),
            "namespaces": named,
        })
    }

    /// Namespace and global id of `[NAMESPACE/]IMAGE`.
    fn find(&self, image: &str) -> Option<(ImageKey, Reports)> {
        let (namespace, name) = image.split_once('/').unwrap_or(("", image));
        let reports = self.view().namespaces.get(namespace)?.clone();
        let id = reports.by_name(name)?;
        Some(((namespace.to_string(), id), reports))
    }
}

fn image_status(pool_name: &str, global_image_id: &str, report: &Report) -> Value {
    json!({
        "name": format!("{pool_name}/{}", report.image_name),
        "global_image_id": global_image_id,
        "state": report.state.to_string(),
        "description": report.description,
    })
}

/// All pool replayers; a cheap handle.
#[derive(Clone, Default)]
pub struct Control {
    pools: Arc<Mutex<Vec<Weak<PoolControl>>>>,
    /// The orders for each pool and peer, by the peer's uuid, for as long as the process lives.
    orders: Arc<Mutex<BTreeMap<PeerKey, watch::Sender<Orders>>>>,
}

impl Control {
    /// Adds the replayer of a pool from a peer, for as long as it lives: its orders are those that the one before it had.
    pub fn register(&self, pool: (PoolId, &str), peer: &RemotePeer) -> Arc<PoolControl> {
        let (id, pool_name) = pool;
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let control = Arc::new(PoolControl {
            pool_name: pool_name.to_string(),
            site_name: peer.site_name.clone(),
            peer: peer.to_string(),
            view: Mutex::default(),
            orders: orders.entry((id, peer.uuid.clone())).or_default().clone(),
        });
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(&control));
        control
    }

    /// Carries out a command of the admin socket. The error is a sentence. A flush takes as long as what is to be written.
    pub async fn execute(&self, command: &Command) -> Result<Value, String> {
        if command.name == FLUSH {
            return flush(self.to_be_flushed(command)?).await;
        }
        let pools = self.pools();
        match command.target.as_slice() {
            [] => Ok(on_pools(command.name, &pools, |all| json!({"pool_replayers": all}))),
            [pool, site] => {
                let matching = |p: &Arc<PoolControl>| p.pool_name == *pool && p.site_name == *site;
                let found: Vec<_> = pools.into_iter().filter(matching).collect();
                if found.is_empty() {
                    return Err(format!("pool '{pool}' is not mirrored from site '{site}'"));
                }
                Ok(on_pools(command.name, &found, |mut one| one.swap_remove(0)))
            }
            [image] => {
                let unknown =
                    || format!("there is no mirrored image '{image}' (POOL/[NAMESPACE/]IMAGE) here");
                let (pool, image) = image.split_once('/').ok_or_else(unknown)?;
                let found =
                    pools.iter().filter(|p| p.pool_name == pool).find_map(|p| Some((p, p.find(image)?)));
                let (pool, (key, reports)) = found.ok_or_else(unknown)?;
                on_image(command.name, pool, key, &reports)
            }
            _ => Err("name a pool and its peer's site, or POOL/[NAMESPACE/]IMAGE".to_string()),
        }
    }

    /// The images that a flush is about: those of the target that replay, or the one that it names.
    fn to_be_flushed(&self, command: &Command) -> Result<Vec<ToBeFlushed>, String> {
        let (mut found, mut known) = (Vec::new(), command.target.is_empty());
        for pool in self.pools() {
            let name = match command.target.as_slice() {
                [] => None,
                [pool_name, site] if pool.pool_name == *pool_name && pool.site_name == *site => None,
                [image] => {
                    match image.split_once('/').filter(|(pool_name, _)| pool.pool_name == *pool_name) {
                        Some((_, image)) => Some(image),
                        None => continue,
                    }
                }
                _ => continue,
            };
            match name.map(|name| pool.find(name)) {
                Some(Some(((_, id), reports))) => {
                    known = true;
                    found.push(ToBeFlushed { id, reports });
                }
                Some(None) => {}
                None => {
                    known = true;
                    let namespaces: Vec<_> = pool.view().namespaces.values().cloned().collect();
                    for reports in namespaces {
                        let replaying = reports.shown().into_iter();
                        let replaying =
                            replaying.filter(|(_, report)| report.state == StatusState::Replaying);
                        found.extend(replaying.map(|(id, _)| ToBeFlushed { id, reports: reports.clone() }));
                    }
                }
            }
        }
        match command.target.as_slice() {
            _ if known => Ok(found),
            [pool, site] => Err(format!("pool '{pool}' is not mirrored from site '{site}'")),
            [image] => Err(format!("there is no mirrored image '{image}' (POOL/[NAMESPACE/]IMAGE) here")),
            _ => Err("name a pool and its peer's site, or POOL/[NAMESPACE/]IMAGE".to_string()),
        }
    }

    fn pools(&self) -> Vec<Arc<PoolControl>> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.iter().filter_map(Weak::upgrade).collect()
    }
}

fn on_pools(command: &str, pools: &[Arc<PoolControl>], status: impl FnOnce(Vec<Value>) -> Value) -> Value {
    let order = |change: fn(&mut Orders)| {
        for pool in pools {
            pool.orders.send_modify(change);
        }
        Value::Null
    };
    match command {
        "rbd mirror status" => status(pools.iter().map(|pool| pool.status()).collect()),
        "rbd mirror start" => order(|orders| {
            orders.stopped = false;
            orders.stopped_images.clear();
        }),
        "rbd mirror stop" => order(|orders| orders.stopped = true),
        "rbd mirror restart" => order(|orders| {
            orders.stopped = false;
            orders.stopped_images.clear();
            orders.restarts += 1;
        }),
        "rbd mirror leader release" => order(|orders| orders.leader_releases += 1),
        _ => Value::Null,
    }
}

/// An image to be flushed.
struct ToBeFlushed {
    id: Arc<str>,
    reports: Reports,
}

impl ToBeFlushed {
    /// Waits until all that the primary had by now is written. Fails as soon as the image is not replaying.
    async fn flushed(self) -> Result<(), String> {
        let mut answered = self.reports.flushes(&self.id).ask();
        loop {
            let (_, report) = self.reports.shown().into_iter().find(|(id, _)| *id == self.id).unzip();
            let report = report.unwrap_or_default();
            if report.state != StatusState::Replaying {
                let (name, state, why) = (report.image_name, report.state, report.description);
                return Err(format!("cannot flush image '{name}', which is not replaying: {state}: {why}"));
            }
            tokio::select! {
                Ok(()) = &mut answered => return Ok(()),
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
            if answered.is_terminated() {
                // The image was opened anew.
                answered = self.reports.flushes(&self.id).ask();
            }
        }
    }
}

/// Flushes images, all at the same time.
async fn flush(images: Vec<ToBeFlushed>) -> Result<Value, String> {
    let flushed = join_all(images.into_iter().map(ToBeFlushed::flushed)).await;
    let failed: Vec<String> = flushed.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() { Ok(Value::Null) } else { Err(failed.join("; ")) }
}

fn on_image(command: &str, pool: &PoolControl, key: ImageKey, reports: &Reports) -> Result<Value, String> {
    match command {
        "rbd mirror status" => {
            let reports = reports.shown();
            let found = reports.iter().find(|(id, _)| *id == key.1);
            return Ok(found.map_or(Value::Null, |(id, report)| image_status(&pool.pool_name, id, report)));
        }
        "rbd mirror start" => pool.orders.send_modify(|orders| {
            orders.stopped_images.remove(&key);
        }),
        "rbd mirror stop" => pool.orders.send_modify(|orders| {
            orders.stopped_images.insert(key);
        }),
        "rbd mirror restart" => pool.orders.send_modify(|orders| {
            orders.stopped_images.remove(&key);
            *orders.image_restarts.entry(key).or_default() += 1;
        }),
        "rbd mirror leader release" => {
            return Err("an image has no leader; name a pool and its peer's site".into());
        }
        _ => {}
    }
    Ok(Value::Null)
}

#[cfg(test)]
mod tests {
    use bootstrap::PeerAttributes;
    use rbd::Timestamp;
    use rbd::mirroring::{MirrorPeer, PeerDirection};

    use super::*;

    fn command(name: &'static str, target: &[&str]) -> Command {
        Command { name, target: target.iter().map(|word| word.to_string()).collect() }
    }

    fn peer(uuid: &str, mon_host: &str) -> RemotePeer {
        let peer = MirrorPeer {
            uuid: uuid.into(),
            direction: PeerDirection::Rx,
            site_name: "site-b".into(),
            client_name: "client.x".into(),
            mirror_uuid: String::new(),
            last_seen: Timestamp::default(),
        };
        let mut attributes = PeerAttributes::default();
        attributes.set_mon_host(mon_host);
        RemotePeer::new(&peer, attributes)
    }

    #[tokio::test]
    async fn a_stop_outlives_another_address_of_the_peer() {
        let control = Control::default();
        let pool = (PoolId(1), "data");
        drop(control.register(pool, &peer("u", "10.0.0.1")));
        let before = control.register(pool, &peer("u", "10.0.0.1"));
        assert!(control.execute(&command("rbd mirror stop", &["data", "site-b"])).await.is_ok());
        drop(before);
        let after = control.register(pool, &peer("u", "10.0.0.2"));
        assert!(after.orders().borrow().stopped, "it mirrors again");
        assert!(!control.register(pool, &peer("v", "")).orders().borrow().stopped, "another peer");
    }

    #[tokio::test]
    async fn the_status_says_that_the_remote_cluster_is_silent() {
        let control = Control::default();
        let pool = control.register((PoolId(1), "data"), &peer("u", ""));
        let reports = Reports::default();
        let report = Report { image_name: "disk".into(), ..Report::new(StatusState::Replaying, "replaying") };
        let _sender = reports.open(&"gid".into(), report);
        reports.set_trouble(Some("no answer".into()));
        pool.show(|view| view.namespaces = [(String::new(), reports)].into());
        let all = control.execute(&command("rbd mirror status", &[])).await.unwrap();
        let one = control.execute(&command("rbd mirror status", &["data/disk"])).await.unwrap();
        for shown in [&all["pool_replayers"][0]["image_replayers"][0], &one] {
            assert_eq!((&shown["state"], &shown["description"]), (&json!("error"), &json!("no answer")));
        }
    }

    #[tokio::test]
    async fn orders_reach_the_pool_and_the_image() {
        let control = Control::default();
        let pool = control.register((PoolId(1), "data"), &peer("u", ""));
        let reports = Reports::default();
        let sender = reports.open(&"gid".into(), Report::default());
        sender.send_modify(|report| report.image_name = "disk".into());
        pool.show(|view| view.namespaces = [("ns".to_string(), reports)].into());

        assert!(control.execute(&command("rbd mirror stop", &["data", "site-b"])).await.is_ok());
        assert!(pool.orders().borrow().stopped);
        assert!(control.execute(&command("rbd mirror stop", &["data/ns/disk"])).await.is_ok());
        let key = ("ns".to_string(), "gid".into());
        assert!(pool.orders().borrow().stopped_images.contains(&key));
        assert!(control.execute(&command("rbd mirror restart", &[])).await.is_ok());
        let orders = pool.orders().borrow().clone();
        assert_eq!((orders.stopped, orders.stopped_images.len(), orders.restarts), (false, 0, 1));

        for unknown in [&["data", "elsewhere"][..], &["data/disk"], &["disk"], &["a", "b", "c"]] {
            assert!(control.execute(&command("rbd mirror status", unknown)).await.is_err());
        }
        let status = control.execute(&command("rbd mirror status", &[])).await.unwrap();
        assert_eq!(status["pool_replayers"][0]["namespaces"][0]["image_replayers"][0]["name"], "data/disk");
        drop(pool);
        assert_eq!(
            control.execute(&command("rbd mirror status", &[])).await.unwrap(),
            json!({"pool_replayers": []})
        );
    }

    #[tokio::test]
    async fn a_flush_waits_for_those_that_replay_and_fails_for_others() {
        let control = Control::default();
        let pool = control.register((PoolId(1), "data"), &peer("u", ""));
        let reports = Reports::default();
        let open = |id: &str, state| {
            let report = Report { image_name: id.into(), ..Report::new(state, "as it is") };
            reports.open(&id.into(), report)
        };
        let one = open("one", StatusState::Replaying);
        let _other = open("other", StatusState::Stopped);
        pool.show(|view| view.namespaces = [(String::new(), reports.clone())].into());
        for unknown in [&["data", "elsewhere"][..], &["data/none"], &["none"], &["a", "b", "c"]] {
            assert!(control.execute(&command(FLUSH, unknown)).await.is_err(), "{unknown:?}");
        }
        let stopped = control.execute(&command(FLUSH, &["data/other"])).await;
        assert!(stopped.is_err_and(|sentence| sentence.contains("stopped: as it is")));

        let all = command(FLUSH, &[]);
        let flush = control.execute(&all);
        tokio::pin!(flush);
        assert!(futures::poll!(&mut flush).is_pending());
        // The image is opened anew, and its task answers then.
        drop(reports.flushes(&"one".into()).take());
        assert!(tokio::time::timeout(2 * LOOK_INTERVAL, &mut flush).await.is_err());
        crate::flush::answer(&mut reports.flushes(&"one".into()).take());
        assert_eq!(flush.await, Ok(Value::Null));

        let flush = control.execute(&all);
        tokio::pin!(flush);
        assert!(futures::poll!(&mut flush).is_pending());
        one.send_modify(|report| report.state = StatusState::Error);
        assert!(flush.await.is_err());
    }
}
