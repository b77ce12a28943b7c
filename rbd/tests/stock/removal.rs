//! Removing images, and the trash.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rados::SnapId;
use rbd::trash::{self, TrashSource, TrashState};
use rbd::types::{MirrorSnapshot, MirrorSnapshotState};
use rbd::{
    CloneFormat, NewImage, NewSnapshot, ParentSpec, RemoveOptions, SnapshotNamespace, create, remove,
    snapshots,
};

use crate::world::{DEFAULT_FEATURES, NAMESPACE, POOL, World};

/// Names of all objects of both pools and namespaces that belong to images.
async fn objects(world: &World) -> Result<BTreeSet<String>> {
    let mut objects = BTreeSet::new();
    for pool in [&world.pool, &world.other] {
        for namespace in ["", NAMESPACE] {
            let names = pool.with_namespace(namespace).list_objects().await?;
            objects.extend(names.into_iter().map(|name| format!("{}/{namespace}/{name}", pool.pool_id())));
        }
    }
    Ok(objects)
}

pub async fn nothing_is_left(world: &World) -> Result<()> {
    let mother = world.new_image("remove-mother", 16 << 20, DEFAULT_FEATURES);
    let mother_image = create::create(&world.pool, &mother).await?;
    let user = |name: &str| NewSnapshot {
        name: name.to_string(),
        namespace: SnapshotNamespace::User,
        id: None,
        skip_object_map: false,
    };
    let snap = snapshots::create(&mother_image, &mother_image.read_header().await?, &user("s")).await?;
    let of =
        ParentSpec { pool: world.pool.pool_id(), namespace: String::new(), image: mother.id.clone(), snap };
    // So that what is shared among images is there before.
    world.stock.rbd(&["trash", "ls", POOL]).await?;
    trash::list(&world.other).await?;
    let before = objects(world).await?;

    let new = NewImage {
        data_pool: Some(world.pool.pool_id()),
        stripe_unit: 65536,
        stripe_count: 3,
        ..world.new_image("gone", 64 << 20, DEFAULT_FEATURES)
    };
    let image = create::create_clone(&world.other, &new, &of, CloneFormat::V2).await?;
    world.stock.apply("other/gone", tests::Extents::default().fill(0, 30 << 20, 1)).await?;
    snapshots::create(&image, &image.read_header().await?, &user("one")).await?;
    world.stock.snap_protect("other/gone@one").await?;
    world.stock.apply("other/gone", tests::Extents::default().fill(20 << 20, 30 << 20, 2)).await?;
    let mirror = NewSnapshot {
        name: ".mirror.non_primary.x".to_string(),
        namespace: SnapshotNamespace::Mirror(MirrorSnapshot {
            state: MirrorSnapshotState::NonPrimary,
            complete: false,
            mirror_peer_uuids: BTreeSet::new(),
            primary_mirror_uuid: "there".to_string(),
            primary_snap_id: SnapId(7),
            last_copied_object_number: 3,
            snap_seqs: [(SnapId(1), SnapId(2))].into(),
        }),
        ..user("")
    };
    let mirrored = snapshots::create(&image, &image.read_header().await?, &mirror).await?;
    let header = image.read_header().await?;
    ensure!(header.snapshots[&mirrored].namespace == mirror.namespace, "{:?}", header.snapshots[&mirrored]);

    let refused = remove::remove_image(&world.other, &new.id, &RemoveOptions::default(), |_, _| {}).await;
    ensure!(refused.as_ref().is_err_and(|e| e.is(libc::ENOTEMPTY)), "a user snapshot: {refused:?}");
    let options = RemoveOptions { user_snapshots: true, ..RemoveOptions::default() };
    let mut told = (0, 0);
    remove::remove_image(&world.other, &new.id, &options, |done, total| told = (done, total)).await?;
    ensure!(told.0 == told.1 && told.1 > 0, "progress ended with {told:?}");
    remove::remove_image(&world.other, &new.id, &options, |_, _| {}).await?;

    // An object whose snapshots OSDs have yet to trim is listed until they have.
    tests::wait::until("everything to be gone", Duration::from_secs(60), || async {
        Ok(objects(world).await?.iter().all(|name| !name.contains(&new.id.0)).then_some(()))
    })
    .await?;
    // What is shared among images may be new.
    let after = objects(world).await?;
    let left: Vec<_> = after.difference(&before).collect();
    let shared = |name: &&String| name.ends_with("/rbd_info") || name.ends_with("/rbd_directory");
    ensure!(left.iter().all(shared), "left: {left:?}");
    ensure!(
        rbd::children::v2_children(&world.pool, &mother.id, snap).await?.is_empty(),
        "the parent knows it still"
    );
    world.stock.rbd(&["snap", "purge", "--no-progress", &format!("{POOL}/remove-mother")]).await?;
    world.stock.rbd(&["rm", "--no-progress", &format!("{POOL}/remove-mother")]).await?;
    Ok(())
}

