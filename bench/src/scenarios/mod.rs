//! The scenarios: each a piece of work that both daemons do in turns, or both operators' commands.

mod delta;
mod enable;
mod first_copy;
mod idle;
mod journal;
mod one_write;
mod operator;
mod resync;
mod start;
mod verify;

use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::{BoxFuture, try_join_all};
use rados::SnapId;

use crate::arrival;
use crate::figures::Results;
use crate::ground::{Ground, spec};
use crate::turn::{LARGE_LIMIT, SMALL_LIMIT, Turn};
use crate::work::{Written, full_image};

/// Does the work, and adds what it measured.
type Run = for<'a> fn(&'a Ground, &'a mut Results) -> BoxFuture<'a, Result<()>>;

/// A scenario.
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// Runs it.
    pub run: Run,
}

/// All of them, in the order in which they run.
pub static SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "first-copy",
        about: "first copies of 4 full images of 256 MiB at once",
        run: |ground, results| Box::pin(first_copy::run(ground, results)),
    },
    Scenario {
        name: "delta",
        about: "deltas of 4000 random 4 KiB writes in each of 4 images at once",
        run: |ground, results| Box::pin(delta::run(ground, results)),
    },
    Scenario {
        name: "one-write",
        about: "one 4 KiB write, a mirror-snapshot, and its copy",
        run: |ground, results| Box::pin(one_write::run(ground, results)),
    },
    Scenario {
        name: "enable",
        about: "enabling mirroring of a small image, and its first copy",
        run: |ground, results| Box::pin(enable::run(ground, results)),
    },
    Scenario {
        name: "start",
        about: "starting a daemon after one that ended in order, and one that was killed",
        run: |ground, results| Box::pin(start::run(ground, results)),
    },
    Scenario {
        name: "resync",
        about: "resync of a copy of 512 MiB of which 1 % went astray",
        run: |ground, results| Box::pin(resync::run(ground, results)),
    },
    Scenario {
        name: "idle",
        about: "a minute with 500 images to which nothing happens",
        run: |ground, results| Box::pin(idle::run(ground, results)),
    },
    Scenario {
        name: "journal-first-copy",
        about: "first copy of a journalled image of 512 MiB",
        run: |ground, results| Box::pin(journal::first_copy(ground, results)),
    },
    Scenario {
        name: "journal-burst",
        about: "bursts of journalled writes: 16384 of 4 KiB, and 8192 of 64 KiB",
        run: |ground, results| Box::pin(journal::bursts(ground, results)),
    },
    Scenario {
        name: "journal-flushes",
        about: "journalled writes of 4 KiB, each flushed: one at a time, and 16",
        run: |ground, results| Box::pin(journal::flushed_bursts(ground, results)),
    },
    Scenario {
        name: "journal-one-write",
        about: "single journalled writes, written to visible at the copy",
        run: |ground, results| Box::pin(journal::single_writes(ground, results)),
    },
    Scenario {
        name: "journal-loss",
        about: "a daemon killed under a steady load of journalled writes: how many had not arrived",
        run: |ground, results| Box::pin(journal::loss(ground, results)),
    },
    Scenario {
        name: "journal-idle",
        about: "a minute with 1000 journalled images to which nothing happens",
        run: |ground, results| Box::pin(idle::journalled(ground, results)),
    },
    Scenario {
        name: "operator",
        about: "demoting and promoting a pool of 200 images, in both modes",
        run: |ground, results| Box::pin(operator::run(ground, results)),
    },
    Scenario {
        name: "verify",
        about: "the proof that a copy of 4 GiB equals its primary",
        run: |ground, results| Box::pin(verify::run(ground, results)),
    },
];

/// How many large images there are, and how large they are.
const LARGE_IMAGES: u64 = 4;
const LARGE_BYTES: u64 = 256 << 20;

