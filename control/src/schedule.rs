//! Schedules of mirror-snapshots, which the manager keeps and carries out (module `rbd_support`).
//!
//! A schedule belongs to a level: everything, a pool, a namespace, or an image. The manager's commands take it as text:
//!
//! | level | `level_spec` |
//! |---|---|
//! | everything | empty |
//! | pool | `POOL/` |
//! | namespace | `POOL/NAMESPACE/` |
//! | image | `POOL/IMAGE` or `POOL/NAMESPACE/IMAGE` |
//!
//! Reference: `src/tools/rbd/Schedule.cc`, `src/tools/rbd/action/MirrorSnapshotSchedule.cc`,
//! `src/pybind/mgr/rbd_support/module.py`.

use std::collections::BTreeMap;
use std::fmt;

use rados::{Cluster, CommandTarget, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What a schedule is for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Level {
    spec: String,
}

impl Level {
    /// Everything.
    pub fn global() -> Level {
        Level::default()
    }

    /// A pool.
    pub fn pool(pool: &str) -> Level {
        Level { spec: format!("{pool}/") }
    }

    /// A namespace of a pool.
    pub fn namespace(pool: &str, namespace: &str) -> Level {
        Level { spec: format!("{pool}/{namespace}/") }
    }

    /// An image; the namespace may be empty.
    pub fn image(pool: &str, namespace: &str, image: &str) -> Level {
        let spec = match namespace.is_empty() {
            true => format!("{pool}/{image}"),
            false => format!("{pool}/{namespace}/{image}"),
        };
        Level { spec }
    }

    /// As the manager's commands take it.
    pub fn spec(&self) -> &str {
        &self.spec
    }
}

/// When mirror-snapshots are taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// How often: a number and `m`, `h` or `d`.
    pub interval: String,
    /// From when on: a time of day (ISO 8601); empty for none.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub start_time: String,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}

/// As `rbd` prints it: `every 1h starting at 14:00:00-05:00`.
impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "every {}", self.interval)?;
        if self.start_time.is_empty() { Ok(()) } else { write!(f, " starting at {}", self.start_time) }
    }
}

/// The schedule of one level.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// The level as the manager names it: `POOL/`, `POOL/NAMESPACE/`, `POOL/IMAGE`, …; empty for everything.
    pub name: String,
    /// When snapshots are taken.
    pub items: Vec<Interval>,
}

impl Schedule {
    /// Pool, namespace and image as `rbd` prints them, `-` for those that the level does not tell; `None` when it is of
    /// a form that is not known.
    pub fn place(&self) -> Option<[String; 3]> {
        let all = || "-".to_string();
        if self.name.is_empty() {
            return Some([all(), all(), all()]);
        }
        let parts: Vec<&str> = self.name.split('/').collect();
        let well = |part: &&str| !part.is_empty() && !part.contains('@');
        match parts.as_slice() {
            [pool, ""] if !pool.is_empty() => Some([pool.to_string(), all(), all()]),
            [pool, image] if !pool.is_empty() && well(image) => {
                Some([pool.to_string(), String::new(), image.to_string()])
            }
            [pool, namespace, ""] if !pool.is_empty() && !namespace.is_empty() => {
                Some([pool.to_string(), namespace.to_string(), all()])
            }
            [pool, namespace, image] if !pool.is_empty() && !namespace.is_empty() && well(image) => {
                Some([pool.to_string(), namespace.to_string(), image.to_string()])
            }
            _ => None,
        }
    }
}

/// An image whose next mirror-snapshot is scheduled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduledImage {
    /// When, as the manager tells it.
    pub schedule_time: String,
    /// `POOL/IMAGE` or `POOL/NAMESPACE/IMAGE`.
    pub image: String,
}

/// The schedules of mirror-snapshots of a cluster.
#[derive(Clone)]
pub struct Schedules {
    cluster: Cluster,
}

impl Schedules {
    /// Of this cluster.
    pub fn new(cluster: &Cluster) -> Schedules {
        Schedules { cluster: cluster.clone() }
    }

    /// Adds a time to the schedule of a level. Errors are the manager's: EINVAL for a time that it does not understand,
    /// ENOENT for a level that there is not.
    pub async fn add(&self, level: &Level, interval: &Interval) -> Result<()> {
        self.command("add", level, Some(interval)).await.map(drop)
    }

    /// Removes a time from the schedule of a level, or the whole schedule.
    pub async fn remove(&self, level: &Level, interval: Option<&Interval>) -> Result<()> {
        self.command("remove", level, interval).await.map(drop)
    }

