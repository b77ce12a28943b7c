//! One small write, as it arrives on an otherwise idle system.

use anyhow::Result;

use crate::figures::{Measure, Results, Target, Who};
use crate::ground::Ground;
use crate::turn::{Turn, one_round};
use crate::work;

const COPY: Measure = Measure {
    name: "one 4 KiB write: mirror-snapshot to complete copy",
    unit: "s",
    target: Target::RatioAtMost(0.2),
};
const WHOLE: Measure =
    Measure { name: "  from the start of the snapshot command", unit: "s", target: Target::Told };

/// Runs it.
pub async fn run(ground: &Ground, results: &mut Results) -> Result<()> {
    for who in Who::alternate(ground.repetitions(2, 1)) {
        let turn = Turn::begin(ground, who).await?;
        for _ in 0..ground.repetitions(5, 2) {
            let written = work::sentinel(ground).await?;
            let round = turn.explain(one_round(ground, written).await)?;
            results.add(COPY, who, round.copy_s());
            results.add(WHOLE, who, round.whole_s());
        }
        turn.end().await?;
    }
    Ok(())
}
