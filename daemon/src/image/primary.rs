//! An image that is primary here: nothing is copied, and its header is watched for the end of that.

use rbd::mirroring::StatusState;
use std::time::Duration;

use rados::Result;
use rbd::image::OpenImage;
use rbd::watch_notify::{HeaderEvent, HeaderWatch};

use super::bootstrap::{self, Role};
use super::{Attempt, ImageContext};
use crate::report::Report;

/// How long the cluster remembers a silent watcher: librbd's value.
const WATCH_TIMEOUT: Duration = Duration::from_secs(30);
/// How often it is looked at although nobody announced a change.
const CHECK_INTERVAL: Duration = Duration::from_secs(300);

/// Waits until the image is no longer primary.
pub(super) async fn watch(ctx: &ImageContext, image: &OpenImage) -> Result<Attempt> {
    let mut watch = HeaderWatch::new(&ctx.local, image.image.id(), WATCH_TIMEOUT).await?;
    ctx.publish(Report::new(StatusState::Stopped, "local image is primary"), image.image.name());
    let attempt = loop {
        let header = image.image.read_header().await?;
        if bootstrap::role(&header, &ctx.remote_mirror_uuid) != Role::Primary {
            break Attempt::Again(Duration::ZERO);
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
    watch.unregister().await?;
    Ok(attempt)
}
