//! An image opened to be changed: watched, and locked when a change needs that.
//!
//! Who may write to an image is the owner of its exclusive lock. What librbd leaves to him is left to him here, too, and
//! what librbd takes the lock for it is taken for. An image without that feature is changed as it is.
//!
//! Invariants: the header was read after the watch began, and again after the lock was got; the lock is given up, and the
//! watch with it, when the session is closed; all that is written to the image goes through the session's gate, so that the
//! lock stays until it was answered.
//!
//! Reference: `src/librbd/Operations.cc` (`C_InvokeAsyncRequest`).

use journal::image_journal::ImageJournal;
use rados::error::ResultExt;
use rados::{Error, Result, SnapId};
use rbd::exclusive_lock::{Delegated, ExclusiveLock, LockOptions, RequestPolicy};
use rbd::image::OpenImage;
use rbd::layout::header_object;
use rbd::mirroring::{GlobalImageId, MIRRORING_OBJECT, MirrorImage};
use rbd::types::ImageId;
use rbd::watch_notify::{Operation, notify_header_update};
use rbd::{Features, Image, ImageHeader, directory};

use crate::info::{info, journal_role, snapshot_role};
use crate::pool::Pool;
use crate::report::{ImageInfo, Role};

/// An open image.
pub(crate) struct Session {
    pub(crate) pool: Pool,
    pub(crate) open: OpenImage,
    lock: ExclusiveLock,
    /// It was changed in a way that nobody was told of yet.
    untold: bool,
    /// Its journal is left alone when the lock is taken.
    journal_ignored: bool,
    /// Its journal as it was when the lock was taken, behind which nobody else writes: all of it is applied.
    pub(crate) applied_journal: Option<ImageJournal>,
}

/// How many watch an image, beside this program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Watchers {
    /// Mirror daemons.
    pub(crate) daemons: usize,
    /// Others: those who have it open.
    pub(crate) clients: usize,
}

impl Session {
    /// Opens an image by its name. ENOENT when there is none.
    pub(crate) async fn open(pool: &Pool, name: &str) -> Result<Session> {
        let id = directory::id_of(pool.ioctx(), name).await?;
        Session::open_id(pool, &id, name).await
    }

    /// Opens an image by its id; `name` may be empty when it does not matter.
    pub(crate) async fn open_id(pool: &Pool, id: &ImageId, name: &str) -> Result<Session> {
        let options = LockOptions {
            // Whoever asks for the lock is told to wait, and has it when the session is closed.
            policy: RequestPolicy::HandOver,
            // Not known yet.
            object_map: false,
        };
        let ioctx = pool.ioctx().gated();
        let lock = ExclusiveLock::open(&ioctx, id, options).await?;
        let header = match ImageHeader::read(&ioctx, id).await {
            Ok(header) => header,
            Err(error) => {
                close(lock).await;
                return Err(error);
            }
        };
        lock.set_object_map(header.features.has(Features::OBJECT_MAP));
        let image = Image::of(&ioctx, name, &header);
        Ok(Session {
            pool: pool.clone(),
            open: OpenImage { image, header },
            lock,
            untold: false,
            journal_ignored: false,
            applied_journal: None,
        })
    }

    pub(crate) fn image(&self) -> &Image {
        &self.open.image
    }

    pub(crate) fn header(&self) -> &ImageHeader {
        &self.open.header
    }

    pub(crate) fn lock(&self) -> &ExclusiveLock {
        &self.lock
    }

    /// As people call the image.
    pub(crate) fn spec(&self) -> String {
        self.pool.image_spec(self.image().name())
    }

    pub(crate) async fn refresh(&mut self) -> Result<()> {
        self.open.refresh().await
    }

    /// The image's mirroring as its metadata, its open header and its journal tell it, and the journal when it is that of
    /// an image in journal mode.
    pub(crate) async fn info(
        &self,
        mirror: Option<MirrorImage>,
    ) -> Result<(ImageInfo, Option<ImageJournal>)> {
        use rbd::mirroring::MirrorImageMode::{Journal, Snapshot, Unknown};
        let mut own = None;
        let role = match mirror.as_ref().map(|mirror| mirror.mode) {
            None => (Role::NonPrimary, String::new()),
            Some(Snapshot) => snapshot_role(self.header()),
            Some(Journal) => {
                own = self.read_journal().await.optional()?;
                // Without a journal nobody else can be primary.
                own.as_ref().map_or((Role::Unknown, String::new()), journal_role)
            }
            Some(mode @ Unknown(_)) => {
                let what = format!("image '{}' is mirrored in mode {mode}, which is not known", self.spec());
                return Err(Error::new(libc::EOPNOTSUPP, what));
            }
        };
        Ok((info(self.image().name(), self.image().id(), mirror, role), own))
    }

