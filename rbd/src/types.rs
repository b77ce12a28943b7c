//! The vocabulary of RBD: features, snapshots and their namespaces.
//!
//! Reference: `src/include/rbd_types.h`, `src/include/rbd/features.h`, `src/cls/rbd/cls_rbd_types.h`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rados::{PoolId, SnapId};

/// An image's id: names its header, data objects and object maps. Unlike the name, it never changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(pub String);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a data object within an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectNumber(pub u64);

impl fmt::Display for ObjectNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The feature bits of an image (`RBD_FEATURE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features(pub u64);

impl Features {
    /// Clones are possible.
    pub const LAYERING: Features = Features(1 << 0);
    /// Striping other than the default.
    pub const STRIPINGV2: Features = Features(1 << 1);
    /// One writer at a time.
    pub const EXCLUSIVE_LOCK: Features = Features(1 << 2);
    /// A bitmap tells which objects exist.
    pub const OBJECT_MAP: Features = Features(1 << 3);
    /// Object maps tell what changed between snapshots.
    pub const FAST_DIFF: Features = Features(1 << 4);
    /// Flattening detaches the snapshots too.
    pub const DEEP_FLATTEN: Features = Features(1 << 5);
    /// Writes go to a journal first.
    pub const JOURNALING: Features = Features(1 << 6);
    /// Data objects live in a pool of their own.
    pub const DATA_POOL: Features = Features(1 << 7);
    /// Some operation feature is in use.
    pub const OPERATIONS: Features = Features(1 << 8);
    /// The image is being migrated.
    pub const MIGRATING: Features = Features(1 << 9);
    /// The image is a non-primary copy: librbd refuses to write to it.
    pub const NON_PRIMARY: Features = Features(1 << 10);
    /// A client-side write-back cache holds data.
    pub const DIRTY_CACHE: Features = Features(1 << 11);
    /// All that this program knows.
    pub const ALL: Features = Features((1 << 12) - 1);

    /// True when every bit of `other` is set.
    pub fn has(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    pub fn with(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }

    /// The bits that are not in `other`.
    pub fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }

    /// Bits that this program does not know.
    pub fn unknown(self) -> Features {
        self.without(Features::ALL)
    }

    /// Bits that librbd derives by itself and that a caller who creates an image need not name.
    pub const IMPLICIT: Features = Features(
        Self::STRIPINGV2.0
            | Self::DATA_POOL.0
            | Self::FAST_DIFF.0
            | Self::OPERATIONS.0
            | Self::MIGRATING.0
            | Self::NON_PRIMARY.0
            | Self::DIRTY_CACHE.0,
    );
    /// Bits that object classes set and clear by themselves.
    pub const INTERNAL: Features = Features(Self::OPERATIONS.0 | Self::MIGRATING.0);
    /// Bits that may be set and cleared on an existing image.
    pub const MUTABLE: Features = Features(
        Self::EXCLUSIVE_LOCK.0
            | Self::OBJECT_MAP.0
            | Self::FAST_DIFF.0
            | Self::JOURNALING.0
            | Self::NON_PRIMARY.0
            | Self::DIRTY_CACHE.0,
    );

    /// Names of the bits, as the command line knows them; an unknown bit is called `bit N`.
    pub fn names(self) -> Vec<String> {
        const NAMES: [&str; 12] = [
            "layering",
            "striping",
            "exclusive-lock",
            "object-map",
            "fast-diff",
            "deep-flatten",
            "journaling",
            "data-pool",
            "operations",
            "migrating",
            "non-primary",
            "dirty-cache",
        ];
        let name = |bit: usize| NAMES.get(bit).map_or_else(|| format!("bit {bit}"), |name| name.to_string());
        (0..64).filter(|bit| self.0 & (1 << bit) != 0).map(name).collect()
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(", "))
    }
}

/// The operation features of an image (`RBD_OPERATION_FEATURE_*`): what is in use on it that an older client would
/// damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct OpFeatures(pub u64);

impl OpFeatures {
    /// A snapshot has v2 clones.
    pub const CLONE_PARENT: OpFeatures = OpFeatures(1 << 0);
    /// The image is a v2 clone.
    pub const CLONE_CHILD: OpFeatures = OpFeatures(1 << 1);
    /// The image is in a group.
    pub const GROUP: OpFeatures = OpFeatures(1 << 2);
    /// A snapshot is in the trash.
    pub const SNAP_TRASH: OpFeatures = OpFeatures(1 << 3);
    /// All that this program knows.
    pub const ALL: OpFeatures = OpFeatures((1 << 4) - 1);

    /// True when every bit of `other` is set.
    pub fn has(self, other: OpFeatures) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What made a snapshot, and what it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotNamespace {
    /// Made by a user.
    User,
    /// Part of a snapshot of a group of images.
    Group {
        /// The group's pool.
        group_pool: PoolId,
        /// The group's id.
        group_id: String,
        /// The group snapshot's id.
        group_snapshot_id: String,
    },
    /// Removed, but kept for its clones.
    Trash {
        /// The name it had.
        original_name: String,
        /// The type of namespace it had, as encoded.
        original_namespace_type: u32,
    },
    /// Made by mirroring.
    Mirror(MirrorSnapshot),
    /// Of a type that this program does not know, as encoded.
    Unknown(u32),
}

/// Mirroring's own record in a mirror-snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorSnapshot {
    /// Role of the image when it was made.
    pub state: MirrorSnapshotState,
    /// On a primary: all of its image state is stored. On a non-primary: all of its data has been copied.
    pub complete: bool,
    /// Peers that have not yet copied a primary snapshot.
    pub mirror_peer_uuids: BTreeSet<String>,
    /// Non-primary: the mirror uuid of the pool in which its primary snapshot lies; empty for an orphan.
    pub primary_mirror_uuid: String,
    /// Non-primary: the snapshot in the primary image that this one copies; [`SnapId::HEAD`] for an orphan.
    /// (In a primary snapshot the same field is called `clean_since_snap_id`.)
    pub primary_snap_id: SnapId,
    /// Non-primary: all data objects below this number have been copied.
    pub last_copied_object_number: u64,
    /// Non-primary: remote snapshot id → local snapshot id.
    pub snap_seqs: BTreeMap<SnapId, SnapId>,
}

impl MirrorSnapshot {
    /// Made by forced promotion, or to disconnect from a lost primary: a copy of nothing.
    pub fn is_orphan(&self) -> bool {
        self.state.is_non_primary() && self.primary_mirror_uuid.is_empty() && self.primary_snap_id.is_head()
    }
}

/// Role of an image when one of its mirror-snapshots was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorSnapshotState {
    /// It was the primary.
    Primary,
    /// It was the primary, and this snapshot ended that.
    PrimaryDemoted,
    /// It was a copy.
    NonPrimary,
    /// It was a copy of a primary that was demoted with the snapshot that this one copies.
    NonPrimaryDemoted,
}

impl MirrorSnapshotState {
    /// True for both primary states.
    pub fn is_primary(self) -> bool {
        matches!(self, Self::Primary | Self::PrimaryDemoted)
    }

    /// True for both non-primary states.
    pub fn is_non_primary(self) -> bool {
        !self.is_primary()
    }

    /// True for both demoted states.
    pub fn is_demoted(self) -> bool {
        matches!(self, Self::PrimaryDemoted | Self::NonPrimaryDemoted)
    }
}

/// A snapshot of an image as its header tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapId,
    /// Its name (mirroring's own start with `.mirror.`).
    pub name: String,
    /// What it is for.
    pub namespace: SnapshotNamespace,
    /// The image's size at that time, in bytes.
    pub image_size: u64,
    /// When it was made: seconds and nanoseconds since the epoch.
    pub timestamp: Timestamp,
    /// Number of v1 clones made of it, as far as the header counts them.
    pub child_count: u32,
    /// Protected against removal, as v1 clones need.
    pub protection: ProtectionStatus,
    /// What the image was a clone of at that time.
    pub parent: Option<Parent>,
    /// Flags of its object map.
    pub flags: ImageFlags,
}

impl Snapshot {
    /// Mirroring's record, if it is a mirror-snapshot.
    pub fn mirror(&self) -> Option<&MirrorSnapshot> {
        match &self.namespace {
            SnapshotNamespace::Mirror(mirror) => Some(mirror),
            _ => None,
        }
    }
}

/// A point in time (`utime_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since the epoch.
    pub seconds: u32,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// The present.
    pub fn now() -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp { seconds: since.as_secs() as u32, nanoseconds: since.subsec_nanos() }
    }

    /// This point and `seconds` more.
    pub fn plus_seconds(self, seconds: u32) -> Timestamp {
        Timestamp { seconds: self.seconds.saturating_add(seconds), ..self }
    }
}

