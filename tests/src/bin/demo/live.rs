//! Copies on their way: what the daemon reports of each image, drawn while it changes, until every copy is whole.
//!
//! The daemon is asked through its admin socket, where it shows the very texts that it writes into images' statuses,
//! but without the second that passes between two writes. Whether a copy is whole is not its word: that is read from
//! the snapshots of the copy, with the stock `rbd`.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::{Cluster, MirrorDaemon};

use crate::images::IMAGES;
use crate::screen::{Drawing, draws_in_place, say, table};

/// How often the daemon is asked.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often lines are written where nothing can be drawn in place.
const LINE_INTERVAL: Duration = Duration::from_secs(1);
/// How long all copies together may take.
const LIMIT: Duration = Duration::from_secs(600);
/// The room for a bar of progress, in characters.
const BAR_CHARS: usize = 24;

/// What is to arrive: for each image a mirror-snapshot of the primary.
#[derive(Debug, Default)]
pub struct Goals(Mutex<BTreeMap<&'static str, Goal>>);

#[derive(Debug, Clone, Copy)]
struct Goal {
    since: Instant,
    /// The snapshot, once its id is known.
    primary_snap_id: Option<u64>,
}

/// What it took until an image's copy was whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// From the start of the command that made the snapshot.
    pub took: Duration,
    /// What the daemon says it copied.
    pub bytes: u64,
}

impl Goals {
    /// A command has begun that makes a mirror-snapshot of `image`.
    pub fn ordered(&self, image: &'static str) {
        self.lock().insert(image, Goal { since: Instant::now(), primary_snap_id: None });
    }

    /// The command has made this snapshot.
    pub fn made(&self, image: &'static str, primary_snap_id: u64) {
        if let Some(goal) = self.lock().get_mut(image) {
            goal.primary_snap_id = Some(primary_snap_id);
        }
    }

