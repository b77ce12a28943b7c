use proptest::prelude::*;

use super::*;

fn encode(fields: impl for<'a> FnOnce(&'a mut Encoder) -> &'a mut Encoder) -> Bytes {
    fields(&mut Encoder::new()).finish()
}

/// Answers as an OSD gives them for an image of 5 MiB without anything special.
fn answers() -> Vec<Bytes> {
    let versioned = |fields: fn(&mut Encoder)| encode(|e| e.versioned(1, 1, fields));
    vec![
        encode(|e| e.u8(22).u64(5 << 20)),
        encode(|e| e.string("rbd_data.10ab")),
        encode(|e| e.u64(61).u64(61)),
        encode(|e| e.u64(0)),
        encode(|e| e.u64(1)),
        encode(|e| e.i64(-1)),
        encode(|e| e.u64(9).u32(2).u64(8).u64(4)),
        versioned(|e| {
            e.i64(-1).string("").string("").u64(SnapId::HEAD.0);
        }),
        encode(|e| e.u8(0)),
        encode(|e| e.u32(1).u32(2)),
        encode(|e| e.u32(3).u32(4)),
        encode(|e| e.u32(5).u32(6)),
        versioned(|e| {
            e.i64(-1).string("");
        }),
        encode(|e| e.u64(u64::MAX)),
        encode(|e| e.u32(1).string("colour").string("blue")),
        versioned(|e| {
            e.u32(0).u8(0).string("");
        }),
    ]
}

fn decode(answers: Vec<Bytes>) -> Result<ImageHeader> {
    let answers = answers.into_iter().map(ReadAnswer::Data).collect();
    decode_fixed_part(&ImageId("10ab".into()), 77, &mut Answers::new(answers))
}

#[test]
fn a_plain_image() {
    assert_eq!(fixed_part("x").subs.len(), answers().len());
    let header = decode(answers()).unwrap();
    assert_eq!((header.version, header.size, header.order, header.object_count()), (77, 5 << 20, 22, 2));
    assert_eq!(header.flags, ImageFlags::OBJECT_MAP_INVALID);
    assert_eq!(header.snap_context, SnapContext { seq: 9, snaps: vec![SnapId(8), SnapId(4)] });
    assert_eq!(
        (header.parent, header.group, header.data_pool, header.snapshot_limit),
        (None, None, None, None)
    );
    assert_eq!(header.metadata["colour"], "blue");
}

#[test]
fn errors_name_the_field() {
    let fields = [
        "size",
        "object prefix",
        "features",
        "operation features",
        "flags",
        "data pool",
        "snapshot context",
        "parent",
        "parent overlap",
        "creation time",
        "modification time",
        "access time",
        "group",
        "snapshot limit",
        "metadata",
        "lock",
    ];
    for (number, field) in fields.into_iter().enumerate() {
        let mut cut = answers();
        let last = cut[number].len() - 1;
        cut[number].truncate(last);
        let error = decode(cut).unwrap_err();
        assert!(error.is(libc::EBADMSG) && error.to_string().contains(field), "{field}: {error}");
    }
}

#[test]
fn unknown_features_are_named() {
    let mut future = answers();
    future[2] = encode(|e| e.u64(61 | 1 << 40).u64(61 | 1 << 40));
    let error = decode(future).unwrap_err();
    assert!(error.is(libc::ENOSYS) && error.to_string().contains("bit 40"), "{error}");

    // A feature that older clients may ignore is no obstacle.
    let mut compatible = answers();
    compatible[2] = encode(|e| e.u64(61 | 1 << 40).u64(61));
    assert!(decode(compatible).is_ok());
}

#[test]
fn snapshot_contexts_must_descend() {
    for (seq, snaps) in [(9u64, vec![4u64, 8]), (9, vec![8, 8]), (7, vec![8, 4]), (9, vec![4, 0])] {
        let bytes = encode(|e| {
            e.u64(seq).seq(&snaps, |e, snap| {
                e.u64(*snap);
            })
        });
        assert!(decode_snap_context(&mut Decoder::new(&bytes, "context")).is_err(), "{seq} {snaps:?}");
    }
}

proptest! {
    #[test]
    fn spoiled_answers_do_no_harm(
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..6),
        missing in any::<prop::sample::Index>(),
    ) {
        let mut spoiled = answers();
        for (answer, at, byte) in spoils {
            let answer = answer.index(spoiled.len());
            let mut bytes = spoiled[answer].to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            spoiled[answer] = bytes.into();
        }
        let _ = decode(spoiled.clone());
        spoiled.truncate(missing.index(spoiled.len()));
        prop_assert!(decode(spoiled).is_err());
    }
}
