//! The encoding of events: what the data of a journal entry is.
//!
//! | field | value |
//! |---|---|
//! | event | versioned struct, version 5: u32 type, then the fields of the type |
//! | metadata (from version 4 on) | versioned struct, version 1: timestamp |
//!
//! | type | event | fields |
//! |---|---|---|
//! | 0 | discard | u64 offset, u64 length, bool skip partial (from 4 on), u32 granularity (from 5 on) |
//! | 1 | write | u64 offset, u64 length, blob |
//! | 2 | flush | |
//! | 3 | op finish | u64 op, u64 op again, i32 result |
//! | 4 to 9, without 6 | snapshot create, remove, protect (7), unprotect (8), rollback (9) | u64 op, string name, namespace (from 4 on; from 3 on where one is created) |
//! | 6 | snapshot rename | u64 op, string new name, u64 snap id, string old name (from 2 on) |
//! | 10 | rename | u64 op, string name |
//! | 11 | resize | u64 op, u64 size |
//! | 12 | flatten | u64 op |
//! | 13 | demote or promote | |
//! | 14 | snapshot limit | u64 op, u64 limit |
//! | 15 | update features | u64 op, u64 features, bool enabled |
//! | 16 | metadata set | u64 op, string key, string value |
//! | 17 | metadata remove | u64 op, string key |
//! | 18 | write same | u64 offset, u64 length, blob |
//! | 19 | compare and write | u64 offset, u64 length, blob compare, blob write |
//!
//! Data is not copied: it stays a slice of the buffer that it was read into.
//!
//! Reference: `src/librbd/journal/Types.cc`.

use bytes::Bytes;
use rados::encoding::{Decode, DecodeError, Decoder, Encoder};
use rados::{Extent, SnapId};
use rbd::{Features, SnapshotNamespace, Timestamp};

use super::Decoded;
use crate::event::{Event, EventEntry, Op, OpTid};

/// Version of events that is written.
const VERSION: u8 = 5;

const DISCARD: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 2;
const OP_FINISH: u32 = 3;
const SNAP_CREATE: u32 = 4;
const SNAP_REMOVE: u32 = 5;
const SNAP_RENAME: u32 = 6;
const SNAP_PROTECT: u32 = 7;
const SNAP_UNPROTECT: u32 = 8;
const SNAP_ROLLBACK: u32 = 9;
const RENAME: u32 = 10;
const RESIZE: u32 = 11;
const FLATTEN: u32 = 12;
const DEMOTE_PROMOTE: u32 = 13;
const SNAP_LIMIT: u32 = 14;
const UPDATE_FEATURES: u32 = 15;
const METADATA_SET: u32 = 16;
const METADATA_REMOVE: u32 = 17;
const WRITE_SAME: u32 = 18;
const COMPARE_AND_WRITE: u32 = 19;

impl EventEntry {
    /// Reads the data of a journal entry. The event's own data are slices of it. A type that this program does not know
    /// is an [`Event::Unknown`]; an error means that the bytes are no event, or one that cannot be applied.
    pub fn decode(data: &Bytes) -> Result<EventEntry, DecodeError> {
        let mut d = Decoder::new(data, "event");
        let (event, version) =
            d.versioned("event", VERSION, |d, version| Ok((decode_event(d, version, data)?, version)))?;
        let timestamp = if version >= 4 {
            d.versioned("event metadata", 1, |d, _| Timestamp::decode(d))?
        } else {
            Timestamp::default()
        };
        Ok(EventEntry { event, timestamp })
    }

    /// The data of a journal entry. Of an unknown event only the type is written: its fields were not kept.
    pub fn encode(&self) -> Bytes {
        let mut e = Encoder::new();
        e.versioned(VERSION, 1, |e| encode_event(e, &self.event));
        e.versioned(1, 1, |e| {
            e.value(&self.timestamp);
        });
        e.finish()
    }
}

fn decode_event(d: &mut Decoder<'_>, version: u8, data: &Bytes) -> Decoded<Event> {
    Ok(match d.u32()? {
        DISCARD => {
            let extent = decode_extent(d)?;
            let skip_partial = version >= 4 && d.bool()?;
            let granularity = match version {
                ..5 if skip_partial => u32::MAX,
                ..5 => 0,
                _ => d.u32()?,
            };
            Event::Discard { extent, granularity }
        }
        WRITE => {
            let extent = decode_extent(d)?;
            let data = data.slice_ref(d.blob()?);
            if data.len() as u64 != extent.length {
                return Err(d.invalid(format!(
                    "a write of {} bytes has {} of data",
                    extent.length,
                    data.len()
                )));
            }
            Event::Write { extent, data }
        }
        WRITE_SAME => {
            let extent = decode_extent(d)?;
            let data = data.slice_ref(d.blob()?);
            if data.is_empty() && !extent.is_empty() {
                return Err(d.invalid("a write of the same has no pattern"));
            }
            Event::WriteSame { extent, data }
        }
        COMPARE_AND_WRITE => {
            let extent = decode_extent(d)?;
            let compare = decode_at_least(d, extent.length, data)?;
            Event::CompareAndWrite { extent, compare, write: decode_at_least(d, extent.length, data)? }
        }
        FLUSH => Event::Flush,
        OP_FINISH => {
            let tid = OpTid(d.u64()?);
            d.u64()?;
            Event::OpFinish { tid, result: d.i32()? }
        }
        DEMOTE_PROMOTE => Event::DemotePromote,
        kind @ (SNAP_CREATE..=FLATTEN | SNAP_LIMIT..=METADATA_REMOVE) => {
            Event::Op { tid: OpTid(d.u64()?), op: decode_op(d, version, kind)? }
        }
        kind => Event::Unknown { kind },
    })
}

