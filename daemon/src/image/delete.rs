//! The copy follows when the primary is removed, or its mirroring is disabled.
//!
//! Order, and what each step guarantees:
//! 1. The remote image was seen to be gone ([`super::remote_image::find`]), in a pool that is there and is the one that
//!    the copy was made from.
//! 2. **The copy is closed to promotions**, in one write that fails unless it is a copy of an image in that pool at that
//!    very moment: its header is marked ([`rbd::removal_mark`]), or its journal closed to tags. A promotion that comes
//!    before makes this write fail, and the image stays; one that comes later fails. Time may pass between 1 and 2 (a write
//!    that is held up), but an entry that is gone does not come back: an image that is enabled anew gets another global id.
//! 3. Its entry in `rbd_mirroring` says "disabling". If somebody has removed it, to keep the image, step 2 is undone.
//! 4. It goes to the trash. From here on the removal is completed by whoever finds it, and nothing remote is asked any more.
//! 5. The journal of a copy that stays there for a while is replaced by one of its own, and the mark is taken away: taken
//!    back from the trash, the image has a history of its own.
//! 6. The entry goes.
//! 7. When its time has come it is removed ([`purge`]): unless it was promoted since step 5, which is looked at as in step
//!    2, and not while somebody has it open.
//!
//! Each step can be repeated. Reference: `src/tools/rbd_mirror/image_deleter/TrashMoveRequest.cc`, `TrashRemoveRequest.cc`.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use journal::Journal;
use journal::bootstrap::Owner;
use journal::image_journal::ImageJournal;
use rados::error::ResultExt;
use rados::{Error, IoCtx, PoolId, Result};
use rbd::image::OpenImage;
use rbd::mirroring::{MirrorImage, MirrorImageMode, MirrorImageState, Mirroring, StatusState};
use rbd::pool_metadata::pool_metadata;
use rbd::removal_mark::{self, Marking, is_promoted};
use rbd::remove::{RemoveOptions, open_by, remove_from_trash_with};
use rbd::trash::{self, TrashImage, TrashSource, TrashState};
use rbd::{Features, ImageHeader, ImageId, Snapshot, Timestamp};

use super::bootstrap::{self, Record, Role};
use super::remote_image::Gone;
use super::{Attempt, ImageContext, LOOK_INTERVAL};
use crate::report::Report;
use crate::settings;

/// The remote image is gone, or no longer mirrored. Removes the local one if it is a copy of it, and of nothing else.
pub(super) async fn follow_removal(
    ctx: &ImageContext,
    record: &Record,
    opened: Option<OpenImage>,
    _: Gone,
) -> Result<Attempt> {
    let Some(image) = opened else {
        bootstrap::forget(ctx, record).await?;
        return Ok(Attempt::Over);
    };
    let name = image.image.name();
    if !remove_copy(ctx, record, &image).await? {
        let report = match primary_mirror_uuid(ctx, record, &image).await? {
            Some(uuid) if uuid != *ctx.remote_mirror_uuid => {
                let what = format!(
                    "local image linked to unknown peer: it is a copy of an image in the pool with the mirror uuid '{uuid}' \
                     and the remote pool has '{}' (it was made anew or its mirroring was); the copy is kept. Promote it \
                     by force to use it; if it is not needed any more disable its mirroring and remove it",
                    ctx.remote_mirror_uuid
                );
                Report::new(StatusState::Error, what)
            }
            _ => {
                let what = "remote image no longer exists and the local one is not a copy of it: promote it to use it or \
                            disable its mirroring";
                Report::new(StatusState::Stopped, what)
            }
        };
        ctx.publish(report, name);
        return Ok(Attempt::Again(LOOK_INTERVAL));
    }
    Ok(Attempt::Over)
}

