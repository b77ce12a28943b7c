//! Which objects a round has to look at.
//!
//! With fast-diff, the remote object maps tell: of the start, of every snapshot between (of whatever namespace), and of
//! the end. Otherwise every object that the image had at any of them is looked at, and its clones tell.
//!
//! **What is trusted.** An object map is believed when the image has the features, neither the image's nor the
//! snapshot's flags call it invalid, it can be read, its checksums are right and it is large enough for its image. A
//! snapshot that goes away while the maps are read merges its changes into the next one, which may have been read
//! before: then no map is believed. Two lies no flag tells of:
//! * A rollback: see [`crate::map_trust`].
//! * A write under way while a snapshot is taken (librbd before 16.2.14, 17.2.7 and 18.2.0, kernels before 6.4;
//!   <https://tracker.ceph.com/issues/61616>): carried out later with the snapshot context from before, it changes the
//!   snapshot, whose map calls the object clean or nonexistent, and marks it in the map of the head. So what the head's map
//!   calls written since the end is looked at as well; and an object that a map calls written ([`Reason::Claimed`])
//!   while its clones tell of no change is compared by checksums ([`crate::object_copy`]), for such a write may have come after
//!   an earlier look.
//!
//! **Interrupted rounds.** When a user snapshot is removed between an interruption and the continuation, an object that
//! existed in it alone is in no remote map any longer, but may exist locally. The local map knows: before a round
//! writes an object, it is marked as changed there ([`Visits::with_changed`]).

use std::ops::Range;

use futures::future::try_join_all;
use rados::{IoCtx, Result, SnapId};
use rbd::fast_diff::{Diff, FastDiffVersion, diff};
use rbd::layout::Layout;
use rbd::object_map::{ObjectMap, ObjectMapObject, ObjectState};
use rbd::{Features, ImageFlags, ImageId, ObjectNumber, Snapshot};

use crate::map_trust::{Candidate, Candidates, History, Suspicion, Trust};

/// Maps of candidates that are read at the same time.
const CANDIDATE_MAPS_IN_FLIGHT: usize = 4;

/// Why an object is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It may have changed.
    Doubt,
    /// A map says that it changed.
    Claimed,
    /// A map says that it changed, and that it did not exist at the start.
    Whole,
}

/// Objects to look at: ascending and disjoint runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Visits {
    runs: Vec<Run>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    objects: Range<u64>,
    reason: Reason,
}

impl Visits {
    /// All of an image's objects.
    pub fn all(objects: u64) -> Visits {
        let mut visits = Visits::default();
        visits.push(0..objects, Reason::Doubt);
        visits
    }

    fn push(&mut self, objects: Range<u64>, reason: Reason) {
        match self.runs.last_mut() {
            _ if objects.is_empty() => {}
            Some(last) if last.objects.end == objects.start && last.reason == reason => {
                last.objects.end = objects.end
            }
            _ => self.runs.push(Run { objects, reason }),
        }
    }

