//! A writer that stamps every block with a sequence number and flushes as a database does, through stock librbd, and the
//! check that a promoted copy is in a state that the writer's disk may have been in: no write is missing before one that
//! is there across a flush.

mod history;

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

pub use history::{BLOCK_BYTES, Pattern, stamps_of};

use crate::cluster::Cluster;
use crate::tool::FOREIGN_ENVIRONMENT;

const PROGRAM: &str = include_str!("writer.py");
/// Debian's own: librbd's bindings come with `ceph-mgr`.
const PYTHON: &str = "/usr/bin/python3";

/// How a writer writes.
#[derive(Debug, Clone, Copy)]
pub struct Writing {
    /// What.
    pub pattern: Pattern,
    /// Operations in flight.
    pub depth: u64,
    /// After how many batches it takes a user snapshot `batch-N`; 0 for never.
    pub snap_every: u64,
    /// After how many batches it ends; 0 for never.
    pub batches: u64,
    /// How long it rests behind each batch.
    pub pause: Duration,
}

/// A running writer; dropping it kills it.
#[derive(Debug)]
pub struct StampedWriter {
    child: Child,
    durable: watch::Receiver<u64>,
}

impl StampedWriter {
    /// Starts to write to `pool/image`.
    pub fn start(cluster: &Cluster, image: &str, writing: &Writing) -> Result<Self> {
        let (pool, name) = image.split_once('/').context("the image is to be given as pool/image")?;
        let Writing { pattern, depth, snap_every, batches, pause } = writing;
        let mut arguments = serde_json::to_value(pattern)?;
        let rest = json!({
            "conf": cluster.conf_path(), "pool": pool, "image": name,
            "depth": depth, "snap_every": snap_every, "batches": batches,
            "pause_s": pause.as_secs_f64(),
        });
        if let (Some(all), Some(rest)) = (arguments.as_object_mut(), rest.as_object()) {
            all.extend(rest.clone());
        }
        let mut command = Command::new(PYTHON);
        for name in FOREIGN_ENVIRONMENT {
            command.env_remove(name);
        }
        // In the cluster's folder nothing is called like a module.
        command.args(["-c", PROGRAM, &arguments.to_string()]).current_dir(cluster.folder());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot run {PYTHON}"))?;
        let output = child.stdout.take().context("the writer has a standard output")?;
        let (publish, durable) = watch::channel(0);
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(number) = line.strip_prefix("batch ").and_then(|number| number.parse().ok()) {
                    publish.send_replace(number);
                }
            }
        });
        Ok(StampedWriter { child, durable })
    }

    /// The newest batch that is durable on the primary; the next one may have been begun.
    pub fn batch(&self) -> u64 {
        *self.durable.borrow()
    }

    /// The way to wait for batches.
    pub fn batches(&self) -> watch::Receiver<u64> {
        self.durable.clone()
    }

    /// Waits until batch `number` is durable.
    pub async fn reach(&mut self, number: u64, limit: Duration) -> Result<()> {
        let mut durable = self.durable.clone();
        let reached = tokio::time::timeout(limit, durable.wait_for(|batch| *batch >= number)).await;
        match reached.map(|reached| reached.map(drop)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => bail!("the writer ended at batch {}: {}", self.batch(), self.complaint().await),
            Err(_) => bail!("the writer is at batch {}, not {number}, after {limit:?}", self.batch()),
        }
    }

    /// Lets it end behind the batch that it is at, or at; answers with the last one.
    pub async fn stop(&mut self, limit: Duration) -> Result<u64> {
        drop(self.child.stdin.take());
        let status =
            tokio::time::timeout(limit, self.child.wait()).await.context("the writer does not end")??;
        ensure!(status.success(), "the writer ended with {status}: {}", self.complaint().await);
        // The last lines may still be on their way.
        let mut durable = self.durable.clone();
        while durable.changed().await.is_ok() {}
        Ok(self.batch())
    }

    /// Kills it where it stands; answers with the newest batch that it knew to be durable.
    pub async fn kill(&mut self) -> Result<u64> {
        self.child.kill().await?;
        let mut durable = self.durable.clone();
        while durable.changed().await.is_ok() {}
        Ok(self.batch())
    }

    async fn complaint(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut pipe) = self.child.stderr.take() {
            // A writer that says nothing has nothing to say.
            let _ = pipe.read_to_string(&mut text).await;
        }
        text
    }
}
