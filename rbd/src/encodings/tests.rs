//! Bytes taken from a Ceph 16.2.15 cluster, decoded and encoded back; and the same bytes spoiled.

use proptest::prelude::*;

use super::*;
use crate::trash::{TrashImage, TrashSource, TrashState};

const USER: &str = "010133000000040000000000000001010400000000000000090000007573657220736e617087d61200000000009416006bc98f\
                    361c00000000";
const GROUP: &str = "010174000000050000000000000001012c0000000100000001000000000000000c0000003130326336623862343536370c00\
                     0000313033323662386234353637220000002e67726f75702e315f3130326336623862343536375f31303332366238623435\
                     363787d61200000000009516006b311bc81b00000000";
const MIRROR: &str = "0101c9000000060000000000000001014a000000030000000001010000002400000031393332356537622d303739332d3432\
                      61322d623031312d36323937316462653866353400000000feffffffffffffff000000000000000000000000590000002e6d\
                      6972726f722e7072696d6172792e64366235616666372d363332332d343265302d393763312d373939336436323062316164\
                      2e62393262643066642d636435662d346666392d626539632d39306234613333636666343687d61200000000009616006b51\
                      e4bb0600000000";
const TRASH: &str = "010157000000070000000000000001010d000000020000000100000074000000002400000031313435313738642d336436612d\
                     346334622d383266382d37383938333662633733356187d61200000000009616006b2424392601000000";
const CHILDREN: &str = "0100000002011e00000002000000000000000c000000313033386439353633656465020000006e73";
const GROUP_SPEC: &str = "01011800000001000000000000000c000000313032633662386234353637";
const PARENT: &str = "0101240000000100000000000000000000000c0000003130323261663066626531350700000000000000";
const TRASH_IMAGE: &str = "020118000000000200000074729716006b2a14793b9716006b2a14793b00";
const MIGRATION: &str = "03013c00000002010000000000000000000000030000006d69670c000000313034323235663237323737000000000000100000\
                         000000000002000000000000000000";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

/// Decodes golden bytes, and checks that encoding gives them back.
fn golden<T: Encode + Decode>(hex: &str) -> T {
    let bytes = bytes(hex);
    let mut d = Decoder::new(&bytes, "golden");
    let value = T::decode(&mut d).unwrap();
    assert_eq!(d.left(), 0, "bytes were left over");
    assert_eq!(value.to_bytes(), bytes);
    value
}

#[test]
fn snapshots_of_every_namespace() {
    let user: SnapshotInfo = golden(USER);
    assert_eq!((user.id, user.name.as_str(), user.image_size), (SnapId(4), "user snap", 1_234_567));
    assert_eq!(user.namespace, SnapshotNamespace::User);
    assert_eq!(user.timestamp, Timestamp { seconds: 1_795_167_892, nanoseconds: 473_337_801 });

    let group: SnapshotInfo = golden(GROUP);
    let expected = SnapshotNamespace::Group {
        group_pool: PoolId(1),
        group_id: "102c6b8b4567".into(),
        group_snapshot_id: "10326b8b4567".into(),
    };
    assert_eq!(group.namespace, expected);

    let mirror: SnapshotInfo = golden(MIRROR);
    let expected = MirrorSnapshot {
        state: MirrorSnapshotState::Primary,
        complete: true,
        mirror_peer_uuids: ["19325e7b-0793-42a2-b011-62971dbe8f54".to_string()].into(),
        primary_mirror_uuid: String::new(),
        primary_snap_id: SnapId::HEAD,
        last_copied_object_number: 0,
        snap_seqs: BTreeMap::new(),
    };
    assert_eq!(mirror.namespace, SnapshotNamespace::Mirror(expected));

    let trash: SnapshotInfo = golden(TRASH);
    let expected = SnapshotNamespace::Trash { original_name: "t".into(), original_namespace_type: 0 };
    assert_eq!((trash.namespace, trash.child_count), (expected, 1));
}

