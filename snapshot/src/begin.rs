//! The beginning of a round: local snapshots to be filled, and all that belongs to them, before the first data.
//!
//! Order, and why:
//! 1. One atomic write of the local header adds all snapshots of the round: the user snapshots under pending names, the
//!    mirror-snapshot incomplete, and the marker. A forced promotion rolls back to the newest complete
//!    mirror-snapshot as soon as an incomplete one is there, so it must be there before anything else changes. User
//!    snapshots get their names when the round is committed: a promoted copy shows none that is half filled.
//! 2. Object maps and image state of the new snapshots. A round that was interrupted before its first object is
//!    prepared again, so it does not matter which of these were written.
//! 3. Sizes, if they differ.
//!
//! Reference for what is stored: `src/librbd/mirror/snapshot/CreateNonPrimaryRequest.cc`.

use std::collections::{BTreeMap, BTreeSet};

use rados::encoding::{Decoder, Encoder};
use rados::error::ResultExt;
use rados::{Error, ReadAnswer, ReadSub, Result, SnapId, WriteOp, WriteSub};
use rbd::header::ImageHeader;
use rbd::header_update::HeaderUpdate;
use rbd::image::{Image, OpenImage};
use rbd::image_state::{ImageState, read_image_state, write_image_state};
use rbd::layout::header_object;
use rbd::removal_mark;
use rbd::{MirrorSnapshot, MirrorSnapshotState, Snapshot, SnapshotNamespace};

use crate::plan::{CopyMode, Marker, Sync};
use deep_copy::ids::SnapIds;
use deep_copy::local_maps::copy_head_map;
use deep_copy::sizes::resize;
use deep_copy::steps::CopySteps;

/// Extended attribute of the local header that holds the [`Marker`]: `u64` snapshot id, `u8` 1 for a repair.
const MARKER_XATTR: &str = "rbd_mirror.exact";
/// How a user snapshot is called while it is being filled; its id follows.
pub const PENDING_PREFIX: &str = ".mirror.pending.";
/// How often a change of the header is tried again because somebody else changed it meanwhile.
pub(crate) const ATTEMPTS_MAX: u32 = 8;

/// What a mirror-snapshot says of the image and of the pools.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The image's global id.
    pub global_image_id: String,
    /// Mirror uuid of the remote pool.
    pub remote_mirror_uuid: String,
    /// Peers of the local pool that may copy from it.
    pub local_peer_uuids: BTreeSet<String>,
}

/// A round that may be copied.
#[derive(Debug)]
pub struct Begun {
    /// The local mirror-snapshot being filled.
    pub local_end: SnapId,
    /// What to copy, into which snapshots.
    pub steps: CopySteps,
    /// All objects below this number have been copied.
    pub first_object: u64,
    /// Local user snapshots that get another name: those being filled, and those that the primary renamed.
    pub names: BTreeMap<SnapId, String>,
    /// The primary's image state at the remote snapshot.
    pub image_state: ImageState,
}

/// Reads the marker of a local image; `None` when it has none.
pub async fn read_marker(image: &Image) -> Result<Option<Marker>> {
    let object = header_object(image.id());
    let read =
        image.header_ioctx().read_one(&object, SnapId::HEAD, ReadSub::GetXattr(MARKER_XATTR.into())).await;
    match read {
        Ok(ReadAnswer::Data(bytes)) => {
            let mut d = Decoder::new(&bytes, "mirror marker");
            Ok(Some(Marker { snap: SnapId(d.u64()?), repair: d.bool()? }))
        }
        Ok(_) => {
            Err(Error::new(libc::EBADMSG, format!("cannot read the mirror marker of image {}", image.id())))
        }
        Err(error) if error.is(libc::ENODATA) => Ok(None),
        Err(error) => Err(error.context(format!("cannot read the mirror marker of image {}", image.id()))),
    }
}

/// Writes the marker of a local image as part of a change of its header.
pub(crate) fn write_marker(marker: Marker) -> WriteSub {
    let mut e = Encoder::new();
    e.u64(marker.snap.0).bool(marker.repair);
    WriteSub::SetXattr(MARKER_XATTR.into(), e.finish())
}

