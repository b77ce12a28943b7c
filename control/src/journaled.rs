//! Journal mode, on one image: the journaling feature, promotion, demotion, resync, and the end of mirroring.
//!
//! The feature needs the exclusive lock, and gets that feature, too, where it is missing. The journal is made before the
//! feature says that there is one, and goes after the feature said so; so whatever is cut off leaves an image that can be
//! used, and a journal without the feature is a leftover.
//!
//! Reference: `src/librbd/operation/EnableFeaturesRequest.cc`, `DisableFeaturesRequest.cc`, `src/librbd/journal/`,
//! `src/librbd/mirror/DisableRequest.cc`.

use journal::Journal;
use journal::bootstrap::Owner;
use journal::image_journal::ImageJournal;
use journal::metadata::JournalLayout;
use journal::promotion::create_image_journal;
use journal::types::{ClientData, LOCAL_MIRROR_UUID};
use rados::error::ResultExt;
use rados::{Error, Result, SnapId};
use rbd::exclusive_lock::Delegated;
use rbd::header_update::HeaderUpdate;
use rbd::types::Features;
use rbd::watch_notify::Operation;

use crate::promotion_plan::{ALREADY_PRIMARY, PRIMARY_ELSEWHERE};
use crate::report::{ImageInfo, Role};
use crate::session::Session;

/// Default of `rbd_journal_order`.
const JOURNAL_ORDER: u64 = 24;
/// Default of `rbd_journal_splay_width`.
const JOURNAL_SPLAY_WIDTH: u64 = 4;

/// Fails when an image in journal mode may not be promoted.
pub(crate) fn refuse_promotion(info: &ImageInfo, force: bool) -> Result<()> {
    match info.role {
        Role::Primary => Err(Error::new(libc::EINVAL, ALREADY_PRIMARY)),
        Role::NonPrimary if !force => Err(Error::new(libc::EBUSY, PRIMARY_ELSEWHERE)),
        _ => Ok(()),
    }
}

impl Session {
    /// Gives the image a journal, unless it has one. EINVAL when it is not primary.
    pub(crate) async fn begin_journal(&mut self) -> Result<()> {
        if !self.header().features.has(Features::JOURNALING) {
            self.enable_journaling().await.context("cannot enable journaling")?;
        }
        match self.read_journal().await?.owner() {
            Owner::Primary => Ok(()),
            _ => Err(Error::new(libc::EINVAL, "its journal says that it is not primary")),
        }
    }

    async fn enable_journaling(&mut self) -> Result<()> {
        self.acquire().await?;
        let (ioctx, id) = (self.image().header_ioctx().clone(), self.image().id().clone());
        let layout = self.journal_layout().await?;
        match create_image_journal(&ioctx, &id, layout, LOCAL_MIRROR_UUID).await {
            Err(e) if e.is(libc::EEXIST) => {
                ImageJournal::remove(&ioctx, &id).await?;
                create_image_journal(&ioctx, &id, layout, LOCAL_MIRROR_UUID).await?;
            }
            created => drop(created?),
        }
        let new = Features::JOURNALING.with(Features::EXCLUSIVE_LOCK);
        HeaderUpdate::of(&id).set_features(new, new).apply(&ioctx).await?;
        self.changed();
        self.tell().await;
        self.refresh().await
    }

    async fn journal_layout(&self) -> Result<JournalLayout> {
        let number = async |option, default| self.pool.image_number(self.header(), option, default).await;
        let order = number("rbd_journal_order", JOURNAL_ORDER).await?;
        let splay_width = number("rbd_journal_splay_width", JOURNAL_SPLAY_WIDTH).await?;
        let pool = self.pool.image_option(self.header(), "rbd_journal_pool").await?;
        let pool = match pool.filter(|pool| !pool.is_empty()) {
            Some(pool) => Some(self.pool.cluster().pool_by_name(&pool).await?),
            None => None,
        };
        let refuse = |_| {
            Error::new(
                libc::EINVAL,
                format!("a journal of order {order} and {splay_width} lanes is not possible"),
            )
        };
        Ok(JournalLayout {
            order: u8::try_from(order).map_err(refuse)?,
            splay_width: u8::try_from(splay_width).map_err(refuse)?,
            pool,
        })
    }

