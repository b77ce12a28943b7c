//! User snapshots, mirror-snapshots that wait, resizing: what lies between two mirror-snapshots of the primary.

use anyhow::{Result, ensure};
use tests::Extents;

use crate::common::{LIMIT, MIB, Stage, scattered, until};

/// User snapshots are made, renamed, exchanged, protected and removed between mirror-snapshots; names are used again.
#[tokio::test(flavor = "multi_thread")]
async fn user_snapshots_follow() -> Result<()> {
    let stage = Stage::set("user-snapshots").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    let at = |snapshot: &str| format!("{spec}@{snapshot}");
    a.create_image(&spec, 24 * MIB, &[]).await?;
    for (seed, name) in ["one", "two", "three"].into_iter().enumerate() {
        a.apply(&spec, Extents::default().random(&scattered(seed as u64, 50, 0..24 * MIB))).await?;
        a.snap_create(&at(name)).await?;
    }
    a.snap_protect(&at("two")).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.enable("image").await?;
    stage.first_copy("image").await?;

    // Removed and made anew under the same name, exchanged, protected and no longer protected.
    a.snap_remove(&at("one")).await?;
    a.apply(&spec, Extents::default().random(&scattered(10, 50, 0..24 * MIB)).zeroes(MIB, 5 * MIB)).await?;
    a.snap_create(&at("one")).await?;
    a.snap_unprotect(&at("two")).await?;
    a.snap_rename(&at("two"), &at("swap")).await?;
    a.snap_rename(&at("three"), &at("two")).await?;
    a.snap_rename(&at("swap"), &at("three")).await?;
    a.snap_protect(&at("two")).await?;
    stage.sync("image").await?;
    let names = async || -> Result<Vec<String>> {
        let list = b.rbd_json(&["snap", "ls", &spec]).await?;
        let mut names: Vec<_> = list
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|s| s["name"].as_str().map(String::from))
            .collect();
        names.sort();
        Ok(names)
    };
    until("the copy to have the primary's user snapshots", async || {
        Ok(names().await? == ["one", "three", "two"])
    })
    .await?;

    let protected = async || -> Result<Vec<String>> {
        let list = b.rbd_json(&["snap", "ls", &spec]).await?;
        let protected = list.as_array().into_iter().flatten().filter(|s| s["protected"] == "true");
        Ok(protected.filter_map(|s| s["name"].as_str().map(String::from)).collect())
    };
    until("protection to follow", async || Ok(protected().await? == ["two"])).await?;

    for name in ["one", "three"] {
        a.snap_remove(&at(name)).await?;
    }
    stage.sync("image").await?;
    until("removed snapshots to go", async || Ok(names().await? == ["two"])).await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// While the daemon is away, mirror-snapshots pile up to the limit and beyond; it takes the newest one.
#[tokio::test(flavor = "multi_thread")]
async fn many_snapshots_wait() -> Result<()> {
    let stage = Stage::set("waiting").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    a.create_image(&spec, 16 * MIB, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, 16 * MIB, 1)).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.enable("image").await?;
    stage.first_copy("image").await?;
    daemon.stop(LIMIT).await?;

    let mut newest = 0;
    for seed in 0..7 {
        a.apply(&spec, Extents::default().random(&scattered(20 + seed, 30, 0..16 * MIB))).await?;
        if seed % 3 == 0 {
            a.snap_create(&format!("{spec}@user-{seed}")).await?;
        }
        newest = a.mirror_snapshot(&spec).await?;
    }
    ensure!(a.mirror_snapshots(&spec).await?.len() <= 6, "the primary keeps at most its limit of snapshots");
    let mut daemon = stage.daemon(b).await?;
    stage.arrived("image", newest).await?;
    // The next one lets the primary forget those that were copied or passed over.
    stage.sync("image").await?;
    stage.sync("image").await?;
    until("both sides to forget what they no longer need", async || {
        Ok(a.mirror_snapshots(&spec).await?.len() <= 2 && b.mirror_snapshots(&spec).await?.len() == 1)
    })
    .await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// Growing, shrinking and growing again, with and without object maps, with user snapshots at every size.
#[tokio::test(flavor = "multi_thread")]
async fn sizes_follow() -> Result<()> {
    let stage = Stage::set("sizes").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let kinds: [(&str, &[&str]); 4] = [
        ("maps", &[]),
        ("no-maps", &["--image-feature", "layering,exclusive-lock"]),
        ("no-lock", &["--image-feature", "layering"]),
        ("small-objects", &["--object-size", "256K"]),
    ];
    let mut daemon = stage.daemon(b).await?;
    for (name, args) in kinds {
        a.create_image(&stage.spec(name), 16 * MIB, args).await?;
        a.apply(&stage.spec(name), Extents::default().fill(0, 16 * MIB, 1)).await?;
        stage.enable(name).await?;
    }
    for (name, _) in kinds {
        let spec = stage.spec(name);
        stage.first_copy(name).await?;
        a.resize(&spec, 5 * MIB + 1024).await?;
        a.snap_create(&format!("{spec}@small")).await?;
        a.resize(&spec, 30 * MIB).await?;
        a.apply(&spec, Extents::default().random(&scattered(2, 40, 0..30 * MIB))).await?;
        stage.sync(name).await?;
        a.resize(&spec, 9 * MIB).await?;
        stage.sync(name).await?;
        a.discard(&spec, 4096, 6 * MIB).await?;
        a.resize(&spec, 12 * MIB).await?;
        stage.sync(name).await?;
    }
    daemon.stop(LIMIT).await?;
    for (name, _) in [kinds[0], kinds[3]] {
        b.rbd(&["mirror", "image", "promote", "--force", &stage.spec(name)]).await?;
        b.rbd(&["object-map", "check", "--no-progress", &stage.spec(name)]).await?;
        let info = b.rbd_json(&["info", &stage.spec(name)]).await?;
        ensure!(info["flags"].as_array().is_some_and(Vec::is_empty), "{name} is flagged: {info}");
    }
    stage.strike().await
}
