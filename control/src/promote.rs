//! Making an image primary.
//!
//! In snapshot mode:
//!
//! ```text
//! demoted everywhere        ─────────────────────────────────────────────┐
//! primary elsewhere (force) ─ orphan ─ wait for daemons ─ lock ─ roll back ─ primary snapshot ─ writable ─ prune
//! ```
//!
//! The orphan is a mirror-snapshot that says that the image copies nothing any more; whichever daemon sees it finishes
//! what it has in flight, and gives up its watch of the header.
//!
//! A promotion that was cut off is taken up where it was. Two states tell of one: an orphan on top, or a primary snapshot
//! on top of an image that is still read-only (non-primary).
//!
//! What is decided otherwise than by librbd 16 and 18, where they lose data:
//! * A forced promotion that comes after another one that was cut off rolls back, too: librbd takes the first one's orphan
//!   for a complete copy, and keeps what had been copied in part.
//! * A last delta (of a demotion) that was copied in part is rolled back by force, and refused without: librbd keeps it.
//!
//! Reference: `src/librbd/mirror/PromoteRequest.cc`, `src/librbd/mirror/snapshot/PromoteRequest.cc`.

use std::collections::BTreeMap;
use std::time::Duration;

use rados::error::ResultExt;
use rados::{Error, Result, SnapId};
use rbd::exclusive_lock::Delegated;
use rbd::header_update::HeaderUpdate;
use rbd::layout::header_object;
use rbd::mirroring::{GlobalImageId, MIRRORING_OBJECT, MirrorImageMode};
use rbd::rollback::{RollbackOptions, rollback};
use rbd::types::{Features, MirrorSnapshot, MirrorSnapshotState, SnapshotNamespace, Timestamp};
use rbd::watch_notify::Operation;
use rbd::{Image, ImageHeader};
use serde::Serialize;
use snapshot::begin::read_marker;

use crate::bulk::Done;
use crate::config::Quiesce;
use crate::info::snapshot_role;
use crate::pool::Pool;
use crate::primary::{Purpose, mirror_snapshots};
use crate::report::{Role, seconds, snap};
use crate::session::Session;

/// Pause before it is looked again who watches, when nobody told of a change.
const WATCHERS_INTERVAL: Duration = Duration::from_secs(1);

/// From which point in time an image continues that is (or would be) promoted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Promotion {
    /// The copy of a primary's mirror-snapshot that it continues from; `None` in journal mode, and when it never was a
    /// copy.
    pub continues_from: Option<ContinuesFrom>,
    /// A newer mirror-snapshot was copied in part, and what had been copied is undone.
    pub rolls_back: bool,
}

/// A copied mirror-snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContinuesFrom {
    /// Its id here.
    #[serde(serialize_with = "snap")]
    pub snap: SnapId,
    /// Its id in the primary.
    #[serde(serialize_with = "snap")]
    pub primary_snap: SnapId,
    /// Mirror uuid of the primary's pool.
    pub primary_mirror_uuid: String,
    /// When it was made here; the primary's own is older.
    #[serde(serialize_with = "seconds")]
    pub timestamp: Timestamp,
    /// Whether the image will hold exactly the primary's data of that snapshot. Not so when it is rolled back to one that
    /// Ceph's daemon filled: that one's data is of the mirror-snapshot before.
    pub exact: bool,
}

/// What is to be done to promote an image in snapshot mode.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Plan {
    /// Only the end is missing: this primary snapshot may not be complete, and the image is read-only.
    Finish(SnapId),
    /// All of it.
    Promote {
        /// The daemons are to be told first; `resumed` when they were.
        forced: Option<Forced>,
        /// The newest complete copy.
        base: Option<SnapId>,
    },
}

/// The part of a promotion that only a forced one has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Forced {
    /// An orphan is on top already.
    resumed: bool,
    /// What has been copied since the base is to be undone.
    roll_back: bool,
}

fn plan(header: &ImageHeader, force: bool) -> Result<Plan> {
    let refuse = |errno, why: &str| Err(Error::new(errno, why));
    let mirrors = mirror_snapshots(header);
    match snapshot_role(header).0 {
        Role::Primary => match mirrors.keys().next_back() {
            Some(newest) if header.features.has(Features::NON_PRIMARY) => Ok(Plan::Finish(*newest)),
            _ => refuse(libc::EINVAL, "it is already primary"),
        },
        Role::NonPrimary if force => plan_forced(&mirrors),
        Role::NonPrimary => refuse(
            libc::EBUSY,
            "it is primary in a remote cluster, or its demotion there has not arrived here yet",
        ),
        Role::Orphan | Role::Unknown => {
            let base = mirrors.iter().next_back().filter(|(_, mirror)| mirror.state.is_non_primary());
            Ok(Plan::Promote { forced: None, base: base.map(|(id, _)| *id) })
        }
    }
}

