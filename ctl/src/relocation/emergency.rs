//! An emergency: the other site is lost. Images are promoted by force, each from the newest moment that had arrived whole.
//!
//! That moment is told by the promotion itself, which decides after the daemon has let go of the image. When it was, on the
//! primary's clock, is known from the copy ([`snapshot::point`]), else from the other site, should it still answer, else
//! within bounds: not before what the daemon told last, not after the copy's own snapshot was made.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use chrono::{DateTime, Utc};
use control::{ContinuesFrom, Pool, Promotion, Role};
use futures::StreamExt;
use journal::first_copy::marker as copy_marker;
use rados::SnapId;
use rbd::mirroring::{GlobalImageId, MirrorImageMode, StatusState};
use rbd::{Image, Timestamp};
use serde_json::Value;
use snapshot::point::read_point;

use super::facts::{self, History, SideFacts};
use super::report::{Details, Loss, Moment, Step, universal, utc};
use crate::failure::Failure;
use crate::other_site::OtherSite;
use crate::output::{self, Bar, time};
use crate::targets;

/// An emergency promotion under way.
pub struct Emergency<'a> {
    /// The pool (or namespace) here.
    pub pool: &'a Pool,
    /// The name of this site.
    pub site_name: String,
    /// The other site, should it still answer.
    pub other: Option<&'a OtherSite>,
    /// The images; all of them when `None`.
    pub wanted: Option<BTreeSet<GlobalImageId>>,
    /// Only tell.
    pub dry_run: bool,
    /// What was done.
    pub details: Details,
    /// Called whenever something was done.
    pub record: super::Record<'a>,
    /// Steps are told as they are taken.
    pub talkative: bool,
}

/// Images at the other site, when it still answers.
type There = BTreeMap<GlobalImageId, SideFacts>;

impl Emergency<'_> {
    /// Promotes all images, each of which may fail for itself. Answers with the first failure after all was tried.
    pub async fn run(&mut self) -> Result<(), Failure> {
        let wanted = |id: &GlobalImageId| self.wanted.as_ref().is_none_or(|wanted| wanted.contains(id));
        // Whose copies they are does not matter: each is promoted from what it holds.
        let images = facts::read(self.pool, "", wanted).await?;
        if images.is_empty() {
            return Err(Failure::new(libc::ENOENT, format!("no image is mirrored in {}", self.pool)));
        }
        let there = self.look_there().await;
        let began = Instant::now();
        let bar = Bar::new(if self.dry_run { "looking at" } else { "promoting" }, "images");
        bar.keep_moving();
        let (pool, dry_run, total) = (self.pool, self.dry_run, images.len());
        let work = images.into_iter().map(|(global_id, facts)| async move {
            let outcome = one(pool, &facts, dry_run).await;
            (global_id, facts, outcome)
        });
        let mut running =
            futures::stream::iter(work).buffer_unordered(pool.options().images_in_flight.max(1));
        let (mut done, mut promoted, mut failures) = (0, 0, Vec::new());
        while let Some((global_id, facts, outcome)) = running.next().await {
            done += 1;
            bar.set(done, total as u64);
            let name = targets::image_name(self.pool, &facts.info.name);
            match outcome {
                Ok(None) => _ = self.details.image(&global_id, &name),
                Ok(Some(promotion)) => {
                    promoted += 1;
                    self.account(&global_id, &facts, promotion, there.get(&global_id)).await?;
                }
                Err(error) => {
                    self.details.image(&global_id, &name).error = Some(error.to_string());
                    failures.push((name, Failure::from(error)));
                }
            }
            (self.record)(&self.details)?;
        }
        drop(running);
        bar.finish();
        let what = if dry_run { "would be made" } else { "are" };
        self.tell(began, format!("{promoted} images {what} primary at site '{}'", self.site_name))?;
        failures.sort_by(|a, b| a.0.cmp(&b.0));
        match failures.first() {
            None => Ok(()),
            Some((_, first)) => {
                let sentence =
                    format!("{} of {total} images could not be promoted; run this again", failures.len());
                Err(Failure::new(first.code(), sentence))
            }
        }
    }

    /// What the other site still tells; nothing when it does not.
    async fn look_there(&self) -> There {
        let Some(other) = self.other else { return There::new() };
        match other.answer(facts::read(&other.pool, "", |_| true)).await {
            Ok(there) => there,
            Err(failure) => {
                output::complain(&failure.to_string());
                There::new()
            }
        }
    }

    async fn account(
        &mut self,
        global_id: &GlobalImageId,
        facts: &SideFacts,
        promotion: Promotion,
        there: Option<&SideFacts>,
    ) -> Result<(), Failure> {
        let told = told_by_daemon(facts);
        // A demotion that arrived whole: the other site had given up its role, and nothing came after it.
        let nothing_lost = facts.info.role == Role::Orphan && !promotion.rolls_back;
        let moment = self.moment(facts, &promotion, &told).await?;
        let lost = if nothing_lost {
            Loss { nothing: true, written_after: None, known: Vec::new() }
        } else {
            loss(&moment, &told, there)
        };
        let did = if self.dry_run { "would promote by force" } else { "promoted by force" };
        let name = targets::image_name(self.pool, &facts.info.name);
        let report = self.details.image(global_id, &name);
        report.done.push(did.to_string());
        report.continues_from = Some(moment);
        report.lost = Some(lost);
        Ok(())
    }

    async fn moment(&self, facts: &SideFacts, promotion: &Promotion, told: &Told) -> Result<Moment, Failure> {
        let mut moment = Moment {
            snapshot: promotion.continues_from.clone(),
            primary_time: None,
            not_before: told.local.and_then(universal),
            not_after: None,
            rolled_back: promotion.rolls_back,
        };
        if let Some(from) = &promotion.continues_from {
            moment.not_after = universal(from.timestamp);
            moment.primary_time = self.primary_time(facts, from).await?.and_then(universal);
        }
        Ok(moment)
    }

    /// When the primary's snapshot was made, if anybody knows.
    async fn primary_time(
        &self,
        facts: &SideFacts,
        from: &ContinuesFrom,
    ) -> Result<Option<Timestamp>, Failure> {
        let (image, _) = Image::open(self.pool.ioctx(), &facts.info.id).await?;
        if let Some(point) = read_point(&image).await?.filter(|point| point.snap == from.snap) {
            return Ok(Some(point.primary_timestamp));
        }
        let Some(other) = self.other else { return Ok(None) };
        let Some(global_id) = &facts.info.global_id else { return Ok(None) };
        Ok(timestamp_there(other, global_id, from.primary_snap).await)
    }

    fn tell(&mut self, began: Instant, outcome: String) -> Result<(), Failure> {
        let seconds = began.elapsed().as_secs_f64();
        let step = if self.dry_run { "rehearsed" } else { "promoted" };
        if self.talkative {
            output::put(&format!("{step:>10}  {outcome} ({seconds:.1} s)\n"))?;
        }
        self.details.steps.push(Step { step, ended: time::universal(Utc::now()), seconds, outcome });
        (self.record)(&self.details)
    }
}

