//! Creation of an image's journal, and the epochs that begin and end its being the primary.
//!
//! Each is a tag and, but for the creation, an event that is its only entry, committed at once:
//!
//! | | mirror uuid of the tag | its predecessor |
//! |---|---|---|
//! | creation | of whoever writes: local, or that of the primary's pool for a copy | local, nothing |
//! | demotion | orphan | local, the newest committed entry |
//! | promotion after a demotion | local | orphan, entry 1 of the demotion's tag |
//! | promotion of what was not demoted (forced) | local | local, entry 0 of the newest tag |
//!
//! The last names an entry that no peer can have as its own newest, so that no peer goes on from it.
//!
//! Reference: `src/librbd/journal/CreateRequest.cc`, `PromoteRequest.cc`, `DemoteRequest.cc`.

use std::ops::ControlFlow;

use rados::error::ResultExt;
use rados::{Error, IoCtx, Result};
use rbd::{ImageId, Timestamp};

use crate::append::Appender;
use crate::bootstrap::Owner;
use crate::commit::advanced;
use crate::event::{Event, EventEntry};
use crate::image_journal::ImageJournal;
use crate::metadata::{Journal, JournalLayout};
use crate::tail::{TailError, walk};
use crate::types::{
    ClientData, EntryPosition, EntryTid, IMAGE_CLIENT_ID, LOCAL_MIRROR_UUID, ORPHAN_MIRROR_UUID,
    ObjectPosition, TagClass, TagData, TagPredecessor,
};

/// Makes the journal of an image, with a first tag and the image's own client. What was made is removed again when that
/// fails. EEXIST when the image has one.
pub async fn create_image_journal(
    header_ioctx: &IoCtx,
    image: &ImageId,
    layout: JournalLayout,
    mirror_uuid: &str,
) -> Result<Journal> {
    let journal = Journal::create(header_ioctx, image, layout).await?;
    let fill = async {
        let first = TagData { mirror_uuid: mirror_uuid.to_string(), predecessor: TagPredecessor::default() };
        let tag = journal.allocate_tag(TagClass::NEW, &first).await?;
        let data = ClientData::Image { tag_class: tag.class, resync_requested: false };
        journal.client_register(IMAGE_CLIENT_ID, &data).await
    };
    if let Err(error) = fill.await {
        let left = journal.remove().await.err();
        let left = left.map_or(String::new(), |left| format!("; what was made of it is left behind: {left}"));
        return Err(error.context(format!("cannot create the journal of image {image}{left}")));
    }
    Ok(journal)
}

impl ImageJournal {
    /// Makes the image the primary. What was read of the journal is fresh afterwards. EINVAL when it is primary.
    ///
    /// Nobody may be replaying to it. It counts as promoted from the moment on when the tag is made.
    pub async fn promote(&mut self) -> Result<()> {
        let newest = self.newest.0;
        let (uuid, entry) = match self.owner() {
            Owner::Primary => return Err(self.refused("promote", "it is primary already")),
            Owner::Orphan => (ORPHAN_MIRROR_UUID, EntryTid(1)),
            Owner::CopyOf(_) => (LOCAL_MIRROR_UUID, EntryTid(0)),
        };
        let commit = Some(EntryPosition { tag: newest, entry });
        let predecessor = TagPredecessor { mirror_uuid: uuid.to_string(), commit };
        match self.begin_epoch(LOCAL_MIRROR_UUID, predecessor).await {
            // A journal that takes no tags.
            Err(error) if error.is_not_found() => {
                Err(self.refused("promote", "it is being removed because its primary is gone"))
            }
            begun => begun.context("cannot promote the image"),
        }
    }

    /// Ends the image's being the primary. What was read of the journal is fresh afterwards. EINVAL when it is not
    /// primary.
    ///
    /// The caller holds the exclusive lock, nothing is being written, and everything in the journal was applied to the
    /// image: see [`ImageJournal::require_applied`].
    pub async fn demote(&mut self) -> Result<()> {
        if self.owner() != Owner::Primary {
            return Err(self.refused("demote", "it is not primary"));
        }
        let commit = self.commit_position.newest();
        let predecessor = TagPredecessor { mirror_uuid: LOCAL_MIRROR_UUID.to_string(), commit };
        self.begin_epoch(ORPHAN_MIRROR_UUID, predecessor).await.context("cannot demote the image")
    }