    /// The schedules of a level and of all below it, by name.
    pub async fn list(&self, level: &Level) -> Result<Vec<Schedule>> {
        parse_list(&self.command("list", level, None).await?)
    }

    /// The schedule of a level itself; `None` when it has none.
    pub async fn get(&self, level: &Level) -> Result<Option<Schedule>> {
        Ok(self.list(level).await?.into_iter().find(|schedule| schedule.name == level.spec))
    }

    /// The images of a level whose next mirror-snapshot is scheduled, next first.
    pub async fn status(&self, level: &Level) -> Result<Vec<ScheduledImage>> {
        parse_status(&self.command("status", level, None).await?)
    }

    async fn command(&self, verb: &str, level: &Level, interval: Option<&Interval>) -> Result<bytes::Bytes> {
        let mut command = Map::new();
        let mut set = |name: &str, value: &str| command.insert(name.to_string(), Value::from(value));
        set("prefix", &format!("rbd mirror snapshot schedule {verb}"));
        set("level_spec", &level.spec);
        if let Some(interval) = interval.filter(|interval| !interval.interval.is_empty()) {
            set("interval", &interval.interval);
            if !interval.start_time.is_empty() {
                set("start_time", &interval.start_time);
            }
        }
        Ok(self.cluster.command(CommandTarget::Mgr, command.into(), "").await?.output)
    }
}

fn damaged(what: &str) -> Error {
    Error::new(libc::EBADMSG, format!("cannot understand the {what} that the manager answers with"))
}

fn parse_list(output: &[u8]) -> Result<Vec<Schedule>> {
    #[derive(Deserialize)]
    struct Entry {
        name: String,
        schedule: Vec<Interval>,
    }
    let entries: BTreeMap<String, Entry> =
        serde_json::from_slice(output).map_err(|_| damaged("list of schedules"))?;
    let by_name: BTreeMap<_, _> = entries.into_values().map(|entry| (entry.name, entry.schedule)).collect();
    Ok(by_name.into_iter().map(|(name, items)| Schedule { name, items }).collect())
}

fn parse_status(output: &[u8]) -> Result<Vec<ScheduledImage>> {
    #[derive(Deserialize)]
    struct Status {
        scheduled_images: Vec<ScheduledImage>,
    }
    let status: Status = serde_json::from_slice(output).map_err(|_| damaged("state of schedules"))?;
    Ok(status.scheduled_images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_spelled_as_the_manager_reads_them() {
        assert_eq!(Level::global().spec(), "");
        assert_eq!(Level::pool("p").spec(), "p/");
        assert_eq!(Level::namespace("p", "n").spec(), "p/n/");
        assert_eq!(Level::image("p", "", "i").spec(), "p/i");
        assert_eq!(Level::image("p", "n", "i").spec(), "p/n/i");
    }

    #[test]
    fn names_tell_places() {
        let place = |name: &str| Schedule { name: name.to_string(), items: vec![] }.place();
        let known = [
            ("", ["-", "-", "-"]),
            ("p/", ["p", "-", "-"]),
            ("p/i", ["p", "", "i"]),
            ("p/n/", ["p", "n", "-"]),
            ("p/n/i", ["p", "n", "i"]),
        ];
        for (name, expected) in known {
            assert_eq!(place(name), Some(expected.map(str::to_string)), "{name}");
        }
        for unknown in ["p", "/", "p//", "p//i", "p/i@s", "p/n/i/x", "/i"] {
            assert_eq!(place(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn the_managers_answers_are_read() {
        let list = br#"{"2/": {"name": "p/", "schedule": [{"interval": "1h", "start_time": null}]},
            "2//a": {"name": "p/i", "schedule": [{"interval": "2d", "start_time": "14:00:00-05:00"}]}}"#;
        let list = parse_list(list).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].items[0].to_string(), "every 1h");
        assert_eq!(list[1].items[0].to_string(), "every 2d starting at 14:00:00-05:00");
        let status =
            parse_status(br#"{"scheduled_images": [{"schedule_time": "t", "image": "p/i"}]}"#).unwrap();
        assert_eq!(status[0].image, "p/i");
        for wrong in ["", "[]", r#"{"a": 1}"#] {
            assert!(parse_list(wrong.as_bytes()).unwrap_err().is(libc::EBADMSG));
            assert!(parse_status(wrong.as_bytes()).unwrap_err().is(libc::EBADMSG));
        }
    }
}
