//! What to read from and write to one object, step by step: pure.
//!
//! **Every action is absolute.** It sets existence, size and the bytes of its ranges to what they are at the end of its
//! step, whatever they were before. From this follows that a copy that was interrupted at any point, with writes whose
//! answers were lost, is finished by doing all steps again from the first:
//!
//! Let steps `1..=k` have been applied when the copy was interrupted (the last of them perhaps without an answer), so
//! that the OSD has seen the context of step `k` and holds clones for the local snapshots of steps `1..k`. Those of
//! steps `k..` have no clone, they show the head. Doing step `i <= k` again comes with a context that is not newer: the
//! OSD clones nothing and changes the head alone. Each byte that any of the steps `1..=k` changes ends with what the
//! last of those steps makes it; no other byte is touched; so after step `k` the head is again what it was, however
//! often the repetition is itself interrupted. Step `k + 1` then clones it, and all goes on as if nothing had happened.
//!
//! That needs the steps to tell at least what the interrupted ones told. They do when a user snapshot between was
//! removed meanwhile, but for the size and the existence of an object that only that snapshot knew: therefore in a
//! copy that is resumed the first step looks at the local object and sets both. It does not help when the last snapshot
//! is another one, because then an object may not be visited at all: such a round is a repair.
//!
//! **Clones.** An object that does not exist locally shows the parent's bytes. So the first write that gives it
//! existence brings all of it, at the state of that step.
//!
//! Write operations are guarded by `rbd.assert_snapc_seq`: they fail with ERANGE once a write has been made to the
//! object under a context that holds the newest local snapshot. Then somebody else has written (a promoted image's
//! user, another daemon), and head and snapshot can no longer be made equal.
//!
//! Reference: `src/librbd/deep_copy/ObjectCopyRequest.cc`; `assert_snapc_seq` of `src/cls/rbd/cls_rbd.cc` (`u64
//! snapc_seq`, `u8` 0: greater than the object's).

use bytes::{Bytes, BytesMut};
use rados::encoding::Encoder;
use rados::{Extent, ReadAnswer, ReadSub, SnapContext, SnapId, WriteOp, WriteSub};
use rbd::object_map::ObjectState;

use crate::ranges::RangeSet;
use crate::snapset::{Change, StepDelta};

/// Runs of zeros as long as this, and aligned to it, are not written but deallocated.
const ZERO_RUN_BYTES: u64 = 64 << 10;
/// Longest range that is read without asking where its holes are.
const PLAIN_READ_BYTES_MAX: u64 = 16 << 10;
/// Most ranges that one read asks for: with more of them, small gaps are read, too.
const READ_RANGES_MAX: usize = 256;
/// Most runs of data that a step writes: with more of them, small holes are written as zeros. An operation has 65535 parts
/// at most, and each zeroed hole is one, too.
const RUNS_MAX: usize = 4096;
/// `ASSERT_SNAPC_SEQ_GT_SNAPSET_SEQ`.
const SNAPC_SEQ_GREATER: u8 = 0;

/// What is known of the local object's head before the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// Nothing but that it equals the remote one at the start.
    Untested,
    /// It does not exist.
    Absent,
    /// It exists, and has this size in bytes.
    Present(u64),
}

/// What to do to the local object in one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Remove it.
    Remove,
    /// Make it exist with this size, and bring all of its bytes.
    Replace {
        /// Size in bytes.
        size: u64,
    },
    /// Make it exist with this size, and bring the bytes of these ranges.
    Update {
        /// Size in bytes.
        size: u64,
        /// Ranges within it.
        ranges: RangeSet,
    },
}

impl Action {
    /// Ranges to be read at the remote snapshot of the step; few, so perhaps with bytes that did not change.
    pub fn reads(&self) -> Vec<Extent> {
        match self {
            Action::Nothing | Action::Remove => Vec::new(),
            Action::Replace { size } => RangeSet::below(*size).extents().collect(),
            Action::Update { ranges, .. } => bounded(ranges).extents().collect(),
        }
    }

    /// Bytes that [`Action::reads`] asks for.
    pub fn read_bytes(&self) -> u64 {
        self.reads().iter().map(|e| e.length).sum()
    }
}

fn bounded(ranges: &RangeSet) -> RangeSet {
    let mut bounded = ranges.clone();
    let mut gap_bytes = 4096;
    while bounded.len() > READ_RANGES_MAX {
        bounded = ranges.bridged(gap_bytes);
        gap_bytes *= 2;
    }
    bounded
}

/// Turns what happened remotely into what to do locally. `Local::Untested` promises that neither a parent nor an
/// interrupted copy makes a difference.
pub fn actions(deltas: &[StepDelta], local: Local) -> Vec<Action> {
    let mut now = local;
    deltas
        .iter()
        .enumerate()
        .map(|(index, delta)| {
            let action = action(delta, now, index == 0);
            match action {
                Action::Remove => now = Local::Absent,
                Action::Replace { size } | Action::Update { size, .. } => now = Local::Present(size),
                Action::Nothing => {}
            }
            action
        })
        .collect()
}

