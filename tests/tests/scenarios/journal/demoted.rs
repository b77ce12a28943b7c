//! A resync that is asked for, and a primary that is demoted before it is over. What was written last arrives all the same,
//! the copy may be promoted without force, and no status says that all is well before that is so.

use anyhow::{Context, Result, ensure};
use tests::{Extents, Signal};

use super::failover::SIZE;
use super::stage::{expect_same, has_sync_point};
use crate::common::{LIMIT, MIB, Stage, scattered, until};
use crate::failover::image_id;

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_goes_on_when_its_primary_is_demoted() -> Result<()> {
    let stage = Stage::set("j-demoted").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let names = ["asked", "amidst", "apart"];
    for (seed, name) in (1..).zip(names) {
        stage.create_journalled(name, SIZE, &["--object-size", "128K"]).await?;
        a.apply(&stage.spec(name), Extents::default().fill(0, SIZE, seed)).await?;
        a.snap_create(&format!("{}@before", stage.spec(name))).await?;
        stage.enable_journal(name).await?;
    }
    let mut daemon = stage.daemon(b).await?;
    let mut ids = Vec::new();
    for name in names {
        stage.state(b, name, "up+replaying").await?;
        stage.replayed(name).await?;
        super::stage::wait_pruned(&stage, &stage.spec(name)).await?;
        ids.push(image_id(b, &stage.spec(name)).await?);
    }
    // In the midst of it: the daemon ends, too.
    let amidst = stage.spec("amidst");
    b.rbd(&["mirror", "image", "resync", &amidst]).await?;
    until("a resync to be under way", async || has_sync_point(&stage.a, &amidst).await).await?;
    daemon.kill(Signal::SIGKILL);
    daemon.wait(LIMIT).await?;
    ensure!(has_sync_point(&stage.a, &amidst).await?, "the resync was over before the daemon was killed");

    // Two that are demoted and have histories of their own.
    let apart = stage.spec("apart");
    b.rbd(&["mirror", "image", "promote", "--force", &apart]).await?;
    b.apply(&apart, Extents::default().fill(0, MIB, 9)).await?;
    b.rbd(&["mirror", "image", "demote", &apart]).await?;
    b.rbd(&["mirror", "image", "resync", &stage.spec("asked")]).await?;
    b.rbd(&["mirror", "image", "resync", &apart]).await?;
    for (seed, name) in (10..).zip(names) {
        let spec = stage.spec(name);
        a.apply(&spec, Extents::default().random(&scattered(seed, 100, 0..SIZE)).zeroes(MIB, 2 * MIB))
            .await?;
        a.rbd(&["mirror", "image", "demote", &spec]).await?;
    }
    let held = b.sha256(&apart).await?;

    let mut daemon = stage.daemon(b).await?;
    for (name, id) in names.into_iter().zip(&ids).take(2) {
        let spec = stage.spec(name);
        let status = stage.state(b, name, "up+unknown").await.with_context(|| name.to_string())?;
        ensure!(status["description"] == "remote image is not primary", "{name}: {status}");
        expect_same(&stage.a, &stage.b, &spec).await.with_context(|| format!("{name}, said to have all"))?;
        b.rbd(&["mirror", "image", "promote", &spec]).await.with_context(|| name.to_string())?;
        expect_same(&stage.a, &stage.b, &spec).await.with_context(|| format!("{name}, promoted"))?;
        ensure!(image_id(b, &spec).await? == *id, "{name}: a resync made the image anew");
    }
    let status = stage.state(b, "apart", "up+starting_replay").await?;
    let description = status["description"].as_str().unwrap_or_default();
    ensure!(description.contains("resync") && description.contains("primary"), "{status}");
    ensure!(b.sha256(&apart).await? == held, "two demoted images were brought in line with each other");
    a.rbd(&["mirror", "image", "promote", &apart]).await?;
    stage.state(b, "apart", "up+replaying").await?;
    stage.replayed("apart").await?;
    daemon.stop(LIMIT).await?;
    stage.strike().await
}
