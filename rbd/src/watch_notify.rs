//! Notifications on an image's header object: how those who have an image open speak with each other.
//!
//! Layout: versioned struct (7, 1): u32 kind, then the fields below. An empty payload means a header update. A field
//! in brackets came with the version before it; older messages lack it. A request id is empty (all zero) in messages of
//! old clients, which then wait for the answer instead of for an [`Notification::AsyncComplete`].
//!
//! | kind | fields |
//! |---|---|
//! | 0 acquired lock, 1 released lock | [2: client] |
//! | 2 request lock | [2: client] [3: bool force] |
//! | 3 header update | |
//! | 4 async progress | request, u64 done, u64 total |
//! | 5 async complete | request, i32 result |
//! | 6 flatten, 10 rebuild object map, 16 migrate, 18 quiesce, 19 unquiesce | request |
//! | 7 resize | u64 size, request, [4: bool may shrink] |
//! | 8 snapshot create | string name, [6: namespace (in 5: at the end)], [7: request, u64 flags] |
//! | 9 remove, 12 protect, 13 unprotect | string name, [6: namespace], [7: request] |
//! | 11 snapshot rename | u64 snapshot id, then as 9, with the new name |
//! | 14 rename | string name, [7: request] |
//! | 15 update features | u64 features, bool enabled, [7: request] |
//! | 17 sparsify | request, u64 bytes |
//! | 20 metadata update | string key, optional string value, [7: request] |
//!
//! A client is u64 global id, u64 watch cookie; a request is a client and u64 number. The answer of whom a message
//! concerns is a versioned struct (1, 1) of i32 result; all others answer with nothing, at once. Only the owner of the
//! exclusive lock answers requests, so an asker finds out who that is, and whether he lives, from the answers.
//!
//! Reference: `src/librbd/WatchNotifyTypes.cc`, `src/librbd/ImageWatcher.cc`,
//! `src/librbd/image_watcher/NotifyLockOwner.cc`.

pub mod quiesce;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};
use rados::error::ResultExt;
use rados::{Error, IoCtx, NotifyReply, Result, SnapId};

use crate::layout::header_object;
use crate::types::{Features, ImageId, SnapshotNamespace};

pub use watch::{HeaderEvent, HeaderWatch, Responder};

/// How long a notification waits for answers: librbd's value.
pub const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);

/// For how long a cluster remembers a watcher that was killed or cut off. librados gives a sign of life every 5 s.
///
/// Less than librbd's 30 s, because others wait for us so long: a primary whose lock changes hands or whose snapshot is
/// asked for by another client, which tells the watchers of its journal; a promotion; the next daemon. A watch that a slow
/// cluster takes away from the living is registered anew, and what was missed is read.
pub const WATCH_TIMEOUT: Duration = Duration::from_secs(10);

/// Flags of [`Operation::SnapCreate`] (`SNAP_CREATE_FLAG_*`).
pub mod snap_create_flags {
    /// Leave the object maps alone.
    pub const SKIP_OBJECT_MAP: u64 = 1 << 0;
    /// Ask nobody to stop writing.
    pub const SKIP_QUIESCE: u64 = 1 << 1;
    /// Make the snapshot although somebody does not stop writing.
    pub const IGNORE_QUIESCE_ERROR: u64 = 1 << 2;
}

/// Version that this program writes and knows.
const VERSION: u8 = 7;

/// Somebody who has an image open: a client and its watch on the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ClientId {
    /// Global id of the client.
    pub gid: u64,
    /// Cookie of its watch.
    pub handle: u64,
}

impl Encode for ClientId {
    fn encode(&self, e: &mut Encoder) {
        e.u64(self.gid).u64(self.handle);
    }
}

impl Decode for ClientId {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        Ok(ClientId { gid: d.u64()?, handle: d.u64()? })
    }
}

/// A request whose completion is told of by a notification of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct AsyncRequestId {
    /// Who asks.
    pub client: ClientId,
    /// Which of his requests.
    pub number: u64,
}

impl AsyncRequestId {
    /// True for messages of old clients, which wait for the answer.
    pub fn is_empty(&self) -> bool {
        *self == AsyncRequestId::default()
    }
}

