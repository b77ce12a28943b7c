//! An image that is primary here: nothing is copied, and its header is watched for the end of that. What a promotion by
//! stock tools leaves behind is removed.

use rbd::mirroring::StatusState;
use std::time::Duration;

use futures::future::OptionFuture;
use rados::Result;
use rbd::image::OpenImage;
use rbd::watch_notify::{HeaderEvent, HeaderWatch};

use super::bootstrap::{self, Role};
use super::half_filled::{self, half_filled};
use super::{Attempt, ImageContext};
use crate::report::Report;

/// How often it is looked at although nobody announced a change.
const CHECK_INTERVAL: Duration = Duration::from_secs(300);

/// Waits until the image is no longer primary.
pub(super) async fn watch(ctx: &ImageContext, image: &OpenImage) -> Result<Attempt> {
    let mut watch = HeaderWatch::new(&ctx.local, image.image.id()).await?;
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
            // In a task of its own: whoever notifies the header waits for the answer of this one.
            removal = Some(tokio::spawn(half_filled::remove(image.image.clone(), stop.clone())));
        }
        tokio::select! {
            () = ctx.cancel.cancelled() => break Attempt::Over,
            () = ctx.changed.notified() => break Attempt::Again(Duration::ZERO),
            // Other events ask something of the lock's owner, which is not us: dropping them answers.
            event = watch.next() => match event {
                None => break Attempt::Again(Duration::ZERO),
                Some(HeaderEvent::Lost(error)) => tracing::debug!(image = %ctx.global_image_id, "{error}"),
                Some(_) => {}
            },
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
    };
    stop.cancel();
    if let Some(Err(error)) = OptionFuture::from(removal).await {
        tracing::error!(image = %ctx.global_image_id, "removing half-filled snapshots broke: {error}");
    }
    watch.unregister().await?;
    Ok(attempt)
}
