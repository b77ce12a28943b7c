//! Sync points: the snapshots of the remote image that copies are made from.
//!
//! Whoever has the image open owns its exclusive lock, and makes and removes them for us. Where nobody does, the lock is
//! taken for as long as that takes, so that nobody writes meanwhile, and it is done here: without an event in the
//! journal, and without replaying what a writer that died has left in it (see [`Origin`]); the next one who opens the
//! image does that.
//!
//! Reference: `src/tools/rbd_mirror/image_sync/` (`SyncPointCreateRequest.cc`, `SyncPointPruneRequest.cc`, `Utils.cc`).

use deep_copy::ids::SnapIds;
use rados::{Error, Result, SnapId};
use rbd::exclusive_lock::{Delegated, ExclusiveLock, LockOptions};
use rbd::image::OpenImage;
use rbd::snapshots::{self, NewSnapshot};
use rbd::watch_notify::{Operation, notify_header_update, snap_create_flags};
use rbd::{Features, ProtectionStatus, Snapshot, SnapshotNamespace};

use super::Origin;
use crate::image_journal::ImageJournal;
use crate::metadata::Journal;
use crate::types::{ClientData, CommitPosition, MirrorPeer, SyncPoint};

/// What the names of a site's sync points start with.
pub fn name_prefix(local_mirror_uuid: &str) -> String {
    format!(".rbd-mirror.{local_mirror_uuid}.")
}

/// True for a snapshot that is a sync point of the site with this prefix, or was one before its removal was cut off.
pub fn is_sync_point(snapshot: &Snapshot, prefix: &str) -> bool {
    match &snapshot.namespace {
        SnapshotNamespace::User => snapshot.name.starts_with(prefix),
        SnapshotNamespace::Trash { original_name, .. } => original_name.starts_with(prefix),
        _ => false,
    }
}

/// The remote image, as the source of a copy.
pub struct Source<'a> {
    /// The image; its header is fresh after every call that succeeded.
    pub image: &'a mut OpenImage,
    /// Its journal.
    pub journal: &'a Journal,
    /// The id of this site's client there.
    pub local_mirror_uuid: &'a str,
    /// Snapshot ids of the pool of its data.
    pub ids: SnapIds,
}

