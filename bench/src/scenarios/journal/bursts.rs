//! Bursts: many writes as fast as the primary takes them, from the first one until the copy is current.

use std::time::Instant;

use anyhow::Result;

use super::{current, followed, verify};
use crate::figures::{Measure, Results, Target, Who};
use crate::ground::{Ground, spec};
use crate::turn::{LARGE_LIMIT, Turn};
use crate::work::burst as burst_of;

/// A kind of burst.
struct Burst {
    writes: u64,
    block_bytes: u64,
    rate: Measure,
    /// What the rate counts, per write.
    unit_per_write: f64,
    behind: Measure,
    cpu: Measure,
}

const BURSTS: [Burst; 2] = [
    Burst {
        writes: 16384,
        block_bytes: 4096,
        rate: Measure {
            name: "burst of 16384 random 4 KiB writes",
            unit: "events/s",
            target: Target::RatioAtLeast(10.0),
        },
        unit_per_write: 1.0,
        behind: Measure { name: "  last write to current copy", unit: "s", target: Target::AtMost(1.0) },
        cpu: Measure { name: "  CPU per event", unit: "µs", target: Target::RatioAtMost(1.0 / 3.0) },
    },
    Burst {
        writes: 8192,
        block_bytes: 65536,
        rate: Measure {
            name: "burst of 8192 random 64 KiB writes",
            unit: "MiB/s",
            target: Target::RatioAtLeast(15.0),
        },
        unit_per_write: 1.0 / 16.0,
        behind: Measure { name: "  its last write to current copy", unit: "s", target: Target::Told },
        cpu: Measure { name: "  its CPU per event", unit: "µs", target: Target::Told },
    },
];
const PEAK: Measure = Measure { name: "peak memory with these backlogs", unit: "MiB", target: Target::Told };

const IMAGE: &str = "burst";
const BYTES: u64 = 1 << 30;

/// Runs them.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    for who in Who::alternate(ground.repetitions(2, 1)) {
        let turn = Turn::begin(ground, who).await?;
        followed(ground, &turn, IMAGE, BYTES).await?;
        for burst in &BURSTS {
            one(ground, results, &turn, burst).await?;
        }
        results.add(PEAK, who, turn.peak_bytes()? as f64 / f64::from(1 << 20));
        turn.end().await?;
    }
    Ok(())
}

async fn one(ground: &Ground, results: &mut Results, turn: &Turn<'_>, burst: &Burst) -> Result<()> {
    let (extents, probes) = burst_of(burst.writes, burst.block_bytes, BYTES);
    let cpu_s = turn.cpu_s()?;
    let began = Instant::now();
    ground.a().apply(&spec(IMAGE), extents).await?;
    let written = Instant::now();
    let mut arrived = turn.explain(current(ground, IMAGE, &probes, LARGE_LIMIT).await)?;
    // Writes that were in flight together with the last ones may be applied behind them.
    while verify(ground, IMAGE).await.is_err() && arrived - began < LARGE_LIMIT {
        arrived = Instant::now();
    }
    let used_s = turn.cpu_s()? - cpu_s;
    turn.explain(verify(ground, IMAGE).await)?;
    let amount = burst.writes as f64 * burst.unit_per_write;
    results.add(burst.rate, turn.who(), amount / (arrived - began).as_secs_f64());
    results.add(burst.behind, turn.who(), arrived.saturating_duration_since(written).as_secs_f64());
    results.add(burst.cpu, turn.who(), used_s * 1e6 / burst.writes as f64);
    Ok(())
}
