//! When the object maps of an image may be believed: rollbacks make them lie.
//!
//! `rbd snap rollback` writes the snapshot's object map over the head's, as it is, and then rolls the objects back, in
//! ascending order and some at a time. So the next snapshot's map can call an object clean (or nonexistent) although it
//! was rolled back, or although it was written before and has yet to be rolled back. Neither flag nor header tells of it.
//!
//! **What a rollback leaves behind.** Let `v` be the first snapshot made after the map of snapshot `u` was written over the
//! head's. From then on, until `v` is made, an object only ever becomes `Exists`, `Pending` or `NonExistent`. So every
//! object that `v` calls clean was clean in the map of `u` at that time. One object that is clean in `v` and was not
//! in `u` refutes a rollback to `u` in the interval that ends with `v`, complete or not.
//!
//! The map of `u` as it is read may differ from what it was then in one way: when the snapshot before `u` is removed,
//! clean objects of `u` become `Exists`. So an object that `u` calls nonexistent or pending always refutes, and one that it
//! calls `Exists` does when no snapshot right before `u` was removed meanwhile ([`Candidate::is_unchanged`]).
//!
//! **The rule.** The maps from a start to an end are believed when for every interval between two of their snapshots, and
//! for every snapshot that could have been rolled back to in it, a rollback is refuted; and when no rollback can have been
//! under way when the start was made ([`History::settled`]). Otherwise every object is looked at, by its clones. Images
//! without user snapshots have nothing to be rolled back to and cost nothing.
//!
//! **What cannot be told**: a rollback that a crash interrupted, and that was never repeated, to a snapshot that was made
//! after the start (before an initial sync: whenever) and removed before the end was made. (A complete one to such a
//! snapshot cannot lie: all that was changed from the start to it stands in maps of snapshots newer than the start.)
//!
//! Reference: `src/librbd/operation/SnapshotRollbackRequest.cc`, `src/librbd/object_map/SnapshotRollbackRequest.cc`;
//! `object_map_snap_remove` of `src/cls/rbd/cls_rbd.cc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use rados::SnapId;
use rbd::encodings::namespace_type;
use rbd::object_map::{ObjectMap, ObjectState};
use rbd::{Snapshot, SnapshotNamespace};

/// How far object maps are believed (`rbd_mirror_object_map_trust`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Trust {
    /// Not at all: every object is looked at, by its clones.
    Never,
    /// Unless a rollback may have made them lie; and what clients could have written late, with the snapshot context from
    /// before a snapshot (librbd before 16.2.14, 17.2.7 and 18.2.0, kernels before 6.4), is looked at besides.
    #[default]
    Auto,
    /// Always, as Ceph's daemon does, unless a flag says that they are invalid.
    Always,
}

impl FromStr for Trust {
    type Err = InvalidTrust;

    fn from_str(text: &str) -> Result<Trust, InvalidTrust> {
        match text {
            "never" => Ok(Trust::Never),
            "auto" => Ok(Trust::Auto),
            "always" => Ok(Trust::Always),
            _ => Err(InvalidTrust),
        }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Trust::Never => "never",
            Trust::Auto => "auto",
            Trust::Always => "always",
        })
    }
}

/// A value of `rbd_mirror_object_map_trust` that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it must be 'never', 'auto' or 'always'")]
pub struct InvalidTrust;

/// The snapshots that an image had at some moment; with each whether an image could be rolled back to it.
pub type SeenSnapshots = BTreeMap<SnapId, bool>;

/// The snapshots of an image, as [`SeenSnapshots`].
pub fn seen<'a>(snapshots: impl IntoIterator<Item = &'a Snapshot>) -> SeenSnapshots {
    snapshots.into_iter().map(|s| (s.id, s.mirror().is_none())).collect()
}

/// What is known of an image from before the start of a delta was made, and from when start and end were.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// Its snapshots at some moment before the start was made; empty when unknown.
    pub before_start: SeenSnapshots,
    /// The user snapshots that it had when the start was made; `None` when unknown.
    pub users_at_start: Option<BTreeSet<SnapId>>,
    /// Those that it had when the end was made.
    pub users_at_end: BTreeSet<SnapId>,
    /// No rollback was under way when the start was made.
    pub settled: bool,
}

/// A snapshot that the image may have been rolled back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The snapshot.
    pub snap: SnapId,
    /// Size of the image then, in bytes.
    pub image_size: u64,
    /// Its map is what it was when the start was made, and ever since.
    pub is_unchanged: bool,
}

/// The snapshots that the image may have been rolled back to after the start was made and before the end was.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Candidates {
    /// Those that are still there.
    pub present: Vec<Candidate>,
    /// There may have been others, whose maps are gone.
    pub lost: bool,
}

