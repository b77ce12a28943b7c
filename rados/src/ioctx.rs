//! A pool and namespace of a connected cluster: what callers hold to reach objects.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::backend::{Backend, Location, NotifyReply, Watch};
use crate::describe;
use crate::error::{Error, Result};
use crate::gate::{Gate, GateGuard};
use crate::op::{CloneSet, OmapPage, ReadAnswer, ReadOp, ReadReply, ReadSub, Watcher, WriteOp};
use crate::types::{Extent, PoolId, SnapId};

/// Entries asked for at once when a whole omap is read.
const OMAP_PAGE_ENTRIES: u64 = 1024;

/// A pool and namespace. Cheap to clone.
#[derive(Clone)]
pub struct IoCtx {
    backend: Arc<dyn Backend>,
    location: Location,
    bulk: bool,
    /// What is written through it is counted there.
    gate: Option<Gate>,
}

impl fmt::Debug for IoCtx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoCtx({}/{})", self.location.pool, self.location.namespace)
    }
}

impl IoCtx {
    /// Objects at `location`, reached through `backend`.
    pub fn new(backend: Arc<dyn Backend>, location: Location) -> Self {
        IoCtx { backend, location, bulk: false, gate: None }
    }

    /// The same for the data objects of images and journals: requests have their turn among the many of that kind, and do not
    /// hold up those on which locks, headers and statuses depend.
    pub fn for_data(&self) -> IoCtx {
        IoCtx { bulk: true, ..self.clone() }
    }

    /// The same for a session of its own: what it writes through this, through what is made from it, and through nothing
    /// else, is counted by a new gate within that of this one, if it has one.
    pub fn gated(&self) -> IoCtx {
        IoCtx { gate: Some(Gate::new(self.gate.clone())), ..self.clone() }
    }

    /// The same outside of any gate: for what is written when the session has ended.
    pub fn ungated(&self) -> IoCtx {
        IoCtx { gate: None, ..self.clone() }
    }

    /// The gate of its session; `None` when it belongs to none.
    pub fn gate(&self) -> Option<&Gate> {
        self.gate.as_ref()
    }

