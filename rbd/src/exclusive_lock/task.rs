//! The task behind an exclusive lock: the only one who touches its watch and its state.
//!
//! It waits for a command, an event of the watch, the end of the step under way (at most one at a time: an attempt, a
//! lock request, a release, a reacquisition) or a timer; changes its state without waiting; and then begins the next
//! step that brings it nearer to what is wanted ([`Task::advance`]). Steps run beside the watch, since a notification of
//! ours is only complete when our own watch has answered it, too.
//!
//! Invariant: the lock is unlocked ([`Task::release_step`]) only when nothing is inside the session's gate. While that is
//! waited for, everything else goes on: whoever asks for the lock is told to wait, and a lost watch is made anew.

use std::collections::HashMap;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use rados::error::ResultExt;
use rados::{Error, ErrorClass, Gate, IoCtx, NotifyReply, Result};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::{LockOptions, LockReport, LockState, RequestPolicy, object_map_lock};
use crate::header::ImageHeader;
use crate::image::Image;
use crate::layout::header_object;
use crate::managed_lock::{Attempt, ManagedLock};
use crate::snapshots::{self, Removal};
use crate::types::{ImageId, Snapshot, SnapshotNamespace};
use crate::watch_notify::{
    AsyncRequestId, ClientId, HeaderEvent, HeaderWatch, Notification, Operation, Responder,
    next_request_number, notify, notify_header_update, owner_response,
};

/// Pause before the lock is asked for again after an error, or when nobody answered.
const RETRY: Duration = Duration::from_secs(1);
/// Pause before the lock is asked for again when its owner said that he will release it.
const RETRY_PROMISED: Duration = Duration::from_secs(3);
/// Silence after which an operation asked of the owner is given up (`rbd_request_timed_out_seconds`).
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long writes under way may hold up the end of a lock until that is worth a warning.
const WRITES_PATIENCE: Duration = Duration::from_secs(10);

/// What the holder of the lock's handle asks.
pub(super) enum Command {
    /// Take the lock; `patient`: from a live owner, too. True when it was taken.
    Acquire { patient: bool, answer: oneshot::Sender<Result<bool>> },
    /// Give it up.
    Release { answer: oneshot::Sender<Result<()>> },
    /// Change what peers are told.
    SetPolicy(RequestPolicy),
    /// Change whether the object map is locked, too.
    SetObjectMap(bool),
    /// Ask the owner to carry out an operation.
    AskOwner { operation: Operation, answer: oneshot::Sender<Result<()>> },
    /// Give everything up and end.
    Close { answer: oneshot::Sender<Result<()>> },
}

/// Somebody waiting for the lock.
struct Waiter {
    patient: bool,
    answer: oneshot::Sender<Result<bool>>,
}

/// An operation that was asked of the owner.
struct Asked {
    answer: oneshot::Sender<Result<()>>,
    give_up: Instant,
}

/// How a step ended. The lock is handed to the step and back.
enum Done {
    Attempted(Result<Attempt>, ManagedLock),
    Requested(Result<Option<i32>>),
    Released(Result<()>, ManagedLock),
    Reacquired(Result<()>, ManagedLock),
}

type Step = BoxFuture<'static, Done>;
type OwnerAnswered = BoxFuture<'static, (AsyncRequestId, Result<NotifyReply>)>;

/// What ends the task.
enum Ending {
    Closed(Option<oneshot::Sender<Result<()>>>),
    Fenced(Error),
}

pub(super) struct Task {
    /// Outside of any gate.
    ioctx: IoCtx,
    /// What is written under the lock.
    gate: Gate,
    image: ImageId,
    options: LockOptions,
    header: HeaderWatch,
    publish: watch::Sender<LockReport>,
    lock: ManagedLock,
    step: Option<Step>,
    waiters: Vec<Waiter>,
    releasers: Vec<oneshot::Sender<Result<()>>>,
    /// A live owner must be asked before the next attempt.
    ask_first: bool,
    /// No attempt before this time.
    not_before: Instant,
    /// The lock was given up by somebody since the last lock request was sent.
    released_meanwhile: bool,
    watching: bool,
    /// Why the watch broke, when it last did.
    broken: Option<Error>,
    /// Somebody was told that we hold the lock. What nobody waited for any more when it was taken is given back.
    kept: bool,
    /// The watch was lost and came back while we held the lock.
    stale: bool,
    /// When to warn that writes hold up the end of the lock; `None` when they do not, or it was done.
    warn_at: Option<Instant>,
    warned: bool,
    asked: HashMap<AsyncRequestId, Asked>,
    answers: FuturesUnordered<OwnerAnswered>,
    /// News on their way. Nothing waits for them: a watcher who died lately holds them up for seconds.
    announcements: FuturesUnordered<BoxFuture<'static, ()>>,
    ending: Option<Ending>,
}

