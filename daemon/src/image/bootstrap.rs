//! From a global image id to two open images: finding both, making the local one, and deciding which of them is gone.
//!
//! A local image is made in the mirror state `creating`, which says that it holds nothing yet: found again in that
//! state, it is removed and made anew. It becomes `enabled` with its first mirror-snapshot, or with its journal.
//!
//! Reference: `PrepareLocalImageRequest.cc`, `PrepareRemoteImageRequest.cc`, `CreateImageRequest.cc`,
//! `snapshot/CreateLocalImageRequest.cc` in `src/tools/rbd_mirror/image_replayer/`.

use journal::Journal;
use journal::image_journal::ImageJournal;
use journal::types::{ClientData, MirrorPeerState};
use rados::error::ResultExt;
use rados::{Error, IoCtx, PoolId, Result, SnapId};
use rbd::children::{self, CloneFormat};
use rbd::create::{self, NewImage};
use rbd::header::ImageHeader;
use rbd::image::Image;
use rbd::image::OpenImage;
use rbd::mirroring::{GlobalImageId, MirrorImage, MirrorImageMode, MirrorImageState, Mirroring};
use rbd::removal_mark::{self, Marking};
use rbd::remove::{RemoveOptions, remove_image};
use rbd::types::ParentSpec;
use rbd::watch_notify::notify_header_update;
use rbd::{Features, ImageId, MirrorSnapshotState, Snapshot, SnapshotNamespace, directory};

use super::{ImageContext, name};

/// An image's entry in the mirroring directory of its pool and namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The image.
    pub id: ImageId,
    /// What the directory says of it.
    pub mirror: MirrorImage,
}

/// Finds the image called `global_id` in a pool and namespace.
pub async fn find(ioctx: &IoCtx, global_id: &str) -> Result<Option<Record>> {
    let mirroring = Mirroring::new(ioctx);
    let Some(id) = mirroring.image_id(&GlobalImageId(global_id.into())).await? else {
        return Ok(None);
    };
    Ok(mirroring.image(&id).await?.map(|mirror| Record { id, mirror }))
}

/// True while both images are mirrored under the global id.
pub async fn is_pair(ctx: &ImageContext, local: &ImageId, remote: &ImageId) -> bool {
    let mirrored = async |ioctx: &IoCtx, id: &ImageId| {
        let record = find(ioctx, &ctx.global_image_id).await;
        matches!(record, Ok(Some(r)) if r.id == *id && r.mirror.state != MirrorImageState::Disabling)
    };
    let (local, remote) = futures::join!(mirrored(&ctx.local, local), mirrored(&ctx.remote, remote));
    local && remote
}

/// Opens an image; `None` when there is none. ENOSYS when it has a feature that this program does not know, and so may
/// hold something that it would not copy; EINVAL while it is in migration.
pub async fn open(ioctx: &IoCtx, id: &ImageId) -> Result<Option<OpenImage>> {
    let opened = Image::open(ioctx, id).await.optional()?;
    if let Some((image, header)) = &opened
        && header.features.unknown() != Features(0)
    {
        let unknown = header.features.unknown().0;
        let what = format!(
            "cannot mirror image '{}': it has features that are unknown here ({unknown:#x})",
            image.name()
        );
        return Err(Error::new(libc::ENOSYS, what));
    }
    if let Some((image, header)) = &opened {
        refuse_in_migration(image.name(), header)?;
    }
    Ok(opened.map(|(image, header)| OpenImage { image, header }))
}

/// Fails while the image called `name` is in migration.
pub fn refuse_in_migration(name: &str, header: &ImageHeader) -> Result<()> {
    header.refuse_in_migration().context(format!("cannot mirror image '{name}'"))
}

/// Role of an image, told from its newest mirror-snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It may be written to.
    Primary,
    /// It is a copy of the image in the pool whose mirror uuid was asked about.
    LinkedCopy,
    /// Neither: demoted, an orphan, a copy of something else, or without mirror-snapshots.
    Other,
}

/// The role of the image with this header.
pub fn role(header: &ImageHeader, remote_mirror_uuid: &str) -> Role {
    match header.snapshots.values().rev().find_map(Snapshot::mirror) {
        Some(link) if link.state == MirrorSnapshotState::Primary => Role::Primary,
        Some(link) if link.primary_mirror_uuid == remote_mirror_uuid => match (link.state, link.complete) {
            (MirrorSnapshotState::NonPrimary, _) | (MirrorSnapshotState::NonPrimaryDemoted, false) => {
                Role::LinkedCopy
            }
            _ => Role::Other,
        },
        _ => Role::Other,
    }
}