fn action(delta: &StepDelta, local: Local, first: bool) -> Action {
    let Some(size) = delta.size else {
        let gone = local == Local::Absent || (local == Local::Untested && delta.change == Change::None);
        return if gone { Action::Nothing } else { Action::Remove };
    };
    match &delta.change {
        _ if local == Local::Absent => Action::Replace { size },
        Change::Created => Action::Replace { size },
        Change::Modified(ranges) => Action::Update { size, ranges: ranges.clone() },
        // In later steps the size is what the step before made it.
        _ if first && matches!(local, Local::Present(local) if local != size) => {
            Action::Update { size, ranges: RangeSet::default() }
        }
        _ => Action::Nothing,
    }
}

/// State of the object in the object map of the local snapshot that a step filled.
pub fn state_after(delta: &StepDelta, action: &Action) -> ObjectState {
    match (delta.size, action) {
        (None, _) => ObjectState::NonExistent,
        (Some(_), Action::Nothing) if delta.change == Change::None => ObjectState::ExistsClean,
        (Some(_), _) => ObjectState::Exists,
    }
}

/// What every write of an object has in common.
#[derive(Debug, Clone, Copy)]
pub struct WriteFrame<'a> {
    /// Name of the local object.
    pub object: &'a str,
    /// Size of the image's objects in bytes.
    pub object_size: u64,
    /// Snapshots to preserve.
    pub context: &'a SnapContext,
    /// The newest local snapshot.
    pub newest_local: SnapId,
}

impl WriteFrame<'_> {
    /// The one write of a step. `reads` are the answers to [`Action::reads`], in order. `None` when there is nothing to
    /// do, or when an answer is not that of a read of its range.
    pub fn write(&self, action: &Action, reads: &[(Extent, ReadAnswer)]) -> Option<WriteOp> {
        let op = WriteOp::new(self.object).under(self.context.clone());
        match action {
            Action::Nothing => None,
            // Of an object that was just removed the guard knows nothing.
            Action::Remove => Some(self.guarded(op).with(WriteSub::Remove)),
            // Behind the data the guard holds as well, and the data lies at the beginning of the message: there it is
            // aligned to pages in the memory of the OSD, which otherwise copies it once more before it goes to the disk.
            Action::Replace { size } => Some(self.guarded(self.replace(op, *size, pieces(reads)?))),
            Action::Update { size, .. } => Some(self.guarded(update(op, *size, reads, pieces(reads)?))),
        }
    }

    fn guarded(&self, op: WriteOp) -> WriteOp {
        let newest_local = Encoder::new().u64(self.newest_local.0).u8(SNAPC_SEQ_GREATER).finish();
        op.exec("rbd", "assert_snapc_seq", newest_local)
    }

    fn replace(&self, op: WriteOp, size: u64, mut pieces: Vec<(u64, Bytes)>) -> WriteOp {
        let hint = WriteSub::AllocHint { object_size: self.object_size, write_size: self.object_size };
        let op = op.with(WriteSub::Create { exclusive: false }).with(hint);
        match pieces.as_slice() {
            [(0, data)] if data.len() as u64 == size => op.with(WriteSub::WriteFull(pieces.remove(0).1)),
            _ => with_size(op.with(WriteSub::Truncate(0)), size, pieces),
        }
    }
}

/// What is asked for and not written becomes zero: a run of zeros up to the end by cutting the object, which is what an OSD
/// would make of it. It must not be sent a zero without a byte, on which it aborts; a [`RangeSet`] has none.
fn update(op: WriteOp, size: u64, reads: &[(Extent, ReadAnswer)], pieces: Vec<(u64, Bytes)>) -> WriteOp {
    let asked: Vec<Extent> = reads.iter().map(|(extent, _)| *extent).collect();
    let written: Vec<Extent> =
        pieces.iter().map(|(offset, data)| Extent::new(*offset, data.len() as u64)).collect();
    let asked = RangeSet::from_extents(&asked).intersection(&RangeSet::below(size));
    let zeros = asked.without(&RangeSet::from_extents(&written));
    let cut = zeros.extents().last().filter(|last| last.end() == size).map_or(size, |last| last.offset);
    let op = op.with(WriteSub::Create { exclusive: false }).with(WriteSub::Truncate(cut));
    let inside = zeros.extents().filter(|zero| zero.offset < cut);
    let op = inside.fold(op, |op, zero| op.with(WriteSub::Zero(zero)));
    if cut < size { with_size(op, size, pieces) } else { with_writes(op, pieces) }
}

