//! Beginning to mirror an image.
//!
//! In journal mode: the journaling feature, then the image's entry in the pool's mirroring, which the daemons are told
//! of. In snapshot mode: a first mirror-snapshot, then the image's entry in the pool's mirroring, which the daemons are told
//! of. A first snapshot without an entry is left over from an attempt that was cut off; it is replaced.
//!
//! Reference: `Mirror<I>::image_enable` in `src/librbd/api/Mirror.cc`, `src/librbd/mirror/EnableRequest.cc`.

use rados::error::ResultExt;
use rados::{Error, Result, SnapId};
use rbd::children::parent_ioctx;
use rbd::mirroring::{GlobalImageId, MirrorImage, MirrorImageMode, MirrorImageState, MirrorMode, Mirroring};
use rbd::types::MirrorSnapshotState;

use crate::pool::Pool;
use crate::primary::{Purpose, mirror_snapshots};
use crate::session::Session;

/// Whose parents must be mirrored before a clone can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ParentCheck {
    /// All.
    Always,
    /// Those in other pools.
    OtherPools,
}

impl Pool {
    /// Begins to mirror an image; no error when it is mirrored in that mode already. EINVAL when the pool or namespace is
    /// not in image mode, when its parent is not mirrored, when it is in migration, or when it is mirrored in another mode;
    /// EROFS when its lock cannot be got.
    pub async fn enable(&self, image: &str, mode: MirrorImageMode) -> Result<()> {
        let what = || format!("cannot enable mirroring of image '{}'", self.image_spec(image));
        self.require_image_mode().await.context(what())?;
        let session = Session::open(self, image).await.context(what())?;
        session.run(async |session| session.enable(mode, ParentCheck::Always).await).await.context(what())
    }

    /// Fails with EINVAL unless images are mirrored one by one here.
    pub(crate) async fn require_image_mode(&self) -> Result<()> {
        let refuse = |why: String| Err(Error::new(libc::EINVAL, why));
        match self.mirroring().mode().await? {
            MirrorMode::Image => Ok(()),
            MirrorMode::Disabled | MirrorMode::InitOnly => {
                refuse(format!("mirroring is not enabled in {self}"))
            }
            mode => {
                refuse(format!("{self} is in mode '{mode}', in which images are not mirrored one by one"))
            }
        }
    }
}

impl Session {
    pub(crate) async fn enable(&mut self, mode: MirrorImageMode, parents: ParentCheck) -> Result<()> {
        self.header().refuse_in_migration()?;
        self.refuse_unmirrored_parent(parents).await?;
        let refuse = |why: &str| Err(Error::new(libc::EINVAL, why));
        match self.pool.mirroring().image(self.image().id()).await? {
            Some(mirror) if mirror.mode != mode => {
                return refuse(&format!(
                    "it is mirrored in mode {} already: disable that first",
                    mirror.mode
                ));
            }
            Some(mirror) if mirror.state == MirrorImageState::Enabled => return Ok(()),
            Some(mirror) => {
                return refuse(&format!("its mirroring is {} right now: finish that first", mirror.state));
            }
            None => {}
        }
        let global_id = GlobalImageId(uuid::Uuid::new_v4().to_string());
        match mode {
            MirrorImageMode::Snapshot => self.begin_snapshots(&global_id).await?,
            MirrorImageMode::Journal => self.begin_journal().await?,
            MirrorImageMode::Unknown(_) => {
                return Err(Error::new(libc::EOPNOTSUPP, format!("mirroring mode {mode} is not known")));
            }
        }
        let mirror = MirrorImage { mode, global_id, state: MirrorImageState::Enabled };
        self.set_mirror_image(&mirror).await
    }

    /// Writes the image's entry, and tells the daemons.
    async fn set_mirror_image(&self, mirror: &MirrorImage) -> Result<()> {
        let (mirroring, image) = (self.pool.mirroring(), self.image().id());
        mirroring.image_set(image, mirror).await?;
        if let Err(error) = mirroring.notify_image(mirror.state, image, &mirror.global_id).await {
            tracing::warn!(image = %image, "{error}");
        }
        Ok(())
    }

    async fn refuse_unmirrored_parent(&self, parents: ParentCheck) -> Result<()> {
        let Some(parent) = &self.header().parent else { return Ok(()) };
        let ioctx = self.image().header_ioctx();
        if parents == ParentCheck::OtherPools && parent.pool == ioctx.pool_id() {
            return Ok(());
        }
        let there = parent_ioctx(ioctx, &parent.spec());
        if Mirroring::new(&there).image(&parent.image).await?.is_some() {
            return Ok(());
        }
        let why = format!(
            "mirroring of its parent, image {} in pool {}, is not enabled",
            parent.image, parent.pool
        );
        Err(Error::new(libc::EINVAL, why))
    }

    /// Makes the first mirror-snapshot.
    async fn begin_snapshots(&mut self, global_id: &GlobalImageId) -> Result<()> {
        let mirrors = mirror_snapshots(self.header());
        let left_over: Vec<SnapId> = match mirrors.values().all(|m| m.state == MirrorSnapshotState::Primary) {
            true => mirrors.into_keys().collect(),
            false => Vec::new(),
        };
        let quiesce = self.pool.default_quiesce(self.header()).await?;
        self.create_primary_snapshot(Purpose::Enable, global_id, quiesce).await?;
        self.remove_snapshots(&left_over).await
    }
}
