//! Operations as values: what may be done to one object in one atomic step.
//!
//! An operation holds nothing that could not be written to a wire. The sub-operations of one [`WriteOp`] are applied
//! atomically and in order, or not at all; those of one [`ReadOp`] see one state of the object.

use bytes::Bytes;

use crate::types::{Extent, SnapContext, SnapId};

/// A read of one object: sub-operations answered together.
#[derive(Debug, std::clone::Clone, PartialEq, Eq)]
pub struct ReadOp {
    /// Object name.
    pub object: String,
    /// Snapshot to read at; [`SnapId::HEAD`] unless set. Ignored by [`ReadSub::ListSnaps`].
    pub snap: SnapId,
    /// One of the many requests that move or compare data: it has its turn among those (see [`crate::Limits`]).
    pub bulk: bool,
    /// What to read.
    pub subs: Vec<ReadSub>,
}

/// One part of a [`ReadOp`], answered by the [`ReadAnswer`] of the same index and kind.
#[derive(Debug, std::clone::Clone, PartialEq, Eq)]
pub enum ReadSub {
    /// Bytes of a range; short at the end of the object. Answer: `Data`.
    Read(Extent),
    /// Allocated ranges within a range, and their bytes. Answer: `Sparse`.
    SparseRead(Extent),
    /// Size and modification time. Answer: `Stat`.
    Stat,
    /// Checksums of a range, one per `chunk` bytes (0: one over all). Answer: `Checksums`.
    Checksum {
        /// Algorithm.
        kind: ChecksumKind,
        /// Range to sum; it must lie within the object.
        extent: Extent,
        /// Bytes per checksum, 0 for the whole range; `extent.length` is a multiple of it.
        chunk: u32,
    },
    /// The object's clones and the snapshots they serve. Not to be mixed with subs that read at a snapshot. Answer:
    /// `Snaps`.
    ListSnaps,
    /// Who watches the object. Answer: `Watchers`.
    ListWatchers,
    /// An extended attribute (ENODATA when absent). Answer: `Data`.
    GetXattr(String),
    /// Omap entries whose key is greater than `after` and starts with `prefix`, at most `max`. Answer: `Omap`.
    OmapGet {
        /// Key after which to start; empty for the first.
        after: String,
        /// Only keys that start so; empty for all.
        prefix: String,
        /// At most so many entries (the OSD may answer fewer).
        max: u64,
    },
    /// Omap entries of the given keys; absent ones are left out. Answer: `Omap`.
    OmapGetByKeys(Vec<String>),
    /// A class method that reads. Answer: `Data`.
    Exec {
        /// Object class, for example `rbd`.
        class: String,
        /// Method name.
        method: String,
        /// Encoded arguments.
        input: Bytes,
    },
    /// Fails the whole operation with ENOENT when the object does not exist. Answer: `Done`.
    AssertExists,
    /// Fails the whole operation unless the object is at this version (ERANGE, EOVERFLOW). Answer: `Done`.
    AssertVersion(u64),
}

/// Algorithms of `rados_read_op_checksum`.
#[derive(Debug, std::clone::Clone, Copy, PartialEq, Eq)]
pub enum ChecksumKind {
    /// 32-bit xxHash, little-endian on the wire, seed -1.
    XxHash32,
    /// 64-bit xxHash, seed -1.
    XxHash64,
    /// CRC-32C, seed -1.
    Crc32c,
}

/// What a [`ReadSub`] found.
#[derive(Debug, std::clone::Clone, PartialEq, Eq)]
pub enum ReadAnswer {
    /// Of `Read`, `GetXattr`, `Exec`.
    Data(Bytes),
    /// Of `SparseRead`: ranges that hold data, ascending and disjoint, and their bytes one after another.
    Sparse {
        /// Allocated ranges, in object offsets.
        extents: Vec<Extent>,
        /// The bytes of all `extents`, concatenated.
        data: Bytes,
    },
    /// Of `Stat`.
    Stat {
        /// Object size in bytes.
        size: u64,
        /// Modification time, seconds since the epoch.
        mtime_seconds: i64,
    },
    /// Of `Checksum`: one value per chunk.
    Checksums(Vec<u64>),
    /// Of `ListSnaps`.
    Snaps(CloneSet),
    /// Of `ListWatchers`.
    Watchers(Vec<Watcher>),
    /// Of `OmapGet`, `OmapGetByKeys`.
    Omap(OmapPage),
    /// Of assertions.
    Done,
}

