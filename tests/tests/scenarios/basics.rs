//! Images of every shape, copied and followed.

use anyhow::Result;
use tests::Extents;

use crate::common::{LIMIT, MIB, Stage, scattered};

/// Full, sparse and empty images; odd sizes; small and large objects; fancy striping; a data pool.
#[tokio::test(flavor = "multi_thread")]
async fn images_of_every_shape() -> Result<()> {
    let stage = Stage::set("shapes").await?;
    let a = &stage.clusters.a;
    stage.clusters.create_pool("shapes-data").await?;
    let shapes: [(&str, u64, &[&str]); 8] = [
        ("full", 24 * MIB, &[]),
        ("sparse", 1024 * MIB, &[]),
        ("empty", 64 * MIB, &[]),
        ("odd", 13 * MIB + 4608, &[]),
        ("small-objects", 9 * MIB, &["--object-size", "64K"]),
        ("large-objects", 80 * MIB, &["--object-size", "32M"]),
        ("striped", 40 * MIB, &["--stripe-unit", "64K", "--stripe-count", "5", "--object-size", "1M"]),
        ("data-pool", 20 * MIB, &["--data-pool", "shapes-data"]),
    ];
    for (name, size, args) in shapes {
        a.create_image(&stage.spec(name), size, args).await?;
    }
    a.apply(&stage.spec("full"), Extents::default().fill(0, 24 * MIB, 1)).await?;
    a.apply(&stage.spec("sparse"), Extents::default().random(&scattered(2, 40, 0..1024 * MIB))).await?;
    for name in ["odd", "small-objects", "large-objects", "striped", "data-pool"] {
        a.apply(&stage.spec(name), Extents::default().random(&scattered(3, 300, 0..9 * MIB))).await?;
    }
    a.apply(&stage.spec("odd"), Extents::default().fill(13 * MIB, 4608, 4)).await?;

    let mut daemon = stage.daemon(&stage.clusters.b).await?;
    for (name, ..) in shapes {
        stage.enable(name).await?;
    }
    for (name, ..) in shapes {
        stage.first_copy(name).await?;
    }
    for (index, (name, size, _)) in shapes.into_iter().enumerate() {
        let changes = Extents::default()
            .random(&scattered(10 + index as u64, 60, 0..size))
            .zeroes(size / 2, MIB)
            .zeroes(0, 5000);
        a.apply(&stage.spec(name), changes).await?;
        a.snap_create(&format!("{}@user", stage.spec(name))).await?;
        a.apply(&stage.spec(name), Extents::default().random(&scattered(90 + index as u64, 60, 0..size)))
            .await?;
        stage.sync(name).await?;
    }
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
