//! One Ceph cluster: started from nothing, attached to, its daemons stopped, killed, frozen and started again.
//!
//! How it starts: the monitor's store is made with the keys of all daemons already in it, while each OSD makes its store
//! on its own (`--no-mon-config`); the OSDs' ids are registered as soon as the monitor answers. Every step waits for the
//! condition that the next one needs.
//!
//! Invariant: a process is signalled only if it is one recorded in `cluster.json` (see [`crate::process`]).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::admin_socket;
use crate::conf::{self, MonPorts};
use crate::options::{ClusterOptions, program};
use crate::process::{self, Identity, Launch, Usage, tail};
use crate::state::State;
use crate::tool::Tool;
use crate::wait;

/// How long a daemon may take until it works, on a busy machine.
const DAEMON_START_LIMIT: Duration = Duration::from_secs(90);

/// How long a daemon may take to end by itself before it is killed.
const DAEMON_END_LIMIT: Duration = Duration::from_secs(20);

/// An OSD may be frozen for less than this without losing a lease on a placement group: leases of 16 s are renewed every
/// 8 s.
const SAFELY_FROZEN: Duration = Duration::from_secs(7);

/// The monitor's name and the manager's.
const MON: &str = "mon.a";
const MGR: &str = "mgr.x";

/// How an OSD goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OsdEnd {
    /// It ends in order and tells the monitor, so that clients know at once.
    Graceful,
    /// `kill -9`: if it is the only one, nobody notices, and clients wait for it.
    Kill,
}

/// A running cluster. Dropping it kills its daemons, unless it was attached to or told to [`keep`](Self::keep).
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
    /// What doesn't change while the cluster runs; its list of daemons is not used, see [`Cluster::state`].
    fixed: State,
    ends_on_drop: bool,
    /// Held while `cluster.json` is read, changed and replaced.
    changing: Mutex<()>,
    /// Since when its daemons stand still.
    frozen: Mutex<Option<Instant>>,
}

impl Cluster {
    /// Starts a new cluster in `folder`, which is made if it isn't there and must hold no cluster yet.
    ///
    /// Answers when all OSDs are up, the manager answers, and its `rbd_support` module is ready. A dropped future or a
    /// failure kills what was started.
    pub async fn start(folder: &Path, options: &ClusterOptions) -> Result<Self> {
        let failed = || format!("starting the cluster {} in {}", options.name, folder.display());
        std::fs::create_dir_all(folder).with_context(failed)?;
        let folder = folder.canonicalize().with_context(failed)?;
        ensure!(
            !folder.join(crate::state::STATE_FILE).exists(),
            "{} already holds a cluster",
            folder.display()
        );
        // The longest names are those of the admin sockets of mirror daemons.
        let socket = folder
            .join(format!("run/{}-client.rbd-mirror.a-long-name.1234567.12345678901234.asok", options.name));
        ensure!(
            socket.as_os_str().len() <= admin_socket::SOCKET_PATH_BYTES_MAX,
            "the path {} is too long: the kernel takes sockets' paths of at most {} bytes; take a shorter folder",
            folder.display(),
            admin_socket::SOCKET_PATH_BYTES_MAX
        );
        let cluster = Cluster::prepare(&folder, options).with_context(failed)?;
        cluster.bring_up().await.with_context(failed)?;
        Ok(cluster)
    }

    /// Attaches to the cluster in `folder` that somebody else has started; it goes on when this is dropped.
    ///
    /// A daemon that is started again through this handle outlives this process only if the cluster's first ones outlive
    /// the process that started them.
    pub fn attach(folder: &Path) -> Result<Self> {
        let folder =
            folder.canonicalize().with_context(|| format!("there is no folder {}", folder.display()))?;
        let fixed = State::read(&folder)?;
        Ok(Cluster {
            folder,
            fixed,
            ends_on_drop: false,
            changing: Mutex::default(),
            frozen: Mutex::default(),
        })
    }