/// Carries out an operation that somebody asked for, and tells its end: by a notification, or old clients by the answer.
/// Goes on when the lock is given up meanwhile.
async fn carry_out(
    ioctx: IoCtx,
    image: ImageId,
    request: AsyncRequestId,
    responder: Responder,
    operation: impl Future<Output = Result<()>>,
) {
    let mut waits = Some(responder);
    if !request.is_empty()
        && let Some(responder) = waits.take()
    {
        responder.respond(0);
    }
    let done = operation.await;
    if let Err(error) = &done {
        tracing::info!("{error}");
    }
    let result = done.err().map_or(0, |error| -error.errno());
    match waits {
        Some(responder) => responder.respond(result),
        None => {
            let complete = Notification::AsyncComplete { request, result };
            if let Err(error) = notify(&ioctx, &image, &complete).await {
                tracing::debug!("the end of an operation was not heard by everybody: {error}");
            }
        }
    }
}

/// Removes a snapshot in the trash namespace, whose last clone is gone. Whoever removes that clone asks for it, and it
/// touches nothing that the owner of the lock works on. EBUSY when it has clones, ENOENT when there is none.
async fn remove_from_trash(ioctx: IoCtx, image: ImageId, name: String) -> Result<()> {
    let what = || format!("cannot remove snapshot '{name}' in the trash of image {image}");
    let header = ImageHeader::read(&ioctx, &image).await.context(what())?;
    let in_trash =
        |snap: &&Snapshot| snap.name == name && matches!(snap.namespace, SnapshotNamespace::Trash { .. });
    let found = header.snapshots.values().find(in_trash).map(|snap| snap.id);
    let snap = found.ok_or_else(|| Error::new(libc::ENOENT, what()))?;
    let handle = Image::of(&ioctx, "", &header);
    match snapshots::remove(&handle, &header, snap).await.context(what())? {
        Removal::KeptForClones => return Err(Error::new(libc::EBUSY, what())),
        Removal::Gone => {}
    }
    if let Err(error) = notify_header_update(&ioctx, &image).await {
        tracing::debug!("not everybody was told of a change: {error}");
    }
    Ok(())
}

