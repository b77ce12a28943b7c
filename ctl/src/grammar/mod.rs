//! The command line: what `rbd mirror …` takes, word for word, and this program's own commands.
//!
//! Everything is defined once, in the types of [`rbd`] and [`own`]; help, man page and shell completions ([`manual`]) are
//! made from that definition. [`words`] brings the words that were typed into the order that the definition expects,
//! since `rbd` takes options before, between and behind the words of a command, and any option of Ceph besides.
//!
//! Deliberate differences from `rbd`: `-h` shows the help of the command it stands with, and words that no one asks for
//! are refused, where `rbd` passes over some of them in silence.
//!
//! Reference: `src/tools/rbd/Shell.cc`, `src/tools/rbd/ArgumentTypes.cc`, `src/tools/rbd/action/Mirror*.cc`,
//! `src/common/ceph_argparse.cc`.

mod fish;
pub mod manual;
pub mod own;
pub mod rbd;
pub mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::failure::{EXIT_USAGE, Failure};

/// The name of this program.
pub const PROGRAM: &str = "rbd-mirrorctl";

/// Sets up, watches and fails over the mirroring of RBD images
#[derive(Debug, Parser)]
#[command(name = PROGRAM, disable_version_flag = true, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// The cluster, and who we are there.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const AFTER_HELP: &str = "\
Any option of Ceph can be given by its name: --name=value, --name value, --flag or --no-flag. \
The environment variables CEPH_CONF, CEPH_KEYRING and CEPH_ARGS mean what they mean to Ceph's tools.";

/// Which cluster to work on, as with all of Ceph's tools. The last of several settings wins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// Configuration file of the cluster
    #[arg(short, long, value_name = "FILE", global = true, overrides_with = "conf")]
    pub conf: Option<PathBuf>,
    /// Cluster name: names the default configuration file and keyring
    #[arg(long, value_name = "NAME", global = true, overrides_with = "cluster")]
    pub cluster: Option<String>,
    /// Id part of the client name
    #[arg(long, visible_alias = "user", value_name = "ID", global = true, overrides_with_all = ["id", "name"])]
    pub id: Option<String>,
    /// Client name, for example client.admin
    #[arg(short, long, value_name = "TYPE.ID", global = true, overrides_with_all = ["id", "name"])]
    pub name: Option<String>,
    /// Monitors to connect to
    #[arg(
        short,
        long = "mon-host",
        value_name = "ADDRESS[:PORT]",
        global = true,
        overrides_with = "mon_host"
    )]
    pub mon_host: Option<String>,
    /// File with the client's key alone
    #[arg(
        short = 'K',
        long,
        visible_alias = "secret",
        value_name = "FILE",
        global = true,
        overrides_with = "keyfile"
    )]
    pub keyfile: Option<String>,
    /// Keyring with the client's key
    #[arg(short, long, value_name = "FILE", global = true, overrides_with = "keyring")]
    pub keyring: Option<String>,
}

/// The commands.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// What `rbd mirror` does, word for word
    #[command(subcommand)]
    Mirror(rbd::Mirror),
    /// Show all mirrored images in one table: state, lag, rate, time left
    Status(own::StatusArgs),
    /// Make this site primary: in order, or, when the other site is lost, by force
    Failover(own::FailoverArgs),
    /// Give this site its role back after a failover to the other one
    Failback(own::FailbackArgs),
    /// Prove that copies equal their primaries, by checksums that the OSDs compute
    Verify(own::VerifyArgs),
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the man page
    Man,
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// Run this.
    Run(Box<Request>),
    /// Print this text and end.
    Print(String),
}

/// A command, and the cluster to run it on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The cluster.
    pub cluster: ClusterArgs,
    /// Other options of Ceph, by name with underscores.
    pub ceph_options: BTreeMap<String, String>,
    /// Read no configuration file.
    pub no_conf_file: bool,
    /// The command.
    pub command: Command,
}

/// Reads a command line (without the program's name), preceded by the words of the environment variable `CEPH_ARGS`.
pub fn parse(ceph_args: &str, args: impl IntoIterator<Item = String>) -> Result<Invocation, Failure> {
    let mut command = Cli::command();
    command.build();
    let words = words::environment(ceph_args).chain(args);
    let arranged = match words::arrange(&command, words.collect())? {
        words::Arranged::Version => return Ok(Invocation::Print(format!("{}\n", version()))),
        words::Arranged::Words(arranged) => arranged,
    };
    if arranged.words.is_empty() {
        return Ok(Invocation::Print(command.render_help().to_string()));
    }
    let matches =
        match command.try_get_matches_from(std::iter::once(PROGRAM.to_string()).chain(arranged.words)) {
            Ok(matches) => matches,
            Err(e) if e.use_stderr() => return Err(usage_failure(&e)),
            Err(e) => return Ok(Invocation::Print(e.to_string())),
        };
    let cli = Cli::from_arg_matches(&matches).map_err(|e| usage_failure(&e))?;
    Ok(Invocation::Run(Box::new(Request {
        cluster: cli.cluster,
        ceph_options: arranged.ceph_options,
        no_conf_file: arranged.no_conf_file,
        command: cli.command,
    })))
}

/// The line that `--version` prints.
pub fn version() -> String {
    format!("{PROGRAM} version {}", env!("CARGO_PKG_VERSION"))
}

/// What the parser has to say, in a sentence of ours where it is short of words.
fn usage_failure(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let said = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    let word = match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(word)) => word.as_str(),
        _ => "",
    };
    let sentence = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            format!("there is no command '{word}' there; {}", without_first_line(said))
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            format!("this is not a whole command yet\n\n{said}")
        }
        _ => said.to_string(),
    };
    Failure::new(EXIT_USAGE, sentence)
}

fn without_first_line(text: &str) -> &str {
    text.split_once('\n').map_or("", |(_, rest)| rest.trim_start())
}

#[cfg(test)]
mod tests;
