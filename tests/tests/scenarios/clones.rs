//! Clones: copy-up after the first copy, both formats, chains, a parent in another pool, flattening.

use anyhow::{Result, ensure};
use tests::Extents;

use crate::common::{LIMIT, MIB, Stage, scattered, until};

/// Writes to parts of a clone's objects that the copy does not have yet arrive with the parent's bytes around them.
#[tokio::test(flavor = "multi_thread")]
async fn copied_up_objects_arrive_whole() -> Result<()> {
    let stage = Stage::set("clones").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    stage.clusters.create_pool("clones-other").await?;
    stage.clusters.connect_peers("clones-other", tests::two_clusters::Direction::Both).await?;
    let mut daemon = stage.daemon(b).await?;

    // parent (other pool) <- v2 <- grandchild, and parent <- v1
    let parent = "clones-other/parent";
    a.create_image(parent, 16 * MIB, &[]).await?;
    a.apply(parent, Extents::default().fill(0, 12 * MIB, 1)).await?;
    a.snap_create("clones-other/parent@base").await?;
    a.snap_protect("clones-other/parent@base").await?;
    a.apply(parent, Extents::default().random(&scattered(2, 50, 0..16 * MIB))).await?;
    a.clone_image("clones-other/parent@base", &stage.spec("v1"), 1).await?;
    a.clone_image("clones-other/parent@base", &stage.spec("v2"), 2).await?;
    a.apply(&stage.spec("v2"), Extents::default().random(&scattered(3, 20, 0..16 * MIB))).await?;
    a.snap_create(&stage.spec("v2@base")).await?;
    a.clone_image(&stage.spec("v2@base"), &stage.spec("grandchild"), 2).await?;
    a.rbd(&["mirror", "image", "enable", parent, "snapshot"]).await?;
    let clones = ["v1", "v2", "grandchild"];
    for name in clones {
        stage.enable(name).await?;
    }
    for name in clones {
        stage.first_copy(name).await?;
    }
    for round in 0..3_u64 {
        for (index, name) in clones.into_iter().enumerate() {
            let seed = 10 + round * 10 + index as u64;
            let changes = Extents::default().random(&scattered(seed, 3, 0..16 * MIB));
            a.apply(&stage.spec(name), changes).await?;
            a.snap_create(&format!("{}@round-{round}", stage.spec(name))).await?;
            a.apply(&stage.spec(name), Extents::default().random(&scattered(seed + 100, 2, 0..16 * MIB)))
                .await?;
            a.discard(&stage.spec(name), (round * 4 + index as u64) * MIB, 2 * MIB).await?;
            stage.sync(name).await?;
        }
    }
    // Shrunk below the overlap and grown again: what lies behind no longer comes from the parent.
    a.resize(&stage.spec("v2"), 5 * MIB).await?;
    a.resize(&stage.spec("v2"), 16 * MIB).await?;
    stage.sync("v2").await?;

    for name in ["grandchild", "v1"] {
        a.flatten(&stage.spec(name)).await?;
        a.discard(&stage.spec(name), MIB, 4 * MIB).await?;
        stage.sync(name).await?;
        let spec = stage.spec(name);
        until("the flattened copy to let go of its parent", async || {
            Ok(b.rbd_json(&["info", &spec]).await?["parent"].is_null())
        })
        .await?;
        stage.sync(name).await?;
    }
    // Nobody is a clone of it any more, here as there.
    let children = b.rbd_json(&["children", &stage.spec("v2@base")]).await?;
    ensure!(children.as_array().is_some_and(Vec::is_empty), "the parent's copy still has clones: {children}");
    daemon.stop(LIMIT).await?;
    for cluster in stage.clusters.both() {
        cluster.delete_pool("clones-other").await?;
    }
    stage.strike().await
}

