//! A backend that wraps another one, and fails, stalls, loses answers or crashes where a [`FaultPlan`] says.
//!
//! A plan is a value: the same plan over the same sequence of requests does the same. [`FaultPlan::seeded`] draws one
//! from a 64-bit seed with SplitMix64, and its `Debug` form shows what was drawn; a test that fails prints the seed, and
//! the seed goes into a regression test.
//!
//! A request is counted when its future is first polled, in the order in which that happens. The n-th request that a
//! [`Rule`] matches (from 1) suffers the rule's [`Fault`]; of several rules due at once the first wins, and all count.
//!
//! A crash stands for the end of the process: from then on no request reaches the cluster, none answers (not even those
//! in flight, which may have taken effect or not), and no watch tells of anything. Watches stay registered, as those of a
//! dead client do at first, until the last reference to the [`Faulty`] and its watches is gone.

mod mortal;
mod plan;

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::backend::{Backend, Location, NotifyReply, Pending, Registration, Watch};
use crate::cluster::{CommandReply, CommandTarget};
use crate::error::{Error, Result};
use crate::gate::GateGuard;
use crate::op::{ReadAnswer, ReadOp, ReadReply, WriteOp};
use crate::types::{PoolId, SnapId};

use mortal::mortal_watch;
use plan::Request;
pub use plan::{Fault, FaultPlan, Matcher, ObjectPattern, OperationKind, Rule};

/// Requests, and bytes of data written or read by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Requests that were made, whatever became of them.
    pub operations: u64,
    /// Bytes sent with them, or received with their answers.
    pub bytes: u64,
}

/// Counts by kind and by group of objects: the longest of the given prefixes that fits, or the empty one.
pub type Counts = BTreeMap<(OperationKind, String), Count>;

/// A backend with faults; see the head of this file.
pub struct Faulty {
    inner: Arc<dyn Backend>,
    shared: Arc<Shared>,
}

struct Shared {
    /// Prefixes by which objects are grouped in counts.
    prefixes: Vec<String>,
    progress: Mutex<Progress>,
    crashed: watch::Sender<bool>,
    /// Whether a request is held back, or was.
    held: watch::Sender<bool>,
    /// Whether what is held back may reach the cluster.
    released: watch::Sender<bool>,
    /// Watches that the crashed process has left behind.
    kept: Mutex<Vec<Box<dyn Registration>>>,
}

#[derive(Default)]
struct Progress {
    plan: FaultPlan,
    /// Per rule of the plan: how many requests matched so far.
    matched: Vec<u64>,
    counts: Counts,
}

impl Faulty {
    /// Wraps `inner`. Counts group objects by `prefixes`.
    pub fn new(inner: Arc<dyn Backend>, plan: FaultPlan, prefixes: &[&str]) -> Arc<Faulty> {
        let matched = vec![0; plan.rules.len()];
        let progress = Progress { plan, matched, counts: Counts::new() };
        let prefixes = prefixes.iter().map(|prefix| prefix.to_string()).collect();
        let (crashed, _) = watch::channel(false);
        Arc::new(Faulty {
            inner,
            shared: Arc::new(Shared {
                prefixes,
                progress: Mutex::new(progress),
                crashed,
                held: watch::Sender::new(false),
                released: watch::Sender::new(false),
                kept: Mutex::default(),
            }),
        })
    }

    /// Another plan from now on; its rules count from here.
    pub fn set_plan(&self, plan: FaultPlan) {
        let mut progress = self.shared.progress();
        progress.matched = vec![0; plan.rules.len()];
        progress.plan = plan;
    }

    /// What was asked so far.
    pub fn counts(&self) -> Counts {
        self.shared.progress().counts.clone()
    }

    /// Number of requests so far, of all kinds.
    pub fn requests(&self) -> u64 {
        self.shared.progress().counts.values().map(|count| count.operations).sum()
    }

    /// How many requests each rule of the plan has matched so far, in the order of the rules.
    pub fn matched(&self) -> Vec<u64> {
        self.shared.progress().matched.clone()
    }

    /// Crashes now.
    pub fn crash(&self) {
        self.shared.crashed.send_replace(true);
    }

