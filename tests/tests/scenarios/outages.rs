//! OSDs, monitors and connections come and go, and our client is blocklisted: work goes on by itself.

use anyhow::{Context, Result, ensure};
use tests::{Cluster, Extents, OsdEnd};

use crate::common::{LIMIT, MIB, Stage, scattered, until};

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_after_outages() -> Result<()> {
    let stage = Stage::set("outages").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    let size = 48 * MIB;
    a.create_image(&spec, size, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, size, 1)).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.enable("image").await?;
    stage.first_copy("image").await?;
    let pid = daemon.pid();
    let mut seed = 10;
    let mut change = async || -> Result<u64> {
        seed += 1;
        a.apply(&spec, Extents::default().random(&scattered(seed, 300, 0..size)).fill(0, 16 * MIB, seed))
            .await?;
        a.mirror_snapshot(&spec).await
    };

    let snap = change().await?;
    b.osd_stop(0, OsdEnd::Kill).await?;
    b.osd_start(0).await?;
    stage.arrived("image", snap).await.context("the local OSD was killed and came back")?;

    let snap = change().await?;
    a.osd_stop(0, OsdEnd::Kill).await?;
    a.osd_start(0).await?;
    stage.arrived("image", snap).await.context("the remote OSD was killed and came back")?;

    b.mon_restart().await?;
    a.mon_restart().await?;
    let snap = change().await?;
    stage.arrived("image", snap).await.context("both monitors were restarted")?;

    let snap = change().await?;
    a.freeze()?;
    let status = stage.state(b, "image", "up+error").await;
    a.thaw().await?;
    let status = status?;
    let told = status["description"].as_str().is_some_and(|d| d.contains("has not answered"));
    ensure!(told, "the status does not say that the remote cluster is silent: {status}");
    stage.arrived("image", snap).await.context("the remote cluster was frozen for a while")?;
    stage.state(b, "image", "up+replaying").await?;

    let cut = a.cut_off().await?;
    let status = stage.state(b, "image", "up+error").await;
    drop(cut);
    let status = status?;
    let told = status["description"].as_str().is_some_and(|d| d.contains("has not answered"));
    ensure!(told, "the status does not say that the remote cluster is silent: {status}");
    let snap = change().await?;
    stage.arrived("image", snap).await.context("the connection to the remote cluster was cut for a while")?;
    stage.state(b, "image", "up+replaying").await?;

    blocklist_clients(b, &daemon_address(b).await?).await?;
    let snap = change().await?;
    stage.arrived("image", snap).await.context("our client was blocklisted at the local cluster")?;
    ensure!(daemon.alive() && daemon.pid() == pid, "the daemon did not start over by itself");
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// The address under which the leader of the pool holds its lock.
async fn daemon_address(cluster: &Cluster) -> Result<String> {
    let mut address = None;
    until("a leader", async || {
        let locks =
            cluster.rados(&["-p", "outages", "lock", "info", "rbd_mirror_leader", "rbd_lock"]).await?;
        let info: serde_json::Value = serde_json::from_str(&locks)?;
        address = info["lockers"][0]["addr"].as_str().map(String::from);
        Ok(address.is_some())
    })
    .await?;
    address.context("a leader has an address")
}

async fn blocklist_clients(cluster: &Cluster, address: &str) -> Result<()> {
    cluster.blocklist_add(address).await?;
    Ok(())
}

/// SIGTERM ends the daemon within seconds, and leaves no lock, no watch and no blocklist entry behind.
#[tokio::test(flavor = "multi_thread")]
async fn it_ends_in_order() -> Result<()> {
    let stage = Stage::set("ending").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let blocklisted = b.blocklist().await?.len();
    let spec = stage.spec("image");
    a.create_image(&spec, 256 * MIB, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, 256 * MIB, 1)).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.enable("image").await?;
    until("the copy to be under way", async || {
        Ok(b.mirror_snapshots(&spec).await.is_ok_and(|s| !s.is_empty()))
    })
    .await?;
    let status = daemon.stop(std::time::Duration::from_secs(5)).await?;
    ensure!(status.success(), "it ended with {status}");
    ensure!(b.blocklist().await?.len() == blocklisted, "somebody was blocklisted");
    let locks = b.rbd_json(&["lock", "ls", &spec]).await?;
    ensure!(locks.as_array().is_none_or(Vec::is_empty), "the image is still locked: {locks}");
    let watchers = b.rbd_json(&["status", &spec]).await?;
    ensure!(
        watchers["watchers"].as_array().is_none_or(Vec::is_empty),
        "the image is still watched: {watchers}"
    );
    let mut daemon = stage.daemon(b).await?;
    stage.first_copy("image").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
