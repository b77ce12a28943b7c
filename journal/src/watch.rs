//! A watch on a journal's metadata object.
//!
//! Whoever changes the metadata waits until every watcher has acknowledged: a primary, before it writes on into the next
//! object set. So a task of the watch's own acknowledges at once, and tells all who listen, in as few words as it takes:
//! changes that come while nobody looks are one.
//!
//! Reference: `src/journal/JournalMetadata.cc`.

use rados::{Error, Result, Watch, WatchEvent};
use tokio::sync::{oneshot, watch};

/// What the task tells, anew with every change: why the watch broke, while it is broken.
type State = Option<Error>;

/// A watch on a journal's metadata object. It is unregistered when dropped.
#[derive(Debug)]
pub struct JournalWatch {
    state: watch::Receiver<State>,
    stop: oneshot::Sender<oneshot::Sender<Result<()>>>,
}

/// What a [`JournalWatch`] hears.
#[derive(Debug)]
pub enum JournalEvent {
    /// The metadata changed, or may have changed while nothing was heard: read it again.
    Changed,
    /// The watch broke; it is being renewed. ENOENT when the journal was removed.
    Lost(Error),
}

/// Hears of changes of a journal's metadata: one of the listeners of a [`JournalWatch`].
#[derive(Debug, Clone)]
pub struct JournalChanges(watch::Receiver<State>);

impl JournalWatch {
    pub(crate) fn new(watch: Watch) -> JournalWatch {
        let (sender, state) = watch::channel(None);
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(acknowledge(watch, sender, stopped));
        JournalWatch { state, stop }
    }

    /// Next event; `None` when the watch is gone for good. Cancel-safe.
    pub async fn next(&mut self) -> Option<JournalEvent> {
        self.state.changed().await.ok()?;
        let lost = self.state.borrow_and_update().clone();
        Some(lost.map_or(JournalEvent::Changed, JournalEvent::Lost))
    }

    /// Another listener.
    pub fn changes(&self) -> JournalChanges {
        JournalChanges(self.state.clone())
    }

    /// Unregisters and waits until the cluster has forgotten the watch.
    pub async fn unregister(self) -> Result<()> {
        let (done, removed) = oneshot::channel();
        // A task that ended by itself has nothing registered any more.
        if self.stop.send(done).is_err() {
            return Ok(());
        }
        removed.await.unwrap_or(Ok(()))
    }
}

impl JournalChanges {
    /// Waits for a change; for ever when the watch is gone. Cancel-safe.
    pub async fn changed(&mut self) {
        loop {
            if self.0.changed().await.is_err() {
                return std::future::pending().await;
            }
            if self.0.borrow_and_update().is_none() {
                return;
            }
        }
    }
}

/// The task of a watch. It ends with its [`JournalWatch`].
async fn acknowledge(
    mut watch: Watch,
    state: watch::Sender<State>,
    mut stop: oneshot::Receiver<oneshot::Sender<Result<()>>>,
) {
    loop {
        let event = tokio::select! {
            asked = &mut stop => {
                if let Ok(done) = asked {
                    let _ = done.send(watch.unregister().await);
                }
                return;
            }
            event = watch.next() => event,
        };
        match event {
            // Dropping the answer, with the event, acknowledges.
            Some(WatchEvent::Notify { .. } | WatchEvent::Restored { .. }) => state.send_replace(None),
            Some(WatchEvent::Lost(error)) => state.send_replace(Some(error)),
            None => return,
        };
    }
}
