//! Counts what a session has under way, so that its lock is not given up before all of that has come to its end.
//!
//! Who holds a lock may write; so it must not be given up while a write of its session can still take effect. A write
//! that was sent cannot be taken back: whoever waits for it can be dropped (a task that does not end in time, one that
//! panicked), but an OSD that stood still carries it out when it goes on. So every write that is made through a gated
//! [`crate::IoCtx`] (see [`crate::IoCtx::gated`]) is inside the session's gate until it was answered, whether or not
//! anybody waits for that ([`crate::Backend::write_guarded`]). What consists of several writes, and is carried out in a
//! task of its own, keeps a [`GateGuard`] for as long as it goes on.
//!
//! Invariants:
//! * [`Gate::drained`] is true only when nothing is inside. A write whose answer can never be learnt stays inside for good,
//!   and for those in a cluster that is lost nobody can wait ([`Gate::give_up`]): whoever comes next must then fence this
//!   client, as after a crash.
//! * When a gate is closed no write begins any more through it, or through one inside it.
//! * What is inside a gate is inside those around it, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::error::{Error, Result};

/// The gate of a session. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Writes, and whatever else keeps a guard.
    inside: AtomicUsize,
    closed: AtomicBool,
    given_up: AtomicBool,
    /// Of something inside it is not known whether it can still take effect, and never will be.
    lost: AtomicBool,
    /// Nothing is inside, or it is given up.
    changed: Notify,
    /// The gate around this one.
    outer: Option<Gate>,
}

/// Something inside a gate, until it is dropped.
#[derive(Debug)]
pub struct GateGuard(Gate);

impl Gate {
    /// An open gate, within another one if there is one.
    pub fn new(outer: Option<Gate>) -> Gate {
        Gate(Arc::new(Shared {
            inside: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            changed: Notify::new(),
            outer,
        }))
    }

    /// Enters; ECANCELED when it is closed, or one around it is.
    pub fn enter(&self) -> Result<GateGuard> {
        // Counted first, so that whoever closes it and finds nothing inside is right.
        let guard = self.count();
        match self.is_closed() {
            true => Err(Error::new(libc::ECANCELED, "the session that this belongs to has ended")),
            false => Ok(guard),
        }
    }

    /// Nothing enters any more.
    pub fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
    }

    /// Nothing enters any more, and what is inside is waited for no longer: it may take effect at any time.
    pub fn give_up(&self) {
        self.close();
        self.0.given_up.store(true, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// True when nothing that is inside can be waited for: nothing but fencing this client makes an end of it.
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::SeqCst)
    }

    /// True when it is not waited for what is inside.
    pub fn is_given_up(&self) -> bool {
        self.0.given_up.load(Ordering::SeqCst) || self.is_lost()
    }

    /// How many are inside.
    pub fn inside(&self) -> usize {
        self.0.inside.load(Ordering::SeqCst)
    }

    /// Waits until nothing is inside: true; or until that is given up: false. Cancel-safe.
    pub async fn drained(&self) -> bool {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            if self.inside() == 0 {
                return true;
            }
            if self.is_given_up() {
                return false;
            }
            changed.await;
        }
    }

    /// Waits until nothing is inside, given up or not. Cancel-safe.
    pub async fn emptied(&self) {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            if self.inside() == 0 {
                return;
            }
            changed.await;
        }
    }

    fn count(&self) -> GateGuard {
        let mut gate = Some(self);
        while let Some(Gate(shared)) = gate {
            shared.inside.fetch_add(1, Ordering::SeqCst);
            gate = shared.outer.as_ref();
        }
        GateGuard(self.clone())
    }

    fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::SeqCst) || self.0.outer.as_ref().is_some_and(Gate::is_closed)
    }
}

impl GateGuard {
    /// It will never be known whether what it stands for can still take effect: it stays inside for good.
    pub(crate) fn lose(self) {
        let mut gate = Some(&self.0);
        while let Some(Gate(shared)) = gate {
            shared.lost.store(true, Ordering::SeqCst);
            shared.changed.notify_waiters();
            gate = shared.outer.as_ref();
        }
        std::mem::forget(self);
    }
}

impl Drop for GateGuard {
    fn drop(&mut self) {
        let mut gate = Some(&self.0);
        while let Some(Gate(shared)) = gate {
            if shared.inside.fetch_sub(1, Ordering::SeqCst) == 1 {
                shared.changed.notify_waiters();
            }
            gate = shared.outer.as_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn what_is_inside_a_gate_is_inside_those_around_it() {
        let around = Gate::new(None);
        let gate = Gate::new(Some(around.clone()));
        let guard = gate.enter().unwrap();
        assert_eq!((gate.inside(), around.inside()), (1, 1));
        let (mut inner, mut outer) = (gate.drained().boxed(), around.drained().boxed());
        assert!((&mut inner).now_or_never().is_none() && (&mut outer).now_or_never().is_none());
        drop(guard);
        assert!(inner.now_or_never().unwrap() && outer.now_or_never().unwrap());
    }

    #[test]
    fn what_is_given_up_is_not_waited_for() {
        let gate = Gate::new(None);
        let guard = gate.enter().unwrap();
        let mut drained = gate.drained().boxed();
        assert!((&mut drained).now_or_never().is_none());
        gate.give_up();
        assert_eq!(drained.now_or_never(), Some(false));
        assert!(gate.enter().is_err());
        drop(guard);
        assert_eq!(gate.drained().now_or_never(), Some(true));
    }

    #[test]
    fn what_is_lost_is_never_out() {
        let around = Gate::new(None);
        let gate = Gate::new(Some(around.clone()));
        let drained = around.drained().boxed();
        gate.enter().unwrap().lose();
        assert_eq!((drained.now_or_never(), gate.is_lost()), (Some(false), true));
        assert!(gate.emptied().now_or_never().is_none());
    }

    #[test]
    fn nothing_enters_when_it_is_closed_and_what_is_inside_leaves() {
        let around = Gate::new(None);
        let (gate, other) = (Gate::new(Some(around.clone())), Gate::new(Some(around.clone())));
        let guard = gate.enter().unwrap();
        gate.close();
        assert!(gate.enter().is_err_and(|error| error.is(libc::ECANCELED)));
        assert!(other.enter().is_ok());
        around.close();
        assert!(other.enter().is_err());
        assert_eq!((gate.inside(), other.inside(), around.inside()), (1, 0, 1));
        drop(guard);
        assert!(around.drained().now_or_never().unwrap());
    }
}
