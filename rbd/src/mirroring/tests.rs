//! What Ceph 16.2.15 stores and answers, decoded and encoded back; and spoiled bytes.

use proptest::prelude::*;
use rados::encoding::{Decode, Encode, Encoder};

use super::*;
use crate::golden::{bytes, decoded, golden, spoiled};
use crate::types::Timestamp;

const PEER: &str = "0201760000002400000034343633396364312d643564392d343130362d393366392d393666613330313035643864030000006661720a\
                    000000636c69656e742e666172ffffffffffffffff022400000035656530633466302d303030302d343030302d383030302d30303030\
                    3030303030303031bf1a006b390db431";
const NEW_PEER: &str = "0201560000002400000034313562303762352d346637622d343938322d383064662d303837643834353563656131060000007369\
                        74652d620b000000636c69656e742e70656572ffffffffffffffff02000000000000000000000000";
const IMAGE: &str =
    "02012a0000002400000033353930333261322d306533642d346339392d616462622d3037663362323864633031350101";
/// As the OSD keeps it, behind the instance that wrote it.
const SITE_STATUS: &str = "01013000000004220000007265706c6179696e672c207b227265706c61795f7374617465223a2269646c65227dc01a006b7d\
                           f6fa0600";
const STATUS: &str = "02017200000004220000007265706c6179696e672c207b227265706c61795f7374617465223a2269646c65227dc01a006b7df6fa06\
                      0101010000002400000035656530633466302d303030302d343030302d383030302d30303030303030303030303102070000006\
                      36f7079696e67c01a006be23a070701";
const INSTANCE: &str =
    "0824100000000000000101011c000000030000004c3207a810000000020000007f0000010000000000000000";
const ENABLED: &str = "01014000000001000000010000000c000000313063316166386635343438240000003539303265363535\
                       2d666463312d346234662d613362312d393131646166326366633161";
const MODE: &str = "0101080000000000000002000000";
const MAPPED: &str = "010115000000040000003431323305000000070000000100000009";

#[test]
fn peers() {
    let peer: MirrorPeer = golden(PEER);
    let expected = MirrorPeer {
        uuid: "44639cd1-d5d9-4106-93f9-96fa30105d8d".into(),
        direction: PeerDirection::RxTx,
        site_name: "far".into(),
        client_name: "client.far".into(),
        mirror_uuid: "5ee0c4f0-0000-4000-8000-000000000001".into(),
        last_seen: Timestamp { seconds: 0x6b00_1abf, nanoseconds: 0x31b4_0d39 },
    };
    assert_eq!(peer, expected);
    let new: MirrorPeer = golden(NEW_PEER);
    assert!(new.mirror_uuid.is_empty() && new.last_seen == Timestamp::default());

    let mut e = Encoder::new();
    e.versioned(1, 1, |e| {
        e.string("uuid").string("site").string("client").i64(-1);
    });
    let old = MirrorPeer::from_bytes(&e.finish(), "peer").unwrap();
    assert_eq!((old.direction, old.client_name.as_str()), (PeerDirection::RxTx, "client"));
    assert!(PeerDirection::Rx.receives() && !PeerDirection::Rx.transmits());
    assert!(PeerDirection::Tx.transmits() && !PeerDirection::Tx.receives());
}

#[test]
fn images() {
    let image: MirrorImage = golden(IMAGE);
    let global_id = GlobalImageId("359032a2-0e3d-4c99-adbb-07f3b28dc015".into());
    let (mode, state) = (MirrorImageMode::Snapshot, MirrorImageState::Enabled);
    assert_eq!(image, MirrorImage { mode, global_id, state });

    let mut e = Encoder::new();
    e.versioned(1, 1, |e| {
        e.string("global").u8(0);
    });
    let old = MirrorImage::from_bytes(&e.finish(), "image").unwrap();
    assert_eq!((old.mode, old.state), (MirrorImageMode::Journal, MirrorImageState::Disabling));
}

