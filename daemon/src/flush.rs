//! Requests to flush an image: `rbd mirror flush` on the admin socket.
//!
//! The task of the image takes them between two steps of its work, looks at what its primary has by then, and answers when
//! all of that is written. One that cannot drops them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

/// The requests for one image that nobody has taken yet; a cheap handle.
#[derive(Debug, Clone, Default)]
pub struct Flushes(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
    added: Notify,
}

impl Flushes {
    /// Asks for one. The receiver fails when the image cannot be flushed.
    pub fn ask(&self) -> oneshot::Receiver<()> {
        let (answer, answered) = oneshot::channel();
        self.waiting().push(answer);
        self.0.added.notify_one();
        answered
    }

    /// Waits until there is a request. Cancel-safe.
    pub async fn asked(&self) {
        while self.waiting().is_empty() {
            self.0.added.notified().await;
        }
    }

    /// Takes all requests, to be answered when the image is flushed.
    pub fn take(&self) -> Vec<oneshot::Sender<()>> {
        std::mem::take(&mut self.waiting())
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<oneshot::Sender<()>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells everybody who asked that it is done.
pub fn answer(requests: &mut Vec<oneshot::Sender<()>>) {
    // Whoever asked may have gone.
    requests.drain(..).for_each(|request| {
        let _ = request.send(());
    });
}
