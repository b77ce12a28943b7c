//! Checks that every dependency has a licence that this project may be distributed with, and comes from crates.io.
//!
//! Exits with 1 and a line per offender otherwise. Part of `make check`.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// Licences that ask for no more than attribution.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

fn main() -> Result<ExitCode> {
    let output = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()))
        .args(["metadata", "--format-version", "1", "--locked"])
        .output()
        .context("cannot run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cannot read what cargo metadata says")?;

    let mut offenders = 0;
    for package in &metadata.packages {
        if let Some(fault) = fault(package) {
            eprintln!("{} {}: {fault}", package.name, package.version);
            offenders += 1;
        }
    }
    println!(
        "{} packages, {offenders} with a licence or origin that is not allowed",
        metadata.packages.len()
    );
    Ok(if offenders == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn fault(package: &Package) -> Option<String> {
    if let Some(source) = package.source.as_deref()
        && !source.starts_with("registry+")
    {
        return Some(format!("comes from {source}, not from a registry"));
    }
    match package.license.as_deref() {
        None => Some("names no licence".into()),
        Some(licence) if !allowed(licence) => Some(format!("its licence is {licence}")),
        Some(_) => None,
    }
}

/// True when a choice among the alternatives of an SPDX expression leaves only allowed licences.
fn allowed(expression: &str) -> bool {
    let expression = expression.replace(['(', ')'], " ").replace('/', " OR ");
    let every = |part: &str| part.split(" AND ").all(|licence| ALLOWED.contains(&licence.trim()));
    // Parentheses are dropped, so that `(A OR B) AND C` reads as `A OR (B AND C)`: demand that no part is a stranger.
    let strict = expression.contains(" AND ");
    let mut parts = expression.split(" OR ");
    if strict { parts.all(every) } else { parts.any(every) }
}

#[cfg(test)]
mod tests {
    use super::allowed;

    #[test]
    fn expressions_are_judged_by_what_may_be_chosen() {
        assert!(allowed("MIT OR Apache-2.0"));
        assert!(allowed("MIT/Apache-2.0"));
        assert!(allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(allowed("LGPL-2.1-or-later OR MIT"));
        assert!(!allowed("GPL-3.0-only"));
        assert!(!allowed("MIT AND GPL-3.0-only"));
    }
}
