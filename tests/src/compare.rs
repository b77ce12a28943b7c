//! Whether two images, or snapshots of images, hold the same bytes.
//!
//! [`compare`] reads both as any reader would, byte after byte; it is the judge. [`compare_sparse`] asks `rbd` for what
//! exists and skips what exists on neither side: for large and mostly empty images. It trusts the list of objects and
//! of their extents, not the object map, and reads the data like any reader.

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdout};

use crate::cluster::Cluster;
use crate::diff::{DiffReader, Run};

/// How much of each image is looked at in one go.
const CHUNK_BYTES: usize = 1 << 20;

/// What zeroes are compared with: `==` on slices is fast in any build.
static ZEROES: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// The outcome of comparing image a with image b.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Every byte is the same.
    Equal {
        /// How many bytes both have.
        length: u64,
    },
    /// One is longer than the other, and the bytes they both have are the same (unless compared sparsely, which ends
    /// at the difference in length).
    Lengths {
        /// The length of a in bytes.
        a: u64,
        /// The length of b in bytes.
        b: u64,
    },
    /// They hold different bytes.
    Differ {
        /// The offset of the first different byte.
        offset: u64,
        /// That byte in a.
        a: u8,
        /// That byte in b.
        b: u8,
    },
}

impl Comparison {
    /// Whether every byte is the same.
    pub fn is_equal(self) -> bool {
        matches!(self, Comparison::Equal { .. })
    }

    /// An error that tells the difference, unless there is none.
    pub fn expect_equal(self, what: &str) -> Result<()> {
        match self {
            Comparison::Equal { .. } => Ok(()),
            Comparison::Lengths { a, b } => bail!("{what}: one has {a} bytes, the other {b}"),
            Comparison::Differ { offset, a, b } => {
                bail!(
                    "{what}: they differ from byte {offset} ({offset:#x}) on: {a:#04x} there, {b:#04x} here"
                )
            }
        }
    }
}

/// Compares `a_spec` (`pool/[namespace/]image[@snapshot]`) of one cluster with `b_spec` of another, reading everything.
///
/// Both are read at the same time, by one `rbd export` each. Cancelling ends those.
pub async fn compare(a: &Cluster, a_spec: &str, b: &Cluster, b_spec: &str) -> Result<Comparison> {
    let (mut a, mut b) = (Export::start(a, "export", a_spec)?, Export::start(b, "export", b_spec)?);
    let (mut a_chunk, mut b_chunk) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut offset = 0;
    let outcome = loop {
        let (a_read, b_read) =
            tokio::try_join!(fill(&mut a.output, &mut a_chunk), fill(&mut b.output, &mut b_chunk))?;
        let common = a_read.min(b_read);
        if let Some(different) = first_difference(offset, &a_chunk[..common], &b_chunk[..common]) {
            return Ok(different);
        }
        if a_read != b_read || common < CHUNK_BYTES {
            let a_length = offset + a_read as u64 + drain(&mut a.output, a_read == CHUNK_BYTES).await?;
            let b_length = offset + b_read as u64 + drain(&mut b.output, b_read == CHUNK_BYTES).await?;
            break if a_length == b_length {
                Comparison::Equal { length: a_length }
            } else {
                Comparison::Lengths { a: a_length, b: b_length }
            };
        }
        offset += CHUNK_BYTES as u64;
    };
    a.finish().await?;
    b.finish().await?;
    Ok(outcome)
}

/// Compares like [`compare`], but looks only at what exists on at least one side.
///
/// Fancily striped images come in an order of their own; they are compared by reading everything.
pub async fn compare_sparse(a: &Cluster, a_spec: &str, b: &Cluster, b_spec: &str) -> Result<Comparison> {
    let (mut a_export, mut b_export) =
        (Export::start(a, "export-diff", a_spec)?, Export::start(b, "export-diff", b_spec)?);
    let outcome = async {
        let mut a_runs = DiffReader::open(&mut a_export.output).await?;
        let mut b_runs = DiffReader::open(&mut b_export.output).await?;
        if a_runs.size() != b_runs.size() {
            return Ok(Some(Comparison::Lengths { a: a_runs.size(), b: b_runs.size() }));
        }
        merge(&mut a_runs, &mut b_runs).await
    }
    .await;
    match outcome {
        Ok(Some(Comparison::Equal { length })) => {
            a_export.finish().await?;
            b_export.finish().await?;
            Ok(Comparison::Equal { length })
        }
        Ok(Some(different)) => Ok(different),
        Ok(None) => compare(a, a_spec, b, b_spec).await,
        // A stream that breaks off does so because `rbd` failed, which says why.
        Err(error) => {
            a_export.finish().await?;
            b_export.finish().await?;
            Err(error)
        }
    }
}

/// Walks through the runs of both sides in step; answers nothing when they don't come in the order of their offsets.
async fn merge<A, B>(a_runs: &mut DiffReader<A>, b_runs: &mut DiffReader<B>) -> Result<Option<Comparison>>
where
    A: AsyncRead + Unpin,
    B: AsyncRead + Unpin,
{
    let (mut a, mut b) = (Side::default(), Side::default());
    loop {
        if !a.refill(a_runs).await? || !b.refill(b_runs).await? {
            return Ok(None);
        }
        let (a_run, b_run) = match (a.rest(), b.rest()) {
            (None, None) => {
                return Ok(Some(Comparison::Equal { length: a_runs.size() }));
            }
            sides => sides,
        };
        let here = a_run.map_or(u64::MAX, |run| run.0).min(b_run.map_or(u64::MAX, |run| run.0));
        let end = [a_run, b_run]
            .into_iter()
            .flatten()
            .map(|(offset, data)| if offset == here { offset + data.len() as u64 } else { offset })
            .min()
            .unwrap_or(here)
            .min(here + CHUNK_BYTES as u64);
        let length = (end - here) as usize;
        let part = |run: Option<(u64, &[u8])>| match run {
            Some((offset, data)) if offset == here => data[..length].to_vec(),
            _ => ZEROES[..length].to_vec(),
        };
        if let Some(different) = first_difference(here, &part(a_run), &part(b_run)) {
            return Ok(Some(different));
        }
        a.consume(here, length);
        b.consume(here, length);
    }
}

