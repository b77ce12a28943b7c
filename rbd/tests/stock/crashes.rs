//! Every operation of several steps, cut off behind each of its requests, and repeated: it must end as if it had not
//! been cut off.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rados::fault::{Fault, FaultPlan, Faulty, Matcher};
use rados::{Backend, IoCtx, Location, SnapId};
use rbd::trash::{self, TrashSource};
use rbd::types::{MirrorSnapshot, MirrorSnapshotState};
use rbd::{
    CloneFormat, Image, ImageId, NewImage, NewSnapshot, ObjectNumber, ObjectState, ParentSpec, RemoveOptions,
    SnapshotNamespace, children, create, directory, image_state, remove, snapshots,
};

use crate::world::{DEFAULT_FEATURES, POOL, World};

/// No operation here takes more requests.
const REQUESTS_MAX: u64 = 200;

/// The pool, reached through a backend that suffers `fault` at the `nth` request.
fn faulty(world: &World, nth: u64, fault: Fault) -> (Arc<Faulty>, IoCtx) {
    let plan = FaultPlan::none().at(nth, Matcher::default(), fault);
    let faulty = Faulty::new(world.pool.backend().clone(), plan, &[]);
    let backend: Arc<dyn Backend> = faulty.clone();
    let location = Location { pool: world.pool.pool_id(), namespace: "".into() };
    (faulty, IoCtx::new(backend, location))
}

/// For each kind of fault and each request: prepares a case, lets `operation` run into the fault, repeats it without,
/// and checks. Answers with the number of requests that the operation takes.
async fn cut_off_everywhere<T>(
    world: &World,
    prepare: impl AsyncFn(String) -> Result<T>,
    operation: impl AsyncFn(&IoCtx, &T) -> Result<()>,
    check: impl AsyncFn(&T) -> Result<()>,
) -> Result<u64> {
    let mut taken = 0;
    // A crash before a request leaves what one behind the request before it leaves.
    for fault in [Fault::CrashAfter, Fault::LoseAnswer(Some(libc::ETIMEDOUT))] {
        for nth in 1.. {
            ensure!(nth < REQUESTS_MAX, "the operation does not end");
            let unique = rbd::generate_id(&world.pool);
            let case = prepare(format!("case {unique}")).await.context("preparing")?;
            let (backend, ioctx) = faulty(world, nth, fault.clone());
            let cut_off = tokio::select! {
                done = operation(&ioctx, &case) => done.is_err() || backend.requests() >= nth,
                () = backend.crashed() => true,
            };
            let what = || format!("{fault:?} at request {nth}");
            operation(&world.pool, &case).await.with_context(what)?;
            check(&case).await.with_context(what)?;
            if !cut_off {
                taken = nth - 1;
                break;
            }
        }
    }
    ensure!(taken > 3, "only {taken} requests were cut off");
    Ok(taken)
}

async fn expect_usable(world: &World, name: &str) -> Result<()> {
    let spec = format!("{POOL}/{name}");
    world.stock.rbd(&["object-map", "check", &spec]).await?;
    let flags = world.stock.rbd_json(&["info", &spec]).await?["flags"].clone();
    ensure!(flags.as_array().is_some_and(Vec::is_empty), "flags: {flags}");
    Ok(())
}

async fn expect_gone(world: &World, id: &ImageId) -> Result<()> {
    let left: Vec<_> =
        world.pool.list_objects().await?.into_iter().filter(|name| name.contains(&id.0)).collect();
    ensure!(left.is_empty(), "left: {left:?}");
    let names = directory::list(&world.pool).await?;
    ensure!(!names.values().any(|other| other == id), "it is still in the directory");
    Ok(())
}

async fn made(world: &World, name: &str) -> Result<Image> {
    Ok(create::create(&world.pool, &world.new_image(name, 40 << 20, DEFAULT_FEATURES)).await?)
}

fn user(name: &str, id: Option<SnapId>) -> NewSnapshot {
    NewSnapshot { name: name.into(), namespace: SnapshotNamespace::User, id, skip_object_map: false }
}

pub async fn creation(world: &World) -> Result<()> {
    let prepare = async |name: String| {
        let plain = world.new_image(&name, 40 << 20, DEFAULT_FEATURES);
        Ok(NewImage { stripe_unit: 65536, stripe_count: 3, ..plain })
    };
    let operation = async |ioctx: &IoCtx, new: &NewImage| Ok(create::create(ioctx, new).await.map(drop)?);
    let check = async |new: &NewImage| {
        ensure!(
            directory::directory_id_of(&world.pool, &new.name).await?.as_ref() == Some(&new.id),
            "directory"
        );
        ensure!(Image::open_by_name(&world.pool, &new.name).await?.1.layout.stripe_count() == 3, "striping");
        expect_usable(world, &new.name).await?;
        Ok(remove::remove_image(&world.pool, &new.id, &RemoveOptions::default(), |_, _| {}).await?)
    };
    cut_off_everywhere(world, prepare, operation, check).await.map(drop)
}