    /// Number of objects.
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|run| run.objects.end - run.objects.start).sum()
    }

    /// True when there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The objects, ascending; with each why it is looked at.
    pub fn iter(&self) -> impl Iterator<Item = (ObjectNumber, Reason)> + Send + use<> {
        self.runs
            .clone()
            .into_iter()
            .flat_map(|run| run.objects.map(move |object| (ObjectNumber(object), run.reason)))
    }

    /// Those that are not below `first`: what is left of an interrupted round.
    pub fn from(mut self, first: u64) -> Visits {
        for run in &mut self.runs {
            run.objects.start = run.objects.start.max(first);
        }
        self.runs.retain(|run| !run.objects.is_empty());
        self
    }

    /// Also those that the local head's map says may have been written since the newest local snapshot was made.
    pub fn with_changed(&self, head: &ObjectMap) -> Visits {
        self.with(head.len(), |object| matches!(head.get(object), ObjectState::Exists | ObjectState::Pending))
    }

    /// Also all others of the first `objects`: where maps are not believed. Nor are they when they say that an object did not
    /// exist at the start.
    pub fn and_all_others(&self, objects: u64) -> Visits {
        let mut visits = self.with(objects, |_| true);
        for run in visits.runs.iter_mut().filter(|run| run.reason == Reason::Whole) {
            run.reason = Reason::Claimed;
        }
        visits
    }

    /// Also those of the first `objects` for which `also` holds.
    fn with(&self, objects: u64, also: impl Fn(ObjectNumber) -> bool) -> Visits {
        let mut visits = Visits::default();
        let mut at = 0;
        for run in &self.runs {
            visits.push_doubtful(at..run.objects.start.min(objects), &also);
            visits.push(run.objects.clone(), run.reason);
            at = run.objects.end;
        }
        visits.push_doubtful(at..objects, &also);
        visits
    }

    /// Also those that the end's map does not call written, and a newer one does: a write that was under way when the end was
    /// made may have changed the end.
    pub fn with_late(&self, end: &ObjectMap, newer: &ObjectMap) -> Visits {
        let late = |object: ObjectNumber| {
            let clean = matches!(end.get(object), ObjectState::ExistsClean | ObjectState::NonExistent);
            clean && object.0 < end.len() && newer.get(object) == ObjectState::Exists
        };
        self.with(end.len(), late)
    }

    fn push_doubtful(&mut self, objects: Range<u64>, also: impl Fn(ObjectNumber) -> bool) {
        for object in objects.filter(|object| also(ObjectNumber(*object))) {
            self.push(object..object + 1, Reason::Doubt);
        }
    }
}

/// Which of the objects that exist at the end are of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those that changed.
    Changed,
    /// All of them: the image was flattened, so the parent no longer stands in for objects that are absent locally.
    Existing,
}

/// The remote image, as far as its object maps are concerned.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    /// Where its header and object maps lie.
    pub header: &'a IoCtx,
    /// The image.
    pub image: &'a ImageId,
    /// Its features.
    pub features: Features,
    /// Its layout.
    pub layout: &'a Layout,
    /// All of its snapshots, ascending.
    pub snapshots: &'a [Snapshot],
    /// Where the difference starts; `None`: at nothing.
    pub start: Option<SnapId>,
    /// Where it ends.
    pub end: SnapId,
    /// How far object maps are believed when nothing speaks against it.
    pub trust: Trust,
    /// What is known of the image from before the start.
    pub history: &'a History,
}

impl Chain<'_> {
    /// The snapshots that the image may have been rolled back to after the start.
    pub fn candidates(&self) -> Candidates {
        Candidates::new(self.snapshots, self.start, self.end, self.history)
    }
}

/// What to look at, and what is to be known of the end when it is the start of the next delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// The objects to look at.
    pub visits: Visits,
    /// No rollback can have been under way when the end was made ([`History::settled`]).
    pub settled: bool,
}

