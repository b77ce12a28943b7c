//! Making and renaming images.

use anyhow::{Result, ensure};
use rados::{IoCtx, PoolId};
use rbd::{Features, Image, NewImage, create, directory};
use serde_json::Value;

use crate::world::{DEFAULT_FEATURES, NAMESPACE, OTHER_POOL, POOL, World};

/// A way to make an image: `rbd` arguments, and the same for us.
struct Way {
    args: &'static [&'static str],
    size: u64,
    order: u8,
    features: Features,
    stripe: (u64, u64),
    other_data_pool: bool,
    namespace: &'static str,
}

const PLAIN: Way = Way {
    args: &["--size", "40M"],
    size: 40 << 20,
    order: 22,
    features: DEFAULT_FEATURES,
    stripe: (0, 0),
    other_data_pool: false,
    namespace: "",
};

fn ways() -> Vec<Way> {
    vec![
        PLAIN,
        Way {
            args: &["--size", "40M", "--image-feature", "layering"],
            features: Features::LAYERING,
            ..PLAIN
        },
        Way { args: &["--size", "0"], size: 0, ..PLAIN },
        Way { args: &["--size", "1234567B", "--object-size", "64K"], size: 1234567, order: 16, ..PLAIN },
        Way {
            args: &["--size", "100M", "--stripe-unit", "64K", "--stripe-count", "5"],
            size: 100 << 20,
            stripe: (65536, 5),
            ..PLAIN
        },
        Way { args: &["--size", "40M", "--data-pool", OTHER_POOL], other_data_pool: true, ..PLAIN },
        Way { args: &["--size", "40M", "--namespace", NAMESPACE], namespace: NAMESPACE, ..PLAIN },
        Way {
            args: &["--size", "40M", "--image-feature", "layering,exclusive-lock,object-map"],
            features: Features(Features::LAYERING.0 | Features::EXCLUSIVE_LOCK.0 | Features::OBJECT_MAP.0),
            ..PLAIN
        },
    ]
}

/// `rbd info` without what differs between any two images.
async fn info(world: &World, spec: &str) -> Result<Value> {
    let mut info = world.stock.rbd_json(&["info", spec]).await?;
    for key in ["name", "id", "block_name_prefix", "create_timestamp", "access_timestamp", "modify_timestamp"]
    {
        info.as_object_mut().and_then(|info| info.remove(key));
    }
    Ok(info)
}

pub async fn native_and_stock_leave_the_same(world: &World) -> Result<()> {
    for (number, way) in ways().iter().enumerate() {
        let ioctx = world.pool.with_namespace(way.namespace);
        let (by_stock, by_us) = (format!("stock{number}"), format!("ours.{number}"));
        let mut args = vec!["create", "--pool", POOL, by_stock.as_str()];
        args.extend(way.args);
        world.stock.rbd(&args).await?;
        let stock_id = world.id_of(&ioctx, &by_stock).await?;

        let new = NewImage {
            id: world.id_like(&stock_id),
            order: way.order,
            stripe_unit: way.stripe.0,
            stripe_count: way.stripe.1,
            data_pool: way.other_data_pool.then_some(world.other.pool_id()),
            ..world.new_image(&by_us, way.size, way.features)
        };
        let image = create::create(&ioctx, &new).await?;
        world.expect_same_traces(&ioctx, (&by_stock, &stock_id), (&by_us, &new.id)).await?;

        let spec = |name: &str| match way.namespace {
            "" => format!("{POOL}/{name}"),
            namespace => format!("{POOL}/{namespace}/{name}"),
        };
        let (of_stock, of_ours) = (info(world, &spec(&by_stock)).await?, info(world, &spec(&by_us)).await?);
        ensure!(of_stock == of_ours, "rbd info tells {of_stock} of the stock image, {of_ours} of ours");

        let (_, of_stock) = Image::open_by_name(&ioctx, &by_stock).await?;
        let of_ours = image.read_header().await?;
        ensure!(of_stock.layout == of_ours.layout && of_stock.size == of_ours.size, "layouts differ");
        ensure!(of_ours.size == way.size && of_ours.order == way.order, "not what was asked for");
    }
    Ok(())
}

pub async fn stock_tools_use_native_images(world: &World) -> Result<()> {
    let striped = NewImage {
        stripe_unit: 16384,
        stripe_count: 3,
        data_pool: Some(world.other.pool_id()),
        ..world.new_image("used", (37 << 20) + 4321, DEFAULT_FEATURES)
    };
    let image = create::create(&world.pool, &striped).await?;
    let spec = format!("{POOL}/used");
    let extents = tests::Extents::default().fill(0, 5 << 20, 1).fill(20 << 20, 70_000, 2);
    let extents = extents.fill(striped.size - 4321, 4321, 3);
    world.stock.apply(&spec, extents).await?;
    let by_stock = world.stock.read(&spec).await?;
    let header = image.read_header().await?;
    let by_us = world.read_native(&image, header.size, rados::SnapId::HEAD).await?;
    ensure!(by_stock == by_us, "the content read natively is not that which `rbd export` reads");
    ensure!(by_us.iter().any(|byte| *byte != 0), "nothing was written");
    world.stock.rbd(&["object-map", "check", &spec]).await?;
    world.stock.resize(&spec, 11 << 20).await?;
    ensure!(image.read_header().await?.size == 11 << 20, "a resize was not seen");
    world.stock.rbd(&["rm", "--no-progress", &spec]).await?;
    Ok(())
}

