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
            Some(TailError::Missing { object, position, why }) => {
                prop_assert_eq!(Some(position), lost);
                let damaged = damaged.map(|number| format!("'data.{number}'"));
                let told = format!("'{object}', {why}");
                let named = damaged.as_ref().is_some_and(|damaged| told.contains(damaged));
                // What was appended to it since does not tell whether it or the one before it was cut short.
                prop_assert!(named || !why.contains("gone"), "{:?} was damaged: {}", damaged, told);
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
fn narrow(after: CommitPosition, known: Knowledge) -> Order {
    let layout = JournalLayout { order: 12, splay_width: 1, pool: None };
    Order::new(layout, "data.".to_string(), &after, ReadSizes { poll: 256, max: 2048 }, known)
}

/// One lane; entry 0 of tag 1 was committed by the reader.
fn behind_first_entry() -> Order {
    let position = EntryPosition { tag: TagTid(1), entry: EntryTid(0) };
    let committed = ObjectPosition { object: JournalObject(0), position };
    narrow(CommitPosition(vec![committed]), Knowledge::default())
}

/// The first object is gone before anything was read.
#[test]
fn lost_beginnings_are_missed() {
    let committed = Some(EntryPosition { tag: TagTid(1), entry: EntryTid(3) });
    let first = EntryPosition { tag: TagTid(1), entry: EntryTid(0) };
    let ends_with = |minimum_set| {
        let (minimum_set, active_set) = (ObjectSet(minimum_set), ObjectSet(minimum_set));
        let mut order = narrow(
            CommitPosition::default(),
            Knowledge { committed, minimum_set, active_set, ..Knowledge::default() },
        );
        let read = order.poll();
        order.absorb_read(read, None);
        order.take(1000).1
    };
    let missing = ends_with(0);
    assert!(matches!(missing, Some(TailError::Missing { position, .. }) if position == first), "{missing:?}");
    let behind = ends_with(5);
    assert!(
        matches!(behind, Some(TailError::TooFarBehind { position, .. }) if position == first),
        "{behind:?}"
    );
}

/// An object that holds entries of the given tags and numbers.
fn object(entries: &[(u64, u64)]) -> Option<Bytes> {
    let encoded = entries.iter().flat_map(|(tag, entry)| encoded(*tag, *entry));
    Some(encoded.collect::<Vec<u8>>().into())
}

/// Answers the read of the only lane.
fn answer(order: &mut Order, entries: &[(u64, u64)]) {
    let read = order.poll();
    order.absorb_read(read, object(entries));
}

/// A poll that brings an entry has all lanes read, once.
#[test]
fn what_is_written_behind_a_poll_waits_for_the_next_one() {
    let layout = JournalLayout { order: 16, splay_width: 2, pool: None };
    let position = EntryPosition { tag: TagTid(1), entry: EntryTid(0) };
    let committed = ObjectPosition { object: JournalObject(0), position };
    let start = CommitPosition(vec![committed]);
    let sizes = ReadSizes { poll: 256, max: 2048 };
    let mut order = Order::new(layout, "data.".to_string(), &start, sizes, Knowledge::default());
    let taken = |order: &mut Order| -> Vec<u64> {
        let (entries, fault) = order.take(1000);
        assert_eq!(fault, None);
        entries.iter().map(|entry| entry.position.entry.0).collect()
    };
    let lanes = |order: &mut Order, entries: &[(u64, u64)]| -> Vec<usize> {
        let reads = order.begin_reads();
        for read in &reads {
            order.absorb_read(*read, object(entries));
        }
        reads.iter().map(|read| read.lane).collect()
    };
    assert_eq!(lanes(&mut order, &[]), [1]);
    assert!(lanes(&mut order, &[]).is_empty());

    // 4 and 6 are written behind the poll, as is 5.
    let poll = order.poll();
    assert_eq!(poll.lane, 1);
    order.absorb_read(poll, object(&[(1, 1), (1, 3)]));
    assert_eq!(taken(&mut order), [1]);
    assert_eq!(lanes(&mut order, &[(1, 2), (1, 4), (1, 6)]), [0]);
    assert_eq!(taken(&mut order), [2, 3, 4]);
    assert!(lanes(&mut order, &[]).is_empty());
    let poll = order.poll();
    assert_eq!(poll.lane, 1);
    order.absorb_read(poll, object(&[(1, 5), (1, 7)]));
    assert_eq!(taken(&mut order), [5, 6, 7]);
    assert_eq!(lanes(&mut order, &[]), [0]);
    assert!(order.is_caught_up());
}

fn tell(order: &mut Order, tags: &[(u64, (u64, u64))]) {
    let at = |(tag, entry)| EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) };
    let tags = tags.iter().map(|(tag, end)| (TagTid(*tag), Some(at(*end)))).collect();
    let asked = order.begin_metadata();
    order.absorb_metadata(asked, Knowledge { tags, ..Knowledge::default() });
}

