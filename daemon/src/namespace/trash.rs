//! Copies whose primaries are gone lie in the trash until `rbd_mirroring_delete_delay` is over; then they are removed.
//!
//! Usually the image's own task removes its copy at once. What is left for this one: copies with a delay, and removals
//! that were interrupted or held up by clones. Reference: `src/tools/rbd_mirror/image_deleter/TrashWatcher.cc`.

use std::time::Duration;

use rados::error::ResultExt;
use rados::{ErrorClass, IoCtx, Result};
use rbd::removal_mark;
use rbd::trash::{self, TrashSource, TrashState};
use tokio::time::sleep;

use crate::image::{self, is_due};
use crate::service::{Level, ServiceDaemon};

/// How often the trash is looked into. Ceph's daemon waits 30 s (`rbd_mirror_delete_retry_interval`).
const INTERVAL: Duration = Duration::from_secs(10);
/// The same while something is due and cannot be removed yet.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// Removes what is due, from time to time, for as long as the connection works. What is due and stays is called out.
pub async fn purge(ioctx: IoCtx, service: ServiceDaemon) -> Result<()> {
    let source = format!("trash {}", ioctx.namespace());
    let mut said: Vec<String> = Vec::new();
    loop {
        match purge_once(&ioctx).await {
            Err(error) if error.class() == ErrorClass::Fenced => return Err(error),
            Err(error) => tracing::warn!("cannot look into the trash: {error}"),
            Ok(left) => {
                left.iter().filter(|what| !said.contains(what)).for_each(|what| tracing::warn!("{what}"));
                let callout = (!left.is_empty()).then(|| (Level::Warning, left.join(". ")));
                service.callout(ioctx.pool_id(), &source, callout);
                said = left;
            }
        }
        sleep(if said.is_empty() { INTERVAL } else { RETRY_INTERVAL }).await;
    }
}

/// Removes what is due; answers with a sentence for each copy that is due and stays.
pub async fn purge_once(ioctx: &IoCtx) -> Result<Vec<String>> {
    let listed = trash::list(ioctx).await?;
    let copies = listed.into_iter().filter(|(_, image)| image.source == TrashSource::Mirroring);
    let (mut now, mut left) = (None, Vec::new());
    for (id, image) in copies {
        // One that is being moved there is left to its own task.
        if matches!(image.state, TrashState::Moving | TrashState::Restoring) {
            continue;
        }
        if now.is_none() {
            now = removal_mark::cluster_time(ioctx, &id).await.optional()?;
        }
        // One whose header is gone is half removed already.
        if !now.is_none_or(|now| is_due(&image, now)) {
            continue;
        }
        tracing::info!(image = %id, "removing the copy '{}' from the trash", image.name);
        match image::purge(ioctx, &id).await {
            Ok(()) => {}
            Err(error) if error.class() == ErrorClass::Fenced => return Err(error),
            Err(error) => left.push(format!("the copy '{}' stays in the trash: {error}", image.name)),
        }
    }
    Ok(left)
}
