//! The two clusters that the scenarios share, and how the two programs are run on them.

use std::path::{Path, PathBuf};
use std::process::{Command as StdCommand, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tests::two_clusters::Direction;
use tests::{Cluster, DaemonKind, Extents, MirrorDaemon, MirrorDaemonOptions, TwoClusters};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// How long anything may take before a scenario gives up.
pub const LIMIT: Duration = Duration::from_secs(120);
pub const MIB: u64 = 1 << 20;

/// The clusters.
pub struct World {
    pub clusters: TwoClusters,
}

/// A program that was run to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Its standard output, when it succeeded.
    pub fn ok(self) -> Result<String> {
        ensure!(
            self.code == Some(0),
            "it ended with {:?}: {}\n{}",
            self.code,
            self.stderr.trim(),
            self.stdout.trim()
        );
        Ok(self.stdout)
    }

    /// Its standard error, when it failed with this code.
    pub fn fails_with(self, code: i32) -> Result<String> {
        ensure!(self.code == Some(code), "it ended with {:?} and not {code}: {self:?}", self.code);
        Ok(self.stderr)
    }
}

/// The program under test.
pub fn ctl() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_rbd-mirrorctl"))
}

/// The daemon, built from the sources as they are now.
pub fn our_daemon() -> DaemonKind {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        // Together with this test, as it was built for it: cargo would build it with other features alone.
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let built = StdCommand::new(cargo)
            .args(["build", "--locked", "-q", "--workspace", "--bin", "rbd-mirror", "--test", "command"])
            .status();
        assert!(built.expect("cargo can be run").success(), "the daemon can be built");
        ctl().with_file_name("rbd-mirror")
    });
    DaemonKind::Ours(program.clone())
}

/// A command line of ours on a cluster.
pub fn ours(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = bare(ctl());
    command.arg("-c").arg(cluster.conf_path()).args(args);
    command
}

/// A command line of the stock `rbd` on a cluster.
pub fn stock(cluster: &Cluster, args: &[&str]) -> Command {
    let mut command = bare(&cluster.program("rbd"));
    command.arg("-c").arg(cluster.conf_path()).args(args);
    command
}

