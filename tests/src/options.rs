//! What a cluster is to be like.

use std::path::{Path, PathBuf};

/// The environment variable that names the folder with Ceph's programs, where no option does.
pub const CEPH_BIN_VARIABLE: &str = "CEPH_BIN";

/// The `paxos propose interval` of tests, in seconds. With Ceph's own 1 s every snapshot takes a second.
pub const PAXOS_PROPOSE_INTERVAL_S_TESTS: f64 = 0.05;

/// What a cluster is to be like. The default suits tests.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The cluster's name, as in `--cluster NAME`.
    pub name: String,
    /// How many OSDs. Every pool keeps one replica, so more OSDs mean more places to lose, not more safety.
    pub osds: usize,
    /// The folder with Ceph's programs; without it, those on `PATH`. It may hold scripts of the same names that `exec`
    /// the real ones, in a chroot for instance, as long as the cluster's folder has the same path in there.
    pub ceph_bin: Option<PathBuf>,
    /// `paxos propose interval` in seconds; without it, Ceph's default. Benchmarks keep that.
    pub paxos_propose_interval_s: Option<f64>,
    /// How large each OSD's store may become, in GiB. The file is sparse; an OSD whose store is full aborts.
    pub osd_size_gib: u64,
    /// How much BlueStore caches per OSD, in MiB.
    pub osd_cache_mib: u64,
    /// Modules of the manager besides those that it insists on (`rbd_support` is one of these): `prometheus`, say.
    pub mgr_modules: Vec<String>,
    /// More lines for the configuration file: section, option, value.
    pub conf: Vec<(String, String, String)>,
    /// Whether the daemons are killed when the process that started them ends, in whatever way.
    pub die_with_parent: bool,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions {
            name: "ceph".to_owned(),
            osds: 1,
            ceph_bin: std::env::var_os(CEPH_BIN_VARIABLE).map(PathBuf::from),
            paxos_propose_interval_s: Some(PAXOS_PROPOSE_INTERVAL_S_TESTS),
            osd_size_gib: 40,
            osd_cache_mib: 64,
            mgr_modules: Vec::new(),
            conf: Vec::new(),
            die_with_parent: true,
        }
    }
}

impl ClusterOptions {
    /// The defaults, under this name.
    pub fn named(name: &str) -> Self {
        ClusterOptions { name: name.to_owned(), ..ClusterOptions::default() }
    }
}

/// One of Ceph's programs: from the folder, if there is one, else by name.
pub(crate) fn program(ceph_bin: Option<&Path>, name: &str) -> PathBuf {
    ceph_bin.map_or_else(|| PathBuf::from(name), |folder| folder.join(name))
}