/// Begins the round `sync`, or takes it up where it was. On success both headers are fresh.
///
/// Not to be dropped half-way while the image is locked: writes may be in flight.
pub async fn begin(
    local: &mut OpenImage,
    remote: &OpenImage,
    sync: &Sync,
    who: &Identity,
    ids: &SnapIds,
) -> Result<Begun> {
    let image_state =
        read_image_state(remote.image.header_ioctx(), remote.image.id(), sync.remote_end).await?;
    let (local_end, first_object) = match sync.resume {
        Some(resume) => (resume.local_end, resume.first_object),
        None => {
            if sync.anchor {
                anchor(local, who, ids).await?;
            }
            (add_snapshots(local, remote, sync, who, ids).await?, 0)
        }
    };
    let pairs = pairs(local, remote, sync, local_end)?;
    let resumed_within = sync.resume.is_some() && first_object > 0;
    if !resumed_within {
        prepare(local, remote, &pairs, local_end, &image_state).await?;
    }
    resize(local, remote, &pairs).await?;
    let existing: Vec<_> = local.header.snapshots.keys().copied().collect();
    let steps = CopySteps::new(sync.remote_start, &pairs, &existing)
        .map_err(|e| Error::new(libc::EINVAL, e.to_string()))?;
    Ok(Begun {
        local_end,
        first_object,
        names: new_names(local, remote, local_end, &image_state),
        steps,
        image_state,
    })
}

/// Makes an exact twin of the newest complete mirror-snapshot from the head. Nothing may have been written since that
/// one was completed.
async fn anchor(local: &mut OpenImage, who: &Identity, ids: &SnapIds) -> Result<()> {
    let newest = local.header.snapshots.values().rev().find_map(|s| Some((s.id, s.mirror()?.clone())));
    let Some((of, mirror)) = newest else { return Ok(()) };
    let state = read_image_state(local.image.header_ioctx(), local.image.id(), of).await.optional()?;
    let id = local.image.id().clone();
    let name = mirror_snapshot_name(who);
    let snap = add_to_header(local, ids, 1, |ids| {
        let update = HeaderUpdate::of(&id);
        let update = update.snapshot_add(ids[0], &name, &SnapshotNamespace::Mirror(mirror.clone()));
        (update, Marker { snap: ids[0], repair: true })
    })
    .await?[0];
    tracing::info!(image = %local.image.id(), "took snapshot {snap} in place of {of}, which another daemon filled");
    copy_head_map(local, &[(snap, local.header.size)]).await?;
    if let Some(state) = state {
        write_image_state(local.image.header_ioctx(), local.image.id(), snap, &state).await?;
    }
    local.refresh().await
}

fn mirror_snapshot_name(who: &Identity) -> String {
    format!(".mirror.non_primary.{}.{}", who.global_image_id, uuid::Uuid::new_v4())
}

/// Remote user snapshots that belong to the round and have no local counterpart yet, oldest first. Behind the first
/// such one, later counterparts are of no use either: local ids must ascend with remote ones.
fn new_user_snapshots<'a>(
    remote: &'a OpenImage,
    sync: &Sync,
) -> (BTreeMap<SnapId, SnapId>, Vec<&'a Snapshot>) {
    let mut kept = sync.snap_seqs.clone();
    let mut new = Vec::new();
    let user = |s: &&Snapshot| s.namespace == SnapshotNamespace::User && s.id < sync.remote_end;
    for snapshot in remote.header.snapshots.values().filter(user) {
        if sync.remote_start.is_some_and(|start| snapshot.id < start) {
            continue;
        }
        if !new.is_empty() || !kept.contains_key(&snapshot.id) {
            kept.remove(&snapshot.id);
            new.push(snapshot);
        }
    }
    (kept, new)
}