/// A number that no request of this process has had. Numbers of one watch alone would not do: a later watch may have the
/// cookie of an earlier one, and whoever is asked remembers for a while what he has done.
pub fn next_request_number() -> u64 {
    static NUMBERS: AtomicU64 = AtomicU64::new(1);
    NUMBERS.fetch_add(1, Ordering::Relaxed)
}

impl Encode for AsyncRequestId {
    fn encode(&self, e: &mut Encoder) {
        e.value(&self.client).u64(self.number);
    }
}

impl Decode for AsyncRequestId {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        Ok(AsyncRequestId { client: ClientId::decode(d)?, number: d.u64()? })
    }
}

/// An operation that only the owner of the exclusive lock may carry out, asked of him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Detach from the parent.
    Flatten,
    /// Set the size.
    Resize {
        /// Size in bytes.
        size: u64,
        /// Refuse to make it smaller unless set.
        allow_shrink: bool,
    },
    /// Create a snapshot.
    SnapCreate {
        /// Its namespace.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
        /// Of [`snap_create_flags`].
        flags: u64,
    },
    /// Remove a snapshot.
    SnapRemove {
        /// Its namespace.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
    },
    /// Rename a snapshot.
    SnapRename {
        /// Its id.
        snap: SnapId,
        /// Its new name.
        name: String,
    },
    /// Protect a snapshot.
    SnapProtect {
        /// Its namespace.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
    },
    /// Unprotect a snapshot.
    SnapUnprotect {
        /// Its namespace.
        namespace: SnapshotNamespace,
        /// Its name.
        name: String,
    },
    /// Rebuild the object map.
    RebuildObjectMap,
    /// Rename the image.
    Rename {
        /// Its new name.
        name: String,
    },
    /// Enable or disable features.
    UpdateFeatures {
        /// Which.
        features: Features,
        /// Enable.
        enabled: bool,
    },
    /// Carry on a migration.
    Migrate,
    /// Give back space that holds zeroes.
    Sparsify {
        /// Smallest run of zeroes, in bytes.
        sparse_bytes: u64,
    },
    /// Set or remove metadata.
    MetadataUpdate {
        /// The key.
        key: String,
        /// Its value; removed when `None`.
        value: Option<String>,
    },
}

/// A message to all who have an image open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// I own the exclusive lock now.
    AcquiredLock(ClientId),
    /// I own it no more.
    ReleasedLock(ClientId),
    /// Whoever owns it: let me have it.
    RequestLock {
        /// Who asks.
        client: ClientId,
        /// Even if you hold it on purpose.
        force: bool,
    },
    /// The header changed.
    HeaderUpdate,
    /// How far a request is.
    AsyncProgress {
        /// Which one.
        request: AsyncRequestId,
        /// Done, of `total`.
        done: u64,
        /// All there is to do.
        total: u64,
    },
    /// A request is finished.
    AsyncComplete {
        /// Which one.
        request: AsyncRequestId,
        /// 0, or a negative error number.
        result: i32,
    },
    /// Whoever owns the lock: do this.
    Operation {
        /// By which the owner tells of progress and completion.
        request: AsyncRequestId,
        /// What to do.
        operation: Operation,
    },
    /// Stop writing, and answer when it is so: a snapshot is about to be made.
    Quiesce(AsyncRequestId),
    /// The snapshot is made: write again.
    Unquiesce(AsyncRequestId),
    /// Of a kind that this program does not know, as encoded.
    Unknown(u32),
}

impl Operation {
    fn kind(&self) -> u32 {
        match self {
            Operation::Flatten => 6,
            Operation::Resize { .. } => 7,
            Operation::SnapCreate { .. } => 8,
            Operation::SnapRemove { .. } => 9,
            Operation::RebuildObjectMap => 10,
            Operation::SnapRename { .. } => 11,
            Operation::SnapProtect { .. } => 12,
            Operation::SnapUnprotect { .. } => 13,
            Operation::Rename { .. } => 14,
            Operation::UpdateFeatures { .. } => 15,
            Operation::Migrate => 16,
            Operation::Sparsify { .. } => 17,
            Operation::MetadataUpdate { .. } => 20,
        }
    }

