//! The copy between two maintenance operations: how its objects are written.
//!
//! A write carries the snapshots of the image, whose content it preserves. An object that does not exist shows the
//! parent's bytes as far as the two overlap; so the write that gives it existence brings them:
//!
//! * without snapshots, together with the write, in one operation;
//! * with snapshots (and when the parent has something there), before it and under a context that preserves none: so it
//!   shows in the snapshots, too, which lose their parent together with the head when the image is flattened. Their object
//!   maps come first.
//!
//! Reference: `src/librbd/io/ObjectRequest.cc`, `CopyupRequest.cc`.

use bytes::Bytes;
use futures::future::join_all;
use rados::encoding::Encoder;
use rados::error::ResultExt;
use rados::{Extent, Result, SnapContext, SnapId, WriteOp, WriteSub};
use rbd::image::{Image, OpenImage};
use rbd::read::Reader;
use rbd::{Features, ImageHeader, MapUpdate, ObjectNumber, ObjectState};
use tokio::sync::Semaphore;

use super::objects::ObjectWrite;
use super::shape::Shape;

/// Objects whose parent's bytes are in memory at the same time.
const COPY_UPS_MAX: usize = 8;

/// See the head of this file.
#[derive(Debug)]
pub(super) struct Target {
    image: Image,
    header: ImageHeader,
    shape: Shape,
    context: SnapContext,
    parent: Option<Reader>,
    copy_ups: Semaphore,
}

/// What the parent has of an object, by offset in the object. Empty when that is nothing but zeros.
struct ParentData {
    runs: Vec<(u64, Bytes)>,
}

impl Target {
    /// The image as its header tells it.
    pub async fn open(local: &OpenImage) -> Result<Target> {
        Ok(Target {
            image: local.image.clone(),
            header: local.header.clone(),
            shape: Shape::of(&local.header),
            context: local.header.snap_context.clone(),
            parent: Reader::open_parent(&local.image, &local.header).await?,
            copy_ups: Semaphore::new(COPY_UPS_MAX),
        })
    }

    /// What it looks like.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// A reader of the head.
    pub async fn reader(&self) -> Result<Reader> {
        Reader::open(&self.image, &self.header, SnapId::HEAD).await
    }

    /// True when the parent may show through an object that does not exist.
    pub fn is_covered(&self, object: ObjectNumber) -> bool {
        self.parent.is_some() && self.shape.overlap(object) > 0
    }

    /// True when the image has snapshots.
    pub fn has_snapshots(&self) -> bool {
        !self.context.snaps.is_empty()
    }

    /// An operation on an object, to be made under the snapshots of the image.
    pub fn op(&self, object: ObjectNumber) -> WriteOp {
        WriteOp::new(self.image.data_object(object)).under(self.context.clone())
    }

    /// Whether an object exists.
    pub async fn exists(&self, object: ObjectNumber) -> Result<bool> {
        let name = self.image.data_object(object);
        Ok(self.image.data_ioctx().stat(&name).await.optional()?.is_some())
    }

    /// Carries out an operation on a data object.
    pub async fn send(&self, op: WriteOp) -> Result<()> {
        self.image.data_ioctx().write(op).await.map(drop)
    }

    /// Changes an object; the head's map allows for it.
    pub async fn write(&self, write: ObjectWrite) -> Result<()> {
        let ObjectWrite { object, change, absent, remove } = write;
        let object_size = self.shape.layout.object_size();
        if remove {
            return self.send(self.op(object).with(WriteSub::Remove)).await.optional().map(drop);
        }
        let replaced = change.replaces(object_size);
        let subs = change.subs(object_size);
        if !self.is_covered(object) {
            let op = if absent { self.op(object).with(self.hint()) } else { self.op(object) };
            return self.send(with(op, subs)).await;
        }
        if replaced && !self.has_snapshots() {
            return self.send(with(self.op(object).with(WriteSub::Create { exclusive: false }), subs)).await;
        }
        if !absent {
            let guarded = with(self.op(object).with(WriteSub::AssertExists), subs.clone());
            match self.send(guarded).await {
                Err(error) if error.is_not_found() => {}
                other => return other,
            }
        }
        self.write_absent(object, subs).await
    }

