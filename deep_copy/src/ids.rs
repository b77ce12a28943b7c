//! Snapshot ids allocated ahead.
//!
//! A self-managed snapshot id costs a round of the monitors, about a second with the default
//! `paxos_propose_interval`. Ids belong to a pool, not to an image, and need only grow within an image; a non-primary
//! image has no other snapshot creator than its mirror daemon. So a reserve per pool serves all copies in it at once.
//! An id that is never used costs the cluster nothing.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::{Arc, Mutex};

use futures::future::try_join_all;
use rados::{IoCtx, Result, SnapId};
use tokio::sync::watch;

/// Most ids that one call asks the monitors for; they answer all of them in one round.
const BATCH_MAX: usize = 64;

/// The reserve of one data pool. Cheap to clone.
#[derive(Clone)]
pub struct SnapIds {
    inner: Arc<Inner>,
}

struct Inner {
    pool: IoCtx,
    reserve: Mutex<Reserve>,
    /// Counts refills.
    filled: watch::Sender<u64>,
}

#[derive(Default)]
struct Reserve {
    ids: BTreeSet<SnapId>,
    /// Ids to hold: twice what the last refill was short of, so that a busy pool never waits.
    target: usize,
    refilling: bool,
}

impl SnapIds {
    /// A reserve for the data pool `pool`, filled in the background to `target` ids.
    pub fn new(pool: IoCtx, target: usize) -> Self {
        let reserve = Mutex::new(Reserve { target: target.clamp(1, BATCH_MAX), ..Reserve::default() });
        let filled = watch::Sender::new(0);
        let ids = SnapIds { inner: Arc::new(Inner { pool, reserve, filled }) };
        ids.refill();
        ids
    }

    /// Takes `count` ids, each greater than `newest` and than the one before. Waits for the monitors only when the
    /// reserve has too few. Cancel-safe: ids taken by a dropped call are lost, which costs nothing.
    pub async fn take(&self, newest: SnapId, count: usize) -> Result<Vec<SnapId>> {
        let mut filled = self.inner.filled.subscribe();
        let mut taken = self.take_reserved(newest, count);
        self.refill();
        while taken.len() < count {
            let missing = (count - taken.len()).min(BATCH_MAX);
            let fresh = try_join_all((0..missing).map(|_| self.inner.pool.snap_create()));
            tokio::pin!(fresh);
            loop {
                tokio::select! {
                    biased;
                    fresh = &mut fresh => {
                        // The monitors answer in any order; an id is only of use behind those taken before it.
                        let mut fresh = fresh?;
                        fresh.sort_unstable();
                        let last = taken.last().copied().unwrap_or(newest);
                        taken.extend(fresh.into_iter().filter(|id| *id > last).take(count - taken.len()));
                        break;
                    }
                    // A refill that was under way may be a round of the monitors ahead of the request just made.
                    Ok(()) = filled.changed() => {
                        let last = taken.last().copied().unwrap_or(newest);
                        taken.extend(self.take_reserved(last, count - taken.len()));
                        if taken.len() == count {
                            break;
                        }
                    }
                }
            }
        }
        Ok(taken)
    }

    fn take_reserved(&self, newest: SnapId, count: usize) -> Vec<SnapId> {
        let mut reserve = self.inner.reserve.lock().expect("no code panics while it holds this lock");
        let taken: Vec<_> =
            reserve.ids.range((Bound::Excluded(newest), Bound::Unbounded)).take(count).copied().collect();
        for id in &taken {
            reserve.ids.remove(id);
        }
        if taken.len() < count {
            // What is left is older than this image's newest snapshot, and soon of use to no image.
            reserve.ids.clear();
            reserve.target = (reserve.target * 2).min(BATCH_MAX);
        }
        taken
    }

    /// Fills the reserve in the background, one round at a time.
    fn refill(&self) {
        let missing = {
            let mut reserve = self.inner.reserve.lock().expect("no code panics while it holds this lock");
            let missing = reserve.target.saturating_sub(reserve.ids.len());
            if reserve.refilling || missing == 0 {
                return;
            }
            reserve.refilling = true;
            missing
        };
        let inner = Arc::downgrade(&self.inner);
        let pool = self.inner.pool.clone();
        tokio::spawn(async move {
            let fresh = try_join_all((0..missing).map(|_| pool.snap_create())).await;
            let Some(inner) = inner.upgrade() else { return };
            {
                let mut reserve = inner.reserve.lock().expect("no code panics while it holds this lock");
                reserve.refilling = false;
                match fresh {
                    Ok(fresh) => reserve.ids.extend(fresh),
                    // Whoever needs one next asks for it and hears of the failure.
                    Err(error) => tracing::debug!("cannot allocate snapshot ids ahead: {error}"),
                }
            }
            inner.filled.send_modify(|refills| *refills += 1);
        });
    }
}
