//! Bytes taken from Ceph 16.2.15 clusters, decoded and encoded back; and the same bytes spoiled.
//!
//! The events are those of one image, made by the stock `rbd` and by calls of librbd. The mirror peers were written by
//! Ceph's own daemon: before and during a first copy, and after it.

use proptest::prelude::*;
use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};
use rados::{Extent, SnapId};
use rbd::{Features, SnapshotNamespace, Timestamp};

use crate::event::{Event, EventEntry, Op, OpTid};
use crate::types::{
    Client, ClientData, ClientState, CommitPosition, EntryPosition, EntryTid, JournalObject, MirrorPeerState,
    ObjectPosition, Tag, TagClass, TagData, TagPredecessor, TagTid,
};

const WRITE: &str = "0501240000000100000000100000000000000c000000000000000c000000676f6c64656e20627974657301010800000\
                     0be3c006b8cd08f0d";
const DISCARD: &str =
    "05011900000000000000000001000000000000000100000000000100000100010108000000be3c006b3caac90d";
const FLUSH: &str = "05010400000002000000010108000000be3c006b1f0b7b0f";
const OP_FINISH: &str =
    "050118000000030000000100000000000000010000000000000000000000010108000000be3c006b8ab4251a";
const SNAP_CREATE: &str =
    "05011c00000004000000010000000000000002000000733101010400000000000000010108000000be3c006be3663216";
const SNAP_REMOVE: &str =
    "05011c00000005000000010000000000000002000000733201010400000000000000010108000000bf3c006b44c2fd28";
const SNAP_RENAME: &str = "0501200000000600000001000000000000000200000073320400000000000000020000007331010108000000be\
                           3c006b7810802e";
const SNAP_PROTECT: &str =
    "05011c00000007000000010000000000000002000000733101010400000000000000010108000000be3c006b7975e420";
const SNAP_UNPROTECT: &str =
    "05011c00000008000000010000000000000002000000733101010400000000000000010108000000be3c006b3f99bb27";
const SNAP_ROLLBACK: &str =
    "05011c00000009000000010000000000000002000000733201010400000000000000010108000000bf3c006b66c2a712";
const RENAME: &str = "0501140000000a000000010000000000000004000000696d6732010108000000bf3c006b3a5c8323";
const RESIZE: &str = "0501140000000b00000001000000000000000000c00000000000010108000000bf3c006ba3a0580d";
const SNAP_LIMIT: &str = "0501140000000e00000001000000000000000700000000000000010108000000be3c006bd2136635";
const UPDATE_FEATURES: &str =
    "0501150000000f0000000100000000000000180000000000000001010108000000bf3c006b33da141d";
const METADATA_SET: &str =
    "05011c000000100000000100000000000000030000006b65790500000076616c7565010108000000bf3c006ba3968904";
const METADATA_REMOVE: &str =
    "050113000000110000000100000000000000030000006b6579010108000000bf3c006bc0ef9509";

const EVENTS: [&str; 16] = [
    WRITE,
    DISCARD,
    FLUSH,
    OP_FINISH,
    SNAP_CREATE,
    SNAP_REMOVE,
    SNAP_RENAME,
    SNAP_PROTECT,
    SNAP_UNPROTECT,
    SNAP_ROLLBACK,
    RENAME,
    RESIZE,
    SNAP_LIMIT,
    UPDATE_FEATURES,
    METADATA_SET,
    METADATA_REMOVE,
];

const IMAGE_CLIENT: &str = "01019e000000000000001300000002010d0000000000000000000000000000000001017c00000004000000010\
     11800000001000000000000000f00000000000000010000000000000001011800000000000000000000000f0000000000000000000000000\
     0000001011800000003000000000000000100000000000000030000000000000001011800000002000000000000000100000000000000020\
     000000000000000";
