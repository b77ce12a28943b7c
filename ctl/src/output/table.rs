//! Tables as Ceph's tools print them: columns padded with blanks, two blanks between them.
//!
//! Widths are counted in bytes, and lines end with blanks, as Ceph's do; [`Table::for_people`] counts characters, and ends
//! lines with what they tell.
//!
//! Reference: `src/common/TextTable.cc`.

use std::fmt;

/// A table.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    columns: usize,
    for_people: bool,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Table {
        let headings: Vec<String> = headings.iter().map(|heading| heading.to_string()).collect();
        Table { columns: headings.len(), rows: vec![headings], for_people: false }
    }

    /// A table with these headings that no script written for Ceph's tools reads.
    pub fn for_people(headings: &[&str]) -> Table {
        Table { for_people: true, ..Table::new(headings) }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().take(self.columns).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: &str| if self.for_people { text.chars().count() } else { text.len() };
        let widest = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| width(cell)).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns).map(widest).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let blanks = widths[column].saturating_sub(width(cell));
                let gap = if column == 0 { "" } else { "  " };
                line += &format!("{gap}{cell}{:blanks$}", "");
            }
            writeln!(f, "{}", if self.for_people { line.trim_end() } else { line.as_str() })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["POOL", "IMAGE"]);
        table.row(["vms".to_string(), "disk-1".to_string()]);
        table.row(["images".to_string(), "é".to_string()]);
        assert_eq!(table.to_string(), "POOL    IMAGE \nvms     disk-1\nimages  é    \n");
        let mut table = Table::for_people(&["A"]);
        table.row(["ée".to_string()]);
        assert_eq!(table.to_string(), "A\née\n");
    }
}
