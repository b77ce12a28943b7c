//! What the commands do.
//!
//! Each module carries out some subcommands of `rbd mirror`: it asks [`control`] and prints what `rbd` would print.

mod bootstrap;
mod image;
mod overview;
mod peer;
mod pool;
mod relocate;
mod schedule;
mod show;
mod verify;

use ::bootstrap::site_name;

use crate::connection::Site;
use crate::failure::Failure;
use crate::grammar::rbd::{Mirror, PeerCommand, PoolCommand, SiteArgs, SnapshotCommand};
use crate::grammar::{Command, Request, manual};
use crate::output;

/// Carries out a request.
pub async fn run(request: &Request) -> Result<(), Failure> {
    match &request.command {
        Command::Mirror(Mirror::Image(command)) => image::run(request, command).await,
        Command::Mirror(Mirror::Pool(PoolCommand::Peer(PeerCommand::Bootstrap(command)))) => {
            bootstrap::run(request, command).await
        }
        Command::Mirror(Mirror::Pool(PoolCommand::Peer(command))) => peer::run(request, command).await,
        Command::Mirror(Mirror::Pool(command)) => pool::run(request, command).await,
        Command::Mirror(Mirror::Snapshot(SnapshotCommand::Schedule(command))) => {
            schedule::run(request, command).await
        }
        Command::Completions { shell } => generated(|text| manual::completions(*shell, text)),
        Command::Man => generated(manual::page),
        Command::Verify(args) => verify::run(request, args).await,
        Command::Failover(args) => relocate::failover(request, args).await,
        Command::Failback(args) => relocate::failback(request, args).await,
        Command::Status(args) => overview::run(request, args).await,
    }
}

/// Prints what is made from the definition of the command line.
fn generated(write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) -> Result<(), Failure> {
    let mut text = Vec::new();
    write(&mut text).map_err(|e| Failure::io("make the text", &e))?;
    output::put(&String::from_utf8_lossy(&text))
}

/// Names this site, when the command line says so. Answers whether that changed anything.
async fn set_site_name(site: &Site, args: &SiteArgs) -> Result<bool, Failure> {
    let Some(name) = &args.site_name else { return Ok(false) };
    let before = site_name(&site.cluster).await?;
    ::bootstrap::set_site_name(&site.cluster, name).await?;
    Ok(before != *name)
}
