//! Which tag the copy's journal gets when the replay enters a new tag of the primary's.
//!
//! It is the primary's tag as seen from here: the names of the two pools change places, and tag and entry of the
//! predecessor stay those of the remote journal. From it librbd tells whether the copy may be promoted, and a mirror
//! whether one history goes on from the other ([`crate::bootstrap`]).
//!
//! Reference: `Replayer::allocate_local_tag` in `src/tools/rbd_mirror/image_replayer/journal/Replayer.cc`.

use crate::types::{LOCAL_MIRROR_UUID, ORPHAN_MIRROR_UUID, TagData, TagPredecessor};

/// What to do when the replay enters a tag of the remote journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalTag {
    /// Make this tag, unless the newest one is like it.
    Allocate(TagData),
    /// Make this tag and replay the one entry of it; then the copy is no longer tied to the remote image.
    Demote(TagData),
    /// A demotion that was replayed before, for this image has been primary and was demoted itself since: pass over it.
    Stale,
    /// The remote journal holds entries of a time when this image was the primary: that cannot be.
    Contradiction,
}

/// The tag for entries of the remote tag `remote`, when `newest` is the newest local one.
pub fn local_tag(
    remote: &TagData,
    newest: &TagData,
    local_mirror_uuid: &str,
    remote_mirror_uuid: &str,
) -> LocalTag {
    let from_here = |mirror_uuid: &str| match mirror_uuid {
        LOCAL_MIRROR_UUID => remote_mirror_uuid.to_string(),
        uuid if uuid == local_mirror_uuid => LOCAL_MIRROR_UUID.to_string(),
        other => other.to_string(),
    };
    let tag = TagData {
        mirror_uuid: from_here(&remote.mirror_uuid),
        predecessor: TagPredecessor {
            mirror_uuid: from_here(&remote.predecessor.mirror_uuid),
            commit: remote.predecessor.commit,
        },
    };
    match tag.mirror_uuid.as_str() {
        LOCAL_MIRROR_UUID => LocalTag::Contradiction,
        ORPHAN_MIRROR_UUID if demoted_here(newest) => LocalTag::Stale,
        ORPHAN_MIRROR_UUID => LocalTag::Demote(tag),
        _ => LocalTag::Allocate(tag),
    }
}

/// True when the newest epoch of the local journal is the demotion of the local image.
fn demoted_here(newest: &TagData) -> bool {
    newest.mirror_uuid == ORPHAN_MIRROR_UUID && newest.predecessor.mirror_uuid == LOCAL_MIRROR_UUID
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EntryPosition, EntryTid, TagTid};

    const A: &str = "uuid-of-a";
    const B: &str = "uuid-of-b";

    fn tag(owner: &str, before: &str, commit: Option<(u64, u64)>) -> TagData {
        let commit = commit.map(|(tag, entry)| EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) });
        TagData {
            mirror_uuid: owner.into(),
            predecessor: TagPredecessor { mirror_uuid: before.into(), commit },
        }
    }

    #[test]
    fn the_pools_change_places() {
        let (local, orphan) = (LOCAL_MIRROR_UUID, ORPHAN_MIRROR_UUID);
        let replaying = tag(B, B, Some((3, 1)));
        let demoted = tag(orphan, local, Some((5, 2)));
        let allocate = LocalTag::Allocate;
        let cases = [
            (tag(local, local, None), &replaying, allocate(tag(B, B, None))),
            (tag(local, local, Some((4, 9))), &replaying, allocate(tag(B, B, Some((4, 9))))),
            (tag(local, orphan, Some((4, 1))), &demoted, allocate(tag(B, orphan, Some((4, 1))))),
            (tag(local, A, Some((4, 1))), &replaying, allocate(tag(B, local, Some((4, 1))))),
            (tag("c", "c", Some((4, 1))), &replaying, allocate(tag("c", "c", Some((4, 1))))),
            (tag(orphan, local, Some((4, 9))), &replaying, LocalTag::Demote(tag(orphan, B, Some((4, 9))))),
            (tag(orphan, A, Some((5, 2))), &demoted, LocalTag::Stale),
            (tag(A, A, Some((4, 1))), &replaying, LocalTag::Contradiction),
        ];
        for (remote, newest, expected) in cases {
            assert_eq!(local_tag(&remote, newest, A, B), expected, "{remote:?}");
        }
    }
}
