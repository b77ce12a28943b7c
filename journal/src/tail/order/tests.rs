//! The order of entries against a journal in memory, whatever its writers and its reader go through.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::Rng;

use super::sim::Sim;
use super::*;
use crate::entry::RawEntry;
use crate::types::{CommitPosition, ObjectPosition};

/// A journal after so many steps, whose reader has then read all there is.
fn after_steps(seed: u64, steps: usize) -> Sim {
    let mut sim = Sim::new(seed);
    for _ in 0..steps {
        sim.step();
        assert_eq!(sim.fault, None);
    }
    sim.settle();
    sim.drain();
    sim
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    /// Every entry that counts is handed out, once and in order; nothing else is.
    #[test]
    fn entries_come_in_order_and_none_is_lost(seed in any::<u64>(), steps in 0_usize..3000) {
        let sim = after_steps(seed, steps);
        prop_assert_eq!(&sim.fault, &None);
        prop_assert_eq!(sim.positions(), sim.truth.clone());
        for entry in &sim.read {
            let byte = entry.position.entry.0 as u8 + 1;
            prop_assert!(entry.data.iter().all(|found| *found == byte));
        }
    }

    /// What a damage takes away is never passed over when it was committed: what comes before it is handed out, and
    /// then an error tells of it.
    #[test]
    fn damage_stops_the_reader(seed in any::<u64>(), steps in 100_usize..3000) {
        let mut sim = Sim::new(seed);
        for _ in 0..steps {
            sim.step();
        }
        let before = sim.positions().len();
        let damaged = damage(&mut sim);
        sim.settle();
        // Somebody else begins, or the writer commits: one of both tells that the lost entries were there.
        if sim.rng.random_bool(0.5) { sim.next_writer() } else { sim.commit() }
        let committed = sim.committed();
        sim.drain();
        let read = sim.positions();
        prop_assert_eq!(&read[..], &sim.truth[..read.len()], "what is handed out is right up to its end");
        let lost = sim.truth[read.len()..].first().copied();
        match sim.fault.clone() {
            None => {
                let known = lost.filter(|lost| sim.truth[before..].contains(lost) && Some(*lost) <= committed);
                prop_assert_eq!(known, None, "{:?}", damaged);
            }
            Some(TailError::Missing { object, position, .. }) => {
                prop_assert_eq!(Some(position), lost);
                prop_assert!(object.starts_with("data."));
            }
            Some(TailError::Corrupt { object, .. }) => {
                prop_assert_eq!(Some(object), damaged.map(|object| format!("data.{object}")))
            }
            Some(TailError::TooFarBehind { position, .. }) => prop_assert_eq!(Some(position), lost),
            Some(other) => prop_assert!(false, "{other}"),
        }
    }
}

/// One lane.
fn narrow(start: TailStart, known: Knowledge) -> Order {
    let layout = JournalLayout { order: 12, splay_width: 1, pool: None };
    Order::new(layout, "data.".to_string(), start, ReadSizes { poll: 256, max: 2048 }, 6000, known)
}

/// One lane; entry 0 of tag 1 was committed by the reader.
fn behind_first_entry() -> Order {
    let position = EntryPosition { tag: TagTid(1), entry: EntryTid(0) };
    let committed = ObjectPosition { object: JournalObject(0), position };
    narrow(TailStart::After(CommitPosition(vec![committed])), Knowledge::default())
}

