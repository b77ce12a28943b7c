//! One cluster with a pool of primaries and a pool of copies, and copies made by hand: what a daemon leaves behind when it
//! has copied an image, without the time that the copying takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use daemon::image::{self, ImageContext, Outcome, Shared};
use daemon::report::Report;
use daemon::settings::Settings;
use journal::bootstrap::Owner;
use journal::image_journal::ImageJournal;
use journal::metadata::JournalLayout;
use journal::types::{LOCAL_MIRROR_UUID, TagData, TagPredecessor};
use rados::error::ResultExt;
use rados::fault::Faulty;
use rados::{ConnectOptions, IoCtx, SnapId, WriteOp, WriteSub};
use rbd::mirroring::{GlobalImageId, MirrorImage, MirrorImageMode, MirrorImageState, MirrorMode, Mirroring};
use rbd::{
    Features, HeaderUpdate, Image, ImageHeader, MirrorSnapshot, MirrorSnapshotState, NewImage, ObjectNumber,
    SnapshotNamespace, create, directory, generate_id, trash,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Ends what hangs.
pub const LIMIT: Duration = Duration::from_secs(120);
/// Pool of the copies.
pub const COPIES: &str = "copies";
/// Pool of the primaries.
pub const PRIMARIES: &str = "primaries";
const LOCAL_UUID: &str = "11111111-0000-4000-8000-000000000001";
/// Mirror uuid of the pool of the primaries.
pub const REMOTE_UUID: &str = "22222222-0000-4000-8000-000000000002";
const CONTENT: &[u8] = b"what a customer would miss";

/// The cluster and two connections to it.
pub struct World {
    pub stock: tests::Cluster,
    /// Pool of the copies.
    pub local: IoCtx,
    /// Pool of the primaries, which has no image: all primaries are gone.
    pub remote: IoCtx,
    /// The pool of the copies through another connection: that of another client.
    pub other_client: IoCtx,
    _folder: tempfile::TempDir,
}

impl tests::World for World {
    async fn start() -> Result<World> {
        let folder = tempfile::tempdir()?;
        let stock =
            tests::Cluster::start(&folder.path().join("c"), &tests::ClusterOptions::default()).await?;
        for pool in [COPIES, PRIMARIES] {
            stock.create_pool(pool).await?;
        }
        let connect = async || {
            let options = ConnectOptions {
                client_name: "client.admin".to_string(),
                conf_file: Some(stock.conf_path()),
                ..ConnectOptions::default()
            };
            rados::connect(options).await
        };
        let (cluster, other) = (connect().await?, connect().await?);
        let local = cluster.pool(cluster.pool_by_name(COPIES).await?);
        let remote = cluster.pool(cluster.pool_by_name(PRIMARIES).await?);
        let other_client = other.pool(local.pool_id());
        mirror(&local, LOCAL_UUID).await?;
        mirror(&remote, REMOTE_UUID).await?;
        Ok(World { stock, local, remote, other_client, _folder: folder })
    }
}

/// Enables mirroring in a pool.
pub async fn mirror(pool: &IoCtx, uuid: &str) -> Result<()> {
    let mirroring = Mirroring::new(pool);
    mirroring.set_uuid(uuid).await?;
    mirroring.set_mode(MirrorMode::Image).await?;
    Ok(())
}

/// A copy.
pub struct Copy {
    pub name: String,
    pub global_id: Arc<str>,
    pub image: Image,
    pub mode: MirrorImageMode,
    /// The snapshot id with which a promotion begins.
    promotion: SnapId,
}

impl World {
    /// Makes a copy of a primary in the remote pool.
    pub async fn copy(&self, mode: MirrorImageMode) -> Result<Copy> {
        let id = generate_id(&self.local);
        let kind = match mode {
            MirrorImageMode::Journal => Features::EXCLUSIVE_LOCK.with(Features::JOURNALING),
            _ => Features::NON_PRIMARY.with(Features::EXCLUSIVE_LOCK),
        };
        let new = NewImage {
            name: format!("copy-{id}"),
            id: id.clone(),
            size: 8 << 20,
            order: 22,
            features: Features::LAYERING.with(kind),
            stripe_unit: 0,
            stripe_count: 0,
            data_pool: None,
        };
        let image = create::create(&self.local, &new).await?;
        let object = image.data_object(ObjectNumber(1));
        let write = WriteSub::Write { offset: 0, data: CONTENT.into() };
        self.local.write(WriteOp::new(object).with(write)).await?;
        let (link, promotion) = tokio::try_join!(self.local.snap_create(), self.local.snap_create())?;
        let (link, promotion) = (link.min(promotion), link.max(promotion));
        match mode {
            MirrorImageMode::Journal => {
                let layout = JournalLayout { order: 16, splay_width: 2, pool: None };
                let tag = TagData { mirror_uuid: REMOTE_UUID.into(), predecessor: TagPredecessor::default() };
                ImageJournal::create(&self.local, &id, layout, &tag).await?;
            }
            _ => {
                let snapshot = mirror_snapshot(MirrorSnapshotState::NonPrimary, REMOTE_UUID, SnapId(7));
                let add = HeaderUpdate::of(&id).snapshot_add(link, ".mirror.non_primary.link", &snapshot);
                add.apply(&self.local).await?;
            }
        }
        let global_id = uuid::Uuid::new_v4().to_string();
        let mirror = MirrorImage {
            mode,
            global_id: GlobalImageId(global_id.clone()),
            state: MirrorImageState::Enabled,
        };
        Mirroring::new(&self.local).image_set(&id, &mirror).await?;
        Ok(Copy { name: new.name, global_id: global_id.into(), image, mode, promotion })
    }

    /// A pool.
    pub async fn pool(&self, name: &str) -> Result<IoCtx> {
        let cluster = rados::Cluster::new(self.local.backend().clone());
        cluster.wait_for_latest_osdmap().await?;
        Ok(cluster.pool(cluster.pool_by_name(name).await?))
    }

    /// Begins to follow `copy` as a daemon does, through `backend` at the local side if one is given.
    pub fn follow(&self, copy: &Copy, backend: Option<Arc<Faulty>>, delete_delay: Duration) -> Following {
        self.follow_in(&self.remote, copy, backend, delete_delay)
    }

    /// The same with another pool of primaries.
    pub fn follow_in(
        &self,
        remote: &IoCtx,
        copy: &Copy,
        backend: Option<Arc<Faulty>>,
        delete_delay: Duration,
    ) -> Following {
        let local = match backend {
            Some(backend) => {
                IoCtx::new(backend, rados::Location { pool: self.local.pool_id(), namespace: "".into() })
            }
            None => self.local.clone(),
        };
        let (sender, report) = watch::channel(Report::default());
        let cancel = CancellationToken::new();
        let settings = Settings::read(|_| None);
        let ctx = ImageContext {
            local,
            remote: remote.clone(),
            local_mirror_uuid: LOCAL_UUID.into(),
            remote_mirror_uuid: REMOTE_UUID.into(),
            remote_peer_uuid: "33333333-0000-4000-8000-000000000003".into(),
            local_peer_uuid: "44444444-0000-4000-8000-000000000004".into(),
            global_image_id: copy.global_id.clone(),
            shared: Arc::new(Shared::new(1 << 20)),
            delete_delay,
            journal: Arc::new(settings.journal),
            object_map_trust: settings.object_map_trust,
            changed: Arc::default(),
            flushes: Default::default(),
            report: sender,
            cancel: cancel.clone(),
        };
        Following { task: tokio::spawn(image::run(ctx)), report, cancel }
    }
}

/// A task that follows an image.
pub struct Following {
    pub task: JoinHandle<Outcome>,
    pub report: watch::Receiver<Report>,
    pub cancel: CancellationToken,
}

impl Following {
    /// Waits until it has nothing left to do.
    pub async fn done(self) -> Result<()> {
        let report = self.report.clone();
        let outcome = tokio::time::timeout(LIMIT, self.task).await;
        let outcome = outcome.with_context(|| format!("it goes on: {:?}", report.borrow()))??;
        ensure!(outcome == Outcome::Done, "{outcome:?}");
        Ok(())
    }

    /// Waits until it reports something like this, then ends it. An error if it ends by itself before.
    pub async fn reports(mut self, like: impl Fn(&Report) -> bool) -> Result<Report> {
        let reported = tokio::time::timeout(LIMIT, async {
            self.report.wait_for(|r| like(r)).await.ok().map(|r| r.clone())
        });
        let reported = reported.await.with_context(|| format!("it reports {:?}", self.report.borrow()));
        self.cancel.cancel();
        let outcome = tokio::time::timeout(LIMIT, self.task).await.context("it does not end")??;
        reported?.with_context(|| format!("it ended by itself: {outcome:?}"))
    }
}

fn mirror_snapshot(
    state: MirrorSnapshotState,
    primary_mirror_uuid: &str,
    primary_snap_id: SnapId,
) -> SnapshotNamespace {
    SnapshotNamespace::Mirror(MirrorSnapshot {
        state,
        complete: true,
        mirror_peer_uuids: BTreeSet::new(),
        primary_mirror_uuid: primary_mirror_uuid.into(),
        primary_snap_id,
        last_copied_object_number: 0,
        snap_seqs: BTreeMap::new(),
    })
}

impl Copy {
    /// Promotes it by force, as far as the write that decides: the orphan snapshot, or the tag. Through `ioctx`.
    pub async fn promote(&self, ioctx: &IoCtx) -> rados::Result<()> {
        let id = self.image.id();
        match self.mode {
            MirrorImageMode::Journal => ImageJournal::open(ioctx, id).await?.promote().await,
            _ => {
                let orphan = mirror_snapshot(MirrorSnapshotState::NonPrimary, "", SnapId::HEAD);
                let name = ".mirror.non_primary.orphan";
                HeaderUpdate::of(id).snapshot_add(self.promotion, name, &orphan).apply(ioctx).await
            }
        }
    }

    /// True when the image is promoted, or being promoted.
    async fn is_promoted(&self, world: &World) -> Result<bool> {
        Ok(match self.mode {
            MirrorImageMode::Journal => {
                ImageJournal::open(&world.local, self.image.id()).await?.owner() == Owner::Primary
            }
            _ => self.image.read_header().await?.snapshots.contains_key(&self.promotion),
        })
    }

    /// Fails unless all of it is where it was and as it was, mirroring included.
    pub async fn expect_kept(&self, world: &World) -> Result<()> {
        let (id, ioctx) = (self.image.id(), &world.local);
        let header = ImageHeader::read(ioctx, id).await?;
        ensure!(header.snapshot_limit.is_none(), "it may have {:?} snapshots", header.snapshot_limit);
        ensure!(trash::get(ioctx, id).await?.is_none(), "it is in the trash");
        let name = directory::name_of(ioctx, id).await?;
        ensure!(name.as_deref() == Some(self.name.as_str()), "its name is {name:?}");
        ensure!(directory::id_of(ioctx, &self.name).await? == *id, "its name stands for another image");
        let object = self.image.data_object(ObjectNumber(1));
        ensure!(ioctx.stat(&object).await? == CONTENT.len() as u64, "its data is gone");
        let entry = Mirroring::new(ioctx).image(id).await?.context("it is mirrored no more")?;
        ensure!(entry.state == MirrorImageState::Enabled, "its mirroring is {}", entry.state);
        if self.mode == MirrorImageMode::Journal {
            ImageJournal::open(ioctx, id).await?.journal.next_tag_tid().await?;
        }
        Ok(())
    }

    /// As [`Copy::expect_kept`], of a copy that was promoted.
    pub async fn expect_promoted(&self, world: &World) -> Result<()> {
        self.expect_kept(world).await?;
        ensure!(self.is_promoted(world).await?, "it is promoted no more");
        Ok(())
    }

    /// Fails unless its header and data are there, wherever it is listed.
    pub async fn expect_whole(&self, world: &World) -> Result<()> {
        ImageHeader::read(&world.local, self.image.id()).await?;
        let object = self.image.data_object(ObjectNumber(1));
        ensure!(world.local.stat(&object).await? == CONTENT.len() as u64, "its data is gone");
        Ok(())
    }

    /// Fails unless it lies in the trash and can be taken back: as an image with a history of its own that may have
    /// snapshots.
    pub async fn expect_restorable(&self, world: &World) -> Result<()> {
        let (id, ioctx) = (self.image.id(), &world.local);
        self.expect_whole(world).await?;
        let entry = trash::get(ioctx, id).await?.context("it is not in the trash")?;
        ensure!(entry.state == trash::TrashState::Normal, "{entry:?}");
        ensure!(directory::name_of(ioctx, id).await?.is_none(), "it has a name");
        ensure!(Mirroring::new(ioctx).image(id).await?.is_none(), "it is mirrored");
        let limit = ImageHeader::read(ioctx, id).await?.snapshot_limit;
        ensure!(limit.is_none(), "it may have {limit:?} snapshots");
        if self.mode == MirrorImageMode::Journal {
            let journal = ImageJournal::open(ioctx, id).await?;
            journal.journal.next_tag_tid().await?;
            ensure!(journal.owner() == Owner::Primary, "{:?}", journal.newest);
        }
        Ok(())
    }

    /// Makes a tag in its journal, as a client does that has opened the image to write.
    pub async fn use_journal(&self, ioctx: &IoCtx) -> Result<()> {
        let journal = ImageJournal::open(ioctx, self.image.id()).await?;
        let predecessor = TagPredecessor { mirror_uuid: LOCAL_MIRROR_UUID.into(), commit: None };
        let tag = TagData { mirror_uuid: LOCAL_MIRROR_UUID.into(), predecessor };
        journal.journal.allocate_tag(journal.tag_class, &tag).await?;
        Ok(())
    }

    /// Fails if anything is left of it.
    pub async fn expect_gone(&self, world: &World) -> Result<()> {
        let (id, ioctx) = (self.image.id(), &world.local);
        ensure!(ImageHeader::read(ioctx, id).await.optional()?.is_none(), "its header is there");
        ensure!(trash::get(ioctx, id).await?.is_none(), "it is in the trash");
        ensure!(directory::name_of(ioctx, id).await?.is_none(), "it has a name");
        ensure!(directory::id_of(ioctx, &self.name).await.optional()?.is_none(), "its name is there");
        ensure!(Mirroring::new(ioctx).image(id).await?.is_none(), "it is mirrored");
        let left: Vec<_> = ioctx.list_objects().await?.into_iter().filter(|o| o.contains(&id.0)).collect();
        ensure!(left.is_empty(), "left of it: {left:?}");
        Ok(())
    }
}
