//! Notifications overheard on Ceph 16.2.15 clusters, decoded and encoded back; older versions; and spoiled bytes.

use proptest::prelude::*;
use rados::encoding::{Decode, Encode, Encoder};

use super::*;
use crate::golden::{bytes, golden, spoiled};

const ACQUIRED: &str = "070114000000000000007a10000000000000101802b0237f0000";
const RELEASED: &str = "070114000000010000009d10000000000000601400b09d7f0000";
const REQUEST: &str = "07011500000002000000a710000000000000704c0158d67f000000";
const UPDATE: &str = "07010400000003000000";
const PROGRESS: &str =
    "07012c000000040000007c10000000000000409505a4237f0000010000000000000001000000000000000a00000000000000";
const COMPLETE: &str = "070120000000050000009210000000000000b0190244287f00000100000000000000abffffff";
const FLATTEN: &str = "07011c000000060000009210000000000000b0190244287f00000100000000000000";
const RESIZE: &str = "0701250000000700000000000080000000008610000000000000a0de01b8aa7f0000010000000000000000";
const SNAP_CREATE: &str = "07013400000008000000020000007331010104000000000000007c10000000000000409505a4237f0000010000000000000000\
                           00000000000000";
const SNAP_REMOVE: &str =
    "07012c0000000900000002000000733201010400000000000000841000000000000070450158357f00000100000000000000";
const REBUILD: &str = "07011c0000000a0000008a1000000000000020cf0494417f00000100000000000000";
const SNAP_RENAME: &str = "0701330000000b00000004000000000000000100000075010104000000000000002c10000000000000504b01bc827f00000100\
                           000000000000";
const SNAP_PROTECT: &str =
    "07012b0000000c00000001000000750101040000000000000034100000000000004041016c0f7f00000100000000000000";
const SNAP_UNPROTECT: &str =
    "07012b0000000d000000010000007501010400000000000000361000000000000040240104f07f00000100000000000000";
const RENAME: &str = "0701240000000e00000004000000636170649410000000000000f09c05a4217f00000100000000000000";
const FEATURES: &str =
    "0701250000000f0000001000000000000000009010000000000000407201b4997f00000100000000000000";
const SPARSIFY: &str = "0701240000001100000088100000000000005017021cef7f000001000000000000000010000000000000";
const QUIESCE: &str = "07011c000000120000007a10000000000000101802b0237f00000100000000000000";
const UNQUIESCE: &str = "07011c000000130000007a10000000000000101802b0237f00000100000000000000";
const SET: &str =
    "07012700000014000000010000006b0101000000768c10000000000000e0cd04f4df7f00000100000000000000";
const REMOVE: &str = "07012200000014000000010000006b008e10000000000000d0d70450917f00000100000000000000";

const ALL: &[&str] = &[
    ACQUIRED,
    RELEASED,
    REQUEST,
    UPDATE,
    PROGRESS,
    COMPLETE,
    FLATTEN,
    RESIZE,
    SNAP_CREATE,
    SNAP_REMOVE,
    REBUILD,
    SNAP_RENAME,
    SNAP_PROTECT,
    SNAP_UNPROTECT,
    RENAME,
    FEATURES,
    SPARSIFY,
    QUIESCE,
    UNQUIESCE,
    SET,
    REMOVE,
];

fn request(gid: u64, handle: u64) -> AsyncRequestId {
    AsyncRequestId { client: ClientId { gid, handle }, number: 1 }
}

#[test]
fn news_of_the_lock() {
    let client = |gid, handle| ClientId { gid, handle };
    assert_eq!(
        golden::<Notification>(ACQUIRED),
        Notification::AcquiredLock(client(0x107a, 0x7f23_b002_1810))
    );
    assert_eq!(
        golden::<Notification>(RELEASED),
        Notification::ReleasedLock(client(0x109d, 0x7f9d_b000_1460))
    );
    let wanted = Notification::RequestLock { client: client(0x10a7, 0x7fd6_5801_4c70), force: false };
    assert_eq!(golden::<Notification>(REQUEST), wanted);
    assert_eq!(golden::<Notification>(UPDATE), Notification::HeaderUpdate);
    assert_eq!(Notification::from_payload(&[]), Ok(Notification::HeaderUpdate));
}

#[test]
fn news_of_requests() {
    let asked = request(0x107c, 0x7f23_a405_9540);
    let progress = Notification::AsyncProgress { request: asked, done: 1, total: 10 };
    assert_eq!(golden::<Notification>(PROGRESS), progress);
    let complete =
        Notification::AsyncComplete { request: request(0x1092, 0x7f28_4402_19b0), result: -libc::ERESTART };
    assert_eq!(golden::<Notification>(COMPLETE), complete);
    let snapshot = request(0x107a, 0x7f23_b002_1810);
    assert_eq!(golden::<Notification>(QUIESCE), Notification::Quiesce(snapshot));
    assert_eq!(golden::<Notification>(UNQUIESCE), Notification::Unquiesce(snapshot));
}

