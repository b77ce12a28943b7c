//! The seam between what is asked of RADOS and what carries it out.
//!
//! Everything above holds an `Arc<dyn Backend>` (inside [`crate::Cluster`] or [`crate::IoCtx`]). Here faults are
//! injected and operations counted; here a simulated store can stand in; and what crosses it can travel over a wire.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::cluster::{CommandReply, CommandTarget};
use crate::error::{Error, Result};
use crate::gate::GateGuard;
use crate::op::{ReadOp, ReadReply, WriteOp};
use crate::types::{PoolId, SnapId};

/// A request, which starts when it is first polled. Requests that one task starts in turn reach an object in that order.
/// Dropping it gives up the answer; it does not undo the request, but keeps it from being sent again.
pub type Pending<T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'static>>;

/// Where an object lives: a pool and a namespace in it (empty for the default one).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Location {
    /// The pool.
    pub pool: PoolId,
    /// The namespace, empty for the default one.
    pub namespace: Arc<str>,
}

/// What carries out requests against one cluster.
pub trait Backend: Send + Sync + 'static {
    /// Reads one object.
    fn read(&self, location: &Location, op: ReadOp) -> Pending<ReadReply>;
    /// Changes one object; answers with its new version.
    fn write(&self, location: &Location, op: WriteOp) -> Pending<u64>;
    /// The same; `guard` is kept until it is certain that the write can take effect no more, also when the future is
    /// dropped. So it goes when the write was answered, or when it was dropped before it was sent.
    fn write_guarded(&self, location: &Location, op: WriteOp, guard: GateGuard) -> Pending<u64>;
    /// Allocates a self-managed snapshot id in the pool (a monitor round).
    fn snap_create(&self, location: &Location) -> Pending<SnapId>;
    /// Gives up a self-managed snapshot id: its clones will be trimmed (a monitor round).
    fn snap_remove(&self, location: &Location, snap: SnapId) -> Pending<()>;
    /// Names of all objects in the location.
    fn list_objects(&self, location: &Location) -> Pending<Vec<String>>;
    /// Watches an object. The cluster forgets a silent watcher after `timeout`.
    fn watch(&self, location: &Location, object: &str, timeout: Duration) -> Pending<Watch>;
    /// Notifies all watchers of an object and gathers their answers for at most `timeout`.
    fn notify(
        &self,
        location: &Location,
        object: &str,
        payload: Bytes,
        timeout: Duration,
    ) -> Pending<NotifyReply>;
    /// Runs a command (JSON) of a monitor or the manager.
    fn command(&self, target: CommandTarget, command: String, input: Bytes) -> Pending<CommandReply>;
    /// Every pool: number and name.
    fn pools(&self) -> Pending<Vec<(PoolId, String)>>;
    /// Waits until this client has the newest OSD map.
    fn wait_for_latest_osdmap(&self) -> Pending<()>;
    /// Registers this connection with the manager as a service daemon (`ceph -s`, `ceph service dump`).
    fn service_register(&self, service: &str, daemon: &str, metadata: Vec<(String, String)>) -> Pending<()>;
    /// Publishes the status of the service daemon registered before.
    fn service_update_status(&self, status: Vec<(String, String)>) -> Pending<()>;

    /// The cluster's fsid.
    fn fsid(&self) -> &str;
    /// This client's global id (`client.NNNN`), by which watchers and lock owners are known.
    fn instance_id(&self) -> u64;
    /// This client's address as blocklists know it, for example `127.0.0.1:0/123456`.
    fn address(&self) -> &str;
    /// The value of a configuration option, if there is such an option.
    fn config(&self, option: &str) -> Option<String>;
}

/// A registered watch. It is unregistered when dropped.
///
/// After a connection error the backend registers it anew by itself; [`WatchEvent::Lost`] and
/// [`WatchEvent::Restored`] tell of the gap in which notifications may have been missed.
pub struct Watch {
    /// Events in the order in which they came. Closed when the watch is gone for good.
    pub events: mpsc::UnboundedReceiver<WatchEvent>,
    /// Number that identifies this watch among those of this client; lock cookies are made from it.
    pub cookie: u64,
    /// Keeps the registration; unregisters when dropped.
    pub registration: Box<dyn Registration>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch(cookie {})", self.cookie)
    }
}

/// A live registration behind a [`Watch`].
pub trait Registration: Send + Sync {
    /// Unregisters and waits until the cluster has forgotten the watch. Dropping does the same without waiting.
    fn unregister(self: Box<Self>) -> Pending<()>;
}

impl Watch {
    /// Next event; `None` when the watch is gone for good. Cancel-safe.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        self.events.recv().await
    }

    /// Unregisters and waits until the cluster has forgotten the watch.
    pub async fn unregister(self) -> Result<()> {
        self.registration.unregister().await
    }
}

/// What a watcher hears.
#[derive(Debug)]
pub enum WatchEvent {
    /// Somebody notified the object. Dropping `answer` answers with nothing.
    Notify {
        /// The notifier's payload.
        payload: Bytes,
        /// Global id of the notifying client.
        notifier: u64,
        /// The way to answer.
        answer: NotifyAnswer,
    },
    /// The watch broke; notifications may be missed from here on.
    Lost(Error),
    /// The watch is registered again (with a new cookie): refresh what it is about.
    Restored {
        /// The new cookie.
        cookie: u64,
    },
}

/// Answers one notification: with a payload through [`NotifyAnswer::send`], or with nothing when dropped.
pub struct NotifyAnswer {
    send: Option<Box<dyn FnOnce(Bytes) + Send>>,
}

impl NotifyAnswer {
    /// An answer that is handed to `send`.
    pub fn new(send: impl FnOnce(Bytes) + Send + 'static) -> Self {
        NotifyAnswer { send: Some(Box::new(send)) }
    }

    /// Answers with `payload`.
    pub fn send(mut self, payload: Bytes) {
        if let Some(send) = self.send.take() {
            send(payload);
        }
    }
}

impl Drop for NotifyAnswer {
    fn drop(&mut self) {
        if let Some(send) = self.send.take() {
            send(Bytes::new());
        }
    }
}

impl std::fmt::Debug for NotifyAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NotifyAnswer")
    }
}

/// Answers of the watchers of a notified object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NotifyReply {
    /// Answers: global id of the client, cookie of its watch, payload.
    pub answers: Vec<(u64, u64, Bytes)>,
    /// Watchers that did not answer in time: global id and cookie.
    pub silent: Vec<(u64, u64)>,
}
