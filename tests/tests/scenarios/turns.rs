//! Ceph's own `rbd-mirror` and ours take turns on the same images, in the middle of their work, without a resync.
//!
//! Ceph's daemon loses what is zeroed or discarded between two snapshots; its turns get such changes, too, and ours are
//! to mend what it left.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{DaemonKind, Extents};

use crate::common::{LIMIT, MIB, Stage, ours, scattered};
use crate::failover::image_id;

#[tokio::test(flavor = "multi_thread")]
async fn daemons_take_turns() -> Result<()> {
    let stage = Stage::set("turns").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let spec = stage.spec("image");
    let size = 64 * MIB;
    a.create_image(&spec, size, &[]).await?;
    a.apply(&spec, Extents::default().fill(0, size, 1)).await?;
    stage.enable("image").await?;
    let mut daemon = stage.daemon_of(&ours(), b).await?;
    stage.first_copy("image").await?;
    let id = image_id(b, &spec).await?;
    daemon.stop(LIMIT).await?;

    for turn in 0..2_u64 {
        let change = async |seed: u64| -> Result<u64> {
            let changes = Extents::default()
                .random(&scattered(seed, 200, 0..size))
                .zeroes((seed % 13) * 4 * MIB, 2 * MIB);
            a.apply(&spec, changes).await?;
            a.mirror_snapshot(&spec).await
        };
        // Ceph's daemon does one whole delta, and is killed in the middle of the next one.
        let mut theirs = stage.daemon_of(&DaemonKind::Ceph, b).await?;
        let snap = change(10 + turn).await?;
        b.wait_copied(&spec, snap, LIMIT).await.with_context(|| format!("Ceph's turn {turn}"))?;
        let snap = change(20 + turn).await?;
        tokio::time::sleep(Duration::from_millis(turn * 400)).await;
        if turn % 2 == 0 {
            theirs.kill(tests::Signal::SIGKILL);
            theirs.wait(LIMIT).await?;
        } else {
            theirs.stop(LIMIT).await?;
        }

        let mut daemon = stage.daemon_of(&ours(), b).await?;
        b.wait_copied(&spec, snap, LIMIT).await.with_context(|| format!("our turn {turn}"))?;
        let snap = change(30 + turn).await?;
        stage.arrived("image", snap).await.with_context(|| format!("our turn {turn}"))?;
        change(40 + turn).await?;
        tokio::time::sleep(Duration::from_millis(turn * 30)).await;
        daemon.kill(tests::Signal::SIGKILL);
        daemon.wait(LIMIT).await?;
    }
    ensure!(image_id(b, &spec).await? == id, "the copy was made anew");
    let mut daemon = stage.daemon_of(&ours(), b).await?;
    stage.sync("image").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
