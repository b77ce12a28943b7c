//! Journal entries as they lie in data objects.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | preamble `0x3141592653589793` |
//! | 8 | 1 | version, 1 |
//! | 9 | 8 | entry tid |
//! | 17 | 8 | tag tid |
//! | 25 | 4 | length of the data, n |
//! | 29 | n | data |
//! | 29 + n | 4 | CRC-32C of all before it, seed 0, not inverted |
//!
//! All integers are little endian. Entries follow each other directly or, where the OSDs pad appends, after zeros up to
//! a multiple of their allocation unit. An append carries whole entries and is atomic: an object that is read to its end
//! ends with an entry or with padding.
//!
//! Reference: `src/journal/Entry.cc`, `src/journal/ObjectPlayer.cc`, `src/cls/journal/cls_journal.cc` (`append`).

use bytes::Bytes;
use rados::encoding::Encoder;

use crate::types::{EntryPosition, EntryTid, TagTid};

const PREAMBLE: u64 = 0x3141_5926_5358_9793;
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 29;
const CRC_BYTES: usize = 4;
/// What an entry takes beside its data, in bytes.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + CRC_BYTES;

/// An entry of a data object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEntry {
    /// Its place in the order of all entries.
    pub position: EntryPosition,
    /// What it holds: an encoded [`crate::event::EventEntry`].
    pub data: Bytes,
}

impl RawEntry {
    /// The entry as it is appended.
    pub fn encode(&self) -> Bytes {
        let mut e = Encoder::new();
        e.u64(PREAMBLE).u8(VERSION).u64(self.position.entry.0).u64(self.position.tag.0).blob(&self.data);
        let entry = e.finish();
        let mut e = Encoder::new();
        e.raw(&entry).u32(checksum(&entry));
        e.finish()
    }
}

/// CRC-32C as Ceph computes it with seed 0: without the inversions at both ends.
fn checksum(bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!0, bytes)
}

/// Bytes that are no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at offset {offset}: {why}")]
pub struct CorruptEntry {
    /// Where in the object.
    pub offset: u64,
    /// What is wrong.
    pub why: String,
}

/// Reads entries from a part of a data object, front to back. Their data are slices of it.
#[derive(Debug, Clone)]
pub struct EntryReader {
    bytes: Bytes,
    /// Next byte to decode.
    at: usize,
    /// Offset of `bytes` in the object.
    base: u64,
    /// No entry is longer: it fits into an object.
    entry_bytes_max: u64,
}

/// What an [`EntryReader`] finds next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// An entry.
    Entry(RawEntry),
    /// The end of the part, between two entries.
    End,
    /// The beginning of an entry, of which at least so many bytes are needed from [`EntryReader::offset`] on to go on.
    Partial(u64),
}

impl EntryReader {
    /// A reader of `bytes`, which lie at `offset` in an object of nominally `object_bytes`; an entry or padding begins
    /// there.
    pub fn new(bytes: Bytes, offset: u64, object_bytes: u64) -> EntryReader {
        EntryReader { bytes, at: 0, base: offset, entry_bytes_max: object_bytes }
    }

    /// Offset in the object of what is found next.
    pub fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    /// What comes next. After an error, or anything but an entry, it comes again.
    pub fn find(&mut self) -> Result<Found, CorruptEntry> {
        let padding = self.bytes[self.at..].iter().position(|byte| *byte != 0);
        self.at = padding.map_or(self.bytes.len(), |padding| self.at + padding);
        let rest = &self.bytes[self.at..];
        if rest.is_empty() {
            return Ok(Found::End);
        }
        // A wrong beginning is wrong, however little of it is there.
        let preamble = PREAMBLE.to_le_bytes();
        let known = rest.len().min(preamble.len());
        if rest[..known] != preamble[..known] {
            return Err(self.corrupt("neither an entry nor padding begins here"));
        }
        let Some(header) = rest.first_chunk::<HEADER_BYTES>() else {
            return Ok(Found::Partial(HEADER_BYTES as u64));
        };
        if header[8] != VERSION {
            return Err(self.corrupt(format!("an entry of unknown version {}", header[8])));
        }
        let position = EntryPosition { tag: TagTid(u64_at(header, 17)), entry: EntryTid(u64_at(header, 9)) };
        let data_bytes = u32::from_le_bytes([header[25], header[26], header[27], header[28]]) as usize;
        let (data_end, end) = (HEADER_BYTES + data_bytes, OVERHEAD_BYTES + data_bytes);
        if end as u64 > self.entry_bytes_max {
            return Err(self.corrupt(format!("an entry of {end} bytes, more than an object takes")));
        }
        let (Some(entry), Some(crc)) = (rest.get(..data_end), rest.get(data_end..end)) else {
            return Ok(Found::Partial(end as u64));
        };
        let computed = checksum(entry);
        if crc != computed.to_le_bytes() {
            return Err(self.corrupt(format!("the checksum of {position} is not that of its bytes")));
        }
        let data = self.bytes.slice(self.at + HEADER_BYTES..self.at + data_end);
        self.at += end;
        Ok(Found::Entry(RawEntry { position, data }))
    }

    /// Goes on to the next place where an entry may begin, behind the one that is no good.
    pub fn skip(&mut self) {
        let preamble = PREAMBLE.to_le_bytes();
        let from = (self.at + 1).min(self.bytes.len());
        let rest = &self.bytes[from..];
        let begins = |at: &usize| {
            let known = (rest.len() - at).min(preamble.len());
            rest[*at..*at + known] == preamble[..known]
        };
        self.at = from + (0..rest.len()).find(begins).unwrap_or(rest.len());
    }

    fn corrupt(&self, why: impl Into<String>) -> CorruptEntry {
        CorruptEntry { offset: self.offset(), why: why.into() }
    }
}

fn u64_at(header: &[u8; HEADER_BYTES], offset: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&header[offset..offset + 8]);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests;
