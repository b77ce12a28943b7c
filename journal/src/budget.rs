//! A bound on the bytes that the replays of many images hold in memory together. Each that holds any may have an equal
//! part of it, so that one whose writes hang keeps nobody else from going on, and nobody waits in a queue.
//!
//! Parts shrink when another one begins to hold something. Whoever has more by then keeps it until it is done with, but
//! takes no more; so the bound is exceeded for a while, and by one piece each, since everybody may hold one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The bound.
#[derive(Debug)]
pub struct Budget {
    bytes: u64,
    /// Parts of which something is held.
    holders: AtomicUsize,
}

/// One holder's part of a [`Budget`].
#[derive(Debug)]
pub struct Part {
    budget: Arc<Budget>,
    held: AtomicU64,
    freed: Notify,
}

/// Bytes that are held; given back when dropped.
#[derive(Debug)]
pub struct Piece {
    part: Arc<Part>,
    bytes: u64,
}

impl Budget {
    /// A bound of so many bytes.
    pub fn new(bytes: u64) -> Arc<Budget> {
        Arc::new(Budget { bytes, holders: AtomicUsize::new(0) })
    }

    /// A part, of which nothing is held yet.
    pub fn part(self: &Arc<Self>) -> Arc<Part> {
        Arc::new(Part { budget: self.clone(), held: AtomicU64::new(0), freed: Notify::new() })
    }
}

impl Part {
    /// What may be held of it now, in bytes.
    pub fn bytes_max(&self) -> u64 {
        let others = self.budget.holders.load(Ordering::Relaxed);
        let holders = others + usize::from(self.held.load(Ordering::Relaxed) == 0);
        self.budget.bytes / holders.max(1) as u64
    }

    /// Waits until so much more may be held: until it is within the part, or nothing else is held. For one caller at a
    /// time. Cancel-safe.
    pub async fn acquire(self: &Arc<Self>, bytes: u64) -> Piece {
        loop {
            let held = self.held.load(Ordering::Acquire);
            if bytes == 0 || held == 0 || held + bytes <= self.bytes_max() {
                return self.hold(bytes);
            }
            // Whoever gives something back before this leaves a permit behind.
            self.freed.notified().await;
        }
    }

    /// Holds so much, whatever the part is.
    pub fn hold(self: &Arc<Self>, bytes: u64) -> Piece {
        if bytes > 0 && self.held.fetch_add(bytes, Ordering::AcqRel) == 0 {
            self.budget.holders.fetch_add(1, Ordering::Relaxed);
        }
        Piece { part: self.clone(), bytes }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        if self.part.held.fetch_sub(self.bytes, Ordering::AcqRel) == self.bytes {
            self.part.budget.holders.fetch_sub(1, Ordering::Relaxed);
        }
        self.part.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn whoever_holds_on_to_his_part_holds_up_nobody_else() {
        let budget = Budget::new(100);
        let (one, other) = (budget.part(), budget.part());
        let all = one.acquire(100).await;
        assert!(one.acquire(1).now_or_never().is_none());
        let mut pieces = vec![other.acquire(20).await];
        pieces.push(other.acquire(30).await);
        assert!(other.acquire(1).now_or_never().is_none(), "half is all that is its own");
        drop(all);
        assert_eq!(other.bytes_max(), 100);
        pieces.push(other.acquire(50).await);
        assert!(other.acquire(1).now_or_never().is_none());
        assert!(other.acquire(0).now_or_never().is_some());
        assert!(one.acquire(1000).now_or_never().is_some(), "one piece may always be held");
        drop(pieces);
        assert_eq!(budget.holders.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn what_is_given_back_while_nobody_looks_is_seen() {
        let budget = Budget::new(10);
        let part = budget.part();
        let held = part.acquire(10).await;
        let mut waiting = std::pin::pin!(part.acquire(5));
        assert!((&mut waiting).now_or_never().is_none());
        let cut_off = part.acquire(7).now_or_never();
        assert!(cut_off.is_none());
        drop(held);
        let held = waiting.await;
        drop(held);
        part.acquire(10).await;
    }
}
