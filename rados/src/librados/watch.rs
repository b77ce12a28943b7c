//! Watches that come back by themselves, and notifications.
//!
//! A task per watch owns the registration. It waits for one of three things: the owner drops or unregisters the
//! [`Watch`]; librados reports that the registration broke (ENOTCONN: the OSD forgot it; ETIMEDOUT: notifications may
//! have been missed); or, while broken, for the time to try again. Broken registrations are given up and made anew with
//! growing pauses, until that works, the object is gone (ENOENT), or the client is blocklisted (ESHUTDOWN).
//!
//! Invariants:
//! * The argument of the watch callbacks is one reference to a [`Target`]. It is given back only after the registration
//!   is removed *and* librados has flushed the callbacks that it had queued, so no callback finds freed memory. This
//!   chain runs on librados' threads alone: it completes also when the task, or the whole runtime, is gone.
//! * A cookie is given to `rados_aio_unwatch` once: librados takes it for an address.
//! * The connection lives until the last registration on it is removed.

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr;
use std::slice;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ceph::rados as c;
use tokio::sync::{mpsc, oneshot};

use super::completion;
use super::connection::{Connection, Io, c_string, check};
use super::ffi;
use crate::backend::{Location, NotifyAnswer, NotifyReply, Pending, Registration, Watch, WatchEvent};
use crate::describe::in_location;
use crate::encoding::Decoder;
use crate::error::{Error, ErrorClass, Result};

/// First pause before a broken watch is registered again.
const RETRY_MIN: Duration = Duration::from_millis(100);

/// Longest such pause.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// What is watched, and whom to tell: the argument of librados' watch callbacks.
struct Target {
    object: String,
    object_c: CString,
    events: mpsc::UnboundedSender<WatchEvent>,
    /// Registrations that broke: cookie and error number.
    broken: mpsc::UnboundedSender<(u64, i32)>,
    timeout_seconds: u32,
    location: Location,
    io: Io,
}

/// Watches an object.
pub(super) async fn watch(
    connection: Arc<Connection>,
    location: Location,
    object: String,
    timeout: Duration,
) -> Result<Watch> {
    let io = connection.io(&location).await.map_err(|e| e.context(cannot_watch(&object, &location)))?;
    let (events_sender, events) = mpsc::unbounded_channel();
    let (broken_sender, broken) = mpsc::unbounded_channel();
    let target = Arc::new(Target {
        object_c: c_string(&object)?,
        object,
        events: events_sender,
        broken: broken_sender,
        timeout_seconds: u32::try_from(timeout.as_secs().max(1)).unwrap_or(u32::MAX),
        location,
        io,
    });
    let (registered_sender, registered) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    // From here on the task owns the registration, also when this future is dropped: `stop` goes with it then.
    tokio::spawn(keep_registered(target, broken, registered_sender, stopped));
    let cookie = registered
        .await
        .unwrap_or_else(|_| Err(Error::new(libc::ECANCELED, "cannot watch: shutting down")))?;
    Ok(Watch { events, cookie, registration: Box::new(Owner { stop }) })
}

/// The owner's end: sending on (or dropping) `stop` ends the task.
struct Owner {
    stop: oneshot::Sender<oneshot::Sender<Result<()>>>,
}

impl Registration for Owner {
    fn unregister(self: Box<Self>) -> Pending<()> {
        let (done, removed) = oneshot::channel();
        // A task that ended by itself has removed the registration already.
        let gone = self.stop.send(done).is_err();
        Box::pin(async move {
            if gone {
                return Ok(());
            }
            removed.await.unwrap_or(Ok(()))
        })
    }
}

