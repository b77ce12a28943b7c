//! How far a client is: which of the entries that it was handed are safe, and the position that says so to the journal.
//!
//! A [`CommitPosition`] names the newest safe entry of each lane, with its object, the newest of all first. A reader that
//! begins there finds its place in each object, and object sets before all of them can be trimmed. What is committed
//! only ever goes forward.
//!
//! Reference: `src/journal/JournalMetadata.cc` (`committed`, `schedule_laggy_clients_disconnect`).

use std::collections::VecDeque;

use rados::Result;

use crate::metadata::{Journal, JournalLayout};
use crate::tail::Entry;
use crate::types::{CommitPosition, EntryPosition, ObjectPosition, ObjectSet};

/// Commits the position of one client.
#[derive(Debug)]
pub struct Committer {
    journal: Journal,
    client: String,
    /// Entries handed out and not yet safe, in order.
    pending: VecDeque<ObjectPosition>,
    /// Up to the newest safe entry.
    safe: CommitPosition,
    /// What is in the journal.
    stored: CommitPosition,
}

impl Committer {
    /// Commits for `client`, whose position in the journal is `stored`.
    pub fn new(journal: &Journal, client: &str, stored: CommitPosition) -> Committer {
        Committer {
            journal: journal.clone(),
            client: client.to_string(),
            pending: VecDeque::new(),
            safe: stored.clone(),
            stored,
        }
    }

    /// Remembers entries that will be applied. They come in order; those that are safe already are passed over.
    pub fn handed_out(&mut self, entries: &[Entry]) {
        let newest = self.pending.back().map(|last| last.position).or(self.safe.newest());
        let new = entries.iter().filter(|entry| Some(entry.position) > newest);
        self.pending
            .extend(new.map(|entry| ObjectPosition { object: entry.object, position: entry.position }));
    }

    /// Everything up to this entry, and the entry itself, has been applied and is on disk.
    pub fn safe_up_to(&mut self, position: EntryPosition) {
        let safe = self.pending.partition_point(|entry| entry.position <= position);
        let newest_first: Vec<ObjectPosition> = self.pending.drain(..safe).rev().collect();
        self.safe = advanced(&self.safe, &newest_first, self.journal.layout());
    }

    /// Entries handed out that are not safe yet.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Up to the newest safe entry.
    pub fn safe(&self) -> &CommitPosition {
        &self.safe
    }

    /// What the journal knows.
    pub fn stored(&self) -> &CommitPosition {
        &self.stored
    }

    /// Whether there is something to commit.
    pub fn is_due(&self) -> bool {
        self.safe != self.stored
    }

    /// Whether a commit would let go of a set of objects: the journal may then be trimmed, and a primary that gives up those
    /// who lag behind by too many sets (`rbd_journal_max_concurrent_object_sets`) counts this client as closer.
    pub fn lets_go_of_a_set(&self) -> bool {
        let layout = self.journal.layout();
        oldest_set(&self.safe, layout) > oldest_set(&self.stored, layout)
    }

    /// Commits what is safe; answers whether there was anything to commit. Cancel-safe: what was cut off is committed
    /// the next time. ENOENT when the client was struck out.
    pub async fn commit(&mut self) -> Result<bool> {
        if !self.is_due() {
            return Ok(false);
        }
        let position = self.safe.clone();
        self.journal.client_commit(&self.client, &position).await?;
        self.stored = position;
        Ok(true)
    }
}

/// The set by which the primary tells how far a client is: the oldest one that the position names.
fn oldest_set(position: &CommitPosition, layout: &JournalLayout) -> Option<ObjectSet> {
    position.0.iter().map(|entry| layout.set_of(entry.object)).min()
}

/// A position with newer entries added, each in place of the one of its lane.
pub fn advanced(
    position: &CommitPosition,
    newest_first: &[ObjectPosition],
    layout: &JournalLayout,
) -> CommitPosition {
    let mut lanes: Vec<ObjectPosition> = Vec::new();
    for entry in newest_first.iter().chain(&position.0) {
        if lanes.len() as u64 == layout.splay_width() {
            break;
        }
        if !lanes.iter().any(|other| layout.offset_of(other.object) == layout.offset_of(entry.object)) {
            lanes.push(*entry);
        }
    }
    CommitPosition(lanes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EntryTid, JournalObject, TagTid};

    #[test]
    fn a_set_is_let_go_of_when_no_lane_is_in_it_any_more() {
        let layout = JournalLayout { order: 16, splay_width: 2, pool: None };
        let entry = |number: u64, object: u64| ObjectPosition {
            object: JournalObject(object),
            position: EntryPosition { tag: TagTid(1), entry: EntryTid(number) },
        };
        let empty = CommitPosition::default();
        assert_eq!(oldest_set(&empty, &layout), None);
        let in_first = advanced(&empty, &[entry(1, 1), entry(0, 0)], &layout);
        assert_eq!(oldest_set(&in_first, &layout), Some(ObjectSet(0)));
        let half = advanced(&in_first, &[entry(2, 2)], &layout);
        assert_eq!(oldest_set(&half, &layout), Some(ObjectSet(0)));
        let next = advanced(&half, &[entry(3, 3)], &layout);
        assert_eq!(oldest_set(&next, &layout), Some(ObjectSet(1)));
    }
}
