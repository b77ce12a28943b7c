//! What a replaying image says of itself, in the words that Ceph's tools and their users parse.
//!
//! The description of a replaying image is `replaying, ` and a JSON object with its keys in alphabetical order:
//!
//! | key | type | meaning |
//! |---|---|---|
//! | `replay_state` | string | `idle` or `syncing` |
//! | `remote_snapshot_timestamp` | seconds | when the newest complete snapshot of the primary was made |
//! | `local_snapshot_timestamp` | seconds | when the one that the copy holds was made, on the primary |
//! | `syncing_snapshot_timestamp` | seconds | when the one being copied was made; only while syncing |
//! | `syncing_percent` | integer | share of its objects that has been copied; only while syncing |
//! | `bytes_per_second` | number | copied, mean of the last half minute |
//! | `bytes_per_snapshot` | number | copied, mean of the last rounds |
//! | `last_snapshot_bytes` | integer | copied in the last round |
//! | `last_snapshot_sync_seconds` | integer | how long the last round took |
//! | `seconds_until_synced` | integer | at the present rate, from what is really left; only while syncing |
//!
//! Reference: `get_replay_status` in `src/tools/rbd_mirror/image_replayer/snapshot/Replayer.cc`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

/// Span over which a rate is taken.
const RATE_WINDOW: Duration = Duration::from_secs(30);
/// Rounds over which the mean size of a round is taken, as many as Ceph takes.
const ROUNDS_MAX: usize = 25;

/// A replaying image's progress.
#[derive(Debug, Default)]
pub struct Progress {
    /// Seconds since the epoch of the newest complete remote mirror-snapshot.
    pub remote_timestamp: Option<u32>,
    /// Seconds since the epoch of the remote mirror-snapshot that the copy holds.
    pub local_timestamp: Option<u32>,
    /// The round under way.
    pub round: Option<RoundProgress>,
    rate: Rate,
    rounds: VecDeque<u64>,
    last_round: Duration,
}

/// A round under way.
#[derive(Debug, Clone, Copy)]
pub struct RoundProgress {
    /// Seconds since the epoch of the remote mirror-snapshot being copied.
    pub timestamp: u32,
    /// Objects done.
    pub objects_done: u64,
    /// Objects to do.
    pub objects_total: u64,
    /// Bytes copied so far.
    pub bytes_done: u64,
    /// When it began.
    pub began: Instant,
}

impl RoundProgress {
    fn percent(&self) -> u64 {
        (100 * self.objects_done).checked_div(self.objects_total).unwrap_or(0).min(100)
    }

    /// Bytes left, as the objects left times the mean of those done.
    fn bytes_left(&self) -> f64 {
        let left = self.objects_total.saturating_sub(self.objects_done) as f64;
        if self.objects_done == 0 { 0.0 } else { left * self.bytes_done as f64 / self.objects_done as f64 }
    }
}

impl Progress {
    /// A round begins; what earlier ones moved says nothing about its rate.
    pub fn begin(&mut self, timestamp: u32, now: Instant) {
        self.rate = Rate::default();
        self.round =
            Some(RoundProgress { timestamp, objects_done: 0, objects_total: 0, bytes_done: 0, began: now });
    }

    /// A round made progress.
    pub fn advance(&mut self, objects_done: u64, objects_total: u64, bytes_done: u64, now: Instant) {
        if let Some(round) = &mut self.round {
            self.rate.add(bytes_done.saturating_sub(round.bytes_done), now);
            *round = RoundProgress { objects_done, objects_total, bytes_done, ..*round };
        }
    }

    /// The round under way is complete.
    pub fn complete(&mut self, now: Instant) {
        if let Some(round) = self.round.take() {
            self.last_round = now - round.began;
            self.local_timestamp = Some(round.timestamp);
            if self.rounds.len() == ROUNDS_MAX {
                self.rounds.pop_front();
            }
            self.rounds.push_back(round.bytes_done);
        }
    }

