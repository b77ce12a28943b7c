//! Copies one object through all steps of a round.
//!
//! Per object: what happened to it (`list_snaps`, and a look at the local object where that matters), then all reads at
//! once, each at its step's remote snapshot, then the writes one after another, one compound write per step. The first
//! copy of an image without snapshots needs no `list_snaps`: one read brings size and bytes.
//!
//! The head of the remote object is never read: a primary image goes on being written to.
//!
//! Reference: `src/librbd/deep_copy/ObjectCopyRequest.cc`.

use std::future::Future;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{try_join, try_join_all};
use rados::error::ResultExt;
use rados::{CloneSet, Extent, IoCtx, ReadAnswer, ReadOp, ReadSub, SnapContext, SnapId};
use rbd::layout::data_object;
use rbd::object_map::ObjectState;
use rbd::read::{Reader, Run};
use rbd::{Layout, ObjectNumber};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::budget::{Part, Share};
use crate::checksum::{Compared, Comparison};
use crate::diff::Reason;
use crate::object_plan::{Action, Local, WriteFrame, actions, read_of, state_after};
use crate::snapset::{Change, DisorderedClones, StepDelta, deltas, size_at};
use crate::steps::{CopyStep, CopySteps};

/// Most bytes that the steps of one object have read at the same time.
const BATCH_BYTES_MAX: u64 = 32 << 20;

/// The data objects of one side.
#[derive(Debug, Clone)]
pub struct Side {
    /// The pool and namespace in which they lie.
    pub data: IoCtx,
    /// What their names start with.
    pub object_prefix: String,
}

impl Side {
    fn object(&self, object: ObjectNumber) -> String {
        data_object(&self.object_prefix, object)
    }
}

/// How the first step finds what to copy. Later ones always replay what the remote object's clones tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The local head equals the remote start: replay the difference.
    Replay,
    /// The local head may hold anything: compare checksums, and copy what differs.
    Repair,
}

/// Why an object could not be copied.
#[derive(Debug, Clone, Error)]
pub enum CopyError {
    /// The remote cluster failed.
    #[error("cannot copy from the remote image: {0}")]
    Remote(#[source] rados::Error),
    /// The local cluster failed.
    #[error("cannot copy to the local image: {0}")]
    Local(#[source] rados::Error),
    /// A remote snapshot was removed while it was read.
    #[error(
        "remote object '{object}' is gone at snapshot {snap}, which was removed meanwhile: plan the round anew"
    )]
    SnapshotGone {
        /// The remote object.
        object: String,
        /// The snapshot.
        snap: SnapId,
    },
    /// The local object has been written to under a context that holds the newest local snapshot.
    #[error(
        "local object '{object}' was written to by another client after snapshot {snap} was made: that snapshot can \
         no longer be filled; make a new one"
    )]
    Overtaken {
        /// The local object.
        object: String,
        /// The newest local snapshot.
        snap: SnapId,
    },
    /// The remote cluster's list of clones makes no sense.
    #[error("cannot copy remote object '{object}': {source}")]
    Clones {
        /// The remote object.
        object: String,
        /// What is wrong.
        source: DisorderedClones,
    },
    /// The remote cluster's answer makes no sense.
    #[error("cannot use what the remote cluster answered about object '{0}'")]
    Answer(String),
    /// Both objects are absent, and their parents, which show there, are not the same.
    #[error(
        "the clone and its copy show different data of their parents there: bring the parent in line with 'rbd mirror image \
         resync' first; if that does not help flatten the clone or remove its copy"
    )]
    ParentsDiffer,
    /// The copy was told to stop.
    #[error("the copy was stopped")]
    Cancelled,
}

impl CopyError {
    /// The cluster's error behind it, if there is one: its class tells how to go on.
    pub fn rados(&self) -> Option<&rados::Error> {
        match self {
            CopyError::Remote(error) | CopyError::Local(error) => Some(error),
            _ => None,
        }
    }
}

/// What copying one object did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// Its state in the object map of each step's local snapshot.
    pub states: Vec<ObjectState>,
    /// Bytes that were read remotely.
    pub read_bytes: u64,
    /// Bytes that were written locally.
    pub written_bytes: u64,
}

