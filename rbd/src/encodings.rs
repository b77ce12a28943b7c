//! Encodings of what image headers hold: snapshots and their namespaces, parents, children, groups, migrations.
//!
//! | value | version | fields |
//! |---|---|---|
//! | timestamp (`utime_t`) | none | u32 seconds, u32 nanoseconds |
//! | snapshot namespace | 1 | u32 type, then: user: nothing; group (1): i64 pool, string id, string snapshot id; trash (2): string name, u32 type; mirror (3): u8 state, bool complete, set of peer uuids, string primary mirror uuid, u64 primary snap id, u64 last copied object, map of u64 to u64 |
//! | [`SnapshotInfo`] | 1 | u64 id, namespace, string name, u64 size, timestamp, u32 children |
//! | [`ParentSpec`] | 1 | i64 pool, string namespace, string image id, u64 snapshot id |
//! | [`ChildImage`] | 2 | i64 pool, string image id, string namespace (from version 2 on) |
//! | [`GroupSpec`] | 1 | i64 pool, string id |
//! | [`MigrationSpec`] | 3 | see its decoder |
//!
//! Reference: `src/cls/rbd/cls_rbd_types.cc`.

use std::collections::BTreeMap;

use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};
use rados::{PoolId, SnapId};

use crate::types::{
    ChildImage, GroupSpec, ImageId, MirrorSnapshot, MirrorSnapshotState, ParentSpec, ProtectionStatus,
    SnapshotNamespace, Timestamp,
};

/// Types of snapshot namespaces on the wire.
pub mod namespace_type {
    /// Made by a user.
    pub const USER: u32 = 0;
    /// Part of a group snapshot.
    pub const GROUP: u32 = 1;
    /// Removed, but kept for its clones.
    pub const TRASH: u32 = 2;
    /// Made by mirroring.
    pub const MIRROR: u32 = 3;
}

/// What `snapshot_get` tells of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its id.
    pub id: SnapId,
    /// What it is for.
    pub namespace: SnapshotNamespace,
    /// Its name.
    pub name: String,
    /// The image's size at that time, in bytes.
    pub image_size: u64,
    /// When it was made.
    pub timestamp: Timestamp,
    /// Number of its v2 clones.
    pub child_count: u32,
}

/// The side of a migration that an image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationHeaderType {
    /// It is migrated from.
    Source,
    /// It is migrated to.
    Destination,
}

/// A running migration as an image's header tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrationSpec {
    /// Which side this image is.
    pub header_type: MigrationHeaderType,
    /// Pool of the other image.
    pub pool: PoolId,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub image_name: String,
    /// Its id.
    pub image: ImageId,
    /// Source snapshot id to destination snapshot id.
    pub snap_seqs: BTreeMap<SnapId, SnapId>,
    /// Bytes that may still come from the source.
    pub overlap: u64,
    /// The destination is to have no parent.
    pub flatten: bool,
    /// Mirroring was enabled on the source.
    pub mirroring: bool,
    /// How far it is, as encoded (`MIGRATION_STATE_*`).
    pub state: u8,
    /// The same in words.
    pub state_description: String,
    /// Mirroring mode of the source, as encoded.
    pub mirror_image_mode: u8,
    /// A source that is no RBD image, in JSON; empty for an RBD image.
    pub source_spec: String,
}

impl SnapshotNamespace {
    /// Its type as encoded.
    pub fn wire_type(&self) -> u32 {
        match self {
            SnapshotNamespace::User => namespace_type::USER,
            SnapshotNamespace::Group { .. } => namespace_type::GROUP,
            SnapshotNamespace::Trash { .. } => namespace_type::TRASH,
            SnapshotNamespace::Mirror(_) => namespace_type::MIRROR,
            SnapshotNamespace::Unknown(wire_type) => *wire_type,
        }
    }
}

impl Encode for Timestamp {
    fn encode(&self, e: &mut Encoder) {
        e.u32(self.seconds).u32(self.nanoseconds);
    }
}

impl Decode for Timestamp {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(Timestamp { seconds: d.u32()?, nanoseconds: d.u32()? })
    }
}

