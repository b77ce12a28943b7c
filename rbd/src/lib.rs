//! RBD images as Ceph stores them, read and written natively over RADOS.

pub mod children;
pub mod create;
pub mod directory;
pub mod encodings;
pub mod exclusive_lock;
pub mod fast_diff;
pub mod features;
#[cfg(test)]
mod golden;
pub mod header;
pub mod header_update;
pub mod image;
pub mod image_state;
pub mod layout;
pub mod limits;
pub mod made_anew;
pub mod managed_lock;
pub mod mirroring;
pub mod object_map;
pub mod pool_metadata;
pub mod read;
pub mod removal_mark;
pub mod remove;
pub mod rollback;
pub mod snapshots;
pub mod trash;
pub mod types;
pub mod watch_notify;

pub use children::CloneFormat;
pub use create::{NewImage, generate_id};
pub use fast_diff::{Diff, FastDiffVersion};
pub use header::ImageHeader;
pub use header_update::HeaderUpdate;
pub use image::Image;
pub use layout::{Layout, ObjectExtent};
pub use object_map::{MapUpdate, ObjectMap, ObjectMapObject, ObjectState};
pub use remove::RemoveOptions;
pub use snapshots::{NewSnapshot, Removal};
pub use types::{
    ChildImage, Features, GroupSpec, ImageFlags, ImageId, MirrorSnapshot, MirrorSnapshotState, ObjectNumber,
    OpFeatures, Parent, ParentSpec, ProtectionStatus, Snapshot, SnapshotNamespace, Timestamp,
};
