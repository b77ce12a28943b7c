//! One line per mirrored image: how old its copy is, how far behind, how fast, and when it will be current.
//!
//! All of it is read from what the daemons tell (see `rbd mirror image status`): of a copy here, the daemon here; of a
//! primary here, the daemon of the other site.
//!
//! | column | snapshot mode | journal mode |
//! |---|---|---|
//! | age | time since the primary's snapshot that the copy holds | |
//! | behind | time from that snapshot to the newest one | entries |
//! | left | bytes to be copied: time left × rate | entries × mean bytes of an entry |
//! | rate | `bytes_per_second` | the same |
//! | done in | `seconds_until_synced` | the same |

use control::{ImageStatus, Role, SiteReport};
use serde::Serialize;
use serde_json::Value;

use crate::output::{Table, time};

/// What is known of an image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The image as people name it.
    pub image: String,
    /// Its role here: `primary`, `copy`, or `demoted`.
    pub role: &'static str,
    /// The site whose daemon tells of it.
    pub site: String,
    /// What that daemon does: `up+replaying` and the like.
    pub state: String,
    /// Age of what the copy holds.
    pub age_seconds: Option<u64>,
    /// How far the copy is behind.
    pub behind_seconds: Option<u64>,
    /// The same in journal entries.
    pub behind_entries: Option<u64>,
    /// Bytes to be copied, roughly.
    pub behind_bytes: Option<u64>,
    /// Bytes copied in a second.
    pub bytes_per_second: Option<f64>,
    /// When it will be current, at this rate.
    pub seconds_left: Option<u64>,
    /// Share of the present round that is copied.
    pub percent: Option<u64>,
    /// The daemon's words, where they are no numbers.
    pub note: String,
}

/// The lines of an image here: one per daemon that tells of a copy of it. `name` is how people name it, `now` the time
/// in seconds since the epoch.
pub fn rows(status: &ImageStatus, name: &str, site_name: &str, now: u64) -> Vec<Row> {
    let role = match status.info.role {
        Role::Primary => "primary",
        Role::NonPrimary => "copy",
        Role::Orphan => "demoted",
        Role::Unknown => "unknown",
    };
    let row =
        |site: &str, report: &SiteReport| Row { image: name.to_string(), role, ..row(site, report, now) };
    let named = |report: &SiteReport| report.site_name.clone().unwrap_or_else(|| report.mirror_uuid.clone());
    match (status.info.role, &status.local) {
        (Role::Primary, _) if !status.peer_sites.is_empty() => {
            status.peer_sites.iter().map(|report| row(&named(report), report)).collect()
        }
        (_, Some(report)) => vec![row(site_name, report)],
        (_, None) => vec![Row { image: name.to_string(), role, ..unknown() }],
    }
}

fn unknown() -> Row {
    Row {
        image: String::new(),
        role: "unknown",
        site: String::new(),
        state: "unknown".to_string(),
        age_seconds: None,
        behind_seconds: None,
        behind_entries: None,
        behind_bytes: None,
        bytes_per_second: None,
        seconds_left: None,
        percent: None,
        note: String::new(),
    }
}

fn row(site: &str, report: &SiteReport, now: u64) -> Row {
    let description = report.description.as_str();
    let (words, json) = match description.find('{') {
        Some(at) => (&description[..at], serde_json::from_str(&description[at..]).unwrap_or(Value::Null)),
        None => (description, Value::Null),
    };
    let number = |key: &str| json[key].as_u64();
    let (local, remote) = (number("local_snapshot_timestamp"), number("remote_snapshot_timestamp"));
    let rate = json["bytes_per_second"].as_f64();
    let seconds_left = number("seconds_until_synced");
    let entries = number("entries_behind_primary");
    let entries_rate = json["entries_per_second"].as_f64().filter(|entries| *entries > 0.0);
    let entry_bytes = entries_rate.zip(rate).map(|(entries, bytes)| bytes / entries);
    let idle = json["replay_state"] == "idle" || entries == Some(0);
    let behind_bytes = match (entries.zip(entry_bytes), seconds_left.zip(rate)) {
        _ if idle => Some(0),
        (Some((entries, bytes)), _) => Some((entries as f64 * bytes) as u64),
        (None, Some((seconds, rate))) => Some((seconds as f64 * rate) as u64),
        (None, None) => None,
    };
    // Words that only announce the numbers say nothing.
    let note = words.trim().trim_end_matches(',');
    let note = if json.is_object() && note == "replaying" { "" } else { note };
    Row {
        site: site.to_string(),
        state: report.label(),
        age_seconds: local.map(|local| now.saturating_sub(local)),
        behind_seconds: remote.zip(local).map(|(remote, local)| remote.saturating_sub(local)),
        behind_entries: entries,
        behind_bytes,
        bytes_per_second: rate,
        seconds_left: seconds_left.filter(|_| !idle),
        percent: number("syncing_percent"),
        note: note.to_string(),
        ..unknown()
    }
}

