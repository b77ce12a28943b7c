use rados::lock::LockInfo;
use rbd::types::{ImageFlags, MirrorSnapshotState, ProtectionStatus, SnapshotNamespace, Timestamp};
use rbd::{ImageId, Layout, OpFeatures};

use super::*;

/// A snapshot of a header, in one word.
#[derive(Clone, Copy)]
enum S {
    Whole,
    Part,
    /// Of another size.
    Resized,
    Orphan,
    User,
    Primary,
    Demoted,
    /// The copy of a demotion, whole or not.
    DemotedCopy(bool),
}

fn header(snapshots: &[S], read_only: bool) -> ImageHeader {
    use MirrorSnapshotState::{NonPrimary, NonPrimaryDemoted, Primary, PrimaryDemoted};
    let mirror = |state, complete, orphan: bool| {
        SnapshotNamespace::Mirror(MirrorSnapshot {
            state,
            complete,
            mirror_peer_uuids: Default::default(),
            primary_mirror_uuid: if orphan { String::new() } else { "uuid".into() },
            primary_snap_id: if orphan { SnapId::HEAD } else { SnapId(9) },
            last_copied_object_number: 0,
            snap_seqs: BTreeMap::new(),
        })
    };
    let one = |(id, s): (u64, &S)| {
        let namespace = match s {
            S::Whole => mirror(NonPrimary, true, false),
            S::Part | S::Resized => mirror(NonPrimary, false, false),
            S::Orphan => mirror(NonPrimary, true, true),
            S::User => SnapshotNamespace::User,
            S::Primary => mirror(Primary, true, false),
            S::Demoted => mirror(PrimaryDemoted, true, false),
            S::DemotedCopy(complete) => mirror(NonPrimaryDemoted, *complete, false),
        };
        let snapshot = Snapshot {
            id: SnapId(id),
            name: format!("s{id}"),
            namespace,
            image_size: if matches!(s, S::Resized) { 2 } else { 1 },
            timestamp: Timestamp::default(),
            child_count: 0,
            protection: ProtectionStatus::Unprotected,
            parent: None,
            flags: ImageFlags::default(),
        };
        (snapshot.id, snapshot)
    };
    ImageHeader {
        id: ImageId("id".into()),
        version: 1,
        size: 1,
        order: 22,
        object_prefix: String::new(),
        features: if read_only { Features::NON_PRIMARY } else { Features(0) },
        op_features: OpFeatures::default(),
        flags: ImageFlags::default(),
        layout: Layout::simple(22).unwrap(),
        data_pool: None,
        parent: None,
        parent_spec: None,
        snap_context: Default::default(),
        snapshots: (1..).zip(snapshots).map(one).collect(),
        metadata: BTreeMap::new(),
        created: Timestamp::default(),
        modified: Timestamp::default(),
        accessed: Timestamp::default(),
        group: None,
        migration: None,
        snapshot_limit: None,
        lock: LockInfo { lockers: vec![], kind: None, tag: String::new() },
    }
}

fn forced(snapshots: &[S], marker: Option<Marker>) -> (bool, Option<RollBack>, Option<SnapId>) {
    match plan(&header(snapshots, true), marker, true).unwrap() {
        Plan::Promote { forced: Some(forced), base } => (forced.resumed, forced.roll_back, base),
        other => panic!("{other:?}"),
    }
}

fn errno(snapshots: &[S], force: bool) -> i32 {
    plan(&header(snapshots, true), None, force).unwrap_err().errno()
}

fn to(snap: u64, exact: bool) -> Option<RollBack> {
    Some(RollBack { to: SnapId(snap), exact })
}

fn filled(snap: u64, repair: bool) -> Option<Marker> {
    Some(Marker { snap: SnapId(snap), repair })
}

#[test]
fn whole_copies_are_kept() {
    assert_eq!(forced(&[S::Whole, S::Whole], None), (false, None, Some(SnapId(2))));
    assert_eq!(forced(&[S::Demoted, S::Orphan], None), (true, None, Some(SnapId(1))));
    assert_eq!(forced(&[S::Orphan], None), (true, None, None));
    assert_eq!(errno(&[S::Whole], false), libc::EBUSY);
}

#[test]
fn partial_copies_are_rolled_back_also_behind_an_orphan() {
    let part = [S::Whole, S::Whole, S::Part];
    let behind_an_orphan = [S::Whole, S::Whole, S::Part, S::Orphan];
    // Filled by our own daemon: the base holds its own data.
    assert_eq!(forced(&part, filled(3, false)), (false, to(2, true), Some(SnapId(2))));
    assert_eq!(forced(&behind_an_orphan, filled(3, false)), (true, to(2, true), Some(SnapId(2))));
    assert_eq!(forced(&part, filled(2, false)), (false, to(2, true), Some(SnapId(2))));
    assert_eq!(forced(&part, filled(3, true)), (false, to(2, false), Some(SnapId(2))));
    // Made by ourselves when we were primary.
    assert_eq!(forced(&[S::Demoted, S::Resized], None), (false, to(1, true), Some(SnapId(1))));
    // Filled by Ceph's: the next one holds the base's.
    assert_eq!(forced(&part, None), (false, to(3, true), Some(SnapId(2))));
    assert_eq!(forced(&behind_an_orphan, filled(1, false)), (true, to(3, true), Some(SnapId(2))));
}

#[test]
fn where_the_next_snapshot_does_not_hold_the_base_that_is_told() {
    assert_eq!(forced(&[S::Whole, S::User, S::Part], None), (false, to(1, false), Some(SnapId(1))));
    assert_eq!(forced(&[S::Whole, S::Resized], None), (false, to(1, false), Some(SnapId(1))));
    assert_eq!(forced(&[S::Whole, S::Part, S::Part], None), (false, to(2, true), Some(SnapId(1))));
    assert_eq!(forced(&[S::Whole, S::DemotedCopy(false)], filled(2, false)).1, to(1, true));
}

#[test]
fn without_a_whole_copy_there_is_nothing_to_continue_from() {
    assert_eq!(errno(&[S::Part], true), libc::EINVAL);
    assert_eq!(errno(&[S::User, S::Part, S::Orphan], true), libc::EINVAL);
}

#[test]
fn demoted_images_need_no_force() {
    let planned = |snapshots: &[S], force| plan(&header(snapshots, true), None, force).unwrap();
    for force in [false, true] {
        let expected = Plan::Promote { forced: None, base: Some(SnapId(2)) };
        assert_eq!(planned(&[S::Whole, S::DemotedCopy(true)], force), expected);
        assert_eq!(planned(&[S::Primary, S::Demoted], force), Plan::Promote { forced: None, base: None });
        assert_eq!(planned(&[S::User], force), Plan::Promote { forced: None, base: None });
    }
    assert_eq!(errno(&[S::Whole, S::DemotedCopy(false)], false), libc::EBUSY);
}

#[test]
fn a_primary_is_finished_while_it_is_read_only() {
    let primary = [S::Whole, S::Primary];
    assert_eq!(plan(&header(&primary, true), None, false), Ok(Plan::Finish(SnapId(2))));
    assert_eq!(plan(&header(&primary, false), None, true).unwrap_err().errno(), libc::EINVAL);
}