/// The mirror uuid of the pool that the local image is a copy from; `None` when it is not a copy.
async fn primary_mirror_uuid(
    ctx: &ImageContext,
    record: &Record,
    image: &OpenImage,
) -> Result<Option<String>> {
    if record.mirror.mode != MirrorImageMode::Journal {
        let newest = image.header.snapshots.values().rev().find_map(Snapshot::mirror);
        let newest = newest.filter(|mirror| mirror.state.is_non_primary() && !mirror.is_orphan());
        return Ok(newest.map(|mirror| mirror.primary_mirror_uuid.clone()));
    }
    let Some(journal) = Journal::open(&ctx.local, &record.id).await.optional()? else { return Ok(None) };
    Ok(match ImageJournal::read(&journal).await?.owner() {
        Owner::CopyOf(uuid) => Some(uuid),
        Owner::Primary | Owner::Orphan => None,
    })
}

/// Removes a copy, or moves it to the trash if it is to stay there for a while. False, and nothing is done, when it is not,
/// or no longer, a copy of an image in the remote pool.
pub(super) async fn remove_copy(ctx: &ImageContext, record: &Record, image: &OpenImage) -> Result<bool> {
    if !close_to_promotions(ctx, record).await? {
        return Ok(false);
    }
    let name = image.image.name();
    tracing::info!(image = %ctx.global_image_id, "the remote image is gone: removing its copy '{name}'");
    ctx.publish(Report::new(StatusState::StoppingReplay, "remote image no longer exists"), name);
    let disabling = MirrorImage { state: MirrorImageState::Disabling, ..record.mirror.clone() };
    let set = Mirroring::new(&ctx.local).image_set(&record.id, &disabling).await;
    if set.as_ref().is_err_and(Error::is_not_found) {
        tracing::info!(image = %ctx.global_image_id, "somebody disabled the mirroring of '{name}': it stays");
        open_to_promotions(&ctx.local, &record.id).await?;
        return Ok(true);
    }
    set?;
    let now = removal_mark::cluster_time(&ctx.local, &record.id).await?;
    let delay = delete_delay(ctx, &image.header).await?;
    trash::move_image_at(&ctx.local, &record.id, name, TrashSource::Mirroring, now, delay).await?;
    complete(ctx, record).await?;
    Ok(true)
}

/// True for an image that a removal, cut off, has moved to the trash.
pub(super) async fn is_under_way(ctx: &ImageContext, record: &Record) -> Result<bool> {
    if record.mirror.state != MirrorImageState::Disabling {
        return Ok(false);
    }
    Ok(trash::get(&ctx.local, &record.id).await?.is_some_and(|entry| entry.source == TrashSource::Mirroring))
}

/// Completes the removal of an image that is in the trash, or is being moved there.
pub(super) async fn complete(ctx: &ImageContext, record: &Record) -> Result<()> {
    let (ioctx, id) = (&ctx.local, &record.id);
    if let Some(entry) = trash::get(ioctx, id).await? {
        let delay = entry.deferment_end_time.seconds.saturating_sub(entry.deletion_time.seconds);
        let delay = Duration::from_secs(delay.into());
        if entry.state == TrashState::Moving {
            let began = entry.deletion_time;
            trash::move_image_at(ioctx, id, &entry.name, TrashSource::Mirroring, began, delay).await?;
        }
        if !delay.is_zero() {
            settle(ioctx, id, record.mirror.mode).await?;
        }
    }
    let mirroring = Mirroring::new(ioctx);
    mirroring.image_remove(id).await.optional()?;
    let told = mirroring.notify_image(MirrorImageState::Disabled, id, &record.mirror.global_id).await;
    told.unwrap_or_else(|error| tracing::debug!(image = %ctx.global_image_id, "{error}"));
    if let Some(entry) = trash::get(ioctx, id).await?
        && entry.deletion_time == entry.deferment_end_time
        && let Err(error) = purge(ioctx, id).await
    {
        // It is tried again by the task that looks after the trash.
        settle(ioctx, id, record.mirror.mode).await?;
        tracing::warn!(image = %ctx.global_image_id, "the copy '{}' stays in the trash for now: {error}", entry.name);
    }
    Ok(())
}

