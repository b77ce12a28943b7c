//! Mirror-snapshots of a primary: making one, finishing one that was cut off, and letting go of old ones.
//!
//! ```text
//! may it be made? ─ peers ─ quiesce ─ record ─ object maps ─ image state ─ complete ─ unquiesce ─ prune
//!                  └───── all of it by the owner of the exclusive lock, unless that is nobody ────┘
//! ```
//!
//! A snapshot whose record is there and that is not complete was cut off; when nobody wrote to the image since
//! ([`Session::finish_primary_snapshot`] says when that is so) the rest can be done later.
//!
//! Pruning, which is done when the pool has peers that pull from here: mirror-snapshots that wait for no peer go, except
//! the newest; primary ones that were cut off go; and of those that wait for a peer since the last promotion, only so
//! many are kept (`rbd_mirroring_max_mirroring_snapshots`): the newest of the older ones is passed over.
//!
//! Reference: `src/librbd/mirror/snapshot/CreatePrimaryRequest.cc`, `UnlinkPeerRequest.cc`, `SetImageStateRequest.cc`,
//! `Utils.cc` (`can_create_primary_snapshot`).

use std::collections::{BTreeMap, BTreeSet};

use rados::error::ResultExt;
use rados::{Error, ErrorClass, Result, SnapId};
use rbd::encodings::namespace_type;
use rbd::exclusive_lock::Delegated;
use rbd::header_update::HeaderUpdate;
use rbd::image_state::{ImageState, SnapState, write_image_state};
use rbd::mirroring::{GlobalImageId, PeerDirection};
use rbd::snapshots::{self, NewSnapshot};
use rbd::types::{Features, MirrorSnapshot, MirrorSnapshotState, Snapshot, SnapshotNamespace};
use rbd::watch_notify::quiesce::{QUIESCE_ATTEMPTS, quiesce, unquiesce};
use rbd::watch_notify::{AsyncRequestId, Operation, next_request_number, snap_create_flags};
use rbd::{ImageHeader, directory};

use crate::config::Quiesce;
use crate::info::newest_mirror_snapshot;
use crate::pool::Pool;
use crate::session::Session;

/// How often an id is taken anew because somebody else's newer one came first.
const ATTEMPTS_MAX: u32 = 8;
/// How often it is tried to let go of old mirror-snapshots.
const PRUNING_ATTEMPTS_MAX: u32 = 3;
/// Default of `rbd_mirroring_max_mirroring_snapshots`.
const SNAPSHOTS_MAX: u64 = 5;
/// Metadata of librbd's own begins so, and is not part of an image's state.
const INTERNAL_METADATA_PREFIX: &str = ".rbd";

/// What for a mirror-snapshot is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The first one of an image.
    Enable,
    /// Another one of a primary.
    Snapshot,
    /// The image becomes primary.
    Promote,
    /// The image is primary no more.
    Demote,
}

/// Fails with EINVAL when no primary mirror-snapshot may be made now.
fn refuse_primary_snapshot(header: &ImageHeader, purpose: Purpose) -> Result<()> {
    let refuse = |why: &str| Err(Error::new(libc::EINVAL, why));
    let Some(mirror) = newest_mirror_snapshot(header).and_then(Snapshot::mirror) else { return Ok(()) };
    match purpose {
        Purpose::Promote => Ok(()),
        _ if mirror.state.is_demoted() => refuse("the image was demoted: promote it first"),
        _ if mirror.state == MirrorSnapshotState::NonPrimary => refuse("the image is not primary"),
        _ => Ok(()),
    }
}

impl Pool {
    /// Uuids of the peers that pull from here.
    pub(crate) async fn pulling_peers(&self) -> Result<BTreeSet<String>> {
        let peers = self.pool_mirroring().peers().await?;
        let pulling = peers.into_iter().filter(|peer| peer.direction != PeerDirection::Rx);
        Ok(pulling.map(|peer| peer.uuid).collect())
    }
}

