//! One simulated object: its head, its clones, and the operations that change them.

use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use rados::{Clone as CloneInfo, CloneSet, Extent, ReadAnswer, ReadSub, SnapContext, SnapId, WriteSub};

use crate::ranges::RangeSet;

/// Allocation unit: `Zero` frees whole blocks, and a sparse read tells allocated blocks.
pub const BLOCK_BYTES: u64 = 4;

/// Bytes of an object and which of its blocks are allocated.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Content {
    data: Vec<u8>,
    allocated: Vec<bool>,
}

impl Content {
    fn resize(&mut self, size: u64) {
        if (size as usize) < self.data.len() {
            self.data.truncate(size as usize);
            self.allocated.truncate(size.div_ceil(BLOCK_BYTES) as usize);
        }
        self.data.resize(size as usize, 0);
        self.allocated.resize(size.div_ceil(BLOCK_BYTES) as usize, false);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset + data.len() as u64;
        if data.is_empty() {
            return;
        }
        if end > self.data.len() as u64 {
            self.resize(end);
        }
        self.data[offset as usize..end as usize].copy_from_slice(data);
        for block in offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES) {
            self.allocated[block as usize] = true;
        }
    }

    fn zero(&mut self, extent: Extent) {
        let end = extent.end().min(self.data.len() as u64);
        if extent.offset >= end {
            return;
        }
        self.data[extent.offset as usize..end as usize].fill(0);
        for block in extent.offset.div_ceil(BLOCK_BYTES)..end / BLOCK_BYTES {
            self.allocated[block as usize] = false;
        }
    }

    fn sparse(&self, extent: Extent) -> (Vec<Extent>, Bytes) {
        let size = self.data.len() as u64;
        let blocks = self.allocated.iter().enumerate().filter(|(_, on)| **on);
        let blocks: Vec<_> = blocks.map(|(i, _)| Extent::new(i as u64 * BLOCK_BYTES, BLOCK_BYTES)).collect();
        let within = RangeSet::from_extents(&[extent]).intersection(&RangeSet::below(size));
        let extents: Vec<_> = RangeSet::from_extents(&blocks).intersection(&within).extents().collect();
        let data =
            extents.iter().flat_map(|e| &self.data[e.offset as usize..e.end() as usize]).copied().collect();
        (extents, data)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct SimClone {
    id: SnapId,
    snaps: Vec<SnapId>,
    content: Content,
    overlap: RangeSet,
}

/// An object with its clones. `Default` is one that never existed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SimObject {
    head: Option<Content>,
    seq: u64,
    clones: Vec<SimClone>,
}

impl SimObject {
    /// True when nothing is left of it: neither head nor clones.
    pub fn is_gone(&self) -> bool {
        self.head.is_none() && self.clones.is_empty()
    }

    /// Its bytes at `snap`; `None` when it does not exist there.
    pub fn bytes_at(&self, snap: SnapId) -> Option<&[u8]> {
        self.content_at(snap).map(|c| c.data.as_slice())
    }

    fn content_at(&self, snap: SnapId) -> Option<&Content> {
        if snap.is_head() || snap.0 > self.seq {
            return self.head.as_ref();
        }
        let clone = self.clones.iter().find(|c| c.id >= snap)?;
        clone.snaps.contains(&snap).then_some(&clone.content)
    }

    /// What `list_snaps` answers; `None` for ENOENT.
    pub fn list_snaps(&self) -> Option<CloneSet> {
        if self.is_gone() {
            return None;
        }
        let clone = |c: &SimClone| CloneInfo {
            id: c.id,
            snaps: c.snaps.clone(),
            overlap: c.overlap.extents().collect(),
            size: c.content.data.len() as u64,
        };
        let mut clones: Vec<_> = self.clones.iter().map(clone).collect();
        if let Some(head) = &self.head {
            let size = head.data.len() as u64;
            clones.push(CloneInfo { id: SnapId::HEAD, snaps: Vec::new(), overlap: Vec::new(), size });
        }
        Some(CloneSet { seq: self.seq, clones })
    }

    /// Drops a removed snapshot from its clones, as the snapshot trimmer does.
    pub fn trim(&mut self, snap: SnapId) {
        for clone in &mut self.clones {
            clone.snaps.retain(|s| *s != snap);
        }
        while let Some(i) = self.clones.iter().position(|c| c.snaps.is_empty()) {
            let gone = self.clones.remove(i);
            if i > 0 {
                self.clones[i - 1].overlap = self.clones[i - 1].overlap.intersection(&gone.overlap);
            }
        }
        if self.is_gone() {
            *self = SimObject::default();
        }
    }

    /// Answers one part of a read at `snap`. Errors are error numbers.
    pub fn read(&self, snap: SnapId, sub: &ReadSub) -> Result<ReadAnswer, i32> {
        if *sub == ReadSub::ListSnaps {
            return self.list_snaps().map(ReadAnswer::Snaps).ok_or(libc::ENOENT);
        }
        let content = self.content_at(snap).ok_or(libc::ENOENT)?;
        let size = content.data.len() as u64;
        match sub {
            ReadSub::Stat => Ok(ReadAnswer::Stat { size, mtime_seconds: 0 }),
            ReadSub::Read(e) => {
                let (start, end) = (e.offset.min(size) as usize, e.end().min(size) as usize);
                Ok(ReadAnswer::Data(Bytes::copy_from_slice(&content.data[start..end])))
            }
            ReadSub::SparseRead(e) => {
                let (extents, data) = content.sparse(*e);
                Ok(ReadAnswer::Sparse { extents, data })
            }
            ReadSub::Checksum { extent, chunk, .. } => checksums(content, *extent, *chunk),
            ReadSub::AssertExists => Ok(ReadAnswer::Done),
            _ => Err(libc::EOPNOTSUPP),
        }
    }

