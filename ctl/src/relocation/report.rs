//! What a relocation tells: steps as they are taken, and an account of each image at the end.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use control::ContinuesFrom;
use rbd::Timestamp;
use rbd::mirroring::GlobalImageId;
use serde::Serialize;

use crate::output::{Table, time};

/// The details of a relocation's record.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Details {
    /// The pool or namespace.
    pub pool: String,
    /// Steps that were taken, in order.
    pub steps: Vec<Step>,
    /// Images, by name.
    pub images: Vec<ImageReport>,
    /// What to do now, sentence by sentence.
    pub advice: Vec<String>,
}

/// A step that was taken.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// What was done.
    pub step: &'static str,
    /// When it was done, in UTC.
    pub ended: String,
    /// How long it took.
    pub seconds: f64,
    /// What came of it, in words.
    pub outcome: String,
}

/// What became of an image.
#[derive(Debug, Clone, Serialize)]
pub struct ImageReport {
    /// The image as people name it.
    pub image: String,
    /// What it is called on every site.
    pub global_id: String,
    /// What was (or would be) done with it.
    pub done: Vec<String>,
    /// From which moment it continues.
    pub continues_from: Option<Moment>,
    /// What is lost by that.
    pub lost: Option<Loss>,
    /// Clients that had it open at the other site.
    pub clients_there: Vec<String>,
    /// What went wrong.
    pub error: Option<String>,
}

/// A moment of a primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Moment {
    /// The mirror-snapshots that hold it; `None` in journal mode.
    pub snapshot: Option<ContinuesFrom>,
    /// When that was, on the primary's clock (UTC); `None` when only the bounds below are known.
    pub primary_time: Option<String>,
    /// It was not before this.
    pub not_before: Option<String>,
    /// It was not after this.
    pub not_after: Option<String>,
    /// Changes that had been copied in part were undone.
    pub rolled_back: bool,
}

/// What is lost when an image continues from a moment of the past.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// True when it is known that nothing is lost.
    pub nothing: bool,
    /// Everything that the primary was told to write after this (UTC)…
    pub written_after: Option<String>,
    /// …of which this is known.
    pub known: Vec<String>,
}

/// A point in time of Ceph's as one of ours.
pub fn utc(timestamp: Timestamp) -> Option<DateTime<Utc>> {
    if timestamp == Timestamp::default() {
        return None;
    }
    DateTime::from_timestamp(timestamp.seconds.into(), timestamp.nanoseconds)
}

/// The same in words for programs.
pub fn universal(timestamp: Timestamp) -> Option<String> {
    utc(timestamp).map(time::universal)
}

impl Details {
    /// The report of an image, made when there is none.
    pub fn image(&mut self, global_id: &GlobalImageId, name: &str) -> &mut ImageReport {
        let known = self.images.iter().position(|image| image.global_id == global_id.0);
        let index = known.unwrap_or_else(|| {
            self.images.push(ImageReport {
                image: name.to_string(),
                global_id: global_id.0.clone(),
                done: Vec::new(),
                continues_from: None,
                lost: None,
                clients_there: Vec::new(),
                error: None,
            });
            self.images.len() - 1
        });
        &mut self.images[index]
    }

    /// A table of the images, for people.
    pub fn table(&self) -> String {
        let mut table = Table::for_people(&["IMAGE", "CONTINUES FROM", "LOST", "OUTCOME"]);
        let mut images: BTreeMap<&str, &ImageReport> = BTreeMap::new();
        images.extend(self.images.iter().map(|image| (image.image.as_str(), image)));
        for image in images.values() {
            let outcome = match &image.error {
                Some(error) => format!("FAILED: {error}"),
                None if image.done.is_empty() => "nothing to do".to_string(),
                None => image.done.join(", "),
            };
            let moment = image.continues_from.as_ref();
            table.row([
                image.image.clone(),
                moment.map_or("-".to_string(), Moment::in_words),
                image.lost.as_ref().map_or("-".to_string(), Loss::in_words),
                outcome,
            ]);
        }
        table.to_string()
    }
}

impl Moment {
    /// For people.
    pub fn in_words(&self) -> String {
        let mut words = match (&self.primary_time, &self.not_before, &self.not_after) {
            (Some(time), _, _) => time.clone(),
            (None, Some(from), Some(to)) => format!("between {from} and {to}"),
            (None, None, Some(to)) => format!("not after {to}"),
            (None, Some(from), None) => format!("not before {from}"),
            (None, None, None) => "a moment that is not known".to_string(),
        };
        if let Some(snapshot) = &self.snapshot {
            words += &format!(" (snapshot {})", snapshot.snap);
            if !snapshot.exact {
                words += ", or the mirror-snapshot before";
            }
        }
        if self.rolled_back {
            words += ", rolled back";
        }
        words
    }
}

impl Loss {
    /// For people.
    pub fn in_words(&self) -> String {
        let mut parts = Vec::new();
        if let Some(after) = &self.written_after {
            parts.push(format!("what was written after {after}"));
        }
        parts.extend(self.known.iter().cloned());
        match parts.is_empty() {
            true if self.nothing => "nothing".to_string(),
            true => "whatever had not arrived".to_string(),
            false => parts.join("; "),
        }
    }
}
