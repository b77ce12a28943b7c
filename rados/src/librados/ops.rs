//! Reads and writes of one object, and self-managed snapshots.
//!
//! An operation is built and submitted when its future is first polled and has its permit, without waiting in between;
//! so operations that one task starts in turn reach the OSD in that order.
//!
//! Data to write is lent to librados, not copied (see [`Writing`]); data that was read stays in the buffer in which the
//! network layer received it, and the [`Bytes`] of the answer own that buffer (see [`Received`]).
//!
//! A future that is dropped cancels its operation in librados: an answer that is still to come is ignored, and the
//! operation is not sent again after a failure of its OSD. The permit is held until the callback. A write with a guard is
//! not cancelled once it was sent: what librados then answers would say nothing of what the OSD does.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::slice;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::answers::{NO_RESULT, check_answer, check_result};
use super::completion::{self, Outcome, Payload, Receiver, State};
use super::connection::{Connection, Io, check};
use super::ffi::{self, RsCompletion, RsExtent, RsRead, RsWrite, Slice};
use crate::backend::Location;
use crate::describe::{self, in_location};
use crate::encoding::Decoder;
use crate::error::{Error, Result};
use crate::gate::GateGuard;
use crate::op::{ChecksumKind, Clone as ObjectClone, CloneSet, OmapPage};
use crate::op::{ReadAnswer, ReadOp, ReadReply, ReadSub, Watcher, WriteOp, WriteSub};
use crate::types::{Extent, SnapId};

/// Data up to this length is copied out of the network layer's buffer, which may be much larger than the data.
const COPY_BYTES_MAX: usize = 4096;

/// Reads one object.
pub(super) async fn read(connection: Arc<Connection>, location: Location, op: ReadOp) -> Result<ReadReply> {
    let fail = |errno, sub| Error::new(errno, describe::read(&op, sub, &location));
    if op.subs.is_empty() {
        return Err(fail(libc::EINVAL, None));
    }
    let io = connection.io(&location).await.map_err(|e| e.context(describe::read(&op, None, &location)))?;
    let permit = connection.permit(op.bulk, op.payload_bytes()).await;
    let (state, receiver) = State::new(Reading::new(&op), Some(permit.clone()), io.clone());
    let running = submit_read(&op, state, receiver, io).map_err(|errno| fail(errno, None))?;
    let (outcome, reading) = permit.while_waiting(running.finish()).await?;
    if outcome.rval < 0 {
        return Err(fail(outcome.rval, reading.failed_sub(op.subs.len(), outcome.rval)));
    }
    let answers = op.subs.iter().enumerate().map(|(i, sub)| {
        let answer = reading.answer(i, sub);
        answer.map_err(|e| e.context(describe::read(&op, Some(i), &location)))
    });
    Ok(ReadReply { answers: answers.collect::<Result<_>>()?, version: outcome.version })
}

/// Changes one object; answers with its new version. `guard` is kept until it can take effect no more.
pub(super) async fn write(
    connection: Arc<Connection>,
    location: Location,
    op: WriteOp,
    guard: Option<GateGuard>,
) -> Result<u64> {
    let fail = |errno| Error::new(errno, describe::write(&op, &location));
    if op.subs.is_empty() {
        return Err(fail(libc::EINVAL));
    }
    let io = connection.io(&location).await.map_err(|e| e.context(describe::write(&op, &location)))?;
    let permit = connection.permit(op.bulk, op.payload_bytes()).await;
    let (mut state, receiver) = State::new(Writing::new(&op), Some(permit.clone()), io.clone());
    let must_be_answered = guard.is_some();
    guard.into_iter().for_each(|guard| state.guarded(guard));
    let mut running = submit_write(&op, state, receiver, io).map_err(fail)?;
    running.must_be_answered = must_be_answered;
    let (outcome, _) = permit.while_waiting(running.finish()).await?;
    check(outcome.rval, || describe::write(&op, &location))?;
    Ok(outcome.version)
}

