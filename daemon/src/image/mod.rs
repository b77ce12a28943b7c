//! One mirrored image: the task that owns all of its state.

mod bootstrap;
mod delete;
mod primary;
mod remote_watch;
mod round;
mod session;
mod status;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use deep_copy::budget::Budget;
use deep_copy::ids::SnapIds;
use rados::{ErrorClass, IoCtx, PoolId, Result, SnapId};
use rbd::Snapshot;
use rbd::image::OpenImage;
use rbd::mirroring::{MirrorImageMode, MirrorImageState};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::bootstrap::{Made, Record, Role};
use self::session::{End, Session};
use crate::report::{ReplayState, Report};
use crate::retry::Backoff;

/// What an image's task is given.
pub struct ImageContext {
    /// Pool and namespace of the copy.
    pub local: IoCtx,
    /// Pool and namespace of the primary.
    pub remote: IoCtx,
    /// The local pool's mirror uuid.
    pub local_mirror_uuid: Arc<str>,
    /// The remote pool's mirror uuid.
    pub remote_mirror_uuid: Arc<str>,
    /// The uuid by which the remote pool's peer table knows this site.
    pub remote_peer_uuid: Arc<str>,
    /// The uuid by which the local pool's peer table knows the remote site.
    pub local_peer_uuid: Arc<str>,
    /// The image's global id, the same in both clusters.
    pub global_image_id: Arc<str>,
    /// What all images of one local cluster connection share.
    pub shared: Arc<Shared>,
    /// How long a removed image stays in the trash.
    pub delete_delay: Duration,
    /// Notified when the image's mirroring was announced to have changed, in either cluster.
    pub changed: Arc<Notify>,
    /// Where it reports.
    pub report: watch::Sender<Report>,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// What all images of one local cluster connection share. Made once per connection; an image task borrows from it.
pub struct Shared {
    snap_ids: Mutex<HashMap<PoolId, SnapIds>>,
    /// Bound on the bytes that all copies together hold in memory.
    pub budget: Budget,
}

/// Ids that a pool's reserve holds at first.
const SNAP_ID_RESERVE: usize = 4;

impl Shared {
    /// With room for `copy_bytes_max` bytes on their way.
    pub fn new(copy_bytes_max: u64) -> Self {
        Shared { snap_ids: Mutex::default(), budget: Budget::new(copy_bytes_max) }
    }

    /// The reserve of snapshot ids of the data pool behind `data`.
    pub fn snap_ids(&self, data: &IoCtx) -> SnapIds {
        let mut pools = self.snap_ids.lock().expect("no code panics while it holds this lock");
        pools.entry(data.pool_id()).or_insert_with(|| SnapIds::new(data.clone(), SNAP_ID_RESERVE)).clone()
    }
}

/// How an image's task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was told to end, or there is nothing left to do (the image is gone in both clusters).
    Done,
    /// A connection was fenced: the pool must be started over.
    Fenced,
}

impl ImageContext {
    fn publish(&self, mut report: Report, image_name: &str) {
        report.image_name = image_name.to_string();
        self.report.send_if_modified(|published| {
            let changed = *published != report;
            *published = report;
            changed
        });
    }
}

