//! A backend whose requests can be given up, all of them at once.
//!
//! librados waits without a limit for a cluster that it cannot reach. Whoever holds something that others wait for may
//! have to end such waits, wherever they are, and must not drop what it does elsewhere meanwhile: it reaches the cluster
//! through [`severable`], and severs the line. From then on every request fails at once, those in flight among them,
//! and none is sent any more. A write that was in flight may take effect all the same, when the cluster is back; a watch is
//! unregistered then.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::backend::{Backend, Location, NotifyReply, Pending, Registration, Watch};
use crate::cluster::{CommandReply, CommandTarget};
use crate::error::{Error, Result};
use crate::gate::GateGuard;
use crate::op::{ReadOp, ReadReply, WriteOp};
use crate::types::{PoolId, SnapId};

/// Severs the line to a cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Line(Arc<watch::Sender<Option<Error>>>);

/// The same cluster through a line that can be severed.
pub fn severable(inner: Arc<dyn Backend>) -> (Arc<dyn Backend>, Line) {
    let line = Line(Arc::new(watch::Sender::new(None)));
    (Arc::new(Severable { inner, line: line.clone() }), line)
}

impl Line {
    /// Ends all waits, with this error, for good.
    pub fn sever(&self, why: Error) {
        self.0.send_replace(Some(why));
    }

    /// True once it is severed.
    pub fn is_severed(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Awaits an answer, but not beyond the end of the line: what is awaited is then dropped.
    pub async fn unless_severed<T>(&self, answer: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            // Nothing is begun any more then.
            why = self.severed() => Err(why),
            answer = answer => answer,
        }
    }

    async fn severed(&self) -> Error {
        let mut severed = self.0.subscribe();
        loop {
            if let Some(why) = severed.borrow_and_update().clone() {
                return why;
            }
            if severed.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

struct Severable {
    inner: Arc<dyn Backend>,
    line: Line,
}

impl Severable {
    fn until_severed<T: Send + 'static>(&self, answer: Pending<T>) -> Pending<T> {
        let line = self.line.clone();
        Box::pin(async move { line.unless_severed(answer).await })
    }
}

impl Backend for Severable {
    fn read(&self, location: &Location, op: ReadOp) -> Pending<ReadReply> {
        self.until_severed(self.inner.read(location, op))
    }

    fn write(&self, location: &Location, op: WriteOp) -> Pending<u64> {
        self.until_severed(self.inner.write(location, op))
    }

    fn write_guarded(&self, location: &Location, op: WriteOp, guard: GateGuard) -> Pending<u64> {
        self.until_severed(self.inner.write_guarded(location, op, guard))
    }

    fn snap_create(&self, location: &Location) -> Pending<SnapId> {
        self.until_severed(self.inner.snap_create(location))
    }

    fn snap_remove(&self, location: &Location, snap: SnapId) -> Pending<()> {
        self.until_severed(self.inner.snap_remove(location, snap))
    }

    fn list_objects(&self, location: &Location) -> Pending<Vec<String>> {
        self.until_severed(self.inner.list_objects(location))
    }

    fn watch(&self, location: &Location, object: &str, timeout: Duration) -> Pending<Watch> {
        let watch = self.until_severed(self.inner.watch(location, object, timeout));
        let line = self.line.clone();
        Box::pin(async move {
            let Watch { events, cookie, registration } = watch.await?;
            Ok(Watch { events, cookie, registration: Box::new(Registered { inner: registration, line }) })
        })
    }

    fn notify(
        &self,
        location: &Location,
        object: &str,
        payload: Bytes,
        timeout: Duration,
    ) -> Pending<NotifyReply> {
        self.until_severed(self.inner.notify(location, object, payload, timeout))
    }

    fn command(&self, target: CommandTarget, command: String, input: Bytes) -> Pending<CommandReply> {
        self.until_severed(self.inner.command(target, command, input))
    }

    fn pools(&self) -> Pending<Vec<(PoolId, String)>> {
        self.until_severed(self.inner.pools())
    }

    fn wait_for_latest_osdmap(&self) -> Pending<()> {
        self.until_severed(self.inner.wait_for_latest_osdmap())
    }

    fn service_register(&self, service: &str, daemon: &str, metadata: Vec<(String, String)>) -> Pending<()> {
        self.until_severed(self.inner.service_register(service, daemon, metadata))
    }

    fn service_update_status(&self, status: Vec<(String, String)>) -> Pending<()> {
        self.until_severed(self.inner.service_update_status(status))
    }

    fn fsid(&self) -> &str {
        self.inner.fsid()
    }

    fn instance_id(&self) -> u64 {
        self.inner.instance_id()
    }

    fn address(&self) -> &str {
        self.inner.address()
    }

    fn config(&self, option: &str) -> Option<String> {
        self.inner.config(option)
    }
}

/// The registration of a watch, whose end is not waited for once the line is severed.
struct Registered {
    inner: Box<dyn Registration>,
    line: Line,
}

impl Registration for Registered {
    fn unregister(self: Box<Self>) -> Pending<()> {
        let Registered { inner, line } = *self;
        // It is given up in any case.
        let unregistered = inner.unregister();
        Box::pin(async move { line.unless_severed(unregistered).await })
    }
}