/// What all objects of an image's round have in common.
#[derive(Debug, Clone)]
pub struct ObjectCopier {
    /// The primary image.
    pub remote: Side,
    /// The copy.
    pub local: Side,
    /// The round.
    pub steps: Arc<CopySteps>,
    /// Size of both images' objects in bytes.
    pub object_size: u64,
    /// How the first step finds what to copy.
    pub method: Method,
    /// How objects are compared when they are.
    pub comparison: Comparison,
    /// The round may have been begun before, and interrupted anywhere.
    pub resumed: bool,
    /// The local image has (or had at one of the steps) a parent: absent objects are not zeros.
    pub has_parent: bool,
    /// A local object that is absent first gets existence in all older local snapshots, with the bytes that it has at
    /// the first of these remote snapshots at which it exists; they are what older local ones are copies of. For clones with
    /// the deep-flatten feature: their snapshots lose the parent together with the head, as the primary's do, whose objects
    /// were copied up in the same way. One of several is not enough: when it is removed it shows objects as absent.
    pub copy_up_at: Vec<SnapId>,
    /// In a repair, when the parents of the two images may show different data: both images at the end of the first step,
    /// to be compared where neither has an object.
    pub parents: Option<Parents>,
    /// The image's part of the bound on bytes in memory.
    pub budget: Part,
    /// Stops copies between two requests.
    pub cancel: CancellationToken,
}

/// Two images whose parents may differ.
#[derive(Debug, Clone)]
pub struct Parents {
    /// The primary image at the end of the first step.
    pub remote: Reader,
    /// The head of the copy.
    pub local: Reader,
    /// How both are cut.
    pub layout: Layout,
}

/// An object's actions, and what they follow from.
struct ObjectPlan {
    deltas: Vec<StepDelta>,
    actions: Vec<Action>,
    /// Answers to the reads of the first action, when they came with the plan.
    first_reads: Option<Vec<Read>>,
}

/// A range that was asked for, and what a read of it found.
type Read = (Extent, ReadAnswer);

impl ObjectCopier {
    /// Copies one object. `known` tells what the caller knows of the local one; `ready` is awaited before the first
    /// write, and no write is made when it fails. With [`Reason::Whole`] all of the object is copied if it exists at the end of
    /// a single step; with [`Reason::Claimed`] it is compared by checksums if its clones tell of no change.
    ///
    /// Dropping the future may leave a write in flight; cancel through the token instead: then it ends as soon as its
    /// current requests are answered.
    pub async fn copy(
        &self,
        object: ObjectNumber,
        known: Local,
        reason: Reason,
        ready: impl Future<Output = Result<(), rados::Error>>,
    ) -> Result<Copied, CopyError> {
        let names = (self.remote.object(object), self.local.object(object));
        let ready = ready.shared();
        let known = match self.copy_up_at.is_empty() {
            true => known,
            false => self.copy_up(&names, known, ready.clone()).await?,
        };
        let alone = self.method == Method::Replay && self.steps.steps().len() == 1;
        let direct = alone && (reason == Reason::Whole || self.steps.start().is_none());
        // How much a direct read brings is not known before.
        let mut share = if direct { Some(self.share(self.object_size).await?) } else { None };
        let plan = match &mut share {
            Some(share) => share.while_reading(self.read_whole(&names, known)).await?,
            None => self.plan(object, &names, known, reason).await?,
        };
        let copied = self.perform(&names, plan, ready, share.is_some()).await;
        drop(share);
        copied
    }

    /// Gives an absent object existence in all local snapshots: written under a context that preserves none of them, it
    /// shows in each. What they showed until now came from the parent, and is what the remote object holds at those that
    /// they are copies of.
    async fn copy_up(
        &self,
        (remote, local): &(String, String),
        known: Local,
        ready: impl Future<Output = Result<(), rados::Error>>,
    ) -> Result<Local, CopyError> {
        let known = match known {
            Local::Untested => {
                let size = self.local.data.stat(local).await.optional().map_err(CopyError::Local)?;
                size.map_or(Local::Absent, Local::Present)
            }
            known => known,
        };
        // Where it once existed it shows no parent's bytes: what older snapshots show is what it held then, or nothing.
        if known != Local::Absent || self.once_existed(local).await? {
            return Ok(known);
        }
        let mut share = self.share(self.object_size).await?;
        let read = share.while_reading(self.read_at_first(remote, &self.copy_up_at)).await?;
        let Some((size, reads)) = read else { return Ok(known) };
        ready.await.map_err(CopyError::Local)?;
        self.check_cancelled()?;
        let (context, newest_local) = (SnapContext::default(), self.steps.newest_local());
        let frame =
            WriteFrame { object: local, object_size: self.object_size, context: &context, newest_local };
        let op = frame.write(&Action::Replace { size }, &reads);
        let op = op.ok_or_else(|| CopyError::Answer(remote.clone()))?;
        match self.local.data.write(op).await {
            Ok(_) => Ok(Local::Present(size)),
            Err(error) if error.is(libc::ERANGE) => {
                Err(CopyError::Overtaken { object: local.clone(), snap: newest_local })
            }
            Err(error) => Err(CopyError::Local(error)),
        }
    }

