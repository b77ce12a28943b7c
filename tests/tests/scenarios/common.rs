//! The stage on which every scenario plays: two clusters, a mirrored pool, daemons.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rados::SnapId;
use rbd::SnapshotNamespace;
use tests::image::RandomWrites;
use tests::two_clusters::Direction;
use tests::{Cluster, ClusterOptions, DaemonKind, MirrorDaemon, MirrorDaemonOptions, Signal, TwoClusters};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

use crate::content;

/// How long anything may take before a scenario gives up.
pub const LIMIT: Duration = Duration::from_secs(180);
pub const MIB: u64 = 1 << 20;

/// What makes Ceph's daemon look around more often, in seconds.
const HASTE: [&str; 3] = [
    "--rbd-mirror-leader-heartbeat-interval=1",
    "--rbd-mirror-image-state-check-interval=3",
    "--rbd-mirror-pool-replayers-refresh-interval=5",
];

/// Random writes of 4 KiB.
pub fn scattered(seed: u64, count: u64, within: std::ops::Range<u64>) -> RandomWrites {
    RandomWrites { seed, count, block_bytes: 4096, within }
}

static TURN: Mutex<()> = Mutex::const_new(());

/// The pair of clusters that all scenarios share. It ends with this process.
async fn clusters() -> Result<&'static TwoClusters> {
    static CLUSTERS: OnceCell<TwoClusters> = OnceCell::const_new();
    CLUSTERS.get_or_try_init(TwoClusters::for_tests).await
}

/// The daemon under test, built from the sources as they are now.
pub fn ours() -> DaemonKind {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        // Together with this test, as it was built for it: cargo would build it with other features alone.
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--locked", "-q", "--workspace", "--bin", "rbd-mirror", "--test", "scenarios"])
            .status();
        assert!(built.expect("cargo can be run").success(), "the daemon can be built");
        let test = std::env::current_exe().expect("this program has a path");
        let folder = test.parent().and_then(|deps| deps.parent()).expect("tests lie in target/PROFILE/deps");
        folder.join("rbd-mirror")
    });
    DaemonKind::Ours(program.clone())
}

/// Two clusters and a pool of the scenario's own, mirrored both ways; images are primary at `a` unless said otherwise.
pub struct Stage {
    pub clusters: &'static TwoClusters,
    pub pool: String,
    pub a: content::Reader,
    pub b: content::Reader,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    /// Waits for its turn, and makes the pool.
    pub async fn set(pool: &str) -> Result<Stage> {
        let turn = TURN.lock().await;
        Self::set_on(clusters().await?, pool, turn).await
    }

    /// The same on clusters of the scenario's own, which it starts when it is its turn, and ends.
    pub async fn set_apart(pool: &str, options: &ClusterOptions) -> Result<Stage> {
        let turn = TURN.lock().await;
        let clusters = TwoClusters::start_temporary(options).await?;
        Self::set_on(Box::leak(Box::new(clusters)), pool, turn).await
    }

    async fn set_on(
        clusters: &'static TwoClusters,
        pool: &str,
        turn: MutexGuard<'static, ()>,
    ) -> Result<Stage> {
        clusters.create_pool(pool).await?;
        clusters.connect_peers(pool, Direction::Both).await?;
        let (a, b) = (content::Reader::new(&clusters.a).await?, content::Reader::new(&clusters.b).await?);
        Ok(Stage { clusters, pool: pool.into(), a, b, _turn: turn })
    }

    /// `pool/NAME`.
    pub fn spec(&self, image: &str) -> String {
        format!("{}/{image}", self.pool)
    }

    /// Our daemon at `cluster`.
    pub async fn daemon(&self, cluster: &Cluster) -> Result<MirrorDaemon> {
        self.daemon_of(&ours(), cluster).await
    }

    /// A daemon at `cluster`, ours or Ceph's.
    pub async fn daemon_of(&self, kind: &DaemonKind, cluster: &Cluster) -> Result<MirrorDaemon> {
        self.daemon_with(kind, cluster, &[]).await
    }

    /// The same with more arguments.
    pub async fn daemon_with(
        &self,
        kind: &DaemonKind,
        cluster: &Cluster,
        args: &[String],
    ) -> Result<MirrorDaemon> {
        let mut args = args.to_vec();
        args.push("--debug-rbd-mirror=10".into());
        if matches!(kind, DaemonKind::Ceph) {
            // Left to itself, it takes a minute and more to follow a leader that was killed.
            args.extend(HASTE.map(String::from));
        }
        let instance = cluster.name().to_string();
        let options = MirrorDaemonOptions { instance, args, ..MirrorDaemonOptions::default() };
        MirrorDaemon::spawn(kind, cluster, &options).await
    }

