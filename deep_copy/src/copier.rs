//! Copies all objects of a round, many at once.
//!
//! Bounds: a number of objects per image ([`Options::objects_in_flight`]), and bytes in memory over all images of a
//! pool ([`crate::budget::Budget`]). The object maps are announced while the first objects are being read; no write
//! is made before that is done.
//!
//! Invariants:
//! * When [`Copier::run`] returns, however it ends, no request is in flight: the image's lock may be given up.
//! * All objects below [`Progress::copied_below`] have been copied; at each checkpoint their final states are in the
//!   object maps before that number is handed on to be stored.
//!
//! Reference: `src/librbd/deep_copy/ImageCopyRequest.cc` (and its `last_copied_object_number`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, Shared};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use rbd::ObjectNumber;
use rbd::object_map::ObjectMap;
use thiserror::Error;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::diff::{Reason, Visits};
use crate::object_copy::{Copied, CopyError, ObjectCopier};
use crate::object_map_sync::MapSync;
use crate::object_plan::Local;

/// Knobs of a copy.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Objects of one image that are worked on at the same time.
    pub objects_in_flight: usize,
    /// Progress is stored at most this often.
    pub checkpoint_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { objects_in_flight: 64, checkpoint_interval: Duration::from_secs(5) }
    }
}

/// How far a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Objects to be looked at.
    pub objects_total: u64,
    /// Objects that are done.
    pub objects_done: u64,
    /// All objects with lower numbers are done.
    pub copied_below: u64,
    /// Bytes that were read remotely.
    pub read_bytes: u64,
    /// Bytes that were written locally.
    pub written_bytes: u64,
}

/// Stores progress: called with [`Progress::copied_below`], never while an earlier call is under way.
pub type Checkpoint = Box<dyn FnMut(u64) -> BoxFuture<'static, rados::Result<()>> + Send>;

/// Why a round's objects could not all be copied.
#[derive(Debug, Clone, Error)]
pub enum CopyFailed {
    /// An object failed; the first one that did.
    #[error("object {object}: {source}")]
    Object {
        /// Its number.
        object: ObjectNumber,
        /// Why.
        source: CopyError,
    },
    /// The object maps or the progress could not be stored.
    #[error("cannot store how far the copy is: {0}")]
    Checkpoint(#[source] rados::Error),
    /// The copy was told to stop.
    #[error("the copy was stopped")]
    Cancelled,
}

/// All objects of a round.
pub struct Copier {
    /// What they have in common.
    pub objects: ObjectCopier,
    /// The objects.
    pub visits: Visits,
    /// One more than the number of the last object of the image at the end: what `copied_below` is when all is done.
    pub object_count: u64,
    /// Local object maps; `None` when the image has none, or when they must not be believed (and are rebuilt later).
    pub maps: Option<MapSync>,
    /// Where progress is published.
    pub progress: watch::Sender<Progress>,
    /// Stores progress.
    pub checkpoint: Checkpoint,
    /// Knobs.
    pub options: Options,
}

type Gate = Shared<BoxFuture<'static, rados::Result<()>>>;

impl Copier {
    /// Copies everything. On the first error, or when the token of [`ObjectCopier::cancel`] is cancelled, no more
    /// objects are begun, those under way end at their next request, and what has been copied is stored.
    ///
    /// Not to be dropped while it runs: that would leave writes in flight.
    pub async fn run(self) -> Result<Progress, CopyFailed> {
        let hints = self.maps.as_ref().map(|maps| Arc::new(maps.head().clone()));
        let stop = self.objects.cancel.child_token();
        let outer = self.objects.cancel.clone();
        let objects = Arc::new(ObjectCopier { cancel: stop.clone(), ..self.objects });
        let maps = self.maps.map(|maps| Arc::new(Mutex::new(maps)));
        let gate = announce(maps.clone(), self.visits.clone());
        let mut run = Run {
            state: Progress { objects_total: self.visits.len(), ..Progress::default() },
            progress: self.progress,
            in_flight: BTreeSet::new(),
            settled_below: self.visits.iter().next().map_or(0, |(object, _)| object.0),
            copied: BTreeMap::new(),
            maps,
            checkpoint: Arc::new(std::sync::Mutex::new(self.checkpoint)),
            failed: None,
            storing: None,
            stored_at: Instant::now(),
        };
        let mut waiting = self.visits.iter().peekable();
        let mut tasks = FuturesUnordered::new();
        let mut announced = self.visits.is_empty();
        loop {
            while run.failed.is_none()
                && !outer.is_cancelled()
                && tasks.len() < self.options.objects_in_flight
            {
                let Some((object, reason)) = waiting.next() else {
                    break;
                };
                run.in_flight.insert(object.0);
                tasks.push(
                    copy_one(objects.clone(), object, known(&hints, object), reason, gate.clone()).boxed(),
                );
            }
            let next = waiting.peek().map_or(self.object_count, |(object, _)| object.0);
            run.advance(next);
            if tasks.is_empty() && run.storing.is_none() && announced {
                break;
            }
            let due = run.store_when_due(self.options.checkpoint_interval);
            tokio::select! {
                Some((object, result)) = tasks.next() => run.finish(object, result, &stop),
                result = stored(&mut run.storing), if due => run.checked(result, &stop),
                result = gate.clone(), if !announced => {
                    announced = true;
                    run.checked(result, &stop);
                }
            }
        }
        run.end(outer.is_cancelled()).await
    }
}

/// Announces the objects in the local object maps, once, whichever of the clones is awaited first.
fn announce(maps: Option<Arc<Mutex<MapSync>>>, visits: Visits) -> Gate {
    let announce = async move {
        match maps {
            Some(maps) => maps.lock().await.announce(&visits).await,
            None => Ok(()),
        }
    };
    announce.boxed().shared()
}

/// A map says that an object is absent only when it is.
fn known(head: &Option<Arc<ObjectMap>>, object: ObjectNumber) -> Local {
    match head {
        Some(head) if !head.get(object).may_exist() => Local::Absent,
        _ => Local::Untested,
    }
}

async fn copy_one(
    objects: Arc<ObjectCopier>,
    object: ObjectNumber,
    known: Local,
    reason: Reason,
    gate: Gate,
) -> (ObjectNumber, Result<Copied, CopyError>) {
    (object, objects.copy(object, known, reason, gate).await)
}

type Storing = BoxFuture<'static, rados::Result<()>>;

async fn stored(storing: &mut Option<Storing>) -> rados::Result<()> {
    match storing {
        Some(future) => {
            let result = future.await;
            *storing = None;
            result
        }
        None => Ok(()),
    }
}

/// What changes while a copy runs.
struct Run {
    state: Progress,
    progress: watch::Sender<Progress>,
    /// Objects begun and not done. One that fails stays here: nothing from it on counts as copied.
    in_flight: BTreeSet<u64>,
    /// What the last checkpoint stored, or is storing.
    settled_below: u64,
    /// Objects done and not yet settled in the object maps.
    copied: BTreeMap<u64, Copied>,
    maps: Option<Arc<Mutex<MapSync>>>,
    checkpoint: Arc<std::sync::Mutex<Checkpoint>>,
    failed: Option<CopyFailed>,
    storing: Option<Storing>,
    stored_at: Instant,
}

impl Run {
    /// `next` is the first object that has not been begun.
    fn advance(&mut self, next: u64) {
        self.state.copied_below = self.in_flight.first().map_or(next, |first| next.min(*first));
        self.progress.send_replace(self.state);
    }