/// The shortest and the longest pause after a failure.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Follows an image until it is told to end.
pub async fn run(ctx: ImageContext) -> Outcome {
    let mut backoff = Backoff::new(RETRY_PAUSES.0, RETRY_PAUSES.1);
    loop {
        let began = Instant::now();
        let pause = match attempt(&ctx).await {
            Ok(Attempt::Over) => return Outcome::Done,
            Ok(Attempt::Again(pause)) => {
                backoff.reset();
                pause
            }
            Err(error) if error.class() == ErrorClass::Fenced => {
                tracing::error!(image = %ctx.global_image_id, "{error}");
                return Outcome::Fenced;
            }
            Err(error) => {
                tracing::warn!(image = %ctx.global_image_id, "{error}");
                let name = ctx.report.borrow().image_name.clone();
                ctx.publish(Report::new(ReplayState::Error, error.to_string()), &name);
                if began.elapsed() > RETRY_PAUSES.1 {
                    backoff.reset();
                }
                backoff.next_delay()
            }
        };
        tokio::select! {
            () = ctx.cancel.cancelled() => return Outcome::Done,
            () = ctx.changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What came of finding and following a pair of images.
enum Attempt {
    /// There is nothing left to do.
    Over,
    /// Find out anew what there is, after a pause or when something is announced.
    Again(Duration),
}

/// How often an image is looked for that is not ready to be followed.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// How often a clone looks for the copy of its parent.
const PARENT_INTERVAL: Duration = Duration::from_millis(500);
/// How often the first mirror-snapshot is looked for, and how many times.
const FIRST_SNAPSHOT_INTERVAL: Duration = Duration::from_millis(100);
const FIRST_SNAPSHOT_LOOKS: usize = 100;

async fn attempt(ctx: &ImageContext) -> Result<Attempt> {
    let local = bootstrap::find(&ctx.local, &ctx.global_image_id).await?;
    if let Some(record) = &local
        && record.mirror.state == MirrorImageState::Creating
    {
        bootstrap::remove_half_made(ctx, record).await?;
        return Ok(Attempt::Again(Duration::ZERO));
    }
    let opened = match &local {
        Some(record) => bootstrap::open(&ctx.local, &record.id).await?,
        None => None,
    };
    let role = opened.as_ref().map(|image| bootstrap::role(&image.header, &ctx.remote_mirror_uuid));
    if let (Some(image), Some(Role::Primary)) = (&opened, role) {
        return primary::watch(ctx, image).await;
    }
    let remote = bootstrap::find(&ctx.remote, &ctx.global_image_id).await?;
    let remote = remote.filter(|record| record.mirror.state != MirrorImageState::Disabling);
    let wrong_mode =
        [&local, &remote].into_iter().flatten().any(|r| r.mirror.mode != MirrorImageMode::Snapshot);
    if wrong_mode {
        let what = "this image is mirrored in journal mode, which this version does not support";
        ctx.publish(Report::new(ReplayState::Error, what), "");
        return Ok(Attempt::Again(LOOK_INTERVAL));
    }
    match (local, opened, remote) {
        (None, _, None) => Ok(Attempt::Over),
        (Some(record), opened, None) => delete::follow_removal(ctx, &record, opened, role).await,
        (local, opened, Some(remote)) => {
            let Some(remote) = bootstrap::open(&ctx.remote, &remote.id).await? else {
                ctx.publish(Report::new(ReplayState::Unknown, "remote image is being removed"), "");
                return Ok(Attempt::Again(LOOK_INTERVAL));
            };
            let opened = match opened {
                Some(opened) => opened,
                None => match create(ctx, local, &remote).await? {
                    Ok(opened) => opened,
                    Err(pause) => return Ok(Attempt::Again(pause)),
                },
            };
            let Some(session) = Session::open(ctx, opened, remote).await? else {
                return Ok(Attempt::Again(Duration::from_secs(1)));
            };
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
    ctx.publish(Report::new(ReplayState::StartingReplay, "creating the local image"), remote.image.name());
    match bootstrap::create_local(ctx, remote, newest).await? {
        Made::Image(id) => Ok(bootstrap::open(&ctx.local, &id).await?.ok_or(Duration::ZERO)),
        Made::AwaitsParent(why) => {
            let what = format!("waiting for the copy of the parent: {why}");
            ctx.publish(Report::new(ReplayState::StartingReplay, what), remote.image.name());
            Ok(Err(PARENT_INTERVAL))
        }
    }
}

/// The newest complete mirror-snapshot for this site. The primary makes the first one when it enables mirroring, right
/// after its entry in the directory, so that one is waited for.
async fn await_first_snapshot(ctx: &ImageContext, remote: &OpenImage) -> Result<Option<SnapId>> {
    let mut header = remote.header.clone();
    for _ in 0..FIRST_SNAPSHOT_LOOKS {
        let waits_for_us = |s: &&Snapshot| {
            let mirror = s.mirror().filter(|m| m.complete && m.state.is_primary());
            mirror.is_some_and(|m| m.mirror_peer_uuids.contains(&*ctx.remote_peer_uuid))
        };
        if let Some(newest) = header.snapshots.values().rev().find(waits_for_us) {
            return Ok(Some(newest.id));
        }
        let made = header.snapshots.values().any(|s| s.mirror().is_some());
        if made && bootstrap::role(&header, "") != Role::Primary {
            break;
        }
        ctx.publish(
            Report::new(ReplayState::Unknown, "waiting for the first mirror-snapshot"),
            remote.image.name(),
        );
        tokio::select! {
            () = ctx.cancel.cancelled() => return Ok(None),
            () = tokio::time::sleep(FIRST_SNAPSHOT_INTERVAL) => {}
        }
        header = remote.image.read_header().await?;
    }
    ctx.publish(Report::new(ReplayState::Unknown, "remote image is not primary"), remote.image.name());
    Ok(None)
}
