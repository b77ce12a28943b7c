//! The grammar of the commands that `rbd` does not have.

use std::path::PathBuf;

use clap::Args;

use super::rbd::FormatArgs;

/// What a command works on: a pool, a namespace or an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct TargetArgs {
    /// Pool, namespace or image: POOL, POOL/NAMESPACE/ or POOL/[NAMESPACE/]IMAGE
    #[arg(value_name = "target")]
    pub target: Option<String>,
    /// Pool
    #[arg(short, long)]
    pub pool: Option<String>,
    /// Namespace
    #[arg(long)]
    pub namespace: Option<String>,
    /// Image
    #[arg(long)]
    pub image: Option<String>,
}

/// How the other site is reached. Without these, as the daemon does: with what `mirror pool peer bootstrap import` has
/// stored, or a configuration file that is named after the site.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Other site")]
pub struct PeerArgs {
    /// Configuration file of the other site's cluster
    #[arg(long, value_name = "FILE")]
    pub peer_conf: Option<PathBuf>,
    /// Client name there
    #[arg(long, value_name = "TYPE.ID")]
    pub peer_name: Option<String>,
    /// Keyring with the client's key there
    #[arg(long, value_name = "FILE")]
    pub peer_keyring: Option<PathBuf>,
    /// Seconds to wait for any one answer of the other site
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub peer_timeout: u64,
}

/// How a run is recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ReportArgs {
    /// Write a report (JSON) to FILE
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// How to print the outcome.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// `status`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct StatusArgs {
    /// Of what; all pools where mirroring is enabled when not given.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Show it anew again and again
    #[arg(short, long)]
    pub watch: bool,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub interval: u64,
    /// How to print.
    #[command(flatten)]
    pub format: FormatArgs,
}

/// `failover`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct FailoverArgs {
    /// Of what.
    #[command(flatten)]
    pub target: TargetArgs,
    /// The other site is lost: promote by force, from what has arrived
    #[arg(long)]
    pub emergency: bool,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Afterwards, compare all data by checksums
    #[arg(long, conflicts_with = "emergency")]
    pub verify: bool,
    /// Seconds to wait for the last changes to arrive
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub timeout: u64,
    /// How it is recorded.
    #[command(flatten)]
    pub report: ReportArgs,
    /// How the other site is reached.
    #[command(flatten)]
    pub peer: PeerArgs,
}

/// `failback`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct FailbackArgs {
    /// Of what.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,
    /// Give up writes that this site alone has: those after the point from which the other site went on by force
    #[arg(long)]
    pub discard_local: bool,
    /// Afterwards, compare all data by checksums
    #[arg(long)]
    pub verify: bool,
    /// Seconds to wait for the changes of the other site to arrive
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    pub timeout: u64,
    /// How it is recorded.
    #[command(flatten)]
    pub report: ReportArgs,
    /// How the other site is reached.
    #[command(flatten)]
    pub peer: PeerArgs,
}

/// `verify`
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct VerifyArgs {
    /// Of what.
    #[command(flatten)]
    pub target: TargetArgs,
    /// Make a new common point first: a mirror-snapshot, or in journal mode a snapshot that is removed afterwards
    #[arg(long)]
    pub new_point: bool,
    /// Seconds to wait for a new common point to arrive
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub timeout: u64,
    /// Compare at most so many objects a second
    #[arg(long, value_name = "N")]
    pub max_objects_per_second: Option<u64>,
    /// Have the OSDs of each site read at most so many bytes a second (with K, M, G or T: KiB and so on)
    #[arg(long, value_name = "BYTES")]
    pub max_bytes_per_second: Option<String>,
    /// Objects compared at the same time
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub parallel: usize,
    /// How it is recorded.
    #[command(flatten)]
    pub report: ReportArgs,
    /// How the other site is reached.
    #[command(flatten)]
    pub peer: PeerArgs,
}
