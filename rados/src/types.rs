//! Identifiers and small values that every layer shares. Numbers of different kinds are different types.

use std::fmt;

/// A pool's number in the OSD map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PoolId(pub i64);

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A self-managed RADOS snapshot id, which is also the id of an RBD snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapId(pub u64);

impl SnapId {
    /// The head of an object: what is read and written when no snapshot is meant (`CEPH_NOSNAP`).
    pub const HEAD: SnapId = SnapId(u64::MAX - 1);
    /// The snapshot directory of an object, read by `list_snaps` (`CEPH_SNAPDIR`).
    pub const DIR: SnapId = SnapId(u64::MAX);

    /// True for [`SnapId::HEAD`].
    pub fn is_head(self) -> bool {
        self == SnapId::HEAD
    }
}

impl fmt::Display for SnapId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_head() { f.write_str("head") } else { self.0.fmt(f) }
    }
}

/// The snapshots that a write must preserve.
///
/// An OSD clones an object's head before a write when `seq` is newer than what the object has seen; the clone then
/// serves the ids of `snaps` that are newer than the object's. `snaps` is in descending order and none exceeds `seq`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SnapContext {
    /// Newest snapshot id that the writer knows of; 0 when there is none.
    pub seq: u64,
    /// Existing snapshots, newest first.
    pub snaps: Vec<SnapId>,
}

impl SnapContext {
    /// A context over `snaps`, in any order; `seq` is the newest of them.
    pub fn new(mut snaps: Vec<SnapId>) -> Self {
        snaps.sort_unstable_by(|a, b| b.cmp(a));
        let seq = snaps.first().map_or(0, |s| s.0);
        SnapContext { seq, snaps }
    }
}

/// A range of bytes, `offset..offset + length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

impl Extent {
    /// The range `offset..offset + length`.
    pub fn new(offset: u64, length: u64) -> Self {
        Extent { offset, length }
    }

    /// First byte behind the range.
    pub fn end(self) -> u64 {
        self.offset + self.length
    }

    /// True when no byte is in it.
    pub fn is_empty(self) -> bool {
        self.length == 0
    }
}
