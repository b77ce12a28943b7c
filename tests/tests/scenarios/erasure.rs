//! Copies whose data lies in an erasure-coded pool, on clusters of their own with three OSDs each.

use anyhow::Result;
use tests::{ClusterOptions, Extents};

use crate::common::{LIMIT, MIB, Stage, scattered};
use crate::failover::image_id;

/// The data pool, replicated where the primary is and erasure-coded (k=2, m=1) where the copy is.
const DATA_POOL: &str = "coded";

#[tokio::test(flavor = "multi_thread")]
async fn copies_in_an_erasure_coded_pool() -> Result<()> {
    let options = ClusterOptions { osds: 3, ..ClusterOptions::default() };
    let stage = Stage::set_apart("erasure", &options).await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    a.create_pool(DATA_POOL).await?;
    b.ceph(&["osd", "erasure-code-profile", "set", "two-and-one", "k=2", "m=1", "crush-failure-domain=osd"])
        .await?;
    b.ceph(&["osd", "pool", "create", DATA_POOL, "8", "8", "erasure", "two-and-one"]).await?;
    b.ceph(&["osd", "pool", "set", DATA_POOL, "allow_ec_overwrites", "true"]).await?;
    b.ceph(&["osd", "pool", "application", "enable", DATA_POOL, "rbd"]).await?;

    let (spec, size) = (stage.spec("image"), 40 * MIB + 512);
    a.create_image(&spec, size, &["--data-pool", DATA_POOL]).await?;
    a.apply(&spec, Extents::default().fill(0, 24 * MIB, 1).random(&scattered(2, 100, 0..size))).await?;
    let mut daemon = stage.daemon(b).await?;
    stage.enable("image").await?;
    stage.first_copy("image").await?;
    let id = image_id(b, &spec).await?;
    let info = b.rbd_json(&["info", &spec]).await?;
    assert_eq!(info["data_pool"], DATA_POOL, "{info}");
    for seed in 10..13 {
        let changes = Extents::default().random(&scattered(seed, 100, 0..size)).zeroes(seed * MIB, 3 * MIB);
        a.apply(&spec, changes).await?;
        a.snap_create(&format!("{spec}@user-{seed}")).await?;
        a.discard(&spec, (seed + 8) * MIB + 4096, 5 * MIB).await?;
        stage.sync("image").await?;
    }
    a.resize(&spec, 17 * MIB + 100).await?;
    stage.sync("image").await?;

    // Astray, and mended by the checksums of objects that lie in pieces.
    b.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
    b.apply(&spec, Extents::default().random(&scattered(20, 50, 0..17 * MIB)).zeroes(4 * MIB, MIB)).await?;
    b.rbd(&["mirror", "image", "demote", &spec]).await?;
    stage.state(b, "image", "up+error").await?;
    b.rbd(&["mirror", "image", "resync", &spec]).await?;
    stage.sync("image").await?;
    assert_eq!(image_id(b, &spec).await?, id, "the copy was made anew");

    journalled(&stage).await?;
    daemon.stop(LIMIT).await?;
    stage.strike_apart().await
}

/// An image mirrored by its journal. What changes an object is one operation, and on some an OSD of such a pool aborts.
async fn journalled(stage: &Stage) -> Result<()> {
    let a = &stage.clusters.a;
    let (name, size) = ("journalled", 40 * MIB);
    let spec = stage.spec(name);
    stage.create_journalled(name, size, &["--data-pool", DATA_POOL]).await?;
    a.apply(&spec, Extents::default().random(&scattered(1, 100, 0..size)).fill(32 * MIB, 5 << 10, 2)).await?;
    stage.enable_journal(name).await?;
    stage.state(&stage.clusters.b, name, "up+replaying").await?;
    // Of an object of 5 KiB, the first ten and the last ones together.
    let ends =
        Extents::default().zeroes(32 * MIB, 10 << 10).zeroes((32 << 20) + (20 << 10), (4 << 20) - (20 << 10));
    a.apply(&spec, ends).await?;
    stage.replayed(name).await?;
    for seed in 2..5 {
        a.apply(&spec, Extents::default().random(&scattered(seed, 100, 0..size)).zeroes(seed * MIB, 5 * MIB))
            .await?;
        a.discard(&spec, (seed + 8) * MIB + 4096, 5 * MIB).await?;
        a.snap_create(&format!("{spec}@user-{seed}")).await?;
    }
    stage.replayed(name).await
}
