//! Who may write to an image: from its newest mirror-snapshot, or from the newest tag of its journal.
//!
//! | newest mirror-snapshot | role |
//! |---|---|
//! | primary | primary |
//! | non-primary | non-primary |
//! | demoted, complete | orphan |
//! | non-primary and demoted, not complete | non-primary |
//! | none | unknown |
//!
//! The fourth line is that of Ceph 20. Older releases take an image whose last delta is half copied for an orphan, so
//! that it is promoted without `--force` and without its data.
//!
//! | newest tag's mirror uuid | role |
//! |---|---|
//! | empty | primary |
//! | `<orphan>` | orphan |
//! | any other | non-primary |
//!
//! Reference: `src/librbd/mirror/GetInfoRequest.cc`, `src/librbd/Journal.cc` (`get_tag_owner`).

use journal::bootstrap::Owner;
use journal::image_journal::ImageJournal;
use rados::error::ResultExt;
use rados::{Error, IoCtx, Result};
use rbd::mirroring::{MirrorImage, MirrorImageMode, MirrorImageState};
use rbd::types::{ImageId, MirrorSnapshotState, Snapshot};
use rbd::{ImageHeader, directory};

use crate::pool::Pool;
use crate::report::{ImageInfo, Role};

impl Pool {
    /// An image and its mirroring. ENOENT when there is no such image.
    pub async fn image_info(&self, name: &str) -> Result<ImageInfo> {
        let id = directory::id_of(self.ioctx(), name).await?;
        let mirror = self.mirroring().image(&id).await?;
        self.info_of(name, &id, mirror).await
    }

    pub(crate) async fn info_of(
        &self,
        name: &str,
        id: &ImageId,
        mirror: Option<MirrorImage>,
    ) -> Result<ImageInfo> {
        let Some(mirror) = mirror else {
            return Ok(info(name, id, None, (Role::NonPrimary, String::new())));
        };
        let role = match mirror.mode {
            MirrorImageMode::Journal => read_journal_role(self.ioctx(), id).await,
            MirrorImageMode::Snapshot => match ImageHeader::read(self.ioctx(), id).await {
                Ok(header) => Ok(snapshot_role(&header)),
                // A copy that is being made.
                Err(e) if e.is_not_found() && mirror.state == MirrorImageState::Creating => {
                    Ok((Role::Unknown, String::new()))
                }
                Err(e) => Err(e),
            },
            MirrorImageMode::Unknown(_) => {
                Err(Error::new(libc::EOPNOTSUPP, format!("it is mirrored in mode {}", mirror.mode)))
            }
        };
        let role = role.context(format!("cannot tell the role of image '{}'", self.image_spec(name)))?;
        Ok(info(name, id, Some(mirror), role))
    }
}

/// The information about an image of a known role.
pub(crate) fn info(name: &str, id: &ImageId, mirror: Option<MirrorImage>, role: (Role, String)) -> ImageInfo {
    ImageInfo {
        name: name.to_string(),
        id: id.clone(),
        global_id: mirror.as_ref().map(|mirror| mirror.global_id.clone()),
        mode: mirror.as_ref().map(|mirror| mirror.mode),
        state: mirror.map_or(MirrorImageState::Disabled, |mirror| mirror.state),
        role: role.0,
        primary_mirror_uuid: role.1,
    }
}

/// The newest mirror-snapshot.
pub(crate) fn newest_mirror_snapshot(header: &ImageHeader) -> Option<&Snapshot> {
    header.snapshots.values().rev().find(|snapshot| snapshot.mirror().is_some())
}

/// Role of an image in snapshot mode, and the mirror uuid of another site that may write to it.
pub(crate) fn snapshot_role(header: &ImageHeader) -> (Role, String) {
    let Some(mirror) = newest_mirror_snapshot(header).and_then(Snapshot::mirror) else {
        return (Role::Unknown, String::new());
    };
    match mirror.state {
        MirrorSnapshotState::Primary => (Role::Primary, String::new()),
        MirrorSnapshotState::NonPrimary => (Role::NonPrimary, mirror.primary_mirror_uuid.clone()),
        MirrorSnapshotState::NonPrimaryDemoted if !mirror.complete => (Role::NonPrimary, String::new()),
        MirrorSnapshotState::PrimaryDemoted | MirrorSnapshotState::NonPrimaryDemoted => {
            (Role::Orphan, String::new())
        }
    }
}

/// Role of an image in journal mode, as its journal tells it now. ENOENT when it has none.
pub(crate) async fn read_journal_role(ioctx: &IoCtx, id: &ImageId) -> Result<(Role, String)> {
    Ok(journal_role(&ImageJournal::open(ioctx, id).await?))
}

/// Role of an image in journal mode, and the mirror uuid of another site that may write to it.
pub(crate) fn journal_role(own: &ImageJournal) -> (Role, String) {
    match own.owner() {
        Owner::Primary => (Role::Primary, String::new()),
        Owner::Orphan => (Role::Orphan, String::new()),
        Owner::CopyOf(mirror_uuid) => (Role::NonPrimary, mirror_uuid),
    }
}