impl Task {
    pub(super) fn new(
        (ioctx, gate): (&IoCtx, &Gate),
        image: &ImageId,
        options: LockOptions,
        header: HeaderWatch,
        publish: watch::Sender<LockReport>,
    ) -> Task {
        Task {
            ioctx: ioctx.clone(),
            gate: gate.clone(),
            image: image.clone(),
            options,
            header,
            publish,
            lock: ManagedLock::new(ioctx, header_object(image)),
            step: None,
            waiters: Vec::new(),
            releasers: Vec::new(),
            ask_first: false,
            not_before: Instant::now(),
            released_meanwhile: false,
            watching: true,
            broken: None,
            kept: false,
            stale: false,
            warn_at: None,
            warned: false,
            asked: HashMap::new(),
            answers: FuturesUnordered::new(),
            announcements: FuturesUnordered::new(),
            ending: None,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::UnboundedReceiver<Command>) {
        loop {
            self.advance();
            if self.ending.is_some() && self.step.is_none() && !self.lock.is_held() {
                break;
            }
            let deadline = self.deadline();
            tokio::select! {
                command = inbox.recv(), if !matches!(self.ending, Some(Ending::Closed(_))) => match command {
                    Some(command) => self.command(command),
                    None => self.end(Ending::Closed(None)),
                },
                event = self.header.next() => match event {
                    Some(event) => self.event(event),
                    None => self.watch_gone(),
                },
                done = async { self.step.as_mut().expect("guarded").await }, if self.step.is_some() => {
                    self.step = None;
                    self.done(done);
                }
                _ = self.gate.drained(), if self.step.is_none() && self.is_giving_up() => {}
                Some(()) = self.announcements.next() => {}
                Some((request, reply)) = self.answers.next() => self.owner_answered(request, reply),
                () = tokio::time::sleep_until(deadline) => self.expire(),
            }
        }
        self.finish().await;
    }

    /// Begins the next step towards what is wanted, unless one is under way.
    fn advance(&mut self) {
        if self.step.is_some() {
            return;
        }
        self.waiters.retain(|waiter| !waiter.answer.is_closed());
        // Before anybody is told of it by an answer.
        self.publish_state();
        let closing = self.ending.is_some();
        if self.lock.is_held() {
            if !closing && self.releasers.is_empty() && !self.stale {
                let told =
                    self.waiters.drain(..).filter_map(|waiter| waiter.answer.send(Ok(true)).ok()).count();
                self.kept |= told > 0;
            }
            let giving_up = self.is_giving_up();
            if giving_up && self.gate.inside() == 0 {
                self.step = Some(self.release_step());
            } else if giving_up && self.gate.is_given_up() {
                self.leave_locked();
            } else if self.stale && self.watching {
                self.stale = false;
                self.step = Some(self.reacquire_step());
            } else if giving_up && !self.warned {
                self.warn_at.get_or_insert_with(|| Instant::now() + WRITES_PATIENCE);
            }
        } else {
            (self.kept, self.warn_at, self.warned) = (false, None, false);
            self.releasers.drain(..).for_each(|answer| drop(answer.send(Ok(()))));
            if !closing && !self.waiters.is_empty() && self.watching && Instant::now() >= self.not_before {
                let ask = std::mem::take(&mut self.ask_first);
                self.step = Some(if ask { self.request_step() } else { self.attempt_step() });
            }
        }
        self.publish_state();
    }

    /// True when the lock that we hold is to be given up: that is asked for, or nobody waited for it any more when it was
    /// taken.
    fn is_giving_up(&self) -> bool {
        let unwanted = !self.kept && self.waiters.is_empty() && !self.stale;
        self.lock.is_held() && (self.ending.is_some() || !self.releasers.is_empty() || unwanted)
    }

    fn attempt_step(&mut self) -> Step {
        let (mut lock, client) = (self.lock.clone(), self.header.client_id());
        let (ioctx, image, object_map) = (self.ioctx.clone(), self.image.clone(), self.options.object_map);
        async move {
            let mut attempt = lock.try_acquire(client.handle).await;
            if attempt == Ok(Attempt::Acquired)
                && object_map
                && let Err(e) = object_map_lock::lock(&ioctx, &image).await
            {
                attempt = Err(e);
            }
            Done::Attempted(attempt, lock)
        }
        .boxed()
    }

    fn request_step(&mut self) -> Step {
        self.released_meanwhile = false;
        let (ioctx, image, client) = (self.ioctx.clone(), self.image.clone(), self.header.client_id());
        async move {
            let request = Notification::RequestLock { client, force: false };
            let reply = notify(&ioctx, &image, &request).await;
            Done::Requested(reply.and_then(|reply| owner_response(&reply)))
        }
        .boxed()
    }

    fn release_step(&mut self) -> Step {
        let mut lock = self.lock.clone();
        let (ioctx, image, object_map) = (self.ioctx.clone(), self.image.clone(), self.options.object_map);
        async move {
            if object_map {
                object_map_lock::unlock(&ioctx, &image).await;
            }
            Done::Released(lock.release().await, lock)
        }
        .boxed()
    }

    fn reacquire_step(&mut self) -> Step {
        let (mut lock, client) = (self.lock.clone(), self.header.client_id());
        async move {
            let mut kept = lock.reacquire(client.handle).await;
            if kept.is_ok() {
                kept = lock.verify().await;
            }
            Done::Reacquired(kept, lock)
        }
        .boxed()
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Acquire { patient, answer } => {
                self.waiters.push(Waiter { patient, answer });
                self.not_before = Instant::now();
            }
            Command::Release { answer } => {
                self.fail_waiters(&Error::new(
                    libc::ECANCELED,
                    format!("the lock of image {} is released", self.image),
                ));
                self.releasers.push(answer);
            }
            Command::SetPolicy(policy) => self.options.policy = policy,
            Command::SetObjectMap(object_map) => self.options.object_map = object_map,
            Command::AskOwner { operation, answer } => self.ask_owner(operation, answer),
            Command::Close { answer } => self.end(Ending::Closed(Some(answer))),
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Attempted(attempt, lock) => {
                self.lock = lock;
                self.attempted(attempt);
            }
            Done::Requested(answer) => self.lock_requested(answer),
            Done::Released(released, lock) => {
                self.lock = lock;
                self.released(released);
            }
            Done::Reacquired(kept, lock) => {
                self.lock = lock;
                match kept {
                    Ok(()) => self.announce(Notification::AcquiredLock(self.header.client_id())),
                    Err(e) => self.not_reacquired(e),
                }
            }
        }
    }