impl Session {
    /// Makes a mirror-snapshot, or has the owner of the lock make it, and lets go of old ones. EINVAL when none may be
    /// made, or when it would be for nobody; EROFS when the lock cannot be got.
    pub(crate) async fn create_primary_snapshot(
        &mut self,
        purpose: Purpose,
        global_id: &GlobalImageId,
        mode: Quiesce,
    ) -> Result<SnapId> {
        let what = format!("cannot make a mirror-snapshot of image '{}'", self.spec());
        refuse_primary_snapshot(self.header(), purpose).context(&what)?;
        let peers = self.pool.pulling_peers().await.context(&what)?;
        if peers.is_empty() && purpose == Purpose::Snapshot {
            return Err(Error::new(
                libc::EINVAL,
                format!("{what}: no peer of the pool pulls from here (tx)"),
            ));
        }
        let name = format!(".mirror.primary.{global_id}.{}", uuid::Uuid::new_v4());
        let namespace = primary_namespace(purpose, &peers);
        let operation = Operation::SnapCreate {
            namespace: namespace.clone(),
            name: name.clone(),
            flags: match mode {
                Quiesce::Required => 0,
                Quiesce::IgnoreError => snap_create_flags::IGNORE_QUIESCE_ERROR,
                Quiesce::Skip => snap_create_flags::SKIP_QUIESCE,
            },
        };
        if self.delegate(operation).await.context(&what)? == Delegated::LockedByUs {
            // Somebody else may have had the lock, and changed the image, until now.
            refuse_primary_snapshot(self.header(), purpose).context(&what)?;
            self.create_quiesced(&name, &namespace, mode).await.context(&what)?;
        }
        self.refresh().await?;
        let made = self.header().snapshots.values().find(|snapshot| snapshot.name == name);
        let gone = || Error::new(libc::ENOENT, format!("{what}: it was removed at once"));
        let id = made.map(|snapshot| snapshot.id).ok_or_else(gone)?;
        self.try_to_prune(&peers).await;
        Ok(id)
    }

    /// That there are too many is no reason to fail, but one to try again.
    async fn try_to_prune(&mut self, peers: &BTreeSet<String>) {
        for attempt in 1..=PRUNING_ATTEMPTS_MAX {
            let Err(error) = self.prune(peers).await else { return };
            if error.class() != ErrorClass::Transient || attempt == PRUNING_ATTEMPTS_MAX {
                tracing::warn!(image = %self.image().id(), "cannot let go of old mirror-snapshots: {error}");
                return;
            }
            if let Err(error) = self.refresh().await {
                tracing::debug!(image = %self.image().id(), "{error}");
            }
        }
    }

    async fn create_quiesced(
        &mut self,
        name: &str,
        namespace: &SnapshotNamespace,
        mode: Quiesce,
    ) -> Result<()> {
        if mode == Quiesce::Skip {
            return self.create_locally(name, namespace).await;
        }
        let (ioctx, id) = (self.image().header_ioctx().clone(), self.image().id().clone());
        let request = AsyncRequestId { client: self.lock().client_id(), number: next_request_number() };
        let attempts = self
            .pool
            .image_number(self.header(), "rbd_quiesce_notification_attempts", QUIESCE_ATTEMPTS.into())
            .await?;
        let asked = quiesce(&ioctx, &id, request, attempts.try_into().unwrap_or(u32::MAX)).await;
        let made = match (asked, mode) {
            (Err(error), Quiesce::Required) => Err(error),
            _ => self.create_locally(name, namespace).await,
        };
        if let Err(error) = unquiesce(&ioctx, &id, request).await {
            tracing::warn!(image = %id, "not everybody was told to write again: {error}");
        }
        made
    }