fn submit_read(
    op: &ReadOp,
    mut state: Box<State<Reading>>,
    receiver: Receiver<Reading>,
    io: Io,
) -> std::result::Result<Running<Reading>, i32> {
    let snap = if op.subs.contains(&ReadSub::ListSnaps) { SnapId::DIR } else { op.snap };
    let read = state.payload().0;
    submit_state(state, receiver, io, |io, arg, completion| {
        let object = Slice::of(op.object.as_bytes());
        // SAFETY: the operation is owned by the state behind `arg`, which lives until the callback; the context is
        // live; the name is copied during the call.
        unsafe {
            ffi::rs_read_submit(read, io.raw(), object, snap.0, State::<Reading>::completed, arg, completion)
        }
    })
}

fn submit_write(
    op: &WriteOp,
    mut state: Box<State<Writing>>,
    receiver: Receiver<Writing>,
    io: Io,
) -> std::result::Result<Running<Writing>, i32> {
    let snaps: Vec<u64> = op.snap_context.snaps.iter().map(|snap| snap.0).collect();
    let write = state.payload().write;
    submit_state(state, receiver, io, |io, arg, completion| {
        let object = Slice::of(op.object.as_bytes());
        let seq = op.snap_context.seq;
        let callback = State::<Writing>::completed;
        // SAFETY: the operation and the data it lends are owned by the state behind `arg`, which lives until the
        // callback; the context is live; name and snapshots are copied during the call.
        unsafe {
            let (snaps, count) = (snaps.as_ptr(), snaps.len());
            let force = op.despite_full.into();
            ffi::rs_write_submit(write, io.raw(), object, seq, snaps, count, force, callback, arg, completion)
        }
    })
}

/// Hands a state to librados with `submit`. When that fails, the state is freed and the error number is the answer.
fn submit_state<P: Payload>(
    state: Box<State<P>>,
    receiver: Receiver<P>,
    io: Io,
    submit: impl FnOnce(&Io, *mut c_void, *mut *mut RsCompletion) -> i32,
) -> std::result::Result<Running<P>, i32> {
    let arg = Box::into_raw(state);
    let mut completion = ptr::null_mut();
    let submitted = submit(&io, arg.cast(), &mut completion);
    if submitted < 0 {
        // SAFETY: nothing was submitted: the callback will not come, and the state is still ours.
        drop(unsafe { Box::from_raw(arg) });
        return Err(submitted);
    }
    let completion = Completion { completion, io };
    Ok(Running { receiver, completion, finished: false, must_be_answered: false })
}

/// An operation in flight, cancelled when dropped, unless its answer counts all the same.
struct Running<P> {
    receiver: Receiver<P>,
    completion: Completion,
    finished: bool,
    must_be_answered: bool,
}

impl<P> Running<P> {
    async fn finish(mut self) -> Result<(Outcome, P)> {
        let answer = completion::answer(&mut self.receiver).await;
        self.finished = true;
        answer
    }
}

impl<P> Drop for Running<P> {
    fn drop(&mut self) {
        if !self.finished && !self.must_be_answered {
            // SAFETY: both are live; cancelling what is already complete does nothing.
            unsafe { ffi::rs_completion_cancel(self.completion.io.raw(), self.completion.completion) };
        }
    }
}

/// Our reference to a completion of the shim.
struct Completion {
    completion: *mut RsCompletion,
    io: Io,
}

// SAFETY: completions may be used from any thread.
unsafe impl Send for Completion {}
// SAFETY: as above.
unsafe impl Sync for Completion {}

impl Drop for Completion {
    fn drop(&mut self) {
        // SAFETY: the reference is ours and given up once.
        unsafe { ffi::rs_completion_release(self.completion) };
    }
}

/// A read operation of the shim, with its results after the callback.
struct Reading(*mut RsRead);

// SAFETY: the operation is used by one thread at a time: the submitting one, then librados, then the callback, then
// whoever receives it.
unsafe impl Send for Reading {}
// SAFETY: through a shared reference only results are taken, by the one task that owns it.
unsafe impl Sync for Reading {}

impl Payload for Reading {}

impl Drop for Reading {
    fn drop(&mut self) {
        // SAFETY: it is dropped only while nothing is in flight, once.
        unsafe { ffi::rs_read_free(self.0) };
    }
}

impl Reading {
    fn new(op: &ReadOp) -> Reading {
        // SAFETY: allocates; the count is that of the sub-operations added below.
        let read = unsafe { ffi::rs_read_new(op.subs.len()) };
        for sub in &op.subs {
            add_read_sub(read, sub);
        }
        Reading(read)
    }

