//! Ceasing to mirror an image.
//!
//! ```text
//! entry: disabling ─ promote (a copy, with force) ─ mirror-snapshots, or mirrors and journal, go ─ entry goes
//! ```
//!
//! (librbd removes the journal behind the entry, and leaves it when it is cut off in between.)
//!
//! All that could forbid it is looked at before anything is changed, and when it fails nevertheless the entry becomes
//! enabled again. Mirror-snapshots go oldest first, so that the newest tells to the end that the image is primary: what
//! was cut off can be repeated, without force.
//!
//! Reference: `Mirror<I>::image_disable` in `src/librbd/api/Mirror.cc`, `src/librbd/mirror/DisableRequest.cc`.

use rados::error::ResultExt;
use rados::{Error, Result, SnapId};
use rbd::children::{v1_children_anywhere, v2_children};
use rbd::exclusive_lock::Delegated;
use rbd::header_update::HeaderUpdate;
use rbd::image_state::resync_key;
use rbd::mirroring::{GlobalImageId, MirrorImageMode, MirrorImageState, Mirroring};
use rbd::types::{Features, ParentSpec};
use rbd::watch_notify::Operation;

use crate::pool::Pool;
use crate::primary::{half_removed, mirror_snapshots};
use crate::report::{ImageInfo, Role};
use crate::session::Session;

impl Pool {
    /// Ceases to mirror an image; no error when it is not mirrored. EINVAL when the pool or namespace is not in image
    /// mode, and for a copy unless `force`, which promotes it first; EBUSY when a clone of it is mirrored; EROFS when its
    /// lock cannot be got.
    pub async fn disable(&self, image: &str, force: bool) -> Result<()> {
        let what = || format!("cannot disable mirroring of image '{}'", self.image_spec(image));
        self.require_image_mode().await.context(what())?;
        let session = Session::open(self, image).await.context(what())?;
        session.run(async |session| session.disable(force).await).await.context(what())
    }
}

impl Session {
    pub(crate) async fn disable(&mut self, force: bool) -> Result<()> {
        let mirroring = self.pool.mirroring();
        let Some(mut mirror) = mirroring.image(self.image().id()).await? else { return Ok(()) };
        self.refuse_mirrored_clones().await?;
        let (info, _) = self.info(Some(mirror.clone())).await?;
        let is_copy = !matches!(info.role, Role::Primary | Role::Unknown);
        if is_copy && !force {
            return Err(Error::new(
                libc::EINVAL,
                "it is not primary: only force disables mirroring of a copy",
            ));
        }
        mirror.state = MirrorImageState::Disabling;
        mirroring.image_set(self.image().id(), &mirror).await?;
        if let Err(error) = self.dismantle(&info, &mirror.global_id, is_copy).await {
            mirror.state = MirrorImageState::Enabled;
            if let Err(error) = mirroring.image_set(self.image().id(), &mirror).await {
                tracing::warn!(image = %self.image().id(), "mirroring stays half disabled: {error}");
            }
            return Err(error);
        }
        Ok(())
    }

    async fn dismantle(&mut self, info: &ImageInfo, global_id: &GlobalImageId, is_copy: bool) -> Result<()> {
        match info.mode {
            Some(MirrorImageMode::Snapshot) => self.dismantle_snapshots(global_id, is_copy).await?,
            Some(MirrorImageMode::Journal) => self.dismantle_journal(info).await?,
            _ => return Err(Error::new(libc::EOPNOTSUPP, "its mirroring mode is not known")),
        }
        let (mirroring, image) = (self.pool.mirroring(), self.image().id());
        mirroring.image_remove(image).await.optional()?;
        if let Err(error) = mirroring.notify_image(MirrorImageState::Disabled, image, global_id).await {
            tracing::warn!(image = %image, "{error}");
        }
        Ok(())
    }

    async fn dismantle_snapshots(&mut self, global_id: &GlobalImageId, is_copy: bool) -> Result<()> {
        self.forget_resync().await?;
        // One that is primary and still read-only was being promoted when it was cut off.
        if is_copy || self.header().features.has(Features::NON_PRIMARY) {
            self.promote_by_snapshot(global_id, true).await.context("cannot promote the copy first")?;
        }
        let mut mirrors: Vec<SnapId> = mirror_snapshots(self.header()).into_keys().collect();
        mirrors.extend(half_removed(self.header()));
        self.remove_snapshots(&mirrors).await
    }

    /// Takes back a wish for a resync.
    async fn forget_resync(&mut self) -> Result<()> {
        let Some(mirror_uuid) = self.pool.mirroring().uuid().await? else {
            return Err(Error::new(libc::ENOENT, format!("{} has no mirror uuid", self.pool)));
        };
        let key = resync_key(&mirror_uuid);
        if !self.header().metadata.contains_key(&key) {
            return Ok(());
        }
        let operation = Operation::MetadataUpdate { key: key.clone(), value: None };
        if self.delegate(operation).await.optional()? == Some(Delegated::LockedByUs) {
            let image = self.image();
            HeaderUpdate::of(image.id())
                .remove_metadata(&key)
                .apply(image.header_ioctx())
                .await
                .optional()?;
            self.changed();
        }
        self.refresh().await
    }

    /// Fails with EBUSY when a clone of the image is mirrored, in whichever pool and format.
    async fn refuse_mirrored_clones(&self) -> Result<()> {
        let (ioctx, image) = (self.image().header_ioctx(), self.image().id());
        if self.header().snapshots.is_empty() {
            return Ok(());
        }
        let pools: Vec<_> = ioctx.backend().pools().await?.into_iter().map(|(pool, _)| pool).collect();
        for snap in self.header().snapshots.keys() {
            let parent = ParentSpec {
                pool: ioctx.pool_id(),
                namespace: ioctx.namespace().to_string(),
                image: image.clone(),
                snap: *snap,
            };
            let (v1, v2) = futures::try_join!(
                v1_children_anywhere(ioctx, pools.iter().copied(), &parent),
                v2_children(ioctx, image, *snap)
            )?;
            for clone in v1.into_iter().chain(v2).filter(|clone| pools.contains(&clone.pool)) {
                let there = ioctx.with_pool(clone.pool).with_namespace(&clone.namespace);
                if Mirroring::new(&there).image(&clone.image).await?.is_some() {
                    let why = format!("its clone, image {} in pool {}, is mirrored", clone.image, clone.pool);
                    return Err(Error::new(libc::EBUSY, why));
                }
            }
        }
        Ok(())
    }
}
