//! The line to the remote cluster, which must not hold up those who want the local image.
//!
//! A remote cluster that is lost never answers. Then somebody promotes the image here, and cannot write to it until the
//! session has given up its lock and its watch. So the remote cluster is reached through a line of the attempt's own, which
//! is severed when the image is promoted, or the task is told to end: whatever waits for the remote cluster fails then,
//! wherever that is, while what goes on locally comes to its end in order.
//!
//! In journal mode a promotion is a tag in the local journal. In snapshot mode it begins with an orphan snapshot, or with
//! asking for the lock of the image.

use std::time::Duration;

use deep_copy::ids::SnapIds;
use journal::Journal;
use journal::bootstrap::Owner;
use journal::image_journal::ImageJournal;
use journal::watch::{JournalChanges, JournalWatch};
use rados::severable::{Line, severable};
use rados::{Error, ErrorClass, Gate, IoCtx, Location, Result};
use rbd::exclusive_lock::LockReport;
use rbd::image::Image;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::session::has_orphan;
use super::{Attempt, ImageContext, Shared};

/// How long the remote cluster may take to answer when others want the image.
const PROMOTED_GRACE: Duration = Duration::from_secs(1);
/// The same when the task is told to end: somewhat less than it is waited for.
const END_GRACE: Duration = Duration::from_secs(3);
/// The pause before the local journal is read again, when that failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The line of one attempt at following an image.
pub struct Lifeline {
    line: Line,
    /// What is written through the line.
    gate: Gate,
    /// The remote pool, through no line.
    remote: IoCtx,
    /// Cancelled when the image is promoted.
    promoted: CancellationToken,
    /// Who severs it. They end with it.
    guards: JoinSet<()>,
}

impl Lifeline {
    /// Lays a line. What is done with the context that this answers with fails when the line is severed.
    pub(super) fn lay(ctx: &ImageContext) -> (ImageContext, Lifeline) {
        let (backend, line) = severable(ctx.remote.backend().clone());
        let location = Location { pool: ctx.remote.pool_id(), namespace: ctx.remote.namespace().into() };
        let through = IoCtx::new(backend, location).gated();
        let mut lifeline = Lifeline {
            line,
            gate: through.gate().cloned().unwrap_or_else(|| Gate::new(None)),
            remote: ctx.remote.clone(),
            promoted: CancellationToken::new(),
            guards: JoinSet::new(),
        };
        let cancel = ctx.cancel.clone();
        lifeline.sever_after(END_GRACE, "the task is told to end", async move { cancel.cancelled().await });
        (ImageContext { remote: through, ..ctx.clone() }, lifeline)
    }

    /// Severs the line when the image of this journal is promoted, or gone; `watch` tells of that while it lasts.
    pub(super) fn sever_when_promoted(&mut self, journal: &Journal, watch: &JournalWatch) {
        let (journal, changes, told) = (journal.clone(), watch.changes(), self.promoted.clone());
        self.sever_after(PROMOTED_GRACE, "the local image was promoted", async move {
            promoted(journal, changes).await;
            told.cancel();
        });
    }

    /// Severs the line when somebody else waits for this image, which is mirrored by snapshots: has made it an orphan, or
    /// asks for its lock and does not get it.
    pub(super) fn sever_when_wanted(&mut self, image: &Image, report: watch::Receiver<LockReport>) {
        let image = image.clone();
        self.sever_after(Duration::ZERO, "others want the local image", async move {
            wanted(image, report).await
        });
    }

    /// What comes of an attempt: one whose line was severed ended with an error, and is made anew.
    pub(super) fn judge(&self, ctx: &ImageContext, followed: Result<Attempt>) -> Result<Attempt> {
        match followed {
            Err(error) if self.line.is_severed() && error.class() != ErrorClass::Fenced => {
                tracing::debug!(image = %ctx.global_image_id, "{error}");
                Ok(if ctx.cancel.is_cancelled() { Attempt::Over } else { Attempt::Again(Duration::ZERO) })
            }
            followed => followed,
        }
    }

    /// Tells that the image is promoted, or gone.
    pub(super) fn promoted(&self) -> CancellationToken {
        self.promoted.clone()
    }

    /// True once it is severed.
    pub(super) fn is_severed(&self) -> bool {
        self.line.is_severed()
    }

    /// For what waits for the remote cluster by other ways.
    pub(super) fn line(&self) -> Line {
        self.line.clone()
    }

    /// The reserve of snapshot ids of the remote data pool behind `data`. All images share it, so it does not end with
    /// this line.
    pub(super) fn remote_snap_ids(&self, shared: &Shared, data: &IoCtx) -> SnapIds {
        shared.remote_snap_ids(&self.remote.with_pool(data.pool_id()))
    }

    fn sever_after(
        &mut self,
        grace: Duration,
        why: &'static str,
        wanted: impl Future<Output = ()> + Send + 'static,
    ) {
        let (line, gate) = (self.line.clone(), self.gate.clone());
        self.guards.spawn(async move {
            wanted.await;
            tokio::time::sleep(grace).await;
            let what = format!("gave up waiting for the remote cluster: {why}");
            line.sever(Error::new(libc::ECANCELED, what));
            // A lock of the remote image, taken for a sync point, stays there.
            gate.give_up();
        });
    }
}

/// Waits until somebody has waited for an image for longer than the remote cluster may take to answer.
async fn wanted(image: Image, mut report: watch::Receiver<LockReport>) {
    loop {
        tokio::time::sleep(PROMOTED_GRACE).await;
        let requested = report.borrow_and_update().requested.is_some();
        if requested || image.read_header().await.is_ok_and(|header| has_orphan(&header)) {
            return;
        }
        if report.changed().await.is_err() {
            // The session is over.
            return std::future::pending().await;
        }
    }
}

/// Waits until an image is primary, or has no journal any more.
async fn promoted(journal: Journal, mut changes: JournalChanges) {
    loop {
        match ImageJournal::read(&journal).await {
            Ok(journal) if journal.owner() == Owner::Primary => return,
            Ok(_) => changes.changed().await,
            Err(error) if error.is_not_found() => return,
            Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
        }
    }
}
