//! The planner, case by case: each case is a pair of snapshot lists as two clusters would hold them.

use std::collections::{BTreeMap, BTreeSet};

use rados::SnapId;
use rbd::{
    ImageFlags, MirrorSnapshot, MirrorSnapshotState, ProtectionStatus, Snapshot, SnapshotNamespace, Timestamp,
};
use snapshot::plan::{Chores, CopyMode, Marker, Plan, Resume, Stop, Sync, View, chores, plan};

const LOCAL: &str = "local-mirror-uuid";
const REMOTE: &str = "remote-mirror-uuid";
/// How the remote pool knows this site, and the local pool the remote one.
const US: &str = "peer-us";
const THEM: &str = "peer-them";

fn snapshot(id: u64, name: &str, namespace: SnapshotNamespace) -> Snapshot {
    Snapshot {
        id: SnapId(id),
        name: name.into(),
        namespace,
        image_size: 1 << 30,
        timestamp: Timestamp::default(),
        child_count: 0,
        protection: ProtectionStatus::Unprotected,
        parent: None,
        flags: ImageFlags(0),
    }
}

fn user(id: u64, name: &str) -> Snapshot {
    snapshot(id, name, SnapshotNamespace::User)
}

fn mirror(id: u64, state: MirrorSnapshotState, edit: impl FnOnce(&mut MirrorSnapshot)) -> Snapshot {
    let mut mirror = MirrorSnapshot {
        state,
        complete: true,
        mirror_peer_uuids: BTreeSet::new(),
        primary_mirror_uuid: String::new(),
        primary_snap_id: SnapId::HEAD,
        last_copied_object_number: 0,
        snap_seqs: BTreeMap::new(),
    };
    edit(&mut mirror);
    snapshot(id, &format!(".mirror.{id}"), SnapshotNamespace::Mirror(mirror))
}

/// A primary snapshot that waits for the peer `waits_for`.
fn primary(id: u64, waits_for: &str) -> Snapshot {
    mirror(id, MirrorSnapshotState::Primary, |m| m.mirror_peer_uuids = BTreeSet::from([waits_for.into()]))
}

fn demoted(id: u64, waits_for: &str) -> Snapshot {
    mirror(id, MirrorSnapshotState::PrimaryDemoted, |m| {
        m.mirror_peer_uuids = BTreeSet::from([waits_for.into()])
    })
}

/// A complete copy of the snapshot `of` of the image in the pool `uuid`.
fn copy(id: u64, uuid: &str, of: u64) -> Snapshot {
    mirror(id, MirrorSnapshotState::NonPrimary, |m| {
        m.primary_mirror_uuid = uuid.into();
        m.primary_snap_id = SnapId(of);
    })
}

fn edit(mut snapshot: Snapshot, change: impl FnOnce(&mut MirrorSnapshot)) -> Snapshot {
    let SnapshotNamespace::Mirror(mirror) = &mut snapshot.namespace else { panic!("not a mirror-snapshot") };
    change(mirror);
    snapshot
}

fn unfinished(snapshot: Snapshot, copied: u64) -> Snapshot {
    edit(snapshot, |m| {
        m.complete = false;
        m.last_copied_object_number = copied;
    })
}

fn orphan(id: u64) -> Snapshot {
    mirror(id, MirrorSnapshotState::NonPrimary, |_| {})
}

/// A view of two lists of snapshots. It leaks them, which a test may.
fn view(local: &[Snapshot], remote: &[Snapshot], marker: Option<Marker>) -> View<'static> {
    let leak = |snapshots: &[Snapshot]| -> &'static BTreeMap<SnapId, Snapshot> {
        Box::leak(Box::new(snapshots.iter().map(|s| (s.id, s.clone())).collect()))
    };
    View {
        local: leak(local),
        remote: leak(remote),
        local_mirror_uuid: LOCAL,
        remote_mirror_uuid: REMOTE,
        remote_peer_uuid: US,
        local_peer_uuid: THEM,
        marker,
        remote_marker: None,
        resync_requested: false,
    }
}

fn made_here(id: u64) -> Option<Marker> {
    Some(Marker { snap: SnapId(id), repair: false })
}

fn sync(plan: Plan) -> Sync {
    match plan {
        Plan::Sync(sync) => sync,
        other => panic!("a round was expected, not {other:?}"),
    }
}

