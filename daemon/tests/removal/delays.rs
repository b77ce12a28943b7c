//! Copies in the trash: for how long, while they are open, and when something happens to them there.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use daemon::namespace::trash::purge_once;
use rados::error::ResultExt;
use rados::fault::{Fault, FaultPlan, Faulty, Matcher};
use rbd::mirroring::{MirrorImageMode, MirrorMode, Mirroring, StatusState};
use rbd::trash::{self, TrashImage, TrashSource, TrashState};
use rbd::watch_notify::HeaderWatch;
use rbd::{HeaderUpdate, ImageHeader, Timestamp};

use crate::world::{COPIES, Copy, LIMIT, REMOTE_UUID, World, mirror};

const MODES: [MirrorImageMode; 2] = [MirrorImageMode::Snapshot, MirrorImageMode::Journal];
const OPTION: &str = "rbd_mirroring_delete_delay";

/// The trash entry of a copy.
async fn entry(world: &World, copy: &Copy) -> Result<TrashImage> {
    let entry = trash::get(&world.local, copy.image.id()).await?.context("it is not in the trash")?;
    ensure!(entry.source == TrashSource::Mirroring && entry.state == TrashState::Normal, "{entry:?}");
    Ok(entry)
}

/// The delay is that of the image, else of the pool, else of the daemon.
pub async fn the_delay_is_that_of_image_pool_or_daemon(world: &World) -> Result<()> {
    for mode in MODES {
        let removed = async |of_daemon_s: u64, of_image_s: Option<u64>| -> Result<Copy> {
            let copy = world.copy(mode).await?;
            if let Some(delay) = of_image_s {
                let option = BTreeMap::from([(format!("conf_{OPTION}"), delay.to_string())]);
                HeaderUpdate::of(copy.image.id()).set_metadata(&option).apply(&world.local).await?;
            }
            world.follow(&copy, None, Duration::from_secs(of_daemon_s)).done().await?;
            Ok(copy)
        };
        let waits = async |copy: &Copy, delay_s: u32| -> Result<()> {
            let entry = entry(world, copy).await?;
            let delay = entry.deferment_end_time.seconds - entry.deletion_time.seconds;
            ensure!(delay == delay_s, "{entry:?}");
            let off = Timestamp::now().seconds.abs_diff(entry.deletion_time.seconds);
            ensure!(off < 60, "it was moved {off} s away from now");
            Ok(())
        };
        removed(0, None).await?.expect_gone(world).await?;
        waits(&removed(600, None).await?, 600).await?;
        removed(600, Some(0)).await?.expect_gone(world).await?;
        world.stock.rbd(&["config", "pool", "set", COPIES, OPTION, "3600"]).await?;
        waits(&removed(0, None).await?, 3600).await?;
        waits(&removed(0, Some(7200)).await?, 7200).await?;
        removed(600, Some(0)).await?.expect_gone(world).await?;
        world.stock.rbd(&["config", "pool", "remove", COPIES, OPTION]).await?;
    }
    let left = purge_once(&world.local).await?;
    ensure!(left.is_empty(), "not due yet: {left:?}");
    Ok(())
}

/// A copy that somebody has open stays in the trash, whole, until it is closed.
pub async fn a_copy_that_is_open_stays_in_the_trash(world: &World) -> Result<()> {
    for mode in MODES {
        let copy = world.copy(mode).await?;
        let reader = HeaderWatch::new(&world.other_client, copy.image.id()).await?;
        world.follow(&copy, None, Duration::ZERO).done().await?;
        entry(world, &copy).await?;
        copy.expect_whole(world).await?;
        let left = purge_once(&world.local).await?;
        let client = format!("client.{}", world.other_client.backend().instance_id());
        ensure!(left.iter().any(|what| what.contains(&copy.name) && what.contains(&client)), "{left:?}");
        copy.expect_whole(world).await?;
        reader.unregister().await?;
        let left = purge_once(&world.local).await?;
        ensure!(!left.iter().any(|what| what.contains(&copy.name)), "{left:?}");
        copy.expect_gone(world).await?;
    }
    Ok(())
}