/// Removes a local image that was being made when a daemon stopped; it holds nothing yet. False, and nothing is done, when
/// it is not, or no longer, such an image.
pub async fn remove_half_made(ctx: &ImageContext, record: &Record) -> Result<bool> {
    // Only whoever makes it declares that it is made; nobody promotes it before.
    let is_half_made = |header: &ImageHeader| {
        let complete = |snapshot: &Snapshot| snapshot.mirror().is_some_and(|mirror| mirror.complete);
        !removal_mark::is_promoted(header) && !header.snapshots.values().any(complete)
    };
    if removal_mark::mark(&ctx.local, &record.id, is_half_made).await? == Marking::Refused {
        return Ok(false);
    }
    if find(&ctx.local, &ctx.global_image_id).await?.as_ref() != Some(record) {
        removal_mark::unmark(&ctx.local, &record.id).await?;
        return Ok(false);
    }
    tracing::info!(image = %record.id, "removing a local image that was not made completely");
    // Whoever still watches it is the daemon that was making it, and dead.
    let options = RemoveOptions { user_snapshots: true, despite_watchers: true, ..RemoveOptions::default() };
    remove_image(&ctx.local, &record.id, &options, |_, _| {}).await?;
    ImageJournal::remove(&ctx.local, &record.id).await?;
    forget(ctx, record).await?;
    Ok(true)
}

/// Takes a local image out of the mirroring directory, which demands that it be declared `disabling` first.
pub async fn forget(ctx: &ImageContext, record: &Record) -> Result<()> {
    let mirroring = Mirroring::new(&ctx.local);
    let disabling = MirrorImage { state: MirrorImageState::Disabling, ..record.mirror.clone() };
    mirroring.image_set(&record.id, &disabling).await?;
    mirroring.image_remove(&record.id).await.optional().map(drop)
}

/// What came of making a local image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// It is there.
    Image(ImageId),
    /// What it is to be a clone of is not there yet, or its name is still another copy's: a sentence that says so.
    Awaits(String),
}

/// What a mode wants of a local image that is being made.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The mode.
    pub mode: MirrorImageMode,
    /// Its size is that of the remote image at this snapshot.
    pub at: SnapId,
}

/// Makes the local image for the remote one. In journal mode, its journal is left to the caller, and `register` is
/// called with its id before anything is made under it but its record.
pub async fn create_local(
    ctx: &ImageContext,
    remote: &OpenImage,
    wanted: Wanted,
    register: impl AsyncFnOnce(&ImageId) -> Result<()>,
) -> Result<Made> {
    let new = NewImage {
        name: remote.image.name().to_string(),
        id: create::generate_id(&ctx.local),
        size: remote.header.size_at(wanted.at).unwrap_or(remote.header.size),
        order: remote.header.order,
        features: local_features(remote.header.features, wanted.mode),
        stripe_unit: remote.header.layout.stripe_unit(),
        stripe_count: remote.header.layout.stripe_count(),
        data_pool: local_data_pool(ctx, remote).await?,
    };
    if new.name.is_empty() {
        let what = format!("cannot copy image {}: it has no name, it may be in the trash", remote.image.id());
        return Err(Error::new(libc::ENOENT, what));
    }
    let parent = match &remote.header.parent_spec {
        Some(spec) => match local_parent(ctx, remote, spec).await {
            Ok(parent) => Some(parent),
            Err(ParentError::Missing(why)) => {
                return Ok(Made::Awaits(format!("waiting for the copy of the parent: {why}")));
            }
            Err(ParentError::Removed(why)) => return Err(Error::new(libc::ENOENT, why)),
            Err(ParentError::Rados(error)) => return Err(error),
        },
        None => None,
    };
    let what = || format!("cannot make the local image '{}'", new.name);
    if let Some(taken) = directory::directory_id_of(&ctx.local, &new.name).await? {
        if name::is_moving(ctx, &new.name, &taken).await? {
            let why =
                format!("waiting for the copy {taken} of another image to give up the name '{}'", new.name);
            return Ok(Made::Awaits(why));
        }
        let why =
            format!("{}: an image of that name ({taken}) is there already; rename or remove it", what());
        return Err(Error::new(libc::EEXIST, why));
    }
    let mirroring = Mirroring::new(&ctx.local);
    let mirror = MirrorImage {
        mode: wanted.mode,
        global_id: GlobalImageId(ctx.global_image_id.to_string()),
        state: MirrorImageState::Creating,
    };
    mirroring.image_set(&new.id, &mirror).await.context(what())?;
    register(&new.id).await?;
    match parent {
        Some((parent, format)) => create::create_clone(&ctx.local, &new, &parent, format).await,
        None => create::create(&ctx.local, &new).await,
    }
    .context(what())?;
    Ok(Made::Image(new.id))
}

