//! Images that are mirrored by their journals: from the records of a pair to a session that follows it.
//!
//! What is to be done is decided by [`journal::bootstrap`] from both journals, again and again: whenever one of them, or
//! anything else about the pair, changes.

mod commits;
mod copy;
mod feeder;
mod primary;
mod replay;
mod session;
mod status;
mod tidy;
mod wish;

use std::time::Duration;

use journal::Journal;
use journal::bootstrap::Owner;
use journal::image_journal::ImageJournal;
use journal::metadata::JournalLayout;
use journal::types::{ClientData, MirrorPeer, MirrorPeerState, TagData, TagPredecessor};
use journal::watch::JournalWatch;
use rados::error::ResultExt;
use rados::{Error, Result, SnapId};
use rbd::ImageId;
use rbd::image::OpenImage;
use rbd::mirroring::{MirrorImageMode, MirrorImageState, StatusState};

use super::bootstrap::{self, Made, Record, Wanted};
use super::lifeline::Lifeline;
use super::remote_image::{self, RemoteImage};
use super::{AWAITED_INTERVAL, Attempt, ImageContext, LOOK_INTERVAL, await_remote, delete, modes_differ};
use crate::report::Report;
use session::{End, Session};
pub(super) use wish::ResyncWish;

/// An image and its own journal, open.
#[derive(Debug)]
struct Journalled {
    image: OpenImage,
    journal: ImageJournal,
}

impl Journalled {
    /// Opens both; `None` when there is no such image. EINVAL when it has no journal.
    async fn open(ioctx: &rados::IoCtx, id: &ImageId) -> Result<Option<Journalled>> {
        let Some(image) = bootstrap::open(ioctx, id).await? else { return Ok(None) };
        let Some(journal) = Journal::open(ioctx, id).await.optional()? else {
            let what =
                format!("image '{}' does not support journaling: it has no journal", image.image.name());
            return Err(Error::new(libc::EINVAL, what));
        };
        Ok(Some(Journalled { journal: ImageJournal::read(&journal).await?, image }))
    }
}

/// Finds and follows a pair; `local` is the record of the local image, which holds something.
pub(super) async fn attempt(ctx: &ImageContext, local: Option<Record>) -> Result<Attempt> {
    let opened = match &local {
        Some(record) => Journalled::open(&ctx.local, &record.id).await?,
        None => None,
    };
    if let Some(image) = &opened
        && image.journal.owner() == Owner::Primary
    {
        return primary::watch(ctx, image).await;
    }
    let (ctx, mut lifeline) = Lifeline::lay(ctx);
    let followed = Box::pin(follow(&ctx, local, opened, &mut lifeline)).await;
    lifeline.judge(&ctx, followed)
}

