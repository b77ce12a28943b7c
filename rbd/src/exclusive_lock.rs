//! The exclusive lock of an image: taking it from whoever has it, giving it up when asked, and asking its owner for what
//! only he may do.
//!
//! An [`ExclusiveLock`] watches the image's header and answers everything that is asked there for as long as it lives,
//! whether it holds the lock or not; so nobody ever waits for an answer of ours. The watch belongs to a task of its own,
//! which publishes a [`LockReport`].
//!
//! Taking the lock:
//!
//! ```text
//! lock the header ──ok──────────────────────────────┐
//!   │ somebody has it                               ▼
//!   ├─ he is dead: blocklist him, break, again    lock the object map (breaking what is left of others),
//!   └─ he lives: notify "request lock"            notify "acquired lock"
//!        ├─ "no" (EROFS): give up
//!        ├─ "yes": wait for "released lock", again
//!        └─ nobody answers: again
//! ```
//!
//! Giving it up: the user of this lock sees [`LockReport::requested`], finishes its writes and calls
//! [`ExclusiveLock::release`]; then unlock the object map and the header, notify "released lock". A peer who was told
//! "yes" waits for that.
//!
//! The lock is unlocked only when nothing that was written under it can still take effect: it is opened through a gated
//! [`IoCtx`], through which all of its session writes, and it waits until nothing is inside that gate ([`rados::gate`]). A
//! session that is dropped (its task did not end in time, or panicked) writes nothing any more; what it had under way is
//! waited for all the same, however long that takes. Until then the lock stays where it is: others see its owner live, or, when
//! this process or its connection ends first, dead, and then they fence it before they take the lock.
//!
//! As the owner we carry out one operation for others, whatever the policy: the removal of a snapshot in the trash
//! namespace, which whoever removes its last clone asks for. No other (snapshots, resizing, …): with [`RequestPolicy::HandOver`] the asker
//! is told that we can't (EOPNOTSUPP) and librbd then asks for the lock and does it himself; with
//! [`RequestPolicy::Refuse`] he is told EROFS.
//!
//! Reference: `src/librbd/ExclusiveLock.cc`, `src/librbd/exclusive_lock/`, `src/librbd/ImageWatcher.cc`,
//! `src/librbd/object_map/LockRequest.cc`, `src/librbd/Operations.cc` (`C_InvokeAsyncRequest`).

mod object_map_lock;
mod task;

use std::time::Duration;

use rados::error::ResultExt;
use rados::lock::{LockKind, LockRequest};
use rados::{Error, Gate, IoCtx, ReadOp, Result};
use tokio::sync::{mpsc, oneshot, watch};

use crate::header_update::LOCK_NAME;
use crate::layout::header_object;
use crate::managed_lock::LOCK_TAG;
use crate::types::ImageId;
use crate::watch_notify::{ClientId, HeaderWatch, Operation};

use task::{Command, Task};

/// What peers who want the lock are told while we hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestPolicy {
    /// That they will have it.
    HandOver,
    /// That they will not (EROFS).
    Refuse,
}

/// How to hold a lock.
#[derive(Debug, Clone, Copy)]
pub struct LockOptions {
    /// What peers are told.
    pub policy: RequestPolicy,
    /// Lock the object map, too: the image has the feature.
    pub object_map: bool,
}

impl Default for LockOptions {
    fn default() -> Self {
        LockOptions { policy: RequestPolicy::HandOver, object_map: true }
    }
}

/// Whether we hold a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockState {
    /// We do not, and do not want to.
    Unlocked,
    /// We try to.
    Acquiring,
    /// We do, under this cookie.
    Locked(String),
    /// We did, and it was taken from us.
    Lost(Error),
    /// We are blocklisted, or the watch is gone for good: this lock is of no use any more. Open the image anew, through
    /// a new connection.
    Fenced(Error),
}

/// Who carries out an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delegated {
    /// The owner of the lock did it.
    DoneByOwner,
    /// We hold the lock now: the caller is to do it.
    LockedByUs,
}

/// Pause before the owner is asked again for an operation that nobody took on.
const DELEGATE_RETRY: Duration = Duration::from_millis(100);

