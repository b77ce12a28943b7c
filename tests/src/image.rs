//! Writing images through the stock `rbd`: exact extents, random writes that a seed repeats, discards, snapshots.
//!
//! Extents are written by `rbd import-diff`, whose stream takes any number of writes at any offset: it knows namespaces,
//! goes through librbd like a VM does, and makes over 10,000 writes of 4 KiB per second on a small machine. Zeroes given
//! to it arrive as librbd's write-zeroes. Discards are left to `fio`, the one stock tool that issues them.

use std::io::Write as _;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::diff::DiffWriter;
use crate::tool::{Tool, ToolError};

/// How many extents `rbd` writes at once when their order doesn't matter.
const WRITES_IN_FLIGHT: &str = "32";

/// Writes and zeroes for an image, to be applied in one go.
///
/// They take effect as if one after the other. It is faster when no two overlap: then they are written all at once.
#[derive(Debug, Clone, Default)]
pub struct Extents {
    stream: DiffWriter,
    ranges: Vec<Range<u64>>,
}

/// Random writes, the same for the same values.
#[derive(Debug, Clone)]
pub struct RandomWrites {
    /// What offsets and bytes are made from.
    pub seed: u64,
    /// How many writes. Some may hit the same block: the later one stays.
    pub count: u64,
    /// The length of each, which is also what its offset is a multiple of.
    pub block_bytes: u64,
    /// The part of the image in which they lie.
    pub within: Range<u64>,
}

impl Extents {
    /// Adds a write.
    pub fn write(mut self, offset: u64, data: &[u8]) -> Self {
        self.stream.data(offset, data);
        self.ranges.push(offset..offset + data.len() as u64);
        self
    }

    /// Adds a write of bytes that the seed determines and no compression shortens.
    pub fn fill(self, offset: u64, length: u64, seed: u64) -> Self {
        self.write(offset, &seeded_bytes(seed, length as usize))
    }

    /// Adds zeroes, which arrive as a write-zeroes: whole objects are removed, parts of them deallocated.
    pub fn zeroes(mut self, offset: u64, length: u64) -> Self {
        self.stream.zeroes(offset, length);
        self.ranges.push(offset..offset + length);
        self
    }

    /// Adds random writes. The last block may be cut short by the end of the range.
    pub fn random(mut self, writes: &RandomWrites) -> Self {
        let mut random = StdRng::seed_from_u64(writes.seed);
        let blocks = (writes.within.end - writes.within.start).div_ceil(writes.block_bytes);
        for _ in 0..writes.count {
            let offset = writes.within.start + random.random_range(0..blocks) * writes.block_bytes;
            let mut data = vec![0; writes.block_bytes.min(writes.within.end - offset) as usize];
            random.fill_bytes(&mut data);
            self = self.write(offset, &data);
        }
        self
    }

    fn overlap(&self) -> bool {
        let mut ranges: Vec<_> = self.ranges.iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_by_key(|range| range.start);
        ranges.windows(2).any(|pair| pair[0].end > pair[1].start)
    }
}

/// Bytes that a seed determines and no compression shortens.
pub fn seeded_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

impl Cluster {
    /// Applies extents to an image (`pool/[namespace/]image`); answers when they are all durable.
    pub async fn apply(&self, image: &str, extents: Extents) -> Result<()> {
        let in_flight = if extents.overlap() { "1" } else { WRITES_IN_FLIGHT };
        // From a file, `rbd` writes many extents at once; from its standard input, one after the other.
        let mut file = tempfile::NamedTempFile::new_in(self.folder()).context("making room for a diff")?;
        file.write_all(&extents.stream.finish()).context("writing a diff")?;
        let tool = self.tool("rbd").args([
            "import-diff",
            "--no-progress",
            "--rbd-concurrent-management-ops",
            in_flight,
        ]);
        tool.arg(file.path()).arg(image).run().await?;
        Ok(())
    }

