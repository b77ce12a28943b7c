//! Making an image primary no more. In snapshot mode: lock, read-only, let writers finish, last primary snapshot
//! (demoted), prune.
//!
//! The image is read-only from before the snapshot is made, so that the snapshot holds the last that was written. A
//! demotion that was cut off behind the record of that snapshot is finished when it is asked for again.
//!
//! **Letting writers finish.** librbd looks once whether an image is read-only: when a write is asked of it. What then
//! waits for the exclusive lock, which a demotion takes from it, is written when the lock comes back, read-only or not;
//! and only when it gets the lock it reads the header afresh. Behind a demotion by librbd the queue of a running writer
//! therefore lands on top of the demoted snapshot, where it is in no copy and stays in the image when it becomes one. So
//! the lock is lent to whoever asks for it until nobody does: what he had let in is in the snapshot, and everything later
//! he refuses (EROFS). Nobody can make a client notice who does not write meanwhile; the daemon undoes what such a one
//! writes first (`rbd::rollback::undo_later_writes`). In journal mode none of this arises: whoever gets the lock of a
//! demoted image may not open its journal, and so fails his queue (EPERM).
//!
//! Reference: `src/librbd/mirror/DemoteRequest.cc`, `src/librbd/mirror/snapshot/DemoteRequest.cc`.

use std::time::Duration;

use journal::image_journal::ImageJournal;
use rados::error::ResultExt;
use rados::{Error, Result, SnapId};
use rbd::ImageHeader;
use rbd::header_update::HeaderUpdate;
use rbd::mirroring::{GlobalImageId, MirrorImageMode};
use rbd::types::{Features, MirrorSnapshotState, Snapshot};

use crate::bulk::Done;
use crate::config::Quiesce;
use crate::info::newest_mirror_snapshot;
use crate::pool::Pool;
use crate::primary::Purpose;
use crate::report::ImageInfo;
use crate::session::Session;

/// How long a client who has the image open may take to write next, and so to ask for the lock.
const ASKING_TIME: Duration = Duration::from_secs(1);
/// How long whoever asked for the lock may take to get it when it is free.
const TAKING_TIME: Duration = Duration::from_secs(2);
/// How often the lock is lent at most.
const LOANS_MAX: u32 = 32;

/// The last primary snapshot of a demotion that was cut off.
pub(crate) fn unfinished_demotion(header: &ImageHeader) -> Option<SnapId> {
    let newest = newest_mirror_snapshot(header)?;
    let mirror = newest.mirror()?;
    (mirror.state == MirrorSnapshotState::PrimaryDemoted && !mirror.complete).then_some(newest.id)
}

impl Pool {
    /// Makes an image primary no more. EINVAL when it is not mirrored or not primary, EROFS when the owner of its lock
    /// does not give it up. A demotion that was cut off is finished.
    pub async fn demote(&self, image: &str) -> Result<()> {
        let what = || format!("cannot demote image '{}'", self.image_spec(image));
        let session = Session::open(self, image).await.context(what())?;
        session.run(async |session| session.demote().await).await.context(what())
    }
}

impl Session {
    async fn demote(&mut self) -> Result<()> {
        let (info, own) = self.stored_info().await?;
        self.demote_known(&info, own).await
    }

    async fn demote_known(&mut self, info: &ImageInfo, own: Option<ImageJournal>) -> Result<()> {
        let global_id = self.require_mirrored(info)?;
        match info.mode {
            Some(MirrorImageMode::Snapshot) => self.demote_by_snapshot(info, &global_id).await,
            Some(MirrorImageMode::Journal) => self.demote_by_journal(info, own).await,
            _ => Err(Error::new(libc::EOPNOTSUPP, "its mirroring mode is not known")),
        }
    }

    /// Makes an image primary no more that is mirrored and primary, and finishes a demotion that was cut off.
    pub(crate) async fn demote_if_primary(&mut self) -> Result<Done> {
        let (info, own) = self.stored_info().await?;
        let unfinished = match info.mode {
            Some(MirrorImageMode::Journal) => self.is_demotion_unfinished(own.as_ref()),
            _ => unfinished_demotion(self.header()).is_some(),
        };
        if !info.is_enabled() || (!info.is_primary() && !unfinished) {
            return Ok(Done::PassedOver);
        }
        self.demote_known(&info, own).await.map(|()| Done::Changed)
    }

    async fn demote_by_snapshot(&mut self, info: &ImageInfo, global_id: &GlobalImageId) -> Result<()> {
        if unfinished_demotion(self.header()).is_none() {
            self.refuse_unless_primary(info)?;
        }
        self.acquire().await?;
        if let Some(snap) = unfinished_demotion(self.header()) {
            self.finish_primary_snapshot(snap).await?;
            let peers = self.pool.pulling_peers().await?;
            return self.prune(&peers).await;
        }
        // Whoever had the lock may have demoted it.
        let primary = |snapshot: &Snapshot| {
            snapshot.mirror().is_some_and(|mirror| mirror.state == MirrorSnapshotState::Primary)
        };
        if !newest_mirror_snapshot(self.header()).is_some_and(primary) {
            return Err(Error::new(libc::EINVAL, "it is not primary any more"));
        }
        let image = self.image();
        let read_only =
            HeaderUpdate::of(image.id()).set_features(Features::NON_PRIMARY, Features::NON_PRIMARY);
        read_only.apply(image.header_ioctx()).await?;
        self.changed();
        self.let_writers_finish().await?;
        self.create_primary_snapshot(Purpose::Demote, global_id, Quiesce::Skip).await.map(drop)
    }

    /// Lends the lock, which is ours, to whoever has writes waiting for it; the image is read-only. The header is fresh
    /// then, and the lock ours again. EROFS when it is not given back.
    async fn let_writers_finish(&mut self) -> Result<()> {
        self.tell().await;
        if self.lock().is_held() && self.watchers().await?.clients > 0 {
            let mut report = self.lock().report();
            for _ in 0..LOANS_MAX {
                let asked = report.wait_for(|report| report.requested.is_some());
                if tokio::time::timeout(ASKING_TIME, asked).await.is_err() {
                    break;
                }
                self.lock().release().await?;
                // One who has it by then is asked for it; one who does not may have given up.
                let taken = report.wait_for(|report| report.owner.is_some());
                tokio::time::timeout(TAKING_TIME, taken).await.ok();
                self.acquire().await?;
            }
        }
        self.refresh().await
    }

    pub(crate) fn refuse_unless_primary(&self, info: &ImageInfo) -> Result<()> {
        if info.is_primary() {
            return Ok(());
        }
        Err(Error::new(libc::EINVAL, "it is not primary"))
    }
}
