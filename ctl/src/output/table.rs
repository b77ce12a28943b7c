//! Tables as Ceph's tools print them: columns padded with blanks, two blanks between them.
//!
//! Widths are counted in bytes, as Ceph counts them; [`Table::for_people`] counts characters instead.
//!
//! Reference: `src/common/TextTable.cc`.

use std::fmt;

/// A table.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    columns: usize,
    width: fn(&str) -> usize,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Table {
        let headings: Vec<String> = headings.iter().map(|heading| heading.to_string()).collect();
        Table { columns: headings.len(), rows: vec![headings], width: str::len }
    }

    /// A table with these headings that no script written for Ceph's tools reads.
    pub fn for_people(headings: &[&str]) -> Table {
        Table { width: |text| text.chars().count(), ..Table::new(headings) }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().take(self.columns).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell_width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| (self.width)(cell)).max()
        };
        let widths: Vec<usize> = (0..self.columns).map(|column| cell_width(column).unwrap_or(0)).collect();
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                let blanks = widths[column].saturating_sub((self.width)(cell));
                let gap = if column == 0 { "" } else { "  " };
                write!(f, "{gap}{cell}{:blanks$}", "")?;
            }
            writeln!(f)?;
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
        assert_eq!(table.to_string(), "A \née\n");
    }
}
