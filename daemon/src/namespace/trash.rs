//! Copies whose primaries are gone lie in the trash until `rbd_mirroring_delete_delay` is over; then they are removed.
//!
//! Usually the image's own task removes its copy at once. What is left for this one: copies with a delay, and removals
//! that were interrupted or held up by clones. Reference: `src/tools/rbd_mirror/image_deleter/TrashWatcher.cc`.

use std::time::Duration;

use journal::image_journal::ImageJournal;
use rados::{ErrorClass, IoCtx, Result};
use rbd::Timestamp;
use rbd::remove::{RemoveOptions, remove_from_trash_with};
use rbd::trash::{self, TrashSource};
use tokio::time::{MissedTickBehavior, interval};

/// Ceph's `rbd_mirror_delete_retry_interval`.
const INTERVAL: Duration = Duration::from_secs(30);

/// Removes what is due, from time to time, for as long as the connection works.
pub async fn purge(ioctx: IoCtx) -> Result<()> {
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match purge_once(&ioctx).await {
            Err(error) if error.class() == ErrorClass::Fenced => return Err(error),
            Err(error) => tracing::warn!("cannot look into the trash: {error}"),
            Ok(()) => {}
        }
    }
}

async fn purge_once(ioctx: &IoCtx) -> Result<()> {
    let now = Timestamp::now();
    let options = RemoveOptions { user_snapshots: true, despite_watchers: true, ..RemoveOptions::default() };
    for (id, image) in trash::list(ioctx).await? {
        if image.source != TrashSource::Mirroring || image.deferment_end_time > now {
            continue;
        }
        tracing::info!(image = %id, "removing the copy '{}' from the trash", image.name);
        let journal = ImageJournal::remove(ioctx, &id);
        if let Err(error) = remove_from_trash_with(ioctx, &id, &options, |_, _| {}, journal).await {
            tracing::warn!(image = %id, "the copy '{}' stays in the trash for now: {error}", image.name);
        }
    }
    Ok(())
}
