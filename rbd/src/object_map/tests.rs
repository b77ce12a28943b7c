use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// The map of an image of 302 objects of 4 KiB, from a Ceph 16.2.15 cluster: at a snapshot.
fn at_snapshot() -> Vec<u8> {
    golden("54", "015540", "af39407e")
}

/// The same later, at its head.
fn at_head() -> Vec<u8> {
    golden("dc", "03ffc0", "4c97f90e")
}

/// Golden bytes: header, data of which only the first byte and three of the others are not zero, footer.
fn golden(first: &str, others: &str, crc: &str) -> Vec<u8> {
    let zeroes = |count| "00".repeat(count);
    let data = [first, &zeroes(53), others, &zeroes(19)].concat();
    bytes(&["0e0000000101080000002e01000000000000", &data, "0c000000fa8fea7e01000000", crc].concat())
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    hex.as_bytes().chunks(2).map(byte).collect()
}

fn existing(map: &ObjectMap) -> BTreeMap<u64, ObjectState> {
    map.iter().enumerate().filter(|(_, s)| s.may_exist()).map(|(o, s)| (o as u64, s)).collect()
}

const STATES: [ObjectState; 4] =
    [ObjectState::NonExistent, ObjectState::Exists, ObjectState::Pending, ObjectState::ExistsClean];

#[test]
fn golden_bytes() {
    let (at_snapshot, at_head) = (at_snapshot(), at_head());
    let snapshot = ObjectMap::from_bytes(&at_snapshot, "golden").unwrap();
    assert_eq!(snapshot.len(), 302);
    // 9000 bytes at 0, and 20000 bytes at 900000.
    let written: Vec<u64> = (0..3).chain(900_000 / 4096..=919_999 / 4096).collect();
    assert!(existing(&snapshot).into_iter().eq(written.iter().map(|object| (*object, ObjectState::Exists))));
    assert_eq!(snapshot.to_object(), at_snapshot);

    // Since then only object 1 was written.
    let head = ObjectMap::from_bytes(&at_head, "golden").unwrap();
    let mut expected = snapshot;
    expected.snap_add();
    expected.set(ObjectNumber(1), ObjectState::Exists);
    assert_eq!(head, expected);
    assert_eq!(head.to_object(), at_head);
}

#[test]
fn every_wrong_byte_and_every_truncation_is_noticed() {
    let golden = at_head();
    for at in 0..golden.len() {
        assert!(ObjectMap::from_bytes(&golden[..at], "cut").is_err(), "{at} bytes");
        let mut wrong = golden.clone();
        wrong[at] ^= 0x40;
        assert!(ObjectMap::from_bytes(&wrong, "wrong").is_err(), "byte {at}");
    }
}

#[test]
fn sizes_that_lie_are_refused() {
    for objects in [u64::MAX, u64::MAX - 3, OBJECT_COUNT_MAX + 1, OBJECT_COUNT_MAX, 1 << 20] {
        let mut header = Encoder::new();
        header.versioned(1, 1, |e| {
            e.u64(objects);
        });
        let mut e = Encoder::new();
        e.blob(&header.finish()).raw(&[0; 100]).u32(0);
        assert!(ObjectMap::from_bytes(&e.finish(), "lie").is_err(), "{objects} objects in 100 bytes");
    }
}

#[test]
fn names() {
    let id = ImageId("10ab".into());
    assert_eq!(object_map_object(&id, SnapId::HEAD), "rbd_object_map.10ab");
    assert_eq!(object_map_object(&id, SnapId(0x2f)), "rbd_object_map.10ab.000000000000002f");
}

fn arbitrary_map() -> impl Strategy<Value = ObjectMap> {
    prop::collection::vec(0u8..4, 0..300).prop_map(|states| {
        let mut map = ObjectMap::new(states.len() as u64);
        for (object, state) in states.into_iter().enumerate() {
            map.set(ObjectNumber(object as u64), ObjectState::from_bits(state));
        }
        map
    })
}

proptest! {
    #[test]
    fn a_map_is_a_vector_of_states(
        objects in 0u64..200,
        changes in prop::collection::vec((0u64..260, 0usize..4), 0..60),
        resized in 0u64..260,
    ) {
        let mut map = ObjectMap::new(objects);
        let mut naive = vec![ObjectState::NonExistent; objects as usize];
        for (object, state) in changes {
            map.set(ObjectNumber(object), STATES[state]);
            if let Some(slot) = naive.get_mut(object as usize) {
                *slot = STATES[state];
            }
        }
        map.resize(resized);
        naive.resize(resized as usize, ObjectState::NonExistent);
        prop_assert!(map.iter().eq(naive.iter().copied()));
        // What was cut off is not there when it grows again.
        map.resize(260);
        naive.resize(260, ObjectState::NonExistent);
        prop_assert!(map.iter().eq(naive.iter().copied()));
        prop_assert_eq!(map.count_existing(), naive.iter().filter(|s| s.may_exist()).count() as u64);
    }

    #[test]
    fn encodings_are_read_back(map in arbitrary_map()) {
        prop_assert_eq!(&ObjectMap::from_bytes(&map.to_object(), "test").unwrap(), &map);
        prop_assert_eq!(&ObjectMap::from_bytes(&map.to_bytes(), "test").unwrap(), &map);
    }

    #[test]
    fn updates_lead_to_the_target(from in arbitrary_map(), to in arbitrary_map()) {
        let mut from = from;
        from.resize(to.len());
        let updates = from.updates_to(&to);
        let mut end = 0;
        for update in &updates {
            prop_assert!(update.objects.start >= end && update.objects.start < update.objects.end);
            end = update.objects.end;
            from.update(update);
        }
        prop_assert_eq!(&from, &to);
        prop_assert!(from.updates_to(&to).is_empty());
    }

    #[test]
    fn coalesced_updates_touch_what_is_named_alone(
        map in arbitrary_map(),
        named in prop::collection::vec((0u64..300, 0usize..4), 0..80),
    ) {
        let mut expected = map.clone();
        for (object, state) in &named {
            expected.set(ObjectNumber(*object), STATES[*state]);
        }
        let mut updated = map;
        for update in coalesced(named.into_iter().map(|(object, state)| (ObjectNumber(object), STATES[state]))) {
            updated.update(&update);
        }
        prop_assert_eq!(updated, expected);
    }

    #[test]
    fn spoiled_bytes_do_no_harm(
        map in arbitrary_map(),
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = map.to_object().to_vec();
        for (at, byte) in spoils {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = ObjectMap::from_bytes(&bytes, "fuzz");
        let _ = ObjectMap::from_bytes(&bytes[..length.index(bytes.len())], "fuzz");
    }
}

#[test]
fn updates_are_bounded_and_spans_are_used() {
    let objects = 3 * UPDATE_OBJECTS_MAX + 5;
    let mut target = ObjectMap::new(objects);
    target.update(&MapUpdate { objects: 0..objects, state: ObjectState::Exists, current: None });
    let updates = ObjectMap::new(objects).updates_to(&target);
    assert_eq!(updates.len(), 4);
    assert!(updates.iter().all(|update| update.objects.end - update.objects.start <= UPDATE_OBJECTS_MAX));

    // What lies between and is right already may be set once more.
    let mut from = target.clone();
    from.set(ObjectNumber(1), ObjectState::NonExistent);
    from.set(ObjectNumber(9), ObjectState::NonExistent);
    let expected = MapUpdate { objects: 1..10, state: ObjectState::Exists, current: None };
    assert_eq!(from.updates_to(&target), [expected]);
}
