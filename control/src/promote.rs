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
//! Reference: `src/librbd/mirror/PromoteRequest.cc`, `src/librbd/mirror/snapshot/PromoteRequest.cc`.

use std::collections::BTreeMap;
use std::time::Duration;

use journal::image_journal::ImageJournal;
use rados::error::ResultExt;
use rados::{Error, Result, SnapId};
use rbd::exclusive_lock::Delegated;
use rbd::header_update::HeaderUpdate;
use rbd::mirroring::{GlobalImageId, MirrorImageMode};
use rbd::rollback::{RollbackOptions, rollback};
use rbd::types::{Features, MirrorSnapshot, MirrorSnapshotState, Snapshot, SnapshotNamespace, Timestamp};
use rbd::watch_notify::Operation;
use rbd::{Image, ImageHeader, removal_mark};
use serde::Serialize;
use snapshot::begin::{PENDING_PREFIX, read_marker};

use crate::bulk::Done;
use crate::config::Quiesce;
use crate::info::newest_mirror_snapshot;
use crate::journaled::refuse_promotion;
use crate::pool::Pool;
use crate::primary::Purpose;
use crate::promotion_plan::{Forced, Plan, plan};
use crate::report::{ImageInfo, seconds, snap};
use crate::session::Session;

/// Pause before it is looked again who watches, when nobody told of a change.
const WATCHERS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a daemon may take to close a copy that it follows no more.
const CLOSING_MAX: Duration = Duration::from_secs(30);

/// From which point in time an image continues that is (or would be) promoted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Promotion {
    /// The copy of a primary's mirror-snapshot that it continues from; `None` in journal mode, and when it continues from
    /// a time when it was the primary itself.
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
    /// Whether the image will hold exactly the data of that snapshot. Not always so when it is rolled back and Ceph's
    /// daemon made the copy: its data is then of the mirror-snapshot before.
    pub exact: bool,
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
            return refuse_promotion(&info, force)
                .map(|()| Promotion { continues_from: None, rolls_back: false })
                .context(what());
        }
        let (image, header) = Image::open(self.ioctx(), &info.id).await.context(what())?;
        let marker = read_marker(&image).await.context(what())?;
        Ok(foresee(&header, &plan(&header, marker, force).context(what())?))
    }
}

/// What comes of a plan.
fn foresee(header: &ImageHeader, plan: &Plan) -> Promotion {
    let Plan::Promote { forced, base } = plan else {
        return Promotion { continues_from: None, rolls_back: false };
    };
    let roll_back = forced.and_then(|forced| forced.roll_back);
    let base = base.and_then(|base| header.snapshots.get(&base));
    let copy = base.and_then(|base| Some((base, base.mirror().filter(|m| m.state.is_non_primary())?)));
    let continues_from = copy.map(|(base, mirror)| ContinuesFrom {
        snap: base.id,
        primary_snap: mirror.primary_snap_id,
        primary_mirror_uuid: mirror.primary_mirror_uuid.clone(),
        timestamp: base.timestamp,
        exact: roll_back.is_none_or(|roll_back| roll_back.exact),
    });
    Promotion { continues_from, rolls_back: roll_back.is_some() }
}

impl Session {
    async fn promote(&mut self, force: bool) -> Result<Promotion> {
        let (info, own) = self.stored_info().await?;
        self.promote_known(&info, own, force).await
    }

    async fn promote_known(
        &mut self,
        info: &ImageInfo,
        own: Option<ImageJournal>,
        force: bool,
    ) -> Result<Promotion> {
        let global_id = self.require_mirrored(info)?;
        match info.mode {
            Some(MirrorImageMode::Snapshot) => self.promote_by_snapshot(&global_id, force).await,
            Some(MirrorImageMode::Journal) => {
                self.promote_by_journal(info, own, force).await?;
                Ok(Promotion { continues_from: None, rolls_back: false })
            }
            _ => Err(Error::new(libc::EOPNOTSUPP, "its mirroring mode is not known")),
        }
    }

    /// Makes an image primary that is mirrored and is not primary, and finishes a promotion that was cut off.
    pub(crate) async fn promote_unless_primary(&mut self, force: bool) -> Result<Done> {
        let (info, own) = self.stored_info().await?;
        let unfinished =
            info.mode == Some(MirrorImageMode::Snapshot) && self.header().features.has(Features::NON_PRIMARY);
        if !info.is_enabled() || (info.is_primary() && !unfinished) {
            return Ok(Done::PassedOver);
        }
        self.promote_known(&info, own, force).await.map(|_| Done::Changed)
    }