/// What a removal began is undone: the image is not to be removed after all. No error when it never began.
pub(super) async fn withdraw(ctx: &ImageContext, record: &Record, header: &ImageHeader) -> Result<()> {
    let disabling = record.mirror.state == MirrorImageState::Disabling;
    let begun = match record.mirror.mode {
        MirrorImageMode::Journal => match Journal::open(&ctx.local, &record.id).await.optional()? {
            Some(journal) => ImageJournal::is_closed(&journal).await?,
            None => false,
        },
        _ => removal_mark::may_be_marked(header) && removal_mark::is_marked(&ctx.local, &record.id).await?,
    };
    if !begun {
        return Ok(());
    }
    tracing::info!(image = %ctx.global_image_id, "an image that was about to be removed stays");
    if disabling {
        let enabled = MirrorImage { state: MirrorImageState::Enabled, ..record.mirror.clone() };
        Mirroring::new(&ctx.local).image_set(&record.id, &enabled).await?;
    }
    open_to_promotions(&ctx.local, &record.id).await
}

/// Closes the local image to promotions if it is a copy of an image in the remote pool at that moment. False when it is not.
async fn close_to_promotions(ctx: &ImageContext, record: &Record) -> Result<bool> {
    match record.mirror.mode {
        MirrorImageMode::Journal => {
            let Some(journal) = Journal::open(&ctx.local, &record.id).await.optional()? else {
                return Ok(false);
            };
            ImageJournal::close(&journal, |_, tag| Owner::of(tag).is_copy_of(&ctx.remote_mirror_uuid)).await
        }
        _ => {
            let is_copy =
                |header: &ImageHeader| bootstrap::role(header, &ctx.remote_mirror_uuid) == Role::LinkedCopy;
            let marking = removal_mark::mark(&ctx.local, &record.id, is_copy).await?;
            Ok(marking == Marking::Marked)
        }
    }
}

async fn open_to_promotions(ioctx: &IoCtx, id: &ImageId) -> Result<()> {
    if let Some(journal) = Journal::open(ioctx, id).await.optional()? {
        ImageJournal::reopen(&journal).await?;
    }
    removal_mark::unmark(ioctx, id).await
}

/// Makes of an image in the trash what it shall be when it is taken back.
async fn settle(ioctx: &IoCtx, id: &ImageId, mode: MirrorImageMode) -> Result<()> {
    if ImageHeader::read(ioctx, id).await.optional()?.is_none() {
        return Ok(());
    }
    if mode == MirrorImageMode::Journal {
        ImageJournal::reset(ioctx, id).await?;
    }
    removal_mark::unmark(ioctx, id).await
}

/// Removes a copy that lies in the trash, because its primary is gone. EBUSY while somebody has it open or it has clones;
/// EPERM when it was promoted there. It then stays as it is.
/// Nothing is done while another task of this program removes it.
pub async fn purge(ioctx: &IoCtx, id: &ImageId) -> Result<()> {
    let Some(_turn) = Turn::take(ioctx.pool_id(), id) else { return Ok(()) };
    let clients = open_by(ioctx, id, &BTreeSet::new()).await?;
    if !clients.is_empty() {
        let what =
            format!("cannot remove image {id}: it is open (close it first: {})", clients.join(" and "));
        return Err(Error::new(libc::EBUSY, what));
    }
    let promoted = || {
        let what = format!(
            "cannot remove image {id}: it was promoted in the trash (take it back: rbd trash restore)"
        );
        Err(Error::new(libc::EPERM, what))
    };
    if !is_in_trash(ioctx, id).await? {
        return Ok(());
    }
    let marked = match removal_mark::mark(ioctx, id, |header| !is_promoted(header)).await? {
        Marking::Refused => return promoted(),
        marked => marked == Marking::Marked,
    };
    let removed = remove_marked(ioctx, id).await;
    // Taken back from the trash meanwhile, or left there by an error, it is not to stay marked.
    match &removed {
        Ok(Purged::Gone) => {}
        Ok(Purged::Promoted) => removal_mark::unmark(ioctx, id).await?,
        Ok(Purged::TakenBack) | Err(_) if marked => settle_by_features(ioctx, id).await?,
        _ => {}
    }
    match removed? {
        Purged::Promoted => promoted(),
        Purged::Gone | Purged::TakenBack => Ok(()),
    }
}

