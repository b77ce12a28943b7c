//! Every action, cut off behind each of its requests, and done again: it must end as if it had not been cut off.
//!
//! What a crash behind a read leaves is what one behind the request before it leaves: actions crash behind changes only.
//!
//! A cut-off action runs in a runtime of its own, which ends with it: with it go its watches, as when a process ends.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use control::{Options, Pool, Quiesce};
use futures::future::{join_all, try_join_all};
use rados::error::ResultExt;
use rados::fault::{Fault, FaultPlan, Faulty, Matcher, OperationKind};
use rados::{Backend, Cluster, SnapId, WriteOp, WriteSub};
use rbd::image_state::{ImageState, set_resync_requested, write_image_state};
use rbd::mirroring::{GlobalImageId, MirrorImage, MirrorImageMode, MirrorImageState, MirrorMode, Mirroring};
use rbd::snapshots::{self, NewSnapshot};
use rbd::types::{MirrorSnapshot, MirrorSnapshotState, ObjectNumber};
use rbd::{Features, HeaderUpdate, Image, NewImage, ObjectState, SnapshotNamespace, create, generate_id};

use crate::picture::{Picture, expect_equal, picture, picture_among};
use crate::world::World;

/// No action takes more requests.
const REQUESTS_MAX: u64 = 300;
/// Images on which an action is cut off at the same time.
const CUTS_AT_ONCE: u64 = 8;
const SIZE: u64 = 4 << 20;
const ORDER: u8 = 20;

/// What an action is done to.
struct Case {
    pool: Pool,
    name: String,
}

impl Case {
    async fn new(pool: &Pool) -> Result<Case> {
        let name = format!("case-{:08x}", rand::random::<u32>());
        let features = Features(0x3d);
        let new = NewImage {
            name: name.clone(),
            id: generate_id(pool.ioctx()),
            size: SIZE,
            order: ORDER,
            features,
            stripe_unit: 0,
            stripe_count: 0,
            data_pool: None,
        };
        create::create(pool.ioctx(), &new).await?;
        let case = Case { pool: pool.clone(), name };
        case.write(&[0, 2], b"first").await?;
        Ok(case)
    }

    async fn image(&self) -> Result<(Image, rbd::ImageHeader)> {
        Ok(Image::open_by_name(self.pool.ioctx(), &self.name).await?)
    }

    /// Writes to objects as librbd does: the object map first.
    async fn write(&self, objects: &[u64], data: &'static [u8]) -> Result<()> {
        let (image, header) = self.image().await?;
        let map = image.object_map(SnapId::HEAD);
        let mut states = map.load().await?;
        for object in objects {
            states.set(ObjectNumber(*object), ObjectState::Exists);
        }
        map.save(&states).await?;
        for object in objects {
            let op =
                WriteOp::new(image.data_object(ObjectNumber(*object))).under(header.snap_context.clone());
            let sub = WriteSub::Write { offset: 0, data: Bytes::from_static(data) };
            image.data_ioctx().write(op.with(sub)).await?;
        }
        Ok(())
    }

    /// The first bytes of every object.
    async fn content(&self) -> Result<Vec<Bytes>> {
        let (image, header) = self.image().await?;
        let mut content = Vec::new();
        for object in 0..header.object_count() {
            let name = image.data_object(ObjectNumber(object));
            let data = image.data_ioctx().read_extent(&name, SnapId::HEAD, rados::Extent::new(0, 16)).await;
            content.push(data.optional()?.unwrap_or_default());
        }
        Ok(content)
    }

    /// Makes it a copy with one whole mirror-snapshot.
    async fn become_copy(&self) -> Result<()> {
        let (image, _) = self.image().await?;
        self.copied_snapshot(MirrorSnapshotState::NonPrimary, true).await?;
        let read_only = Features::NON_PRIMARY;
        HeaderUpdate::of(image.id()).set_features(read_only, read_only).apply(image.header_ioctx()).await?;
        let mirror = MirrorImage {
            mode: MirrorImageMode::Snapshot,
            global_id: GlobalImageId(uuid::Uuid::new_v4().to_string()),
            state: MirrorImageState::Enabled,
        };
        Ok(Mirroring::new(self.pool.ioctx()).image_set(image.id(), &mirror).await?)
    }

    async fn copied_snapshot(&self, state: MirrorSnapshotState, complete: bool) -> Result<()> {
        let (image, header) = self.image().await?;
        let mirror = MirrorSnapshot {
            state,
            complete,
            mirror_peer_uuids: Default::default(),
            primary_mirror_uuid: "b8d4bd9c-6a1e-4f5e-8d2f-4a4a7f8b5f57".into(),
            primary_snap_id: SnapId(4711),
            last_copied_object_number: 0,
            snap_seqs: Default::default(),
        };
        let new = NewSnapshot {
            name: format!(".mirror.non_primary.{}", uuid::Uuid::new_v4()),
            namespace: SnapshotNamespace::Mirror(mirror),
            id: None,
            skip_object_map: false,
        };
        let id = snapshots::create(&image, &header, &new).await?;
        let state = ImageState {
            name: self.name.clone(),
            features: header.features.without(Features::IMPLICIT),
            snap_limit: None,
            snapshots: Default::default(),
            metadata: Default::default(),
        };
        Ok(write_image_state(image.header_ioctx(), image.id(), id, &state).await?)
    }