    /// The description as Ceph writes it.
    pub fn describe(&mut self, now: Instant) -> String {
        let mut fields = Map::new();
        let mut set = |key: &str, value: Value| fields.insert(key.into(), value);
        set("replay_state", if self.round.is_some() { "syncing" } else { "idle" }.into());
        if let Some(timestamp) = self.remote_timestamp {
            set("remote_snapshot_timestamp", timestamp.into());
        }
        if let Some(timestamp) = self.local_timestamp {
            set("local_snapshot_timestamp", timestamp.into());
        }
        let rate = self.rate.per_second(now);
        if let Some(round) = &self.round {
            set("syncing_snapshot_timestamp", round.timestamp.into());
            set("syncing_percent", round.percent().into());
            if rate > 0.0 {
                set("seconds_until_synced", ((round.bytes_left() / rate) as u64).into());
            }
        }
        let mean = match self.rounds.len() {
            0 => 0.0,
            n => self.rounds.iter().sum::<u64>() as f64 / n as f64,
        };
        set("bytes_per_second", json!(two_places(rate)));
        set("bytes_per_snapshot", json!(two_places(mean)));
        set("last_snapshot_bytes", self.rounds.back().copied().unwrap_or(0).into());
        set("last_snapshot_sync_seconds", self.last_round.as_secs().into());
        format!("replaying, {}", Value::Object(fields))
    }
}

pub(super) fn two_places(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// A rate over the last [`RATE_WINDOW`].
#[derive(Debug, Default)]
pub(super) struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Rate {
    pub(super) fn add(&mut self, amount: u64, now: Instant) {
        if amount > 0 {
            self.samples.push_back((now, amount));
        }
        self.forget(now);
    }

    fn forget(&mut self, now: Instant) {
        while self.samples.front().is_some_and(|(at, _)| now - *at > RATE_WINDOW) {
            self.samples.pop_front();
        }
    }

    pub(super) fn per_second(&mut self, now: Instant) -> f64 {
        self.forget(now);
        let Some((first, _)) = self.samples.front() else {
            return 0.0;
        };
        let total: u64 = self.samples.iter().map(|(_, amount)| amount).sum();
        total as f64 / (now - *first).as_secs_f64().max(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaying_image_is_described_in_cephs_words() {
        let start = Instant::now();
        let mut progress =
            Progress { remote_timestamp: Some(1600), local_timestamp: Some(1500), ..Progress::default() };
        assert_eq!(
            progress.describe(start),
            "replaying, {\"bytes_per_second\":0.0,\"bytes_per_snapshot\":0.0,\"last_snapshot_bytes\":0,\
             \"last_snapshot_sync_seconds\":0,\"local_snapshot_timestamp\":1500,\
             \"remote_snapshot_timestamp\":1600,\"replay_state\":\"idle\"}"
        );

        progress.begin(1600, start);
        progress.advance(1, 4, 1000, start);
        let half = start + Duration::from_secs(2);
        progress.advance(2, 4, 4000, half);
        let text = progress.describe(half);
        let fields: Value = serde_json::from_str(text.strip_prefix("replaying, ").unwrap()).unwrap();
        assert_eq!(fields["replay_state"], "syncing");
        assert_eq!(fields["syncing_percent"], 50);
        assert_eq!(fields["bytes_per_second"], 2000.0);
        assert_eq!(fields["seconds_until_synced"], 2, "two objects of 2000 bytes at 2000 bytes/s");

        progress.complete(start + Duration::from_secs(5));
        let text = progress.describe(start + Duration::from_secs(60));
        let fields: Value = serde_json::from_str(text.strip_prefix("replaying, ").unwrap()).unwrap();
        assert_eq!(
            (&fields["last_snapshot_bytes"], &fields["last_snapshot_sync_seconds"]),
            (&json!(4000), &json!(5))
        );
        assert_eq!(
            (&fields["local_snapshot_timestamp"], &fields["bytes_per_second"]),
            (&json!(1600), &json!(0.0))
        );
    }
}