/// Adds all snapshots of the round in one atomic write; answers with the mirror-snapshot.
async fn add_snapshots(
    local: &mut OpenImage,
    remote: &OpenImage,
    sync: &Sync,
    who: &Identity,
    ids: &SnapIds,
) -> Result<SnapId> {
    let (kept, new) = new_user_snapshots(remote, sync);
    let name = mirror_snapshot_name(who);
    let image = local.image.clone();
    let added = add_to_header(local, ids, new.len() + 1, |ids| {
        let (mirror_snap, user_snaps) = (ids[new.len()], &ids[..new.len()]);
        let mut snap_seqs = kept.clone();
        let mut update = HeaderUpdate::of(image.id());
        for (snapshot, id) in new.iter().zip(user_snaps) {
            update = update.snapshot_add(*id, &format!("{PENDING_PREFIX}{id}"), &SnapshotNamespace::User);
            snap_seqs.insert(snapshot.id, *id);
        }
        // Ceph's daemon, should it take over, maps the end of the round to the head.
        snap_seqs.insert(sync.remote_end, SnapId::HEAD);
        let state = match sync.demoted {
            true => MirrorSnapshotState::NonPrimaryDemoted,
            false => MirrorSnapshotState::NonPrimary,
        };
        let namespace = SnapshotNamespace::Mirror(MirrorSnapshot {
            state,
            complete: false,
            mirror_peer_uuids: if sync.demoted { who.local_peer_uuids.clone() } else { BTreeSet::new() },
            primary_mirror_uuid: who.remote_mirror_uuid.clone(),
            primary_snap_id: sync.remote_end,
            last_copied_object_number: 0,
            snap_seqs,
        });
        let update = update.snapshot_add(mirror_snap, &name, &namespace);
        (update, Marker { snap: mirror_snap, repair: sync.mode == CopyMode::Repair })
    })
    .await?;
    Ok(added[new.len()])
}

/// Applies a header update that adds `count` snapshots, with the marker, and refreshes the header. Takes newer ids
/// when the image turns out to have had a newer snapshot than its header told. EAGAIN when somebody changed the role of
/// the image since its header was read: plan anew.
async fn add_to_header(
    local: &mut OpenImage,
    ids: &SnapIds,
    count: usize,
    update: impl Fn(&[SnapId]) -> (HeaderUpdate, Marker),
) -> Result<Vec<SnapId>> {
    let what = format!("cannot add mirror-snapshots to image {}", local.image.id());
    let link = newest_mirror_snapshot(&local.header);
    for _ in 0..ATTEMPTS_MAX {
        let taken = ids.take(SnapId(local.header.snap_context.seq), count).await.context(&what)?;
        let (update, marker) = update(&taken);
        let op = update.into_op().with(write_marker(marker));
        let written = local.image.header_ioctx().write(unless_changed(op, &local.header)).await;
        local.refresh().await?;
        match written {
            Ok(_) => return Ok(taken),
            Err(error) if error.is(libc::ESTALE) || is_changed(&error) => {}
            Err(error) if error.is(libc::EDQUOT) && is_at_limit(&local.header) => {
                raise_limit(local, count).await.context(&what)?;
            }
            Err(error) => return Err(error.context(what)),
        }
        if newest_mirror_snapshot(&local.header) != link {
            return Err(Error::new(libc::EAGAIN, format!("{what}: its role changed meanwhile")));
        }
    }
    Err(Error::new(libc::EAGAIN, format!("{what}: others keep changing it")))
}

fn is_at_limit(header: &ImageHeader) -> bool {
    header.snapshot_limit.is_some_and(|limit| header.snapshots.len() as u64 >= limit)
}

/// Makes room for `count` more snapshots. The limit of a copy is its primary's at the last mirror-snapshot that arrived. A
/// copy may have more snapshots than that for a while: the one being filled, and those that are gone at the primary but can
/// only go when it is complete. Applying the image state sets the limit to the primary's again.
async fn raise_limit(local: &mut OpenImage, count: usize) -> Result<()> {
    let (ioctx, id) = (local.image.header_ioctx(), local.image.id());
    if removal_mark::may_be_marked(&local.header) && removal_mark::is_marked(ioctx, id).await? {
        return Err(Error::new(
            libc::EAGAIN,
            format!("cannot add snapshots to image {id}: it is being removed"),
        ));
    }
    let limit = local.header.snapshots.len() + count;
    tracing::info!(image = %local.image.id(), "raising the copy's snapshot limit to {limit} until a round is complete");
    let update = HeaderUpdate::of(local.image.id()).set_snapshot_limit(Some(limit as u64));
    match local.image.header_ioctx().write(unless_changed(update.into_op(), &local.header)).await {
        Err(error) if !is_changed(&error) => Err(error),
        _ => local.refresh().await,
    }
}