    /// Index of the sub-operation that failed, when the OSD told.
    fn failed_sub(&self, subs: usize, rval: i32) -> Option<usize> {
        let failed = (0..subs).find(|i| match self.result(*i) {
            NO_RESULT => false,
            sub_rval => sub_rval < 0 && sub_rval == rval,
        });
        failed.or((subs == 1).then_some(0))
    }

    /// The result of sub-operation `index`: a negative error number, or [`NO_RESULT`], when it has no answer.
    fn result(&self, index: usize) -> i32 {
        // SAFETY: the operation is complete; the index is below the number of sub-operations.
        unsafe { ffi::rs_read_rval(self.0, index) }
    }

    /// The answer to sub-operation `index` of an operation that succeeded.
    fn answer(&self, index: usize, sub: &ReadSub) -> Result<ReadAnswer> {
        check_result(sub, self.result(index))?;
        let answer = self.take(index, sub)?;
        check_answer(sub, &answer)?;
        Ok(answer)
    }

    /// What librados stored for sub-operation `index`.
    fn take(&self, index: usize, sub: &ReadSub) -> Result<ReadAnswer> {
        Ok(match sub {
            ReadSub::Read(_) | ReadSub::GetXattr(_) | ReadSub::Exec { .. } => {
                ReadAnswer::Data(self.data(index))
            }
            ReadSub::SparseRead(_) => {
                ReadAnswer::Sparse { extents: self.extents(index), data: self.data(index) }
            }
            ReadSub::Stat => {
                let (mut size, mut mtime_seconds) = (0, 0);
                // SAFETY: complete, index in range, valid places for the answer.
                unsafe { ffi::rs_read_get_stat(self.0, index, &mut size, &mut mtime_seconds) };
                ReadAnswer::Stat { size, mtime_seconds }
            }
            ReadSub::Checksum { kind, .. } => {
                ReadAnswer::Checksums(decode_checksums(*kind, &self.data(index))?)
            }
            ReadSub::ListSnaps => ReadAnswer::Snaps(self.clones(index)),
            ReadSub::ListWatchers => ReadAnswer::Watchers(self.watchers(index)),
            ReadSub::OmapGet { .. } | ReadSub::OmapGetByKeys(_) => ReadAnswer::Omap(self.omap(index)),
            ReadSub::AssertExists | ReadSub::AssertVersion(_) => ReadAnswer::Done,
        })
    }

    fn data(&self, index: usize) -> Bytes {
        let (mut data, mut length) = (ptr::null(), 0);
        // SAFETY: complete, index in range, valid places for the answer.
        let buffer = unsafe { ffi::rs_read_take(self.0, index, &mut data, &mut length) };
        if buffer.is_null() {
            return Bytes::new();
        }
        let received = Received { buffer, data, length };
        if length <= COPY_BYTES_MAX {
            Bytes::copy_from_slice(received.as_ref())
        } else {
            Bytes::from_owner(received)
        }
    }

    fn extents(&self, index: usize) -> Vec<Extent> {
        // SAFETY: complete, index in range; the first call stores nothing, the second at most as much as there is room.
        unsafe {
            let count = ffi::rs_read_extents(self.0, index, ptr::null_mut(), 0);
            let mut extents = vec![RsExtent { offset: 0, length: 0 }; count];
            ffi::rs_read_extents(self.0, index, extents.as_mut_ptr(), count);
            extents.into_iter().map(|e| Extent::new(e.offset, e.length)).collect()
        }
    }

    fn omap(&self, index: usize) -> OmapPage {
        extern "C" fn visit(arg: *mut c_void, key: Slice, value: Slice) {
            // SAFETY: `arg` is the list below, used by nobody else meanwhile.
            let entries = unsafe { &mut *arg.cast::<Vec<(String, Bytes)>>() };
            let key = String::from_utf8_lossy(bytes_of(&key)).into_owned();
            entries.push((key, Bytes::copy_from_slice(bytes_of(&value))));
        }
        let mut entries: Vec<(String, Bytes)> = Vec::new();
        // SAFETY: complete, index in range; the visitor gets the list that it expects.
        let more =
            unsafe { ffi::rs_read_visit_omap(self.0, index, visit, ptr::addr_of_mut!(entries).cast()) };
        OmapPage { entries, more: more != 0 }
    }

