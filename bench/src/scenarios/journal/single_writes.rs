//! Single writes, a second apart, on a running image: from the moment that a write is durable on the primary until the
//! copy shows it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rados::{Extent, SnapId};
use rbd::Image;
use tests::StampedWriter;
use tests::stamped::{BLOCK_BYTES, Pattern, Writing};

use super::followed;
use crate::arrival::LOOK_INTERVAL;
use crate::figures::{Measure, Results, Target, Who, median};
use crate::ground::{Ground, spec};
use crate::turn::{SMALL_LIMIT, Turn};

const VISIBLE: Measure = Measure {
    name: "one journalled write: written to visible at the copy, median",
    unit: "ms",
    target: Target::AtMost(100.0),
};
const WORST: Measure = Measure { name: "  the slowest of them", unit: "ms", target: Target::Told };

const IMAGE: &str = "paced";
const BYTES: u64 = 16 << 20;

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    for who in Who::alternate(1) {
        let turn = Turn::begin(ground, who).await?;
        followed(ground, &turn, IMAGE, BYTES).await?;
        let seed = rand::random();
        let times = turn.explain(times(ground, seed, ground.repetitions(20, 5)).await)?;
        results.add(VISIBLE, who, median(&times).context("nothing was written")?);
        results.add(WORST, who, times.iter().copied().fold(0.0, f64::max));
        turn.end().await?;
    }
    Ok(())
}

/// What each of `count` writes took, in milliseconds.
async fn times(ground: &Ground, seed: u64, count: usize) -> Result<Vec<f64>> {
    let blocks = BYTES / BLOCK_BYTES as u64;
    let pattern = Pattern { seed, blocks, batch_min: 1, batch_max: 1, discards: 0 };
    // Not in step with anybody's polling.
    let pause = Duration::from_millis(1130);
    let writing = Writing { pattern, depth: 1, snap_every: 0, batches: 0, pause };
    let (copy, _) = Image::open_by_name(&ground.copy, IMAGE).await?;
    let mut writer = StampedWriter::start(ground.a(), &spec(IMAGE), &writing)?;
    // The first one opens the journal.
    writer.reach(1, SMALL_LIMIT).await?;
    let mut times = Vec::new();
    while times.len() < count {
        let next = writer.batch() + 1;
        writer.reach(next, SMALL_LIMIT).await?;
        let durable = Instant::now();
        visible(&copy, &pattern, next).await?;
        times.push(durable.elapsed().as_secs_f64() * 1e3);
    }
    writer.stop(SMALL_LIMIT).await?;
    Ok(times)
}

/// Waits until the copy shows the only write of a batch.
async fn visible(copy: &Image, pattern: &Pattern, batch: u64) -> Result<()> {
    let written = pattern.batches().nth(batch as usize - 1).and_then(|mut writes| writes.pop_first());
    let (block, stamp) = written.context("a batch writes something")?;
    let (object, offset) = copy.layout().locate(block * BLOCK_BYTES as u64);
    let (object, extent) = (copy.data_object(object), Extent::new(offset, 8));
    let started = Instant::now();
    loop {
        match copy.data_ioctx().read_extent(&object, SnapId::HEAD, extent).await {
            Ok(bytes) if bytes[..] == stamp.to_le_bytes() => return Ok(()),
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        if started.elapsed() > SMALL_LIMIT {
            bail!("write {stamp} to block {block} has not arrived after {SMALL_LIMIT:?}");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
