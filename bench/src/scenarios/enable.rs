//! A small image that mirroring is enabled for while the daemon runs.

use std::time::Instant;

use anyhow::Result;

use crate::arrival;
use crate::figures::{Measure, Results, Target, Who};
use crate::ground::{Ground, spec};
use crate::turn::{SMALL_LIMIT, Turn};
use crate::work::{SMALL_BYTES, full_image};

const COPY: Measure = Measure {
    name: "mirror image enable, small image: first mirror-snapshot to complete copy",
    unit: "s",
    target: Target::RatioAtMost(0.2),
};
const WHOLE: Measure =
    Measure { name: "  from the start of the enable command", unit: "s", target: Target::Told };

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    let mut number = 0;
    for who in Who::alternate(ground.repetitions(2, 1)) {
        let turn = Turn::begin(ground, who).await?;
        for _ in 0..ground.repetitions(3, 1) {
            number += 1;
            let written = full_image(ground, &format!("small-{number}"), SMALL_BYTES, number, &[]).await?;
            let asked = Instant::now();
            let watched = async {
                let (taken, snap) =
                    arrival::primary_snapshot(ground, &written.image, None, SMALL_LIMIT).await?;
                let arrived =
                    arrival::copied(ground, &written.image, snap, &written.probes, SMALL_LIMIT).await?;
                Ok::<_, anyhow::Error>((taken, arrived, snap))
            };
            let command = async {
                Ok(ground.a().rbd(&["mirror", "image", "enable", &spec(&written.image), "snapshot"]).await?)
            };
            let ((taken, arrived, snap), _) = turn.explain(futures::try_join!(watched, command))?;
            arrival::verify(ground, &written.image, snap).await?;
            results.add(COPY, who, arrived.saturating_duration_since(taken).as_secs_f64());
            results.add(WHOLE, who, arrived.saturating_duration_since(asked).as_secs_f64());
        }
        turn.end().await?;
    }
    Ok(())
}
