//! The man page and the shell completions, from the one definition of the command line.
//!
//! One page tells everything: a table of commands first, then each with its synopsis and options. The sections of a
//! single command come from `clap_mangen`; here they become subsections.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, PROGRAM, fish};

/// What the program is called in completions for bash.
const STAND_IN: &str = "rbd_mirrorctl";

/// Writes the completions for a shell.
pub fn completions(shell: Shell, out: &mut impl Write) -> io::Result<()> {
    let mut definition = Cli::command();
    if shell == Shell::Fish {
        definition.build();
        return out.write_all(fish::completions(&definition).as_bytes());
    }
    let mut text = Vec::new();
    if shell == Shell::Bash {
        // What is generated for a name with a dash contradicts itself (clap_complete 4.6); a name without one stands in.
        clap_complete::generate(shell, &mut definition, STAND_IN, &mut text);
        let text = String::from_utf8_lossy(&text);
        for line in text.lines() {
            match line.trim_start().starts_with("complete ") {
                true => writeln!(out, "{}", line.replace(&format!(" {STAND_IN}"), &format!(" {PROGRAM}")))?,
                false => writeln!(out, "{line}")?,
            }
        }
        return Ok(());
    }
    clap_complete::generate(shell, &mut definition, PROGRAM, &mut text);
    out.write_all(&text)
}

/// Writes the man page (roff).
pub fn page(out: &mut impl Write) -> io::Result<()> {
    let mut definition = Cli::command();
    definition.build();
    let title = Man::new(definition.clone()).section("8").manual("Ceph");
    title.render_title(out)?;
    title.render_name_section(out)?;
    title.render_synopsis_section(out)?;
    title.render_description_section(out)?;
    title.render_options_section(out)?;
    writeln!(out, ".SH COMMANDS")?;
    for command in leaves(&definition) {
        describe(command, out)?;
    }
    title.render_extra_section(out)?;
    writeln!(out, ".SH \"EXIT STATUS\"")?;
    writeln!(
        out,
        "0 on success, 1 when the command line makes no sense, otherwise the error number of what went wrong."
    )
}

/// Commands that do something, in the order of the definition.
fn leaves(command: &Command) -> Vec<&Command> {
    let inner: Vec<&Command> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
    if inner.is_empty() { vec![command] } else { inner.into_iter().flat_map(leaves).collect() }
}

fn describe(command: &Command, out: &mut impl Write) -> io::Result<()> {
    let whole_name = command.get_bin_name().unwrap_or_default();
    let name = whole_name.strip_prefix(PROGRAM).unwrap_or(whole_name).trim();
    writeln!(out, ".SS \"{name}\"")?;
    // What all commands have in common is told once, at the top.
    let own = command.clone().disable_help_flag(true).mut_args(|arg| {
        let global = arg.is_global_set();
        arg.hide(global)
    });
    let man = Man::new(own);
    let mut sections = Vec::new();
    man.render_synopsis_section(&mut sections)?;
    man.render_description_section(&mut sections)?;
    man.render_options_section(&mut sections)?;
    let text = String::from_utf8_lossy(&sections);
    let synopsis = whole_name.replace('-', "\\-");
    for line in text
        .lines()
        .filter(|line| !line.starts_with(".SH") && !line.starts_with(".ie") && !line.starts_with(".el"))
    {
        writeln!(out, "{line}")?;
        if line.contains(&synopsis) {
            writeln!(out, ".PP")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page_text() -> String {
        let mut out = Vec::new();
        page(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_page_tells_every_command_and_option() {
        let text = page_text().replace("\\-", "-");
        for words in [
            ".TH rbd-mirrorctl",
            ".SS \"mirror pool peer bootstrap import\"",
            "--token-path",
            "--pretty-format",
        ] {
            assert!(text.contains(words), "{words}");
        }
        assert!(text.contains(".SS \"failover\"") && text.contains("--emergency"));
        assert_eq!(text.matches("--keyring\\fR \\fI").count(), 1, "what is common is told once");
    }

    #[test]
    fn completions_know_commands_and_options() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut out = Vec::new();
            completions(shell, &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            for word in ["bootstrap", "failover", "skip-quiesce"] {
                assert!(text.contains(word), "{shell}: {word}");
            }
        }
    }
}
