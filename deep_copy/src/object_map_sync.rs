//! Keeps the local object maps right while a round writes objects: the head's, and that of each snapshot being filled.
//!
//! Invariants, whenever the round is interrupted:
//! * No map calls an object nonexistent or clean that may have been written: before the first write, every object that
//!   is going to be looked at is marked as `Exists` in all of these maps ([`MapSync::announce`]). A forced promotion,
//!   which rolls back what the head's map says may exist, thus misses nothing.
//! * The final states of an object are stored before the round's progress says that it has been copied
//!   ([`MapSync::settle`]), because a resumed round does not look at it again.
//!
//! In the end the maps of the snapshots say what each step did, and the head's that it is clean: it equals the newest
//! snapshot.
//!
//! Reference: states as in `src/librbd/deep_copy/ObjectCopyRequest.cc` (`compute_zero_ops`).

use futures::future::try_join_all;
use rados::Result;
use rbd::ObjectNumber;
use rbd::object_map::{ObjectMap, ObjectMapObject, ObjectState};

use crate::diff::Visits;
use crate::object_copy::Copied;

/// A map as it is stored, and as it is to be.
#[derive(Debug)]
struct Pair {
    object: ObjectMapObject,
    stored: ObjectMap,
    target: ObjectMap,
}

impl Pair {
    async fn load(object: ObjectMapObject) -> Result<Pair> {
        let stored = object.load().await?;
        Ok(Pair { object, target: stored.clone(), stored })
    }

    async fn store(&mut self) -> Result<()> {
        self.object.store(&self.stored, &self.target).await?;
        self.stored.clone_from(&self.target);
        Ok(())
    }
}

/// The local object maps of a round. Nobody else changes them: the local image's lock is held.
#[derive(Debug)]
pub struct MapSync {
    head: Pair,
    /// One per step.
    snapshots: Vec<Pair>,
    fast_diff: bool,
}

impl MapSync {
    /// Reads the maps of the head and of the local snapshot of each step, in the order of the steps. They must exist
    /// and have the right sizes. `fast_diff`: the local image has that feature.
    pub async fn load(
        head: ObjectMapObject,
        snapshots: Vec<ObjectMapObject>,
        fast_diff: bool,
    ) -> Result<MapSync> {
        let mut pairs = try_join_all(std::iter::once(head).chain(snapshots).map(Pair::load)).await?;
        let head = pairs.remove(0);
        Ok(MapSync { head, snapshots: pairs, fast_diff })
    }

    /// The head's map as it is stored.
    pub fn head(&self) -> &ObjectMap {
        &self.head.stored
    }

    /// Marks all objects that are going to be looked at as `Exists` in all maps.
    pub async fn announce(&mut self, visits: &Visits) -> Result<()> {
        for pair in self.pairs() {
            for (object, _) in visits.iter() {
                pair.target.set(object, ObjectState::Exists);
            }
        }
        self.store().await
    }

    /// Stores the final states of objects that have been copied.
    pub async fn settle<'a>(
        &mut self,
        objects: impl IntoIterator<Item = (ObjectNumber, &'a Copied)>,
    ) -> Result<()> {
        for (object, copied) in objects {
            for (pair, state) in self.snapshots.iter_mut().zip(&copied.states) {
                pair.target.set(object, as_stored(self.fast_diff, *state));
            }
            let exists = copied.states.last().is_some_and(|state| state.may_exist());
            let head = if exists { ObjectState::ExistsClean } else { ObjectState::NonExistent };
            self.head.target.set(object, as_stored(self.fast_diff, head));
        }
        self.store().await
    }

    fn pairs(&mut self) -> impl Iterator<Item = &mut Pair> {
        std::iter::once(&mut self.head).chain(&mut self.snapshots)
    }

    async fn store(&mut self) -> Result<()> {
        try_join_all(self.pairs().map(Pair::store)).await.map(drop)
    }
}

/// Without fast-diff there is no clean state.
fn as_stored(fast_diff: bool, state: ObjectState) -> ObjectState {
    if state == ObjectState::ExistsClean && !fast_diff { ObjectState::Exists } else { state }
}
