//! A daemon's turn: it is started, does work, and is ended before the other one's turn.
//!
//! A turn begins with a round that nobody times: a write and a mirror-snapshot of the sentinel image. When its copy has
//! arrived, the daemon works. Ours and Ceph's take over each other's copies.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use rados::SnapId;
use tests::{DaemonKind, MirrorDaemon, MirrorDaemonOptions};

use crate::arrival;
use crate::figures::{Measure, Results, Target, Who};
use crate::ground::{Ground, spec};
use crate::work::{self, Written};

/// How long a daemon may take to copy something small. Ceph's, after a leader that was killed, needs half a minute.
pub const SMALL_LIMIT: Duration = Duration::from_secs(180);
/// How long a daemon may take to copy something large.
pub const LARGE_LIMIT: Duration = Duration::from_secs(300);
/// How long a daemon may take to end.
const END_LIMIT: Duration = Duration::from_secs(60);

/// The most memory that each of the daemons has had resident, in bytes.
#[derive(Debug, Clone, Default)]
pub struct Peaks {
    ours: u64,
    ceph: u64,
}

impl Peaks {
    fn note(&mut self, who: Who, bytes: u64) {
        let peak = match who {
            Who::Ours => &mut self.ours,
            Who::Ceph => &mut self.ceph,
        };
        *peak = bytes.max(*peak);
    }

    /// Adds them to the figures.
    pub fn record(&self, results: &mut Results) {
        const MEASURE: Measure =
            Measure { name: "peak memory over all of this", unit: "MiB", target: Target::RatioAtMost(0.5) };
        for (who, bytes) in [(Who::Ours, self.ours), (Who::Ceph, self.ceph)] {
            if bytes > 0 {
                results.add(MEASURE, who, bytes as f64 / f64::from(1 << 20));
            }
        }
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Turn<'a> {
    ground: &'a Ground,
    who: Who,
    daemon: MirrorDaemon,
    /// When its process was started.
    pub started: Instant,
}

impl<'a> Turn<'a> {
    /// Starts a daemon's process, and waits for nothing.
    pub async fn launch(ground: &'a Ground, who: Who) -> Result<Self> {
        let kind = match who {
            Who::Ours => DaemonKind::Ours(ground.program.clone()),
            Who::Ceph => DaemonKind::Ceph,
        };
        let log = ground.b().folder().join(format!("log/{}.log", format!("{who:?}").to_lowercase()));
        let options = MirrorDaemonOptions { log: Some(log), ..MirrorDaemonOptions::default() };
        let daemon = MirrorDaemon::spawn(&kind, ground.b(), &options).await?;
        Ok(Turn { ground, who, daemon, started: Instant::now() })
    }

    /// Starts a daemon, and waits until it works.
    pub async fn begin(ground: &'a Ground, who: Who) -> Result<Self> {
        let turn = Self::launch(ground, who).await?;
        let sentinel = work::sentinel(ground).await?;
        turn.explain(one_round(ground, sentinel).await).context("waiting until the daemon works")?;
        Ok(turn)
    }

    /// What the daemon works on.
    pub fn ground(&self) -> &'a Ground {
        self.ground
    }

    /// Whose turn it is.
    pub fn who(&self) -> Who {
        self.who
    }

    /// CPU time that the daemon has used so far, in seconds.
    pub fn cpu_s(&self) -> Result<f64> {
        Ok(self.daemon.usage().context("the daemon has ended by itself")?.cpu_s)
    }

    /// The most memory that the daemon has had resident so far, in bytes.
    pub fn peak_bytes(&self) -> Result<u64> {
        Ok(self.daemon.usage().context("the daemon has ended by itself")?.rss_peak_bytes)
    }

    /// Adds the end of the daemon's log to an error.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| format!("with {} daemon; {}", self.who, self.daemon.log_tail(15)))
    }

    /// Ends the daemon in order.
    pub async fn end(mut self) -> Result<()> {
        self.note_peak();
        let status = self.daemon.stop(END_LIMIT).await?;
        // Ceph's ends with 1 now and then, also when it ends in order.
        let in_order = status.success() || (self.who == Who::Ceph && status.code().is_some());
        ensure!(in_order, "{} daemon ended with {status}; {}", self.who, self.daemon.log_tail(15));
        Ok(())
    }

    /// Kills the daemon, and waits until its process is gone.
    pub async fn kill(mut self) -> Result<()> {
        self.note_peak();
        self.daemon.kill(Signal::SIGKILL);
        self.daemon.wait(END_LIMIT).await.map(drop)
    }

    fn note_peak(&self) {
        if let (Some(usage), Ok(mut peaks)) = (self.daemon.usage(), self.ground.peaks.lock()) {
            peaks.note(self.who, usage.rss_peak_bytes);
        }
    }
}

/// What a round of one image took.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// When the command was given.
    pub asked: Instant,
    /// When the primary's mirror-snapshot was complete.
    pub taken: Instant,
    /// When the copy had arrived.
    pub arrived: Instant,
    /// The primary's mirror-snapshot.
    pub snap: SnapId,
}

impl Round {
    /// From the primary's mirror-snapshot to the copy, in seconds.
    pub fn copy_s(&self) -> f64 {
        self.arrived.saturating_duration_since(self.taken).as_secs_f64()
    }

    /// From the command to the copy, in seconds.
    pub fn whole_s(&self) -> f64 {
        self.arrived.saturating_duration_since(self.asked).as_secs_f64()
    }
}

/// Takes a mirror-snapshot of an image into which `written` was written, and waits for the copy; then compares it.
pub async fn one_round(ground: &Ground, written: Written) -> Result<Round> {
    let image = spec(&written.image);
    let known = arrival::newest_primary(ground, &written.image).await?;
    let asked = Instant::now();
    let watched = async {
        let (taken, snap) = arrival::primary_snapshot(ground, &written.image, known, SMALL_LIMIT).await?;
        let arrived = arrival::copied(ground, &written.image, snap, &written.probes, LARGE_LIMIT).await?;
        Ok(Round { asked, taken, arrived, snap })
    };
    let command = ground.a().mirror_snapshot(&image);
    let (round, _) = futures::try_join!(watched, command)?;
    arrival::verify(ground, &written.image, round.snap).await?;
    Ok(round)
}