#[test]
fn relatives_groups_trash_and_migrations() {
    let children = Decoder::new(&bytes(CHILDREN), "children").seq(1, ChildImage::decode).unwrap();
    let child = ChildImage { pool: PoolId(2), namespace: "ns".into(), image: ImageId("1038d9563ede".into()) };
    assert_eq!(children, std::slice::from_ref(&child));
    assert_eq!(child.to_bytes(), bytes(CHILDREN)[4..]);

    let parent: ParentSpec = golden(PARENT);
    assert_eq!((parent.pool, parent.snap), (PoolId(1), SnapId(7)));
    assert_eq!((parent.namespace.as_str(), parent.image.0.as_str()), ("", "1022af0fbe15"));
    assert_eq!(golden::<GroupSpec>(GROUP_SPEC), GroupSpec { pool: PoolId(1), id: "102c6b8b4567".into() });

    let trash: TrashImage = golden(TRASH_IMAGE);
    assert_eq!(
        (trash.source, trash.state, trash.name.as_str()),
        (TrashSource::User, TrashState::Normal, "tr")
    );
    let migration: MigrationSpec = golden(MIGRATION);
    assert_eq!(migration.header_type, MigrationHeaderType::Destination);
    assert_eq!((migration.image_name.as_str(), migration.overlap, migration.state), ("mig", 1 << 20, 2));
}

#[test]
fn namespaces_from_the_future_are_kept() {
    let mut e = Encoder::new();
    e.versioned(2, 1, |e| {
        e.u32(9).string("whatever comes");
    });
    let bytes = e.finish();
    assert_eq!(SnapshotNamespace::from_bytes(&bytes, "test"), Ok(SnapshotNamespace::Unknown(9)));
    assert_eq!(SnapshotNamespace::Unknown(9).wire_type(), 9);
}

/// The fields of a version 1 entry of the trash, from before it had a state.
#[test]
fn old_versions_have_defaults() {
    let mut e = Encoder::new();
    e.versioned(1, 1, |e| {
        e.u8(1).string("old").u64(0).u64(0);
    });
    let old = TrashImage::from_bytes(&e.finish(), "test").unwrap();
    assert_eq!((old.source, old.state), (TrashSource::Mirroring, TrashState::Normal));
    let mut e = Encoder::new();
    e.versioned(1, 1, |e| {
        e.i64(3).string("id");
    });
    assert_eq!(ChildImage::from_bytes(&e.finish(), "test").unwrap().namespace, "");
}

/// Lets every decoder read `bytes`. None may panic, or take more memory than the bytes warrant.
fn decode_all(bytes: &[u8]) {
    let _ = SnapshotInfo::from_bytes(bytes, "fuzz");
    let _ = SnapshotNamespace::from_bytes(bytes, "fuzz");
    let _ = MirrorSnapshot::from_bytes(bytes, "fuzz");
    let _ = ParentSpec::from_bytes(bytes, "fuzz");
    let _ = ChildImage::from_bytes(bytes, "fuzz");
    let _ = GroupSpec::from_bytes(bytes, "fuzz");
    let _ = MigrationSpec::from_bytes(bytes, "fuzz");
    let _ = TrashImage::from_bytes(bytes, "fuzz");
    let _ = Decoder::new(bytes, "fuzz").seq(6, ChildImage::decode);
    let _ = Decoder::new(bytes, "fuzz").string_map();
    let _ = decode_optional_u64(&mut Decoder::new(bytes, "fuzz"));
}

const ALL: [&str; 9] = [USER, GROUP, MIRROR, TRASH, CHILDREN, GROUP_SPEC, PARENT, TRASH_IMAGE, MIGRATION];

#[test]
fn every_truncation_is_refused() {
    for hex in [USER, GROUP, MIRROR, TRASH] {
        let bytes = bytes(hex);
        for length in 0..bytes.len() {
            assert!(SnapshotInfo::from_bytes(&bytes[..length], "cut").is_err(), "{length} bytes of {hex}");
            decode_all(&bytes[..length]);
        }
    }
}

proptest! {
    #[test]
    fn spoiled_bytes_do_no_harm(
        which in 0..ALL.len(),
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = bytes(ALL[which]);
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