    fn attempted(&mut self, attempt: Result<Attempt>) {
        match attempt {
            Ok(Attempt::Acquired) => {
                self.publish.send_modify(|report| {
                    report.requested = None;
                    report.owner = Some(self.header.client_id());
                });
                self.fail_asked("we own the lock ourselves");
                self.announce(Notification::AcquiredLock(self.header.client_id()));
            }
            Ok(Attempt::Owned(owner)) => {
                let client = ClientId { gid: owner.entity.number as u64, handle: owner.watch_cookie };
                self.publish.send_modify(|report| report.owner = Some(client));
                let (patient, others) =
                    std::mem::take(&mut self.waiters).into_iter().partition(|w| w.patient);
                self.waiters = patient;
                others.into_iter().for_each(|waiter: Waiter| drop(waiter.answer.send(Ok(false))));
                self.ask_first = true;
            }
            Err(e) if e.class() == ErrorClass::Fenced => self.fence(e),
            // Locked by a person: waiting does not help.
            Err(e) if e.is(libc::EBUSY) || e.class() == ErrorClass::Permanent => self.fail_waiters(&e),
            Err(e) => {
                tracing::debug!("trying again to lock image {}: {e}", self.image);
                self.not_before = Instant::now() + RETRY;
            }
        }
    }

    fn lock_requested(&mut self, answer: Result<Option<i32>>) {
        let pause = match answer {
            Ok(Some(result)) if result == -libc::EROFS => {
                let what = format!("the owner of the lock of image {} does not give it up", self.image);
                return self.fail_waiters(&Error::new(libc::EROFS, what));
            }
            Ok(Some(0)) => RETRY_PROMISED,
            Ok(_) => RETRY,
            Err(e) if e.class() == ErrorClass::Fenced => return self.fence(e),
            Err(e) => {
                tracing::debug!("asking again for the lock of image {}: {e}", self.image);
                RETRY
            }
        };
        let pause = if self.released_meanwhile { Duration::ZERO } else { pause };
        self.not_before = Instant::now() + pause;
    }

    fn released(&mut self, released: Result<()>) {
        let Err(e) = released else {
            self.publish.send_modify(|report| {
                report.requested = None;
                report.owner = None;
                report.state = LockState::Unlocked;
            });
            self.announce(Notification::ReleasedLock(self.header.client_id()));
            return;
        };
        if e.class() == ErrorClass::Fenced {
            return self.fence(e);
        }
        self.releasers.drain(..).for_each(|answer| drop(answer.send(Err(e.clone()))));
        if self.ending.is_some() {
            // It stays locked until somebody breaks it; the watch goes, so everybody sees that its owner is dead.
            tracing::warn!("image {} stays locked: {e}", self.image);
            self.lock.forget();
        }
    }

    /// What was written under the lock is not waited for any longer: it stays locked until somebody breaks it, which fences
    /// what is under way. The watch goes, so that everybody sees that its owner is dead.
    fn leave_locked(&mut self) {
        let what = format!(
            "cannot unlock image {}: {} writes to it are under way and not answered",
            self.image,
            self.gate.inside()
        );
        // With a write of which nothing will ever be known this connection cannot go on.
        let error = Error::new(if self.gate.is_lost() { libc::ESHUTDOWN } else { libc::ECANCELED }, what);
        tracing::warn!("{error}; whoever needs its lock next fences this client");
        self.releasers.drain(..).for_each(|answer| drop(answer.send(Err(error.clone()))));
        self.forget_lock();
        self.end(Ending::Fenced(error));
    }

    /// Holds the lock no more, as far as this task is concerned. Nobody else in this process takes it over while something
    /// may still be written under it.
    fn forget_lock(&mut self) {
        let Some(held) = self.lock.forget() else { return };
        let gate = self.gate.clone();
        tokio::spawn(async move {
            gate.emptied().await;
            drop(held);
        });
    }

    fn not_reacquired(&mut self, error: Error) {
        if error.class() == ErrorClass::Fenced {
            self.fence(error);
        } else if self.lock.is_held() {
            self.stale = true;
            self.not_before = Instant::now() + RETRY;
        } else {
            tracing::warn!("lost the lock of image {}: {error}", self.image);
            self.publish.send_modify(|report| {
                report.state = LockState::Lost(error);
                report.requested = None;
                report.owner = None;
            });
        }
    }

