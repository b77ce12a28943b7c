//! Which snapshots of a primary and its copy hold the same point in time.
//!
//! Snapshot mode: a complete non-primary mirror-snapshot of one image names the primary snapshot of the other that it is
//! a copy of. Either image may have been the primary when they were made: after a failover the newest pair is the
//! demotion of the old primary. Of all pairs the newest is taken.
//!
//! **Where the copy is to be read.** What this project's daemon fills lands *in* the snapshot. Ceph's daemon writes the last
//! delta of a round behind it: then the next newer snapshot holds that point, or the head when there is none. Who filled
//! the newest mirror-snapshot is told by the marker beside it ([`snapshot::plan::Marker`]).
//!
//! Journal mode: snapshots of users, which are replayed in order with the writes: the newest that both have by its name.

use std::collections::BTreeMap;

use rados::SnapId;
use rbd::{ImageHeader, MirrorSnapshotState, Snapshot, SnapshotNamespace};
use serde::{Serialize, Serializer};
use snapshot::plan::Marker;

/// Two snapshots that hold the same point in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pair {
    /// Name of the primary's snapshot.
    pub name: String,
    /// The primary's snapshot.
    #[serde(serialize_with = "snap")]
    pub primary_snap: SnapId,
    /// The copy's snapshot.
    #[serde(serialize_with = "snap")]
    pub copy_snap: SnapId,
    /// Where the copy holds that point: its snapshot, the next newer one, or the head.
    #[serde(serialize_with = "snap")]
    pub read_copy_at: SnapId,
    /// When the primary's snapshot was made: seconds since the epoch.
    pub timestamp: u32,
}

fn snap<S: Serializer>(snap: &SnapId, serializer: S) -> Result<S::Ok, S::Error> {
    if snap.is_head() { serializer.serialize_str("head") } else { serializer.serialize_u64(snap.0) }
}

impl Pair {
    /// True when both headers still have the pair, and the copy still holds its point where it did.
    pub fn is_in(&self, primary: &ImageHeader, copy: &ImageHeader) -> bool {
        let there = has(&primary.snapshots, self.primary_snap) && has(&copy.snapshots, self.copy_snap);
        let next = copy.next_snapshot(self.copy_snap);
        there && (self.read_copy_at == self.copy_snap || self.read_copy_at == next)
    }
}

/// True when the snapshot is there, and not on its way out. In the trash it may be: then its objects go one by one, which
/// looks as if they had never been, perhaps on both sides.
fn has(snapshots: &BTreeMap<SnapId, Snapshot>, snap: SnapId) -> bool {
    let in_trash = |s: &Snapshot| matches!(s.namespace, SnapshotNamespace::Trash { .. });
    snapshots.get(&snap).is_some_and(|snapshot| !in_trash(snapshot))
}

/// What is known of one of the two images.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// Its header.
    pub header: &'a ImageHeader,
    /// Mirror uuid of its pool.
    pub mirror_uuid: &'a str,
    /// Who filled its newest mirror-snapshot.
    pub marker: Option<Marker>,
}

/// The newest pair; a sentence that says what is missing when there is none.
pub fn newest(primary: Side<'_>, copy: Side<'_>) -> Result<Pair, String> {
    let followed = links(copy, primary).map(|(ours, theirs)| Pair {
        name: theirs.name.clone(),
        primary_snap: theirs.id,
        copy_snap: ours.id,
        read_copy_at: holds(copy, ours.id),
        timestamp: theirs.timestamp.seconds,
    });
    // The roles were the other way round once. What the present primary holds as a copy must then be read there, and a
    // pair has room for one deviation only: the copy's. Such a snapshot is believed when it is exact itself.
    let led = links(primary, copy).filter(|(theirs, _)| holds(primary, theirs.id) == theirs.id).map(
        |(theirs, ours)| Pair {
            name: theirs.name.clone(),
            primary_snap: theirs.id,
            copy_snap: ours.id,
            read_copy_at: ours.id,
            timestamp: ours.timestamp.seconds,
        },
    );
    let by_mirroring = followed.chain(led).max_by_key(|pair| pair.primary_snap);
    let by_user = || common_user_snapshot(primary.header, copy.header);
    by_mirroring.or_else(by_user).ok_or_else(|| {
        "the copy holds no complete mirror-snapshot that the primary still has, and no snapshot of a user that the primary \
         has, too"
            .to_string()
    })
}

/// Complete non-primary snapshots of `follower`, each with the snapshot of `leader` that it is a copy of.
fn links<'a>(follower: Side<'a>, leader: Side<'a>) -> impl Iterator<Item = (&'a Snapshot, &'a Snapshot)> {
    follower.header.snapshots.values().filter_map(move |snapshot| {
        let link = snapshot.mirror()?;
        let follows =
            link.state.is_non_primary() && link.complete && link.primary_mirror_uuid == leader.mirror_uuid;
        let led = leader.header.snapshots.get(&link.primary_snap_id).filter(|_| follows)?;
        let state = led.mirror()?.state;
        matches!(state, MirrorSnapshotState::Primary | MirrorSnapshotState::PrimaryDemoted)
            .then_some((snapshot, led))
    })
}

/// Where a follower holds the point of one of its snapshots.
fn holds(side: Side<'_>, snap: SnapId) -> SnapId {
    match side.marker {
        Some(marker) if snap <= marker.snap && !marker.repair => snap,
        _ => side.header.next_snapshot(snap),
    }
}

fn common_user_snapshot(primary: &ImageHeader, copy: &ImageHeader) -> Option<Pair> {
    let of_user = |snapshot: &&Snapshot| snapshot.namespace == SnapshotNamespace::User;
    let theirs = primary.snapshots.values().rev().filter(of_user);
    theirs
        .filter_map(|theirs| {
            let ours = copy.user_snapshot(&theirs.name)?;
            Some(Pair {
                name: theirs.name.clone(),
                primary_snap: theirs.id,
                copy_snap: ours.id,
                read_copy_at: ours.id,
                timestamp: theirs.timestamp.seconds,
            })
        })
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbd::{ImageFlags, ProtectionStatus, Timestamp};

    #[test]
    fn a_snapshot_that_is_being_removed_proves_nothing() {
        let snapshot = |namespace| Snapshot {
            id: SnapId(1),
            name: "snap".into(),
            namespace,
            image_size: 1,
            timestamp: Timestamp::default(),
            child_count: 0,
            protection: ProtectionStatus::Unprotected,
            parent: None,
            flags: ImageFlags(0),
        };
        let trash = SnapshotNamespace::Trash { original_name: "snap".into(), original_namespace_type: 0 };
        for (namespace, expected) in [(SnapshotNamespace::User, true), (trash, false)] {
            let snapshots = BTreeMap::from([(SnapId(1), snapshot(namespace))]);
            assert_eq!(has(&snapshots, SnapId(1)), expected);
        }
        assert!(!has(&BTreeMap::new(), SnapId(1)));
    }
}