/// Which objects to look at for what lies between start and end. Errors are those of the cluster being unreachable; a
/// map that cannot be used only costs time.
pub async fn changes(chain: &Chain<'_>, scope: Scope) -> Result<Changes> {
    let from = chain.start.unwrap_or(SnapId(0));
    let versions: Vec<&Snapshot> =
        chain.snapshots.iter().filter(|s| s.id >= from && s.id <= chain.end).collect();
    let objects = versions.iter().map(|s| chain.layout.object_count(s.image_size)).max().unwrap_or(0);
    let candidates = chain.candidates();
    let unknown = Changes { visits: Visits::all(objects), settled: candidates.is_empty() };
    if !chain.features.has(Features::FAST_DIFF) || !complete(chain, &versions) {
        return Ok(unknown);
    }
    let maps = try_join_all(versions.iter().map(|snapshot| load(chain, snapshot))).await?;
    let Some(maps) = maps.into_iter().collect::<Option<Vec<_>>>() else {
        return Ok(unknown);
    };
    let before = chain.start.and(maps.first());
    let after = if before.is_some() { &maps[1..] } else { &maps };
    let version = |(map, snapshot): (&ObjectMap, &&Snapshot)| {
        FastDiffVersion::new(chain.features, snapshot.flags, chain.layout, snapshot.image_size, map.clone())
    };
    let usable: Result<Vec<_>> = maps.iter().zip(&versions).map(version).collect();
    let Ok(usable) = usable else {
        return Ok(unknown);
    };
    let (start, rest) = usable.split_at(maps.len() - after.len());
    let mut visits = chosen(&diff(start.first(), rest), before, scope);
    match chain.trust {
        Trust::Always => return Ok(Changes { visits, settled: unknown.settled }),
        Trust::Never => {
            return Ok(Changes { visits: visits.and_all_others(objects), settled: unknown.settled });
        }
        Trust::Auto => {}
    }
    let ends: Vec<_> = versions[start.len()..].iter().zip(rest).map(|(s, v)| (s.id, v.map())).collect();
    let suspicion = suspicion(chain, &candidates, &ends).await?;
    // Without a snapshot to be rolled back to no rollback was under way at the start either.
    let settled = chain.start.is_none() || chain.history.settled || candidates.is_empty();
    let Some(end) = rest.last() else { return Ok(unknown) };
    let settled_after = suspicion.is_settled_after(settled, end.map());
    if !suspicion.is_dispelled(settled) {
        tracing::info!(
            image = %chain.image,
            "looking at every object: the image may have been rolled back, which its object maps do not tell"
        );
        // What they call written is looked at more closely all the same.
        return Ok(Changes { visits: visits.and_all_others(objects), settled: settled_after });
    }
    if let Some(head) = load_head(chain).await? {
        visits = visits.with_late(end.map(), &head);
    }
    Ok(Changes { visits, settled: settled_after })
}

/// Where a rollback may have taken place. `ends` are the snapshots that end intervals, with their maps.
async fn suspicion(
    chain: &Chain<'_>,
    candidates: &Candidates,
    ends: &[(SnapId, &ObjectMap)],
) -> Result<Suspicion> {
    if candidates.lost {
        return Ok(Suspicion::all(ends.len()));
    }
    let mut suspicion = Suspicion::none(ends.len());
    for some in candidates.present.chunks(CANDIDATE_MAPS_IN_FLIGHT) {
        let maps = try_join_all(some.iter().map(|candidate| load_candidate(chain, candidate))).await?;
        for (candidate, map) in some.iter().zip(&maps) {
            suspicion.judge(candidate, map.as_ref(), ends.iter().copied());
        }
    }
    Ok(suspicion)
}

/// The map of a candidate, cut to the size of its image; `None` when it cannot be believed.
async fn load_candidate(chain: &Chain<'_>, candidate: &Candidate) -> Result<Option<ObjectMap>> {
    let snapshot = chain.snapshots.iter().find(|s| s.id == candidate.snap && !is_flagged(s));
    let Some(snapshot) = snapshot else { return Ok(None) };
    let mut map = load(chain, snapshot).await?;
    if let Some(map) = &mut map {
        map.resize(chain.layout.object_count(candidate.image_size));
    }
    Ok(map)
}

/// The map of the newest state that a map tells of: of the snapshot after the end, else of the head.
async fn load_head(chain: &Chain<'_>) -> Result<Option<ObjectMap>> {
    let next = chain.snapshots.iter().find(|s| s.id > chain.end).map_or(SnapId::HEAD, |s| s.id);
    load_map(chain, next).await
}

/// Start and end are among the snapshots, and no flag speaks against any map.
fn complete(chain: &Chain<'_>, versions: &[&Snapshot]) -> bool {
    let has_start = chain.start.is_none_or(|start| versions.first().is_some_and(|s| s.id == start));
    has_start && versions.last().is_some_and(|s| s.id == chain.end) && !versions.iter().any(|s| is_flagged(s))
}