    fn encode_fields(&self, e: &mut Encoder, request: &AsyncRequestId) {
        match self {
            Operation::Flatten | Operation::RebuildObjectMap | Operation::Migrate => e.value(request),
            Operation::Resize { size, allow_shrink } => e.u64(*size).value(request).bool(*allow_shrink),
            Operation::SnapCreate { namespace, name, flags } => {
                e.string(name).value(namespace).value(request).u64(*flags)
            }
            Operation::SnapRemove { namespace, name }
            | Operation::SnapProtect { namespace, name }
            | Operation::SnapUnprotect { namespace, name } => e.string(name).value(namespace).value(request),
            Operation::SnapRename { snap, name } => {
                e.u64(snap.0).string(name).value(&SnapshotNamespace::User).value(request)
            }
            Operation::Rename { name } => e.string(name).value(request),
            Operation::UpdateFeatures { features, enabled } => {
                e.u64(features.0).bool(*enabled).value(request)
            }
            Operation::Sparsify { sparse_bytes } => e.value(request).u64(*sparse_bytes),
            Operation::MetadataUpdate { key, value } => {
                e.string(key).bool(value.is_some());
                if let Some(value) = value {
                    e.string(value);
                }
                e.value(request)
            }
        };
    }

    /// Reads the operation of this kind; `None` when there is no such operation.
    fn decode_fields(
        kind: u32,
        d: &mut Decoder<'_>,
        version: u8,
    ) -> std::result::Result<Option<(AsyncRequestId, Operation)>, DecodeError> {
        let since_7 = |d: &mut Decoder<'_>| {
            if version >= 7 { AsyncRequestId::decode(d) } else { Ok(AsyncRequestId::default()) }
        };
        Ok(Some(match kind {
            6 => (AsyncRequestId::decode(d)?, Operation::Flatten),
            7 => {
                let (size, request) = (d.u64()?, AsyncRequestId::decode(d)?);
                (request, Operation::Resize { size, allow_shrink: version < 4 || d.bool()? })
            }
            8..=9 | 12..=13 => return Operation::decode_snap(kind, d, version).map(Some),
            10 => (AsyncRequestId::decode(d)?, Operation::RebuildObjectMap),
            11 => {
                let (snap, name) = (SnapId(d.u64()?), d.string()?);
                if version >= 6 {
                    SnapshotNamespace::decode(d)?;
                }
                (since_7(d)?, Operation::SnapRename { snap, name })
            }
            14 => {
                let name = d.string()?;
                (since_7(d)?, Operation::Rename { name })
            }
            15 => {
                let (features, enabled) = (Features(d.u64()?), d.bool()?);
                (since_7(d)?, Operation::UpdateFeatures { features, enabled })
            }
            16 => (AsyncRequestId::decode(d)?, Operation::Migrate),
            17 => (AsyncRequestId::decode(d)?, Operation::Sparsify { sparse_bytes: d.u64()? }),
            20 => {
                let key = d.string()?;
                let value = if d.bool()? { Some(d.string()?) } else { None };
                (since_7(d)?, Operation::MetadataUpdate { key, value })
            }
            _ => return Ok(None),
        }))
    }

    /// Reads the operations that name a snapshot: creating, removing, protecting and unprotecting it.
    fn decode_snap(
        kind: u32,
        d: &mut Decoder<'_>,
        version: u8,
    ) -> std::result::Result<(AsyncRequestId, Operation), DecodeError> {
        let name = d.string()?;
        let mut namespace = SnapshotNamespace::User;
        let mut request = AsyncRequestId::default();
        let mut flags = 0;
        if version >= 6 {
            namespace = SnapshotNamespace::decode(d)?;
        }
        if version >= 7 {
            request = AsyncRequestId::decode(d)?;
        }
        if kind == 8 && version == 5 {
            namespace = SnapshotNamespace::decode(d)?;
        }
        if kind == 8 && version >= 7 {
            flags = d.u64()?;
        }
        let operation = match kind {
            8 => Operation::SnapCreate { namespace, name, flags },
            9 => Operation::SnapRemove { namespace, name },
            12 => Operation::SnapProtect { namespace, name },
            _ => Operation::SnapUnprotect { namespace, name },
        };
        Ok((request, operation))
    }
}

impl Notification {
    fn kind(&self) -> u32 {
        match self {
            Notification::AcquiredLock(_) => 0,
            Notification::ReleasedLock(_) => 1,
            Notification::RequestLock { .. } => 2,
            Notification::HeaderUpdate => 3,
            Notification::AsyncProgress { .. } => 4,
            Notification::AsyncComplete { .. } => 5,
            Notification::Operation { operation, .. } => operation.kind(),
            Notification::Quiesce(_) => 18,
            Notification::Unquiesce(_) => 19,
            Notification::Unknown(kind) => *kind,
        }
    }