#[test]
fn operations() {
    let operation = |hex| match golden::<Notification>(hex) {
        Notification::Operation { request, operation } if request.number == 1 => operation,
        other => panic!("{other:?}"),
    };
    let (user, name) = (SnapshotNamespace::User, |name: &str| name.to_string());
    assert_eq!(operation(FLATTEN), Operation::Flatten);
    assert_eq!(operation(RESIZE), Operation::Resize { size: 2 << 30, allow_shrink: false });
    let create = Operation::SnapCreate { namespace: user.clone(), name: name("s1"), flags: 0 };
    assert_eq!(operation(SNAP_CREATE), create);
    assert_eq!(operation(SNAP_REMOVE), Operation::SnapRemove { namespace: user.clone(), name: name("s2") });
    assert_eq!(operation(SNAP_RENAME), Operation::SnapRename { snap: SnapId(4), name: name("u") });
    assert_eq!(operation(SNAP_PROTECT), Operation::SnapProtect { namespace: user.clone(), name: name("u") });
    assert_eq!(operation(SNAP_UNPROTECT), Operation::SnapUnprotect { namespace: user, name: name("u") });
    assert_eq!(operation(REBUILD), Operation::RebuildObjectMap);
    assert_eq!(operation(RENAME), Operation::Rename { name: name("capd") });
    let features = Operation::UpdateFeatures { features: Features::FAST_DIFF, enabled: false };
    assert_eq!(operation(FEATURES), features);
    assert_eq!(operation(SPARSIFY), Operation::Sparsify { sparse_bytes: 4096 });
    let set = Operation::MetadataUpdate { key: name("k"), value: Some(name("v")) };
    assert_eq!(operation(SET), set);
    assert_eq!(operation(REMOVE), Operation::MetadataUpdate { key: name("k"), value: None });
}

#[test]
fn migration_is_like_the_other_plain_ones() {
    // No stock client of this release offers a way to overhear it.
    let notification = Notification::Operation { request: request(1, 2), operation: Operation::Migrate };
    let mut bytes = bytes(FLATTEN);
    bytes[6] = 16;
    assert_eq!(Notification::from_payload(&notification.to_bytes()), Ok(notification.clone()));
    assert_eq!(notification.to_bytes()[..10], bytes[..10]);
}

/// A message of an older version, with these fields behind its kind.
fn old(version: u8, kind: u32, fields: impl FnOnce(&mut Encoder)) -> Notification {
    let mut e = Encoder::new();
    e.versioned(version, 1, |e| {
        e.u32(kind);
        fields(e);
    });
    Notification::from_payload(&e.finish()).unwrap()
}

#[test]
fn messages_of_older_clients() {
    assert_eq!(old(1, 0, |_| {}), Notification::AcquiredLock(ClientId::default()));
    let client = ClientId { gid: 1, handle: 2 };
    let wanted = old(2, 2, |e| {
        e.value(&client);
    });
    assert_eq!(wanted, Notification::RequestLock { client, force: false });

    let empty = AsyncRequestId::default();
    let namespace = SnapshotNamespace::Trash { original_name: "x".into(), original_namespace_type: 0 };
    let create = |namespace| Operation::SnapCreate { namespace, name: "s".into(), flags: 0 };
    let expected = |operation| Notification::Operation { request: empty, operation };
    let plain = old(4, 8, |e| {
        e.string("s");
    });
    assert_eq!(plain, expected(create(SnapshotNamespace::User)));
    for version in [5, 6] {
        let with_namespace = old(version, 8, |e| {
            e.string("s").value(&namespace);
        });
        assert_eq!(with_namespace, expected(create(namespace.clone())), "version {version}");
    }
    let resize = old(3, 7, |e| {
        e.u64(5).value(&empty);
    });
    assert_eq!(resize, expected(Operation::Resize { size: 5, allow_shrink: true }));
}

#[test]
fn messages_from_the_future() {
    let unknown = old(7, 77, |e| {
        e.raw(b"whatever");
    });
    assert_eq!(unknown, Notification::Unknown(77));
    let mut e = Encoder::new();
    e.versioned(9, 1, |e| {
        e.u32(3).raw(b"new fields");
    });
    assert_eq!(Notification::from_payload(&e.finish()), Ok(Notification::HeaderUpdate));
}

#[test]
fn one_owner_answers() {
    let answer = |result| Response { result }.to_bytes();
    assert_eq!(answer(-30), bytes("010104000000e2ffffff"));
    let reply = |payloads: &[Bytes]| NotifyReply {
        answers: payloads.iter().zip(1..).map(|(payload, client)| (client, 1, payload.clone())).collect(),
        silent: Vec::new(),
    };
    assert_eq!(owner_response(&reply(&[])), Ok(None));
    assert_eq!(owner_response(&reply(&[Bytes::new(), answer(-30), Bytes::new()])), Ok(Some(-30)));
    assert!(owner_response(&reply(&[answer(0), answer(0)])).is_err_and(|e| e.is(libc::EINVAL)));
    assert!(owner_response(&reply(&[Bytes::from_static(b"no answer")])).is_err_and(|e| e.is(libc::EBADMSG)));
}

proptest! {
    #[test]
    fn spoiled_notifications_do_no_harm(bytes in spoiled(ALL)) {
        if let Ok(notification) = Notification::from_payload(&bytes) {
            let again = Notification::from_payload(&notification.to_bytes());
            // What an older client left out, and what is unknown, is not encoded as it was, but means the same.
            prop_assert_eq!(again, Ok(notification));
        }
    }

    #[test]
    fn spoiled_responses_do_no_harm(bytes in spoiled(&["010104000000e2ffffff"])) {
        let _ = Response::from_bytes(&bytes, "response");
    }
}
