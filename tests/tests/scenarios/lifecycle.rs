//! Mirroring is disabled, images are removed, trashed, renamed and reconfigured: the copy follows.

use anyhow::{Context, Result, ensure};
use rbd::mirroring::{GlobalImageId, MirrorImage, MirrorImageMode, MirrorImageState, Mirroring};
use tests::{Cluster, Extents};

use crate::common::{LIMIT, MIB, Stage, ours, scattered, until};

pub async fn exists(cluster: &Cluster, pool: &str, image: &str) -> Result<bool> {
    let list = cluster.rbd_json(&["ls", pool]).await?;
    Ok(list.as_array().is_some_and(|names| names.iter().any(|name| name == image)))
}

/// With the daemon up and with it down: mirroring disabled, image removed, image moved to the trash.
#[tokio::test(flavor = "multi_thread")]
async fn copies_go_with_their_primaries() -> Result<()> {
    let stage = Stage::set("goings").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let names =
        ["disabled-up", "removed-up", "trashed-up", "disabled-down", "removed-down", "trashed-down", "kept"];
    let mut daemon = stage.daemon(b).await?;
    for name in names {
        a.create_image(&stage.spec(name), 8 * MIB, &[]).await?;
        a.apply(&stage.spec(name), Extents::default().random(&scattered(1, 20, 0..8 * MIB))).await?;
        a.snap_create(&format!("{}@user", stage.spec(name))).await?;
        stage.enable(name).await?;
    }
    for name in names {
        stage.first_copy(name).await?;
    }
    let go = async |kind: &str| -> Result<()> {
        let spec = |what: &str| stage.spec(&format!("{what}-{kind}"));
        a.rbd(&["mirror", "image", "disable", &spec("disabled")]).await?;
        a.rbd(&["snap", "purge", "--no-progress", &spec("removed")]).await?;
        a.rbd(&["rm", "--no-progress", &spec("removed")]).await?;
        a.rbd(&["trash", "mv", &spec("trashed")]).await?;
        Ok(())
    };
    go("up").await?;
    let gone = async |kind: &str| {
        until("copies to follow their primaries", async || {
            let mut left = 0;
            for what in ["disabled", "removed", "trashed"] {
                left += usize::from(exists(b, &stage.pool, &format!("{what}-{kind}")).await?);
            }
            let trash = b.rbd_json(&["trash", "ls", "--all", &stage.pool]).await?;
            Ok(left == 0 && trash.as_array().is_some_and(Vec::is_empty))
        })
        .await
    };
    gone("up").await?;
    daemon.stop(LIMIT).await?;
    go("down").await?;
    let mut daemon = stage.daemon(b).await?;
    gone("down").await?;
    ensure!(exists(b, &stage.pool, "kept").await?, "an image that stayed lost its copy");
    stage.sync("kept").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// The image is renamed; metadata, features and snapshot limit change.
#[tokio::test(flavor = "multi_thread")]
async fn names_metadata_and_features_follow() -> Result<()> {
    let stage = Stage::set("properties").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let old = stage.spec("old");
    a.create_image(&old, 8 * MIB, &[]).await?;
    a.rbd(&["image-meta", "set", &old, "color", "red"]).await?;
    a.rbd(&["image-meta", "set", &old, "gone", "soon"]).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.enable("old").await?;
    stage.first_copy("old").await?;

    let new = stage.spec("new");
    a.rbd(&["rename", &old, &new]).await?;
    a.rbd(&["image-meta", "set", &new, "color", "blue"]).await?;
    a.rbd(&["image-meta", "rm", &new, "gone"]).await?;
    a.rbd(&["feature", "disable", &new, "object-map"]).await?;
    a.rbd(&["snap", "limit", "set", "--limit", "40", &new]).await?;
    a.apply(&new, Extents::default().random(&scattered(1, 20, 0..8 * MIB))).await?;
    let snap = a.mirror_snapshot(&new).await?;
    until("the copy to be renamed", async || exists(b, &stage.pool, "new").await).await?;
    stage.arrived("new", snap).await?;
    until("metadata and features to follow", async || {
        let metadata = b.rbd_json(&["image-meta", "ls", &new]).await?;
        let info = b.rbd_json(&["info", &new]).await?;
        let features: Vec<_> =
            info["features"].as_array().into_iter().flatten().filter_map(|f| f.as_str()).collect();
        Ok(metadata["color"] == "blue" && metadata["gone"].is_null() && !features.contains(&"object-map"))
    })
    .await?;
    ensure!(!exists(b, &stage.pool, "old").await?, "the old name is still there");

    a.rbd(&["feature", "enable", &new, "object-map", "fast-diff"]).await?;
    a.rbd(&["object-map", "rebuild", "--no-progress", &new]).await?;
    a.apply(&new, Extents::default().random(&scattered(2, 20, 0..8 * MIB))).await?;
    stage.sync("new").await?;
    a.apply(&new, Extents::default().random(&scattered(3, 20, 0..8 * MIB))).await?;
    stage.sync("new").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// Pools and namespaces that come later are found; an image of the same name is in each of them.
#[tokio::test(flavor = "multi_thread")]
async fn pools_and_namespaces_that_come_later() -> Result<()> {
    let stage = Stage::set("early").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let mut daemon = stage.daemon(b).await?;
    a.create_image("early/image", 8 * MIB, &[]).await?;
    stage.enable("image").await?;
    stage.first_copy("image").await?;

    stage.clusters.create_pool("late").await?;
    stage.clusters.connect_peers("late", tests::two_clusters::Direction::Both).await?;
    for cluster in stage.clusters.both() {
        cluster.rbd(&["namespace", "create", "late/inner"]).await?;
        cluster.rbd(&["mirror", "pool", "enable", "late/inner", "image"]).await?;
    }
    for (seed, spec) in ["late/image", "late/inner/image"].into_iter().enumerate() {
        a.create_image(spec, 8 * MIB, &[]).await?;
        a.apply(spec, Extents::default().random(&scattered(seed as u64, 30, 0..8 * MIB))).await?;
        a.rbd(&["mirror", "image", "enable", spec, "snapshot"]).await?;
        let snap = a.newest_primary_snapshot(spec).await?;
        b.wait_copied(spec, snap, LIMIT).await?;
        crate::common::expect_copy_of(&stage.a, &stage.b, spec).await?;
    }
    a.rbd(&["mirror", "image", "disable", "late/inner/image"]).await?;
    until("a copy in a namespace to go", async || Ok(!exists(b, "late/inner", "image").await?)).await?;
    ensure!(exists(b, "late", "image").await?, "an image of the same name went with it");
    daemon.stop(LIMIT).await?;
    for cluster in stage.clusters.both() {
        cluster.delete_pool("late").await?;
    }
    stage.strike().await
}

/// With `rbd_mirroring_delete_delay` copies wait in the trash, from where they can be taken back; when their time has
/// come, they are removed.
#[tokio::test(flavor = "multi_thread")]
async fn copies_wait_in_the_trash() -> Result<()> {
    let stage = Stage::set("trash").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let daemon = async |delay_s: u32| {
        stage.daemon_with(&ours(), b, &[format!("--rbd-mirroring-delete-delay={delay_s}")]).await
    };
    // `--long` tells more, but opens every image, which fails on one that is being removed.
    let trash = async |more: &[&str]| -> Result<Vec<serde_json::Value>> {
        let list = b.rbd_json(&[&["trash", "ls", "--all", &stage.pool], more].concat()).await?;
        Ok(list.as_array().cloned().unwrap_or_default())
    };
    let copied = async |name: &str| -> Result<()> {
        a.create_image(&stage.spec(name), 8 * MIB, &[]).await?;
        a.apply(&stage.spec(name), Extents::default().random(&scattered(1, 50, 0..8 * MIB))).await?;
        stage.enable(name).await?;
        stage.first_copy(name).await
    };
    let mut patient = daemon(3600).await?;
    copied("mistake").await?;
    a.rbd(&["mirror", "image", "disable", &stage.spec("mistake")]).await?;
    until("the copy to be in the trash", async || Ok(trash(&[]).await?.len() == 1)).await?;
    let entry = trash(&["--long"]).await?.remove(0);
    ensure!(entry["name"] == "mistake" && entry["source"] == "MIRRORING", "{entry}");
    ensure!(entry["status"].as_str().is_some_and(|status| status.starts_with("protected until")), "{entry}");
    ensure!(!exists(b, &stage.pool, "mistake").await?, "it is in two places");
    patient.stop(LIMIT).await?;

    // A daemon that comes later, and would not have it wait, leaves it alone, too.
    let mut hasty = daemon(2).await?;
    copied("doomed").await?;
    a.rbd(&["mirror", "image", "disable", &stage.spec("doomed")]).await?;
    until("the copy to leave the directory", async || Ok(!exists(b, &stage.pool, "doomed").await?)).await?;
    until("the copy to be removed", async || {
        Ok(trash(&[]).await?.iter().all(|entry| entry["name"] == "mistake"))
    })
    .await?;
    let id = entry["id"].as_str().context("what is in the trash has an id")?;
    b.rbd(&["trash", "restore", &stage.spec(id)]).await?;
    let (theirs, ours) = (a.sha256(&stage.spec("mistake")).await?, b.sha256(&stage.spec("mistake")).await?);
    ensure!(theirs == ours, "what was taken back from the trash is not what was put there");
    hasty.stop(LIMIT).await?;
    stage.strike().await
}

/// A primary is migrated while it is mirrored. In snapshot mode stock tools refuse that; in journal mode they end its
/// mirroring for as long as the migration lasts. When it is mirrored all the same, the daemon refuses it, and copies it
/// when the migration is committed.
#[tokio::test(flavor = "multi_thread")]
async fn images_in_migration_are_refused() -> Result<()> {
    let stage = Stage::set("migration").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let (source, destination) = (stage.spec("source"), stage.spec("destination"));
    let mut daemon = stage.daemon(b).await?;
    let followed = stage.spec("by-snapshots");
    a.create_image(&followed, 8 * MIB, &[]).await?;
    stage.enable("by-snapshots").await?;
    let refused = a.rbd(&["migration", "prepare", &followed, &stage.spec("elsewhere")]).await;
    ensure!(refused.is_err(), "an image with mirror-snapshots can be migrated after all");

    a.create_image(&source, 8 * MIB, &[]).await?;
    a.apply(&source, Extents::default().fill(0, 8 * MIB, 1)).await?;
    a.rbd(&["mirror", "image", "enable", &source, "journal"]).await?;
    let content = a.sha256(&source).await?;
    let copied = async |image: &str| -> Result<()> {
        stage.state(b, image, "up+replaying").await?;
        ensure!(b.sha256(&stage.spec(image)).await? == content, "the copy of {image} is another image");
        Ok(())
    };
    copied("source").await?;

    a.rbd(&["migration", "prepare", &source, &destination]).await?;
    until("the copy to go with the mirroring of its primary", async || {
        Ok(!exists(b, &stage.pool, "source").await?)
    })
    .await?;
    let (image, header) = stage.a.open(&destination).await?;
    ensure!(header.features.has(rbd::Features::MIGRATING), "the image is not in migration");
    let mirroring = Mirroring::new(image.header_ioctx());
    let global_id = GlobalImageId("5f1c1c6a-3a7b-4d0e-9f67-2b8c1f0d9e11".into());
    let mut entry =
        MirrorImage { mode: MirrorImageMode::Snapshot, global_id, state: MirrorImageState::Enabled };
    mirroring.image_set(image.id(), &entry).await?;
    mirroring.notify_image(entry.state, image.id(), &entry.global_id).await?;
    until("the daemon to refuse the image in its status", async || {
        let status = a.mirror_status(&destination).await?;
        let there = &status["peer_sites"][0];
        let text = there["description"].as_str().unwrap_or_default();
        ensure!(!there["state"].as_str().is_some_and(|state| state.ends_with("replaying")), "{there}");
        Ok(there["state"] == "up+error" && text.contains("being migrated") && !text.contains(','))
    })
    .await?;
    ensure!(!exists(b, &stage.pool, "destination").await?, "an image in migration was copied");

    entry.state = MirrorImageState::Disabling;
    mirroring.image_set(image.id(), &entry).await?;
    mirroring.image_remove(image.id()).await?;
    a.rbd(&["migration", "execute", "--no-progress", &destination]).await?;
    a.rbd(&["migration", "commit", "--no-progress", &destination]).await?;
    copied("destination").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// Images exchange names, in twos and threes and in both modes; a name that was given up goes to a new image; a name
/// that another local image has is an error until it is free.
#[tokio::test(flavor = "multi_thread")]
async fn names_are_exchanged() -> Result<()> {
    let stage = Stage::set("exchanged").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let mut daemon = stage.daemon(b).await?;
    let make = async |name: &str, seed: u64, mode: &str| -> Result<()> {
        a.create_image(&stage.spec(name), 4 * MIB, &[]).await?;
        a.apply(&stage.spec(name), Extents::default().fill(0, 4 * MIB, seed)).await?;
        a.rbd(&["mirror", "image", "enable", &stage.spec(name), mode]).await?;
        Ok(())
    };
    let mut images = vec!["s1", "s2", "s3", "j1", "j2", "j3"];
    for (seed, name) in (1..).zip(&images) {
        make(name, seed, if name.starts_with('s') { "snapshot" } else { "journal" }).await?;
    }
    let copied = async |name: &str| -> Result<bool> {
        let status = b.mirror_status(&stage.spec(name)).await.ok();
        let replaying = status.is_some_and(|status| status["state"] == "up+replaying");
        Ok(replaying && b.sha256(&stage.spec(name)).await? == a.sha256(&stage.spec(name)).await?)
    };
    for name in &images {
        until(&format!("{name} to be copied"), async || copied(name).await).await?;
    }
    let rename = async |from: &str, to: &str| -> Result<()> {
        a.rbd(&["rename", &stage.spec(from), &stage.spec(to)]).await?;
        Ok(())
    };
    for kind in ["s", "j"] {
        let [one, two, three] = [1, 2, 3].map(|number| format!("{kind}{number}"));
        rename(&one, "aside").await?;
        rename(&two, &one).await?;
        rename("aside", &two).await?;
        for name in [&one, &two, &three] {
            until(&format!("{name} to follow the exchange"), async || copied(name).await).await?;
        }
    }
    // While nobody follows, in a circle of three; and a name that is free by then is a new image's.
    daemon.stop(LIMIT).await?;
    for kind in ["s", "j"] {
        let [one, two, three] = [1, 2, 3].map(|number| format!("{kind}{number}"));
        rename(&one, "aside").await?;
        rename(&two, &one).await?;
        rename(&three, &two).await?;
        rename("aside", &three).await?;
    }
    make("s4", 7, "snapshot").await?;
    rename("s4", "s5").await?;
    rename("s3", "s4").await?;
    make("s3", 8, "snapshot").await?;
    images.extend(["s4", "s5"]);
    let mut daemon = stage.daemon(b).await?;
    for name in &images {
        until(&format!("{name} to follow the circle"), async || copied(name).await).await?;
    }
    let names = b.rbd_json(&["ls", &stage.pool]).await?;
    ensure!(names.as_array().map(Vec::len) == Some(images.len()), "other names than the primary's: {names}");

    for (old, new) in [("s1", "s6"), ("j1", "j6")] {
        b.create_image(&stage.spec(new), MIB, &[]).await?;
        rename(old, new).await?;
        until(&format!("the status of {old} to tell that {new} is taken"), async || {
            let status = b.mirror_status(&stage.spec(old)).await?;
            let text = status["description"].as_str().unwrap_or_default();
            Ok(status["state"] == "up+error" && text.contains(new) && !text.contains(','))
        })
        .await?;
        b.rbd(&["rm", "--no-progress", &stage.spec(new)]).await?;
        until(&format!("{old} to become {new}"), async || copied(new).await).await?;
    }
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
