//! OSDs and connections of journal mode come and go, and our clients are blocklisted, while one image is replayed under a
//! running writer and another one is in the midst of its first copy: the statuses tell, and work goes on by itself.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::stamped::{Pattern, Writing};
use tests::{Cluster, Extents, MirrorDaemon, OsdEnd, Signal, StampedWriter};

use super::prefix::follows;
use super::stage::has_sync_point;
use crate::common::{LIMIT, MIB, Stage, scattered, until};

const PATTERN: Pattern = Pattern { seed: 5, blocks: 1024, batch_min: 1, batch_max: 20, discards: 1 };
/// Of an image in many small objects, so that its copy takes a while.
const SIZE: u64 = 64 * MIB;

#[derive(Debug, Clone, Copy)]
enum Outage {
    RemoteOsdKilled,
    RemoteFrozen,
    RemoteCutOff,
    LocalOsdKilled,
    BlocklistedAtRemote,
    BlocklistedAtLocal,
}

#[tokio::test(flavor = "multi_thread")]
async fn replay_and_first_copies_go_on_after_outages() -> Result<()> {
    let stage = Stage::set("j-outages").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let narrow = ["--journal-object-size", "256K", "--journal-splay-width", "2"];
    stage.create_journalled("steady", 4 * MIB, &narrow).await?;
    stage.enable_journal("steady").await?;
    let pause = Duration::from_millis(20);
    let writing = Writing { pattern: PATTERN, depth: 8, snap_every: 100, batches: 0, pause };
    let mut writer = StampedWriter::start(a, &stage.spec("steady"), &writing)?;
    let mut daemon = stage.daemon(b).await?;
    let pid = daemon.pid();
    stage.state(b, "steady", "up+replaying").await?;
    let outages = [
        Outage::RemoteOsdKilled,
        Outage::RemoteFrozen,
        Outage::RemoteCutOff,
        Outage::LocalOsdKilled,
        Outage::BlocklistedAtRemote,
        Outage::BlocklistedAtLocal,
    ];
    for outage in outages {
        one_outage(&stage, outage, &mut daemon, &mut writer).await.with_context(|| format!("{outage:?}"))?;
        writer.reach(writer.batch() + 1, LIMIT).await?;
        follows(&stage, "steady", &PATTERN, &mut writer).await.with_context(|| format!("{outage:?}"))?;
        ensure!(daemon.alive() && daemon.pid() == pid, "{outage:?} ended the daemon");
    }
    writer.stop(LIMIT).await?;
    stage.replayed("steady").await?;
    b.rbd(&["mirror", "image", "promote", "--force", &stage.spec("steady")]).await?;
    b.rbd(&["object-map", "check", "--no-progress", &stage.spec("steady")]).await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// Strikes while a first copy is under way, and sees to the end of that.
async fn one_outage(
    stage: &Stage,
    outage: Outage,
    daemon: &mut MirrorDaemon,
    writer: &mut StampedWriter,
) -> Result<()> {
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let image = format!("copied-{outage:?}");
    let spec = stage.spec(&image);
    stage.create_journalled(&image, SIZE, &["--object-size", "64K"]).await?;
    a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    a.snap_create(&format!("{spec}@user")).await?;
    a.apply(&spec, Extents::default().random(&scattered(2, 100, 0..SIZE))).await?;
    stage.enable_journal(&image).await?;
    until("the copy to be under way", async || has_sync_point(&stage.a, &spec).await).await?;
    // It stands still until the outage has begun.
    daemon.kill(Signal::SIGSTOP);
    ensure!(has_sync_point(&stage.a, &spec).await?, "the first copy was over before the outage");
    match outage {
        Outage::RemoteOsdKilled => {
            a.osd_stop(0, OsdEnd::Kill).await?;
            daemon.kill(Signal::SIGCONT);
            let told = tells_silence(stage, &image).await;
            a.osd_start(0).await?;
            told?;
        }
        Outage::RemoteFrozen => {
            a.freeze()?;
            daemon.kill(Signal::SIGCONT);
            let told = tells_silence(stage, &image).await;
            a.thaw().await?;
            told?;
        }
        Outage::RemoteCutOff => {
            let cut = a.cut_off().await?;
            daemon.kill(Signal::SIGCONT);
            let told = tells_silence(stage, &image).await;
            drop(cut);
            told?;
        }
        Outage::LocalOsdKilled => {
            b.osd_stop(0, OsdEnd::Kill).await?;
            daemon.kill(Signal::SIGCONT);
            // No status can be told there.
            let written = writer.reach(writer.batch() + 50, LIMIT).await;
            b.osd_start(0).await?;
            written?;
        }
        Outage::BlocklistedAtRemote => blocklist(stage, a, daemon).await?,
        Outage::BlocklistedAtLocal => blocklist(stage, b, daemon).await?,
    }
    for image in [&*image, "steady"] {
        stage.state(b, image, "up+replaying").await?;
    }
    stage.replayed(&image).await
}

/// Both images' statuses say that the remote cluster does not answer.
async fn tells_silence(stage: &Stage, image: &str) -> Result<()> {
    for image in [image, "steady"] {
        let status = stage.state(&stage.clusters.b, image, "up+error").await?;
        let told = status["description"].as_str().is_some_and(|d| d.contains("has not answered"));
        ensure!(told, "the status does not say that the remote cluster is silent: {status}");
    }
    Ok(())
}

/// Blocklists every client that watches the pool's mirroring at `cluster`: the only daemon's.
async fn blocklist(stage: &Stage, cluster: &Cluster, daemon: &mut MirrorDaemon) -> Result<()> {
    let told_before = log_tells(daemon)?;
    let watchers = cluster.rados(&["-p", &stage.pool, "listwatchers", "rbd_mirroring"]).await?;
    let addresses: Vec<_> =
        watchers.split_whitespace().filter_map(|word| word.strip_prefix("watcher=")).collect();
    ensure!(!addresses.is_empty(), "the daemon does not watch the pool's mirroring: {watchers}");
    for address in addresses {
        cluster.blocklist_add(address).await?;
    }
    daemon.kill(Signal::SIGCONT);
    until("the daemon to say that it was blocklisted", async || Ok(log_tells(daemon)? > told_before)).await
}

/// How often the daemon has said that it was blocklisted.
fn log_tells(daemon: &MirrorDaemon) -> Result<usize> {
    let log = std::fs::read(daemon.log())?;
    Ok(String::from_utf8_lossy(&log).matches("blocklisted").count())
}
