//! `rbd mirror flush` on the admin socket returns when what the primaries had when it was asked for is at the copies.

use anyhow::{Context, Result, ensure};
use tests::Extents;

use crate::common::{LIMIT, MIB, Stage, scattered};
use crate::content;
use crate::journal::{clients, newest};

const SIZE: u64 = 96 * MIB;

#[tokio::test(flavor = "multi_thread")]
async fn a_flush_returns_when_what_was_there_is_written() -> Result<()> {
    let stage = Stage::set("flush").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    for name in ["journalled", "late"] {
        stage.create_journalled(name, SIZE, &[]).await?;
        stage.enable_journal(name).await?;
    }
    a.create_image(&stage.spec("snapped"), SIZE, &[]).await?;
    stage.enable("snapped").await?;
    let mut daemon = stage.daemon(b).await?;
    for name in ["journalled", "late", "snapped"] {
        stage.state(b, name, "up+replaying").await?;
    }
    stage.replayed("late").await?;
    // What is to come later does not hold it up.
    a.rbd(&["image-meta", "set", &stage.spec("late"), "conf_rbd_mirroring_replay_delay", "3600"]).await?;
    stage.replayed("late").await?;
    a.apply(&stage.spec("late"), Extents::default().fill(0, MIB, 1)).await?;
    for seed in 1..3 {
        let writes = scattered(seed, 400, 0..SIZE);
        for name in ["journalled", "snapped"] {
            a.apply(&stage.spec(name), Extents::default().random(&writes).fill(seed * MIB, 80 * MIB, seed))
                .await?;
        }
        let snap = a.mirror_snapshot(&stage.spec("snapped")).await?;
        let entry = newest(&clients(a, &stage.spec("journalled")).await?.0);
        // The answer is empty, and so no JSON.
        let answer = daemon.ask("rbd mirror flush").await.err().context("an empty answer")?;
        ensure!(format!("{answer:#}").contains("EOF"), "{answer:#}");
        let (_, header) = stage.b.open(&stage.spec("snapped")).await?;
        let copied = content::mirror_snapshots(&header).into_iter().rfind(|(_, mirror)| mirror.complete);
        let copied = copied.map(|(_, mirror)| mirror.primary_snap_id.0);
        ensure!(copied == Some(snap), "round {seed}: snapshot {copied:?} was copied, not {snap}");
        let replayed = clients(a, &stage.spec("journalled")).await?.1.as_ref().and_then(newest);
        ensure!(replayed >= entry, "round {seed}: {replayed:?} was replayed, not {entry:?}");
        for name in ["journalled", "snapped"] {
            let spec = stage.spec(name);
            ensure!(
                a.sha256(&spec).await? == b.sha256(&spec).await?,
                "round {seed}: '{name}' was not flushed"
            );
        }
    }
    ensure!(b.sha256(&stage.spec("late")).await? != a.sha256(&stage.spec("late")).await?, "it came early");
    b.rbd(&["mirror", "image", "promote", "--force", &stage.spec("snapped")]).await?;
    stage.state(b, "snapped", "up+stopped").await?;
    let refused = daemon.ask(&format!("rbd mirror flush {}", stage.spec("snapped"))).await;
    let refused = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(refused.contains("not replaying: stopped"), "{refused}");
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