#[test]
fn statuses() {
    let description = r#"replaying, {"replay_state":"idle"}"#;
    let own: SiteStatus = golden(SITE_STATUS);
    assert_eq!((own.state, own.description.as_str(), own.up), (StatusState::Replaying, description, false));

    let status: MirrorImageStatus = golden(STATUS);
    let local = status.local.unwrap();
    assert!(local.up && local.state == StatusState::Replaying && local.mirror_uuid.is_empty());
    let [remote] = &status.remotes[..] else { panic!("{:?}", status.remotes) };
    assert_eq!(remote.mirror_uuid, "5ee0c4f0-0000-4000-8000-000000000001");
    assert_eq!(
        (remote.state, remote.description.as_str(), remote.up),
        (StatusState::Syncing, "copying", true)
    );

    // A reporter's status breaks with version 1 on purpose: without its mirror uuid it would be taken for a local one.
    let reported = SiteStatus::new("far", StatusState::Error, "split-brain").to_bytes();
    assert_eq!(reported[..2], [2, 2]);
    assert_eq!(SiteStatus::from_bytes(&reported, "status").unwrap().mirror_uuid, "far");

    let only_remote = MirrorImageStatus { local: None, remotes: vec![remote.clone()] };
    assert_eq!(MirrorImageStatus::from_bytes(&only_remote.to_bytes(), "status"), Ok(only_remote));
    assert_eq!(StatusState::StartingReplay.to_string(), "starting_replay");
}

#[test]
fn instances() {
    let instance: StatusInstance = decoded(INSTANCE);
    assert_eq!(instance.name.to_string(), "client.4132");
    assert_eq!(instance.address.to_string(), "127.0.0.1:0/2819043916");
}

#[test]
fn notifications() {
    let enabled = MirroringNotification::ImageUpdated {
        state: MirrorImageState::Enabled,
        image: ImageId("10c1af8f5448".into()),
        global_id: GlobalImageId("5902e655-fdc1-4b4f-a3b1-911daf2cfc1a".into()),
    };
    assert_eq!(golden::<MirroringNotification>(ENABLED), enabled);
    assert_eq!(golden::<MirroringNotification>(MODE), MirroringNotification::ModeUpdated(MirrorMode::Pool));
    let mut unknown = bytes(MODE);
    unknown[6] = 9;
    let unknown = MirroringNotification::from_bytes(&unknown, "notification");
    assert_eq!(unknown, Ok(MirroringNotification::Unknown(9)));
}

#[test]
fn image_maps() {
    let entry: ImageMapEntry = golden(MAPPED);
    assert_eq!((entry.instance_id.as_str(), &entry.data[..]), ("4123", &[9][..]));
    assert_eq!(entry.mapped, Timestamp { seconds: 5, nanoseconds: 7 });
}

#[test]
fn numbers_stand_for_names() {
    for wire in 0..=5u8 {
        assert_eq!(PeerDirection::from_wire(wire).to_wire(), wire);
        assert_eq!(MirrorImageMode::from_wire(wire).to_wire(), wire);
        assert_eq!(MirrorImageState::from_wire(wire.into()).to_wire(), u32::from(wire));
        assert_eq!(MirrorMode::from_wire(wire.into()).to_wire(), u32::from(wire));
    }
    for wire in 0..=9 {
        assert_eq!(StatusState::from_wire(wire).to_wire(), wire);
    }
}

proptest! {
    #[test]
    fn spoiled_metadata_does_no_harm(bytes in spoiled(&[PEER, NEW_PEER, IMAGE, MAPPED])) {
        let _ = MirrorPeer::from_bytes(&bytes, "peer").map(|peer| peer.to_bytes());
        let _ = MirrorImage::from_bytes(&bytes, "image").map(|image| image.to_bytes());
        let _ = ImageMapEntry::from_bytes(&bytes, "image map").map(|entry| entry.to_bytes());
    }

    #[test]
    fn spoiled_statuses_do_no_harm(bytes in spoiled(&[SITE_STATUS, STATUS, INSTANCE])) {
        if let Ok(status) = MirrorImageStatus::from_bytes(&bytes, "status") {
            let again = MirrorImageStatus::from_bytes(&status.to_bytes(), "status").unwrap();
            prop_assert_eq!(again.remotes, status.remotes);
        }
        let _ = SiteStatus::from_bytes(&bytes, "status");
        let _ = StatusInstance::from_bytes(&bytes, "instance");
    }

    #[test]
    fn spoiled_notifications_do_no_harm(bytes in spoiled(&[ENABLED, MODE])) {
        if let Ok(notification) = MirroringNotification::from_bytes(&bytes, "notification") {
            let again = MirroringNotification::from_bytes(&notification.to_bytes(), "notification");
            prop_assert_eq!(again, Ok(notification));
        }
    }
}
