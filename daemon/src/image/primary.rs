//! An image that is primary here: nothing is copied, and its header is looked at for the end of that. What a promotion by
//! stock tools leaves behind is removed.
//!
//! The header is not watched. Whoever uses the image counts its watchers to tell whether it is in use, as ceph-csi does,
//! which allows for one of mirroring: that of the daemon that copies the image, at the other site.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::OptionFuture;
use rados::{ReadOp, ReadSub, Result};
use rbd::image::OpenImage;
use rbd::layout::header_object;
use rbd::mirroring::StatusState;

use super::bootstrap::{self, Role};
use super::half_filled::{self, half_filled};
use super::{Attempt, ImageContext};
use crate::report::Report;

/// How often the header of a primary is looked at when there are few of them.
const LOOK_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// What all primaries of a pool together may cost.
const LOOKS_PER_SECOND_MAX: u32 = 50;

/// Counts the primaries of a pool.
#[derive(Debug, Default)]
pub struct Primaries(AtomicUsize);

struct Counted<'a>(&'a Primaries);

impl Primaries {
    fn count(&self) -> Counted<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self)
    }

    fn look_interval(&self) -> Duration {
        let count = u32::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        LOOK_INTERVAL_MIN.max(Duration::from_secs(1).saturating_mul(count) / LOOKS_PER_SECOND_MAX)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Waits until the image is no longer primary.
pub(super) async fn watch(ctx: &ImageContext, image: &OpenImage) -> Result<Attempt> {
    let _counted = ctx.shared.primaries.count();
    ctx.publish(Report::new(StatusState::Stopped, "local image is primary"), image.image.name());
    let stop = ctx.cancel.child_token();
    let _stopped = stop.clone().drop_guard();
    let mut removal = None;
    let attempt = loop {
        let header = image.image.read_header().await?;
        if bootstrap::role(&header, &ctx.remote_mirror_uuid) != Role::Primary {
            break Attempt::Again(Duration::ZERO);
        }
        if removal.is_none() && !half_filled(&header).is_empty() {
            removal = Some(tokio::spawn(half_filled::remove(image.image.clone(), stop.clone())));
        }
        tokio::select! {
            () = ctx.cancel.cancelled() => break Attempt::Over,
            () = ctx.changed.notified() => break Attempt::Again(Duration::ZERO),
            changed = changed(ctx, image, header.version) => changed?,
        }
    };
    stop.cancel();
    if let Some(Err(error)) = OptionFuture::from(removal).await {
        tracing::error!(image = %ctx.global_image_id, "removing half-filled snapshots broke: {error}");
    }
    Ok(attempt)
}

/// Waits until the header is not the one of this version any more.
async fn changed(ctx: &ImageContext, image: &OpenImage, version: u64) -> Result<()> {
    let object = header_object(image.image.id());
    loop {
        tokio::time::sleep(ctx.shared.primaries.look_interval()).await;
        let look = ReadOp::new(object.clone()).with(ReadSub::AssertVersion(version));
        match ctx.local.read(look).await {
            Ok(_) => {}
            Err(error) if error.is(libc::ERANGE) || error.is(libc::EOVERFLOW) => return Ok(()),
            // It is gone: whoever opens it next finds that out.
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
