//! Deltas of many small writes.
//!
//! The clock runs while there is something to copy: from the first primary mirror-snapshot (of four, made at the same
//! time) that is complete until the last copy has arrived, but for gaps in which all that there was had been copied.

use anyhow::Result;
use futures::future::try_join_all;

use super::{Command, LARGE_BYTES, LARGE_IMAGES, all_at_once, large_images};
use crate::arrival;
use crate::figures::{Measure, Results, Target, Who};
use crate::ground::Ground;
use crate::turn::Turn;
use crate::work::write_blocks;

const RATE: Measure = Measure {
    name: "delta of 4 x 4000 random 4 KiB writes",
    unit: "writes/s",
    target: Target::RatioAtLeast(3.0),
};

/// Writes to each image.
const WRITES: u64 = 4000;

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    let images = large_images(ground).await?;
    if arrival::newest_primary(ground, &images[0].image).await?.is_none() {
        let turn = Turn::begin(ground, Who::Ours).await?;
        turn.explain(all_at_once(ground, &images, Command::Enable).await)?;
        turn.end().await?;
    }
    for who in Who::alternate(ground.repetitions(2, 1)) {
        let turn = Turn::begin(ground, who).await?;
        // The first round of a turn takes over what the other daemon left; the clock is off.
        let write =
            |count| images.iter().map(move |image| write_blocks(ground, &image.image, count, LARGE_BYTES));
        let written = try_join_all(write(1)).await?;
        turn.explain(all_at_once(ground, &written, Command::Snapshot).await)?;
        for _ in 0..ground.repetitions(3, 1) {
            let written = try_join_all(write(WRITES)).await?;
            let copied = turn.explain(all_at_once(ground, &written, Command::Snapshot).await)?;
            results.add(RATE, who, (LARGE_IMAGES * WRITES) as f64 / copied.took_s);
        }
        turn.end().await?;
    }
    Ok(())
}
