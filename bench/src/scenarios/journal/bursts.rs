//! Bursts: many writes as fast as the primary takes them, from the first one until the copy equals the primary.

use std::time::Instant;

use anyhow::{Context, Result};

use super::{followed, verify};
use crate::arrival;
use crate::figures::{Measure, Results, Target, Who};
use crate::ground::{Ground, spec};
use crate::turn::{LARGE_LIMIT, Turn};

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
const WRITING: Measure = Measure { name: "  what the primary took", unit: "per s", target: Target::Told };
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
    let cpu_s = turn.cpu_s()?;
    let (ios, block) = (format!("--number_ios={}", burst.writes), format!("--bs={}", burst.block_bytes));
    let size = format!("--size={BYTES}");
    let write = ["--rw=randwrite", "--iodepth=32", "--randrepeat=0", "--refill_buffers", &ios, &block, &size];
    let said = ground.a().fio(&spec(IMAGE), "", &write).await?;
    let written = Instant::now();
    let took_ms = said["write"]["runtime"].as_f64().context("fio tells how long it wrote")?;
    let equal = arrival::equals_primary(ground, IMAGE, LARGE_LIMIT).await;
    let behind_s = (turn.explain(equal)? - written).as_secs_f64();
    let used_s = turn.cpu_s()? - cpu_s;
    turn.explain(verify(ground, IMAGE).await)?;
    let amount = burst.writes as f64 * burst.unit_per_write;
    results.add(burst.rate, turn.who(), amount / (took_ms / 1e3 + behind_s));
    results.add(burst.behind, turn.who(), behind_s);
    results.add(WRITING, turn.who(), amount / took_ms * 1e3);
    results.add(burst.cpu, turn.who(), used_s * 1e6 / burst.writes as f64);
    Ok(())
}
