//! One mirrored image: the task that owns all of its state.

mod bootstrap;
mod delete;
mod half_filled;
mod journal_mode;
mod lifeline;
mod name;
mod primary;
mod remote_image;
mod remote_watch;
mod round;
mod session;
mod snapshot_mode;
mod status;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use deep_copy::budget::Budget;
use deep_copy::ids::SnapIds;
use deep_copy::map_trust::Trust;
use journal::budget::Budget as JournalBudget;
use journal::tail::PollBudget;
use rados::text::visible;
use rados::{ErrorClass, IoCtx, PoolId, Result};
use rbd::mirroring::{MirrorImageMode, MirrorImageState, StatusState};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::bootstrap::Record;
pub use self::delete::{is_due, purge};
use self::journal_mode::ResyncWish;
use self::primary::Primaries;
use self::remote_image::RemoteImage;
pub use self::remote_image::trouble;
use crate::flush::Flushes;
use crate::report::Report;
use crate::retry::Backoff;
use crate::settings::JournalSettings;
use crate::space::Space;

/// What an image's task is given.
#[derive(Clone)]
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
    /// How far the object maps of primaries are believed, unless an image says otherwise.
    pub object_map_trust: Trust,
    /// Options of journal mode.
    pub journal: Arc<JournalSettings>,
    /// Notified when the image's mirroring was announced to have changed, in either cluster.
    pub changed: Arc<Notify>,
    /// Where it reports.
    pub report: watch::Sender<Report>,
    /// Where it is asked to flush the image.
    pub flushes: Flushes,
    /// Ends it.
    pub cancel: CancellationToken,
}

/// What all images of one local cluster connection share. Made once per connection; an image task borrows from it.
pub struct Shared {
    local_snap_ids: Reserves,
    remote_snap_ids: Reserves,
    /// Bound on the bytes that all copies together hold in memory. Each copy takes a part of it.
    pub budget: Budget,
    /// Bound on the bytes of journals that all replays together hold in memory.
    pub journal_budget: Arc<JournalBudget>,
    /// Bound on how often all journals together are looked at.
    pub poll_budget: Arc<PollBudget>,
    /// Whether the local pools have room.
    pub space: Space,
    /// The images that are primary here.
    primaries: Primaries,
}

/// Looks at journals per second, of all images together, that may have new entries.
const JOURNAL_POLLS_PER_SECOND_MAX: u32 = 2000;

/// Ids that a pool's reserve holds at first.
const SNAP_ID_RESERVE: usize = 4;

/// The reserves of snapshot ids of one cluster's pools.
#[derive(Default)]
struct Reserves(Mutex<HashMap<PoolId, SnapIds>>);

impl Reserves {
    fn of(&self, data: &IoCtx) -> SnapIds {
        let mut pools = self.0.lock().expect("no code panics while it holds this lock");
        pools.entry(data.pool_id()).or_insert_with(|| SnapIds::new(data.clone(), SNAP_ID_RESERVE)).clone()
    }
}

impl Shared {
    /// With room for `bytes_max` bytes on their way in copies, and as many in replays.
    pub fn new(bytes_max: u64) -> Self {
        let poll_budget = PollBudget::new(JOURNAL_POLLS_PER_SECOND_MAX);
        Shared {
            local_snap_ids: Reserves::default(),
            remote_snap_ids: Reserves::default(),
            budget: Budget::new(bytes_max),
            journal_budget: JournalBudget::new(bytes_max),
            poll_budget,
            space: Space::default(),
            primaries: Primaries::default(),
        }
    }

    /// The reserve of snapshot ids of the local data pool behind `data`.
    pub fn snap_ids(&self, data: &IoCtx) -> SnapIds {
        self.local_snap_ids.of(data)
    }

