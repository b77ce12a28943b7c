//! Which mirror-snapshot to copy next, from which base, and in which way: decided from the snapshots of both images
//! alone, purely and synchronously.
//!
//! Vocabulary. The *link* is the newest local mirror-snapshot: it tells the role of the local image and, on a copy,
//! which remote snapshot it holds. A remote mirror-snapshot is *ours* while its `mirror_peer_uuids` names this site.
//!
//! Agrees with `src/tools/rbd_mirror/image_replayer/snapshot/Replayer.cc` (`scan_local_mirror_snapshots`,
//! `scan_remote_mirror_snapshots`), except where that loses data or time:
//! * The newest complete remote snapshot is copied, not the oldest one: fewer rounds, and the copy is current sooner.
//! * A base that was deleted remotely is no split-brain when the link proves that the local image was never written
//!   to but by mirroring: it is repaired by comparing checksums ([`CopyMode::Repair`]).
//! * A snapshot that no site was linked to when it was made (the peer was added later, or removed and added again) is linked
//!   to this one ([`Plan::Link`]), instead of waiting for one that nobody may make.
//! * A resync does not wait for the remote image to be promoted when the copy cannot have anything that the remote image
//!   lacks: what was written before its demotion arrives, and the copy can be promoted.
//! * A half-filled local snapshot whose remote one is gone is discarded, and what was written for it is repaired.
//! * What another daemon filled is not trusted. Ceph's own leaves the last delta out of the snapshot that it fills (only
//!   the head has it): a twin of it is made from the head ([`Sync::anchor`]). And it loses what was zeroed or discarded
//!   between two snapshots: the next round is a repair.

use std::collections::BTreeMap;

use rados::SnapId;
use rbd::encodings::namespace_type;
use rbd::{MirrorSnapshot, MirrorSnapshotState, Snapshot, SnapshotNamespace};

/// What the planner looks at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// Snapshots of the copy.
    pub local: &'a BTreeMap<SnapId, Snapshot>,
    /// Snapshots of the image that is followed.
    pub remote: &'a BTreeMap<SnapId, Snapshot>,
    /// Mirror uuid of the local pool.
    pub local_mirror_uuid: &'a str,
    /// Mirror uuid of the remote pool.
    pub remote_mirror_uuid: &'a str,
    /// The uuid by which the remote pool's peer table knows this site.
    pub remote_peer_uuid: &'a str,
    /// The uuid by which the local pool's peer table knows the remote site.
    pub local_peer_uuid: &'a str,
    /// The newest local mirror-snapshot that this program made; `None` when it made none.
    pub marker: Option<Marker>,
    /// The newest remote mirror-snapshot that this program made, when the remote image was a copy of this one. Looked at
    /// only when the local image was demoted.
    pub remote_marker: Option<Marker>,
    /// The operator has asked for a resync.
    pub resync_requested: bool,
}

/// What this program notes beside a mirror-snapshot that it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marker {
    /// The snapshot.
    pub snap: SnapId,
    /// What the head held before it cannot be told from snapshots: it is being filled by [`CopyMode::Repair`], or it is
    /// the twin of one that another daemon filled. Cleared when it is complete and exact.
    pub repair: bool,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// Copy a snapshot.
    Sync(Sync),
    /// All that is there has been copied: wait for a change.
    Idle,
    /// The newest remote snapshot is still being made: wait for the change that completes it.
    AwaitRemote,
    /// The newest complete remote snapshot is to be copied, but waits for other sites only, or for none: link it to this
    /// site, and plan anew.
    Link(SnapId),
    /// Do not touch the image; wait for a change of its role.
    Stop(Stop),
}

/// Why an image is not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The local image is primary.
    LocalPrimary,
    /// The local image is being promoted by force.
    Orphan,
    /// The local image is a copy of an image in another pool or cluster.
    UnknownPeer(String),
    /// The histories of the two images went apart.
    SplitBrain(String),
    /// The remote image is not primary, and all it has was copied.
    RemoteNotPrimary,
    /// A resync was requested, and neither image is primary: which of them is to be kept is not decided.
    ResyncAwaitsPrimary,
}

