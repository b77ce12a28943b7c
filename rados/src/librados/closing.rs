//! Handles that are open or being shut down, and who waits for them.
//!
//! Shutting a handle down waits for threads of librados, so it happens in the background. A process that ends meanwhile
//! would destroy the statics that those threads still use, and abort. So the exit of the process waits for the handles
//! being shut down, for a limited time: the handler is registered after librados was loaded and thus runs before
//! librados' own destructors.

use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

/// How long the exit of the process waits. A handle that takes longer has lost its cluster.
const EXIT_LIMIT: Duration = Duration::from_secs(5);

struct Counts {
    /// Handles that are connecting, connected or being shut down.
    open: usize,
    /// Those of them that are being shut down.
    closing: usize,
}

static COUNTS: Mutex<Counts> = Mutex::new(Counts { open: 0, closing: 0 });
static CHANGED: Condvar = Condvar::new();

/// Stands for one handle of librados, as long as it is not shut down.
pub(super) struct Open {
    closing: bool,
}

impl Open {
    /// A new handle.
    pub(super) fn new() -> Open {
        extern "C" fn at_exit() {
            wait(EXIT_LIMIT, |counts| counts.closing == 0);
        }
        static REGISTERED: Once = Once::new();
        // SAFETY: the handler is a plain function that does not unwind. Should there be no room for it, the exit does not
        // wait.
        REGISTERED.call_once(|| unsafe {
            libc::atexit(at_exit);
        });
        counts().open += 1;
        Open { closing: false }
    }

    /// The handle is about to be shut down.
    pub(super) fn start_closing(&mut self) {
        if !self.closing {
            self.closing = true;
            counts().closing += 1;
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut counts = counts();
        counts.open -= 1;
        if self.closing {
            counts.closing -= 1;
        }
        CHANGED.notify_all();
    }
}

/// Waits until no handle is left, at most for `timeout`; true when none is. Blocks.
pub(super) fn wait_all_closed(timeout: Duration) -> bool {
    wait(timeout, |counts| counts.open == 0)
}

/// Waits as [`wait_all_closed`] does, and ends the process at once: no destructor of a static runs, so that threads of
/// librados that still wait for a lost cluster cannot trip over what is gone.
pub(super) fn end_process(code: u8, timeout: Duration) -> ! {
    wait_all_closed(timeout);
    // SAFETY: the call has no preconditions and does not return.
    unsafe { libc::_exit(code.into()) }
}

fn wait(timeout: Duration, done: impl Fn(&Counts) -> bool) -> bool {
    let end = Instant::now() + timeout;
    let mut counts = counts();
    while !done(&counts) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        counts = CHANGED.wait_timeout(counts, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    true
}

fn counts() -> MutexGuard<'static, Counts> {
    COUNTS.lock().unwrap_or_else(PoisonError::into_inner)
}
