//! Applying a journal to the copy: exactly, and as fast as its disks take it.
//!
//! ```text
//! push ──▶ queue (queue.rs: operations and their results) ──▶ planner (plan.rs: epochs, the marker)
//!            │                                                  │  objects.rs: one merged write per object in flight
//!            │                                                  ▼
//!            └──────────────── engine (engine.rs) ◀── steps ── marker.rs · head_map.rs · target.rs · operations/
//! ```
//!
//! What a reader of the copy may see at any instant, also after we were killed, is a state that the primary's disk may
//! have been in: everything up to some barrier, and some of what follows up to the next one (see [`plan`]).
//!
//! The session that drives a replay holds the exclusive lock of the copy for as long as the replay lives, reads the
//! journal from the commit position on, pushes every entry, and commits what [`Replay::applied`] tells. Where a tag ends
//! it calls [`Replay::end_tag`], brings the commit position up to date, allocates a tag in the copy's own journal, and
//! calls [`Replay::set_local_tag`].
//!
//! Reference: `src/librbd/journal/Replay.cc`.

mod delta;
mod engine;
mod error;
mod head_map;
mod marker;
mod objects;
mod operations;
mod plan;
mod queue;
mod shape;
mod target;
mod touched;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use deep_copy::ids::SnapIds;
use rados::SnapId;
use rbd::exclusive_lock::LockReport;
use rbd::image::{Image, OpenImage};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::budget::{Budget, Part};
use crate::event::{Event, EventEntry};
use crate::types::{EntryPosition, TagTid};

use engine::{Command, Engine, Held, Totals, Underway};
use head_map::HeadMap;
use operations::Maintainer;
use plan::Planner;
use target::Target;

pub use error::ReplayError;
pub use marker::{Marker, clear_marker, read_marker};

/// Entries that a replay holds. More than may wait for the result of an operation (`queue.rs`).
const ENTRIES_MAX: usize = 32 << 10;

/// What a replay needs.
pub struct ReplayContext {
    /// The copy; the header is fresh.
    pub local: OpenImage,
    /// The report of its exclusive lock, which we hold.
    pub lock: watch::Receiver<LockReport>,
    /// The mirror uuid of the primary's pool.
    pub remote_mirror_uuid: String,
    /// The newest tag of the copy's own journal.
    pub local_tag: TagTid,
    /// The commit position, behind which entries are going to be pushed.
    pub commit: Option<EntryPosition>,
    /// Data that the copy is known to hold already: entries up to here are passed over. After a first copy: the event of
    /// the snapshot that was copied from. Otherwise `None`.
    pub holds: Option<EntryPosition>,
    /// Which snapshot of the copy a snapshot of the primary became.
    pub snap_seqs: BTreeMap<SnapId, SnapId>,
    /// Ids for snapshots.
    pub ids: SnapIds,
    /// Bound on the bytes in memory, shared with others.
    pub budget: Arc<Budget>,
    /// Stops the replay.
    pub cancel: CancellationToken,
}

/// What a replay has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Entries that were pushed.
    pub entries: u64,
    /// Bytes of data in them.
    pub bytes: u64,
    /// Writes of objects that they became.
    pub writes: u64,
    /// Bytes of data in those.
    pub written_bytes: u64,
    /// Times that the marker was written.
    pub markers: u64,
}

/// A replay under way. Dropping it stops it in the background; use [`Replay::stop`] to know when nothing is in flight. Until
/// then it is inside the gate of the session that it belongs to ([`rados::gate`]).
pub struct Replay {
    commands: mpsc::UnboundedSender<Command>,
    task: JoinHandle<Result<(), ReplayError>>,
    failed: Option<ReplayError>,
    applied: watch::Receiver<Option<EntryPosition>>,
    snap_seqs: watch::Receiver<BTreeMap<SnapId, SnapId>>,
    entries: Arc<Semaphore>,
    part: Arc<Part>,
    totals: Arc<Totals>,
    pushed_entries: AtomicU64,
    pushed_bytes: AtomicU64,
    tag: Option<TagTid>,
    stop: CancellationToken,
}

impl Replay {
    /// Begins a replay, where the marker or the commit position says. Must be called within a tokio runtime.
    pub async fn open(context: ReplayContext) -> Result<Replay, ReplayError> {
        let ReplayContext { local, remote_mirror_uuid, local_tag, commit, .. } = context;
        let image = local.image.clone();
        let inside = image.header_ioctx().enter().map_err(ReplayError::Local)?;
        let base = commit.max(context.holds).max(valid_marker(&image, &remote_mirror_uuid, local_tag).await?);
        let map = HeadMap::load(&local).await?;
        let target = Target::open(&local).await?;
        let planner =
            Planner::new(target.shape().clone(), map.as_ref().map(|map| map.stored().clone()), base);
        let (commands, inbox) = mpsc::unbounded_channel();
        let (applied, published) = watch::channel(commit);
        let snap_seqs = watch::Sender::new(context.snap_seqs);
        let (stop, totals) = (context.cancel.child_token(), Arc::<Totals>::default());
        let seqs = snap_seqs.subscribe();
        let maintainer =
            Maintainer { local, map: None, target: None, ids: context.ids, snap_seqs, cancel: stop.clone() };
        let engine = Engine {
            planner,
            target: Arc::new(target),
            maintainer: Some(Box::new(maintainer)),
            map,
            image,
            lock: context.lock,
            remote_mirror_uuid,
            local_tag,
            applied,
            totals: totals.clone(),
            stop: stop.clone(),
            underway: Underway::default(),
            _inside: inside,
        };
        Ok(Replay {
            commands,
            task: tokio::spawn(engine.run(inbox)),
            failed: None,
            applied: published,
            snap_seqs: seqs,
            entries: Arc::new(Semaphore::new(ENTRIES_MAX)),
            part: context.budget.part(),
            totals,
            pushed_entries: AtomicU64::new(0),
            pushed_bytes: AtomicU64::new(0),
            tag: None,
            stop,
        })
    }