/// Whether a snapshot may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProtectionStatus {
    /// It may.
    #[default]
    Unprotected,
    /// Protection is being lifted; clones are being looked for.
    Unprotecting,
    /// It may not.
    Protected,
}

/// Flags of an image or of one of its snapshots (`RBD_FLAG_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ImageFlags(pub u64);

impl ImageFlags {
    /// The object map must not be believed.
    pub const OBJECT_MAP_INVALID: ImageFlags = ImageFlags(1 << 0);
    /// The object map must not be believed about what changed.
    pub const FAST_DIFF_INVALID: ImageFlags = ImageFlags(1 << 1);

    /// True when every bit of `other` is set.
    pub fn has(self, other: ImageFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    pub fn with(self, other: ImageFlags) -> ImageFlags {
        ImageFlags(self.0 | other.0)
    }

    /// The bits that are not in `other`.
    pub fn without(self, other: ImageFlags) -> ImageFlags {
        ImageFlags(self.0 & !other.0)
    }
}

/// What an image is a clone of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Pool of the parent's header.
    pub pool: PoolId,
    /// Its namespace.
    pub namespace: String,
    /// The parent image.
    pub image: ImageId,
    /// The snapshot that was cloned.
    pub snap: SnapId,
    /// Bytes from the start of the image that may still come from the parent.
    pub overlap: u64,
}

impl Parent {
    /// The parent without the overlap.
    pub fn spec(&self) -> ParentSpec {
        ParentSpec {
            pool: self.pool,
            namespace: self.namespace.clone(),
            image: self.image.clone(),
            snap: self.snap,
        }
    }
}

/// A snapshot that clones are made of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParentSpec {
    /// Pool of its header.
    pub pool: PoolId,
    /// Its namespace.
    pub namespace: String,
    /// The image.
    pub image: ImageId,
    /// The snapshot.
    pub snap: SnapId,
}

impl ParentSpec {
    /// This parent with an overlap of so many bytes.
    pub fn overlapping(&self, overlap: u64) -> Parent {
        Parent {
            pool: self.pool,
            namespace: self.namespace.clone(),
            image: self.image.clone(),
            snap: self.snap,
            overlap,
        }
    }
}

/// A clone as its parent knows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChildImage {
    /// Pool of its header.
    pub pool: PoolId,
    /// Its namespace.
    pub namespace: String,
    /// The image.
    pub image: ImageId,
}

/// The group that an image belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupSpec {
    /// The group's pool.
    pub pool: PoolId,
    /// Its id.
    pub id: String,
}
