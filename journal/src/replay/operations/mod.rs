//! Maintenance operations on the copy, as librbd's replay carries them out.
//!
//! Nothing else is written to the image meanwhile. Each may be repeated after it was cut off anywhere, and is: the marker
//! does not get past it before it is done. What an earlier, unnoted attempt (or another daemon's) has done already is no
//! error, as in librbd's replay.
//!
//! A snapshot has another id here than on the primary; events name snapshots by name, but for renaming, which names the
//! primary's id. `snap_seqs` tells which is which, as far as it was needed.
//!
//! Snapshots of mirror daemons on the primary (`.rbd-mirror.…`, in the namespace of users) are made and removed like any
//! other, as Ceph's daemon does.
//!
//! Reference: `src/librbd/journal/Replay.cc`, `src/librbd/Operations.cc` (`execute_*`),
//! `src/tools/rbd_mirror/image_replayer/journal/EventPreprocessor.cc`.

mod flatten;
mod resize;
mod rollback;
mod snapshots;

use std::collections::BTreeMap;
use std::future::Future;

use deep_copy::ids::SnapIds;
use futures::stream::{FuturesUnordered, StreamExt};
use rados::{Error, Result, SnapId};
use rbd::image::OpenImage;
use rbd::{Features, HeaderUpdate, ObjectMap, ObjectNumber, ObjectState, directory, features};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::error::ReplayError;
use super::head_map::HeadMap;
use super::target::Target;
use crate::event::Op;
use crate::types::EntryPosition;

/// Objects that an operation works on at the same time.
const OBJECTS_IN_FLIGHT: usize = 32;
/// Objects whose states in the map are changed at once.
const OBJECTS_PER_BATCH: usize = 4096;

/// Carries out operations on the copy.
pub(super) struct Maintainer {
    /// The copy; the header is fresh.
    pub local: OpenImage,
    /// The object map of its head, when there is a valid one.
    pub map: Option<HeadMap>,
    /// How its objects are written, after an operation.
    pub target: Option<Target>,
    /// Ids for snapshots.
    pub ids: SnapIds,
    /// Which snapshot of the copy a snapshot of the primary became.
    pub snap_seqs: watch::Sender<BTreeMap<SnapId, SnapId>>,
    /// Stops an operation between two requests.
    pub cancel: CancellationToken,
}

impl Maintainer {
    /// Carries out `op`. On success header, map and target are fresh. Not to be dropped half-way: writes may be in flight.
    pub async fn carry_out(&mut self, op: &Op, began: EntryPosition) -> std::result::Result<(), ReplayError> {
        if let Err(source) = self.dispatch(op).await {
            if self.cancel.is_cancelled() {
                return Err(ReplayError::Stopped);
            }
            return Err(ReplayError::Operation { op: format!("{op:?}"), position: began, source });
        }
        self.reload().await.map_err(ReplayError::Local)?;
        self.target = Some(self.target().await.map_err(ReplayError::Local)?);
        Ok(())
    }