fn is_flagged(snapshot: &Snapshot) -> bool {
    snapshot.flags.has(ImageFlags::OBJECT_MAP_INVALID) || snapshot.flags.has(ImageFlags::FAST_DIFF_INVALID)
}

/// `None` when the map is missing or makes no sense.
async fn load(chain: &Chain<'_>, snapshot: &Snapshot) -> Result<Option<ObjectMap>> {
    load_map(chain, snapshot.id).await
}

async fn load_map(chain: &Chain<'_>, snap: SnapId) -> Result<Option<ObjectMap>> {
    match ObjectMapObject::new(chain.header, chain.image, snap).load().await {
        Ok(map) => Ok(Some(map)),
        Err(error) if matches!(error.errno(), libc::ENOENT | libc::EINVAL | libc::EBADMSG | libc::EIO) => {
            tracing::warn!(image = %chain.image, %snap, %error, "an object map cannot be used");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn chosen(diffs: &[Diff], before: Option<&ObjectMap>, scope: Scope) -> Visits {
    let mut visits = Visits::default();
    for (object, diff) in diffs.iter().enumerate().map(|(object, diff)| (object as u64, diff)) {
        let chosen = diff.is_changed() || (scope == Scope::Existing && *diff == Diff::Unchanged);
        let existed = before.is_some_and(|map| map.get(ObjectNumber(object)).may_exist());
        if chosen {
            let reason = match (existed, diff.is_changed()) {
                (false, _) => Reason::Whole,
                (true, true) => Reason::Claimed,
                (true, false) => Reason::Doubt,
            };
            visits.push(object..object + 1, reason);
        }
    }
    visits
}

#[cfg(test)]
mod tests {
    use super::*;

    use Reason::{Claimed, Doubt, Whole};

    fn objects(visits: &Visits) -> Vec<(u64, Reason)> {
        visits.iter().map(|(object, reason)| (object.0, reason)).collect()
    }

    #[test]
    fn changed_objects_and_those_that_were_not_there_before() {
        let mut before = ObjectMap::new(4);
        before.set(ObjectNumber(1), ObjectState::Exists);
        before.set(ObjectNumber(2), ObjectState::Exists);
        let diffs = [Diff::Hole, Diff::Unchanged, Diff::Updated, Diff::Updated, Diff::Removed];
        let changed = chosen(&diffs, Some(&before), Scope::Changed);
        assert_eq!(objects(&changed), [(2, Claimed), (3, Whole), (4, Whole)]);
        assert_eq!(changed.len(), 3);
        let existing = chosen(&diffs, Some(&before), Scope::Existing);
        assert_eq!(objects(&existing), [(1, Doubt), (2, Claimed), (3, Whole), (4, Whole)]);
        assert_eq!(objects(&existing.from(3)), [(3, Whole), (4, Whole)]);
    }

    #[test]
    fn maps_that_are_not_believed_still_claim() {
        let mut before = ObjectMap::new(3);
        before.set(ObjectNumber(1), ObjectState::Exists);
        let visits = chosen(&[Diff::Hole, Diff::Updated, Diff::Updated], Some(&before), Scope::Changed);
        assert_eq!(objects(&visits), [(1, Claimed), (2, Whole)]);
        let all = visits.and_all_others(4);
        assert_eq!(objects(&all), [(0, Doubt), (1, Claimed), (2, Claimed), (3, Doubt)]);
    }

    #[test]
    fn what_an_interrupted_round_touched_is_looked_at_again() {
        let mut head = ObjectMap::new(8);
        for (object, state) in
            [(0, ObjectState::Exists), (1, ObjectState::ExistsClean), (7, ObjectState::Exists)]
        {
            head.set(ObjectNumber(object), state);
        }
        let visits = chosen(&[Diff::Hole, Diff::Hole, Diff::Updated], None, Scope::Changed);
        assert_eq!(objects(&visits.with_changed(&head)), [(0, Doubt), (2, Whole), (7, Doubt)]);
        assert_eq!(objects(&Visits::default().with_changed(&head)), [(0, Doubt), (7, Doubt)]);
    }
}
