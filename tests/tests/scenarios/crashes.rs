//! The daemon is killed at seeded instants, again and again, during first copies and during deltas: it goes on where it
//! was, and the result is exact.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::Extents;

use crate::common::{LIMIT, MIB, Stage, scattered};
use crate::failover::image_id;

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_instant() -> Result<()> {
    let stage = Stage::set("crashes").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let size = 96 * MIB;
    let names = ["maps", "no-maps", "small-objects"];
    let args: [&[&str]; 3] = [&[], &["--image-feature", "layering,exclusive-lock"], &["--object-size", "1M"]];
    for (name, args) in names.into_iter().zip(args) {
        a.create_image(&stage.spec(name), size, args).await?;
        a.apply(&stage.spec(name), Extents::default().fill(0, size, 1)).await?;
        a.snap_create(&format!("{}@first", stage.spec(name))).await?;
        a.apply(&stage.spec(name), Extents::default().random(&scattered(2, 300, 0..size))).await?;
        stage.enable(name).await?;
    }
    for seed in 0..4_u64 {
        let mut daemon = stage.daemon(b).await?;
        tokio::time::sleep(Duration::from_millis(150 + seed * 170)).await;
        daemon.kill(tests::Signal::SIGKILL);
        daemon.wait(LIMIT).await?;
    }
    let mut daemon = stage.daemon(b).await?;
    for name in names {
        stage.first_copy(name).await.context("after being killed during the first copy")?;
    }
    let id = image_id(b, &stage.spec("maps")).await?;

    for seed in 0..6_u64 {
        for name in names {
            let changes = Extents::default()
                .random(&scattered(10 + seed, 400, 0..size))
                .fill((seed * 9) * MIB, 12 * MIB, seed)
                .zeroes((seed * 13) * MIB, 3 * MIB);
            a.apply(&stage.spec(name), changes).await?;
            if seed % 2 == 0 {
                a.snap_create(&format!("{}@delta-{seed}", stage.spec(name))).await?;
                a.apply(&stage.spec(name), Extents::default().random(&scattered(60 + seed, 100, 0..size)))
                    .await?;
            }
            a.mirror_snapshot(&stage.spec(name)).await?;
        }
        tokio::time::sleep(Duration::from_millis(40 + seed * 55)).await;
        daemon.kill(tests::Signal::SIGKILL);
        daemon.wait(LIMIT).await?;
        daemon = stage.daemon(b).await?;
        if seed % 3 == 2 {
            for name in names {
                stage.first_copy(name).await.with_context(|| format!("seed {seed}"))?;
            }
        }
    }
    ensure!(image_id(b, &stage.spec("maps")).await? == id, "the copy was made anew");
    daemon.stop(LIMIT).await?;
    for name in ["maps", "small-objects"] {
        b.rbd(&["mirror", "image", "promote", "--force", &stage.spec(name)]).await?;
        b.rbd(&["object-map", "check", "--no-progress", &stage.spec(name)]).await?;
    }
    stage.strike().await
}