    fn event(&mut self, event: HeaderEvent) {
        match event {
            HeaderEvent::Updated => self.publish.send_modify(|report| report.header_updates += 1),
            HeaderEvent::LockAcquired(client) => self.owner_changed(Some(client)),
            HeaderEvent::LockReleased(client) => {
                let owner = self.publish.borrow().owner.filter(|owner| *owner != client);
                self.owner_changed(owner);
                self.released_meanwhile = true;
            }
            HeaderEvent::LockRequested { client, responder, .. } => {
                if client != self.header.client_id() {
                    self.wanted_by(client, responder, 0);
                }
            }
            HeaderEvent::Operation { request, operation, responder } => {
                tracing::debug!("{:?} asks for {operation:?} of image {}", request.client, self.image);
                match operation {
                    Operation::SnapRemove { namespace: SnapshotNamespace::Trash { .. }, name }
                        if self.lock.is_held() =>
                    {
                        let removal = remove_from_trash(self.ioctx.clone(), self.image.clone(), name);
                        tokio::spawn(carry_out(
                            self.ioctx.clone(),
                            self.image.clone(),
                            request,
                            responder,
                            removal,
                        ));
                    }
                    _ => self.wanted_by(request.client, responder, -libc::EOPNOTSUPP),
                }
            }
            HeaderEvent::Progress { request, .. } => {
                if let Some(asked) = self.asked.get_mut(&request) {
                    asked.give_up = Instant::now() + OPERATION_TIMEOUT;
                }
            }
            HeaderEvent::Completed { request, result } => {
                if let Some(asked) = self.asked.remove(&request) {
                    let _ = asked.answer.send(self.operation_result(result));
                }
            }
            HeaderEvent::Lost(error) => {
                if error.is(libc::ESHUTDOWN) {
                    return self.fence(error);
                }
                tracing::warn!("the watch of image {} broke: {error}", self.image);
                self.watching = false;
                self.broken = Some(error);
            }
            HeaderEvent::Restored(_) => {
                self.watching = true;
                self.stale = true;
                self.publish.send_modify(|report| report.header_updates += 1);
            }
        }
    }

    /// A peer wants the lock, by itself or to carry out an operation; `answer` is what it is told when it will have it.
    /// Only the owner answers.
    fn wanted_by(&mut self, client: ClientId, responder: Responder, answer: i32) {
        if !self.lock.is_held() {
            return;
        }
        match self.options.policy {
            RequestPolicy::Refuse if !self.is_giving_up() => responder.respond(-libc::EROFS),
            _ => {
                responder.respond(answer);
                self.publish.send_modify(|report| report.requested = Some(client));
            }
        }
    }

    fn owner_changed(&mut self, owner: Option<ClientId>) {
        let ours = owner == Some(self.header.client_id());
        if !ours && self.publish.borrow().owner != owner {
            self.fail_asked("the owner of the lock changed");
        }
        if !self.lock.is_held() && !ours {
            self.publish.send_modify(|report| report.owner = owner);
        }
        self.not_before = Instant::now();
    }

    fn ask_owner(&mut self, operation: Operation, answer: oneshot::Sender<Result<()>>) {
        if self.lock.is_held() {
            let what =
                format!("the owner of the lock of image {} cannot be asked: we own it ourselves", self.image);
            let _ = answer.send(Err(Error::new(libc::ERESTART, what)));
            return;
        }
        let request = AsyncRequestId { client: self.header.client_id(), number: next_request_number() };
        self.asked.insert(request, Asked { answer, give_up: Instant::now() + OPERATION_TIMEOUT });
        let (ioctx, image) = (self.ioctx.clone(), self.image.clone());
        let notification = Notification::Operation { request, operation };
        self.answers.push(async move { (request, notify(&ioctx, &image, &notification).await) }.boxed());
    }

    /// The owner has begun the operation, or will not.
    fn owner_answered(&mut self, request: AsyncRequestId, reply: Result<NotifyReply>) {
        let answered = reply.and_then(|reply| {
            let owner = reply.answers.iter().find(|(_, _, payload)| !payload.is_empty());
            let owner = owner.map(|(gid, handle, _)| ClientId { gid: *gid, handle: *handle });
            Ok((owner_response(&reply)?, owner))
        });
        let result = match answered {
            Ok((Some(0), owner)) => {
                self.publish.send_modify(|report| report.owner = owner);
                return;
            }
            Ok((Some(result), _)) => self.operation_result(result),
            Ok((None, _)) => {
                let what = format!("nobody answers as owner of the lock of image {}", self.image);
                Err(Error::new(libc::ETIMEDOUT, what))
            }
            Err(e) => Err(e),
        };
        if let Some(asked) = self.asked.remove(&request) {
            let _ = asked.answer.send(result);
        }
    }

