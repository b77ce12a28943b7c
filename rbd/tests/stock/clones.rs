//! Clones of both formats.

use anyhow::{Context, Result, ensure};
use rados::SnapId;
use rbd::types::ChildImage;
use rbd::{CloneFormat, Features, Image, ImageHeader, NewImage, ParentSpec, children, create, snapshots};

use crate::world::{DEFAULT_FEATURES, NAMESPACE, OTHER_POOL, POOL, World};

async fn parent(world: &World, name: &str) -> Result<(Image, ParentSpec)> {
    let spec = format!("{POOL}/{name}");
    world.stock.create_image(&spec, 30 << 20, &[]).await?;
    world.stock.apply(&spec, tests::Extents::default().fill(0, 9 << 20, 5)).await?;
    world.stock.rbd(&["image-meta", "set", &spec, "inherited", "yes"]).await?;
    world.stock.snap_create(&format!("{spec}@s")).await?;
    world.stock.snap_protect(&format!("{spec}@s")).await?;
    let (image, header) = Image::open_by_name(&world.pool, name).await?;
    let snap = header.user_snapshot("s").context("a snapshot")?.id;
    let parent =
        ParentSpec { pool: world.pool.pool_id(), namespace: String::new(), image: image.id().clone(), snap };
    Ok((image, parent))
}

pub async fn clones_leave_the_same(world: &World) -> Result<()> {
    let (_, of) = parent(world, "mother").await?;
    let places = [
        (POOL, "", CloneFormat::V1),
        (POOL, "", CloneFormat::V2),
        (OTHER_POOL, "", CloneFormat::V1),
        (OTHER_POOL, NAMESPACE, CloneFormat::V2),
    ];
    for (number, (pool, namespace, format)) in places.into_iter().enumerate() {
        let ioctx = if pool == POOL { &world.pool } else { &world.other }.with_namespace(namespace);
        let spec = |name: &str| match namespace {
            "" => format!("{pool}/{name}"),
            namespace => format!("{pool}/{namespace}/{name}"),
        };
        let (by_stock, by_us) = (format!("stock-clone{number}"), format!("our---clone{number}"));
        let version = if format == CloneFormat::V1 { 1 } else { 2 };
        world.stock.clone_image(&format!("{POOL}/mother@s"), &spec(&by_stock), version).await?;
        let stock_id = world.id_of(&ioctx, &by_stock).await?;
        let id = world.id_like(&stock_id);
        let new = NewImage { id, ..world.new_image(&by_us, 30 << 20, DEFAULT_FEATURES) };
        let image = create::create_clone(&ioctx, &new, &of, format).await?;
        world.expect_same_traces(&ioctx, (&by_stock, &stock_id), (&by_us, &new.id)).await?;

        let header = image.read_header().await?;
        ensure!(header.parent == Some(of.overlapping(30 << 20)), "parent: {:?}", header.parent);
        ensure!(header.clone_format() == format, "format: {:?}", header.op_features);
        let content = world.stock.read(&spec(&by_us)).await?;
        ensure!(content == world.stock.read(&format!("{POOL}/mother@s")).await?, "content");
        world.stock.rbd(&["flatten", "--no-progress", &spec(&by_us)]).await?;
        ensure!(image.read_header().await?.parent.is_none(), "stock tools cannot flatten our clone");
        ensure!(world.stock.read(&spec(&by_us)).await? == content, "content after flattening");
    }
    Ok(())
}

