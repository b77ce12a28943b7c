//! The beginning of a copy: local snapshots to be filled, and all that belongs to them, before the first data.

use std::collections::BTreeMap;

use deep_copy::ids::SnapIds;
use deep_copy::local_maps::copy_head_map;
use deep_copy::sizes::resize;
use deep_copy::steps::CopySteps;
use rados::{Error, Result, SnapId};
use rbd::header_update::HeaderUpdate;
use rbd::image::OpenImage;
use rbd::snapshots::{self, Removal};
use rbd::{ProtectionStatus, Snapshot, SnapshotNamespace};

use super::marker::{self, CopyMarker, Origin};
use crate::types::{MirrorPeer, SyncPoint};

/// How a local snapshot is called that cannot be removed because clones need it; its id follows.
const REPLACED_PREFIX: &str = ".mirror.replaced.";
/// How often snapshots are added anew because the image turned out to have had a newer one.
const ATTEMPTS_MAX: u32 = 8;

/// A copy that may be made.
#[derive(Debug, Clone)]
pub struct Begun {
    /// What to copy, into which snapshots.
    pub steps: CopySteps,
    /// What stands beside the local image.
    pub marker: CopyMarker,
    /// It was begun before, or the local image held something.
    pub resumed: bool,
}

/// What is known of the local image when a copy is begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It was made for this copy, and nothing has been written to it.
    Nothing,
    /// It may hold anything.
    Anything,
}

impl Held {
    /// What the local image holds when its copy is said to be under way, by what is kept with the client.
    pub fn of(peer: &MirrorPeer, marker: Option<&CopyMarker>) -> Held {
        let untouched = marker.is_none()
            && peer.sync_points.is_empty()
            && peer.sync_object_count == 0
            && peer.snap_seqs.is_empty();
        if untouched { Held::Nothing } else { Held::Anything }
    }
}

/// Begins the copy from the first sync point of `peer`, or takes up the one of which `noted` is the marker. `origin`
/// tells how the sync point was made, when it was made just now. On success the header of `local` is fresh; the
/// snapshots of [`CopyMarker::snap_seqs`] are to be stored in `peer`. EAGAIN when the sync point is gone.
///
/// Not to be dropped half-way while the image is locked: writes may be in flight.
pub async fn begin(
    local: &mut OpenImage,
    remote: &OpenImage,
    peer: &MirrorPeer,
    noted: Option<CopyMarker>,
    (held, origin): (Held, Option<Origin>),
    ids: &SnapIds,
) -> Result<Begun> {
    let (point, end) = sync_point(remote, peer)?;
    let noted = noted.filter(|marker| marker.is_of(peer) && fits(local, marker, end));
    let resumed = noted.is_some();
    let marker = match noted {
        Some(marker) => marker,
        None => {
            remove_user_snapshots(local).await?;
            let marker = CopyMarker {
                remote_image: remote.image.id().clone(),
                sync_point: point.name.clone(),
                repair: held == Held::Anything,
                copied_below: 0,
                copied: false,
                snap_seqs: BTreeMap::new(),
                origin: origin.unwrap_or(Origin::Event),
                start: None,
            };
            add_snapshots(local, remote, end, marker, ids).await?
        }
    };
    let pairs = pairs(local, remote, &marker, end);
    if marker.copied_below == 0 {
        let size = |snap: SnapId| remote.header.size_at(snap).unwrap_or(0);
        let snaps: Vec<_> = pairs.iter().map(|(remote_snap, local)| (*local, size(*remote_snap))).collect();
        copy_head_map(local, &snaps).await?;
    }
    resize(local, remote, &pairs).await?;
    let existing: Vec<_> = local.header.snapshots.keys().copied().collect();
    let steps = CopySteps::new(None, &pairs, &existing)
        .map_err(|error| Error::new(libc::EINVAL, error.to_string()))?;
    Ok(Begun { steps, resumed: resumed || held == Held::Anything, marker })
}

/// The sync point that a copy is made from, and its snapshot.
fn sync_point<'a>(remote: &OpenImage, peer: &'a MirrorPeer) -> Result<(&'a SyncPoint, SnapId)> {
    let found = peer.sync_points.first().and_then(|point| {
        let snapshot = remote.header.user_snapshot(&point.name)?;
        Some((point, snapshot.id))
    });
    found.ok_or_else(|| {
        let what = format!("cannot copy image '{}': its sync point is gone", remote.image.name());
        Error::new(libc::EAGAIN, what)
    })
}

