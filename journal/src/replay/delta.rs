//! What entries that are not on disk yet make of one object: the last word on each of its bytes.
//!
//! Entries are merged in journal order; later ones win. What comes out is written by one compound operation, whose parts
//! do not overlap, so that the OSD does each byte once. Data is not copied, but for small runs that lie side by side: they
//! become one run, because each part of an operation costs the OSD more than a copy costs us.
//!
//! Invariants: pieces are disjoint, not empty, and lie within the object.
//!
//! Reference: `src/librbd/io/ObjectRequest.cc` (`ObjectDiscardRequest`).

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use rados::{Extent, WriteSub};

/// Data runs shorter than this are copied together with their neighbours.
const JOIN_BYTES_MAX: usize = 32 << 10;
/// Parts of one operation.
const PARTS_MAX: usize = 1024;
/// Bytes of data in one operation: the OSD refuses more than 90 MiB.
const BYTES_MAX: u64 = 16 << 20;

/// What is to become of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Data(Bytes),
    Zero(u64),
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Piece::Data(data) => data.len() as u64,
            Piece::Zero(length) => *length,
        }
    }

    /// The part between two offsets from its start.
    fn slice(&self, from: u64, to: u64) -> Piece {
        match self {
            Piece::Data(data) => Piece::Data(data.slice(from as usize..to as usize)),
            Piece::Zero(_) => Piece::Zero(to - from),
        }
    }
}

/// Changes of one object that are not on disk yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ObjectDelta {
    /// The whole object was discarded: all that no piece names is gone.
    emptied: bool,
    pieces: BTreeMap<u64, Piece>,
}

/// What one operation makes of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ObjectChange {
    /// All that the parts below do not name is gone; without a part, the object is.
    pub emptied: bool,
    /// Ranges that become zero, ascending.
    pub zeros: Vec<Extent>,
    /// Data by offset, ascending.
    pub writes: Vec<(u64, Bytes)>,
}

impl ObjectDelta {
    /// True when there is nothing to do.
    pub fn is_empty(&self) -> bool {
        !self.emptied && self.pieces.is_empty()
    }

    /// True when it does nothing to an object that does not exist.
    pub fn only_takes_away(&self) -> bool {
        self.pieces.values().all(|piece| matches!(piece, Piece::Zero(_)))
    }

    /// True when it ends with the object gone.
    pub fn removes(&self) -> bool {
        self.emptied && self.only_takes_away()
    }

    /// Bytes are written.
    pub fn write(&mut self, offset: u64, data: Bytes) {
        if data.is_empty() {
            return;
        }
        self.clear(Extent::new(offset, data.len() as u64));
        self.pieces.insert(offset, Piece::Data(data));
    }

    /// A range becomes zero.
    pub fn zero(&mut self, extent: Extent) {
        if extent.is_empty() {
            return;
        }
        self.clear(extent);
        if !self.emptied {
            self.pieces.insert(extent.offset, Piece::Zero(extent.length));
        }
    }

    /// The whole object is discarded.
    pub fn empty(&mut self) {
        self.pieces.clear();
        self.emptied = true;
    }

    /// Cuts a range out of the pieces.
    fn clear(&mut self, extent: Extent) {
        let before = self.pieces.range(..extent.offset).next_back();
        if let Some((&start, piece)) = before.filter(|(start, piece)| *start + piece.length() > extent.offset)
        {
            let piece = piece.clone();
            self.pieces.insert(start, piece.slice(0, extent.offset - start));
            if start + piece.length() > extent.end() {
                let rest = piece.slice(extent.end() - start, piece.length());
                self.pieces.insert(extent.end(), rest);
            }
        }
        while let Some((&start, piece)) = self.pieces.range(extent.offset..extent.end()).next() {
            let rest = (start + piece.length() > extent.end())
                .then(|| piece.slice(extent.end() - start, piece.length()));
            self.pieces.remove(&start);
            if let Some(rest) = rest {
                self.pieces.insert(extent.end(), rest);
            }
        }
    }

