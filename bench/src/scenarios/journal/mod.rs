//! Journal mode. Arrival is judged from the head of the copy alone: it holds the probes, and then equals the primary.

mod bursts;
mod first_copy;
mod loss;
mod single_writes;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rados::SnapId;
use rbd::{Image, directory};

pub use bursts::{flushed as flushed_bursts, unflushed as bursts};
pub use first_copy::run as first_copy;
pub use loss::run as loss;
pub use single_writes::run as single_writes;

use crate::arrival::{self, LOOK_INTERVAL, Probe};
use crate::ground::{Ground, spec};
use crate::turn::{LARGE_LIMIT, Turn};
use crate::work::{BLOCK_BYTES, write_block_at};

/// What `rbd create` is told for a journalled image.
const JOURNALLED: &[&str] = &["--image-feature", "layering,exclusive-lock,object-map,fast-diff,journaling"];

/// Makes an empty journalled image and mirrors it, unless it is there; then waits until the copy follows: a block that is
/// written now, behind the first `bytes` of the image, arrives.
async fn followed(ground: &Ground, turn: &Turn<'_>, image: &str, bytes: u64) -> Result<()> {
    if directory::directory_id_of(&ground.primary, image).await?.is_none() {
        ground.a().create_image(&spec(image), bytes + BLOCK_BYTES, JOURNALLED).await?;
        ground.a().rbd(&["mirror", "image", "enable", &spec(image), "journal"]).await?;
    }
    let written = write_block_at(ground, image, bytes).await?;
    turn.explain(current(ground, image, &written.probes, LARGE_LIMIT).await)?;
    Ok(())
}

/// Waits until the head of a copy holds the probes; tells when that was.
async fn current(ground: &Ground, image: &str, probes: &[Probe], limit: Duration) -> Result<Instant> {
    let started = Instant::now();
    loop {
        let seen = match Image::open_by_name(&ground.copy, image).await {
            Ok((copy, _)) => arrival::probes_held(&copy, probes, limit).await?,
            Err(error) if error.is_not_found() => 0,
            Err(error) => return Err(error.into()),
        };
        if seen == probes.len() {
            return Ok(Instant::now());
        }
        ensure!(started.elapsed() < limit, "{image}: {seen} of {} probes after {limit:?}", probes.len());
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// The head of the copy equals that of the primary, to which nobody writes.
async fn verify(ground: &Ground, image: &str) -> Result<()> {
    arrival::verify(ground, image, SnapId::HEAD).await.context("the copy had all probes")
}