/// The task of a watch; see the head of this file.
async fn keep_registered(
    target: Arc<Target>,
    mut broken: mpsc::UnboundedReceiver<(u64, i32)>,
    registered: oneshot::Sender<Result<u64>>,
    mut stop: oneshot::Receiver<oneshot::Sender<Result<()>>>,
) {
    let mut live = match register(&target).await {
        Ok(live) => live,
        Err(error) => {
            let _ = registered.send(Err(error));
            return;
        }
    };
    // A watcher that is gone meanwhile has dropped its end of `stop` too.
    let _ = registered.send(Ok(live.cookie));
    loop {
        let errno = tokio::select! {
            asked = &mut stop => return live.remove(asked.ok()),
            Some((cookie, errno)) = broken.recv() => {
                if cookie != live.cookie {
                    continue;
                }
                errno
            }
        };
        let lost = Error::new(errno, format!("cannot go on watching {}", target.place()));
        let fenced = errno == libc::ESHUTDOWN;
        let _ = target.events.send(WatchEvent::Lost(lost));
        live.remove(None);
        if fenced {
            return;
        }
        let Some(again) = register_again(&target, &mut stop).await else {
            return;
        };
        live = again;
        let _ = target.events.send(WatchEvent::Restored { cookie: live.cookie });
    }
}

/// Registers anew, with growing pauses; `None` when that is over: the owner is gone, or the watch is for good.
async fn register_again(
    target: &Arc<Target>,
    stop: &mut oneshot::Receiver<oneshot::Sender<Result<()>>>,
) -> Option<Live> {
    let mut pause = RETRY_MIN;
    loop {
        match register(target).await {
            Ok(live) => return Some(live),
            Err(error) if error.is_not_found() || error.class() == ErrorClass::Fenced => {
                let _ = target.events.send(WatchEvent::Lost(error));
                return None;
            }
            Err(error) => tracing::debug!("{error}; trying again in {pause:?}"),
        }
        tokio::select! {
            asked = &mut *stop => {
                // Nothing is registered.
                if let Ok(done) = asked {
                    let _ = done.send(Ok(()));
                }
                return None;
            }
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_MAX),
        }
    }
}

/// Registers once. When the future is dropped, a registration that comes about all the same is removed.
async fn register(target: &Arc<Target>) -> Result<Live> {
    let failed = || cannot_watch(&target.object, &target.location);
    let reference =
        Reference { argument: Arc::into_raw(target.clone()), flushed: false, done: None, result: Ok(()) };
    let live = Live { target: target.clone(), reference: Some(reference), cookie: 0, registered: None };
    let receiver = completion::submit(live, target.io.clone(), |live, io, completion| {
        let argument = Arc::as_ptr(&live.target).cast_mut().cast();
        let (object, timeout_seconds) = (live.target.object_c.as_ptr(), live.target.timeout_seconds);
        let cookie = &mut live.cookie;
        // SAFETY: context, name and the place for the cookie live in the state until the callback; `argument` is the
        // address of the target, to which `live.reference` is a reference until no callback can come any more.
        unsafe {
            let (on_notify, on_error) = (Some(on_notify as _), Some(on_error as _));
            ffi::rados_aio_watch2(
                io,
                object,
                completion,
                cookie,
                on_notify,
                on_error,
                timeout_seconds,
                argument,
            )
        }
    })
    .map_err(|e| e.context(failed()))?;
    let (outcome, live) = completion::answer(receiver).await?;
    check(outcome.rval, failed)?;
    Ok(live)
}

/// A registration, from the call that makes it on. Dropping it removes it, without waiting.
struct Live {
    target: Arc<Target>,
    /// Taken when it is dropped.
    reference: Option<Reference>,
    cookie: u64,
    /// Whether it came about; `None` while the call is in flight.
    registered: Option<bool>,
}

impl Live {
    /// Removes the registration; `done` is told when nothing of it is left.
    fn remove(mut self, done: Option<oneshot::Sender<Result<()>>>) {
        if let Some(reference) = &mut self.reference {
            reference.done = done;
        }
    }
}

