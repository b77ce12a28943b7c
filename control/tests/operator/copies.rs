//! Promotion of copies: planned, by force, and by force with a delta half copied; and what else is asked of copies.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use control::{Pool, Role};
use rados::error::ResultExt;
use rados::{Extent, SnapContext, SnapId, WriteOp, WriteSub};
use rbd::mirroring::MirrorImageMode;
use rbd::snapshots::{self, NewSnapshot};
use rbd::types::{MirrorSnapshot, MirrorSnapshotState, ObjectNumber};
use rbd::{Features, Image, ObjectState, SnapshotNamespace};
use sha2::{Digest, Sha256};
use tests::{DaemonKind, MirrorDaemon, MirrorDaemonOptions};

use crate::picture::expect_same_picture;
use crate::world::{LIMIT, SIZE, World, expect_same_refusal};

const STOCK: &str = "stock";
const OURS: &str = "ours_";

/// A pool whose images `stock` and `ours_` (of site a) have whole copies at site b. No daemon runs any more.
async fn copied(world: &World, args: &[&str]) -> Result<String> {
    let pool = world.mirrored_pool().await?;
    let mut daemon =
        MirrorDaemon::spawn(&DaemonKind::Ceph, &world.b.stock, &MirrorDaemonOptions::default()).await?;
    let native = world.a.pool(&pool).await?;
    for name in [STOCK, OURS] {
        let spec = format!("{pool}/{name}");
        world.a.image(&spec, args).await?;
        native.enable(name, MirrorImageMode::Snapshot).await?;
        world.a.scribble(&spec, 2).await?;
        native.snapshot(name, None).await?;
        arrive(world, &pool, name).await?;
    }
    daemon.stop(LIMIT).await?;
    Ok(pool)
}

/// Waits until the newest snapshot of an image of site a is whole at site b.
async fn arrive(world: &World, pool: &str, name: &str) -> Result<()> {
    let spec = format!("{pool}/{name}");
    let newest = world.a.stock.newest_primary_snapshot(&spec).await?;
    world.b.stock.wait_copied(&spec, newest, LIMIT).await.map(drop)
}

/// A planned failover and what an operator does on both sides of it.
pub async fn a_planned_failover(world: &World) -> Result<()> {
    let pool = copied(world, &[]).await?;
    let (there, here) = (world.a.pool(&pool).await?, world.b.pool(&pool).await?);
    let (stock_a, stock_b) = (&world.a.stock, &world.b.stock);
    let spec = format!("{pool}/{STOCK}");
    expect_same_refusal(
        stock_b.rbd(&["mirror", "image", "promote", &spec]).await,
        here.promote(OURS, false).await,
    )?;
    expect_same_refusal(stock_b.rbd(&["mirror", "image", "demote", &spec]).await, here.demote(OURS).await)?;
    expect_same_refusal(
        stock_b.rbd(&["mirror", "image", "disable", &spec]).await,
        here.disable(OURS, false).await,
    )?;
    ensure!(here.plan_promotion(OURS, false).await.is_err(), "a promotion is planned that is refused");

    stock_a.rbd(&["mirror", "image", "demote", &spec]).await?;
    there.demote(OURS).await?;
    expect_same_picture(&there, STOCK, OURS).await.context("demoted at a")?;
    expect_same_refusal(stock_a.rbd(&["mirror", "image", "demote", &spec]).await, there.demote(OURS).await)?;
    // The demotion has not arrived.
    expect_same_refusal(
        stock_b.rbd(&["mirror", "image", "promote", &spec]).await,
        here.promote(OURS, false).await,
    )?;
    let mut daemon = MirrorDaemon::spawn(&DaemonKind::Ceph, stock_b, &MirrorDaemonOptions::default()).await?;
    for name in [STOCK, OURS] {
        arrive(world, &pool, name).await?;
    }
    daemon.stop(LIMIT).await?;
    let content = stock_b.sha256(&format!("{pool}/{OURS}")).await?;

    let planned = here.plan_promotion(OURS, false).await?;
    stock_b.rbd(&["mirror", "image", "promote", &spec]).await?;
    let promotion = here.promote(OURS, false).await?;
    ensure!(promotion == planned && !promotion.rolls_back, "{promotion:?}, planned {planned:?}");
    let from = promotion.continues_from.context("a point in time")?;
    ensure!(
        from.exact
            && from.primary_snap.0 == stock_a.newest_primary_snapshot(&format!("{pool}/{OURS}")).await?
    );
    expect_same_picture(&here, STOCK, OURS).await.context("promoted at b")?;
    ensure!(stock_b.sha256(&format!("{pool}/{OURS}")).await? == content, "the promotion changed the image");
    expect_same_refusal(
        stock_b.rbd(&["mirror", "image", "promote", &spec]).await,
        here.promote(OURS, false).await,
    )?;
    expect_same_refusal(stock_b.rbd(&["mirror", "image", "resync", &spec]).await, here.resync(OURS).await)?;

    stock_a.rbd(&["mirror", "image", "resync", &spec]).await?;
    there.resync(OURS).await?;
    expect_same_picture(&there, STOCK, OURS).await.context("resync wanted at a")?;
    stock_a.rbd(&["mirror", "image", "disable", "--force", &spec]).await?;
    there.disable(OURS, true).await?;
    expect_same_picture(&there, STOCK, OURS).await.context("disabled by force at a")
}