/// One round: copy the remote snapshot `remote_end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sync {
    /// How the objects to copy are found.
    pub mode: CopyMode,
    /// The remote snapshot that the copy already holds; `None` for a first copy or a repair.
    pub remote_start: Option<SnapId>,
    /// The local snapshot that holds it.
    pub local_start: Option<SnapId>,
    /// The remote snapshot to copy.
    pub remote_end: SnapId,
    /// `remote_end` ended the remote image's time as primary.
    pub demoted: bool,
    /// A local snapshot that is already being filled for `remote_end`.
    pub resume: Option<Resume>,
    /// Local snapshots that were being filled and never will be: remove them as soon as the new one is there.
    pub discard: Vec<SnapId>,
    /// Make an exact twin of `local_start` from the head before anything is written.
    pub anchor: bool,
    /// Remote snapshot → local snapshot, of the user snapshots that both images have.
    pub snap_seqs: BTreeMap<SnapId, SnapId>,
    /// It fulfils the operator's request for a resync.
    pub resync: bool,
}

/// How the objects to copy are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMode {
    /// Nothing is there yet: every object that exists remotely.
    First,
    /// What changed between `remote_start` and `remote_end`.
    Delta,
    /// Nothing changed between them.
    Clean,
    /// Compare checksums of every object, and copy what differs.
    Repair,
}

/// A round that was interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// The local snapshot being filled.
    pub local_end: SnapId,
    /// All objects below this number have been copied.
    pub first_object: u64,
}

/// Chores that free what no round needs any longer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chores {
    /// Local mirror-snapshots to remove.
    pub prune: Vec<SnapId>,
    /// Remote mirror-snapshots from which to take our name.
    pub unlink: Vec<SnapId>,
}

/// Decides what to do next.
pub fn plan(view: &View<'_>) -> Plan {
    let link = mirrors(view.local).next_back();
    match link {
        Some((_, link)) if link.is_orphan() => Plan::Stop(Stop::Orphan),
        Some((snapshot, link)) if view.resync_requested && link.state != MirrorSnapshotState::Primary => {
            resync(view, snapshot, link)
        }
        Some((snapshot, link)) => follow(view, snapshot, link),
        None => first_copy(view),
    }
}

/// Chores that are due while no round is under way: call it after [`plan`], whatever it says of the copy, or when a round is
/// complete.
pub fn chores(view: &View<'_>) -> Chores {
    let Some((newest, link)) = mirrors(view.local).next_back() else { return Chores::default() };
    let linked =
        link.state.is_non_primary() && link.primary_mirror_uuid == view.remote_mirror_uuid && link.complete;
    if !linked {
        return Chores::default();
    }
    // Snapshots of this image's time as primary are of no use to the site that it follows now.
    let prune = mirrors(view.local)
        .filter(|(snapshot, mirror)| {
            let peers = &mirror.mirror_peer_uuids;
            let of_no_use = (mirror.state.is_non_primary() && !mirror.complete)
                || peers.is_empty()
                || (peers.len() == 1 && peers.contains(view.local_peer_uuid));
            snapshot.id != newest.id && of_no_use
        })
        .map(|(snapshot, _)| snapshot.id);
    let prune = interrupted_removals(view).chain(prune).collect();
    let unlink =
        ours(view).filter(|(snapshot, _)| snapshot.id < link.primary_snap_id).map(|(s, _)| s.id).collect();
    Chores { prune, unlink }
}

/// Mirror-snapshots whose removal was interrupted: they are in the trash, which users' clones alone may keep.
fn interrupted_removals(view: &View<'_>) -> impl Iterator<Item = SnapId> {
    let of_mirroring = |s: &&Snapshot| match s.namespace {
        SnapshotNamespace::Trash { original_namespace_type, .. } => {
            original_namespace_type == namespace_type::MIRROR
        }
        _ => false,
    };
    view.local.values().filter(of_mirroring).map(|s| s.id)
}

fn mirrors(
    snapshots: &BTreeMap<SnapId, Snapshot>,
) -> impl DoubleEndedIterator<Item = (&Snapshot, &MirrorSnapshot)> {
    snapshots.values().filter_map(|s| s.mirror().map(|m| (s, m)))
}

/// Remote mirror-snapshots that wait for this site.
fn ours<'a>(view: &View<'a>) -> impl DoubleEndedIterator<Item = (&'a Snapshot, &'a MirrorSnapshot)> {
    let peer = view.remote_peer_uuid;
    mirrors(view.remote).filter(move |(_, m)| m.mirror_peer_uuids.contains(peer))
}

