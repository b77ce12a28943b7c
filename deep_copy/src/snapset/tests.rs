//! The arithmetic of clones against simulated objects: what truly differs between two snapshots must be told, and sizes
//! and existence exactly.

use bytes::Bytes;
use proptest::prelude::*;
use rados::{Clone as CloneInfo, Extent, SnapContext, WriteSub};

use super::*;
use crate::sim::SimObject;

const OBJECT_BYTES: u64 = 48;

#[derive(Debug, Clone)]
enum Event {
    Write(u64, u8, u8),
    Zero(u64, u64),
    Truncate(u64),
    Remove,
    Snapshot,
    Drop(prop::sample::Index),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..OBJECT_BYTES - 8, 1u8..9, any::<u8>()).prop_map(|(o, l, b)| Event::Write(o, l, b)),
        2 => (0..OBJECT_BYTES, 1..20u64).prop_map(|(o, l)| Event::Zero(o, l.min(OBJECT_BYTES - o))),
        2 => (0..OBJECT_BYTES).prop_map(Event::Truncate),
        1 => Just(Event::Remove),
        4 => Just(Event::Snapshot),
        1 => any::<prop::sample::Index>().prop_map(Event::Drop),
    ]
}

/// A snapshot, and what the object held then.
type Held = (SnapId, Option<Vec<u8>>);

/// Plays events; answers with the object, and the existing snapshots with what the object held then.
fn play(events: &[Event]) -> (SimObject, Vec<Held>) {
    let mut object = SimObject::default();
    let mut snaps: Vec<Held> = Vec::new();
    let (mut newest, mut removed) = (0, Vec::new());
    for event in events {
        let context = SnapContext::new(snaps.iter().map(|(s, _)| *s).collect());
        let sub = match event {
            Event::Write(offset, length, byte) => {
                WriteSub::Write { offset: *offset, data: Bytes::from(vec![*byte; usize::from(*length)]) }
            }
            Event::Zero(offset, length) => WriteSub::Zero(Extent::new(*offset, *length)),
            Event::Truncate(size) => WriteSub::Truncate(*size),
            Event::Remove => WriteSub::Remove,
            Event::Snapshot => {
                newest += 1;
                snaps.push((SnapId(newest), object.bytes_at(SnapId::HEAD).map(<[u8]>::to_vec)));
                continue;
            }
            Event::Drop(index) if !snaps.is_empty() => {
                let (snap, _) = snaps.remove(index.index(snaps.len()));
                object.trim(snap);
                removed.push(snap);
                continue;
            }
            Event::Drop(_) => continue,
        };
        match object.apply(&context, &[sub], &removed) {
            Ok(()) | Err(libc::ENOENT) => {}
            Err(errno) => panic!("the simulated write failed with {errno}"),
        }
    }
    (object, snaps)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]
    #[test]
    fn tells_all_that_differs(
        events in prop::collection::vec(event(), 1..40),
        skip in any::<prop::sample::Index>(),
        first_copy in any::<bool>(),
        of_interest in any::<u64>(),
    ) {
        let (object, snaps) = play(&events);
        for (snap, bytes) in &snaps {
            prop_assert_eq!(object.bytes_at(*snap), bytes.as_deref(), "the simulation keeps its snapshots");
        }
        // Snapshots of other namespaces lie between those that are copied.
        let after = snaps[skip.index(snaps.len() + 1)..].iter().enumerate();
        let chain: Vec<_> = after.filter(|(i, _)| of_interest >> (i % 64) & 1 == 1).map(|(_, s)| s.clone()).collect();
        let mut chain = chain.as_slice();
        let start = if first_copy { None } else { chain.split_first().map(|(first, rest)| { chain = rest; first }) };
        let ends: Vec<SnapId> = chain.iter().map(|(s, _)| *s).collect();
        let set = object.list_snaps();
        let deltas = deltas(set.as_ref(), start.map(|(s, _)| *s), &ends, OBJECT_BYTES).unwrap();
        let mut before = start.and_then(|(_, bytes)| bytes.clone());
        for (delta, (snap, after)) in deltas.iter().zip(chain) {
            prop_assert_eq!(delta.size, after.as_ref().map(|b| b.len() as u64), "at {}", snap);
            match (&delta.change, &before, after) {
                (Change::None, a, b) => prop_assert_eq!(a, b),
                (Change::Created, None, Some(_)) | (Change::Removed, Some(_), None) => {}
                (Change::Modified(ranges), Some(a), Some(b)) => {
                    let told: Vec<u64> = ranges.extents().flat_map(|e| e.offset..e.end()).collect();
                    prop_assert!(told.iter().all(|i| *i < b.len() as u64));
                    for (i, byte) in b.iter().enumerate() {
                        let same = a.get(i).copied().unwrap_or(0) == *byte && i < a.len();
                        prop_assert!(same || told.contains(&(i as u64)), "byte {} changed at {}", i, snap);
                    }
                }
                (change, a, b) => prop_assert!(false, "{:?} from {:?} to {:?}", change, a, b),
            }
            before.clone_from(after);
        }
    }
}

#[test]
fn tells_no_more_than_was_written() {
    let mut object = SimObject::default();
    let context = |snaps: &[u64]| SnapContext::new(snaps.iter().map(|s| SnapId(*s)).collect());
    let write = |offset, length| WriteSub::Write { offset, data: Bytes::from(vec![7; length]) };
    object.apply(&context(&[]), &[write(0, 40)], &[]).unwrap();
    object.apply(&context(&[1]), &[write(4, 4)], &[]).unwrap();
    object.apply(&context(&[1, 2]), &[write(20, 8)], &[]).unwrap();
    object.apply(&context(&[1, 2, 3]), &[write(0, 40)], &[]).unwrap();
    let set = object.list_snaps();
    let found = deltas(set.as_ref(), Some(SnapId(1)), &[SnapId(2), SnapId(3)], OBJECT_BYTES).unwrap();
    let ranges = |offset, length| Change::Modified(RangeSet::from_extents(&[Extent::new(offset, length)]));
    assert_eq!(found[0], StepDelta { size: Some(40), change: ranges(4, 4) });
    assert_eq!(found[1], StepDelta { size: Some(40), change: ranges(20, 8) });
    let both = deltas(set.as_ref(), Some(SnapId(1)), &[SnapId(3)], OBJECT_BYTES).unwrap();
    let union = RangeSet::from_extents(&[Extent::new(4, 4), Extent::new(20, 8)]);
    assert_eq!(both[0].change, Change::Modified(union));
}

#[test]
fn refuses_or_cuts_what_cannot_be() {
    let clone = |id, size| CloneInfo { id: SnapId(id), snaps: vec![SnapId(id)], overlap: Vec::new(), size };
    let disordered = CloneSet { seq: 9, clones: vec![clone(5, 1), clone(4, 1)] };
    assert!(deltas(Some(&disordered), None, &[SnapId(4)], 16).is_err());
    let huge = CloneSet { seq: 9, clones: vec![clone(4, u64::MAX)] };
    let found = deltas(Some(&huge), None, &[SnapId(4)], 16).unwrap();
    assert_eq!(found, vec![StepDelta { size: Some(16), change: Change::Created }]);
    assert_eq!(deltas(None, None, &[SnapId(4)], 16).unwrap()[0].change, Change::None);
}
