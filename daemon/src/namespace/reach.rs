//! Whether the remote cluster answers, and whether the remote pool is there and is mirrored.
//!
//! librados waits without a limit for a cluster that it cannot reach, and so does everything that is built on it: when
//! the cluster is back, work goes on where it was. Meanwhile the statuses of the images say why nothing happens; and so
//! they do when the remote pool is gone, or is not the one that the images are copied from.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rados::{ErrorClass, IoCtx, Result};
use tokio::time::{sleep, timeout};

use crate::image;
use crate::reports::Reports;

/// How often the remote cluster is asked.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long it may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the remote cluster for the state of the pool, from time to time, for as long as the connection works.
pub async fn watch(remote: IoCtx, mirror_uuid: Arc<str>, reports: Reports) -> Result<()> {
    let mut answered = Instant::now();
    let mut said: Option<String> = None;
    loop {
        sleep(INTERVAL).await;
        let trouble = match timeout(ANSWER_TIMEOUT, image::trouble(&remote, &mirror_uuid)).await {
            Ok(Err(error)) if error.class() == ErrorClass::Fenced => return Err(error),
            Ok(Err(error)) => {
                tracing::debug!("the remote cluster answered a probe with an error: {error}");
                answered = Instant::now();
                None
            }
            Ok(Ok(trouble)) => {
                answered = Instant::now();
                trouble
            }
            Err(_) => Some(silent_for(answered.elapsed())),
        };
        match (&said, &trouble) {
            (None, Some(what)) => tracing::warn!("{what}"),
            (Some(_), None) => tracing::info!("the remote cluster and pool are as they should be again"),
            _ => {}
        }
        reports.set_trouble(trouble.clone());
        said = trouble;
    }
}

fn silent_for(gap: Duration) -> String {
    format!(
        "the remote cluster has not answered for {} s; check its monitors and OSDs and the network to them. Mirroring \
         goes on by itself when it is back",
        gap.as_secs()
    )
}
