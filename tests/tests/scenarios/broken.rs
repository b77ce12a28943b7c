//! One broken image never disturbs the others; many small ones are no burden.

use anyhow::{Context, Result, ensure};
use rbd::Features;
use tests::{Extents, ManyImages};

use crate::common::{LIMIT, MIB, Stage, scattered, until};
use crate::content;
use crate::failover::image_id;

/// A corrupt header, a missing object map, an unknown feature: each is told in the image's status, and the others go on.
#[tokio::test(flavor = "multi_thread")]
async fn broken_images_stay_alone() -> Result<()> {
    let stage = Stage::set("broken").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let names = ["bad-header", "no-map", "unknown-feature", "sound"];
    let mut daemon = stage.daemon(b).await?;
    for name in names {
        a.create_image(&stage.spec(name), 8 * MIB, &[]).await?;
        a.apply(&stage.spec(name), Extents::default().fill(0, 8 * MIB, 1)).await?;
        stage.enable(name).await?;
    }
    for name in names {
        stage.first_copy(name).await?;
    }
    let header = async |name: &str| -> Result<String> {
        Ok(format!("rbd_header.{}", image_id(a, &stage.spec(name)).await?))
    };
    let (bad, unknown) = (header("bad-header").await?, header("unknown-feature").await?);
    let map = format!("rbd_object_map.{}", image_id(a, &stage.spec("no-map")).await?);

    // With changes waiting to be copied, the headers of two images and the map of a third are broken.
    for name in names {
        a.apply(&stage.spec(name), Extents::default().random(&scattered(2, 20, 0..8 * MIB))).await?;
    }
    a.rados(&["-p", &stage.pool, "rm", &map]).await?;
    a.tool("rados").args(["-p", &stage.pool, "setomapval", &bad, "size"]).stdin([1, 2, 3]).run().await?;
    let features = (1_u64 << 40 | 0x3d).to_le_bytes();
    a.tool("rados")
        .args(["-p", &stage.pool, "setomapval", &unknown, "features"])
        .stdin(features)
        .run()
        .await?;
    daemon.stop(LIMIT).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.sync("sound").await?;
    stage.sync("no-map").await.context("without an object map every object is looked at")?;
    for name in ["bad-header", "unknown-feature"] {
        let status = stage.state(b, name, "up+error").await?;
        let description = status["description"].as_str().unwrap_or_default();
        ensure!(description.contains("header") || description.contains("feature"), "{name}: {description}");
    }
    stage.sync("sound").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// A snapshot of 2^62 bytes, as only a broken or hostile cluster has one, is an error in the status of its image, and
/// nothing is sized by it.
#[tokio::test(flavor = "multi_thread")]
async fn absurd_sizes_are_refused() -> Result<()> {
    let stage = Stage::set("absurd").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let mut daemon = stage.daemon(b).await?;
    for name in ["vast", "sound"] {
        a.create_image(&stage.spec(name), 8 * MIB, &[]).await?;
        stage.enable(name).await?;
        stage.first_copy(name).await?;
    }
    let vast = stage.spec("vast");
    let (image, _) = stage.a.open(&vast).await?;
    let set_size = async |bytes: u64| -> Result<()> {
        let header = format!("rbd_header.{}", image.id());
        let set = a.tool("rados").args(["-p", &stage.pool, "setomapval", &header, "size"]);
        set.stdin(bytes.to_le_bytes()).run().await?;
        Ok(())
    };
    let snap = image.data_ioctx().snap_create().await?;
    let update = || rbd::HeaderUpdate::of(image.id());
    set_size(1 << 62).await?;
    update().snapshot_add(snap, "vast", &rbd::SnapshotNamespace::User).apply(image.header_ioctx()).await?;
    set_size(8 * MIB).await?;
    let newest = a.mirror_snapshot(&vast).await?;
    until("the absurd size to be told", async || {
        let status = b.mirror_status(&vast).await?;
        let text = status["description"].as_str().unwrap_or_default();
        ensure!(status["state"] != "down+error" && status["state"] != "down+unknown", "{status}");
        Ok(status["state"] == "up+error" && text.contains("4611686018427387904 bytes"))
    })
    .await?;
    a.apply(&stage.spec("sound"), Extents::default().fill(0, MIB, 1)).await?;
    stage.sync("sound").await?;

    update().snapshot_remove(snap).apply(image.header_ioctx()).await?;
    stage.arrived("vast", newest).await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// 500 small images are copied, and follow.
#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_small_images() -> Result<()> {
    const IMAGES: usize = 500;
    let features = Features::LAYERING
        .with(Features::EXCLUSIVE_LOCK)
        .with(Features::OBJECT_MAP)
        .with(Features::FAST_DIFF)
        .with(Features::DEEP_FLATTEN);
    let stage = Stage::set("many").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let images = ManyImages {
        pool: &stage.pool,
        prefix: "image-",
        count: IMAGES,
        size: MIB,
        order: 16,
        features: features.0,
        mode: "snapshot",
    };
    a.make_many(&images).await?;
    let names = images.names();
    let mut daemon = stage.daemon(b).await?;
    for name in &names {
        until("an image to be copied", async || is_copied(&stage, name).await).await.context(name.clone())?;
        stage.expect_copied(name).await?;
    }
    for name in names.iter().step_by(50) {
        a.apply(&stage.spec(name), Extents::default().random(&scattered(1, 10, 0..MIB))).await?;
        stage.sync(name).await?;
    }
    until("every image to be reported as replaying", async || {
        let status = b.rbd_json(&["mirror", "pool", "status", "--verbose", &stage.pool]).await?;
        let images = status["images"].as_array().cloned().unwrap_or_default();
        Ok(images.iter().filter(|image| image["state"] == "up+replaying").count() == IMAGES)
    })
    .await?;
    let usage = daemon.usage().context("the daemon runs")?;
    println!(
        "{IMAGES} images: the daemon takes {} MiB, at most {}",
        usage.rss_bytes >> 20,
        usage.rss_peak_bytes >> 20
    );
    daemon.stop(LIMIT).await?;
    stage.strike().await
}

/// True when the copy of an image at `b` holds a mirror-snapshot.
async fn is_copied(stage: &Stage, image: &str) -> Result<bool> {
    match stage.b.open(&stage.spec(image)).await {
        Ok((_, header)) => Ok(content::mirror_snapshots(&header).iter().any(|(_, mirror)| mirror.complete)),
        Err(error) if error.downcast_ref::<rados::Error>().is_some_and(rados::Error::is_not_found) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
