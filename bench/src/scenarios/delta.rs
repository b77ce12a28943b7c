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
const DAEMON_CPU: Measure = Measure { name: "  CPU per write", unit: "µs", target: Target::Told };
const OSD_CPU: Measure = Measure { name: "  CPU of the OSDs per write", unit: "µs", target: Target::Told };
const PROCESSORS: Measure = Measure { name: "  processors at work", unit: "", target: Target::Told };

/// Writes to each image.
const WRITES: u64 = 4000;

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    let images = large_images(ground).await?;
    if arrival::newest_primary(ground, &images[0].image).await?.is_none() {
        let turn = Turn::begin(ground, Who::Ours).await?;
        all_at_once(&turn, &images, Command::Enable).await?;
        turn.end().await?;
    }
    for who in Who::alternate(ground.repetitions(2, 1)) {
        let turn = Turn::begin(ground, who).await?;
        // The first round of a turn takes over what the other daemon left; the clock is off.
        let write =
            |count| images.iter().map(move |image| write_blocks(ground, &image.image, count, LARGE_BYTES));
        let written = try_join_all(write(1)).await?;
        all_at_once(&turn, &written, Command::Snapshot).await?;
        for _ in 0..ground.repetitions(3, 1) {
            let written = try_join_all(write(WRITES)).await?;
            let copied = all_at_once(&turn, &written, Command::Snapshot).await?;
            let writes = (LARGE_IMAGES * WRITES) as f64;
            results.add(RATE, who, writes / copied.took_s);
            results.add(DAEMON_CPU, who, copied.daemon_cpu_s * 1e6 / writes);
            results.add(OSD_CPU, who, copied.osd_cpu_s * 1e6 / writes);
            results.add(PROCESSORS, who, copied.processors());
        }
        turn.end().await?;
    }
    Ok(())
}