/// The run that one side has got to.
#[derive(Default)]
struct Side {
    run: Option<Run>,
    consumed: usize,
    /// Where the last run ended: the next one must not begin before.
    reached: u64,
}

impl Side {
    /// Gets the next run when the last one is used up; tells whether it came in order.
    async fn refill<R: AsyncRead + Unpin>(&mut self, runs: &mut DiffReader<R>) -> Result<bool> {
        while self.run.as_ref().is_none_or(|run| self.consumed == run.data.len()) {
            self.run = runs.next().await?;
            self.consumed = 0;
            let Some(run) = &self.run else { return Ok(true) };
            if run.offset < self.reached {
                return Ok(false);
            }
            self.reached = run.offset + run.data.len() as u64;
        }
        Ok(true)
    }

    fn rest(&self) -> Option<(u64, &[u8])> {
        let run = self.run.as_ref()?;
        Some((run.offset + self.consumed as u64, &run.data[self.consumed..]))
    }

    fn consume(&mut self, offset: u64, length: usize) {
        if self.rest().is_some_and(|(here, _)| here == offset) {
            self.consumed += length;
        }
    }
}

fn first_difference(offset: u64, a: &[u8], b: &[u8]) -> Option<Comparison> {
    if a == b {
        return None;
    }
    let at = a.iter().zip(b).position(|(a, b)| a != b)?;
    Some(Comparison::Differ { offset: offset + at as u64, a: a[at], b: b[at] })
}

/// Reads until the chunk is full or the stream ends; tells how much there was.
async fn fill(input: &mut ChildStdout, chunk: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < chunk.len() {
        match input.read(&mut chunk[filled..]).await? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Counts what is left of a stream.
async fn drain(input: &mut ChildStdout, more: bool) -> std::io::Result<u64> {
    if more { tokio::io::copy(input, &mut tokio::io::sink()).await } else { Ok(0) }
}

/// A running `rbd export` to our pipe. Its standard error goes to a pipe that holds any message it has.
struct Export {
    child: Child,
    output: ChildStdout,
    line: String,
}

impl Export {
    fn start(cluster: &Cluster, command: &str, spec: &str) -> Result<Self> {
        let tool = cluster.tool("rbd").args([command, "--no-progress", spec, "-"]);
        let mut child = tool.spawn().with_context(|| tool.line())?;
        let output = child.stdout.take().context("the export has no output")?;
        Ok(Export { child, output, line: tool.line() })
    }

    async fn finish(self) -> Result<()> {
        drop(self.output);
        let ended = self.child.wait_with_output().await?;
        let stderr = String::from_utf8_lossy(&ended.stderr);
        ensure!(ended.status.success(), "`{}` ended with {}: {}", self.line, ended.status, stderr.trim());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::DiffWriter;

    async fn merged(a: &[(u64, &[u8])], b: &[(u64, &[u8])]) -> Option<Comparison> {
        let stream = |runs: &[(u64, &[u8])]| {
            let mut writer = DiffWriter::default();
            runs.iter().for_each(|(offset, data)| writer.data(*offset, data));
            let mut bytes = writer.finish();
            bytes.splice(12..12, [&b"s"[..], &100_u64.to_le_bytes()].concat());
            bytes
        };
        let (a, b) = (stream(a), stream(b));
        let mut a = DiffReader::open(&a[..]).await.unwrap();
        let mut b = DiffReader::open(&b[..]).await.unwrap();
        merge(&mut a, &mut b).await.unwrap()
    }

    #[tokio::test]
    async fn runs_may_be_cut_differently() {
        let equal = Some(Comparison::Equal { length: 100 });
        assert_eq!(merged(&[(10, b"abcdef")], &[(10, b"abc"), (13, b"def")]).await, equal);
        assert_eq!(merged(&[(8, b"\0\0abc\0")], &[(10, b"abc")]).await, equal);
        assert_eq!(merged(&[], &[(0, b"\0\0\0")]).await, equal);
        assert_eq!(merged(&[(0, b"a"), (50, b"b")], &[(0, b"a\0"), (50, b"b"), (99, b"\0")]).await, equal);
    }

    #[tokio::test]
    async fn the_first_different_byte_is_told() {
        let differ = |offset, a, b| Some(Comparison::Differ { offset, a, b });
        assert_eq!(merged(&[(10, b"abcdef")], &[(10, b"abc"), (13, b"dxf")]).await, differ(14, b'e', b'x'));
        assert_eq!(merged(&[(10, b"a")], &[]).await, differ(10, b'a', 0));
        assert_eq!(merged(&[(10, b"a")], &[(10, b"a"), (20, b"\0b")]).await, differ(21, 0, b'b'));
    }

    #[tokio::test]
    async fn runs_out_of_order_are_noticed() {
        assert_eq!(merged(&[(10, b"abc"), (5, b"d")], &[(10, b"abc")]).await, None);
    }
}
