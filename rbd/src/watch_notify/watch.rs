//! A watch on an image's header, with typed events and the answers that librbd expects.
//!
//! Who notifies waits until every watcher has answered, so what needs no decision is answered here at once, before the
//! event is passed on. What does need one comes with a [`Responder`]; dropping it answers with nothing, which is what
//! everybody but the owner of the exclusive lock answers to requests.
//!
//! | notification | answer |
//! |---|---|
//! | header update | result 0 |
//! | quiesce | result 0: whoever only watches writes nothing |
//! | lock request, operation | the receiver decides |
//! | everything else, unknown kinds, garbage | nothing |
//!
//! Reference: `src/librbd/ImageWatcher.cc`.

use rados::encoding::Encode;
use rados::error::ResultExt;
use rados::{Error, IoCtx, NotifyAnswer, Result, Watch, WatchEvent};

use super::{AsyncRequestId, ClientId, Notification, Operation, Response, WATCH_TIMEOUT};
use crate::layout::header_object;
use crate::types::ImageId;

/// The way to answer a request. Dropping it answers with nothing.
#[derive(Debug)]
pub struct Responder(NotifyAnswer);

impl Responder {
    /// Answers as the one whom the request concerns: 0, or a negative error number.
    pub fn respond(self, result: i32) {
        self.0.send(Response { result }.to_bytes());
    }
}

/// What a [`HeaderWatch`] hears.
#[derive(Debug)]
pub enum HeaderEvent {
    /// The header changed.
    Updated,
    /// Somebody owns the exclusive lock now.
    LockAcquired(ClientId),
    /// Somebody gave it up.
    LockReleased(ClientId),
    /// Somebody wants it; its owner is to answer.
    LockRequested {
        /// Who.
        client: ClientId,
        /// Even if it is held on purpose.
        force: bool,
        /// The owner's answer.
        responder: Responder,
    },
    /// An operation is asked of the owner of the lock.
    Operation {
        /// By which it is told of.
        request: AsyncRequestId,
        /// What to do.
        operation: Operation,
        /// The owner's answer: 0 when he begins it.
        responder: Responder,
    },
    /// How far a request is.
    Progress {
        /// Which one.
        request: AsyncRequestId,
        /// Done, of `total`.
        done: u64,
        /// All there is to do.
        total: u64,
    },
    /// A request is finished.
    Completed {
        /// Which one.
        request: AsyncRequestId,
        /// 0, or a negative error number.
        result: i32,
    },
    /// The watch broke: notifications may be missed.
    Lost(Error),
    /// The watch is registered again, with this cookie: read the header afresh.
    Restored(u64),
}

/// A watch on the header of an image. Notifications are answered only while somebody waits for the next event, and
/// notifiers wait up to 5 s for that: give it a task of its own.
pub struct HeaderWatch {
    watch: Watch,
    gid: u64,
    image: ImageId,
}

impl HeaderWatch {
    /// Watches the header of `image`, which lies in `ioctx`. ENOENT when there is no such image.
    pub async fn new(ioctx: &IoCtx, image: &ImageId) -> Result<HeaderWatch> {
        let watch = ioctx.watch(&header_object(image), WATCH_TIMEOUT).await;
        let watch = watch.context(format!("cannot watch the header of image {image}"))?;
        Ok(HeaderWatch { watch, gid: ioctx.backend().instance_id(), image: image.clone() })
    }

    /// By which others know us. Changes when the watch is [`HeaderEvent::Restored`].
    pub fn client_id(&self) -> ClientId {
        ClientId { gid: self.gid, handle: self.watch.cookie }
    }

    /// Next event; `None` when the watch is gone for good. Cancel-safe.
    pub async fn next(&mut self) -> Option<HeaderEvent> {
        loop {
            let event = self.watch.next().await?;
            if let Some(event) = self.receive(event) {
                return Some(event);
            }
        }
    }

    /// Unregisters and waits until the cluster has forgotten the watch.
    pub async fn unregister(self) -> Result<()> {
        self.watch.unregister().await
    }

    /// Answers what needs no decision. `None` for what is of no interest to anybody.
    fn receive(&mut self, event: WatchEvent) -> Option<HeaderEvent> {
        let (payload, answer) = match event {
            WatchEvent::Notify { payload, answer, .. } => (payload, answer),
            WatchEvent::Lost(error) => return Some(HeaderEvent::Lost(error)),
            WatchEvent::Restored { cookie } => {
                self.watch.cookie = cookie;
                return Some(HeaderEvent::Restored(cookie));
            }
        };
        let notification = match Notification::from_payload(&payload) {
            Ok(notification) => notification,
            Err(e) => {
                tracing::warn!("ignoring a notification on the header of image {}: {e}", self.image);
                return None;
            }
        };
        let responder = Responder(answer);
        Some(match notification {
            Notification::HeaderUpdate => {
                responder.respond(0);
                HeaderEvent::Updated
            }
            Notification::Quiesce(_) => {
                responder.respond(0);
                return None;
            }
            Notification::AcquiredLock(client) => HeaderEvent::LockAcquired(client),
            Notification::ReleasedLock(client) => HeaderEvent::LockReleased(client),
            Notification::RequestLock { client, force } => {
                HeaderEvent::LockRequested { client, force, responder }
            }
            Notification::Operation { request, operation } => {
                HeaderEvent::Operation { request, operation, responder }
            }
            Notification::AsyncProgress { request, done, total } => {
                HeaderEvent::Progress { request, done, total }
            }
            Notification::AsyncComplete { request, result } => HeaderEvent::Completed { request, result },
            Notification::Unquiesce(_) | Notification::Unknown(_) => return None,
        })
    }
}
