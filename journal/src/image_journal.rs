//! The journal of an image, seen as the image's own: its tags, and the wish for a resync.
//!
//! `rbd mirror image resync` sets a flag in the data of the image's client. It stays there until the copy is in line
//! again, so that whoever finds it half-way starts over.
//!
//! A copy's tags are made by mirroring alone, but a forced promotion may come at any moment, and makes one, too, without
//! any lock. So a tag is only ever made right behind the one that was looked at ([`ImageJournal::follow`]); behind a
//! promotion none is.
//!
//! Reference: `src/librbd/journal/` (`OpenRequest.cc`, `CreateRequest.cc`, `RemoveRequest.cc`, `ResetRequest.cc`),
//! `src/librbd/Journal.cc` (`check_resync_requested`, `allocate_tag`).

use rados::error::ResultExt;
use rados::{Error, IoCtx, Result};
use rbd::ImageId;

use crate::bootstrap::Owner;
use crate::metadata::{ClientAndTags, Journal, JournalLayout};
use crate::types::{
    ClientData, CommitPosition, IMAGE_CLIENT_ID, LOCAL_MIRROR_UUID, Tag, TagClass, TagData, TagPredecessor,
    TagTid,
};

/// How often a tag is tried to be made before others that come first are taken for a reason to give up.
const ATTEMPTS_MAX: u32 = 16;
/// Ceph's `rbd_journal_order` and `rbd_journal_splay_width`.
const DEFAULT_ORDER: u8 = 24;
const DEFAULT_SPLAY_WIDTH: u8 = 4;

/// What an image's journal tells of the image.
#[derive(Debug, Clone)]
pub struct ImageJournal {
    /// The journal.
    pub journal: Journal,
    /// The class of its tags.
    pub tag_class: TagClass,
    /// `rbd mirror image resync` was called.
    pub resync_requested: bool,
    /// Everything up to here is on the image's disk.
    pub commit_position: CommitPosition,
    /// Its newest tag.
    pub newest: (TagTid, TagData),
}

impl ImageJournal {
    /// Makes the journal of an image, with its first tag and the image's client. When that fails half-way, or is cut off,
    /// what was made is to be removed.
    pub async fn create(
        header_ioctx: &IoCtx,
        image: &ImageId,
        layout: JournalLayout,
        tag: &TagData,
    ) -> Result<ImageJournal> {
        let journal = Journal::create(header_ioctx, image, layout).await?;
        let newest = journal.allocate_tag(TagClass::NEW, tag).await?;
        let data = ClientData::Image { tag_class: newest.class, resync_requested: false };
        journal.client_register(IMAGE_CLIENT_ID, &data).await?;
        ImageJournal::read(&journal).await
    }

    /// Removes the journal of an image; it is no error when there is none.
    pub async fn remove(header_ioctx: &IoCtx, image: &ImageId) -> Result<()> {
        match Journal::open(header_ioctx, image).await.optional()? {
            Some(journal) => journal.remove().await,
            None => Ok(()),
        }
    }

    /// Replaces a journal that is closed to tags by an empty one of the same layout, in which the image is primary: it has no
    /// history in common with any other any more. One that is gone, because this was cut off, gets the usual layout; one
    /// that is open stays as it is.
    pub async fn reset(header_ioctx: &IoCtx, image: &ImageId) -> Result<()> {
        let layout = match Journal::open(header_ioctx, image).await.optional()? {
            Some(journal) if !journal.is_closed_to_tags().await? => {
                match ImageJournal::read(&journal).await {
                    // It was cut off while the new one was being made.
                    Err(error) if error.is(libc::EINVAL) => *journal.layout(),
                    read => return read.map(drop),
                }
            }
            Some(journal) => *journal.layout(),
            None => JournalLayout { order: DEFAULT_ORDER, splay_width: DEFAULT_SPLAY_WIDTH, pool: None },
        };
        if let Some(journal) = Journal::open(header_ioctx, image).await.optional()? {
            journal.remove().await?;
        }
        let tag = TagData { mirror_uuid: LOCAL_MIRROR_UUID.into(), predecessor: TagPredecessor::default() };
        ImageJournal::create(header_ioctx, image, layout, &tag).await.map(drop)
    }

    /// Opens and reads the journal of an image whose header lies in `header_ioctx`, as of one moment. ENOENT when it has
    /// none, EINVAL as for [`ImageJournal::read`].
    pub async fn open(header_ioctx: &IoCtx, image: &ImageId) -> Result<ImageJournal> {
        match Journal::open_with_client(header_ioctx, image, IMAGE_CLIENT_ID).await {
            Ok((journal, read)) => ImageJournal::of(&journal, read).await,
            // Either there is no journal, or it has no client of its image.
            Err(error) if error.is_not_found() => {
                ImageJournal::read(&Journal::open(header_ioctx, image).await?).await
            }
            Err(error) => Err(error),
        }
    }

    /// Reads it. EINVAL when it has no client of its image, or no tag: it was not made by librbd or is being made.
    pub async fn read(journal: &Journal) -> Result<ImageJournal> {
        match journal.client_and_tags(IMAGE_CLIENT_ID).await? {
            Some(read) => ImageJournal::of(journal, read).await,
            None => Err(Error::new(libc::EINVAL, format!("{journal} has no client of its image"))),
        }
    }

