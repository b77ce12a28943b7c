//! The images of the demo: one of each kind that a mirror must get right.

use anyhow::Result;
use tests::image::RandomWrites;
use tests::{Cluster, Extents};

const MIB: u64 = 1 << 20;

/// The mirrored pool.
pub const POOL: &str = "demo";

/// How much is written at once: it is held in memory.
const PIECE_BYTES: u64 = 128 * MIB;

/// Which image it is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Full,
    Sparse,
    History,
    Golden,
    Clone,
}

/// An image of the demo.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    kind: Kind,
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// What is written after the first copy.
    pub change: &'static str,
}

/// The images; a clone comes after its parent.
pub const IMAGES: [Image; 5] = [
    Image {
        kind: Kind::Full,
        name: "full",
        what: "512 MiB, every byte written",
        change: "2000 random writes of 4 KiB; 8 MiB zeroed",
    },
    Image {
        kind: Kind::Sparse,
        name: "sparse",
        what: "2 GiB, of which 64 MiB here and there are written",
        change: "grown to 3 GiB and written at the new end; 24 MiB zeroed",
    },
    Image {
        kind: Kind::History,
        name: "history",
        what: "256 MiB, with the user snapshots monday and tuesday",
        change: "monday removed, 1000 writes, wednesday taken, 1000 writes",
    },
    Image {
        kind: Kind::Golden,
        name: "golden",
        what: "256 MiB, half written, with the protected snapshot v1",
        change: "1 MiB written",
    },
    Image {
        kind: Kind::Clone,
        name: "clone",
        what: "a clone of golden@v1, with 16 MiB of its own",
        change: "500 writes of 4 KiB into what it has from its parent",
    },
];

impl Image {
    /// `POOL/NAME`.
    pub fn spec(&self) -> String {
        format!("{POOL}/{}", self.name)
    }

    /// Makes and fills the image.
    pub async fn write(&self, a: &Cluster) -> Result<()> {
        let spec = &self.spec();
        match self.kind {
            Kind::Full => {
                a.create_image(spec, 512 * MIB, &[]).await?;
                fill(a, spec, 512 * MIB, 1).await
            }
            Kind::Sparse => {
                a.create_image(spec, 2048 * MIB, &[]).await?;
                let spots = (0..64)
                    .fold(Extents::default(), |all, n| all.fill(n * 32 * MIB + n * 4096, MIB, 100 + n));
                a.apply(spec, spots).await
            }
            Kind::History => {
                a.create_image(spec, 256 * MIB, &[]).await?;
                fill(a, spec, 256 * MIB, 2).await?;
                a.snap_create(&format!("{spec}@monday")).await?;
                random(a, spec, 3, 1000, 256 * MIB).await?;
                a.snap_create(&format!("{spec}@tuesday")).await?;
                random(a, spec, 4, 1000, 256 * MIB).await
            }
            Kind::Golden => {
                a.create_image(spec, 256 * MIB, &[]).await?;
                fill(a, spec, 128 * MIB, 5).await?;
                let snapshot = format!("{spec}@v1");
                a.snap_create(&snapshot).await?;
                Ok(a.snap_protect(&snapshot).await?)
            }
            Kind::Clone => {
                a.clone_image(&format!("{POOL}/golden@v1"), spec, 1).await?;
                a.apply(spec, Extents::default().fill(130 * MIB, 16 * MIB, 6)).await
            }
        }
    }

    /// Makes the change.
    pub async fn write_again(&self, a: &Cluster) -> Result<()> {
        let spec = &self.spec();
        match self.kind {
            Kind::Full => {
                random(a, spec, 11, 2000, 512 * MIB).await?;
                a.write_zeroes(spec, 100 * MIB + 512, 8 * MIB).await
            }
            Kind::Sparse => {
                a.resize(spec, 3072 * MIB).await?;
                let extents = Extents::default().zeroes(60 * MIB, 24 * MIB).fill(3060 * MIB, 12 * MIB, 12);
                a.apply(spec, extents).await
            }
            Kind::History => {
                a.snap_remove(&format!("{spec}@monday")).await?;
                random(a, spec, 13, 1000, 256 * MIB).await?;
                a.snap_create(&format!("{spec}@wednesday")).await?;
                random(a, spec, 14, 1000, 256 * MIB).await
            }
            Kind::Golden => a.apply(spec, Extents::default().fill(20 * MIB, MIB, 15)).await,
            Kind::Clone => random(a, spec, 16, 500, 16 * MIB).await,
        }
    }
}

async fn fill(a: &Cluster, spec: &str, size: u64, seed: u64) -> Result<()> {
    for (piece, offset) in (0..size).step_by(PIECE_BYTES as usize).enumerate() {
        let length = PIECE_BYTES.min(size - offset);
        let objects =
            (0..length).step_by(4 * MIB as usize).enumerate().fold(Extents::default(), |all, (n, at)| {
                let seed = seed * 10_000 + piece as u64 * 100 + n as u64;
                all.fill(offset + at, (4 * MIB).min(length - at), seed)
            });
        a.apply(spec, objects).await?;
    }
    Ok(())
}

async fn random(a: &Cluster, spec: &str, seed: u64, count: u64, size: u64) -> Result<()> {
    a.write_random(spec, &RandomWrites { seed, count, block_bytes: 4096, within: 0..size }).await
}