pub async fn clones_are_known_on_both_sides(world: &World) -> Result<()> {
    let (mother, of) = parent(world, "aunt").await?;
    let v2 = world.new_image("niece2", 20 << 20, DEFAULT_FEATURES);
    let in_namespace = world.other.with_namespace(NAMESPACE);
    let of_v2 = create::create_clone(&in_namespace, &v2, &of, CloneFormat::V2).await?;
    let v1 = world.new_image("niece1", 30 << 20, DEFAULT_FEATURES);
    let of_v1 = create::create_clone(&world.other, &v1, &of, CloneFormat::V1).await?;

    let listed = world.stock.rbd(&["children", &format!("{POOL}/aunt@s")]).await?;
    let mut listed: Vec<&str> = listed.split_whitespace().collect();
    listed.sort_unstable();
    ensure!(listed == ["other/niece1", "other/ns/niece2"], "rbd children: {listed:?}");
    let child =
        ChildImage { pool: world.other.pool_id(), namespace: NAMESPACE.to_string(), image: v2.id.clone() };
    let known = children::v2_children(&world.pool, mother.id(), of.snap).await?;
    ensure!(known.iter().eq([&child]), "v2 clones: {known:?}");
    let pools = [world.pool.pool_id(), world.other.pool_id()];
    let known = children::v1_children_anywhere(&world.pool, pools, &of).await?;
    ensure!(known.iter().map(|child| &child.image).eq([&v1.id]), "v1 clones: {known:?}");
    let header = of_v2.read_header().await?;
    ensure!(
        header.parent == Some(of.overlapping(20 << 20)),
        "a smaller clone's overlap: {:?}",
        header.parent
    );

    // Detaching natively; repeated, as if it had been cut off.
    for image in [&of_v1, &of_v2] {
        let header = image.read_header().await?;
        children::detach(image, &header).await?;
        children::detach(image, &header).await?;
    }
    let listed = world.stock.rbd(&["children", &format!("{POOL}/aunt@s")]).await?;
    ensure!(listed.trim().is_empty(), "rbd children after detaching: {listed}");
    let header: ImageHeader = of_v2.read_header().await?;
    ensure!(header.parent.is_none() && header.parent_spec.is_none(), "the link is still there");
    world.stock.snap_unprotect(&format!("{POOL}/aunt@s")).await?;
    Ok(())
}

/// A snapshot of a clone stays a clone when the head is flattened; the last one to go takes the registration along.
pub async fn snapshots_stay_clones(world: &World) -> Result<()> {
    let (_, of) = parent(world, "granny").await?;
    let shallow = DEFAULT_FEATURES.without(Features::DEEP_FLATTEN);
    let new = world.new_image("shallow", 30 << 20, shallow);
    let image = create::create_clone(&world.other, &new, &of, CloneFormat::V2).await?;
    world.stock.snap_create(&format!("{OTHER_POOL}/shallow@old")).await?;
    world.stock.resize(&format!("{OTHER_POOL}/shallow"), 10 << 20).await?;
    let header = image.read_header().await?;
    let snap = header.user_snapshot("old").context("a snapshot")?.id;
    ensure!(header.parent_at(SnapId::HEAD) == Some(&of.overlapping(10 << 20)), "of the head: {header:?}");
    ensure!(header.parent_at(snap) == Some(&of.overlapping(30 << 20)), "of the snapshot: {header:?}");

    world.stock.rbd(&["flatten", "--no-progress", &format!("{OTHER_POOL}/shallow")]).await?;
    let header = image.read_header().await?;
    ensure!(header.parent.is_none() && header.parent_spec == Some(of.clone()), "flattened: {header:?}");
    ensure!(header.parent_at(snap).is_some(), "the snapshot lost its parent");
    snapshots::remove(&image, &header, snap).await?;
    let header = image.read_header().await?;
    ensure!(header.parent_spec.is_none() && header.op_features.0 == 0, "the link is left: {header:?}");
    ensure!(children::v2_children(&world.pool, &of.image, of.snap).await?.is_empty(), "still registered");

    // A deep flatten takes the snapshots along.
    let new = world.new_image("deep", 30 << 20, DEFAULT_FEATURES);
    let image = create::create_clone(&world.other, &new, &of, CloneFormat::V2).await?;
    world.stock.snap_create(&format!("{OTHER_POOL}/deep@old")).await?;
    children::detach(&image, &image.read_header().await?).await?;
    let header = image.read_header().await?;
    ensure!(
        header.parent_spec.is_none() && header.snapshots.values().all(|snap| snap.parent.is_none()),
        "deep"
    );
    ensure!(children::v2_children(&world.pool, &of.image, of.snap).await?.is_empty(), "still registered");
    Ok(())
}