    async fn of(journal: &Journal, read: ClientAndTags) -> Result<ImageJournal> {
        let ClientAndTags { client, mut tags, more } = read;
        let ClientData::Image { tag_class, resync_requested } = client.client_data().map_err(Error::from)?
        else {
            let what = format!("the client of its image in {journal} is of another kind");
            return Err(Error::new(libc::EINVAL, what));
        };
        if more {
            tags = journal.tags(IMAGE_CLIENT_ID, Some(tag_class), None).await?;
        }
        let newest = tags.iter().rev().find(|tag| tag.class == tag_class);
        let Some(newest) = newest.map(|tag| decoded(journal, tag)).transpose()? else {
            return Err(Error::new(libc::EINVAL, format!("{journal} has no tags")));
        };
        Ok(ImageJournal {
            journal: journal.clone(),
            tag_class,
            resync_requested,
            commit_position: client.commit_position,
            newest,
        })
    }

    /// Reads again what may have changed.
    pub async fn refresh(&mut self) -> Result<()> {
        let fresh = ImageJournal::read(&self.journal).await?;
        *self = fresh;
        Ok(())
    }

    /// Who may write to the image.
    pub fn owner(&self) -> Owner {
        Owner::of(&self.newest.1)
    }

    /// Makes `tag` the newest one, unless the newest one is like it. False when the image was promoted meanwhile: then
    /// nothing was done. The newest tag is fresh afterwards.
    pub async fn follow(&mut self, tag: &TagData) -> Result<bool> {
        for _ in 0..ATTEMPTS_MAX {
            // The number comes first: whoever makes a tag after it was read takes it.
            let next = self.journal.next_tag_tid().await?;
            if let Some(newest) = newest_tag(&self.journal, self.tag_class, Some(self.newest.0)).await? {
                self.newest = newest;
            }
            if self.owner() == Owner::Primary {
                return Ok(false);
            }
            if self.newest.1 == *tag {
                return Ok(true);
            }
            if self.journal.try_allocate_tag(next, self.tag_class, tag).await? {
                self.newest = (next, tag.clone());
                return Ok(true);
            }
        }
        let what = format!("cannot make a tag in {}: others keep making some", self.journal);
        Err(Error::new(libc::EAGAIN, what))
    }

    /// Closes the journal of an image to tags, and the image thereby to promotions, if `may_close` says of the newest tag at
    /// that moment that it may be; false when it does not. It may be closed already. A promotion needs a tag, so whichever
    /// write comes first makes the other one fail.
    pub async fn close(journal: &Journal, may_close: impl Fn(TagTid, &TagData) -> bool) -> Result<bool> {
        for _ in 0..ATTEMPTS_MAX {
            // The version comes first: whoever changes anything after it was read makes the write fail.
            let version = journal.version().await?;
            let (tid, tag) = ImageJournal::read(journal).await?.newest;
            if !may_close(tid, &tag) {
                return Ok(false);
            }
            if journal.is_closed_to_tags().await? || journal.close_to_tags(version).await? {
                return Ok(true);
            }
        }
        let what = format!("cannot close {journal} to tags: others keep changing it");
        Err(Error::new(libc::EAGAIN, what))
    }

    /// Undoes [`ImageJournal::close`]; no error when it is not closed.
    pub async fn reopen(journal: &Journal) -> Result<()> {
        for _ in 0..ATTEMPTS_MAX {
            let version = journal.version().await?;
            if !journal.is_closed_to_tags().await? {
                return Ok(());
            }
            let tags = journal.tags(IMAGE_CLIENT_ID, None, None).await?;
            let next = tags.iter().map(|tag| tag.tid.0 + 1).max().unwrap_or_default();
            if journal.open_to_tags(version, TagTid(next)).await? {
                return Ok(());
            }
        }
        let what = format!("cannot open {journal} to tags: others keep changing it");
        Err(Error::new(libc::EAGAIN, what))
    }

    /// True when the journal is closed to tags.
    pub async fn is_closed(journal: &Journal) -> Result<bool> {
        journal.is_closed_to_tags().await
    }

    /// True for the tag with which [`ImageJournal::reset`] begins a journal, and Ceph's daemon when it removes a copy: nobody
    /// has promoted or used the image since.
    pub fn is_reset(tid: TagTid, tag: &TagData) -> bool {
        tid == TagTid(0) && tag.mirror_uuid == LOCAL_MIRROR_UUID && tag.predecessor.commit.is_none()
    }

    /// Sets or clears the wish for a resync.
    pub async fn set_resync(&mut self, requested: bool) -> Result<()> {
        let data = ClientData::Image { tag_class: self.tag_class, resync_requested: requested };
        self.journal.client_update_data(IMAGE_CLIENT_ID, &data).await?;
        self.resync_requested = requested;
        Ok(())
    }
}

/// The newest tag of a class, looked for behind `known`; `None` when there is none there.
async fn newest_tag(
    journal: &Journal,
    class: TagClass,
    known: Option<TagTid>,
) -> Result<Option<(TagTid, TagData)>> {
    let tags = journal.tags(IMAGE_CLIENT_ID, Some(class), known).await?;
    tags.last().map(|tag| decoded(journal, tag)).transpose()
}

/// All tags of a class that matter to a client, oldest first.
pub async fn tags_for(journal: &Journal, client: &str, class: TagClass) -> Result<Vec<(TagTid, TagData)>> {
    let tags = journal.tags(client, Some(class), None).await?;
    tags.iter().map(|tag| decoded(journal, tag)).collect()
}

/// A tag's number and data.
pub fn decoded(journal: &Journal, tag: &Tag) -> Result<(TagTid, TagData)> {
    let data = tag.tag_data().map_err(|error| {
        Error::from(error).context(format!("cannot understand tag {} of {journal}", tag.tid.0))
    })?;
    Ok((tag.tid, data))
}