    /// True when a local object that is absent now is there in an older snapshot, or was.
    async fn once_existed(&self, local: &str) -> Result<bool, CopyError> {
        let set = self.local.data.list_snaps(local).await.optional().map_err(CopyError::Local)?;
        Ok(set.is_some_and(|set| set.seq > 0 || !set.clones.is_empty()))
    }

    /// All of a remote object at the first of `snaps` at which it exists, and its size; `None` when there is none.
    async fn read_at_first(
        &self,
        remote: &str,
        snaps: &[SnapId],
    ) -> Result<Option<(u64, Vec<Read>)>, CopyError> {
        let Some((first, others)) = snaps.split_first() else { return Ok(None) };
        let read = self.read_all(remote, *first).await?;
        if read.is_some() || others.is_empty() {
            return Ok(read);
        }
        let Some(set) = self.list(remote).await? else { return Ok(None) };
        for snap in others.iter().filter(|snap| size_at(&set, **snap, self.object_size).is_some()) {
            let read = self.read_all(remote, *snap).await?;
            if read.is_some() {
                return Ok(read);
            }
        }
        Ok(None)
    }

    /// All of a remote object at a snapshot, and its size; `None` when it does not exist there.
    async fn read_all(&self, remote: &str, snap: SnapId) -> Result<Option<(u64, Vec<Read>)>, CopyError> {
        let range = Extent::new(0, self.object_size);
        let op = ReadOp::new(remote).at(snap).with(ReadSub::Stat).with(ReadSub::SparseRead(range));
        let reply = self.unless_cancelled(self.remote.data.read(op)).await?;
        let Some(reply) = reply.optional().map_err(CopyError::Remote)? else { return Ok(None) };
        let mut answers = reply.answers.into_iter();
        let (Some(ReadAnswer::Stat { size, .. }), Some(data)) = (answers.next(), answers.next()) else {
            return Err(CopyError::Answer(remote.to_string()));
        };
        Ok(Some((size.min(self.object_size), vec![(range, data)])))
    }