    fn watchers(&self, index: usize) -> Vec<Watcher> {
        extern "C" fn visit(
            arg: *mut c_void,
            address: Slice,
            client: i64,
            cookie: u64,
            timeout_seconds: u32,
        ) {
            // SAFETY: `arg` is the list below, used by nobody else meanwhile.
            let watchers = unsafe { &mut *arg.cast::<Vec<Watcher>>() };
            let address = String::from_utf8_lossy(bytes_of(&address)).into_owned();
            watchers.push(Watcher { address, client: client as u64, cookie, timeout_seconds });
        }
        let mut watchers: Vec<Watcher> = Vec::new();
        // SAFETY: complete, index in range; the visitor gets the list that it expects.
        unsafe { ffi::rs_read_visit_watchers(self.0, index, visit, ptr::addr_of_mut!(watchers).cast()) };
        watchers
    }

    fn clones(&self, index: usize) -> CloneSet {
        extern "C" fn visit(
            arg: *mut c_void,
            id: u64,
            size: u64,
            snaps: *const u64,
            snap_count: usize,
            overlap: *const RsExtent,
            overlap_count: usize,
        ) {
            // SAFETY: `arg` is the list below, used by nobody else meanwhile.
            let clones = unsafe { &mut *arg.cast::<Vec<ObjectClone>>() };
            let snaps = array(snaps, snap_count).iter().map(|snap| SnapId(*snap));
            let overlap = array(overlap, overlap_count).iter().map(|e| Extent::new(e.offset, e.length));
            clones.push(ObjectClone {
                id: SnapId(id),
                snaps: snaps.collect(),
                overlap: overlap.collect(),
                size,
            });
        }
        let mut clones: Vec<ObjectClone> = Vec::new();
        // SAFETY: complete, index in range; the visitor gets the list that it expects.
        let seq =
            unsafe { ffi::rs_read_visit_clones(self.0, index, visit, ptr::addr_of_mut!(clones).cast()) };
        CloneSet { seq, clones }
    }
}

fn bytes_of(slice: &Slice) -> &[u8] {
    array(slice.data.cast::<u8>(), slice.length)
}

/// An array that the shim lends for the time of a visit.
fn array<'a, T>(data: *const T, count: usize) -> &'a [T] {
    if count == 0 {
        return &[];
    }
    // SAFETY: called only in visitors, where the shim guarantees `count` values at `data` until they return.
    unsafe { slice::from_raw_parts(data, count) }
}

/// Data in a buffer of librados.
struct Received {
    buffer: *mut ffi::RsBuffer,
    data: *const c_char,
    length: usize,
}

// SAFETY: the buffer is never written to again, and its reference count is atomic.
unsafe impl Send for Received {}
// SAFETY: as above.
unsafe impl Sync for Received {}

impl AsRef<[u8]> for Received {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the shim gave `length` contiguous bytes at `data`, live as long as the buffer.
        unsafe { slice::from_raw_parts(self.data.cast(), self.length) }
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        // SAFETY: the buffer is ours and freed once.
        unsafe { ffi::rs_buffer_free(self.buffer) };
    }
}

fn add_read_sub(read: *mut RsRead, sub: &ReadSub) {
    let text = |s: &str| Slice::of(s.as_bytes());
    // SAFETY: the operation is ours and not submitted; all slices are copied during the calls.
    unsafe {
        match sub {
            ReadSub::Read(extent) => ffi::rs_read_read(read, extent.offset, extent.length),
            ReadSub::SparseRead(extent) => ffi::rs_read_sparse(read, extent.offset, extent.length),
            ReadSub::Stat => ffi::rs_read_stat(read),
            ReadSub::Checksum { kind, extent, chunk } => {
                let (kind, seed): (_, &[u8]) = match kind {
                    ChecksumKind::XxHash32 => (0, &[0xff; 4]),
                    ChecksumKind::XxHash64 => (1, &[0xff; 8]),
                    ChecksumKind::Crc32c => (2, &[0xff; 4]),
                };
                ffi::rs_read_checksum(read, kind, Slice::of(seed), extent.offset, extent.length, *chunk);
            }
            ReadSub::ListSnaps => ffi::rs_read_list_snaps(read),
            ReadSub::ListWatchers => ffi::rs_read_list_watchers(read),
            ReadSub::GetXattr(name) => ffi::rs_read_getxattr(read, text(name)),
            ReadSub::OmapGet { after, prefix, max } => {
                ffi::rs_read_omap(read, text(after), text(prefix), *max)
            }
            ReadSub::OmapGetByKeys(keys) => {
                let keys: Vec<Slice> = keys.iter().map(|key| text(key)).collect();
                ffi::rs_read_omap_by_keys(read, keys.as_ptr(), keys.len());
            }
            ReadSub::Exec { class, method, input } => {
                ffi::rs_read_exec(read, text(class), text(method), Slice::of(input));
            }
            ReadSub::AssertExists => ffi::rs_read_assert_exists(read),
            ReadSub::AssertVersion(version) => ffi::rs_read_assert_version(read, *version),
        }
    }
}

