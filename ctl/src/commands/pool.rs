//! `mirror pool enable|disable|info|status|promote|demote`

use control::{PoolOutcome, Progress};
use rbd::mirroring::MirrorMode;

use super::{set_site_name, show};
use crate::connection::Site;
use crate::failure::Failure;
use crate::grammar::Request;
use crate::grammar::rbd::PoolCommand;
use crate::output::{self, Bar};
use crate::spec::{self, Positionals};

/// Carries out a command about a pool or namespace.
pub async fn run(request: &Request, command: &PoolCommand) -> Result<(), Failure> {
    match command {
        PoolCommand::Enable { pool, mode, site: site_args, remote_namespace } => {
            let mut words = Positionals::new([&pool.pool_spec, mode]);
            let spec = spec::pool(pool, &mut words)?;
            let mode = enabled_mode(words.take())?;
            words.end()?;
            if mode == MirrorMode::InitOnly && remote_namespace.is_some() {
                return Err(Failure::invalid(
                    "--remote-namespace makes no sense with init-only: no image is mirrored",
                ));
            }
            let site = Site::connect(request).await?;
            let pool = site.pool(&spec).await?;
            let renamed = set_site_name(&site, site_args).await?;
            let before = pool.set_mode(mode, remote_namespace.as_deref()).await?;
            output::put(&match before {
                None if renamed => String::new(),
                None => format!("rbd: mirroring is already configured for {mode} mode\n"),
                Some(before @ (MirrorMode::Image | MirrorMode::Pool)) if mode.is_enabled() => {
                    format!("note: changing mirroring mode from {before} to {mode}\n")
                }
                Some(_) => String::new(),
            })
        }
        PoolCommand::Disable { pool } => {
            let mut words = Positionals::new([&pool.pool_spec]);
            let spec = spec::pool(pool, &mut words)?;
            words.end()?;
            let pool = Site::connect(request).await?.pool(&spec).await?;
            match pool.set_mode(MirrorMode::Disabled, None).await? {
                None => output::put("rbd: mirroring is already disabled\n"),
                Some(_) => Ok(()),
            }
        }
        PoolCommand::Info { pool, format, all } => {
            let mut words = Positionals::new([&pool.pool_spec]);
            let spec = spec::pool(pool, &mut words)?;
            words.end()?;
            let document = output::document(format)?;
            let site = Site::connect(request).await?;
            let pool = site.pool(&spec).await?;
            let (info, dialect) = (pool.info(*all).await?, show::Dialect::of(&site.cluster).await?);
            output::put(&show::pool_info(&info, !pool.namespace().is_empty(), *all, dialect, document))
        }
        PoolCommand::Status { pool, format, verbose } => {
            let mut words = Positionals::new([&pool.pool_spec]);
            let spec = spec::pool(pool, &mut words)?;
            words.end()?;
            let document = output::document(format)?;
            let site = Site::connect(request).await?;
            let status = site.pool(&spec).await?.status(*verbose).await?;
            let dialect = show::Dialect::of(&site.cluster).await?;
            output::put(&show::pool_status(&status, dialect, document))
        }
        PoolCommand::Promote { pool, force } => {
            let mut words = Positionals::new([&pool.pool_spec]);
            let spec = spec::pool(pool, &mut words)?;
            words.end()?;
            let pool = Site::connect(request).await?.pool(&spec).await?;
            let bar = Bar::new("promoting", "images");
            let outcome = pool.promote_all(*force, |progress| advance(&bar, &progress)).await?;
            bar.finish();
            finished(&outcome, "Promoted")
        }
        PoolCommand::Demote { pool } => {
            let mut words = Positionals::new([&pool.pool_spec]);
            let spec = spec::pool(pool, &mut words)?;
            words.end()?;
            let pool = Site::connect(request).await?.pool(&spec).await?;
            let bar = Bar::new("demoting", "images");
            let outcome = pool.demote_all(|progress| advance(&bar, &progress)).await?;
            bar.finish();
            finished(&outcome, "Demoted")
        }
        // Peers have modules of their own.
        PoolCommand::Peer(_) => Ok(()),
    }
}

fn enabled_mode(word: Option<String>) -> Result<MirrorMode, Failure> {
    match word.as_deref() {
        Some("image") => Ok(MirrorMode::Image),
        Some("pool") => Ok(MirrorMode::Pool),
        Some("init-only") => Ok(MirrorMode::InitOnly),
        Some(other) => {
            Err(Failure::invalid(format!("'{other}' is no mode; it must be image, pool or init-only")))
        }
        None => Err(Failure::invalid("no mode was given; it must be image, pool or init-only")),
    }
}

fn advance(bar: &Bar, progress: &Progress<'_>) {
    bar.set(progress.finished as u64, progress.total as u64);
}

/// Tells how many images were changed; fails with the error of the first image, by name, that could not be.
fn finished(outcome: &PoolOutcome, did: &str) -> Result<(), Failure> {
    output::put(&format!("{did} {} mirrored images\n", outcome.changed.len()))?;
    let Some(first) = outcome.first_error() else { return Ok(()) };
    for (_, error) in &outcome.failed {
        output::complain(&error.to_string());
    }
    let sentence = format!("{} of the images could not be changed; see above", outcome.failed.len());
    Err(Failure::new(first.errno(), sentence))
}