    /// Writes everything that the daemons find when they start.
    fn prepare(folder: &Path, options: &ClusterOptions) -> Result<Self> {
        let ports = MonPorts::pick()?;
        let fixed = State {
            name: options.name.clone(),
            fsid: uuid::Uuid::new_v4().to_string(),
            mon_host: ports.addresses(),
            osds: options.osds,
            ceph_bin: options.ceph_bin.clone(),
            die_with_parent: options.die_with_parent,
            daemons: BTreeMap::new(),
        };
        for part in ["log", "run", "crash", MON, MGR] {
            std::fs::create_dir_all(folder.join(part))?;
        }
        conf::link_mgr_modules(folder, options)?;
        std::fs::write(folder.join("ceph.conf"), conf::text(folder, &fixed.fsid, ports, options))?;
        fixed.write(folder)?;
        let cluster = Cluster {
            folder: folder.to_owned(),
            fixed,
            ends_on_drop: true,
            changing: Mutex::default(),
            frozen: Mutex::default(),
        };
        cluster.link_names(cluster.name(), folder)?;
        Ok(cluster)
    }

    /// Puts links into `target` under which this cluster is found as `name`, by `--cluster` or by a peer's name.
    pub(crate) fn link_names(&self, name: &str, target: &Path) -> Result<()> {
        for (file, link) in [
            (self.conf_path(), format!("{name}.conf")),
            (self.keyring_path(), format!("{name}.client.admin.keyring")),
        ] {
            let link = target.join(link);
            if link != file && !link.is_symlink() {
                std::os::unix::fs::symlink(&file, &link)
                    .with_context(|| format!("cannot make {}", link.display()))?;
            }
        }
        Ok(())
    }

    async fn bring_up(&self) -> Result<()> {
        let keys = self.make_keys().await?;
        let osds: Vec<(usize, String)> =
            (0..self.osd_count()).map(|osd| (osd, uuid::Uuid::new_v4().to_string())).collect();
        let stores = async {
            for (osd, uuid) in &osds {
                self.make_osd_store(*osd, uuid).await?;
            }
            Ok(())
        };
        let monitor = async {
            self.make_mon_store(&keys).await?;
            self.start_daemon(MON).await?;
            // This module would make a pool of its own, with health warnings when it cannot look at the disks.
            self.ceph(&["config", "set", "mgr", "mgr/devicehealth/enable_monitoring", "false", "--force"])
                .await?;
            for (osd, uuid) in &osds {
                self.ceph(&["osd", "new", uuid, &osd.to_string()]).await?;
            }
            self.launch(MGR)
        };
        tokio::try_join!(stores, monitor)?;
        for (osd, _) in &osds {
            self.launch(&osd_name(*osd))?;
        }
        self.wait_healthy(DAEMON_START_LIMIT).await
    }

    /// Makes a key for everybody; gives a keyring that holds them all, for the monitor to begin with.
    async fn make_keys(&self) -> Result<PathBuf> {
        let mut users = vec![
            ("mon.".to_owned(), vec![("mon", "allow *")]),
            (
                "client.admin".to_owned(),
                vec![("mon", "allow *"), ("osd", "allow *"), ("mgr", "allow *"), ("mds", "allow *")],
            ),
            (MGR.to_owned(), vec![("mon", "allow profile mgr"), ("osd", "allow *"), ("mds", "allow *")]),
        ];
        let osd_caps = vec![("mon", "allow profile osd"), ("osd", "allow *"), ("mgr", "allow profile osd")];
        users.extend((0..self.osd_count()).map(|osd| (osd_name(osd), osd_caps.clone())));
        let mut all = String::new();
        for (user, caps) in &users {
            let key = Tool::new(self.program("ceph-authtool")).arg("--gen-print-key").run().await?;
            let mut section = format!("[{user}]\n\tkey = {}\n", key.trim());
            for (service, cap) in caps {
                section += &format!("\tcaps {service} = \"{cap}\"\n");
            }
            if user != "mon." {
                // Daemons and tools that are given the configuration file know the cluster by the name `ceph`.
                write_private(&self.folder.join(format!("ceph.{user}.keyring")), &section)?;
            }
            all += &section;
        }
        let keyring = self.folder.join("all.keyring");
        write_private(&keyring, &all)?;
        Ok(keyring)
    }

