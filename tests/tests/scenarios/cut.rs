//! The network between the daemon and the remote cluster is cut, while everybody else reaches both.
//!
//! It happens in a network namespace of its own: this test program starts itself once more in there, with clusters of its
//! own on that loopback. The daemon runs as a user of its own, and while the network is cut, rules of routing send what
//! that user sends to the remote cluster's ports into a black hole. Namespace and rules go with the processes in it.

use std::collections::BTreeSet;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tests::two_clusters::CLUSTERS_VARIABLE;
use tests::{Cluster, Extents, MirrorDaemonOptions, Tool};

use crate::common::{LIMIT, MIB, Stage, TURN, ours, scattered};

/// As whom the daemon runs: nobody that the machine knows.
const DAEMON_UID: u32 = 54_321;

/// Order of the rules that cut, before that of the table with this machine's own addresses.
const CUT_PRIORITY: &str = "50";
const LOCAL_PRIORITY: &str = "100";

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_after_the_network_was_cut() -> Result<()> {
    let _turn = TURN.lock().await;
    let namespace = |program: &[&str]| {
        let mut command = tokio::process::Command::new("unshare");
        command.args(["--net", "--"]).args(program).env_remove(CLUSTERS_VARIABLE).kill_on_drop(true);
        command
    };
    if !namespace(&["true"]).stderr(Stdio::null()).status().await?.success() {
        println!("SKIPPED: no network namespace can be made here, which takes root (CAP_SYS_ADMIN)");
        return Ok(());
    }
    let this = std::env::current_exe()?;
    let this = this.to_str().context("this program's path is text")?;
    let there = [this, "--ignored", "--exact", "--nocapture", "cut::in_a_network_of_its_own"];
    let status = namespace(&there).status().await?;
    ensure!(status.success(), "in the network namespace: {status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test that makes a network namespace for it"]
async fn in_a_network_of_its_own() -> Result<()> {
    ip("link set lo up").await?;
    // What is asked first must not be the table that knows the way to 127.0.0.1.
    ip(&format!("rule add priority {LOCAL_PRIORITY} lookup local")).await?;
    ip("rule del priority 0").await?;
    let stage = Stage::set("cut").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let (spec, size) = (stage.spec("image"), 128 * MIB);
    a.create_image(&spec, size, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, size, 1)).await?;
    let options = MirrorDaemonOptions { uid: Some(DAEMON_UID), ..MirrorDaemonOptions::default() };
    let mut daemon = stage.daemon_with(&ours(), b, options).await?;
    stage.enable("image").await?;
    stage.first_copy("image").await?;
    let ports = ports(a).await?;
    let pid = daemon.pid();

    for while_copying in [false, true] {
        let what = || format!("the network was cut (while copying: {while_copying})");
        if !while_copying {
            cut(&ports).await?;
        }
        a.apply(&spec, Extents::default().random(&scattered(10, 300, 0..size)).fill(0, 100 * MIB, 2)).await?;
        let snap = a.mirror_snapshot(&spec).await?;
        if while_copying {
            stage.stop_half_way(&mut daemon, "image").await?;
            cut(&ports).await?;
            daemon.kill(tests::Signal::SIGCONT);
        }
        let status = stage.state(b, "image", "up+error").await.with_context(what)?;
        let told = status["description"].as_str().is_some_and(|d| d.contains("has not answered"));
        ensure!(told, "the status does not say that the remote cluster is silent: {status}");
        let held = b.mirror_snapshots(&spec).await?;
        ensure!(held.iter().all(|s| !s.complete || s.primary_snap_id != Some(snap)), "it was not cut: {held:?}");
        mend(&ports).await?;
        stage.arrived("image", snap).await.with_context(what)?;
        stage.state(b, "image", "up+replaying").await.with_context(what)?;
    }
    ensure!(daemon.alive() && daemon.pid() == pid, "the daemon did not go on by itself");
    stage.sync("image").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// The ports on which a cluster's daemons listen.
async fn ports(cluster: &Cluster) -> Result<BTreeSet<u16>> {
    let listening = Tool::new("ss").args(["-Hltnp"]).run().await?;
    let daemons: Vec<_> =
        cluster.daemons()?.into_iter().map(|(_, identity, _)| format!("pid={},", identity.pid)).collect();
    let theirs = listening.lines().filter(|line| daemons.iter().any(|daemon| line.contains(daemon)));
    let ports: Option<BTreeSet<u16>> =
        theirs.map(|line| line.split_whitespace().nth(3)?.rsplit_once(':')?.1.parse().ok()).collect();
    let ports = ports.with_context(|| format!("cannot read what ss says:\n{listening}"))?;
    ensure!(ports.len() >= 3, "monitor, manager and OSD listen on {ports:?} only");
    Ok(ports)
}

async fn cut(ports: &BTreeSet<u16>) -> Result<()> {
    each_rule("add", ports).await
}

async fn mend(ports: &BTreeSet<u16>) -> Result<()> {
    each_rule("del", ports).await
}

async fn each_rule(change: &str, ports: &BTreeSet<u16>) -> Result<()> {
    for port in ports {
        let whose = format!("uidrange {DAEMON_UID}-{DAEMON_UID} ipproto tcp dport {port}");
        ip(&format!("rule {change} priority {CUT_PRIORITY} {whose} blackhole")).await?;
    }
    Ok(())
}

async fn ip(command: &str) -> Result<()> {
    Tool::new("ip").args(command.split(' ')).run().await.map(drop).map_err(Into::into)
}
