//! The grammar of `rbd mirror …`: every subcommand, alias, option and positional argument, of Ceph 16 to 20.
//!
//! Positional arguments are optional to the parser, because options may stand in for them: with `--image`, the first
//! word behind `mirror image enable` is the mode. [`crate::spec`] tells which word is what.

use clap::{Args, Subcommand, ValueEnum};

/// What is mirrored.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Mirror {
    /// Single images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Whole pools and namespaces
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Mirror-snapshots
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

/// `mirror image …`
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum ImageCommand {
    /// Make an image the primary of a new pair: have it copied
    Enable {
        /// The image.
        #[command(flatten)]
        image: ImageArgs,
        /// How it is mirrored: journal (the default) or snapshot
        mode: Option<String>,
    },
    /// Stop mirroring an image; its copies are removed
    Disable {
        /// The image.
        #[command(flatten)]
        image: ImageArgs,
        /// Also when the image is a copy
        #[arg(long)]
        force: bool,
    },
    /// Make a copy the primary
    Promote {
        /// The image.
        #[command(flatten)]
        image: ImageArgs,
        /// Also when the other site has not demoted its image
        #[arg(long)]
        force: bool,
    },
    /// Make a primary image a copy
    Demote {
        /// The image.
        #[command(flatten)]
        image: ImageArgs,
    },
    /// Ask for a copy to be made equal to its primary again, whatever happened to it
    Resync {
        /// The image.
        #[command(flatten)]
        image: ImageArgs,
    },
    /// Take a mirror-snapshot of a primary image
    Snapshot {
        /// The image.
        #[command(flatten)]
        image: ImageArgs,
        /// Do not ask the image's users to hold still
        #[arg(long)]
        skip_quiesce: bool,
        /// Go on when one of them could not hold still
        #[arg(long)]
        ignore_quiesce_error: bool,
    },
    /// Show how the mirroring of an image does
    Status {
        /// The image.
        #[command(flatten)]
        image: ImageArgs,
        /// How to print.
        #[command(flatten)]
        format: FormatArgs,
    },
}

/// `mirror pool …`
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum PoolCommand {
    /// Enable mirroring in a pool or namespace
    Enable {
        /// The pool.
        #[command(flatten)]
        pool: PoolArgs,
        /// Which images are mirrored: image (those that are enabled one by one), pool (all that have a journal), or
        /// init-only (none here, but in namespaces)
        mode: Option<String>,
        /// The site.
        #[command(flatten)]
        site: SiteArgs,
        /// The namespace's name at the other site, when it is another one
        #[arg(long, value_name = "NAMESPACE")]
        remote_namespace: Option<String>,
    },
    /// Disable mirroring in a pool or namespace
    Disable {
        /// The pool.
        #[command(flatten)]
        pool: PoolArgs,
    },
    /// Show how mirroring is set up in a pool or namespace
    Info {
        /// The pool.
        #[command(flatten)]
        pool: PoolArgs,
        /// How to print.
        #[command(flatten)]
        format: FormatArgs,
        /// Also the peers' monitors and keys
        #[arg(long)]
        all: bool,
    },
    /// Show how mirroring does in a pool or namespace
    Status {
        /// The pool.
        #[command(flatten)]
        pool: PoolArgs,
        /// How to print.
        #[command(flatten)]
        format: FormatArgs,
        /// Also daemons and images
        #[arg(long)]
        verbose: bool,
    },
    /// Make all copies in a pool or namespace primaries
    Promote {
        /// The pool.
        #[command(flatten)]
        pool: PoolArgs,
        /// Also where the other site has not demoted its image
        #[arg(long)]
        force: bool,
    },
    /// Make all primary images in a pool or namespace copies
    Demote {
        /// The pool.
        #[command(flatten)]
        pool: PoolArgs,
    },
    /// A pool's peers
    #[command(subcommand)]
    Peer(PeerCommand),
}