/// A forced failover with whole copies, and the end of mirroring of a copy.
pub async fn a_forced_failover(world: &World) -> Result<()> {
    let pool = copied(world, &["--image-feature", "layering,exclusive-lock,object-map,fast-diff"]).await?;
    let here = world.b.pool(&pool).await?;
    let spec = format!("{pool}/{STOCK}");
    let content = world.b.stock.sha256(&format!("{pool}/{OURS}")).await?;
    world.b.stock.rbd(&["mirror", "image", "promote", "--force", &spec]).await?;
    let promotion = here.promote(OURS, true).await?;
    ensure!(!promotion.rolls_back && promotion.continues_from.is_some(), "{promotion:?}");
    expect_same_picture(&here, STOCK, OURS).await.context("promoted by force")?;
    ensure!(
        world.b.stock.sha256(&format!("{pool}/{OURS}")).await? == content,
        "the promotion changed the image"
    );
    world.b.scribble(&spec, 3).await?;
    world.b.scribble(&format!("{pool}/{OURS}"), 3).await?;
    expect_same_picture(&here, STOCK, OURS).await.context("written to")?;

    let pool = copied(world, &[]).await?;
    let here = world.b.pool(&pool).await?;
    world.b.stock.rbd(&["mirror", "image", "disable", "--force", &format!("{pool}/{STOCK}")]).await?;
    here.disable(OURS, true).await?;
    expect_same_picture(&here, STOCK, OURS).await.context("disabled by force")?;
    world.b.scribble(&format!("{pool}/{OURS}"), 3).await
}

/// What of a delta is copied: the image's new size, and the objects that are written or removed.
struct Delta {
    size: u64,
    written: &'static [u64],
    removed: &'static [u64],
}

/// Leaves the copy as a daemon does that is killed while it copies a delta.
async fn copy_in_part(pool: &Pool, name: &str, delta: &Delta) -> Result<SnapId> {
    let (image, header) = Image::open_by_name(pool.ioctx(), name).await?;
    let mirror = MirrorSnapshot {
        state: MirrorSnapshotState::NonPrimary,
        complete: false,
        mirror_peer_uuids: Default::default(),
        primary_mirror_uuid: "b8d4bd9c-6a1e-4f5e-8d2f-4a4a7f8b5f57".into(),
        primary_snap_id: SnapId(4711),
        last_copied_object_number: 1,
        snap_seqs: BTreeMap::from([(SnapId(4711), SnapId::HEAD)]),
    };
    let new = NewSnapshot {
        name: ".mirror.non_primary.part".into(),
        namespace: SnapshotNamespace::Mirror(mirror),
        id: None,
        skip_object_map: false,
    };
    let has_map = header.features.has(Features::OBJECT_MAP);
    let map = image.object_map(SnapId::HEAD);
    if delta.size != SIZE {
        // Ceph's daemon resizes before it makes the snapshot.
        rbd::HeaderUpdate::of(image.id()).set_size(delta.size).apply(image.header_ioctx()).await?;
        if has_map {
            let mut states = map.load().await?;
            states.resize(header.layout.object_count(delta.size));
            map.save(&states).await?;
        }
    }
    let id = snapshots::create(&image, &image.read_header().await?, &new).await?;
    let header = image.read_header().await?;
    if has_map {
        let mut states = map.load().await?;
        for object in delta.written.iter().chain(delta.removed) {
            states.set(ObjectNumber(*object), ObjectState::Exists);
        }
        map.save(&states).await?;
    }
    let context: SnapContext = header.snap_context.clone();
    let change = async |object: &u64, sub: WriteSub| {
        let op = WriteOp::new(image.data_object(ObjectNumber(*object))).under(context.clone()).with(sub);
        image.data_ioctx().write(op).await
    };
    for object in delta.written {
        change(object, WriteSub::Write { offset: 8192, data: Bytes::from(vec![0x5a; 100_000]) }).await?;
    }
    for object in delta.removed {
        change(object, WriteSub::Remove).await.ok();
    }
    Ok(id)
}

