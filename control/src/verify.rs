//! Proves that a copy equals its primary, without moving data: object by object, by checksums that the OSDs compute.
//!
//! Both images are read at a pair of snapshots that hold the same point in time ([`pair`]), through all parents
//! ([`view`]), as a reader would see them: an object that does not exist equals one of zeros where no parent shows
//! through, and bytes behind the end of the image do not count ([`compare`]).
//!
//! **A moving target.** Mirroring goes on meanwhile, and takes away old mirror-snapshots as new ones arrive. Objects are
//! compared in batches of at most some seconds. After each, both headers are read again: when the pair is still there, what
//! the batch found stands; when it is gone, the newest pair takes its place. Objects that were found equal at the old pair
//! are equal at the new one if neither has got another version, which is asked for without reading any data. So the last
//! pair is the one that the report speaks of.
//!
//! **What is proved.** That the 64-bit xxHash sums (seed -1) of all ranges are equal, as computed by the OSDs from the
//! data that they would serve. Two different ranges pass for equal with a chance of 2^-64. Object maps are not believed.
//!
//! Nothing is written on either side, but for the snapshots that [`checkpoint`] makes where the two have no point in common.
//! Cancel-safe.

pub mod checkpoint;
pub mod compare;
pub mod pace;
pub mod pair;
pub mod view;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rados::{Extent, IoCtx};
use rbd::object_map::OBJECT_COUNT_MAX;
use rbd::{Image, ImageHeader, ImageId, ObjectNumber};
use serde::Serialize;
use thiserror::Error;
use tokio::sync::watch;

use compare::{Outcome, Versions};
use pace::Pace;
use pair::Pair;
use view::View;

/// The shortest batch, and the first one. A batch that stands is followed by one of twice the length, one that is void by
/// one of a quarter of it.
const BATCH_MIN: Duration = Duration::from_millis(100);
/// Moves to another pair in a row after which a verification gives up, because none of them had more objects settled than
/// ever before: snapshots come and go faster than it works.
const IDLE_MOVES_MAX: u32 = 20;
/// Objects whose differences are told one by one; of more, only the number is told.
const DIFFERENCES_MAX: usize = 10_000;

/// How to verify.
#[derive(Debug, Clone)]
pub struct Options {
    /// Objects of one image compared at the same time, as far as the pace allows.
    pub parallel: usize,
    /// The pace, shared by all images.
    pub pace: Arc<Pace>,
    /// How long a batch lasts at most.
    pub batch_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options { parallel: 32, pace: Arc::default(), batch_max: Duration::from_secs(5) }
    }
}

/// One of the two images.
#[derive(Debug, Clone)]
pub struct Subject {
    /// Its pool and namespace.
    pub ioctx: IoCtx,
    /// The image.
    pub id: ImageId,
    /// Mirror uuid of the pool and namespace.
    pub mirror_uuid: String,
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Objects to compare.
    pub objects_total: u64,
    /// Objects that are done.
    pub objects_done: u64,
    /// Bytes that the OSDs of one side have read.
    pub bytes_done: u64,
    /// Objects found different.
    pub objects_different: u64,
}

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// True when the copy equals the primary at the pair.
    pub equal: bool,
    /// Where both were read.
    pub pair: Pair,
    /// Sizes of primary and copy there, in bytes.
    pub sizes: (u64, u64),
    /// Number of objects compared, at one pair or another.
    pub objects: u64,
    /// Bytes that the OSDs of one side have read.
    pub bytes: u64,
    /// How often the pair went away and another one took its place.
    pub moves: u32,
    /// Number of objects that differ.
    pub objects_different: u64,
    /// The objects that differ, up to a number.
    pub differences: Vec<Difference>,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// An object that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Its number.
    pub object_number: u64,
    /// Its name at the primary.
    pub primary_object: String,
    /// Its name at the copy.
    pub copy_object: String,
    /// The ranges of the image that differ, to the block of 4 KiB.
    pub ranges: Vec<Range>,
}

