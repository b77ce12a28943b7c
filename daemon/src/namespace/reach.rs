//! Whether the remote cluster answers.
//!
//! librados waits without a limit for a cluster that it cannot reach, and so does everything that is built on it: when
//! the cluster is back, work goes on where it was. Meanwhile the statuses of the images say why nothing happens.

use std::time::{Duration, Instant};

use rados::error::ResultExt;
use rados::{ErrorClass, IoCtx, Result};
use rbd::mirroring::MIRRORING_OBJECT;
use tokio::time::{sleep, timeout};

use crate::reports::Reports;

/// How often the remote cluster is asked.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the remote cluster for a sign of life, from time to time, for as long as the connection works.
pub async fn watch(remote: IoCtx, reports: Reports) -> Result<()> {
    let mut answered = Instant::now();
    let mut silent = false;
    loop {
        sleep(INTERVAL).await;
        match timeout(ANSWER_TIMEOUT, remote.stat(MIRRORING_OBJECT)).await {
            Ok(Err(error)) if error.class() == ErrorClass::Fenced => return Err(error),
            Ok(answer) => {
                if let Err(error) = answer.optional() {
                    tracing::debug!("the remote cluster answered a probe with an error: {error}");
                }
                if std::mem::take(&mut silent) {
                    let gap_seconds = answered.elapsed().as_secs();
                    tracing::info!("the remote cluster answers again, after {gap_seconds} s");
                    reports.set_silence(None);
                }
                answered = Instant::now();
            }
            Err(_) => {
                let gap_seconds = answered.elapsed().as_secs();
                let what = format!(
                    "the remote cluster has not answered for {gap_seconds} s; check its monitors and OSDs and the \
                     network to them. Mirroring goes on by itself when it is back"
                );
                if !std::mem::replace(&mut silent, true) {
                    tracing::warn!("{what}");
                }
                reports.set_silence(Some(what));
            }
        }
    }
}