/// The table for people.
pub fn table(rows: &[Row]) -> String {
    let headings =
        ["IMAGE", "ROLE", "COPIED BY", "STATE", "AGE", "BEHIND", "LEFT", "RATE", "DONE IN", "NOTE"];
    let mut table = Table::for_people(&headings);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_string());
    for row in rows {
        let behind = match (row.behind_seconds, row.behind_entries) {
            (Some(seconds), _) => Some(time::span(seconds)),
            (None, Some(entries)) => Some(format!("{entries} entries")),
            (None, None) => None,
        };
        let note = match row.percent {
            Some(percent) => format!("{percent}% {}", row.note),
            None => row.note.clone(),
        };
        table.row([
            row.image.clone(),
            row.role.to_string(),
            row.site.clone(),
            row.state.clone(),
            or_dash(row.age_seconds.map(time::span)),
            or_dash(behind),
            or_dash(row.behind_bytes.map(time::bytes)),
            or_dash(row.bytes_per_second.map(|rate| format!("{}/s", time::bytes(rate as u64)))),
            or_dash(row.seconds_left.map(time::span)),
            note.trim().to_string(),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rbd::Timestamp;
    use rbd::mirroring::StatusState;

    use super::*;

    fn report(description: &str) -> SiteReport {
        SiteReport {
            mirror_uuid: String::new(),
            site_name: None,
            up: true,
            state: StatusState::Replaying,
            description: description.to_string(),
            last_update: Timestamp::default(),
        }
    }

    fn replaying(json: Value, now: u64) -> Row {
        row("b", &report(&format!("replaying, {json}")), now)
    }

    #[test]
    fn snapshot_mode() {
        let idle = replaying(
            serde_json::json!({"bytes_per_second": 0.0, "local_snapshot_timestamp": 1000,
                "remote_snapshot_timestamp": 1000, "replay_state": "idle"}),
            1060,
        );
        assert_eq!((idle.age_seconds, idle.behind_seconds, idle.behind_bytes), (Some(60), Some(0), Some(0)));
        assert_eq!((idle.seconds_left, idle.note.as_str()), (None, ""));
        let busy = replaying(
            serde_json::json!({"bytes_per_second": 2048.0, "local_snapshot_timestamp": 1000,
                "remote_snapshot_timestamp": 1030, "replay_state": "syncing", "seconds_until_synced": 10,
                "syncing_percent": 40, "syncing_snapshot_timestamp": 1030}),
            1060,
        );
        let left = (busy.behind_seconds, busy.behind_bytes, busy.seconds_left);
        assert_eq!(left, (Some(30), Some(20_480), Some(10)));
        assert!(table(&[busy]).contains("2.0 KiB/s  10 s     40%"));
    }

    #[test]
    fn journal_mode_and_words() {
        let busy = replaying(
            serde_json::json!({"bytes_per_second": 4096.0, "entries_behind_primary": 100, "entries_per_second": 2.0,
                "seconds_until_synced": 50}),
            0,
        );
        assert_eq!((busy.behind_entries, busy.behind_bytes), (Some(100), Some(204_800)));
        assert!(table(&[busy]).contains("100 entries  200.0 KiB"));
        let broken = row("b", &report("split-brain"), 0);
        assert_eq!((broken.note.as_str(), broken.behind_bytes), ("split-brain", None));
    }

    proptest! {
        #[test]
        fn no_description_makes_it_panic(
            words in ".{0,40}", json in r#"[{}":,a-z0-9_.e-]{0,60}"#, now in any::<u64>()
        ) {
            let row = row("s", &report(&format!("{words}{{{json}")), now);
            let _ = table(&[row]);
        }

        #[test]
        fn nor_do_any_numbers(
            local in any::<u64>(), remote in any::<u64>(), rate in any::<f64>(), left in any::<u64>()
        ) {
            let json = serde_json::json!({"local_snapshot_timestamp": local, "remote_snapshot_timestamp": remote,
                "bytes_per_second": rate, "seconds_until_synced": left, "entries_behind_primary": left,
                "entries_per_second": rate});
            let _ = table(&[replaying(json, 5)]);
        }
    }
}
