//! Many images to which nothing happens.
//!
//! They are made and copied once, by our daemon, and then both daemons in turn look after them for a minute. A daemon
//! begins its minute when it has used hardly any CPU time for some seconds: it has opened all images by then.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::stream::{self, StreamExt, TryStreamExt};
use rbd::Snapshot;
use rbd::image::Image;

use crate::figures::{Measure, Results, Target, Who};
use crate::ground::{Ground, spec};
use crate::turn::Turn;

const CPU: Measure =
    Measure { name: "500 idle images: CPU time in a minute", unit: "s", target: Target::RatioAtMost(1.0) };

/// Size of an image: one object, to which nothing is written.
const BYTES: u64 = 4 << 20;
/// Stock tools at once.
const TOOLS: usize = 16;
/// How long all of them may take to be copied.
const COPY_LIMIT: Duration = Duration::from_secs(600);
/// A daemon is idle when it has used less CPU time, in seconds, ...
const IDLE_CPU_S: f64 = 0.5;
/// ... within so much time.
const IDLE_LOOK: Duration = Duration::from_secs(5);
/// How often that is looked for.
const IDLE_LOOKS: usize = 24;

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    let images = ground.repetitions(500, 50);
    let minute = Duration::from_secs(if ground.quick { 15 } else { 60 });
    make_images(ground, images).await?;
    let turn = Turn::begin(ground, Who::Ours).await?;
    turn.explain(wait_copied(ground, images).await)?;
    turn.end().await?;
    for who in Who::alternate(1) {
        let turn = Turn::begin(ground, who).await?;
        settle(&turn).await?;
        let before = turn.cpu_s()?;
        // What is measured is a time that passes, not something to wait for.
        tokio::time::sleep(minute).await;
        let used = turn.cpu_s()? - before;
        results.add(CPU, who, used * 60.0 / minute.as_secs_f64());
        turn.end().await?;
    }
    Ok(())
}

fn name(number: usize) -> String {
    format!("idle-{number:03}")
}

/// Makes the images, and enables mirroring of them.
async fn make_images(ground: &Ground, images: usize) -> Result<()> {
    // Nothing is timed here, and with the default of a second this alone would take several minutes.
    set_paxos_propose_interval(ground, Some("0.05")).await?;
    let made = stream::iter(0..images)
        .map(async |number| {
            ground.a().create_image(&spec(&name(number)), BYTES, &[]).await?;
            ground.a().rbd(&["mirror", "image", "enable", &spec(&name(number)), "snapshot"]).await?;
            Ok::<(), anyhow::Error>(())
        })
        .buffer_unordered(TOOLS)
        .try_collect::<()>()
        .await;
    set_paxos_propose_interval(ground, None).await?;
    made.context("making idle images")
}

async fn set_paxos_propose_interval(ground: &Ground, seconds: Option<&str>) -> Result<()> {
    let option = "paxos_propose_interval";
    match seconds {
        Some(seconds) => ground.a().ceph(&["config", "set", "mon", option, seconds]).await?,
        None => ground.a().ceph(&["config", "rm", "mon", option]).await?,
    };
    Ok(())
}

/// Waits until every image has a complete copy.
async fn wait_copied(ground: &Ground, images: usize) -> Result<()> {
    let mut copied = 0;
    let started = Instant::now();
    while copied < images {
        if has_copy(ground, &name(copied)).await? {
            copied += 1;
            continue;
        }
        ensure!(started.elapsed() < COPY_LIMIT, "{} has no copy after {COPY_LIMIT:?}", name(copied));
        tokio::time::sleep(tests::wait::POLL_INTERVAL).await;
    }
    Ok(())
}

async fn has_copy(ground: &Ground, image: &str) -> Result<bool> {
    match Image::open_by_name(&ground.copy, image).await {
        Ok((_, header)) => {
            Ok(header.snapshots.values().filter_map(Snapshot::mirror).any(|mirror| mirror.complete))
        }
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
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