/// A range of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// Why nothing was proved, neither way.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The two have no point in time in common.
    #[error("there is no snapshot that both have: {0}")]
    NothingInCommon(String),
    /// The pairs went away faster than objects could be compared.
    #[error(
        "mirror-snapshots came and went faster than objects could be compared; try again when fewer are taken"
    )]
    NeverStill,
    /// The primary's cluster.
    #[error("cannot read the primary: {0}")]
    Primary(#[source] rados::Error),
    /// The copy's cluster.
    #[error("cannot read the copy: {0}")]
    Copy(#[source] rados::Error),
}

impl VerifyError {
    /// The error number that stands for it.
    pub fn errno(&self) -> i32 {
        match self {
            VerifyError::NothingInCommon(_) => libc::ENOENT,
            VerifyError::NeverStill => libc::EAGAIN,
            VerifyError::Primary(error) | VerifyError::Copy(error) => error.errno(),
        }
    }
}

/// Compares `copy` with `primary`; progress is published through `progress`.
pub async fn verify(
    primary: &Subject,
    copy: &Subject,
    options: &Options,
    progress: &watch::Sender<Progress>,
) -> Result<Report, VerifyError> {
    let began = Instant::now();
    let mut run = Run::begin(primary, copy, options, progress).await?;
    while run.first_pending().is_some() {
        let found = run.batch().await?;
        let sides = Sides::read(primary, copy).await?;
        let stands = sides.still_has(&run.pair);
        if stands {
            if !run.settle(found) {
                return Err(VerifyError::NeverStill);
            }
        } else {
            run.move_to(sides, found).await?;
            if run.idle_moves > IDLE_MOVES_MAX {
                return Err(VerifyError::NeverStill);
            }
        }
        run.batch = match stands {
            true => (run.batch * 2).min(options.batch_max),
            false => (run.batch / 4).max(BATCH_MIN),
        };
    }
    Ok(run.report(began.elapsed()))
}

/// Both images with their headers as last read.
struct Sides {
    primary: (Image, ImageHeader),
    copy: (Image, ImageHeader),
}

impl Sides {
    async fn read(primary: &Subject, copy: &Subject) -> Result<Sides, VerifyError> {
        let theirs = async { Image::open(&primary.ioctx, &primary.id).await.map_err(VerifyError::Primary) };
        let ours = async { Image::open(&copy.ioctx, &copy.id).await.map_err(VerifyError::Copy) };
        let (primary, copy) = futures::try_join!(theirs, ours)?;
        Ok(Sides { primary, copy })
    }

    fn still_has(&self, pair: &Pair) -> bool {
        pair.is_in(&self.primary.1, &self.copy.1)
    }

    async fn newest_pair(&self, primary: &Subject, copy: &Subject) -> Result<Pair, VerifyError> {
        let marker = |image: Image| async move { snapshot::begin::read_marker(&image).await };
        let primary_marker = marker(self.primary.0.clone()).await.map_err(VerifyError::Primary)?;
        let copy_marker = marker(self.copy.0.clone()).await.map_err(VerifyError::Copy)?;
        let side = |header, mirror_uuid, marker| pair::Side { header, mirror_uuid, marker };
        pair::newest(
            side(&self.primary.1, primary.mirror_uuid.as_str(), primary_marker),
            side(&self.copy.1, copy.mirror_uuid.as_str(), copy_marker),
        )
        .map_err(VerifyError::NothingInCommon)
    }
}

/// A verification under way.
struct Run<'a> {
    subjects: (&'a Subject, &'a Subject),
    options: &'a Options,
    progress: &'a watch::Sender<Progress>,
    sides: Sides,
    pair: Pair,
    views: Arc<(View, View)>,
    /// By object number: still to be compared.
    pending: Vec<bool>,
    /// By object number: versions that were found equal.
    equal: HashMap<u64, Versions>,
    state: Progress,
    /// How long the next batch lasts.
    batch: Duration,
    moves: u32,
    /// Moves at which no more objects were settled than ever before, in a row.
    idle_moves: u32,
    most_settled: usize,
    objects_compared: u64,
    different: BTreeMap<u64, Difference>,
}

/// What a batch found, object by object.
type Found = Vec<(u64, Outcome)>;