impl Source<'_> {
    /// Stores what this site's client says.
    pub async fn store(&self, peer: &MirrorPeer) -> Result<()> {
        let data = ClientData::MirrorPeer(peer.clone());
        self.journal.client_update_data(self.local_mirror_uuid, &data).await
    }

    /// The snapshot of a sync point.
    pub fn snapshot(&self, point: &SyncPoint) -> Option<&Snapshot> {
        self.image.header.user_snapshot(&point.name)
    }

    /// Strikes out sync points that a copy cannot be made from: all but the first, and that one, too, when its snapshot
    /// is gone or it is only half of a pair.
    pub async fn prune(&mut self, peer: &mut MirrorPeer) -> Result<()> {
        let first = peer.sync_points.first();
        let kept =
            first.filter(|point| point.from_name.is_empty() && self.snapshot(point).is_some()).cloned();
        let others: Vec<_> =
            peer.sync_points.iter().filter(|point| Some(*point) != kept.as_ref()).cloned().collect();
        if others.is_empty() {
            return Ok(());
        }
        for point in &others {
            self.remove(&point.name).await?;
            let earlier = &point.from_name;
            if !earlier.is_empty() && kept.as_ref().is_none_or(|kept| kept.name != *earlier) {
                self.remove(earlier).await?;
            }
        }
        peer.sync_points = kept.into_iter().collect();
        self.store(peer).await
    }

    /// Makes a sync point and stores it in `peer`, which has none. Before that, the client's commit position is moved up
    /// to the image's own: what lies before it is in the snapshot.
    pub async fn create(&mut self, peer: &mut MirrorPeer) -> Result<Origin> {
        self.commit_what_is_on_disk().await?;
        let name = format!("{}{}", name_prefix(self.local_mirror_uuid), uuid::Uuid::new_v4());
        let point = SyncPoint {
            namespace: SnapshotNamespace::User,
            name: name.clone(),
            from_name: String::new(),
            object_number: None,
        };
        peer.sync_points = vec![point];
        self.store(peer).await?;
        let operation = Operation::SnapCreate {
            namespace: SnapshotNamespace::User,
            name: name.clone(),
            // Nobody's file systems are frozen for it.
            flags: snap_create_flags::SKIP_QUIESCE,
        };
        let lock = self.lock().await?;
        let made = match lock.delegate(operation).await {
            Ok(Delegated::DoneByOwner) => Ok(Origin::Event),
            Ok(Delegated::LockedByUs) => self.create_unowned(&name).await,
            // It was done though the request seemed to have got lost; nobody else uses this name.
            Err(error) if error.is(libc::EEXIST) => Ok(Origin::Event),
            Err(error) => Err(error),
        };
        let closed = lock.close().await;
        let origin = made.map_err(|e| e.context(self.what("make the sync point of")))?;
        closed?;
        self.image.refresh().await?;
        if self.image.header.user_snapshot(&name).is_none() {
            let what = self.what("find the sync point that was just made of");
            return Err(Error::new(libc::EAGAIN, what));
        }
        Ok(origin)
    }

    /// Makes the snapshot while we hold the lock.
    async fn create_unowned(&mut self, name: &str) -> Result<Origin> {
        self.image.refresh().await?;
        if self.image.header.user_snapshot(name).is_some() {
            return Ok(Origin::Event);
        }
        let newest = ImageJournal::read(self.journal).await?.newest.0;
        // Allocated ahead: else all of the copy waits for the monitors here.
        let id = self.ids.take(SnapId(self.image.header.snap_context.seq), 1).await?.first().copied();
        let new = NewSnapshot {
            name: name.to_string(),
            namespace: SnapshotNamespace::User,
            id,
            skip_object_map: false,
        };
        snapshots::create(&self.image.image, &self.image.header, &new).await?;
        self.announce();
        Ok(Origin::Unowned { newest })
    }

    /// Removes the snapshot of this name; it is no error when there is none.
    pub async fn remove(&mut self, name: &str) -> Result<()> {
        self.image.refresh().await?;
        match self.image.header.user_snapshot(name).map(|snapshot| snapshot.id) {
            Some(snap) => self.remove_snapshot(snap).await,
            None => Ok(()),
        }
    }

    async fn remove_snapshot(&mut self, snap: SnapId) -> Result<()> {
        let Some(snapshot) = self.image.header.snapshots.get(&snap) else { return Ok(()) };
        let (namespace, name) = (snapshot.namespace.clone(), snapshot.name.clone());
        let operation = Operation::SnapRemove { namespace, name };
        let lock = self.lock().await?;
        let removed = match lock.delegate(operation).await {
            Ok(Delegated::DoneByOwner) => Ok(()),
            Ok(Delegated::LockedByUs) => self.remove_unowned(snap).await,
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        };
        let closed = lock.close().await;
        removed.map_err(|e| e.context(self.what("remove a sync point of")))?;
        closed?;
        self.image.refresh().await
    }

    async fn remove_unowned(&mut self, snap: SnapId) -> Result<()> {
        self.image.refresh().await?;
        let Some(snapshot) = self.image.header.snapshots.get(&snap) else { return Ok(()) };
        if snapshot.protection != ProtectionStatus::Unprotected {
            snapshots::unprotect(&self.image.image, &self.image.header, snap).await?;
            self.image.refresh().await?;
        }
        snapshots::remove(&self.image.image, &self.image.header, snap).await?;
        self.announce();
        Ok(())
    }

    /// Removes all of this site's sync points.
    pub async fn remove_all(&mut self) -> Result<()> {
        let prefix = name_prefix(self.local_mirror_uuid);
        let all = self.image.header.snapshots.values();
        let snaps: Vec<_> = all.filter(|s| is_sync_point(s, &prefix)).map(|s| s.id).collect();
        for snap in snaps {
            self.remove_snapshot(snap).await?;
        }
        Ok(())
    }

    /// Moves the commit position of this site's client up to the image's own.
    async fn commit_what_is_on_disk(&self) -> Result<()> {
        let on_disk = ImageJournal::read(self.journal).await?.commit_position;
        let client = self.journal.client(self.local_mirror_uuid).await?;
        let ours = client.map(|client| client.commit_position).unwrap_or_default();
        if is_behind(&ours, &on_disk) {
            self.journal.client_commit(self.local_mirror_uuid, &on_disk).await?;
        }
        Ok(())
    }

    async fn lock(&self) -> Result<ExclusiveLock> {
        let options = LockOptions {
            object_map: self.image.header.features.has(Features::OBJECT_MAP),
            ..LockOptions::default()
        };
        ExclusiveLock::open(self.image.image.header_ioctx(), self.image.image.id(), options).await
    }

    /// Tells those who have the image open; nobody is waited for.
    fn announce(&self) {
        let (ioctx, id) = (self.image.image.header_ioctx().clone(), self.image.image.id().clone());
        tokio::spawn(async move {
            if let Err(error) = notify_header_update(&ioctx, &id).await {
                tracing::debug!(image = %id, "cannot tell others of a snapshot: {error}");
            }
        });
    }

    fn what(&self, what: &str) -> String {
        format!("cannot {what} image '{}'", self.image.image.name())
    }
}

/// True when the first position is of an earlier entry than the second.
fn is_behind(ours: &CommitPosition, theirs: &CommitPosition) -> bool {
    match (ours.newest(), theirs.newest()) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(ours), Some(theirs)) => ours < theirs,
    }
}
