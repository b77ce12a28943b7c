//! Who works on a pool, and what operators see of it: our daemon alone, beside another of ours, and beside Ceph's.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::two_clusters::Direction;
use tests::{Cluster, ClusterOptions, DaemonKind, MirrorDaemon, MirrorDaemonOptions, TwoClusters, wait};

/// Ends what hangs.
const LONG: Duration = Duration::from_secs(60);
/// A clean takeover, and a clean end.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Finding a leader dead, fencing it and taking over.
const TAKEOVER: Duration = Duration::from_secs(8);

/// One pair of clusters for all steps: most of the time goes into starting them.
#[tokio::test(flavor = "multi_thread")]
async fn one_daemon_at_a_time_works_on_a_pool() -> Result<()> {
    let clusters = TwoClusters::start_temporary(&ClusterOptions::default()).await?;
    clusters.create_pool("rbd").await?;
    clusters.connect_peers("rbd", Direction::Both).await?;
    let (a, b) = (&clusters.a, &clusters.b);
    a.create_image("rbd/image", 4 << 20, &[]).await?;
    a.rbd(&["mirror", "image", "enable", "rbd/image", "snapshot"]).await?;

    step("seen", the_daemon_is_seen_and_ends_cleanly(a, b)).await?;
    step("standby", a_standby_takes_over(b)).await?;
    step("sleeper", a_leader_that_sleeps_is_fenced_and_comes_back(b)).await?;
    step("fenced", a_fenced_daemon_starts_over(b)).await?;
    step("Ceph's", cephs_daemon_and_ours_take_turns(b)).await?;
    step("take back", images_are_taken_back_from_cephs_daemons(a, b)).await?;
    step("orders", orders_are_followed(b)).await?;
    step("new pools", new_pools_and_namespaces_are_found(&clusters)).await?;
    Ok(())
}

