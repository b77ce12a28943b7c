//! One cluster's side of a mirrored namespace: its list of images, kept current by a watch on `rbd_mirroring`.
//!
//! The same watch makes the statuses that we write there count as `up`.

use std::collections::BTreeSet;

use rados::{ErrorClass, IoCtx, Result};
use rbd::mirroring::{Mirroring, MirroringEvent, MirroringNotification, MirroringWatch};

/// One side.
pub struct Side {
    mirroring: Mirroring,
    watch: Option<MirroringWatch>,
    images: BTreeSet<String>,
    stale: bool,
}

impl Side {
    /// The side of this cluster and namespace; nothing is read yet.
    pub fn new(ioctx: &IoCtx) -> Self {
        Side { mirroring: Mirroring::new(ioctx), watch: None, images: BTreeSet::new(), stale: true }
    }

    /// Global ids of the images, as last read.
    pub fn images(&self) -> &BTreeSet<String> {
        &self.images
    }

    /// Whether the list must be read again.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    /// The list must be read again.
    pub fn mark_stale(&mut self) {
        self.stale = true;
    }

    /// Reads the list if it is stale; true when the side has just begun to be watched. Where mirroring was never
    /// enabled there are no images, and nothing to watch.
    pub async fn refresh(&mut self) -> Result<bool> {
        if !self.stale {
            return Ok(false);
        }
        let begun = self.watch.is_none();
        if begun {
            self.mirroring.status_remove_down().await?;
            match self.mirroring.watch().await {
                Ok(watch) => self.watch = Some(watch),
                Err(e) if e.is_not_found() => {
                    self.images.clear();
                    self.stale = false;
                    return Ok(false);
                }
                Err(e) => return Err(e),
            }
        }
        // What is announced from here on marks the list stale again.
        self.stale = false;
        match self.mirroring.image_ids().await {
            Ok(images) => self.images = images.into_values().map(|id| id.0).collect(),
            Err(e) => {
                self.stale = true;
                return Err(e);
            }
        }
        Ok(begun)
    }

    /// Waits for a change; answers with the global id of the image that changed, if just one did. For ever as long as
    /// nothing is watched. Cancel-safe.
    pub async fn changed(&mut self) -> Result<Option<String>> {
        let Some(watch) = &mut self.watch else {
            return std::future::pending().await;
        };
        match watch.next().await {
            Some(MirroringEvent::Changed(MirroringNotification::ImageUpdated { global_id, .. })) => {
                self.stale = true;
                Ok(Some(global_id.0))
            }
            Some(MirroringEvent::Changed(_) | MirroringEvent::Restored) => {
                self.stale = true;
                Ok(None)
            }
            Some(MirroringEvent::Lost(e)) if e.class() == ErrorClass::Fenced => Err(e),
            Some(MirroringEvent::Lost(e)) => {
                tracing::warn!("{e}; image statuses are down until it is back");
                Ok(None)
            }
            None => {
                self.watch = None;
                self.stale = true;
                Ok(None)
            }
        }
    }

    /// Stops watching.
    pub async fn close(self) {
        if let Some(watch) = self.watch
            && let Err(e) = watch.unregister().await
        {
            tracing::debug!("{e}");
        }
    }
}
