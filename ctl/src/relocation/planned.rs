//! A planned relocation: both sites are alive, and no write is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use control::PoolOutcome;
use rados::SnapId;
use rbd::mirroring::{GlobalImageId, MirrorImageMode, StatusState};

use super::facts::{self, Pair, SideFacts};
use super::plan::{self, Goal, Next};
use super::report::{Details, Step};
use crate::failure::Failure;
use crate::other_site::OtherSite;
use crate::output::{self, Bar, time};
use crate::targets;

/// How often it is looked whether data has arrived.
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// And how much longer than that for each image.
const POLL_PER_IMAGE: Duration = Duration::from_millis(3);

/// A relocation under way.
pub struct Relocation<'a> {
    /// The pool (or namespace) here.
    pub pool: &'a control::Pool,
    /// The mirror uuid of the pool here.
    pub mirror_uuid: String,
    /// The name of this site.
    pub site_name: String,
    /// The other site.
    pub other: &'a OtherSite,
    /// The images; all of them when `None`.
    pub wanted: Option<BTreeSet<GlobalImageId>>,
    /// What is wanted.
    pub goal: Goal,
    /// How long data may take to arrive.
    pub timeout: Duration,
    /// What was done.
    pub details: Details,
    /// Called whenever something was done.
    pub record: super::Record<'a>,
    /// Steps are told as they are taken.
    pub talkative: bool,
    /// Some image was changed.
    pub changed: bool,
}

/// Pairs with what is to be done next.
type Planned = BTreeMap<GlobalImageId, (Pair, Next)>;

