//! What is to be done to promote an image in snapshot mode: decided from its header alone.
//!
//! Decided otherwise than by librbd 16 and 18, where they lose data:
//! * A forced promotion that comes after another one that was cut off rolls back, too: librbd takes the first one's orphan
//!   for a complete copy, and keeps what had been copied in part.
//! * A last delta (of a demotion) that was copied in part is rolled back by force, and refused without: librbd keeps it.
//! * The newest snapshot that Ceph's daemon completed holds the data of the one before: it writes a delta into the head,
//!   after it made the snapshot for it. What the head held then is in the next snapshot, the one that is copied in part;
//!   so the image is rolled back to *that* one, where it is known to be so: when it follows the complete one at once, was
//!   not filled by our own daemon, and has its size.
//!
//! Reference: `src/librbd/mirror/snapshot/Utils.cc` (`can_create_primary_snapshot`, `get_rollback_snap_id`).

use std::collections::BTreeMap;
use std::ops::Bound;

use rados::{Error, Result, SnapId};
use rbd::ImageHeader;
use rbd::types::{Features, MirrorSnapshot, Snapshot};
use snapshot::plan::Marker;

use crate::info::snapshot_role;
use crate::primary::mirror_snapshots;
use crate::report::Role;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Only the end is missing: this primary snapshot may not be complete, and the image is read-only.
    Finish(SnapId),
    /// All of it.
    Promote {
        /// The daemons are to be told first.
        forced: Option<Forced>,
        /// The newest whole copy.
        base: Option<SnapId>,
    },
}

/// The part of a promotion that only a forced one has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forced {
    /// An orphan is on top already: an earlier promotion was cut off.
    pub(crate) resumed: bool,
    /// What has been copied since the base is to be undone.
    pub(crate) roll_back: Option<RollBack>,
}

/// A rollback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RollBack {
    /// To which snapshot.
    pub(crate) to: SnapId,
    /// Whether that brings back the base exactly.
    pub(crate) exact: bool,
}

/// Decides; `marker` tells what our own daemon filled. EINVAL when the image is primary already, or has nothing whole to
/// continue from; EBUSY when it is primary elsewhere and `force` is not set.
pub(crate) fn plan(header: &ImageHeader, marker: Option<Marker>, force: bool) -> Result<Plan> {
    let refuse = |errno, why: &str| Err(Error::new(errno, why));
    let mirrors = mirror_snapshots(header);
    match snapshot_role(header).0 {
        Role::Primary => match mirrors.keys().next_back() {
            Some(newest) if header.features.has(Features::NON_PRIMARY) => Ok(Plan::Finish(*newest)),
            _ => refuse(libc::EINVAL, ALREADY_PRIMARY),
        },
        Role::NonPrimary if force => plan_forced(header, &mirrors, marker),
        Role::NonPrimary => refuse(libc::EBUSY, PRIMARY_ELSEWHERE),
        Role::Orphan | Role::Unknown => {
            let base = mirrors.iter().next_back().filter(|(_, mirror)| mirror.state.is_non_primary());
            Ok(Plan::Promote { forced: None, base: base.map(|(id, _)| *id) })
        }
    }
}

/// Why an image is not promoted.
pub(crate) const ALREADY_PRIMARY: &str = "it is already primary";
/// Why an image is not promoted without force.
pub(crate) const PRIMARY_ELSEWHERE: &str =
    "it is primary in a remote cluster, or its demotion there has not arrived here yet";

fn is_whole(mirror: &MirrorSnapshot) -> bool {
    mirror.state.is_primary() || mirror.complete
}

fn plan_forced(
    header: &ImageHeader,
    mirrors: &BTreeMap<SnapId, MirrorSnapshot>,
    marker: Option<Marker>,
) -> Result<Plan> {
    let resumed = mirrors.values().next_back().is_some_and(MirrorSnapshot::is_orphan);
    let promote = |base, roll_back| Plan::Promote { forced: Some(Forced { resumed, roll_back }), base };
    let mut copies = mirrors.iter().rev().filter(|(_, mirror)| !mirror.is_orphan());
    let mut last_partial = None;
    for (id, mirror) in copies.by_ref() {
        if is_whole(mirror) {
            let roll_back = last_partial.map(|partial| roll_back(header, *id, partial, marker));
            return Ok(promote(Some(*id), roll_back));
        }
        last_partial = Some(*id);
    }
    match last_partial {
        None => Ok(promote(None, None)),
        Some(_) => Err(Error::new(libc::EINVAL, "no mirror-snapshot has ever been copied whole to it")),
    }
}

/// How to bring back `base`, behind which `partial` is the next copy.
fn roll_back(header: &ImageHeader, base: SnapId, partial: SnapId, marker: Option<Marker>) -> RollBack {
    let of_ours = |snapshot: &Snapshot| snapshot.mirror().is_some_and(|mirror| mirror.state.is_primary());
    if header.snapshots.get(&base).is_some_and(of_ours) {
        return RollBack { to: base, exact: true };
    }
    if let Some(marker) = marker.filter(|marker| marker.snap >= base) {
        // Our daemon fills snapshots themselves, and sees to the one before that it goes on from.
        return RollBack { to: base, exact: !marker.repair || marker.snap == base };
    }
    let between = (Bound::Excluded(base), Bound::Excluded(partial));
    let like = |snapshot: &Snapshot| (snapshot.image_size, snapshot.parent.clone());
    let alike = header.snapshots.get(&base).map(like) == header.snapshots.get(&partial).map(like);
    match alike && header.snapshots.range(between).next().is_none() {
        true => RollBack { to: partial, exact: true },
        false => RollBack { to: base, exact: false },
    }
}

#[cfg(test)]
mod tests;
