//! Two-way mirroring: half of the images are primary on each side, there are writers and a daemon on both, and again and
//! again all images change sides.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::stamped::{Pattern, Writing};
use tests::{Cluster, StampedWriter};

use super::prefix::stamps;
use super::stage::{expect_same, journaling, wait_replayed};
use crate::common::{LIMIT, MIB, Stage, until};
use crate::content::Reader;
use crate::failover::image_id;

const BLOCKS: u64 = 512;
const IMAGES: u64 = 4;

/// An image with what it must hold when nobody writes to it.
struct Mirrored {
    number: u64,
    spec: String,
    expected: Vec<u64>,
}

impl Mirrored {
    fn pattern(&self, turn: u64) -> Pattern {
        let seed = 100 * turn + self.number;
        Pattern { seed, blocks: BLOCKS, batch_min: 1, batch_max: 12, discards: 1 }
    }

    /// The side that it is primary at, and the other one.
    fn sides<'a>(&self, stage: &'a Stage, turn: u64) -> [(&'a Cluster, &'a Reader); 2] {
        let (a, b) = ((&stage.clusters.a, &stage.a), (&stage.clusters.b, &stage.b));
        if (self.number + turn).is_multiple_of(2) { [a, b] } else { [b, a] }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_images_change_sides() -> Result<()> {
    let stage = Stage::set("j-sides").await?;
    let (a, b) = (&stage.clusters.a, &stage.clusters.b);
    let mut images = Vec::new();
    for number in 0..IMAGES {
        let spec = stage.spec(&format!("image-{number}"));
        let image = Mirrored { number, spec, expected: vec![0; BLOCKS as usize] };
        let [(primary, _), _] = image.sides(&stage, 0);
        let narrow = ["--journal-object-size", "256K", "--journal-splay-width", "3"];
        primary.create_image(&image.spec, 2 * MIB, &[&journaling()[..], &narrow[..]].concat()).await?;
        primary.rbd(&["mirror", "image", "enable", &image.spec, "journal"]).await?;
        images.push(image);
    }
    let mut daemons = [stage.daemon(a).await?, stage.daemon(b).await?];
    let mut ids = Vec::new();
    for turn in 0..3 {
        let mut writers = Vec::new();
        for image in &images {
            let pause = Duration::from_millis(10);
            let writing =
                Writing { pattern: image.pattern(turn), depth: 4, snap_every: 0, batches: 0, pause };
            writers.push(StampedWriter::start(image.sides(&stage, turn)[0].0, &image.spec, &writing)?);
        }
        for (image, writer) in images.iter_mut().zip(writers) {
            one_turn(&stage, image, writer, turn)
                .await
                .with_context(|| format!("{} in turn {turn}", image.spec))?;
        }
        let mut now = Vec::new();
        for image in &images {
            now.push((image_id(a, &image.spec).await?, image_id(b, &image.spec).await?));
        }
        ensure!(turn == 0 || now == ids, "a copy was made anew in turn {turn}");
        ids = now;
    }
    for daemon in &mut daemons {
        daemon.stop(LIMIT).await?;
    }
    stage.strike().await
}

/// Lets the writer end, and hands the image over to the other side.
async fn one_turn(stage: &Stage, image: &mut Mirrored, mut writer: StampedWriter, turn: u64) -> Result<()> {
    let [(from, from_reader), (to, to_reader)] = image.sides(stage, turn);
    let spec = &image.spec;
    to.wait_mirror_state(spec, "up+replaying", LIMIT).await?;
    writer.reach(30, LIMIT).await?;
    let last = writer.stop(LIMIT).await?;
    for (block, stamp) in image.pattern(turn).batches().take(last as usize).flatten() {
        image.expected[block as usize] = stamp;
    }
    ensure!(stamps(from, spec).await? == image.expected, "the primary does not hold what was written to it");
    wait_replayed(from, to, spec).await?;
    from.rbd(&["mirror", "image", "demote", spec]).await?;
    until("the copy to be promotable", async || {
        Ok(to.rbd(&["mirror", "image", "promote", spec]).await.is_ok())
    })
    .await?;
    ensure!(stamps(to, spec).await? == image.expected, "the promoted copy differs");
    from.wait_mirror_state(spec, "up+replaying", LIMIT).await?;
    wait_replayed(to, from, spec).await?;
    expect_same(to_reader, from_reader, spec).await
}
