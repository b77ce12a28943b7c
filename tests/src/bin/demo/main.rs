//! `demo`: the whole job once, on two real Ceph clusters, for somebody who has never seen it.
//!
//! `demo up DIR` starts two clusters in DIR, mirrors a pool from one to the other with this project's daemon, shows how
//! the copies arrive, compares them, and leaves everything running. `demo down DIR` ends it all. What runs is known by
//! the records in DIR alone (see [`place`]), so an interrupted demo is ended like any other.
//!
//! Exit codes of `up`: 0 when every copy is equal, 1 when one isn't or anything else failed, 130 when interrupted.
#![forbid(unsafe_code)]

mod compared;
mod images;
mod live;
mod place;
mod screen;
mod tour;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use place::Place;
use screen::say;
use tour::Tour;

/// The exit code of a program that an interrupt ended, as shells have it.
const INTERRUPTED: u8 = 130;

/// Two real Ceph clusters, a pool mirrored between them, and a tour of it.
#[derive(Debug, Parser)]
#[command(name = "demo", version)]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start everything, show it, and leave it running; a demo that runs in DIR already is ended first
    Up {
        /// The folder for everything; it must not exist yet, or be empty, or hold an earlier demo
        dir: PathBuf,
        /// The daemon to show [default: rbd-mirror beside this program]
        #[arg(long, value_name = "PATH")]
        rbd_mirror: Option<PathBuf>,
    },
    /// End everything and remove the folder
    Down {
        /// The folder that was given to `up`
        dir: PathBuf,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match Cli::parse().action {
        Action::Up { dir, rbd_mirror } => up(dir, rbd_mirror).await,
        Action::Down { dir } => down(&Place::at(dir)).await.map(|()| ExitCode::SUCCESS),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("demo: {error:#}");
        ExitCode::FAILURE
    })
}

async fn up(dir: PathBuf, rbd_mirror: Option<PathBuf>) -> Result<ExitCode> {
    let program = match rbd_mirror {
        Some(program) => program,
        None => {
            std::env::current_exe().context("cannot tell where this program is")?.with_file_name("rbd-mirror")
        }
    };
    let program = program
        .canonicalize()
        .with_context(|| format!("there is no daemon {}; build it with `make build`", program.display()))?;
    let place = Place::at(dir);
    if place.holds_demo()? {
        say(format!("A demo is in {} already; it is ended first.", place.dir().display()));
        place.end().await?;
    }
    place.begin()?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let toured = tokio::select! {
        toured = Tour::new(&place, program).run() => toured,
        _ = interrupt.recv() => return Ok(interrupted(&place)),
        _ = terminate.recv() => return Ok(interrupted(&place)),
    };
    match toured {
        Ok(true) => Ok(ExitCode::SUCCESS),
        Ok(false) => Ok(ExitCode::FAILURE),
        Err(error) => {
            let (dir, ending) = (place.dir().display(), how_to_end(&place));
            eprintln!("\ndemo: {error:#}\n\ndemo: what runs in {dir} goes on, to be looked at; {ending}");
            Ok(ExitCode::FAILURE)
        }
    }
}

fn interrupted(place: &Place) -> ExitCode {
    say(format!("\nInterrupted. What runs in {} goes on; {}", place.dir().display(), how_to_end(place)));
    ExitCode::from(INTERRUPTED)
}

fn how_to_end(place: &Place) -> String {
    format!("`make demo-down DEMO_DIR={}` ends it", place.dir().display())
}

async fn down(place: &Place) -> Result<()> {
    let dir = place.dir().display();
    if !place.dir().exists() {
        say(format!("No demo is in {dir}: there is nothing to end."));
        return Ok(());
    }
    ensure!(place.holds_demo()?, "{dir} is empty: there is no demo in it");
    place.end().await?;
    say(format!("The demo has ended, and {dir} is gone."));
    Ok(())
}