fn plan_forced(mirrors: &BTreeMap<SnapId, MirrorSnapshot>) -> Result<Plan> {
    let resumed = mirrors.values().next_back().is_some_and(MirrorSnapshot::is_orphan);
    let mut copies = mirrors.iter().rev().filter(|(_, mirror)| !mirror.is_orphan());
    let is_whole = |mirror: &MirrorSnapshot| mirror.state.is_primary() || mirror.complete;
    let promote = |base, roll_back| Plan::Promote { forced: Some(Forced { resumed, roll_back }), base };
    match copies.next() {
        Some((id, mirror)) if is_whole(mirror) => Ok(promote(Some(*id), false)),
        None => Ok(promote(None, false)),
        Some(_) => match copies.find(|(_, mirror)| is_whole(mirror)) {
            Some((id, _)) => Ok(promote(Some(*id), true)),
            None => Err(Error::new(libc::EINVAL, "no mirror-snapshot has ever been copied whole to it")),
        },
    }
}

impl Pool {
    /// Makes an image primary, with `force` even if it is primary elsewhere. EINVAL when it is not mirrored, is primary
    /// already or has nothing whole to continue from; EBUSY when it is primary elsewhere; EROFS when the owner of its
    /// lock does not give it up. A promotion that was cut off is finished.
    pub async fn promote(&self, image: &str, force: bool) -> Result<Promotion> {
        let what = || format!("cannot promote image '{}'", self.image_spec(image));
        let session = Session::open(self, image).await.context(what())?;
        session.run(async |session| session.promote(force).await).await.context(what())
    }

    /// What [`Pool::promote`] would do now, or why it would not.
    pub async fn plan_promotion(&self, image: &str, force: bool) -> Result<Promotion> {
        let what = || format!("cannot promote image '{}'", self.image_spec(image));
        let info = self.image_info(image).await.context(what())?;
        self.require_enabled(&info)?;
        if info.mode != Some(MirrorImageMode::Snapshot) {
            return refuse_journal(&info, force)
                .map(|()| Promotion { continues_from: None, rolls_back: false })
                .context(what());
        }
        let (image, header) = Image::open(self.ioctx(), &info.id).await.context(what())?;
        let plan = plan(&header, force).context(what())?;
        foresee(&image, &header, &plan).await.context(what())
    }
}

/// Fails when an image in journal mode may not be promoted.
pub(crate) fn refuse_journal(info: &crate::report::ImageInfo, force: bool) -> Result<()> {
    match info.role {
        Role::Primary => Err(Error::new(libc::EINVAL, "it is already primary")),
        Role::NonPrimary if !force => {
            let why = "it is primary in a remote cluster, or its demotion there has not arrived here yet";
            Err(Error::new(libc::EBUSY, why))
        }
        _ => Ok(()),
    }
}

/// What comes of a plan.
async fn foresee(image: &Image, header: &ImageHeader, plan: &Plan) -> Result<Promotion> {
    let Plan::Promote { forced, base: Some(base) } = plan else {
        return Ok(Promotion { continues_from: None, rolls_back: false });
    };
    let rolls_back = forced.is_some_and(|forced| forced.roll_back);
    let Some((snapshot, mirror)) =
        header.snapshots.get(base).and_then(|snapshot| Some((snapshot, snapshot.mirror()?)))
    else {
        return Ok(Promotion { continues_from: None, rolls_back });
    };
    // The marker names the newest snapshot that our own daemon fills, and before it begins one it sees to the base.
    let exact = match rolls_back {
        false => true,
        true => read_marker(image).await?.is_some_and(|marker| marker.snap >= *base && !marker.repair),
    };
    let continues_from = mirror.state.is_non_primary().then(|| ContinuesFrom {
        snap: *base,
        primary_snap: mirror.primary_snap_id,
        primary_mirror_uuid: mirror.primary_mirror_uuid.clone(),
        timestamp: snapshot.timestamp,
        exact,
    });
    Ok(Promotion { continues_from, rolls_back })
}

impl Session {
    async fn promote(&mut self, force: bool) -> Result<Promotion> {
        let (info, global_id) = self.enabled_info().await?;
        match info.mode {
            Some(MirrorImageMode::Snapshot) => self.promote_by_snapshot(&global_id, force).await,
            _ => Err(Error::new(libc::EOPNOTSUPP, "its mirroring mode is not known")),
        }
    }

    /// Makes an image primary that is mirrored and is not primary, and finishes a promotion that was cut off.
    pub(crate) async fn promote_unless_primary(&mut self, force: bool) -> Result<Done> {
        let mirror = self.pool.mirroring().image(self.image().id()).await?;
        let info = self.info(mirror).await?;
        let unfinished = self.header().features.has(Features::NON_PRIMARY);
        if !info.is_enabled() || (info.is_primary() && !unfinished) {
            return Ok(Done::PassedOver);
        }
        self.promote(force).await.map(|_| Done::Changed)
    }

