//! The command line: Ceph's flags, and any Ceph option by its name.
//!
//! The flags that this program acts on itself are defined once, in [`Flags`]; help is generated from that definition.
//! Everything else that starts with `--` is a Ceph option and is handed to librados, which knows them all and refuses
//! the ones that do not exist. As with Ceph, dashes and underscores in option names are alike; `--name value`,
//! `--name=value`, `--flag` (true) and `--no-flag` (false) are understood; and the words of the environment variable
//! `CEPH_ARGS` come before those of the command line, so that the latter win.
//!
//! Unlike Ceph's daemon, `-c FILE` names a file, and that file is read, whatever it is called.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, Parser};

/// Type and id of the client that this daemon is, when nothing else is said.
const DEFAULT_NAME: &str = "client.admin";

/// Mirrors RBD images from a peer cluster into this one.
#[derive(Debug, Parser)]
#[command(name = "rbd-mirror", disable_version_flag = true, max_term_width = 100, after_help = AFTER_HELP)]
struct Flags {
    /// Run in the foreground, log to the usual file
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Run in the foreground, log to stderr
    #[arg(short = 'd')]
    debug: bool,
    /// Read configuration from FILE
    #[arg(short, long, value_name = "FILE", env = "CEPH_CONF")]
    conf: Option<PathBuf>,
    /// Cluster name: names the default configuration file and keyring
    #[arg(long, value_name = "NAME", default_value = "ceph")]
    cluster: String,
    /// Client name, for example client.rbd-mirror.a
    #[arg(short, long, value_name = "TYPE.ID", conflicts_with = "id")]
    name: Option<String>,
    /// Id part of the client name
    #[arg(short, long, visible_alias = "user", value_name = "ID")]
    id: Option<String>,
    /// Monitors to connect to
    #[arg(short, long, value_name = "ADDRESS[:PORT]")]
    mon_host: Option<String>,
    /// Keyring of the local cluster
    #[arg(short, long, value_name = "FILE")]
    keyring: Option<String>,
    /// File to log to
    #[arg(long, value_name = "FILE")]
    log_file: Option<String>,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<String>,
    /// Socket that answers `ceph --admin-daemon`
    #[arg(long, value_name = "PATH")]
    admin_socket: Option<String>,
    /// How much to log: 0 to 20
    #[arg(long, value_name = "LEVEL")]
    debug_rbd_mirror: Option<String>,
    /// User (name or number) to run as
    #[arg(long, value_name = "USER")]
    setuser: Option<String>,
    /// Group (name or number) to run as
    #[arg(long, value_name = "GROUP")]
    setgroup: Option<String>,
    /// Print the version
    #[arg(short, long)]
    version: bool,
}

const AFTER_HELP: &str =
    "Any other option of Ceph can be given by its name: --name=value, --name value, --flag or --no-flag.";

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Run with these options.
    Run(Options),
    /// Print this text to stdout and end.
    Print(String),
}

/// How to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Stay in the foreground (`-f` or `-d`).
    pub foreground: bool,
    /// Log to stderr (`-d`).
    pub log_to_stderr: bool,
    /// Configuration file that was named.
    pub conf_file: Option<PathBuf>,
    /// Cluster name.
    pub cluster: String,
    /// Client name with its type.
    pub name: String,
    /// Ceph options given on the command line, by name with underscores.
    pub ceph_options: BTreeMap<String, String>,
}

/// A command line that makes no sense: a sentence for the user.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

/// Reads the command line `args` (without the program's name), preceded by the words of `ceph_args`.
pub fn parse(ceph_args: &str, args: impl IntoIterator<Item = OsString>) -> Result<Request, UsageError> {
    let mut words: Vec<String> = ceph_args.split_whitespace().map(str::to_string).collect();
    for arg in args {
        let word =
            arg.into_string().map_err(|arg| UsageError(format!("argument {arg:?} is not valid UTF-8")))?;
        words.push(word);
    }
    let (flags, ceph_options) = split(words)?;
    let program = std::iter::once("rbd-mirror".to_string());
    // With Ceph, the last of several settings of one option wins; so it is here.
    let flags = match Flags::command().args_override_self(true).try_get_matches_from(program.chain(flags)) {
        Ok(matches) => <Flags as clap::FromArgMatches>::from_arg_matches(&matches),
        Err(e) => Err(e),
    };
    match flags {
        Ok(flags) if flags.version => Ok(Request::Print(format!("{}\n", version()))),
        Ok(flags) => resolve(flags, ceph_options).map(Request::Run),
        Err(e) if e.use_stderr() => Err(UsageError(e.to_string().trim_end().to_string())),
        Err(e) => Ok(Request::Print(e.to_string())),
    }
}

/// The line that `--version` prints.
pub fn version() -> String {
    format!("rbd-mirror version {}", env!("CARGO_PKG_VERSION"))
}

