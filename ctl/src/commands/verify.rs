//! `verify`: proves that copies equal their primaries. The proof itself is [`control::verify`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control::verify::checkpoint::NAME_PREFIX;
use control::verify::pace::Pace;
use control::verify::{self, Options, Progress, Subject, VerifyError};
use control::{ImageInfo, Pool, Role};
use futures::StreamExt;
use rados::SnapId;
use rbd::ImageHeader;
use rbd::mirroring::MirrorImageMode;
use serde::Serialize;
use tokio::sync::{mpsc, watch};

use crate::connection::Site;
use crate::failure::Failure;
use crate::grammar::Request;
use crate::grammar::own::VerifyArgs;
use crate::grammar::rbd::{Format, FormatArgs};
use crate::other_site::OtherSite;
use crate::output::{self, Bar, Table, time};
use crate::record::{Outcome, Record, SiteName};
use crate::targets::{self, Targets};

/// How often it is looked whether a new common point has arrived.
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// Images that are looked at at the same time.
const IMAGES_AT_ONCE: usize = 8;
/// What the process ends with when a copy differs.
const DIFFERENT: i32 = libc::EIO;

/// One image of a verification.
#[derive(Debug, Serialize)]
pub struct Verified {
    /// The image as people name it.
    pub image: String,
    /// What it is called on every site.
    pub global_id: String,
    /// The site that the copy is at.
    pub copy_at: String,
    /// What was found.
    pub report: Option<verify::Report>,
    /// What else is to be known.
    pub remark: Option<String>,
    /// Why nothing was found.
    pub error: Option<String>,
    #[serde(skip)]
    code: i32,
}

/// A pair of images to be compared.
pub struct Pair {
    /// The image here.
    pub here: ImageInfo,
    /// The image there.
    pub there: ImageInfo,
}

/// Where and how to compare.
pub struct Verifier<'a> {
    /// The pool here.
    pub pool: &'a Pool,
    /// The mirror uuid of the pool here.
    pub mirror_uuid: String,
    /// The name of this site.
    pub site_name: String,
    /// The other site.
    pub other: &'a OtherSite,
    /// How to compare.
    pub options: Options,
    /// Make a new common point first, in any case.
    pub new_point: bool,
    /// How long a new common point may take to arrive.
    pub timeout: Duration,
}

/// The two images of a pair by what they are to each other.
struct Ordered<'a> {
    primary_pool: &'a Pool,
    primary: &'a ImageInfo,
    primary_subject: Subject,
    copy_subject: Subject,
    /// The primary is at the other site.
    primary_there: bool,
}

/// Carries out the command.
pub async fn run(request: &Request, args: &VerifyArgs) -> Result<(), Failure> {
    let bytes = args.max_bytes_per_second.as_deref().map(byte_rate).transpose()?;
    targets::named(&args.target)?;
    output::document(&args.report.format)?;
    let site = Site::connect(request).await?;
    let targets = Targets::find(&site, &args.target).await?;
    let other = OtherSite::connect(&site, &targets.pool, &args.peer).await?;
    let mut record = Record::begin("verify", args.report.report.as_deref());
    let site_name = bootstrap::site_name(&site.cluster).await?;
    record.site = SiteName { name: site_name.clone(), fsid: site.cluster.fsid().to_string() };
    record.other_site = Some(SiteName { name: other.name.clone(), fsid: other.cluster.fsid().to_string() });

    let pace = Arc::new(Pace::new(args.parallel, args.max_objects_per_second, bytes));
    let options = Options { parallel: args.parallel, pace, ..Options::default() };
    let mirror_uuid = targets::mirror_uuid(&targets.pool).await?;
    let verifier = Verifier {
        pool: &targets.pool,
        mirror_uuid,
        site_name,
        other: &other,
        options,
        new_point: args.new_point,
        timeout: Duration::from_secs(args.timeout),
    };
    let mut there = targets::images_there(&other).await?;
    let (mut pairs, mut verified) = (Vec::new(), Vec::new());
    for image in targets.images {
        match image.global_id.as_ref().and_then(|id| there.remove(id)) {
            Some(counterpart) => pairs.push(Pair { here: image, there: counterpart }),
            None => verified.push(verifier.alone(&image)),
        }
    }
    verified.extend(verifier.all(pairs).await);
    verified.sort_by(|a, b| a.image.cmp(&b.image));
    conclude(&record, &verified, &args.report.format)
}

