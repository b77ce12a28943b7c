//! What happens to images while they are being copied: the snapshot goes away, mirroring is disabled, the daemon is killed
//! while it mends what another one left, the copy is promoted while it changes its size.
//!
//! A copy is caught in the middle by stopping the daemon (`SIGSTOP`) as soon as it fills a snapshot.

use anyhow::{Context, Result, ensure};
use rados::error::ResultExt;
use rbd::ObjectNumber;
use tests::{Cluster, DaemonKind, Extents, LibrbdImage, MirrorDaemon, Signal};

use crate::common::{LIMIT, MIB, Stage, until};
use crate::content;
use crate::failover::{image_id, newest_arrived, promoted_from};
use crate::lifecycle::exists;
use crate::repairs::lose_snapshot;

/// Large enough that a copy of most of it is caught before it is complete.
const SIZE: u64 = 192 * MIB;

/// User snapshots are called so while they are being filled; their id follows.
const PENDING: &str = ".mirror.pending.";

/// A full image of `a` that has been copied by our daemon, which is running.
async fn copied_image(stage: &Stage, image: &str) -> Result<MirrorDaemon> {
    let spec = stage.spec(image);
    stage.clusters.a.create_image(&spec, SIZE, &[]).await?;
    stage.clusters.a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    let daemon = stage.daemon(&stage.clusters.b).await?;
    stage.enable(image).await?;
    stage.first_copy(image).await?;
    Ok(daemon)
}

/// Changes most of an image of `a`, and takes a mirror-snapshot of it.
async fn change(stage: &Stage, image: &str, seed: u64) -> Result<u64> {
    let (a, spec) = (&stage.clusters.a, stage.spec(image));
    let changes = Extents::default().fill(0, SIZE - 16 * MIB, seed).zeroes(SIZE - 12 * MIB, 6 * MIB);
    a.apply(&spec, changes).await?;
    a.mirror_snapshot(&spec).await
}

/// The copy follows its primary as if nothing had happened, and is the one that it was.
async fn expect_following(stage: &Stage, image: &str, id: &str) -> Result<()> {
    let b = &stage.clusters.b;
    stage.state(b, image, "up+replaying").await?;
    stage.sync(image).await?;
    ensure!(image_id(b, &stage.spec(image)).await? == id, "the copy was made anew");
    Ok(())
}

/// The snapshot being copied goes away itself: it never counts as arrived, and the next one does.
#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_being_copied_is_removed() -> Result<()> {
    let stage = Stage::set("end-gone").await?;
    let b = &stage.clusters.b;
    let spec = stage.spec("image");
    let mut daemon = copied_image(&stage, "image").await?;
    let id = image_id(b, &spec).await?;

    let snap = change(&stage, "image", 2).await?;
    stage.stop_half_way(&mut daemon, "image").await?;
    let next = change(&stage, "image", 3).await?;
    lose_snapshot(&stage.a, &spec, snap).await?;
    daemon.kill(Signal::SIGCONT);
    let arrived = b.wait_copied(&spec, snap, LIMIT).await?;
    ensure!(
        arrived.primary_snap_id == Some(next),
        "a snapshot that is gone was called complete: {arrived:?}"
    );
    stage.expect_copied("image").await?;
    expect_following(&stage, "image", &id).await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// A user snapshot is removed at the primary while a copy fills its counterpart: with the daemon at work, and between the end
