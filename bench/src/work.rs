//! What is written: images and blocks that no compression shortens, with probes by which their arrival is judged.

use std::collections::BTreeSet;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use rbd::{Features, directory};
use tests::image::seeded_bytes;
use tests::{Extents, ManyImages};

use crate::arrival::Probe;
use crate::ground::{Ground, spec};

/// Size of a probe, and of a small write.
pub const BLOCK_BYTES: u64 = 4096;
/// The objects that `rbd create` makes.
const OBJECT_BYTES: u64 = 4 << 20;
/// The features that `rbd create` gives: layering, exclusive-lock, object-map, fast-diff, deep-flatten.
const DEFAULT_FEATURES: Features = Features(0x3d);
/// How many probes stand for a large write.
const PROBES: u64 = 16;
/// The image whose rounds tell that a daemon works.
pub const SENTINEL: &str = "sentinel";
/// Size of small images.
pub const SMALL_BYTES: u64 = 16 << 20;

/// What was written to an image.
#[derive(Debug, Clone)]
pub struct Written {
    /// The image's name.
    pub image: String,
    /// Blocks by which its arrival is judged.
    pub probes: Vec<Probe>,
}

/// Makes an image of the primary's cluster full of random bytes, unless it is there, with more arguments for `rbd
/// create`; the last block of every object out of [`PROBES`] is a probe.
pub async fn full_image(
    ground: &Ground,
    name: &str,
    bytes: u64,
    seed: u64,
    args: &[&str],
) -> Result<Written> {
    let content = seeded_bytes(seed, bytes as usize);
    if directory::directory_id_of(&ground.primary, name).await?.is_none() {
        ground.a().create_image(&spec(name), bytes, args).await?;
        let objects = content.chunks(OBJECT_BYTES as usize).zip(0..);
        let extents =
            objects.fold(Extents::default(), |e, (data, object)| e.write(object * OBJECT_BYTES, data));
        ground.a().apply(&spec(name), extents).await?;
    }
    let step = (bytes / OBJECT_BYTES / PROBES).max(1) * OBJECT_BYTES;
    // From the end: the last object is likely to be copied last.
    let ends = (1..).map(|n| bytes.checked_sub((n - 1) * step)).map_while(|end| end.filter(|end| *end > 0));
    let probe = |end: u64| {
        let offset = end - BLOCK_BYTES;
        Probe { offset, bytes: content[offset as usize..end as usize].to_vec() }
    };
    Ok(Written { image: name.to_owned(), probes: ends.map(probe).collect() })
}

/// Writes `count` random blocks of 4 KiB, no two to the same place, within the first `within` bytes.
pub fn random_blocks(count: u64, within: u64) -> (Extents, Vec<Probe>) {
    let mut random = StdRng::from_os_rng();
    let mut offsets = BTreeSet::new();
    while (offsets.len() as u64) < count.min(within / BLOCK_BYTES) {
        offsets.insert(random.random_range(0..within / BLOCK_BYTES) * BLOCK_BYTES);
    }
    let (mut extents, mut probes) = (Extents::default(), Vec::new());
    let step = (count / PROBES).max(1) as usize;
    for (index, offset) in offsets.into_iter().enumerate() {
        let mut bytes = vec![0; BLOCK_BYTES as usize];
        random.fill_bytes(&mut bytes);
        extents = extents.write(offset, &bytes);
        if index % step == 0 {
            probes.push(Probe { offset, bytes });
        }
    }
    probes.reverse();
    (extents, probes)
}

/// Writes random blocks to a primary image.
pub async fn write_blocks(ground: &Ground, image: &str, count: u64, within: u64) -> Result<Written> {
    let (extents, probes) = random_blocks(count, within);
    ground.a().apply(&spec(image), extents).await?;
    Ok(Written { image: image.to_owned(), probes })
}

/// Writes one random block of 4 KiB at `offset` to a primary image.
pub async fn write_block_at(ground: &Ground, image: &str, offset: u64) -> Result<Written> {
    let mut bytes = vec![0; BLOCK_BYTES as usize];
    StdRng::from_os_rng().fill_bytes(&mut bytes);
    ground.a().apply(&spec(image), Extents::default().write(offset, &bytes)).await?;
    Ok(Written { image: image.to_owned(), probes: vec![Probe { offset, bytes }] })
}

/// Writes one block to the sentinel image, which is made and mirrored when it is not there.
pub async fn sentinel(ground: &Ground) -> Result<Written> {
    if directory::directory_id_of(&ground.primary, SENTINEL).await?.is_none() {
        ground.a().create_image(&spec(SENTINEL), SMALL_BYTES, &[]).await?;
        ground.a().rbd(&["mirror", "image", "enable", &spec(SENTINEL), "snapshot"]).await?;
    }
    write_blocks(ground, SENTINEL, 1, SMALL_BYTES).await
}

/// Makes so many images of one object, to which nothing is written, in a pool that has a peer, and enables mirroring of
/// them: in `snapshot` mode with the features that `rbd create` gives them, in `journal` mode with journaling.
pub async fn make_many(ground: &Ground, pool: &str, count: usize, mode: &str) -> Result<()> {
    let features = match mode {
        "journal" => Features::EXCLUSIVE_LOCK.with(Features::JOURNALING),
        _ => DEFAULT_FEATURES,
    };
    let order = OBJECT_BYTES.trailing_zeros() as u8;
    let images =
        ManyImages { pool, prefix: "many-", count, size: OBJECT_BYTES, order, features: features.0, mode };
    // Nothing is timed here, and with the default of a second this alone would take several minutes.
    set_paxos_propose_interval(ground, Some("0.05")).await?;
    let made = ground.a().make_many(&images).await;
    set_paxos_propose_interval(ground, None).await?;
    made
}

async fn set_paxos_propose_interval(ground: &Ground, seconds: Option<&str>) -> Result<()> {
    let option = "paxos_propose_interval";
    match seconds {
        Some(seconds) => ground.a().ceph(&["config", "set", "mon", option, seconds]).await?,
        None => ground.a().ceph(&["config", "rm", "mon", option]).await?,
    };
    Ok(())
}
