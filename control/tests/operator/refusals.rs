//! What is refused, and what is granted though there is nothing to do: as the stock `rbd` does, with its error numbers.

use anyhow::{Context, Result, ensure};
use control::verify::{Progress, Subject, verify};
use control::{Options, Pool};
use rbd::mirroring::{MirrorImageMode, MirrorMode};
use tokio::sync::watch;

use crate::world::{World, expect_same_refusal};

/// Images that are not mirrored, or are not there.
pub async fn of_images_that_are_not_mirrored(world: &World) -> Result<()> {
    let name = world.mirrored_pool().await?;
    let (stock, pool) = (&world.a.stock, world.a.pool(&name).await?);
    stock.create_image(&format!("{name}/plain"), 4 << 20, &[]).await?;
    for image in ["plain", "none"] {
        let spec = format!("{name}/{image}");
        let rbd = async |verb: &str| stock.rbd(&["mirror", "image", verb, &spec]).await;
        expect_same_refusal(rbd("promote").await, pool.promote(image, false).await)?;
        expect_same_refusal(rbd("demote").await, pool.demote(image).await)?;
        expect_same_refusal(rbd("resync").await, pool.resync(image).await)?;
        expect_same_refusal(rbd("status").await, pool.image_status(image).await)?;
        expect_same_refusal(rbd("snapshot").await, pool.snapshot(image, None).await)?;
    }
    let spec = format!("{name}/plain");
    stock.rbd(&["mirror", "image", "disable", &spec]).await?;
    pool.disable("plain", false).await?;
    let none = format!("{name}/none");
    expect_same_refusal(
        stock.rbd(&["mirror", "image", "disable", &none]).await,
        pool.disable("none", false).await,
    )?;
    let enable = stock.rbd(&["mirror", "image", "enable", &none, "snapshot"]).await;
    expect_same_refusal(enable, pool.enable("none", MirrorImageMode::Snapshot).await)?;
    let nowhere = Pool::open(&world.a.cluster, "nowhere", "", Options::default()).await;
    expect_same_refusal(stock.rbd(&["mirror", "pool", "status", "nowhere"]).await, nowhere)?;
    let nowhere = Pool::open(&world.a.cluster, &name, "nowhere", Options::default()).await;
    let spec = format!("{name}/nowhere");
    let refused = expect_same_refusal(stock.rbd(&["mirror", "pool", "status", &spec]).await, nowhere);
    refused.or_else(|error| if error.to_string().contains("namespace") { Ok(()) } else { Err(error) })
}

/// Pools whose mirroring is not enabled, or in another mode.
pub async fn of_pools_in_other_modes(world: &World) -> Result<()> {
    let name = world.new_pool().await?;
    let (stock, pool) = (&world.a.stock, world.a.pool(&name).await?);
    let spec = format!("{name}/image");
    stock.create_image(&spec, 4 << 20, &["--image-feature", "layering,exclusive-lock,journaling"]).await?;
    let rbd_pool = async |verb: &str| stock.rbd(&["mirror", "pool", verb, &name]).await;
    expect_same_refusal(rbd_pool("status").await, pool.status(false).await)?;
    expect_same_refusal(rbd_pool("promote").await, pool.promote_all(false, |_| {}).await)?;
    expect_same_refusal(rbd_pool("demote").await, pool.demote_all(|_| {}).await)?;
    let enable = stock.rbd(&["mirror", "image", "enable", &spec, "journal"]).await;
    expect_same_refusal(enable, pool.enable("image", MirrorImageMode::Journal).await)?;
    ensure!(pool.set_mode(MirrorMode::Disabled, None).await?.is_none(), "disabling what is disabled");
    if stock.release().await? < 20 {
        let only =
            pool.set_mode(MirrorMode::InitOnly, None).await.err().context("a mode of newer releases")?;
        ensure!(only.is(libc::EINVAL) && only.to_string().contains("Ceph 20"), "{only}");
        let elsewhere =
            pool.set_mode(MirrorMode::Image, Some("elsewhere")).await.err().context("of newer releases")?;
        ensure!(elsewhere.is(libc::EOPNOTSUPP), "{elsewhere}");
        ensure!(pool.info(false).await?.mode == MirrorMode::Disabled, "a refused mode was set");
    } else {
        ensure!(
            pool.set_mode(MirrorMode::InitOnly, None).await? == Some(MirrorMode::Disabled),
            "the mode before"
        );
        let told = stock.rbd_json(&["mirror", "pool", "info", &name]).await?;
        ensure!(told["mode"] == "init-only", "{told}");
        ensure!(
            pool.set_mode(MirrorMode::Disabled, None).await? == Some(MirrorMode::InitOnly),
            "the mode before"
        );
    }

    ensure!(pool.set_mode(MirrorMode::Pool, None).await? == Some(MirrorMode::Disabled), "the mode before");
    ensure!(pool.image_info("image").await?.is_enabled(), "a journalled image of a pool in pool mode");
    let enable = stock.rbd(&["mirror", "image", "enable", &spec, "journal"]).await;
    expect_same_refusal(enable, pool.enable("image", MirrorImageMode::Journal).await)?;
    let disable = stock.rbd(&["mirror", "image", "disable", &spec]).await;
    expect_same_refusal(disable, pool.disable("image", false).await)?;
    ensure!(pool.set_mode(MirrorMode::Image, None).await? == Some(MirrorMode::Pool), "the mode before");
    ensure!(pool.set_mode(MirrorMode::Image, None).await?.is_none(), "the same mode again");

    let other = stock.rbd(&["mirror", "image", "enable", &spec, "snapshot"]).await;
    expect_same_refusal(other, pool.enable("image", MirrorImageMode::Snapshot).await)?;
    expect_same_refusal(
        stock.rbd(&["mirror", "image", "snapshot", &spec]).await,
        pool.snapshot("image", None).await,
    )?;
    expect_same_refusal(rbd_pool("disable").await, pool.set_mode(MirrorMode::Disabled, None).await)?;
    pool.disable("image", false).await?;
    ensure!(pool.set_mode(MirrorMode::Disabled, None).await? == Some(MirrorMode::Image), "the mode before");
    Ok(())
}