fn decode_extent(d: &mut Decoder<'_>) -> Decoded<Extent> {
    let extent = Extent::new(d.u64()?, d.u64()?);
    match extent.offset.checked_add(extent.length) {
        Some(_) => Ok(extent),
        None => Err(d.invalid(format!("{} bytes at {} are past any end", extent.length, extent.offset))),
    }
}

/// A blob of which the first `length` bytes count: old versions of librbd journalled all that they were given.
fn decode_at_least(d: &mut Decoder<'_>, length: u64, data: &Bytes) -> Decoded<Bytes> {
    let blob = d.blob()?;
    match usize::try_from(length).ok().and_then(|length| blob.get(..length)) {
        Some(counted) => Ok(data.slice_ref(counted)),
        None => Err(d.invalid(format!("a compare-and-write of {length} bytes has {} of data", blob.len()))),
    }
}

/// The fields of an operation after its number; `kind` is the type of one.
fn decode_op(d: &mut Decoder<'_>, version: u8, kind: u32) -> Decoded<Op> {
    let snapshot = |d: &mut Decoder<'_>| {
        let name = d.string()?;
        let has_namespace = version >= 4 || (version == 3 && kind == SNAP_CREATE);
        let namespace = if has_namespace { SnapshotNamespace::decode(d)? } else { SnapshotNamespace::User };
        Ok((namespace, name))
    };
    Ok(match kind {
        SNAP_RENAME => {
            let (to, snap) = (d.string()?, SnapId(d.u64()?));
            Op::SnapRename { snap, from: if version >= 2 { d.string()? } else { String::new() }, to }
        }
        RENAME => Op::Rename { to: d.string()? },
        RESIZE => Op::Resize { size: d.u64()? },
        FLATTEN => Op::Flatten,
        SNAP_LIMIT => Op::SnapLimit { limit: d.u64()? },
        UPDATE_FEATURES => Op::UpdateFeatures { features: Features(d.u64()?), enabled: d.bool()? },
        METADATA_SET => Op::MetadataSet { key: d.string()?, value: d.string()? },
        METADATA_REMOVE => Op::MetadataRemove { key: d.string()? },
        _ => {
            let (namespace, name) = snapshot(d)?;
            match kind {
                SNAP_CREATE => Op::SnapCreate { namespace, name },
                SNAP_REMOVE => Op::SnapRemove { namespace, name },
                SNAP_PROTECT => Op::SnapProtect { namespace, name },
                SNAP_UNPROTECT => Op::SnapUnprotect { namespace, name },
                SNAP_ROLLBACK => Op::SnapRollback { namespace, name },
                _ => return Err(d.invalid(format!("events of type {kind} are no operations"))),
            }
        }
    })
}

fn encode_event(e: &mut Encoder, event: &Event) {
    match event {
        Event::Discard { extent, granularity } => {
            e.u32(DISCARD).u64(extent.offset).u64(extent.length).bool(*granularity > 0).u32(*granularity)
        }
        Event::Write { extent, data } => e.u32(WRITE).u64(extent.offset).u64(extent.length).blob(data),
        Event::WriteSame { extent, data } => {
            e.u32(WRITE_SAME).u64(extent.offset).u64(extent.length).blob(data)
        }
        Event::CompareAndWrite { extent, compare, write } => {
            e.u32(COMPARE_AND_WRITE).u64(extent.offset).u64(extent.length).blob(compare).blob(write)
        }
        Event::Flush => e.u32(FLUSH),
        Event::Op { tid, op } => encode_op(e, *tid, op),
        Event::OpFinish { tid, result } => e.u32(OP_FINISH).u64(tid.0).u64(tid.0).i32(*result),
        Event::DemotePromote => e.u32(DEMOTE_PROMOTE),
        Event::Unknown { kind } => e.u32(*kind),
    };
}

fn encode_op<'a>(e: &'a mut Encoder, tid: OpTid, op: &Op) -> &'a mut Encoder {
    let begin = |e: &'a mut Encoder, kind| e.u32(kind).u64(tid.0);
    match op {
        Op::SnapCreate { namespace, name } => begin(e, SNAP_CREATE).string(name).value(namespace),
        Op::SnapRemove { namespace, name } => begin(e, SNAP_REMOVE).string(name).value(namespace),
        Op::SnapProtect { namespace, name } => begin(e, SNAP_PROTECT).string(name).value(namespace),
        Op::SnapUnprotect { namespace, name } => begin(e, SNAP_UNPROTECT).string(name).value(namespace),
        Op::SnapRollback { namespace, name } => begin(e, SNAP_ROLLBACK).string(name).value(namespace),
        Op::SnapRename { snap, from, to } => begin(e, SNAP_RENAME).string(to).u64(snap.0).string(from),
        Op::Rename { to } => begin(e, RENAME).string(to),
        Op::Resize { size } => begin(e, RESIZE).u64(*size),
        Op::Flatten => begin(e, FLATTEN),
        Op::SnapLimit { limit } => begin(e, SNAP_LIMIT).u64(*limit),
        Op::UpdateFeatures { features, enabled } => begin(e, UPDATE_FEATURES).u64(features.0).bool(*enabled),
        Op::MetadataSet { key, value } => begin(e, METADATA_SET).string(key).string(value),
        Op::MetadataRemove { key } => begin(e, METADATA_REMOVE).string(key),
    }
}