impl Relocation<'_> {
    /// Relocates all images. An image that cannot be relocated keeps all others where they are.
    pub async fn run(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        let mut planned = self.look().await?;
        self.refuse(&planned)?;
        self.tell("looked", began, summary(&planned))?;
        let mending = count(&planned, Next::Mend) > 0;
        if mending {
            self.mend(&planned).await?;
        }
        // What is mended is followed by its global id from now on: the daemon may take the image away and make it anew.
        if mending || count(&planned, Next::CatchUp) > 0 {
            if !mending {
                self.check_daemon(&planned).await?;
            }
            Box::pin(self.catch_up(&planned)).await?;
            planned = self.look().await?;
            self.refuse(&planned)?;
            self.demote(&planned).await?;
        }
        self.await_all().await?;
        let planned = self.look().await?;
        self.refuse(&planned)?;
        self.promote(&planned).await?;
        self.check().await
    }

    /// Tells what [`Relocation::run`] would do now.
    pub async fn rehearse(&mut self) -> Result<(), Failure> {
        let planned = self.look().await?;
        let refused = self.refuse(&planned);
        for (global_id, (pair, next)) in &planned {
            let name = targets::image_name(self.pool, pair.name());
            let would: &[&str] = match next {
                Next::Nothing | Next::Refuse(_) => &[],
                Next::Mend => &["demote here", "resync from there", "demote there", "await", "promote here"],
                Next::CatchUp => &["catch up", "demote there", "await", "promote here"],
                Next::Await => &["await", "promote here"],
                Next::Promote => &["promote here"],
            };
            self.details.image(global_id, &name).done =
                would.iter().map(|step| format!("would {step}")).collect();
            if let Some(there) = pair.there.as_ref().filter(|_| matches!(next, Next::CatchUp | Next::Mend)) {
                let clients = self.other.answer(facts::clients(&self.other.pool, &there.info)).await?;
                self.details.image(global_id, &name).clients_there = clients;
            }
        }
        refused?;
        if planned.values().any(|(_, next)| matches!(next, Next::CatchUp | Next::Await)) {
            self.check_daemon(&planned).await?;
        }
        Ok(())
    }

    /// The pairs as they are now.
    pub async fn pairs(&self) -> Result<Vec<Pair>, Failure> {
        Ok(self.look().await?.into_values().map(|(pair, _)| pair).collect())
    }

    /// Reads all pairs and plans.
    async fn look(&self) -> Result<Planned, Failure> {
        let wanted = |id: &GlobalImageId| self.wanted.as_ref().is_none_or(|wanted| wanted.contains(id));
        let here =
            async { facts::read(self.pool, &self.other.mirror_uuid, wanted).await.map_err(Failure::from) };
        let there = self.other.answer(facts::read(&self.other.pool, &self.mirror_uuid, wanted));
        let (mut here, mut there) = futures::try_join!(here, there)?;
        let ids: BTreeSet<_> = here.keys().chain(there.keys()).cloned().collect();
        let pair = |global_id: GlobalImageId| {
            let (here, there) = (here.remove(&global_id), there.remove(&global_id));
            let pair = Pair { global_id: global_id.clone(), here, there };
            let (here, there) = pair.sides();
            let next = plan::next(self.goal, here, there);
            (global_id, (pair, next))
        };
        Ok(ids.into_iter().map(pair).collect())
    }

    /// Fails when one image cannot be relocated; says so of each.
    fn refuse(&mut self, planned: &Planned) -> Result<(), Failure> {
        if planned.is_empty() {
            return Err(Failure::new(libc::ENOENT, format!("no image is mirrored in {}", self.pool)));
        }
        let mut refused = 0;
        for (global_id, (pair, next)) in planned {
            let name = targets::image_name(self.pool, pair.name());
            let report = self.details.image(global_id, &name);
            report.error = None;
            if let Next::Refuse(refusal) = next {
                report.error = Some(refusal.sentence().to_string());
                refused += 1;
            }
        }
        (self.record)(&self.details)?;
        if refused == 0 {
            return Ok(());
        }
        let so_far = self.so_far();
        let sentence = format!("{refused} of {} images cannot be relocated; {so_far}", planned.len());
        Err(Failure::new(libc::EBUSY, sentence))
    }

    /// What has become of the images when it goes on no further, for the end of a sentence.
    fn so_far(&self) -> &'static str {
        match self.changed {
            false => "nothing was changed",
            true => "the report tells what was changed before; run this again when that is mended",
        }
    }

    /// Demotes here what is primary on both sites, and asks for a resync of what must be made equal.
    async fn mend(&mut self, planned: &Planned) -> Result<(), Failure> {
        let began = Instant::now();
        let mend: Vec<&Pair> = of(planned, Next::Mend).collect();
        let names: Vec<String> = mend
            .iter()
            .filter(|pair| facts::is_primary(&pair.here))
            .map(|pair| pair.name().to_string())
            .collect();
        let outcome = self.pool.demote_images(&names, |_| {}).await;
        self.note(planned, &outcome, "demoted here", true)?;
        for pair in &mend {
            // After the demotion: a primary image cannot be asked for a resync.
            self.pool.resync(pair.name()).await?;
            self.changed = true;
            let name = targets::image_name(self.pool, pair.name());
            self.details.image(&pair.global_id, &name).done.push("resync asked for here".to_string());
        }
        let sentence = format!("gave up the own writes of {} images, and asked for their resync", mend.len());
        self.tell("mended", began, sentence)
    }

    /// Makes sure that there is somebody to copy the last changes, before anything is changed.
    async fn check_daemon(&mut self, planned: &Planned) -> Result<(), Failure> {
        let began = Instant::now();
        let mut planned = planned.clone();
        loop {
            let moving = planned.values().filter(|(_, next)| matches!(next, Next::CatchUp | Next::Await));
            let faults: Vec<(&Pair, Fault)> =
                moving.filter_map(|(pair, _)| Some((pair, Fault::of(pair)?))).collect();
            let Some((pair, fault)) = faults.first() else { return Ok(()) };
            if began.elapsed() > fault.patience(false).min(self.timeout) {
                let name = targets::image_name(self.pool, pair.name());
                let more = match faults.len() - 1 {
                    0 => String::new(),
                    more => format!(" (and those of {more} more images)"),
                };
                let so_far = self.so_far();
                let sentence =
                    format!("the last changes of '{name}'{more} would not arrive: {fault}; {so_far}");
                return Err(Failure::new(libc::ENOTCONN, sentence));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
            planned = self.look().await?;
        }
    }

    /// Has all but the very last changes copied while the images are still in use there. In journal mode, where no moment
    /// has a name, the copies are at least whole, and followed: a daemon does not begin to copy an image that has no
    /// primary.
    async fn catch_up(&mut self, planned: &Planned) -> Result<(), Failure> {
        let began = Instant::now();
        let mut awaited: BTreeMap<GlobalImageId, Option<SnapId>> = BTreeMap::new();
        for pair in of(planned, Next::CatchUp).chain(of(planned, Next::Mend)) {
            let by_snapshots = |there: &&SideFacts| there.info.mode == Some(MirrorImageMode::Snapshot);
            let snap = match pair.there.as_ref().filter(by_snapshots) {
                Some(there) => {
                    let made = self.other.pool.snapshot(&there.info.name, None);
                    Some(Box::pin(self.other.answer(made)).await?)
                }
                None => None,
            };
            awaited.insert(pair.global_id.clone(), snap);
        }
        let (images, goal) = (awaited.len(), self.goal);
        self.wait("copying", images, move |pair| match awaited.get(&pair.global_id) {
            Some(Some(snap)) => pair.has_copied(*snap),
            Some(None) => {
                let (here, there) = pair.sides();
                plan::next(goal, here, there) == Next::CatchUp && pair.is_followed()
            }
            None => true,
        })
        .await?;
        self.tell("caught up", began, format!("{images} copies are whole and follow their primaries"))
    }

    /// Demotes there.
    async fn demote(&mut self, planned: &Planned) -> Result<(), Failure> {
        let began = Instant::now();
        let mut names = Vec::new();
        for (global_id, (pair, _)) in planned {
            let Some(there) = pair.there.as_ref().filter(|_| facts::is_primary(&pair.there)) else {
                continue;
            };
            if facts::is_primary(&pair.here) {
                continue;
            }
            let clients = self.other.answer(facts::clients(&self.other.pool, &there.info)).await?;
            let name = targets::image_name(self.pool, pair.name());
            if !clients.is_empty() {
                let whom = clients.join(", ");
                output::complain(&format!("'{name}' is in use at site '{}' by {whom}", self.other.name));
            }
            self.details.image(global_id, &name).clients_there = clients;
            names.push(there.info.name.clone());
        }
        if names.is_empty() {
            return Ok(());
        }
        let bar = Bar::new("demoting", "images");
        let demote = self.other.pool.demote_images(&names, |p| bar.set(p.finished as u64, p.total as u64));
        let outcome = tokio::time::timeout(self.timeout, demote).await;
        bar.finish();
        let Ok(outcome) = outcome else {
            let sentence = format!(
                "the images at site '{}' could not be demoted in time; run this again",
                self.other.name
            );
            return Err(Failure::new(libc::ETIMEDOUT, sentence));
        };
        self.note(planned, &outcome, "demoted there", false)?;
        let sentence =
            format!("{} images at site '{}' are no longer primary", outcome.changed.len(), self.other.name);
        self.tell("demoted", began, sentence)
    }

    /// Waits until the last changes of all images are here.
    async fn await_all(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        let planned = self.look().await?;
        let images = count(&planned, Next::Await);
        if images == 0 {
            return Ok(());
        }
        let goal = self.goal;
        self.wait("receiving the last changes of", images, move |pair| {
            let (here, there) = pair.sides();
            plan::next(goal, here, there) != Next::Await
        })
        .await
        .map_err(|failure| {
            let sentence = format!(
                "{failure}; nothing is primary now: run this again to go on, or promote at site '{}' to go back",
                self.other.name
            );
            Failure::new(failure.code(), sentence)
        })?;
        self.tell("received", began, format!("the last changes of {images} images"))
    }

    async fn promote(&mut self, planned: &Planned) -> Result<(), Failure> {
        let began = Instant::now();
        let names: Vec<String> = of(planned, Next::Promote).map(|pair| pair.name().to_string()).collect();
        let unfinished = of(planned, Next::Nothing).map(|pair| pair.name().to_string());
        // A promotion that was cut off is finished, too.
        let all: Vec<String> = names.iter().cloned().chain(unfinished).collect();
        let bar = Bar::new("promoting", "images");
        let outcome =
            self.pool.promote_images(&all, false, |p| bar.set(p.finished as u64, p.total as u64)).await;
        bar.finish();
        self.note(planned, &outcome, "promoted here", true)?;
        if outcome.changed.is_empty() {
            return Ok(());
        }
        let sentence = format!("{} images are primary at site '{}'", outcome.changed.len(), self.site_name);
        self.tell("promoted", began, sentence)
    }

    /// Looks whether all came out as it should.
    async fn check(&mut self) -> Result<(), Failure> {
        let began = Instant::now();
        let planned = self.look().await?;
        let wrong: Vec<String> = planned
            .values()
            .filter(|(pair, _)| !facts::is_primary(&pair.here) || facts::is_primary(&pair.there))
            .map(|(pair, _)| targets::image_name(self.pool, pair.name()))
            .collect();
        if let Some(first) = wrong.first() {
            let sentence = format!(
                "{} images are not primary here alone, '{first}' among them; somebody else must have changed that",
                wrong.len()
            );
            return Err(Failure::new(libc::EBUSY, sentence));
        }
        self.tell("checked", began, format!("{} images are primary here, none of them there", planned.len()))
    }

    /// Waits until all pairs are as wanted.
    async fn wait(
        &mut self,
        action: &str,
        images: usize,
        arrived: impl Fn(&Pair) -> bool,
    ) -> Result<(), Failure> {
        let began = Instant::now();
        let bar = Bar::new(action, "images");
        bar.keep_moving();
        // What is wrong, and since when; progress with any image shows that there is a daemon that does something.
        let (mut wrong, mut since, mut fewest) = (None, Instant::now(), usize::MAX);
        loop {
            let planned = self.look().await?;
            let waiting: Vec<&Pair> =
                planned.values().map(|(pair, _)| pair).filter(|pair| !arrived(pair)).collect();
            let Some(first) = waiting.first() else { return Ok(()) };
            bar.set(images.saturating_sub(waiting.len()) as u64, images as u64);
            let fault = waiting.iter().find_map(|pair| Fault::of(pair));
            bar.remark(&fault.as_ref().map_or(String::new(), Fault::to_string));
            let name = targets::image_name(self.pool, first.name());
            let kind = fault.as_ref().map(std::mem::discriminant);
            if waiting.len() < fewest || kind != wrong {
                (wrong, since, fewest) = (kind, Instant::now(), fewest.min(waiting.len()));
            }
            if let Some(fault) = fault.filter(|fault| since.elapsed() > fault.patience(true)) {
                let sentence = format!(
                    "changes of {} images have not arrived, '{name}' among them: {fault}",
                    waiting.len()
                );
                return Err(Failure::new(libc::ETIMEDOUT, sentence));
            }
            if began.elapsed() > self.timeout {
                let sentence = format!(
                    "changes of {} images have not arrived after {}, '{name}' among them",
                    waiting.len(),
                    time::span(self.timeout.as_secs())
                );
                return Err(Failure::new(libc::ETIMEDOUT, sentence));
            }
            tokio::time::sleep(POLL_INTERVAL + POLL_PER_IMAGE * images as u32).await;
        }
    }

    /// Takes down what became of images, and fails when one of them could not be changed.
    fn note(
        &mut self,
        planned: &Planned,
        outcome: &PoolOutcome,
        did: &str,
        here: bool,
    ) -> Result<(), Failure> {
        let id_of = |name: &str| {
            let side = |pair: &Pair| if here { pair.here.clone() } else { pair.there.clone() };
            planned.values().find_map(|(pair, _)| {
                side(pair)
                    .filter(|side| side.info.name == name)
                    .map(|_| (pair.global_id.clone(), pair.name().to_string()))
            })
        };
        self.changed |= !outcome.changed.is_empty();
        for name in &outcome.changed {
            if let Some((global_id, name)) = id_of(name) {
                let name = targets::image_name(self.pool, &name);
                self.details.image(&global_id, &name).done.push(did.to_string());
            }
        }
        for (name, error) in &outcome.failed {
            if let Some((global_id, name)) = id_of(name) {
                let name = targets::image_name(self.pool, &name);
                self.details.image(&global_id, &name).error = Some(error.to_string());
            }
        }
        (self.record)(&self.details)?;
        match outcome.first_error() {
            None => Ok(()),
            Some(error) => {
                let sentence = format!(
                    "{} of {} images could not be {did}; run this again when that is mended",
                    outcome.failed.len(),
                    outcome.failed.len() + outcome.changed.len() + outcome.passed_over.len()
                );
                Err(Failure::new(error.errno(), sentence))
            }
        }
    }

    /// Takes down a step, and tells of it.
    fn tell(&mut self, step: &'static str, began: Instant, outcome: String) -> Result<(), Failure> {
        let seconds = began.elapsed().as_secs_f64();
        if self.talkative {
            output::put(&format!("{step:>10}  {outcome} ({seconds:.1} s)\n"))?;
        }
        let ended = time::universal(chrono::Utc::now());
        self.details.steps.push(Step { step, ended, seconds, outcome });
        (self.record)(&self.details)
    }
}