/// Promotes an image, or tells what that would do. `None`: it is primary already.
async fn one(pool: &Pool, facts: &SideFacts, dry_run: bool) -> rados::Result<Option<Promotion>> {
    let name = &facts.info.name;
    if is_half_copied(pool, facts).await? {
        let what = format!(
            "cannot promote image '{}': its copy is half done, and the primary's disk was never in the state that this one is \
             in; wait for the other site, or take it as it is with 'rbd-mirrorctl mirror image promote --force'",
            targets::image_name(pool, name)
        );
        return Err(rados::Error::new(libc::EINVAL, what));
    }
    if facts.info.role != Role::Primary {
        let promotion =
            if dry_run { pool.plan_promotion(name, true).await } else { pool.promote(name, true).await };
        return promotion.map(Some);
    }
    if dry_run {
        return Ok(None);
    }
    // One that was cut off at its very end is finished.
    let outcome = pool.promote_images(std::slice::from_ref(name), true, |_| {}).await;
    match outcome.first_error() {
        Some(error) => Err(error.clone()),
        None => Ok(None),
    }
}

/// Whether the first copy of an image in journal mode, or its resync, is under way. In snapshot mode there is something whole
/// to continue from, or the promotion is refused.
async fn is_half_copied(pool: &Pool, facts: &SideFacts) -> rados::Result<bool> {
    if facts.info.mode != Some(MirrorImageMode::Journal) || facts.info.role != Role::NonPrimary {
        return Ok(false);
    }
    // Ceph's daemon notes nothing beside the copy, but tells.
    if facts.status.as_ref().is_some_and(|status| status.state == StatusState::Syncing) {
        return Ok(true);
    }
    let (image, _) = Image::open(pool.ioctx(), &facts.info.id).await?;
    Ok(copy_marker::read(&image).await?.is_some_and(|marker| !marker.copied))
}

