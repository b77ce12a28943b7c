//! Many small mirrored images, made by one process: the command line tools would need two for each.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::Cluster;
use crate::tool::Tool;

/// The program that makes them; the modules come with Ceph's own tools.
const PROGRAM: &str = include_str!("many.py");

/// Debian's Python, for which the modules of Ceph are installed.
const PYTHON: &str = "/usr/bin/python3";

/// How long that may take.
const LIMIT: Duration = Duration::from_secs(600);

/// Images that differ in nothing but their numbers.
#[derive(Debug, Clone, Copy)]
pub struct ManyImages<'a> {
    /// Their pool, in which images are mirrored one by one.
    pub pool: &'a str,
    /// What their names begin with; three digits follow.
    pub prefix: &'a str,
    /// How many there are.
    pub count: usize,
    /// Size of each in bytes.
    pub size: u64,
    /// Binary logarithm of the size of their objects in bytes.
    pub order: u8,
    /// Their features, as a bit mask.
    pub features: u64,
    /// `snapshot` or `journal`.
    pub mode: &'a str,
}

impl ManyImages<'_> {
    /// Their names.
    pub fn names(&self) -> Vec<String> {
        (0..self.count).map(|number| format!("{}{number:03}", self.prefix)).collect()
    }
}

impl Cluster {
    /// Makes images, and enables mirroring of them.
    pub async fn make_many(&self, images: &ManyImages<'_>) -> Result<()> {
        let numbers = [images.count as u64, images.size, u64::from(images.order), images.features]
            .map(|n| n.to_string());
        let python = Tool::new(PYTHON).args(["-c", PROGRAM]).arg(self.conf_path());
        let python = python.args([images.pool, images.prefix]).args(numbers).arg(images.mode);
        let made = python.limit(LIMIT).run().await;
        made.context("making many images").map(drop)
    }
}
