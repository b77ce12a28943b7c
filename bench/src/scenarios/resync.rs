//! Resync of a copy that went astray.
//!
//! Astray as it happens to operators: the copy is promoted by force, written to, demoted, and told to resync. The
//! writes are random blocks of 4 KiB, one percent of the image: some in every object. The clock runs from the resync
//! command until the copy has arrived again.

use std::time::Instant;

use anyhow::{Context, Result};
use rados::{IoCtx, SnapId};
use rbd::Image;

use super::{Command, all_at_once};
use crate::arrival::{self, Probe};
use crate::figures::{Measure, Results, Target, Who};
use crate::ground::{Ground, spec};
use crate::turn::{LARGE_LIMIT, Turn};
use crate::work::{BLOCK_BYTES, full_image, random_blocks};

const TIME: Measure =
    Measure { name: "resync of 512 MiB with 1 % astray", unit: "s", target: Target::RatioAtMost(0.05) };

const IMAGE: &str = "astray";
const BYTES: u64 = 512 << 20;

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    let written = full_image(ground, IMAGE, BYTES, 99, &[]).await?;
    let mut mirrored = false;
    for who in Who::alternate(ground.repetitions(2, 1)) {
        let turn = Turn::begin(ground, who).await?;
        let command = if mirrored { Command::Snapshot } else { Command::Enable };
        all_at_once(&turn, std::slice::from_ref(&written), command).await?;
        mirrored = true;
        let probes = go_astray(ground).await?;
        let snap =
            arrival::newest_primary(ground, IMAGE).await?.context("the primary has no mirror-snapshot")?;
        let asked = Instant::now();
        ground.b().rbd(&["mirror", "image", "resync", &spec(IMAGE)]).await?;
        let arrived = turn.explain(arrival::copied(ground, IMAGE, snap, &probes, LARGE_LIMIT).await)?;
        results.add(TIME, who, arrived.saturating_duration_since(asked).as_secs_f64());
        arrival::verify(ground, IMAGE, snap).await?;
        turn.end().await?;
    }
    Ok(())
}

/// Writes to one percent of the copy; gives what the blocks should hold.
async fn go_astray(ground: &Ground) -> Result<Vec<Probe>> {
    let (extents, wrong) = random_blocks(BYTES / BLOCK_BYTES / 100, BYTES);
    let image = spec(IMAGE);
    ground.b().rbd(&["mirror", "image", "promote", "--force", &image]).await?;
    ground.b().apply(&image, extents).await?;
    ground.b().rbd(&["mirror", "image", "demote", &image]).await?;
    let mut right = Vec::new();
    for probe in wrong {
        right.push(Probe { bytes: read(&ground.primary, probe.offset).await?, offset: probe.offset });
    }
    Ok(right)
}

/// A block of the primary image, to which nobody writes.
async fn read(primary: &IoCtx, offset: u64) -> Result<Vec<u8>> {
    let (image, _) = Image::open_by_name(primary, IMAGE).await?;
    let (object, within) = image.layout().locate(offset);
    let extent = rados::Extent::new(within, BLOCK_BYTES);
    Ok(image.data_ioctx().read_extent(&image.data_object(object), SnapId::HEAD, extent).await?.to_vec())
}