/// of one daemon and the start of the next. The counterpart is half filled, and never gets the name; all else arrives, also
/// the snapshot that is made under that name meanwhile, and the half-filled one goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_snapshot_is_removed_while_it_is_copied() -> Result<()> {
    let stage = Stage::set("user-snapshot-gone").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    // On a slow disk the OSD trims some objects in five seconds.
    a.ceph(&["config", "set", "osd", "osd_snap_trim_sleep", "0.001"]).await?;
    for (image, killed) in [("alive", false), ("killed", true)] {
        let spec = stage.spec(image);
        let at = |snapshot: &str| format!("{spec}@{snapshot}");
        a.create_image(&spec, 64 * MIB, &["--object-size", "256K"]).await?;
        let mut daemon = stage.daemon(b).await?;
        if killed {
            // A first copy that is killed this early is made anew: it is a delta that is taken up again.
            stage.enable(image).await?;
            stage.first_copy(image).await?;
        }
        for (seed, snapshot) in [(1, "before"), (2, "gone"), (3, "after")] {
            a.apply(&spec, Extents::default().fill(0, 48 * MIB, seed)).await?;
            a.snap_create(&at(snapshot)).await?;
        }
        a.apply(&spec, Extents::default().fill(16 * MIB, 48 * MIB, 4)).await?;
        if killed {
            a.mirror_snapshot(&spec).await?;
            stage.kill_half_way(daemon, image).await?;
            remove_and_trim(&stage, &spec, "gone").await?;
            a.snap_create(&at("gone")).await?;
            daemon = stage.daemon(b).await?;
        } else {
            stage.enable(image).await?;
            stage.stop_half_way(&mut daemon, image).await?;
            remove_and_trim(&stage, &spec, "gone").await?;
            a.snap_create(&at("gone")).await?;
            daemon.kill(Signal::SIGCONT);
        }
        let mut complete = None;
        until("the copy to be complete", async || {
            let (_, header) = stage.b.open(&spec).await?;
            let arrived =
                content::mirror_snapshots(&header).last().is_some_and(|(_, newest)| newest.complete);
            complete = arrived.then_some(header);
            Ok(complete.is_some())
        })
        .await?;
        let named = complete.is_some_and(|header| header.user_snapshot("gone").is_some());
        ensure!(!named, "{image}: a snapshot that was half filled got the name of the removed one");
        until("the half-filled snapshot to go", async || Ok(pending(b, &spec).await? == 0)).await?;
        stage.expect_copied(image).await.context(image)?;
        stage.sync(image).await.context(image)?;
        daemon.stop(LIMIT).await?;
        b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
        for checked in [&spec, &at("before"), &at("after"), &at("gone")] {
            b.rbd(&["object-map", "check", "--no-progress", checked]).await?;
        }
        let info = b.rbd_json(&["info", &spec]).await?;
        ensure!(info["flags"].as_array().is_some_and(Vec::is_empty), "{image} is flagged: {info}");
    }
    a.ceph(&["config", "rm", "osd", "osd_snap_trim_sleep"]).await?;
    stage.strike().await
}

