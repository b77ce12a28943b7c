//! A copy changes hands while writes to it are under way: an OSD with its data stands still, and meanwhile the daemon that
//! replays into it is asked to give up the pool, ended or killed, and another one goes on. What the first one had sent must
//! not come after what the second one writes.
//!
//! Some rounds with every run; `MIRROR_TEST_HANDOVERS=200` for as many as that, `MIRROR_TEST_SEED` to begin with another seed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Cluster, ClusterOptions, Extents, MirrorDaemon, MirrorDaemonOptions, OsdEnd, Signal};

use crate::common::{LIMIT, MIB, Stage, ours, until};

const SIZE: u64 = 4 * MIB;
/// The pool of the data, on an OSD of its own.
const DATA: &str = "handover-data";
/// That OSD; everything else lies on the other one.
const DATA_OSD: usize = 1;
/// Rounds, unless the environment says otherwise.
const ROUNDS: u64 = 2;

/// How the first daemon loses the pool.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// It is asked to release the leadership, and lives on.
    Released,
    /// The same, and then it stands still until the next daemon has written everything: what it has not sent yet, because the
    /// OSD is gone, it sends then.
    Asleep,
    /// It is told to end.
    Ended,
    /// It is killed.
    Killed,
}

#[tokio::test(flavor = "multi_thread")]
async fn late_writes_do_not_come_after_those_of_the_next_daemon() -> Result<()> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (rounds, first) =
        (number("MIRROR_TEST_HANDOVERS").unwrap_or(ROUNDS), number("MIRROR_TEST_SEED").unwrap_or(0));
    let stage =
        Stage::set_apart("handover", &ClusterOptions { osds: 2, ..ClusterOptions::default() }).await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    for cluster in [a, b] {
        cluster.create_pool(DATA).await?;
    }
    separate(b, &stage.pool).await?;
    let args = ["--data-pool", DATA, "--object-size", "256K"];
    stage.create_journalled("image", SIZE, &args).await?;
    let spec = stage.spec("image");
    a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    stage.enable_journal("image").await?;
    let mut daemons = [start(b, "first").await?, start(b, "second").await?];
    stage.state(b, "image", "up+replaying").await?;
    stage.replayed("image").await?;
    for seed in first..first + rounds {
        round(&stage, &spec, &mut daemons, seed).await.with_context(|| format!("seed {seed}"))?;
    }
    for daemon in &mut daemons {
        daemon.stop(LIMIT).await?;
    }
    stage.strike_apart().await
}

async fn round(stage: &Stage, spec: &str, daemons: &mut [MirrorDaemon; 2], seed: u64) -> Result<()> {
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let loss = [Loss::Asleep, Loss::Ended, Loss::Released, Loss::Killed][seed as usize % 4];
    let leading = leader(daemons).await?;
    // The same bytes of every object again and again, so that whatever comes late shows.
    let change = |step: u64| Extents::default().fill(0, SIZE, 1000 + 10 * seed + step);
    b.osd_signal(DATA_OSD, Signal::SIGSTOP)?;
    let moved = async {
        a.apply(spec, change(0)).await?;
        // Under way: sent, and not answered.
        tokio::time::sleep(Duration::from_millis(300 + 97 * (seed % 11))).await;
        lose(b, &mut daemons[leading], leading, loss).await?;
        until("the other daemon to lead", async || leads(&daemons[1 - leading]).await).await?;
        if matches!(loss, Loss::Asleep) {
            // It has given up by then whatever it gives up.
            tokio::time::sleep(Duration::from_secs(1)).await;
            daemons[leading].kill(Signal::SIGSTOP);
        }
        a.apply(spec, change(1)).await?;
        // Long enough for a session that takes the lock to write to the OSD, too.
        tokio::time::sleep(Duration::from_millis(1000 + 211 * (seed % 7))).await;
        anyhow::Ok(())
    };
    let moved = moved.await;
    if seed % 3 == 2 || matches!(loss, Loss::Asleep) {
        // What it was sent is lost with it, and is sent again.
        b.osd_stop(DATA_OSD, OsdEnd::Kill).await?;
        b.osd_start(DATA_OSD).await?;
    } else {
        b.osd_signal(DATA_OSD, Signal::SIGCONT)?;
    }
    moved?;
    stage.state(b, "image", "up+replaying").await?;
    stage.replayed("image").await?;
    if matches!(loss, Loss::Asleep) {
        daemons[leading].kill(Signal::SIGCONT);
    }
    // What comes later still is under way in the daemon that was first.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let same = a.sha256(spec).await? == b.sha256(spec).await?;
    ensure!(same, "{loss:?}: the copy differs");
    println!("seed {seed}: {loss:?}");
    Ok(())
}

/// Takes the pool away from a daemon.
async fn lose(b: &Cluster, daemon: &mut MirrorDaemon, which: usize, loss: Loss) -> Result<()> {
    match loss {
        Loss::Released | Loss::Asleep => {
            // The answer is empty, and so no JSON.
            daemon.ask("rbd mirror leader release").await.ok();
        }
        Loss::Ended => {
            daemon.stop(LIMIT).await?;
            *daemon = start(b, ["first", "second"][which]).await?;
        }
        Loss::Killed => {
            daemon.kill(Signal::SIGKILL);
            daemon.wait(LIMIT).await?;
            *daemon = start(b, ["first", "second"][which]).await?;
        }
    }
    Ok(())
}

async fn leads(daemon: &MirrorDaemon) -> Result<bool> {
    let Ok(status) = daemon.ask("rbd mirror status").await else { return Ok(false) };
    Ok(status["pool_replayers"][0]["leader"] == true)
}

/// Which of the two daemons leads.
async fn leader(daemons: &[MirrorDaemon; 2]) -> Result<usize> {
    let mut leading = None;
    until("a daemon to lead", async || {
        for (which, daemon) in daemons.iter().enumerate() {
            if leads(daemon).await? {
                leading = Some(which);
            }
        }
        Ok(leading.is_some())
    })
    .await?;
    leading.context("one leads")
}

async fn start(b: &Cluster, instance: &str) -> Result<MirrorDaemon> {
    let args = vec!["--debug-rbd-mirror=10".into()];
    let options = MirrorDaemonOptions { instance: instance.into(), args, ..MirrorDaemonOptions::default() };
    MirrorDaemon::spawn(&ours(), b, &options).await
}

/// Puts the data on an OSD of its own.
async fn separate(b: &Cluster, pool: &str) -> Result<()> {
    for (osd, class, pool) in [("osd.0", "others", pool), ("osd.1", "data", DATA)] {
        b.ceph(&["osd", "crush", "rm-device-class", osd]).await?;
        b.ceph(&["osd", "crush", "set-device-class", class, osd]).await?;
        b.ceph(&["osd", "crush", "rule", "create-replicated", class, "default", "osd", class]).await?;
        b.ceph(&["osd", "pool", "set", pool, "crush_rule", class]).await?;
    }
    b.wait_healthy(LIMIT).await
}