    /// True when the image was demoted here, and the event of the demotion is missing: that was cut off. A mirror waits
    /// for that event.
    pub fn is_demotion_unfinished(&self) -> bool {
        let (tid, tag) = &self.newest;
        let here = tag.mirror_uuid == ORPHAN_MIRROR_UUID && tag.predecessor.mirror_uuid == LOCAL_MIRROR_UUID;
        here && self.commit_position.newest().is_none_or(|newest| newest.tag != *tid)
    }

    /// Does what is missing of a demotion that was cut off: appends its event, and commits it. What was read of the
    /// journal is fresh afterwards. The caller holds the exclusive lock.
    pub async fn finish_demotion(&mut self) -> Result<()> {
        self.refresh().await?;
        if !self.is_demotion_unfinished() {
            return Ok(());
        }
        let mut appended = None;
        let start = self.commit_position.clone();
        let walked = walk(&self.journal, IMAGE_CLIENT_ID, start, |entry| {
            appended = Some(ObjectPosition { object: entry.object, position: entry.position });
            ControlFlow::Continue(())
        });
        walked.await.map_err(tail_error)?;
        let appended = match appended.filter(|appended| appended.position.tag == self.newest.0) {
            Some(appended) => appended,
            None => append_event(Appender::new(&self.journal, self.newest.0).await?).await?,
        };
        self.commit_event(appended).await.context("cannot finish the demotion of the image")
    }

    /// Makes a tag, appends the event to it, and commits that.
    async fn begin_epoch(&mut self, mirror_uuid: &str, predecessor: TagPredecessor) -> Result<()> {
        let data = TagData { mirror_uuid: mirror_uuid.to_string(), predecessor };
        let (tid, set) = self.journal.allocate_tag_and_set(self.tag_class, &data).await?;
        self.newest = (tid, data);
        let appended = append_event(Appender::in_set(&self.journal, tid, set)).await?;
        self.commit_event(appended).await
    }

    async fn commit_event(&mut self, appended: ObjectPosition) -> Result<()> {
        let position = advanced(&self.commit_position, &[appended], self.journal.layout());
        self.journal.client_commit(IMAGE_CLIENT_ID, &position).await?;
        self.commit_position = position;
        Ok(())
    }

    /// EBUSY when the image's last writer has left entries that were not applied to it: whoever opens it to write does
    /// that.
    pub async fn require_applied(&self) -> Result<()> {
        let Some(entry) = self.first_uncommitted().await? else { return Ok(()) };
        let what = format!("{entry} of the journal of image {} was not applied", self.journal.image());
        Err(Error::new(libc::EBUSY, format!("{what}; open it once to write")))
    }

    /// The first entry that the image's own client has not committed.
    async fn first_uncommitted(&self) -> Result<Option<EntryPosition>> {
        let start = self.commit_position.clone();
        let mut first = None;
        let walked = walk(&self.journal, IMAGE_CLIENT_ID, start, |entry| {
            first = Some(entry.position);
            ControlFlow::Break(())
        });
        walked.await.map_err(tail_error)?;
        Ok(first)
    }

    fn refused(&self, what: &str, why: &str) -> Error {
        Error::new(libc::EINVAL, format!("cannot {what} image {}: {why}", self.journal.image()))
    }
}

/// Appends the event that a promotion or a demotion consists of.
async fn append_event(mut appender: Appender) -> Result<ObjectPosition> {
    appender.append(&EventEntry { event: Event::DemotePromote, timestamp: Timestamp::default() }).await
}

fn tail_error(error: TailError) -> Error {
    match error {
        TailError::Rados(error) => error,
        other => Error::new(libc::EBADMSG, other.to_string()),
    }
}