    /// Makes an image in snapshot mode primary.
    pub(crate) async fn promote_by_snapshot(
        &mut self,
        global_id: &GlobalImageId,
        force: bool,
    ) -> Result<Promotion> {
        let mut decided = self.plan_promotion(force).await?;
        let mut foreseen = None;
        if let Plan::Promote { forced: Some(forced), .. } = decided {
            let before = foresee(self.header(), &decided).continues_from;
            (decided, foreseen) = self.take_from_daemons(global_id, forced).await?;
            // Nothing was being copied, and the copy went when the orphan came.
            let gone =
                matches!(decided, Plan::Promote { forced: Some(now), base: None } if now.roll_back.is_none());
            foreseen = foreseen.or(before.filter(|_| gone && forced.roll_back.is_none()));
        }
        let mut promotion = foresee(self.header(), &decided);
        promotion.continues_from = promotion.continues_from.or(foreseen);
        match decided {
            Plan::Finish(_) => self.finish_promotion().await?,
            Plan::Promote { forced, .. } => {
                if let Some(Forced { roll_back: Some(roll_back), resumed }) = forced {
                    self.roll_back(roll_back.to, resumed).await?;
                }
                self.create_promotion_snapshot(global_id).await?;
                self.make_writable().await?;
            }
        }
        Ok(promotion)
    }

    /// Ceph's daemon keeps the lock, and refuses what is asked of it, while it closes a copy whose primary was demoted.
    async fn create_promotion_snapshot(&mut self, global_id: &GlobalImageId) -> Result<()> {
        let made = self.create_primary_snapshot(Purpose::Promote, global_id, Quiesce::Skip).await;
        let error = match made {
            Err(error) if error.is(libc::EROFS) && self.watchers().await?.daemons > 0 => error,
            made => return made.map(drop),
        };
        tokio::time::timeout(CLOSING_MAX, self.wait_for_daemons()).await.map_err(|_| error)??;
        self.refresh().await?;
        // Somebody else may have promoted it meanwhile.
        self.plan_promotion(false).await?;
        self.create_primary_snapshot(Purpose::Promote, global_id, Quiesce::Skip).await.map(drop)
    }

    /// Does what a promotion (or a demotion before it was decided) that was cut off has left.
    async fn finish_promotion(&mut self) -> Result<()> {
        self.acquire().await?;
        // Whoever had the lock may have finished it meanwhile.
        let Ok(Plan::Finish(newest)) = self.plan_promotion(false).await else { return Ok(()) };
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

    /// Ends the copying of the image, and locks it. Answers with what is to be done then (a delta that was completed
    /// meanwhile is whole), and with the copy that was seen beside the orphan: Ceph's daemon takes the orphan for a newer
    /// one, and may remove that copy before it looks closer.
    async fn take_from_daemons(
        &mut self,
        global_id: &GlobalImageId,
        forced: Forced,
    ) -> Result<(Plan, Option<ContinuesFrom>)> {
        if !forced.resumed {
            self.create_orphan(global_id).await?;
        }
        let seen = self.plan_promotion(true).await.ok();
        let seen = seen.and_then(|seen| foresee(self.header(), &seen).continues_from);
        self.wait_for_daemons().await?;
        self.acquire().await?;
        self.refresh().await?;
        let newest = newest_mirror_snapshot(self.header()).map(|orphan| orphan.id);
        if let Some(orphan) = newest.filter(|_| forced.resumed) {
            self.finish_object_maps(orphan).await?;
        }
        match self.plan_promotion(true).await? {
            Plan::Promote { forced: Some(now), base } => {
                let decided = Plan::Promote { forced: Some(Forced { resumed: forced.resumed, ..now }), base };
                // One that stays out of sight, and is not to be rolled back to, is what the head holds.
                let gone = base.is_none() && now.roll_back.is_none();
                Ok((decided, seen.filter(|_| gone)))
            }
            _ => Err(Error::new(libc::EAGAIN, "somebody else changed its role meanwhile")),
        }
    }

    async fn plan_promotion(&self, force: bool) -> Result<Plan> {
        if removal_mark::may_be_marked(self.header()) {
            let what =
                "it is being removed because its primary is gone: look into the trash (rbd trash ls --all)";
            return Err(Error::new(libc::EBUSY, what));
        }
        plan(self.header(), read_marker(self.image()).await?, force)
    }

    /// `resumed`: an earlier rollback may have been cut off.
    async fn roll_back(&mut self, to: SnapId, resumed: bool) -> Result<()> {
        let options =
            RollbackOptions { in_flight: self.pool.options().objects_in_flight, trust_object_maps: !resumed };
        rollback(self.image(), self.header(), to, options, |_, _| {}).await?;
        self.changed();
        self.refresh().await?;
        // User snapshots that our own daemon was filling.
        let pending = |snapshot: &&Snapshot| {
            snapshot.namespace == SnapshotNamespace::User && snapshot.name.starts_with(PENDING_PREFIX)
        };
        let pending: Vec<SnapId> =
            self.header().snapshots.values().filter(pending).map(|snapshot| snapshot.id).collect();
        self.remove_snapshots(&pending).await
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
            if self.watchers().await?.daemons == 0 {
                return Ok(());
            }
            let told = tokio::time::timeout(WATCHERS_INTERVAL, changes.changed());
            if let Ok(Err(_)) = told.await {
                return Err(Error::new(libc::ENOTCONN, "the image cannot be watched any more"));
            }
        }
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