    async fn make_mon_store(&self, keys: &Path) -> Result<()> {
        let map = self.folder.join("monmap");
        let maker =
            Tool::new(self.program("monmaptool")).args(["--create", "--clobber", "--fsid", self.fsid()]);
        maker.args(["--addv", "a", self.mon_host()]).arg(&map).run().await?;
        let maker =
            Tool::new(self.program("ceph-mon")).args(["--mkfs", "-i", "a", "-c"]).arg(self.conf_path());
        maker.arg("--monmap").arg(&map).arg("--keyring").arg(keys).run().await?;
        Ok(())
    }

    async fn make_osd_store(&self, osd: usize, uuid: &str) -> Result<()> {
        std::fs::create_dir_all(self.folder.join(osd_name(osd)))?;
        let maker = Tool::new(self.program("ceph-osd")).args(["--mkfs", "--no-mon-config", "-c"]);
        maker.arg(self.conf_path()).args(["-i", &osd.to_string(), "--osd-uuid", uuid]).run().await?;
        Ok(())
    }

    /// Starts the process of a daemon, without waiting for it to work.
    fn launch(&self, name: &str) -> Result<()> {
        let (kind, id) = name.split_once('.').context("daemons are called KIND.ID")?;
        if self.identity(name)?.is_some_and(|identity| identity.alive()) {
            bail!("{name} of cluster {} is running already", self.name());
        }
        let conf = self.conf_path();
        let args = ["-f".as_ref(), "-i".as_ref(), id.as_ref(), "-c".as_ref(), conf.as_os_str()];
        let (identity, child) = Launch {
            program: self.program(&format!("ceph-{kind}")),
            args: args.into_iter().map(OsString::from).collect(),
            // Where a service manager starts them: to the OSDs of Debian's 18 and 20 their classes lie at a relative path.
            cwd: "/".into(),
            output: self.folder.join(format!("log/{name}.out")),
            mark: conf.display().to_string(),
            die_with_parent: self.fixed.die_with_parent,
        }
        .start()?;
        process::adopt(child);
        self.record(name, &identity).inspect_err(|_| identity.kill_now())
    }

