//! The simulated store behind the backend seam, with crashes at a chosen write.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rados::{
    Backend, CommandReply, CommandTarget, Error, GateGuard, IoCtx, Location, NotifyReply, Pending, PoolId,
    ReadOp, ReadReply, Result, SnapId, Watch, WriteOp,
};

use super::object::SimObject;

/// From a write on, nothing is answered any more: every operation fails as for a fenced client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    /// Writes that are still answered.
    pub after_writes: u64,
    /// The write behind them takes effect, and only its answer is lost.
    pub applied: bool,
}

#[derive(Default)]
struct Store {
    objects: HashMap<(Location, String), SimObject>,
    removed: Vec<SnapId>,
    newest_snap: u64,
    crash: Option<Crash>,
    crashed: bool,
    /// Reads that are still answered before a snapshot is removed.
    removal: Option<(u64, SnapId)>,
    writes: u64,
    reads: u64,
}

impl Store {
    fn remove_snap(&mut self, snap: SnapId) {
        self.removed.push(snap);
        self.objects.values_mut().for_each(|object| object.trim(snap));
        self.objects.retain(|_, object| !object.is_gone());
    }
}

/// One simulated cluster.
#[derive(Default)]
pub struct SimBackend {
    store: Mutex<Store>,
}

impl SimBackend {
    /// A new, empty cluster.
    pub fn new() -> Arc<SimBackend> {
        Arc::new(SimBackend::default())
    }

    /// Its only pool.
    pub fn ioctx(self: &Arc<Self>) -> IoCtx {
        IoCtx::new(self.clone(), Location { pool: PoolId(1), namespace: "".into() })
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the client crash (`Some`) or start anew (`None`).
    pub fn set_crash(&self, crash: Option<Crash>) {
        let mut store = self.store();
        store.crash = crash;
        store.crashed = false;
    }

    /// Writes and reads that were answered or lost.
    pub fn counts(&self) -> (u64, u64) {
        let store = self.store();
        (store.writes, store.reads)
    }

    /// A new snapshot id.
    pub fn new_snap(&self) -> SnapId {
        let mut store = self.store();
        store.newest_snap += 1;
        SnapId(store.newest_snap)
    }

    /// Gives up a snapshot and trims its clones.
    pub fn remove_snap(&self, snap: SnapId) {
        self.store().remove_snap(snap);
    }

    /// Gives up a snapshot after so many more reads.
    pub fn remove_snap_after(&self, reads: u64, snap: SnapId) {
        self.store().removal = Some((reads, snap));
    }

    /// Calls off a removal that has not come about; answers with the snapshot if it has.
    pub fn end_removal(&self, snap: SnapId) -> Option<SnapId> {
        let mut store = self.store();
        store.removal = None;
        store.removed.contains(&snap).then_some(snap)
    }

    /// A copy of an object of [`SimBackend::ioctx`].
    pub fn object(self: &Arc<Self>, name: &str) -> SimObject {
        let location = Location { pool: PoolId(1), namespace: "".into() };
        self.store().objects.get(&(location, name.to_string())).cloned().unwrap_or_default()
    }

    fn do_read(&self, location: &Location, op: &ReadOp) -> Result<ReadReply> {
        let mut store = self.store();
        let fail = |errno| Error::new(errno, format!("cannot read object '{}' at {}", op.object, op.snap));
        if store.crashed {
            return Err(fail(libc::ESHUTDOWN));
        }
        store.reads += 1;
        match &mut store.removal {
            Some((0, snap)) => {
                let snap = *snap;
                store.removal = None;
                store.remove_snap(snap);
            }
            Some((reads, _)) => *reads -= 1,
            None => {}
        }
        if store.removed.contains(&op.snap) {
            return Err(fail(libc::ENOENT));
        }
        let object =
            store.objects.get(&(location.clone(), op.object.clone())).ok_or_else(|| fail(libc::ENOENT))?;
        let answers: std::result::Result<Vec<_>, i32> =
            op.subs.iter().map(|s| object.read(op.snap, s)).collect();
        Ok(ReadReply { answers: answers.map_err(fail)?, version: 1 })
    }

    fn do_write(&self, location: &Location, op: &WriteOp) -> Result<u64> {
        let mut store = self.store();
        let fail = |errno| Error::new(errno, format!("cannot write object '{}'", op.object));
        if store.crashed {
            return Err(fail(libc::ESHUTDOWN));
        }
        store.writes += 1;
        let lost = match &mut store.crash {
            Some(crash) if crash.after_writes == 0 => Some(*crash),
            Some(crash) => {
                crash.after_writes -= 1;
                None
            }
            None => None,
        };
        store.crashed = lost.is_some();
        if lost.is_some_and(|crash| !crash.applied) {
            return Err(fail(libc::ESHUTDOWN));
        }
        let removed = store.removed.clone();
        let key = (location.clone(), op.object.clone());
        let mut object = store.objects.remove(&key).unwrap_or_default();
        let applied = object.apply(&op.snap_context, &op.subs, &removed);
        if !object.is_gone() {
            store.objects.insert(key, object);
        }
        if lost.is_some() {
            return Err(fail(libc::ESHUTDOWN));
        }
        applied.map(|()| 1).map_err(fail)
    }
}

/// The operation takes effect at once; its answer comes when the task has let others run.
fn answer<T: Send + 'static>(result: Result<T>) -> Pending<T> {
    Box::pin(async move {
        tokio::task::yield_now().await;
        result
    })
}

