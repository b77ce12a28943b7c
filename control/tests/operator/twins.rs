//! The same done with the stock `rbd` to one image and natively to its twin: what is stored must be the same.

use anyhow::{Result, ensure};
use control::{Pool, Quiesce};
use rbd::mirroring::MirrorImageMode;

use crate::picture::{expect_same_picture, picture};
use crate::world::{World, expect_same_refusal};

/// Twins: names of one length, because encodings tell lengths.
const STOCK: &str = "stock";
const OURS: &str = "ours_";

/// What images are made with: the default features, and fewer.
const FEATURES: [&[&str]; 3] = [
    &[],
    &["--image-feature", "layering,exclusive-lock"],
    &["--image-feature", "layering", "--object-size", "64K"],
];

struct Twins<'a> {
    world: &'a World,
    pool: Pool,
}

impl Twins<'_> {
    fn stock(&self) -> String {
        format!("{}/{STOCK}", self.pool.name())
    }

    async fn rbd(&self, words: &[&str]) -> Result<String> {
        Ok(self.world.a.stock.rbd(&[&["mirror", "image"], words, &[&self.stock()]].concat()).await?)
    }

    async fn both(&self, what: impl AsyncFn(String) -> Result<()>) -> Result<()> {
        for name in [STOCK, OURS] {
            what(format!("{}/{name}", self.pool.name())).await?;
        }
        Ok(())
    }

    async fn expect_alike(&self, when: &str) -> Result<()> {
        let alike = expect_same_picture(&self.pool, STOCK, OURS).await;
        alike.map_err(|error| error.context(when.to_string()))
    }
}

/// Enabling, snapshots with user snapshots and metadata between them, demotion, promotion, disabling.
pub async fn a_life_in_snapshot_mode(world: &World) -> Result<()> {
    for features in FEATURES {
        let pool = world.mirrored_pool().await?;
        let twins = Twins { world, pool: world.a.pool(&pool).await? };
        let (stock, pool) = (&world.a.stock, &twins.pool);
        twins.both(async |spec| world.a.image(&spec, features).await).await?;

        stock.rbd(&["mirror", "image", "enable", &twins.stock(), "snapshot"]).await?;
        pool.enable(OURS, MirrorImageMode::Snapshot).await?;
        twins.expect_alike("enabled").await?;
        // Again: nothing changes.
        let before = picture(pool, OURS).await?;
        pool.enable(OURS, MirrorImageMode::Snapshot).await?;
        ensure!(picture(pool, OURS).await? == before, "enabling twice changes something");

        twins
            .both(async |spec| {
                world.a.scribble(&spec, 2).await?;
                stock.snap_create(&format!("{spec}@user")).await?;
                stock.snap_protect(&format!("{spec}@user")).await?;
                stock.rbd(&["image-meta", "set", &spec, "conf_rbd_cache", "false"]).await?;
                stock.rbd(&["image-meta", "set", &spec, "note", "hello"]).await?;
                stock.resize(&spec, 30 << 20).await?;
                Ok(())
            })
            .await?;
        for round in 0..7 {
            twins.rbd(&["snapshot"]).await?;
            pool.snapshot(OURS, [None, Some(Quiesce::Skip), Some(Quiesce::IgnoreError)][round % 3]).await?;
            twins.expect_alike(&format!("snapshot {round}")).await?;
            twins.both(async |spec| world.a.scribble(&spec, 10 + round as u64).await).await?;
        }
        twins.rbd(&["demote"]).await?;
        pool.demote(OURS).await?;
        twins.expect_alike("demoted").await?;
        ensure!(pool.image_info(OURS).await?.role == control::Role::Orphan, "the role of a demoted image");

        twins.rbd(&["promote"]).await?;
        let promotion = pool.promote(OURS, false).await?;
        ensure!(promotion.continues_from.is_none() && !promotion.rolls_back, "{promotion:?}");
        twins.expect_alike("promoted").await?;
        twins.both(async |spec| world.a.scribble(&spec, 100).await).await?;

        twins.rbd(&["disable"]).await?;
        pool.disable(OURS, false).await?;
        twins.expect_alike("disabled").await?;
        pool.disable(OURS, false).await?;
        let [of_stock, of_ours] = [STOCK, OURS].map(|name| format!("{}/{name}@user", pool.name()));
        ensure!(stock.sha256(&of_stock).await? == stock.sha256(&of_ours).await?, "the user snapshots differ");
    }
    Ok(())
}

/// The same in journal mode: of images with and without the features that it needs.
pub async fn a_life_in_journal_mode(world: &World) -> Result<()> {
    for features in
        FEATURES.into_iter().chain([&["--image-feature", "layering,exclusive-lock,journaling"][..]])
    {
        let pool = world.mirrored_pool().await?;
        let twins = Twins { world, pool: world.a.pool(&pool).await? };
        let (stock, pool) = (&world.a.stock, &twins.pool);
        twins.both(async |spec| world.a.image(&spec, features).await).await?;

        twins.rbd(&["enable"]).await?;
        pool.enable(OURS, MirrorImageMode::Journal).await?;
        twins.expect_alike("enabled").await?;
        twins
            .both(async |spec| {
                world.a.scribble(&spec, 2).await?;
                stock.snap_create(&format!("{spec}@user")).await?;
                world.a.scribble(&spec, 3).await
            })
            .await?;
        twins.expect_alike("written to").await?;

        twins.rbd(&["demote"]).await?;
        pool.demote(OURS).await?;
        twins.expect_alike("demoted").await?;
        ensure!(pool.image_info(OURS).await?.role == control::Role::Orphan, "the role of a demoted image");
        expect_same_refusal(
            stock.rbd(&["mirror", "image", "demote", &twins.stock()]).await,
            pool.demote(OURS).await,
        )?;
        twins.rbd(&["resync"]).await?;
        pool.resync(OURS).await?;
        twins.expect_alike("resync wanted").await?;

        twins.rbd(&["promote"]).await?;
        pool.promote(OURS, false).await?;
        twins.expect_alike("promoted").await?;
        twins.both(async |spec| world.a.scribble(&spec, 100).await).await?;
        twins.expect_alike("written to again").await?;
        let again = pool.promote(OURS, false).await;
        expect_same_refusal(stock.rbd(&["mirror", "image", "promote", &twins.stock()]).await, again)?;

        twins.rbd(&["disable"]).await?;
        pool.disable(OURS, false).await?;
        twins.expect_alike("disabled").await?;
    }
    Ok(())
}
