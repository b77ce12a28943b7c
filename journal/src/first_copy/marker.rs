//! What this program notes beside a copy that it is making: the extended attribute `rbd_mirror.first_copy` of the local
//! header.
//!
//! | field | type |
//! |---|---|
//! | version, oldest compatible version, length of what follows | u8 2, u8 2, u32 |
//! | id of the remote image, whose journal is meant | string |
//! | name of the sync point | string |
//! | it is a repair | u8 |
//! | all objects below this number have been copied | u64 |
//! | the copy is complete, and what follows is replay | u8 |
//! | remote snapshot → local one | u32 number, u64 and u64 each |
//! | how the sync point was made | u8 0: by an owner, with an event; 1: without one |
//! | the newest tag then, when it was made without an event | u64 |
//! | everything up to this entry is in the sync point; 0 when that is not known | u8 1, u64 tag, u64 entry |
//!
//! A copy that is under way without it, or with one that does not fit to what the remote journal says, was made or
//! continued by another daemon.

use std::collections::BTreeMap;

use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};
use rados::error::ResultExt;
use rados::{Error, ReadAnswer, ReadSub, Result, SnapId, WriteOp, WriteSub};
use rbd::ImageId;
use rbd::image::Image;
use rbd::layout::header_object;

use crate::types::{EntryPosition, EntryTid, MirrorPeer, TagTid};

/// The extended attribute.
const XATTR: &str = "rbd_mirror.first_copy";

/// How a sync point was made, and so where the replay starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// By somebody who had the image open: its creation is an event in the journal.
    Event,
    /// While nobody had the image open, and without an event. Entries up to the end of this tag may not be on the
    /// image's disk.
    Unowned {
        /// The newest tag then.
        newest: TagTid,
    },
}

/// A copy under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyMarker {
    /// The remote image. One that is made anew has another id, and a journal that begins anew.
    pub remote_image: ImageId,
    /// Name of the sync point.
    pub sync_point: String,
    /// Every object is compared by checksums first.
    pub repair: bool,
    /// All objects below this number have been copied.
    pub copied_below: u64,
    /// The copy is complete: from here on only the replay may change the image.
    pub copied: bool,
    /// Remote user snapshot → the local one that is made of it.
    pub snap_seqs: BTreeMap<SnapId, SnapId>,
    /// How the sync point was made.
    pub origin: Origin,
    /// Everything up to this entry of the remote journal is in the sync point, and nothing behind it; `None` when that is
    /// not known. The marker stays until the commit position is there.
    pub start: Option<EntryPosition>,
}

impl Encode for CopyMarker {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(2, 2, |e| {
            e.string(&self.remote_image.0)
                .string(&self.sync_point)
                .bool(self.repair)
                .u64(self.copied_below)
                .bool(self.copied);
            e.count(self.snap_seqs.len());
            for (remote, local) in &self.snap_seqs {
                e.u64(remote.0).u64(local.0);
            }
            match self.origin {
                Origin::Event => e.u8(0),
                Origin::Unowned { newest } => e.u8(1).u64(newest.0),
            };
            e.bool(self.start.is_some());
            if let Some(start) = self.start {
                e.u64(start.tag.0).u64(start.entry.0);
            }
        });
    }
}

impl Decode for CopyMarker {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        d.versioned("copy marker", 2, |d, version| {
            if version < 2 {
                return Err(d.invalid("it does not tell what it is a copy of"));
            }
            let remote_image = ImageId(d.string()?);
            let (sync_point, repair, copied_below, copied) = (d.string()?, d.bool()?, d.u64()?, d.bool()?);
            let snap_seqs = d.seq(16, |d| Ok((SnapId(d.u64()?), SnapId(d.u64()?))))?;
            let origin = match d.u8()? {
                0 => Origin::Event,
                1 => Origin::Unowned { newest: TagTid(d.u64()?) },
                other => return Err(d.invalid(format!("there is no origin {other}"))),
            };
            let start = match d.bool()? {
                true => Some(EntryPosition { tag: TagTid(d.u64()?), entry: EntryTid(d.u64()?) }),
                false => None,
            };
            let snap_seqs = snap_seqs.into_iter().collect();
            Ok(CopyMarker {
                remote_image,
                sync_point,
                repair,
                copied_below,
                copied,
                snap_seqs,
                origin,
                start,
            })
        })
    }
}

impl CopyMarker {
    /// True when the copy that `peer` tells of is this one, and nobody else has worked on it since.
    pub fn is_of(&self, peer: &MirrorPeer) -> bool {
        let Some(point) = peer.sync_points.first() else { return false };
        let copied_elsewhere = point.object_number.is_some_and(|last| last >= self.copied_below);
        // Stored behind the marker, so either of both may be there.
        let same_snapshots = peer.snap_seqs.is_empty() || peer.snap_seqs == self.snap_seqs;
        point.name == self.sync_point && !copied_elsewhere && same_snapshots
    }