/// One that is being removed is in the trash, and may stay there when that was cut off: it can be no base any more.
fn remote_has(view: &View<'_>, id: SnapId) -> bool {
    view.remote.get(&id).is_some_and(|snapshot| snapshot.mirror().is_some())
}

fn remote_is_primary(view: &View<'_>) -> bool {
    mirrors(view.remote).next_back().is_some_and(|(_, m)| m.state == MirrorSnapshotState::Primary)
}

/// The newest complete remote snapshot after `start` that waits for this site. `Err` when there is none: what to do
/// instead.
fn newest_candidate<'a>(
    view: &View<'a>,
    start: Option<SnapId>,
) -> Result<(&'a Snapshot, &'a MirrorSnapshot), Plan> {
    let candidates: Vec<_> =
        ours(view).filter(|(s, m)| start.is_none_or(|start| s.id > start) && m.state.is_primary()).collect();
    match candidates.iter().rev().find(|(_, m)| m.complete) {
        Some(&found) => Ok(found),
        None if !candidates.is_empty() => Err(Plan::AwaitRemote),
        None => Err(without_candidate(view, start)),
    }
}

/// What to do when no remote snapshot after `start` waits for this site.
fn without_candidate(view: &View<'_>, start: Option<SnapId>) -> Plan {
    let newest = mirrors(view.remote).rev().find(|(_, m)| m.complete);
    if let Some((snapshot, mirror)) = newest
        && mirror.state.is_primary()
        && start.is_none_or(|start| snapshot.id > start)
    {
        return Plan::Link(snapshot.id);
    }
    match mirrors(view.remote).next_back() {
        Some((_, m)) if m.state != MirrorSnapshotState::Primary => Plan::Stop(Stop::RemoteNotPrimary),
        _ => Plan::Idle,
    }
}

fn first_copy(view: &View<'_>) -> Plan {
    let (end, mirror) = match newest_candidate(view, None) {
        Ok(found) => found,
        Err(plan) => return plan,
    };
    Plan::Sync(Sync {
        mode: CopyMode::First,
        remote_start: None,
        local_start: None,
        remote_end: end.id,
        demoted: mirror.state.is_demoted(),
        resume: None,
        discard: Vec::new(),
        anchor: false,
        snap_seqs: BTreeMap::new(),
        resync: false,
    })
}

/// Makes the copy equal to the newest remote snapshot whatever it holds now.
fn resync(view: &View<'_>, newest: &Snapshot, link: &MirrorSnapshot) -> Plan {
    if !remote_is_primary(view) && !was_superseded_by_demoted(view, newest, link) {
        return Plan::Stop(Stop::ResyncAwaitsPrimary);
    }
    // An interrupted resync goes on where it was.
    if let Some((snapshot, link)) = mirrors(view.local).next_back()
        && !link.complete
        && view.marker == Some(Marker { snap: snapshot.id, repair: true })
        && link.primary_mirror_uuid == view.remote_mirror_uuid
        && let Some((end, mirror)) = ours(view).find(|(s, m)| s.id == link.primary_snap_id && m.complete)
    {
        return Plan::Sync(Sync {
            resume: Some(Resume { local_end: snapshot.id, first_object: link.last_copied_object_number }),
            snap_seqs: still_there(view, link),
            resync: true,
            ..repair(end, mirror, Vec::new())
        });
    }
    let discard = mirrors(view.local).filter(|(_, m)| !m.complete).map(|(s, _)| s.id).collect();
    match newest_candidate(view, None) {
        Ok((end, mirror)) => Plan::Sync(Sync { resync: true, ..repair(end, mirror, discard) }),
        Err(plan) => plan,
    }
}

/// True when the remote image was demoted and holds all that the local one does: that is a copy of it, or of what the remote
/// image went on from.
fn was_superseded_by_demoted(view: &View<'_>, newest: &Snapshot, link: &MirrorSnapshot) -> bool {
    let last = mirrors(view.remote).next_back();
    if !last.is_some_and(|(_, m)| m.state == MirrorSnapshotState::PrimaryDemoted) {
        return false;
    }
    let is_copy = link.state.is_non_primary() && link.primary_mirror_uuid == view.remote_mirror_uuid;
    is_copy || matches!(follow(view, newest, link), Plan::Sync(_) | Plan::Link(_))
}