impl Candidates {
    /// From the image's present `snapshots`, ascending.
    pub fn new(snapshots: &[Snapshot], start: Option<SnapId>, end: SnapId, history: &History) -> Candidates {
        let present = snapshots.iter().filter(|s| s.id < end && Some(s.id) != start);
        let present = present.filter(|s| may_be_source(s, start, history)).map(|s| Candidate {
            snap: s.id,
            image_size: s.image_size,
            is_unchanged: is_unchanged(s.id, snapshots, history),
        });
        Candidates { present: present.collect(), lost: lost(snapshots, start, history) }
    }

    /// There is and was nothing that the image could have been rolled back to.
    pub fn is_empty(&self) -> bool {
        self.present.is_empty() && !self.lost
    }
}

/// Nobody rolls back a primary to a mirror-snapshot, nor any image to what is in the trash already.
fn may_be_source(snapshot: &Snapshot, start: Option<SnapId>, history: &History) -> bool {
    match &snapshot.namespace {
        SnapshotNamespace::Mirror(_) => false,
        SnapshotNamespace::Trash { original_namespace_type, .. } => {
            let older = start.is_some_and(|start| snapshot.id < start);
            let trashed_before = match (older, &history.users_at_start) {
                (true, Some(users)) => !users.contains(&snapshot.id),
                _ => false,
            };
            match *original_namespace_type {
                namespace_type::MIRROR => false,
                namespace_type::USER => !trashed_before,
                _ => true,
            }
        }
        _ => true,
    }
}

/// A snapshot's map changes when the one right before it is removed, which begins with its move to the trash.
fn is_unchanged(snap: SnapId, present: &[Snapshot], history: &History) -> bool {
    let known = history.before_start.contains_key(&snap);
    let previous = history.before_start.range(..snap).next_back().map(|(previous, _)| *previous);
    let kept = |s: &Snapshot| !matches!(s.namespace, SnapshotNamespace::Trash { .. });
    known && previous.is_none_or(|previous| present.iter().any(|s| s.id == previous && kept(s)))
}

fn lost(present: &[Snapshot], start: Option<SnapId>, history: &History) -> bool {
    let seen = history.before_start.iter().filter(|(_, may_be_source)| **may_be_source).map(|(snap, _)| snap);
    let known = history.users_at_start.iter().flatten().chain(&history.users_at_end).chain(seen);
    let missing = |snap: &SnapId| !present.iter().any(|s| s.id == *snap);
    (start.is_some() && history.users_at_start.is_none()) || known.into_iter().any(missing)
}

/// True when a rollback to a candidate whose map is `of` cannot have taken place in the interval that ends with the
/// snapshot whose map is `after`. Both are cut to the sizes of their images.
pub fn refutes(after: &ObjectMap, of: &ObjectMap, candidate: &Candidate) -> bool {
    let clean_before = |state: Option<ObjectState>| match state {
        Some(ObjectState::ExistsClean) => true,
        Some(ObjectState::Exists) => !candidate.is_unchanged,
        Some(ObjectState::NonExistent | ObjectState::Pending) | None => false,
    };
    let mut states = of.iter();
    after.iter().any(|state| {
        let before = states.next();
        state == ObjectState::ExistsClean && !clean_before(before)
    })
}

/// In which intervals of a delta a rollback may have written its map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspicion {
    /// One per interval, in order.
    intervals: Vec<bool>,
}

impl Suspicion {
    /// None yet, in so many intervals.
    pub fn none(intervals: usize) -> Suspicion {
        Suspicion { intervals: vec![false; intervals] }
    }

    /// In each of so many intervals.
    pub fn all(intervals: usize) -> Suspicion {
        Suspicion { intervals: vec![true; intervals] }
    }

    /// Judges `candidate`, whose map is `of` (`None` when it cannot be read), against the versions that end the
    /// intervals: their snapshots and maps, cut to the sizes of their images.
    pub fn judge<'a>(
        &mut self,
        candidate: &Candidate,
        of: Option<&ObjectMap>,
        versions: impl IntoIterator<Item = (SnapId, &'a ObjectMap)>,
    ) {
        for (suspicious, (snap, map)) in self.intervals.iter_mut().zip(versions) {
            let possible = candidate.snap < snap && !of.is_some_and(|of| refutes(map, of, candidate));
            *suspicious |= possible;
        }
    }

    /// The maps may be believed. `settled` as in [`History::settled`].
    pub fn is_dispelled(&self, settled: bool) -> bool {
        settled && !self.intervals.contains(&true)
    }

    /// No rollback can have been under way when the end was made, whose map is `end`. Writes wait while one is: where
    /// something was written in the last interval, and no map was written over the head's in it, none was.
    pub fn is_settled_after(&self, settled: bool, end: &ObjectMap) -> bool {
        let written = |state| matches!(state, ObjectState::Exists | ObjectState::Pending);
        let last_is_clear = self.intervals.last().is_some_and(|suspicious| !suspicious);
        self.is_dispelled(settled) || (last_is_clear && end.iter().any(written))
    }
}

#[cfg(test)]
mod tests;
