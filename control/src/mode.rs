//! Which images of a pool or namespace are mirrored.
//!
//! | from | to | done before the mode is set |
//! |---|---|---|
//! | disabled | any | a new mirror uuid |
//! | any | pool | every image with a journal is mirrored, in journal mode |
//! | pool | disabled, init-only | every image ceases to be mirrored, clones before their parents |
//! | image | disabled, init-only | refused while an image is mirrored |
//!
//! Between disabled or pool and any other mode lies image mode: images are mirrored, or cease to be, one by one.
//!
//! Reference: `Mirror<I>::mode_set` in `src/librbd/api/Mirror.cc` (20.2.4), `execute_enable` in
//! `src/tools/rbd/action/MirrorPool.cc`.

use std::collections::BTreeSet;

use futures::{StreamExt, TryStreamExt};
use rados::error::ResultExt;
use rados::{Error, Result};
use rbd::mirroring::{MirrorImageMode, MirrorImageState, MirrorMode};
use rbd::types::{Features, ImageId};
use rbd::{ImageHeader, directory};

use crate::enable::ParentCheck;
use crate::pool::Pool;
use crate::session::Session;

impl Pool {
    /// Sets which images are mirrored; `None` when that was so already, else what was so before. `remote_namespace`: the
    /// peers' namespace to be mirrored with, the one of the same name unless given; EOPNOTSUPP when it is another one and
    /// the OSDs know of no such thing, EINVAL when it is to change while mirroring is enabled.
    ///
    /// EINVAL for a mode that is not possible here, or while images are mirrored one by one; EBUSY while peers are
    /// registered, or a clone keeps its parent from ceasing to be mirrored.
    pub async fn set_mode(
        &self,
        mode: MirrorMode,
        remote_namespace: Option<&str>,
    ) -> Result<Option<MirrorMode>> {
        let what = || format!("cannot set the mirroring mode of {self} to {mode}");
        self.refuse_mode(mode, remote_namespace).await.context(what())?;
        let mirroring = self.mirroring();
        if matches!(mode, MirrorMode::Image | MirrorMode::Pool) {
            let wanted = remote_namespace.unwrap_or(self.namespace());
            if mirroring.remote_namespace().await.context(what())? != wanted {
                mirroring.set_remote_namespace(wanted).await.context(what())?;
            }
        }
        let before = mirroring.mode().await.context(what())?;
        if before == mode {
            return Ok(None);
        }
        self.change_mode(before, mode).await.context(what())?;
        Ok(Some(before))
    }

    async fn refuse_mode(&self, mode: MirrorMode, remote_namespace: Option<&str>) -> Result<()> {
        let refuse = |errno, why: &str| Err(Error::new(errno, why));
        match mode {
            MirrorMode::Unknown(_) => refuse(libc::EINVAL, "there is no such mode"),
            MirrorMode::InitOnly if !self.namespace().is_empty() => {
                refuse(libc::EINVAL, "only a pool itself can have it, not a namespace")
            }
            MirrorMode::InitOnly if remote_namespace.is_some() => {
                refuse(libc::EINVAL, "a remote namespace makes no sense with it")
            }
            MirrorMode::InitOnly if !self.mirroring().supports_remote_namespace().await? => {
                refuse(libc::EINVAL, "the OSDs do not know it: it came with Ceph 20")
            }
            MirrorMode::Disabled if !self.mirroring().peers().await?.is_empty() => {
                refuse(libc::EBUSY, "peers are registered: remove them first")
            }
            _ => Ok(()),
        }
    }

    async fn change_mode(&self, before: MirrorMode, mode: MirrorMode) -> Result<()> {
        let mirroring = self.mirroring();
        if before == MirrorMode::Disabled {
            mirroring.set_uuid(&uuid::Uuid::new_v4().to_string()).await?;
        }
        if before != MirrorMode::Image {
            self.write_mode(MirrorMode::Image).await?;
        }
        match mode {
            MirrorMode::Image => return Ok(()),
            MirrorMode::Pool => self.enable_journaled_images().await?,
            _ if before == MirrorMode::Image => self.refuse_enabled_images().await?,
            _ => self.disable_all_images().await?,
        }
        self.write_mode(mode).await
    }

    /// Sets the mode and tells the daemons.
    async fn write_mode(&self, mode: MirrorMode) -> Result<()> {
        let mirroring = self.mirroring();
        mirroring.set_mode(mode).await?;
        if let Err(error) = mirroring.notify_mode(mode).await {
            tracing::warn!("{error}");
        }
        Ok(())
    }

    async fn refuse_enabled_images(&self) -> Result<()> {
        let images = self.mirroring().images().await?;
        match images.into_iter().find(|(_, mirror)| mirror.state == MirrorImageState::Enabled) {
            Some((image, _)) => {
                let name = directory::name_of(self.ioctx(), &image).await?.unwrap_or(image.0);
                let why = format!("image '{}' is mirrored: disable that first", self.image_spec(&name));
                Err(Error::new(libc::EINVAL, why))
            }
            None => Ok(()),
        }
    }

    async fn enable_journaled_images(&self) -> Result<()> {
        let enable = |(name, id): (String, ImageId)| async move {
            let what = || format!("cannot enable mirroring of image '{}'", self.image_spec(&name));
            let header = ImageHeader::read(self.ioctx(), &id).await.context(what())?;
            if !header.features.has(Features::JOURNALING) {
                return Ok(());
            }
            if let Err(error) = header.refuse_in_migration() {
                // Committing the migration enables mirroring in a pool of this mode.
                tracing::warn!("{}", error.context(what()));
                return Ok(());
            }
            let session = Session::open_id(self, &id, &name).await.context(what())?;
            let (mode, parents) = (MirrorImageMode::Journal, ParentCheck::OtherPools);
            session.run(async |session| session.enable(mode, parents).await).await.context(what())
        };
        let images = futures::stream::iter(directory::list(self.ioctx()).await?).map(enable);
        images.buffer_unordered(self.options().images_in_flight.max(1)).try_collect().await
    }

    /// Disables mirroring of all images. One that is busy, because a clone of it is mirrored, is tried again as long as
    /// others could be disabled meanwhile.
    async fn disable_all_images(&self) -> Result<()> {
        let mut left: BTreeSet<ImageId> = self.mirroring().image_ids().await?.into_keys().collect();
        loop {
            let before = left.len();
            let disable = |id: ImageId| async move { (self.disable_by_id(&id).await, id) };
            let disabled: Vec<_> = futures::stream::iter(std::mem::take(&mut left))
                .map(disable)
                .buffer_unordered(self.options().images_in_flight.max(1))
                .collect()
                .await;
            let mut busy = None;
            for (result, id) in disabled {
                match result {
                    Err(error) if error.is(libc::EBUSY) => {
                        left.insert(id);
                        busy = Some(error);
                    }
                    result => result?,
                }
            }
            match busy {
                None => return Ok(()),
                Some(error) if left.len() == before => return Err(error),
                Some(_) => {}
            }
        }
    }

    async fn disable_by_id(&self, id: &ImageId) -> Result<()> {
        let what = || format!("cannot disable mirroring of image {id}");
        let session = Session::open_id(self, id, &id.0).await.context(what())?;
        session.run(async |session| session.disable(false).await).await.context(what())
    }
}