    /// Waits until it has crashed.
    pub async fn crashed(&self) {
        self.shared.until_crashed().await;
    }

    /// Waits until a request is held back ([`Fault::Hold`]).
    pub async fn held(&self) {
        // The sender is part of `self`, so this cannot end otherwise.
        let _ = self.shared.held.subscribe().wait_for(|held| *held).await;
    }

    /// Lets what is held back, or will be, reach the cluster.
    pub fn release(&self) {
        self.shared.released.send_replace(true);
    }

    /// Makes a request in the way that the plan wants.
    fn request<T: Send + 'static>(
        &self,
        request: Request,
        start: impl FnOnce() -> Pending<T> + Send + 'static,
    ) -> Pending<T> {
        self.measured(request, start, |_| 0)
    }

    /// As `request`; `received` tells the bytes of an answer.
    fn measured<T: Send + 'static>(
        &self,
        request: Request,
        start: impl FnOnce() -> Pending<T> + Send + 'static,
        received: fn(&T) -> u64,
    ) -> Pending<T> {
        let shared = self.shared.clone();
        Box::pin(async move {
            if *shared.crashed.borrow() {
                return pending().await;
            }
            let fault = shared.count(&request);
            let result = tokio::select! {
                biased;
                () = shared.until_crashed() => return pending().await,
                result = shared.suffer(fault, &request, start) => result,
            };
            if let Ok(answer) = &result {
                shared.add_bytes(&request, received(answer));
            }
            result
        })
    }
}

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn until_crashed(&self) {
        let mut crashed = self.crashed.subscribe();
        // The sender lives in `self`, so this cannot end otherwise.
        let _ = crashed.wait_for(|crashed| *crashed).await;
    }

    /// Counts a request, and says what it is to suffer.
    fn count(&self, request: &Request) -> Option<Fault> {
        let mut progress = self.progress();
        let Progress { plan, matched, counts } = &mut *progress;
        let count = counts.entry((request.kind, self.group(request))).or_default();
        count.operations += 1;
        count.bytes += request.bytes;
        let mut fault = None;
        for (rule, matched) in plan.rules.iter().zip(matched) {
            if !rule.matcher.matches(request) {
                continue;
            }
            *matched += 1;
            if *matched >= rule.nth && *matched - rule.nth < rule.times {
                fault = fault.or_else(|| Some(rule.fault.clone()));
            }
        }
        fault
    }

    fn add_bytes(&self, request: &Request, bytes: u64) {
        self.progress().counts.entry((request.kind, self.group(request))).or_default().bytes += bytes;
    }

    fn group(&self, request: &Request) -> String {
        let object = request.object.as_deref().unwrap_or_default();
        let fitting = self.prefixes.iter().filter(|prefix| object.starts_with(prefix.as_str()));
        fitting.max_by_key(|prefix| prefix.len()).cloned().unwrap_or_default()
    }

    async fn suffer<T: Send + 'static>(
        &self,
        fault: Option<Fault>,
        request: &Request,
        start: impl FnOnce() -> Pending<T> + Send + 'static,
    ) -> Result<T> {
        let injected = |errno| Error::new(errno, format!("cannot {request} (injected fault)"));
        match fault {
            None => start().await,
            Some(Fault::Fail(errno)) => Err(injected(errno)),
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                start().await
            }
            Some(Fault::Hold) => {
                self.held.send_replace(true);
                let _ = self.released.subscribe().wait_for(|released| *released).await;
                start().await
            }
            Some(Fault::Late(delay)) => {
                // As what was sent: it goes on when nobody waits for it any more.
                let sent = tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    start().await
                });
                sent.await.unwrap_or_else(|_| Err(injected(libc::EIO)))
            }
            Some(Fault::LoseAnswer(errno)) => {
                let _ = start().await;
                match errno {
                    Some(errno) => Err(injected(errno)),
                    None => pending().await,
                }
            }
            Some(Fault::CrashBefore) => {
                self.crashed.send_replace(true);
                pending().await
            }
            Some(Fault::CrashAfter) => {
                let _ = start().await;
                self.crashed.send_replace(true);
                pending().await
            }
        }
    }
}