    /// The marker as part of a change of the local header.
    pub fn write_sub(&self) -> WriteSub {
        WriteSub::SetXattr(XATTR.into(), self.to_bytes())
    }
}

/// Reads the marker of a local image; `None` when it has none, or one of another version.
pub async fn read(image: &Image) -> Result<Option<CopyMarker>> {
    let context = || format!("cannot read the copy marker of image {}", image.id());
    let object = header_object(image.id());
    let sub = ReadSub::GetXattr(XATTR.into());
    match image.header_ioctx().read_one(&object, SnapId::HEAD, sub).await {
        Ok(ReadAnswer::Data(bytes)) => Ok(CopyMarker::from_bytes(&bytes, "copy marker").ok()),
        Ok(_) => Err(Error::new(libc::EBADMSG, context())),
        Err(error) if error.is(libc::ENODATA) => Ok(None),
        Err(error) => Err(error.context(context())),
    }
}

/// Writes the marker of a local image.
pub async fn write(image: &Image, marker: &CopyMarker) -> Result<()> {
    change(image, marker.write_sub()).await
}

/// Removes the marker of a local image; it is no error when it has none.
pub async fn remove(image: &Image) -> Result<()> {
    match change(image, WriteSub::RemoveXattr(XATTR.into())).await {
        Err(error) if error.is(libc::ENODATA) => Ok(()),
        other => other,
    }
}

async fn change(image: &Image, sub: WriteSub) -> Result<()> {
    let op = WriteOp::new(header_object(image.id())).with(sub);
    let written = image.header_ioctx().write(op).await.map(drop);
    written.context(format!("cannot change the copy marker of image {}", image.id()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rbd::SnapshotNamespace;

    use super::*;
    use crate::types::{MirrorPeerState, SyncPoint};

    fn marker() -> CopyMarker {
        CopyMarker {
            remote_image: ImageId("primary".into()),
            sync_point: "point".into(),
            repair: false,
            copied_below: 5,
            copied: false,
            snap_seqs: [(SnapId(3), SnapId(8)), (SnapId(4), SnapId(9))].into(),
            origin: Origin::Unowned { newest: TagTid(7) },
            start: None,
        }
    }

    fn peer(name: &str, object_number: Option<u64>, snap_seqs: &[(u64, u64)]) -> MirrorPeer {
        let point = SyncPoint {
            namespace: SnapshotNamespace::User,
            name: name.into(),
            from_name: String::new(),
            object_number,
        };
        MirrorPeer {
            image: ImageId("copy".into()),
            state: MirrorPeerState::Syncing,
            sync_object_count: 0,
            sync_points: vec![point],
            snap_seqs: snap_seqs.iter().map(|(remote, local)| (SnapId(*remote), SnapId(*local))).collect(),
        }
    }

    #[test]
    fn a_marker_is_only_of_the_copy_that_nobody_else_worked_on() {
        let same = [(3, 8), (4, 9)];
        assert!(marker().is_of(&peer("point", Some(4), &same)));
        assert!(marker().is_of(&peer("point", None, &[])));
        assert!(!marker().is_of(&peer("other", Some(4), &same)));
        assert!(!marker().is_of(&peer("point", Some(5), &same)), "another daemon has copied object 5");
        assert!(
            !marker().is_of(&peer("point", Some(4), &[(3, 8), (4, 10)])),
            "another daemon made snapshot 10"
        );
    }

    proptest! {
        #[test]
        fn markers_survive_their_encoding_and_nonsense_is_refused(
            image in "[0-9a-f]{0,20}", name in ".{0,20}", repair: bool, copied_below: u64, copied: bool, newest: Option<u64>,
            start: Option<(u64, u64)>,
            seqs in proptest::collection::btree_map(any::<u64>(), any::<u64>(), 0..5),
            cut in 0_usize..64, flip in any::<(usize, u8)>(),
        ) {
            let origin = newest.map_or(Origin::Event, |newest| Origin::Unowned { newest: TagTid(newest) });
            let snap_seqs = seqs.into_iter().map(|(remote, local)| (SnapId(remote), SnapId(local))).collect();
            let start = start.map(|(tag, entry)| EntryPosition { tag: TagTid(tag), entry: EntryTid(entry) });
            let remote_image = ImageId(image);
            let marker = CopyMarker { remote_image, sync_point: name, repair, copied_below, copied, snap_seqs, origin, start };
            let bytes = marker.to_bytes();
            prop_assert_eq!(&CopyMarker::from_bytes(&bytes, "marker").unwrap(), &marker);
            let cut = cut.min(bytes.len() - 1);
            prop_assert!(CopyMarker::from_bytes(&bytes[..cut], "marker").is_err());
            let mut changed = bytes.to_vec();
            changed[flip.0 % bytes.len()] ^= flip.1;
            let _ = CopyMarker::from_bytes(&changed, "marker");
        }
    }
}