fn repair(end: &Snapshot, mirror: &MirrorSnapshot, discard: Vec<SnapId>) -> Sync {
    Sync {
        mode: CopyMode::Repair,
        remote_start: None,
        local_start: None,
        remote_end: end.id,
        demoted: mirror.state.is_demoted(),
        resume: None,
        discard,
        anchor: false,
        snap_seqs: BTreeMap::new(),
        resync: false,
    }
}

/// Follows the remote image from what the link says.
fn follow(view: &View<'_>, newest: &Snapshot, link: &MirrorSnapshot) -> Plan {
    match link.state {
        MirrorSnapshotState::Primary => Plan::Stop(Stop::LocalPrimary),
        MirrorSnapshotState::PrimaryDemoted => after_demotion(view, newest),
        _ if link.primary_mirror_uuid != view.remote_mirror_uuid => {
            Plan::Stop(Stop::UnknownPeer(link.primary_mirror_uuid.clone()))
        }
        _ if link.complete => after_complete(view, newest, link, Vec::new()),
        _ => after_incomplete(view, newest, link),
    }
}

/// The local image was primary until its newest snapshot: go on from the remote snapshot that copied that one.
fn after_demotion(view: &View<'_>, newest: &Snapshot) -> Plan {
    let matching = mirrors(view.remote).find(|(_, m)| {
        m.state == MirrorSnapshotState::NonPrimaryDemoted
            && m.primary_mirror_uuid == view.local_mirror_uuid
            && m.primary_snap_id == newest.id
    });
    let Some((start, start_mirror)) = matching else {
        if !remote_is_primary(view)
            && mirrors(view.remote).next_back().is_none_or(|(_, m)| !m.state.is_primary())
        {
            // The remote image has yet to copy the demotion.
            return Plan::Stop(Stop::RemoteNotPrimary);
        }
        return Plan::Stop(Stop::SplitBrain(format!(
            "the remote image was promoted without the demotion snapshot {} of this one",
            newest.id
        )));
    };
    if !start_mirror.complete {
        return Plan::AwaitRemote;
    }
    let (end, mirror) = match newest_candidate(view, Some(start.id)) {
        Ok(found) => found,
        Err(plan) => return plan,
    };
    let snap_seqs = counterparts_after_demotion(view, start, start_mirror);
    // What another daemon copied over there may differ from what this image was demoted with.
    let copied_exactly = view.remote_marker == Some(Marker { snap: start.id, repair: false });
    Plan::Sync(Sync {
        mode: if copied_exactly { delta_mode(mirror, start.id) } else { CopyMode::Repair },
        remote_start: Some(start.id),
        local_start: Some(newest.id),
        remote_end: end.id,
        demoted: mirror.state.is_demoted(),
        resume: None,
        discard: Vec::new(),
        anchor: false,
        snap_seqs,
        resync: false,
    })
}

/// Remote snapshot → local one, of the user snapshots that the remote image had when it had copied this one's demotion. The
/// map kept with that copy leads back. Of what it does not tell, names are all there is, and they count for snapshots from
/// before the promotion only: one that was made later under an old name is another one.
fn counterparts_after_demotion(
    view: &View<'_>,
    start: &Snapshot,
    start_mirror: &MirrorSnapshot,
) -> BTreeMap<SnapId, SnapId> {
    let is_user = |s: &&Snapshot| s.namespace == SnapshotNamespace::User;
    let local_of = |remote: &Snapshot| {
        let mapped = start_mirror.snap_seqs.iter().find(|(_, copy)| **copy == remote.id);
        match mapped {
            Some((local, _)) => view.local.get(local).filter(is_user),
            None => view.local.values().filter(is_user).find(|local| local.name == remote.name),
        }
    };
    let older = view.remote.range(..start.id).map(|(_, snapshot)| snapshot).filter(is_user);
    older.filter_map(|remote| Some((remote.id, local_of(remote)?.id))).collect()
}

fn delta_mode(end: &MirrorSnapshot, start: SnapId) -> CopyMode {
    // In a primary snapshot the field tells since which snapshot nothing has changed.
    if end.primary_snap_id == start { CopyMode::Clean } else { CopyMode::Delta }
}