/// True for a user snapshot that has the name which it has while a round fills it.
pub fn is_pending(snapshot: &Snapshot) -> bool {
    snapshot.namespace == SnapshotNamespace::User
        && snapshot.name == format!("{PENDING_PREFIX}{}", snapshot.id)
}

/// The newest mirror-snapshot, which tells the role of an image.
pub(crate) fn newest_mirror_snapshot(header: &ImageHeader) -> Option<SnapId> {
    header.snapshots.values().rev().find(|s| s.mirror().is_some()).map(|s| s.id)
}

/// Makes a change of a header fail when the header is not the one that was read.
pub(crate) fn unless_changed(op: WriteOp, header: &ImageHeader) -> WriteOp {
    op.with(WriteSub::AssertVersion(header.version))
}

/// True for the error with which a change fails that was made so.
pub(crate) fn is_changed(error: &Error) -> bool {
    error.is(libc::ERANGE) || error.is(libc::EOVERFLOW)
}

/// The remote and local snapshots of the round's steps, oldest first.
fn pairs(
    local: &OpenImage,
    remote: &OpenImage,
    sync: &Sync,
    local_end: SnapId,
) -> Result<Vec<(SnapId, SnapId)>> {
    let link = local.header.snapshots.get(&local_end).and_then(Snapshot::mirror).ok_or_else(|| {
        Error::new(
            libc::ENOENT,
            format!("cannot fill mirror-snapshot {local_end}: image {} lost it", local.image.id()),
        )
    })?;
    // One that is being removed is no step: it need not be whole, and its counterpart is left out at the end.
    let kept = |snap: &SnapId| {
        remote.header.snapshots.get(snap).is_some_and(|s| s.namespace == SnapshotNamespace::User)
    };
    let in_round = |remote_snap: &SnapId, local_snap: &SnapId| {
        sync.remote_start.is_none_or(|start| *remote_snap > start)
            && *remote_snap < sync.remote_end
            && kept(remote_snap)
            && local.header.snapshots.contains_key(local_snap)
    };
    let users = link.snap_seqs.iter().filter(|(r, l)| in_round(r, l)).map(|(r, l)| (*r, *l));
    Ok(users.chain([(sync.remote_end, local_end)]).collect())
}

/// The names that local user snapshots get when the round is committed, where they differ from those that they have.
fn new_names(
    local: &OpenImage,
    remote: &OpenImage,
    local_end: SnapId,
    state: &ImageState,
) -> BTreeMap<SnapId, String> {
    let link = local.header.snapshots.get(&local_end).and_then(Snapshot::mirror);
    let named = |(remote_snap, local_snap): (&SnapId, &SnapId)| {
        let stored = state.snapshots.get(remote_snap).map(|s| &s.name);
        let name = stored.or_else(|| remote.header.snapshots.get(remote_snap).map(|s| &s.name))?;
        let current = local.header.snapshots.get(local_snap)?;
        let renamed = current.namespace == SnapshotNamespace::User && current.name != *name;
        renamed.then(|| (*local_snap, name.clone()))
    };
    link.into_iter().flat_map(|link| &link.snap_seqs).filter_map(named).collect()
}

/// Writes object maps and image state of the new snapshots. Repeatable.
async fn prepare(
    local: &OpenImage,
    remote: &OpenImage,
    pairs: &[(SnapId, SnapId)],
    end: SnapId,
    state: &ImageState,
) -> Result<()> {
    let size = |remote_snap: SnapId| remote.header.size_at(remote_snap).unwrap_or(0);
    let snaps: Vec<_> = pairs.iter().map(|(remote_snap, local)| (*local, size(*remote_snap))).collect();
    let state = write_image_state(local.image.header_ioctx(), local.image.id(), end, state);
    futures::try_join!(copy_head_map(local, &snaps), state).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_nine_bytes() {
        let WriteSub::SetXattr(_, bytes) = write_marker(Marker { snap: SnapId(0x0102), repair: true }) else {
            panic!("the marker is an extended attribute");
        };
        assert_eq!(&bytes[..], [2, 1, 0, 0, 0, 0, 0, 0, 1]);
    }
}