async fn expect_errno<T>(errno: i32, what: &str, result: rados::Result<T>) -> Result<()> {
    match result {
        Err(error) if error.is(errno) => Ok(()),
        Err(error) => anyhow::bail!("{what}: {error}"),
        Ok(_) => anyhow::bail!("{what}: it worked"),
    }
}

pub async fn creation_can_be_repeated_and_is_undone(world: &World) -> Result<()> {
    let ioctx: &IoCtx = &world.pool;
    let new = world.new_image("again", 12 << 20, DEFAULT_FEATURES);
    create::create(ioctx, &new).await?;
    create::create(ioctx, &new).await?;
    let same_name = NewImage { id: world.id_like(&new.id), ..new.clone() };
    expect_errno(libc::EEXIST, "a taken name", create::create(ioctx, &same_name).await).await?;
    let same_id = NewImage { name: "agaim".to_string(), ..new.clone() };
    expect_errno(libc::EBADF, "a taken id", create::create(ioctx, &same_id).await).await?;
    ensure!(directory::directory_id_of(ioctx, "agaim").await?.is_none(), "a failed creation left its name");

    // Cut off behind each step: what stands is completed.
    for steps in 0..3 {
        let new = world.new_image(&format!("cut{steps}"), 12 << 20, DEFAULT_FEATURES);
        if steps > 0 {
            directory::add(ioctx, &new.name, &new.id).await?;
        }
        if steps > 1 {
            directory::create_id_object(ioctx, &new.name, &new.id).await?;
        }
        create::create(ioctx, &new).await?;
        world.stock.rbd(&["object-map", "check", &format!("{POOL}/{}", new.name)]).await?;
    }

    // An id object of somebody else: everything is undone.
    let new = world.new_image("taken", 12 << 20, DEFAULT_FEATURES);
    directory::create_id_object(ioctx, &new.name, &world.id_like(&new.id)).await?;
    expect_errno(libc::EEXIST, "a taken id object", create::create(ioctx, &new).await).await?;
    ensure!(directory::directory_id_of(ioctx, "taken").await?.is_none(), "a failed creation left its name");
    let left = ioctx.list_objects().await?;
    ensure!(!left.iter().any(|object| object.contains(&new.id.0)), "a failed creation left objects");

    let nowhere = ioctx.with_namespace("nowhere");
    let new = world.new_image("x", 12 << 20, DEFAULT_FEATURES);
    expect_errno(libc::ENOENT, "no such namespace", create::create(&nowhere, &new).await).await?;
    let new = NewImage { data_pool: Some(PoolId(4711)), ..new };
    expect_errno(libc::ENOENT, "no such data pool", create::create(ioctx, &new).await).await
}

pub async fn images_are_renamed(world: &World) -> Result<()> {
    let ioctx = &world.pool;
    let new = world.new_image("old-name", 8 << 20, DEFAULT_FEATURES);
    create::create(ioctx, &new).await?;
    directory::rename(ioctx, &new.id, Some("old-name"), "new-name").await?;
    directory::rename(ioctx, &new.id, Some("old-name"), "new-name").await?;
    world.stock.rbd(&["info", &format!("{POOL}/new-name")]).await?;
    ensure!(
        world.stock.rbd(&["info", &format!("{POOL}/old-name")]).await.is_err(),
        "the old name still works"
    );

    // Cut off before, and behind, the directory.
    directory::create_id_object(ioctx, "third", &new.id).await?;
    directory::rename(ioctx, &new.id, Some("new-name"), "third").await?;
    directory::create_id_object(ioctx, "new-name", &new.id).await?;
    directory::rename(ioctx, &new.id, Some("new-name"), "third").await?;
    ensure!(directory::id_of(ioctx, "new-name").await.is_err(), "an id object was left behind");

    world.stock.rbd(&["rename", &format!("{POOL}/third"), &format!("{POOL}/fourth")]).await?;
    ensure!(
        directory::name_of(ioctx, &new.id).await?.as_deref() == Some("fourth"),
        "a stock rename was not seen"
    );
    let other = world.new_image("other", 8 << 20, DEFAULT_FEATURES);
    create::create(ioctx, &other).await?;
    expect_errno(libc::EEXIST, "a taken name", directory::rename(ioctx, &new.id, None, "other").await)
        .await?;
    ensure!(directory::list(ioctx).await?.get("fourth") == Some(&new.id), "the directory does not list it");
    ensure!(directory::namespaces(ioctx).await?.contains(NAMESPACE), "the namespace is not listed");
    Ok(())
}