    /// Hands over the next entry; waits while too much is on its way. An entry of another tag than the one before ends
    /// that one, unless [`Replay::end_tag`] has. Cancel-safe: an entry whose future was dropped is not taken.
    pub async fn push(&mut self, position: EntryPosition, entry: EventEntry) -> Result<(), ReplayError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let bytes = data_bytes(&entry.event);
        let (entries, part) = (self.entries.clone(), self.part.clone());
        let room = async { (entries.acquire_owned().await, part.acquire(bytes).await) };
        let (permit, piece) = tokio::select! {
            biased;
            ended = &mut self.task => return Err(self.ended(ended)),
            room = room => room,
        };
        // The semaphore is never closed.
        let permit = permit.map_err(|_| ReplayError::Stopped)?;
        let held = Held { bytes, _entry: permit, piece: Some(piece) };
        if let Some(tag) = self.tag.replace(position.tag).filter(|tag| *tag != position.tag) {
            self.send(Command::TagEnd(tag)).await?;
        }
        *self.pushed_entries.get_mut() += 1;
        *self.pushed_bytes.get_mut() += bytes;
        self.send(Command::Entry(position, entry.event, held)).await
    }

    /// Waits until all that was pushed is on disk, as far as it need not wait for entries that were not. Cancel-safe.
    pub async fn flush(&mut self) -> Result<(), ReplayError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Sync(answer)).await?;
        match answered.await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure().await),
        }
    }

    /// No entry of the present tag will come any more: carries out operations whose results are missing (their writer
    /// died), and waits until all is on disk. Nothing before the first entry.
    pub async fn end_tag(&mut self) -> Result<(), ReplayError> {
        if let Some(tag) = self.tag.take() {
            self.send(Command::TagEnd(tag)).await?;
        }
        self.flush().await
    }

    /// The newest tag of the copy's own journal is this now. The commit position must be what [`Replay::applied`] tells
    /// before a tag is allocated.
    pub async fn set_local_tag(&mut self, tag: TagTid) -> Result<(), ReplayError> {
        self.send(Command::LocalTag(tag)).await
    }

    /// How far the copy is: the newest entry that the commit position may be set to. Everything up to it is on disk, and
    /// a replay that begins behind it leaves nothing out. It begins with the commit position that the replay was opened
    /// with, and only grows.
    pub fn applied(&self) -> watch::Receiver<Option<EntryPosition>> {
        self.applied.clone()
    }

    /// Which snapshot of the copy a snapshot of the primary became, to be kept with the journal's client when it changes.
    pub fn snap_seqs(&self) -> watch::Receiver<BTreeMap<SnapId, SnapId>> {
        self.snap_seqs.clone()
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        Counters {
            entries: self.pushed_entries.load(Ordering::Relaxed),
            bytes: self.pushed_bytes.load(Ordering::Relaxed),
            writes: self.totals.writes.load(Ordering::Relaxed),
            written_bytes: self.totals.written_bytes.load(Ordering::Relaxed),
            markers: self.totals.markers.load(Ordering::Relaxed),
        }
    }

    /// Ends when the replay failed, with the reason. Cancel-safe.
    pub async fn failed(&mut self) -> ReplayError {
        self.failure().await
    }

    /// Stops the replay, and waits until nothing is in flight. What was pushed and is not on disk may be applied or not.
    /// An error is why it stopped before.
    pub async fn stop(mut self) -> Result<(), ReplayError> {
        self.stop.cancel();
        match self.failure().await {
            ReplayError::Stopped => Ok(()),
            error => Err(error),
        }
    }

    async fn send(&mut self, command: Command) -> Result<(), ReplayError> {
        match self.commands.send(command) {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failure().await),
        }
    }

    /// Waits for the end of the task.
    async fn failure(&mut self) -> ReplayError {
        if let Some(error) = &self.failed {
            return error.clone();
        }
        let ended = (&mut self.task).await;
        self.ended(ended)
    }

    fn ended(&mut self, ended: Result<Result<(), ReplayError>, tokio::task::JoinError>) -> ReplayError {
        let error = match ended {
            Ok(Ok(())) => ReplayError::Stopped,
            Ok(Err(error)) => error,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        self.failed.insert(error).clone()
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// How far the copy is according to its marker, if it counts.
async fn valid_marker(
    image: &Image,
    remote_mirror_uuid: &str,
    local_tag: TagTid,
) -> Result<Option<EntryPosition>, ReplayError> {
    let marker = read_marker(image).await?;
    let valid =
        |marker: &Marker| marker.remote_mirror_uuid == remote_mirror_uuid && marker.local_tag == local_tag;
    Ok(marker.filter(valid).map(|marker| marker.done))
}

/// Bytes of data that an entry brings.
fn data_bytes(event: &Event) -> u64 {
    let bytes = match event {
        Event::Write { data, .. } | Event::WriteSame { data, .. } => data.len(),
        Event::CompareAndWrite { compare, write, .. } => compare.len() + write.len(),
        _ => 0,
    };
    bytes as u64
}