/// Separates the words for [`Flags`] from Ceph options.
fn split(words: Vec<String>) -> Result<(Vec<String>, BTreeMap<String, String>), UsageError> {
    let command = Flags::command();
    let known = |name: &str| {
        name == "help"
            || command.get_arguments().any(|arg| {
                arg.get_long() == Some(name)
                    || arg.get_visible_aliases().is_some_and(|all| all.contains(&name))
            })
    };
    let takes_value = |flag: char| {
        command.get_arguments().any(|arg| arg.get_short() == Some(flag) && arg.get_action().takes_values())
    };
    let mut flags = Vec::new();
    let mut ceph_options = BTreeMap::new();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix("--") else {
            let value_follows =
                word.len() == 2 && word.starts_with('-') && word.chars().nth(1).is_some_and(takes_value);
            flags.push(word);
            flags.extend(value_follows.then(|| words.next()).flatten());
            continue;
        };
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value.to_string())),
            None => (option, None),
        };
        if name.is_empty() {
            return Err(UsageError(format!("'{word}' is not an option; try --help")));
        }
        let dashed = name.replace('_', "-");
        if known(&dashed) {
            let boolean = command
                .get_arguments()
                .any(|a| a.get_long() == Some(&dashed) && !a.get_action().takes_values());
            let value = value.or_else(|| if boolean || dashed == "help" { None } else { words.next() });
            flags.push(value.map_or(format!("--{dashed}"), |value| format!("--{dashed}={value}")));
            continue;
        }
        let value = value.or_else(|| words.next_if(|next| is_value(next)));
        let name = name.replace('-', "_");
        match (value, name.strip_prefix("no_")) {
            (None, Some(negated)) => ceph_options.insert(negated.to_string(), "false".to_string()),
            (value, _) => ceph_options.insert(name, value.unwrap_or_else(|| "true".to_string())),
        };
    }
    Ok((flags, ceph_options))
}

/// True when a word behind `--name` is its value rather than the next option.
fn is_value(word: &str) -> bool {
    !word.starts_with('-') || word[1..].starts_with(|c: char| c.is_ascii_digit())
}

fn resolve(flags: Flags, mut ceph_options: BTreeMap<String, String>) -> Result<Options, UsageError> {
    let name = match (flags.name, flags.id) {
        (Some(name), _) => name,
        (None, Some(id)) => format!("client.{id}"),
        (None, None) => DEFAULT_NAME.to_string(),
    };
    if !name.split_once('.').is_some_and(|(kind, id)| kind == "client" && !id.is_empty()) {
        return Err(UsageError(format!("'{name}' is not the name of a client; it must be client.ID")));
    }
    let own = [
        ("mon_host", flags.mon_host),
        ("keyring", flags.keyring),
        ("log_file", flags.log_file),
        ("pid_file", flags.pid_file),
        ("admin_socket", flags.admin_socket),
        ("debug_rbd_mirror", flags.debug_rbd_mirror),
        ("setuser", flags.setuser),
        ("setgroup", flags.setgroup),
    ];
    for (option, value) in own {
        if let Some(value) = value {
            ceph_options.insert(option.to_string(), value);
        }
    }
    Ok(Options {
        foreground: flags.foreground || flags.debug,
        log_to_stderr: flags.debug,
        conf_file: flags.conf,
        cluster: flags.cluster,
        name,
        ceph_options,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Options {
        match parse("", line.split_whitespace().map(OsString::from)).unwrap() {
            Request::Run(options) => options,
            Request::Print(text) => panic!("'{line}' prints {text}"),
        }
    }

    #[test]
    fn cephs_flags_are_understood() {
        let options =
            run("-f -c /x/y.conf --cluster site-a -i rbd-mirror.a -m 127.0.0.1:1 -k /k --log_file=/l");
        assert!(options.foreground && !options.log_to_stderr);
        assert_eq!(options.conf_file, Some(PathBuf::from("/x/y.conf")));
        assert_eq!(options.cluster, "site-a");
        assert_eq!(options.name, "client.rbd-mirror.a");
        assert_eq!(options.ceph_options["mon_host"], "127.0.0.1:1");
        assert_eq!(options.ceph_options["keyring"], "/k");
        assert_eq!(options.ceph_options["log_file"], "/l");
        assert_eq!(run("-n client.x -d").name, "client.x");
        assert!(run("-d").log_to_stderr);
    }

    #[test]
    fn any_ceph_option_is_passed_on() {
        let options = run(
            "--rbd-mirror_leader-heartbeat-interval 1 --ms-type=async --debug-ms -1 --no-ms-die --log-flush -f",
        );
        assert!(options.foreground);
        assert_eq!(options.ceph_options["rbd_mirror_leader_heartbeat_interval"], "1");
        assert_eq!(options.ceph_options["ms_type"], "async");
        assert_eq!(options.ceph_options["debug_ms"], "-1");
        assert_eq!(options.ceph_options["ms_die"], "false");
        assert_eq!(options.ceph_options["log_flush"], "true");
    }

    #[test]
    fn the_command_line_wins_over_ceph_args_and_the_last_word_wins() {
        let args = ["--id", "c", "--debug-ms", "2"].map(OsString::from);
        let Ok(Request::Run(options)) = parse("--id b --debug-ms 1 --cluster z", args) else {
            panic!("refused")
        };
        assert_eq!(options.name, "client.c");
        assert_eq!(options.ceph_options["debug_ms"], "2");
        assert_eq!(options.cluster, "z");
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        for line in ["stray", "-x", "-n osd.1", "--name=", "--=3", "--conf"] {
            let refused = parse("", line.split_whitespace().map(OsString::from));
            let sentence = refused.expect_err(line).to_string();
            assert!(sentence.contains(' '), "{line}: {sentence}");
        }
    }

    #[test]
    fn help_and_version_print() {
        let print = |word: &str| match parse("", [OsString::from(word)]).unwrap() {
            Request::Print(text) => text,
            Request::Run(_) => panic!("{word} runs"),
        };
        assert!(print("--help").contains("--setuser"));
        assert!(print("-h").contains("--cluster"));
        assert_eq!(print("--version"), print("-v"));
        assert!(print("-v").starts_with("rbd-mirror version "));
    }
}
