//! The task that carries out what the planner decides.
//!
//! It owns all state of a replay, waits for what is pushed and for what is done, and publishes how far the copy is. When
//! it is told to stop, or something fails, it begins nothing any more, waits until nothing is in flight, and ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use rados::{Extent, GateGuard};
use rbd::exclusive_lock::LockReport;
use rbd::watch_notify::notify_header_update;
use rbd::{ObjectNumber, image::Image};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::error::ReplayError;
use super::head_map::HeadMap;
use super::marker::{Marker, write_marker};
use super::operations::Maintainer;
use super::plan::{Planner, Step};
use super::queue::Ticket;
use super::target::Target;
use crate::budget::Piece;
use crate::event::Event;
use crate::types::{EntryPosition, TagTid};

/// Commands that are taken in at once.
const COMMANDS_MAX: usize = 1024;

/// What an entry holds on to until it is on disk.
pub(super) struct Held {
    pub bytes: u64,
    pub _entry: OwnedSemaphorePermit,
    /// Its bytes, as long as it need not wait for entries that are still to come.
    pub piece: Option<Piece>,
}

impl Ticket for Held {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn yield_shared(&mut self) {
        self.piece = None;
    }
}

/// What the task is told.
pub(super) enum Command {
    Entry(EntryPosition, Event, Held),
    TagEnd(TagTid),
    /// The copy's own journal has this newest tag now.
    LocalTag(TagTid),
    Sync(oneshot::Sender<()>),
}

/// What a replay has done.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub written_bytes: AtomicU64,
    pub writes: AtomicU64,
    pub markers: AtomicU64,
}

/// Something that was carried out.
enum Done {
    Marker,
    Map,
    Write(ObjectNumber, bool),
    Compared(bool),
    Op(Box<Maintainer>),
    Notified,
}

type Running = BoxFuture<'static, Result<Done, ReplayError>>;

/// See the head of this file.
pub(super) struct Engine {
    pub planner: Planner<Held>,
    pub target: Arc<Target>,
    /// Lent to an operation while it runs.
    pub maintainer: Option<Box<Maintainer>>,
    /// The map of the head; with the maintainer while an operation runs.
    pub map: Option<HeadMap>,
    pub image: Image,
    pub lock: watch::Receiver<LockReport>,
    pub remote_mirror_uuid: String,
    pub local_tag: TagTid,
    pub applied: watch::Sender<Option<EntryPosition>>,
    pub totals: Arc<Totals>,
    pub stop: CancellationToken,
    pub underway: Underway,
    /// The lock of the image is not given up before this goes: the last.
    pub _inside: Option<GateGuard>,
}

/// What is under way.
#[derive(Default)]
pub(super) struct Underway {
    running: FuturesUnordered<Running>,
    /// Who waits for everything to be on disk, by token.
    syncs: HashMap<u64, oneshot::Sender<()>>,
    syncs_begun: u64,
}