impl completion::Payload for Live {
    fn complete(&mut self, outcome: completion::Outcome) {
        self.registered = Some(outcome.rval >= 0);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let Some(mut reference) = self.reference.take() else {
            return;
        };
        let io = self.target.io.clone();
        match self.registered {
            // The call was never made: no callback knows of the target.
            None => reference.flushed = true,
            // Librados has dropped it already.
            Some(false) => reference.flush(io),
            Some(true) => {
                let (cookie, what) = (self.cookie, self.target.place());
                let unwatching =
                    Unwatching { reference: Some(reference), io: io.clone(), complete: false, what };
                // Whether the call can be made or not, `Unwatching` knows what to do when it is dropped.
                let _ = completion::submit(unwatching, io, |_, io, completion| {
                    // SAFETY: the context is live; the cookie is that of a live registration, given up here for good.
                    unsafe { ffi::rados_aio_unwatch(io, cookie, completion) }
                });
            }
        }
    }
}

/// A registration being removed: when that is done, what is queued for it is flushed.
struct Unwatching {
    reference: Option<Reference>,
    io: Io,
    complete: bool,
    what: String,
}

impl completion::Payload for Unwatching {
    fn complete(&mut self, outcome: completion::Outcome) {
        self.complete = true;
        // Forgotten already, with the object or by itself: what was wanted.
        let forgotten = [-libc::ENOENT, -libc::ENOTCONN].contains(&outcome.rval);
        if let Some(reference) = self.reference.as_mut().filter(|_| !forgotten) {
            reference.result = check(outcome.rval, || format!("cannot stop watching {}", self.what));
        }
    }
}

impl Drop for Unwatching {
    fn drop(&mut self) {
        if let Some(reference) = self.reference.take().filter(|_| self.complete) {
            reference.flush(self.io.clone());
        }
    }
}

/// The reference to a [`Target`] that is the argument of watch callbacks. It is given back when librados has flushed its
/// callbacks; should that never happen, it leaks.
struct Reference {
    argument: *const Target,
    flushed: bool,
    done: Option<oneshot::Sender<Result<()>>>,
    result: Result<()>,
}

// SAFETY: it stands for an `Arc<Target>`, and a target may be used from any thread.
unsafe impl Send for Reference {}
// SAFETY: as above.
unsafe impl Sync for Reference {}

impl Reference {
    /// Has librados flush its callbacks, after which the reference is given back.
    fn flush(self, io: Io) {
        let cluster = io.connection().handle();
        let _ = completion::submit(self, io, |_, _, completion| {
            // SAFETY: the handle is connected as long as the context lives.
            unsafe { ffi::rados_aio_watch_flush(cluster.0, completion) }
        });
    }
}

impl completion::Payload for Reference {
    fn complete(&mut self, _outcome: completion::Outcome) {
        self.flushed = true;
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        if self.flushed {
            // SAFETY: this is the reference made by `Arc::into_raw`; no callback can come any more.
            drop(unsafe { Arc::from_raw(self.argument) });
            if let Some(done) = self.done.take() {
                let _ = done.send(std::mem::replace(&mut self.result, Ok(())));
            }
        }
    }
}

/// Callback of a watch: somebody notified the object.
extern "C" fn on_notify(
    arg: *mut c_void,
    notify_id: u64,
    cookie: u64,
    notifier: u64,
    data: *mut c_void,
    length: usize,
) {
    // SAFETY: `arg` is the target to which the registration holds a reference; the data lives during the callback.
    let (target, payload) = unsafe {
        let bytes: &[u8] = if length == 0 { &[] } else { slice::from_raw_parts(data.cast(), length) };
        (&*arg.cast::<Target>(), Bytes::copy_from_slice(bytes))
    };
    let (io, object) = (target.io.clone(), target.object_c.clone());
    let answer = NotifyAnswer::new(move |reply| {
        let length = c_int::try_from(reply.len()).unwrap_or(0);
        // SAFETY: context, name and data live across the call, which sends and does not wait. An unknown cookie or
        // notification is refused by the OSD.
        unsafe {
            c::rados_notify_ack(io.raw(), object.as_ptr(), notify_id, cookie, reply.as_ptr().cast(), length)
        };
    });
    // Without a listener the answer is dropped, and so given.
    let _ = target.events.send(WatchEvent::Notify { payload, notifier, answer });
}