    /// Makes an image of just these bytes, with more arguments for `rbd import`, such as `--object-size 64K`.
    pub async fn import(&self, image: &str, bytes: &[u8], args: &[&str]) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(self.folder()).context("making room for an import")?;
        file.write_all(bytes).context("writing an import")?;
        self.tool("rbd")
            .args(["import", "--no-progress"])
            .args(args)
            .arg(file.path())
            .arg(image)
            .run()
            .await?;
        Ok(())
    }

    /// Reads a whole image or snapshot into memory.
    pub async fn read(&self, spec: &str) -> Result<Vec<u8>, ToolError> {
        self.tool("rbd").args(["export", "--no-progress", spec, "-"]).run_bytes().await
    }

    /// The SHA-256 of the content of an image or snapshot, in hexadecimal digits.
    pub async fn sha256(&self, spec: &str) -> Result<String> {
        // Both ends of the pipe belong to the shell, so that no byte passes through us.
        let script = r#"set -o pipefail; "$0" -c "$1" export --no-progress "$2" - | sha256sum"#;
        let shell = Tool::new("bash").args(["-c", script]).arg(self.program("rbd")).arg(self.conf_path());
        let output = shell.arg(spec).run().await?;
        let digest = output.split_whitespace().next().context("sha256sum said nothing")?;
        Ok(digest.to_owned())
    }

    /// Writes random blocks.
    pub async fn write_random(&self, image: &str, writes: &RandomWrites) -> Result<()> {
        self.apply(image, Extents::default().random(writes)).await
    }

    /// Writes zeroes as librbd's write-zeroes.
    pub async fn write_zeroes(&self, image: &str, offset: u64, length: u64) -> Result<()> {
        self.apply(image, Extents::default().zeroes(offset, length)).await
    }

    /// Discards a range of an image of a pool's default namespace, exactly as far as asked: librbd's own rounding to
    /// 64 KiB is switched off.
    pub async fn discard(&self, image: &str, offset: u64, length: u64) -> Result<()> {
        let exact = "rbd discard granularity bytes = 0\nrbd skip partial discard = false\n";
        let (offset, length) = (format!("--offset={offset}"), length.to_string());
        let (size, block) = (format!("--size={length}"), format!("--bs={length}"));
        self.fio(image, exact, &["--rw=trim", "--iodepth=1", &offset, &size, &block]).await.map(drop)
    }

    /// Runs `fio` on an image of a pool's default namespace, with more lines for the client's configuration; answers with
    /// what it says of its one job.
    pub async fn fio(&self, image: &str, conf: &str, args: &[&str]) -> Result<Value> {
        let (pool, name) = image.split_once('/').context("images are called POOL/IMAGE")?;
        ensure!(!name.contains('/'), "fio cannot write in the namespace of {image}; use import-diff");
        // fio configures its client from the environment alone.
        let file =
            tempfile::NamedTempFile::new_in(self.folder()).context("making room for a configuration")?;
        let own = std::fs::read_to_string(self.conf_path())?;
        std::fs::write(file.path(), format!("{}\n[client]\n{conf}", own.replace("$cluster", "ceph")))?;
        let (pool, name) = (format!("--pool={pool}"), format!("--rbdname={name}"));
        let job = Tool::new("fio").env("CEPH_CONF", file.path());
        let job = job.args(["--name=job", "--ioengine=rbd", "--clientname=admin", "--output-format=json"]);
        let mut said = job.args([&pool, &name]).args(args).run_json().await?;
        Ok(said["jobs"][0].take())
    }

    /// Changes an image's size, in bytes, up or down.
    pub async fn resize(&self, image: &str, size: u64) -> Result<(), ToolError> {
        self.rbd(&["resize", "--no-progress", "--allow-shrink", "--size", &format!("{size}B"), image])
            .await
            .map(drop)
    }

    /// Makes an empty image of a size in bytes, with more arguments for `rbd create`.
    pub async fn create_image(&self, image: &str, size: u64, args: &[&str]) -> Result<(), ToolError> {
        let size = format!("{size}B");
        self.rbd(&[&["create", "--size", &size, image], args].concat()).await.map(drop)
    }

    /// Takes a user snapshot (`pool/image@snapshot`).
    pub async fn snap_create(&self, snapshot: &str) -> Result<(), ToolError> {
        self.rbd(&["snap", "create", "--no-progress", snapshot]).await.map(drop)
    }

    /// Removes a user snapshot.
    pub async fn snap_remove(&self, snapshot: &str) -> Result<(), ToolError> {
        self.rbd(&["snap", "rm", "--no-progress", snapshot]).await.map(drop)
    }

    /// Renames a user snapshot; both names in full.
    pub async fn snap_rename(&self, snapshot: &str, new: &str) -> Result<(), ToolError> {
        self.rbd(&["snap", "rename", snapshot, new]).await.map(drop)
    }

    /// Protects a user snapshot, as the parents of clones in the old format must be.
    pub async fn snap_protect(&self, snapshot: &str) -> Result<(), ToolError> {
        self.rbd(&["snap", "protect", snapshot]).await.map(drop)
    }

    /// Takes the protection away.
    pub async fn snap_unprotect(&self, snapshot: &str) -> Result<(), ToolError> {
        self.rbd(&["snap", "unprotect", snapshot]).await.map(drop)
    }

    /// Clones a snapshot; format 1 wants it protected, format 2 doesn't.
    pub async fn clone_image(&self, snapshot: &str, child: &str, format: u8) -> Result<(), ToolError> {
        self.rbd(&["clone", "--rbd-default-clone-format", &format.to_string(), snapshot, child])
            .await
            .map(drop)
    }

    /// Copies everything that a clone has from its parent into it.
    pub async fn flatten(&self, image: &str) -> Result<(), ToolError> {
        self.rbd(&["flatten", "--no-progress", image]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_seen() {
        let extents = |ranges: &[(u64, u64)]| {
            ranges.iter().fold(Extents::default(), |all, (offset, length)| all.zeroes(*offset, *length))
        };
        assert!(!extents(&[(4096, 4096), (0, 4096), (8192, 1)]).overlap());
        assert!(extents(&[(4096, 4096), (0, 4097)]).overlap());
        assert!(extents(&[(0, 10), (0, 10)]).overlap());
        assert!(extents(&[(0, 100), (10, 1), (50, 60)]).overlap());
    }

    #[test]
    fn random_writes_stay_within_their_range_and_repeat() {
        let writes = RandomWrites { seed: 1, count: 500, block_bytes: 4096, within: 8192..8192 + 10_000 };
        let extents = Extents::default().random(&writes);
        assert!(extents.ranges.iter().all(|range| range.start >= 8192 && range.end <= 18_192));
        assert!(extents.ranges.iter().any(|range| range.end - range.start < 4096));
        assert_eq!(extents.stream.finish(), Extents::default().random(&writes).stream.finish());
    }
}