fn unsupported<T: Send + 'static>(what: &str) -> Pending<T> {
    answer(Err(Error::new(libc::EOPNOTSUPP, format!("cannot {what} in a simulated cluster"))))
}

impl Backend for SimBackend {
    fn read(&self, location: &Location, op: ReadOp) -> Pending<ReadReply> {
        answer(self.do_read(location, &op))
    }

    fn write(&self, location: &Location, op: WriteOp) -> Pending<u64> {
        answer(self.do_write(location, &op))
    }

    fn write_guarded(&self, location: &Location, op: WriteOp, guard: GateGuard) -> Pending<u64> {
        let answer = self.write(location, op);
        Box::pin(async move {
            let answer = answer.await;
            drop(guard);
            answer
        })
    }

    fn snap_create(&self, _: &Location) -> Pending<SnapId> {
        answer(Ok(self.new_snap()))
    }

    fn snap_remove(&self, _: &Location, snap: SnapId) -> Pending<()> {
        self.remove_snap(snap);
        answer(Ok(()))
    }

    fn list_objects(&self, location: &Location) -> Pending<Vec<String>> {
        let names =
            self.store().objects.keys().filter(|(l, _)| l == location).map(|(_, n)| n.clone()).collect();
        answer(Ok(names))
    }

    fn watch(&self, _: &Location, _: &str, _: Duration) -> Pending<Watch> {
        unsupported("watch")
    }

    fn notify(&self, _: &Location, _: &str, _: Bytes, _: Duration) -> Pending<NotifyReply> {
        unsupported("notify")
    }

    fn command(&self, _: CommandTarget, _: String, _: Bytes) -> Pending<CommandReply> {
        unsupported("run a command")
    }

    fn pools(&self) -> Pending<Vec<(PoolId, String)>> {
        answer(Ok(vec![(PoolId(1), "sim".into())]))
    }

    fn wait_for_latest_osdmap(&self) -> Pending<()> {
        answer(Ok(()))
    }

    fn service_register(&self, _: &str, _: &str, _: Vec<(String, String)>) -> Pending<()> {
        unsupported("register a service")
    }

    fn service_update_status(&self, _: Vec<(String, String)>) -> Pending<()> {
        unsupported("update a service")
    }

    fn fsid(&self) -> &str {
        "00000000-0000-0000-0000-000000000000"
    }

    fn instance_id(&self) -> u64 {
        1
    }

    fn address(&self) -> &str {
        "127.0.0.1:0/1"
    }

    fn config(&self, _: &str) -> Option<String> {
        None
    }
}