/// Callback of a watch: the registration broke.
extern "C" fn on_error(arg: *mut c_void, cookie: u64, error: c_int) {
    // SAFETY: `arg` is the target to which the registration holds a reference.
    let target = unsafe { &*arg.cast::<Target>() };
    let _ = target.broken.send((cookie, error.abs()));
}

impl Target {
    fn place(&self) -> String {
        format!("object '{}' {}", self.object, in_location(&self.location))
    }
}

fn cannot_watch(object: &str, location: &Location) -> String {
    format!("cannot watch object '{object}' {}", in_location(location))
}

/// A notification in flight, and the place for its reply.
struct Notifying {
    object: CString,
    payload: Bytes,
    reply: *mut c_char,
    reply_length: usize,
}

// SAFETY: the reply is ours alone once the call is complete.
unsafe impl Send for Notifying {}

impl completion::Payload for Notifying {}

impl Notifying {
    fn reply(&self) -> Option<&[u8]> {
        // SAFETY: librados allocated so many bytes there, which are ours.
        (!self.reply.is_null())
            .then(|| unsafe { slice::from_raw_parts(self.reply.cast(), self.reply_length) })
    }
}

impl Drop for Notifying {
    fn drop(&mut self) {
        if !self.reply.is_null() {
            // SAFETY: allocated by librados for us, freed once.
            unsafe { c::rados_buffer_free(self.reply) };
        }
    }
}

/// Notifies the watchers of an object. When some did not answer in time they are `silent` in the reply.
pub(super) async fn notify(
    connection: Arc<Connection>,
    location: Location,
    object: String,
    payload: Bytes,
    timeout: Duration,
) -> Result<NotifyReply> {
    let what = || format!("cannot notify the watchers of object '{object}' {}", in_location(&location));
    let io = connection.io(&location).await.map_err(|e| e.context(what()))?;
    let length = c_int::try_from(payload.len()).map_err(|_| Error::new(libc::E2BIG, what()))?;
    // Librados counts whole seconds, and takes 0 for its default.
    let timeout_ms = timeout.as_millis().div_ceil(1000).max(1).saturating_mul(1000);
    let timeout_ms = u64::try_from(timeout_ms).unwrap_or(u64::MAX);
    let notifying =
        Notifying { object: c_string(&object)?, payload, reply: ptr::null_mut(), reply_length: 0 };
    let receiver = completion::submit(notifying, io, |notifying, io, completion| {
        let (object, payload) = (notifying.object.as_ptr(), notifying.payload.as_ptr().cast());
        // SAFETY: context, name, payload and the places for the reply live in the state until the callback.
        unsafe {
            let (reply, reply_length) = (&mut notifying.reply, &mut notifying.reply_length);
            ffi::rados_aio_notify(io, object, completion, payload, length, timeout_ms, reply, reply_length)
        }
    })
    .map_err(|e| e.context(what()))?;
    let (outcome, notifying) = completion::answer(receiver).await?;
    match notifying.reply() {
        Some(reply) if outcome.rval >= 0 || outcome.rval == -libc::ETIMEDOUT => {
            decode_reply(reply).map_err(|e| e.context(what()))
        }
        _ => {
            check(outcome.rval, what)?;
            // Without watchers two empty lists come. Nothing at all says nothing of who watches.
            Err(Error::new(libc::EBADMSG, format!("{}: the OSD's reply is empty", what())))
        }
    }
}

/// A map of (client, cookie) to the answer, then a set of (client, cookie) that did not answer.
fn decode_reply(bytes: &[u8]) -> Result<NotifyReply> {
    let mut d = Decoder::new(bytes, "reply to a notification");
    Ok(NotifyReply {
        answers: d.seq(20, |d| Ok((d.u64()?, d.u64()?, Bytes::copy_from_slice(d.blob()?))))?,
        silent: d.seq(16, |d| Ok((d.u64()?, d.u64()?)))?,
    })
}
