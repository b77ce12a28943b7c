//! A daemon killed at once under a steady load: which share of the writes had not arrived.
//!
//! The writer keeps 16 writes of 4 KiB in flight and flushes every 64 of them. A write counts as arrived when the copy
//! holds it, or a later one to the same block.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::StampedWriter;
use tests::stamped::{BLOCK_BYTES, Pattern, Writing, stamps_of};

use super::followed;
use crate::figures::{Measure, Results, Target, Who};
use crate::ground::{Ground, spec};
use crate::turn::{SMALL_LIMIT, Turn};

const LOST: Measure = Measure {
    name: "daemon killed under load: of the last 10 s of writes had not arrived",
    unit: "%",
    target: Target::AtMost(1.0),
};
const LOST_OF_ALL: Measure = Measure { name: "  of all writes", unit: "%", target: Target::Told };
const LOAD: Measure = Measure { name: "  the load", unit: "writes/s", target: Target::Told };

const IMAGE: &str = "loaded";
const BYTES: u64 = 256 << 20;
/// How long there is load before the daemon is killed.
const LOAD_TIME: Duration = Duration::from_secs(20);
const WINDOW: Duration = Duration::from_secs(10);

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    for who in Who::alternate(1) {
        let turn = Turn::begin(ground, who).await?;
        followed(ground, &turn, IMAGE, BYTES).await?;
        let blocks = BYTES / BLOCK_BYTES as u64;
        let pattern = Pattern { seed: rand::random(), blocks, batch_min: 64, batch_max: 64, discards: 0 };
        let writing = Writing { pattern, depth: 16, snap_every: 0, batches: 0, pause: Duration::ZERO };
        let mut writer = StampedWriter::start(ground.a(), &spec(IMAGE), &writing)?;
        let log = batches_of(&mut writer).await?;
        turn.kill().await?;
        let killed = Instant::now();
        writer.stop(SMALL_LIMIT).await?;
        let copy = ground.b().read(&spec(IMAGE)).await?;
        let stamps = stamps_of(&copy[..BYTES as usize])?;
        let durable = |since: Option<Duration>| {
            let before = |at: &Instant| since.is_some_and(|since| *at + since < killed);
            let first = log.iter().rev().find(|(_, at)| before(at)).map_or(0, |(batch, _)| *batch);
            let last = log.last_key_value().map_or(0, |(batch, _)| *batch);
            share_lost(&pattern, &stamps, first, last)
        };
        results.add(LOST, who, 100.0 * durable(Some(WINDOW))?);
        results.add(LOST_OF_ALL, who, 100.0 * durable(None)?);
        let writes = log.last_key_value().map_or(0, |(batch, _)| pattern.operations(*batch));
        results.add(LOAD, who, writes as f64 / LOAD_TIME.as_secs_f64());
    }
    Ok(())
}

/// Lets the writer write for [`LOAD_TIME`]; when each batch was durable.
async fn batches_of(writer: &mut StampedWriter) -> Result<BTreeMap<u64, Instant>> {
    writer.reach(1, SMALL_LIMIT).await?;
    let (mut batches, mut log) = (writer.batches(), BTreeMap::new());
    let until = Instant::now() + LOAD_TIME;
    while Instant::now() < until {
        batches.changed().await.context("the writer ended")?;
        log.insert(*batches.borrow_and_update(), Instant::now());
    }
    Ok(log)
}

/// The share of the writes in the batches `first + 1..=last` that the copy does not hold.
fn share_lost(pattern: &Pattern, stamps: &[u64], first: u64, last: u64) -> Result<f64> {
    ensure!(last > first, "nothing was written");
    let (from, to) = (pattern.operations(first), pattern.operations(last));
    let lost = pattern
        .batches()
        .take(last as usize)
        .flatten()
        .filter(|(block, stamp)| *stamp > from && stamps[*block as usize] < *stamp);
    Ok(lost.count() as f64 / (to - from) as f64)
}
