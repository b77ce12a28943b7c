//! Cutting a cluster off the network: its daemons run, but no packet reaches or leaves them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cluster::Cluster;
use crate::tool::Tool;

/// A cluster that is cut off; dropping this connects it again.
#[derive(Debug)]
pub struct Cut {
    table: String,
}

impl Cluster {
    /// Drops every TCP packet to and from the ports on which the cluster's daemons listen. What was connected stays so, as
    /// far as either end can tell. Needs root, and the package `nftables`.
    pub async fn cut_off(&self) -> Result<Cut> {
        let daemons = self.daemons()?;
        let sockets = Tool::new("ss").args(["-H", "-t", "-l", "-n", "-p"]).run().await?;
        let own = |line: &&str| daemons.iter().any(|(_, id, _)| line.contains(&format!("pid={},", id.pid)));
        let port = |line: &str| line.split_whitespace().nth(3)?.rsplit(':').next()?.parse::<u16>().ok();
        let ports: Vec<String> =
            sockets.lines().filter(own).filter_map(port).map(|port| port.to_string()).collect();
        ensure!(!ports.is_empty(), "no daemon of {} listens: {sockets}", self.name());
        let (table, ports) = (format!("mirror-test-{}", std::process::id()), ports.join(", "));
        let rules = format!(
            "table inet {table} {{\n chain output {{\n  type filter hook output priority 0;\n  \
             tcp dport {{ {ports} }} drop\n  tcp sport {{ {ports} }} drop\n }}\n}}\n"
        );
        nft(&["-f", "-"], &rules)?;
        Ok(Cut { table })
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Err(error) = nft(&["delete", "table", "inet", &self.table], "") {
            eprintln!("{error:#}; a cluster stays cut off");
        }
    }
}

fn nft(args: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new("nft")
        .args(args)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run nft; is the package nftables installed?")?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "nft {} failed: {}", args.join(" "), said.trim());
    Ok(())
}