    /// Adds a snapshot of the present state, with its object map. Whoever has the image open is not told yet.
    pub(crate) async fn add_snapshot(&mut self, name: &str, namespace: &SnapshotNamespace) -> Result<SnapId> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let new = NewSnapshot {
                name: name.to_string(),
                namespace: namespace.clone(),
                id: self.snap_ids(1).await?.first().copied(),
                skip_object_map: false,
            };
            self.changed();
            match snapshots::create(self.image(), self.header(), &new).await {
                Err(e) if e.is(libc::ESTALE) && attempt < ATTEMPTS_MAX => self.refresh().await?,
                id => return id,
            }
        }
    }

    async fn create_locally(&mut self, name: &str, namespace: &SnapshotNamespace) -> Result<()> {
        let id = self.add_snapshot(name, namespace).await?;
        self.store_image_state(id).await?;
        self.tell().await;
        Ok(())
    }

    /// Writes the state of the image to a primary mirror-snapshot and marks it complete.
    async fn store_image_state(&mut self, id: SnapId) -> Result<()> {
        let (ioctx, image) = (self.image().header_ioctx(), self.image().id());
        let name = directory::name_of(ioctx, image).await?;
        let unnamed = || Error::new(libc::ENOENT, format!("image {image} is not in the directory"));
        let state = image_state(self.header(), name.ok_or_else(unnamed)?);
        write_image_state(ioctx, image, id, &state).await?;
        HeaderUpdate::of(image).set_copy_progress(id, true, 0).apply(ioctx).await
    }

    /// Does what is left to be done of a primary mirror-snapshot that was cut off. Nobody may have written to the image
    /// since: it has been read-only (non-primary) from before the snapshot was made, and the lock is ours.
    pub(crate) async fn finish_primary_snapshot(&mut self, id: SnapId) -> Result<()> {
        self.finish_object_maps(id).await?;
        self.store_image_state(id).await?;
        self.refresh().await
    }

    /// Gives a snapshot whose making was cut off its object map. Nobody may have written to the image since.
    pub(crate) async fn finish_object_maps(&mut self, id: SnapId) -> Result<()> {
        let Some(snapshot) = self.header().snapshots.get(&id) else { return Ok(()) };
        let new = NewSnapshot {
            name: snapshot.name.clone(),
            namespace: snapshot.namespace.clone(),
            id: Some(id),
            skip_object_map: false,
        };
        snapshots::create(self.image(), self.header(), &new).await?;
        if self.header().features.has(Features::FAST_DIFF) {
            // It may have been cut off between the two maps. Cleaning the head's again changes nothing.
            self.image().object_map(SnapId::HEAD).snap_add().await.optional()?;
        }
        self.changed();
        Ok(())
    }

    /// Lets go of mirror-snapshots that nobody needs any more. `peers`: those that pull from here.
    pub(crate) async fn prune(&mut self, peers: &BTreeSet<String>) -> Result<()> {
        let option = "rbd_mirroring_max_mirroring_snapshots";
        let max = self.pool.image_number(self.header(), option, SNAPSHOTS_MAX).await?.max(3);
        let mut pruning = plan_pruning(&mirror_snapshots(self.header()), peers, max as usize);
        pruning.remove.extend(half_removed(self.header()));
        self.carry_out(pruning).await
    }

    pub(crate) async fn carry_out(&mut self, pruning: Pruning) -> Result<()> {
        for (id, peer) in pruning.unlink {
            self.unlink_peer(id, &peer).await?;
        }
        self.remove_snapshots(&pruning.remove).await
    }

    async fn unlink_peer(&mut self, id: SnapId, peer: &str) -> Result<()> {
        self.changed();
        let unlink = HeaderUpdate::of(self.image().id()).unlink_peer(id, peer);
        unlink.apply(self.image().header_ioctx()).await.optional().map(drop)
    }

    /// Removes snapshots, or has the owner of the lock remove them; no error for those that are gone.
    pub(crate) async fn remove_snapshots(&mut self, ids: &[SnapId]) -> Result<()> {
        let mut rest = ids;
        while let Some((id, others)) = rest.split_first() {
            let Some(snapshot) = self.header().snapshots.get(id) else {
                rest = others;
                continue;
            };
            let (namespace, name) = (snapshot.namespace.clone(), snapshot.name.clone());
            match self.delegate(Operation::SnapRemove { namespace, name }).await.optional()? {
                Some(Delegated::LockedByUs) => break,
                _ => rest = others,
            }
        }
        if !rest.is_empty() {
            self.changed();
            snapshots::remove_all(self.image(), self.header(), rest).await?;
        }
        if !ids.is_empty() {
            self.refresh().await?;
        }
        Ok(())
    }
}

fn primary_namespace(purpose: Purpose, peers: &BTreeSet<String>) -> SnapshotNamespace {
    let demoted = purpose == Purpose::Demote;
    SnapshotNamespace::Mirror(MirrorSnapshot {
        state: if demoted { MirrorSnapshotState::PrimaryDemoted } else { MirrorSnapshotState::Primary },
        complete: false,
        mirror_peer_uuids: peers.clone(),
        primary_mirror_uuid: String::new(),
        primary_snap_id: SnapId::HEAD,
        last_copied_object_number: 0,
        snap_seqs: BTreeMap::new(),
    })
}

