//! What the removal of copies must not be mistaken about: pools that go, images that are promoted, images in use.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Cluster, Extents};

use crate::common::{LIMIT, MIB, Stage, scattered, until};

/// How long a wrong decision may take to show.
const DECISION_TIME: Duration = Duration::from_secs(4);

/// State and description that `cluster` shows of an image.
async fn status(cluster: &Cluster, spec: &str) -> Result<(String, String)> {
    let status = cluster.mirror_status(spec).await?;
    let text = |key: &str| status[key].as_str().unwrap_or_default().to_string();
    Ok((text("state"), text("description")))
}

/// The remote pool is deleted under a writer, in both modes. The copies stay, their statuses say why nothing comes, and they
/// can be promoted; also when the pool is made anew under its name.
#[tokio::test(flavor = "multi_thread")]
async fn copies_outlive_the_pool_of_their_primaries() -> Result<()> {
    let stage = Stage::set("outlived").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let mut daemon = stage.daemon(b).await?;
    let images = ["by-snapshots", "by-journal"];
    for name in images {
        let features: &[&str] = match name {
            "by-journal" => &["--image-feature", "layering,exclusive-lock,journaling"],
            _ => &[],
        };
        let mode = if name == "by-journal" { "journal" } else { "snapshot" };
        a.create_image(&stage.spec(name), 8 * MIB, features).await?;
        a.apply(&stage.spec(name), Extents::default().random(&scattered(1, 50, 0..8 * MIB))).await?;
        a.rbd(&["mirror", "image", "enable", &stage.spec(name), mode]).await?;
    }
    for name in images {
        stage.state(b, name, "up+replaying").await?;
    }
    let spec = stage.spec("by-journal");
    let bench = ["bench", "--io-type", "write", "--io-size", "16K", "--io-total", "2G", &spec];
    let writer = a.rbd(&bench);
    let pool_goes = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        a.delete_pool(&stage.pool).await
    };
    let (_, deleted) = tokio::join!(tokio::time::timeout(Duration::from_secs(8), writer), pool_goes);
    deleted?;
    let told = async |what: &str| {
        until("the statuses to say why nothing comes", async || {
            let mut told = true;
            for name in images {
                let (state, description) = status(b, &stage.spec(name)).await?;
                told &= state.ends_with("+error") && description.contains(what) && !description.contains(',');
            }
            Ok(told)
        })
        .await
    };
    told("no longer exists").await?;
    tokio::time::sleep(DECISION_TIME).await;
    told("no longer exists").await?;
    // A daemon that is started meanwhile finds nothing that it could connect to.
    daemon.stop(LIMIT).await?;
    let mut daemon = stage.daemon(b).await?;
    tokio::time::sleep(DECISION_TIME).await;
    told("no longer exists").await?;

    a.create_pool(&stage.pool).await?;
    a.rbd(&["mirror", "pool", "enable", "--site-name", a.name(), &stage.pool, "image"]).await?;
    a.rbd(&["mirror", "pool", "peer", "bootstrap", "create", "--site-name", a.name(), &stage.pool]).await?;
    until("the daemon to find the new pool", async || {
        let mut found = true;
        for name in images {
            let (state, description) = status(b, &stage.spec(name)).await?;
            found &= state == "up+error" && description.starts_with("local image linked to unknown peer");
        }
        Ok(found)
    })
    .await?;
    tokio::time::sleep(DECISION_TIME).await;
    for name in images {
        b.rbd(&["mirror", "image", "promote", "--force", &stage.spec(name)]).await?;
        b.apply(&stage.spec(name), Extents::default().fill(0, MIB, 7)).await?;
    }
    let listed = b.rbd_json(&["ls", &stage.pool]).await?;
    ensure!(listed.as_array().context("a list")?.len() == images.len(), "{listed}");
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// What ceph-csi looks at. It asks for a resync as long as the time of creation that it has stored in the image's internal
/// metadata is that of the image; and it counts the watchers of a primary, of which one may be a mirror daemon's.
#[tokio::test(flavor = "multi_thread")]
async fn a_resync_ends_and_a_primary_has_one_watcher() -> Result<()> {
    const KEY: &str = ".rbd.image.creation_time";
    let stage = Stage::set("drivers").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let mut daemons = [stage.daemon(a).await?, stage.daemon(b).await?];
    for mode in ["snapshot", "journal"] {
        let spec = stage.spec(mode);
        let features: &[&str] = match mode {
            "journal" => &["--image-feature", "layering,exclusive-lock,journaling"],
            _ => &[],
        };
        a.create_image(&spec, 8 * MIB, features).await?;
        a.apply(&spec, Extents::default().random(&scattered(1, 50, 0..8 * MIB))).await?;
        a.rbd(&["mirror", "image", "enable", &spec, mode]).await?;
        stage.state(b, mode, "up+replaying").await?;
        stage.state(a, mode, "up+stopped").await?;
        let watchers = a.rbd_json(&["status", &spec]).await?;
        let watchers = watchers["watchers"].as_array().map_or(0, Vec::len);
        ensure!(watchers <= 1, "{watchers} mirror daemons watch the primary in {mode} mode");

        b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
        let created = async || -> Result<String> {
            let info = b.rbd_json(&["info", &spec]).await?;
            Ok(info["create_timestamp"].as_str().context("a time of creation")?.to_string())
        };
        let stored = created().await?;
        b.rbd(&["image-meta", "set", &spec, KEY, &stored]).await?;
        b.rbd(&["mirror", "image", "demote", &spec]).await?;
        b.rbd(&["mirror", "image", "resync", &spec]).await?;
        until("the resync to be seen to have ended", async || {
            let (_, description) = status(b, &spec).await?;
            ensure!(description.starts_with("replaying, {") || !description.contains(','), "{description}");
            let metadata = b.rbd(&["image-meta", "ls", &spec]).await?;
            Ok(!metadata.contains(KEY) && created().await? != stored)
        })
        .await
        .with_context(|| format!("in {mode} mode"))?;
        stage.state(b, mode, "up+replaying").await?;
    }
    for daemon in &mut daemons {
        daemon.stop(LIMIT).await?;
    }
    stage.strike().await
}