/// What a lock's task publishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockReport {
    /// Whether we hold it.
    pub state: LockState,
    /// A peer who wants the lock that we hold and was told that it will have it: finish writing and release it.
    pub requested: Option<ClientId>,
    /// Who holds it, as far as notifications and answers told.
    pub owner: Option<ClientId>,
    /// Counts changes of the header that were told of, and gaps in which such news may have been missed. When it grows,
    /// read the header afresh.
    pub header_updates: u64,
}

impl LockReport {
    /// True while we hold the lock.
    pub fn is_held(&self) -> bool {
        matches!(self.state, LockState::Locked(_))
    }
}

/// Changes what peers are told who want a lock, for as long as that is open.
#[derive(Debug, Clone)]
pub struct PolicySetter(mpsc::WeakUnboundedSender<Command>);

impl PolicySetter {
    /// Changes it. Nobody is told anything any more when the lock is closed.
    pub fn set(&self, policy: RequestPolicy) {
        if let Some(commands) = self.0.upgrade() {
            let _ = commands.send(Command::SetPolicy(policy));
        }
    }
}

/// The exclusive lock of an image that we have open. Dropping it ends its session: the gate is closed, and the lock is given
/// up in the background when nothing is inside any more.
#[derive(Debug)]
pub struct ExclusiveLock {
    ioctx: IoCtx,
    /// That of the session. Taken when it was closed in order.
    gate: Option<Gate>,
    image: ImageId,
    client: ClientId,
    commands: mpsc::UnboundedSender<Command>,
    report: watch::Receiver<LockReport>,
}

impl ExclusiveLock {
    /// Watches the header of `image`, which lies in `ioctx`. The lock is not taken yet. ENOENT when there is no such
    /// image. EINVAL unless `ioctx` is gated ([`IoCtx::gated`]): the image must be written to through it, or what is made
    /// from it, alone. Must be called within a tokio runtime.
    pub async fn open(ioctx: &IoCtx, image: &ImageId, options: LockOptions) -> Result<ExclusiveLock> {
        let Some(gate) = ioctx.gate().cloned() else {
            let what =
                format!("cannot lock image {image}: nobody counts what is written to it; this is a bug");
            return Err(Error::new(libc::EINVAL, what));
        };
        let ioctx = &ioctx.ungated();
        let header = HeaderWatch::new(ioctx, image).await?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let (publish, report) = watch::channel(LockReport {
            state: LockState::Unlocked,
            requested: None,
            owner: None,
            header_updates: 0,
        });
        let client = header.client_id();
        tokio::spawn(Task::new((ioctx, &gate), image, options, header, publish).run(inbox));
        let (ioctx, gate, image) = (ioctx.clone(), Some(gate), image.clone());
        Ok(ExclusiveLock { ioctx, gate, image, client, commands, report })
    }

    /// By which others knew us when the watch began.
    pub fn client_id(&self) -> ClientId {
        self.client
    }

    /// What is going on, and the way to wait for changes of it.
    pub fn report(&self) -> watch::Receiver<LockReport> {
        self.report.clone()
    }

    /// True while we hold the lock, as far as we know.
    pub fn is_held(&self) -> bool {
        self.report.borrow().is_held()
    }

    /// Takes the lock; waits for a live owner to give it up, for as long as that takes. At once when it is held already.
    ///
    /// EROFS when the owner refuses, EBUSY when a person locked the image (`rbd lock add`), ESHUTDOWN when we are
    /// blocklisted, ECANCELED when it is released or closed meanwhile. Cancel-safe: when the future is dropped, and
    /// nobody else waits for the lock, it is not asked for any more; it may have been taken.
    pub async fn acquire(&self) -> Result<()> {
        self.ask(|answer| Command::Acquire { patient: true, answer }).await.map(drop)
    }

    /// As [`ExclusiveLock::acquire`], but does not ask a live owner for it: false when there is one.
    pub async fn try_acquire(&self) -> Result<bool> {
        self.ask(|answer| Command::Acquire { patient: false, answer }).await
    }