#[test]
fn a_first_copy_takes_the_newest_complete_snapshot() {
    let remote = [primary(3, US), user(4, "u"), primary(5, US), unfinished(primary(7, US), 0)];
    let sync = sync(plan(&view(&[], &remote, None)));
    assert_eq!((sync.mode, sync.remote_end, sync.remote_start), (CopyMode::First, SnapId(5), None));
}

#[test]
fn nothing_is_copied_before_the_first_snapshot_is_complete() {
    assert_eq!(plan(&view(&[], &[unfinished(primary(3, US), 0)], None)), Plan::AwaitRemote);
    assert_eq!(plan(&view(&[], &[copy(3, "another site", 1)], None)), Plan::Stop(Stop::RemoteNotPrimary));
}

#[test]
fn a_delta_starts_at_what_the_copy_holds_and_keeps_the_map_of_user_snapshots() {
    let local = [
        user(10, "u"),
        edit(copy(11, REMOTE, 5), |m| {
            m.snap_seqs = BTreeMap::from([(SnapId(4), SnapId(10)), (SnapId(2), SnapId(9))]);
        }),
    ];
    let remote = [user(4, "renamed"), primary(5, US), user(6, "v"), primary(7, US)];
    let sync = sync(plan(&view(&local, &remote, made_here(11))));
    assert_eq!(sync.mode, CopyMode::Delta);
    assert_eq!((sync.remote_start, sync.local_start), (Some(SnapId(5)), Some(SnapId(11))));
    assert_eq!(sync.remote_end, SnapId(7));
    assert!(!sync.anchor);
    assert_eq!(sync.snap_seqs, BTreeMap::from([(SnapId(4), SnapId(10))]), "snapshot 2 is gone");
}

#[test]
fn a_copy_that_another_daemon_made_is_anchored_and_repaired() {
    let local = [copy(11, REMOTE, 5)];
    let remote = [primary(5, US), primary(7, US)];
    for marker in [None, made_here(9)] {
        let sync = sync(plan(&view(&local, &remote, marker)));
        assert_eq!((sync.anchor, sync.mode, sync.remote_start), (true, CopyMode::Repair, Some(SnapId(5))));
    }
    assert_eq!(plan(&view(&local, &remote[..1], None)), Plan::Idle, "nothing to copy, nothing to anchor");
    // A daemon stopped when the twin was there.
    let sync = sync(plan(&view(&local, &remote, Some(Marker { snap: SnapId(11), repair: true }))));
    assert_eq!((sync.anchor, sync.mode), (false, CopyMode::Repair));
}

#[test]
fn a_snapshot_without_changes_needs_no_copy() {
    let remote = [primary(5, US), edit(primary(7, US), |m| m.primary_snap_id = SnapId(5))];
    assert_eq!(sync(plan(&view(&[copy(11, REMOTE, 5)], &remote, made_here(11)))).mode, CopyMode::Clean);
}

#[test]
fn an_interrupted_round_goes_on_where_it_was() {
    let local = [copy(11, REMOTE, 5), unfinished(copy(12, REMOTE, 7), 40)];
    let remote = [primary(5, US), primary(7, US), primary(9, US)];
    let sync = sync(plan(&view(&local, &remote, made_here(12))));
    assert_eq!(sync.resume, Some(Resume { local_end: SnapId(12), first_object: 40 }));
    assert_eq!(
        (sync.mode, sync.remote_end),
        (CopyMode::Delta, SnapId(7)),
        "not the newest: this one is under way"
    );
    assert_eq!((sync.remote_start, sync.local_start), (Some(SnapId(5)), Some(SnapId(11))));
    assert!(sync.discard.is_empty());
}

#[test]
fn a_round_that_another_daemon_began_goes_on_in_a_snapshot_of_our_own() {
    let local = [copy(11, REMOTE, 5), unfinished(copy(12, REMOTE, 7), 40)];
    let remote = [primary(5, US), primary(7, US)];
    let sync = sync(plan(&view(&local, &remote, made_here(11))));
    assert_eq!((sync.resume, sync.discard, sync.remote_end), (None, vec![SnapId(12)], SnapId(7)));
    assert_eq!(sync.mode, CopyMode::Repair);
    assert!(!sync.anchor, "the head already holds part of the next snapshot");
}

