//! What is known of a pair of images: their roles, and what each holds of the other's.
//!
//! Snapshot mode: an image gave up its role when its newest mirror-snapshot is a demotion of its own; the other one holds
//! all of it when it has a complete copy of that very snapshot.
//!
//! Journal mode: an image gave up its role when the newest tag of its journal is the orphan's and follows an epoch of its
//! own; the other one holds all of it when an orphan's tag in its own journal follows that epoch.

use std::collections::{BTreeMap, BTreeSet};

use control::{ImageInfo, Pool, Role};
use futures::{StreamExt, TryStreamExt};
use journal::metadata::Journal;
use journal::types::{IMAGE_CLIENT_ID, LOCAL_MIRROR_UUID, ORPHAN_MIRROR_UUID, TagData, TagTid};
use rados::error::ResultExt;
use rados::{Result, SnapId};
use rbd::layout::header_object;
use rbd::mirroring::{GlobalImageId, MIRRORING_OBJECT, MirrorImageMode, Mirroring, SiteStatus, StatusState};
use rbd::{ImageHeader, MirrorSnapshotState, Timestamp, directory};

use super::plan;

/// One image of a pair, with all that matters here.
#[derive(Debug, Clone)]
pub struct SideFacts {
    /// The image.
    pub info: ImageInfo,
    /// What it holds, and what it gave up.
    pub history: History,
    /// What the daemon of its own site tells of it.
    pub status: Option<SiteStatus>,
}

/// What an image holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum History {
    /// In snapshot mode.
    Snapshots(SnapshotHistory),
    /// In journal mode: the tags of its own epochs, oldest first.
    Tags(Vec<TagData>),
}

/// The mirror-snapshots of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SnapshotHistory {
    /// The newest that was made as a primary, when, and whether that ended its time as primary.
    pub newest_own: Option<(SnapId, Timestamp, bool)>,
    /// Whether that is the newest of all.
    pub own_is_newest: bool,
    /// Primary snapshots of the other site of which it has complete copies.
    pub copies: BTreeSet<SnapId>,
}

/// A pair of images.
#[derive(Debug, Clone)]
pub struct Pair {
    /// What it is called on every site.
    pub global_id: GlobalImageId,
    /// The image here.
    pub here: Option<SideFacts>,
    /// The image there.
    pub there: Option<SideFacts>,
}

impl Pair {
    /// The pair as the planner looks at it.
    pub fn sides(&self) -> (Option<plan::Side>, Option<plan::Side>) {
        let side = |this: &Option<SideFacts>, other: &Option<SideFacts>| {
            let this = this.as_ref()?;
            let holds_all = other.as_ref().is_some_and(|other| this.history.holds_all_of(&other.history));
            Some(plan::Side { role: this.info.role, gave_up: this.history.gave_up(), holds_all })
        };
        (side(&self.here, &self.there), side(&self.there, &self.here))
    }

    /// The image's name: here, if it is here.
    pub fn name(&self) -> &str {
        let named = self.here.as_ref().or(self.there.as_ref());
        named.map_or(self.global_id.0.as_str(), |side| side.info.name.as_str())
    }

    /// The primary's mirror-snapshot that is to arrive at the copy, if there is one.
    pub fn awaited(&self) -> Option<SnapId> {
        match &self.there.as_ref()?.history {
            History::Snapshots(there) => there.newest_own.map(|(snap, _, _)| snap),
            History::Tags(_) => None,
        }
    }

    /// True when the daemon here says that the copy is whole and follows its primary.
    pub fn is_followed(&self) -> bool {
        let status = self.here.as_ref().and_then(|here| here.status.as_ref());
        status.is_some_and(|status| status.up && status.state == StatusState::Replaying)
    }

    /// True when the copy here is complete up to the mirror-snapshot `snap` there.
    pub fn has_copied(&self, snap: SnapId) -> bool {
        match self.here.as_ref().map(|here| &here.history) {
            Some(History::Snapshots(here)) => here.copies.last().is_some_and(|copied| *copied >= snap),
            _ => false,
        }
    }
}

impl History {
    /// True when the image was primary, gave that up, and has received nothing since.
    pub fn gave_up(&self) -> bool {
        match self {
            History::Snapshots(history) => {
                history.own_is_newest && history.newest_own.is_some_and(|(_, _, demoted)| demoted)
            }
            History::Tags(tags) => tags.last().is_some_and(|tag| {
                tag.mirror_uuid == ORPHAN_MIRROR_UUID && tag.predecessor.mirror_uuid == LOCAL_MIRROR_UUID
            }),
        }
    }

    /// True when it holds all that `other` had when that gave up its role.
    pub fn holds_all_of(&self, other: &History) -> bool {
        match (self, other) {
            (History::Snapshots(this), History::Snapshots(other)) => {
                other.newest_own.is_some_and(|(snap, _, demoted)| demoted && this.copies.contains(&snap))
            }
            (History::Tags(this), History::Tags(other)) => {
                let given_up =
                    other.iter().rev().find_map(|tag| epoch(tag, |uuid| uuid == LOCAL_MIRROR_UUID));
                let received = |tag: &TagData| epoch(tag, |uuid| uuid != LOCAL_MIRROR_UUID) == given_up;
                given_up.is_some() && this.iter().any(received)
            }
            _ => false,
        }
    }
}

