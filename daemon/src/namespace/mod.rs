//! One mirrored namespace of a pool: which images there are, and one task for each.
//!
//! The images are the union of those that the local and the remote namespace list: one that is only in the remote has
//! yet to be created here, one that is only here may have to go. Both lists are read again whenever either cluster
//! announces a change, and from time to time without that.
//!
//! An image's task ends when it is told to, when nothing is left to do for its image, or when it breaks. It is started
//! again, later and later, as long as its image is listed. One that breaks disturbs no other.
//!
//! Reference: `src/tools/rbd_mirror/NamespaceReplayer.cc`, `InstanceReplayer.cc`, `PoolWatcher.cc`.

mod images;
mod instances;
mod names;
mod reach;
mod side;
pub mod trash;

use std::sync::Arc;
use std::time::Duration;

use rados::{IoCtx, PoolId, Result};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::control::Orders;
use crate::image::Shared;
use crate::peer_ping::RemotePool;
use crate::reports::Reports;
use crate::service::ServiceDaemon;
use crate::settings::JournalSettings;
use crate::status::Publisher;
use deep_copy::map_trust::Trust;

use images::Images;
use side::Side;

/// How long to gather announced changes before the lists are read again.
const GATHER: Duration = Duration::from_millis(20);
/// How often tasks that ended are looked at, and images counted.
const TICK: Duration = Duration::from_secs(1);
/// How long image tasks may take to end before they are dropped.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a cluster may take to forget a watch.
const UNWATCH_TIMEOUT: Duration = Duration::from_secs(1);

/// What a namespace's replayer is given.
#[derive(Clone)]
pub struct NamespaceContext {
    /// The pool.
    pub pool: PoolId,
    /// The namespace of the copies.
    pub local: IoCtx,
    /// The namespace of the primaries.
    pub remote: IoCtx,
    /// The local pool's mirror uuid.
    pub local_mirror_uuid: Arc<str>,
    /// The uuid under which the local pool's peer table knows the remote site.
    pub local_peer_uuid: Arc<str>,
    /// What the remote pool is to us.
    pub remote_pool: RemotePool,
    /// What all images of this connection share.
    pub shared: Arc<Shared>,
    /// How long a removed image stays in the trash.
    pub delete_delay: Duration,
    /// How far object maps are believed.
    pub object_map_trust: Trust,
    /// Options of journal mode.
    pub journal: Arc<JournalSettings>,
    /// How often everything is looked at again unasked.
    pub refresh_interval: Duration,
    /// The longest time that a task which ended by itself is left alone.
    pub retry_interval_max: Duration,
    /// Where the images report.
    pub reports: Reports,
    /// Where they are counted.
    pub service: ServiceDaemon,
}

/// Mirrors a namespace until cancelled, or until a connection is of no use any more.
pub async fn run(
    ctx: NamespaceContext,
    orders: watch::Receiver<Orders>,
    cancel: CancellationToken,
) -> Result<()> {
    let mut namespace = Namespace::new(ctx, orders);
    let outcome = tokio::select! {
        () = cancel.cancelled() => Ok(()),
        outcome = namespace.work() => outcome,
    };
    namespace.end().await;
    outcome
}

struct Namespace {
    ctx: NamespaceContext,
    orders: watch::Receiver<Orders>,
    local: Side,
    remote: Side,
    images: Images,
    publishers: JoinSet<Result<()>>,
    publishing: CancellationToken,
    /// What goes on beside the images; may be cut off anywhere.
    chores: JoinSet<Result<()>>,
}

impl Namespace {
    fn new(ctx: NamespaceContext, orders: watch::Receiver<Orders>) -> Self {
        Namespace {
            local: Side::new(&ctx.local),
            remote: Side::new(&ctx.remote),
            images: Images::new(ctx.clone()),
            publishers: JoinSet::new(),
            publishing: CancellationToken::new(),
            chores: JoinSet::new(),
            orders,
            ctx,
        }
    }

    async fn work(&mut self) -> Result<()> {
        instances::take_back(&self.ctx.local, self.ctx.local.backend().instance_id()).await?;
        self.chores.spawn(trash::purge(self.ctx.local.clone(), self.ctx.service.clone()));
        let uuid = self.ctx.remote_pool.mirror_uuid.clone();
        self.chores.spawn(reach::watch(self.ctx.remote.clone(), uuid, self.ctx.reports.clone()));
        let (renamed, mut renames) = mpsc::channel(1);
        self.chores.spawn(names::watch(self.ctx.local.clone(), self.ctx.remote.clone(), renamed));
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut refreshes = interval(self.ctx.refresh_interval.max(TICK));
        loop {
            let stale = self.local.is_stale() || self.remote.is_stale();
            tokio::select! {
                changed = self.local.changed() => self.images.announced(changed?),
                changed = self.remote.changed() => self.images.announced(changed?),
                Some(renamed) = renames.recv() => self.images.announced(Some(renamed)),
                () = sleep(GATHER), if stale => self.refresh().await?,
                Some(ended) = self.images.ended() => ended?,
                Ok(()) = self.orders.changed() => {
                    let orders = self.orders.borrow_and_update().clone();
                    self.images.obey(orders);
                }
                Some(ended) = self.publishers.join_next() => ended.unwrap_or(Ok(()))?,
                Some(ended) = self.chores.join_next() => ended.unwrap_or(Ok(()))?,
                _ = refreshes.tick() => {
                    self.local.mark_stale();
                    self.remote.mark_stale();
                }
                _ = ticks.tick() => self.count(),
            }
            self.images.reconcile(self.local.images(), self.remote.images());
        }
    }

    /// Reads the lists that are out of date, and begins what has not begun yet.
    async fn refresh(&mut self) -> Result<()> {
        if self.local.refresh().await? {
            self.publish(&self.ctx.local.clone(), "");
        }
        if self.remote.refresh().await? {
            self.publish(&self.ctx.remote.clone(), &self.ctx.local_mirror_uuid.clone());
        }
        if self.images.begin() {
            let orders = self.orders.borrow_and_update().clone();
            self.images.obey(orders);
        }
        Ok(())
    }

    fn publish(&mut self, ioctx: &IoCtx, mirror_uuid: &str) {
        let publisher = Publisher::new(ioctx, mirror_uuid, &self.ctx.reports);
        self.publishers.spawn(publisher.run(self.publishing.clone()));
    }

    fn count(&self) {
        let counts = self.ctx.reports.counts();
        let set = |key, count: usize| {
            self.ctx.service.attribute(self.ctx.pool, self.ctx.local.namespace(), key, count as u64);
        };
        set("image_local_count", self.local.images().len());
        set("image_remote_count", self.remote.images().len());
        set("image_assigned_count", counts.assigned);
        set("image_warning_count", counts.warning);
        set("image_error_count", counts.error);
    }

    /// Ends image tasks, then publication (with their last reports), then the watches that make statuses `up`.
    async fn end(mut self) {
        if timeout(END_TIMEOUT, self.images.end()).await.is_err() {
            tracing::warn!("some image tasks did not end within {END_TIMEOUT:?}; dropping them");
        }
        self.publishing.cancel();
        while let Some(ended) = self.publishers.join_next().await {
            if let Ok(Err(e)) = ended {
                tracing::debug!("the last image statuses could not be published: {e}");
            }
        }
        let both = async { tokio::join!(self.local.close(), self.remote.close()) };
        if timeout(UNWATCH_TIMEOUT, both).await.is_err() {
            tracing::debug!("a cluster did not forget our watch in time");
        }
    }
}
