//! What happened to one object between snapshots, told from its clones alone.
//!
//! An OSD keeps of an object its head and one clone for every span of snapshots in which it did not change. `list_snaps`
//! tells for each clone the snapshots that it serves, its size, and which ranges it still shares with the next newer one
//! (`overlap`). From that follows, for an ordered list of snapshots, what each step from one to the next changed:
//!
//! * A snapshot newer than `seq` reads the head. Any other one reads the first clone whose id is not less than its own,
//!   and only if that clone lists it: otherwise the object did not exist (as `PrimaryLogPG::find_object_context`).
//! * A byte is unchanged between two clones when it lies in the overlap of every clone from the older one up to, but not
//!   including, the newer one. An OSD that drops a clone intersects the overlaps on both sides of it, and one that
//!   deletes the head clears the overlap of the newest clone: so changes are never lost, only sometimes overstated.
//!
//! That is `calc_snap_set_diff` (`src/librados/snap_set_diff.cc`) freed from its cases: sizes are compared, not folded
//! into the difference.
//!
//! Nothing here trusts the cluster: sizes are cut at the object size, ranges at the size, and a list of clones that is
//! out of order is refused.

use rados::{CloneSet, SnapId};
use thiserror::Error;

use crate::ranges::RangeSet;

/// The list of an object's clones cannot be right.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the clones of the object are not in ascending order (clone {after} follows clone {before})")]
pub struct DisorderedClones {
    before: SnapId,
    after: SnapId,
}

/// What one step, from a snapshot to the next one in the list, did to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepDelta {
    /// The object's size in bytes at the end of the step, `None` when it does not exist then.
    pub size: Option<u64>,
    /// What changed.
    pub change: Change,
}

/// How an object changed in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Not at all (also: it does not exist at either end).
    None,
    /// It did not exist at the start of the step: all of it is new.
    Created,
    /// It exists at both ends. The ranges, all within the size at the end, may differ; the size may, too.
    Modified(RangeSet),
    /// It existed at the start and does not at the end.
    Removed,
}

/// Index into the list of clones that serves `snap`; `None` when the object does not exist there.
fn serving(set: &CloneSet, snap: SnapId) -> Option<usize> {
    if snap.0 > set.seq {
        return set.clones.last().filter(|c| c.id.is_head()).map(|_| set.clones.len() - 1);
    }
    let index = set.clones.iter().position(|c| c.id >= snap)?;
    set.clones[index].snaps.contains(&snap).then_some(index)
}

/// Size of the object at `snap`, cut at `object_size`; `None` when it does not exist there.
pub fn size_at(set: &CloneSet, snap: SnapId, object_size: u64) -> Option<u64> {
    serving(set, snap).map(|index| set.clones[index].size.min(object_size))
}

/// What each step did: from `start` (`None`: from nothing) to `ends[0]`, from there to `ends[1]`, and so on.
///
/// `set` is `None` when `list_snaps` answered ENOENT. Snapshots are in ascending order and exist.
pub fn deltas(
    set: Option<&CloneSet>,
    start: Option<SnapId>,
    ends: &[SnapId],
    object_size: u64,
) -> Result<Vec<StepDelta>, DisorderedClones> {
    let nothing = CloneSet::default();
    let set = set.unwrap_or(&nothing);
    check_order(set)?;
    let mut from = start.and_then(|snap| serving(set, snap));
    let mut deltas = Vec::with_capacity(ends.len());
    for &end in ends {
        let to = serving(set, end);
        let change = match (from, to) {
            (None, None) => Change::None,
            (None, Some(_)) => Change::Created,
            (Some(_), None) => Change::Removed,
            (Some(from), Some(to)) if from >= to => Change::None,
            (Some(from), Some(to)) => Change::Modified(modified(set, from, to, object_size)),
        };
        deltas.push(StepDelta { size: to.map(|index| set.clones[index].size.min(object_size)), change });
        from = to;
    }
    Ok(deltas)
}

/// Bytes of clone `to` that are not shared all the way down to clone `from`.
fn modified(set: &CloneSet, from: usize, to: usize, object_size: u64) -> RangeSet {
    let whole = RangeSet::below(set.clones[to].size.min(object_size));
    let mut shared = whole.intersection(&RangeSet::below(set.clones[from].size));
    for clone in &set.clones[from..to] {
        shared = shared.intersection(&RangeSet::from_extents(&clone.overlap));
    }
    whole.without(&shared)
}

fn check_order(set: &CloneSet) -> Result<(), DisorderedClones> {
    match set.clones.windows(2).find(|pair| pair[0].id >= pair[1].id) {
        Some(pair) => Err(DisorderedClones { before: pair[0].id, after: pair[1].id }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