pub async fn cloning(world: &World) -> Result<()> {
    for format in [CloneFormat::V1, CloneFormat::V2] {
        let mother = made(world, &format!("mother of {format:?}")).await?;
        let snap = snapshots::create(&mother, &mother.read_header().await?, &user("s", None)).await?;
        snapshots::protect(&mother, &mother.read_header().await?, snap).await?;
        let of = ParentSpec {
            pool: world.pool.pool_id(),
            namespace: String::new(),
            image: mother.id().clone(),
            snap,
        };
        let prepare = async |name: String| Ok(world.new_image(&name, 40 << 20, DEFAULT_FEATURES));
        let operation = async |ioctx: &IoCtx, new: &NewImage| {
            Ok(create::create_clone(ioctx, new, &of, format).await.map(drop)?)
        };
        let check = async |new: &NewImage| {
            let (image, header) = Image::open_by_name(&world.pool, &new.name).await?;
            ensure!(header.parent == Some(of.overlapping(40 << 20)), "parent: {:?}", header.parent);
            ensure!(header.clone_format() == format, "format");
            let known = match format {
                CloneFormat::V1 => children::v1_children(&world.pool, &of).await?.contains(image.id()),
                CloneFormat::V2 => {
                    children::v2_children(&world.pool, &of.image, snap).await?.contains(&image.as_child())
                }
            };
            ensure!(known, "the parent does not know it");
            Ok(remove::remove_image(&world.pool, &new.id, &RemoveOptions::default(), |_, _| {}).await?)
        };
        cut_off_everywhere(world, prepare, operation, check).await?;
    }
    Ok(())
}

pub async fn making_snapshots(world: &World) -> Result<()> {
    let prepare = async |name: String| {
        let image = made(world, &name).await?;
        let mut map = image.object_map(SnapId::HEAD).load().await?;
        map.set(ObjectNumber(2), ObjectState::Exists);
        image.object_map(SnapId::HEAD).save(&map).await?;
        Ok((image.id().clone(), image.data_ioctx().snap_create().await?))
    };
    let operation = async |ioctx: &IoCtx, (id, snap): &(ImageId, SnapId)| {
        let (image, header) = Image::open(ioctx, id).await?;
        Ok(snapshots::create(&image, &header, &user("s", Some(*snap))).await.map(drop)?)
    };
    let check = async |(id, snap): &(ImageId, SnapId)| {
        let (image, header) = Image::open(&world.pool, id).await?;
        ensure!(header.user_snapshot("s").map(|s| s.id) == Some(*snap), "the snapshot is not there");
        let at_snap = image.object_map(*snap).load().await?;
        ensure!(at_snap.get(ObjectNumber(2)) == ObjectState::Exists, "its map lost a change: {at_snap:?}");
        let at_head = image.object_map(SnapId::HEAD).load().await?;
        ensure!(at_head.get(ObjectNumber(2)).may_exist(), "the head's map lost an object: {at_head:?}");
        ensure!(header.flags.0 == 0 && header.snapshots[snap].flags.0 == 0, "flags");
        let options = RemoveOptions { user_snapshots: true, ..RemoveOptions::default() };
        Ok(remove::remove_image(&world.pool, id, &options, |_, _| {}).await?)
    };
    cut_off_everywhere(world, prepare, operation, check).await.map(drop)
}

/// An image with three snapshots; object 1 was changed before the second, a mirror-snapshot with an image state.
async fn three_snapshots(world: &World, name: String) -> Result<(ImageId, SnapId)> {
    let image = made(world, &name).await?;
    snapshots::create(&image, &image.read_header().await?, &user("first", None)).await?;
    let mut map = image.object_map(SnapId::HEAD).load().await?;
    map.set(ObjectNumber(1), ObjectState::Exists);
    image.object_map(SnapId::HEAD).save(&map).await?;
    let mirror = MirrorSnapshot {
        state: MirrorSnapshotState::NonPrimary,
        complete: true,
        mirror_peer_uuids: BTreeSet::new(),
        primary_mirror_uuid: "there".to_string(),
        primary_snap_id: SnapId(7),
        last_copied_object_number: 0,
        snap_seqs: [(SnapId(7), SnapId(8))].into(),
    };
    let second = NewSnapshot { namespace: SnapshotNamespace::Mirror(mirror), ..user("second", None) };
    let middle = snapshots::create(&image, &image.read_header().await?, &second).await?;
    let state = image_state::image_state_object(image.id(), middle, 0);
    world.pool.write(rados::WriteOp::new(state).with(rados::WriteSub::WriteFull("state".into()))).await?;
    snapshots::create(&image, &image.read_header().await?, &user("third", None)).await?;
    Ok((image.id().clone(), middle))
}