    fn finish(&mut self, object: ObjectNumber, result: Result<Copied, CopyError>, stop: &CancellationToken) {
        match result {
            Ok(copied) => {
                self.in_flight.remove(&object.0);
                self.state.objects_done += 1;
                self.state.read_bytes += copied.read_bytes;
                self.state.written_bytes += copied.written_bytes;
                self.copied.insert(object.0, copied);
            }
            Err(CopyError::Cancelled) => {}
            Err(source) => {
                self.failed.get_or_insert(CopyFailed::Object { object, source });
                stop.cancel();
            }
        }
    }

    /// True when a checkpoint is under way; begins one when it is time.
    fn store_when_due(&mut self, interval: Duration) -> bool {
        if self.storing.is_none() && self.failed.is_none() && self.stored_at.elapsed() >= interval {
            self.begin_storing();
        }
        self.storing.is_some()
    }

    fn begin_storing(&mut self) {
        self.stored_at = Instant::now();
        let below = self.state.copied_below;
        if below <= self.settled_below {
            return;
        }
        self.settled_below = below;
        let rest = self.copied.split_off(&below);
        let settled = std::mem::replace(&mut self.copied, rest);
        let (maps, checkpoint) = (self.maps.clone(), self.checkpoint.clone());
        self.storing = Some(
            async move {
                if let Some(maps) = maps {
                    let settled = settled.iter().map(|(object, copied)| (ObjectNumber(*object), copied));
                    maps.lock().await.settle(settled).await?;
                }
                let save = {
                    let mut checkpoint = checkpoint.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    (*checkpoint)(below)
                };
                save.await
            }
            .boxed(),
        );
    }

    fn checked(&mut self, result: rados::Result<()>, stop: &CancellationToken) {
        if let Err(error) = result {
            self.failed.get_or_insert(CopyFailed::Checkpoint(error));
            stop.cancel();
        }
    }

    /// Stores what was copied, and judges.
    async fn end(mut self, cancelled: bool) -> Result<Progress, CopyFailed> {
        if !matches!(self.failed, Some(CopyFailed::Checkpoint(_))) {
            self.begin_storing();
        }
        let result = stored(&mut self.storing).await;
        let incomplete = self.state.objects_done < self.state.objects_total;
        match (self.failed, result) {
            (Some(failed), _) => Err(failed),
            (None, Err(error)) => Err(CopyFailed::Checkpoint(error)),
            (None, Ok(())) if cancelled && incomplete => Err(CopyFailed::Cancelled),
            (None, Ok(())) => Ok(self.state),
        }
    }
}

#[cfg(test)]
mod tests;
