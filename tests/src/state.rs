//! What is known of a cluster beyond its configuration: `cluster.json` in its folder.
//!
//! The file is the truth about which processes run; every process that started or attached to the cluster reads it
//! anew when it needs it, and replaces it as a whole when it starts or ends a daemon.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::process::Identity;

/// The name of the file.
pub(crate) const STATE_FILE: &str = "cluster.json";

/// The contents of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub name: String,
    pub fsid: String,
    pub mon_host: String,
    pub osds: usize,
    pub ceph_bin: Option<PathBuf>,
    /// Whether daemons die with the process that starts them, see `ClusterOptions::die_with_parent`. Daemons that are
    /// started again by a process that only attached to the cluster are treated as the first ones were.
    #[serde(default)]
    pub die_with_parent: bool,
    /// The daemons by name (`mon.a`, `mgr.x`, `osd.0`), as they were last started.
    pub daemons: BTreeMap<String, Identity>,
}

impl State {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let file = folder.join(STATE_FILE);
        let text = std::fs::read(&file).with_context(|| {
            format!("there is no cluster in {}: cannot read {STATE_FILE}", folder.display())
        })?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not what it should be", file.display()))
    }

    /// Replaces the file, so that a reader sees the old or the new contents, never a part.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.persist(folder.join(STATE_FILE)).with_context(|| format!("cannot write {STATE_FILE}"))?;
        Ok(())
    }
}
