//! The stream that `rbd import-diff` reads and `rbd export-diff` writes: extents of an image, with their data.
//!
//! Layout (`doc/dev/rbd-diff.rst`, version 1; integers little endian):
//! ```text
//! "rbd diff v1\n"
//! 'f' u32 length, name        the diff starts at this snapshot
//! 't' u32 length, name        the diff ends at this snapshot
//! 's' u64 size                the image's size at the end
//! 'w' u64 offset, u64 length, data
//! 'z' u64 offset, u64 length  zeroes
//! 'e'                         the end
//! ```

use anyhow::{Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What the stream begins with.
const BANNER: &[u8] = b"rbd diff v1\n";

/// No record of a diff is longer: `rbd` writes one per object, and objects have at most 32 MiB.
const RECORD_BYTES_MAX: u64 = 64 << 20;

/// Writes a diff, record by record.
#[derive(Debug, Clone)]
pub struct DiffWriter {
    bytes: Vec<u8>,
}

impl Default for DiffWriter {
    fn default() -> Self {
        DiffWriter { bytes: BANNER.to_vec() }
    }
}

impl DiffWriter {
    fn record(&mut self, tag: u8, offset: u64, length: u64) {
        self.bytes.push(tag);
        self.bytes.extend(offset.to_le_bytes());
        self.bytes.extend(length.to_le_bytes());
    }

    /// Data at an offset.
    pub fn data(&mut self, offset: u64, data: &[u8]) {
        self.record(b'w', offset, data.len() as u64);
        self.bytes.extend(data);
    }

    /// Zeroes at an offset.
    pub fn zeroes(&mut self, offset: u64, length: u64) {
        self.record(b'z', offset, length);
    }

    /// The whole stream.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.push(b'e');
        self.bytes
    }
}

/// A run of data in an image; what lies between the runs is zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// Reads a diff from the beginning of time, which is the whole content of an image, run by run.
#[derive(Debug)]
pub struct DiffReader<R> {
    input: R,
    size: u64,
    first_tag: u8,
    ended: bool,
}

impl<R: AsyncRead + Unpin> DiffReader<R> {
    /// Reads up to the first extent.
    pub async fn open(mut input: R) -> Result<Self> {
        let mut banner = [0; BANNER.len()];
        input.read_exact(&mut banner).await?;
        ensure!(banner == BANNER, "this is not a diff of an image: it begins with {}", banner.escape_ascii());
        let mut size = None;
        loop {
            let tag = input.read_u8().await?;
            match tag {
                b't' | b'f' => {
                    let mut name = vec![0; input.read_u32_le().await?.min(4096) as usize];
                    input.read_exact(&mut name).await?;
                }
                b's' => size = Some(input.read_u64_le().await?),
                _ => {
                    let Some(size) = size else { bail!("the diff doesn't tell the image's size") };
                    return Ok(DiffReader { input, size, first_tag: tag, ended: false });
                }
            }
        }
    }

    /// The image's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The next run of data, or nothing at the end. Not cancel-safe: a dropped future loses bytes of the stream.
    pub async fn next(&mut self) -> Result<Option<Run>> {
        while !self.ended {
            let tag = match std::mem::take(&mut self.first_tag) {
                0 => self.input.read_u8().await?,
                tag => tag,
            };
            if tag == b'e' {
                self.ended = true;
                break;
            }
            ensure!(tag == b'w' || tag == b'z', "unknown record {tag:#04x} in a diff");
            let offset = self.input.read_u64_le().await?;
            let length = self.input.read_u64_le().await?;
            if tag == b'w' {
                ensure!(length <= RECORD_BYTES_MAX, "a record of {length} bytes in a diff");
                let mut data = vec![0; length as usize];
                self.input.read_exact(&mut data).await?;
                return Ok(Some(Run { offset, data }));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read() {
        let mut writer = DiffWriter::default();
        writer.data(4096, b"hello");
        writer.zeroes(8192, 4096);
        writer.data(20_000, b"again");
        let mut bytes = writer.finish();
        // The size, which an export tells and an import does without.
        bytes.splice(BANNER.len()..BANNER.len(), [&b"s"[..], &65_536_u64.to_le_bytes()].concat());
        let mut reader = DiffReader::open(&bytes[..]).await.unwrap();
        assert_eq!(reader.size(), 65_536);
        assert_eq!(reader.next().await.unwrap(), Some(Run { offset: 4096, data: b"hello".to_vec() }));
        assert_eq!(reader.next().await.unwrap(), Some(Run { offset: 20_000, data: b"again".to_vec() }));
        assert_eq!(reader.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_is_an_error() {
        let mut bytes = DiffWriter::default().finish();
        bytes.splice(BANNER.len()..BANNER.len(), [&b"s"[..], &1_u64.to_le_bytes()].concat());
        bytes.pop();
        assert!(DiffReader::open(&bytes[..]).await.is_err());
    }
}