    /// Changes an object that does not exist and shows the parent.
    async fn write_absent(&self, object: ObjectNumber, subs: Vec<WriteSub>) -> Result<()> {
        // The semaphore is never closed.
        let _permit = self.copy_ups.acquire().await;
        let data = self.read_parent(object).await?;
        let mut op = self.op(object);
        if self.has_snapshots() && !data.runs.is_empty() {
            self.copy_up_below(object, &data).await?;
        } else if !data.runs.is_empty() {
            op = op.with(data.copy_up());
        }
        op = op.with(WriteSub::Create { exclusive: false }).with(self.hint());
        self.send(with(op, subs)).await
    }

    /// Gives an object that does not exist what the parent has of it, in the head and in all snapshots. Answers whether
    /// it exists now: what is only zeros is left as it is.
    pub async fn copy_up(&self, object: ObjectNumber) -> Result<bool> {
        if !self.is_covered(object) {
            return Ok(false);
        }
        let _permit = self.copy_ups.acquire().await;
        let data = self.read_parent(object).await?;
        if data.runs.is_empty() {
            return Ok(false);
        }
        self.copy_up_below(object, &data).await?;
        Ok(true)
    }

    /// Writes the parent's bytes under a context that preserves no snapshot.
    async fn copy_up_below(&self, object: ObjectNumber, data: &ParentData) -> Result<()> {
        self.mark_in_snapshots(object).await?;
        let op = WriteOp::new(self.image.data_object(object)).with(data.copy_up()).with(self.hint());
        self.send(op).await
    }

    /// Tells the object maps of all snapshots that an object exists: it came with the oldest.
    async fn mark_in_snapshots(&self, object: ObjectNumber) -> Result<()> {
        if !self.header.features.has(Features::OBJECT_MAP) {
            return Ok(());
        }
        let fast_diff = self.header.features.has(Features::FAST_DIFF);
        let updates = self.header.snapshots.values().enumerate().filter_map(|(index, snap)| {
            let clean = fast_diff && index > 0;
            let state = if clean { ObjectState::ExistsClean } else { ObjectState::Exists };
            let within = object.0 < self.shape.layout.object_count(snap.image_size);
            let update = MapUpdate { objects: object.0..object.0 + 1, state, current: None };
            let map = self.image.object_map(snap.id);
            within.then_some(async move { map.update(&update).await.optional() })
        });
        // All are awaited, so that none is in flight behind an error.
        join_all(updates).await.into_iter().collect::<Result<Vec<_>>>().map(drop)
    }

    async fn read_parent(&self, object: ObjectNumber) -> Result<ParentData> {
        let Some(parent) = &self.parent else { return Ok(ParentData { runs: Vec::new() }) };
        let layout = &self.shape.layout;
        let ranges = layout.image_extents(object, Extent::new(0, self.shape.overlap(object)));
        let found = parent.read(&ranges).await?;
        let mut runs: Vec<(u64, Bytes)> = Vec::new();
        for run in found {
            let extent = Extent::new(run.offset, run.data.len() as u64);
            for piece in layout.pieces(extent) {
                let from = (piece.image_offset - run.offset) as usize;
                runs.push((piece.object_offset, run.data.slice(from..from + piece.length as usize)));
            }
        }
        runs.retain(|(_, data)| !is_zero(data));
        runs.sort_unstable_by_key(|(offset, _)| *offset);
        Ok(ParentData { runs })
    }

    fn hint(&self) -> WriteSub {
        let object_size = self.shape.layout.object_size();
        WriteSub::AllocHint { object_size, write_size: object_size }
    }
}

impl ParentData {
    /// The class method that writes it unless the object exists.
    fn copy_up(&self) -> WriteSub {
        let mut e = Encoder::new();
        e.seq(&self.runs, |e, (offset, data)| {
            e.u64(*offset).u64(data.len() as u64);
        });
        e.count(self.runs.iter().map(|(_, data)| data.len()).sum());
        for (_, data) in &self.runs {
            e.raw(data);
        }
        WriteSub::Exec { class: "rbd".into(), method: "sparse_copyup".into(), input: e.finish() }
    }
}

fn with(op: WriteOp, subs: Vec<WriteSub>) -> WriteOp {
    subs.into_iter().fold(op, WriteOp::with)
}

fn is_zero(data: &[u8]) -> bool {
    static ZEROS: [u8; 4096] = [0; 4096];
    data.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}