/// Removes a user snapshot of an image of `a`, and waits until the OSDs have dropped what it alone held.
async fn remove_and_trim(stage: &Stage, spec: &str, snapshot: &str) -> Result<()> {
    let (image, header) = stage.a.open(spec).await?;
    let snap = header.user_snapshot(snapshot).with_context(|| format!("{spec} has no '{snapshot}'"))?.id;
    stage.clusters.a.snap_remove(&format!("{spec}@{snapshot}")).await?;
    let objects: Vec<_> =
        (0..header.object_count()).map(|object| image.data_object(ObjectNumber(object))).collect();
    until("the OSDs to trim a snapshot", async || {
        for object in &objects {
            let clones = image.data_ioctx().list_snaps(object).await.optional()?;
            if clones.is_some_and(|set| set.clones.iter().any(|clone| clone.snaps.contains(&snap))) {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await
}

/// Mirroring is disabled while the first copy, or a delta, is under way: the copy goes, and comes back when it is enabled
/// again.
#[tokio::test(flavor = "multi_thread")]
async fn mirroring_is_disabled_half_way() -> Result<()> {
    let stage = Stage::set("disabled").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    a.create_image(&spec, SIZE, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
    let mut daemon = stage.daemon(b).await?;
    for half_way_in in ["the first copy", "a delta"] {
        stage.enable("image").await?;
        if half_way_in == "a delta" {
            stage.first_copy("image").await?;
            change(&stage, "image", 2).await?;
        }
        stage.stop_half_way(&mut daemon, "image").await?;
        a.rbd(&["mirror", "image", "disable", &spec]).await?;
        daemon.kill(Signal::SIGCONT);
        until("the copy to go", async || Ok(!exists(b, &stage.pool, "image").await?))
            .await
            .with_context(|| format!("disabled in the middle of {half_way_in}"))?;
    }
    stage.enable("image").await?;
    stage.first_copy("image").await?;
    stage.sync("image").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// Killed again and again while it compares and mends a copy that it has taken over from Ceph's daemon, which loses what
/// is zeroed between two snapshots.
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_mends_what_cephs_daemon_left() -> Result<()> {
    let stage = Stage::set("takeover-killed").await?;
    let b = &stage.clusters.b;
    let spec = stage.spec("image");
    let mut daemon = copied_image(&stage, "image").await?;
    let id = image_id(b, &spec).await?;
    daemon.stop(LIMIT).await?;

    let mut theirs = stage.daemon_of(&DaemonKind::Ceph, b).await?;
    let snap = change(&stage, "image", 2).await?;
    b.wait_copied(&spec, snap, LIMIT).await.context("Ceph's turn")?;
    theirs.stop(LIMIT).await?;

    let snap = change(&stage, "image", 3).await?;
    for _ in 0..3 {
        let daemon = stage.daemon(b).await?;
        stage.kill_half_way(daemon, "image").await?;
    }
    let mut daemon = stage.daemon(b).await?;
    stage.arrived("image", snap).await?;
    expect_following(&stage, "image", &id).await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// Makes a user snapshot with the name that one has while a round is filling it. (The `rbd` of Ceph 16 does not live to
/// promote an image in such a round.) Another one has nearly such a name.
async fn plant_half_filled(cluster: &Cluster, spec: &str) -> Result<()> {
    for (name, beside) in [("kept", 1000), ("planted", 0)] {
        let snapshot = format!("{spec}@{name}");
        cluster.snap_create(&snapshot).await?;
        let all = cluster.rbd_json(&["snap", "ls", spec]).await?;
        let made = all.as_array().into_iter().flatten().find(|snap| snap["name"] == name);
        let id = made.and_then(|snap| snap["id"].as_u64()).context("the snapshot that was just made")?;
        cluster.snap_rename(&snapshot, &format!("{spec}@{PENDING}{}", id + beside)).await?;
    }
    Ok(())
}

/// How many user snapshots have a name that begins so.
async fn pending(cluster: &Cluster, spec: &str) -> Result<usize> {
    let snapshots = cluster.rbd_json(&["snap", "ls", spec]).await?;
    let names = snapshots.as_array().into_iter().flatten().filter_map(|snap| snap["name"].as_str());
    Ok(names.filter(|name| name.starts_with(PENDING)).count())
}

/// A client that uses an image, and the owner of the image's lock, which he is.
async fn user_of(cluster: &Cluster, spec: &str) -> Result<(LibrbdImage, String)> {
    let mut user = LibrbdImage::open(cluster, spec).await?;
    user.write(0, &[9; 4096]).await?;
    Ok((user, cluster.rbd(&["lock", "ls", spec]).await?))
}

/// The snapshot that looks half filled goes, the other one stays, and the user of the image works on.
async fn expect_whole_snapshots(
    cluster: &Cluster,
    spec: &str,
    user: Option<(LibrbdImage, String)>,
) -> Result<()> {
    until("the half-filled snapshot to be removed", async || Ok(pending(cluster, spec).await? == 1)).await?;
    let Some((mut user, owner)) = user else { return Ok(()) };
    ensure!(cluster.rbd(&["lock", "ls", spec]).await? == owner, "the lock was taken from its owner");
    user.write(MIB, &[9; 4096]).await?;
    user.close().await
}

/// The copy is promoted by force while it is being given another size: with the daemon killed, it has the size and the
/// content of the snapshot before; with the daemon alive, those of one that arrived whole. User snapshots that were half
/// filled go when there is a daemon, and whoever uses the image meanwhile is not disturbed.
#[tokio::test(flavor = "multi_thread")]
async fn forced_promotion_across_a_resize() -> Result<()> {
    let stage = Stage::set("forced-resize").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let (small, large) = (SIZE - 60 * MIB + 4096, SIZE + 16 * MIB);
    let cases = [
        ("grown", small, large, true),
        ("shrunk", large, small, true),
        ("shrunk-alive", large, small, false),
    ];
    for (name, from, to, killed) in cases {
        let spec = stage.spec(name);
        a.create_image(&spec, from, &[]).await?;
        a.apply(&spec, Extents::default().fill(0, from, 1)).await?;
        let mut daemon = stage.daemon(b).await?;
        stage.enable(name).await?;
        stage.first_copy(name).await?;
        let before = newest_arrived(b, &spec).await?;
        a.resize(&spec, to).await?;
        a.apply(&spec, Extents::default().fill(0, to, 2)).await?;
        a.mirror_snapshot(&spec).await?;
        if killed {
            stage.kill_half_way(daemon, name).await?;
        } else {
            stage.stop_half_way(&mut daemon, name).await?;
            daemon.kill(Signal::SIGCONT);
        }
        b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
        let promoted = promoted_from(&stage, &spec, before).await.with_context(|| name.to_string())?;
        if killed {
            ensure!(promoted == before, "{name}: promoted from {promoted}, not from {before}");
        }
        plant_half_filled(b, &spec).await?;
        let user = match name {
            "grown" => None,
            _ => Some(user_of(b, &spec).await?),
        };
        let cleaner = if killed { Some(stage.daemon(b).await?) } else { None };
        expect_whole_snapshots(b, &spec, user).await.with_context(|| name.to_string())?;
        if let Some(mut cleaner) = cleaner {
            cleaner.stop(LIMIT).await?;
        }
        b.rbd(&["object-map", "check", "--no-progress", &spec]).await?;
        for cluster in [a, b] {
            cluster.rbd(&["mirror", "image", "disable", &spec]).await?;
        }
    }
    stage.strike().await
}