/// The copy holds the remote snapshot that the link names. With `discard`, its head has been written to since, and is
/// not to be trusted.
fn after_complete(view: &View<'_>, newest: &Snapshot, link: &MirrorSnapshot, discard: Vec<SnapId>) -> Plan {
    let start = link.primary_snap_id;
    let (end, mirror) = match newest_candidate(view, Some(start)) {
        Ok(found) => found,
        Err(Plan::Idle) if !remote_has(view, start) && remote_is_primary(view) => {
            return Plan::Stop(Stop::SplitBrain(format!(
                "the remote image has neither snapshot {start} that the copy holds nor a newer one for this site"
            )));
        }
        Err(plan) => return plan,
    };
    let exact = view.marker == Some(Marker { snap: newest.id, repair: false });
    let twin = view.marker.is_some_and(|marker| marker.snap == newest.id);
    // The copy was never anything but a copy of this remote image, so whatever it lacks can be told by comparing.
    let delta_will_do = exact && discard.is_empty() && remote_has(view, start);
    Plan::Sync(Sync {
        mode: if delta_will_do { delta_mode(mirror, start) } else { CopyMode::Repair },
        remote_start: Some(start),
        local_start: Some(newest.id),
        remote_end: end.id,
        demoted: mirror.state.is_demoted(),
        resume: None,
        anchor: !twin && discard.is_empty(),
        discard,
        snap_seqs: still_there(view, link),
        resync: false,
    })
}

/// A local snapshot was being filled when a daemon stopped.
fn after_incomplete(view: &View<'_>, newest: &Snapshot, link: &MirrorSnapshot) -> Plan {
    let base = mirrors(view.local).rev().find(|(s, m)| s.id < newest.id && m.complete);
    let end = ours(view).find(|(s, _)| s.id == link.primary_snap_id);
    let Some((end, end_mirror)) = end.filter(|(_, m)| m.complete) else {
        // What it was filled from is gone. What was written for it must not stay.
        return match base {
            Some((base, base_link)) if base_link.state.is_non_primary() => {
                after_complete(view, base, base_link, vec![newest.id])
            }
            Some((base, _)) => match after_demotion(view, base) {
                Plan::Sync(sync) => Plan::Sync(Sync {
                    mode: CopyMode::Repair,
                    discard: vec![newest.id],
                    anchor: false,
                    ..sync
                }),
                other => other,
            },
            None => match newest_candidate(view, None) {
                Ok((end, mirror)) => Plan::Sync(repair(end, mirror, vec![newest.id])),
                Err(plan) => plan,
            },
        };
    };
    let start = match base {
        None => None,
        Some((base, base_link)) if base_link.state.is_non_primary() => {
            Some((base_link.primary_snap_id, base))
        }
        Some((base, _)) => match after_demotion(view, base) {
            Plan::Sync(sync) => sync.remote_start.map(|start| (start, base)),
            other => return other,
        },
    };
    let mode = match start {
        _ if view.marker != Some(Marker { snap: newest.id, repair: false }) => CopyMode::Repair,
        None => CopyMode::First,
        Some((start, _)) if !remote_has(view, start) => CopyMode::Repair,
        Some((start, _)) => delta_mode(end_mirror, start),
    };
    // What another daemon was filling goes on in a snapshot of our own, which holds what was written so far.
    let made_here = view.marker.is_some_and(|marker| marker.snap == newest.id);
    // Once its base was being removed, a delta may have been told wrongly: what was copied by it is compared, too.
    let base_is_gone = start.is_some_and(|(start, _)| !remote_has(view, start));
    let doubtful = base_is_gone && view.marker.is_some_and(|marker| !marker.repair);
    let first_object = if doubtful { 0 } else { link.last_copied_object_number };
    let resume = Resume { local_end: newest.id, first_object };
    Plan::Sync(Sync {
        mode,
        remote_start: start.map(|(remote, _)| remote),
        local_start: start.map(|(_, local)| local.id),
        remote_end: end.id,
        demoted: end_mirror.state.is_demoted(),
        resume: made_here.then_some(resume),
        discard: if made_here { Vec::new() } else { vec![newest.id] },
        anchor: false,
        snap_seqs: still_there(view, link),
        resync: false,
    })
}

/// The link's map of user snapshots, as far as both images still have them.
fn still_there(view: &View<'_>, link: &MirrorSnapshot) -> BTreeMap<SnapId, SnapId> {
    let both = link.snap_seqs.iter().filter(|(remote, local)| {
        view.local.contains_key(local)
            && view.remote.get(remote).is_some_and(|s| s.namespace == SnapshotNamespace::User)
    });
    both.map(|(remote, local)| (*remote, *local)).collect()
}