/// Clones and their parents: first the parents are mirrored, last they cease to be.
pub async fn of_clones(world: &World) -> Result<()> {
    for format in [1, 2] {
        let name = world.mirrored_pool().await?;
        let (stock, pool) = (&world.a.stock, world.a.pool(&name).await?);
        let [parent, clone] = ["parent", "clone"].map(|image| format!("{name}/{image}"));
        world.a.image(&parent, &[]).await?;
        let snap = format!("{parent}@base");
        stock.snap_create(&snap).await?;
        stock.snap_protect(&snap).await?;
        stock.clone_image(&snap, &clone, format).await?;
        let enable = stock.rbd(&["mirror", "image", "enable", &clone, "snapshot"]).await;
        expect_same_refusal(enable, pool.enable("clone", MirrorImageMode::Snapshot).await)?;
        pool.enable("parent", MirrorImageMode::Snapshot).await?;
        pool.enable("clone", MirrorImageMode::Snapshot).await?;
        let disable = stock.rbd(&["mirror", "image", "disable", &parent]).await;
        expect_same_refusal(disable, pool.disable("parent", false).await)?;
        ensure!(pool.image_info("parent").await?.is_enabled(), "a refused disabling changed something");
        pool.disable("clone", false).await?;
        pool.disable("parent", false).await?;
    }
    Ok(())
}

/// Images in migration: their mirroring cannot be enabled, and nothing is proved of them nor of their clones.
pub async fn of_images_in_migration(world: &World) -> Result<()> {
    let name = world.mirrored_pool().await?;
    let (stock, pool) = (&world.a.stock, world.a.pool(&name).await?);
    let [source, moved, clone] = ["source", "moved", "clone"].map(|image| format!("{name}/{image}"));
    world.a.image(&source, &[]).await?;
    stock.snap_create(&format!("{source}@base")).await?;
    stock.clone_image(&format!("{source}@base"), &clone, 2).await?;
    stock.rbd(&["migration", "prepare", &source, &moved]).await?;
    for mode in [MirrorImageMode::Snapshot, MirrorImageMode::Journal] {
        let enable = stock.rbd(&["mirror", "image", "enable", &moved, &mode.to_string()]).await;
        let ours = pool.enable("moved", mode).await;
        ensure!(ours.as_ref().is_err_and(|error| error.to_string().contains("being migrated")), "{ours:?}");
        expect_same_refusal(enable, ours)?;
    }
    ensure!(!pool.image_info("moved").await?.is_enabled(), "a refused enabling changed something");

    let subject = async |image: &str| -> Result<Subject> {
        let info = pool.image_info(image).await?;
        Ok(Subject { ioctx: pool.ioctx().clone(), id: info.id, mirror_uuid: String::new() })
    };
    for image in ["moved", "clone"] {
        // Both have their user snapshots in common with themselves.
        stock.snap_create(&format!("{name}/{image}@here")).await?;
        let subject = subject(image).await?;
        let (progress, _) = watch::channel(Progress::default());
        let found = verify(&subject, &subject, &Default::default(), &progress).await;
        ensure!(
            found.as_ref().is_err_and(|error| error.to_string().contains("being migrated")),
            "{image}: {found:?}"
        );
    }
    stock.rbd(&["migration", "execute", "--no-progress", &moved]).await?;
    stock.rbd(&["migration", "commit", "--force", "--no-progress", &moved]).await?;
    pool.enable("moved", MirrorImageMode::Snapshot).await?;
    let subject = subject("moved").await?;
    let (progress, _) = watch::channel(Progress::default());
    let found = verify(&subject, &subject, &Default::default(), &progress).await?;
    ensure!(found.equal, "{found:?}");
    Ok(())
}

/// A pool in pool mode ceases to be mirrored, clones before their parents.
pub async fn of_whole_pools_with_clones(world: &World) -> Result<()> {
    let name = world.new_pool().await?;
    let (stock, pool) = (&world.a.stock, world.a.pool(&name).await?);
    let journalled = ["--image-feature", "layering,exclusive-lock,journaling"];
    let [parent, clone] = ["parent", "clone"].map(|image| format!("{name}/{image}"));
    world.a.image(&parent, &journalled).await?;
    let snap = format!("{parent}@base");
    stock.snap_create(&snap).await?;
    stock.snap_protect(&snap).await?;
    stock.clone_image(&snap, &clone, 2).await?;
    stock.rbd(&["feature", "enable", &clone, "journaling"]).await.ok();
    pool.set_mode(MirrorMode::Pool, None).await?;
    for image in ["parent", "clone"] {
        ensure!(pool.image_info(image).await?.is_enabled(), "{image} is not mirrored");
    }
    pool.set_mode(MirrorMode::Disabled, None).await?;
    let left = pool.ioctx().omap_all("rbd_mirroring", "").await?;
    ensure!(left.is_empty(), "left: {left:?}");
    for image in [&parent, &clone] {
        let features = stock.rbd_json(&["info", image]).await?["features"].clone();
        ensure!(!features.to_string().contains("journaling"), "{features}");
    }
    Ok(())
}