pub async fn removing_snapshots(world: &World) -> Result<()> {
    let prepare = async |name: String| three_snapshots(world, name).await;
    let operation = async |ioctx: &IoCtx, (id, middle): &(ImageId, SnapId)| {
        let (image, header) = Image::open(ioctx, id).await?;
        Ok(snapshots::remove(&image, &header, *middle).await.map(drop)?)
    };
    let check = async |(id, middle): &(ImageId, SnapId)| {
        let (image, header) = Image::open(&world.pool, id).await?;
        ensure!(header.snapshots.len() == 2 && !header.snapshots.contains_key(middle), "snapshots");
        ensure!(header.op_features.0 == 0, "operation features: {:?}", header.op_features);
        let third = header.user_snapshot("third").context("the third snapshot")?.id;
        let map = image.object_map(third).load().await?;
        ensure!(map.get(ObjectNumber(1)) == ObjectState::Exists, "a change was lost: {map:?}");
        let left = world.pool.list_objects().await?;
        let of_middle = [format!("{id}.{:016x}", middle.0), format!("{id}.{}.", middle.0)];
        ensure!(!left.iter().any(|name| of_middle.iter().any(|part| name.contains(part))), "left: {left:?}");
        let options = RemoveOptions { user_snapshots: true, ..RemoveOptions::default() };
        Ok(remove::remove_image(&world.pool, id, &options, |_, _| {}).await?)
    };
    cut_off_everywhere(world, prepare, operation, check).await.map(drop)
}

pub async fn renaming(world: &World) -> Result<()> {
    let prepare = async |name: String| Ok((made(world, &name).await?.id().clone(), name));
    let operation = async |ioctx: &IoCtx, (id, name): &(ImageId, String)| {
        Ok(directory::rename(ioctx, id, Some(name), &format!("{name} renamed")).await?)
    };
    let check = async |(id, name): &(ImageId, String)| {
        ensure!(
            directory::name_of(&world.pool, id).await?.as_deref() == Some(&format!("{name} renamed")),
            "name"
        );
        ensure!(directory::id_of(&world.pool, name).await.is_err(), "the old id object is left");
        expect_usable(world, &format!("{name} renamed")).await?;
        Ok(remove::remove_image(&world.pool, id, &RemoveOptions::default(), |_, _| {}).await?)
    };
    cut_off_everywhere(world, prepare, operation, check).await.map(drop)
}

pub async fn removing(world: &World) -> Result<()> {
    let prepare = async |name: String| {
        let image = made(world, &name).await?;
        let mut map = image.object_map(SnapId::HEAD).load().await?;
        map.set(ObjectNumber(1), ObjectState::Exists);
        image.object_map(SnapId::HEAD).save(&map).await?;
        snapshots::create(&image, &image.read_header().await?, &user("s", None)).await?;
        let data = rados::WriteSub::WriteFull("data".into());
        world.pool.write(rados::WriteOp::new(image.data_object(ObjectNumber(1))).with(data)).await?;
        Ok(image.id().clone())
    };
    let options = RemoveOptions { user_snapshots: true, ..RemoveOptions::default() };
    let operation =
        async |ioctx: &IoCtx, id: &ImageId| Ok(remove::remove_image(ioctx, id, &options, |_, _| {}).await?);
    let check = async |id: &ImageId| expect_gone(world, id).await;
    cut_off_everywhere(world, prepare, operation, check).await.map(drop)
}

pub async fn trashing(world: &World) -> Result<()> {
    let prepare = async |name: String| Ok((made(world, &name).await?.id().clone(), name));
    let operation = async |ioctx: &IoCtx, (id, name): &(ImageId, String)| {
        let none = std::time::Duration::ZERO;
        Ok(trash::move_image(ioctx, id, name, TrashSource::Mirroring, none).await?)
    };
    let check = async |(id, name): &(ImageId, String)| {
        let entry = trash::get(&world.pool, id).await?.context("an entry")?;
        ensure!(entry.state == trash::TrashState::Normal && entry.name == *name, "{entry:?}");
        ensure!(directory::id_of(&world.pool, name).await.is_err(), "the id object is left");
        remove::remove_from_trash(&world.pool, id, &RemoveOptions::default(), |_, _| {}).await?;
        expect_gone(world, id).await
    };
    cut_off_everywhere(world, prepare, operation, check).await?;

    let prepare = async |name: String| {
        let id = made(world, &name).await?.id().clone();
        let none = std::time::Duration::ZERO;
        trash::move_image(&world.pool, &id, &name, TrashSource::Mirroring, none).await?;
        Ok(id)
    };
    let operation = async |ioctx: &IoCtx, id: &ImageId| {
        Ok(remove::remove_from_trash(ioctx, id, &RemoveOptions::default(), |_, _| {}).await?)
    };
    let check = async |id: &ImageId| {
        if trash::get(&world.pool, id).await?.is_some() {
            bail!("it is still in the trash");
        }
        expect_gone(world, id).await
    };
    cut_off_everywhere(world, prepare, operation, check).await.map(drop)
}