    fn get(&self, image: &str) -> Option<Goal> {
        self.lock().get(image).copied()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Goal>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One image as it is shown.
#[derive(Debug, Clone, Default, PartialEq)]
struct Row {
    state: String,
    percent: Option<u64>,
    bytes_per_second: f64,
    lag_s: Option<u64>,
    copied_bytes: u64,
    /// When the copy was seen to be whole, counted from the command.
    whole_after: Option<Duration>,
    arrival: Option<Arrival>,
}

impl Row {
    /// Takes over what the daemon reports: a state, and a description that holds a JSON object (see the daemon's
    /// documentation of statuses, which is Ceph's).
    fn take(&mut self, state: &str, description: &str) {
        let json =
            description.find('{').and_then(|at| serde_json::from_str::<Value>(&description[at..]).ok());
        let Some(json) = json else {
            self.state = state.to_owned();
            return;
        };
        self.state = json["replay_state"].as_str().unwrap_or(state).to_owned();
        self.percent = json["syncing_percent"].as_u64();
        // Until something of this round has been copied, it is the rate of the round before.
        if self.percent.is_some_and(|percent| percent > 0) || self.whole_after.is_some() {
            self.bytes_per_second = json["bytes_per_second"].as_f64().unwrap_or(0.0);
        }
        self.copied_bytes = json["last_snapshot_bytes"].as_u64().unwrap_or(0);
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let (held, newest) = (&json["local_snapshot_timestamp"], &json["remote_snapshot_timestamp"]);
        // A copy of the newest snapshot there is lags behind nothing.
        self.lag_s =
            held.as_u64().map(|made_s| if held == newest { 0 } else { now_s.saturating_sub(made_s) });
    }

    fn is_idle(&self) -> bool {
        self.state == "idle"
    }

    fn percent_text(&self) -> String {
        match (self.arrival, self.percent) {
            (Some(_), _) => "100 %".to_owned(),
            (None, Some(percent)) => format!("{percent} %"),
            (None, None) => "-".to_owned(),
        }
    }

    fn bar(&self) -> String {
        let percent = if self.arrival.is_some() { 100 } else { self.percent.unwrap_or(0).min(100) };
        let full = BAR_CHARS * percent as usize / 100;
        format!("{}{}", "#".repeat(full), ".".repeat(BAR_CHARS - full))
    }

    fn rate_text(&self) -> String {
        if self.bytes_per_second > 0.0 {
            format!("{:.1}", self.bytes_per_second / f64::from(1 << 20))
        } else {
            "-".into()
        }
    }

    fn lag_text(&self) -> String {
        self.lag_s.map_or_else(|| "-".to_owned(), |lag_s| format!("{lag_s} s"))
    }
}

/// Shows the copies on their way until all goals have arrived.
pub async fn follow(
    b: &Cluster,
    daemon: &MirrorDaemon,
    goals: &Goals,
) -> Result<BTreeMap<&'static str, Arrival>> {
    let mut rows: BTreeMap<&'static str, Row> =
        IMAGES.iter().map(|image| (image.name, Row::default())).collect();
    let mut show = Show::new();
    let started = Instant::now();
    loop {
        look(daemon, &mut rows).await?;
        for image in IMAGES {
            let row = rows.entry(image.name).or_default();
            if row.arrival.is_none() {
                judge(b, &image.spec(), row, goals.get(image.name)).await;
            }
        }
        show.show(&rows);
        let arrivals: BTreeMap<_, _> =
            rows.iter().filter_map(|(name, row)| Some((*name, row.arrival?))).collect();
        if arrivals.len() == IMAGES.len() {
            show.finish(&rows);
            return Ok(arrivals);
        }
        if started.elapsed() > LIMIT {
            let late: Vec<_> =
                IMAGES.iter().map(|i| i.name).filter(|name| !arrivals.contains_key(name)).collect();
            let limit_s = LIMIT.as_secs();
            bail!(
                "after {limit_s} s these copies had not arrived: {}; {}",
                late.join(", "),
                daemon.log_tail(20)
            );
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// Asks the daemon.
async fn look(daemon: &MirrorDaemon, rows: &mut BTreeMap<&'static str, Row>) -> Result<()> {
    ensure!(daemon.alive(), "the daemon has ended by itself; {}", daemon.log_tail(20));
    let status = daemon.ask("rbd mirror status").await?;
    let images =
        status["pool_replayers"][0]["image_replayers"].as_array().context("the daemon shows no images")?;
    for image in images {
        let name = image["name"].as_str().and_then(|name| name.split_once('/')).map_or("", |(_, name)| name);
        if let Some(row) = rows.get_mut(name) {
            row.take(
                image["state"].as_str().unwrap_or_default(),
                image["description"].as_str().unwrap_or_default(),
            );
        }
    }
    Ok(())
}

/// Decides whether an image's copy is whole. The daemon's count of bytes is right from the next report on.
async fn judge(b: &Cluster, spec: &str, row: &mut Row, goal: Option<Goal>) {
    if let (Some(took), true) = (row.whole_after, row.is_idle()) {
        row.arrival = Some(Arrival { took, bytes: row.copied_bytes });
        return;
    }
    let Some((since, wanted)) = goal.and_then(|goal| Some((goal.since, goal.primary_snap_id?))) else {
        return;
    };
    if !row.is_idle() {
        return;
    }
    // That the copy isn't there yet is no failure.
    let snapshots = b.mirror_snapshots(spec).await.unwrap_or_default();
    if snapshots.iter().any(|s| s.complete && s.primary_snap_id.is_some_and(|id| id >= wanted)) {
        row.whole_after = Some(since.elapsed());
    }
}

/// Either a table drawn in place, or lines for what has changed.
struct Show {
    started: Instant,
    drawing: Option<Drawing>,
    written: BTreeMap<&'static str, Row>,
    written_at: Option<Instant>,
}

impl Show {
    fn new() -> Self {
        let drawing = draws_in_place().then(Drawing::default);
        Show { started: Instant::now(), drawing, written: BTreeMap::new(), written_at: None }
    }

    fn show(&mut self, rows: &BTreeMap<&'static str, Row>) {
        match &mut self.drawing {
            Some(drawing) => drawing.draw(&as_table(rows)),
            None if self.written_at.is_none_or(|at| at.elapsed() >= LINE_INTERVAL) => {
                self.write_changed(rows)
            }
            None => {}
        }
    }

    fn finish(&mut self, rows: &BTreeMap<&'static str, Row>) {
        if self.drawing.is_none() {
            self.write_changed(rows);
        }
    }

    fn write_changed(&mut self, rows: &BTreeMap<&'static str, Row>) {
        self.written_at = Some(Instant::now());
        for image in IMAGES {
            let row = &rows[image.name];
            let told = |row: &Row| (row.state.clone(), row.percent_text());
            if row.state.is_empty()
                || self.written.get(image.name).is_some_and(|before| told(before) == told(row))
            {
                continue;
            }
            let (percent, rate, lag) = (row.percent_text(), row.rate_text(), row.lag_text());
            let (name, state) = (image.name, &row.state);
            let after_s = self.started.elapsed().as_secs_f64();
            say(format!("   {after_s:5.1} s  {name:8} {state:16} {percent:>5} {rate:>7} MiB/s  lag {lag}"));
            self.written.insert(image.name, row.clone());
        }
    }
}

fn as_table(rows: &BTreeMap<&'static str, Row>) -> Vec<String> {
    let heading = ["image", "state          ", "", "  done", "  MiB/s", "   lag"].map(str::to_owned).to_vec();
    let body = IMAGES.iter().map(|image| {
        let row = &rows[image.name];
        let state = if row.state.is_empty() { "waiting" } else { &row.state };
        vec![
            image.name.to_owned(),
            state.to_owned(),
            row.bar(),
            row.percent_text(),
            row.rate_text(),
            row.lag_text(),
        ]
    });
    let cells: Vec<_> = std::iter::once(heading).chain(body).collect();
    table(&cells, &[false, false, false, true, true, true])
}
