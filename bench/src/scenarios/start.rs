//! A daemon that is started: how long until a new mirror-snapshot is copied.
//!
//! After a clean end the mirror-snapshot is there before the daemon starts. For the other case a daemon is killed at the
//! instant at which the primary's mirror-snapshot is complete, before it can copy it, and the next one is started at
//! once, as a service manager does. (Made any later, the mirror-snapshot itself would take half a minute: the stock `rbd`
//! waits for the dead daemon's watch of the primary image.) The clock runs from the start of the process until the copy
//! has arrived.

use anyhow::{Result, bail};

use crate::arrival;
use crate::figures::{Measure, Results, Target, Who};
use crate::ground::{Ground, spec};
use crate::turn::{SMALL_LIMIT, Turn};
use crate::work;

const CLEAN: Measure = Measure {
    name: "daemon start to a copied mirror-snapshot, after a clean end",
    unit: "s",
    target: Target::RatioAtMost(1.0 / 3.0),
};
const KILLED: Measure = Measure {
    name: "daemon start to a copied mirror-snapshot, after SIGKILL",
    unit: "s",
    target: Target::RatioAtMost(0.2),
};

/// How often it is tried to kill a daemon in time.
const TRIES: usize = 5;

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    for who in Who::alternate(ground.repetitions(2, 1)) {
        let mut turn = Turn::begin(ground, who).await?;
        for _ in 0..ground.repetitions(2, 1) {
            turn.end().await?;
            turn = clean_start(ground, who, results).await?;
        }
        killed_start(ground, turn, results).await?.end().await?;
    }
    Ok(())
}

async fn clean_start<'a>(ground: &'a Ground, who: Who, results: &mut Results) -> Result<Turn<'a>> {
    let written = work::sentinel(ground).await?;
    let known = arrival::newest_primary(ground, &written.image).await?;
    ground.a().mirror_snapshot(&spec(&written.image)).await?;
    let (_, snap) = arrival::primary_snapshot(ground, &written.image, known, SMALL_LIMIT).await?;
    let turn = Turn::launch(ground, who).await?;
    let arrived = arrival::copied(ground, &written.image, snap, &written.probes, SMALL_LIMIT).await;
    let arrived = turn.explain(arrived)?;
    results.add(CLEAN, who, arrived.saturating_duration_since(turn.started).as_secs_f64());
    arrival::verify(ground, &written.image, snap).await?;
    Ok(turn)
}

async fn killed_start<'a>(ground: &'a Ground, mut turn: Turn<'a>, results: &mut Results) -> Result<Turn<'a>> {
    for _ in 0..TRIES {
        let who = turn.who();
        let written = work::sentinel(ground).await?;
        let known = arrival::newest_primary(ground, &written.image).await?;
        let image = spec(&written.image);
        let command = ground.a().mirror_snapshot(&image);
        let restarted = async {
            let (_, snap) = arrival::primary_snapshot(ground, &written.image, known, SMALL_LIMIT).await?;
            turn.kill().await?;
            let early = arrival::is_copied(ground, &written.image, snap, &written.probes).await?;
            let turn = Turn::launch(ground, who).await?;
            let arrived = arrival::copied(ground, &written.image, snap, &written.probes, SMALL_LIMIT).await;
            let arrived = turn.explain(arrived)?;
            Ok::<_, anyhow::Error>((turn, arrived, snap, early))
        };
        let ((next, arrived, snap, early), _) = futures::try_join!(restarted, command)?;
        turn = next;
        arrival::verify(ground, &written.image, snap).await?;
        if !early {
            results.add(KILLED, who, arrived.saturating_duration_since(turn.started).as_secs_f64());
            return Ok(turn);
        }
    }
    bail!("each of {TRIES} daemons had copied the mirror-snapshot before it was killed")
}
