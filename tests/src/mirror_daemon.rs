//! Running a mirror daemon on a cluster: ours or Ceph's, with the same arguments.
//!
//! The daemon works in the cluster's folder, where `--cluster NAME` finds the configuration, as a user of its own with
//! the capabilities that Ceph's documentation gives it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::admin_socket;
use crate::cluster::Cluster;
use crate::process::{Identity, Launch, Usage, tail};
use crate::wait::POLL_INTERVAL;

/// Which program mirrors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DaemonKind {
    /// Ours, by the path of the program.
    Ours(PathBuf),
    /// Ceph's own `rbd-mirror`, from where the cluster's programs are.
    Ceph,
}

/// How a mirror daemon is started.
#[derive(Debug, Clone)]
pub struct MirrorDaemonOptions {
    /// The instance: the user is `client.rbd-mirror.INSTANCE`. Two daemons of one cluster need two.
    pub instance: String,
    /// More arguments, such as `--debug-rbd-mirror=20`.
    pub args: Vec<String>,
    /// Where it logs to; without it, `log/rbd-mirror.INSTANCE.log` in the cluster's folder.
    pub log: Option<PathBuf>,
    /// Whether it is killed when the process that started it ends, in whatever way.
    pub die_with_parent: bool,
}

impl Default for MirrorDaemonOptions {
    fn default() -> Self {
        MirrorDaemonOptions { instance: "a".to_owned(), args: Vec::new(), log: None, die_with_parent: true }
    }
}

/// A running mirror daemon; dropping it kills it.
#[derive(Debug)]
pub struct MirrorDaemon {
    identity: Identity,
    child: Child,
    log: PathBuf,
    output: PathBuf,
    admin_socket: PathBuf,
    last_usage: Option<Usage>,
    ends_on_drop: bool,
}

impl MirrorDaemon {
    /// Starts a daemon on a cluster, making its user if need be. Answers as soon as the process runs.
    pub async fn spawn(kind: &DaemonKind, cluster: &Cluster, options: &MirrorDaemonOptions) -> Result<Self> {
        let id = format!("rbd-mirror.{}", options.instance);
        let caps = [("mon", "profile rbd-mirror"), ("osd", "profile rbd"), ("mgr", "profile rbd")];
        cluster.create_user(&format!("client.{id}"), &caps).await?;
        let program = match kind {
            DaemonKind::Ours(program) => program.clone(),
            DaemonKind::Ceph => cluster.program("rbd-mirror"),
        };
        let log = options.log.clone().unwrap_or_else(|| cluster.folder().join(format!("log/{id}.log")));
        let output = cluster.folder().join(format!("log/{id}.out"));
        let mut args: Vec<OsString> =
            ["-f", "--cluster", cluster.name(), "--id", &id].map(OsString::from).into();
        args.extend(["--log-file".into(), log.clone().into_os_string()]);
        // Left to itself, Ceph's daemon puts its pid and an address in memory into the name.
        let admin_socket = cluster.folder().join(format!("run/{}-client.{id}.asok", cluster.name()));
        args.push(format!("--admin-socket={}", admin_socket.display()).into());
        args.extend(options.args.iter().map(OsString::from));
        let (identity, child) = Launch {
            program,
            args,
            cwd: cluster.folder().to_owned(),
            output: output.clone(),
            mark: id.clone(),
            die_with_parent: options.die_with_parent,
        }
        .start()?;
        let admin_socket = cluster.folder().join(format!("run/{}-client.{id}.asok", cluster.name()));
        Ok(MirrorDaemon { identity, child, log, output, admin_socket, last_usage: None, ends_on_drop: true })
    }

    /// The process id.
    pub fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// The process, to be recognised later by another program.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether it still runs.
    pub fn alive(&self) -> bool {
        self.identity.alive()
    }

    /// Sends a signal; tells whether the daemon was there to get it.
    pub fn kill(&mut self, signal: Signal) -> bool {
        self.last_usage = self.identity.usage().or(self.last_usage);
        self.identity.signal(signal)
    }

    /// Waits until it has ended, and tells how it did.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            self.last_usage = self.identity.usage().or(self.last_usage);
            if started.elapsed() > limit {
                let waited = limit.as_secs_f64();
                bail!(
                    "the mirror daemon (pid {}) hasn't ended after {waited:.1} s; {}",
                    self.pid(),
                    self.log_tail(20)
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Asks it to end (`SIGTERM`) and waits until it has.
    pub async fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.kill(Signal::SIGTERM);
        self.wait(limit).await
    }

    /// CPU time and memory so far; of a daemon that has ended, as last seen.
    pub fn usage(&self) -> Option<Usage> {
        self.identity.usage().or(self.last_usage)
    }

    /// Its log file.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log, and of what it said on its standard error.
    pub fn log_tail(&self, lines: usize) -> String {
        format!("{}\n{}", tail(&self.log, lines), tail(&self.output, lines))
    }

    /// Its admin socket.
    pub fn admin_socket(&self) -> &Path {
        &self.admin_socket
    }

    /// Sends a command such as `rbd mirror status` to its admin socket.
    pub async fn ask(&self, command: &str) -> Result<Value> {
        admin_socket::ask(&self.admin_socket, command).await.with_context(|| self.log_tail(5))
    }

    /// Lets it go on when this is dropped.
    pub fn keep(&mut self) {
        self.ends_on_drop = false;
    }
}

impl Drop for MirrorDaemon {
    fn drop(&mut self) {
        if self.ends_on_drop {
            // A child that hasn't been waited for keeps its pid, so this reaches nobody else.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