    /// Takes as much as one operation may hold; the rest, if any, stays for the next one.
    pub fn take(&mut self) -> ObjectChange {
        let mut change = ObjectChange { emptied: self.emptied, zeros: Vec::new(), writes: Vec::new() };
        self.emptied = false;
        let (mut bytes, mut run) = (0, Run::default());
        while let Some(entry) = self.pieces.first_entry() {
            if change.zeros.len() + change.writes.len() >= PARTS_MAX || bytes >= BYTES_MAX {
                break;
            }
            let (offset, piece) = entry.remove_entry();
            match piece {
                Piece::Zero(length) => match change.zeros.last_mut() {
                    Some(last) if last.end() == offset => last.length += length,
                    _ => change.zeros.push(Extent::new(offset, length)),
                },
                Piece::Data(data) => {
                    bytes += data.len() as u64;
                    run.add(offset, data, &mut change.writes);
                }
            }
        }
        run.finish(&mut change.writes);
        change
    }
}

/// Small runs of data side by side, not joined yet.
#[derive(Default)]
struct Run {
    offset: u64,
    length: u64,
    parts: Vec<Bytes>,
}

impl Run {
    fn add(&mut self, offset: u64, data: Bytes, out: &mut Vec<(u64, Bytes)>) {
        if data.len() > JOIN_BYTES_MAX {
            self.finish(out);
            out.push((offset, data));
            return;
        }
        if self.parts.is_empty() || self.offset + self.length != offset {
            self.finish(out);
            self.offset = offset;
        }
        self.length += data.len() as u64;
        self.parts.push(data);
    }

    fn finish(&mut self, out: &mut Vec<(u64, Bytes)>) {
        let data = match self.parts.len() {
            0 => return,
            1 => self.parts.swap_remove(0),
            _ => {
                let mut joined = BytesMut::with_capacity(self.length as usize);
                self.parts.drain(..).for_each(|part| joined.extend_from_slice(&part));
                joined.freeze()
            }
        };
        out.push((self.offset, data));
        self.length = 0;
    }
}

impl ObjectChange {
    /// True when the object is gone after it, or as if it were.
    pub fn removes(&self) -> bool {
        self.emptied && self.writes.is_empty()
    }

    /// True when no byte of an object of `object_size` bytes is left as it was.
    pub fn replaces(&self, object_size: u64) -> bool {
        let mut ends: Vec<(u64, u64)> = self.zeros.iter().map(|zero| (zero.offset, zero.end())).collect();
        ends.extend(self.writes.iter().map(|(offset, data)| (*offset, offset + data.len() as u64)));
        ends.sort_unstable();
        let covered = ends.iter().try_fold(0, |at, (from, to)| (*from == at).then_some(*to));
        self.emptied || covered == Some(object_size)
    }

    /// Bytes of data.
    pub fn bytes(&self) -> u64 {
        self.writes.iter().map(|(_, data)| data.len() as u64).sum()
    }