pub async fn images_in_use_stay(world: &World) -> Result<()> {
    let new = world.new_image("in-use", 16 << 20, DEFAULT_FEATURES);
    let image = create::create(&world.pool, &new).await?;
    let spec = format!("{POOL}/in-use");
    let options = RemoveOptions { user_snapshots: true, ..RemoveOptions::default() };

    // It ends when it can read from its standard input.
    let mut watcher = world.stock.tool("rbd").args(["watch", &spec]).start()?;
    tests::wait::until("a watcher", Duration::from_secs(30), || async {
        let status = world.stock.rbd_json(&["status", &spec]).await?;
        Ok(status["watchers"].as_array().filter(|watchers| !watchers.is_empty()).map(|_| ()))
    })
    .await?;
    let refused = remove::remove_image(&world.pool, &new.id, &options, |_, _| {}).await;
    ensure!(refused.as_ref().is_err_and(|e| e.is(libc::EBUSY)), "a watched image: {refused:?}");
    drop(watcher.stdin.take());
    watcher.wait().await?;
    world.wait_unwatched(&world.pool, &new.id).await?;

    world.stock.rbd(&["group", "create", &format!("{POOL}/users")]).await?;
    world.stock.rbd(&["group", "image", "add", &format!("{POOL}/users"), &spec]).await?;
    let refused = remove::remove_image(&world.pool, &new.id, &options, |_, _| {}).await;
    ensure!(refused.as_ref().is_err_and(|e| e.is(libc::EMLINK)), "an image in a group: {refused:?}");
    world.stock.rbd(&["group", "image", "rm", &format!("{POOL}/users"), &spec]).await?;

    world.stock.snap_create(&format!("{spec}@s")).await?;
    world.stock.clone_image(&format!("{spec}@s"), &format!("{POOL}/user-of-it"), 2).await?;
    let refused = remove::remove_image(&world.pool, &new.id, &options, |_, _| {}).await;
    ensure!(refused.as_ref().is_err_and(|e| e.is(libc::ENOTEMPTY)), "an image with a clone: {refused:?}");
    let header = image.read_header().await?;
    ensure!(header.user_snapshot("s").is_some(), "a refused removal removed a snapshot");
    world.stock.rbd(&["rm", "--no-progress", &format!("{POOL}/user-of-it")]).await?;
    remove::remove_image(&world.pool, &new.id, &options, |_, _| {}).await?;
    ensure!(world.stock.rbd(&["info", &spec]).await.is_err(), "it is still there");
    Ok(())
}

pub async fn trash_is_shared_with_stock_tools(world: &World) -> Result<()> {
    let new = world.new_image("wanted", 16 << 20, DEFAULT_FEATURES);
    create::create(&world.pool, &new).await?;
    let day = Duration::from_secs(86_400);
    trash::move_image(&world.pool, &new.id, "wanted", TrashSource::Mirroring, day).await?;
    trash::move_image(&world.pool, &new.id, "wanted", TrashSource::Mirroring, day).await?;
    let listed = world.stock.rbd_json(&["trash", "ls", "--all", "--long", POOL]).await?;
    let entry = listed.as_array().into_iter().flatten().find(|entry| entry["id"] == new.id.0.as_str());
    let entry = entry.with_context(|| format!("rbd trash ls: {listed}"))?;
    ensure!(entry["name"] == "wanted" && entry["source"] == "MIRRORING", "rbd trash ls: {entry}");
    ensure!(world.stock.rbd(&["info", &format!("{POOL}/wanted")]).await.is_err(), "its name still works");
    let entry = trash::get(&world.pool, &new.id).await?.context("an entry")?;
    ensure!(entry.state == TrashState::Normal && entry.source == TrashSource::Mirroring, "{entry:?}");
    let deferred = entry.deferment_end_time.seconds - entry.deletion_time.seconds;
    ensure!(deferred == 86_400, "deferred by {deferred} s");
    world.stock.rbd(&["trash", "restore", "--pool", POOL, &new.id.0]).await?;
    world.stock.rbd(&["object-map", "check", &format!("{POOL}/wanted")]).await?;

    world.stock.rbd(&["trash", "mv", &format!("{POOL}/wanted")]).await?;
    let images = trash::list(&world.pool).await?;
    let entry = images.get(&new.id).context("a stock entry")?;
    ensure!(entry.source == TrashSource::User && entry.name == "wanted", "{entry:?}");
    remove::remove_from_trash(&world.pool, &new.id, &RemoveOptions::default(), |_, _| {}).await?;
    remove::remove_from_trash(&world.pool, &new.id, &RemoveOptions::default(), |_, _| {}).await?;
    ensure!(trash::get(&world.pool, &new.id).await?.is_none(), "the entry is still there");
    let left = world.pool.list_objects().await?;
    ensure!(!left.iter().any(|object| object.contains(&new.id.0)), "objects are left");
    Ok(())
}
