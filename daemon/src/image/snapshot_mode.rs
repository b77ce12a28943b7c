//! Images that are mirrored by mirror-snapshots: from the records of a pair to a session that follows it.

use std::time::Duration;

use rados::{Result, SnapId};
use rbd::Snapshot;
use rbd::image::OpenImage;
use rbd::mirroring::{MirrorImageMode, StatusState};
use snapshot::link::link_to_peer;

use super::bootstrap::{self, Made, Record, Role, Wanted};
use super::lifeline::Lifeline;
use super::remote_image::{self, RemoteImage};
use super::session::{End, PROMOTION_CHECK_INTERVAL, Session, UNKNOWN_TO_REMOTE, is_orphan};
use super::{
    AWAITED_INTERVAL, Attempt, ImageContext, LOOK_INTERVAL, await_remote, delete, modes_differ, primary,
};
use crate::report::Report;

/// How often the first mirror-snapshot is looked for, and how many times.
const FIRST_SNAPSHOT_INTERVAL: Duration = Duration::from_millis(100);
const FIRST_SNAPSHOT_LOOKS: usize = 100;

/// Finds and follows a pair; `local` is the record of the local image, which holds something.
pub(super) async fn attempt(ctx: &ImageContext, local: Option<Record>) -> Result<Attempt> {
    let opened = match &local {
        Some(record) => bootstrap::open(&ctx.local, &record.id).await?,
        None => None,
    };
    let role = opened.as_ref().map(|image| bootstrap::role(&image.header, &ctx.remote_mirror_uuid));
    if let (Some(image), Some(Role::Primary)) = (&opened, role) {
        return primary::watch(ctx, image).await;
    }
    if let Some(image) = opened.as_ref().filter(|image| is_orphan(image)) {
        // It must not be watched, and what becomes of it does not depend on a remote cluster that may be lost.
        ctx.publish(Report::new(StatusState::Stopped, "orphan (force promoting)"), image.image.name());
        return Ok(Attempt::Again(PROMOTION_CHECK_INTERVAL));
    }
    let (ctx, mut lifeline) = Lifeline::lay(ctx);
    let followed = Box::pin(follow(&ctx, local, opened, &mut lifeline)).await;
    lifeline.judge(&ctx, followed)
}

/// Follows a pair whose local image, if there is one, is `opened`, not primary, and not being promoted.
async fn follow(
    ctx: &ImageContext,
    local: Option<Record>,
    opened: Option<OpenImage>,
    lifeline: &mut Lifeline,
) -> Result<Attempt> {
    let remote = remote_image::find(ctx).await?;
    if let (Some(record), Some(opened)) = (&local, &opened)
        && !matches!(remote, RemoteImage::Gone(_))
    {
        delete::withdraw(ctx, record, &opened.header).await?;
    }
    match (local, opened, remote) {
        (None, _, RemoteImage::Gone(_)) => Ok(Attempt::Over),
        (Some(record), opened, RemoteImage::Gone(gone)) => {
            delete::follow_removal(ctx, &record, opened, gone).await
        }
        (_, opened, remote @ (RemoteImage::Disabling | RemoteImage::Unknown(_))) => {
            Ok(await_remote(ctx, &remote, opened.as_ref().map_or("", |image| image.image.name())))
        }
        (_, _, RemoteImage::Mirrored(remote)) if modes_differ(ctx, &remote, MirrorImageMode::Snapshot) => {
            Ok(Attempt::Again(LOOK_INTERVAL))
        }
        (local, opened, RemoteImage::Mirrored(remote)) => {
            let Some(remote) = bootstrap::open(&ctx.remote, &remote.id).await? else {
                ctx.publish(Report::new(StatusState::Unknown, "remote image is being removed"), "");
                return Ok(Attempt::Again(LOOK_INTERVAL));
            };
            let opened = match opened {
                Some(opened) => opened,
                None => match create(ctx, local, &remote).await? {
                    Ok(opened) => opened,
                    Err(pause) => return Ok(Attempt::Again(pause)),
                },
            };
            let session = Session::open(ctx, opened, remote, lifeline).await?;
            Ok(match Box::pin(session.run()).await? {
                End::Cancelled => Attempt::Over,
                End::Again(pause) => Attempt::Again(pause),
            })
        }
    }
}

/// Makes and opens the local image; answers with a pause while that cannot be.
async fn create(
    ctx: &ImageContext,
    record: Option<Record>,
    remote: &OpenImage,
) -> Result<std::result::Result<OpenImage, Duration>> {
    if let Some(record) = record {
        // Its entry says that it is mirrored, but it is gone.
        bootstrap::forget(ctx, &record).await?;
    }
    let Some(newest) = await_first_snapshot(ctx, remote).await? else { return Ok(Err(LOOK_INTERVAL)) };
    ctx.publish(Report::new(StatusState::StartingReplay, "creating the local image"), remote.image.name());
    let wanted = Wanted { mode: MirrorImageMode::Snapshot, at: newest };
    match bootstrap::create_local(ctx, remote, wanted, async |_| Ok(())).await? {
        Made::Image(id) => Ok(bootstrap::open(&ctx.local, &id).await?.ok_or(Duration::ZERO)),
        Made::Awaits(what) => {
            ctx.publish(Report::new(StatusState::StartingReplay, what), remote.image.name());
            Ok(Err(AWAITED_INTERVAL))
        }
    }
}

/// The newest complete mirror-snapshot for this site. The primary makes the first one when it enables mirroring, right
/// after its entry in the directory, so that one is waited for. One that was made when the primary's pool had no such peer is
/// linked to this site.
async fn await_first_snapshot(ctx: &ImageContext, remote: &OpenImage) -> Result<Option<SnapId>> {
    let mut header = remote.header.clone();
    let mut waits_for = "waiting for the first mirror-snapshot";
    for _ in 0..FIRST_SNAPSHOT_LOOKS {
        let made = |s: &&Snapshot| s.mirror().is_some_and(|m| m.complete && m.state.is_primary());
        let for_us =
            |s: &&Snapshot| s.mirror().is_some_and(|m| m.mirror_peer_uuids.contains(&*ctx.remote_peer_uuid));
        if let Some(newest) = header.snapshots.values().rev().filter(made).find(for_us) {
            return Ok(Some(newest.id));
        }
        let complete = |s: &&Snapshot| s.mirror().is_some_and(|m| m.complete);
        if let Some(newest) = header.snapshots.values().rev().find(complete).filter(made) {
            if !link_to_peer(&remote.image, newest.id, &ctx.remote_peer_uuid).await? {
                waits_for = UNKNOWN_TO_REMOTE;
            }
        } else if header.snapshots.values().any(|s| s.mirror().is_some())
            && bootstrap::role(&header, "") != Role::Primary
        {
            waits_for = "remote image is not primary";
            break;
        }
        ctx.publish(Report::new(StatusState::Unknown, waits_for), remote.image.name());
        tokio::select! {
            () = ctx.cancel.cancelled() => return Ok(None),
            () = tokio::time::sleep(FIRST_SNAPSHOT_INTERVAL) => {}
        }
        header = remote.image.read_header().await?;
    }
    ctx.publish(Report::new(StatusState::Unknown, waits_for), remote.image.name());
    Ok(None)
}