/// `mirror pool peer …`
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum PeerCommand {
    /// Register a peer
    Add {
        /// The pool.
        #[command(flatten)]
        pool: PoolNameArgs,
        /// The other cluster: CLUSTER-NAME or CLIENT-NAME@CLUSTER-NAME
        #[arg(value_name = "remote-cluster-spec")]
        remote_cluster_spec: Option<String>,
        /// Client name at the other cluster
        #[arg(long, value_name = "TYPE.ID")]
        remote_client_name: Option<String>,
        /// Name of the other cluster
        #[arg(long, value_name = "NAME")]
        remote_cluster: Option<String>,
        /// Monitors of the other cluster
        #[arg(long, value_name = "ADDRESSES")]
        remote_mon_host: Option<String>,
        /// File with the client's key at the other cluster
        #[arg(long, value_name = "FILE")]
        remote_key_file: Option<String>,
        /// Which way data flows (rx-tx when not given)
        #[arg(long)]
        direction: Option<Direction>,
    },
    /// Strike a peer out
    Remove {
        /// The pool.
        #[command(flatten)]
        pool: PoolNameArgs,
        /// Uuid of the peer
        uuid: Option<String>,
    },
    /// Change what is known of a peer
    Set {
        /// The pool.
        #[command(flatten)]
        pool: PoolNameArgs,
        /// Uuid of the peer
        uuid: Option<String>,
        /// What to change: direction, site-name, client, mon-host or key-file
        key: Option<String>,
        /// What to change it to; for a direction: rx-only, tx-only or rx-tx
        value: Option<String>,
    },
    /// Tokens that introduce two sites to each other
    #[command(subcommand)]
    Bootstrap(BootstrapCommand),
}

/// `mirror pool peer bootstrap …`
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum BootstrapCommand {
    /// Print a token for the other site to import
    Create {
        /// The pool.
        #[command(flatten)]
        pool: PoolNameArgs,
        /// The site.
        #[command(flatten)]
        site: SiteArgs,
    },
    /// Import a token that the other site has made
    Import {
        /// The pool.
        #[command(flatten)]
        pool: PoolNameArgs,
        /// File with the token, or - for standard input
        #[arg(value_name = "token-path")]
        token: Option<String>,
        /// The site.
        #[command(flatten)]
        site: SiteArgs,
        /// File with the token, or - for standard input
        #[arg(long, value_name = "FILE")]
        token_path: Option<String>,
        /// Which way data flows (rx-tx when not given)
        #[arg(long)]
        direction: Option<Direction>,
    },
}

/// `mirror snapshot …`
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum SnapshotCommand {
    /// When mirror-snapshots are taken by themselves
    #[command(subcommand)]
    Schedule(ScheduleCommand),
}

/// `mirror snapshot schedule …`
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum ScheduleCommand {
    /// Add a schedule
    Add {
        /// For what.
        #[command(flatten)]
        level: LevelArgs,
        /// How often: a number and m, h or d
        interval: Option<String>,
        /// When to begin: an ISO 8601 time
        #[arg(value_name = "start-time")]
        start_time: Option<String>,
    },
    /// List schedules
    #[command(visible_alias = "ls")]
    List {
        /// For what.
        #[command(flatten)]
        level: LevelArgs,
        /// Also those of what is within
        #[arg(short = 'R', long)]
        recursive: bool,
        /// How to print.
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Remove schedules
    #[command(visible_alias = "rm")]
    Remove {
        /// For what.
        #[command(flatten)]
        level: LevelArgs,
        /// Only the one with this interval
        interval: Option<String>,
        /// Only the one with this beginning
        #[arg(value_name = "start-time")]
        start_time: Option<String>,
    },
    /// Show which images are due when
    Status {
        /// For what.
        #[command(flatten)]
        level: LevelArgs,
        /// How to print.
        #[command(flatten)]
        format: FormatArgs,
    },
}

/// An image, in one word or by options.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ImageArgs {
    /// Image: [POOL/[NAMESPACE/]]IMAGE
    #[arg(value_name = "image-spec")]
    pub image_spec: Option<String>,
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

/// A pool or namespace, in one word or by options.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct PoolArgs {
    /// Pool or namespace: POOL[/NAMESPACE]
    #[arg(value_name = "pool-spec")]
    pub pool_spec: Option<String>,
    /// Pool
    #[arg(short, long)]
    pub pool: Option<String>,
    /// Namespace
    #[arg(long)]
    pub namespace: Option<String>,
}

/// A pool, in one word or by an option.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct PoolNameArgs {
    /// Pool
    #[arg(value_name = "pool-name")]
    pub pool_name: Option<String>,
    /// Pool
    #[arg(short, long)]
    pub pool: Option<String>,
}

/// What a schedule is for: everything, a pool, a namespace or an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct LevelArgs {
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

/// How this site is called.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct SiteArgs {
    /// Name of this site, to be set
    #[arg(long, value_name = "NAME")]
    pub site_name: Option<String>,
}

/// How data is printed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct FormatArgs {
    /// Output format (plain when not given)
    #[arg(long)]
    pub format: Option<Format>,
    /// Lines and indentation for people (json and xml)
    #[arg(long)]
    pub pretty_format: bool,
}

/// Formats of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Plain,
    /// JSON.
    Json,
    /// XML.
    Xml,
}

/// Which way data flows between this site and a peer, as a new peer may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// From the peer to this site.
    RxOnly,
    /// Both ways.
    RxTx,
}