fn of(planned: &Planned, wanted: Next) -> impl Iterator<Item = &Pair> {
    planned.values().filter(move |(_, next)| *next == wanted).map(|(pair, _)| pair)
}

fn count(planned: &Planned, wanted: Next) -> usize {
    of(planned, wanted).count()
}

fn summary(planned: &Planned) -> String {
    let parts = [
        (Next::Nothing, "primary here already"),
        (Next::Mend, "to be mended"),
        (Next::CatchUp, "to be taken over"),
        (Next::Await, "demoted there already"),
        (Next::Promote, "ready to be promoted"),
    ];
    let counted = parts.iter().filter_map(|(next, words)| match count(planned, *next) {
        0 => None,
        number => Some(format!("{number} {words}")),
    });
    format!("{} images: {}", planned.len(), counted.collect::<Vec<_>>().join(", "))
}

/// Why the daemon here cannot be counted on for a pair.
enum Fault {
    /// There is no image, or no more.
    Absent,
    /// It has said nothing of the image.
    Silent,
    /// It is not running.
    Down,
    /// It tells of an error.
    Error(String),
}

impl Fault {
    fn of(pair: &Pair) -> Option<Fault> {
        let Some(here) = &pair.here else { return Some(Fault::Absent) };
        match &here.status {
            None => Some(Fault::Silent),
            Some(status) if !status.up => Some(Fault::Down),
            Some(status) if status.state == StatusState::Error => {
                Some(Fault::Error(status.description.clone()))
            }
            Some(_) => None,
        }
    }

    /// How long it is hoped that the fault goes away by itself: a daemon may be starting, or about to try again. Ceph's
    /// looks around every half a minute, and tells its own site no earlier of images that it makes anew (`anew`).
    fn patience(&self, anew: bool) -> Duration {
        match self {
            Fault::Down => Duration::from_secs(15),
            Fault::Silent if !anew => Duration::from_secs(15),
            Fault::Absent | Fault::Silent | Fault::Error(_) => Duration::from_secs(90),
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Absent => f.write_str("the mirror daemon of this site has not made the image (anew) yet"),
            Fault::Silent => f.write_str("the mirror daemon of this site says nothing of it; is it running?"),
            Fault::Down => f.write_str("the mirror daemon of this site is not running"),
            Fault::Error(description) => write!(f, "the mirror daemon of this site says: {description}"),
        }
    }
}
