//! `clusters`: two real Ceph clusters on this machine, for tests, the demo, and looking around by hand.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use clap::{Args, Parser, Subcommand};
use tests::options::CEPH_BIN_VARIABLE;
use tests::two_clusters::{CLUSTERS_VARIABLE, SITES};
use tests::{Cluster, ClusterOptions, TwoClusters};

/// Two real Ceph clusters on this machine, in a private folder.
#[derive(Debug, Parser)]
#[command(name = "clusters", version)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start both clusters and leave them running
    Up(Up),
    /// End both clusters
    Down {
        #[command(flatten)]
        place: Place,
        /// Remove the folder, too
        #[arg(long)]
        remove: bool,
    },
    /// Show what runs, and how the clusters are
    Status(Place),
    /// Print the settings with which a shell uses the clusters
    Env(Place),
}

#[derive(Debug, Args)]
struct Place {
    /// The folder of the two clusters
    #[arg(long, env = CLUSTERS_VARIABLE, default_value = "/tmp/two-clusters")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct Up {
    #[command(flatten)]
    place: Place,
    /// The clusters' names
    #[arg(long, num_args = 2, value_names = ["A", "B"], default_values = SITES)]
    names: Vec<String>,
    /// How many OSDs each has
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    osds: u16,
    /// The folder with Ceph's programs [default: those on PATH]
    #[arg(long, env = CEPH_BIN_VARIABLE)]
    ceph_bin: Option<PathBuf>,
    /// How long the monitors gather changes, in seconds; Ceph's own default is 1
    #[arg(long, value_name = "SECONDS", default_value_t = tests::options::PAXOS_PROPOSE_INTERVAL_S_TESTS)]
    paxos_propose_interval: f64,
    /// How large each OSD may grow, in GiB (the files are sparse)
    #[arg(long, value_name = "GIB", default_value_t = 40)]
    osd_size: u64,
    /// Load this module of the manager as well; may be given several times
    #[arg(long = "mgr-module", value_name = "NAME")]
    mgr_modules: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().action).await {
        Ok(text) => {
            // A reader that has seen enough, such as `head`, is no failure.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("clusters: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(action: Action) -> Result<String> {
    match action {
        Action::Up(up) => start(up).await,
        Action::Down { place, remove } => end(&place, remove).await,
        Action::Status(place) => {
            let clusters = TwoClusters::attach(&place.dir)?;
            let [a, b] = clusters.both();
            Ok(format!("{}\n{}", status(a).await?, status(b).await?))
        }
        Action::Env(place) => Ok(environment(&TwoClusters::attach(&place.dir)?)),
    }
}

async fn start(up: Up) -> Result<String> {
    let interval_s = up.paxos_propose_interval;
    ensure!(interval_s > 0.0, "the paxos propose interval must be more than 0 s");
    let options = ClusterOptions {
        osds: up.osds.into(),
        ceph_bin: up.ceph_bin,
        paxos_propose_interval_s: Some(interval_s),
        osd_size_gib: up.osd_size,
        mgr_modules: up.mgr_modules,
        die_with_parent: false,
        ..ClusterOptions::default()
    };
    let started = Instant::now();
    let mut clusters = TwoClusters::start(&up.place.dir, [&up.names[0], &up.names[1]], &options).await?;
    clusters.keep();
    let took_s = started.elapsed().as_secs_f64();
    Ok(format!(
        "# Both clusters are up after {took_s:.1} s.\n{}# end them:  clusters down --dir {}\n",
        environment(&clusters),
        clusters.folder().display()
    ))
}

async fn end(place: &Place, remove: bool) -> Result<String> {
    let clusters = TwoClusters::attach(&place.dir)?;
    clusters.stop().await?;
    if remove {
        clusters.remove()?;
    }
    Ok("Both clusters have ended.\n".to_owned())
}

async fn status(cluster: &Cluster) -> Result<String> {
    let mut text = format!("{} ({}, fsid {})\n", cluster.name(), cluster.mon_host(), cluster.fsid());
    let mut monitor_runs = false;
    for (name, identity, usage) in cluster.daemons()? {
        let Some(usage) = usage else {
            text += &format!("  {name:8} not running\n");
            continue;
        };
        monitor_runs |= name.starts_with("mon.");
        let (pid, cpu_s, rss_mib) = (identity.pid, usage.cpu_s, usage.rss_bytes >> 20);
        text += &format!("  {name:8} pid {pid:7}  {rss_mib:5} MiB  {cpu_s:7.1} s of CPU\n");
    }
    if !monitor_runs {
        return Ok(text + "  health   unknown: no monitor runs\n");
    }
    let status = cluster.ceph_json(&["status"]).await?;
    let (osds, groups) = (&status["osdmap"], &status["pgmap"]);
    text += &format!(
        "  health   {}; {} of {} OSDs up; {} placement groups; {} MiB stored\n",
        status["health"]["status"].as_str().unwrap_or("unknown"),
        osds["num_up_osds"],
        osds["num_osds"],
        groups["num_pgs"],
        groups["data_bytes"].as_u64().unwrap_or(0) >> 20,
    );
    Ok(text)
}

/// What to type in a shell, as text that a shell can also `eval`.
fn environment(clusters: &TwoClusters) -> String {
    let mut text = format!("export {CLUSTERS_VARIABLE}={}\n", clusters.folder().display());
    for cluster in clusters.both() {
        let conf = cluster.conf_path();
        text += &format!("# {}:  export CEPH_CONF={}\n", cluster.name(), conf.display());
    }
    let [a, b] = clusters.both();
    text += &format!("export CEPH_CONF={}\n", a.conf_path().display());
    text += &format!("# the other one in a single command:  rbd -c {} ls\n", b.conf_path().display());
    text
}
