//! The watch on a remote image's header, in a task of its own.
//!
//! Whoever notifies the header on the primary's side waits until every watcher has answered: answers must not wait for
//! what the session is doing.

use rados::{IoCtx, Result};
use rbd::ImageId;
use rbd::watch_notify::{HeaderEvent, HeaderWatch};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A watch that counts what it hears.
#[derive(Debug)]
pub struct RemoteWatch {
    heard: watch::Receiver<u64>,
    task: JoinHandle<Result<()>>,
    stop: DropGuard,
}

impl RemoteWatch {
    /// Watches the header of `image`. ENOENT when there is no such image.
    pub async fn open(ioctx: &IoCtx, image: &ImageId) -> Result<RemoteWatch> {
        let watch = HeaderWatch::new(ioctx, image).await?;
        let (publish, heard) = watch::channel(0);
        let stop = CancellationToken::new();
        let task = tokio::spawn(listen(watch, image.clone(), publish, stop.clone()));
        Ok(RemoteWatch { heard, task, stop: stop.drop_guard() })
    }

    /// Waits until the header changed, or news of changes may have been missed. False when the watch is gone for good.
    /// Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        self.heard.changed().await.is_ok()
    }

    /// Gives up the watch, and waits until the cluster has forgotten it.
    pub async fn close(self) -> Result<()> {
        drop(self.stop);
        self.task.await.unwrap_or(Ok(()))
    }
}

async fn listen(
    mut watch: HeaderWatch,
    image: ImageId,
    publish: watch::Sender<u64>,
    stop: CancellationToken,
) -> Result<()> {
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => break,
            event = watch.next() => event,
        };
        match event {
            None => break,
            Some(HeaderEvent::Updated | HeaderEvent::Restored(_)) => publish.send_modify(|heard| *heard += 1),
            Some(HeaderEvent::Lost(error)) => {
                tracing::warn!(image = %image, "the watch on the remote image broke: {error}");
            }
            // These ask something of the owner of the lock: dropping them answers that this is not us.
            Some(_) => {}
        }
    }
    drop(publish);
    watch.unregister().await
}