/// The first object is gone before anything was read.
#[test]
fn lost_beginnings_are_missed() {
    let committed = Some(EntryPosition { tag: TagTid(1), entry: EntryTid(3) });
    let first = EntryPosition { tag: TagTid(1), entry: EntryTid(0) };
    let after_nothing = || TailStart::After(CommitPosition::default());
    let ends_with = |start, minimum_set| {
        let (minimum_set, active_set) = (ObjectSet(minimum_set), ObjectSet(minimum_set));
        let mut order =
            narrow(start, Knowledge { committed, minimum_set, active_set, ..Knowledge::default() });
        let read = order.poll();
        order.absorb_read(read, None);
        order.take(1000).1
    };
    let missing = ends_with(after_nothing(), 0);
    assert!(matches!(missing, Some(TailError::Missing { position, .. }) if position == first), "{missing:?}");
    let behind = ends_with(after_nothing(), 5);
    assert!(
        matches!(behind, Some(TailError::TooFarBehind { position, .. }) if position == first),
        "{behind:?}"
    );
    assert_eq!(ends_with(TailStart::Oldest, 5), None);
}

/// Answers the read of the only lane with entries of the given tags and numbers.
fn answer(order: &mut Order, entries: &[(u64, u64)]) {
    let read = order.poll();
    let encoded = entries.iter().flat_map(|(tag, entry)| {
        let position = EntryPosition { tag: TagTid(*tag), entry: EntryTid(*entry) };
        RawEntry { position, data: Bytes::from_static(b"data") }.encode()
    });
    order.absorb_read(read, Some(encoded.collect::<Vec<u8>>().into()));
}

fn tell(order: &mut Order, known: &Knowledge) {
    let asked = order.begin_metadata();
    order.absorb_metadata(asked, known.clone());
}

/// Metadata with tags, each with the last committed entry of its predecessor.
fn tags(tags: &[(u64, (u64, u64))]) -> Knowledge {
    let at = |(tag, entry)| EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) };
    let tags = tags.iter().map(|(tag, end)| (TagTid(*tag), Some(at(*end)))).collect();
    Knowledge { tags, ..Knowledge::default() }
}

/// What keeps the next entry from being handed out. An entry is called missing only after a second look at the metadata.
fn fault(order: &mut Order, known: Knowledge) -> Option<TailError> {
    assert_eq!(order.take(1000), (vec![], None));
    if order.needs_metadata() {
        tell(order, &known);
    }
    let (entries, fault) = order.take(1000);
    assert_eq!(entries, []);
    fault
}

/// A whole tag is gone between two. The reader knows only once the metadata tell of the newest one.
#[test]
fn lost_tags_are_missed() {
    let mut order = behind_first_entry();
    tell(&mut order, &tags(&[(2, (1, 0))]));
    answer(&mut order, &[(1, 0)]);
    assert_eq!(order.take(1000), (vec![], None));
    assert!(!order.needs_metadata(), "tag 1 is over, and tag 2 has no entry yet");
    let read = order.poll();
    let newest =
        RawEntry { position: EntryPosition { tag: TagTid(3), entry: EntryTid(0) }, data: Bytes::new() };
    order.absorb_read(read, Some(newest.encode()));
    assert_eq!(order.take(1000), (vec![], None));
    assert!(order.needs_metadata(), "tag 3 is there: has tag 2 any entries?");
    let newest = tags(&[(2, (1, 0)), (3, (2, 5))]);
    tell(&mut order, &newest);
    let fault = fault(&mut order, newest);
    let Some(TailError::Missing { object, position, .. }) = fault else { panic!("{fault:?}") };
    assert_eq!((object.as_str(), position), ("data.0", EntryPosition { tag: TagTid(2), entry: EntryTid(0) }));
}

/// Spoils, cuts or removes some object; answers with its number.
fn damage(sim: &mut Sim) -> Option<u64> {
    let numbers: Vec<u64> = sim.objects().keys().copied().collect();
    let number = *numbers.get(sim.rng.random_range(0..numbers.len().max(1)))?;
    let (kind, at) = (sim.rng.random_range(0..3), sim.rng.random::<u64>());
    let objects: &mut BTreeMap<u64, Vec<u8>> = sim.objects();
    let content = objects.get_mut(&number)?;
    let at = (at % content.len() as u64) as usize;
    match kind {
        0 => {
            objects.remove(&number);
        }
        1 => content.truncate(at),
        _ => content[at] ^= 0x40,
    }
    Some(number)
}