    async fn share(&self, bytes: u64) -> Result<Share, CopyError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(CopyError::Cancelled),
            share = self.budget.acquire(bytes) => Ok(share),
        }
    }

    fn check_cancelled(&self) -> Result<(), CopyError> {
        if self.cancel.is_cancelled() { Err(CopyError::Cancelled) } else { Ok(()) }
    }

    /// Reads all of the object at the only step's end, and thereby learns whether it exists.
    async fn read_whole(
        &self,
        (remote, local): &(String, String),
        known: Local,
    ) -> Result<ObjectPlan, CopyError> {
        let read = self.read_all(remote, self.steps.steps()[0].remote);
        let (read, known) = try_join(read, self.look(local, known)).await?;
        let Some((size, reads)) = read else {
            let deltas = vec![StepDelta { size: None, change: Change::None }];
            return Ok(ObjectPlan { actions: actions(&deltas, known), deltas, first_reads: None });
        };
        let deltas = vec![StepDelta { size: Some(size), change: Change::Created }];
        Ok(ObjectPlan { actions: actions(&deltas, known), deltas, first_reads: Some(reads) })
    }

    async fn plan(
        &self,
        object: ObjectNumber,
        names: &(String, String),
        known: Local,
        reason: Reason,
    ) -> Result<ObjectPlan, CopyError> {
        let (remote, local) = names;
        let ends = self.steps.remote_ends();
        if self.method == Method::Repair {
            return self.plan_repair(object, names, &ends).await;
        }
        let (set, known) = try_join(self.list(remote), self.look(local, known)).await?;
        let deltas = self.deltas(remote, set.as_ref(), self.steps.start(), &ends)?;
        let unchanged = deltas.iter().all(|delta| delta.change == Change::None && delta.size.is_some());
        if reason == Reason::Claimed && unchanged {
            return self.plan_repair(object, names, &ends).await;
        }
        Ok(ObjectPlan { actions: actions(&deltas, known), deltas, first_reads: None })
    }

    /// Fails when the two images show different data where neither has this object.
    async fn compare_parents(&self, object: ObjectNumber, parents: &Parents) -> Result<(), CopyError> {
        let mut share = self.share(2 * self.object_size).await?;
        let ranges = parents.layout.image_extents(object, Extent::new(0, self.object_size));
        let remote = async { parents.remote.read(&ranges).await.map_err(CopyError::Remote) };
        let local = async { parents.local.read(&ranges).await.map_err(CopyError::Local) };
        let reading = self.unless_cancelled(async { try_join(remote, local).await });
        let both = share.while_reading(reading).await?;
        let (theirs, ours) = both?;
        if assembled(&ranges, &theirs) == assembled(&ranges, &ours) {
            return Ok(());
        }
        Err(CopyError::ParentsDiffer)
    }

    async fn plan_repair(
        &self,
        object: ObjectNumber,
        (remote, local): &(String, String),
        ends: &[SnapId],
    ) -> Result<ObjectPlan, CopyError> {
        let remote_end = Compared { data: &self.remote.data, object: remote, snap: ends[0] };
        let local_head = Compared { data: &self.local.data, object: local, snap: SnapId::HEAD };
        let compare = self.comparison.compare(remote_end, local_head, self.object_size);
        let compare = async { self.unless_cancelled(compare).await? };
        let list = async { if ends.len() > 1 { self.list(remote).await } else { Ok(None) } };
        let ((size, first), set) = try_join(compare, list).await?;
        if let (None, Action::Nothing, Some(parents)) = (size, &first, &self.parents) {
            self.compare_parents(object, parents).await?;
        }
        let changed = first != Action::Nothing;
        let change = if changed { Change::Modified(Default::default()) } else { Change::None };
        let later = self.deltas(remote, set.as_ref(), Some(ends[0]), &ends[1..])?;
        let now = size.map_or(Local::Absent, Local::Present);
        let actions = std::iter::once(first).chain(actions(&later, now)).collect();
        let deltas = std::iter::once(StepDelta { size, change }).chain(later).collect();
        Ok(ObjectPlan { deltas, actions, first_reads: None })
    }

    fn deltas(
        &self,
        object: &str,
        set: Option<&CloneSet>,
        start: Option<SnapId>,
        ends: &[SnapId],
    ) -> Result<Vec<StepDelta>, CopyError> {
        deltas(set, start, ends, self.object_size)
            .map_err(|source| CopyError::Clones { object: object.to_string(), source })
    }

    async fn list(&self, object: &str) -> Result<Option<CloneSet>, CopyError> {
        let set = self.unless_cancelled(self.remote.data.list_snaps(object)).await?;
        set.optional().map_err(CopyError::Remote)
    }

    /// Awaits what only reads. Of a remote cluster that was lost no answer ever comes.
    async fn unless_cancelled<T>(&self, reading: impl Future<Output = T>) -> Result<T, CopyError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(CopyError::Cancelled),
            answer = reading => Ok(answer),
        }
    }

    /// Looks at the local object when what is there makes a difference and is not known.
    async fn look(&self, object: &str, known: Local) -> Result<Local, CopyError> {
        if known != Local::Untested || !(self.resumed || self.has_parent) {
            return Ok(known);
        }
        let size = self.local.data.stat(object).await.optional().map_err(CopyError::Local)?;
        Ok(size.map_or(Local::Absent, Local::Present))
    }

    async fn perform(
        &self,
        names: &(String, String),
        mut plan: ObjectPlan,
        ready: impl Future<Output = Result<(), rados::Error>>,
        has_share: bool,
    ) -> Result<Copied, CopyError> {
        let states =
            plan.deltas.iter().zip(&plan.actions).map(|(delta, action)| state_after(delta, action)).collect();
        let mut copied = Copied { states, read_bytes: 0, written_bytes: 0 };
        if plan.actions.iter().all(|action| *action == Action::Nothing) {
            return Ok(copied);
        }
        let mut ready = Some(std::pin::pin!(ready));
        let mut first_reads = plan.first_reads.take();
        let mut from = 0;
        while from < plan.actions.len() {
            let (to, bytes) = batch(&plan.actions, from);
            let mut share = if has_share { None } else { Some(self.share(bytes).await?) };
            let reads = (from..to).map(|index| {
                let brought = if index == 0 { first_reads.take() } else { None };
                self.read(&names.0, &self.steps.steps()[index], &plan.actions[index], brought)
            });
            let reading = try_join_all(reads);
            let answers = match &mut share {
                Some(share) => share.while_reading(reading).await?,
                None => reading.await?,
            };
            if let Some(ready) = ready.take() {
                ready.await.map_err(CopyError::Local)?;
            }
            for (index, reads) in (from..to).zip(answers) {
                copied.read_bytes += reads.iter().map(|(_, answer)| data_bytes(answer)).sum::<u64>();
                copied.written_bytes += self.write(names, index, &plan.actions[index], reads).await?;
            }
            from = to;
        }
        Ok(copied)
    }

    async fn read(
        &self,
        object: &str,
        step: &CopyStep,
        action: &Action,
        brought: Option<Vec<(Extent, ReadAnswer)>>,
    ) -> Result<Vec<(Extent, ReadAnswer)>, CopyError> {
        if let Some(brought) = brought {
            return Ok(brought);
        }
        self.check_cancelled()?;
        let reads = action.reads();
        if reads.is_empty() {
            return Ok(Vec::new());
        }
        let op = ReadOp::new(object).at(step.remote);
        let op = reads.iter().fold(op, |op, extent| op.with(read_of(*extent)));
        match self.unless_cancelled(self.remote.data.read(op)).await? {
            Ok(reply) if reply.answers.len() == reads.len() => {
                Ok(reads.into_iter().zip(reply.answers).collect())
            }
            Ok(_) => Err(CopyError::Answer(object.to_string())),
            // Its clones said that it exists there.
            Err(error) if error.is_not_found() => {
                Err(CopyError::SnapshotGone { object: object.to_string(), snap: step.remote })
            }
            Err(error) => Err(CopyError::Remote(error)),
        }
    }

    /// Answers with the number of bytes written.
    async fn write(
        &self,
        (remote, local): &(String, String),
        step: usize,
        action: &Action,
        reads: Vec<(Extent, ReadAnswer)>,
    ) -> Result<u64, CopyError> {
        if *action == Action::Nothing {
            return Ok(0);
        }
        self.check_cancelled()?;
        let newest_local = self.steps.newest_local();
        let context = &self.steps.steps()[step].context;
        let frame = WriteFrame { object: local, object_size: self.object_size, context, newest_local };
        let op = frame.write(action, &reads).ok_or_else(|| CopyError::Answer(remote.clone()))?;
        let bytes = op.payload_bytes();
        match self.local.data.write(op).await {
            Ok(_) => Ok(bytes),
            Err(error) if *action == Action::Remove && error.is_not_found() => Ok(0),
            Err(error) if error.is(libc::ERANGE) => {
                Err(CopyError::Overtaken { object: local.clone(), snap: newest_local })
            }
            Err(error) => Err(CopyError::Local(error)),
        }
    }
}

