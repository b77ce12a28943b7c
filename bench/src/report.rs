//! The table for people and the file for programs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::figures::{Figure, Target};
use crate::ground::Ground;

/// The figures as a table.
pub fn table(figures: &[Figure]) -> String {
    let head = ["figure", "ours", "Ceph's", "ours/Ceph's", "target", "reached"].map(str::to_owned);
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(figures.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 | 4 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
        if index == 0 {
            text += &format!("{}\n", "-".repeat(widths.iter().sum::<usize>() + 10));
        }
    }
    text
}

fn row(figure: &Figure) -> [String; 6] {
    let value = |value: Option<f64>| {
        value.map_or("-".to_owned(), |v| format!("{} {}", short(v), figure.measure.unit))
    };
    let target = match figure.measure.target {
        Target::RatioAtLeast(least) => format!("at least {least} x"),
        Target::RatioAtMost(most) => format!("at most {} x", short(most)),
        Target::AtLeast(least) => format!("at least {} {}", short(least), figure.measure.unit),
        Target::AtMost(most) => format!("at most {} {}", short(most), figure.measure.unit),
        Target::Told => String::new(),
    };
    let reached = figure.reached().map_or("", |reached| if reached { "yes" } else { "NO" });
    [
        figure.measure.name.to_owned(),
        value(figure.ours()),
        value(figure.ceph()),
        figure.ratio().map_or("-".to_owned(), short),
        target,
        reached.to_owned(),
    ]
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Writes the figures with every measurement, and what they were measured on.
pub async fn write_json(file: &Path, figures: &[Figure], ground: &Ground, took: Duration) -> Result<()> {
    let ceph = ground.a().tool("ceph").arg("--version").run().await?;
    let figures: Vec<_> = figures
        .iter()
        .map(|figure| {
            json!({
                "figure": figure,
                "ours_median": figure.ours(),
                "ceph_median": figure.ceph(),
                "ratio": figure.ratio(),
                "reached": figure.reached(),
            })
        })
        .collect();
    let all = json!({
        "ceph": ceph.trim(),
        "processors": std::thread::available_parallelism().map(usize::from).ok(),
        "quick": ground.quick,
        "took_s": took.as_secs_f64(),
        "figures": figures,
    });
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    std::fs::write(file, format!("{all:#}\n")).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::Measure;

    #[test]
    fn a_row_tells_whether_the_target_was_reached() {
        let measure = Measure { name: "time", unit: "s", target: Target::RatioAtMost(0.2) };
        let figure = |ours: Vec<f64>| Figure { measure, ours, ceph: vec![5.0] };
        let missed = table(&[figure(vec![1.5])]);
        assert!(missed.contains("1.50 s  5.00 s        0.300  at most 0.200 x       NO"), "{missed}");
        assert!(table(&[figure(vec![0.5])]).contains("yes"));
        assert!(!table(&[figure(vec![])]).contains("yes"));
    }
}