    /// Applies a write atomically. `removed` are snapshots that were given up. Errors are error numbers.
    pub fn apply(&mut self, context: &SnapContext, subs: &[WriteSub], removed: &[SnapId]) -> Result<(), i32> {
        let snaps: Vec<SnapId> = context.snaps.iter().filter(|s| !removed.contains(s)).copied().collect();
        let newer: Vec<SnapId> = snaps.iter().filter(|s| s.0 > self.seq).copied().collect();
        let mut new = self.clone();
        let mut run = Run {
            head: new.head.clone(),
            seq: self.seq,
            modified: Vec::new(),
            touched: false,
            truncated: None,
        };
        for sub in subs {
            run.apply(sub)?;
        }
        let aborts = run.truncated.is_some_and(|(least, last)| self.head.is_some() && least == 0 && last > 0);
        assert!(!aborts, "an OSD of an erasure-coded pool aborts on {subs:?}");
        if !run.touched {
            return Ok(());
        }
        if let (Some(old), false) = (&self.head, newer.is_empty()) {
            let overlap = RangeSet::below(old.data.len() as u64);
            let mut serves = newer;
            serves.sort_unstable();
            new.clones.push(SimClone {
                id: SnapId(context.seq),
                snaps: serves,
                content: old.clone(),
                overlap,
            });
        }
        if let Some(newest) = new.clones.last_mut() {
            newest.overlap = newest.overlap.without(&RangeSet::from_extents(&run.modified));
        }
        new.seq = new.seq.max(context.seq);
        new.head = run.head;
        *self = if new.is_gone() { SimObject::default() } else { new };
        Ok(())
    }
}

/// An operation under way.
struct Run {
    head: Option<Content>,
    seq: u64,
    modified: Vec<Extent>,
    touched: bool,
    /// The shortest size that it was truncated to, and the last one since.
    truncated: Option<(u64, u64)>,
}

impl Run {
    fn apply(&mut self, sub: &WriteSub) -> Result<(), i32> {
        match sub {
            WriteSub::Exec { class, method, input } => return self.assert_seq(class, method, input),
            WriteSub::AssertExists => return self.head.as_ref().map(|_| ()).ok_or(libc::ENOENT),
            WriteSub::Create { exclusive: true } if self.head.is_some() => return Err(libc::EEXIST),
            WriteSub::Create { .. } | WriteSub::AllocHint { .. } => drop(self.head.get_or_insert_default()),
            WriteSub::Write { offset, data } => {
                self.modified.push(Extent::new(*offset, data.len() as u64));
                self.head.get_or_insert_default().write(*offset, data);
            }
            WriteSub::WriteFull(data) => {
                let head = self.head.get_or_insert_default();
                self.modified.push(Extent::new(0, (head.data.len() as u64).max(data.len() as u64)));
                head.resize(0);
                head.write(0, data);
            }
            // As the OSD does, but that an empty one makes it abort.
            WriteSub::Zero(extent) => {
                let Some(head) = &mut self.head else {
                    return Ok(());
                };
                let size = head.data.len() as u64;
                if extent.end() >= size {
                    return match extent.offset < size {
                        true => self.apply(&WriteSub::Truncate(extent.offset)),
                        false => Ok(()),
                    };
                }
                self.modified.push(*extent);
                head.zero(*extent);
            }
            WriteSub::Truncate(size) => {
                let Some(head) = &mut self.head else { return Ok(()) };
                let least = self.truncated.map_or(*size, |(least, _)| least.min(*size));
                self.truncated = Some((least, *size));
                let old = head.data.len() as u64;
                self.modified.push(Extent::new(*size, old.saturating_sub(*size)));
                head.resize(*size);
            }
            WriteSub::Remove => {
                let old = self.head.take().ok_or(libc::ENOENT)?;
                self.modified.push(Extent::new(0, old.data.len() as u64));
            }
            _ => return Err(libc::EOPNOTSUPP),
        }
        self.touched = true;
        Ok(())
    }

    /// `rbd.assert_snapc_seq`: `u64 snapc_seq, u8 state` (0: it must be greater than the object's).
    fn assert_seq(&self, class: &str, method: &str, input: &[u8]) -> Result<(), i32> {
        if (class, method, input.len()) != ("rbd", "assert_snapc_seq", 9) || input[8] != 0 {
            return Err(libc::EOPNOTSUPP);
        }
        let seq = u64::from_le_bytes(input[..8].try_into().map_err(|_| libc::EINVAL)?);
        if self.head.is_none() || seq > self.seq { Ok(()) } else { Err(libc::ERANGE) }
    }
}

/// An extent of no bytes at 0 means the whole object, as for the OSD, and one that reaches behind its end is cut there
/// (EINVAL when no whole number of chunks is left; no answer, which cannot be decoded, when nothing is). The sums are not
/// those of any real algorithm.
fn checksums(content: &Content, extent: Extent, chunk: u32) -> Result<ReadAnswer, i32> {
    let size = content.data.len() as u64;
    let whole = extent == Extent::new(0, 0);
    if !whole && extent.offset >= size {
        return Err(libc::EBADMSG);
    }
    let end = if whole { size } else { extent.end().min(size) };
    let bytes = &content.data[extent.offset as usize..end as usize];
    let chunk = if chunk == 0 { bytes.len().max(1) } else { chunk as usize };
    if !bytes.len().is_multiple_of(chunk) {
        return Err(libc::EINVAL);
    }
    let sum = |bytes: &[u8]| {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        hasher.finish()
    };
    Ok(ReadAnswer::Checksums(bytes.chunks(chunk).map(sum).collect()))
}
