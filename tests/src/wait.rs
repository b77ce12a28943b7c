//! Waiting for a condition, with a limit: the only way in which tests let time pass.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long to let go by between two looks at a condition.
pub const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Asks `probe` again and again until it answers `Some`, and gives that answer.
///
/// `what` completes the sentence "gave up waiting for …". An error of the probe ends the waiting at once: a probe that
/// is expected to fail for a while answers `Ok(None)` instead. Cancel-safe as far as the probe is.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>>>,
{
    let started = Instant::now();
    loop {
        if let Some(found) = probe().await? {
            return Ok(found);
        }
        if started.elapsed() > limit {
            bail!("gave up waiting for {what} after {:.1} s", started.elapsed().as_secs_f64());
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
