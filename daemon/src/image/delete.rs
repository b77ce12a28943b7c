//! The copy follows when the primary is removed, or its mirroring is disabled.
//!
//! The copy goes to the trash first, from where an operator can still take it back while `rbd_mirroring_delete_delay`
//! lasts. Reference: `src/tools/rbd_mirror/image_deleter/TrashMoveRequest.cc`, `TrashRemoveRequest.cc`.

use std::time::Duration;

use journal::image_journal::ImageJournal;
use rados::Result;
use rados::error::ResultExt;
use rbd::image::OpenImage;
use rbd::mirroring::{MirrorImageMode, MirrorImageState, Mirroring, StatusState};
use rbd::remove::{RemoveOptions, remove_from_trash_with};
use rbd::trash::{self, TrashSource};

use super::bootstrap::{self, Record};
use super::{Attempt, ImageContext, LOOK_INTERVAL};
use crate::report::Report;

/// The remote image is gone, or no longer mirrored. Removes the local one, if `is_copy` says that it is a copy of it, and
/// of nothing else. Taken back from the trash, a journalled image has a history of its own.
pub(super) async fn follow_removal(
    ctx: &ImageContext,
    record: &Record,
    opened: Option<OpenImage>,
    is_copy: bool,
) -> Result<Attempt> {
    let Some(image) = opened else {
        bootstrap::forget(ctx, record).await?;
        return Ok(Attempt::Over);
    };
    let name = image.image.name();
    if !is_copy {
        let what = "remote image no longer exists, and the local one is not a copy of it";
        ctx.publish(Report::new(StatusState::Stopped, what), name);
        return Ok(Attempt::Again(LOOK_INTERVAL));
    }
    tracing::info!(image = %ctx.global_image_id, "the remote image is gone: removing its copy '{name}'");
    ctx.publish(Report::new(StatusState::StoppingReplay, "remote image no longer exists"), name);
    remove_copy(ctx, record, &image).await?;
    Ok(Attempt::Over)
}

/// Moves a copy to the trash, and removes it unless it is to stay there for a while.
pub(super) async fn remove_copy(ctx: &ImageContext, record: &Record, image: &OpenImage) -> Result<()> {
    let mirroring = Mirroring::new(&ctx.local);
    let name = image.image.name();
    let mut mirror = record.mirror.clone();
    mirror.state = MirrorImageState::Disabling;
    mirroring.image_set(&record.id, &mirror).await?;
    // Without a name it is in the trash already.
    if !name.is_empty() {
        trash::move_image(&ctx.local, &record.id, name, TrashSource::Mirroring, ctx.delete_delay).await?;
    }
    if record.mirror.mode == MirrorImageMode::Journal {
        ImageJournal::reset(&ctx.local, &record.id).await?;
    }
    mirroring.image_remove(&record.id).await.optional()?;
    let told = mirroring.notify_image(MirrorImageState::Disabled, &record.id, &mirror.global_id).await;
    told.unwrap_or_else(|error| tracing::debug!(image = %ctx.global_image_id, "{error}"));
    if ctx.delete_delay == Duration::ZERO {
        let options =
            RemoveOptions { user_snapshots: true, despite_watchers: true, ..RemoveOptions::default() };
        let journal = ImageJournal::remove(&ctx.local, &record.id);
        remove_from_trash_with(&ctx.local, &record.id, &options, |_, _| {}, journal).await?;
    }
    Ok(())
}
