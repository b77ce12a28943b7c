//! Completions for fish. Those of `clap_complete` end at the second level of commands, and ours go down to the fifth.
//!
//! A command is offered, or its options are, when the words that are no options (nor values of options) name it.

use std::fmt::Write;

use clap::{Arg, Command, ValueHint};

use super::PROGRAM;

const FUNCTIONS: &str = r#"# The words so far that are neither options nor values of options.
function __rbd_mirrorctl_words
    set -l value no
    for word in (commandline -opc)[2..-1]
        if test $value = yes
            set value no
        else if contains -- $word VALUED
            set value yes
        else if not string match -q -- '-*' $word
            echo $word
        end
    end
end

# True when these words are the command so far.
function __rbd_mirrorctl_at
    set -l words (__rbd_mirrorctl_words)
    test "$words" = "$argv"
end

# True when the command so far begins with these words.
function __rbd_mirrorctl_in
    set -l words (__rbd_mirrorctl_words)
    set -l length (count $argv)
    test $length -gt 0 -a (count $words) -ge $length
    and test "$words[1..$length]" = "$argv"
end

"#;

/// The completions for fish.
pub fn completions(definition: &Command) -> String {
    let mut valued = Vec::new();
    collect_valued(definition, &mut valued);
    valued.sort_unstable();
    valued.dedup();
    let mut text = format!("complete -c {PROGRAM} -f\n\n{}", FUNCTIONS.replace("VALUED", &valued.join(" ")));
    for global in
        definition.get_arguments().filter(|arg| arg.is_global_set() || arg.get_long() == Some("help"))
    {
        option(&mut text, "", global);
    }
    describe(&mut text, definition, &mut Vec::new());
    text
}

fn collect_valued(command: &Command, valued: &mut Vec<String>) {
    for arg in command.get_arguments().filter(|arg| arg.get_action().takes_values()) {
        let aliases = arg.get_visible_aliases().unwrap_or_default();
        valued.extend(arg.get_long().into_iter().chain(aliases).map(|long| format!("--{long}")));
        valued.extend(arg.get_short().map(|short| format!("-{short}")));
    }
    command.get_subcommands().for_each(|subcommand| collect_valued(subcommand, valued));
}

fn describe(text: &mut String, command: &Command, path: &mut Vec<String>) {
    let condition = |how: &str| format!("-n '__rbd_mirrorctl_{how} {}' ", path.join(" "));
    for subcommand in command.get_subcommands() {
        let about = quoted(&subcommand.get_about().map(ToString::to_string).unwrap_or_default());
        let names = std::iter::once(subcommand.get_name()).chain(subcommand.get_visible_aliases());
        for name in names {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "complete -c {PROGRAM} {}-a {name} -d {about}", condition("at"));
        }
    }
    if command.has_subcommands() {
        // Options of groups of commands are the global ones.
        descend(text, command, path);
        return;
    }
    for arg in command
        .get_arguments()
        .filter(|arg| !arg.is_global_set() && !arg.is_positional() && arg.get_long() != Some("help"))
    {
        option(text, &condition("in"), arg);
    }
}

fn descend(text: &mut String, command: &Command, path: &mut Vec<String>) {
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        for name in std::iter::once(subcommand.get_name()).chain(subcommand.get_visible_aliases()) {
            path.push(name.to_string());
            describe(text, subcommand, path);
            path.pop();
        }
    }
}

fn option(text: &mut String, condition: &str, arg: &Arg) {
    let _ = write!(text, "complete -c {PROGRAM} {condition}");
    let aliases = arg.get_visible_aliases().unwrap_or_default();
    for long in arg.get_long().into_iter().chain(aliases) {
        let _ = write!(text, "-l {long} ");
    }
    if let Some(short) = arg.get_short() {
        let _ = write!(text, "-s {short} ");
    }
    if arg.get_action().takes_values() {
        let values: Vec<String> =
            arg.get_possible_values().iter().map(|v| v.get_name().to_string()).collect();
        let is_file = arg.get_value_hint() == ValueHint::AnyPath
            || arg.get_value_names().is_some_and(|names| names.iter().any(|name| name == "FILE"));
        text.push_str(if is_file { "-r -F " } else { "-x " });
        if !values.is_empty() {
            let _ = write!(text, "-a {} ", quoted(&values.join(" ")));
        }
    }
    let _ = writeln!(text, "-d {}", quoted(&arg.get_help().map(ToString::to_string).unwrap_or_default()));
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
