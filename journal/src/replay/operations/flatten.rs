//! Making the copy independent of its parent.
//!
//! Every object that does not exist gets what the parent has of it, in the head and in all snapshots; then the parent is
//! struck out. What is nothing but zeros stays absent.
//!
//! Reference: `src/librbd/operation/FlattenRequest.cc`, `src/librbd/io/CopyupRequest.cc`.

use std::sync::{Mutex, PoisonError};

use rados::{Error, Result};
use rbd::{Features, ObjectNumber, ObjectState, children};

use super::{Maintainer, OBJECTS_PER_BATCH, for_each_object};
use crate::replay::target::Target;

impl Maintainer {
    pub(super) async fn flatten(&mut self) -> Result<()> {
        let Some(parent) = self.local.header.parent.clone() else {
            // As librbd, which has flattened it before.
            return Ok(());
        };
        let target = self.target().await?;
        let objects = self.local.header.layout.object_count(parent.overlap);
        for first in (0..objects).step_by(OBJECTS_PER_BATCH) {
            self.check_cancelled()?;
            let batch: Vec<ObjectNumber> =
                (first..objects).take(OBJECTS_PER_BATCH).map(ObjectNumber).collect();
            let absent = self.absent(&target, &batch).await?;
            // The map first; it may say of a few for a while that they exist though they do not.
            let fast_diff = self.local.header.features.has(Features::FAST_DIFF);
            let clean = fast_diff && target.has_snapshots();
            let state = if clean { ObjectState::ExistsClean } else { ObjectState::Exists };
            self.mark(absent.iter().map(|object| (*object, state)).collect()).await?;
            let zeros = Mutex::new(Vec::new());
            let (cancel, found, target) = (&self.cancel, &zeros, &target);
            let copy_up = |object| async move {
                if cancel.is_cancelled() {
                    return Err(Error::new(libc::ECANCELED, "the replay was stopped"));
                }
                if !target.copy_up(object).await? {
                    found.lock().unwrap_or_else(PoisonError::into_inner).push(object);
                }
                Ok(())
            };
            for_each_object(absent, copy_up).await?;
            let zeros = zeros.into_inner().unwrap_or_else(PoisonError::into_inner);
            let zeros = zeros.into_iter().map(|object| (object, ObjectState::NonExistent));
            self.mark(zeros.collect()).await?;
        }
        children::detach(&self.local.image, &self.local.header).await
    }

    /// Those that do not exist.
    async fn absent(&self, target: &Target, objects: &[ObjectNumber]) -> Result<Vec<ObjectNumber>> {
        let absent = Mutex::new(Vec::new());
        let found = &absent;
        let covered: Vec<_> = objects.iter().copied().filter(|object| target.is_covered(*object)).collect();
        let (unknown, surely): (Vec<_>, Vec<_>) =
            covered.into_iter().partition(|object| self.may_exist(*object));
        let look = |object| async move {
            if !target.exists(object).await? {
                found.lock().unwrap_or_else(PoisonError::into_inner).push(object);
            }
            Ok(())
        };
        for_each_object(unknown, look).await?;
        let mut absent = absent.into_inner().unwrap_or_else(PoisonError::into_inner);
        absent.extend(surely);
        Ok(absent)
    }
}