async fn timestamp_there(other: &OtherSite, global_id: &GlobalImageId, snap: SnapId) -> Option<Timestamp> {
    let read = async {
        let mirroring = rbd::mirroring::Mirroring::new(other.pool.ioctx());
        let Some(id) = mirroring.image_id(global_id).await? else { return Ok(None) };
        let header = rbd::ImageHeader::read(other.pool.ioctx(), &id).await?;
        Ok(header.snapshots.get(&snap).map(|snapshot| snapshot.timestamp))
    };
    // It is a bonus: the site is thought to be lost.
    other.answer(read).await.ok().flatten()
}

/// What the daemon here told last.
#[derive(Debug, Default)]
struct Told {
    /// When the primary's snapshot was made that the copy held.
    local: Option<Timestamp>,
    /// When the newest one was made that the daemon knew of.
    remote: Option<Timestamp>,
    /// Journal entries that the copy was behind.
    entries_behind: Option<u64>,
}

fn told_by_daemon(facts: &SideFacts) -> Told {
    let description = facts.status.as_ref().map_or("", |status| status.description.as_str());
    let json = description.find('{').and_then(|at| serde_json::from_str::<Value>(&description[at..]).ok());
    let Some(json) = json else { return Told::default() };
    let time = |key: &str| {
        let seconds = u32::try_from(json[key].as_u64()?).ok()?;
        Some(Timestamp { seconds, nanoseconds: 0 })
    };
    Told {
        local: time("local_snapshot_timestamp"),
        remote: time("remote_snapshot_timestamp"),
        entries_behind: json["entries_behind_primary"].as_u64(),
    }
}

/// What is lost by continuing from a moment.
fn loss(moment: &Moment, told: &Told, there: Option<&SideFacts>) -> Loss {
    let mut known = Vec::new();
    let held = moment.snapshot.as_ref().map(|snapshot| snapshot.primary_snap);
    if let Some(History::Snapshots(history)) = there.map(|there| &there.history)
        && let Some((snap, timestamp, _)) = history.newest_own
        && held.is_some_and(|held| snap > held)
    {
        let when = universal(timestamp).unwrap_or_default();
        known.push(format!("mirror-snapshots up to that of {when}, which had not arrived whole"));
    } else if let (Some(remote), Some(local)) = (told.remote.and_then(utc), last_known(moment))
        && remote > local
    {
        known.push(format!("a mirror-snapshot of {}, which had not arrived whole", time::universal(remote)));
    }
    if let Some(entries) = told.entries_behind.filter(|entries| *entries > 0) {
        known.push(format!(
            "at least {entries} journal entries, by which the copy was behind when last heard of"
        ));
    }
    let written_after = moment.primary_time.clone().or_else(|| moment.not_before.clone());
    Loss { nothing: false, written_after, known }
}

/// The moment to the second, as the daemon's words count; its end, so that the same second is not taken for a later one.
fn last_known(moment: &Moment) -> Option<DateTime<Utc>> {
    let text = moment.primary_time.as_ref().or(moment.not_before.as_ref())?;
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.with_timezone(&Utc))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(primary_time: Option<&str>) -> Moment {
        Moment {
            snapshot: None,
            primary_time: primary_time.map(str::to_string),
            not_before: Some("2026-01-01T00:00:00.000Z".to_string()),
            not_after: None,
            rolled_back: false,
        }
    }

    #[test]
    fn what_is_lost_is_what_came_after() {
        let at = |seconds| Some(Timestamp { seconds, nanoseconds: 0 });
        // 2026-01-01T00:00:00Z is 1767225600.
        let told = Told { local: at(1_767_225_600), remote: at(1_767_225_660), entries_behind: None };
        let behind = loss(&moment(None), &told, None);
        assert_eq!(behind.written_after.as_deref(), Some("2026-01-01T00:00:00.000Z"));
        assert_eq!(
            behind.known,
            ["a mirror-snapshot of 2026-01-01T00:01:00.000Z, which had not arrived whole"]
        );
        let current = loss(&moment(Some("2026-01-01T00:01:00.500Z")), &told, None);
        assert!(current.known.is_empty(), "{current:?}");
        let journal = loss(&moment(None), &Told { entries_behind: Some(7), ..Told::default() }, None);
        assert!(journal.in_words().contains("7 journal entries"), "{}", journal.in_words());
        let unknown = loss(&Moment { not_before: None, ..moment(None) }, &Told::default(), None);
        assert_eq!(unknown.in_words(), "whatever had not arrived");
    }
}