/// What came of the removal of a copy in the trash.
enum Purged {
    Gone,
    Promoted,
    TakenBack,
}

/// Removes an image that is marked.
async fn remove_marked(ioctx: &IoCtx, id: &ImageId) -> Result<Purged> {
    let header = ImageHeader::read(ioctx, id).await.optional()?;
    let journalled = header.is_some_and(|header| header.features.has(Features::JOURNALING));
    let journal = if journalled { Journal::open(ioctx, id).await.optional()? } else { None };
    if let Some(journal) = &journal {
        let may_close =
            |tid, tag: &_| ImageJournal::is_reset(tid, tag) || matches!(Owner::of(tag), Owner::CopyOf(_));
        if !ImageJournal::close(journal, may_close).await? {
            return Ok(Purged::Promoted);
        }
    }
    if !is_in_trash(ioctx, id).await? {
        return Ok(Purged::TakenBack);
    }
    let options = RemoveOptions { user_snapshots: true, ..RemoveOptions::default() };
    let rest = ImageJournal::remove(ioctx, id);
    remove_from_trash_with(ioctx, id, &options, |_, _| {}, rest).await?;
    // It answers so, too, when there is no entry any more because the image was taken back.
    let there = ImageHeader::read(ioctx, id).await.optional()?.is_some();
    Ok(if there { Purged::TakenBack } else { Purged::Gone })
}

/// True while mirroring's entry of the image is in the trash.
async fn is_in_trash(ioctx: &IoCtx, id: &ImageId) -> Result<bool> {
    Ok(trash::get(ioctx, id).await?.is_some_and(|entry| entry.source == TrashSource::Mirroring))
}

/// Undoes the mark of an image that is not removed, and gives it a journal of its own if it has one.
async fn settle_by_features(ioctx: &IoCtx, id: &ImageId) -> Result<()> {
    let Some(header) = ImageHeader::read(ioctx, id).await.optional()? else { return Ok(()) };
    let mode = match header.features.has(Features::JOURNALING) {
        true => MirrorImageMode::Journal,
        false => MirrorImageMode::Snapshot,
    };
    settle(ioctx, id, mode).await
}

/// When `entry` may be removed, by the clock of the cluster that `now` is of.
pub fn is_due(entry: &TrashImage, now: Timestamp) -> bool {
    entry.source == TrashSource::Mirroring && entry.deferment_end_time <= now
}

/// How long the copy stays in the trash: `rbd_mirroring_delete_delay` of the image, else of the pool, else of this daemon.
async fn delete_delay(ctx: &ImageContext, header: &ImageHeader) -> Result<Duration> {
    let of_pool = pool_metadata(&ctx.local).await?;
    Ok(settings::delete_delay(&header.metadata, &of_pool, ctx.delete_delay))
}

/// The right to remove an image, which one task has at a time.
struct Turn(PoolId, ImageId);

static TURNS: Mutex<BTreeSet<(PoolId, ImageId)>> = Mutex::new(BTreeSet::new());

impl Turn {
    fn take(pool: PoolId, image: &ImageId) -> Option<Turn> {
        let mut turns = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        turns.insert((pool, image.clone())).then(|| Turn(pool, image.clone()))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let turn = (self.0, self.1.clone());
        TURNS.lock().unwrap_or_else(PoisonError::into_inner).remove(&turn);
    }
}