/// Declares that the local image is a copy: its first mirror-snapshot, or its journal, is there.
pub async fn enable_local(ctx: &ImageContext, id: &ImageId, mode: MirrorImageMode) -> Result<()> {
    let mirror = MirrorImage {
        mode,
        global_id: GlobalImageId(ctx.global_image_id.to_string()),
        state: MirrorImageState::Enabled,
    };
    let mirroring = Mirroring::new(&ctx.local);
    mirroring.image_set(id, &mirror).await?;
    if let Err(error) = mirroring.notify_image(MirrorImageState::Enabled, id, &mirror.global_id).await {
        tracing::debug!(image = %id, "cannot tell others that the image is mirrored: {error}");
    }
    Ok(())
}

/// The features of a copy: those of its primary, and what keeps others from writing to it: a feature of its own in
/// snapshot mode, the newest tag of its journal in journal mode.
fn local_features(remote: Features, mode: MirrorImageMode) -> Features {
    let internal = Features(Features::OPERATIONS.0 | Features::MIGRATING.0 | Features::DIRTY_CACHE.0);
    let by_layout = Features(Features::STRIPINGV2.0 | Features::DATA_POOL.0);
    let features = remote.without(internal).without(by_layout).without(Features::NON_PRIMARY);
    match mode {
        MirrorImageMode::Journal => features.with(Features::JOURNALING),
        _ => features.without(Features::JOURNALING).with(Features::NON_PRIMARY),
    }
}

/// The pool for the copy's data: `rbd_default_data_pool`, else one called like the primary's data pool, else none.
async fn local_data_pool(ctx: &ImageContext, remote: &OpenImage) -> Result<Option<PoolId>> {
    let pools = ctx.local.backend().pools().await?;
    let by_name = |name: &str| pools.iter().find(|(_, n)| n == name).map(|(id, _)| *id);
    if let Some(name) = ctx.local.backend().config("rbd_default_data_pool").filter(|name| !name.is_empty()) {
        let what = format!("cannot find pool '{name}', which rbd_default_data_pool names");
        return by_name(&name).map(Some).ok_or_else(|| Error::new(libc::ENOENT, what));
    }
    let Some(remote_pool) = remote.header.data_pool else {
        return Ok(None);
    };
    let remote_pools = remote.image.header_ioctx().backend().pools().await?;
    let name = remote_pools.iter().find(|(id, _)| *id == remote_pool).map(|(_, name)| name.as_str());
    Ok(name.and_then(by_name))
}

/// Why a clone has no local parent.
enum ParentError {
    /// What is missing for now.
    Missing(String),
    /// The snapshot was removed by its user, and no copy of it will come.
    Removed(String),
    /// A cluster failed.
    Rados(Error),
}

impl From<Error> for ParentError {
    fn from(error: Error) -> Self {
        ParentError::Rados(error)
    }
}

/// The local counterpart of the remote image's parent.
async fn local_parent(
    ctx: &ImageContext,
    remote: &OpenImage,
    spec: &ParentSpec,
) -> std::result::Result<(ParentSpec, CloneFormat), ParentError> {
    let missing = ParentError::Missing;
    let pool_name = {
        let pools = ctx.remote.backend().pools().await?;
        pools.into_iter().find(|(id, _)| *id == spec.pool).map(|(_, name)| name)
    };
    let pool_name = pool_name.ok_or_else(|| missing(format!("the parent's pool {} is gone", spec.pool)))?;
    let local_pool = {
        let pools = ctx.local.backend().pools().await?;
        pools.into_iter().find(|(_, name)| *name == pool_name).map(|(id, _)| id)
    };
    let local_pool = local_pool.ok_or_else(|| missing(format!("there is no local pool '{pool_name}'")))?;
    let remote_parents = ctx.remote.with_pool(spec.pool).with_namespace(&spec.namespace);
    let local_parents = ctx.local.with_pool(local_pool).with_namespace(&spec.namespace);

    let mirror = Mirroring::new(&remote_parents).image(&spec.image).await?;
    let mirror = mirror.ok_or_else(|| missing(format!("parent image {} is not mirrored", spec.image)))?;
    let local_id = Mirroring::new(&local_parents).image_id(&mirror.global_id).await?;
    let local_id = local_id.ok_or_else(|| missing(format!("parent image {} has no copy yet", spec.image)))?;
    let parent = open(&local_parents, &local_id).await?;
    let parent = parent.ok_or_else(|| missing(format!("the copy of parent image {} is gone", spec.image)))?;
    if mirror.mode == MirrorImageMode::Journal
        && is_being_copied(&local_parents, &remote_parents, spec).await?
    {
        return Err(missing(format!("the copy of parent image {} is being made", spec.image)));
    }
    let Some(snap) = local_parent_snapshot(&parent.header, &remote_parents, spec).await? else {
        return Err(match ImageHeader::read(&remote_parents, &spec.image).await?.snapshots.get(&spec.snap) {
            Some(Snapshot { namespace: SnapshotNamespace::Trash { original_name, .. }, .. }) => {
                let name = remote.image.name();
                ParentError::Removed(format!(
                    "cannot copy the clone '{name}': its parent's snapshot '{original_name}' was removed at the primary \
                     before the clone was copied and is kept there in the trash namespace for its clones alone; run 'rbd \
                     flatten' on '{name}' at the primary"
                ))
            }
            _ => missing(format!("snapshot {} of image {} has no copy yet", spec.snap, spec.image)),
        });
    };

    let format = remote.header.clone_format();
    Ok((ParentSpec { pool: local_pool, namespace: spec.namespace.clone(), image: local_id, snap }, format))
}

