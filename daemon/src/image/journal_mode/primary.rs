//! An image that is primary here: nothing is copied, and its journal is watched for the end of that.
//!
//! It may follow the other image one day: after it was demoted, and the other one was promoted. For that the other one's
//! journal must keep the tags that lead from the one to the other, which it does for registered clients.

use std::convert::Infallible;
use std::time::Duration;

use journal::Journal;
use journal::bootstrap::Owner;
use journal::image_journal::ImageJournal;
use journal::types::{ClientData, MirrorPeer, MirrorPeerState};
use journal::watch::JournalEvent;
use rados::Result;
use rados::error::ResultExt;
use rbd::mirroring::{MirrorImageMode, StatusState};

use super::{Journalled, yet_to_be_copied};
use crate::image::{Attempt, ImageContext, remote_image};
use crate::report::Report;

/// How often it is looked at although nobody announced a change.
const CHECK_INTERVAL: Duration = Duration::from_secs(300);
/// How soon the remote journal is looked for again when there was none.
const REGISTER_INTERVAL: Duration = Duration::from_secs(30);

/// Waits until the image is no longer primary.
pub(super) async fn watch(ctx: &ImageContext, image: &Journalled) -> Result<Attempt> {
    let journal = &image.journal.journal;
    let mut watch = journal.watch().await?;
    ctx.publish(Report::new(StatusState::Stopped, "local image is primary"), image.image.image.name());
    // The remote cluster may never answer.
    let mut registered = std::pin::pin!(stay_registered(ctx, image));
    let attempt = loop {
        let owner = ImageJournal::read(journal).await?.owner();
        if owner != Owner::Primary {
            break Attempt::Again(Duration::ZERO);
        }
        tokio::select! {
            () = ctx.cancel.cancelled() => break Attempt::Over,
            () = ctx.changed.notified() => break Attempt::Again(Duration::ZERO),
            never = &mut registered => match never {},
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

/// Registers this site whenever the other image has a journal without it: the copy may come later, or be made anew.
async fn stay_registered(ctx: &ImageContext, image: &Journalled) -> Infallible {
    let mut told = false;
    loop {
        let registered = register_for_failback(ctx, image).await;
        if let Err(error) = &registered
            && !told
        {
            tracing::warn!(image = %ctx.global_image_id, "cannot register with the remote journal: {error}");
        }
        told = registered.is_err();
        tokio::time::sleep(if registered.is_ok_and(|is| is) { CHECK_INTERVAL } else { REGISTER_INTERVAL })
            .await;
    }
}

/// Registers this site in the journal of the other image, as Ceph's daemon does. False when there is no such journal.
async fn register_for_failback(ctx: &ImageContext, image: &Journalled) -> Result<bool> {
    let Some(remote) = remote_image::find(ctx).await?.mirrored() else { return Ok(false) };
    if remote.mirror.mode != MirrorImageMode::Journal {
        return Ok(false);
    }
    let Some(remote) = Journal::open(&ctx.remote, &remote.id).await.optional()? else { return Ok(false) };
    if remote.client(&ctx.local_mirror_uuid).await?.is_some() {
        return Ok(true);
    }
    let peer = MirrorPeer { state: MirrorPeerState::Replaying, ..yet_to_be_copied(image.image.image.id()) };
    remote.client_register(&ctx.local_mirror_uuid, &ClientData::MirrorPeer(peer)).await?;
    Ok(true)
}