    /// Makes an image in journal mode primary, whose journal was just read.
    pub(crate) async fn promote_by_journal(
        &mut self,
        info: &ImageInfo,
        own: Option<ImageJournal>,
        force: bool,
    ) -> Result<()> {
        refuse_promotion(info, force)?;
        match own {
            Some(mut own) => own.promote().await,
            None => self.read_journal().await?.promote().await,
        }
    }

    /// True when the image was demoted here and the end of that was cut off.
    pub(crate) fn is_demotion_unfinished(&self, own: Option<&ImageJournal>) -> bool {
        self.header().features.has(Features::JOURNALING)
            && own.is_some_and(ImageJournal::is_demotion_unfinished)
    }

    /// Makes an image in journal mode primary no more, whose journal was just read.
    pub(crate) async fn demote_by_journal(
        &mut self,
        info: &ImageInfo,
        own: Option<ImageJournal>,
    ) -> Result<()> {
        let unfinished = self.is_demotion_unfinished(own.as_ref());
        if !unfinished {
            self.refuse_unless_primary(info)?;
        }
        if !self.header().features.has(Features::EXCLUSIVE_LOCK) {
            return Err(Error::new(libc::EINVAL, "its exclusive lock is not active"));
        }
        if unfinished {
            self.acquire_without_journal().await?;
            return self.read_journal().await?.finish_demotion().await;
        }
        self.acquire().await?;
        let mut own = match self.applied_journal.take() {
            Some(own) => own,
            None => {
                let own = self.read_journal().await?;
                own.require_applied().await.context("cannot demote the image")?;
                own
            }
        };
        own.demote().await
    }

    /// Ends journal mode: takes a copy back, strikes out the mirrors that read the journal, and removes it.
    pub(crate) async fn dismantle_journal(&mut self, info: &ImageInfo) -> Result<()> {
        if let Some(own) = self.read_journal().await.optional()? {
            if !matches!(info.role, Role::Primary | Role::Unknown) {
                self.read_journal().await?.promote().await.context("cannot promote the copy first")?;
            }
            self.strike_out_mirrors(&own.journal).await?;
        }
        // That the journal stays is no reason to go on mirroring.
        if let Err(error) = self.disable_journaling().await {
            tracing::warn!(image = %self.image().id(), "cannot disable journaling: {error}");
        }
        Ok(())
    }

    async fn strike_out_mirrors(&mut self, journal: &Journal) -> Result<()> {
        for client in journal.clients().await? {
            let ClientData::MirrorPeer(peer) = client.client_data().map_err(Error::from)? else { continue };
            let is_sync_point = |snapshot: &&rbd::Snapshot| {
                peer.sync_points.iter().any(|p| p.name == snapshot.name && p.namespace == snapshot.namespace)
            };
            let sync_points: Vec<SnapId> =
                self.header().snapshots.values().filter(is_sync_point).map(|snapshot| snapshot.id).collect();
            self.remove_snapshots(&sync_points).await?;
            journal.client_unregister(&client.id).await.optional()?;
        }
        Ok(())
    }

    async fn disable_journaling(&mut self) -> Result<()> {
        let journaling = Features::JOURNALING;
        self.ignore_journal();
        if self.header().features.has(journaling) {
            let operation = Operation::UpdateFeatures { features: journaling, enabled: false };
            if self.delegate(operation).await? == Delegated::LockedByUs {
                let image = self.image();
                let off = HeaderUpdate::of(image.id()).set_features(Features(0), journaling);
                off.apply(image.header_ioctx()).await?;
                self.changed();
            }
            self.refresh().await?;
        }
        if !self.header().features.has(journaling) {
            ImageJournal::remove(self.image().header_ioctx(), self.image().id()).await?;
        }
        Ok(())
    }
}
