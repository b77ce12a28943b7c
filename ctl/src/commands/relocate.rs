//! `failover` and `failback`: the front of [`crate::relocation`].

use std::collections::BTreeSet;
use std::time::Duration;

use control::verify::Options;
use rbd::mirroring::GlobalImageId;

use super::verify::{Pair, Verifier};
use crate::connection::Site;
use crate::failure::Failure;
use crate::grammar::Request;
use crate::grammar::own::{FailbackArgs, FailoverArgs, PeerArgs, ReportArgs};
use crate::grammar::rbd::Format;
use crate::other_site::OtherSite;
use crate::output;
use crate::record::{Outcome, Record, SiteName};
use crate::relocation::emergency::Emergency;
use crate::relocation::plan::Goal;
use crate::relocation::planned::Relocation;
use crate::relocation::report::Details;
use crate::spec::Target;
use crate::targets::{self, Targets};

/// How long an emergency waits for a site that is thought to be lost.
const LOST_SITE_TIMEOUT: u64 = 5;

/// Carries out `failover`.
pub async fn failover(request: &Request, args: &FailoverArgs) -> Result<(), Failure> {
    if args.emergency {
        return emergency(request, args).await;
    }
    let wish = Wish {
        goal: Goal { discard_local: false },
        dry_run: args.dry_run,
        verify: args.verify,
        timeout: args.timeout,
        report: &args.report,
        peer: &args.peer,
    };
    Box::pin(planned(request, "failover", &args.target, &wish)).await
}

/// Carries out `failback`.
pub async fn failback(request: &Request, args: &FailbackArgs) -> Result<(), Failure> {
    let wish = Wish {
        goal: Goal { discard_local: args.discard_local },
        dry_run: args.dry_run,
        verify: args.verify,
        timeout: args.timeout,
        report: &args.report,
        peer: &args.peer,
    };
    Box::pin(planned(request, "failback", &args.target, &wish)).await
}

/// What `failover` and `failback` have in common.
struct Wish<'a> {
    goal: Goal,
    dry_run: bool,
    verify: bool,
    timeout: u64,
    report: &'a ReportArgs,
    peer: &'a PeerArgs,
}

async fn planned(
    request: &Request,
    command: &'static str,
    target: &crate::grammar::own::TargetArgs,
    wish: &Wish<'_>,
) -> Result<(), Failure> {
    targets::named(target)?;
    output::document(&wish.report.format)?;
    let site = Site::connect(request).await?;
    let targets = Targets::find(&site, target).await?;
    let other = OtherSite::connect(&site, &targets.pool, wish.peer).await?;
    let mut record = Record::begin(command, wish.report.report.as_deref());
    record.site = here(&site).await?;
    record.other_site = Some(SiteName { name: other.name.clone(), fsid: other.cluster.fsid().to_string() });
    let pool_name = targets.pool.to_string();
    let mut relocation = Relocation {
        pool: &targets.pool,
        mirror_uuid: targets::mirror_uuid(&targets.pool).await?,
        site_name: record.site.name.clone(),
        other: &other,
        wanted: wanted(&targets),
        goal: wish.goal,
        timeout: Duration::from_secs(wish.timeout),
        details: Details { pool: pool_name, ..Details::default() },
        record: Box::new(|details| record.write(Outcome::Running, None, details)),
        talkative: !is_json(wish.report),
        changed: false,
    };
    let mut outcome = match wish.dry_run {
        true => relocation.rehearse().await,
        false => Box::pin(relocation.run()).await,
    };
    if wish.verify && !wish.dry_run && outcome.is_ok() {
        outcome = verify(&mut relocation).await;
    }
    let mut details = std::mem::take(&mut relocation.details);
    drop(relocation);
    details.advice = match (&outcome, wish.dry_run) {
        (Ok(()), false) => advice(&record, &details, &targets),
        _ => Vec::new(),
    };
    conclude(&record, &details, wish.report, wish.dry_run, outcome)
}

async fn emergency(request: &Request, args: &FailoverArgs) -> Result<(), Failure> {
    targets::named(&args.target)?;
    output::document(&args.report.format)?;
    let site = Site::connect(request).await?;
    let targets = Targets::find(&site, &args.target).await?;
    let mut record = Record::begin("failover", args.report.report.as_deref());
    record.site = here(&site).await?;
    let peer = PeerArgs { peer_timeout: args.peer.peer_timeout.min(LOST_SITE_TIMEOUT), ..args.peer.clone() };
    let other = OtherSite::connect(&site, &targets.pool, &peer).await.ok();
    record.other_site = other
        .as_ref()
        .map(|other| SiteName { name: other.name.clone(), fsid: other.cluster.fsid().to_string() });
    if let Some(other) = &other {
        output::complain(&format!(
            "site '{}' still answers: make sure that nobody writes there any more; without --emergency, nothing would be lost",
            other.name
        ));
    }
    let mut emergency = Emergency {
        pool: &targets.pool,
        site_name: record.site.name.clone(),
        other: other.as_ref(),
        wanted: wanted(&targets),
        dry_run: args.dry_run,
        details: Details { pool: targets.pool.to_string(), ..Details::default() },
        record: Box::new(|details| record.write(Outcome::Running, None, details)),
        talkative: !is_json(&args.report),
    };
    let outcome = emergency.run().await;
    let mut details = std::mem::take(&mut emergency.details);
    drop(emergency);
    if !args.dry_run {
        details.advice = emergency_advice(&record, &targets);
    }
    conclude(&record, &details, &args.report, args.dry_run, outcome)
}