    async fn enabled(self) -> Result<Case> {
        self.pool.enable(&self.name, MirrorImageMode::Snapshot).await?;
        self.write(&[1], b"second").await?;
        Ok(self)
    }

    /// A copy of which a delta has been copied in part.
    async fn partial_copy(self) -> Result<Case> {
        self.become_copy().await?;
        self.copied_snapshot(MirrorSnapshotState::NonPrimary, false).await?;
        self.write(&[0, 3], b"partial").await?;
        Ok(self)
    }
}

/// Which requests are to suffer a fault.
fn suffering(fault: &Fault) -> Matcher {
    match fault {
        Fault::CrashAfter => Matcher::other_than(OperationKind::Read),
        _ => Matcher::default(),
    }
}

/// The pool, reached through a backend that suffers `fault` at the `nth` request that is to suffer it.
async fn faulty(pool: &Pool, nth: u64, fault: Fault) -> Result<(Arc<Faulty>, Pool)> {
    let faulty = Faulty::new(pool.cluster().backend().clone(), FaultPlan::none(), &[]);
    let backend: Arc<dyn Backend> = faulty.clone();
    let there = Pool::open(&Cluster::new(backend), pool.name(), pool.namespace(), Options::default()).await?;
    faulty.set_plan(FaultPlan::none().at(nth, suffering(&fault), fault));
    Ok((faulty, there))
}

/// A process that ends without warning leaves its locks behind, for whoever comes next to break.
fn without_locks(mut picture: Picture) -> Picture {
    picture.remove("header lock");
    for told in picture.values_mut() {
        if let Some((content, _)) = told.split_once(", locked ") {
            *told = content.to_string();
        }
    }
    picture
}

/// Prepares a case again and again, lets `action` run into each fault at each of its requests, repeats it, and compares
/// with what comes of an action that was not cut off. Errors that say that all is done are passed over.
async fn cut_off_everywhere<A>(
    world: &World,
    pool: &Pool,
    prepare: impl AsyncFn(Case) -> Result<Case>,
    action: impl Fn(Pool, String) -> A,
    done: &[i32],
) -> Result<()>
where
    A: Future<Output = rados::Result<()>> + Send + 'static,
{
    let undisturbed = prepare(Case::new(pool).await?).await?;
    action(pool.clone(), undisturbed.name.clone()).await?;
    let expected = (without_locks(picture(pool, &undisturbed.name).await?), undisturbed.content().await?);
    for fault in [Fault::CrashAfter, Fault::LoseAnswer(Some(libc::ETIMEDOUT))] {
        let cut = async |nth| -> Result<(bool, Case, String)> {
            let case = prepare(Case::new(pool).await?).await.context("preparing")?;
            let what = format!("{fault:?} at request {nth} of image {}", case.name);
            let (reached, first) = cut_off(&case, nth, fault.clone(), &action).await?;
            if !matches!(first, Some(Ok(()))) {
                match action(pool.clone(), case.name.clone()).await {
                    Err(e) if !done.contains(&e.errno()) => bail!("{what}: {e}"),
                    _ => {}
                }
            }
            Ok((reached, case, what))
        };
        let check = async |(_, case, what): &(bool, Case, String), objects: &[String]| -> Result<()> {
            let held = without_locks(picture_among(pool, &case.name, objects).await?);
            expect_equal(&expected.0, &held).with_context(|| what.clone())?;
            ensure!(case.content().await? == expected.1, "{what}: {:?}", case.content().await?);
            Ok(())
        };
        let mut reached = 0;
        loop {
            // All are awaited, even when one has failed: a runtime must not be dropped in the midst of its work.
            let nths = reached + 1..=reached + CUTS_AT_ONCE;
            let ended: Vec<_> = join_all(nths.map(&cut)).await.into_iter().collect::<Result<_>>()?;
            let objects = pool.ioctx().list_objects().await?;
            try_join_all(ended.iter().map(|ended| check(ended, &objects))).await?;
            reached += CUTS_AT_ONCE;
            if let Some(beyond) = ended.iter().position(|(reached, ..)| !reached) {
                ensure!(beyond as u64 + reached - CUTS_AT_ONCE > 5, "hardly any requests were cut off");
                break;
            }
            ensure!(reached < REQUESTS_MAX, "the action does not end");
        }
    }
    ensure!(world.a.stock.rbd(&["ls", pool.name()]).await?.contains("case-"), "there are no images");
    Ok(())
}

