//! What counts as a primary that is gone: its entry alone, in a pool that is there and is the one that the copy was made
//! from.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rados::IoCtx;
use rbd::mirroring::{
    GlobalImageId, MIRRORING_OBJECT, MirrorImage, MirrorImageMode, MirrorImageState, MirrorMode, Mirroring,
    StatusState,
};

use crate::world::{Copy, REMOTE_UUID, World, mirror};

const MODES: [MirrorImageMode; 2] = [MirrorImageMode::Snapshot, MirrorImageMode::Journal];
const OTHER_UUID: &str = "99999999-0000-4000-8000-000000000009";
/// How long a wrong decision may take to show.
const DECISION_TIME: Duration = Duration::from_secs(2);

/// What is wrong at the remote site, beside the image's entry not being there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    PoolDeleted,
    NoMirroringObject,
    MirroringDisabled,
    PoolMadeAnew,
    /// The entry is there, in the state "disabling".
    Disabling,
}

impl Wrong {
    /// The state that is reported, and words of its description.
    fn reported(self) -> (StatusState, &'static str) {
        match self {
            Wrong::PoolDeleted => (StatusState::Error, "no longer exists"),
            Wrong::NoMirroringObject => (StatusState::Error, "rbd_mirroring"),
            Wrong::MirroringDisabled => (StatusState::Error, "not enabled"),
            Wrong::PoolMadeAnew => (StatusState::Error, "mirror uuid"),
            Wrong::Disabling => (StatusState::Unknown, "being disabled"),
        }
    }

    async fn apply(self, world: &World, remote: &IoCtx, pool: &str, copy: &Copy) -> Result<()> {
        let mirroring = Mirroring::new(remote);
        match self {
            Wrong::PoolDeleted => world.stock.delete_pool(pool).await?,
            Wrong::NoMirroringObject => remote.remove(MIRRORING_OBJECT).await?,
            Wrong::MirroringDisabled => mirroring.set_mode(MirrorMode::Disabled).await?,
            Wrong::PoolMadeAnew => {
                remote.remove(MIRRORING_OBJECT).await?;
                mirror(remote, OTHER_UUID).await?;
            }
            Wrong::Disabling => {
                let global_id = GlobalImageId(copy.global_id.to_string());
                for state in [MirrorImageState::Enabled, MirrorImageState::Disabling] {
                    let entry = MirrorImage { mode: copy.mode, global_id: global_id.clone(), state };
                    mirroring.image_set(copy.image.id(), &entry).await?;
                }
            }
        }
        Ok(())
    }
}

/// Copies stay when their primaries' entries are not found because of something else; the status says what.
pub async fn copies_stay_unless_the_entry_alone_is_gone(world: &World) -> Result<()> {
    let wrongs = [
        Wrong::PoolDeleted,
        Wrong::NoMirroringObject,
        Wrong::MirroringDisabled,
        Wrong::PoolMadeAnew,
        Wrong::Disabling,
    ];
    let cases = wrongs.into_iter().flat_map(|wrong| MODES.map(|mode| (wrong, mode)));
    let cases = cases.map(async |(wrong, mode)| {
        stays(world, wrong, mode).await.with_context(|| format!("{wrong:?}, {mode} mode"))
    });
    let outcomes = futures::future::join_all(cases).await;
    let lost: Vec<_> = outcomes.iter().filter_map(|o| o.as_ref().err()).map(|e| format!("{e:#}")).collect();
    ensure!(lost.is_empty(), "{} of {} went wrong:\n{}", lost.len(), outcomes.len(), lost.join("\n"));
    Ok(())
}

async fn stays(world: &World, wrong: Wrong, mode: MirrorImageMode) -> Result<()> {
    let pool = format!("{wrong:?}-{mode}").to_lowercase();
    world.stock.create_pool(&pool).await?;
    let remote = world.pool(&pool).await?;
    mirror(&remote, REMOTE_UUID).await?;
    let copy = world.copy(mode).await?;
    wrong.apply(world, &remote, &pool, &copy).await?;
    let following = world.follow_in(&remote, &copy, None, Duration::ZERO);
    tokio::time::sleep(DECISION_TIME).await;
    let (state, words) = wrong.reported();
    let report = following.reports(|report| report.state == state).await;
    copy.expect_kept(world).await?;
    let report = report?;
    ensure!(report.description.contains(words) && !report.description.contains(','), "{report:?}");
    Ok(())
}