    /// Stops a daemon in its tracks (`SIGSTOP`) while it is filling a mirror-snapshot of the copy at `b`.
    pub async fn stop_half_way(&self, daemon: &mut MirrorDaemon, image: &str) -> Result<()> {
        let spec = self.spec(image);
        let under_way = async || -> Result<bool> {
            let Ok((_, header)) = self.b.open(&spec).await else { return Ok(false) };
            Ok(content::mirror_snapshots(&header).last().is_some_and(|(_, newest)| !newest.complete))
        };
        until("a copy to be under way", &under_way).await?;
        daemon.kill(Signal::SIGSTOP);
        ensure!(under_way().await?, "the copy of {spec} was complete before the daemon could be stopped");
        Ok(())
    }

    /// Kills a daemon while it is filling a mirror-snapshot of the copy at `b`.
    pub async fn kill_half_way(&self, mut daemon: MirrorDaemon, image: &str) -> Result<()> {
        self.stop_half_way(&mut daemon, image).await?;
        daemon.kill(Signal::SIGKILL);
        daemon.wait(LIMIT).await?;
        Ok(())
    }

    /// Enables snapshot mirroring of an image of `a`.
    pub async fn enable(&self, image: &str) -> Result<()> {
        self.clusters.a.rbd(&["mirror", "image", "enable", &self.spec(image), "snapshot"]).await?;
        Ok(())
    }

    /// Takes a mirror-snapshot at `a`, waits for it at `b`, and compares.
    pub async fn sync(&self, image: &str) -> Result<()> {
        let snap = self.clusters.a.mirror_snapshot(&self.spec(image)).await?;
        self.arrived(image, snap).await
    }

    /// Waits until the primary snapshot `snap` of `a` is at `b`, and compares.
    pub async fn arrived(&self, image: &str, snap: u64) -> Result<()> {
        let spec = self.spec(image);
        self.clusters.b.wait_copied(&spec, snap, LIMIT).await?;
        self.expect_copied(image).await
    }

    /// Waits for the first copy of an image, and compares.
    pub async fn first_copy(&self, image: &str) -> Result<()> {
        let snap = self.clusters.a.newest_primary_snapshot(&self.spec(image)).await?;
        self.arrived(image, snap).await
    }

    /// The newest complete mirror-snapshot of the copy at `b`, its head, and every user snapshot up to it equal the
    /// primary at `a`.
    pub async fn expect_copied(&self, image: &str) -> Result<()> {
        expect_copy_of(&self.a, &self.b, &self.spec(image)).await
    }

    /// Waits until the image's status at `cluster` is `state`.
    pub async fn state(&self, cluster: &Cluster, image: &str, state: &str) -> Result<serde_json::Value> {
        cluster.wait_mirror_state(&self.spec(image), state, LIMIT).await
    }

    /// Ends a scenario that was [set apart](Self::set_apart), and its clusters.
    pub async fn strike_apart(self) -> Result<()> {
        self.clusters.stop().await
    }

    /// Ends the scenario: the pool goes, so that later scenarios' daemons do not work on it.
    pub async fn strike(self) -> Result<()> {
        self.clusters.a.delete_pool(&self.pool).await?;
        self.clusters.b.delete_pool(&self.pool).await?;
        Ok(())
    }
}

/// The copy at `to` of the primary at `from` is exact at its newest complete mirror-snapshot.
pub async fn expect_copy_of(from: &content::Reader, to: &content::Reader, spec: &str) -> Result<()> {
    let (primary, primary_header) = from.open(spec).await?;
    let (copy, copy_header) = to.open(spec).await?;
    let newest = content::mirror_snapshots(&copy_header).into_iter().rfind(|(_, m)| m.complete);
    let (copy_snap, link) = newest.with_context(|| format!("{spec} has no complete mirror-snapshot"))?;
    let primary_snap = link.primary_snap_id;
    let equal = |primary_snap: SnapId, copy_snap: SnapId| {
        content::expect_equal((&primary, &primary_header, primary_snap), (&copy, &copy_header, copy_snap))
    };
    equal(primary_snap, copy_snap).await.with_context(|| format!("{spec} at mirror-snapshot {copy_snap}"))?;
    equal(primary_snap, SnapId::HEAD).await.with_context(|| format!("{spec} at its head"))?;

    let users = primary_header.snapshots.range(..primary_snap).map(|(_, snapshot)| snapshot);
    for theirs in users.filter(|s| s.namespace == SnapshotNamespace::User) {
        let ours = copy_header.user_snapshot(&theirs.name);
        let ours = ours.with_context(|| format!("{spec} lacks the user snapshot '{}'", theirs.name))?;
        equal(theirs.id, ours.id)
            .await
            .with_context(|| format!("{spec} at user snapshot '{}'", theirs.name))?;
    }
    Ok(())
}

/// Waits for a condition that a scenario describes.
pub async fn until<F: AsyncFnMut() -> Result<bool>>(what: &str, mut condition: F) -> Result<()> {
    const POLL_INTERVAL: Duration = Duration::from_millis(20);
    let started = Instant::now();
    while !condition().await? {
        ensure!(started.elapsed() < LIMIT, "gave up waiting for {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}