/// Runs `action` into a fault at the `nth` of its requests, and waits until its watches are gone. Answers whether it got that
/// far, and how it ended if it did.
async fn cut_off<A>(
    case: &Case,
    nth: u64,
    fault: Fault,
    action: impl Fn(Pool, String) -> A,
) -> Result<(bool, Option<rados::Result<()>>)>
where
    A: Future<Output = rados::Result<()>> + Send + 'static,
{
    let (backend, there) = faulty(&case.pool, nth, fault).await?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let running = runtime.spawn(action(there, case.name.clone()));
    let first = tokio::select! {
        ended = running => Some(ended?),
        () = backend.crashed() => None,
    };
    let reached = backend.matched()[0] >= nth;
    drop(backend);
    runtime.shutdown_background();
    let (image, _) = case.image().await?;
    let header = rbd::layout::header_object(image.id());
    tests::wait::until("the watch to be gone", Duration::from_secs(40), || async {
        Ok(case.pool.ioctx().list_watchers(&header).await?.is_empty().then_some(()))
    })
    .await?;
    Ok((reached, first))
}

/// What an image goes through as a primary.
pub async fn of_primaries(world: &World) -> Result<()> {
    let pool = world.a.pool(&world.mirrored_pool().await?).await?;
    let enable =
        |pool: Pool, name: String| async move { pool.enable(&name, MirrorImageMode::Snapshot).await };
    cut_off_everywhere(world, &pool, async |case| Ok(case), enable, &[]).await.context("enabling")?;
    let demote = |pool: Pool, name: String| async move { pool.demote(&name).await };
    let enabled = async |case: Case| case.enabled().await;
    cut_off_everywhere(world, &pool, enabled, demote, &[libc::EINVAL]).await.context("demoting")?;
    let promote = |pool: Pool, name: String| async move { pool.promote(&name, false).await.map(drop) };
    let demoted = async |case: Case| {
        let case = case.enabled().await?;
        case.pool.demote(&case.name).await?;
        Ok(case)
    };
    cut_off_everywhere(world, &pool, demoted, promote, &[libc::EINVAL]).await.context("promoting")?;
    let disable = |pool: Pool, name: String| async move { pool.disable(&name, false).await };
    let many = async |case: Case| {
        let case = case.enabled().await?;
        case.pool.snapshot(&case.name, Some(Quiesce::Skip)).await?;
        Ok(case)
    };
    cut_off_everywhere(world, &pool, many, disable, &[]).await.context("disabling")
}

/// What an image goes through as a copy.
pub async fn of_copies(world: &World) -> Result<()> {
    let pool = world.a.pool(&world.mirrored_pool().await?).await?;
    let promote = |pool: Pool, name: String| async move { pool.promote(&name, true).await.map(drop) };
    let copy = async |case: Case| {
        case.become_copy().await?;
        Ok(case)
    };
    cut_off_everywhere(world, &pool, copy, promote, &[libc::EINVAL]).await.context("promoting by force")?;
    let partial = async |case: Case| case.partial_copy().await;
    cut_off_everywhere(world, &pool, partial, promote, &[libc::EINVAL]).await.context("rolling back")?;
    let disable = |pool: Pool, name: String| async move { pool.disable(&name, true).await };
    let wanting_resync = async |case: Case| {
        let case = case.partial_copy().await?;
        let (image, _) = case.image().await?;
        let uuid = Mirroring::new(case.pool.ioctx()).uuid().await?.context("a mirror uuid")?;
        set_resync_requested(case.pool.ioctx(), image.id(), &uuid, true).await?;
        Ok(case)
    };
    cut_off_everywhere(world, &pool, wanting_resync, disable, &[]).await.context("disabling by force")
}

/// Setting the mode of a pool.
pub async fn of_modes(world: &World) -> Result<()> {
    for nth in 1..40 {
        let pool = world.a.pool(&world.new_pool().await?).await?;
        let (backend, there) = faulty(&pool, nth, Fault::CrashAfter).await?;
        let before = backend.requests();
        tokio::select! {
            done = there.set_mode(MirrorMode::Image, None) => drop(done?),
            () = backend.crashed() => {}
        }
        pool.set_mode(MirrorMode::Image, None).await?;
        let stock = world.a.stock.rbd_json(&["mirror", "pool", "info", pool.name()]).await?;
        ensure!(stock["mode"] == "image", "{stock}");
        pool.set_mode(MirrorMode::Disabled, None).await?;
        let left = pool.ioctx().omap_all("rbd_mirroring", "").await?;
        ensure!(left.is_empty(), "left: {left:?}");
        if backend.requests() - before < nth {
            return Ok(());
        }
    }
    bail!("setting the mode does not end")
}
