//! The backend that is librados: the only unsafe code of the workspace.
//!
//! * [`connection`]: connecting, configuration, I/O contexts, the bounds on what is in flight, shutting down.
//! * [`closing`]: waiting for connections to be shut down.
//! * [`completion`]: how an asynchronous call of librados becomes a future, and who owns its memory meanwhile.
//! * [`ops`]: reads and writes of one object, over the C++ shim (`shim.cc`).
//! * [`answers`]: whether what came back for a part of a read is an answer to it.
//! * [`watch`]: watches that come back by themselves, and notifications.
//! * [`blocking`]: what librados offers only as a call that waits.
//! * [`options`]: which options librados knows.
//!
//! Invariants:
//! * Memory that librados may still touch is owned by a completion, never by a future. It is freed in the completion's
//!   callback, which comes exactly once; a future that is dropped only gives up hearing of it.
//! * A connection outlives everything in flight on it: each completion holds a reference.
//! * Nothing here waits on an async worker thread: calls of librados that wait run on threads of their own
//!   ([`blocking`]), and the throttle with which librados would block a submitting thread is off, since [`crate::Limits`]
//!   bounds what reaches it.

#![allow(unsafe_code)]

mod answers;
mod blocking;
mod closing;
mod completion;
mod connection;
mod ffi;
mod ops;
mod options;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::backend::{Backend, Location, NotifyReply, Pending, Watch};
use crate::cluster::{CommandReply, CommandTarget, ConnectOptions};
use crate::error::Result;
use crate::gate::GateGuard;
use crate::op::{ReadOp, ReadReply, WriteOp};
use crate::types::{PoolId, SnapId};

use connection::Connection;
pub(crate) use options::kind as option_kind;

/// Connects to a cluster.
pub(crate) async fn connect(options: ConnectOptions) -> Result<Arc<dyn Backend>> {
    let connection = blocking::on_own_thread(move || Connection::open(&options)).await?;
    Ok(Arc::new(Librados { connection: Arc::new(connection) }))
}

/// Waits until every connection of this process is closed, at most for `timeout`; true when they are.
pub(crate) async fn all_closed(timeout: Duration) -> bool {
    blocking::on_own_thread(move || Ok(closing::wait_all_closed(timeout))).await.unwrap_or(false)
}

/// Ends the process with `code` once every connection is closed, or after `timeout`.
pub(crate) fn end_process(code: u8, timeout: Duration) -> ! {
    closing::end_process(code, timeout)
}

/// A connection as a backend.
struct Librados {
    connection: Arc<Connection>,
}

impl Backend for Librados {
    fn read(&self, location: &Location, op: ReadOp) -> Pending<ReadReply> {
        Box::pin(ops::read(self.connection.clone(), location.clone(), op))
    }

    fn write(&self, location: &Location, op: WriteOp) -> Pending<u64> {
        Box::pin(ops::write(self.connection.clone(), location.clone(), op, None))
    }

    fn write_guarded(&self, location: &Location, op: WriteOp, guard: GateGuard) -> Pending<u64> {
        Box::pin(ops::write(self.connection.clone(), location.clone(), op, Some(guard)))
    }

    fn snap_create(&self, location: &Location) -> Pending<SnapId> {
        Box::pin(ops::snap_create(self.connection.clone(), location.clone()))
    }

    fn snap_remove(&self, location: &Location, snap: SnapId) -> Pending<()> {
        Box::pin(ops::snap_remove(self.connection.clone(), location.clone(), snap))
    }

    fn list_objects(&self, location: &Location) -> Pending<Vec<String>> {
        Box::pin(blocking::list_objects(self.connection.clone(), location.clone()))
    }

    fn watch(&self, location: &Location, object: &str, timeout: Duration) -> Pending<Watch> {
        Box::pin(watch::watch(self.connection.clone(), location.clone(), object.to_string(), timeout))
    }

    fn notify(
        &self,
        location: &Location,
        object: &str,
        payload: Bytes,
        timeout: Duration,
    ) -> Pending<NotifyReply> {
        Box::pin(watch::notify(
            self.connection.clone(),
            location.clone(),
            object.to_string(),
            payload,
            timeout,
        ))
    }

    fn command(&self, target: CommandTarget, command: String, input: Bytes) -> Pending<CommandReply> {
        Box::pin(blocking::command(self.connection.clone(), target, command, input))
    }

    fn pools(&self) -> Pending<Vec<(PoolId, String)>> {
        Box::pin(blocking::pools(self.connection.clone()))
    }

    fn wait_for_latest_osdmap(&self) -> Pending<()> {
        Box::pin(blocking::wait_for_latest_osdmap(self.connection.clone()))
    }

    fn service_register(&self, service: &str, daemon: &str, metadata: Vec<(String, String)>) -> Pending<()> {
        let (service, daemon) = (service.to_string(), daemon.to_string());
        Box::pin(blocking::service_register(self.connection.clone(), service, daemon, metadata))
    }

    fn service_update_status(&self, status: Vec<(String, String)>) -> Pending<()> {
        Box::pin(blocking::service_update_status(self.connection.clone(), status))
    }

    fn fsid(&self) -> &str {
        &self.connection.fsid
    }

    fn instance_id(&self) -> u64 {
        self.connection.instance_id
    }

    fn address(&self) -> &str {
        &self.connection.address
    }

    fn config(&self, option: &str) -> Option<String> {
        self.connection.config(option)
    }
}