#[test]
fn an_unfinished_snapshot_whose_remote_one_is_gone_is_discarded_and_repaired() {
    let local = [copy(11, REMOTE, 5), unfinished(copy(12, REMOTE, 7), 40)];
    let sync = sync(plan(&view(&local, &[primary(5, US), primary(9, US)], made_here(12))));
    assert_eq!((sync.mode, sync.remote_end), (CopyMode::Repair, SnapId(9)));
    assert_eq!((sync.discard, sync.resume, sync.anchor), (vec![SnapId(12)], None, false));

    let first = [unfinished(copy(12, REMOTE, 7), 40)];
    let sync = self::sync(plan(&view(&first, &[primary(9, US)], made_here(12))));
    assert_eq!((sync.mode, sync.discard), (CopyMode::Repair, vec![SnapId(12)]));
}

#[test]
fn a_delta_whose_base_was_removed_meanwhile_is_compared_from_its_beginning() {
    let local = [copy(11, REMOTE, 5), unfinished(copy(12, REMOTE, 9), 8)];
    let sync = sync(plan(&view(&local, &[primary(9, US)], made_here(12))));
    assert_eq!((sync.mode, sync.resume.map(|r| r.first_object)), (CopyMode::Repair, Some(0)));

    // What was compared before stays compared.
    let marker = Some(Marker { snap: SnapId(12), repair: true });
    let sync = self::sync(plan(&view(&local, &[primary(9, US)], marker)));
    assert_eq!((sync.mode, sync.resume.map(|r| r.first_object)), (CopyMode::Repair, Some(8)));
}

#[test]
fn an_unfinished_repair_stays_a_repair() {
    let local = [copy(11, REMOTE, 5), unfinished(copy(12, REMOTE, 9), 8)];
    let remote = [primary(5, US), primary(9, US)];
    let marker = Some(Marker { snap: SnapId(12), repair: true });
    let sync = sync(plan(&view(&local, &remote, marker)));
    assert_eq!((sync.mode, sync.resume.map(|r| r.first_object)), (CopyMode::Repair, Some(8)));
}

#[test]
fn a_base_that_was_deleted_remotely_is_repaired_not_called_split_brain() {
    let remote = [primary(9, US)];
    let repair = sync(plan(&view(&[copy(11, REMOTE, 5)], &remote, made_here(11))));
    assert_eq!((repair.mode, repair.remote_end, repair.anchor), (CopyMode::Repair, SnapId(9), false));
    // Its removal was begun, and perhaps cut off.
    let trash = SnapshotNamespace::Trash { original_name: "m".into(), original_namespace_type: 3 };
    let remote = [snapshot(5, "in the trash", trash), primary(9, US)];
    assert_eq!(sync(plan(&view(&[copy(11, REMOTE, 5)], &remote, made_here(11)))).mode, CopyMode::Repair);
    // The remote image has nothing that is newer than what the copy is said to hold.
    assert!(matches!(
        plan(&view(&[copy(11, REMOTE, 5)], &[primary(4, "other")], made_here(11))),
        Plan::Stop(Stop::SplitBrain(_))
    ));
}

/// The peer was added later, or removed and added again: snapshots made before name it not, or by its former uuid.
#[test]
fn a_snapshot_that_waits_for_nobody_is_linked_to_this_site() {
    let held = [copy(11, REMOTE, 5)];
    let nobody = |id| mirror(id, MirrorSnapshotState::Primary, |_| {});
    assert_eq!(plan(&view(&[], &[nobody(3)], None)), Plan::Link(SnapId(3)), "a first copy");
    assert_eq!(plan(&view(&held, &[nobody(5), nobody(7)], made_here(11))), Plan::Link(SnapId(7)));
    assert_eq!(plan(&view(&held, &[primary(7, "former")], made_here(11))), Plan::Link(SnapId(7)), "no base");
    assert_eq!(
        plan(&view(&held, &[nobody(5), demoted(7, "former")], made_here(11))),
        Plan::Link(SnapId(7)),
        "the last delta of a demotion"
    );
    // What was copied already needs no link, and one that is being made has none yet.
    assert_eq!(plan(&view(&held, &[nobody(5)], made_here(11))), Plan::Idle);
    assert_eq!(plan(&view(&held, &[nobody(5), unfinished(nobody(7), 0)], made_here(11))), Plan::Idle);
    assert_eq!(
        plan(&view(&held, &[demoted(5, "former")], made_here(11))),
        Plan::Stop(Stop::RemoteNotPrimary)
    );
    let resync = View { resync_requested: true, ..view(&held, &[nobody(5)], made_here(11)) };
    assert_eq!(plan(&resync), Plan::Link(SnapId(5)));
}

