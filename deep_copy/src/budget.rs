//! A bound on the bytes that copies hold in memory, shared by all images of a pool.
//!
//! Each image has a part of it, which may hold as much as is then left for others. So one image alone gets half of the bound,
//! two that copy at the same time get a third each; and one whose writes hang leaves room for the others, as do a few.
//!
//! A read that hangs holds no memory: what the cluster does not answer for a while is lent out again ([`Share::while_reading`]),
//! and counts only against the image's own part. When the answers come after all, the bound is exceeded until they are
//! written, by no more than itself for each image whose reads hung.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

/// The bytes of a read that is not answered for so long are lent out again.
const STALLED_AFTER: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(5) };

/// A shared bound. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub struct Budget {
    bytes: u64,
    state: Arc<Mutex<State>>,
}

/// One image's part of a [`Budget`]. Clones are the same part.
#[derive(Debug, Clone)]
pub struct Part {
    budget: Budget,
    /// What its shares are of, lent out or not. Read and written under the lock of the budget.
    held: Arc<Mutex<u64>>,
}

/// Bytes that a part holds; given back when dropped.
#[derive(Debug)]
pub struct Share {
    part: Part,
    bytes: u64,
    lent: bool,
}

#[derive(Debug, Default)]
struct State {
    /// By all parts, without what is lent out.
    held: u64,
    /// In the order in which they came. None of them may have what it waits for.
    waiters: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    part: Part,
    bytes: u64,
    grant: oneshot::Sender<Share>,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: u64) -> Budget {
        Budget { bytes: bytes.max(1), state: Arc::default() }
    }

    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A part, of which nothing is held yet.
    pub fn part(&self) -> Part {
        Part { budget: self.clone(), held: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves those who wait and may have what they wait for.
    fn serve(&self) {
        // Shares that nobody waits for any more are dropped without the lock, which serves once more.
        let mut unwanted = Vec::new();
        let mut state = self.lock();
        let mut index = 0;
        while let Some(waiter) = state.waiters.get(index) {
            if waiter.grant.is_closed() {
                state.waiters.remove(index);
            } else if waiter.part.may_take(&state, waiter.bytes) {
                if let Some(Waiter { part, bytes, grant }) = state.waiters.remove(index) {
                    unwanted.extend(grant.send(part.take(&mut state, bytes)).err());
                }
            } else {
                index += 1;
            }
        }
        drop(state);
    }
}

impl Part {
    /// Waits for a share of `bytes`, or of the whole budget when that is less. Cancel-safe, but gives up its place.
    pub async fn acquire(&self, bytes: u64) -> Share {
        let bytes = bytes.min(self.budget.bytes);
        let granted = {
            let mut state = self.budget.lock();
            if self.may_take(&state, bytes) {
                return self.take(&mut state, bytes);
            }
            let (grant, granted) = oneshot::channel();
            state.waiters.push_back(Waiter { part: self.clone(), bytes, grant });
            granted
        };
        match granted.await {
            Ok(share) => share,
            Err(_) => unreachable!("whoever waits is served or not forgotten"),
        }
    }

    fn held(&self) -> MutexGuard<'_, u64> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may_take(&self, state: &State, bytes: u64) -> bool {
        let held = *self.held();
        let rest = self.budget.bytes.checked_sub(state.held + bytes);
        rest.is_some_and(|rest| held == 0 || held + bytes <= rest)
    }

    fn take(&self, state: &mut State, bytes: u64) -> Share {
        state.held += bytes;
        *self.held() += bytes;
        Share { part: self.clone(), bytes, lent: false }
    }
}

impl Share {
    /// Awaits the answers to reads for which the bytes are held. They are lent out while no answer comes for long.
    pub async fn while_reading<T>(&mut self, reading: impl Future<Output = T>) -> T {
        tokio::pin!(reading);
        tokio::select! {
            biased;
            answer = &mut reading => return answer,
            () = tokio::time::sleep(STALLED_AFTER) => {}
        }
        self.part.budget.lock().held -= self.bytes;
        self.lent = true;
        self.part.budget.serve();
        let answer = reading.await;
        self.part.budget.lock().held += self.bytes;
        self.lent = false;
        answer
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        {
            let mut state = self.part.budget.lock();
            *self.part.held() -= self.bytes;
            if !self.lent {
                state.held -= self.bytes;
            }
        }
        self.part.budget.serve();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn more_than_there_is_waits_and_more_than_ever_was_is_cut() {
        let budget = Budget::new(64);
        let (one, other) = (budget.part(), budget.part());
        let first = one.acquire(60).await;
        assert!(other.acquire(8).now_or_never().is_none());
        drop(first);
        let all = one.acquire(1 << 30).await;
        assert!(other.acquire(1).now_or_never().is_none());
        drop(all);
        assert!(other.acquire(64).now_or_never().is_some());
    }

    #[tokio::test]
    async fn one_that_holds_on_to_what_it_has_leaves_room_for_others() {
        let budget = Budget::new(64);
        let parts: Vec<Part> = (0..4).map(|_| budget.part()).collect();
        let mut held = Vec::new();
        for part in &parts {
            let before = held.len();
            while let Some(share) = part.acquire(4).now_or_never() {
                held.push(share);
            }
            assert!(held.len() > before, "it has nothing");
        }
        assert!(budget.part().acquire(4).now_or_never().is_some());
    }

    #[tokio::test]
    async fn whoever_waits_is_served_in_turn_and_past_those_who_have_their_part() {
        let budget = Budget::new(64);
        let (greedy, modest) = (budget.part(), budget.part());
        let mut held: Vec<Share> = std::iter::from_fn(|| greedy.acquire(4).now_or_never()).collect();
        let mut more = std::pin::pin!(greedy.acquire(4));
        assert!((&mut more).now_or_never().is_none());
        let mut theirs: Vec<Share> = std::iter::from_fn(|| modest.acquire(4).now_or_never()).collect();
        assert!(!theirs.is_empty());
        let mut first = Box::pin(modest.acquire(4));
        let given_up = modest.acquire(4).now_or_never();
        assert!(given_up.is_none() && (&mut first).now_or_never().is_none());
        drop(theirs.pop());
        assert!((&mut first).now_or_never().is_some());
        held.clear();
        assert!(more.now_or_never().is_some());
        theirs.clear();
        assert_eq!(budget.lock().held, 0);
    }

    #[tokio::test]
    async fn a_read_that_hangs_lends_its_bytes_to_others() {
        let budget = Budget::new(8);
        let (hung, other) = (budget.part(), budget.part());
        let mut share = hung.acquire(8).await;
        let (answer, answered) = oneshot::channel::<()>();
        let mut reading = Box::pin(share.while_reading(answered));
        let all = tokio::select! {
            _ = &mut reading => unreachable!("nobody answered"),
            all = other.acquire(8) => all,
        };
        assert!(hung.acquire(8).now_or_never().is_none(), "its part is in use");
        answer.send(()).expect("it is waited for");
        (&mut reading).await.expect("an answer");
        drop(reading);
        assert_eq!(budget.lock().held, 16, "what came is in memory");
        drop((share, all));
        assert_eq!((budget.lock().held, *hung.held()), (0, 0));
    }
}
