//! What to do after a failure: the one place that knows the classes of errors and how long to wait.
//!
//! | class | met by |
//! |---|---|
//! | transient | the same attempt again, later and later, until cancelled |
//! | fenced | the connection is dropped and its owner starts over |
//! | permanent | said once, tried again when something changed (or, unasked, at the longest interval) |
//! | bug | the task that found it ends, the others go on |

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use rand::Rng;
use tokio_util::sync::CancellationToken;

/// Waits between attempts: exponential, with jitter, bounded.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    min: Duration,
    max: Duration,
}

impl Backoff {
    /// Waits of `min` at first, doubled each time up to `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Backoff { next: min, min, max }
    }

    /// The next wait: between half of and the full interval, so that many tasks do not march in step.
    pub fn next_delay(&mut self) -> Duration {
        let interval = self.next;
        self.next = (interval * 2).min(self.max);
        interval.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Starts again from the shortest wait, after a success.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

/// Sleeps for the next wait of `backoff`; false when cancelled.
pub async fn pause(backoff: &mut Backoff, cancel: &CancellationToken) -> bool {
    let delay = backoff.next_delay();
    tokio::select! {
        () = cancel.cancelled() => false,
        () = tokio::time::sleep(delay) => true,
    }
}

/// Why [`transient`] gave up.
#[derive(Debug)]
pub enum GaveUp<E> {
    /// It was cancelled.
    Cancelled,
    /// The error is not one that goes away by itself.
    Failed(E),
}

/// Tries `attempt` until it succeeds, fails with an error that is not transient, or is cancelled. The first failure and
/// every change of its text are logged as warnings, repetitions only for debugging.
pub async fn transient<T, F>(
    what: impl Display,
    cancel: &CancellationToken,
    mut backoff: Backoff,
    mut attempt: impl FnMut() -> F,
) -> Result<T, GaveUp<rados::Error>>
where
    F: Future<Output = rados::Result<T>>,
{
    let mut said = String::new();
    loop {
        let outcome = tokio::select! {
            () = cancel.cancelled() => return Err(GaveUp::Cancelled),
            outcome = attempt() => outcome,
        };
        let error = match outcome {
            Ok(value) => return Ok(value),
            Err(e) if e.class() == rados::ErrorClass::Transient => e.to_string(),
            Err(e) => return Err(GaveUp::Failed(e)),
        };
        if error == said {
            tracing::debug!("{what}: {error}; trying again");
        } else {
            tracing::warn!("{what}: {error}; trying again");
            said = error;
        }
        if !pause(&mut backoff, cancel).await {
            return Err(GaveUp::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_start_over() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(350));
        for interval in [100, 200, 350, 350] {
            let delay = backoff.next_delay();
            assert!(delay >= ms(interval) / 2 && delay <= ms(interval), "{delay:?} for {interval} ms");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= ms(100));
    }

    #[tokio::test]
    async fn only_transient_errors_are_tried_again() {
        let cancel = CancellationToken::new();
        let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(2));
        let mut attempts = 0;
        let outcome = transient("test", &cancel, backoff.clone(), || {
            attempts += 1;
            let errno = if attempts < 3 { libc::ETIMEDOUT } else { libc::ESHUTDOWN };
            async move { Err::<(), _>(rados::Error::new(errno, "cannot test")) }
        })
        .await;
        assert!(matches!(outcome, Err(GaveUp::Failed(e)) if e.is(libc::ESHUTDOWN)));
        assert_eq!(attempts, 3);

        cancel.cancel();
        let outcome = transient("test", &cancel, backoff, std::future::pending::<rados::Result<()>>).await;
        assert!(matches!(outcome, Err(GaveUp::Cancelled)));
    }
}
