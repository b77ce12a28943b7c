//! A removal of a copy, and a promotion or a crash at any moment of it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use rados::fault::{Fault, FaultPlan, Faulty, Matcher};
use rbd::mirroring::{MirrorImageMode, StatusState};
use rbd::trash;

use crate::world::{LIMIT, World};

const MODES: [MirrorImageMode; 2] = [MirrorImageMode::Snapshot, MirrorImageMode::Journal];
/// Copies that are removed concurrently.
const CONCURRENCY: usize = 16;

/// How many operations the removal of a copy takes.
async fn operations(world: &World, mode: MirrorImageMode) -> Result<u64> {
    let copy = world.copy(mode).await?;
    let faulty = Faulty::new(world.local.backend().clone(), FaultPlan::none(), &[]);
    world.follow(&copy, Some(faulty.clone()), Duration::ZERO).done().await?;
    copy.expect_gone(world).await?;
    Ok(faulty.requests())
}

/// Before each operation of a removal, the copy is promoted by force. Either the promotion succeeds, and the image stays
/// as it is; or it fails, and the image is removed.
pub async fn a_promotion_between_any_two_operations_wins_or_fails(world: &World) -> Result<()> {
    for mode in MODES {
        let operations = operations(world, mode).await?;
        let races = (1..=operations).map(async |nth| {
            promotion_before(world, mode, nth).await.with_context(|| format!("operation {nth}, {mode} mode"))
        });
        let races: Vec<_> = futures::stream::iter(races).buffered(CONCURRENCY).collect().await;
        let lost: Vec<_> =
            races.iter().filter_map(|race| race.as_ref().err()).map(|e| format!("{e:#}")).collect();
        ensure!(lost.is_empty(), "{} of {operations} went wrong:\n{}", lost.len(), lost.join("\n"));
        let won = races.iter().filter(|race| matches!(race, Ok(true))).count();
        println!("{mode} mode: {won} of {operations} promotions came first");
        ensure!(won > 0 && won < races.len(), "{won} of {operations} promotions came first");
    }
    Ok(())
}

/// True when the promotion came first.
async fn promotion_before(world: &World, mode: MirrorImageMode, nth: u64) -> Result<bool> {
    let copy = world.copy(mode).await?;
    let plan = FaultPlan::none().at(nth, Matcher::default(), Fault::Hold);
    let faulty = Faulty::new(world.local.backend().clone(), plan, &[]);
    let mut following = world.follow(&copy, Some(faulty.clone()), Duration::ZERO);
    tokio::select! {
        () = faulty.held() => {}
        _ = &mut following.task => {
            copy.expect_gone(world).await?;
            return Ok(false);
        }
        () = tokio::time::sleep(LIMIT) => bail!("operation {nth} does not come"),
    }
    let promoted = copy.promote(&world.other_client).await;
    faulty.release();
    match promoted {
        Ok(()) => {
            following.reports(|report| report.state == StatusState::Stopped).await?;
            copy.expect_promoted(world).await?;
            Ok(true)
        }
        Err(error) => {
            following.done().await.with_context(|| format!("the promotion failed: {error}"))?;
            copy.expect_gone(world).await?;
            Ok(false)
        }
    }
}

/// The daemon is killed before and after each operation of a removal; the next one completes it.
pub async fn a_removal_that_was_cut_off_is_completed(world: &World) -> Result<()> {
    for mode in MODES {
        let operations = operations(world, mode).await?;
        let delays = [Duration::ZERO, Duration::from_secs(3600)];
        let crashes = (1..=operations).flat_map(|nth| [(nth, Fault::CrashBefore), (nth, Fault::CrashAfter)]);
        let crashes = crashes.flat_map(|(nth, fault)| delays.map(|delay| (nth, fault.clone(), delay)));
        let crashes = crashes.map(async |(nth, fault, delay)| {
            let what = format!("{fault:?} {nth}, {mode} mode, {delay:?} in the trash");
            crash_at(world, mode, nth, fault, delay).await.context(what)
        });
        let crashes: Vec<_> = futures::stream::iter(crashes).buffered(CONCURRENCY).collect().await;
        let lost: Vec<_> =
            crashes.iter().filter_map(|c| c.as_ref().err()).map(|e| format!("{e:#}")).collect();
        ensure!(lost.is_empty(), "{} of {} went wrong:\n{}", lost.len(), crashes.len(), lost.join("\n"));
    }
    Ok(())
}

async fn crash_at(
    world: &World,
    mode: MirrorImageMode,
    nth: u64,
    fault: Fault,
    delay: Duration,
) -> Result<()> {
    let copy = world.copy(mode).await?;
    let plan = FaultPlan::none().at(nth, Matcher::default(), fault);
    let faulty = Faulty::new(world.local.backend().clone(), plan, &[]);
    let mut following = world.follow(&copy, Some(faulty.clone()), delay);
    tokio::select! {
        () = faulty.crashed() => {
            following.task.abort();
            let _ = following.task.await;
            drop(faulty);
            world.follow(&copy, None, delay).done().await?;
        }
        _ = &mut following.task => {}
    }
    if !delay.is_zero() {
        return copy.expect_restorable(world).await;
    }
    // What is in the trash, and mirrored no more, is left to the task that looks after the trash.
    if trash::get(&world.local, copy.image.id()).await?.is_some() {
        daemon::image::purge(&world.local, copy.image.id()).await?;
    }
    copy.expect_gone(world).await
}