    /// The image's mirroring as it is stored now, and its journal, as [`Session::info`] tells them.
    pub(crate) async fn stored_info(&self) -> Result<(ImageInfo, Option<ImageJournal>)> {
        self.info(self.pool.mirroring().image(self.image().id()).await?).await
    }

    /// The global id of a mirrored image; EINVAL unless it is mirrored.
    pub(crate) fn require_mirrored(&self, info: &ImageInfo) -> Result<GlobalImageId> {
        self.pool.require_enabled(info)?;
        let no_id = || Error::new(libc::EINVAL, format!("image '{}' has no global id", self.spec()));
        info.global_id.clone().ok_or_else(no_id)
    }

    fn lockable(&self) -> bool {
        self.header().features.has(Features::EXCLUSIVE_LOCK)
    }

    /// Takes the lock from whoever has it, and keeps it until the session is closed. Nothing is done for an image
    /// without that feature. EROFS when its owner refuses, EBUSY when a person locked it.
    pub(crate) async fn acquire(&mut self) -> Result<()> {
        if !self.lockable() || self.lock.is_held() {
            return Ok(());
        }
        self.lock.acquire().await.context(format!("cannot lock image '{}'", self.spec()))?;
        self.locked().await
    }

    /// As [`Session::acquire`], for what is done to the journal itself.
    pub(crate) async fn acquire_without_journal(&mut self) -> Result<()> {
        self.ignore_journal();
        self.acquire().await
    }

    /// Leaves the journal alone from now on: it may be broken, or go.
    pub(crate) fn ignore_journal(&mut self) {
        self.journal_ignored = true;
    }

    /// The lock is ours now: looks at what may have changed before.
    async fn locked(&mut self) -> Result<()> {
        self.refresh().await?;
        if !self.journal_ignored && self.header().features.has(Features::JOURNALING) {
            self.open_own_journal().await?;
        }
        Ok(())
    }

    /// Has `operation` done by the owner of the lock, or answers that it is to be done here: the lock is ours then, or
    /// there is none. The header is fresh in either case. EROFS when the lock cannot be got.
    pub(crate) async fn delegate(&mut self, operation: Operation) -> Result<Delegated> {
        if !self.lockable() || self.lock.is_held() {
            return Ok(Delegated::LockedByUs);
        }
        let delegated = self.lock.delegate(operation).await;
        // librbd knows no other reason why an operation cannot begin.
        let delegated = delegated.map_err(|e| match e.is(libc::EBUSY) {
            true => Error::new(libc::EROFS, e.to_string()),
            false => e,
        })?;
        match delegated {
            Delegated::LockedByUs => self.locked().await?,
            Delegated::DoneByOwner => self.refresh().await?,
        }
        Ok(delegated)
    }

    /// Who else watches the header.
    pub(crate) async fn watchers(&self) -> Result<Watchers> {
        let ioctx = self.image().header_ioctx();
        let of_image = ioctx.list_watchers(&header_object(self.image().id())).await?;
        let of_mirroring = ioctx.list_watchers(MIRRORING_OBJECT).await.optional()?.unwrap_or_default();
        let this = ioctx.backend().instance_id();
        let mut watchers = Watchers::default();
        for watcher in of_image.iter().filter(|watcher| watcher.client != this) {
            // Daemons alone watch the mirroring of the pool, too.
            match of_mirroring.iter().any(|daemon| daemon.address == watcher.address) {
                true => watchers.daemons += 1,
                false => watchers.clients += 1,
            }
        }
        Ok(watchers)
    }

    /// Remembers that those who have the image open are to be told of a change.
    pub(crate) fn changed(&mut self) {
        self.untold = true;
    }

    /// Tells those who have the image open that it changed, unless they know. One who does not listen is no failure.
    pub(crate) async fn tell(&mut self) {
        if std::mem::take(&mut self.untold)
            && let Err(error) = notify_header_update(self.image().header_ioctx(), self.image().id()).await
        {
            tracing::debug!(image = %self.image().id(), "not everybody was told of a change: {error}");
        }
    }

    /// Takes snapshot ids for this image, in the pool of its data.
    pub(crate) async fn snap_ids(&self, count: usize) -> Result<Vec<SnapId>> {
        let newest = SnapId(self.header().snap_context.seq);
        self.pool.snap_ids(self.image().data_ioctx()).take(newest, count).await
    }

    /// Does `work` and closes the session, whatever comes of it: tells of what changed, gives up lock and watch.
    pub(crate) async fn run<T>(mut self, work: impl AsyncFnOnce(&mut Session) -> Result<T>) -> Result<T> {
        let done = work(&mut self).await;
        self.tell().await;
        close(self.lock).await;
        done
    }
}

/// A watch that is not taken back in order is forgotten by the cluster.
async fn close(lock: ExclusiveLock) {
    if let Err(error) = lock.close().await {
        tracing::debug!("cannot close an image in order: {error}");
    }
}
