//! Two clusters side by side, `site-a` and `site-b`, ready to become each other's peers.
//!
//! In the folder of each there are links to the configuration and the administrator's key of the other, under its name:
//! a daemon that works in one folder finds both clusters by `--cluster NAME` and `client@NAME`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::options::ClusterOptions;

/// The environment variable that names the folder of two running clusters (see the command `clusters`) for tests to
/// use instead of starting their own.
pub const CLUSTERS_VARIABLE: &str = "MIRROR_TEST_CLUSTERS";

/// The names of the two, where nobody asks for others.
pub const SITES: [&str; 2] = ["site-a", "site-b"];

/// The file that remembers the names, in the folder of both.
const SITES_FILE: &str = "sites";

/// Two clusters.
#[derive(Debug)]
pub struct TwoClusters {
    /// The first, `site-a` by default.
    pub a: Cluster,
    /// The second, `site-b` by default.
    pub b: Cluster,
    folder: PathBuf,
    /// Held only to be dropped after the clusters: then the folder goes.
    _sweeper: Option<Sweeper>,
}

/// In which directions images are to be mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From a to b only.
    AToB,
    /// Both ways, as failover and failback need.
    Both,
}

impl TwoClusters {
    /// Starts two clusters at the same time, in folders named after them under `folder`. The options hold for both
    /// but for the name.
    pub async fn start(folder: &Path, names: [&str; 2], options: &ClusterOptions) -> Result<Self> {
        let [a, b] = names;
        ensure!(a != b, "two clusters need two names");
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let options_of = |name: &str| ClusterOptions { name: name.to_owned(), ..options.clone() };
        let (a_folder, b_folder) = (folder.join(a), folder.join(b));
        let (a_options, b_options) = (options_of(a), options_of(b));
        let started =
            tokio::join!(Cluster::start(&a_folder, &a_options), Cluster::start(&b_folder, &b_options));
        let (a, b) = (started.0?, started.1?);
        a.link_names(a.name(), b.folder())?;
        b.link_names(b.name(), a.folder())?;
        std::fs::write(folder.join(SITES_FILE), names.join("\n"))?;
        Ok(TwoClusters { a, b, folder: folder.canonicalize()?, _sweeper: None })
    }

    /// Starts two clusters in a temporary folder, which goes away with them, and at the latest when this process ends.
    pub async fn start_temporary(options: &ClusterOptions) -> Result<Self> {
        let sweeper = Sweeper::new()?;
        let mut clusters = Self::start(&sweeper.folder, SITES, options).await?;
        clusters._sweeper = Some(sweeper);
        Ok(clusters)
    }

    /// The clusters that [`CLUSTERS_VARIABLE`] names, else new ones in a temporary folder.
    pub async fn for_tests() -> Result<Self> {
        match std::env::var_os(CLUSTERS_VARIABLE) {
            Some(folder) => Self::attach(Path::new(&folder)),
            None => Self::start_temporary(&ClusterOptions::default()).await,
        }
    }

    /// Attaches to two clusters that some other process has started.
    pub fn attach(folder: &Path) -> Result<Self> {
        let names = std::fs::read_to_string(folder.join(SITES_FILE))
            .with_context(|| format!("there are no two clusters in {}", folder.display()))?;
        let (a, b) = names.split_once('\n').with_context(|| format!("{SITES_FILE} names no two clusters"))?;
        let attach = |name: &str| Cluster::attach(&folder.join(name));
        Ok(TwoClusters { a: attach(a)?, b: attach(b)?, folder: folder.canonicalize()?, _sweeper: None })
    }

    /// The folder of both.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Both, in order.
    pub fn both(&self) -> [&Cluster; 2] {
        [&self.a, &self.b]
    }

    /// Makes a pool on both.
    pub async fn create_pool(&self, pool: &str) -> Result<()> {
        tokio::try_join!(self.a.create_pool(pool), self.b.create_pool(pool))?;
        Ok(())
    }

    /// Enables mirroring of single images in a pool (or `pool/namespace`) on both, as `rbd mirror pool enable` does.
    pub async fn enable_mirroring(&self, pool: &str) -> Result<()> {
        tokio::try_join!(enable(&self.a, pool), enable(&self.b, pool))?;
        Ok(())
    }

    /// Enables mirroring in a pool and introduces the two to each other with a bootstrap token, as an operator does.
    pub async fn connect_peers(&self, pool: &str, direction: Direction) -> Result<()> {
        self.enable_mirroring(pool).await?;
        let create = ["mirror", "pool", "peer", "bootstrap", "create", "--site-name", self.a.name(), pool];
        let token = self.a.rbd(&create).await?;
        let direction = match direction {
            Direction::AToB => "rx-only",
            Direction::Both => "rx-tx",
        };
        let import = self.b.tool("rbd").args(["mirror", "pool", "peer", "bootstrap", "import"]);
        let import = import.args(["--site-name", self.b.name(), "--direction", direction, pool, "-"]);
        import.stdin(token.trim()).run().await?;
        Ok(())
    }

    /// Ends both in order.
    pub async fn stop(&self) -> Result<()> {
        tokio::try_join!(self.a.stop(), self.b.stop())?;
        Ok(())
    }

    /// Removes both clusters' folders, once they have ended, and the folder of both if nothing else is in it.
    pub fn remove(&self) -> Result<()> {
        for cluster in self.both() {
            let running = cluster.daemons()?.into_iter().find(|(_, _, usage)| usage.is_some());
            ensure!(running.is_none(), "{} still runs in {}", cluster.name(), cluster.folder().display());
            std::fs::remove_dir_all(cluster.folder())
                .with_context(|| format!("cannot remove {}", cluster.folder().display()))?;
        }
        std::fs::remove_file(self.folder.join(SITES_FILE))?;
        // What else is in there isn't ours.
        let _ = std::fs::remove_dir(&self.folder);
        Ok(())
    }

    /// Lets both go on when this is dropped, unless they live in a temporary folder.
    pub fn keep(&mut self) {
        self.a.keep();
        self.b.keep();
    }
}

async fn enable(cluster: &Cluster, pool: &str) -> Result<()> {
    cluster.rbd(&["mirror", "pool", "enable", "--site-name", cluster.name(), pool, "image"]).await?;
    Ok(())
}

/// A temporary folder that goes away even when this process is killed: a shell waits for the end of a pipe that only
/// this process holds open, and removes the folder then. By that time the daemons have been killed by the kernel.
#[derive(Debug)]
struct Sweeper {
    folder: PathBuf,
    shell: Child,
}

impl Sweeper {
    fn new() -> Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("mirror-").tempdir().context("making a temporary folder")?.keep();
        // A daemon that is just being killed may still add a file: hence several tries.
        let script = r#"cat; for try in 1 2 3 4 5; do rm -rf -- "$0" && exit; sleep 1; done"#;
        let mut shell = Command::new("sh");
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        shell
            .args(["-c", script])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let shell = shell.spawn().context("cannot start a shell that removes the temporary folder")?;
        Ok(Sweeper { folder, shell })
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.save_logs();
        }
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

impl Sweeper {
    /// Keeps the logs of a failed test, under a name that says where they come from.
    fn save_logs(&self) {
        let saved = self.folder.with_extension("logs");
        let copied = SITES.iter().all(|site| {
            let target = saved.join(site);
            std::fs::create_dir_all(&target).is_ok()
                && Command::new("cp")
                    .arg("-r")
                    .arg(self.folder.join(site).join("log"))
                    .arg(target)
                    .status()
                    .is_ok()
        });
        if copied {
            eprintln!("the logs of the clusters are in {}", saved.display());
        }
    }
}
