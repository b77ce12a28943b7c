//! Removes sync points that are no longer needed: of the remote image beside the replay, however long its owner takes;
//! of the local one before it, since nobody else may change the snapshots of an image that is replayed into.

use std::time::Duration;

use deep_copy::ids::SnapIds;
use journal::Journal;
use journal::first_copy::remove_local_sync_points;
use journal::first_copy::sync_point::{Source, is_sync_point, name_prefix};
use rados::{Error, ErrorClass, Result};
use rbd::image::OpenImage;
use tokio::task::JoinHandle;

use super::session::Session;
use crate::retry::Backoff;

/// The shortest and the longest pause after a failure.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

impl Session<'_> {
    /// Removes the local image's sync points that are no longer in use, and begins to remove those of the remote one,
    /// none of which is.
    pub(super) async fn tidy(&mut self) -> Result<()> {
        let uuid = self.ctx.local_mirror_uuid.clone();
        let peer = self.registered.peer(self.local.image.image.id());
        remove_local_sync_points(&mut self.local.image, &peer, &uuid).await?;
        self.remote.image.refresh().await?;
        let prefix = name_prefix(&uuid);
        let left = self.remote.image.header.snapshots.values().any(|s| is_sync_point(s, &prefix));
        if self.tidying.is_none() && (left || !peer.sync_points.is_empty()) {
            let (image, journal) = (self.remote.image.clone(), self.their_journal());
            let ids = self.lifeline.remote_snap_ids(&self.ctx.shared, image.image.data_ioctx());
            self.tidying = Some(tokio::spawn(tidy_remote(image, journal, uuid.to_string(), ids)));
        }
        Ok(())
    }
}

/// Waits for the removal of sync points to end; for ever when none is under way. Cancel-safe.
pub(super) async fn tidied(tidying: &mut Option<JoinHandle<Result<()>>>) -> Result<()> {
    let Some(task) = tidying else { return std::future::pending().await };
    let ended = task.await;
    *tidying = None;
    ended.unwrap_or_else(|error| {
        Err(Error::new(libc::ECANCELED, format!("removing sync points broke: {error}")))
    })
}

/// Removes the sync points of this site, none of which is in use. Fails only when the connection is of no use any more.
async fn tidy_remote(
    mut image: OpenImage,
    journal: Journal,
    local_mirror_uuid: String,
    ids: SnapIds,
) -> Result<()> {
    let mut backoff = Backoff::new(RETRY_PAUSES.0, RETRY_PAUSES.1);
    loop {
        let mut source = Source {
            image: &mut image,
            journal: &journal,
            local_mirror_uuid: &local_mirror_uuid,
            ids: ids.clone(),
        };
        match source.remove_all().await {
            Err(error) if error.class() == ErrorClass::Fenced => return Err(error),
            Err(error) => tracing::warn!(image = %image.image.id(), "{error}; trying again"),
            Ok(()) => return Ok(()),
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}
