//! The vocabulary of journals: tags, entries, positions, clients, and the data that librbd and mirrors keep with them.
//!
//! Reference: `src/cls/journal/cls_journal_types.h`, `src/librbd/journal/Types.h`.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use rados::SnapId;
use rbd::{ImageId, SnapshotNamespace};

/// Number of a tag. Each tag is an epoch of the journal: one writer, from taking the lock or the promotion on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TagTid(pub u64);

/// Class of tags; all tags of an image are of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TagClass(pub u64);

impl TagClass {
    /// Asks for a class that no tag has yet (`TAG_CLASS_NEW`).
    pub const NEW: TagClass = TagClass(u64::MAX);
}

/// Number of an entry within its tag, from 0 without gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryTid(pub u64);

/// Number of a data object of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JournalObject(pub u64);

impl fmt::Display for JournalObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a set of data objects: as many as the journal is splayed over, which are written in turn and together, and
/// removed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectSet(pub u64);

impl fmt::Display for ObjectSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The place of an entry in the order of all entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryPosition {
    /// Its tag.
    pub tag: TagTid,
    /// Its number within the tag.
    pub entry: EntryTid,
}

impl fmt::Display for EntryPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tag {} entry {}", self.tag.0, self.entry.0)
    }
}

/// The newest committed entry of one data object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectPosition {
    /// The object.
    pub object: JournalObject,
    /// The entry.
    pub position: EntryPosition,
}

/// How far a client is: the newest committed entry of each object of its active set, the newest entry first. Empty when
/// it has committed nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommitPosition(pub Vec<ObjectPosition>);

impl CommitPosition {
    /// The newest committed entry.
    pub fn newest(&self) -> Option<EntryPosition> {
        self.0.first().map(|object| object.position)
    }
}

/// Whether a client keeps the journal from being trimmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientState {
    /// It does.
    Connected,
    /// It was away for too long (`rbd_journal_max_concurrent_object_sets`) and does not any more.
    Disconnected,
}

/// Id of a client: empty for the image's own, the mirror uuid of its pool for a mirror.
pub type ClientId = String;

/// The id of the image's own client.
pub const IMAGE_CLIENT_ID: &str = "";

/// A registered client of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its id.
    pub id: ClientId,
    /// An encoded [`ClientData`].
    pub data: Bytes,
    /// How far it is.
    pub commit_position: CommitPosition,
    /// Whether it counts.
    pub state: ClientState,
}

/// A tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Its number.
    pub tid: TagTid,
    /// Its class.
    pub class: TagClass,
    /// An encoded [`TagData`].
    pub data: Bytes,
}

/// Who wrote an epoch, in the mirror uuid of its tag: the image's own cluster.
pub const LOCAL_MIRROR_UUID: &str = "";
/// Who wrote an epoch, in the mirror uuid of its tag: nobody, the image was demoted.
pub const ORPHAN_MIRROR_UUID: &str = "<orphan>";

/// What came before a tag.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TagPredecessor {
    /// Who wrote that epoch.
    pub mirror_uuid: String,
    /// Its newest committed entry, when anything was committed.
    pub commit: Option<EntryPosition>,
}

/// What librbd keeps with a tag.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TagData {
    /// Who writes in this epoch: [`LOCAL_MIRROR_UUID`], [`ORPHAN_MIRROR_UUID`], or the mirror uuid of the primary's pool.
    pub mirror_uuid: String,
    /// What came before.
    pub predecessor: TagPredecessor,
}

/// What is kept with a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientData {
    /// The image's own client.
    Image {
        /// The class of its tags.
        tag_class: TagClass,
        /// `rbd mirror image resync` was called.
        resync_requested: bool,
    },
    /// A mirror.
    MirrorPeer(MirrorPeer),
    /// `rbd journal client`: registered by hand.
    Cli,
    /// Of a kind that this program does not know.
    Unknown {
        /// The kind.
        kind: u32,
        /// All that follows it, as encoded.
        payload: Bytes,
    },
}

/// What a mirror keeps with its client in the primary's journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorPeer {
    /// The copy.
    pub image: ImageId,
    /// What it is doing.
    pub state: MirrorPeerState,
    /// The largest number of objects that was ever copied.
    pub sync_object_count: u64,
    /// Snapshots of the primary that are being copied from, at most two.
    pub sync_points: Vec<SyncPoint>,
    /// Which snapshot of the copy each snapshot of the primary became.
    pub snap_seqs: BTreeMap<SnapId, SnapId>,
}

/// What a mirror is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MirrorPeerState {
    /// A first copy, from a sync point.
    Syncing,
    /// Replay.
    Replaying,
}

/// A snapshot of the primary that a first copy is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncPoint {
    /// Its namespace: that of user snapshots.
    pub namespace: SnapshotNamespace,
    /// Its name.
    pub name: String,
    /// The name of an earlier one, of which the copy is complete; empty for none.
    pub from_name: String,
    /// All objects below this number have been copied; `None` before the first.
    pub object_number: Option<u64>,
}
