//! The folder of a demo, and what of it is running.
//!
//! ```text
//! demo.json        that this folder is a demo's, and its mirror daemon as a process to be recognised
//! token            the bootstrap token that introduced the clusters
//! site-a/ site-b/  the clusters, each with its own record of processes
//! ```
//!
//! Invariants: a folder without `demo.json` is never emptied or removed, and no process is signalled that is not
//! recorded here (see [`tests::process`]).

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tests::Cluster;
use tests::process::Identity;
use tests::two_clusters::SITES;

/// The file that makes a folder a demo's.
const RECORD_FILE: &str = "demo.json";

/// The record of the processes of a cluster, in its folder.
const CLUSTER_FILE: &str = "cluster.json";

/// How long the mirror daemon may take to end before it is killed.
const DAEMON_END_LIMIT: Duration = Duration::from_secs(20);

/// What is recorded.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The mirror daemon, once it was started.
    daemon: Option<Identity>,
}

/// The folder of a demo.
#[derive(Debug)]
pub struct Place {
    dir: PathBuf,
}

impl Place {
    /// The place `dir`, whatever is there.
    pub fn at(dir: PathBuf) -> Self {
        Place { dir }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether a demo is in the folder. It is an error if something else is.
    pub fn holds_demo(&self) -> Result<bool> {
        if self.dir.join(RECORD_FILE).exists() {
            return Ok(true);
        }
        let dir = self.dir.display();
        match std::fs::read_dir(&self.dir) {
            Ok(mut entries) => {
                ensure!(
                    entries.next().is_none(),
                    "{dir} holds something that is not a demo's; take another folder"
                );
                Ok(false)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot look into {dir}")),
        }
    }

    /// Makes the folder a demo's.
    pub fn begin(&self) -> Result<()> {
        std::fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        self.write(&Record::default())
    }

    /// Records the mirror daemon.
    pub fn record_daemon(&self, daemon: &Identity) -> Result<()> {
        self.write(&Record { daemon: Some(daemon.clone()) })
    }

    /// Ends everything that is recorded, and removes the folder.
    pub async fn end(&self) -> Result<()> {
        let text = std::fs::read(self.dir.join(RECORD_FILE))
            .with_context(|| format!("cannot read {RECORD_FILE} in {}", self.dir.display()))?;
        // A record that was cut short is one that was just being made: before anything had been started.
        let record: Record = serde_json::from_slice(&text).unwrap_or_default();
        if let Some(daemon) = record.daemon {
            end_daemon(&daemon).await?;
        }
        let clusters = SITES.map(|site| self.dir.join(site));
        let clusters = clusters.iter().filter(|folder| folder.join(CLUSTER_FILE).exists());
        let clusters = clusters.map(|folder| Cluster::attach(folder)).collect::<Result<Vec<_>>>()?;
        for cluster in clusters {
            cluster.stop().await?;
        }
        std::fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }

    fn write(&self, record: &Record) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        serde_json::to_writer_pretty(&mut file, record)?;
        file.persist(self.dir.join(RECORD_FILE)).with_context(|| format!("cannot write {RECORD_FILE}"))?;
        Ok(())
    }
}

async fn end_daemon(daemon: &Identity) -> Result<()> {
    daemon.signal(Signal::SIGTERM);
    if !daemon.ended_within(DAEMON_END_LIMIT).await {
        eprintln!("demo: the mirror daemon (pid {}) has not ended in time and is killed", daemon.pid);
        daemon.signal(Signal::SIGKILL);
        ensure!(
            daemon.ended_within(DAEMON_END_LIMIT).await,
            "the mirror daemon (pid {}) does not end",
            daemon.pid
        );
    }
    Ok(())
}
