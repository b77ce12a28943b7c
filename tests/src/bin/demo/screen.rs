//! Writing to the terminal, or to whatever stands in its place: lines, tables, and tables that are drawn anew in place.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};

/// Goes to the start of the line `n` lines up.
fn up(n: usize) -> String {
    format!("\x1b[{n}F")
}

/// No line is broken in two, however narrow the terminal; a table drawn in place would be drawn too low.
const WRAP_OFF: &str = "\x1b[?7l";
const WRAP_ON: &str = "\x1b[?7h";
/// Clears from here to the end of the line.
const CLEAR_REST: &str = "\x1b[K";

/// Writes a line. A reader that has seen enough, such as `head`, is no failure.
pub fn say(line: impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Whether what is written can be drawn over.
pub fn draws_in_place() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// Draws lines; the next time, over the last ones.
#[derive(Debug, Default)]
pub struct Drawing {
    height: usize,
}

impl Drawing {
    /// Draws `lines` in place of those drawn before. There must never be fewer than before.
    pub fn draw(&mut self, lines: &[String]) {
        if !draws_in_place() {
            lines.iter().for_each(say);
            return;
        }
        let mut text = WRAP_OFF.to_owned();
        if self.height > 0 {
            text += &up(self.height);
        }
        for line in lines {
            text += &format!("{line}{CLEAR_REST}\n");
        }
        text += WRAP_ON;
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        self.height = lines.len();
    }
}

/// Rows as a table with as much room per column as it needs. Columns of which `right` is true are set flush right.
pub fn table(rows: &[Vec<String>], right: &[bool]) -> Vec<String> {
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    rows.iter()
        .map(|row| {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let width = width(column).unwrap_or(0);
                if right.get(column) == Some(&true) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            });
            format!("   {}", cells.collect::<Vec<_>>().join("  ").trim_end())
        })
        .collect()
}

/// Bytes for people: `512 MiB`, `1.5 GiB`, `800 KiB`.
pub fn bytes(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..0x400 => return format!("{bytes} B"),
        0x400..0x10_0000 => (1 << 10, "KiB"),
        0x10_0000..0x4000_0000 => (1 << 20, "MiB"),
        _ => (1_u64 << 30, "GiB"),
    };
    let value = bytes as f64 / unit as f64;
    if bytes.is_multiple_of(unit) { format!("{value:.0} {name}") } else { format!("{value:.1} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows =
            [vec!["image".to_owned(), "MiB".to_owned()], vec!["a-long-name".to_owned(), "7".to_owned()]];
        assert_eq!(table(&rows, &[false, true]), ["   image        MiB", "   a-long-name    7"]);
    }

    #[test]
    fn bytes_are_told_in_the_unit_that_fits() {
        assert_eq!(
            [0, 1023, 1536, 1 << 20, (1 << 30) - 1, 3 << 29].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "1 MiB", "1024.0 MiB", "1.5 GiB"]
        );
    }
}
