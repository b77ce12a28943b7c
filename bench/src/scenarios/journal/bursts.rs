//! Bursts: many writes as fast as the primary takes them, from the first one until the copy equals the primary; and the
//! same with a daemon that is only started when all is written, from its start on.
//!
//! Bursts of a second sort come from a writer that flushes after every write, as databases do: the copy may not show a
//! write before all that were flushed before it.
//!
//! All of it runs on the same processors: the writers, both clusters and the daemon. What the writing alone takes, and what
//! the OSDs use for it and for the copy, is told beside it.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::{followed, verify};
use crate::arrival;
use crate::figures::{Measure, Results, Target, Who};
use crate::ground::{Ground, spec};
use crate::turn::{LARGE_LIMIT, Turn};
use crate::work::BLOCK_BYTES;

/// A kind of burst.
struct Burst {
    /// How fio writes.
    writer: &'static [&'static str],
    writes: u64,
    block_bytes: u64,
    rate: Measure,
    /// What the rate counts, per write.
    unit_per_write: f64,
    behind: Measure,
    cpu: Measure,
    osd_cpu: Measure,
    writing: Measure,
    /// What the primary takes while nobody copies.
    alone: Measure,
    backlog: Measure,
}

const RANDOM: &[&str] = &["--rw=randwrite", "--iodepth=32"];
const BURSTS: [Burst; 2] = [
    Burst {
        writer: RANDOM,
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
        osd_cpu: Measure { name: "  CPU of the OSDs per event", unit: "µs", target: Target::Told },
        writing: Measure { name: "  what the primary took", unit: "writes/s", target: Target::Told },
        alone: Measure { name: "  what it takes with no daemon", unit: "writes/s", target: Target::Told },
        backlog: Measure {
            name: "  all written before the daemon starts",
            unit: "events/s",
            target: Target::Told,
        },
    },
    Burst {
        writer: RANDOM,
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
        osd_cpu: Measure { name: "  its CPU of the OSDs per event", unit: "µs", target: Target::Told },
        writing: Measure { name: "  what the primary took of it", unit: "MiB/s", target: Target::Told },
        alone: Measure { name: "  what it takes of it with no daemon", unit: "MiB/s", target: Target::Told },
        backlog: Measure {
            name: "  all of it written before the daemon starts",
            unit: "MiB/s",
            target: Target::Told,
        },
    },
];
const FLUSHED: [Burst; 2] = [
    Burst {
        writer: &["--rw=randwrite", "--iodepth=1", "--fsync=1"],
        writes: 4096,
        block_bytes: 4096,
        rate: Measure {
            name: "4096 random 4 KiB writes, each flushed",
            unit: "writes/s",
            target: Target::Told,
        },
        unit_per_write: 1.0,
        behind: Measure {
            name: "  last flushed write to current copy",
            unit: "s",
            target: Target::AtMost(1.0),
        },
        cpu: Measure { name: "  CPU per flushed write", unit: "µs", target: Target::Told },
        osd_cpu: Measure { name: "  CPU of the OSDs per flushed write", unit: "µs", target: Target::Told },
        writing: Measure {
            name: "  what the primary took of flushed writes",
            unit: "writes/s",
            target: Target::Told,
        },
        alone: Measure {
            name: "  what it takes of them with no daemon",
            unit: "writes/s",
            target: Target::Told,
        },
        backlog: Measure {
            name: "  flushed writes before the daemon starts",
            unit: "writes/s",
            target: Target::Told,
        },
    },
    Burst {
        writer: &["--rw=randwrite", "--iodepth=16", "--fsync=1"],
        writes: 4096,
        block_bytes: 4096,
        rate: Measure { name: "the same, 16 at a time", unit: "writes/s", target: Target::Told },
        unit_per_write: 1.0,
        behind: Measure {
            name: "  last of 16 at a time to current copy",
            unit: "s",
            target: Target::AtMost(1.0),
        },
        cpu: Measure { name: "  CPU per write, 16 at a time", unit: "µs", target: Target::Told },
        osd_cpu: Measure { name: "  CPU of the OSDs, 16 at a time", unit: "µs", target: Target::Told },
        writing: Measure {
            name: "  what the primary took, 16 at a time",
            unit: "writes/s",
            target: Target::Told,
        },
        alone: Measure {
            name: "  what it takes, 16 at a time, no daemon",
            unit: "writes/s",
            target: Target::Told,
        },
        backlog: Measure {
            name: "  16 at a time before the daemon starts",
            unit: "writes/s",
            target: Target::Told,
        },
    },
];
const PEAK: Measure = Measure { name: "peak memory with these backlogs", unit: "MiB", target: Target::Told };

const IMAGE: &str = "burst";
const BYTES: u64 = 1 << 30;
/// So many writes are looked for first: some more than are in flight at once.
const NEWEST: usize = 64;

/// Writes of a writer who flushes seldom.
pub async fn unflushed(ground: &Ground, results: &mut Results) -> Result<()> {
    for who in Who::alternate(ground.repetitions(2, 1)) {
        let turn = Turn::begin(ground, who).await?;
        live(ground, results, &turn, &BURSTS).await?;
        results.add(PEAK, who, turn.peak_bytes()? as f64 / f64::from(1 << 20));
        turn.end().await?;
    }
    backlogs(ground, results, &BURSTS).await
}

