//! Encodings of what journals hold.
//!
//! | value | version | fields |
//! |---|---|---|
//! | [`ObjectPosition`] | 1 | u64 object, u64 tag, u64 entry |
//! | [`CommitPosition`] | 1 | list of object positions |
//! | [`Client`] | 1 | string id, blob data, commit position, u8 state |
//! | [`Tag`] | 1 | u64 tid, u64 class, blob data |
//! | [`TagData`] | none | string mirror uuid; of the predecessor: string mirror uuid, bool whether anything was committed, u64 tag, u64 entry |
//! | [`ClientData`] | 2 | u32 kind, then: image (0): u64 tag class, bool resync requested; mirror peer (1): [`MirrorPeer`]; by hand (2): nothing |
//! | [`MirrorPeer`] | of its `ClientData` | string image id, u32 state, u64 objects, list of sync points, map of u64 to u64 |
//! | [`SyncPoint`] | of its `ClientData` | string name, string from name, optional u64 object number, namespace (from version 2 on) |
//!
//! Events are a matter of their own: see [`event`].
//!
//! Reference: `src/cls/journal/cls_journal_types.cc`, `src/librbd/journal/Types.cc`.

pub mod event;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use rados::SnapId;
use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};
use rbd::{ImageId, SnapshotNamespace};

use crate::types::{
    Client, ClientData, ClientState, CommitPosition, EntryPosition, EntryTid, JournalObject, MirrorPeer,
    MirrorPeerState, ObjectPosition, SyncPoint, Tag, TagClass, TagData, TagPredecessor, TagTid,
};

type Decoded<T> = Result<T, DecodeError>;

/// Version of [`ClientData`] that is written.
const CLIENT_DATA_VERSION: u8 = 2;
const KIND_IMAGE: u32 = 0;
const KIND_MIRROR_PEER: u32 = 1;
const KIND_CLI: u32 = 2;

impl Encode for ObjectPosition {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.u64(self.object.0).u64(self.position.tag.0).u64(self.position.entry.0);
        });
    }
}

impl Decode for ObjectPosition {
    fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        d.versioned("journal object position", 1, |d, _| {
            let object = JournalObject(d.u64()?);
            let position = EntryPosition { tag: TagTid(d.u64()?), entry: EntryTid(d.u64()?) };
            Ok(ObjectPosition { object, position })
        })
    }
}

impl Encode for CommitPosition {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.seq(&self.0, |e, position| {
                e.value(position);
            });
        });
    }
}

impl Decode for CommitPosition {
    fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        d.versioned("journal commit position", 1, |d, _| {
            Ok(CommitPosition(d.seq(30, ObjectPosition::decode)?))
        })
    }
}

impl ClientState {
    /// As encoded.
    pub(crate) fn to_wire(self) -> u8 {
        match self {
            ClientState::Connected => 0,
            ClientState::Disconnected => 1,
        }
    }
}

impl Encode for Client {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.string(&self.id).blob(&self.data).value(&self.commit_position).u8(self.state.to_wire());
        });
    }
}

impl Decode for Client {
    fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        d.versioned("journal client", 1, |d, _| {
            Ok(Client {
                id: d.string()?,
                data: Bytes::copy_from_slice(d.blob()?),
                commit_position: CommitPosition::decode(d)?,
                state: match d.u8()? {
                    0 => ClientState::Connected,
                    1 => ClientState::Disconnected,
                    state => return Err(d.invalid(format!("there is no client state {state}"))),
                },
            })
        })
    }
}

impl Client {
    /// Its data, decoded.
    pub fn client_data(&self) -> Decoded<ClientData> {
        ClientData::from_bytes(&self.data, "the data of a journal client")
    }
}

impl Encode for Tag {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.u64(self.tid.0).u64(self.class.0).blob(&self.data);
        });
    }
}

impl Decode for Tag {
    fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        d.versioned("journal tag", 1, |d, _| {
            let (tid, class) = (TagTid(d.u64()?), TagClass(d.u64()?));
            Ok(Tag { tid, class, data: Bytes::copy_from_slice(d.blob()?) })
        })
    }
}

impl Tag {
    /// Its data, decoded.
    pub fn tag_data(&self) -> Decoded<TagData> {
        TagData::from_bytes(&self.data, "the data of a journal tag")
    }
}

