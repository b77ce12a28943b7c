//! The same on many images: all at once, as far as [`Options::images_in_flight`](crate::Options) allows.
//!
//! What costs the stock tools their time is waiting: for one round of the monitors after the other. Images that are
//! worked on at once share these rounds.

use std::collections::BTreeMap;

use futures::StreamExt;
use rados::error::ResultExt;
use rados::{Error, Result};
use rbd::directory;
use rbd::types::ImageId;

use crate::pool::Pool;
use crate::session::Session;

/// What came of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It was changed.
    Changed,
    /// There was nothing to be done.
    PassedOver,
}

/// One image of many is done.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// Its name.
    pub image: &'a str,
    /// What came of it.
    pub result: std::result::Result<Done, &'a Error>,
    /// Images that are done, this one among them.
    pub finished: usize,
    /// All there are.
    pub total: usize,
}

/// What came of many images.
#[derive(Debug, Clone, Default)]
pub struct PoolOutcome {
    /// Those that were changed.
    pub changed: Vec<String>,
    /// Those with which there was nothing to be done.
    pub passed_over: Vec<String>,
    /// Those that could not be changed, and why.
    pub failed: Vec<(String, Error)>,
}

impl PoolOutcome {
    /// The first failure.
    pub fn first_error(&self) -> Option<&Error> {
        self.failed.first().map(|(_, error)| error)
    }
}

impl Pool {
    /// Promotes all images that are mirrored and not primary. EINVAL when mirroring is not enabled here.
    pub async fn promote_all(&self, force: bool, progress: impl FnMut(Progress<'_>)) -> Result<PoolOutcome> {
        self.require_mirroring().await?;
        Ok(self.promote_images(&self.images().await?, force, progress).await)
    }

    /// Demotes all images that are mirrored and primary. EINVAL when mirroring is not enabled here.
    pub async fn demote_all(&self, progress: impl FnMut(Progress<'_>)) -> Result<PoolOutcome> {
        self.require_mirroring().await?;
        Ok(self.demote_images(&self.images().await?, progress).await)
    }

    /// Promotes those of these images that are mirrored and not primary.
    pub async fn promote_images(
        &self,
        names: &[String],
        force: bool,
        progress: impl FnMut(Progress<'_>),
    ) -> PoolOutcome {
        let promote = async |name: &str, id: &ImageId| {
            let what = || format!("cannot promote image '{}'", self.image_spec(name));
            let session = Session::open_id(self, id, name).await.context(what())?;
            session.run(async |session| session.promote_unless_primary(force).await).await.context(what())
        };
        self.each(names, promote, progress).await
    }

    /// Demotes those of these images that are mirrored and primary.
    pub async fn demote_images(&self, names: &[String], progress: impl FnMut(Progress<'_>)) -> PoolOutcome {
        let demote = async |name: &str, id: &ImageId| {
            let what = || format!("cannot demote image '{}'", self.image_spec(name));
            let session = Session::open_id(self, id, name).await.context(what())?;
            session.run(async |session| session.demote_if_primary().await).await.context(what())
        };
        self.each(names, demote, progress).await
    }

    /// The images that are mirrored, by name; `None` when that cannot be told: then each is looked at.
    async fn mirrored(&self) -> Option<BTreeMap<String, ImageId>> {
        let mirroring = self.mirroring();
        let (names, mirrored) =
            futures::try_join!(directory::list(self.ioctx()), mirroring.image_ids()).ok()?;
        Some(names.into_iter().filter(|(_, id)| mirrored.contains_key(id)).collect())
    }

    /// Does `work` with each image that is mirrored. One that is gone meanwhile is passed over. The outcome is in the
    /// order of the names.
    async fn each(
        &self,
        names: &[String],
        work: impl AsyncFn(&str, &ImageId) -> Result<Done>,
        mut progress: impl FnMut(Progress<'_>),
    ) -> PoolOutcome {
        let mirrored = self.mirrored().await;
        let one = async |name: &String| match &mirrored {
            Some(mirrored) => match mirrored.get(name) {
                Some(id) => work(name, id).await,
                None => Ok(Done::PassedOver),
            },
            None => work(name, &directory::id_of(self.ioctx(), name).await?).await,
        };
        let one = |name| {
            let done = one(name);
            async move { (name, done.await) }
        };
        let mut running =
            futures::stream::iter(names).map(one).buffer_unordered(self.options().images_in_flight.max(1));
        let mut done: Vec<(&String, Result<Done>)> = Vec::new();
        while let Some((name, result)) = running.next().await {
            let result = result.optional().map(|done| done.unwrap_or(Done::PassedOver));
            progress(Progress {
                image: name,
                result: result.as_ref().copied(),
                finished: done.len() + 1,
                total: names.len(),
            });
            done.push((name, result));
        }
        done.sort_by_key(|(name, _)| *name);
        let mut outcome = PoolOutcome::default();
        for (name, result) in done {
            match result {
                Ok(Done::Changed) => outcome.changed.push(name.clone()),
                Ok(Done::PassedOver) => outcome.passed_over.push(name.clone()),
                Err(error) => outcome.failed.push((name.clone(), error)),
            }
        }
        outcome
    }
}