/// The copy of a parent went astray, and is brought in line: its snapshots are made anew, and its clones become clones of
/// these.
#[tokio::test(flavor = "multi_thread")]
async fn clones_follow_a_parent_that_is_brought_in_line() -> Result<()> {
    let stage = Stage::set("astray-parents").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let mut daemon = stage.daemon(b).await?;
    for (mode, parent, clone) in [("snapshot", "sp", "sc"), ("journal", "jp", "jc")] {
        let (parent_spec, clone_spec) = (stage.spec(parent), stage.spec(clone));
        a.create_image(&parent_spec, 8 * MIB, &[]).await?;
        a.apply(&parent_spec, Extents::default().fill(0, 8 * MIB, 1)).await?;
        a.snap_create(&format!("{parent_spec}@base")).await?;
        a.clone_image(&format!("{parent_spec}@base"), &clone_spec, 2).await?;
        let content = a.sha256(&clone_spec).await?;
        for image in [parent, clone] {
            a.rbd(&["mirror", "image", "enable", &stage.spec(image), mode]).await?;
            stage.state(b, image, "up+replaying").await?;
        }
        let same = async || Ok(b.sha256(&clone_spec).await? == content);
        until("the clone to be copied", same).await?;

        // In the snapshot and the head alike: nothing was written since.
        let (copy, _) = stage.b.open(&parent_spec).await?;
        let object = copy.data_object(rbd::ObjectNumber(1));
        let spoil = b.tool("rados").args(["-p", &stage.pool, "put", &object, "-", "--offset", "4096"]);
        spoil.stdin(b"astray").run().await?;
        ensure!(b.sha256(&clone_spec).await? != content, "the clone does not show its parent");
        b.rbd(&["mirror", "image", "resync", &parent_spec]).await?;
        until("the parent to be brought in line", async || {
            Ok(b.sha256(&parent_spec).await? == a.sha256(&parent_spec).await?)
        })
        .await?;
        stage.state(b, parent, "up+replaying").await?;
        b.rbd(&["mirror", "image", "resync", &clone_spec]).await?;
        until("the clone to show the right parent", same).await?;
        stage.state(b, clone, "up+replaying").await?;
        until("the old snapshot of the parent to go", async || {
            let list = b.rbd_json(&["snap", "ls", "--all", &parent_spec]).await?;
            Ok(list.as_array().is_some_and(|all| all.iter().all(|snap| snap["namespace"]["type"] != "trash")))
        })
        .await?;
    }
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// A snapshot that was removed and is kept for its clones alone: what was copied before goes with the last clone at the
/// copy's site, whose removal by stock tools asks the daemon for it; a clone that was not copied before is an error.
#[tokio::test(flavor = "multi_thread")]
async fn snapshots_in_the_trash() -> Result<()> {
    let stage = Stage::set("trashed-parents").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let mut daemon = stage.daemon(b).await?;
    let in_trash = async |spec: &str| -> Result<usize> {
        let list = b.rbd_json(&["snap", "ls", "--all", spec]).await?;
        let trash = list.as_array().into_iter().flatten().filter(|snap| snap["namespace"]["type"] == "trash");
        Ok(trash.count())
    };
    for (mode, name) in [("snapshot", "sp"), ("journal", "jp")] {
        let parent = stage.spec(name);
        let [local, clone, late] =
            ["local", "clone", "late"].map(|kind| stage.spec(&format!("{name}-{kind}")));
        a.create_image(&parent, 8 * MIB, &[]).await?;
        a.apply(&parent, Extents::default().fill(0, 8 * MIB, 1)).await?;
        a.snap_create(&format!("{parent}@base")).await?;
        a.clone_image(&format!("{parent}@base"), &clone, 2).await?;
        a.clone_image(&format!("{parent}@base"), &late, 2).await?;
        for image in [&parent, &clone] {
            a.rbd(&["mirror", "image", "enable", image, mode]).await?;
            b.wait_mirror_state(image, "up+replaying", LIMIT).await?;
        }
        let content = b.sha256(&clone).await?;
        // A clone of the copy, as for a look at its data.
        b.clone_image(&format!("{parent}@base"), &local, 2).await?;
        a.snap_remove(&format!("{parent}@base")).await?;
        if mode == "snapshot" {
            a.mirror_snapshot(&parent).await?;
        }
        until("the snapshot to be in the trash", async || Ok(in_trash(&parent).await? == 1)).await?;

        a.rbd(&["mirror", "image", "enable", &late, mode]).await?;
        until("the late clone to be refused", async || {
            let status = a.mirror_status(&late).await?;
            let there = &status["peer_sites"][0];
            let text = there["description"].as_str().unwrap_or_default();
            Ok(there["state"] == "up+error" && text.contains("trash namespace") && !text.contains(','))
        })
        .await?;
        a.flatten(&late).await?;
        if mode == "snapshot" {
            a.mirror_snapshot(&late).await?;
        }
        b.wait_mirror_state(&late, "up+replaying", LIMIT).await?;
        until("the flattened clone to be copied", async || {
            Ok(b.sha256(&late).await? == a.sha256(&late).await?)
        })
        .await?;

        a.rbd(&["mirror", "image", "disable", &clone]).await?;
        until("the copy of the clone to go", async || {
            Ok(!b.rbd_json(&["ls", &stage.pool]).await?.to_string().contains("-clone"))
        })
        .await?;
        ensure!(b.sha256(&local).await? == content, "the clone of the copy changed");
        ensure!(in_trash(&parent).await? == 1, "a snapshot with a clone is gone");
        b.rbd(&["rm", "--no-progress", &local]).await?;
        until("the snapshot to go with its last clone", async || Ok(in_trash(&parent).await? == 0)).await?;
        stage.state(b, name, "up+replaying").await?;
    }
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
