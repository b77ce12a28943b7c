//! A bound on the bytes that copies hold in memory, shared by all images of a daemon.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes are counted in units of this size.
const UNIT_BYTES: u64 = 4096;

/// A shared bound. Cheap to clone; clones share it. Whoever waits is served in order.
#[derive(Debug, Clone)]
pub struct Budget {
    units: Arc<Semaphore>,
    total: u32,
}

/// A part of a budget; given back when dropped.
#[derive(Debug)]
pub struct Share {
    _permit: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// A budget of so many bytes (at least one unit of 4 KiB).
    pub fn new(bytes: u64) -> Budget {
        let total = u32::try_from(bytes / UNIT_BYTES).unwrap_or(u32::MAX >> 4).clamp(1, u32::MAX >> 4);
        Budget { units: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.total) * UNIT_BYTES
    }

    /// Waits for a share of `bytes`, or of the whole budget when that is less. Cancel-safe, but gives up its place.
    pub async fn acquire(&self, bytes: u64) -> Share {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.total);
        // The semaphore is never closed.
        Share { _permit: self.units.clone().acquire_many_owned(units).await.ok() }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn more_than_there_is_waits_and_more_than_ever_was_is_cut() {
        let budget = Budget::new(64 << 10);
        let first = budget.acquire(60 << 10).await;
        assert!(budget.acquire(8 << 10).now_or_never().is_none());
        drop(first);
        let all = budget.acquire(1 << 30).await;
        assert!(budget.acquire(1).now_or_never().is_none());
        drop(all);
        assert!(budget.acquire(64 << 10).now_or_never().is_some());
    }
}