const SYNCING_CLIENT: &str = "01016d0100002400000036363137303965342d396535652d346133332d393963382d6335376566386634383566\
     64be0000000201b8000000010000000c00000031303233623937633131363000000000010000000000000001000000550000002e7262642d6d\
     6972726f722e36363137303965342d396535652d346133332d393963382d6335376566386634383566642e34353238333539392d616231382d\
     343537392d623333662d66666438393735316363633300000000010000000000000000010104000000000000000200000004000000000000000\
     4000000000000000500000000000000050000000000000001017c0000000400000001011800000001190000000000000200000000000000010\
     0000000000000010118000000001900000000000002000000000000000000000000000000010118000000fb1800000000000001000000000000\
     002b4c000000000000010118000000021900000000000001000000000000002a4c00000000000000";
const REPLAYING_CLIENT: &str = "0101fd0000002400000036363137303965342d396535652d346133332d393963382d6335376566386634383\
     566644e000000020148000000010000000c000000313032336239376331313630010000009600000000000000000000000200000004000000000\
     0000004000000000000000500000000000000050000000000000001017c00000004000000010118000000011900000000000002000000000000\
     000100000000000000010118000000001900000000000002000000000000000000000000000000010118000000fb180000000000000100000000\
     0000002b4c000000000000010118000000021900000000000001000000000000002a4c00000000000000";
const LOCAL_TAG: &str = "01012d00000002000000000000000000000000000000190000000000000000000000010100000000000000050000\
     0000000000";
const REMOTE_TAG: &str = "01017500000001000000000000000000000000000000610000002400000032303139343033622d363965362d346\
     536342d613332302d3461656461326630303534332400000032303139343033622d363965362d346536342d613332302d346165646132663\
     0303534330102000000000000000100000000000000";

fn bytes(golden: &str) -> Vec<u8> {
    let digits: String = golden.chars().filter(|c| !c.is_whitespace()).collect();
    hex::decode(digits).unwrap()
}

/// Decodes golden bytes, and checks that encoding gives them back.
fn golden<T: Encode + Decode>(golden: &str) -> T {
    let bytes = bytes(golden);
    let mut d = Decoder::new(&bytes, "golden");
    let value = T::decode(&mut d).unwrap();
    assert_eq!(d.left(), 0, "bytes were left over");
    assert_eq!(value.to_bytes(), bytes);
    value
}

/// Decodes a golden event, and checks that encoding gives it back.
fn event(golden: &str) -> Event {
    let bytes = bytes(golden).into();
    let entry = EventEntry::decode(&bytes).unwrap();
    assert_eq!(entry.encode(), bytes);
    assert_eq!(entry.timestamp.seconds >> 8, 0x6b003c, "the day they were made");
    entry.event
}

fn op(golden: &str) -> Op {
    match event(golden) {
        Event::Op { tid: OpTid(1), op } => op,
        other => panic!("{other:?}"),
    }
}

#[test]
fn writes_of_all_kinds() {
    let data = bytes::Bytes::from_static(b"golden bytes");
    assert_eq!(event(WRITE), Event::Write { extent: Extent::new(4096, 12), data });
    let extent = Extent::new(65536, 65536);
    assert_eq!(event(DISCARD), Event::Discard { extent, granularity: 65536 });
    assert_eq!(event(FLUSH), Event::Flush);
    assert_eq!(event(OP_FINISH), Event::OpFinish { tid: OpTid(1), result: 0 });
}

