//! Mirror-snapshots on demand, and the wish for a resync.
//!
//! Reference: `Mirror<I>::image_snapshot_create` and `image_resync` in `src/librbd/api/Mirror.cc`.

use journal::image_journal::ImageJournal;
use rados::error::ResultExt;
use rados::{Error, Result, SnapId};
use rbd::image_state::set_resync_requested;
use rbd::mirroring::MirrorImageMode;

use crate::config::Quiesce;
use crate::pool::Pool;
use crate::primary::Purpose;
use crate::session::Session;

impl Pool {
    /// Makes a mirror-snapshot of a primary and answers with its id. `quiesce`: what to do about those who have the image
    /// open; as configured (`rbd_default_snapshot_quiesce_mode`) when `None`. EINVAL when the image is not mirrored in
    /// snapshot mode, not primary, or no peer pulls from here; EROFS when its lock cannot be got.
    pub async fn snapshot(&self, image: &str, quiesce: Option<Quiesce>) -> Result<SnapId> {
        let what = || format!("cannot make a mirror-snapshot of image '{}'", self.image_spec(image));
        let session = Session::open(self, image).await.context(what())?;
        session.run(async |session| session.snapshot(quiesce).await).await
    }

    /// Asks for a resync of a copy: its daemon does it. EINVAL when the image is not mirrored, or is primary.
    pub async fn resync(&self, image: &str) -> Result<()> {
        let what = || format!("cannot ask for a resync of image '{}'", self.image_spec(image));
        let info = self.image_info(image).await.context(what())?;
        self.require_enabled(&info)?;
        let refuse = |errno, why: String| Err(Error::new(errno, format!("{}: {why}", what())));
        if info.is_primary() {
            return refuse(libc::EINVAL, "it is primary".into());
        }
        match info.mode {
            Some(MirrorImageMode::Snapshot) => {
                let Some(mirror_uuid) = self.mirroring().uuid().await.context(what())? else {
                    return refuse(libc::ENOENT, format!("{self} has no mirror uuid"));
                };
                set_resync_requested(self.ioctx(), &info.id, &mirror_uuid, true).await.context(what())
            }
            Some(MirrorImageMode::Journal) => {
                let mut own = ImageJournal::open(self.ioctx(), &info.id).await.context(what())?;
                own.set_resync(true).await.context(what())
            }
            _ => refuse(libc::EINVAL, "its mirroring mode is not known".into()),
        }
    }
}

impl Session {
    async fn snapshot(&mut self, quiesce: Option<Quiesce>) -> Result<SnapId> {
        let (info, _) = self.stored_info().await?;
        let global_id = self.require_mirrored(&info)?;
        if info.mode != Some(MirrorImageMode::Snapshot) {
            let what = format!(
                "cannot make a mirror-snapshot of image '{}': it is not mirrored by snapshots",
                self.spec()
            );
            return Err(Error::new(libc::EINVAL, what));
        }
        let quiesce = match quiesce {
            Some(quiesce) => quiesce,
            None => self.pool.default_quiesce(self.header()).await?,
        };
        self.create_primary_snapshot(Purpose::Snapshot, &global_id, quiesce).await
    }
}