#[test]
fn the_role_of_the_local_image_decides() {
    let remote = [primary(5, US)];
    assert_eq!(plan(&view(&[primary(2, THEM)], &remote, None)), Plan::Stop(Stop::LocalPrimary));
    assert_eq!(plan(&view(&[copy(1, REMOTE, 3), orphan(2)], &remote, None)), Plan::Stop(Stop::Orphan));
    assert_eq!(
        plan(&view(&[copy(1, "a third site", 3)], &remote, None)),
        Plan::Stop(Stop::UnknownPeer("a third site".into()))
    );
}

#[test]
fn a_planned_failback_goes_on_from_the_demotion() {
    let local = [user(1, "kept"), demoted(2, THEM)];
    let copied_demotion = mirror(20, MirrorSnapshotState::NonPrimaryDemoted, |m| {
        m.primary_mirror_uuid = LOCAL.into();
        m.primary_snap_id = SnapId(2);
        m.mirror_peer_uuids = BTreeSet::from([US.into()]);
    });
    let remote = [user(15, "kept"), copied_demotion.clone(), primary(21, US)];
    let sync = sync(plan(&View { remote_marker: made_here(20), ..view(&local, &remote, None) }));
    assert_eq!(
        (sync.mode, sync.remote_start, sync.local_start),
        (CopyMode::Delta, Some(SnapId(20)), Some(SnapId(2)))
    );
    let by_others = self::sync(plan(&view(&local, &remote, None)));
    assert_eq!((by_others.mode, by_others.remote_start), (CopyMode::Repair, Some(SnapId(20))));
    assert_eq!(sync.snap_seqs, BTreeMap::from([(SnapId(15), SnapId(1))]), "matched by name");

    // Names do not count against what the copy of the demotion tells, nor for what was made later.
    let renamed = edit(copied_demotion.clone(), |m| {
        m.snap_seqs = BTreeMap::from([(SnapId(1), SnapId(15)), (SnapId(2), SnapId::HEAD)]);
    });
    let remote = [user(15, "renamed"), renamed, user(20 + 1, "kept"), primary(22, US)];
    let sync = self::sync(plan(&view(&local, &remote, None)));
    assert_eq!(
        sync.snap_seqs,
        BTreeMap::from([(SnapId(15), SnapId(1))]),
        "not the new snapshot of that name"
    );

    // The other site has yet to copy the demotion, or has copied it and was not promoted.
    assert_eq!(plan(&view(&local, &[copy(19, LOCAL, 1)], None)), Plan::Stop(Stop::RemoteNotPrimary));
    assert_eq!(
        plan(&view(&local, std::slice::from_ref(&copied_demotion), None)),
        Plan::Stop(Stop::RemoteNotPrimary)
    );
    assert_eq!(plan(&view(&local, &[unfinished(copied_demotion, 3)], None)), Plan::AwaitRemote);
}

#[test]
fn a_promotion_that_did_not_see_the_demotion_is_a_split_brain() {
    let local = [demoted(2, THEM)];
    let remote = [copy(19, LOCAL, 1), orphan(20), primary(21, US)];
    assert!(matches!(plan(&view(&local, &remote, None)), Plan::Stop(Stop::SplitBrain(_))));
    let resync = View { resync_requested: true, ..view(&local, &remote, None) };
    let sync = sync(plan(&resync));
    assert_eq!((sync.mode, sync.remote_end, sync.resync), (CopyMode::Repair, SnapId(21), true));
}

