//! First copy of one large journalled image, from `rbd mirror image enable` until the copy holds all of it.

use std::time::{Duration, Instant};

use anyhow::Result;
use rbd::directory;

use super::{JOURNALLED, current, verify};
use crate::figures::{Measure, Results, Target, Who};
use crate::ground::{Ground, spec};
use crate::turn::{LARGE_LIMIT, Turn};
use crate::work::full_image;

const RATE: Measure = Measure {
    name: "first copy of a journalled image of 512 MiB",
    unit: "MiB/s",
    target: Target::RatioAtLeast(2.5),
};

const IMAGE: &str = "journalled";
const BYTES: u64 = 512 << 20;
/// How long the removed copy may take to be gone.
const REMOVAL_LIMIT: Duration = Duration::from_secs(120);

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    let written = full_image(ground, IMAGE, BYTES, 512, JOURNALLED).await?;
    for who in Who::alternate(ground.repetitions(2, 1)) {
        let turn = Turn::begin(ground, who).await?;
        ground.a().rbd(&["mirror", "image", "enable", &spec(IMAGE), "journal"]).await?;
        let asked = Instant::now();
        let arrived = turn.explain(current(ground, IMAGE, &written.probes, LARGE_LIMIT).await)?;
        turn.explain(verify(ground, IMAGE).await)?;
        results.add(RATE, who, (BYTES >> 20) as f64 / (arrived - asked).as_secs_f64());
        ground.a().rbd(&["mirror", "image", "disable", &spec(IMAGE)]).await?;
        let removed = tests::wait::until("the copy to be removed", REMOVAL_LIMIT, || async {
            Ok(directory::directory_id_of(&ground.copy, IMAGE).await?.is_none().then_some(()))
        });
        turn.explain(removed.await)?;
        turn.end().await?;
    }
    Ok(())
}