impl Encode for MirrorSnapshotState {
    fn encode(&self, e: &mut Encoder) {
        e.u8(match self {
            MirrorSnapshotState::Primary => 0,
            MirrorSnapshotState::PrimaryDemoted => 1,
            MirrorSnapshotState::NonPrimary => 2,
            MirrorSnapshotState::NonPrimaryDemoted => 3,
        });
    }
}

impl Decode for MirrorSnapshotState {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        match d.u8()? {
            0 => Ok(MirrorSnapshotState::Primary),
            1 => Ok(MirrorSnapshotState::PrimaryDemoted),
            2 => Ok(MirrorSnapshotState::NonPrimary),
            3 => Ok(MirrorSnapshotState::NonPrimaryDemoted),
            state => Err(d.invalid(format!("there is no mirror snapshot state {state}"))),
        }
    }
}

fn encode_snap_seqs(e: &mut Encoder, snap_seqs: &BTreeMap<SnapId, SnapId>) {
    e.count(snap_seqs.len());
    for (from, to) in snap_seqs {
        e.u64(from.0).u64(to.0);
    }
}

fn decode_snap_seqs(d: &mut Decoder<'_>) -> Result<BTreeMap<SnapId, SnapId>, DecodeError> {
    Ok(d.seq(16, |d| Ok((SnapId(d.u64()?), SnapId(d.u64()?))))?.into_iter().collect())
}

impl Encode for MirrorSnapshot {
    fn encode(&self, e: &mut Encoder) {
        e.value(&self.state).bool(self.complete).count(self.mirror_peer_uuids.len());
        for uuid in &self.mirror_peer_uuids {
            e.string(uuid);
        }
        e.string(&self.primary_mirror_uuid).u64(self.primary_snap_id.0).u64(self.last_copied_object_number);
        encode_snap_seqs(e, &self.snap_seqs);
    }
}

impl Decode for MirrorSnapshot {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        Ok(MirrorSnapshot {
            state: MirrorSnapshotState::decode(d)?,
            complete: d.bool()?,
            mirror_peer_uuids: d.seq(4, |d| d.string())?.into_iter().collect(),
            primary_mirror_uuid: d.string()?,
            primary_snap_id: SnapId(d.u64()?),
            last_copied_object_number: d.u64()?,
            snap_seqs: decode_snap_seqs(d)?,
        })
    }
}

impl Encode for SnapshotNamespace {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.u32(self.wire_type());
            match self {
                SnapshotNamespace::User | SnapshotNamespace::Unknown(_) => {}
                SnapshotNamespace::Group { group_pool, group_id, group_snapshot_id } => {
                    e.i64(group_pool.0).string(group_id).string(group_snapshot_id);
                }
                SnapshotNamespace::Trash { original_name, original_namespace_type } => {
                    e.string(original_name).u32(*original_namespace_type);
                }
                SnapshotNamespace::Mirror(mirror) => {
                    e.value(mirror);
                }
            }
        });
    }
}

impl Decode for SnapshotNamespace {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.versioned("snapshot namespace", 1, |d, _| {
            Ok(match d.u32()? {
                namespace_type::USER => SnapshotNamespace::User,
                namespace_type::GROUP => SnapshotNamespace::Group {
                    group_pool: PoolId(d.i64()?),
                    group_id: d.string()?,
                    group_snapshot_id: d.string()?,
                },
                namespace_type::TRASH => {
                    SnapshotNamespace::Trash { original_name: d.string()?, original_namespace_type: d.u32()? }
                }
                namespace_type::MIRROR => SnapshotNamespace::Mirror(MirrorSnapshot::decode(d)?),
                unknown => SnapshotNamespace::Unknown(unknown),
            })
        })
    }
}

impl Encode for SnapshotInfo {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.u64(self.id.0).value(&self.namespace).string(&self.name).u64(self.image_size);
            e.value(&self.timestamp).u32(self.child_count);
        });
    }
}

