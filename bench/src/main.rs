//! `bench`: ours and Ceph's `rbd-mirror` take turns on the same two clusters with the same work.
//!
//! What is timed ends when the copy has arrived, and that is judged from the copy itself (see [`arrival`]), never from
//! what a daemon says. Every copy that was timed is then compared with the primary, object by object.
//!
//! Ceph's defaults are kept, the monitors' `paxos_propose_interval` of a second among them; what the two small clusters
//! need beyond the defaults is the same for both daemons.
#![forbid(unsafe_code)]

mod arrival;
mod figures;
mod ground;
mod report;
mod scenarios;
mod turn;
mod work;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::figures::Results;
use crate::ground::Ground;
use crate::scenarios::{SCENARIOS, Scenario};

/// Time our rbd-mirror against Ceph's, on the same two clusters, with the same work.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Cli {
    /// Our daemon, built for release
    #[arg(long, value_name = "FILE", default_value = "target/release/rbd-mirror")]
    rbd_mirror: PathBuf,
    /// Our command for operators, built for release
    #[arg(long, value_name = "FILE", default_value = "target/release/rbd-mirrorctl")]
    rbd_mirrorctl: PathBuf,
    /// Only this scenario; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Fewer and smaller repetitions: to see that it works, not for figures
    #[arg(long)]
    quick: bool,
    /// Where the figures go, with every single measurement
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,
    /// Show the scenarios and end
    #[arg(long)]
    list: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for scenario in SCENARIOS {
            println!("{:12} {}", scenario.name, scenario.about);
        }
        return ExitCode::SUCCESS;
    }
    match run(&cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: &Cli) -> Result<()> {
    let chosen = choose(&cli.only)?;
    let program = built(&cli.rbd_mirror)?;
    let ctl = built(&cli.rbd_mirrorctl)?;
    let started = Instant::now();
    let ground = Ground::prepare(program, ctl, cli.quick).await?;
    say(started, "both clusters are up, and each other's peers");
    let mut results = Results::default();
    let mut failed = Vec::new();
    for scenario in chosen {
        say(started, &format!("{}: {}", scenario.name, scenario.about));
        if let Err(error) = (scenario.run)(&ground, &mut results).await {
            // The others are worth their time all the same.
            eprintln!("bench: {} failed: {error:#}", scenario.name);
            failed.push(scenario.name);
        }
    }
    ground.peaks().record(&mut results);
    say(started, "done");
    let figures = results.figures();
    print!("\n{}", report::table(&figures));
    report::write_json(&cli.json, &figures, &ground, started.elapsed()).await?;
    println!("\nEvery single measurement is in {}.", cli.json.display());
    ensure!(failed.is_empty(), "these scenarios failed: {}", failed.join(", "));
    Ok(())
}

fn built(program: &Path) -> Result<PathBuf> {
    let missing = || format!("there is no program {}; `make build` makes it", program.display());
    program.canonicalize().with_context(missing)
}

fn choose(only: &[String]) -> Result<Vec<&'static Scenario>> {
    for name in only {
        let known = SCENARIOS.iter().any(|scenario| scenario.name == name);
        ensure!(known, "there is no scenario `{name}`; `bench --list` shows them");
    }
    let wanted = |scenario: &&Scenario| only.is_empty() || only.iter().any(|name| name == scenario.name);
    Ok(SCENARIOS.iter().filter(wanted).collect())
}

fn say(started: Instant, what: &str) {
    println!("[{:6.1} s] {what}", started.elapsed().as_secs_f64());
}
