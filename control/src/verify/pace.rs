//! How fast a verification may go: objects and bytes per second, and objects at a time, over all of its images.
//!
//! Each object reserves the time that its share of the rate takes, at the end of what others have reserved, and waits for
//! that moment. So the rate holds over any number of objects in flight, and bursts are no larger than that number.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// Objects at a time, unless something else is said.
const PARALLEL_DEFAULT: usize = 32;

/// The pace that all images of a verification share.
#[derive(Debug)]
pub struct Pace {
    slots: Semaphore,
    objects_per_second: Option<f64>,
    bytes_per_second: Option<f64>,
    reserved_until: Mutex<Option<Instant>>,
}

/// The turn of one object. It ends when this is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    _slot: Option<SemaphorePermit<'a>>,
}

impl Default for Pace {
    fn default() -> Self {
        Pace::new(PARALLEL_DEFAULT, None, None)
    }
}

impl Pace {
    /// At most so many objects at a time, and so many objects and bytes per second; no bound where there is no number.
    pub fn new(parallel: usize, objects_per_second: Option<u64>, bytes_per_second: Option<u64>) -> Pace {
        let rate = |number: Option<u64>| number.map(|number| number.max(1) as f64);
        Pace {
            slots: Semaphore::new(parallel.clamp(1, Semaphore::MAX_PERMITS)),
            objects_per_second: rate(objects_per_second),
            bytes_per_second: rate(bytes_per_second),
            reserved_until: Mutex::default(),
        }
    }

    /// Waits for the turn of an object of so many bytes. Cancel-safe; the time that was reserved passes unused then.
    pub async fn turn(&self, bytes: u64) -> Turn<'_> {
        // The semaphore is never closed.
        let slot = self.slots.acquire().await.ok();
        if let Some(begin) = self.reserve(Instant::now(), 1, bytes) {
            tokio::time::sleep_until(begin).await;
        }
        Turn { _slot: slot }
    }

    /// When their turn is; `None` when there is no bound.
    fn reserve(&self, now: Instant, objects: u64, bytes: u64) -> Option<Instant> {
        let seconds = |amount: u64, rate: Option<f64>| rate.map_or(0.0, |rate| amount as f64 / rate);
        let share = seconds(objects, self.objects_per_second).max(seconds(bytes, self.bytes_per_second));
        let share = Duration::try_from_secs_f64(share).ok().filter(|share| !share.is_zero())?;
        let mut reserved = self.reserved_until.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = reserved.map_or(now, |until| until.max(now));
        *reserved = Some(begin + share);
        Some(begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_of_two_rates_holds() {
        let pace = Pace::new(1, Some(100), Some(1000));
        let began = Instant::now();
        let turns: Vec<_> =
            (0..3).filter_map(|_| pace.reserve(began, 1, 100)).map(|turn| turn - began).collect();
        assert_eq!(turns, [0, 100, 200].map(Duration::from_millis), "100 bytes of 1000 a second are slower");
        let later = began + Duration::from_secs(10);
        assert_eq!(pace.reserve(later, 1, 0), Some(later), "time that nobody used is not saved up");
        assert_eq!(pace.reserve(later, 1, 0), Some(later + Duration::from_millis(10)));
        assert_eq!(Pace::default().reserve(began, 1 << 40, 1 << 60), None);
    }
}