/// One who watches an object.
#[derive(Debug, std::clone::Clone, PartialEq, Eq)]
pub struct Watcher {
    /// The client's address in the form that blocklists use, for example `127.0.0.1:0/123456`.
    pub address: String,
    /// Global id of the client.
    pub client: u64,
    /// The watch's cookie ([`crate::Watch::cookie`]).
    pub cookie: u64,
    /// Seconds of silence after which the cluster forgets it.
    pub timeout_seconds: u32,
}

/// A page of omap entries.
#[derive(Debug, std::clone::Clone, PartialEq, Eq, Default)]
pub struct OmapPage {
    /// Entries in key order.
    pub entries: Vec<(String, Bytes)>,
    /// True when there are more behind the last one.
    pub more: bool,
}

/// An object's history as the OSD keeps it (`list_snaps`).
#[derive(Debug, std::clone::Clone, PartialEq, Eq, Default)]
pub struct CloneSet {
    /// Newest snapshot id that the object has seen.
    pub seq: u64,
    /// Clones, oldest first; the head, when it exists, is the last, with `id` [`SnapId::HEAD`].
    pub clones: Vec<Clone>,
}

/// One clone of an object, or its head.
#[derive(Debug, std::clone::Clone, PartialEq, Eq)]
pub struct Clone {
    /// Clone id (the newest snapshot that it serves when it was made), or [`SnapId::HEAD`].
    pub id: SnapId,
    /// Snapshots that it serves, ascending; empty for the head.
    pub snaps: Vec<SnapId>,
    /// Ranges that it shares with the next newer clone or head.
    pub overlap: Vec<Extent>,
    /// Its size in bytes.
    pub size: u64,
}

/// Answer to a [`ReadOp`].
#[derive(Debug, std::clone::Clone, PartialEq, Eq)]
pub struct ReadReply {
    /// One answer per sub-operation, in order.
    pub answers: Vec<ReadAnswer>,
    /// Version of the object that was read.
    pub version: u64,
}

/// A change of one object: sub-operations applied atomically, in order.
#[derive(Debug, std::clone::Clone, PartialEq, Eq)]
pub struct WriteOp {
    /// Object name.
    pub object: String,
    /// Snapshots to preserve; the default preserves none.
    pub snap_context: SnapContext,
    /// Carried out although the pool is full: for what must be written in order to free space. Any other write that needs
    /// room is refused then (EDQUOT, ENOSPC).
    pub despite_full: bool,
    /// As [`ReadOp::bulk`].
    pub bulk: bool,
    /// What to change.
    pub subs: Vec<WriteSub>,
}

/// One part of a [`WriteOp`].
#[derive(Debug, std::clone::Clone, PartialEq, Eq)]
pub enum WriteSub {
    /// Creates the object; with `exclusive`, fails with EEXIST when it is there.
    Create {
        /// Fail when the object exists.
        exclusive: bool,
    },
    /// Writes bytes at an offset; at least one.
    Write {
        /// First byte.
        offset: u64,
        /// What to write.
        data: Bytes,
    },
    /// Replaces the whole content.
    WriteFull(Bytes),
    /// Appends bytes.
    Append(Bytes),
    /// Zeroes a range of at least one byte (may deallocate it; never grows the object).
    Zero(Extent),
    /// Sets the size.
    Truncate(u64),
    /// Removes the object (its clones stay).
    Remove,
    /// Makes the object what it was at a snapshot; removes it when it was not there then.
    Rollback(SnapId),
    /// Hints the expected object and write size in bytes to the allocator.
    AllocHint {
        /// Expected object size in bytes.
        object_size: u64,
        /// Expected write size in bytes.
        write_size: u64,
    },
    /// Sets an extended attribute.
    SetXattr(String, Bytes),
    /// Removes an extended attribute.
    RemoveXattr(String),
    /// Sets omap entries.
    OmapSet(Vec<(String, Bytes)>),
    /// Removes omap entries.
    OmapRemove(Vec<String>),
    /// Removes all omap entries.
    OmapClear,
    /// A class method that writes.
    Exec {
        /// Object class, for example `rbd`.
        class: String,
        /// Method name.
        method: String,
        /// Encoded arguments.
        input: Bytes,
    },
    /// Fails the whole operation with ENOENT when the object does not exist.
    AssertExists,
    /// Fails the whole operation unless the object is at this version (ERANGE, EOVERFLOW).
    AssertVersion(u64),
    /// Fails the whole operation with ECANCELED unless the attribute equals this value.
    CompareXattr(String, Bytes),
}

