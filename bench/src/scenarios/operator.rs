//! A whole pool that changes sides: `mirror pool demote` and `mirror pool promote`, ours and the stock command's.
//!
//! No daemon runs: what is timed is the command, from its start to its end. Each command must tell that it changed all of
//! the images.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::Tool;
use tests::two_clusters::Direction;

use crate::figures::{Measure, Results, Target, Who};
use crate::ground::Ground;
use crate::work::make_many;

/// One kind of images.
struct Kind {
    pool: &'static str,
    mode: &'static str,
    demote: Measure,
    promote: Measure,
}

static KINDS: [Kind; 2] = [
    Kind {
        pool: "operated-snapshot",
        mode: "snapshot",
        demote: measure("demoting a pool of 200 images, snapshot mode"),
        promote: measure("promoting a pool of 200 images, snapshot mode"),
    },
    Kind {
        pool: "operated-journal",
        mode: "journal",
        demote: measure("demoting a pool of 200 images, journal mode"),
        promote: measure("promoting a pool of 200 images, journal mode"),
    },
];

const IMAGES: usize = 200;
const IMAGES_QUICK: usize = 20;
/// How long a command may take.
const LIMIT: Duration = Duration::from_secs(1200);

const fn measure(name: &'static str) -> Measure {
    Measure { name, unit: "s", target: Target::RatioAtMost(0.2) }
}

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    for kind in &KINDS {
        let images = ground.repetitions(IMAGES, IMAGES_QUICK);
        ground.clusters.create_pool(kind.pool).await?;
        ground.clusters.connect_peers(kind.pool, Direction::Both).await?;
        make_many(ground, kind.pool, images, kind.mode).await?;
        for who in Who::alternate(1) {
            for (word, told, measure) in
                [("demote", "Demoted", kind.demote), ("promote", "Promoted", kind.promote)]
            {
                let began = Instant::now();
                let said = command(ground, who).args(["mirror", "pool", word, kind.pool]).run().await?;
                results.add(measure, who, began.elapsed().as_secs_f64());
                let expected = format!("{told} {images} mirrored images");
                ensure!(said.trim() == expected, "{who} said \"{}\" and not \"{expected}\"", said.trim());
            }
        }
        ground.clusters.a.delete_pool(kind.pool).await?;
        ground.clusters.b.delete_pool(kind.pool).await?;
    }
    Ok(())
}

/// The operator's command at the cluster of the primary images.
fn command(ground: &Ground, who: Who) -> Tool {
    let tool = match who {
        Who::Ours => Tool::new(&ground.ctl).arg("-c").arg(ground.a().conf_path()),
        Who::Ceph => ground.a().tool("rbd"),
    };
    tool.limit(LIMIT)
}
