//! Watches that die with the process that a [`super::Faulty`] stands for.

use std::future::pending;
use std::sync::{Arc, PoisonError};

use tokio::sync::mpsc;

use super::Shared;
use crate::backend::{Pending, Registration, Watch, WatchEvent};

/// A watch that falls silent at the crash, and neither answers nor unregisters from then on.
pub(super) fn mortal_watch(watch: Watch, shared: Arc<Shared>) -> Watch {
    let Watch { events: mut inner, cookie, registration } = watch;
    let (sender, events) = mpsc::unbounded_channel();
    let forwarding = shared.clone();
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                biased;
                () = forwarding.until_crashed() => break,
                event = inner.recv() => event,
            };
            let Some(event) = event else { return };
            if sender.send(event).is_err() {
                return;
            }
        }
        // What is kept of the watches goes with the last reference to it, which must not be this one.
        drop(forwarding);
        // A dead process answers nothing: the answers are forgotten instead of dropped. The sender stays, so that the
        // watch never looks closed.
        while let Some(event) = inner.recv().await {
            if let WatchEvent::Notify { answer, .. } = event {
                std::mem::forget(answer);
            }
        }
        drop(sender);
    });
    Watch { events, cookie, registration: Box::new(Mortal { inner: Some(registration), shared }) }
}

/// A registration that stays when its owner has crashed.
struct Mortal {
    inner: Option<Box<dyn Registration>>,
    shared: Arc<Shared>,
}

impl Registration for Mortal {
    fn unregister(mut self: Box<Self>) -> Pending<()> {
        if *self.shared.crashed.borrow() {
            return Box::pin(pending());
        }
        match self.inner.take() {
            Some(inner) => inner.unregister(),
            None => unreachable!("a registration is taken only when it is unregistered or dropped"),
        }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if *self.shared.crashed.borrow() {
            let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend(self.inner.take());
        }
    }
}
