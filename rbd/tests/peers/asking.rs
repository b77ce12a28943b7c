//! Operations that only the owner of the lock may carry out.

use anyhow::{Context, Result, ensure};
use rbd::exclusive_lock::{Delegated, RequestPolicy};
use rbd::watch_notify::{HeaderEvent, HeaderWatch, Operation};
use rbd::{Features, ImageHeader, SnapshotNamespace};

use crate::world::{DEATH_LIMIT, LIMIT, World, spec, wait_report};

fn snap_create(name: &str) -> Operation {
    Operation::SnapCreate { namespace: SnapshotNamespace::User, name: name.into(), flags: 0 }
}

pub async fn stock_operations_get_the_lock(world: &World) -> Result<()> {
    let image = world.image("asked").await?;
    let lock = world.lock(&image, RequestPolicy::HandOver).await?;
    let name = spec("asked");
    let snapshot = format!("{name}@s");
    // Those that stock clients never do without the lock.
    let operations: [&[&str]; 3] = [
        &["snap", "create", "--no-progress", &snapshot],
        &["resize", "--no-progress", "--size", "2G", &name],
        &["object-map", "rebuild", "--no-progress", &name],
    ];
    for operation in operations {
        lock.acquire().await?;
        let give = async {
            wait_report(&lock, "a request", LIMIT, |report| report.requested.is_some()).await?;
            anyhow::Ok(lock.release().await?)
        };
        let ask = async { anyhow::Ok(world.stock.rbd(operation).await?) };
        tokio::try_join!(give, ask).with_context(|| format!("rbd {operation:?}"))?;
    }
    let header = ImageHeader::read(&world.pool, &image).await?;
    ensure!(header.user_snapshot("s").is_some() && header.size == 2 << 30, "{header:?}");
    ensure!(lock.report().borrow().header_updates > 0, "we are told of changes");
    lock.close().await?;
    Ok(())
}

pub async fn refused_operations_fail(world: &World) -> Result<()> {
    let image = world.image("not-asked").await?;
    let lock = world.lock(&image, RequestPolicy::Refuse).await?;
    lock.acquire().await?;
    let name = format!("{}@s", spec("not-asked"));
    let refused = world.stock.rbd(&["snap", "create", "--no-progress", &name]).await.expect_err("refused");
    ensure!(refused.exit_code() == Some(libc::EROFS), "{refused}");
    lock.verify().await?;
    lock.close().await?;
    Ok(())
}

pub async fn a_stock_owner_does_what_we_ask(world: &World) -> Result<()> {
    let image = world.image("willing").await?;
    let lock = world.lock(&image, RequestPolicy::HandOver).await?;
    let nobody = lock.ask_owner(snap_create("early")).await.expect_err("nobody owns the lock");
    ensure!(nobody.is(libc::ETIMEDOUT), "{nobody}");

    let writer = world.writer("willing").await?;
    let owner = world.owner(&image).await?;
    // He answers only when he is through with taking the lock, so the first one is insisted on.
    ensure!(lock.delegate(snap_create("asked")).await? == Delegated::DoneByOwner, "he lives");
    let header = ImageHeader::read(&world.pool, &image).await?;
    let asked = header.user_snapshot("asked").context("the snapshot")?.id;
    ensure!(world.owner(&image).await? == owner, "the owner stays the owner");
    let again = lock.ask_owner(snap_create("asked")).await.expect_err("it exists");
    ensure!(again.is(libc::EEXIST), "{again}");
    lock.ask_owner(Operation::SnapRename { snap: asked, name: "renamed".into() }).await?;
    let namespace = SnapshotNamespace::User;
    lock.ask_owner(Operation::SnapProtect { namespace: namespace.clone(), name: "renamed".into() }).await?;
    lock.ask_owner(Operation::Resize { size: 3 << 30, allow_shrink: false }).await?;
    let shrink = lock.ask_owner(Operation::Resize { size: 1 << 30, allow_shrink: false }).await;
    ensure!(shrink.as_ref().is_err_and(|error| error.is(libc::EINVAL)), "{shrink:?}");
    lock.ask_owner(Operation::MetadataUpdate { key: "k".into(), value: Some("v".into()) }).await?;
    lock.ask_owner(Operation::RebuildObjectMap).await?;
    lock.ask_owner(Operation::Sparsify { sparse_bytes: 4096 }).await?;
    lock.ask_owner(Operation::UpdateFeatures { features: Features::FAST_DIFF, enabled: false }).await?;
    let header = ImageHeader::read(&world.pool, &image).await?;
    ensure!(header.size == 3 << 30 && !header.features.has(Features::FAST_DIFF), "{header:?}");
    ensure!(header.user_snapshot("renamed").is_some_and(|snap| snap.id == asked), "{header:?}");
    lock.ask_owner(Operation::SnapUnprotect { namespace: namespace.clone(), name: "renamed".into() }).await?;
    lock.ask_owner(Operation::SnapRemove { namespace, name: "renamed".into() }).await?;
    ensure!(ImageHeader::read(&world.pool, &image).await?.user_snapshot("renamed").is_none(), "removed");

    drop(writer);
    let delegated = tokio::time::timeout(DEATH_LIMIT, lock.delegate(snap_create("late"))).await;
    ensure!(
        delegated.context("he is dead")?? == Delegated::LockedByUs && lock.is_held(),
        "nobody is left to do it"
    );
    let ours = lock.ask_owner(snap_create("late")).await.expect_err("we own the lock");
    ensure!(ours.is(libc::ERESTART), "{ours}");
    lock.close().await?;
    Ok(())
}

