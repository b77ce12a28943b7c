//! An image that is primary here: nothing is copied, and its journal is watched for the end of that.
//!
//! It may follow the other image one day: after it was demoted, and the other one was promoted. For that the other one's
//! journal must keep the tags that lead from the one to the other, which it does for registered clients.

use std::time::Duration;

use futures::FutureExt;
use journal::Journal;
use journal::bootstrap::Owner;
use journal::image_journal::ImageJournal;
use journal::types::{ClientData, MirrorPeer, MirrorPeerState};
use journal::watch::JournalEvent;
use rados::Result;
use rados::error::ResultExt;
use rbd::mirroring::{MirrorImageMode, StatusState};

use super::{Journalled, yet_to_be_copied};
use crate::image::{Attempt, ImageContext, bootstrap};
use crate::report::Report;

/// How often it is looked at although nobody announced a change.
const CHECK_INTERVAL: Duration = Duration::from_secs(300);

/// Waits until the image is no longer primary.
pub(super) async fn watch(ctx: &ImageContext, image: &Journalled) -> Result<Attempt> {
    let journal = &image.journal.journal;
    let mut watch = journal.watch().await?;
    ctx.publish(Report::new(StatusState::Stopped, "local image is primary"), image.image.image.name());
    // The remote cluster may never answer.
    let mut registered = std::pin::pin!(register_for_failback(ctx, image).fuse());
    let attempt = loop {
        let owner = ImageJournal::read(journal).await?.owner();
        if owner != Owner::Primary {
            break Attempt::Again(Duration::ZERO);
        }
        tokio::select! {
            () = ctx.cancel.cancelled() => break Attempt::Over,
            () = ctx.changed.notified() => break Attempt::Again(Duration::ZERO),
            registered = &mut registered => if let Err(error) = registered {
                tracing::warn!(image = %ctx.global_image_id, "cannot register with the remote journal: {error}");
            },
            event = watch.next() => match event {
                None => break Attempt::Again(Duration::ZERO),
                Some(JournalEvent::Lost(error)) => tracing::debug!(image = %ctx.global_image_id, "{error}"),
                Some(JournalEvent::Changed) => {}
            },
            () = tokio::time::sleep(CHECK_INTERVAL) => {}
        }
    };
    watch.unregister().await?;
    Ok(attempt)
}

/// Registers this site in the journal of the other image, as Ceph's daemon does.
async fn register_for_failback(ctx: &ImageContext, image: &Journalled) -> Result<()> {
    let Some(remote) = bootstrap::find_remote(ctx).await? else { return Ok(()) };
    if remote.mirror.mode != MirrorImageMode::Journal {
        return Ok(());
    }
    let Some(remote) = Journal::open(&ctx.remote, &remote.id).await.optional()? else { return Ok(()) };
    if remote.client(&ctx.local_mirror_uuid).await?.is_some() {
        return Ok(());
    }
    let peer = MirrorPeer { state: MirrorPeerState::Replaying, ..yet_to_be_copied(image.image.image.id()) };
    remote.client_register(&ctx.local_mirror_uuid, &ClientData::MirrorPeer(peer)).await
}