impl Encode for TagPredecessor {
    fn encode(&self, e: &mut Encoder) {
        let commit = self.commit.unwrap_or(EntryPosition { tag: TagTid(0), entry: EntryTid(0) });
        e.string(&self.mirror_uuid).bool(self.commit.is_some()).u64(commit.tag.0).u64(commit.entry.0);
    }
}

impl Decode for TagPredecessor {
    fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        let (mirror_uuid, committed) = (d.string()?, d.bool()?);
        let commit = EntryPosition { tag: TagTid(d.u64()?), entry: EntryTid(d.u64()?) };
        Ok(TagPredecessor { mirror_uuid, commit: committed.then_some(commit) })
    }
}

impl Encode for TagData {
    fn encode(&self, e: &mut Encoder) {
        e.string(&self.mirror_uuid).value(&self.predecessor);
    }
}

impl Decode for TagData {
    fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        Ok(TagData { mirror_uuid: d.string()?, predecessor: TagPredecessor::decode(d)? })
    }
}

impl Encode for ClientData {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(CLIENT_DATA_VERSION, 1, |e| {
            match self {
                ClientData::Image { tag_class, resync_requested } => {
                    e.u32(KIND_IMAGE).u64(tag_class.0).bool(*resync_requested)
                }
                ClientData::MirrorPeer(peer) => e.u32(KIND_MIRROR_PEER).value(peer),
                ClientData::Cli => e.u32(KIND_CLI),
                ClientData::Unknown { kind, payload } => e.u32(*kind).raw(payload),
            };
        });
    }
}

impl Decode for ClientData {
    fn decode(d: &mut Decoder<'_>) -> Decoded<Self> {
        d.versioned("journal client data", CLIENT_DATA_VERSION, |d, version| {
            Ok(match d.u32()? {
                KIND_IMAGE => {
                    ClientData::Image { tag_class: TagClass(d.u64()?), resync_requested: d.bool()? }
                }
                KIND_MIRROR_PEER => ClientData::MirrorPeer(decode_mirror_peer(d, version)?),
                KIND_CLI => ClientData::Cli,
                kind => {
                    let left = d.left();
                    ClientData::Unknown { kind, payload: Bytes::copy_from_slice(d.raw(left)?) }
                }
            })
        })
    }
}

impl Encode for MirrorPeer {
    fn encode(&self, e: &mut Encoder) {
        let state = match self.state {
            MirrorPeerState::Syncing => 0,
            MirrorPeerState::Replaying => 1,
        };
        e.string(&self.image.0).u32(state).u64(self.sync_object_count);
        e.seq(&self.sync_points, |e, point| {
            e.value(point);
        });
        e.count(self.snap_seqs.len());
        for (primary, copy) in &self.snap_seqs {
            e.u64(primary.0).u64(copy.0);
        }
    }
}

fn decode_mirror_peer(d: &mut Decoder<'_>, version: u8) -> Decoded<MirrorPeer> {
    Ok(MirrorPeer {
        image: ImageId(d.string()?),
        state: match d.u32()? {
            0 => MirrorPeerState::Syncing,
            1 => MirrorPeerState::Replaying,
            state => return Err(d.invalid(format!("there is no state {state} of a mirror"))),
        },
        sync_object_count: d.u64()?,
        sync_points: d.seq(9, |d| decode_sync_point(d, version))?,
        snap_seqs: d.seq(16, |d| Ok((SnapId(d.u64()?), SnapId(d.u64()?))))?.into_iter().collect(),
    })
}

impl Encode for SyncPoint {
    fn encode(&self, e: &mut Encoder) {
        e.string(&self.name).string(&self.from_name).bool(self.object_number.is_some());
        if let Some(number) = self.object_number {
            e.u64(number);
        }
        e.value(&self.namespace);
    }
}

fn decode_sync_point(d: &mut Decoder<'_>, version: u8) -> Decoded<SyncPoint> {
    let (name, from_name) = (d.string()?, d.string()?);
    let object_number = if d.bool()? { Some(d.u64()?) } else { None };
    let namespace = if version >= 2 { SnapshotNamespace::decode(d)? } else { SnapshotNamespace::User };
    Ok(SyncPoint { namespace, name, from_name, object_number })
}