/// True when the local image still has the snapshots that the marker tells of.
fn fits(local: &OpenImage, marker: &CopyMarker, end: SnapId) -> bool {
    let there = |snap: &SnapId| {
        local.header.snapshots.get(snap).is_some_and(|s| s.namespace == SnapshotNamespace::User)
    };
    marker.snap_seqs.contains_key(&end) && marker.snap_seqs.values().all(there)
}

/// Remote user snapshots that belong to the copy, oldest first, the sync point last.
fn user_snapshots(remote: &OpenImage, end: SnapId) -> impl Iterator<Item = &Snapshot> {
    let older = remote.header.snapshots.range(..=end).map(|(_, snapshot)| snapshot);
    older.filter(|snapshot| snapshot.namespace == SnapshotNamespace::User)
}

/// The remote and local snapshots of the copy's steps, oldest first.
fn pairs(local: &OpenImage, remote: &OpenImage, marker: &CopyMarker, end: SnapId) -> Vec<(SnapId, SnapId)> {
    let there = |local_snap: &SnapId| local.header.snapshots.contains_key(local_snap);
    let mapped = user_snapshots(remote, end).filter_map(|s| Some((s.id, *marker.snap_seqs.get(&s.id)?)));
    mapped.filter(|(_, local_snap)| there(local_snap)).collect()
}

/// Adds all snapshots of the copy and the marker in one atomic write; answers with the marker.
async fn add_snapshots(
    local: &mut OpenImage,
    remote: &OpenImage,
    end: SnapId,
    marker: CopyMarker,
    ids: &SnapIds,
) -> Result<CopyMarker> {
    let what = format!("cannot make the snapshots of image '{}'", local.image.name());
    let wanted: Vec<_> = user_snapshots(remote, end).map(|s| (s.id, s.name.clone())).collect();
    for _ in 0..ATTEMPTS_MAX {
        let taken = ids.take(SnapId(local.header.snap_context.seq), wanted.len()).await;
        let taken = taken.map_err(|error| error.context(&what))?;
        let snap_seqs = wanted.iter().zip(&taken).map(|((remote_snap, _), id)| (*remote_snap, *id)).collect();
        let marker = CopyMarker { snap_seqs, ..marker.clone() };
        let update =
            wanted.iter().zip(&taken).fold(HeaderUpdate::of(local.image.id()), |update, (new, id)| {
                update.snapshot_add(*id, &new.1, &SnapshotNamespace::User)
            });
        let op = update.into_op().with(marker.write_sub());
        let written = local.image.header_ioctx().write(op).await;
        local.refresh().await?;
        match written {
            Ok(_) => return Ok(marker),
            Err(error) if error.is(libc::ESTALE) => {}
            Err(error) => return Err(error.context(what)),
        }
    }
    Err(Error::new(libc::EAGAIN, format!("{what}: others keep making some")))
}

/// Removes the local user snapshots. Those that clones need get another name.
async fn remove_user_snapshots(local: &mut OpenImage) -> Result<()> {
    let user = |s: &&Snapshot| s.namespace == SnapshotNamespace::User && !s.name.starts_with(REPLACED_PREFIX);
    let all: Vec<_> = local.header.snapshots.values().filter(user).map(|s| (s.id, s.protection)).collect();
    for (snap, protection) in all {
        let unprotected = match protection {
            ProtectionStatus::Unprotected => Ok(()),
            _ => snapshots::unprotect(&local.image, &local.header, snap).await,
        };
        match unprotected {
            Ok(()) => {
                local.refresh().await?;
                let removed = snapshots::remove(&local.image, &local.header, snap).await?;
                if removed == Removal::KeptForClones {
                    tracing::warn!(image = %local.image.id(), "snapshot {snap} stays in the trash: it has clones");
                }
            }
            Err(error) if error.is(libc::EBUSY) => {
                tracing::warn!(image = %local.image.id(), "{error}; giving it another name");
                snapshots::rename(&local.image, &local.header, snap, &format!("{REPLACED_PREFIX}{snap}"))
                    .await?;
            }
            Err(error) => return Err(error),
        }
        local.refresh().await?;
    }
    Ok(())
}

/// Notes that all objects below `below` have been copied.
pub async fn checkpoint(local: &OpenImage, marker: &CopyMarker, below: u64) -> Result<()> {
    marker::write(&local.image, &CopyMarker { copied_below: below, ..marker.clone() }).await
}