/// A promotion that had begun before the removal, and goes on when the copy lies in the trash, keeps it there.
pub async fn a_copy_that_was_promoted_in_the_trash_stays(world: &World) -> Result<()> {
    for mode in MODES {
        let copy = world.copy(mode).await?;
        world.follow(&copy, None, Duration::from_secs(1)).done().await?;
        entry(world, &copy).await?;
        match mode {
            MirrorImageMode::Journal => copy.use_journal(&world.other_client).await?,
            _ => copy.promote(&world.other_client).await?,
        }
        let spec = format!("{COPIES}/{}", copy.image.id());
        tests::wait::until("the delay to be over", LIMIT, || async {
            let left = purge_once(&world.local).await?;
            Ok(left.iter().any(|what| what.contains(&copy.name) && what.contains("promoted")).then_some(()))
        })
        .await?;
        copy.expect_whole(world).await?;
        world.stock.rbd(&["trash", "restore", &spec]).await?;
        world.stock.rbd(&["info", &format!("{COPIES}/{}", copy.name)]).await?;
    }
    Ok(())
}

/// Taken back from the trash, an image may have snapshots and be written to again.
pub async fn a_copy_can_be_taken_back(world: &World) -> Result<()> {
    for mode in MODES {
        let copy = world.copy(mode).await?;
        let spec = format!("{COPIES}/{}", copy.name);
        HeaderUpdate::of(copy.image.id()).set_snapshot_limit(Some(9)).apply(&world.local).await?;
        world.follow(&copy, None, Duration::from_secs(3600)).done().await?;
        entry(world, &copy).await?;
        world.stock.rbd(&["trash", "restore", &format!("{COPIES}/{}", copy.image.id())]).await?;
        let header = ImageHeader::read(&world.local, copy.image.id()).await?;
        ensure!(header.snapshot_limit == Some(9), "{:?}", header.snapshot_limit);
        copy.expect_whole(world).await?;
        if mode == MirrorImageMode::Journal {
            world.stock.rbd(&["snap", "create", "--no-progress", &format!("{spec}@again")]).await?;
            world.stock.apply(&spec, tests::Extents::default().fill(0, 4096, 1)).await?;
        }
    }
    Ok(())
}

/// A daemon is killed when it has begun a removal, and then it is not to be gone on with: the copy can be promoted.
pub async fn a_removal_that_is_not_to_go_on_is_undone(world: &World) -> Result<()> {
    for (mode, nth) in MODES.into_iter().flat_map(|mode| (1..16).map(move |nth| (mode, nth))) {
        let pool = format!("withdrawn-{mode}");
        if nth == 1 {
            world.stock.create_pool(&pool).await?;
        }
        let remote = world.pool(&pool).await?;
        mirror(&remote, REMOTE_UUID).await?;
        let copy = world.copy(mode).await?;
        let plan = FaultPlan::none().at(nth, Matcher::default(), Fault::CrashAfter);
        let faulty = Faulty::new(world.local.backend().clone(), plan, &[]);
        let following = world.follow_in(&remote, &copy, Some(faulty.clone()), Duration::ZERO);
        faulty.crashed().await;
        following.task.abort();
        let _ = following.task.await;
        drop(faulty);
        let in_trash = trash::get(&world.local, copy.image.id()).await?.is_some();
        if in_trash || ImageHeader::read(&world.local, copy.image.id()).await.optional()?.is_none() {
            continue;
        }
        Mirroring::new(&remote).set_mode(MirrorMode::Disabled).await?;
        let following = world.follow_in(&remote, &copy, None, Duration::ZERO);
        following.reports(|report| report.state == StatusState::Error).await?;
        copy.expect_kept(world).await.with_context(|| format!("killed at {nth}, {mode} mode"))?;
        copy.promote(&world.other_client).await.with_context(|| format!("killed at {nth}, {mode} mode"))?;
        copy.expect_promoted(world).await?;
    }
    Ok(())
}