    /// Makes an image in snapshot mode primary.
    pub(crate) async fn promote_by_snapshot(
        &mut self,
        global_id: &GlobalImageId,
        force: bool,
    ) -> Result<Promotion> {
        let mut decided = plan(self.header(), force)?;
        if let Plan::Promote { forced: Some(forced), .. } = decided {
            decided = self.take_from_daemons(global_id, forced).await?;
        }
        let promotion = foresee(self.image(), self.header(), &decided).await?;
        match decided {
            Plan::Finish(_) => self.finish_promotion().await?,
            Plan::Promote { forced, base } => {
                if let (Some(Forced { roll_back: true, resumed }), Some(base)) = (forced, base) {
                    self.roll_back(base, resumed).await?;
                }
                self.create_primary_snapshot(Purpose::Promote, global_id, Quiesce::Skip).await?;
                self.make_writable().await?;
            }
        }
        Ok(promotion)
    }

    /// Does what a promotion (or a demotion before it was decided) that was cut off has left.
    async fn finish_promotion(&mut self) -> Result<()> {
        self.acquire().await?;
        // Whoever had the lock may have finished it meanwhile.
        let Ok(Plan::Finish(newest)) = plan(self.header(), false) else { return Ok(()) };
        if self.header().snapshots.get(&newest).and_then(|s| s.mirror()).is_some_and(|m| !m.complete) {
            self.finish_primary_snapshot(newest).await?;
        }
        self.make_writable().await?;
        let peers = self.pool.pulling_peers().await?;
        self.prune(&peers).await
    }

    async fn make_writable(&mut self) -> Result<()> {
        let image = self.image();
        let writable = HeaderUpdate::of(image.id()).set_features(Features(0), Features::NON_PRIMARY);
        writable.apply(image.header_ioctx()).await?;
        self.changed();
        self.tell().await;
        self.refresh().await
    }

    /// Ends the copying of the image, and locks it. Answers with what is to be done then: a delta that was completed
    /// meanwhile is whole.
    async fn take_from_daemons(&mut self, global_id: &GlobalImageId, forced: Forced) -> Result<Plan> {
        if !forced.resumed {
            self.create_orphan(global_id).await?;
        }
        self.wait_for_daemons().await?;
        self.acquire().await?;
        self.refresh().await?;
        match plan(self.header(), true)? {
            Plan::Promote { forced: Some(now), base } => {
                Ok(Plan::Promote { forced: Some(Forced { resumed: forced.resumed, ..now }), base })
            }
            _ => Err(Error::new(libc::EAGAIN, "somebody else changed its role meanwhile")),
        }
    }

    /// `resumed`: an earlier rollback may have been cut off.
    async fn roll_back(&mut self, base: SnapId, resumed: bool) -> Result<()> {
        let options =
            RollbackOptions { in_flight: self.pool.options().objects_in_flight, trust_object_maps: !resumed };
        rollback(self.image(), self.header(), base, options, |_, _| {}).await?;
        self.changed();
        self.refresh().await
    }

    async fn create_orphan(&mut self, global_id: &GlobalImageId) -> Result<()> {
        let name = format!(".mirror.non_primary.{global_id}.{}", uuid::Uuid::new_v4());
        let namespace = orphan_namespace();
        let operation = Operation::SnapCreate { namespace: namespace.clone(), name: name.clone(), flags: 0 };
        if self.delegate(operation).await? == Delegated::DoneByOwner {
            return Ok(());
        }
        self.add_snapshot(&name, &namespace).await?;
        self.tell().await;
        self.refresh().await
    }

    /// Waits until no mirror daemon watches the header. A daemon that died counts until the cluster has forgotten it.
    async fn wait_for_daemons(&self) -> Result<()> {
        let mut changes = self.lock().report();
        loop {
            changes.mark_unchanged();
            if !self.daemon_watches().await? {
                return Ok(());
            }
            let told = tokio::time::timeout(WATCHERS_INTERVAL, changes.changed());
            if let Ok(Err(_)) = told.await {
                return Err(Error::new(libc::ENOTCONN, "the image cannot be watched any more"));
            }
        }
    }

    /// True when a client that watches the header is one that watches the mirroring of the pool.
    async fn daemon_watches(&self) -> Result<bool> {
        let ioctx = self.image().header_ioctx();
        let header = header_object(self.image().id());
        let watchers = ioctx.list_watchers(&header).await?;
        let daemons = ioctx.list_watchers(MIRRORING_OBJECT).await.optional()?.unwrap_or_default();
        let this = ioctx.backend().instance_id();
        let watches = watchers.iter().filter(|watcher| watcher.client != this);
        Ok(watches.into_iter().any(|watcher| daemons.iter().any(|daemon| daemon.address == watcher.address)))
    }
}

fn orphan_namespace() -> SnapshotNamespace {
    SnapshotNamespace::Mirror(MirrorSnapshot {
        state: MirrorSnapshotState::NonPrimary,
        complete: true,
        mirror_peer_uuids: Default::default(),
        primary_mirror_uuid: String::new(),
        primary_snap_id: SnapId::HEAD,
        last_copied_object_number: 0,
        snap_seqs: BTreeMap::new(),
    })
}