    /// The reserve of snapshot ids of the remote data pool behind `data`: for sync points of images that nobody has open.
    pub fn remote_snap_ids(&self, data: &IoCtx) -> SnapIds {
        self.remote_snap_ids.of(data)
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
    /// Fails when the local pool is full, or the one in which the data of the image lies.
    fn expect_room(&self, data_pool: PoolId) -> Result<()> {
        self.shared.space.expect_room(&[self.local.pool_id(), data_pool])
    }

    fn publish(&self, mut report: Report, image_name: &str) {
        report.image_name = visible(image_name).into_owned();
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
    let mut wish = ResyncWish::default();
    loop {
        let began = Instant::now();
        let (mut failed, mut refused) = (false, false);
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
                let refusal = ctx.shared.space.refusal(&ctx.local, &error).await;
                refused = refusal.is_some();
                let description = refusal.map_or(error.to_string(), |full| full.what().to_string());
                tracing::warn!(image = %ctx.global_image_id, "{description}");
                let name = ctx.report.borrow().image_name.clone();
                ctx.publish(Report::new(StatusState::Error, description), &name);
                if began.elapsed() > RETRY_PAUSES.1 {
                    backoff.reset();
                }
                failed = true;
                backoff.next_delay()
            }
        };
        tokio::select! {
            () = ctx.cancel.cancelled() => return Outcome::Done,
            () = ctx.changed.notified() => {}
            () = wish.arises(&ctx), if failed => {}
            () = ctx.shared.space.room(), if refused => {}
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

/// How often an image that is to be made looks for the copy of its parent, or for its name.
const AWAITED_INTERVAL: Duration = Duration::from_millis(500);

/// Finds out in which mode an image is mirrored, and follows it. Whatever it writes locally goes through a gate of its own,
/// so that the lock of the image is not given up before all of it was answered, however the attempt ends.
async fn attempt(ctx: &ImageContext) -> Result<Attempt> {
    let ctx = &ImageContext { local: ctx.local.gated(), ..ctx.clone() };
    let local = bootstrap::find(&ctx.local, &ctx.global_image_id).await?;
    if let Some(record) = &local
        && record.mirror.state == MirrorImageState::Creating
    {
        let removed = bootstrap::remove_half_made(ctx, record).await?;
        if !removed {
            let what = "the local image is being created by another daemon or was left half created";
            ctx.publish(Report::new(StatusState::Unknown, what), "");
        }
        return Ok(Attempt::Again(if removed { Duration::ZERO } else { LOOK_INTERVAL }));
    }
    if let Some(record) = &local
        && delete::is_under_way(ctx, record).await?
    {
        delete::complete(ctx, record).await?;
        return Ok(Attempt::Again(Duration::ZERO));
    }
    let record = match &local {
        Some(record) => Some(record.clone()),
        None => remote_image::find(ctx).await?.mirrored(),
    };
    match record.map(|record| record.mirror.mode) {
        None => Ok(Attempt::Over),
        Some(MirrorImageMode::Journal) => Box::pin(journal_mode::attempt(ctx, local)).await,
        Some(MirrorImageMode::Snapshot) => Box::pin(snapshot_mode::attempt(ctx, local)).await,
        Some(MirrorImageMode::Unknown(mode)) => {
            let what = format!("this image is mirrored in a mode that this version does not know ({mode})");
            ctx.publish(Report::new(StatusState::Error, what), "");
            Ok(Attempt::Again(LOOK_INTERVAL))
        }
    }
}

/// True when the remote image is mirrored in another mode than the local one; that is reported.
fn modes_differ(ctx: &ImageContext, remote: &Record, mode: MirrorImageMode) -> bool {
    let other = remote.mirror.mode;
    if other == mode {
        return false;
    }
    let what = format!(
        "split-brain detected: the remote image is mirrored in {other} mode and this one in {mode} mode"
    );
    ctx.publish(Report::new(StatusState::Error, what), "");
    true
}

/// Nothing can be said of the remote image, or it is not ready: reports why.
fn await_remote(ctx: &ImageContext, remote: &RemoteImage, name: &str) -> Attempt {
    let report = match remote {
        RemoteImage::Unknown(why) => Report::new(StatusState::Error, why),
        _ => {
            let what = "mirroring of the remote image is being disabled or the image is being removed";
            Report::new(StatusState::Unknown, what)
        }
    };
    ctx.publish(report, name);
    Attempt::Again(LOOK_INTERVAL)
}