    /// Enters the gate of its session, if it has one, with something that consists of several writes. ECANCELED when the
    /// session has ended.
    pub fn enter(&self) -> Result<Option<GateGuard>> {
        self.gate.as_ref().map(Gate::enter).transpose()
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// The pool.
    pub fn pool_id(&self) -> PoolId {
        self.location.pool
    }

    /// The namespace, empty for the default one.
    pub fn namespace(&self) -> &str {
        &self.location.namespace
    }

    /// The same namespace of another pool.
    pub fn with_pool(&self, pool: PoolId) -> IoCtx {
        let location = Location { pool, namespace: self.location.namespace.clone() };
        IoCtx { location, bulk: false, ..self.clone() }
    }

    /// Another namespace of the same pool.
    pub fn with_namespace(&self, namespace: &str) -> IoCtx {
        let location = Location { pool: self.location.pool, namespace: namespace.into() };
        IoCtx { location, bulk: false, ..self.clone() }
    }

    /// Reads one object.
    pub async fn read(&self, mut op: ReadOp) -> Result<ReadReply> {
        op.bulk |= self.bulk;
        self.backend.read(&self.location, op).await
    }

    /// Reads one object with a single sub-operation.
    pub async fn read_one(&self, object: &str, snap: SnapId, sub: ReadSub) -> Result<ReadAnswer> {
        let reply = self.read(ReadOp::new(object).at(snap).with(sub)).await?;
        reply.answers.into_iter().next().ok_or_else(|| unexpected(object))
    }

    /// Changes one object; answers with its new version. EINVAL, and nothing is sent, when a write or a zero has no bytes;
    /// ECANCELED when the session that this belongs to has ended. Until it is answered it counts in the session's gate,
    /// also when the future is dropped.
    pub async fn write(&self, mut op: WriteOp) -> Result<u64> {
        op.bulk |= self.bulk;
        if let Some(sub) = op.empty_range() {
            return Err(Error::new(libc::EINVAL, describe::empty_range(&op, sub, &self.location)));
        }
        let Some(gate) = &self.gate else { return self.backend.write(&self.location, op).await };
        let entered = gate.enter();
        let guard = entered.map_err(|error| error.context(describe::write(&op, &self.location)))?;
        self.backend.write_guarded(&self.location, op, guard).await
    }

    /// Calls a class method that reads; answers with its output.
    pub async fn exec(
        &self,
        object: &str,
        class: &str,
        method: &str,
        input: impl Into<Bytes>,
    ) -> Result<Bytes> {
        let reply = self.read(ReadOp::new(object).exec(class, method, input)).await?;
        match reply.answers.into_iter().next() {
            Some(ReadAnswer::Data(output)) => Ok(output),
            _ => Err(unexpected(object)),
        }
    }

    /// Calls a class method that writes.
    pub async fn exec_write(
        &self,
        object: &str,
        class: &str,
        method: &str,
        input: impl Into<Bytes>,
    ) -> Result<()> {
        self.write(WriteOp::new(object).exec(class, method, input)).await.map(drop)
    }

    /// Bytes of an object's range at `snap`; short at its end.
    pub async fn read_extent(&self, object: &str, snap: SnapId, extent: Extent) -> Result<Bytes> {
        match self.read_one(object, snap, ReadSub::Read(extent)).await? {
            ReadAnswer::Data(data) => Ok(data),
            _ => Err(unexpected(object)),
        }
    }

    /// Size of an object in bytes.
    pub async fn stat(&self, object: &str) -> Result<u64> {
        match self.read_one(object, SnapId::HEAD, ReadSub::Stat).await? {
            ReadAnswer::Stat { size, .. } => Ok(size),
            _ => Err(unexpected(object)),
        }
    }

    /// The clones of an object.
    pub async fn list_snaps(&self, object: &str) -> Result<CloneSet> {
        match self.read_one(object, SnapId::DIR, ReadSub::ListSnaps).await? {
            ReadAnswer::Snaps(set) => Ok(set),
            _ => Err(unexpected(object)),
        }
    }

    /// Who watches an object.
    pub async fn list_watchers(&self, object: &str) -> Result<Vec<Watcher>> {
        match self.read_one(object, SnapId::HEAD, ReadSub::ListWatchers).await? {
            ReadAnswer::Watchers(watchers) => Ok(watchers),
            _ => Err(unexpected(object)),
        }
    }

    /// A page of omap entries: keys greater than `after` that start with `prefix`.
    pub async fn omap_page(&self, object: &str, after: &str, prefix: &str, max: u64) -> Result<OmapPage> {
        let sub = ReadSub::OmapGet { after: after.into(), prefix: prefix.into(), max };
        match self.read_one(object, SnapId::HEAD, sub).await? {
            ReadAnswer::Omap(page) => Ok(page),
            _ => Err(unexpected(object)),
        }
    }

    /// All omap entries whose key starts with `prefix`, in key order.
    pub async fn omap_all(&self, object: &str, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        let mut entries: Vec<(String, Bytes)> = Vec::new();
        loop {
            let after = entries.last().map_or("", |(key, _)| key.as_str()).to_string();
            let page = self.omap_page(object, &after, prefix, OMAP_PAGE_ENTRIES).await?;
            let end = !page.more || page.entries.is_empty();
            entries.extend(page.entries);
            if end {
                return Ok(entries);
            }
        }
    }

    /// Removes an object; ENOENT when there is none.
    pub async fn remove(&self, object: &str) -> Result<()> {
        self.write(WriteOp::new(object).with(crate::op::WriteSub::Remove)).await.map(drop)
    }

    /// Allocates a self-managed snapshot id (a monitor round).
    pub async fn snap_create(&self) -> Result<SnapId> {
        self.backend.snap_create(&self.location).await
    }

    /// Gives up a self-managed snapshot id (a monitor round).
    pub async fn snap_remove(&self, snap: SnapId) -> Result<()> {
        self.backend.snap_remove(&self.location, snap).await
    }

    /// Names of all objects.
    pub async fn list_objects(&self) -> Result<Vec<String>> {
        self.backend.list_objects(&self.location).await
    }

    /// Watches an object.
    pub async fn watch(&self, object: &str, timeout: Duration) -> Result<Watch> {
        self.backend.watch(&self.location, object, timeout).await
    }

    /// Notifies the watchers of an object.
    pub async fn notify(&self, object: &str, payload: Bytes, timeout: Duration) -> Result<NotifyReply> {
        self.backend.notify(&self.location, object, payload, timeout).await
    }
}

fn unexpected(object: &str) -> Error {
    Error::new(libc::EBADMSG, format!("cannot use the answer to an operation on object '{object}'"))
}