#[test]
fn operations_of_all_kinds() {
    let user = || (SnapshotNamespace::User, "s1".to_string());
    let (namespace, name) = user();
    assert_eq!(op(SNAP_CREATE), Op::SnapCreate { namespace, name });
    let (namespace, name) = user();
    assert_eq!(op(SNAP_PROTECT), Op::SnapProtect { namespace, name });
    let (namespace, name) = user();
    assert_eq!(op(SNAP_UNPROTECT), Op::SnapUnprotect { namespace, name });
    let renamed = Op::SnapRename { snap: SnapId(4), from: "s1".into(), to: "s2".into() };
    assert_eq!(op(SNAP_RENAME), renamed);
    assert!(matches!(op(SNAP_ROLLBACK), Op::SnapRollback { name, .. } if name == "s2"));
    assert!(matches!(op(SNAP_REMOVE), Op::SnapRemove { name, .. } if name == "s2"));
    assert_eq!(op(RENAME), Op::Rename { to: "img2".into() });
    assert_eq!(op(RESIZE), Op::Resize { size: 12 << 20 });
    assert_eq!(op(SNAP_LIMIT), Op::SnapLimit { limit: 7 });
    let features = Features::OBJECT_MAP.with(Features::FAST_DIFF);
    assert_eq!(op(UPDATE_FEATURES), Op::UpdateFeatures { features, enabled: true });
    assert_eq!(op(METADATA_SET), Op::MetadataSet { key: "key".into(), value: "value".into() });
    assert_eq!(op(METADATA_REMOVE), Op::MetadataRemove { key: "key".into() });
}

/// Write-same and compare-and-write events of librbd begin like this; their data is cut down here.
#[test]
fn patterns_and_comparisons() {
    let pattern =
        Event::WriteSame { extent: Extent::new(8192, 4096), data: bytes::Bytes::from_static(b"same") };
    let head = "05011c00000012000000002000000000000000100000000000000400000073616d65";
    let entry = EventEntry { event: pattern, timestamp: Timestamp::default() };
    assert_eq!(entry.encode()[..34], bytes(head));
    assert_eq!(EventEntry::decode(&entry.encode()), Ok(entry));
    let [compare, write] = [b"0123", b"4567"].map(|data| bytes::Bytes::from_static(data));
    let event = Event::CompareAndWrite { extent: Extent::new(0x2800, 4), compare, write };
    let entry = EventEntry { event, timestamp: Timestamp { seconds: 1, nanoseconds: 2 } };
    let head = "050124000000130000000028000000000000040000000000000004000000303132330400000034353637";
    assert_eq!(entry.encode()[..42], bytes(head));
    assert_eq!(EventEntry::decode(&entry.encode()), Ok(entry));
}

#[test]
fn data_of_events_is_not_copied() {
    let entry: bytes::Bytes = bytes(WRITE).into();
    let Event::Write { data, .. } = EventEntry::decode(&entry).unwrap().event else { panic!("no write") };
    assert_eq!(data.as_ptr(), entry[30..].as_ptr());
}

/// An event as an old version encoded it.
fn old_event(version: u8, fields: impl FnOnce(&mut Encoder)) -> Result<EventEntry, DecodeError> {
    let mut e = Encoder::new();
    e.versioned(version, 1, fields);
    if version >= 4 {
        e.versioned(1, 1, |e| {
            e.u32(7).u32(8);
        });
    }
    EventEntry::decode(&e.finish())
}

#[test]
fn events_of_old_versions() {
    let create = |version| {
        old_event(version, |e| {
            e.u32(4).u64(1).string("s");
            if version >= 3 {
                e.value(&SnapshotNamespace::User);
            }
        })
    };
    for version in 1..=5 {
        let entry = create(version).unwrap();
        let timestamp =
            if version >= 4 { Timestamp { seconds: 7, nanoseconds: 8 } } else { Timestamp::default() };
        assert_eq!(entry.timestamp, timestamp);
        assert!(matches!(entry.event, Event::Op { op: Op::SnapCreate { .. }, .. }));
    }
    let remove = old_event(3, |e| {
        e.u32(5).u64(1).string("s");
    });
    assert!(matches!(remove.unwrap().event, Event::Op { op: Op::SnapRemove { .. }, .. }));
    let rename = old_event(1, |e| {
        e.u32(6).u64(1).string("to").u64(9);
    });
    let Event::Op { op, .. } = rename.unwrap().event else { panic!("no operation") };
    assert_eq!(op, Op::SnapRename { snap: SnapId(9), from: String::new(), to: "to".into() });
    for (version, skip_partial, expected) in [(3, false, 0), (4, false, 0), (4, true, u32::MAX)] {
        let discard = old_event(version, |e| {
            e.u32(0).u64(0).u64(4096);
            if version >= 4 {
                e.bool(skip_partial);
            }
        });
        let Event::Discard { granularity, .. } = discard.unwrap().event else { panic!("no discard") };
        assert_eq!(granularity, expected);
    }
}