impl Verifier<'_> {
    /// Compares all pairs, with a bar on a terminal.
    pub async fn all(&self, pairs: Vec<Pair>) -> Vec<Verified> {
        let bar = Bar::new("comparing", "objects");
        bar.keep_moving();
        let (send, mut receive) = mpsc::unbounded_channel::<(usize, Progress)>();
        let show = async {
            let mut all: BTreeMap<usize, Progress> = BTreeMap::new();
            while let Some((index, progress)) = receive.recv().await {
                all.insert(index, progress);
                let sum = |of: fn(&Progress) -> u64| all.values().map(of).sum::<u64>();
                bar.set(sum(|p| p.objects_done), sum(|p| p.objects_total));
                bar.remark(&format!("{} read", time::bytes(sum(|p| p.bytes_done))));
            }
        };
        let compare = async {
            let one = |(index, pair): (usize, Pair)| {
                let send = send.clone();
                async move { self.one(index, &pair, &send).await }
            };
            let stream = futures::stream::iter(pairs.into_iter().enumerate().map(one));
            let verified = stream.buffer_unordered(IMAGES_AT_ONCE).collect::<Vec<_>>().await;
            drop(send);
            verified
        };
        tokio::join!(compare, show).0
    }

    async fn one(
        &self,
        index: usize,
        pair: &Pair,
        send: &mpsc::UnboundedSender<(usize, Progress)>,
    ) -> Verified {
        let mut verified = self.named(&pair.here);
        if pair.here.role == Role::Primary && pair.there.role == Role::Primary {
            verified.code = libc::EINVAL;
            verified.error =
                Some("both sites are primary (split-brain): neither is a copy of the other".to_string());
            return verified;
        }
        let ordered = self.ordered(pair);
        if !ordered.primary_there {
            verified.copy_at = self.other.name.clone();
        }
        let (progress, mut changes) = watch::channel(Progress::default());
        let forward = async {
            while changes.changed().await.is_ok() {
                let _ = send.send((index, *changes.borrow_and_update()));
            }
        };
        let compare = async {
            let found = self.compare(&ordered, &progress).await;
            drop(progress);
            found
        };
        match tokio::join!(compare, forward).0 {
            Ok((report, remark)) => (verified.report, verified.remark) = (Some(report), remark),
            Err(failure) => {
                verified.code = failure.code();
                verified.error = Some(failure.to_string());
            }
        }
        verified
    }

    fn ordered<'b>(&'b self, pair: &'b Pair) -> Ordered<'b> {
        let subject = |pool: &Pool, info: &ImageInfo, mirror_uuid: &str| Subject {
            ioctx: pool.ioctx().clone(),
            id: info.id.clone(),
            mirror_uuid: mirror_uuid.to_string(),
        };
        let here = subject(self.pool, &pair.here, &self.mirror_uuid);
        let there = subject(&self.other.pool, &pair.there, &self.other.mirror_uuid);
        match pair.here.role {
            Role::Primary => Ordered {
                primary_pool: self.pool,
                primary: &pair.here,
                primary_subject: here,
                copy_subject: there,
                primary_there: false,
            },
            _ => Ordered {
                primary_pool: &self.other.pool,
                primary: &pair.there,
                primary_subject: there,
                copy_subject: here,
                primary_there: true,
            },
        }
    }

    /// Compares a pair. A new common point is made first where that is asked for, or where there is none and one can be
    /// made. In journal mode that is also done when the point that was there proves nothing: writes that were in flight
    /// when a user's snapshot was made may lie on either side of it (see [`control::verify::checkpoint`]).
    async fn compare(
        &self,
        pair: &Ordered<'_>,
        progress: &watch::Sender<Progress>,
    ) -> Result<(verify::Report, Option<String>), Failure> {
        let journalled = pair.primary.mode == Some(MirrorImageMode::Journal);
        let can_begin_anew = journalled && pair.primary.role == Role::Primary;
        let mut remark = None;
        if !self.new_point {
            match self.as_is(pair, progress).await {
                Err(VerifyError::NothingInCommon(_)) if can_begin_anew => {}
                // It is another verification's, and may go, or was left behind by one.
                Ok(report) if can_begin_anew && report.pair.name.starts_with(NAME_PREFIX) => {}
                Ok(report) if can_begin_anew && !report.equal => {
                    remark = Some(format!(
                        "snapshot '{}' differs in {} objects, by writes that were in flight when it was made or by more",
                        report.pair.name, report.objects_different
                    ));
                }
                found => return Ok((found.map_err(failed)?, None)),
            }
        }
        let report = match journalled {
            true => self.at_checkpoint(pair, progress).await.map_err(|failure| match &remark {
                Some(remark) => Failure::new(failure.code(), format!("{remark}; {failure}")),
                None => failure,
            })?,
            false => {
                let name = &pair.primary.name;
                let snap = self.of_primary(Box::pin(pair.primary_pool.snapshot(name, None))).await?;
                self.arrive(pair, |header| has_copy_of(header, snap)).await?;
                self.as_is(pair, progress).await.map_err(failed)?
            }
        };
        Ok((report, remark))
    }

    /// Compares a pair at its newest common point.
    async fn as_is(
        &self,
        pair: &Ordered<'_>,
        progress: &watch::Sender<Progress>,
    ) -> Result<verify::Report, VerifyError> {
        verify::verify(&pair.primary_subject, &pair.copy_subject, &self.options, progress).await
    }

    /// Compares a pair in journal mode at a snapshot that is made for that and removed afterwards.
    async fn at_checkpoint(
        &self,
        pair: &Ordered<'_>,
        progress: &watch::Sender<Progress>,
    ) -> Result<verify::Report, Failure> {
        let name = &pair.primary.name;
        let point = format!("{NAME_PREFIX}{}", uuid::Uuid::new_v4());
        let made = async {
            let make = self.of_primary(Box::pin(pair.primary_pool.make_checkpoint(name, &point)));
            make.await.map_err(|failure| refused(failure, &targets::image_name(pair.primary_pool, name)))?;
            self.arrive(pair, |header| header.user_snapshot(&point).is_some()).await?;
            self.as_is(pair, progress).await.map_err(failed)
        };
        let found = made.await;
        // Whatever came of it.
        let removed = self.of_primary(Box::pin(pair.primary_pool.remove_checkpoints(name, &point))).await;
        if let Err(failure) = removed {
            output::complain(&failure.to_string());
        }
        found
    }

    /// Waits for what is asked of the primary. That may take as long as a client that has died still holds the lock.
    async fn of_primary<T>(&self, request: impl Future<Output = rados::Result<T>>) -> Result<T, Failure> {
        let Ok(done) = tokio::time::timeout(self.timeout, request).await else {
            let span = time::span(self.timeout.as_secs());
            return Err(Failure::new(
                libc::ETIMEDOUT,
                format!("the primary has not done what was asked for {span}"),
            ));
        };
        Ok(done?)
    }

    /// Waits until the copy's header is as wanted.
    async fn arrive(
        &self,
        pair: &Ordered<'_>,
        arrived: impl Fn(&ImageHeader) -> bool,
    ) -> Result<(), Failure> {
        let copy = &pair.copy_subject;
        let wait = async {
            loop {
                let read = ImageHeader::read(&copy.ioctx, &copy.id);
                let header = if pair.primary_there { read.await? } else { self.other.answer(read).await? };
                if arrived(&header) {
                    return Ok(());
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        };
        tokio::time::timeout(self.timeout, wait).await.unwrap_or_else(|_| {
            let sentence = format!(
                "a new common point has not arrived after {}; does the mirror daemon run?",
                time::span(self.timeout.as_secs())
            );
            Err(Failure::new(libc::ETIMEDOUT, sentence))
        })
    }

    fn alone(&self, info: &ImageInfo) -> Verified {
        let error = format!("site '{}' has no such image yet, or any more", self.other.name);
        Verified { error: Some(error), code: libc::ENOENT, ..self.named(info) }
    }

    fn named(&self, info: &ImageInfo) -> Verified {
        Verified {
            image: targets::image_name(self.pool, &info.name),
            global_id: info.global_id.as_ref().map_or(String::new(), |id| id.0.clone()),
            copy_at: self.site_name.clone(),
            report: None,
            remark: None,
            error: None,
            code: 0,
        }
    }
}

impl Verified {
    /// True when the copy is proved to be equal.
    pub fn is_equal(&self) -> bool {
        self.report.as_ref().is_some_and(|report| report.equal)
    }

    /// In a word or a sentence.
    pub fn verdict(&self) -> String {
        match (&self.report, &self.error) {
            (Some(report), _) if report.equal => "equal".to_string(),
            (Some(report), _) if report.objects_different == 0 => {
                format!("DIFFERENT: {} and {} bytes long", report.sizes.0, report.sizes.1)
            }
            (Some(report), _) => format!("DIFFERENT in {} objects", report.objects_different),
            (None, error) => format!("not compared: {}", error.as_deref().unwrap_or("no reason is known")),
        }
    }
}

/// Why no point could be made, with what to do when it is because somebody keeps the image's lock.
fn refused(failure: Failure, image: &str) -> Failure {
    match failure.code() {
        libc::EROFS => Failure::new(
            libc::EROFS,
            format!(
                "{failure}; have that client (see `rbd lock ls {image}`) close the image, or make a snapshot of it with `rbd \
                 snap create` while nothing is written to it, and verify again"
            ),
        ),
        _ => failure,
    }
}

fn failed(error: VerifyError) -> Failure {
    Failure::new(error.errno(), error.to_string())
}

/// True when an image holds a complete copy of the mirror-snapshot `snap` of its primary, or of a later one.
fn has_copy_of(header: &ImageHeader, snap: SnapId) -> bool {
    let copies = header.snapshots.values().filter_map(|snapshot| snapshot.mirror());
    copies
        .filter(|m| m.state.is_non_primary() && m.complete && !m.is_orphan())
        .any(|m| m.primary_snap_id >= snap)
}

/// Prints and records what was found, and decides what the process ends with.
fn conclude(record: &Record, verified: &[Verified], format: &FormatArgs) -> Result<(), Failure> {
    let different =
        verified.iter().filter(|one| one.report.as_ref().is_some_and(|report| !report.equal)).count();
    let failed = verified.iter().find(|one| one.error.is_some());
    let failure = match (different, failed) {
        (0, None) => None,
        (0, Some(first)) => Some(Failure::new(first.code, "not every copy could be compared; see above")),
        (n, _) => Some(Failure::new(
            DIFFERENT,
            format!("{n} of {} copies differ from their primaries", verified.len()),
        )),
    };
    let outcome = match (different, failed) {
        (0, None) => Outcome::Done,
        (0, Some(_)) => Outcome::Failed,
        _ => Outcome::Different,
    };
    record.write(outcome, failure.as_ref(), &verified)?;
    match format.format {
        Some(Format::Json) => output::put(&record.text(outcome, failure.as_ref(), &verified)?)?,
        _ => output::put(&plain(verified))?,
    }
    failure.map_or(Ok(()), Err)
}

fn plain(verified: &[Verified]) -> String {
    let mut table = Table::for_people(&["IMAGE", "COPY AT", "AS OF", "OBJECTS", "READ", "VERDICT"]);
    for one in verified {
        let report = one.report.as_ref();
        let of = |text: fn(&verify::Report) -> String| report.map_or("-".to_string(), text);
        table.row([
            one.image.clone(),
            one.copy_at.clone(),
            of(|report| time::local(report.pair.timestamp.into())),
            of(|report| report.objects.to_string()),
            of(|report| time::bytes(report.bytes)),
            one.verdict(),
        ]);
    }
    let mut text = table.to_string();
    for one in verified {
        if let Some(remark) = &one.remark {
            text += &format!("{}: {remark}\n", one.image);
        }
        let differences = one.report.iter().flat_map(|report| &report.differences);
        for difference in differences.take(DIFFERENCES_SHOWN) {
            let ranges = difference.ranges.iter().map(|range| format!("{}~{}", range.offset, range.length));
            text += &format!(
                "{}: object {} ({}) differs at {}\n",
                one.image,
                difference.object_number,
                difference.copy_object,
                ranges.collect::<Vec<_>>().join(", ")
            );
        }
    }
    text
}

/// Objects that differ, of one image, that are shown one by one; a report has more.
const DIFFERENCES_SHOWN: usize = 20;

/// A number of bytes, with K, M, G or T for binary multiples.
fn byte_rate(word: &str) -> Result<u64, Failure> {
    let refuse = || {
        Failure::invalid(format!("'{word}' is no number of bytes; it must be like 500000, 512K, 100M or 2G"))
    };
    let (digits, exponent) = match word.char_indices().next_back() {
        Some((at, unit)) if unit.is_ascii_alphabetic() => {
            let exponent = ['K', 'M', 'G', 'T'].iter().position(|known| *known == unit.to_ascii_uppercase());
            (&word[..at], exponent.ok_or_else(refuse)? as u32 + 1)
        }
        _ => (word, 0),
    };
    let number = digits.parse::<u64>().ok().filter(|number| *number > 0).ok_or_else(refuse)?;
    number.checked_mul(1 << (10 * exponent)).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        assert_eq!(byte_rate("500000").unwrap(), 500_000);
        assert_eq!(byte_rate("2g").unwrap(), 2 << 30);
        assert_eq!(byte_rate("64K").unwrap(), 64 << 10);
        for word in ["", "0", "M", "1X", "-1", "1.5M", "99999999999T", "é"] {
            assert_eq!(byte_rate(word).expect_err(word).code(), libc::EINVAL, "{word}");
        }
    }
}
