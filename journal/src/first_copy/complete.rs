//! The end of a copy: the local image gets everything that is not data.
//!
//! What is taken from the remote image is as it is now, later than the sync point. The events between say so again when
//! they are replayed: each of them sets something to a value, and the last one wins. Names of snapshots are not taken:
//! where two were exchanged, the events would exchange them once more. They are those of the beginning of the copy.

use std::collections::BTreeMap;

use deep_copy::apply::{Counterparts, apply};
use deep_copy::local_maps::cut_head_map;
use rados::{Result, SnapId};
use rbd::header_update::HeaderUpdate;
use rbd::image::OpenImage;
use rbd::image_state::{ImageState, SnapState};
use rbd::{ProtectionStatus, Snapshot, SnapshotNamespace, children, snapshots};

use super::sync_point::{is_sync_point, name_prefix};
use crate::types::MirrorPeer;

/// Gives the local image, whose data has been copied from the remote snapshot `end`, its state. Answers with what could
/// not be applied, as sentences. Repeatable. On success the header of `local` is fresh.
pub async fn complete(
    local: &mut OpenImage,
    remote: &OpenImage,
    end: SnapId,
    snap_seqs: &BTreeMap<SnapId, SnapId>,
) -> Result<Vec<String>> {
    adjust_parent(local, remote, end).await?;
    cut_head_map(local).await?;
    // Which snapshots there are is settled: those of the primary at the sync point.
    let counterparts = Counterparts::of(snap_seqs, SnapId(0));
    let state = state(local, remote, snap_seqs);
    apply(local, &counterparts, &state).await
}

/// Detaches the parent that the remote image no longer has at `end`, or corrects the overlap.
async fn adjust_parent(local: &mut OpenImage, remote: &OpenImage, end: SnapId) -> Result<()> {
    let update = HeaderUpdate::of(local.image.id());
    let update = match (&local.header.parent, remote.header.parent_at(end)) {
        (Some(_), None) => update.parent_detach(),
        (Some(mine), Some(theirs)) if mine.overlap != theirs.overlap && theirs.overlap > 0 => {
            update.parent_attach(&mine.spec(), theirs.overlap, true)
        }
        _ => return Ok(()),
    };
    let before = local.header.clone();
    update.apply(local.image.header_ioctx()).await?;
    local.refresh().await?;
    if local.header.parent_spec.is_none() {
        children::detach_child(&local.image, &before).await?;
    }
    Ok(())
}

/// The state of the remote image now, with the names that the snapshots have locally.
fn state(local: &OpenImage, remote: &OpenImage, snap_seqs: &BTreeMap<SnapId, SnapId>) -> ImageState {
    let header = &remote.header;
    let snapshots = snap_seqs.iter().filter_map(|(theirs, ours)| {
        let (theirs, ours) = (header.snapshots.get(theirs)?, local.header.snapshots.get(ours)?);
        let (name, namespace) = (ours.name.clone(), theirs.namespace.clone());
        let user = namespace == SnapshotNamespace::User;
        user.then_some((theirs.id, SnapState { namespace, name, protection: theirs.protection }))
    });
    ImageState {
        name: remote.image.name().to_string(),
        features: header.features,
        snap_limit: header.snapshot_limit,
        snapshots: snapshots.collect(),
        metadata: header.metadata.clone(),
    }
}

/// Removes the local counterparts of this site's sync points that are no longer in use.
pub async fn remove_local_sync_points(
    local: &mut OpenImage,
    peer: &MirrorPeer,
    local_mirror_uuid: &str,
) -> Result<()> {
    let prefix = name_prefix(local_mirror_uuid);
    let done = |s: &&Snapshot| {
        is_sync_point(s, &prefix)
            && !peer.sync_points.iter().any(|p| p.name == s.name || p.from_name == s.name)
    };
    let done: Vec<_> = local.header.snapshots.values().filter(done).map(|s| (s.id, s.protection)).collect();
    for (snap, protection) in done {
        if protection != ProtectionStatus::Unprotected {
            snapshots::unprotect(&local.image, &local.header, snap).await?;
            local.refresh().await?;
        }
        snapshots::remove(&local.image, &local.header, snap).await?;
        local.refresh().await?;
    }
    Ok(())
}
