//! Brings the words of a command line into the order that the definition expects.
//!
//! `rbd` lets Ceph take its own options out of the line, wherever they stand, then looks for the words of the command
//! among those that are no options, and takes the command's options from anywhere. What comes out here is: the words of
//! the command, its options, `--`, all other words in their order.
//!
//! An option of Ceph that the definition does not name is one that librados knows. It also tells whether a value is to
//! follow: flags have one only when the next word reads like one.

use std::collections::BTreeMap;

use clap::Command;
use rados::OptionKind;

use crate::failure::{EXIT_USAGE, Failure};

/// A command line in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Arranged {
    /// The version is asked for.
    Version,
    /// Anything else.
    Words(Line),
}

/// Words for the definition, and what Ceph takes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Words for the definition.
    pub words: Vec<String>,
    /// Options of Ceph, by name with underscores.
    pub ceph_options: BTreeMap<String, String>,
    /// Read no configuration file.
    pub no_conf_file: bool,
}

/// One-letter options of Ceph that the definition does not name, and the options they stand for.
const CEPH_LETTERS: [(char, &str); 2] = [('M', "monmap"), ('r', "client_mountpoint")];

/// The words of an environment variable, as Ceph separates them.
pub fn environment(value: &str) -> impl Iterator<Item = String> + '_ {
    value.split_whitespace().map(str::to_string)
}

/// Arranges `words`.
pub fn arrange(definition: &Command, words: Vec<String>) -> Result<Arranged, Failure> {
    let options = Options::of(definition);
    let mut line = Line::default();
    let (mut flags, mut plain) = (Vec::new(), Vec::new());
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--" => plain.extend(words.by_ref()),
            "--version" | "-v" => return Ok(Arranged::Version),
            "--help" | "-h" => flags.push("--help".to_string()),
            "--no-config-file" | "--no_config_file" => line.no_conf_file = true,
            // Connections made by librados always ask the monitors; where that matters, the files win.
            "--no-mon-config" | "--no_mon_config" | "--mon-config" | "--mon_config" => {}
            "-f" | "--foreground" => {}
            "-d" => line.ceph_options.extend(to_stderr()),
            // A lone dash is a file name.
            "-" => plain.push(word),
            long if long.starts_with("--") => {
                long_option(&options, &word, &mut words, &mut flags, &mut line)?
            }
            short if short.starts_with('-') => {
                short_option(&options, &word, &mut words, &mut flags, &mut line)?
            }
            _ => plain.push(word),
        }
    }
    let command_words = path_length(definition, &plain);
    let rest = plain.split_off(command_words);
    line.words = plain;
    line.words.append(&mut flags);
    if !rest.is_empty() {
        line.words.push("--".to_string());
        line.words.extend(rest);
    }
    Ok(Arranged::Words(line))
}

type Words = std::iter::Peekable<std::vec::IntoIter<String>>;

fn long_option(
    options: &Options,
    word: &str,
    words: &mut Words,
    flags: &mut Vec<String>,
    line: &mut Line,
) -> Result<(), Failure> {
    let body = &word[2..];
    let (name, value) = match body.split_once('=') {
        Some((name, value)) => (name, Some(value.to_string())),
        None => (body, None),
    };
    // Ceph takes its own options with either; `rbd` its own with dashes only, but nobody could mean anything else.
    let dashed = name.replace('_', "-");
    if let Some(takes_value) = options.long(&dashed) {
        let value = match value {
            None if takes_value => Some(next_value(word, words)?),
            value => value,
        };
        flags.push(value.map_or(format!("--{dashed}"), |value| format!("--{dashed}={value}")));
        return Ok(());
    }
    let name = name.replace('-', "_");
    let (option, value) = match (rados::option_kind(&name), name.strip_prefix("no_")) {
        (Some(OptionKind::Value), _) => (name.as_str(), value.map_or_else(|| next_value(word, words), Ok)?),
        (Some(OptionKind::Flag), _) => {
            let value = value.or_else(|| words.next_if(|next| is_truth(next)));
            (name.as_str(), value.unwrap_or_else(|| "true".to_string()))
        }
        (None, Some(negated)) if rados::option_kind(negated) == Some(OptionKind::Flag) && value.is_none() => {
            (negated, "false".to_string())
        }
        _ => return Err(unknown(word)),
    };
    line.ceph_options.insert(option.to_string(), value);
    Ok(())
}

fn short_option(
    options: &Options,
    word: &str,
    words: &mut Words,
    flags: &mut Vec<String>,
    line: &mut Line,
) -> Result<(), Failure> {
    let mut letters = word[1..].chars();
    let letter = letters.next().unwrap_or_default();
    let attached = letters.as_str();
    let mut value = || if attached.is_empty() { next_value(word, words) } else { Ok(attached.to_string()) };
    match options.short(letter) {
        Some(true) => flags.extend([format!("-{letter}"), value()?]),
        Some(false) => flags.push(word.to_string()),
        None => match CEPH_LETTERS.iter().find(|(known, _)| *known == letter) {
            Some((_, option)) => _ = line.ceph_options.insert(option.to_string(), value()?),
            None => return Err(unknown(word)),
        },
    }
    Ok(())
}

fn next_value(word: &str, words: &mut Words) -> Result<String, Failure> {
    let missing = || Failure::new(EXIT_USAGE, format!("the option '{word}' needs a value"));
    words.next().ok_or_else(missing)
}

fn unknown(word: &str) -> Failure {
    let sentence = format!("there is no option '{word}', neither of this program nor of Ceph; try --help");
    Failure::new(EXIT_USAGE, sentence)
}

fn is_truth(word: &str) -> bool {
    matches!(word, "true" | "false" | "0" | "1")
}

/// What Ceph's `-d` means to a program that does not go to the background.
fn to_stderr() -> [(String, String); 3] {
    [("log_file", ""), ("log_to_stderr", "true"), ("err_to_stderr", "true")]
        .map(|(option, value)| (option.to_string(), value.to_string()))
}

/// How many of the words name a command.
fn path_length(definition: &Command, plain: &[String]) -> usize {
    // What follows the word help is a command, too, though the definition does not lead there.
    if plain.first().is_some_and(|word| word == "help") {
        return plain.len();
    }
    let mut command = definition;
    for (length, word) in plain.iter().enumerate() {
        match command.find_subcommand(word) {
            Some(deeper) => command = deeper,
            // A command that has only subcommands takes no words: let it say what it does not understand.
            None if command.has_subcommands() => return plain.len(),
            None => return length,
        }
    }
    plain.len()
}

/// All options of all commands; with each whether a value follows.
struct Options {
    long: BTreeMap<String, bool>,
    short: BTreeMap<char, bool>,
}

impl Options {
    fn of(definition: &Command) -> Options {
        let mut options = Options { long: BTreeMap::new(), short: BTreeMap::new() };
        options.collect(definition);
        options
    }

    fn collect(&mut self, command: &Command) {
        for argument in command.get_arguments().filter(|argument| !argument.is_positional()) {
            let takes_value = argument.get_action().takes_values();
            let aliases = argument.get_visible_aliases().unwrap_or_default();
            let names = argument.get_long().into_iter().chain(aliases);
            self.long.extend(names.map(|name| (name.to_string(), takes_value)));
            self.short.extend(argument.get_short().map(|letter| (letter, takes_value)));
        }
        command.get_subcommands().for_each(|subcommand| self.collect(subcommand));
    }

    fn long(&self, name: &str) -> Option<bool> {
        self.long.get(name).copied()
    }

    fn short(&self, letter: char) -> Option<bool> {
        self.short.get(&letter).copied()
    }
}