#[test]
fn unknown_events_are_told_from_corrupt_ones() {
    let unknown = old_event(6, |e| {
        e.u32(99).string("whatever comes");
    });
    assert_eq!(unknown.unwrap().event, Event::Unknown { kind: 99 });
    let short = old_event(5, |e| {
        e.u32(1).u64(0).u64(8).blob(b"1234567");
    });
    assert!(matches!(short, Err(DecodeError::Invalid { .. })), "{short:?}");
    let endless = old_event(5, |e| {
        e.u32(0).u64(u64::MAX).u64(1).bool(false).u32(0);
    });
    assert!(matches!(endless, Err(DecodeError::Invalid { .. })), "{endless:?}");
    let short = old_event(5, |e| {
        e.u32(19).u64(0).u64(4).blob(b"1234").blob(b"123");
    });
    assert!(matches!(short, Err(DecodeError::Invalid { .. })), "{short:?}");
}

#[test]
fn tags() {
    let tag: Tag = golden(LOCAL_TAG);
    assert_eq!((tag.tid, tag.class), (TagTid(2), TagClass(0)));
    let commit = Some(EntryPosition { tag: TagTid(1), entry: EntryTid(5) });
    let predecessor = TagPredecessor { mirror_uuid: String::new(), commit };
    assert_eq!(tag.tag_data().unwrap(), TagData { mirror_uuid: String::new(), predecessor });
    let tag: Tag = golden(REMOTE_TAG);
    let data = tag.tag_data().unwrap();
    assert_eq!(data.mirror_uuid, "2019403b-69e6-4e64-a320-4aeda2f00543");
    assert_eq!(data.predecessor.mirror_uuid, data.mirror_uuid);
    assert_eq!(data.to_bytes(), tag.data);
    assert_eq!(golden::<TagData>("00000000000000000000000000000000000000000000000000"), TagData::default());
}

fn at(object: u64, tag: u64, entry: u64) -> ObjectPosition {
    let position = EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) };
    ObjectPosition { object: JournalObject(object), position }
}

#[test]
fn clients() {
    let client: Client = golden(IMAGE_CLIENT);
    assert_eq!((client.id.as_str(), client.state), ("", ClientState::Connected));
    let data = ClientData::Image { tag_class: TagClass(0), resync_requested: false };
    assert_eq!(client.client_data().unwrap(), data);
    let positions = vec![at(1, 15, 1), at(0, 15, 0), at(3, 1, 3), at(2, 1, 2)];
    assert_eq!(client.commit_position, CommitPosition(positions));

    let client: Client = golden(SYNCING_CLIENT);
    let positions = vec![at(0x1901, 2, 1), at(0x1900, 2, 0), at(0x18fb, 1, 0x4c2b), at(0x1902, 1, 0x4c2a)];
    assert_eq!(client.commit_position, CommitPosition(positions));
    let data = client.client_data().unwrap();
    assert_eq!(data.to_bytes(), client.data);
    let ClientData::MirrorPeer(peer) = data else { panic!("{data:?}") };
    assert_eq!((peer.image.0.as_str(), peer.state), ("1023b97c1160", MirrorPeerState::Syncing));
    let point = &peer.sync_points[0];
    assert_eq!((point.object_number, point.from_name.as_str()), (Some(0), ""));
    assert!(point.name.starts_with(".rbd-mirror.661709e4-9e5e-4a33-99c8-c57ef8f485fd."));
    assert_eq!(peer.snap_seqs, [(SnapId(4), SnapId(4)), (SnapId(5), SnapId(5))].into());

    let client: Client = golden(REPLAYING_CLIENT);
    let ClientData::MirrorPeer(peer) = client.client_data().unwrap() else { panic!("{client:?}") };
    assert_eq!((peer.state, peer.sync_object_count), (MirrorPeerState::Replaying, 150));
    assert_eq!((peer.sync_points.len(), peer.snap_seqs.len()), (0, 2));
    assert_eq!(ClientData::MirrorPeer(peer).to_bytes(), client.data);
}

