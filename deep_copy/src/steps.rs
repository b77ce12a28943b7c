//! The steps of a round: from which remote snapshot to which, and under which local snapshot context.
//!
//! A round brings the local image from the state of the remote snapshot `start` to that of the last one in the list, by
//! way of all user snapshots between. The local counterparts of all of them exist before the first byte is written (so
//! that whoever promotes the image meanwhile finds something to roll back to), and RADOS shows the newest of them the
//! object's head until the head is cloned. So:
//!
//! * What belongs to the step *into* local snapshot `l` is written under a context of all local snapshots older than
//!   `l`: they are preserved, and `l` itself, for which nothing is cloned, has it in the head.
//! * The first write of the next step, whose context ends with `l`, makes the OSD clone the head: that is `l`.
//! * After the last step the newest local snapshot and the head are one and the same, and equal the remote snapshot.
//!
//! Ceph's own daemon writes the last step under a context that includes the newest local snapshot, which then holds the
//! state before it.
//!
//! **A user snapshot that is removed remotely while it is copied**, or between two attempts at a round, takes its data with
//! it: object by object, as the OSDs trim. In the list of an object's clones it then has none, which reads as if the object
//! had not existed at it. So its local counterpart may hold anything ([`not_whole`]). All later steps stay exact. In one
//! attempt, an object that the list calls absent at the removed snapshot is new at the next one at which it exists, and is
//! brought whole; a list from before the trimming tells the truth about all later snapshots, and a read at the removed one
//! either finds its clone, which nobody changes, or fails. In a later attempt the removed snapshot is no step any more: its
//! changes are part of the next one's, as the OSD intersects overlaps when it drops a clone.

use std::collections::{BTreeMap, BTreeSet};

use rados::{SnapContext, SnapId};
use rbd::{Snapshot, SnapshotNamespace};
use thiserror::Error;

/// One step of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyStep {
    /// The remote snapshot whose state is reached.
    pub remote: SnapId,
    /// The local snapshot that is filled with it.
    pub local: SnapId,
    /// All local snapshots older than `local`.
    pub context: SnapContext,
}

/// All steps of a round. Invariants: there is at least one; remote and local snapshots ascend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySteps {
    start: Option<SnapId>,
    steps: Vec<CopyStep>,
}

/// The snapshots of a round are not in order.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("cannot copy snapshots {pairs:?} (remote, local) after remote snapshot {start:?}: they must ascend")]
pub struct InvalidSteps {
    start: Option<SnapId>,
    pairs: Vec<(SnapId, SnapId)>,
}

impl CopySteps {
    /// Steps from the remote snapshot `start` (`None`: from nothing) through all `pairs` of a remote snapshot and the
    /// local one to be filled. `existing` are the local image's snapshots, of whatever namespace, those of `pairs`
    /// included or not.
    pub fn new(
        start: Option<SnapId>,
        pairs: &[(SnapId, SnapId)],
        existing: &[SnapId],
    ) -> Result<CopySteps, InvalidSteps> {
        let ascending = pairs.windows(2).all(|p| p[0].0 < p[1].0 && p[0].1 < p[1].1);
        let after_start = pairs.first().is_some_and(|(remote, _)| start.is_none_or(|start| start < *remote));
        if !ascending || !after_start {
            return Err(InvalidSteps { start, pairs: pairs.to_vec() });
        }
        let mut all: Vec<SnapId> =
            existing.iter().copied().chain(pairs.iter().map(|(_, local)| *local)).collect();
        all.sort_unstable();
        all.dedup();
        let older = |local: SnapId| all.iter().copied().filter(|s| *s < local).collect();
        let step = |&(remote, local): &(SnapId, SnapId)| CopyStep {
            remote,
            local,
            context: SnapContext::new(older(local)),
        };
        Ok(CopySteps { start, steps: pairs.iter().map(step).collect() })
    }

    /// The remote snapshot that the copy holds already.
    pub fn start(&self) -> Option<SnapId> {
        self.start
    }

    /// The steps, in order.
    pub fn steps(&self) -> &[CopyStep] {
        &self.steps
    }

    /// The newest local snapshot: no write may ever have been made under a context that holds it.
    pub fn newest_local(&self) -> SnapId {
        self.steps[self.steps.len() - 1].local
    }

    /// The remote snapshots that are reached, in order.
    pub fn remote_ends(&self) -> Vec<SnapId> {
        self.steps.iter().map(|s| s.remote).collect()
    }
}

/// Local user snapshots that must not be taken for copies of their remote ones. `filled` (remote → local) are those that a
/// round was to fill; `remote` are the primary's snapshots, read when all objects had been read.
///
/// Whoever removes a snapshot takes its record out of the users' namespace first (into the trash, or away), and gives back its
/// id afterwards. So one that is a user's now was whole whenever an object was read at it; what happens to it later is none of
/// this round's business. One that was made anew under its name has another id, newer than the round's end.
pub fn not_whole(filled: &BTreeMap<SnapId, SnapId>, remote: &BTreeMap<SnapId, Snapshot>) -> BTreeSet<SnapId> {
    let kept = |snap: &SnapId| remote.get(snap).is_some_and(|s| s.namespace == SnapshotNamespace::User);
    filled.iter().filter(|(remote, _)| !kept(remote)).map(|(_, local)| *local).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_leaves_out_the_snapshot_that_it_fills() {
        let id = SnapId;
        let steps = CopySteps::new(
            Some(id(5)),
            &[(id(6), id(20)), (id(9), id(22))],
            &[id(3), id(11), id(20), id(22)],
        )
        .unwrap();
        assert_eq!(steps.steps()[0].context, SnapContext { seq: 11, snaps: vec![id(11), id(3)] });
        assert_eq!(steps.steps()[1].context, SnapContext { seq: 20, snaps: vec![id(20), id(11), id(3)] });
        assert_eq!(steps.newest_local(), id(22));
        let first = CopySteps::new(None, &[(id(6), id(20))], &[id(20)]).unwrap();
        assert_eq!(first.steps()[0].context, SnapContext::default());
    }

    #[test]
    fn refuses_disorder() {
        let id = SnapId;
        assert!(CopySteps::new(None, &[], &[]).is_err());
        assert!(CopySteps::new(Some(id(6)), &[(id(6), id(20))], &[]).is_err());
        assert!(CopySteps::new(None, &[(id(6), id(20)), (id(7), id(19))], &[]).is_err());
    }
}
