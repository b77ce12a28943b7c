//! Publishing what the images of a namespace report, to both clusters, in Ceph's form.
//!
//! A status lies in the omap of `rbd_mirroring`: of the local site under the image's global id, in the remote cluster
//! under global id and our mirror uuid. It counts as `up` as long as the connection that wrote it watches the object,
//! so it must be written through the connection that holds the watch.
//!
//! * A new state is published within half a second; a new description alone (progress) every
//!   [`PROGRESS_INTERVAL`] at most; and everything again every [`REFRESH_INTERVAL`], as Ceph does, so that the time of
//!   the last update shows that somebody still looks after the image.
//! * When an image is no longer there, its status is removed from both clusters.
//! * At the end, the last reports are published; they then show as `down`.
//!
//! One cluster that does not answer holds up neither the other one nor the images.
//!
//! Reference: `src/tools/rbd_mirror/MirrorStatusUpdater.cc`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rados::encoding::Encoder;
use rados::{ErrorClass, IoCtx, Result, WriteOp};
use rbd::mirroring::{MIRRORING_OBJECT, SiteStatus};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::report::Report;
use crate::reports::Reports;

/// How often reports are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// The shortest time between two publications of mere progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// The longest time without publication.
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);
/// Statuses in one operation.
const BATCH_MAX: usize = 100;
/// How long the last publication may take.
const LAST_TIMEOUT: Duration = Duration::from_secs(1);

/// Publishes the reports of one namespace to one cluster.
pub struct Publisher {
    ioctx: IoCtx,
    /// Empty for the local cluster; for the remote one, our mirror uuid.
    mirror_uuid: String,
    reports: Reports,
    published: BTreeMap<Arc<str>, (Report, Instant)>,
}

/// A change of one image's status.
#[derive(Debug, Clone, PartialEq)]
enum Change {
    Set(Report),
    Remove,
}

impl Publisher {
    /// For the cluster and namespace of `ioctx`, which knows us by `mirror_uuid` (empty for our own cluster).
    pub fn new(ioctx: &IoCtx, mirror_uuid: &str, reports: &Reports) -> Self {
        Publisher {
            ioctx: ioctx.clone(),
            mirror_uuid: mirror_uuid.to_string(),
            reports: reports.clone(),
            published: BTreeMap::new(),
        }
    }

    /// Publishes until cancelled; then once more. Ends early only when the connection is of no use any more.
    pub async fn run(mut self, cancel: CancellationToken) -> Result<()> {
        let mut said = String::new();
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                published = async { looks.tick().await; self.publish(Instant::now()).await } => match published {
                    Err(e) if e.class() == ErrorClass::Fenced => return Err(e),
                    Err(e) => {
                        let why = e.to_string();
                        if said != why {
                            tracing::warn!("cannot publish image statuses: {why}; trying again");
                            said = why;
                        }
                    }
                    Ok(()) => said.clear(),
                }
            }
        }
        match timeout(LAST_TIMEOUT, self.publish(Instant::now() + PROGRESS_INTERVAL)).await {
            Ok(published) => published,
            Err(_) => {
                tracing::debug!("the last image statuses could not be published in time");
                Ok(())
            }
        }
    }

    async fn publish(&mut self, now: Instant) -> Result<()> {
        let changes = self.changes(now);
        for batch in changes.chunks(BATCH_MAX) {
            let mut op = WriteOp::new(MIRRORING_OBJECT);
            for (id, change) in batch {
                op = match change {
                    Change::Set(report) => op.exec("rbd", "mirror_image_status_set", self.encode(id, report)),
                    Change::Remove => {
                        op.exec("rbd", "mirror_image_status_remove", Encoder::new().string(id).finish())
                    }
                };
            }
            self.ioctx.write(op).await?;
            for (id, change) in batch {
                match change {
                    Change::Set(report) => self.published.insert(id.clone(), (report.clone(), now)),
                    Change::Remove => self.published.remove(id),
                };
            }
        }
        Ok(())
    }

    fn changes(&self, now: Instant) -> Vec<(Arc<str>, Change)> {
        let mut changes = Vec::new();
        let mut gone: BTreeMap<&Arc<str>, ()> = self.published.keys().map(|id| (id, ())).collect();
        self.reports.visit(|id, report| {
            gone.remove(id);
            if is_due(self.published.get(id), report, now) {
                changes.push((id.clone(), Change::Set(report.clone())));
            }
        });
        changes.extend(gone.into_keys().map(|id| (id.clone(), Change::Remove)));
        changes
    }

    fn encode(&self, global_image_id: &str, report: &Report) -> bytes::Bytes {
        let status = SiteStatus::new(self.mirror_uuid.as_str(), report.state, report.description.as_str());
        Encoder::new().string(global_image_id).value(&status).finish()
    }
}

/// Whether a report is to be published, given what was published when.
fn is_due(published: Option<&(Report, Instant)>, report: &Report, now: Instant) -> bool {
    let Some((before, at)) = published else {
        return true;
    };
    let age = now.saturating_duration_since(*at);
    before.state != report.state
        || age >= REFRESH_INTERVAL
        || (age >= PROGRESS_INTERVAL && before.description != report.description)
}

#[cfg(test)]
mod tests {
    use rbd::mirroring::StatusState;

    use super::*;

    #[test]
    fn states_go_at_once_progress_waits_and_all_is_refreshed() {
        let now = Instant::now();
        let report = |state, description: &str| Report::new(state, description);
        let before = (report(StatusState::Replaying, "a"), now);
        let due = |report: &Report, after: Duration| is_due(Some(&before), report, now + after);
        assert!(is_due(None, &before.0, now));
        assert!(due(&report(StatusState::Error, "a"), Duration::ZERO));
        assert!(!due(&report(StatusState::Replaying, "b"), PROGRESS_INTERVAL / 2));
        assert!(due(&report(StatusState::Replaying, "b"), PROGRESS_INTERVAL));
        assert!(!due(&before.0, REFRESH_INTERVAL / 2));
        assert!(due(&before.0, REFRESH_INTERVAL));
    }
}