impl Decode for SnapshotInfo {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.versioned("snapshot", 1, |d, _| {
            Ok(SnapshotInfo {
                id: SnapId(d.u64()?),
                namespace: SnapshotNamespace::decode(d)?,
                name: d.string()?,
                image_size: d.u64()?,
                timestamp: Timestamp::decode(d)?,
                child_count: d.u32()?,
            })
        })
    }
}

impl Encode for ProtectionStatus {
    fn encode(&self, e: &mut Encoder) {
        e.u8(match self {
            ProtectionStatus::Unprotected => 0,
            ProtectionStatus::Unprotecting => 1,
            ProtectionStatus::Protected => 2,
        });
    }
}

impl Decode for ProtectionStatus {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        match d.u8()? {
            0 => Ok(ProtectionStatus::Unprotected),
            1 => Ok(ProtectionStatus::Unprotecting),
            2 => Ok(ProtectionStatus::Protected),
            status => Err(d.invalid(format!("there is no protection status {status}"))),
        }
    }
}

impl Encode for ParentSpec {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.i64(self.pool.0).string(&self.namespace).string(&self.image.0).u64(self.snap.0);
        });
    }
}

impl Decode for ParentSpec {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.versioned("parent", 1, |d, _| {
            Ok(ParentSpec {
                pool: PoolId(d.i64()?),
                namespace: d.string()?,
                image: ImageId(d.string()?),
                snap: SnapId(d.u64()?),
            })
        })
    }
}

impl Encode for ChildImage {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(2, 1, |e| {
            e.i64(self.pool.0).string(&self.image.0).string(&self.namespace);
        });
    }
}

impl Decode for ChildImage {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.versioned("child image", 2, |d, version| {
            let (pool, image) = (PoolId(d.i64()?), ImageId(d.string()?));
            let namespace = if version >= 2 { d.string()? } else { String::new() };
            Ok(ChildImage { pool, namespace, image })
        })
    }
}

impl Encode for GroupSpec {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.i64(self.pool.0).string(&self.id);
        });
    }
}

impl Decode for GroupSpec {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.versioned("group", 1, |d, _| Ok(GroupSpec { pool: PoolId(d.i64()?), id: d.string()? }))
    }
}

impl Encode for MigrationSpec {
    fn encode(&self, e: &mut Encoder) {
        let compat = if self.source_spec.is_empty() { 1 } else { 3 };
        e.versioned(3, compat, |e| {
            e.u8(match self.header_type {
                MigrationHeaderType::Source => 1,
                MigrationHeaderType::Destination => 2,
            });
            e.i64(self.pool.0).string(&self.namespace).string(&self.image_name).string(&self.image.0);
            encode_snap_seqs(e, &self.snap_seqs);
            e.u64(self.overlap).bool(self.flatten).bool(self.mirroring).u8(self.state);
            e.string(&self.state_description).u8(self.mirror_image_mode).string(&self.source_spec);
        });
    }
}

impl Decode for MigrationSpec {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.versioned("migration", 3, |d, version| {
            let header_type = match d.u8()? {
                1 => MigrationHeaderType::Source,
                2 => MigrationHeaderType::Destination,
                other => return Err(d.invalid(format!("there is no migration header type {other}"))),
            };
            Ok(MigrationSpec {
                header_type,
                pool: PoolId(d.i64()?),
                namespace: d.string()?,
                image_name: d.string()?,
                image: ImageId(d.string()?),
                snap_seqs: decode_snap_seqs(d)?,
                overlap: d.u64()?,
                flatten: d.bool()?,
                mirroring: d.bool()?,
                state: d.u8()?,
                state_description: d.string()?,
                mirror_image_mode: if version >= 2 { d.u8()? } else { 0 },
                source_spec: if version >= 3 { d.string()? } else { String::new() },
            })
        })
    }
}

/// Reads an optional u64 (`std::optional<uint64_t>`): a byte that tells whether there is one, then the value.
pub(crate) fn decode_optional_u64(d: &mut Decoder<'_>) -> Result<Option<u64>, DecodeError> {
    if d.bool()? { Ok(Some(d.u64()?)) } else { Ok(None) }
}

#[cfg(test)]
mod tests;