impl Engine {
    /// Runs until it is told to stop, something fails, or nobody can tell it anything any more.
    pub async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) -> Result<(), ReplayError> {
        let ended = self.work(&mut commands).await;
        // What is in flight ends before we do; it says nothing new.
        self.stop.cancel();
        while let Some(done) = self.underway.running.next().await {
            if let Ok(done) = done {
                self.note(done);
            }
        }
        self.publish();
        ended
    }

    async fn work(&mut self, commands: &mut mpsc::UnboundedReceiver<Command>) -> Result<(), ReplayError> {
        let mut received = Vec::new();
        loop {
            while let Some(step) = self.planner.next()? {
                self.begin(step);
            }
            self.publish();
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ok(()),
                Some(done) = self.underway.running.next() => {
                    let done = done?;
                    self.note(done);
                    // Others that are done by now go into the same round.
                    while let Some(Some(done)) = self.underway.running.next().now_or_never() {
                        let done = done?;
                        self.note(done);
                    }
                }
                count = commands.recv_many(&mut received, COMMANDS_MAX) => {
                    if count == 0 {
                        return Ok(());
                    }
                    received.drain(..).for_each(|command| self.take_in(command));
                }
            }
        }
    }

    fn publish(&self) {
        let applied = self.planner.applied();
        self.applied.send_if_modified(|published| {
            // The position that the replay began behind is never taken back.
            let newer = applied > *published;
            if newer {
                *published = applied;
            }
            newer
        });
    }

    fn take_in(&mut self, command: Command) {
        match command {
            Command::Entry(position, event, held) => self.planner.push(position, event, held),
            Command::TagEnd(tag) => self.planner.end_tag(tag),
            Command::LocalTag(tag) => {
                if std::mem::replace(&mut self.local_tag, tag) != tag {
                    self.planner.renew_marker();
                }
            }
            Command::Sync(answer) => {
                self.underway.syncs_begun += 1;
                let token = self.underway.syncs_begun;
                self.underway.syncs.insert(token, answer);
                self.planner.sync(token);
            }
        }
    }

    /// Begins a step.
    fn begin(&mut self, step: Step) {
        let running = match step {
            Step::Marker(done) => self.marker(done),
            Step::Map(states) => match &mut self.map {
                Some(map) => {
                    let stored = map.change(states);
                    async move { stored.await.map(|()| Done::Map).map_err(ReplayError::Local) }.boxed()
                }
                None => async { Ok(Done::Map) }.boxed(),
            },
            Step::Write(write) => {
                let (target, object, remove) = (self.target.clone(), write.object, write.remove);
                self.totals.written_bytes.fetch_add(write.change.bytes(), Ordering::Relaxed);
                self.totals.writes.fetch_add(1, Ordering::Relaxed);
                let write = async move {
                    target.write(write).await.map_err(ReplayError::Local)?;
                    Ok(Done::Write(object, remove))
                };
                write.boxed()
            }
            Step::Compare { extent, compare } => compare_range(self.target.clone(), extent, compare).boxed(),
            Step::Op { op, began } => {
                let Some(mut maintainer) = self.maintainer.take() else { return };
                maintainer.map = self.map.take();
                let carry_out = async move {
                    tracing::info!(image = %maintainer.local.image.id(), "carrying out {op:?} of {began}");
                    maintainer.carry_out(&op, began).await?;
                    Ok(Done::Op(maintainer))
                };
                carry_out.boxed()
            }
            Step::Synced(token) => {
                // Whoever is answered looks at how far the copy is.
                self.publish();
                if let Some(answer) = self.underway.syncs.remove(&token) {
                    // Whoever asked may have gone.
                    let _ = answer.send(());
                }
                return;
            }
        };
        self.underway.running.push(running);
    }

    fn marker(&self, done: EntryPosition) -> Running {
        self.totals.markers.fetch_add(1, Ordering::Relaxed);
        let marker =
            Marker { remote_mirror_uuid: self.remote_mirror_uuid.clone(), local_tag: self.local_tag, done };
        let written = write_marker(self.image.clone(), self.lock.clone(), marker);
        async move { written.await.map(|()| Done::Marker) }.boxed()
    }

    fn note(&mut self, done: Done) {
        match done {
            Done::Marker => self.planner.marker_written(),
            Done::Map => self.planner.map_stored(),
            Done::Write(object, removed) => self.planner.written(object, removed),
            Done::Compared(equal) => self.planner.compared(equal),
            Done::Notified => {}
            Done::Op(mut maintainer) => {
                self.map = maintainer.map.take();
                if let Some(target) = maintainer.target.take() {
                    self.target = Arc::new(target);
                }
                self.maintainer = Some(maintainer);
                let map = self.map.as_ref().map(|map| map.stored().clone());
                self.planner.op_carried_out(self.target.shape().clone(), map);
                self.notify();
            }
        }
    }

    /// Tells those who have the copy open that its header changed, beside everything else.
    fn notify(&self) {
        let image = self.image.clone();
        let notified = async move {
            if let Err(error) = notify_header_update(image.header_ioctx(), image.id()).await {
                tracing::debug!("{error}");
            }
            Ok(Done::Notified)
        };
        self.underway.running.push(notified.boxed());
    }
}

async fn compare_range(target: Arc<Target>, extent: Extent, compare: Bytes) -> Result<Done, ReplayError> {
    let mut there = vec![0; compare.len()];
    if !extent.is_empty() {
        for run in target.reader().await?.read(&[extent]).await? {
            let at = (run.offset - extent.offset) as usize;
            there[at..at + run.data.len()].copy_from_slice(&run.data);
        }
    }
    Ok(Done::Compared(there == compare))
}