    fn encode_fields(&self, e: &mut Encoder) {
        match self {
            Notification::AcquiredLock(client) | Notification::ReleasedLock(client) => {
                e.value(client);
            }
            Notification::RequestLock { client, force } => {
                e.value(client).bool(*force);
            }
            Notification::AsyncProgress { request, done, total } => {
                e.value(request).u64(*done).u64(*total);
            }
            Notification::AsyncComplete { request, result } => {
                e.value(request).i32(*result);
            }
            Notification::Operation { request, operation } => operation.encode_fields(e, request),
            Notification::Quiesce(request) | Notification::Unquiesce(request) => {
                e.value(request);
            }
            Notification::HeaderUpdate | Notification::Unknown(_) => {}
        }
    }

    /// Reads a notification. An empty payload is a header update of an old client.
    pub fn from_payload(payload: &[u8]) -> std::result::Result<Notification, DecodeError> {
        if payload.is_empty() {
            return Ok(Notification::HeaderUpdate);
        }
        Notification::from_bytes(payload, "header notification")
    }
}

impl Encode for Notification {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(VERSION, 1, |e| {
            e.u32(self.kind());
            self.encode_fields(e);
        });
    }
}

impl Decode for Notification {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        d.versioned("header notification", VERSION, |d, version| {
            let client = |d: &mut Decoder<'_>| {
                if version >= 2 { ClientId::decode(d) } else { Ok(ClientId::default()) }
            };
            Ok(match d.u32()? {
                0 => Notification::AcquiredLock(client(d)?),
                1 => Notification::ReleasedLock(client(d)?),
                2 => Notification::RequestLock { client: client(d)?, force: version >= 3 && d.bool()? },
                3 => Notification::HeaderUpdate,
                4 => Notification::AsyncProgress {
                    request: AsyncRequestId::decode(d)?,
                    done: d.u64()?,
                    total: d.u64()?,
                },
                5 => Notification::AsyncComplete { request: AsyncRequestId::decode(d)?, result: d.i32()? },
                18 => Notification::Quiesce(AsyncRequestId::decode(d)?),
                19 => Notification::Unquiesce(AsyncRequestId::decode(d)?),
                kind => match Operation::decode_fields(kind, d, version)? {
                    Some((request, operation)) => Notification::Operation { request, operation },
                    None => Notification::Unknown(kind),
                },
            })
        })
    }
}

/// The answer of whom a notification concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Response {
    /// 0, or a negative error number.
    pub result: i32,
}

impl Encode for Response {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.i32(self.result);
        });
    }
}

impl Decode for Response {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        d.versioned("answer to a header notification", 1, |d, _| Ok(Response { result: d.i32()? }))
    }
}

/// Sends a notification to all who have the image open; answers with their answers. A watcher that does not answer
/// within [`NOTIFY_TIMEOUT`] does not make it fail.
pub async fn notify(ioctx: &IoCtx, image: &ImageId, notification: &Notification) -> Result<NotifyReply> {
    let reply = ioctx.notify(&header_object(image), notification.to_bytes(), NOTIFY_TIMEOUT).await;
    reply.context(format!("cannot notify those who have image {image} open"))
}

/// Tells all who have the image open that its header changed, and waits until they know (at most [`NOTIFY_TIMEOUT`]).
pub async fn notify_header_update(ioctx: &IoCtx, image: &ImageId) -> Result<()> {
    notify(ioctx, image, &Notification::HeaderUpdate).await.map(drop)
}

/// What the owner of the exclusive lock answered: its result, or `None` when no owner answered. EINVAL when two claim to
/// be the owner.
pub fn owner_response(reply: &NotifyReply) -> Result<Option<i32>> {
    let mut answers =
        reply.answers.iter().map(|(_, _, payload)| payload).filter(|payload| !payload.is_empty());
    let (first, second): (Option<&Bytes>, Option<&Bytes>) = (answers.next(), answers.next());
    if second.is_some() {
        return Err(Error::new(libc::EINVAL, "two clients answer as owners of one exclusive lock"));
    }
    let Some(first) = first else { return Ok(None) };
    Ok(Some(Response::from_bytes(first, "answer to a header notification")?.result))
}

#[cfg(test)]
mod tests;
