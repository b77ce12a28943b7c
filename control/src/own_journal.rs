//! The journal of a primary when its lock is taken: what librbd does before the new owner may do anything.
//!
//! What the last writer had journalled and not written is written: he may have been told that it is safe. Then a new tag
//! begins the new owner's epoch. A copy's journal is none of its own writers' business, and its lock is not to be had
//! this way.
//!
//! Reference: `src/librbd/exclusive_lock/PostAcquireRequest.cc`, `src/librbd/Journal.cc` (`allocate_local_tag`),
//! `src/librbd/journal/StandardPolicy.cc`, `Replay.cc`.

use std::collections::BTreeMap;

use journal::bootstrap::Owner;
use journal::budget::Budget;
use journal::event::EventEntry;
use journal::image_journal::ImageJournal;
use journal::replay::{Replay, ReplayContext, ReplayError, clear_marker};
use journal::types::{IMAGE_CLIENT_ID, LOCAL_MIRROR_UUID, TagData, TagPredecessor};
use journal::{Committer, Tail, TailError, TailOptions};
use rados::error::ResultExt;
use rados::{Error, Result};
use tokio_util::sync::CancellationToken;

use crate::session::Session;

/// Bytes of entries in memory while they are written.
const REPLAY_BYTES: u64 = 64 << 20;

impl Session {
    /// Brings the image up to its journal and begins an epoch in it. The lock is ours. EPERM when the image is not
    /// primary.
    pub(crate) async fn open_own_journal(&mut self) -> Result<()> {
        let what = format!("cannot open the journal of image '{}'", self.spec());
        let mut own = self.read_journal().await.context(&what)?;
        if own.owner() != Owner::Primary {
            return Err(Error::new(libc::EPERM, format!("{what}: the image is not primary")));
        }
        if self.replay_own_journal(&own).await.context(&what)? {
            own.refresh().await.context(&what)?;
        }
        let predecessor = TagPredecessor {
            mirror_uuid: LOCAL_MIRROR_UUID.to_string(),
            commit: own.commit_position.newest(),
        };
        let tag = TagData { mirror_uuid: LOCAL_MIRROR_UUID.to_string(), predecessor };
        let made = own.journal.allocate_tag(own.tag_class, &tag).await.context(&what)?;
        own.newest = (made.tid, tag);
        self.applied_journal = Some(own);
        Ok(())
    }

    /// The image's journal. ENOENT when it has none.
    pub(crate) async fn read_journal(&self) -> Result<ImageJournal> {
        ImageJournal::open(self.image().header_ioctx(), self.image().id()).await
    }

    /// Answers whether there was anything to be applied.
    async fn replay_own_journal(&mut self, own: &ImageJournal) -> Result<bool> {
        let start = own.commit_position.clone();
        let opened = Tail::open(&own.journal, IMAGE_CLIENT_ID, start, TailOptions::default()).await;
        let mut tail = opened.map_err(tail_error)?;
        let Some(first) = tail.next_to_end().await.map_err(tail_error)? else { return Ok(false) };
        tracing::info!(image = %self.image().id(), "writing what the last writer had only journalled");
        let snaps = self.header().snapshots.keys().map(|snap| (*snap, *snap));
        let context = ReplayContext {
            local: self.open.clone(),
            lock: self.lock().report(),
            remote_mirror_uuid: LOCAL_MIRROR_UUID.to_string(),
            local_tag: own.newest.0,
            commit: own.commit_position.newest(),
            holds: None,
            snap_seqs: BTreeMap::from_iter(snaps),
            ids: self.pool.snap_ids(self.image().data_ioctx()),
            budget: Budget::new(REPLAY_BYTES),
            cancel: CancellationToken::new(),
        };
        let mut replay = Replay::open(context).await.map_err(replay_error)?;
        let mut committer = Committer::new(&own.journal, IMAGE_CLIENT_ID, own.commit_position.clone());
        let mut batch = Some(first);
        let replayed = async {
            while let Some(read) = batch {
                committer.handed_out(&read.entries);
                for entry in &read.entries {
                    let event = EventEntry::decode(&entry.data).map_err(Error::from)?;
                    replay.push(entry.position, event).await.map_err(replay_error)?;
                }
                batch = tail.next_to_end().await.map_err(tail_error)?;
            }
            replay.end_tag().await.map_err(replay_error)
        };
        let replayed = replayed.await;
        let applied = *replay.applied().borrow();
        if let Some(position) = applied {
            committer.safe_up_to(position);
        }
        if let Err(error) = replay.stop().await.map_err(replay_error) {
            tracing::debug!(image = %self.image().id(), "{error}");
        }
        committer.commit().await?;
        clear_marker(self.image()).await?;
        self.changed();
        self.refresh().await?;
        replayed.map(|()| true)
    }
}

fn tail_error(error: TailError) -> Error {
    match error {
        TailError::Rados(error) => error,
        other => Error::new(libc::EBADMSG, other.to_string()),
    }
}

fn replay_error(error: ReplayError) -> Error {
    match error.rados() {
        Some(error) => error.clone().context("cannot write what was journalled"),
        None => Error::new(libc::EIO, error.to_string()),
    }
}
