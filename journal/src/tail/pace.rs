//! How often to look for the next entry: short pauses while entries come, long ones while none do.
//!
//! Entries are announced to nobody, so they are polled for. Behind an entry, too, there is a pause, of [`PollOptions::busy`]:
//! what gathers meanwhile costs less together than one by one. Pauses stay so for [`PollOptions::busy_for`]; after that
//! they grow by a quarter each time, up to [`PollOptions::idle_max`]. A tail that has not seen an entry yet looks once
//! more after a sixth of the longest pause, and then as seldom: with many idle images a daemon that was started would else
//! be at that for minutes. A [`PollBudget`] that many tails share bounds what all of them ask for together.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Pauses between polls.
#[derive(Debug, Clone)]
pub struct PollOptions {
    /// The pause while entries came recently.
    pub busy: Duration,
    /// So long after the last entry pauses stay short.
    pub busy_for: Duration,
    /// The longest pause of all.
    pub idle_max: Duration,
    /// What all tails of a daemon may ask for together.
    pub budget: Option<Arc<PollBudget>>,
}

impl Default for PollOptions {
    fn default() -> Self {
        PollOptions {
            busy: Duration::from_millis(25),
            busy_for: Duration::from_secs(60),
            idle_max: Duration::from_secs(30),
            budget: None,
        }
    }
}

/// Tails whose pauses are longer than this do not count as busy.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(1);
/// The pauses of a tail that never saw an entry grow by this factor: the first is this part of the longest one.
const UNUSED_GROWTH: u32 = 6;

/// Bounds the polls of many tails: each busy one waits for at least its share of the time.
#[derive(Debug)]
pub struct PollBudget {
    polls_per_second_max: u32,
    busy: AtomicUsize,
}

impl PollBudget {
    /// At most so many polls per second.
    pub fn new(polls_per_second_max: u32) -> Arc<PollBudget> {
        Arc::new(PollBudget { polls_per_second_max: polls_per_second_max.max(1), busy: AtomicUsize::new(0) })
    }

    /// The shortest pause of a busy tail.
    fn pause_min(&self) -> Duration {
        let busy = self.busy.load(Ordering::Relaxed) as f64;
        Duration::from_secs_f64(busy / f64::from(self.polls_per_second_max))
    }
}

/// The pace of one tail.
#[derive(Debug)]
pub(super) struct Pace {
    options: PollOptions,
    /// When the last entry came.
    arrived: Option<Instant>,
    /// The last pause.
    pause: Duration,
    /// Whether this tail is counted as busy in the budget.
    counted: bool,
    /// Of the longest pauses, so that the polls of many tails spread.
    jitter: f64,
}

impl Pace {
    pub(super) fn new(mut options: PollOptions) -> Pace {
        options.idle_max = options.idle_max.max(options.busy);
        let pause = options.idle_max / UNUSED_GROWTH.pow(2);
        // The standard library's only source of randomness.
        let random = RandomState::new().hash_one(0_u8) as f64 / u64::MAX as f64;
        Pace { options, arrived: None, pause, counted: false, jitter: 0.8 + 0.2 * random }
    }

    /// An entry came: how long to wait before the next poll.
    pub(super) fn arrived(&mut self, now: Instant) -> Duration {
        self.arrived = Some(now);
        self.pause(now)
    }

    /// A poll found nothing: how long to wait before the next one.
    pub(super) fn pause(&mut self, now: Instant) -> Duration {
        let busy = self.arrived.is_some_and(|at| now.duration_since(at) < self.options.busy_for);
        self.pause = match self.arrived {
            Some(_) if busy => self.options.busy,
            Some(_) => (self.pause * 5 / 4).min(self.options.idle_max),
            None => (self.pause * UNUSED_GROWTH).min(self.options.idle_max),
        };
        self.count(busy || self.pause <= BUSY_PAUSE_MAX);
        match &self.options.budget {
            _ if !busy => self.pause.mul_f64(self.jitter),
            Some(budget) => self.pause.max(budget.pause_min()),
            None => self.pause,
        }
    }