#[test]
fn a_resync_waits_for_a_primary_and_never_touches_a_primary() {
    let ask = |local: &[Snapshot], remote: &[Snapshot]| {
        plan(&View { resync_requested: true, ..view(local, remote, None) })
    };
    assert_eq!(ask(&[primary(2, THEM)], &[primary(5, US)]), Plan::Stop(Stop::LocalPrimary));
    assert_eq!(ask(&[demoted(2, THEM)], &[demoted(5, US)]), Plan::Stop(Stop::ResyncAwaitsPrimary));
    assert_eq!(ask(&[copy(2, REMOTE, 4)], &[copy(5, LOCAL, 1)]), Plan::Stop(Stop::ResyncAwaitsPrimary));
    assert_eq!(ask(&[copy(2, REMOTE, 4), orphan(3)], &[primary(5, US)]), Plan::Stop(Stop::Orphan));
}

/// A copy has nothing that the remote image lacks, so it need not wait for a promotion: the last delta arrives.
#[test]
fn a_resync_of_a_copy_takes_what_the_demotion_left() {
    let ask = |local: &[Snapshot], remote: &[Snapshot], marker| {
        let view = View { resync_requested: true, ..view(local, remote, marker) };
        sync(plan(&view))
    };
    let remote = [primary(5, US), demoted(7, US)];
    for local in [vec![copy(2, REMOTE, 5)], vec![copy(2, REMOTE, 5), unfinished(copy(3, REMOTE, 7), 9)]] {
        let sync = ask(&local, &remote, made_here(2));
        assert_eq!((sync.mode, sync.remote_end, sync.resync), (CopyMode::Repair, SnapId(7), true));
        assert!(sync.demoted, "it can be promoted without force");
    }
    // Demoted in the midst of it: it goes on, and the next round brings the rest.
    let under_way = [copy(2, REMOTE, 4), unfinished(copy(3, REMOTE, 5), 17)];
    let sync = ask(&under_way, &remote, Some(Marker { snap: SnapId(3), repair: true }));
    assert_eq!((sync.remote_end, sync.resume.map(|r| r.first_object)), (SnapId(5), Some(17)));

    // A former primary whose demotion the remote image copied before it was promoted, and demoted again.
    let copied_demotion = mirror(20, MirrorSnapshotState::NonPrimaryDemoted, |m| {
        m.primary_mirror_uuid = LOCAL.into();
        m.primary_snap_id = SnapId(2);
    });
    let remote = [copied_demotion, primary(21, US), demoted(22, US)];
    assert_eq!(ask(&[demoted(2, THEM)], &remote, None).remote_end, SnapId(22));
}

#[test]
fn an_interrupted_resync_goes_on() {
    let local = [demoted(2, THEM), unfinished(copy(3, REMOTE, 5), 17)];
    let remote = [primary(5, US), primary(6, US)];
    let marker = Some(Marker { snap: SnapId(3), repair: true });
    let sync = sync(plan(&View { resync_requested: true, ..view(&local, &remote, marker) }));
    assert_eq!((sync.mode, sync.remote_end), (CopyMode::Repair, SnapId(5)));
    assert_eq!(sync.resume, Some(Resume { local_end: SnapId(3), first_object: 17 }));
    assert!(sync.resync);

    // A round that was under way when the resync was asked for does not fulfil it.
    let delta = [copy(2, REMOTE, 4), unfinished(copy(3, REMOTE, 5), 17)];
    let sync = self::sync(plan(&View { resync_requested: true, ..view(&delta, &remote, made_here(3)) }));
    assert_eq!((sync.resume, sync.remote_end, sync.resync), (None, SnapId(6), true));
    assert_eq!(sync.discard, vec![SnapId(3)]);
}

#[test]
fn chores_free_only_what_no_round_needs() {
    let local = [
        primary(1, "another site"),
        demoted(2, THEM),
        primary(3, THEM),
        copy(10, REMOTE, 5),
        unfinished(copy(11, REMOTE, 6), 1),
        copy(12, REMOTE, 7),
    ];
    let remote = [primary(5, US), primary(6, "another site"), primary(7, US), primary(8, US)];
    let due = chores(&view(&local, &remote, made_here(12)));
    assert_eq!(
        due,
        Chores { prune: vec![SnapId(2), SnapId(3), SnapId(10), SnapId(11)], unlink: vec![SnapId(5)] }
    );

    // While a round is under way its base is needed on both sides.
    let under_way = [copy(10, REMOTE, 5), unfinished(copy(11, REMOTE, 7), 1)];
    assert_eq!(chores(&view(&under_way, &remote, made_here(11))), Chores::default());
    assert_eq!(chores(&view(&[primary(1, THEM)], &remote, None)), Chores::default());
}
