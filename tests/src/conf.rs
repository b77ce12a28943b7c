//! The configuration file of a cluster, the folder it describes, and the manager modules it loads.
//!
//! The folder:
//! ```text
//! ceph.conf, NAME.conf → ceph.conf        the same file for `-c` and for `--cluster NAME` in this folder
//! ceph.client.admin.keyring, NAME.…       the same for the administrator's key
//! NAME.USER.keyring                       keys of further users
//! cluster.json                            what is running, see `state`
//! mon.a/ mgr.x/ osd.0/ …                  the daemons' data
//! log/ run/ crash/ mgr-modules/           logs; admin sockets and pid files; crash dumps; links to the modules
//! ```

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::options::{ClusterOptions, program};

/// The modules without which a manager reports `HEALTH_ERR`, in any of Ceph's releases from 16 to 20.
const MGR_MODULES: [&str; 10] = [
    "balancer",
    "crash",
    "devicehealth",
    "orchestrator",
    "pg_autoscaler",
    "progress",
    "rbd_support",
    "status",
    "telemetry",
    "volumes",
];

/// Where Debian's packages keep the manager's modules.
const MGR_MODULE_PATH_DEFAULT: &str = "/usr/share/ceph/mgr";

/// RocksDB as BlueStore has it by default, but for memtables of 16 MiB rather than 256 MiB, of which there may be four.
const ROCKSDB_OPTIONS: &str = "compression=kNoCompression,max_write_buffer_number=4,\
    min_write_buffer_number_to_merge=1,recycle_log_file_num=4,write_buffer_size=16777216,\
    writable_file_max_buffer_size=0,compaction_readahead_size=2097152,max_background_compactions=2,\
    max_total_wal_size=1073741824";

/// The ports of the monitor, for the second and the first version of the messenger's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MonPorts {
    pub v2: u16,
    pub v1: u16,
}

impl MonPorts {
    /// Two free ports. They stay free only if nobody else takes them; they lie below those that the kernel gives to
    /// outgoing connections and above those of the OSDs.
    pub(crate) fn pick() -> Result<Self> {
        for _ in 0..200 {
            let v2 = 10_000 + 2 * rand::random_range(0..10_000_u16);
            let free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
            if free(v2) && free(v2 + 1) {
                return Ok(MonPorts { v2, v1: v2 + 1 });
            }
        }
        anyhow::bail!("found no two free ports for a monitor between 10000 and 30000 on 127.0.0.1")
    }

    /// The monitor's addresses, as in `mon host`.
    pub(crate) fn addresses(self) -> String {
        format!("[v2:127.0.0.1:{},v1:127.0.0.1:{}]", self.v2, self.v1)
    }
}

/// The text of the configuration file.
pub(crate) fn text(folder: &Path, fsid: &str, ports: MonPorts, options: &ClusterOptions) -> String {
    let dir = folder.display();
    let mut text = format!(
        "[global]\n\
         fsid = {fsid}\n\
         mon host = {mon_host}\n\
         ms bind ipv4 = true\n\
         public network = 127.0.0.0/8\n\
         cluster network = 127.0.0.0/8\n\
         auth cluster required = cephx\n\
         auth service required = cephx\n\
         auth client required = cephx\n\
         keyring = {dir}/$cluster.$name.keyring\n\
         run dir = {dir}/run\n\
         crash dir = {dir}/crash\n\
         osd pool default size = 1\n\
         osd pool default min size = 1\n\
         osd pool default pg num = 8\n\
         osd pool default pgp num = 8\n\
         osd pool default pg autoscale mode = off\n\
         osd crush chooseleaf type = 0\n\
         mgr initial modules = {modules}\n",
        mon_host = ports.addresses(),
        modules = options.mgr_modules.join(" "),
    );
    if let Some(seconds) = options.paxos_propose_interval_s {
        let _ = writeln!(text, "paxos propose interval = {seconds}\npaxos min wait = {}", seconds.min(0.05));
    }
    let daemon = |kind: &str| {
        format!(
            "\n[{kind}]\n{kind} data = {dir}/{kind}.$id\nlog file = {dir}/log/{kind}.$id.log\n\
             pid file = {dir}/run/{kind}.$id.pid\n"
        )
    };
    text += &daemon("mon");
    text += &format!(
        "mon cluster log file = {dir}/log/cluster.log\n\
         mon allow pool delete = true\n\
         mon allow pool size one = true\n\
         mon warn on pool no redundancy = false\n\
         mon warn on insecure global id reclaim = false\n\
         mon warn on insecure global id reclaim allowed = false\n\
         mon data avail warn = 2\n\
         mon data avail crit = 1\n\
         mon max pg per osd = 10000\n\
         mon osd min down reporters = 1\n"
    );
    text += &daemon("mgr");
    text += &format!("mgr module path = {dir}/mgr-modules\n");
    text += &daemon("osd");
    text += &format!(
        "osd objectstore = bluestore\n\
         osd memory target = 939524096\n\
         osd mclock skip benchmark = true\n\
         osd max pg per osd hard ratio = 100\n\
         osd max markdown count = 1000\n\
         osd fast shutdown notify mon = true\n\
         bluestore block size = {size}\n\
         bluestore fsck on mkfs = false\n\
         bluestore cache autotune = false\n\
         bluestore cache size = {cache}\n\
         bluestore rocksdb options = {ROCKSDB_OPTIONS}\n",
        size = options.osd_size_gib << 30,
        cache = options.osd_cache_mib << 20,
    );
    for (section, option, value) in &options.conf {
        let _ = writeln!(text, "\n[{section}]\n{option} = {value}");
    }
    text
}

/// Fills `mgr-modules` with links to the modules that the manager insists on and to those asked for.
///
/// A manager imports everything it finds in its module path. With only the few that are needed it starts in half the
/// time, and takes a third less memory.
pub(crate) fn link_mgr_modules(folder: &Path, options: &ClusterOptions) -> Result<()> {
    let links = folder.join("mgr-modules");
    std::fs::create_dir_all(&links)?;
    let installed = mgr_module_path(options.ceph_bin.as_deref());
    let wanted: BTreeSet<&str> =
        MGR_MODULES.into_iter().chain(options.mgr_modules.iter().map(String::as_str)).collect();
    let entries = std::fs::read_dir(&installed).with_context(|| {
        format!("cannot read {}; is the package ceph-mgr-modules-core installed?", installed.display())
    })?;
    let mut found = BTreeSet::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Plain files are what the modules share among themselves.
        if wanted.contains(name.as_str()) || !entry.path().is_dir() {
            std::os::unix::fs::symlink(entry.path(), links.join(&name))?;
            found.insert(name);
        }
    }
    if let Some(missing) = wanted.iter().find(|name| !found.contains(**name)) {
        anyhow::bail!("the manager's module `{missing}` is not in {}", installed.display());
    }
    Ok(())
}

/// The modules that belong to the programs: beside them if they have their own folder, else Debian's.
fn mgr_module_path(ceph_bin: Option<&Path>) -> PathBuf {
    let manager = program(ceph_bin, "ceph-mgr");
    let beside = manager.parent().and_then(Path::parent).map(|prefix| prefix.join("share/ceph/mgr"));
    beside.filter(|path| path.is_dir()).unwrap_or_else(|| MGR_MODULE_PATH_DEFAULT.into())
}
