//! Many images to which nothing happens.
//!
//! They lie in a pool of their own. They are made and copied once, by our daemon, and then both daemons in turn look
//! after them for a minute. A daemon begins its minute when it has used hardly any CPU time for some seconds: it has
//! opened all images by then. What the OSDs of both clusters use meanwhile is told beside it.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use tests::two_clusters::Direction;

use crate::figures::{Measure, Results, Target, Who};
use crate::ground::Ground;
use crate::turn::Turn;
use crate::work::make_many;

/// One kind of idle images.
struct Kind {
    pool: &'static str,
    mode: &'static str,
    images: usize,
    images_quick: usize,
    cpu: Measure,
    osd_cpu: Measure,
}

static SNAPSHOT: Kind = Kind {
    pool: "idle-snapshot",
    mode: "snapshot",
    images: 500,
    images_quick: 50,
    cpu: Measure {
        name: "500 idle images: CPU time in a minute",
        unit: "s",
        target: Target::RatioAtMost(1.0),
    },
    osd_cpu: Measure { name: "  of the OSDs", unit: "s", target: Target::Told },
};

static JOURNAL: Kind = Kind {
    pool: "idle-journal",
    mode: "journal",
    images: 1000,
    images_quick: 100,
    cpu: Measure {
        name: "1000 idle journalled images: CPU time in a minute",
        unit: "s",
        target: Target::RatioAtMost(1.0),
    },
    osd_cpu: Measure { name: "  of the OSDs meanwhile", unit: "s", target: Target::Told },
};

/// How long all of them may take to be copied.
const COPY_LIMIT: Duration = Duration::from_secs(600);
/// A daemon is idle when it has used less CPU time, in seconds, ...
const IDLE_CPU_S: f64 = 0.5;
/// ... within so much time.
const IDLE_LOOK: Duration = Duration::from_secs(5);
/// How often that is looked for.
const IDLE_LOOKS: usize = 24;

/// Images mirrored by snapshots.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    idle(ground, results, &SNAPSHOT).await
}

/// Images mirrored by their journals.
pub async fn journalled(ground: &Ground, results: &mut Results) -> Result<()> {
    idle(ground, results, &JOURNAL).await
}

async fn idle(ground: &Ground, results: &mut Results, kind: &Kind) -> Result<()> {
    let images = ground.repetitions(kind.images, kind.images_quick);
    let minute = Duration::from_secs(if ground.quick { 15 } else { 60 });
    ground.clusters.create_pool(kind.pool).await?;
    ground.clusters.connect_peers(kind.pool, Direction::Both).await?;
    make_many(ground, kind.pool, images, kind.mode).await?;
    let turn = Turn::begin(ground, Who::Ours).await?;
    turn.explain(wait_copied(ground, kind, images).await)?;
    turn.end().await?;
    for who in Who::alternate(1) {
        let turn = Turn::begin(ground, who).await?;
        settle(&turn).await?;
        let before = (turn.cpu_s()?, ground.osd_cpu_s()?);
        // What is measured is a time that passes, not something to wait for.
        tokio::time::sleep(minute).await;
        let after = (turn.cpu_s()?, ground.osd_cpu_s()?);
        let in_a_minute = |used: f64| used * 60.0 / minute.as_secs_f64();
        results.add(kind.cpu, who, in_a_minute(after.0 - before.0));
        results.add(kind.osd_cpu, who, in_a_minute(after.1 - before.1));
        turn.end().await?;
    }
    ground.a().delete_pool(kind.pool).await?;
    ground.b().delete_pool(kind.pool).await?;
    Ok(())
}

/// Waits until every image is followed. The summary tells what the sites say that the images are sent to, and those at the
/// other end are sent to nobody: it is asked for where they are primary.
async fn wait_copied(ground: &Ground, kind: &Kind, images: usize) -> Result<()> {
    let started = Instant::now();
    loop {
        let status = ground.a().rbd_json(&["mirror", "pool", "status", kind.pool]).await?;
        let replaying = status["summary"]["states"]["replaying"].as_u64().unwrap_or(0);
        if replaying as usize >= images {
            return Ok(());
        }
        ensure!(started.elapsed() < COPY_LIMIT, "{replaying} of {images} are copied after {COPY_LIMIT:?}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Waits until a daemon has nothing left to do.
async fn settle(turn: &Turn<'_>) -> Result<()> {
    for _ in 0..IDLE_LOOKS {
        let before = turn.cpu_s()?;
        tokio::time::sleep(IDLE_LOOK).await;
        if turn.cpu_s()? - before < IDLE_CPU_S {
            return Ok(());
        }
    }
    bail!("{} daemon is still busy after two minutes", turn.who())
}