/// Whether a clone's copy has the right parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parentage {
    /// It is a clone of the counterpart of what the primary is a clone of, or one of the two is no clone.
    Right,
    /// It should be a clone of this one: the parent was brought in line or made anew, and its snapshot with it.
    Wrong(ParentSpec),
    /// What it should be a clone of is not known.
    Unknown,
}

/// Looks whether the copy of a clone has the right parent.
pub async fn parentage(ctx: &ImageContext, local: &ImageHeader, remote: &OpenImage) -> Result<Parentage> {
    let (Some(_), Some(ours), Some(theirs)) = (&local.parent, &local.parent_spec, &remote.header.parent_spec)
    else {
        return Ok(Parentage::Right);
    };
    match local_parent(ctx, remote, theirs).await {
        Ok((right, _)) if right == *ours => Ok(Parentage::Right),
        Ok((right, _)) => Ok(Parentage::Wrong(right)),
        Err(ParentError::Missing(why) | ParentError::Removed(why)) => {
            tracing::debug!(image = %ctx.global_image_id, "the right parent of the copy is not known: {why}");
            Ok(Parentage::Unknown)
        }
        Err(ParentError::Rados(error)) => Err(error),
    }
}

/// Gives the copy of a clone the right parent, whose exclusive lock is held. Answers whether it has it then; the header
/// of `local` is fresh.
pub async fn follow_parent(ctx: &ImageContext, local: &mut OpenImage, remote: &OpenImage) -> Result<bool> {
    match parentage(ctx, &local.header, remote).await? {
        Parentage::Right => Ok(true),
        Parentage::Unknown => Ok(false),
        Parentage::Wrong(right) => {
            let old = local.header.parent_spec.clone();
            tracing::warn!(
                image = %ctx.global_image_id,
                "the copy '{}' is a clone of {old:?}: making it one of {right:?} as its primary is",
                local.image.name()
            );
            let what = || format!("cannot give the copy '{}' the parent of its primary", local.image.name());
            children::reattach(&local.image, &local.header, &right).await.context(what())?;
            local.refresh().await?;
            let (ioctx, id) = (ctx.local.clone(), local.image.id().clone());
            tokio::spawn(async move { notify_header_update(&ioctx, &id).await });
            Ok(true)
        }
    }
}

/// True while the local copy of a parent in journal mode is being made: its snapshots may not be whole yet.
async fn is_being_copied(local_parents: &IoCtx, remote_parents: &IoCtx, spec: &ParentSpec) -> Result<bool> {
    let Some(uuid) = Mirroring::new(&local_parents.with_namespace("")).uuid().await? else {
        return Ok(false);
    };
    let Some(journal) = Journal::open(remote_parents, &spec.image).await.optional()? else {
        return Ok(false);
    };
    let Some(client) = journal.client(&uuid).await? else { return Ok(false) };
    let data = client.client_data().map_err(Error::from)?;
    Ok(matches!(data, ClientData::MirrorPeer(peer) if peer.state == MirrorPeerState::Syncing))
}

/// The local counterpart of the parent's snapshot: told by the maps of complete mirror-snapshots, else (the parent is
/// primary here, or was) by its name.
async fn local_parent_snapshot(
    local: &ImageHeader,
    remote_parents: &IoCtx,
    spec: &ParentSpec,
) -> Result<Option<SnapId>> {
    let mut links = local.snapshots.values().rev().filter_map(Snapshot::mirror).filter(|link| link.complete);
    let mapped = links.find_map(|link| link.snap_seqs.get(&spec.snap)).copied();
    if let Some(snap) = mapped.filter(|snap| local.snapshots.contains_key(snap)) {
        return Ok(Some(snap));
    }
    if local
        .snapshots
        .values()
        .rev()
        .find_map(Snapshot::mirror)
        .is_some_and(|link| link.state.is_non_primary())
    {
        return Ok(None);
    }
    let remote = ImageHeader::read(remote_parents, &spec.image).await?;
    let Some(remote) = remote.snapshots.get(&spec.snap) else {
        return Ok(None);
    };
    Ok(local.user_snapshot(&remote.name).map(|snapshot| snapshot.id))
}