/// Bytes of data in an answer.
fn received_bytes(reply: &ReadReply) -> u64 {
    let size = |answer: &ReadAnswer| match answer {
        ReadAnswer::Data(data) | ReadAnswer::Sparse { data, .. } => data.len(),
        ReadAnswer::Omap(page) => page.entries.iter().map(|(key, value)| key.len() + value.len()).sum(),
        _ => 0,
    };
    reply.answers.iter().map(|answer| size(answer) as u64).sum()
}

impl Backend for Faulty {
    fn read(&self, location: &Location, op: ReadOp) -> Pending<ReadReply> {
        let (inner, location) = (self.inner.clone(), location.clone());
        self.measured(Request::read(&op), move || inner.read(&location, op), received_bytes)
    }

    fn write(&self, location: &Location, op: WriteOp) -> Pending<u64> {
        let (inner, location) = (self.inner.clone(), location.clone());
        self.request(Request::write(&op), move || inner.write(&location, op))
    }

    fn write_guarded(&self, location: &Location, op: WriteOp, guard: GateGuard) -> Pending<u64> {
        let (inner, location) = (self.inner.clone(), location.clone());
        self.request(Request::write(&op), move || inner.write_guarded(&location, op, guard))
    }

    fn snap_create(&self, location: &Location) -> Pending<SnapId> {
        let (inner, location) = (self.inner.clone(), location.clone());
        self.request(Request::new(OperationKind::SnapCreate, None), move || inner.snap_create(&location))
    }

    fn snap_remove(&self, location: &Location, snap: SnapId) -> Pending<()> {
        let (inner, location) = (self.inner.clone(), location.clone());
        self.request(Request::new(OperationKind::SnapRemove, None), move || {
            inner.snap_remove(&location, snap)
        })
    }

    fn list_objects(&self, location: &Location) -> Pending<Vec<String>> {
        let (inner, location) = (self.inner.clone(), location.clone());
        self.request(Request::new(OperationKind::List, None), move || inner.list_objects(&location))
    }

    fn watch(&self, location: &Location, object: &str, timeout: Duration) -> Pending<Watch> {
        let (inner, location, name) = (self.inner.clone(), location.clone(), object.to_string());
        let request = Request::new(OperationKind::Watch, Some(object));
        let watching = self.request(request, move || inner.watch(&location, &name, timeout));
        let shared = self.shared.clone();
        Box::pin(async move { Ok(mortal_watch(watching.await?, shared)) })
    }

    fn notify(
        &self,
        location: &Location,
        object: &str,
        payload: Bytes,
        timeout: Duration,
    ) -> Pending<NotifyReply> {
        let (inner, location, name) = (self.inner.clone(), location.clone(), object.to_string());
        let request = Request::new(OperationKind::Notify, Some(object));
        self.request(request, move || inner.notify(&location, &name, payload, timeout))
    }

    fn command(&self, target: CommandTarget, command: String, input: Bytes) -> Pending<CommandReply> {
        let inner = self.inner.clone();
        self.request(Request::new(OperationKind::Command, None), move || {
            inner.command(target, command, input)
        })
    }

    fn pools(&self) -> Pending<Vec<(PoolId, String)>> {
        let inner = self.inner.clone();
        self.request(Request::new(OperationKind::Other, None), move || inner.pools())
    }

    fn wait_for_latest_osdmap(&self) -> Pending<()> {
        let inner = self.inner.clone();
        self.request(Request::new(OperationKind::Other, None), move || inner.wait_for_latest_osdmap())
    }

    fn service_register(&self, service: &str, daemon: &str, metadata: Vec<(String, String)>) -> Pending<()> {
        let (inner, service, daemon) = (self.inner.clone(), service.to_string(), daemon.to_string());
        let request = Request::new(OperationKind::Other, None);
        self.request(request, move || inner.service_register(&service, &daemon, metadata))
    }

    fn service_update_status(&self, status: Vec<(String, String)>) -> Pending<()> {
        let inner = self.inner.clone();
        self.request(Request::new(OperationKind::Other, None), move || inner.service_update_status(status))
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
