//! The first copy of an image, and the repair of one that went astray: everything but the copying itself, which is
//! [`deep_copy`]'s.
//!
//! A copy is made from a *sync point*, a user snapshot of the remote image called `.rbd-mirror.LOCAL-MIRROR-UUID.UUID`,
//! with all user snapshots older than it. What of it is under way stands in the data of this site's client in the
//! remote journal, where Ceph's daemon keeps it, too:
//!
//! | `state` | `sync_points` | meaning |
//! |---|---|---|
//! | syncing | none | nothing has been copied |
//! | syncing | one | the copy is being made from it; objects up to its `object_number` have been copied |
//! | replaying | one | the copy is complete; the snapshot is to be removed from the remote image |
//! | replaying | none | replay |
//!
//! # Order, and why
//! 1. The sync point's name is stored, then the snapshot is made: one that is not stored is nobody's ([`sync_point`]).
//! 2. The local image gets a snapshot for each of the remote ones, the sync point included, and the [`marker`], in one
//!    atomic write ([`begin()`]).
//! 3. The data is copied.
//! 4. Image state: parent, object map, name, metadata, features, names and protection of snapshots ([`mod@complete`]).
//! 5. The replay starts exactly behind the sync point (see below), then the client is declared to be replaying, and
//!    only then the sync point is removed: a daemon that finds "syncing" without its snapshot starts over.
//!
//! # Where the replay starts
//! The client's commit position is older than the sync point: it is that of the least advanced client at registration.
//! Replaying from there would take the copy back in time and forward again. The owner of the image's lock blocks
//! writes, flushes them, appends the event of the snapshot's creation to the journal, and only then makes the snapshot; so
//! the replay starts right behind that event. A sync point of an image that nobody had open is made without an event:
//! then what the journal holds behind the image's own commit position may or may not be on its disk, and is replayed
//! before the copy counts as one ([`Origin`]). Nothing that the journal holds before that position is missing in the
//! sync point, so the client's commit position is moved up to it before the sync point is made.
//!
//! # Repair
//! A copy that Ceph's daemon has begun (it loses what was zeroed between two snapshots) or that went astray is repaired:
//! its user snapshots are removed, those of the primary are made anew, and every object is compared by checksums. The
//! image keeps its id.
//!
//! Reference: `src/tools/rbd_mirror/ImageSync.cc`, `src/tools/rbd_mirror/image_sync/`,
//! `src/tools/rbd_mirror/image_replayer/journal/SyncPointHandler.cc`, `src/librbd/deep_copy/SnapshotCopyRequest.cc`.

mod begin;
mod complete;
pub mod marker;
mod start;
pub mod sync_point;

pub use begin::{Begun, Held, begin, checkpoint};
pub use complete::{complete, remove_local_sync_points};
pub use marker::{CopyMarker, Origin};
pub use start::find_event;
