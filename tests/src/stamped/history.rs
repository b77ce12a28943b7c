//! What a stamped writer writes, worked out from its seed, and whether an image is a state that it may be in.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;

/// What a writer writes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Pattern {
    /// From what everything follows.
    pub seed: u64,
    /// Blocks of the image.
    pub blocks: u64,
    /// The smallest number of operations in a batch.
    pub batch_min: u64,
    /// The largest.
    pub batch_max: u64,
    /// How many of 16 operations are discards.
    pub discards: u64,
}

/// splitmix64
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// The batches of a writer, one after the other: for each block the stamp that it gets, 0 when it is discarded.
struct Batches {
    pattern: Pattern,
    random: Random,
    seq: u64,
}

impl Batches {
    fn new(pattern: Pattern) -> Self {
        Batches { pattern, random: Random(pattern.seed), seq: 0 }
    }

    fn next(&mut self) -> BTreeMap<u64, u64> {
        let p = self.pattern;
        let count = p.batch_min + self.random.next() % (p.batch_max - p.batch_min + 1);
        let mut stamps = BTreeMap::new();
        for _ in 0..count {
            let block = self.random.next() % p.blocks;
            let discard = self.random.next() % 16 < p.discards;
            stamps.entry(block).or_insert_with(|| {
                self.seq += 1;
                if discard { 0 } else { self.seq }
            });
        }
        stamps
    }
}

impl Pattern {
    /// The stamps of all blocks behind a batch; 0 where nothing was written.
    pub fn stamps_after(&self, batch: u64) -> Vec<u64> {
        let mut batches = Batches::new(*self);
        let mut stamps = vec![0; self.blocks as usize];
        for _ in 0..batch {
            for (block, stamp) in batches.next() {
                stamps[block as usize] = stamp;
            }
        }
        stamps
    }

    /// What each batch writes, from the first on, without an end: for each block its stamp, 0 for a discard.
    pub fn batches(&self) -> impl Iterator<Item = BTreeMap<u64, u64>> + use<> {
        let mut batches = Batches::new(*self);
        std::iter::repeat_with(move || batches.next())
    }

    /// The number of operations in the first `batches` batches.
    pub fn operations(&self, batches: u64) -> u64 {
        let mut all = Batches::new(*self);
        for _ in 0..batches {
            all.next();
        }
        all.seq
    }

    /// The batch that an image is in: everything before it is there, nothing behind it, and of itself any part. That is
    /// what a disk may hold that lost its power when batch `newest`, or an earlier one, was the last that was begun.
    ///
    /// `stamps` are those of [`stamps_of`]. Of several such batches the first is given.
    pub fn batch_of(&self, stamps: &[u64], newest: u64) -> Result<u64> {
        ensure!(stamps.len() as u64 == self.blocks, "the image has {} blocks", stamps.len());
        let mut batches = Batches::new(*self);
        let mut before = vec![0; stamps.len()];
        let mut wrong: usize = stamps.iter().filter(|stamp| **stamp != 0).count();
        let mut nearest = (usize::MAX, 0);
        for number in 1..=newest {
            let batch = batches.next();
            let explained = batch.iter().filter(|(block, stamp)| {
                let (is, was) = (stamps[**block as usize], before[**block as usize]);
                is != was && is == **stamp
            });
            let unexplained = wrong - explained.count();
            if unexplained == 0 {
                return Ok(number);
            }
            nearest = nearest.min((unexplained, number));
            for (block, stamp) in batch {
                let (is, was) = (stamps[block as usize], before[block as usize]);
                wrong = wrong + usize::from(is != stamp) - usize::from(is != was);
                before[block as usize] = stamp;
            }
        }
        let (blocks, number) = nearest;
        let state = self.stamps_after(number);
        let example = stamps.iter().zip(&state).position(|(is, was)| is != was);
        let example = example.map(|at| format!("block {at} has stamp {}, not {}", stamps[at], state[at]));
        Err(anyhow::anyhow!("nearest is batch {number}, where {blocks} blocks differ; {example:?}"))
            .context("the image is in no state that the writer's disk was ever in")
    }
}

/// The stamps of an image's blocks, 0 for zeros. Fails on a block that is torn, or in the wrong place.
pub fn stamps_of(image: &[u8]) -> Result<Vec<u64>> {
    let blocks = image.chunks(BLOCK_BYTES).enumerate();
    blocks
        .map(|(number, block)| {
            let stamp = &block[..16.min(block.len())];
            ensure!(
                block.len() == BLOCK_BYTES && block.chunks(16).all(|chunk| chunk == stamp),
                "block {number} is torn"
            );
            let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| stamp[at + byte]));
            let (seq, place) = (word(0), word(8));
            ensure!(
                seq == 0 && place == 0 || place == number as u64,
                "block {number} holds what belongs into {place}"
            );
            Ok(seq)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATTERN: Pattern = Pattern { seed: 7, blocks: 64, batch_min: 1, batch_max: 6, discards: 2 };

    #[test]
    fn every_prefix_with_a_part_of_the_next_batch_is_a_state() {
        for batch in 0..60 {
            let (before, after) = (PATTERN.stamps_after(batch), PATTERN.stamps_after(batch + 1));
            let found = PATTERN.batch_of(&before, 100).unwrap();
            assert_eq!(PATTERN.stamps_after(found - 1).len(), 64);
            assert!(found <= batch + 1, "batch {batch}: {found}");
            let part: Vec<u64> = before
                .iter()
                .zip(&after)
                .enumerate()
                .map(|(n, (b, a))| if n % 2 == 0 { *b } else { *a })
                .collect();
            assert!(PATTERN.batch_of(&part, 100).is_ok(), "batch {batch}");
        }
    }

    #[test]
    fn a_write_that_is_missing_before_a_flush_is_seen() {
        let mut seen = 0;
        for batch in 2..60 {
            let (older, newer) = (PATTERN.stamps_after(batch - 2), PATTERN.stamps_after(batch));
            let lost = newer.iter().zip(&older).position(|(n, o)| n != o).expect("a batch changes something");
            let mut stamps = newer.clone();
            stamps[lost] = older[lost];
            seen += usize::from(PATTERN.batch_of(&stamps, 100).is_err());
        }
        // Where the lost write belongs to the newest batch, or is the only one behind the flush, it may be missing.
        assert!(seen > 20, "{seen}");
    }

    #[test]
    fn blocks_are_read_back() {
        let stamp = |seq: u64, block: u64| [seq.to_le_bytes(), block.to_le_bytes()].concat().repeat(256);
        let image = [stamp(5, 0), stamp(0, 0), stamp(9, 2)].concat();
        assert_eq!(stamps_of(&image).unwrap(), [5, 0, 9]);
        assert!(stamps_of(&stamp(5, 1)).unwrap_err().to_string().contains("belongs"));
        let mut torn = stamp(5, 0);
        torn[4000] ^= 1;
        assert!(stamps_of(&torn).unwrap_err().to_string().contains("torn"));
    }
}