#[test]
fn clients_of_old_versions_and_of_the_future() {
    let mut e = Encoder::new();
    e.versioned(1, 1, |e| {
        e.u32(1).string("id").u32(0).u64(3).count(1);
        e.string("name").string("from").bool(true).u64(5).count(0);
    });
    let ClientData::MirrorPeer(peer) = ClientData::from_bytes(&e.finish(), "test").unwrap() else {
        panic!("no mirror")
    };
    assert_eq!(peer.sync_points[0].namespace, SnapshotNamespace::User);
    assert_eq!(peer.sync_points[0].object_number, Some(5));

    let mut e = Encoder::new();
    e.versioned(2, 1, |e| {
        e.u32(77).string("whatever comes");
    });
    let bytes = e.finish();
    let unknown = ClientData::from_bytes(&bytes, "test").unwrap();
    assert!(matches!(unknown, ClientData::Unknown { kind: 77, .. }));
    assert_eq!(unknown.to_bytes(), bytes);
    assert_eq!(ClientData::from_bytes(&ClientData::Cli.to_bytes(), "test"), Ok(ClientData::Cli));
}

/// Lets every decoder read `bytes`. None may panic, or take more memory than the bytes warrant.
fn decode_all(bytes: &[u8]) {
    let _ = Client::from_bytes(bytes, "fuzz").map(|client| client.client_data());
    let _ = Tag::from_bytes(bytes, "fuzz").map(|tag| tag.tag_data());
    let _ = ClientData::from_bytes(bytes, "fuzz");
    let _ = TagData::from_bytes(bytes, "fuzz");
    let _ = CommitPosition::from_bytes(bytes, "fuzz");
    if let Ok(entry) = EventEntry::decode(&bytes::Bytes::copy_from_slice(bytes)) {
        // Whatever was understood can be said again.
        assert_eq!(EventEntry::decode(&entry.encode()), Ok(entry));
    }
}

fn all() -> Vec<&'static str> {
    let others = [IMAGE_CLIENT, SYNCING_CLIENT, REPLAYING_CLIENT, LOCAL_TAG, REMOTE_TAG];
    EVENTS.into_iter().chain(others).collect()
}

#[test]
fn every_truncation_is_refused() {
    for golden in EVENTS {
        let bytes: bytes::Bytes = bytes(golden).into();
        for length in 0..bytes.len() {
            assert!(EventEntry::decode(&bytes.slice(..length)).is_err(), "{length} bytes of {golden}");
        }
    }
    for golden in [IMAGE_CLIENT, SYNCING_CLIENT, REPLAYING_CLIENT] {
        let bytes = bytes(golden);
        for length in 0..bytes.len() {
            assert!(Client::from_bytes(&bytes[..length], "cut").is_err(), "{length} bytes of {golden}");
        }
    }
}

proptest! {
    #[test]
    fn spoiled_bytes_do_no_harm(
        which in 0..all().len(),
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = bytes(all()[which]);
        for (at, byte) in spoils {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        decode_all(&bytes);
        decode_all(&bytes[..length.index(bytes.len())]);
    }

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        decode_all(&bytes);
    }
}