async fn step(name: &str, doing: impl Future<Output = Result<()>>) -> Result<()> {
    let started = Instant::now();
    Box::pin(doing).await.with_context(|| format!("in the step `{name}`"))?;
    println!("{name}: {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

async fn the_daemon_is_seen_and_ends_cleanly(a: &Cluster, b: &Cluster) -> Result<()> {
    let mut daemon = start(b, &ours(), "a").await?;
    let took = leads_within(&daemon, LONG).await?;
    ensure!(took < AT_ONCE, "a daemon alone leads after {took:?}; {}", daemon.log_tail(20));

    let status = wait::until("the pool to be healthy", LONG, || async {
        let status = b.rbd_json(&["mirror", "pool", "status", "rbd", "--verbose"]).await?;
        Ok((status["summary"]["daemon_health"] == "OK").then_some(status))
    })
    .await?;
    let seen = &status["daemons"][0];
    ensure!(seen["leader"] == true && seen["client_id"] == "a" && seen["health"] == "OK", "{seen}");
    ensure!(seen["instance_id"] == pool(&daemon).await?["instance_id"], "{seen}");
    let services = b.ceph_json(&["-s"]).await?;
    ensure!(services["servicemap"]["services"]["rbd-mirror"].is_object(), "{services}");

    let peers = a.rbd_json(&["mirror", "pool", "info", "rbd", "--all"]).await?;
    ensure!(peers["peers"][0]["mirror_uuid"].as_str().is_some_and(|uuid| !uuid.is_empty()), "{peers}");
    wait::until("the remote to show the copy's status", LONG, || async {
        let status = a.mirror_status("rbd/image").await?;
        Ok(status["peer_sites"][0]["state"].as_str().filter(|state| state.starts_with("up+")).map(drop))
    })
    .await?;

    let ended = Instant::now();
    ensure!(daemon.stop(LONG).await?.success(), "{}", daemon.log_tail(20));
    ensure!(ended.elapsed() < AT_ONCE, "it took {:?} to end", ended.elapsed());
    println!("SIGTERM to end: {:?}", ended.elapsed());
    ensure!(b.blocklist().await?.is_empty(), "a clean end blocklisted somebody");
    ensure!(lock_owner(b).await?.is_none(), "a clean end left the lock behind");
    for object in ["rbd_mirror_leader", "rbd_mirroring"] {
        let watchers = b.rados(&["-p", "rbd", "listwatchers", object]).await?;
        ensure!(watchers.trim().is_empty(), "a clean end left watches on {object}: {watchers}");
    }
    Ok(())
}

async fn a_standby_takes_over(b: &Cluster) -> Result<()> {
    let mut first = start(b, &ours(), "a").await?;
    leads_within(&first, LONG).await?;
    let mut second = start(b, &ours(), "b").await?;
    knows_leader(&second, &first).await?;
    ensure!(pool(&second).await?["leader"] == false);

    first.stop(LONG).await?;
    let took = leads_within(&second, LONG).await?;
    ensure!(took < AT_ONCE, "a standby took {took:?} to follow a leader that ended");
    println!("a standby follows a clean end after {took:?}");
    ensure!(b.blocklist().await?.is_empty(), "a clean change of leaders blocklisted somebody");

    let dead = lock_owner(b).await?.context("nobody holds the lock")?;
    second.kill(Signal::SIGKILL);
    second.wait(LONG).await?;
    let mut first = start(b, &ours(), "a").await?;
    let took = leads_within(&first, LONG).await?;
    println!("a new daemon leads {took:?} after its start beside a killed one");
    ensure!(took < TAKEOVER, "{took:?}; {}", first.log_tail(20));
    is_blocklisted(b, &dead).await?;
    first.end().await
}

/// The old leader sleeps for longer than anybody waits for it. When it wakes up it must find itself fenced, and stand by.
async fn a_leader_that_sleeps_is_fenced_and_comes_back(b: &Cluster) -> Result<()> {
    let mut sleeper = start(b, &ours(), "a").await?;
    leads_within(&sleeper, LONG).await?;
    let mut other = start(b, &ours(), "b").await?;
    knows_leader(&other, &sleeper).await?;
    let asleep = lock_owner(b).await?.context("nobody holds the lock")?;
    sleeper.kill(Signal::SIGSTOP);
    let took = leads_within(&other, LONG).await?;
    println!("a standby takes over {took:?} after its leader fell asleep");
    is_blocklisted(b, &asleep).await?;
    sleeper.kill(Signal::SIGCONT);
    knows_leader(&sleeper, &other).await?;
    ensure!(pool(&other).await?["leader"] == true, "the sleeper took the lead back");
    sleeper.end().await?;
    other.end().await
}

async fn a_fenced_daemon_starts_over(b: &Cluster) -> Result<()> {
    let mut daemon = start(b, &ours(), "a").await?;
    leads_within(&daemon, LONG).await?;
    let fenced = pool(&daemon).await?["instance_id"].clone();
    b.blocklist_add(&lock_owner(b).await?.context("nobody holds the lock")?).await?;
    wait::until("the fenced daemon to lead with a new connection", TAKEOVER, || async {
        let pool = pool(&daemon).await?;
        Ok((pool["leader"] == true && pool["instance_id"] != fenced).then_some(()))
    })
    .await
    .with_context(|| daemon.log_tail(20))?;
    daemon.end().await
}

async fn cephs_daemon_and_ours_take_turns(b: &Cluster) -> Result<()> {
    let mut cephs = start(b, &DaemonKind::Ceph, "c").await?;
    leads_within(&cephs, LONG).await?;
    let blocklist = b.blocklist().await?;
    let mut ours_now = start(b, &ours(), "a").await?;
    knows_leader(&ours_now, &cephs).await?;
    // A Ceph leader learns of instances by the answers to its heartbeats: ours must not be among them.
    let beaten = heartbeats(&cephs)?;
    wait::until("two heartbeats of Ceph's leader", LONG, || async {
        Ok((heartbeats(&cephs)? >= beaten + 2).then_some(()))
    })
    .await?;
    let seen = pool(&cephs).await?;
    ensure!(seen["instances"].as_array().is_some_and(|instances| instances.len() == 1), "{seen}");
    ensure!(b.blocklist().await? == blocklist, "somebody alive was blocklisted");

    cephs.stop(LONG).await?;
    let took = leads_within(&ours_now, LONG).await?;
    ensure!(took < AT_ONCE, "ours took {took:?} to follow Ceph's daemon");

    let mut cephs = start(b, &DaemonKind::Ceph, "c").await?;
    knows_leader(&cephs, &ours_now).await?;
    ensure!(pool(&cephs).await?["leader"] == false);
    ours_now.stop(LONG).await?;
    let took = leads_within(&cephs, LONG).await?;
    println!("Ceph's daemon follows a clean end of ours after {took:?}");

    let dead = lock_owner(b).await?.context("nobody holds the lock")?;
    cephs.kill(Signal::SIGKILL);
    cephs.wait(LONG).await?;
    let mut ours_now = start(b, &ours(), "a").await?;
    let took = leads_within(&ours_now, LONG).await?;
    println!("ours leads {took:?} after its start beside a killed daemon of Ceph's");
    ensure!(took < TAKEOVER, "{took:?}; {}", ours_now.log_tail(20));
    is_blocklisted(b, &dead).await?;
    ours_now.end().await
}

/// Two daemons of Ceph's share the images. When their leader dies, the other one goes on with its share; ours, leading
/// now, must take that back before it works on it.
async fn images_are_taken_back_from_cephs_daemons(a: &Cluster, b: &Cluster) -> Result<()> {
    let mut leader = start(b, &DaemonKind::Ceph, "c").await?;
    leads_within(&leader, LONG).await?;
    let mut other = start(b, &DaemonKind::Ceph, "d").await?;
    knows_leader(&other, &leader).await?;
    a.create_image("rbd/second", 4 << 20, &[]).await?;
    a.rbd(&["mirror", "image", "enable", "rbd/second", "snapshot"]).await?;
    let shares = |pool: &Value| pool["image_replayers"].as_array().map_or(0, Vec::len);
    wait::until("Ceph's daemons to share the images", LONG, || async {
        Ok((shares(&pool(&other).await?) > 0 && shares(&pool(&leader).await?) > 0).then_some(()))
    })
    .await
    .with_context(|| leader.log_tail(20))?;

    leader.kill(Signal::SIGKILL);
    leader.wait(LONG).await?;
    let mut ours_now = start(b, &ours(), "a").await?;
    let took = leads_within(&ours_now, LONG).await?;
    println!("ours leads {took:?} after its start beside a killed leader with a living follower");
    ensure!(took < TAKEOVER, "{took:?}; {}", ours_now.log_tail(20));
    wait::until("ours to work on both images", LONG, || async {
        Ok((shares(&pool(&ours_now).await?) == 2).then_some(()))
    })
    .await?;
    let left = pool(&other).await?;
    ensure!(shares(&left) == 0, "Ceph's daemon still works on images: {left}");
    ours_now.end().await?;
    // How Ceph's daemon ends is its own affair.
    other.stop(LONG).await.map(drop)
}

async fn orders_are_followed(b: &Cluster) -> Result<()> {
    let mut daemon = start(b, &ours(), "a").await?;
    leads_within(&daemon, LONG).await?;
    let image_state = async |wanted: &str| {
        wait::until(&format!("the image to be {wanted}"), LONG, || async {
            let pool = pool(&daemon).await?;
            let image = &pool["image_replayers"][0];
            Ok((image["state"] == wanted).then_some(()))
        })
        .await
    };
    daemon.tell("rbd mirror stop").await?;
    image_state("stopped").await?;
    ensure!(pool(&daemon).await?["state"] == "stopped (manual)");
    daemon.tell("rbd mirror start").await?;
    wait::until("the image to be followed again", LONG, || async {
        Ok((pool(&daemon).await?["image_replayers"][0]["state"] != "stopped").then_some(()))
    })
    .await?;
    let before = lock_owner(b).await?;
    daemon.tell("rbd mirror leader release").await?;
    wait::until("the leadership to be released", LONG, || async {
        Ok((lock_owner(b).await? != before).then_some(()))
    })
    .await?;
    let help =
        b.tool("ceph").args(["--admin-daemon", &daemon.socket(), "rbd", "mirror", "status"]).run().await?;
    ensure!(help.contains("pool_replayers"), "{help}");
    daemon.end().await
}

async fn new_pools_and_namespaces_are_found(clusters: &TwoClusters) -> Result<()> {
    let daemon = start(&clusters.b, &ours(), "a").await?;
    leads_within(&daemon, LONG).await?;
    clusters.create_pool("late").await?;
    clusters.connect_peers("late", Direction::Both).await?;
    let connected = Instant::now();
    let late = || async {
        let status = daemon.tell("rbd mirror status").await?;
        let pools = status["pool_replayers"].as_array().cloned().unwrap_or_default();
        Ok::<_, anyhow::Error>(pools.into_iter().find(|pool| pool["pool"] == "late"))
    };
    wait::until("the new pool to be led", LONG, || async {
        Ok(late().await?.filter(|pool| pool["leader"] == true))
    })
    .await?;
    println!("a new pool is led {:?} after its peer was added", connected.elapsed());

    for cluster in clusters.both() {
        cluster.rbd(&["namespace", "create", "late/ns"]).await?;
    }
    clusters.enable_mirroring("late/ns").await?;
    clusters.a.create_image("late/ns/image", 4 << 20, &[]).await?;
    clusters.a.rbd(&["mirror", "image", "enable", "late/ns/image", "snapshot"]).await?;
    let enabled = Instant::now();
    wait::until("the image of the new namespace to be followed", LONG, || async {
        Ok(late().await?.filter(|pool| pool["namespaces"][0]["image_replayers"][0].is_object()))
    })
    .await?;
    println!("an image in a new namespace is followed {:?} after it was enabled", enabled.elapsed());

    clusters.a.rbd(&["mirror", "image", "disable", "late/ns/image"]).await?;
    wait::until("the copy to go with its primary", LONG, || async {
        let left = clusters.b.rbd_json(&["ls", "late/ns"]).await?;
        Ok(left.as_array().filter(|names| names.is_empty()).cloned())
    })
    .await?;
    clusters.b.rbd(&["mirror", "pool", "disable", "late/ns"]).await?;
    wait::until("the namespace to be left alone", LONG, || async {
        Ok(late().await?.filter(|pool| pool["namespaces"].as_array().is_some_and(Vec::is_empty)))
    })
    .await?;
    Ok(())
}

fn ours() -> DaemonKind {
    DaemonKind::Ours(PathBuf::from(env!("CARGO_BIN_EXE_rbd-mirror")))
}

/// A daemon whose admin socket is where we say.
struct Daemon {
    running: MirrorDaemon,
    socket: PathBuf,
    started: Instant,
}

impl Daemon {
    fn socket(&self) -> String {
        self.socket.display().to_string()
    }

    /// Ends it in order.
    async fn end(&mut self) -> Result<()> {
        ensure!(self.running.stop(LONG).await?.success(), "{}", self.log_tail(20));
        Ok(())
    }

    async fn tell(&self, command: &str) -> Result<Value> {
        tests::admin_socket::ask(&self.socket, command).await.or_else(|e| {
            // An order has no answer.
            if command.ends_with("status") { Err(e) } else { Ok(Value::Null) }
        })
    }
}

impl std::ops::Deref for Daemon {
    type Target = MirrorDaemon;

    fn deref(&self) -> &MirrorDaemon {
        &self.running
    }
}

impl std::ops::DerefMut for Daemon {
    fn deref_mut(&mut self) -> &mut MirrorDaemon {
        &mut self.running
    }
}

async fn start(cluster: &Cluster, kind: &DaemonKind, instance: &str) -> Result<Daemon> {
    let socket = cluster.folder().join(format!("run/mirror-{instance}.asok"));
    // A killed daemon of Ceph's leaves it behind, and the next one refuses to start.
    std::fs::remove_file(&socket).ok();
    let args = vec![format!("--admin-socket={}", socket.display()), "--debug-rbd-mirror=10".to_string()];
    let options =
        MirrorDaemonOptions { instance: instance.to_string(), args, ..MirrorDaemonOptions::default() };
    let started = Instant::now();
    Ok(Daemon { running: MirrorDaemon::spawn(kind, cluster, &options).await?, socket, started })
}

/// The daemon's view of the pool `rbd`; null while it has none.
async fn pool(daemon: &Daemon) -> Result<Value> {
    let status = daemon.tell("rbd mirror status").await.unwrap_or_default();
    let pools = status["pool_replayers"].as_array().cloned().unwrap_or_default();
    Ok(pools.into_iter().find(|pool| pool["pool"] == "rbd").unwrap_or_default())
}

/// How long after now, or its start if that was less than a second ago, the daemon leads.
async fn leads_within(daemon: &Daemon, limit: Duration) -> Result<Duration> {
    let asked = Instant::now();
    let since = if daemon.started.elapsed() < Duration::from_secs(1) { daemon.started } else { asked };
    wait::until("the daemon to lead", limit, || async {
        Ok((pool(daemon).await?["leader"] == true).then_some(()))
    })
    .await
    .with_context(|| daemon.log_tail(30))?;
    Ok(since.elapsed())
}

/// How many heartbeats of a daemon of Ceph's, which logs at level 10, have been answered or timed out.
fn heartbeats(cephs: &Daemon) -> Result<usize> {
    Ok(std::fs::read_to_string(cephs.log())?.matches(" acks received, ").count())
}

/// Waits until `standby` knows that `leader` leads.
async fn knows_leader(standby: &Daemon, leader: &Daemon) -> Result<()> {
    let id = pool(leader).await?["instance_id"].clone();
    wait::until("the standby to know its leader", LONG, || async {
        Ok((pool(standby).await?["leader_instance_id"] == id).then_some(()))
    })
    .await
    .with_context(|| standby.log_tail(30))
}

/// The address of whoever holds the pool's leader lock.
async fn lock_owner(cluster: &Cluster) -> Result<Option<String>> {
    let info = cluster.rados(&["-p", "rbd", "lock", "info", "rbd_mirror_leader", "rbd_lock"]).await?;
    let info: Value = serde_json::from_str(&info).with_context(|| info.clone())?;
    Ok(info["lockers"][0]["addr"].as_str().map(str::to_string))
}

async fn is_blocklisted(cluster: &Cluster, address: &str) -> Result<()> {
    let blocklist = cluster.ceph(&["osd", "blocklist", "ls"]).await?;
    ensure!(blocklist.contains(address), "{address} was not fenced before its lock was broken: {blocklist}");
    Ok(())
}