/// Writes that are flushed one by one.
pub async fn flushed(ground: &Ground, results: &mut Results) -> Result<()> {
    for who in Who::alternate(ground.repetitions(2, 1)) {
        let turn = Turn::begin(ground, who).await?;
        live(ground, results, &turn, &FLUSHED).await?;
        turn.end().await?;
    }
    backlogs(ground, results, &FLUSHED).await
}

/// Bursts while a daemon runs.
async fn live(ground: &Ground, results: &mut Results, turn: &Turn<'_>, bursts: &[Burst]) -> Result<()> {
    followed(ground, turn, IMAGE, BYTES).await?;
    for burst in bursts {
        one(ground, results, turn, burst).await?;
    }
    Ok(())
}

/// Bursts that are written before a daemon runs.
async fn backlogs(ground: &Ground, results: &mut Results, bursts: &[Burst]) -> Result<()> {
    for who in Who::alternate(1) {
        for burst in bursts {
            let Written { took_s, newest } = write(ground, burst).await?;
            results.add(burst.alone, who, burst.amount() / took_s);
            let turn = Turn::launch(ground, who).await?;
            let equal = turn.explain(arrival::equals_primary(ground, IMAGE, &newest, LARGE_LIMIT).await)?;
            turn.explain(verify(ground, IMAGE).await)?;
            results.add(burst.backlog, who, burst.amount() / (equal - turn.started).as_secs_f64());
            turn.end().await?;
        }
    }
    Ok(())
}

impl Burst {
    /// How much it is, as its rate counts it.
    fn amount(&self) -> f64 {
        self.writes as f64 * self.unit_per_write
    }
}

/// What a burst left.
struct Written {
    /// How long the writing took, in seconds.
    took_s: f64,
    /// Where in the image the blocks are that were written last.
    newest: Vec<u64>,
}

/// Writes a burst.
async fn write(ground: &Ground, burst: &Burst) -> Result<Written> {
    let (ios, block) = (format!("--number_ios={}", burst.writes), format!("--bs={}", burst.block_bytes));
    let size = format!("--size={BYTES}");
    let log = tempfile::NamedTempFile::new().context("making room for a list of what fio writes")?;
    let log_option = format!("--write_iolog={}", log.path().display());
    let sizes = ["--randrepeat=0", "--refill_buffers", &ios, &block, &size, &log_option];
    let said = ground.a().fio(&spec(IMAGE), "", &[burst.writer, &sizes].concat()).await?;
    let took_ms = said["write"]["runtime"].as_f64().context("fio tells how long it wrote")?;
    let log = std::fs::read_to_string(log.path()).context("reading what fio wrote")?;
    let newest = newest_blocks(&log, burst.block_bytes);
    ensure!(newest.len() == NEWEST, "fio lists only {} writes", newest.len());
    Ok(Written { took_s: took_ms / 1e3, newest })
}

/// The last block of each of the newest writes that fio lists as `… write OFFSET LENGTH`, oldest first.
fn newest_blocks(log: &str, write_bytes: u64) -> Vec<u64> {
    let offset = |line: &str| {
        let (_, extent) = line.split_once(" write ")?;
        extent.split(' ').next()?.parse::<u64>().ok()
    };
    let newest = log.lines().rev().filter_map(offset).take(NEWEST);
    let mut blocks: Vec<u64> = newest.map(|offset| offset + write_bytes - BLOCK_BYTES).collect();
    blocks.reverse();
    blocks
}

async fn one(ground: &Ground, results: &mut Results, turn: &Turn<'_>, burst: &Burst) -> Result<()> {
    let before = (turn.cpu_s()?, ground.osd_cpu_s()?);
    let Written { took_s, newest } = write(ground, burst).await?;
    let written = Instant::now();
    let equal = turn.explain(arrival::equals_primary(ground, IMAGE, &newest, LARGE_LIMIT).await)?;
    let behind_s = (equal - written).as_secs_f64();
    let used = (turn.cpu_s()? - before.0, ground.osd_cpu_s()? - before.1);
    turn.explain(verify(ground, IMAGE).await)?;
    let per_event_us = |used_s: f64| used_s * 1e6 / burst.writes as f64;
    results.add(burst.rate, turn.who(), burst.amount() / (took_s + behind_s));
    results.add(burst.behind, turn.who(), behind_s);
    results.add(burst.writing, turn.who(), burst.amount() / took_s);
    results.add(burst.cpu, turn.who(), per_event_us(used.0));
    results.add(burst.osd_cpu, turn.who(), per_event_us(used.1));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_writes_are_known_by_their_last_blocks() {
        let lines = (0..100_u64).map(|n| format!("{n} job.0.0 write {} 65536\n", n * 65536));
        let log =
            format!("fio version 3 iolog\n0 job.0.0 add\n0 job.0.0 open\n{}", lines.collect::<String>());
        let blocks = newest_blocks(&format!("{log}99 job.0.0 close\n"), 65536);
        assert_eq!(blocks.len(), NEWEST);
        assert_eq!(blocks.first(), Some(&(37 * 65536 - BLOCK_BYTES)));
        assert_eq!(blocks.last(), Some(&(100 * 65536 - BLOCK_BYTES)));
    }
}