/// Checksums: a u32 count, then that many little-endian values.
fn decode_checksums(kind: ChecksumKind, bytes: &[u8]) -> Result<Vec<u64>> {
    let mut d = Decoder::new(bytes, "checksums");
    let sums = match kind {
        ChecksumKind::XxHash32 | ChecksumKind::Crc32c => d.seq(4, |d| d.u32().map(u64::from)),
        ChecksumKind::XxHash64 => d.seq(8, |d| d.u64()),
    };
    Ok(sums?)
}

/// A write operation of the shim, and the data that it lends to librados.
///
/// The shim holds a reference of its own to each lent buffer. Librados has let go of all of them when those are the only
/// ones left, which is nearly always so at the callback; if not (a message to a failed OSD is still being dropped, say),
/// the value is parked until it is so. Thus lent memory is never freed early, at the price of a look at a counter.
struct Writing {
    write: *mut RsWrite,
    lent: Vec<Bytes>,
}

// SAFETY: the operation is used by one thread at a time, as `Reading`; the counters looked at are atomic.
unsafe impl Send for Writing {}
// SAFETY: nothing can be done through a shared reference.
unsafe impl Sync for Writing {}

impl Payload for Writing {}

/// Completed writes of which librados still holds lent data.
static PARKED: Mutex<Vec<Parked>> = Mutex::new(Vec::new());

/// The parts of a [`Writing`] that wait to be freed.
struct Parked {
    write: *mut RsWrite,
    _lent: Vec<Bytes>,
}

// SAFETY: as `Writing`.
unsafe impl Send for Parked {}

impl Parked {
    fn is_returned(&self) -> bool {
        // SAFETY: the operation is live until `free`.
        unsafe { ffi::rs_write_returned(self.write) != 0 }
    }

    /// Frees the operation; to be called once, when the data is returned.
    fn free(self) {
        // SAFETY: nothing is in flight, and librados holds none of the lent data.
        unsafe { ffi::rs_write_free(self.write) };
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let done = Parked { write: self.write, _lent: std::mem::take(&mut self.lent) };
        if done._lent.is_empty() || done.is_returned() {
            done.free();
            // Rarely anything is parked, and somebody else may be looking already.
            let Ok(mut parked) = PARKED.try_lock() else { return };
            let returned: Vec<Parked> = parked.extract_if(.., |parked| parked.is_returned()).collect();
            drop(parked);
            returned.into_iter().for_each(Parked::free);
        } else {
            PARKED.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        }
    }
}

impl Writing {
    fn new(op: &WriteOp) -> Writing {
        // SAFETY: allocates.
        let write = unsafe { ffi::rs_write_new() };
        let mut writing = Writing { write, lent: Vec::new() };
        for sub in &op.subs {
            writing.add(sub);
        }
        writing
    }

    /// A slice of data that lives as long as this value does, parked or not.
    fn lend(&mut self, data: &Bytes) -> Slice {
        self.lent.push(data.clone());
        Slice::of(data)
    }