/// Stock clients ask a stock owner; we listen.
pub async fn what_stock_clients_say_is_understood(world: &World) -> Result<()> {
    let name = spec("overheard");
    // With a journal, they ask for everything.
    let features = "layering,exclusive-lock,object-map,fast-diff,journaling";
    world.stock.create_image(&name, 1 << 30, &["--image-feature", features]).await?;
    let image = world.id("overheard").await?;
    let snapshot = |snap: &str| format!("{name}@{snap}");
    world.stock.snap_create(&snapshot("s")).await?;
    let mut watch = HeaderWatch::new(&world.pool, &image).await?;
    let listener = tokio::spawn(async move {
        let mut heard = Vec::new();
        while let Some(event) = watch.next().await {
            if let HeaderEvent::Operation { operation, .. } = event {
                let last = matches!(operation, Operation::Rename { .. });
                heard.push(operation);
                if last {
                    break;
                }
            }
        }
        heard
    });
    let writer = world.writer("overheard").await?;
    let header = ImageHeader::read(&world.pool, &image).await?;
    let snap = header.user_snapshot("s").context("the snapshot")?.id;
    let (s, t, u) = (snapshot("s"), snapshot("t"), snapshot("u"));
    let commands: [&[&str]; 12] = [
        &["snap", "create", "--no-progress", &t],
        &["snap", "rename", &s, &u],
        &["snap", "protect", &u],
        &["snap", "unprotect", &u],
        &["snap", "rm", "--no-progress", &u],
        &["resize", "--no-progress", "--size", "2G", &name],
        &["sparsify", "--no-progress", &name],
        &["object-map", "rebuild", "--no-progress", &name],
        &["image-meta", "set", &name, "key", "value"],
        &["image-meta", "remove", &name, "key"],
        &["feature", "disable", &name, "fast-diff"],
        &["rename", &name, &spec("overheard2")],
    ];
    for command in commands {
        world.stock.rbd(command).await?;
    }
    drop(writer);
    let heard = tokio::time::timeout(LIMIT, listener).await.context("the last one was not heard")??;
    let (user, u) = (SnapshotNamespace::User, || "u".to_string());
    let expected = [
        Operation::SnapCreate { namespace: user.clone(), name: "t".into(), flags: 0 },
        Operation::SnapRename { snap, name: u() },
        Operation::SnapProtect { namespace: user.clone(), name: u() },
        Operation::SnapUnprotect { namespace: user.clone(), name: u() },
        Operation::SnapRemove { namespace: user, name: u() },
        Operation::Resize { size: 2 << 30, allow_shrink: false },
        Operation::Sparsify { sparse_bytes: 4096 },
        Operation::RebuildObjectMap,
        Operation::MetadataUpdate { key: "key".into(), value: Some("value".into()) },
        Operation::MetadataUpdate { key: "key".into(), value: None },
        Operation::UpdateFeatures { features: Features::FAST_DIFF, enabled: false },
        Operation::Rename { name: "overheard2".into() },
    ];
    ensure!(heard == expected, "{heard:#?}");
    Ok(())
}
