//! The daemon is killed at seeded instants, again and again, during first copies and during replay: it goes on where it
//! was, and the result is exact.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::Extents;

use super::stage::journaling;
use crate::common::{LIMIT, MIB, Stage, scattered};
use crate::failover::image_id;

const SIZE: u64 = 96 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_instant() -> Result<()> {
    let stage = Stage::set("j-crashes").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let bare = ["--image-feature", "exclusive-lock,journaling"];
    let small = [&journaling()[..], &["--object-size", "1M"]].concat();
    let images: [(&str, &[&str]); 3] =
        [("maps", &journaling()), ("no-maps", &bare), ("small-objects", &small)];
    for (name, args) in images {
        let spec = stage.spec(name);
        a.create_image(&spec, SIZE, args).await?;
        a.apply(&spec, Extents::default().fill(0, SIZE, 1)).await?;
        a.snap_create(&format!("{spec}@first")).await?;
        a.apply(&spec, Extents::default().random(&scattered(2, 300, 0..SIZE)).zeroes(20 * MIB, 9 * MIB))
            .await?;
        a.snap_create(&format!("{spec}@second")).await?;
        a.apply(&spec, Extents::default().random(&scattered(3, 300, 0..SIZE))).await?;
        stage.enable_journal(name).await?;
    }
    let daemon = stage.daemon(b).await?;
    stage.kill_amid_copy(daemon, "small-objects", SIZE).await?;
    for seed in 0..4_u64 {
        let mut daemon = stage.daemon(b).await?;
        tokio::time::sleep(Duration::from_millis(150 + seed * 170)).await;
        daemon.kill(tests::Signal::SIGKILL);
        daemon.wait(LIMIT).await?;
        // Events on both sides of the sync point.
        let spec = stage.spec("maps");
        a.apply(&spec, Extents::default().random(&scattered(4 + seed, 50, 0..SIZE))).await?;
        a.snap_create(&format!("{spec}@killed-{seed}")).await?;
    }
    let mut daemon = stage.daemon(b).await?;
    for (name, _) in images {
        stage.state(b, name, "up+replaying").await?;
        stage.replayed(name).await.context("after being killed during the first copy")?;
    }
    let id = image_id(b, &stage.spec("maps")).await?;

    for seed in 0..6_u64 {
        for (name, _) in images {
            let spec = stage.spec(name);
            let changes = Extents::default()
                .random(&scattered(10 + seed, 400, 0..SIZE))
                .fill((seed * 9) * MIB, 12 * MIB, seed)
                .zeroes((seed * 13) * MIB, 3 * MIB);
            a.apply(&spec, changes).await?;
            if seed % 2 == 0 {
                a.snap_create(&format!("{spec}@delta-{seed}")).await?;
                a.apply(&spec, Extents::default().random(&scattered(60 + seed, 100, 0..SIZE))).await?;
            }
        }
        tokio::time::sleep(Duration::from_millis(40 + seed * 55)).await;
        daemon.kill(tests::Signal::SIGKILL);
        daemon.wait(LIMIT).await?;
        daemon = stage.daemon(b).await?;
        if seed % 3 == 2 {
            for (name, _) in images {
                stage.replayed(name).await.with_context(|| format!("seed {seed}"))?;
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