    fn count(&mut self, busy: bool) {
        let Some(budget) = &self.options.budget else { return };
        match (self.counted, busy) {
            (false, true) => budget.busy.fetch_add(1, Ordering::Relaxed),
            (true, false) => budget.busy.fetch_sub(1, Ordering::Relaxed),
            _ => return,
        };
        self.counted = busy;
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.count(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses of polls that find nothing from `start` on, until they are as long as can be.
    fn pauses(pace: &mut Pace, start: Instant) -> Vec<Duration> {
        let mut now = start;
        let mut pauses = Vec::new();
        loop {
            let pause = pace.pause(now);
            pauses.push(pause);
            now += pause;
            if pace.pause >= pace.options.idle_max {
                return pauses;
            }
        }
    }

    #[tokio::test]
    async fn pauses_are_short_while_entries_come_and_long_while_none_do() {
        let options = PollOptions::default();
        let mut pace = Pace::new(options.clone());
        let now = Instant::now();
        assert_eq!(pace.arrived(now), options.busy);
        let pauses = pauses(&mut pace, now);
        let (mut passed, mut polls_while_busy) = (Duration::ZERO, 0);
        for pause in &pauses {
            assert!(*pause <= options.idle_max);
            if passed < options.busy_for {
                assert_eq!(*pause, options.busy, "{pause:?} after {passed:?}");
                polls_while_busy += 1;
            }
            passed += *pause;
        }
        assert!(polls_while_busy > 2000, "{polls_while_busy}");
        assert!(pauses.is_sorted_by(|a, b| b.as_secs_f64() > a.as_secs_f64() * 0.79), "{pauses:?}");
        assert!(passed < Duration::from_secs(240), "idle after {passed:?}");
        assert_eq!(pace.arrived(now + passed), options.busy);
    }

    #[tokio::test]
    async fn a_tail_that_never_saw_an_entry_looks_soon_once_and_then_seldom() {
        let options = PollOptions::default();
        let mut pace = Pace::new(options.clone());
        let now = Instant::now();
        let [soon, seldom, later] = [(); 3].map(|()| pace.pause(now));
        assert!(soon <= options.idle_max / 6 && soon >= options.idle_max / 8, "{soon:?}");
        assert!(seldom <= options.idle_max && seldom >= options.idle_max * 3 / 4, "{seldom:?}");
        assert!(later.abs_diff(seldom) < Duration::from_millis(1), "{later:?} after {seldom:?}");
    }

    #[tokio::test]
    async fn no_option_makes_a_tail_look_without_a_pause() {
        let options = PollOptions {
            idle_max: Duration::ZERO,
            budget: Some(PollBudget::new(100)),
            ..PollOptions::default()
        };
        let mut pace = Pace::new(options.clone());
        let now = Instant::now();
        pace.pause(now);
        assert!(pace.pause(now) >= options.busy * 3 / 4);
        assert!(pace.arrived(now) >= options.busy);
    }

    #[tokio::test]
    async fn many_busy_tails_share_a_budget() {
        let budget = PollBudget::new(100);
        let options = PollOptions { budget: Some(budget.clone()), ..PollOptions::default() };
        let now = Instant::now();
        let mut paces: Vec<Pace> = (0..50).map(|_| Pace::new(options.clone())).collect();
        for pace in &mut paces {
            pace.arrived(now);
        }
        assert_eq!(paces[0].arrived(now), Duration::from_millis(500));
        assert_eq!(paces[1].pause(now), Duration::from_millis(500));
        paces.truncate(1);
        assert_eq!(budget.busy.load(Ordering::Relaxed), 1);
        assert_eq!(paces[0].pause(now), options.busy);
        paces.clear();
        assert_eq!(budget.busy.load(Ordering::Relaxed), 0);
    }
}