fn bare(program: &Path) -> Command {
    let mut command = Command::new(program);
    for name in ["CEPH_CONF", "CEPH_ARGS", "CEPH_KEYRING"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a command line to its end.
pub async fn run(command: Command) -> Result<Run> {
    run_with(command, "").await
}

/// Runs a command line to its end, with something to read.
pub async fn run_with(mut command: Command, stdin: &str) -> Result<Run> {
    command.stdin(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that does not want it all ends the pipe.
        let _ = pipe.write_all(stdin.as_bytes()).await;
    }
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await;
    let output = output.with_context(|| format!("{command:?} has not ended"))??;
    Ok(Run {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs ours to its end.
pub async fn run_ours(cluster: &Cluster, args: &[&str]) -> Result<Run> {
    run(ours(cluster, args)).await.with_context(|| args.join(" "))
}

/// Runs the stock `rbd` to its end.
pub async fn run_stock(cluster: &Cluster, args: &[&str]) -> Result<Run> {
    run(stock(cluster, args)).await.with_context(|| args.join(" "))
}

impl tests::World for World {
    /// Starts the clusters, or attaches to those that run.
    async fn start() -> Result<World> {
        Ok(World { clusters: TwoClusters::for_tests().await? })
    }
}

impl World {
    /// The first cluster.
    pub fn a(&self) -> &Cluster {
        &self.clusters.a
    }

    /// The second cluster.
    pub fn b(&self) -> &Cluster {
        &self.clusters.b
    }

    /// A new pool on both clusters.
    pub async fn new_pool(&self) -> Result<String> {
        let pool = format!("p{:08x}", rand::random::<u32>());
        self.clusters.create_pool(&pool).await?;
        Ok(pool)
    }

    /// A new pool on both clusters, whose two sides are peers.
    pub async fn mirrored_pool(&self) -> Result<String> {
        let pool = self.new_pool().await?;
        self.clusters.connect_peers(&pool, Direction::Both).await?;
        Ok(pool)
    }

    /// Deletes a pool on both clusters, so that later scenarios' daemons do not work on it.
    pub async fn strike(&self, pool: &str) -> Result<()> {
        self.a().delete_pool(pool).await?;
        self.b().delete_pool(pool).await?;
        Ok(())
    }

    /// A daemon at a cluster. Ceph's looks around more often than the half a minute that it takes by default.
    pub async fn daemon(&self, kind: &DaemonKind, cluster: &Cluster) -> Result<MirrorDaemon> {
        let haste = match kind {
            DaemonKind::Ceph => vec!["--rbd-mirror-image-state-check-interval=3".to_string()],
            DaemonKind::Ours(_) => Vec::new(),
        };
        let options = MirrorDaemonOptions {
            instance: cluster.name().to_string(),
            args: haste,
            ..MirrorDaemonOptions::default()
        };
        MirrorDaemon::spawn(kind, cluster, &options).await
    }

    /// Makes an image at the first cluster with something in it, and has it mirrored by snapshots.
    pub async fn mirrored_image(&self, spec: &str, size: u64, seed: u64) -> Result<()> {
        self.mirrored_image_in(spec, "snapshot", size, seed).await
    }

    /// The same in a mode.
    pub async fn mirrored_image_in(&self, spec: &str, mode: &str, size: u64, seed: u64) -> Result<()> {
        self.a().create_image(spec, size, &[]).await?;
        self.a().apply(spec, Extents::default().fill(0, size / 2, seed)).await?;
        self.a().rbd(&["mirror", "image", "enable", spec, mode]).await?;
        Ok(())
    }

    /// Waits until the newest mirror-snapshot of an image of `from` has arrived at `to`.
    pub async fn arrived(&self, from: &Cluster, to: &Cluster, spec: &str) -> Result<()> {
        let snap = from.newest_primary_snapshot(spec).await?;
        to.wait_copied(spec, snap, LIMIT).await?;
        Ok(())
    }
}

/// Somebody who writes to an image all the time, through librbd, until it is told to stop or cannot any more; then it
/// closes the image in order, as a VM does that goes on without its disk.
pub struct Writer {
    child: Child,
}

impl Writer {
    /// Begins to write small blocks here and there, and waits until the image is open.
    pub async fn start(cluster: &Cluster, spec: &str) -> Result<Writer> {
        let (pool, name) = spec.split_once('/').context("POOL/IMAGE")?;
        let mut command = bare(Path::new("fio"));
        command.env("CEPH_CONF", cluster.conf_path());
        command.args(["--name=writer", "--ioengine=rbd", "--clientname=admin", "--rw=randwrite", "--bs=4k"]);
        command.args(["--iodepth=8", "--rate_iops=1000", "--size=100%", "--time_based", "--runtime=600"]);
        command.args([format!("--pool={pool}"), format!("--rbdname={name}")]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn()?;
        until("the writer to have the lock", async || {
            Ok(cluster.rbd(&["lock", "ls", spec]).await?.contains("auto"))
        })
        .await?;
        Ok(Writer { child })
    }

    /// Waits until it ends by itself, with an error.
    pub async fn fails(mut self) -> Result<()> {
        let ended = tokio::time::timeout(LIMIT, self.child.wait()).await.context("it goes on writing")??;
        ensure!(!ended.success(), "it ended well");
        Ok(())
    }

    /// Has it end in order: it closes the image, so that nobody has to wait until its lock is known to be a dead one's.
    pub async fn finish(mut self) -> Result<()> {
        let pid = self.child.id().context("the writer has ended by itself")?;
        nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT)?;
        let ended = tokio::time::timeout(LIMIT, self.child.wait()).await;
        ended.context("the writer does not end")??;
        Ok(())
    }
}

/// Waits for a condition that a scenario describes.
pub async fn until<F: AsyncFnMut() -> Result<bool>>(what: &str, mut condition: F) -> Result<()> {
    const POLL_INTERVAL: Duration = Duration::from_millis(50);
    let started = Instant::now();
    while !condition().await? {
        ensure!(started.elapsed() < LIMIT, "gave up waiting for {what}");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}
