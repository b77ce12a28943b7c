//! This site away: for so long that it is disconnected, struck out of the remote journal, or late on purpose.

use anyhow::{Context, Result, ensure};
use tests::{Cluster, Extents, LibrbdImage};

use super::stage::{clients, newest, wait_replayed};
use crate::common::{LIMIT, MIB, Stage, scattered, until};
use crate::failover::image_id;

const SIZE: u64 = 32 * MIB;

/// The id of the only mirror that is registered in an image's journal.
async fn mirror_id(cluster: &Cluster, spec: &str) -> Result<String> {
    let mirror = clients(cluster, spec).await?.1.context("this site is registered")?;
    Ok(mirror["id"].as_str().context("clients have ids")?.to_string())
}

/// A client that was disconnected stops with an error until a resync is asked for, or begins one by itself where the image
/// is configured so. One that was struck out cannot know what it lacks, and is brought in line. The copy keeps its id.
#[tokio::test(flavor = "multi_thread")]
async fn disconnected_and_struck_out() -> Result<()> {
    let stage = Stage::set("j-away").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let names = ["asks", "by-itself", "struck-out"];
    for (seed, name) in names.iter().enumerate() {
        stage.create_journalled(name, SIZE, &[]).await?;
        a.apply(&stage.spec(name), Extents::default().fill(0, SIZE, seed as u64)).await?;
        a.snap_create(&format!("{}@before", stage.spec(name))).await?;
        stage.enable_journal(name).await?;
    }
    let option = "conf_rbd_mirroring_resync_after_disconnect";
    a.rbd(&["image-meta", "set", &stage.spec("by-itself"), option, "true"]).await?;
    let mut daemon = stage.daemon(b).await?;
    let mut ids = Vec::new();
    for name in names {
        stage.state(b, name, "up+replaying").await?;
        stage.replayed(name).await.with_context(|| name.to_string())?;
        ids.push(image_id(b, &stage.spec(name)).await?);
    }
    // While it looks: told at once.
    let asks = stage.spec("asks");
    let disconnect = async |name: &str| {
        let id = mirror_id(a, &stage.spec(name)).await?;
        let args =
            ["journal", "client", "disconnect", "--pool", &stage.pool, "--image", name, "--client-id", &id];
        anyhow::Ok(a.rbd(&args).await?)
    };
    disconnect("asks").await?;
    let status = stage.state(b, "asks", "up+error").await?;
    ensure!(status["description"].as_str().is_some_and(|d| d.starts_with("disconnected")), "{status}");
    daemon.stop(LIMIT).await?;

    // While it is away.
    disconnect("by-itself").await?;
    let id = mirror_id(a, &stage.spec("struck-out")).await?;
    let unregister = ["rmomapkey", &format!("journal.{}", image_id(a, &stage.spec("struck-out")).await?)];
    let rados = ["-p", &stage.pool, unregister[0], unregister[1], &format!("client_{id}")];
    a.rados(&rados).await?;
    for (seed, name) in names.iter().enumerate() {
        let changes =
            Extents::default().random(&scattered(10 + seed as u64, 200, 0..SIZE)).zeroes(MIB, 5 * MIB);
        a.apply(&stage.spec(name), changes).await?;
        a.snap_create(&format!("{}@away", stage.spec(name))).await?;
    }
    let mut daemon = stage.daemon(b).await?;
    for name in ["by-itself", "struck-out"] {
        stage.state(b, name, "up+replaying").await.with_context(|| name.to_string())?;
        stage.replayed(name).await.with_context(|| name.to_string())?;
    }
    stage.state(b, "asks", "up+error").await?;
    b.rbd(&["mirror", "image", "resync", &asks]).await?;
    stage.state(b, "asks", "up+replaying").await?;
    for (name, id) in names.iter().zip(&ids) {
        a.apply(&stage.spec(name), Extents::default().random(&scattered(30, 50, 0..SIZE))).await?;
        stage.replayed(name).await.with_context(|| name.to_string())?;
        ensure!(image_id(b, &stage.spec(name)).await? == *id, "the copy of '{name}' was made anew");
    }
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// A planned failover that no daemon of the old primary was registered for: the new primary's journal has forgotten by
/// then that the one came from the other. Nothing is written before a resync is asked for, and nothing is lost by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_never_had_a_daemon_asks_for_a_resync_after_a_failover() -> Result<()> {
    let stage = Stage::set("j-late").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    stage.create_journalled("image", SIZE, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    stage.enable_journal("image").await?;
    let mut daemon = stage.daemon(b).await?;
    stage.state(b, "image", "up+replaying").await?;
    stage.replayed("image").await?;
    a.rbd(&["mirror", "image", "demote", &spec]).await?;
    until("the copy to be promotable", async || {
        Ok(b.rbd(&["mirror", "image", "promote", &spec]).await.is_ok())
    })
    .await?;
    daemon.stop(LIMIT).await?;
    for round in 0..3_u64 {
        b.apply(&spec, Extents::default().random(&scattered(round, 200, 0..SIZE)).zeroes(round * MIB, MIB))
            .await?;
        b.snap_create(&format!("{spec}@{round}")).await?;
    }
    let (id, held) = (image_id(a, &spec).await?, a.sha256(&spec).await?);
    let mut daemon = stage.daemon(a).await?;
    let status = a.wait_mirror_state(&spec, "up+error", LIMIT).await?;
    ensure!(status["description"].as_str().is_some_and(|d| d.starts_with("split-brain")), "{status}");
    ensure!(a.sha256(&spec).await? == held, "something was written to an image of unknown history");
    a.rbd(&["mirror", "image", "resync", &spec]).await?;
    a.wait_mirror_state(&spec, "up+replaying", LIMIT).await?;
    ensure!(image_id(a, &spec).await? == id, "a resync made the image anew");
    wait_replayed(b, a, &spec).await?;
    super::stage::expect_same(&stage.b, &stage.a, &spec).await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// `rbd_mirroring_replay_delay` holds entries back; taken away, they arrive at once.
#[tokio::test(flavor = "multi_thread")]
async fn entries_are_held_back_for_the_replay_delay() -> Result<()> {
    let stage = Stage::set("j-delay").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let (late, prompt) = (stage.spec("late"), stage.spec("prompt"));
    for name in ["late", "prompt"] {
        stage.create_journalled(name, SIZE, &[]).await?;
        a.apply(&stage.spec(name), Extents::default().fill(0, SIZE, 1)).await?;
        stage.enable_journal(name).await?;
    }
    let mut daemon = stage.daemon(b).await?;
    for name in ["late", "prompt"] {
        stage.state(b, name, "up+replaying").await?;
        stage.replayed(name).await?;
    }
    a.rbd(&["image-meta", "set", &late, "conf_rbd_mirroring_replay_delay", "3600"]).await?;
    stage.replayed("late").await?;
    let before = (newest(&clients(a, &late).await?.1.context("registered")?), b.sha256(&late).await?);
    for spec in [&late, &prompt] {
        a.apply(spec, Extents::default().random(&scattered(5, 100, 0..SIZE))).await?;
    }
    // The other image's entries are younger, and have arrived.
    stage.replayed("prompt").await?;
    let after = (newest(&clients(a, &late).await?.1.context("registered")?), b.sha256(&late).await?);
    ensure!(before == after, "entries came before their time: at {:?}, then {:?}", before.0, after.0);
    a.rbd(&["image-meta", "set", &prompt, "conf_rbd_mirroring_replay_delay", "0"]).await?;
    stage.replayed("prompt").await?;
    // The copy's own setting counts; it can only be changed there while nobody replays into it.
    daemon.stop(LIMIT).await?;
    let header = format!("rbd_header.{}", image_id(b, &late).await?);
    let key = "metadata_conf_rbd_mirroring_replay_delay";
    b.rados(&["-p", &stage.pool, "rmomapkey", &header, key]).await?;
    a.rbd(&["image-meta", "rm", &late, "conf_rbd_mirroring_replay_delay"]).await?;
    // Without one, that of its pool does.
    b.rbd(&["config", "pool", "set", &stage.pool, "rbd_mirroring_replay_delay", "3600"]).await?;
    a.apply(&prompt, Extents::default().random(&scattered(6, 100, 0..SIZE))).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.state(b, "late", "up+replaying").await?;
    stage.replayed("prompt").await?;
    ensure!(b.sha256(&late).await? == after.1, "entries came before the time that is set for the pool");
    daemon.stop(LIMIT).await?;
    b.rbd(&["config", "pool", "rm", &stage.pool, "rbd_mirroring_replay_delay"]).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.state(b, "late", "up+replaying").await?;
    stage.replayed("late").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// What a copy is known to hold from its sync point on stands beside it until the journal is committed up to there, and no
/// longer: another journal's entries might be taken for those.
#[tokio::test(flavor = "multi_thread")]
async fn the_marker_of_a_copy_goes_with_its_purpose() -> Result<()> {
    let stage = Stage::set("j-marker").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    stage.create_journalled("image", SIZE, &[]).await?;
    a.rbd(&["image-meta", "set", &spec, "conf_rbd_mirroring_replay_delay", "30"]).await?;
    // Somebody has the image open, and makes the sync point.
    let mut open = LibrbdImage::open(a, &spec).await?;
    open.burst(200, 4096, 16, 1, SIZE).await?;
    stage.enable_journal("image").await?;
    let mut daemon = stage.daemon(b).await?;
    stage.state(b, "image", "up+replaying").await?;
    let header = format!("rbd_header.{}", image_id(b, &spec).await?);
    let marked = async || -> Result<bool> {
        Ok(b.rados(&["-p", &stage.pool, "listxattr", &header]).await?.contains("rbd_mirror.first_copy"))
    };
    ensure!(marked().await?, "nothing tells what the copy holds, though entries of before are still to come");
    until("the marker of the copy to go", async || Ok(!marked().await?)).await?;
    open.close().await?;
    stage.replayed("image").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
