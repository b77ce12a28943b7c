//! What the planner decides case by case, and how answers become writes. Whole histories are in `object_copy::tests`.

use proptest::prelude::*;

use super::*;

fn delta(size: Option<u64>, change: Change) -> StepDelta {
    StepDelta { size, change }
}

fn ranges(offset: u64, length: u64) -> RangeSet {
    RangeSet::from_extents(&[Extent::new(offset, length)])
}

#[test]
fn an_absent_object_arrives_whole_once() {
    let deltas = [
        delta(None, Change::None),
        delta(Some(40), Change::Created),
        delta(Some(40), Change::Modified(ranges(4, 4))),
        delta(None, Change::Removed),
        delta(Some(8), Change::Created),
    ];
    let expected = [
        Action::Nothing,
        Action::Replace { size: 40 },
        Action::Update { size: 40, ranges: ranges(4, 4) },
        Action::Remove,
        Action::Replace { size: 8 },
    ];
    assert_eq!(actions(&deltas, Local::Absent), expected);
    assert_eq!(actions(&deltas, Local::Untested), expected);
    // Copied up on the primary: it looks as if it had been there at the start, too.
    let copied_up = [delta(Some(40), Change::Modified(ranges(4, 4)))];
    assert_eq!(actions(&copied_up, Local::Absent), [Action::Replace { size: 40 }]);
    assert_eq!(actions(&copied_up, Local::Present(40)), [Action::Update { size: 40, ranges: ranges(4, 4) }]);
}

#[test]
fn a_resumed_copy_sets_size_and_existence_first() {
    let unchanged = [delta(Some(16), Change::None), delta(Some(16), Change::None)];
    assert_eq!(actions(&unchanged, Local::Present(16)), [Action::Nothing, Action::Nothing]);
    let cut = Action::Update { size: 16, ranges: RangeSet::default() };
    assert_eq!(actions(&unchanged, Local::Present(40)), [cut, Action::Nothing]);
    let absent = [delta(None, Change::None), delta(None, Change::None)];
    assert_eq!(actions(&absent, Local::Present(40)), [Action::Remove, Action::Nothing]);
    assert_eq!(actions(&absent, Local::Untested), [Action::Nothing, Action::Nothing]);
}

#[test]
fn many_ranges_are_read_as_few() {
    let many: Vec<Extent> = (0..1000).map(|i| Extent::new(i * 10_000, 4096)).collect();
    let action = Action::Update { size: 10_000_000, ranges: RangeSet::from_extents(&many) };
    let reads = action.reads();
    assert!(reads.len() <= READ_RANGES_MAX);
    assert!(RangeSet::from_extents(&many).without(&RangeSet::from_extents(&reads)).is_empty());
}

#[test]
fn zeros_are_not_written() {
    let run = ZERO_RUN_BYTES as usize;
    let mut data = vec![0u8; 4 * run];
    data[run + 5] = 1;
    data[3 * run] = 2;
    let data = Bytes::from(data);
    let mut found = Vec::new();
    push_nonzero(&mut found, 0, &data);
    let starts: Vec<_> = found.iter().map(|(offset, data)| (*offset, data.len())).collect();
    assert_eq!(starts, [(ZERO_RUN_BYTES, run), (3 * ZERO_RUN_BYTES, run)]);
    assert_eq!(found[0].1.as_ptr(), data.slice(run..).as_ptr(), "slices, not copies");
}

#[test]
fn refuses_answers_that_do_not_fit() {
    let frame = WriteFrame {
        object: "o",
        object_size: 64,
        context: &SnapContext::default(),
        newest_local: SnapId(9),
    };
    let action = Action::Update { size: 40, ranges: ranges(4, 4) };
    let asked = Extent::new(4, 4);
    let sparse = |extents: &[Extent], length| ReadAnswer::Sparse {
        extents: extents.to_vec(),
        data: vec![1; length].into(),
    };
    assert!(frame.write(&action, &[(asked, sparse(&[asked], 4))]).is_some());
    assert!(frame.write(&action, &[(asked, sparse(&[asked], 3))]).is_none());
    assert!(frame.write(&action, &[(asked, sparse(&[Extent::new(0, 4)], 4))]).is_none());
    let plain = |length| ReadAnswer::Data(vec![1; length].into());
    assert!(frame.write(&action, &[(asked, plain(4))]).is_some());
    assert!(frame.write(&action, &[(asked, plain(5))]).is_none());
    assert!(frame.write(&action, &[(asked, plain(3))]).is_none(), "the range lies within the object");
    assert!(frame.write(&action, &[(asked, ReadAnswer::Done)]).is_none());
}