/// The large images, made when they are not there.
async fn large_images(ground: &Ground) -> Result<Vec<Written>> {
    let mut images = Vec::new();
    for n in 0..LARGE_IMAGES {
        images.push(full_image(ground, &format!("large-{n}"), LARGE_BYTES, n, &[]).await?);
    }
    Ok(images)
}

/// What copying several images at once took.
struct Together {
    /// How long there was something to copy, in seconds: an image had a complete primary mirror-snapshot whose copy had
    /// not arrived. The commands are given at the same time, but the monitors may serve some of them a second later than
    /// others; a daemon that has copied by then all that there was is not charged for waiting.
    took_s: f64,
    /// CPU time that the daemon used meanwhile, in seconds.
    daemon_cpu_s: f64,
    /// CPU time that the OSDs of both clusters used meanwhile, in seconds: that of the looking at the copies is in it.
    osd_cpu_s: f64,
}

impl Together {
    /// How many of the processors worked for the copies.
    fn processors(&self) -> f64 {
        (self.daemon_cpu_s + self.osd_cpu_s) / self.took_s
    }
}

/// How the images get the mirror-snapshots that are to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    /// `rbd mirror image enable`.
    Enable,
    /// `rbd mirror image snapshot`.
    Snapshot,
}

/// Gives the command for all images at the same time, waits for all copies, and compares them.
async fn all_at_once(turn: &Turn<'_>, images: &[Written], command: Command) -> Result<Together> {
    turn.explain(copied_at_once(turn, images, command).await)
}

async fn copied_at_once(turn: &Turn<'_>, images: &[Written], command: Command) -> Result<Together> {
    let ground = turn.ground();
    let before = (turn.cpu_s()?, ground.osd_cpu_s()?);
    let rounds = images.iter().map(async |written| {
        let image = &written.image;
        let known = arrival::newest_primary(ground, image).await?;
        let watched = async {
            let (taken, snap) = arrival::primary_snapshot(ground, image, known, SMALL_LIMIT).await?;
            let arrived = arrival::copied(ground, image, snap, &written.probes, LARGE_LIMIT).await?;
            Ok::<(Instant, Instant, SnapId), anyhow::Error>((taken, arrived, snap))
        };
        let given = async {
            match command {
                Command::Enable => {
                    ground
                        .a()
                        .rbd(&["mirror", "image", "enable", &spec(image), "snapshot"])
                        .await
                        .map(drop)?;
                }
                Command::Snapshot => ground.a().mirror_snapshot(&spec(image)).await.map(drop)?,
            }
            Ok(())
        };
        let ((taken, arrived, snap), ()) = futures::try_join!(watched, given)?;
        Ok::<_, anyhow::Error>((taken, arrived, snap))
    });
    let rounds = try_join_all(rounds).await?;
    let (daemon_cpu_s, osd_cpu_s) = (turn.cpu_s()? - before.0, ground.osd_cpu_s()? - before.1);
    let took_s = covered(rounds.iter().map(|(taken, arrived, _)| (*taken, *arrived)).collect()).as_secs_f64();
    for (written, (_, _, snap)) in images.iter().zip(&rounds) {
        arrival::verify(ground, &written.image, *snap).await?;
    }
    Ok(Together { took_s, daemon_cpu_s, osd_cpu_s })
}

/// The time that is covered by at least one of the intervals.
fn covered(mut intervals: Vec<(Instant, Instant)>) -> Duration {
    intervals.sort();
    let mut sum = Duration::ZERO;
    let mut until: Option<Instant> = None;
    for (from, to) in intervals {
        let from = until.map_or(from, |until| from.max(until));
        sum += to.saturating_duration_since(from);
        until = Some(until.map_or(to, |until| until.max(to)));
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_counted_once_and_gaps_are_not() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        assert_eq!(covered(vec![]), Duration::ZERO);
        assert_eq!(covered(vec![(at(2), at(5)), (at(0), at(3)), (at(1), at(2))]), Duration::from_secs(5));
        assert_eq!(covered(vec![(at(7), at(9)), (at(0), at(3))]), Duration::from_secs(5));
    }
}