impl<'a> Run<'a> {
    async fn begin(
        primary: &'a Subject,
        copy: &'a Subject,
        options: &'a Options,
        progress: &'a watch::Sender<Progress>,
    ) -> Result<Run<'a>, VerifyError> {
        let sides = Sides::read(primary, copy).await?;
        let pair = sides.newest_pair(primary, copy).await?;
        let views = open_views(&sides, &pair).await?;
        let mut run = Run {
            subjects: (primary, copy),
            options,
            progress,
            sides,
            pair,
            views: Arc::new(views),
            pending: Vec::new(),
            equal: HashMap::new(),
            state: Progress::default(),
            batch: BATCH_MIN.min(options.batch_max),
            moves: 0,
            idle_moves: 0,
            most_settled: 0,
            objects_compared: 0,
            different: BTreeMap::new(),
        };
        run.pending = vec![true; run.object_count()?];
        run.publish();
        Ok(run)
    }

    /// Number of objects to be compared. As many as an object map may tell of: the list of those that are pending is as
    /// long.
    fn object_count(&self) -> Result<usize, VerifyError> {
        let objects = self.views.0.object_count().max(self.views.1.object_count());
        if objects > OBJECT_COUNT_MAX {
            let what = format!("{objects} objects are more than the {OBJECT_COUNT_MAX} that can be compared");
            return Err(VerifyError::Primary(rados::Error::new(libc::EFBIG, what)));
        }
        Ok(objects as usize)
    }

    fn first_pending(&self) -> Option<u64> {
        self.pending.iter().position(|pending| *pending).map(|object| object as u64)
    }

    /// Compares objects for as long as a batch lasts.
    async fn batch(&mut self) -> Result<Found, VerifyError> {
        let until = Instant::now() + self.batch;
        let mut waiting = (0_u64..).zip(self.pending.iter()).filter(|(_, pending)| **pending).map(|(o, _)| o);
        let mut tasks = FuturesUnordered::new();
        let mut found = Found::new();
        let mut issuing = true;
        loop {
            while issuing && tasks.len() < self.options.parallel.max(1) {
                let Some(object) = waiting.next() else {
                    issuing = false;
                    break;
                };
                let (views, pace) = (self.views.clone(), self.options.pace.clone());
                let equal = self.equal.get(&object).copied();
                tasks.push(async move {
                    let number = ObjectNumber(object);
                    let outcome = compare::object(&views.0, &views.1, number, equal, &pace).await;
                    (object, outcome)
                });
            }
            let Some((object, outcome)) = tasks.next().await else { return Ok(found) };
            let outcome = outcome?;
            self.state.objects_done += 1;
            self.state.bytes_done += outcome.bytes;
            self.state.objects_different += u64::from(!outcome.ranges.is_empty());
            self.progress.send_replace(self.state);
            found.push((object, outcome));
            issuing &= Instant::now() < until;
        }
    }

    /// Takes over what a batch found while its pair was there throughout. False when an object stays unclear for no
    /// reason that can be told.
    fn settle(&mut self, found: Found) -> bool {
        let settled = found.iter().any(|(_, outcome)| !outcome.unclear);
        for (object, outcome) in found.into_iter().filter(|(_, outcome)| !outcome.unclear) {
            self.pending[object as usize] = false;
            self.objects_compared += u64::from(!outcome.known);
            match outcome.ranges.is_empty() {
                true => {
                    self.found_equal(object, outcome.of);
                    self.different.remove(&object);
                }
                false => _ = self.different.insert(object, self.difference(object, &outcome.ranges)),
            }
        }
        self.publish();
        settled
    }

    fn found_equal(&mut self, object: u64, versions: Option<Versions>) {
        match versions {
            Some(versions) => _ = self.equal.insert(object, versions),
            None => _ = self.equal.remove(&object),
        }
    }

    fn difference(&self, object: u64, ranges: &[Extent]) -> Difference {
        let number = ObjectNumber(object);
        let range = |extent: &Extent| Range { offset: extent.offset, length: extent.length };
        Difference {
            object_number: object,
            primary_object: self.sides.primary.0.data_object(number),
            copy_object: self.sides.copy.0.data_object(number),
            ranges: ranges.iter().map(range).collect(),
        }
    }

    /// Goes on at the newest pair. Of what was found while the old one went away, only that is used which holds for
    /// certain versions of the objects.
    async fn move_to(&mut self, sides: Sides, found: Found) -> Result<(), VerifyError> {
        let pair = sides.newest_pair(self.subjects.0, self.subjects.1).await?;
        let views = open_views(&sides, &pair).await?;
        let same_parents = views.0.has_parent_like(&self.views.0) && views.1.has_parent_like(&self.views.1);
        let same_sizes = views.0.size() == self.views.0.size() && views.1.size() == self.views.1.size();
        let settled = self.pending.iter().filter(|pending| !**pending).count();
        self.idle_moves = if settled > self.most_settled { 0 } else { self.idle_moves + 1 };
        self.most_settled = self.most_settled.max(settled);
        for (object, outcome) in found {
            self.objects_compared += u64::from(!outcome.known);
            if outcome.certain && outcome.ranges.is_empty() {
                self.found_equal(object, outcome.of);
            }
        }
        self.views = Arc::new(views);
        self.sides = sides;
        self.pair = pair;
        self.moves += 1;
        let count = self.object_count()?;
        self.pending = vec![true; count];
        self.equal.retain(|object, _| *object < count as u64);
        if !(same_parents && same_sizes) {
            self.equal.clear();
        }
        self.different.retain(|object, _| *object < count as u64);
        self.publish();
        Ok(())
    }

    fn publish(&mut self) {
        let pending = self.pending.iter().filter(|pending| **pending).count() as u64;
        self.state.objects_total = self.pending.len() as u64;
        self.state.objects_done = self.state.objects_total - pending;
        self.state.objects_different = self.different.len() as u64;
        self.progress.send_replace(self.state);
    }

    fn report(self, elapsed: Duration) -> Report {
        let sizes = (self.views.0.size(), self.views.1.size());
        let objects_different = self.different.len() as u64;
        Report {
            equal: objects_different == 0 && sizes.0 == sizes.1,
            pair: self.pair,
            sizes,
            objects: self.objects_compared,
            bytes: self.state.bytes_done,
            moves: self.moves,
            objects_different,
            differences: self.different.into_values().take(DIFFERENCES_MAX).collect(),
            seconds: elapsed.as_secs_f64(),
        }
    }
}

async fn open_views(sides: &Sides, pair: &Pair) -> Result<(View, View), VerifyError> {
    let (primary, copy) = (&sides.primary, &sides.copy);
    let theirs =
        async { View::open(&primary.0, &primary.1, pair.primary_snap).await.map_err(VerifyError::Primary) };
    let ours = async { View::open(&copy.0, &copy.1, pair.read_copy_at).await.map_err(VerifyError::Copy) };
    futures::try_join!(theirs, ours)
}
