//! Appends of entries to a journal: few and one after another, as promotion and demotion need them.
//!
//! Entry n of a tag goes into object n modulo the splay width of the active set. An object of the nominal size or more
//! refuses appends; then the next set becomes the active one, and everybody is told.
//!
//! Whoever appends has made the tag, and nobody else appends meanwhile: he holds the image's exclusive lock, or writes
//! the first entry of a promotion.
//!
//! Reference: `src/journal/JournalRecorder.cc`, `src/journal/ObjectRecorder.cc`.

use rados::encoding::Encoder;
use rados::error::ResultExt;
use rados::{Error, Result, WriteOp};

use crate::entry::RawEntry;
use crate::event::EventEntry;
use crate::metadata::{CLASS, Journal};
use crate::types::{
    CommitPosition, EntryPosition, EntryTid, JournalObject, ObjectPosition, ObjectSet, TagTid,
};

/// Appends to one tag.
#[derive(Debug)]
pub struct Appender {
    journal: Journal,
    next: EntryPosition,
    set: ObjectSet,
}

impl Appender {
    /// Appends to a tag that has no entries yet.
    pub async fn new(journal: &Journal, tag: TagTid) -> Result<Appender> {
        Ok(Appender::in_set(journal, tag, journal.mutable().await?.active_set))
    }

    /// Appends to a tag that has no entries yet, when the active set is known. It stays active: nobody else appends.
    pub(crate) fn in_set(journal: &Journal, tag: TagTid, set: ObjectSet) -> Appender {
        let next = EntryPosition { tag, entry: EntryTid(0) };
        Appender { journal: journal.clone(), next, set }
    }

    /// Appends to a tag all of whose entries, if it has any, are committed up to `committed`.
    pub async fn after(journal: &Journal, tag: TagTid, committed: &CommitPosition) -> Result<Appender> {
        let mut appender = Appender::new(journal, tag).await?;
        if let Some(newest) = committed.newest().filter(|newest| newest.tag == tag) {
            appender.next.entry = EntryTid(newest.entry.0 + 1);
        }
        Ok(appender)
    }

    /// Where the next event goes.
    pub fn next(&self) -> EntryPosition {
        self.next
    }

    /// Appends an event, and tells where it went. Not cancel-safe: whether the event was appended is unknown when the
    /// future is dropped or fails, and the appender is of no use then.
    pub async fn append(&mut self, event: &EventEntry) -> Result<ObjectPosition> {
        let position = self.next;
        let context = || format!("cannot append {position} to {}", self.journal);
        let layout = *self.journal.layout();
        let entry = RawEntry { position, data: event.encode() }.encode();
        if entry.len() as u64 > layout.object_bytes() {
            let what = format!("{}: it has {} bytes, more than an object takes", context(), entry.len());
            return Err(Error::new(libc::EFBIG, what));
        }
        let mut e = Encoder::new();
        e.u64(layout.object_bytes()).blob(&entry);
        let input = e.finish();
        loop {
            let object = layout.object(self.set, position.entry.0 % layout.splay_width());
            match self.append_to(object, &input).await {
                Ok(()) => {
                    self.next.entry.0 += 1;
                    return Ok(ObjectPosition { object, position });
                }
                Err(e) if e.is(libc::EOVERFLOW) => {
                    self.set = next_set(&self.journal, self.set).await.context(context())?;
                }
                Err(e) => return Err(e.context(context())),
            }
        }
    }

    async fn append_to(&self, object: JournalObject, input: &bytes::Bytes) -> Result<()> {
        let op = WriteOp::new(self.journal.data_object(object)).exec(CLASS, "append", input.clone());
        self.journal.data_ioctx().write(op).await.map(drop)
    }
}

/// Makes the set after a full one the active one; answers with the active one.
async fn next_set(journal: &Journal, full: ObjectSet) -> Result<ObjectSet> {
    let next = ObjectSet(full.0 + 1);
    match journal.set_active_set(next).await {
        Ok(()) => Ok(next),
        Err(e) if e.is(libc::ESTALE) => Ok(journal.mutable().await?.active_set),
        Err(e) => Err(e),
    }
}