    fn operation_result(&self, result: i32) -> Result<()> {
        if result >= 0 {
            return Ok(());
        }
        let what =
            format!("the owner of the lock of image {} could not do what was asked of him", self.image);
        Err(Error::new(result, what))
    }

    fn fail_waiters(&mut self, error: &Error) {
        self.waiters.drain(..).for_each(|waiter| drop(waiter.answer.send(Err(error.clone()))));
    }

    fn fail_asked(&mut self, why: &str) {
        let error = Error::new(
            libc::ERESTART,
            format!("an operation on image {} was interrupted: {why}", self.image),
        );
        self.asked.drain().for_each(|(_, asked)| drop(asked.answer.send(Err(error.clone()))));
    }

    /// When something is to be done though nothing happens.
    fn deadline(&self) -> Instant {
        let far = Instant::now() + Duration::from_secs(3600);
        let retry =
            (self.step.is_none() && !self.waiters.is_empty() && self.watching).then_some(self.not_before);
        let asked = self.asked.values().map(|asked| asked.give_up).min();
        retry.into_iter().chain(asked).chain(self.warn_at).fold(far, Instant::min)
    }

    fn expire(&mut self) {
        let now = Instant::now();
        if self.warn_at.is_some_and(|at| at <= now) {
            (self.warn_at, self.warned) = (None, true);
            tracing::warn!(
                "image {} stays locked until what was written to it is answered: {} writes are under way; an OSD of its \
                 pool may be down",
                self.image,
                self.gate.inside()
            );
        }
        let late: Vec<_> =
            self.asked.iter().filter(|(_, a)| a.give_up <= now).map(|(request, _)| *request).collect();
        for asked in late.iter().filter_map(|request| self.asked.remove(request)) {
            let what =
                format!("the owner of the lock of image {} does not tell of an operation's end", self.image);
            let _ = asked.answer.send(Err(Error::new(libc::ETIMEDOUT, what)));
        }
    }

    /// Tells everybody. Whoever does not hear it finds out by asking.
    fn announce(&self, news: Notification) {
        let (ioctx, image) = (self.ioctx.clone(), self.image.clone());
        let told = async move {
            if let Err(e) = notify(&ioctx, &image, &news).await {
                tracing::debug!("not everybody heard of the lock of image {image}: {e}");
            }
        };
        self.announcements.push(told.boxed());
    }

    /// The watch does not come back: the header is gone, or this connection is of no use any more.
    fn watch_gone(&mut self) {
        let gone = || Error::new(libc::ENOTCONN, format!("cannot go on watching image {}", self.image));
        let error = self.broken.take().unwrap_or_else(gone);
        self.fence(error);
    }

    fn fence(&mut self, error: Error) {
        // What we hold is void: a blocklisted client can neither write nor unlock.
        self.forget_lock();
        self.step = None;
        self.end(Ending::Fenced(error));
    }

    fn end(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
    }

    fn publish_state(&mut self) {
        let state = match (&self.ending, self.lock.cookie()) {
            (Some(Ending::Fenced(error)), _) => LockState::Fenced(error.clone()),
            (_, Some(cookie)) => LockState::Locked(cookie.to_string()),
            (_, None) if !self.waiters.is_empty() => LockState::Acquiring,
            (_, None) if matches!(self.publish.borrow().state, LockState::Lost(_)) => return,
            (_, None) => LockState::Unlocked,
        };
        self.publish.send_if_modified(|report| {
            let changed = report.state != state;
            report.state = state;
            changed
        });
    }

    /// The end: gives up the watch and tells everybody who still waits.
    async fn finish(mut self) {
        let (error, closer) = match self.ending.take() {
            Some(Ending::Fenced(error)) => (error, None),
            Some(Ending::Closed(closer)) => {
                (Error::new(libc::ECANCELED, format!("the lock of image {} is closed", self.image)), closer)
            }
            None => return,
        };
        self.fail_waiters(&error);
        self.asked.drain().for_each(|(_, asked)| drop(asked.answer.send(Err(error.clone()))));
        self.releasers.drain(..).for_each(|answer| drop(answer.send(Err(error.clone()))));
        let gone = self.header.unregister().await;
        if gone.is_ok() {
            while self.announcements.next().await.is_some() {}
        }
        if let Some(closer) = closer {
            let _ = closer.send(gone);
        }
    }
}
