//! What an operator does to a cluster: the stock tools, pools, users, the blocklist.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use crate::cluster::{Cluster, write_private};
use crate::tool::{Tool, ToolError};

/// An entry of the blocklist.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Blocklisted {
    /// The client's address, with its nonce.
    pub addr: String,
    /// Until when, in the words of the monitor.
    pub until: String,
}

impl Cluster {
    /// The start of a command line of one of Ceph's tools (`rbd`, `ceph`, `rados`) as this cluster's administrator.
    pub fn tool(&self, name: &str) -> Tool {
        Tool::new(self.program(name)).arg("-c").arg(self.conf_path())
    }

    /// Runs `rbd` and gives its standard output.
    pub async fn rbd(&self, args: &[&str]) -> Result<String, ToolError> {
        self.tool("rbd").args(args).run().await
    }

    /// Runs `rbd` with `--format json`.
    pub async fn rbd_json(&self, args: &[&str]) -> Result<Value, ToolError> {
        self.tool("rbd").args(args).args(["--format", "json"]).run_json().await
    }

    /// Runs `ceph` and gives its standard output.
    pub async fn ceph(&self, args: &[&str]) -> Result<String, ToolError> {
        self.tool("ceph").args(args).run().await
    }

    /// Runs `ceph` with `--format json`.
    pub async fn ceph_json(&self, args: &[&str]) -> Result<Value, ToolError> {
        self.tool("ceph").args(args).args(["--format", "json"]).run_json().await
    }

    /// The release of Ceph's programs, such as 16.
    pub async fn release(&self) -> Result<u32> {
        let version = self.ceph(&["--version"]).await?;
        let number = version.strip_prefix("ceph version ").and_then(|rest| rest.split('.').next());
        number.and_then(|number| number.parse().ok()).with_context(|| format!("no version: {version}"))
    }

    /// Runs `rados` and gives its standard output.
    pub async fn rados(&self, args: &[&str]) -> Result<String, ToolError> {
        self.tool("rados").args(args).run().await
    }

    /// Makes a pool for images.
    pub async fn create_pool(&self, pool: &str) -> Result<(), ToolError> {
        self.ceph(&["osd", "pool", "create", pool]).await?;
        self.rbd(&["pool", "init", pool]).await?;
        Ok(())
    }

    /// Deletes a pool with everything in it.
    pub async fn delete_pool(&self, pool: &str) -> Result<(), ToolError> {
        self.ceph(&["osd", "pool", "rm", pool, pool, "--yes-i-really-really-mean-it"]).await?;
        Ok(())
    }

    /// Makes a user (`client.x`) with capabilities by service, or finds it, writes its keyring where the cluster's
    /// configuration looks for it, and gives its key.
    pub async fn create_user(&self, user: &str, caps: &[(&str, &str)]) -> Result<String> {
        let mut args = vec!["auth", "get-or-create-key", user];
        args.extend(caps.iter().flat_map(|(service, cap)| [*service, *cap]));
        let key = self.ceph(&args).await?.trim().to_owned();
        for name in ["ceph", self.name()] {
            write_private(
                &self.folder().join(format!("{name}.{user}.keyring")),
                &format!("[{user}]\n\tkey = {key}\n"),
            )?;
        }
        Ok(key)
    }

    /// The keyring that [`create_user`](Self::create_user) has written.
    pub fn user_keyring(&self, user: &str) -> PathBuf {
        self.folder().join(format!("{}.{user}.keyring", self.name()))
    }

    /// Puts a client (`ADDR:PORT/NONCE`) on the blocklist, for an hour.
    pub async fn blocklist_add(&self, client: &str) -> Result<(), ToolError> {
        self.ceph(&["osd", "blocklist", "add", client]).await.map(drop)
    }

    /// Takes a client off the blocklist.
    pub async fn blocklist_rm(&self, client: &str) -> Result<(), ToolError> {
        self.ceph(&["osd", "blocklist", "rm", client]).await.map(drop)
    }

    /// The blocklist.
    pub async fn blocklist(&self) -> Result<Vec<Blocklisted>> {
        // The monitor answers with two lists, of single addresses and of ranges, one right after the other.
        let text = self.ceph(&["osd", "blocklist", "ls", "--format", "json"]).await?;
        let lists = serde_json::Deserializer::from_str(&text).into_iter::<Vec<Blocklisted>>();
        let lists: Vec<_> =
            lists.collect::<Result<_, _>>().with_context(|| format!("reading the blocklist: {text}"))?;
        Ok(lists.concat())
    }
}