impl ReadOp {
    /// An empty read of `object` at its head.
    pub fn new(object: impl Into<String>) -> Self {
        ReadOp { object: object.into(), snap: SnapId::HEAD, bulk: false, subs: Vec::new() }
    }

    /// Reads at `snap`.
    pub fn at(mut self, snap: SnapId) -> Self {
        self.snap = snap;
        self
    }

    /// Adds a sub-operation.
    pub fn with(mut self, sub: ReadSub) -> Self {
        self.subs.push(sub);
        self
    }

    /// Adds a call of a class method that reads.
    pub fn exec(self, class: &str, method: &str, input: impl Into<Bytes>) -> Self {
        self.with(ReadSub::Exec { class: class.into(), method: method.into(), input: input.into() })
    }
}

impl WriteOp {
    /// An empty change of `object`.
    pub fn new(object: impl Into<String>) -> Self {
        WriteOp {
            object: object.into(),
            snap_context: SnapContext::default(),
            despite_full: false,
            bulk: false,
            subs: Vec::new(),
        }
    }

    /// Carries it out although the pool is full.
    pub fn despite_full(mut self) -> Self {
        self.despite_full = true;
        self
    }

    /// Preserves the snapshots of `snap_context`.
    pub fn under(mut self, snap_context: SnapContext) -> Self {
        self.snap_context = snap_context;
        self
    }

    /// Adds a sub-operation.
    pub fn with(mut self, sub: WriteSub) -> Self {
        self.subs.push(sub);
        self
    }

    /// Adds a call of a class method that writes.
    pub fn exec(self, class: &str, method: &str, input: impl Into<Bytes>) -> Self {
        self.with(WriteSub::Exec { class: class.into(), method: method.into(), input: input.into() })
    }

    /// The first sub-operation that is about a range of no bytes. OSDs abort on a zero of that kind, and take a write of
    /// it for a truncate or for nothing, depending on the object: neither is ever sent.
    pub(crate) fn empty_range(&self) -> Option<&WriteSub> {
        self.subs.iter().find(|sub| match sub {
            WriteSub::Write { data, .. } => data.is_empty(),
            WriteSub::Zero(extent) => extent.length == 0,
            _ => false,
        })
    }

    /// Bytes of data that it carries: what it counts against the bound of bytes in flight.
    pub fn payload_bytes(&self) -> u64 {
        let size = |sub: &WriteSub| match sub {
            WriteSub::Write { data, .. } | WriteSub::WriteFull(data) | WriteSub::Append(data) => data.len(),
            WriteSub::SetXattr(_, data) | WriteSub::CompareXattr(_, data) => data.len(),
            WriteSub::Exec { input, .. } => input.len(),
            WriteSub::OmapSet(entries) => entries.iter().map(|(k, v)| k.len() + v.len()).sum(),
            _ => 0,
        };
        self.subs.iter().map(|sub| size(sub) as u64).sum()
    }
}

impl ReadOp {
    /// Bytes that the answer may hold: what it counts against the bound of bytes in flight.
    pub fn payload_bytes(&self) -> u64 {
        let size = |sub: &ReadSub| match sub {
            ReadSub::Read(extent) | ReadSub::SparseRead(extent) => extent.length,
            _ => 0,
        };
        self.subs.iter().map(size).sum()
    }
}
