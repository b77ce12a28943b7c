//! State objects written by Ceph 16.2.15, decoded and encoded back; and spoiled bytes.

use proptest::prelude::*;

use super::*;
use crate::golden::{bytes, golden, spoiled};

/// Whole objects, behind the header.
const PLAIN: &str = "01011f00000003000000696d672d00000000000000ffffffffffffffff0000000000000000";
const FULL: &str = "01015300000003000000696d672d00000000000000ffffffffffffffff0100000005000000000000000101140000000101040000\
                    00000000000500000075736572310201000000040000006b6579310600000076616c756531";
const HEADER: &str = "01010400000001000000";

#[test]
fn states_of_stock_images() {
    let plain: ImageState = golden(PLAIN);
    let expected = ImageState {
        name: "img".into(),
        features: Features(0x2d),
        snap_limit: None,
        snapshots: BTreeMap::new(),
        metadata: BTreeMap::new(),
    };
    assert_eq!(plain, expected);

    let full: ImageState = golden(FULL);
    let (namespace, protection) = (SnapshotNamespace::User, ProtectionStatus::Protected);
    let snapshot = SnapState { namespace, name: "user1".into(), protection };
    let expected = ImageState {
        snapshots: BTreeMap::from([(SnapId(5), snapshot)]),
        metadata: BTreeMap::from([("key1".into(), Bytes::from_static(b"value1"))]),
        ..expected
    };
    assert_eq!(full, expected);
}

#[test]
fn a_state_is_cut_into_objects() {
    let mut state: ImageState = golden(FULL);
    assert_eq!(parts(&state, 1 << 22), [bytes(&[HEADER, FULL].concat())]);
    assert_eq!(split_header(&bytes(&[HEADER, FULL].concat())), Ok((1, bytes(FULL))));

    state.metadata.insert("padding".into(), Bytes::new());
    let whole = state.to_bytes();
    for object_bytes in
        [16, 64, whole.len() + HEADER_BYTES - 1, whole.len() + HEADER_BYTES, whole.len() + HEADER_BYTES + 1]
    {
        let parts = parts(&state, object_bytes);
        let (count, mut joined) = split_header(&parts[0]).unwrap();
        assert_eq!(count as usize, parts.len());
        assert!(parts[..parts.len() - 1].iter().all(|part| part.len() == object_bytes));
        parts[1..].iter().for_each(|part| joined.extend_from_slice(part));
        assert_eq!(joined, whole, "objects of {object_bytes} bytes");
    }
}

#[test]
fn names_and_keys() {
    let image = ImageId("101f97046156".into());
    assert_eq!(image_state_object(&image, SnapId(6), 0), "rbd_mirror_snapshot.101f97046156.6.0");
    assert_eq!(resync_key("uuid"), ".rbd_mirror.uuid");
}

#[test]
fn resync_requests_are_json() {
    assert_eq!(parse_resync(br#"{"resync_requested": true}"#), Ok(true));
    assert_eq!(parse_resync(br#"{"resync_requested":false,"more":1}"#), Ok(false));
    for odd in [&b""[..], b"{}", b"true", b"{\"resync_requested\": 1}", b"\xff"] {
        assert!(parse_resync(odd).is_err(), "{odd:?}");
    }
}

proptest! {
    #[test]
    fn spoiled_states_do_no_harm(bytes in spoiled(&[PLAIN, FULL])) {
        if let Ok(state) = ImageState::from_bytes(&bytes, "state") {
            prop_assert_eq!(ImageState::from_bytes(&state.to_bytes(), "state"), Ok(state));
        }
    }

    #[test]
    fn spoiled_headers_do_no_harm(bytes in spoiled(&[HEADER])) {
        let _ = split_header(&bytes);
    }

    #[test]
    fn odd_resync_requests_do_no_harm(value in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = parse_resync(&value);
    }
}
