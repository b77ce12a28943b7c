//! OSDs, monitors and connections come and go, and our client is blocklisted: work goes on by itself.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use tests::{Cluster, Extents, OsdEnd, Signal};

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

    blocklist_clients(b, &leader_address(b, &stage.pool).await?).await?;
    let snap = change().await?;
    stage.arrived("image", snap).await.context("our client was blocklisted at the local cluster")?;
    ensure!(daemon.alive() && daemon.pid() == pid, "the daemon did not start over by itself");
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// The address under which the leader of the pool holds its lock.
async fn leader_address(cluster: &Cluster, pool: &str) -> Result<String> {
    let mut address = None;
    until("a leader", async || {
        let locks = cluster.rados(&["-p", pool, "lock", "info", "rbd_mirror_leader", "rbd_lock"]).await?;
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

/// A daemon that stalls for longer than its watches last registers them anew. It keeps its connections, the leadership of
/// the pool, and the sessions of its images, of which each would have to find out what was written meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_watch_ends_no_session() -> Result<()> {
    let stage = Stage::set("stall").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let mut daemon = stage.daemon(b).await?;
    for mode in ["snapshot", "journal"] {
        let spec = stage.spec(mode);
        a.create_image(&spec, 16 * MIB, &[]).await?;
        a.apply(&spec, Extents::default().fill(0, 16 * MIB, 1)).await?;
        a.rbd(&["mirror", "image", "enable", &spec, mode]).await?;
    }
    stage.first_copy("snapshot").await?;
    for mode in ["snapshot", "journal"] {
        stage.state(b, mode, "up+replaying").await?;
    }
    let leader = leader_address(b, &stage.pool).await?;
    let mut owners = BTreeMap::new();
    for mode in ["snapshot", "journal"] {
        owners.insert(mode, lock_owner(b, &stage.spec(mode)).await?.context("the copy is not locked")?);
    }

    daemon.kill(Signal::SIGSTOP);
    let watched = async |spec: &str| -> Result<bool> {
        let status = b.rbd_json(&["status", spec]).await?;
        Ok(status["watchers"].as_array().is_some_and(|watchers| !watchers.is_empty()))
    };
    for mode in ["snapshot", "journal"] {
        until("the watch to be lost", async || Ok(!watched(&stage.spec(mode)).await?)).await?;
    }
    daemon.kill(Signal::SIGCONT);
    for mode in ["snapshot", "journal"] {
        until("the watch to be back", async || watched(&stage.spec(mode)).await).await?;
    }
    // The lock gets the cookie of the new watch; until then it has the one that was lost.
    for (mode, before) in &owners {
        let spec = stage.spec(mode);
        let mut owner = None;
        until("the lock to follow the watch", async || {
            owner = lock_owner(b, &spec).await?;
            Ok(owner.as_ref() != Some(before))
        })
        .await?;
        let owner = owner.with_context(|| format!("{spec} was given up"))?;
        ensure!(owner.0 == before.0, "{spec} is locked by {owner:?} and was by {before:?}");
    }
    let spec = stage.spec("snapshot");
    a.apply(&spec, Extents::default().random(&scattered(7, 100, 0..16 * MIB))).await?;
    stage.sync("snapshot").await?;
    ensure!(leader_address(b, &stage.pool).await? == leader, "the pool was started over");
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// The data of one image lies in placement groups that are inactive at the primary's site, and answer nothing: other images
/// are copied, and that one is when they are back.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_read_holds_up_no_other_one() -> Result<()> {
    let stage = Stage::set("inactive").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let data = "inactive-data";
    stage.clusters.create_pool(data).await?;
    a.create_image(&stage.spec("hung"), 128 * MIB, &["--data-pool", data]).await?;
    a.create_image(&stage.spec("other"), 32 * MIB, &[]).await?;
    for (name, size) in [("hung", 128 * MIB), ("other", 32 * MIB)] {
        a.apply(&stage.spec(name), Extents::default().fill(0, size, 1)).await?;
    }
    stage.enable("hung").await?;
    // As many copies as there are no OSDs for.
    for (setting, value) in [("size", "9"), ("min_size", "9")] {
        a.ceph(&["osd", "pool", "set", data, setting, value]).await?;
    }
    let mut daemon = stage.daemon(b).await?;
    until("the copy to be under way", async || {
        Ok(b.mirror_snapshots(&stage.spec("hung")).await.is_ok_and(|s| s.iter().any(|s| !s.complete)))
    })
    .await?;
    stage.enable("other").await?;
    stage.first_copy("other").await?;
    stage.sync("other").await?;
    ensure!(b.mirror_snapshots(&stage.spec("hung")).await?.iter().all(|s| !s.complete), "it was read");
    a.ceph(&["osd", "pool", "set", data, "min_size", "1"]).await?;
    stage.first_copy("hung").await?;
    daemon.stop(LIMIT).await?;
    a.delete_pool(data).await?;
    b.delete_pool(data).await?;
    stage.strike().await
}

/// The client that holds the exclusive lock of an image, and the cookie under which it does.
async fn lock_owner(cluster: &Cluster, spec: &str) -> Result<Option<(String, String)>> {
    let locks = cluster.rbd_json(&["lock", "ls", spec]).await?;
    let lock = locks.as_array().and_then(|locks| locks.first().cloned());
    let text = |lock: &serde_json::Value, key| lock[key].as_str().map(String::from);
    Ok(lock.and_then(|lock| text(&lock, "locker").zip(text(&lock, "id"))))
}

/// Told twice to end, in the midst of a copy: it ends immediately, and by itself, whatever threads of librados run.
#[tokio::test(flavor = "multi_thread")]
async fn told_twice_it_ends_immediately() -> Result<()> {
    let stage = Stage::set("ending-twice").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    a.create_image(&spec, 256 * MIB, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, 256 * MIB, 1)).await?;
    stage.enable("image").await?;
    for _ in 0..4 {
        let mut daemon = stage.daemon(b).await?;
        let spec = stage.spec("image");
        until("the copy to be under way", async || {
            Ok(b.mirror_snapshots(&spec).await.is_ok_and(|s| s.iter().any(|s| !s.complete)))
        })
        .await?;
        daemon.kill(Signal::SIGTERM);
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        let status = daemon.stop(LIMIT).await?;
        ensure!(status.code().is_some(), "it was killed by itself: {status}");
    }
    let mut daemon = stage.daemon(b).await?;
    stage.first_copy("image").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
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