    /// The parts of the operation, for an object that keeps existing. Zeros that reach the end of the object cut it.
    ///
    /// No zero is empty (an OSD aborts on one). An OSD makes a zero that reaches the object's present end a truncate, which
    /// is the same for all who read. A truncate behind one to nothing aborts an OSD of an erasure-coded pool, so the end is
    /// cut first, and from what is emptied nothing is cut.
    pub fn subs(self, object_size: u64) -> Vec<WriteSub> {
        let mut subs = Vec::with_capacity(1 + self.zeros.len() + self.writes.len());
        if self.emptied {
            subs.push(WriteSub::Truncate(0));
        } else {
            let (end, inside): (Vec<_>, Vec<_>) =
                self.zeros.into_iter().partition(|zero| zero.end() >= object_size);
            subs.extend(end.into_iter().map(|zero| WriteSub::Truncate(zero.offset)));
            subs.extend(inside.into_iter().map(WriteSub::Zero));
        }
        subs.extend(self.writes.into_iter().map(|(offset, data)| WriteSub::Write { offset, data }));
        subs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OBJECT: u64 = 64;

    #[derive(Debug, Clone)]
    enum Change {
        Write(u64, Vec<u8>),
        Zero(Extent),
        Empty,
    }

    fn change() -> impl Strategy<Value = Change> {
        let extent = || (0..OBJECT).prop_flat_map(|at| (Just(at), 0..=OBJECT - at));
        prop_oneof![
            6 => (extent(), 1u8..).prop_map(|((at, length), byte)| Change::Write(at, vec![byte; length as usize])),
            3 => extent().prop_map(|(at, length)| Change::Zero(Extent::new(at, length))),
            1 => Just(Change::Empty),
        ]
    }

    /// What an OSD does to an object of `size` bytes; they are zero behind its end.
    fn apply(bytes: &mut [u8], size: &mut u64, subs: Vec<WriteSub>) {
        let mut emptied = false;
        let mut truncate = |bytes: &mut [u8], size: &mut u64, to: u64| {
            assert!(!(emptied && to > 0), "an OSD of an erasure-coded pool aborts on it");
            emptied |= to == 0;
            bytes[to as usize..].fill(0);
            *size = to;
        };
        for sub in subs {
            match sub {
                WriteSub::Write { offset, data } => {
                    bytes[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
                    *size = (*size).max(offset + data.len() as u64);
                }
                WriteSub::Zero(zero) => {
                    assert!(!zero.is_empty());
                    match zero.end() >= *size {
                        true if zero.offset < *size => truncate(bytes, size, zero.offset),
                        true => {}
                        false => bytes[zero.offset as usize..zero.end() as usize].fill(0),
                    }
                }
                WriteSub::Truncate(to) => truncate(bytes, size, to),
                other => panic!("{other:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn the_last_word_on_each_byte_counts(
            changes in prop::collection::vec((change(), any::<bool>()), 1..12),
            size in 0..=OBJECT,
        ) {
            let mut naive = vec![255u8; OBJECT as usize];
            naive[size as usize..].fill(0);
            let (mut real, mut size) = (naive.clone(), size);
            let mut delta = ObjectDelta::default();
            for (change, take) in changes {
                match change {
                    Change::Write(offset, data) => {
                        naive[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
                        delta.write(offset, data.into());
                    }
                    Change::Zero(extent) => {
                        naive[extent.offset as usize..extent.end() as usize].fill(0);
                        delta.zero(extent);
                    }
                    Change::Empty => {
                        naive.fill(0);
                        delta.empty();
                    }
                }
                if take {
                    let nothing = delta.is_empty();
                    let (removes, takes_away) = (delta.removes(), delta.only_takes_away());
                    let change = delta.take();
                    prop_assert!(delta.is_empty());
                    prop_assert_eq!(removes, change.removes());
                    prop_assert!(!takes_away || change.writes.is_empty());
                    let touched: u64 = change.zeros.iter().map(|z| z.length).sum::<u64>() + change.bytes();
                    prop_assert_eq!(change.replaces(OBJECT), change.emptied || touched == OBJECT);
                    let before = real.clone();
                    apply(&mut real, &mut size, change.subs(OBJECT));
                    prop_assert!(!nothing || before == real);
                    prop_assert_eq!(&real, &naive);
                }
            }
            apply(&mut real, &mut size, delta.take().subs(OBJECT));
            prop_assert_eq!(real, naive);
        }
    }

    #[test]
    fn small_neighbours_become_one_run_and_large_ones_are_not_copied() {
        let mut delta = ObjectDelta::default();
        let large = Bytes::from(vec![1u8; JOIN_BYTES_MAX + 1]);
        delta.write(0, large.clone());
        for block in [3, 1, 2] {
            delta.write(large.len() as u64 + block * 8, Bytes::from(vec![block as u8; 8]));
        }
        let change = delta.take();
        assert_eq!(change.writes.len(), 2);
        assert_eq!(change.writes[0].1.as_ptr(), large.as_ptr());
        assert_eq!(change.writes[1].1, [[1u8; 8], [2; 8], [3; 8]].concat());
    }

    #[test]
    fn an_operation_has_bounds() {
        let mut delta = ObjectDelta::default();
        delta.empty();
        for block in 0..PARTS_MAX as u64 + 10 {
            delta.write(block * 16, Bytes::from_static(b"block"));
        }
        let (first, second) = (delta.take(), delta.take());
        assert!(delta.is_empty() && first.emptied && !second.emptied);
        assert!(first.writes.len() <= PARTS_MAX + 1);
        assert_eq!(first.writes.len() + second.writes.len(), PARTS_MAX + 10);
    }
}
