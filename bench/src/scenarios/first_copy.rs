//! First copies of large images.
//!
//! The clock runs while there is something to copy: from the first primary mirror-snapshot (of four, made at the same
//! time) that is complete until the last copy has arrived, but for gaps in which all that there was had been copied.
//! What the copies' cluster can write is measured in the same run, with `rados bench`.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use rbd::directory;

use super::{Command, LARGE_BYTES, LARGE_IMAGES, all_at_once, large_images};
use crate::figures::{Figure, Measure, Results, Target, Who, median};
use crate::ground::{Ground, RAW_POOL, spec};
use crate::turn::Turn;
use crate::work::Written;

const RATE: Measure =
    Measure { name: "first copy of 4 x 256 MiB", unit: "MiB/s", target: Target::RatioAtLeast(2.5) };
const DAEMON_CPU: Measure = Measure { name: "  CPU per GiB", unit: "s", target: Target::Told };
const OSD_CPU: Measure = Measure { name: "  CPU of the OSDs per GiB", unit: "s", target: Target::Told };
const PROCESSORS: Measure = Measure { name: "  processors busy with it", unit: "", target: Target::Told };
const SHARE: Measure =
    Measure { name: "  of what rados bench writes", unit: "%", target: Target::AtLeast(50.0) };

/// How long removed copies may take to be gone.
const REMOVAL_LIMIT: Duration = Duration::from_secs(120);

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    let images = large_images(ground).await?;
    let mut raw = Vec::new();
    for who in Who::alternate(ground.repetitions(3, 1)) {
        raw.push(rados_bench(ground).await?);
        let turn = Turn::begin(ground, who).await?;
        let copied = all_at_once(&turn, &images, Command::Enable).await?;
        let bytes = (LARGE_IMAGES * LARGE_BYTES) as f64;
        results.add(RATE, who, bytes / f64::from(1 << 20) / copied.took_s);
        let per_gib = |used_s| used_s / bytes * f64::from(1 << 30);
        results.add(DAEMON_CPU, who, per_gib(copied.daemon_cpu_s));
        results.add(OSD_CPU, who, per_gib(copied.osd_cpu_s));
        results.add(PROCESSORS, who, copied.processors());
        turn.explain(remove_copies(ground, &images).await)?;
        turn.end().await?;
    }
    let raw = median(&raw).context("rados bench was not run")?;
    println!("             rados bench writes {raw:.0} MiB/s");
    let shares = |figure: &Figure| {
        let ours = figure.ours.iter().map(|rate| (Who::Ours, 100.0 * rate / raw));
        ours.chain(figure.ceph.iter().map(|rate| (Who::Ceph, 100.0 * rate / raw))).collect::<Vec<_>>()
    };
    for (who, share) in results.get(RATE).map(shares).unwrap_or_default() {
        results.add(SHARE, who, share);
    }
    Ok(())
}

/// What `rados bench` writes in a few seconds, in MiB/s.
async fn rados_bench(ground: &Ground) -> Result<f64> {
    let seconds = if ground.quick { "1" } else { "3" };
    let said =
        ground.b().rados(&["bench", "-p", RAW_POOL, seconds, "write", "-b", "4194304", "-t", "16"]).await?;
    let line = said.lines().find_map(|line| line.strip_prefix("Bandwidth (MB/sec):"));
    line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("`rados bench` said {said}"))
}

/// Takes mirroring away, and waits until the daemon has removed the copies.
async fn remove_copies(ground: &Ground, images: &[Written]) -> Result<()> {
    let disable = images
        .iter()
        .map(async |written| ground.a().rbd(&["mirror", "image", "disable", &spec(&written.image)]).await);
    try_join_all(disable).await?;
    tests::wait::until("the copies to be removed", REMOVAL_LIMIT, || async {
        let left = directory::list(&ground.copy).await?;
        Ok((!images.iter().any(|written| left.contains_key(&written.image))).then_some(()))
    })
    .await
}
