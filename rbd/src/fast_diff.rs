//! Fast-diff: what changed between two snapshots, read from the object maps of both and of every snapshot between.
//!
//! With fast-diff, the map of a snapshot tells for each object whether it was written between the snapshot before and
//! this one (`Exists`) or not (`ExistsClean`). Walking the maps from the start to the end, each object goes through
//! [`Diff`] states. Objects that an image lost by shrinking count as nonexistent in that version, so that one that was
//! trimmed and grown again is seen as changed.
//!
//! Everything here is pure. Whether the maps may be believed (flags, feature bits) is for the caller to know: use
//! [`FastDiffVersion::new`], which refuses what must not be believed.
//!
//! Reference: `src/librbd/object_map/DiffRequest.cc`, as deep-copy uses it.

use rados::{Error, Result};

use crate::layout::Layout;
use crate::object_map::{ObjectMap, ObjectState};
use crate::types::{Features, ImageFlags, ObjectNumber};

/// What became of an object from the start to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Diff {
    /// It did not exist then, does not now, and nothing happened in between.
    Hole,
    /// It existed then, does now, and was not written.
    Unchanged,
    /// It does not exist at the end, but did at the start or in between.
    Removed,
    /// It exists at the end and was written.
    Updated,
}

impl Diff {
    /// True when the object has to be looked at.
    pub fn is_changed(self) -> bool {
        matches!(self, Diff::Removed | Diff::Updated)
    }
}

/// One version of an image, with its object map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FastDiffVersion {
    map: ObjectMap,
}

impl FastDiffVersion {
    /// A version of `size` bytes. EINVAL when its map must not be believed: the feature is missing, a flag says so, or
    /// the map is too small.
    pub fn new(
        features: Features,
        flags: ImageFlags,
        layout: &Layout,
        size: u64,
        map: ObjectMap,
    ) -> Result<FastDiffVersion> {
        let refuse = |why: &str| Err(Error::new(libc::EINVAL, format!("cannot use fast-diff: {why}")));
        if !features.has(Features::FAST_DIFF) {
            return refuse("the image does not have the feature");
        }
        if flags.has(ImageFlags::FAST_DIFF_INVALID) || flags.has(ImageFlags::OBJECT_MAP_INVALID) {
            return refuse("the object map is flagged as invalid");
        }
        let objects = layout.object_count(size);
        if map.len() < objects {
            return refuse(&format!("the object map has {} of {objects} objects", map.len()));
        }
        let mut map = map;
        map.resize(objects);
        Ok(FastDiffVersion { map })
    }

    /// Its map, cut to its size.
    pub fn map(&self) -> &ObjectMap {
        &self.map
    }
}

/// What changed from `start` (`None`: from before the image held a byte) through every version between, to the last
/// of `versions`. The answer has an entry for each object of the largest version. `versions` holds every snapshot
/// newer than the start, oldest first, and the end as the last; when one that was removed meanwhile is missing, that
/// is right, because its changes were merged into the next one.
pub fn diff(start: Option<&FastDiffVersion>, versions: &[FastDiffVersion]) -> Vec<Diff> {
    let mut states: Vec<Diff> = match start {
        None => Vec::new(),
        Some(start) => start.map.iter().map(initial).collect(),
    };
    for version in versions {
        for (object, state) in states.iter_mut().enumerate() {
            *state = step(*state, version.map.get(ObjectNumber(object as u64)));
        }
        let known = states.len() as u64;
        let grown = (known..version.map.len()).map(|object| match version.map.get(ObjectNumber(object)) {
            ObjectState::NonExistent => Diff::Hole,
            _ => Diff::Updated,
        });
        states.extend(grown);
    }
    states
}

fn initial(state: ObjectState) -> Diff {
    match state {
        ObjectState::NonExistent => Diff::Hole,
        // It may or may not have been gone at the start.
        ObjectState::Pending => Diff::Updated,
        ObjectState::Exists | ObjectState::ExistsClean => Diff::Unchanged,
    }
}

fn step(before: Diff, state: ObjectState) -> Diff {
    match (before, state) {
        (Diff::Hole, ObjectState::NonExistent) => Diff::Hole,
        (Diff::Unchanged, ObjectState::ExistsClean) => Diff::Unchanged,
        (_, ObjectState::NonExistent) => Diff::Removed,
        (_, _) => Diff::Updated,
    }
}

#[cfg(test)]
mod tests;