/// What a sparse read leaves out becomes zeros, as do runs of zeros; and the data stands in front of the guard.
#[test]
fn small_ranges_are_read_plainly_and_data_comes_first() {
    let small = Extent::new(8192, PLAIN_READ_BYTES_MAX);
    let large = Extent::new(1 << 20, PLAIN_READ_BYTES_MAX + 1);
    assert_eq!(read_of(small), ReadSub::Read(small));
    assert_eq!(read_of(large), ReadSub::SparseRead(large));

    let (context, size) = (SnapContext::default(), 64 << 10);
    let frame = WriteFrame { object: "o", object_size: 4 << 20, context: &context, newest_local: SnapId(9) };
    let ranges = RangeSet::from_extents(&[Extent::new(0, 4096), Extent::new(8192, 4096)]);
    let action = Action::Update { size, ranges };
    let zeros = ReadAnswer::Data(vec![0; 4096].into());
    let data = Bytes::from(vec![7; 100]);
    let sparse = ReadAnswer::Sparse { extents: vec![Extent::new(8192, 100)], data: data.clone() };
    let reads = [(Extent::new(0, 4096), zeros), (Extent::new(8192, 4096), sparse)];
    let op = frame.write(&action, &reads).expect("a write");
    let guard = op.subs.last().expect("a guard");
    assert!(matches!(guard, WriteSub::Exec { method, .. } if method == "assert_snapc_seq"), "{guard:?}");
    let changes = [
        WriteSub::Create { exclusive: false },
        WriteSub::Truncate(size),
        WriteSub::Zero(Extent::new(0, 4096)),
        WriteSub::Zero(Extent::new(8292, 3996)),
        WriteSub::Write { offset: 8192, data },
    ];
    assert_eq!(op.subs[..op.subs.len() - 1], changes);

    let removal = frame.write(&Action::Remove, &[]).expect("a write");
    assert!(matches!(removal.subs[..], [WriteSub::Exec { .. }, WriteSub::Remove]), "{removal:?}");
}

/// However an answer is cut, an operation has far fewer than the 65535 parts that it may have, and writes the same.
#[test]
fn operations_have_bounds() {
    let size = 1u64 << 20;
    let (context, whole) = (SnapContext::default(), Extent::new(0, size));
    let frame = WriteFrame { object: "o", object_size: size, context: &context, newest_local: SnapId(9) };
    let extents: Vec<Extent> = (0..100_000).map(|number| Extent::new(number * 10, 1)).collect();
    let mut expected = vec![0u8; size as usize];
    extents.iter().for_each(|extent| expected[extent.offset as usize] = 9);
    let answer = ReadAnswer::Sparse { data: vec![9; extents.len()].into(), extents: extents.clone() };
    for action in [Action::Replace { size }, Action::Update { size, ranges: RangeSet::below(size) }] {
        let op = frame.write(&action, &[(whole, answer.clone())]).expect("a write");
        assert!(op.subs.len() <= 3 * RUNS_MAX, "{} parts", op.subs.len());
        // Behind what was there before.
        let mut found = vec![255u8; size as usize];
        for sub in op.subs {
            match sub {
                WriteSub::Truncate(to) => found[to as usize..].fill(0),
                WriteSub::Zero(zero) => found[zero.offset as usize..zero.end() as usize].fill(0),
                WriteSub::Write { offset, data } => {
                    found[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
                }
                WriteSub::Create { .. } | WriteSub::AllocHint { .. } | WriteSub::Exec { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(found == expected, "{action:?} brings other bytes");
    }
    let disordered: Vec<Extent> = extents.into_iter().rev().collect();
    let answer = ReadAnswer::Sparse { data: vec![9; disordered.len()].into(), extents: disordered };
    assert!(frame.write(&Action::Replace { size }, &[(whole, answer)]).is_none());
}

proptest! {
    #[test]
    fn joined_runs_hold_the_same(
        cuts in prop::collection::btree_map(0u64..200, 1u8.., 2..60),
        runs_max in 1usize..20,
    ) {
        let pieces: Vec<(u64, Bytes)> =
            cuts.iter().map(|(offset, byte)| (offset * 3, Bytes::from(vec![*byte; 2]))).collect();
        let bytes = |pieces: &[(u64, Bytes)]| {
            let mut bytes = [0u8; 600];
            for (offset, data) in pieces {
                bytes[*offset as usize..*offset as usize + data.len()].copy_from_slice(data);
            }
            bytes
        };
        if pieces.len() > runs_max {
            let joined = joined(pieces.clone(), runs_max).expect("ascending pieces");
            prop_assert!(joined.len() <= runs_max);
            prop_assert_eq!(bytes(&joined), bytes(&pieces));
        }
    }
}