    /// Two daemons started at once by this process must both be recorded.
    fn record(&self, name: &str, identity: &Identity) -> Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state()?;
        state.daemons.insert(name.to_owned(), identity.clone());
        state.write(&self.folder)
    }

    /// Starts a daemon (`mon.a`, `mgr.x`, `osd.0`) that isn't running, and waits until it works.
    pub async fn start_daemon(&self, name: &str) -> Result<()> {
        self.launch(name)?;
        self.wait_daemon(name).await
    }

    /// Waits until a daemon works: the monitor leads, an OSD is active, the manager is the one in charge.
    async fn wait_daemon(&self, name: &str) -> Result<()> {
        let identity = self.identity(name)?.with_context(|| format!("{name} was never started"))?;
        let what = format!("{name} of cluster {} to work", self.name());
        wait::until(&what, DAEMON_START_LIMIT, || async {
            if !identity.alive() {
                process::reap();
                bail!(
                    "{name} of cluster {} ended by itself; {}\n{}",
                    self.name(),
                    tail(&self.output_of(name), 12),
                    tail(&self.folder.join(format!("log/{name}.log")), 12)
                );
            }
            Ok(self.daemon_works(name).await.then_some(()))
        })
        .await
    }

    async fn daemon_works(&self, name: &str) -> bool {
        let (command, state) = match name.split_once('.') {
            Some(("mon", _)) => ("mon_status", "leader"),
            Some(("osd", _)) => ("status", "active"),
            _ => {
                let map =
                    self.tool("ceph").args(["mgr", "dump", "--format", "json"]).limit(PROBE_LIMIT).run_json();
                return map.await.is_ok_and(|map| map["available"] == true);
            }
        };
        let socket = self.admin_socket(name);
        // A daemon that is starting logs an error for each command that it doesn't know yet.
        let known = admin_socket::ask(&socket, "help").await.is_ok_and(|help| help[command].is_string());
        known && admin_socket::ask(&socket, command).await.is_ok_and(|answer| answer["state"] == state)
    }

    /// Ends a daemon with a signal and waits until it has ended; after 20 s it is killed.
    pub async fn stop_daemon(&self, name: &str, signal: Signal) -> Result<()> {
        let identity = self.identity(name)?.with_context(|| format!("{name} was never started"))?;
        identity.signal(signal);
        if !identity.ended_within(DAEMON_END_LIMIT).await {
            identity.signal(Signal::SIGKILL);
            ensure!(
                identity.ended_within(DAEMON_END_LIMIT).await,
                "{name} (pid {}) doesn't end",
                identity.pid
            );
        }
        process::reap();
        Ok(())
    }

    /// Takes an OSD down.
    pub async fn osd_stop(&self, osd: usize, how: OsdEnd) -> Result<()> {
        let signal = match how {
            OsdEnd::Graceful => Signal::SIGTERM,
            OsdEnd::Kill => Signal::SIGKILL,
        };
        self.stop_daemon(&osd_name(osd), signal).await
    }

    /// Starts an OSD that was taken down, and waits until it serves again.
    pub async fn osd_start(&self, osd: usize) -> Result<()> {
        self.start_daemon(&osd_name(osd)).await
    }

    /// Sends a signal to an OSD: stopped in its tracks (`SIGSTOP`) it keeps what it was sent, and carries it out when it goes
    /// on (`SIGCONT`).
    pub fn osd_signal(&self, osd: usize, signal: Signal) -> Result<()> {
        let state = self.state()?;
        let identity = state.daemons.get(&osd_name(osd)).with_context(|| format!("there is no OSD {osd}"))?;
        ensure!(identity.signal(signal), "OSD {osd} does not run");
        Ok(())
    }

    /// Ends the monitor and starts it again.
    pub async fn mon_restart(&self) -> Result<()> {
        self.stop_daemon(MON, Signal::SIGTERM).await?;
        self.start_daemon(MON).await
    }

    /// Kills the manager and starts it again; waits until it is in charge.
    pub async fn mgr_restart(&self) -> Result<()> {
        self.stop_daemon(MGR, Signal::SIGKILL).await?;
        self.start_daemon(MGR).await
    }

    /// Stops all daemons in their tracks (`SIGSTOP`): to everybody else the cluster has fallen silent, its connections
    /// still open.
    pub fn freeze(&self) -> Result<()> {
        *self.frozen.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.signal_all(Signal::SIGSTOP)
    }

    /// Lets the daemons go on after [`freeze`](Self::freeze).
    ///
    /// An OSD whose lease on a placement group ran out meanwhile may keep all requests waiting until that group is peered
    /// anew (ceph/ceph pull request 71663), so that is brought about.
    pub async fn thaw(&self) -> Result<()> {
        self.signal_all(Signal::SIGCONT)?;
        let frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner).take();
        if frozen.is_none_or(|since| since.elapsed() < SAFELY_FROZEN) {
            return Ok(());
        }
        let osds: Vec<String> = (0..self.osd_count()).map(|osd| osd.to_string()).collect();
        wait::until(&format!("cluster {} to be back", self.name()), DAEMON_START_LIMIT, || async {
            let down = self.tool("ceph").args(["osd", "down"]).args(&osds).limit(PROBE_LIMIT).run().await;
            Ok(down.is_ok().then_some(()))
        })
        .await
    }

    fn signal_all(&self, signal: Signal) -> Result<()> {
        for identity in self.state()?.daemons.values() {
            identity.signal(signal);
        }
        Ok(())
    }

    /// Waits until every OSD is up, every placement group is clean, and the manager answers commands about mirroring.
    pub async fn wait_healthy(&self, limit: Duration) -> Result<()> {
        for name in self.state()?.daemons.keys() {
            self.wait_daemon(name).await?;
        }
        let what = format!("cluster {} to be healthy", self.name());
        wait::until(&what, limit, || async {
            let Ok(status) =
                self.tool("ceph").args(["status", "--format", "json"]).limit(PROBE_LIMIT).run_json().await
            else {
                return Ok(None);
            };
            Ok((self.looks_healthy(&status) && self.schedules_answer().await).then_some(()))
        })
        .await
    }

    fn looks_healthy(&self, status: &Value) -> bool {
        // Releases before 14 had one more level here; later ones agree.
        let osds = &status["osdmap"];
        let groups = &status["pgmap"];
        let clean: u64 = groups["pgs_by_state"].as_array().map_or(0, |states| {
            let clean = states.iter().filter(|state| state["state_name"] == "active+clean");
            clean.filter_map(|state| state["count"].as_u64()).sum()
        });
        osds["num_up_osds"].as_u64() == Some(self.osd_count() as u64)
            && status["mgrmap"]["available"] == true
            && groups["num_pgs"].as_u64() == Some(clean)
    }

    /// The manager is in charge some seconds before its module for mirror-snapshot schedules answers.
    async fn schedules_answer(&self) -> bool {
        let list = self.tool("rbd").args(["mirror", "snapshot", "schedule", "ls", "--format", "json"]);
        match list.limit(PROBE_LIMIT).run().await {
            Ok(_) => true,
            // Having no schedules is an answer, which some releases give as an error.
            Err(error) => error.exit_code() == Some(Errno::ENOENT as i32),
        }
    }

    /// Ends all daemons in order, killing those that don't, and leaves the folder.
    pub async fn stop(&self) -> Result<()> {
        let daemons = self.state()?.daemons;
        // A frozen daemon gets its signal only when it goes on.
        self.signal_all(Signal::SIGCONT)?;
        // OSDs and manager say goodbye to the monitor, so that one goes last.
        let (mons, others): (Vec<_>, Vec<_>) = daemons.keys().partition(|name| name.starts_with("mon."));
        for group in [others, mons] {
            for name in &group {
                daemons[*name].signal(Signal::SIGTERM);
            }
            for name in group {
                self.stop_daemon(name, Signal::SIGTERM).await?;
            }
        }
        Ok(())
    }

    /// Kills all daemons at once, without waiting for anything but their end. Cheap: for throw-away clusters.
    pub fn kill(&self) {
        let Ok(state) = self.state() else { return };
        for identity in state.daemons.values() {
            identity.signal(Signal::SIGKILL);
        }
        for identity in state.daemons.values() {
            identity.kill_now();
        }
    }

    /// Lets the daemons go on when this is dropped.
    pub fn keep(&mut self) {
        self.ends_on_drop = false;
    }

    /// The daemons recorded: name, process, and what it has used if it runs.
    pub fn daemons(&self) -> Result<Vec<(String, Identity, Option<Usage>)>> {
        let daemons = self.state()?.daemons.into_iter();
        Ok(daemons.map(|(name, identity)| (name, identity.clone(), identity.usage())).collect())
    }

    fn identity(&self, name: &str) -> Result<Option<Identity>> {
        Ok(self.state()?.daemons.remove(name))
    }

    fn state(&self) -> Result<State> {
        State::read(&self.folder)
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.fixed.name
    }

    /// The cluster's id.
    pub fn fsid(&self) -> &str {
        &self.fixed.fsid
    }

    /// The monitor's addresses, as `mon host` and peers' attributes have them.
    pub fn mon_host(&self) -> &str {
        &self.fixed.mon_host
    }

    /// How many OSDs belong to the cluster, up or down.
    pub fn osd_count(&self) -> usize {
        self.fixed.osds
    }

    /// The folder that holds the cluster. As working directory it makes `--cluster NAME` find the configuration.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The configuration file.
    pub fn conf_path(&self) -> PathBuf {
        self.folder.join("ceph.conf")
    }

    /// The administrator's keyring.
    pub fn keyring_path(&self) -> PathBuf {
        self.folder.join("ceph.client.admin.keyring")
    }

    /// The admin socket of one of the cluster's own daemons.
    pub fn admin_socket(&self, daemon: &str) -> PathBuf {
        self.folder.join(format!("run/ceph-{daemon}.asok"))
    }

    /// The path of one of Ceph's programs.
    pub fn program(&self, name: &str) -> PathBuf {
        program(self.fixed.ceph_bin.as_deref(), name)
    }

    fn output_of(&self, daemon: &str) -> PathBuf {
        self.folder.join(format!("log/{daemon}.out"))
    }
}

/// How long one look at a condition may take: a tool that hangs is asked again rather than waited for.
const PROBE_LIMIT: Duration = Duration::from_secs(10);

fn osd_name(osd: usize) -> String {
    format!("osd.{osd}")
}

/// Writes a file that only its owner may read.
pub(crate) fn write_private(file: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::File::options();
    let opened = options.create(true).write(true).truncate(true).mode(0o600).open(file);
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("cannot write {}", file.display()))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.ends_on_drop {
            self.kill();
        }
    }
}