async fn here(site: &Site) -> Result<SiteName, Failure> {
    Ok(SiteName { name: bootstrap::site_name(&site.cluster).await?, fsid: site.cluster.fsid().to_string() })
}

/// The images that were named; `None` for all of the pool.
fn wanted(targets: &Targets) -> Option<BTreeSet<GlobalImageId>> {
    match targets.target {
        Target::Pool(_) => None,
        Target::Image(_) => Some(targets.images.iter().filter_map(|image| image.global_id.clone()).collect()),
    }
}

fn is_json(report: &ReportArgs) -> bool {
    report.format.format == Some(Format::Json)
}

/// Compares all data of images that were relocated.
async fn verify(relocation: &mut Relocation<'_>) -> Result<(), Failure> {
    let pairs = relocation.pairs().await?;
    let pairs =
        pairs.into_iter().filter_map(|pair| Some(Pair { here: pair.here?.info, there: pair.there?.info }));
    let verifier = Verifier {
        pool: relocation.pool,
        mirror_uuid: relocation.mirror_uuid.clone(),
        site_name: relocation.site_name.clone(),
        other: relocation.other,
        options: Options::default(),
        new_point: false,
        timeout: relocation.timeout,
    };
    let verified = verifier.all(pairs.collect()).await;
    let mut wrong = 0;
    for one in &verified {
        let id = GlobalImageId(one.global_id.clone());
        let report = relocation.details.image(&id, &one.image);
        match one.is_equal() {
            true => report.done.push("verified".to_string()),
            false => {
                wrong += 1;
                report.error = Some(one.verdict());
            }
        }
    }
    match wrong {
        0 => Ok(()),
        n => Err(Failure::new(
            libc::EIO,
            format!("{n} of {} images were not proved to be equal", verified.len()),
        )),
    }
}

fn advice(record: &Record, details: &Details, targets: &Targets) -> Vec<String> {
    let (here, there) = (&record.site.name, record.other_site.as_ref().map_or("", |site| site.name.as_str()));
    let mut advice = Vec::new();
    let in_use: Vec<&str> = details
        .images
        .iter()
        .filter(|image| !image.clients_there.is_empty())
        .map(|i| i.image.as_str())
        .collect();
    if !in_use.is_empty() {
        advice.push(format!(
            "Stop the clients at site '{there}' that had these images open, which are read-only there now: {}.",
            in_use.join(", ")
        ));
    }
    advice.push(format!("Start the clients at site '{here}'."));
    advice.push(format!(
        "Keep a mirror daemon running at site '{there}': it copies what is written here from now on. To give '{there}' its \
         role back, run `rbd-mirrorctl failback {}` there.",
        target_word(targets)
    ));
    advice
}

fn emergency_advice(record: &Record, targets: &Targets) -> Vec<String> {
    let here = &record.site.name;
    vec![
        "Make sure that no client of the other site writes to these images any more, now or when that site comes back."
            .to_string(),
        format!("Start the clients at site '{here}', and check their data: each image continues from the moment above."),
        format!(
            "When the other site is back, start its mirror daemon and run `rbd-mirrorctl failback --discard-local {}` there: \
             it gives up what was written there after that moment, copies what differs, and makes that site primary again.",
            target_word(targets)
        ),
    ]
}

/// What was named, as it is typed.
fn target_word(targets: &Targets) -> String {
    match &targets.target {
        Target::Pool(_) if targets.pool.namespace().is_empty() => targets.pool.name().to_string(),
        Target::Pool(_) => format!("{}/{}/", targets.pool.name(), targets.pool.namespace()),
        Target::Image(image) => targets::image_name(&targets.pool, &image.image),
    }
}

fn conclude(
    record: &Record,
    details: &Details,
    report: &ReportArgs,
    dry_run: bool,
    outcome: Result<(), Failure>,
) -> Result<(), Failure> {
    let word = match (&outcome, dry_run) {
        (Err(_), _) => Outcome::Failed,
        (Ok(()), true) => Outcome::Planned,
        (Ok(()), false) => Outcome::Done,
    };
    let failure = outcome.as_ref().err();
    record.write(word, failure, details)?;
    if is_json(report) {
        output::put(&record.text(word, failure, details)?)?;
    } else {
        let mut text = format!("\n{}", details.table());
        if !details.advice.is_empty() {
            text += "\nWhat to do now:\n";
            text.extend(
                details.advice.iter().enumerate().map(|(index, line)| format!("{}. {line}\n", index + 1)),
            );
        }
        output::put(&text)?;
    }
    outcome
}