    fn add(&mut self, sub: &WriteSub) {
        let write = self.write;
        let text = |s: &str| Slice::of(s.as_bytes());
        // SAFETY: the operation is ours and not submitted. Data is lent and lives in `self.lent` at an address that does
        // not change; all other slices are copied during the calls.
        unsafe {
            match sub {
                WriteSub::Create { exclusive } => ffi::rs_write_create(write, (*exclusive).into()),
                WriteSub::Write { offset, data } => ffi::rs_write_write(write, *offset, self.lend(data)),
                WriteSub::WriteFull(data) => ffi::rs_write_write_full(write, self.lend(data)),
                WriteSub::Append(data) => ffi::rs_write_append(write, self.lend(data)),
                WriteSub::Zero(extent) => ffi::rs_write_zero(write, extent.offset, extent.length),
                WriteSub::Truncate(size) => ffi::rs_write_truncate(write, *size),
                WriteSub::Remove => ffi::rs_write_remove(write),
                WriteSub::Rollback(snap) => ffi::rs_write_rollback(write, snap.0),
                WriteSub::AllocHint { object_size, write_size } => {
                    ffi::rs_write_alloc_hint(write, *object_size, *write_size);
                }
                WriteSub::SetXattr(name, value) => {
                    ffi::rs_write_setxattr(write, text(name), Slice::of(value))
                }
                WriteSub::RemoveXattr(name) => ffi::rs_write_rmxattr(write, text(name)),
                WriteSub::CompareXattr(name, value) => {
                    ffi::rs_write_cmpxattr(write, text(name), Slice::of(value));
                }
                WriteSub::OmapSet(entries) => {
                    let keys: Vec<Slice> = entries.iter().map(|(key, _)| text(key)).collect();
                    let values: Vec<Slice> = entries.iter().map(|(_, value)| Slice::of(value)).collect();
                    ffi::rs_write_omap_set(write, keys.as_ptr(), values.as_ptr(), keys.len());
                }
                WriteSub::OmapRemove(keys) => {
                    let keys: Vec<Slice> = keys.iter().map(|key| text(key)).collect();
                    ffi::rs_write_omap_remove(write, keys.as_ptr(), keys.len());
                }
                WriteSub::OmapClear => ffi::rs_write_omap_clear(write),
                WriteSub::Exec { class, method, input } => {
                    ffi::rs_write_exec(write, text(class), text(method), Slice::of(input));
                }
                WriteSub::AssertExists => ffi::rs_write_assert_exists(write),
                WriteSub::AssertVersion(version) => ffi::rs_write_assert_version(write, *version),
            }
        }
    }
}

/// Allocates a self-managed snapshot id.
pub(super) async fn snap_create(connection: Arc<Connection>, location: Location) -> Result<SnapId> {
    let what = || format!("cannot allocate a snapshot id {}", in_location(&location));
    let io = connection.io(&location).await.map_err(|e| e.context(what()))?;
    let receiver = completion::submit(0u64, io, |snap, io, completion| {
        // SAFETY: the context is live as long as the state; the place for the id is in the state.
        unsafe { ffi::rados_aio_ioctx_selfmanaged_snap_create(io, snap, completion) }
    })?;
    let (outcome, snap) = completion::answer(receiver).await?;
    check(outcome.rval, what)?;
    Ok(SnapId(snap))
}

/// Gives up a self-managed snapshot id.
pub(super) async fn snap_remove(connection: Arc<Connection>, location: Location, snap: SnapId) -> Result<()> {
    let what = || format!("cannot give up snapshot id {snap} {}", in_location(&location));
    let io = connection.io(&location).await.map_err(|e| e.context(what()))?;
    let receiver = completion::submit((), io, |(), io, completion| {
        // SAFETY: the context is live as long as the state.
        unsafe { ffi::rados_aio_ioctx_selfmanaged_snap_remove(io, snap.0, completion) }
    })?;
    let (outcome, ()) = completion::answer(receiver).await?;
    check(outcome.rval, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An operation that was never answered, as librados leaves the parts of one that it could not decode.
    #[test]
    fn a_part_without_an_answer_is_not_taken_for_an_empty_one() {
        let subs = [
            ReadSub::SparseRead(Extent::new(0, 4096)),
            ReadSub::ListSnaps,
            ReadSub::ListWatchers,
            ReadSub::Stat,
            ReadSub::Read(Extent::new(0, 4096)),
            ReadSub::OmapGetByKeys(vec!["key".into()]),
        ];
        for sub in subs {
            let op = ReadOp::new("object").with(sub.clone());
            let answer = Reading::new(&op).answer(0, &sub);
            assert!(answer.as_ref().is_err_and(|error| error.is(libc::EBADMSG)), "{sub:?}: {answer:?}");
        }
    }
}
