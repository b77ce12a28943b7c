//! Snapshots of the copy: made, removed, renamed, protected.
//!
//! Reference: `src/librbd/operation/Snapshot*Request.cc`.

use rados::{Error, Result, SnapId};
use rbd::encodings::namespace_type;
use rbd::snapshots::{self, Removal};
use rbd::{NewSnapshot, Snapshot, SnapshotNamespace};

use super::Maintainer;

/// How often an id is taken anew because the image turns out to have had a newer one.
const IDS_MAX: usize = 8;

impl Maintainer {
    /// The local snapshot of this name.
    pub(super) fn find(&self, namespace: &SnapshotNamespace, name: &str) -> Option<&Snapshot> {
        let snapshots = self.local.header.snapshots.values();
        snapshots.into_iter().find(|snap| snap.name == name && snap.namespace == *namespace)
    }

    fn passing_over(&self, what: &str, name: &str) -> Result<()> {
        tracing::warn!(image = %self.local.image.id(), "passing over {what} snapshot '{name}': there is none here");
        Ok(())
    }

    /// Takes a snapshot, or completes one that was cut off.
    pub(super) async fn snap_create(&mut self, namespace: &SnapshotNamespace, name: &str) -> Result<()> {
        if let SnapshotNamespace::Unknown(kind) = namespace {
            let what = format!(
                "cannot make snapshot '{name}': namespaces of type {kind} are not known to this version"
            );
            return Err(Error::new(libc::EOPNOTSUPP, what));
        }
        let there = self.find(namespace, name).map(|snap| snap.id);
        for _ in 0..IDS_MAX {
            let id = match there {
                Some(id) => id,
                None => self.take_id().await?,
            };
            let new = NewSnapshot {
                name: name.to_string(),
                namespace: namespace.clone(),
                id: Some(id),
                skip_object_map: false,
            };
            match snapshots::create(&self.local.image, &self.local.header, &new).await {
                Err(error) if error.is(libc::ESTALE) => self.local.refresh().await?,
                other => return other.map(drop),
            }
        }
        let what = format!("cannot take snapshot '{name}': newer snapshot ids keep coming up");
        Err(Error::new(libc::ESTALE, what))
    }

    async fn take_id(&self) -> Result<SnapId> {
        let taken = self.ids.take(SnapId(self.local.header.snap_context.seq), 1).await?;
        taken.first().copied().ok_or_else(|| Error::new(libc::ENOENT, "there is no snapshot id to be had"))
    }

    pub(super) async fn snap_remove(&mut self, namespace: &SnapshotNamespace, name: &str) -> Result<()> {
        let found: Vec<SnapId> = self
            .local
            .header
            .snapshots
            .values()
            .filter(|snap| (snap.name == name && snap.namespace == *namespace) || was(snap, namespace, name))
            .map(|snap| snap.id)
            .collect();
        for id in found {
            if snapshots::remove(&self.local.image, &self.local.header, id).await? == Removal::KeptForClones {
                tracing::info!(image = %self.local.image.id(), "snapshot '{name}' stays in the trash for its clones");
            }
            self.local.refresh().await?;
        }
        let left = &self.local.header.snapshots;
        self.snap_seqs.send_if_modified(|seqs| {
            let before = seqs.len();
            seqs.retain(|_, local| left.contains_key(local));
            seqs.len() < before
        });
        Ok(())
    }

    /// `remote` is the snapshot's id on the primary.
    pub(super) async fn snap_rename(&mut self, remote: SnapId, from: &str, to: &str) -> Result<()> {
        let known = self.snap_seqs.borrow().get(&remote).copied();
        let known = known.filter(|id| self.local.header.snapshots.contains_key(id));
        let Some(id) = known.or_else(|| self.find(&SnapshotNamespace::User, from).map(|snap| snap.id)) else {
            let renamed = self.find(&SnapshotNamespace::User, to).is_some();
            return if renamed { Ok(()) } else { self.passing_over("renaming", from) };
        };
        if known.is_none() {
            self.snap_seqs.send_modify(|seqs| {
                seqs.insert(remote, id);
            });
        }
        match snapshots::rename(&self.local.image, &self.local.header, id, to).await {
            Err(error) if error.is(libc::EEXIST) => Ok(()),
            other => other,
        }
    }

    pub(super) async fn snap_protect(&mut self, namespace: &SnapshotNamespace, name: &str) -> Result<()> {
        match self.find(namespace, name).map(|snap| snap.id) {
            Some(id) => snapshots::protect(&self.local.image, &self.local.header, id).await,
            None => self.passing_over("protecting", name),
        }
    }

    pub(super) async fn snap_unprotect(&mut self, namespace: &SnapshotNamespace, name: &str) -> Result<()> {
        match self.find(namespace, name).map(|snap| snap.id) {
            Some(id) => snapshots::unprotect(&self.local.image, &self.local.header, id).await,
            None => self.passing_over("unprotecting", name),
        }
    }
}

/// True when `snap` was called so before it went to the trash namespace: its removal was cut off, or it has clones.
fn was(snap: &Snapshot, namespace: &SnapshotNamespace, name: &str) -> bool {
    let kind = match namespace {
        SnapshotNamespace::User => namespace_type::USER,
        SnapshotNamespace::Group { .. } => namespace_type::GROUP,
        SnapshotNamespace::Mirror(_) => namespace_type::MIRROR,
        SnapshotNamespace::Trash { .. } | SnapshotNamespace::Unknown(_) => return false,
    };
    match &snap.namespace {
        SnapshotNamespace::Trash { original_name, original_namespace_type } => {
            original_name == name && *original_namespace_type == kind
        }
        _ => false,
    }
}
