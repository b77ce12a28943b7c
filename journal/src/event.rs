//! What happened to an image: the content of a journal entry.
//!
//! Reference: `src/librbd/journal/Types.h`, `Types.cc`.

use bytes::Bytes;
use rados::{Extent, SnapId};
use rbd::{Features, SnapshotNamespace, Timestamp};

/// An event and when it was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventEntry {
    /// What happened.
    pub event: Event,
    /// When, by the writer's clock.
    pub timestamp: Timestamp,
}

/// Number of an operation, which ties an [`Event::OpFinish`] to its [`Event::Op`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpTid(pub u64);

/// What happened. Extents are in image offsets, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes were written.
    Write {
        /// Where.
        extent: Extent,
        /// What; as long as the extent.
        data: Bytes,
    },
    /// A range was discarded.
    Discard {
        /// The range.
        extent: Extent,
        /// Only parts aligned to so many bytes were; 0 for all, `u32::MAX` for whole objects.
        granularity: u32,
    },
    /// A pattern was written again and again.
    WriteSame {
        /// Where.
        extent: Extent,
        /// The pattern, not empty unless the extent is; librbd lets the extent's length be a multiple of its.
        data: Bytes,
    },
    /// Bytes were written if what was there equalled other bytes.
    CompareAndWrite {
        /// Where.
        extent: Extent,
        /// What was to be there; as long as the extent.
        compare: Bytes,
        /// What to write; as long as the extent.
        write: Bytes,
    },
    /// All writes before it are on disk.
    Flush,
    /// A maintenance operation began.
    Op {
        /// Its number.
        tid: OpTid,
        /// The operation.
        op: Op,
    },
    /// A maintenance operation ended.
    OpFinish {
        /// Its number.
        tid: OpTid,
        /// 0, or a negated errno.
        result: i32,
    },
    /// The image was demoted or promoted.
    DemotePromote,
    /// Of a type that this program does not know.
    Unknown {
        /// The type.
        kind: u32,
    },
}

/// A maintenance operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A snapshot was made.
    SnapCreate {
        /// Its namespace.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
    },
    /// A snapshot was removed.
    SnapRemove {
        /// Its namespace.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
    },
    /// A snapshot was renamed.
    SnapRename {
        /// Its id on the primary.
        snap: SnapId,
        /// Its old name; empty in entries of old versions.
        from: String,
        /// Its new name.
        to: String,
    },
    /// A snapshot was protected.
    SnapProtect {
        /// Its namespace.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
    },
    /// A snapshot was unprotected.
    SnapUnprotect {
        /// Its namespace.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
    },
    /// The head was set back to a snapshot.
    SnapRollback {
        /// Its namespace.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
    },
    /// The image was renamed.
    Rename {
        /// Its new name.
        to: String,
    },
    /// The image was resized.
    Resize {
        /// Its new size in bytes.
        size: u64,
    },
    /// The image was detached from its parent.
    Flatten,
    /// The number of snapshots was limited.
    SnapLimit {
        /// The limit; `u64::MAX` for none.
        limit: u64,
    },
    /// Features were enabled or disabled.
    UpdateFeatures {
        /// Which.
        features: Features,
        /// Whether they were enabled.
        enabled: bool,
    },
    /// A key of the image's metadata was set.
    MetadataSet {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// A key of the image's metadata was removed.
    MetadataRemove {
        /// The key.
        key: String,
    },
}