/// The state of the image as its header tells it.
fn image_state(header: &ImageHeader, name: String) -> ImageState {
    let user = header.snapshots.values().filter(|snapshot| snapshot.namespace == SnapshotNamespace::User);
    let state = |snapshot: &Snapshot| SnapState {
        namespace: snapshot.namespace.clone(),
        name: snapshot.name.clone(),
        protection: snapshot.protection,
    };
    let metadata = header.metadata.iter().filter(|(key, _)| !key.starts_with(INTERNAL_METADATA_PREFIX));
    ImageState {
        name,
        features: header.features.without(Features::IMPLICIT),
        snap_limit: header.snapshot_limit,
        snapshots: user.map(|snapshot| (snapshot.id, state(snapshot))).collect(),
        metadata: metadata.map(|(key, value)| (key.clone(), value.clone())).collect(),
    }
}

/// Mirror-snapshots whose removal was cut off, and that have no clones.
pub(crate) fn half_removed(header: &ImageHeader) -> Vec<SnapId> {
    let was_mirror = |snapshot: &&Snapshot| match &snapshot.namespace {
        SnapshotNamespace::Trash { original_namespace_type, .. } => {
            *original_namespace_type == namespace_type::MIRROR && snapshot.child_count == 0
        }
        _ => false,
    };
    header.snapshots.values().filter(was_mirror).map(|snapshot| snapshot.id).collect()
}

pub(crate) fn mirror_snapshots(header: &ImageHeader) -> BTreeMap<SnapId, MirrorSnapshot> {
    header.snapshots.values().filter_map(|snapshot| Some((snapshot.id, snapshot.mirror()?.clone()))).collect()
}

/// What pruning does.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pruning {
    /// From which snapshots which peer is to be unlinked.
    pub(crate) unlink: Vec<(SnapId, String)>,
    /// Which snapshots are to be removed.
    pub(crate) remove: Vec<SnapId>,
}

/// What to let go of.
pub(crate) fn plan_pruning(
    snapshots: &BTreeMap<SnapId, MirrorSnapshot>,
    peers: &BTreeSet<String>,
    max: usize,
) -> Pruning {
    let (mut left, mut pruning) = (snapshots.clone(), Pruning::default());
    while let Some((id, peer)) = next_to_unlink(&left, peers, max) {
        unlink(&mut left, &mut pruning, id, &peer);
    }
    pruning
}

/// Takes a peer out of a snapshot; the snapshot goes when it was the last one, unless it is the newest.
pub(crate) fn unlink(
    left: &mut BTreeMap<SnapId, MirrorSnapshot>,
    pruning: &mut Pruning,
    id: SnapId,
    peer: &str,
) {
    let newest = left.keys().next_back().copied();
    let Some(mirror) = left.get_mut(&id) else { return };
    let linked = mirror.mirror_peer_uuids.remove(peer);
    if mirror.mirror_peer_uuids.is_empty() && newest != Some(id) {
        left.remove(&id);
        pruning.unlink.retain(|(unlinked, _)| *unlinked != id);
        pruning.remove.push(id);
    } else if linked {
        pruning.unlink.push((id, peer.to_string()));
    }
}

fn next_to_unlink(
    left: &BTreeMap<SnapId, MirrorSnapshot>,
    peers: &BTreeSet<String>,
    max: usize,
) -> Option<(SnapId, String)> {
    let newest = left.keys().next_back()?;
    for peer in peers {
        let waits = |mirror: &MirrorSnapshot| mirror.mirror_peer_uuids.contains(peer);
        let cut_off =
            |mirror: &MirrorSnapshot| mirror.state.is_primary() && !mirror.complete && waits(mirror);
        let useless = |(id, mirror): &(&SnapId, &MirrorSnapshot)| {
            (mirror.mirror_peer_uuids.is_empty() && *id != newest) || cut_off(mirror)
        };
        if let Some((id, _)) = left.iter().find(useless) {
            return Some((*id, peer.clone()));
        }
    }
    peers.iter().find_map(|peer| Some((beyond_max(left, peer, max)?, peer.clone())))
}

/// The snapshot to be passed over by a peer for which too many wait since the last promotion.
fn beyond_max(left: &BTreeMap<SnapId, MirrorSnapshot>, peer: &str, max: usize) -> Option<SnapId> {
    let (mut waiting, mut last_kept) = (0, None);
    for (id, mirror) in left {
        if mirror.state != MirrorSnapshotState::Primary {
            (waiting, last_kept) = (0, None);
        } else if mirror.mirror_peer_uuids.contains(peer) {
            waiting += 1;
            if waiting == max {
                last_kept = Some(*id);
            } else if waiting > max {
                return last_kept;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests;
