use proptest::prelude::*;

use super::*;

fn snapshot(state: MirrorSnapshotState, complete: bool, peers: &[&str]) -> MirrorSnapshot {
    MirrorSnapshot {
        state,
        complete,
        mirror_peer_uuids: peers.iter().map(|peer| peer.to_string()).collect(),
        primary_mirror_uuid: String::new(),
        primary_snap_id: SnapId::HEAD,
        last_copied_object_number: 0,
        snap_seqs: BTreeMap::new(),
    }
}

fn numbered(snapshots: Vec<MirrorSnapshot>) -> BTreeMap<SnapId, MirrorSnapshot> {
    (1..).map(SnapId).zip(snapshots).collect()
}

fn peers(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| name.to_string()).collect()
}

#[test]
fn what_waits_for_nobody_goes_but_the_newest() {
    use MirrorSnapshotState::{NonPrimary, Primary};
    let snapshots = numbered(vec![
        snapshot(NonPrimary, true, &[]),
        snapshot(NonPrimary, false, &[]),
        snapshot(Primary, true, &["p"]),
        snapshot(Primary, true, &[]),
    ]);
    let pruning = plan_pruning(&snapshots, &peers(&["p"]), 5);
    assert_eq!(pruning, Pruning { unlink: vec![], remove: vec![SnapId(1), SnapId(2)] });
    assert_eq!(plan_pruning(&snapshots, &peers(&[]), 5), Pruning::default());
}

#[test]
fn what_was_cut_off_goes() {
    let primary = MirrorSnapshotState::Primary;
    let snapshots =
        numbered(vec![snapshot(primary, false, &["p", "q"]), snapshot(primary, true, &["p", "q"])]);
    let pruning = plan_pruning(&snapshots, &peers(&["p", "q"]), 5);
    assert_eq!(pruning, Pruning { unlink: vec![], remove: vec![SnapId(1)] });
    // Another pool's peer keeps it.
    let pruning = plan_pruning(&snapshots, &peers(&["p"]), 5);
    assert_eq!(pruning, Pruning { unlink: vec![(SnapId(1), "p".into())], remove: vec![] });
}

#[test]
fn of_too_many_the_newest_old_one_is_passed_over() {
    let primary = |peers: &[&str]| snapshot(MirrorSnapshotState::Primary, true, peers);
    let four = numbered(vec![primary(&["p"]), primary(&["p"]), primary(&["p"]), primary(&["p"])]);
    let removed = |snapshots, max| plan_pruning(snapshots, &peers(&["p"]), max).remove;
    assert_eq!(removed(&four, 3), [SnapId(3)]);
    assert_eq!(removed(&four, 4), []);
    // Only those since the last promotion count.
    let mut demoted = four.clone();
    demoted.get_mut(&SnapId(2)).unwrap().state = MirrorSnapshotState::PrimaryDemoted;
    assert_eq!(removed(&demoted, 3), []);
}

fn any_snapshots() -> impl Strategy<Value = BTreeMap<SnapId, MirrorSnapshot>> {
    let state = prop::sample::select(vec![
        MirrorSnapshotState::Primary,
        MirrorSnapshotState::PrimaryDemoted,
        MirrorSnapshotState::NonPrimary,
        MirrorSnapshotState::NonPrimaryDemoted,
    ]);
    let linked = prop::collection::btree_set(prop::sample::select(vec!["p", "q", "r"]), 0..3);
    let one = (state, any::<bool>(), linked);
    prop::collection::vec(one, 0..12).prop_map(|all| {
        let one = |(state, complete, peers): (_, _, BTreeSet<&str>)| {
            snapshot(state, complete, &peers.into_iter().collect::<Vec<_>>())
        };
        numbered(all.into_iter().map(one).collect())
    })
}

proptest! {
    /// Pruning ends, never takes the newest, and leaves nothing for another pruning.
    #[test]
    fn pruning_is_thorough(snapshots in any_snapshots(), max in 3usize..6) {
        let peers = peers(&["p", "q"]);
        let pruning = plan_pruning(&snapshots, &peers, max);
        let mut left = snapshots.clone();
        for (id, peer) in &pruning.unlink {
            prop_assert!(left.get_mut(id).unwrap().mirror_peer_uuids.remove(peer));
        }
        for id in &pruning.remove {
            prop_assert!(left.remove(id).is_some());
        }
        prop_assert_eq!(left.keys().next_back(), snapshots.keys().next_back());
        prop_assert_eq!(plan_pruning(&left, &peers, max), Pruning::default());
        for peer in &peers {
            let kept = left.values().rev().take_while(|s| s.state == MirrorSnapshotState::Primary);
            prop_assert!(kept.filter(|s| s.mirror_peer_uuids.contains(peer)).count() <= max);
        }
    }
}
