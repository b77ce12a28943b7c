//! How an asynchronous call of librados becomes a future.
//!
//! A call in flight has a [`State`] on the heap, whose address librados gets as the argument of the callback. The state
//! owns everything that librados may touch until then (the *payload*: operation, buffers, places for answers), the I/O
//! context and the permit. The callback takes the state back, hands result and payload to whoever waits, and frees the
//! rest. It runs on a thread of librados, so it does no more than that.
//!
//! Dropping the future leaves all of that as it is; the payload is then dropped by the callback. So is the guard of a write
//! that counts as under way until it is answered ([`crate::gate`]), unless librados only gave up waiting.

use std::ffi::{c_int, c_void};
use std::ptr;

use ceph::rados as c;
use ceph::rados::{rados_completion_t, rados_ioctx_t};
use tokio::sync::oneshot;

use super::connection::{Io, Permit, check};
use super::ffi;
use crate::error::{Error, Result};
use crate::gate::GateGuard;

/// What librados says about a call that is done.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    /// Its return value: negative for an error number.
    pub(super) rval: i32,
    /// Version of the object, for operations on one.
    pub(super) version: u64,
}

/// What librados works on during a call: operation, buffers, places for answers.
pub(super) trait Payload: Send + 'static {
    /// Called in the callback, before the payload is handed over or dropped. Must not block.
    fn complete(&mut self, _outcome: Outcome) {}
}

impl Payload for () {}

/// The place for a snapshot id.
impl Payload for u64 {}

/// A call in flight. Fields in the order in which they must go.
pub(super) struct State<P> {
    sender: oneshot::Sender<(Outcome, P)>,
    payload: P,
    /// Of a write that counts as under way until it is answered.
    guard: Option<GateGuard>,
    _permit: Option<Permit>,
    _io: Io,
}

/// Outcome and payload, once the call is done.
pub(super) type Receiver<P> = oneshot::Receiver<(Outcome, P)>;

impl<P: Payload> State<P> {
    /// A state to be handed to librados, and the end at which to wait.
    pub(super) fn new(payload: P, permit: Option<Permit>, io: Io) -> (Box<State<P>>, Receiver<P>) {
        let (sender, receiver) = oneshot::channel();
        (Box::new(State { sender, payload, guard: None, _permit: permit, _io: io }), receiver)
    }

    /// Keeps `guard` until the call can have no effect any more.
    pub(super) fn guarded(&mut self, guard: GateGuard) {
        self.guard = Some(guard);
    }

    /// What librados works on.
    pub(super) fn payload(&mut self) -> &mut P {
        &mut self.payload
    }

    /// The callback of a call whose argument is a `State<P>`.
    pub(super) extern "C" fn completed(completion: rados_completion_t, arg: *mut c_void) {
        // SAFETY: `arg` is the address that `Box::into_raw` gave for a state of this very type, and the callback comes
        // once.
        let state = unsafe { Box::from_raw(arg.cast::<State<P>>()) };
        // SAFETY: the completion is live during its callback.
        let outcome = unsafe {
            Outcome {
                rval: c::rados_aio_get_return_value(completion),
                version: ffi::rados_aio_get_version(completion),
            }
        };
        let State { sender, mut payload, guard, _permit, _io } = *state;
        if matches!(outcome.rval.saturating_neg(), libc::ETIMEDOUT | libc::ECANCELED) {
            // This client waits no more (`rados_osd_op_timeout`), but the OSD may still carry it out.
            guard.into_iter().for_each(GateGuard::lose);
        }
        payload.complete(outcome);
        // Nobody waiting: the payload is dropped here.
        let _ = sender.send((outcome, payload));
    }
}

/// Makes an asynchronous call of the C interface.
///
/// `start` gets the payload (at its final address), the I/O context and the completion, and makes the call; what it
/// returns is the call's own return value. [`answer`] waits for the result.
pub(super) fn submit<P: Payload>(
    payload: P,
    io: Io,
    start: impl FnOnce(&mut P, rados_ioctx_t, rados_completion_t) -> c_int,
) -> Result<Receiver<P>> {
    let raw_io = io.raw();
    let (state, receiver) = State::new(payload, None, io);
    let state = Box::into_raw(state);
    let mut completion = ptr::null_mut();
    // SAFETY: `completion` is a valid place for the completion, and `state` is what the callback expects.
    let created =
        unsafe { ffi::rados_aio_create_completion2(state.cast(), State::<P>::completed, &mut completion) };
    let started = if created < 0 {
        created
    } else {
        // SAFETY: the state is live until the callback, which cannot come before the call is made; `start` uses the
        // payload only to make the call.
        let payload = unsafe { &mut *ptr::addr_of_mut!((*state).payload) };
        start(payload, raw_io, completion)
    };
    if created >= 0 {
        // SAFETY: librados keeps its own reference while the call is in flight; this one is not needed.
        unsafe { c::rados_aio_release(completion) };
    }
    if started < 0 {
        // SAFETY: the call was not made, so its callback will not come, and the state is still ours.
        drop(unsafe { Box::from_raw(state) });
    }
    check(started, || "cannot start a call of librados".into())?;
    Ok(receiver)
}

/// Outcome and payload of a call that was made. The caller judges the return value.
pub(super) async fn answer<R, P>(receiver: R) -> Result<(Outcome, P)>
where
    R: Future<Output = std::result::Result<(Outcome, P), oneshot::error::RecvError>>,
{
    receiver
        .await
        .map_err(|_| Error::new(libc::EIO, "cannot learn the result of a call: librados dropped it"))
}
