//! RBD images as Ceph stores them, read and written natively over RADOS.

pub mod types;

pub use types::{
    Features, ImageFlags, ImageId, MirrorSnapshot, MirrorSnapshotState, ObjectNumber, Parent, ProtectionStatus, Snapshot,
    SnapshotNamespace, Timestamp,
};