/// The bytes of `ranges`, one behind the other, as `runs` tell them: what is in none is zero.
fn assembled(ranges: &[Extent], runs: &[Run]) -> Vec<u8> {
    let mut bytes = vec![0; ranges.iter().map(|range| range.length as usize).sum()];
    let mut at = 0;
    for range in ranges {
        for run in runs {
            let end = (run.offset + run.data.len() as u64).min(range.end());
            let from = run.offset.max(range.offset);
            if from < end {
                let place = at + (from - range.offset) as usize;
                let data = &run.data[(from - run.offset) as usize..(end - run.offset) as usize];
                bytes[place..place + data.len()].copy_from_slice(data);
            }
        }
        at += range.length as usize;
    }
    bytes
}

/// The end of the run of actions from `from` on whose reads are issued together, and how many bytes that is.
fn batch(actions: &[Action], from: usize) -> (usize, u64) {
    let mut bytes = actions[from].read_bytes();
    let mut to = from + 1;
    while to < actions.len() && bytes + actions[to].read_bytes() <= BATCH_BYTES_MAX {
        bytes += actions[to].read_bytes();
        to += 1;
    }
    (to, bytes)
}

fn data_bytes(answer: &ReadAnswer) -> u64 {
    match answer {
        ReadAnswer::Sparse { data, .. } | ReadAnswer::Data(data) => data.len() as u64,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