/// The epoch that an orphan's tag ended, when it was that of somebody in question.
fn epoch(tag: &TagData, of: impl Fn(&str) -> bool) -> Option<TagTid> {
    let ended = tag.mirror_uuid == ORPHAN_MIRROR_UUID && of(&tag.predecessor.mirror_uuid);
    tag.predecessor.commit.filter(|_| ended).map(|position| position.tag)
}

/// The mirror-snapshots of an image; `other_mirror_uuid` is that of the pool at the other site.
pub fn snapshot_history(header: &ImageHeader, other_mirror_uuid: &str) -> SnapshotHistory {
    let mut history = SnapshotHistory::default();
    for (id, snapshot) in &header.snapshots {
        let Some(mirror) = snapshot.mirror() else { continue };
        history.own_is_newest = mirror.state.is_primary();
        if mirror.state.is_primary() {
            let demoted = mirror.state == MirrorSnapshotState::PrimaryDemoted;
            // One that is not stored whole yet is finished by who made it.
            history.newest_own = Some((*id, snapshot.timestamp, demoted && mirror.complete));
        } else if mirror.complete && mirror.primary_mirror_uuid == other_mirror_uuid {
            history.copies.insert(mirror.primary_snap_id);
        }
    }
    history
}

/// Reads all mirrored images of a pool that are wanted, by global id. `other_mirror_uuid` is that of the pool at the other
/// site.
pub async fn read(
    pool: &Pool,
    other_mirror_uuid: &str,
    wanted: impl Fn(&GlobalImageId) -> bool,
) -> Result<BTreeMap<GlobalImageId, SideFacts>> {
    let mirroring = Mirroring::new(pool.ioctx());
    let (names, statuses) = futures::try_join!(directory::list(pool.ioctx()), mirroring.statuses())?;
    let mirrored = names.into_iter().filter_map(|(name, id)| {
        let (mirror, status) = statuses.get(&id)?;
        let status = status.as_ref().and_then(|status| status.local.clone());
        wanted(&mirror.global_id).then_some((name, status))
    });
    let facts =
        futures::stream::iter(mirrored).map(|(name, status)| read_one(pool, name, status, other_mirror_uuid));
    let facts: Vec<_> = facts.buffer_unordered(pool.options().images_in_flight.max(1)).try_collect().await?;
    Ok(facts.into_iter().flatten().collect())
}

async fn read_one(
    pool: &Pool,
    name: String,
    status: Option<SiteStatus>,
    other_mirror_uuid: &str,
) -> Result<Option<(GlobalImageId, SideFacts)>> {
    // Images come and go meanwhile.
    let Some(info) = pool.image_info(&name).await.optional()? else { return Ok(None) };
    let Some(global_id) = info.global_id.clone().filter(|_| info.is_enabled()) else { return Ok(None) };
    let history = match info.mode {
        Some(MirrorImageMode::Journal) => tags(pool, &info).await.map(History::Tags),
        _ => ImageHeader::read(pool.ioctx(), &info.id)
            .await
            .map(|header| History::Snapshots(snapshot_history(&header, other_mirror_uuid))),
    };
    Ok(history.optional()?.map(|history| (global_id, SideFacts { info, history, status })))
}

async fn tags(pool: &Pool, info: &ImageInfo) -> Result<Vec<TagData>> {
    let journal = Journal::open(pool.ioctx(), &info.id).await?;
    let tags = journal.tags(IMAGE_CLIENT_ID, None, None).await?;
    tags.iter().map(|tag| tag.tag_data().map_err(rados::Error::from)).collect()
}

/// The addresses of clients, other than mirror daemons and this one, that have an image open.
pub async fn clients(pool: &Pool, info: &ImageInfo) -> Result<Vec<String>> {
    let ioctx = pool.ioctx();
    let daemons = ioctx.list_watchers(MIRRORING_OBJECT).await.optional()?.unwrap_or_default();
    let watchers = ioctx.list_watchers(&header_object(&info.id)).await.optional()?.unwrap_or_default();
    let this = ioctx.backend().instance_id();
    let others = watchers.into_iter().filter(|watcher| watcher.client != this);
    let mut clients: Vec<String> = others
        .filter(|watcher| !daemons.iter().any(|daemon| daemon.address == watcher.address))
        .map(|watcher| format!("client.{} at {}", watcher.client, watcher.address))
        .collect();
    clients.dedup();
    Ok(clients)
}

/// True when nothing is known that speaks against writing to the image here.
pub fn is_primary(side: &Option<SideFacts>) -> bool {
    side.as_ref().is_some_and(|side| side.info.role == Role::Primary)
}
