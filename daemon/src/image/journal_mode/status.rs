//! What a replaying image says of itself, in the words that Ceph's tools and their users parse.
//!
//! The description of a replaying image is `replaying, ` and a JSON object with its keys in alphabetical order:
//!
//! | key | type | meaning |
//! |---|---|---|
//! | `primary_position` | position | the newest entry that the primary has committed |
//! | `non_primary_position` | position | the newest entry that is safe on the copy's disks |
//! | `entries_behind_primary` | integer | entries between the two |
//! | `bytes_per_second`, `entries_per_second` | number | replayed, mean of the last half minute |
//! | `seconds_until_synced` | integer | at the present rate; only while behind and moving |
//!
//! A position is `{"entry_tid": …, "object_number": …, "tag_tid": …}`, or `{}` when nothing was committed.
//!
//! Entries are numbered within their tag. Behind the newest tag, the number of entries that its writer had committed
//! before it stands in the tag's predecessor.
//!
//! Reference: `src/tools/rbd_mirror/image_replayer/journal/ReplayStatusFormatter.cc`.

use std::collections::BTreeMap;
use std::time::Instant;

use journal::types::{
    CommitPosition, EntryPosition, EntryTid, LOCAL_MIRROR_UUID, ORPHAN_MIRROR_UUID, TagData, TagTid,
};
use serde_json::{Map, Value, json};

use crate::image::status::{Rate, two_places};

/// A replaying image's progress.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// How far the primary is.
    pub(super) primary: CommitPosition,
    /// How far the copy is.
    pub(super) copy: CommitPosition,
    /// Tags of the remote journal.
    pub(super) tags: BTreeMap<TagTid, TagData>,
    bytes: Rate,
    entries: Rate,
}

impl Progress {
    /// Of a journal with these tags, of which nothing else is known yet.
    pub(super) fn new(tags: BTreeMap<TagTid, TagData>) -> Progress {
        Progress { tags, ..Progress::default() }
    }

    /// Entries were replayed.
    pub(super) fn replayed(&mut self, entries: u64, bytes: u64, now: Instant) {
        self.entries.add(entries, now);
        self.bytes.add(bytes, now);
    }

    /// A tag between the two positions that is not in [`Progress::tags`].
    pub(super) fn missing_tag(&self) -> Option<TagTid> {
        self.behind().err()
    }

    /// The description as Ceph writes it.
    pub(super) fn describe(&mut self, now: Instant) -> String {
        let behind = self.behind().unwrap_or(0);
        let (bytes, entries) = (self.bytes.per_second(now), self.entries.per_second(now));
        let mut fields = Map::new();
        let mut set = |key: &str, value: Value| fields.insert(key.into(), value);
        set("bytes_per_second", json!(two_places(bytes)));
        set("entries_behind_primary", behind.into());
        set("entries_per_second", json!(two_places(entries)));
        set("non_primary_position", position(&self.copy));
        set("primary_position", position(&self.primary));
        if behind > 0 && entries > 0.0 {
            set("seconds_until_synced", ((behind as f64 / entries) as u64).into());
        }
        format!("replaying, {}", Value::Object(fields))
    }

    /// Entries between the two positions, or the first tag that is needed to tell and is not known.
    fn behind(&self) -> Result<u64, TagTid> {
        let nothing = EntryPosition { tag: TagTid(0), entry: EntryTid(0) };
        let Some(mut primary) = self.primary.newest() else { return Ok(0) };
        let copy = self.copy.newest().unwrap_or(nothing);
        let mut behind = 0_u64;
        while primary.tag > copy.tag {
            behind = behind.saturating_add(primary.entry.0);
            let tag = self.tags.get(&primary.tag).ok_or(primary.tag)?;
            let before = &tag.predecessor;
            // Before a time as a copy, the journal holds nothing that this site lacks.
            let own = [LOCAL_MIRROR_UUID, ORPHAN_MIRROR_UUID].contains(&before.mirror_uuid.as_str());
            primary = before.commit.filter(|commit| own && commit.tag < primary.tag).unwrap_or(nothing);
        }
        if primary.tag == copy.tag {
            behind = behind.saturating_add(primary.entry.0.saturating_sub(copy.entry.0));
        }
        Ok(behind)
    }
}

fn position(commit: &CommitPosition) -> Value {
    match commit.0.first() {
        Some(newest) => json!({
            "entry_tid": newest.position.entry.0,
            "object_number": newest.object.0,
            "tag_tid": newest.position.tag.0,
        }),
        None => json!({}),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use journal::types::{JournalObject, ObjectPosition, TagPredecessor};

    use super::*;

    fn at(tag: u64, entry: u64) -> CommitPosition {
        let position = EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) };
        CommitPosition(vec![ObjectPosition { object: JournalObject(entry % 4), position }])
    }

    fn tag(before: &str, commit: Option<(u64, u64)>) -> TagData {
        let commit = commit.map(|(tag, entry)| EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) });
        let predecessor = TagPredecessor { mirror_uuid: before.into(), commit };
        TagData { mirror_uuid: LOCAL_MIRROR_UUID.into(), predecessor }
    }

    #[test]
    fn a_replaying_image_is_described_in_cephs_words() {
        let start = Instant::now();
        let mut progress = Progress { primary: at(3, 17), copy: at(3, 10), ..Progress::default() };
        progress.replayed(8, 4096, start);
        assert_eq!(
            progress.describe(start + Duration::from_secs(2)),
            "replaying, {\"bytes_per_second\":2048.0,\"entries_behind_primary\":7,\"entries_per_second\":4.0,\
             \"non_primary_position\":{\"entry_tid\":10,\"object_number\":2,\"tag_tid\":3},\
             \"primary_position\":{\"entry_tid\":17,\"object_number\":1,\"tag_tid\":3},\
             \"seconds_until_synced\":1}"
        );
        assert_eq!(
            Progress::default().describe(start),
            "replaying, {\"bytes_per_second\":0.0,\"entries_behind_primary\":0,\"entries_per_second\":0.0,\
             \"non_primary_position\":{},\"primary_position\":{}}"
        );
    }

    #[test]
    fn entries_are_counted_across_tags() {
        let mut progress = Progress { primary: at(7, 4), copy: at(3, 10), ..Progress::default() };
        assert_eq!((progress.behind(), progress.missing_tag()), (Err(TagTid(7)), Some(TagTid(7))));
        progress.tags.insert(TagTid(7), tag(LOCAL_MIRROR_UUID, Some((5, 6))));
        assert_eq!(progress.missing_tag(), Some(TagTid(5)));
        progress.tags.insert(TagTid(5), tag(LOCAL_MIRROR_UUID, Some((3, 12))));
        assert_eq!(progress.behind(), Ok(4 + 6 + 2));
        // Tag 5 followed a time in which the image over there was a copy.
        progress.tags.insert(TagTid(5), tag("uuid-of-a", Some((3, 12))));
        assert_eq!(progress.behind(), Ok(4 + 6));
        progress.tags.insert(TagTid(7), tag(LOCAL_MIRROR_UUID, None));
        assert_eq!(progress.behind(), Ok(4));
        let ahead = Progress { primary: at(3, 4), copy: at(3, 10), ..Progress::default() };
        assert_eq!(ahead.behind(), Ok(0));
        let ahead = Progress { primary: at(3, 4), copy: at(4, 0), ..Progress::default() };
        assert_eq!(ahead.behind(), Ok(0));
    }
}
