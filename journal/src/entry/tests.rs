//! A data object of a Ceph 16.2.15 cluster; entries written, padded, cut and spoiled.

use proptest::prelude::*;

use super::*;

/// Two entries of a data object, written by librbd.
const OBJECT: &str = "93975853265941310100000000000000000100000000000000380000000501240000000100000000100000000000000c0\
     00000000000000c000000676f6c64656e206279746573010108000000be3c006b8cd08f0dfdf90af393975853265941310104000000000000000100\
     0000000000001800000005010400000002000000010108000000be3c006b1f0b7b0f85e8a5e5";
const OBJECT_BYTES: u64 = 65536;

fn object() -> Bytes {
    let digits: String = OBJECT.chars().filter(|c| !c.is_whitespace()).collect();
    hex::decode(digits).unwrap().into()
}

fn at(tag: u64, entry: u64) -> EntryPosition {
    EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) }
}

/// All entries of `bytes`, and what came instead of one more.
fn read(bytes: Bytes, offset: u64) -> (Vec<RawEntry>, Result<Found, CorruptEntry>, u64) {
    let mut reader = EntryReader::new(bytes, offset, OBJECT_BYTES);
    let mut entries = Vec::new();
    loop {
        match reader.find() {
            Ok(Found::Entry(entry)) => entries.push(entry),
            other => return (entries, other, reader.offset()),
        }
    }
}

#[test]
fn entries_of_a_real_object() {
    let (entries, end, offset) = read(object(), 0);
    assert_eq!(end, Ok(Found::End));
    assert_eq!(offset, object().len() as u64);
    assert_eq!(entries.iter().map(|entry| entry.position).collect::<Vec<_>>(), [at(1, 0), at(1, 4)]);
    let encoded: Vec<u8> = entries.iter().flat_map(|entry| entry.encode()).collect();
    assert_eq!(encoded, object());
}

#[test]
fn a_cut_entry_tells_how_much_is_needed() {
    let whole = object();
    for length in 0..whole.len() {
        let (entries, end, offset) = read(whole.slice(..length), 0);
        let first = 29 + 56 + 4;
        assert_eq!(entries.len(), usize::from(length >= first));
        match length {
            0 => assert_eq!(end, Ok(Found::End)),
            _ if length == first => assert_eq!(end, Ok(Found::End)),
            _ => {
                let Ok(Found::Partial(needed)) = end else { panic!("{length}: {end:?}") };
                assert!(offset + needed > length as u64 && offset + needed <= whole.len() as u64);
            }
        }
    }
}

#[test]
fn corruption_is_told_with_its_offset() {
    let whole = object().to_vec();
    for offset in 0..whole.len() {
        let mut spoiled = whole.clone();
        spoiled[offset] ^= 0x10;
        let (entries, end, at) = read(spoiled.into(), 4096);
        let in_second = offset >= 89;
        let start = 4096 + if in_second { 89 } else { 0 };
        assert_eq!((entries.len(), at), (usize::from(in_second), start), "byte {offset}");
        match end {
            Err(error) => assert_eq!(error.offset, start, "byte {offset}"),
            // A longer entry than there is: known to be corrupt once the end of the object is known.
            Ok(Found::Partial(_)) => assert!([25, 26, 89 + 25, 89 + 26].contains(&offset), "byte {offset}"),
            other => panic!("byte {offset}: {other:?}"),
        }
    }
    let (_, end, _) = read(Bytes::from_static(b"\0\0\0\0garbage"), 8);
    assert_eq!(end.unwrap_err().to_string(), "at offset 12: neither an entry nor padding begins here");
}

proptest! {
    /// Whatever is appended is read back, however it is padded and however it is cut into reads.
    #[test]
    fn reads_of_any_length_find_all(
        entries in prop::collection::vec((0_u64..9, 0_u64..99, prop::collection::vec(any::<u8>(), 0..300)), 0..20),
        padding in prop_oneof![Just(1_usize), Just(8), Just(512)],
        read_bytes in 1_usize..700,
    ) {
        let mut object = Vec::new();
        let mut written = Vec::new();
        for (tag, entry, data) in entries {
            let entry = RawEntry { position: at(tag, entry), data: data.into() };
            object.extend_from_slice(&entry.encode());
            object.resize(object.len().next_multiple_of(padding), 0);
            written.push(entry);
        }
        let (mut found, mut offset, mut needed) = (Vec::new(), 0, read_bytes);
        while offset < object.len() {
            let part = Bytes::copy_from_slice(&object[offset..(offset + needed).min(object.len())]);
            let (entries, end, at) = read(part, offset as u64);
            found.extend(entries);
            offset = at as usize;
            needed = match end.unwrap() {
                Found::Partial(bytes) => read_bytes.max(bytes as usize),
                _ => read_bytes,
            };
        }
        prop_assert_eq!(found, written);
    }

    #[test]
    fn spoiled_bytes_do_no_harm(
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        length in any::<prop::sample::Index>(),
        random in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bytes = object().to_vec();
        for (at, byte) in spoils {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(length.index(bytes.len() + 1));
        bytes.extend(random);
        let _ = read(bytes.into(), 0);
    }
}