/// A whole tag is gone between two. The reader knows only once the metadata tell of the newest one.
#[test]
fn lost_tags_are_missed() {
    let mut order = behind_first_entry();
    tell(&mut order, &[(2, (1, 0))]);
    answer(&mut order, &[(1, 0)]);
    assert_eq!(order.take(1000), (vec![], None));
    assert!(!order.needs_metadata(), "tag 1 is over, and tag 2 has no entry yet");
    let read = order.poll();
    let newest =
        RawEntry { position: EntryPosition { tag: TagTid(3), entry: EntryTid(0) }, data: Bytes::new() };
    order.absorb_read(read, Some(newest.encode()));
    assert_eq!(order.take(1000), (vec![], None));
    assert!(order.needs_metadata(), "tag 3 is there: has tag 2 any entries?");
    tell(&mut order, &[(2, (1, 0)), (3, (2, 5))]);
    let (entries, fault) = order.take(1000);
    assert_eq!(entries, []);
    let Some(TailError::Missing { object, position, .. }) = fault else { panic!("{fault:?}") };
    assert_eq!((object.as_str(), position), ("data.0", EntryPosition { tag: TagTid(2), entry: EntryTid(0) }));
}

/// Objects 1 and 2 are gone, and the entries in 3 tell: the first of those that are gone is named.
#[test]
fn the_object_that_is_gone_is_named() {
    let mut order = behind_first_entry();
    let asked = order.begin_metadata();
    order.absorb_metadata(asked, Knowledge { active_set: ObjectSet(3), ..Knowledge::default() });
    for entries in [&[(1, 0), (1, 1)][..], &[], &[], &[(1, 9)]] {
        answer(&mut order, entries);
    }
    let (entries, fault) = order.take(1000);
    assert_eq!(entries.len(), 1);
    let Some(TailError::Missing { object, position, why }) = fault else { panic!("{fault:?}") };
    assert_eq!((object.as_str(), position.entry), ("data.1", EntryTid(2)));
    assert!(why.contains("gone"), "{why}");
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

/// An entry, as it is appended.
fn encoded(tag: u64, entry: u64) -> Vec<u8> {
    let position = EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) };
    RawEntry { position, data: Bytes::from_static(b"data") }.encode().to_vec()
}

/// A reader that begins behind a committed entry looks for it, and minds what is no good only from there on. An image
/// that was copied anew because of a broken entry thus needs no new journal.
#[test]
fn what_is_broken_before_the_committed_entry_harms_nobody() {
    let broken = |mut entry: Vec<u8>, at: usize| {
        entry[at] ^= 0x40;
        entry
    };
    let reads = |parts: &[Vec<u8>]| {
        let position = EntryPosition { tag: TagTid(1), entry: EntryTid(2) };
        let committed = ObjectPosition { object: JournalObject(0), position };
        let mut order = narrow(CommitPosition(vec![committed]), Knowledge::default());
        let read = order.poll();
        order.absorb_read(read, Some(parts.concat().into()));
        let (entries, fault) = order.take(1000);
        (entries.into_iter().map(|entry| entry.position.entry.0).collect::<Vec<_>>(), fault)
    };
    for at in 0..encoded(1, 0).len() {
        let parts = [broken(encoded(1, 0), at), encoded(1, 1), encoded(1, 2), encoded(1, 3)];
        assert_eq!(reads(&parts), (vec![3], None), "byte {at}");
    }
    assert_eq!(
        reads(&[encoded(1, 0)[..20].to_vec(), encoded(1, 1), encoded(1, 2), encoded(1, 3)]),
        (vec![3], None)
    );
    // The committed entry itself is gone with those before it.
    assert_eq!(reads(&[encoded(1, 1)[..30].to_vec(), encoded(1, 3)]), (vec![3], None));
    assert_eq!(reads(&[encoded(1, 1)[..30].to_vec()]), (vec![], None));
    let (read, fault) = reads(&[encoded(1, 2), broken(encoded(1, 3), 12)]);
    assert!(read.is_empty() && matches!(fault, Some(TailError::Corrupt { .. })), "{fault:?}");
    let (read, fault) = reads(&[broken(encoded(1, 2), 12), broken(encoded(1, 3), 12), encoded(1, 4)]);
    assert!(read.is_empty() && matches!(fault, Some(TailError::Missing { .. })), "{fault:?}");
}