    async fn dispatch(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::SnapCreate { namespace, name } => self.snap_create(namespace, name).await,
            Op::SnapRemove { namespace, name } => self.snap_remove(namespace, name).await,
            Op::SnapRename { snap, from, to } => self.snap_rename(*snap, from, to).await,
            Op::SnapProtect { namespace, name } => self.snap_protect(namespace, name).await,
            Op::SnapUnprotect { namespace, name } => self.snap_unprotect(namespace, name).await,
            Op::SnapRollback { namespace, name } => self.rollback(namespace, name).await,
            Op::Rename { to } => self.rename(to).await,
            Op::Resize { size } => self.resize(*size).await,
            Op::Flatten => self.flatten().await,
            Op::SnapLimit { limit } => {
                let limit = (*limit != u64::MAX).then_some(*limit);
                self.ignoring(libc::ERANGE, self.header_update().set_snapshot_limit(limit)).await
            }
            Op::UpdateFeatures { features, enabled } => self.update_features(*features, *enabled).await,
            Op::MetadataSet { key, value } => {
                let metadata = BTreeMap::from([(key.clone(), value)]);
                self.apply(self.header_update().set_metadata(&metadata)).await
            }
            Op::MetadataRemove { key } => {
                self.ignoring(libc::ENOENT, self.header_update().remove_metadata(key)).await
            }
        }
    }

    fn header_update(&self) -> HeaderUpdate {
        HeaderUpdate::of(self.local.image.id())
    }

    async fn apply(&self, update: HeaderUpdate) -> Result<()> {
        update.apply(self.local.image.header_ioctx()).await
    }

    /// Applies an update that the primary made, too: this error tells that it is made already, or cannot be made twice.
    async fn ignoring(&self, errno: i32, update: HeaderUpdate) -> Result<()> {
        match self.apply(update).await {
            Err(error) if error.is(errno) => Ok(()),
            other => other,
        }
    }

    async fn reload(&mut self) -> Result<()> {
        self.local.refresh().await?;
        self.map = HeadMap::load(&self.local).await?;
        Ok(())
    }

    async fn target(&self) -> Result<Target> {
        Target::open(&self.local).await
    }

    fn check_cancelled(&self) -> Result<()> {
        match self.cancel.is_cancelled() {
            true => Err(Error::new(libc::ECANCELED, "the replay was stopped")),
            false => Ok(()),
        }
    }

    /// The head's map as it is stored.
    fn stored_map(&self) -> Option<&ObjectMap> {
        self.map.as_ref().map(HeadMap::stored)
    }

    /// True unless there is surely no such object.
    fn may_exist(&self, object: ObjectNumber) -> bool {
        self.stored_map().is_none_or(|map| map.get(object).may_exist())
    }

    /// Stores states of objects in the head's map, as far as they are other than they were.
    async fn mark(&mut self, states: Vec<(ObjectNumber, ObjectState)>) -> Result<()> {
        let Some(map) = &mut self.map else { return Ok(()) };
        let stored = map.stored();
        let changed: Vec<_> =
            states.into_iter().filter(|(object, state)| stored.get(*object) != *state).collect();
        if changed.is_empty() { Ok(()) } else { map.change(changed).await }
    }

    async fn rename(&self, to: &str) -> Result<()> {
        let (ioctx, id) = (self.local.image.header_ioctx(), self.local.image.id());
        let name = directory::name_of(ioctx, id).await?;
        match directory::rename(ioctx, id, name.as_deref(), to).await {
            // Another image here has the name, for now or for good, or somebody else renames this one. Whoever drives the
            // replay has the name follow the primary's directory.
            Err(error) if error.is(libc::EEXIST) || error.is(libc::ESTALE) => {
                tracing::debug!(image = %id, "the copy keeps its name for now: {error}");
                Ok(())
            }
            other => other,
        }
    }

    async fn update_features(&self, features: Features, enabled: bool) -> Result<()> {
        // The journal of the copy is its own.
        let mut features = features.without(Features::JOURNALING);
        if features.has(Features::OBJECT_MAP) || features.has(Features::FAST_DIFF) {
            features = features.with(Features::OBJECT_MAP).with(Features::FAST_DIFF);
        }
        let (disable, enable) = if enabled { (Features(0), features) } else { (features, Features(0)) };
        features::update(&self.local.image, &self.local.header, disable, enable).await
    }
}

/// Works on many objects at the same time. Behind the first error no further one is begun; those under way are awaited,
/// so that no write is in flight afterwards.
async fn for_each_object<F: Future<Output = Result<()>>>(
    objects: Vec<ObjectNumber>,
    work: impl Fn(ObjectNumber) -> F,
) -> Result<()> {
    let mut left = objects.into_iter();
    let mut running: FuturesUnordered<F> = left.by_ref().take(OBJECTS_IN_FLIGHT).map(&work).collect();
    let mut ended = Ok(());
    while let Some(done) = running.next().await {
        // A later error is the first one's echo.
        ended = ended.and(done);
        if let (Ok(()), Some(object)) = (&ended, left.next()) {
            running.push(work(object));
        }
    }
    ended
}