/// The writes, which leave an object that was cut with `size` bytes. To grow to its size it is given its last byte: a
/// truncate behind one to nothing aborts an OSD of an erasure-coded pool (`src/osd/ECTransaction.cc`, 16.2.15).
fn with_size(op: WriteOp, size: u64, pieces: Vec<(u64, Bytes)>) -> WriteOp {
    static ZERO: [u8; 1] = [0];
    let end = pieces.iter().map(|(offset, data)| offset + data.len() as u64).max();
    let op = with_writes(op, pieces);
    match size.checked_sub(1) {
        Some(offset) if end != Some(size) => {
            op.with(WriteSub::Write { offset, data: Bytes::from_static(&ZERO) })
        }
        _ => op,
    }
}

fn with_writes(op: WriteOp, pieces: Vec<(u64, Bytes)>) -> WriteOp {
    pieces.into_iter().fold(op, |op, (offset, data)| op.with(WriteSub::Write { offset, data }))
}

/// How to read a range of a remote object. Of a small one, an OSD reads the bytes with less work than it looks for
/// holes in it.
pub fn read_of(extent: Extent) -> ReadSub {
    if extent.length <= PLAIN_READ_BYTES_MAX { ReadSub::Read(extent) } else { ReadSub::SparseRead(extent) }
}

/// What the reads found that is not zero, as slices of what they answered.
fn pieces(reads: &[(Extent, ReadAnswer)]) -> Option<Vec<(u64, Bytes)>> {
    let mut pieces = Vec::new();
    let runs_max = RUNS_MAX / reads.len().max(1);
    for (asked, answer) in reads {
        let mut found = Vec::new();
        match answer {
            ReadAnswer::Sparse { extents, data } => sparse_pieces(&mut found, *asked, extents, data)?,
            // The range lies within the object: what a shorter answer leaves out would become zeros.
            ReadAnswer::Data(data) if data.len() as u64 == asked.length => {
                push_nonzero(&mut found, asked.offset, data);
            }
            _ => return None,
        };
        if found.len() > runs_max {
            found = joined(found, runs_max)?;
        }
        pieces.append(&mut found);
    }
    Some(pieces)
}

/// What a sparse read found; `None` when it is not what was asked for.
fn sparse_pieces(
    pieces: &mut Vec<(u64, Bytes)>,
    asked: Extent,
    extents: &[Extent],
    data: &Bytes,
) -> Option<()> {
    let mut at = 0usize;
    for extent in extents {
        let end = at.checked_add(usize::try_from(extent.length).ok()?)?;
        let inside = extent.offset >= asked.offset
            && extent.offset.checked_add(extent.length).is_some_and(|e| e <= asked.end());
        if end > data.len() || !inside {
            return None;
        }
        push_nonzero(pieces, extent.offset, &data.slice(at..end));
        at = end;
    }
    Some(())
}

/// The same data in no more than `runs_max` runs: the shortest holes between them are filled with zeros, which is what
/// they hold. `None` when the pieces are not ascending.
fn joined(pieces: Vec<(u64, Bytes)>, runs_max: usize) -> Option<Vec<(u64, Bytes)>> {
    let end = |(offset, data): &(u64, Bytes)| offset + data.len() as u64;
    if pieces.windows(2).any(|pair| end(&pair[0]) > pair[1].0) {
        return None;
    }
    let mut holes: Vec<u64> = pieces.windows(2).map(|pair| pair[1].0 - end(&pair[0])).collect();
    holes.sort_unstable();
    // All but the longest are filled.
    let hole_max = *holes.get(pieces.len().checked_sub(runs_max.max(1) + 1)?)?;
    let mut runs: Vec<(u64, BytesMut)> = Vec::new();
    for (offset, data) in pieces {
        match runs.last_mut() {
            Some((start, run)) if offset - (*start + run.len() as u64) <= hole_max => {
                run.resize((offset - *start) as usize, 0);
                run.extend_from_slice(&data);
            }
            _ => runs.push((offset, BytesMut::from(&data[..]))),
        }
    }
    Some(runs.into_iter().map(|(offset, run)| (offset, run.freeze())).collect())
}

/// Cuts runs of zeros out of `data`.
fn push_nonzero(pieces: &mut Vec<(u64, Bytes)>, offset: u64, data: &Bytes) {
    let length = data.len() as u64;
    let (mut at, mut run) = (0u64, None);
    while at < length {
        let next = ((offset + at) / ZERO_RUN_BYTES + 1) * ZERO_RUN_BYTES - offset;
        let end = next.min(length);
        if is_zero(&data[at as usize..end as usize]) {
            if let Some(start) = run.take() {
                pieces.push((offset + start, data.slice(start as usize..at as usize)));
            }
        } else {
            run.get_or_insert(at);
        }
        at = end;
    }
    if let Some(start) = run {
        pieces.push((offset + start, data.slice(start as usize..)));
    }
}

fn is_zero(data: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    data.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

#[cfg(test)]
mod tests;