/// A delta that is copied in part is undone. Where the stock `rbd` brings back the right data, so do we, and leave the
/// same; where it brings back those of a snapshot too old, we bring back the right ones if they can be had.
pub async fn a_half_copied_delta_is_undone(world: &World) -> Result<()> {
    let deltas = [
        Delta { size: SIZE, written: &[0, 1, 5], removed: &[2] },
        Delta { size: SIZE + (8 << 20), written: &[1, 6, 7], removed: &[0] },
        Delta { size: 9 << 20, written: &[0], removed: &[1] },
    ];
    let features = [&[][..], &["--image-feature", "layering"][..], &[][..]];
    for (delta, args) in deltas.iter().zip(features) {
        let resized = delta.size != SIZE;
        let pool = copied(world, args).await?;
        let here = world.b.pool(&pool).await?;
        let content = async |name: &str| world.b.stock.sha256(&format!("{pool}/{name}")).await;
        let newest = world.b.stock.mirror_snapshots(&format!("{pool}/{OURS}")).await?;
        let newest = newest.last().context("a mirror-snapshot")?.id;
        let head = content(OURS).await?;
        let snapshot = native_sha256(&here, OURS, SnapId(newest)).await?;
        ensure!(
            head != snapshot,
            "Ceph's daemon has learned to fill its snapshots: this scenario shows nothing"
        );
        for name in [STOCK, OURS] {
            copy_in_part(&here, name, delta).await?;
        }
        ensure!(content(OURS).await? != head, "nothing was copied");
        let planned = here.plan_promotion(OURS, true).await?;
        world.b.stock.rbd(&["mirror", "image", "promote", "--force", &format!("{pool}/{STOCK}")]).await?;
        let promotion = here.promote(OURS, true).await?;
        ensure!(promotion.rolls_back && promotion == planned, "{promotion:?}, planned {planned:?}");
        let from = promotion.continues_from.context("a point in time")?;
        ensure!(from.snap.0 == newest && from.exact != resized, "{from:?}");
        if resized {
            expect_same_picture(&here, STOCK, OURS).await.context("promoted by force")?;
        }
        ensure!(content(STOCK).await? == snapshot, "the stock tool brings back something else");
        ensure!(
            content(OURS).await? == if resized { snapshot } else { head },
            "ours brings back something else"
        );
        ensure!(here.image_info(OURS).await?.role == Role::Primary, "it is not primary");
        world.b.scribble(&format!("{pool}/{OURS}"), 5).await?;
        world.b.stock.rbd(&["object-map", "check", &format!("{pool}/{OURS}")]).await.ok();
    }
    Ok(())
}

/// The SHA-256 of an image at a mirror-snapshot, which stock tools do not read.
async fn native_sha256(pool: &Pool, name: &str, snap: SnapId) -> Result<String> {
    let (image, header) = Image::open_by_name(pool.ioctx(), name).await?;
    let size = header.size_at(snap).context("a snapshot")?;
    let mut content = Vec::new();
    for object in 0..header.layout.object_count(size) {
        let length = header.layout.used_bytes(ObjectNumber(object), size);
        let name = image.data_object(ObjectNumber(object));
        let data = image.data_ioctx().read_extent(&name, snap, Extent::new(0, length)).await.optional()?;
        let mut data = data.unwrap_or_default().to_vec();
        data.resize(length as usize, 0);
        content.extend(data);
    }
    Ok(hex::encode(Sha256::digest(&content)))
}
