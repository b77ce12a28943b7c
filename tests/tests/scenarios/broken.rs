//! One broken image never disturbs the others; many small ones are no burden.

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use tests::Extents;

use crate::common::{LIMIT, MIB, Stage, scattered, until};
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

/// 500 small images are copied, and follow.
#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_small_images() -> Result<()> {
    const IMAGES: usize = 500;
    let stage = Stage::set("many").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let names: Vec<_> = (0..IMAGES).map(|index| format!("image-{index:03}")).collect();
    let made = futures::stream::iter(names.iter().map(|name| async {
        a.create_image(&stage.spec(name), MIB, &["--object-size", "64K"]).await?;
        stage.enable(name).await
    }));
    for result in made.buffer_unordered(8).collect::<Vec<_>>().await {
        result?;
    }
    let mut daemon = stage.daemon(b).await?;
    for name in &names {
        stage.first_copy(name).await?;
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