/// Follows a pair whose local image, if there is one, is `opened` and not primary.
async fn follow(
    ctx: &ImageContext,
    local: Option<Record>,
    opened: Option<Journalled>,
    lifeline: &mut Lifeline,
) -> Result<Attempt> {
    // Before anything is asked of the remote cluster.
    let own_watch = match &opened {
        Some(opened) => Some(watch_own(opened, lifeline).await?),
        None => None,
    };
    let remote = remote_image::find(ctx).await?;
    if let (Some(record), Some(opened)) = (&local, &opened)
        && !matches!(remote, RemoteImage::Gone(_))
    {
        delete::withdraw(ctx, record, &opened.image.header).await?;
    }
    match (local, opened, remote) {
        (None, _, RemoteImage::Gone(_)) => Ok(Attempt::Over),
        (Some(record), opened, RemoteImage::Gone(gone)) => {
            delete::follow_removal(ctx, &record, opened.map(|image| image.image), gone).await
        }
        (_, opened, remote @ (RemoteImage::Disabling | RemoteImage::Unknown(_))) => {
            Ok(await_remote(ctx, &remote, opened.as_ref().map_or("", |image| image.image.image.name())))
        }
        (_, _, RemoteImage::Mirrored(remote)) if modes_differ(ctx, &remote, MirrorImageMode::Journal) => {
            Ok(Attempt::Again(LOOK_INTERVAL))
        }
        (Some(record), _, RemoteImage::Mirrored(_)) if record.mirror.state == MirrorImageState::Disabling => {
            let what = "image in transient state: mirroring of the local image is being disabled";
            ctx.publish(Report::new(StatusState::Unknown, what), "");
            Ok(Attempt::Again(LOOK_INTERVAL))
        }
        (local, opened, RemoteImage::Mirrored(remote)) => {
            let Some(remote) = Journalled::open(&ctx.remote, &remote.id).await? else {
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
            tracing::debug!(image = %ctx.global_image_id, "both images are open");
            let image = opened.image.clone();
            let own_watch = match own_watch {
                Some(watch) => watch,
                None => watch_own(&opened, lifeline).await?,
            };
            let session = Session::open(ctx, opened, remote, own_watch, lifeline).await?;
            match Box::pin(session.run()).await? {
                End::Cancelled => Ok(Attempt::Over),
                End::Again(pause) => Ok(Attempt::Again(pause)),
                End::Discard => discard(ctx, &image).await,
            }
        }
    }
}

/// Watches the local journal. From then on nobody who promotes the image waits for the remote cluster.
async fn watch_own(image: &Journalled, lifeline: &mut Lifeline) -> Result<JournalWatch> {
    let journal = &image.journal.journal;
    let watch = journal.watch().await?;
    lifeline.sever_when_promoted(journal, &watch);
    Ok(watch)
}

/// Makes and opens the local image; answers with a pause while that cannot be.
async fn create(
    ctx: &ImageContext,
    record: Option<Record>,
    remote: &Journalled,
) -> Result<std::result::Result<Journalled, Duration>> {
    if let Some(record) = record {
        // Its entry says that it is mirrored, but it is gone.
        bootstrap::forget(ctx, &record).await?;
    }
    let name = remote.image.image.name();
    if remote.journal.owner() != Owner::Primary {
        ctx.publish(Report::new(StatusState::Unknown, "remote image is not primary"), name);
        return Ok(Err(LOOK_INTERVAL));
    }
    ctx.publish(Report::new(StatusState::StartingReplay, "creating the local image"), name);
    let wanted = Wanted { mode: MirrorImageMode::Journal, at: SnapId::HEAD };
    let register = async |id: &ImageId| register_anew(ctx, &remote.journal.journal, id).await;
    match bootstrap::create_local(ctx, &remote.image, wanted, register).await? {
        Made::Image(id) => {
            tracing::debug!(image = %ctx.global_image_id, "the local image is made");
            create_journal(ctx, &id).await?;
            bootstrap::enable_local(ctx, &id, MirrorImageMode::Journal).await?;
            Ok(Journalled::open(&ctx.local, &id).await?.ok_or(Duration::ZERO))
        }
        Made::Awaits(what) => {
            ctx.publish(Report::new(StatusState::StartingReplay, what), name);
            Ok(Err(AWAITED_INTERVAL))
        }
    }
}

/// Removes the local image, so that it is made anew.
async fn discard(ctx: &ImageContext, image: &OpenImage) -> Result<Attempt> {
    tracing::info!(image = %ctx.global_image_id, "removing the copy '{}': it is made anew", image.image.name());
    if let Some(record) = bootstrap::find(&ctx.local, &ctx.global_image_id).await? {
        let removed = delete::remove_copy(ctx, &record, image).await?;
        return Ok(Attempt::Again(if removed { Duration::ZERO } else { LOOK_INTERVAL }));
    }
    Ok(Attempt::Again(Duration::ZERO))
}

/// A client that says that the local image `id` is yet to be copied.
fn yet_to_be_copied(id: &ImageId) -> MirrorPeer {
    MirrorPeer {
        image: id.clone(),
        state: MirrorPeerState::Syncing,
        sync_object_count: 0,
        sync_points: Vec::new(),
        snap_seqs: Default::default(),
    }
}

/// Registers this site in the remote journal for a local image that is yet to be copied, whatever was registered before.
async fn register_anew(ctx: &ImageContext, remote: &Journal, id: &ImageId) -> Result<()> {
    remote.client_unregister(&ctx.local_mirror_uuid).await.optional()?;
    remote.client_register(&ctx.local_mirror_uuid, &ClientData::MirrorPeer(yet_to_be_copied(id))).await
}

/// Gives a new local image the journal of a copy.
async fn create_journal(ctx: &ImageContext, id: &ImageId) -> Result<()> {
    let settings = &ctx.journal;
    let pool = match settings.pool.as_str() {
        "" => None,
        name => {
            let pools = ctx.local.backend().pools().await?;
            let found = pools.into_iter().find(|(_, other)| other == name).map(|(pool, _)| pool);
            let what = format!("cannot find pool '{name}', which rbd_journal_pool names");
            Some(found.ok_or_else(|| Error::new(libc::ENOENT, what))?)
        }
    };
    let layout = JournalLayout { order: settings.order, splay_width: settings.splay_width, pool };
    ImageJournal::create(&ctx.local, id, layout, &first_tag(ctx)).await.map(drop)
}

/// The tag that ties a copy to its primary when nothing has been replayed yet.
fn first_tag(ctx: &ImageContext) -> TagData {
    TagData { mirror_uuid: ctx.remote_mirror_uuid.to_string(), predecessor: TagPredecessor::default() }
}
