//! Which objects a round has to look at.
//!
//! With fast-diff, the remote object maps tell: of the start, of every snapshot between (of whatever namespace), and of
//! the end. Otherwise every object that the image had at any of them is looked at, and its clones tell.
//!
//! **What is trusted.** An object map is believed when the image has the features, neither the image's nor the
//! snapshot's flags call it invalid, it can be read, its checksums are right and it is large enough for its image. A
//! snapshot that goes away while the maps are read merges its changes into the next one, which may have been read
//! before: then no map is believed. What remains is the one lie that nobody can see: librbd before 16.2.14, 17.2.7 and
//! 18.2.0 (<https://tracker.ceph.com/issues/61616>), and kernels of that time, could mark an object as clean in a
//! snapshot that was taken while a write to it was under way. An object that exists is never called nonexistent. Where
//! that is to be feared, `trust` is to be false.
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

/// Objects to look at: ascending and disjoint runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Visits {
    runs: Vec<Run>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Run {
    objects: Range<u64>,
    whole: bool,
}

impl Visits {
    /// All of an image's objects.
    pub fn all(objects: u64) -> Visits {
        let mut visits = Visits::default();
        visits.push(0..objects, false);
        visits
    }

    fn push(&mut self, objects: Range<u64>, whole: bool) {
        match self.runs.last_mut() {
            _ if objects.is_empty() => {}
            Some(last) if last.objects.end == objects.start && last.whole == whole => {
                last.objects.end = objects.end
            }
            _ => self.runs.push(Run { objects, whole }),
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

    /// The objects, ascending; with each whether it did not exist at the start.
    pub fn iter(&self) -> impl Iterator<Item = (ObjectNumber, bool)> + Send + use<> {
        self.runs
            .clone()
            .into_iter()
            .flat_map(|run| run.objects.map(move |object| (ObjectNumber(object), run.whole)))
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
        let changed =
            |object: ObjectNumber| matches!(head.get(object), ObjectState::Exists | ObjectState::Pending);
        let mut visits = Visits::default();
        let mut at = 0;
        for run in &self.runs {
            visits.push_changed(at..run.objects.start, changed);
            visits.push(run.objects.clone(), run.whole);
            at = run.objects.end;
        }
        visits.push_changed(at..head.len(), changed);
        visits
    }

    fn push_changed(&mut self, objects: Range<u64>, changed: impl Fn(ObjectNumber) -> bool) {
        for object in objects.filter(|object| changed(ObjectNumber(*object))) {
            self.push(object..object + 1, false);
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
    /// Object maps may be believed when nothing speaks against it.
    pub trust: bool,
}

/// Which objects to look at for what lies between start and end. Errors are those of the cluster being unreachable; a
/// map that cannot be used only costs time.
pub async fn visits(chain: &Chain<'_>, scope: Scope) -> Result<Visits> {
    let from = chain.start.unwrap_or(SnapId(0));
    let versions: Vec<&Snapshot> =
        chain.snapshots.iter().filter(|s| s.id >= from && s.id <= chain.end).collect();
    let objects = versions.iter().map(|s| chain.layout.object_count(s.image_size)).max().unwrap_or(0);
    if !chain.trust || !chain.features.has(Features::FAST_DIFF) || !complete(chain, &versions) {
        return Ok(Visits::all(objects));
    }
    let maps = try_join_all(versions.iter().map(|snapshot| load(chain, snapshot))).await?;
    let Some(maps) = maps.into_iter().collect::<Option<Vec<_>>>() else {
        return Ok(Visits::all(objects));
    };
    let before = chain.start.and(maps.first());
    let after = if before.is_some() { &maps[1..] } else { &maps };
    let version = |(map, snapshot): (&ObjectMap, &&Snapshot)| {
        FastDiffVersion::new(chain.features, snapshot.flags, chain.layout, snapshot.image_size, map.clone())
    };
    let usable: Result<Vec<_>> = maps.iter().zip(&versions).map(version).collect();
    let Ok(usable) = usable else {
        return Ok(Visits::all(objects));
    };
    let (start, rest) = usable.split_at(maps.len() - after.len());
    Ok(chosen(&diff(start.first(), rest), before, scope))
}

/// Start and end are among the snapshots, and no flag speaks against any map.
fn complete(chain: &Chain<'_>, versions: &[&Snapshot]) -> bool {
    let invalid = |s: &&Snapshot| {
        s.flags.has(ImageFlags::OBJECT_MAP_INVALID) || s.flags.has(ImageFlags::FAST_DIFF_INVALID)
    };
    let has_start = chain.start.is_none_or(|start| versions.first().is_some_and(|s| s.id == start));
    has_start && versions.last().is_some_and(|s| s.id == chain.end) && !versions.iter().any(invalid)
}

/// `None` when the map is missing or makes no sense.
async fn load(chain: &Chain<'_>, snapshot: &Snapshot) -> Result<Option<ObjectMap>> {
    match ObjectMapObject::new(chain.header, chain.image, snapshot.id).load().await {
        Ok(map) => Ok(Some(map)),
        Err(error) if matches!(error.errno(), libc::ENOENT | libc::EINVAL | libc::EBADMSG | libc::EIO) => {
            tracing::warn!(image = %chain.image, snap = %snapshot.id, %error, "looking at every object instead");
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
            visits.push(object..object + 1, !existed);
        }
    }
    visits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(visits: &Visits) -> Vec<(u64, bool)> {
        visits.iter().map(|(object, whole)| (object.0, whole)).collect()
    }

    #[test]
    fn changed_objects_and_those_that_were_not_there_before() {
        let mut before = ObjectMap::new(4);
        before.set(ObjectNumber(1), ObjectState::Exists);
        before.set(ObjectNumber(2), ObjectState::Exists);
        let diffs = [Diff::Hole, Diff::Unchanged, Diff::Updated, Diff::Updated, Diff::Removed];
        let changed = chosen(&diffs, Some(&before), Scope::Changed);
        assert_eq!(objects(&changed), [(2, false), (3, true), (4, true)]);
        assert_eq!(changed.len(), 3);
        let existing = chosen(&diffs, Some(&before), Scope::Existing);
        assert_eq!(objects(&existing), [(1, false), (2, false), (3, true), (4, true)]);
        assert_eq!(objects(&existing.from(3)), [(3, true), (4, true)]);
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
        assert_eq!(objects(&visits.with_changed(&head)), [(0, false), (2, true), (7, false)]);
        assert_eq!(objects(&Visits::default().with_changed(&head)), [(0, false), (7, false)]);
    }
}