    /// Gives up the lock, when nothing is inside the gate any more; whoever calls this must not be. No error when it is not
    /// held. Cancel-safe: it is given up all the same.
    pub async fn release(&self) -> Result<()> {
        self.ask(|answer| Command::Release { answer }).await
    }

    /// Changes what peers who want the lock are told.
    pub fn set_policy(&self, policy: RequestPolicy) {
        // When the task has ended nobody is told anything any more.
        let _ = self.commands.send(Command::SetPolicy(policy));
    }

    /// Changes whether the object map is locked, too. To be called while the lock is not held.
    pub fn set_object_map(&self, object_map: bool) {
        // When the task has ended there is nothing to lock any more.
        let _ = self.commands.send(Command::SetObjectMap(object_map));
    }

    /// Changes what peers who want the lock are told, from beside whoever uses it.
    pub fn policy_setter(&self) -> PolicySetter {
        PolicySetter(self.commands.downgrade())
    }

    /// Has the owner of the lock carry out `operation`, and waits until it is done. Others whom it concerns are notified
    /// by the owner.
    ///
    /// ETIMEDOUT when nobody owns the lock, or the owner is silent: take the lock and do it yourself. ERESTART when the
    /// owner changed meanwhile, or we hold the lock ourselves: it may or may not have been done; look, and try again.
    /// EOPNOTSUPP when the owner cannot do it. Any other error is the operation's own. Cancel-safe: the owner carries on.
    pub async fn ask_owner(&self, operation: Operation) -> Result<()> {
        self.ask(|answer| Command::AskOwner { operation, answer }).await
    }

    /// Has `operation` carried out by the owner of the lock if there is one who can, and else takes the lock so that the
    /// caller can do it himself; waits for a live owner who cannot. Errors are those of [`ExclusiveLock::acquire`] and of
    /// the operation. An operation that was interrupted is asked for again: one that cannot be done twice then says so
    /// (EEXIST, ENOENT).
    pub async fn delegate(&self, operation: Operation) -> Result<Delegated> {
        loop {
            if self.try_acquire().await? {
                return Ok(Delegated::LockedByUs);
            }
            match self.ask_owner(operation.clone()).await {
                Ok(()) => return Ok(Delegated::DoneByOwner),
                Err(e) if e.is(libc::EOPNOTSUPP) => {
                    self.acquire().await?;
                    return Ok(Delegated::LockedByUs);
                }
                // He is about to give it up, has only just taken it, or is dead but not yet known to be.
                Err(e) if e.is(libc::ETIMEDOUT) || e.is(libc::ERESTART) => {
                    tokio::time::sleep(DELEGATE_RETRY).await
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Asks the OSD whether we still hold the lock. EBUSY, ENOENT or ESHUTDOWN when not.
    pub async fn verify(&self) -> Result<()> {
        let LockState::Locked(cookie) = self.report.borrow().state.clone() else {
            return Err(Error::new(libc::ENOENT, format!("image {} is not locked by us", self.image)));
        };
        let lock = LockRequest::new(LOCK_NAME, LockKind::Exclusive, cookie).tagged(LOCK_TAG);
        let op = ReadOp::new(header_object(&self.image)).with(lock.assert_locked_read_sub());
        let verified = self.ioctx.read(op).await.map(drop);
        verified.context(format!("the exclusive lock of image {} is lost", self.image))
    }

    /// Gives up the lock, when nothing is inside the gate any more, and the watch, and waits until the cluster has
    /// forgotten both. The gate stays open: it may have other uses.
    pub async fn close(mut self) -> Result<()> {
        let closed = self.ask(|answer| Command::Close { answer }).await;
        self.gate = None;
        closed
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<Result<T>>) -> Command) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let ended = || match &self.report.borrow().state {
            LockState::Fenced(error) => error.clone(),
            _ => Error::new(libc::ECANCELED, format!("the lock of image {} is closed", self.image)),
        };
        self.commands.send(command(answer)).map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

impl Drop for ExclusiveLock {
    fn drop(&mut self) {
        // The task behind it hears of that by the end of its commands.
        if let Some(gate) = &self.gate {
            gate.close();
        }
    }
}
