//! An image's header, read: everything that `rbd_header.ID` tells, as one consistent state.
//!
//! It takes one round trip when the image has no snapshots, striping or migration, and two otherwise: the first
//! operation asks for all that has a fixed number of answers, the second for the rest. Every operation after the first
//! asserts the object version that the first one saw; when somebody changed the header in between, reading starts
//! over. So a [`ImageHeader`] is never a mixture of two states. What mirroring notes down in the header of a copy changes
//! its version many times a second, and nothing that is read here: after some tries everything is read without
//! assertions until it comes out the same twice in a row, which is as good.
//!
//! An OSD keeps the parent once per image and per snapshot only how much of it the image overlapped then; a snapshot
//! whose overlap is absent was not a clone.
//!
//! Reference: `src/librbd/image/RefreshRequest.cc`, `src/cls/rbd/cls_rbd.cc`. Images of the old format (1) are not
//! supported: they cannot be mirrored.

use std::collections::BTreeMap;

use bytes::Bytes;
use rados::encoding::{Decode, DecodeError, Decoder, Encoder};
use rados::lock::LockInfo;
use rados::{Error, IoCtx, PoolId, ReadAnswer, ReadOp, ReadSub, Result, SnapContext, SnapId};

use crate::encodings::{MigrationSpec, SnapshotInfo, decode_optional_u64};
use crate::header_update::LOCK_NAME;
use crate::layout::{Layout, header_object};
use crate::limits;
use crate::types::{
    Features, GroupSpec, ImageFlags, ImageId, OpFeatures, Parent, ParentSpec, ProtectionStatus, Snapshot,
    SnapshotNamespace, Timestamp,
};

/// How often reading starts over because the header changed meanwhile.
const ATTEMPTS_MAX: u32 = 16;
/// Behind so many of them, headers are compared instead of their versions.
const ASSERTED_ATTEMPTS_MAX: u32 = 3;
/// Metadata entries asked for at once.
const METADATA_PAGE: u64 = 1024;
/// Snapshots asked for in one operation.
const SNAPSHOTS_PER_READ: usize = 128;
/// The newest snapshot id that there can be: those behind it stand for the head and for all snapshots (`CEPH_MAXSNAP`).
const SNAP_ID_MAX: u64 = u64::MAX - 2;
/// Class calls per snapshot.
const CALLS_PER_SNAPSHOT: usize = 4;

/// Everything that an image's header tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageHeader {
    /// The image.
    pub id: ImageId,
    /// Version of the header object that was read.
    pub version: u64,
    /// Size in bytes.
    pub size: u64,
    /// Bytes per object, as a power of two.
    pub order: u8,
    /// Prefix of the names of the data objects.
    pub object_prefix: String,
    /// Features.
    pub features: Features,
    /// Operation features.
    pub op_features: OpFeatures,
    /// Flags of the head.
    pub flags: ImageFlags,
    /// How the image is cut into objects.
    pub layout: Layout,
    /// Pool of the data objects, when it is not the header's.
    pub data_pool: Option<PoolId>,
    /// What the head is a clone of.
    pub parent: Option<Parent>,
    /// What the head or one of the snapshots is a clone of; set whenever `parent` is.
    pub parent_spec: Option<ParentSpec>,
    /// Context for writes to data objects. Its `seq` may be newer than its newest snapshot.
    pub snap_context: SnapContext,
    /// Snapshots of all namespaces.
    pub snapshots: BTreeMap<SnapId, Snapshot>,
    /// Metadata; values are text by convention.
    pub metadata: BTreeMap<String, Bytes>,
    /// When the image was created; zero when unknown.
    pub created: Timestamp,
    /// When it was last modified, roughly; zero when unknown.
    pub modified: Timestamp,
    /// When it was last accessed, roughly; zero when unknown.
    pub accessed: Timestamp,
    /// The group that it belongs to.
    pub group: Option<GroupSpec>,
    /// The migration that it is part of.
    pub migration: Option<MigrationSpec>,
    /// How many snapshots it may have.
    pub snapshot_limit: Option<u64>,
    /// Who holds the image's lock (exclusive, or advisory of users).
    pub lock: LockInfo,
}

impl ImageHeader {
    /// Reads the header of `image`; `ioctx` is that of its pool and namespace. ENOENT when there is no such image,
    /// ENOSYS when it uses features that this program does not know, EBADMSG when something in it cannot be decoded, EFBIG
    /// when it exceeds what an image can have ([`limits`]), EAGAIN when it kept changing. Cancel-safe.
    pub async fn read(ioctx: &IoCtx, image: &ImageId) -> Result<ImageHeader> {
        let mut last: Option<ImageHeader> = None;
        for attempt in 0..ATTEMPTS_MAX {
            let assert = attempt < ASSERTED_ATTEMPTS_MAX;
            match read_once(ioctx, image, assert).await {
                Ok(header) if assert => return Ok(header),
                Ok(mut header) => {
                    let version = std::mem::take(&mut header.version);
                    if last.as_ref() == Some(&header) {
                        return Ok(ImageHeader { version, ..header });
                    }
                    last = Some(header);
                }
                Err(error) if changed_meanwhile(&error) => continue,
                Err(error) => return Err(error.context(format!("cannot read the header of image {image}"))),
            }
        }
        let what =
            format!("cannot read the header of image {image}: it changed {ATTEMPTS_MAX} times meanwhile");
        Err(Error::new(libc::EAGAIN, what))
    }

    /// The snapshot called `name` in the namespace of users.
    pub fn user_snapshot(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.values().find(|snap| snap.name == name && snap.namespace == SnapshotNamespace::User)
    }

    /// Size in bytes of the head or of a snapshot.
    pub fn size_at(&self, snap: SnapId) -> Option<u64> {
        if snap.is_head() { Some(self.size) } else { self.snapshots.get(&snap).map(|snap| snap.image_size) }
    }

    /// Flags of the head or of a snapshot.
    pub fn flags_at(&self, snap: SnapId) -> Option<ImageFlags> {
        if snap.is_head() { Some(self.flags) } else { self.snapshots.get(&snap).map(|snap| snap.flags) }
    }

    /// What the head or a snapshot is a clone of.
    pub fn parent_at(&self, snap: SnapId) -> Option<&Parent> {
        if snap.is_head() { self.parent.as_ref() } else { self.snapshots.get(&snap)?.parent.as_ref() }
    }

    /// The next newer snapshot, or the head.
    pub fn next_snapshot(&self, snap: SnapId) -> SnapId {
        let newer = self.snapshots.range((std::ops::Bound::Excluded(snap), std::ops::Bound::Unbounded));
        newer.map(|(id, _)| *id).next().unwrap_or(SnapId::HEAD)
    }

    /// EINVAL while the image is in migration, as source or destination. Data of the destination then still lies in the
    /// source, where whoever reads objects natively does not find it; and the source is not written to any more.
    pub fn refuse_in_migration(&self) -> Result<()> {
        if !self.features.has(Features::MIGRATING) {
            return Ok(());
        }
        let what = format!(
            "image {} is being migrated and part of its data may lie in another image: finish the migration with 'rbd \
             migration execute' and 'rbd migration commit' or undo it with 'rbd migration abort'",
            self.id
        );
        Err(Error::new(libc::EINVAL, what))
    }

    /// Number of data objects of the head.
    pub fn object_count(&self) -> u64 {
        self.layout.object_count(self.size)
    }
}

/// What [`AssertVersion`](ReadSub::AssertVersion) fails with.
fn changed_meanwhile(error: &Error) -> bool {
    error.is(libc::ERANGE) || error.is(libc::EOVERFLOW)
}

async fn read_once(ioctx: &IoCtx, image: &ImageId, assert: bool) -> Result<ImageHeader> {
    let object = header_object(image);
    let reply = ioctx.read(fixed_part(&object)).await?;
    let mut header = decode_fixed_part(image, reply.version, &mut Answers::new(reply.answers))?;
    let assertion = assertion(&header, assert);
    let assert_version = || ReadOp::new(object.clone()).with(assertion.clone());

    let mut reads = Vec::new();
    let striped = header.features.has(Features::STRIPINGV2);
    let migrating = header.features.has(Features::MIGRATING);
    let snaps = header.snap_context.snaps.clone();
    let mut first = assert_version();
    if striped {
        first = call(first, "get_stripe_unit_count", |_| {});
    }
    if migrating {
        first = call(first, "migration_get", |_| {});
    }
    let mut chunks = snaps.chunks(SNAPSHOTS_PER_READ);
    first = ask_for_snapshots(first, chunks.next().unwrap_or(&[]));
    if first.subs.len() > 1 {
        reads.push(ioctx.read(first));
    }
    for chunk in chunks {
        reads.push(ioctx.read(ask_for_snapshots(assert_version(), chunk)));
    }
    let replies = futures::future::try_join_all(reads).await.map_err(|error| match error.is_not_found() {
        // A snapshot that was listed is gone.
        true => Error::new(libc::ERANGE, error.to_string()),
        false => error,
    })?;
    // The answers of all operations, one after the other, without those to the assertions.
    let answers = replies.into_iter().flat_map(|reply| reply.answers.into_iter().skip(1));
    let mut answers = Answers::new(answers.collect());

    if striped {
        let (unit, count) = answers.decode("stripe unit", |d| Ok((d.u64()?, d.u64()?)))?;
        header.layout = Layout::new(header.order, unit, count)?;
    }
    if migrating {
        header.migration = Some(answers.decode("migration", MigrationSpec::decode)?);
    }
    for id in snaps {
        let snapshot = decode_snapshot(id, header.parent_spec.as_ref(), &mut answers)?;
        header.snapshots.insert(id, snapshot);
    }
    read_more_metadata(ioctx, &object, &mut header, assertion).await?;
    limits::judge(&header)?;
    Ok(header)
}

fn assertion(header: &ImageHeader, assert: bool) -> ReadSub {
    if assert { ReadSub::AssertVersion(header.version) } else { ReadSub::AssertExists }
}

fn call(op: ReadOp, method: &str, input: impl FnOnce(&mut Encoder)) -> ReadOp {
    let mut e = Encoder::new();
    input(&mut e);
    op.exec("rbd", method, e.finish())
}

fn fixed_part(object: &str) -> ReadOp {
    let of_head = |e: &mut Encoder| {
        e.u64(SnapId::HEAD.0);
    };
    let mut op = ReadOp::new(object);
    op = call(op, "get_size", of_head);
    op = call(op, "get_object_prefix", |_| {});
    op = call(op, "get_features", |e| {
        e.u64(SnapId::HEAD.0).bool(false);
    });
    op = call(op, "op_features_get", |_| {});
    op = call(op, "get_flags", of_head);
    op = call(op, "get_data_pool", |_| {});
    op = call(op, "get_snapcontext", |_| {});
    op = call(op, "parent_get", |_| {});
    op = call(op, "parent_overlap_get", of_head);
    op = call(op, "get_create_timestamp", |_| {});
    op = call(op, "get_modify_timestamp", |_| {});
    op = call(op, "get_access_timestamp", |_| {});
    op = call(op, "image_group_get", |_| {});
    op = call(op, "snapshot_get_limit", |_| {});
    op = call(op, "metadata_list", |e| {
        e.string("").u64(METADATA_PAGE);
    });
    let mut lock = Encoder::new();
    lock.versioned(1, 1, |e| {
        e.string(LOCK_NAME);
    });
    op.exec("lock", "get_info", lock.finish())
}

fn decode_fixed_part(image: &ImageId, version: u64, answers: &mut Answers) -> Result<ImageHeader> {
    let (order, size) = answers.decode("size", |d| Ok((d.u8()?, d.u64()?)))?;
    let object_prefix = answers.decode("object prefix", |d| d.string())?;
    let (features, incompatible) =
        answers.decode("features", |d| Ok((Features(d.u64()?), Features(d.u64()?))))?;
    refuse_unknown(image, incompatible)?;
    let op_features = answers.decode("operation features", |d| Ok(OpFeatures(d.u64()?)))?;
    let flags = answers.decode("flags", |d| Ok(ImageFlags(d.u64()?)))?;
    let data_pool = answers.decode("data pool", |d| d.i64())?;
    let snap_context = answers.decode("snapshot context", decode_snap_context)?;
    let parent_spec = answers.decode("parent", ParentSpec::decode)?;
    let parent_spec = (parent_spec.pool.0 >= 0).then_some(parent_spec);
    let overlap = answers.decode("parent overlap", decode_optional_u64)?;
    let created = answers.decode("creation time", Timestamp::decode)?;
    let modified = answers.decode("modification time", Timestamp::decode)?;
    let accessed = answers.decode("access time", Timestamp::decode)?;
    let group = answers.decode("group", GroupSpec::decode)?;
    let limit = answers.decode("snapshot limit", |d| d.u64())?;
    let metadata = answers.decode("metadata", |d| d.string_map())?;
    let lock = answers.decode("lock", LockInfo::decode)?;
    Ok(ImageHeader {
        id: image.clone(),
        version,
        size,
        order,
        object_prefix,
        features,
        op_features,
        flags,
        layout: Layout::simple(order)?,
        data_pool: (data_pool >= 0).then_some(PoolId(data_pool)),
        parent: parent_spec.as_ref().zip(overlap).map(|(spec, overlap)| spec.overlapping(overlap)),
        parent_spec,
        snap_context,
        snapshots: BTreeMap::new(),
        metadata,
        created,
        modified,
        accessed,
        group: (group.pool.0 >= 0 && !group.id.is_empty()).then_some(group),
        migration: None,
        snapshot_limit: (limit != u64::MAX).then_some(limit),
        lock,
    })
}

/// Refuses an image with feature bits that an older client must not touch.
fn refuse_unknown(image: &ImageId, incompatible: Features) -> Result<()> {
    let unknown = incompatible.unknown();
    if unknown.0 == 0 {
        return Ok(());
    }
    let what =
        format!("cannot use image {image}: it has features that this program does not know ({unknown})");
    Err(Error::new(libc::ENOSYS, what))
}

fn decode_snap_context(d: &mut Decoder<'_>) -> std::result::Result<SnapContext, DecodeError> {
    let seq = d.u64()?;
    let snaps = d.seq(8, |d| Ok(SnapId(d.u64()?)))?;
    let descending = snaps.windows(2).all(|pair| pair[0] > pair[1]);
    let beyond = snaps.first().is_some_and(|newest| newest.0 > seq || newest.0 > SNAP_ID_MAX);
    if !descending || beyond || snaps.last() == Some(&SnapId(0)) {
        return Err(d.invalid("the snapshot ids are not in descending order from the newest one"));
    }
    Ok(SnapContext { seq, snaps })
}

fn ask_for_snapshots(mut op: ReadOp, snaps: &[SnapId]) -> ReadOp {
    for snap in snaps {
        for method in ["snapshot_get", "parent_overlap_get", "get_flags", "get_protection_status"] {
            op = call(op, method, |e| {
                e.u64(snap.0);
            });
        }
    }
    debug_assert!(op.subs.len() >= snaps.len() * CALLS_PER_SNAPSHOT);
    op
}

fn decode_snapshot(id: SnapId, parent: Option<&ParentSpec>, answers: &mut Answers) -> Result<Snapshot> {
    let info = answers.decode("snapshot", SnapshotInfo::decode)?;
    let overlap = answers.decode("snapshot's parent overlap", decode_optional_u64)?;
    let flags = answers.decode("snapshot's flags", |d| Ok(ImageFlags(d.u64()?)))?;
    let protection = answers.decode("snapshot's protection", ProtectionStatus::decode)?;
    if info.id != id {
        let what = format!("cannot use snapshot {id}: its record says that it is {}", info.id);
        return Err(Error::new(libc::EBADMSG, what));
    }
    Ok(Snapshot {
        id,
        name: info.name,
        namespace: info.namespace,
        image_size: info.image_size,
        timestamp: info.timestamp,
        child_count: info.child_count,
        protection,
        parent: parent.zip(overlap).map(|(spec, overlap)| spec.overlapping(overlap)),
        flags,
    })
}

async fn read_more_metadata(
    ioctx: &IoCtx,
    object: &str,
    header: &mut ImageHeader,
    assertion: ReadSub,
) -> Result<()> {
    let mut page = header.metadata.len() as u64;
    while page >= METADATA_PAGE {
        limits::judge(header)?;
        let last = header.metadata.keys().next_back().cloned().unwrap_or_default();
        let op = ReadOp::new(object).with(assertion.clone());
        let op = call(op, "metadata_list", |e| {
            e.string(&last).u64(METADATA_PAGE);
        });
        let reply = ioctx.read(op).await?;
        let mut answers = Answers::new(reply.answers.into_iter().skip(1).collect());
        let more = answers.decode("metadata", |d| d.string_map())?;
        page = more.len() as u64;
        header.metadata.extend(more);
    }
    Ok(())
}

/// Answers to class calls, taken one after the other.
struct Answers {
    answers: std::vec::IntoIter<ReadAnswer>,
}

impl Answers {
    fn new(answers: Vec<ReadAnswer>) -> Answers {
        Answers { answers: answers.into_iter() }
    }

    /// Decodes the next answer; errors name `what` it holds.
    fn decode<T>(
        &mut self,
        what: &'static str,
        decode: impl FnOnce(&mut Decoder<'_>) -> std::result::Result<T, DecodeError>,
    ) -> Result<T> {
        let Some(ReadAnswer::Data(data)) = self.answers.next() else {
            return Err(Error::new(libc::EBADMSG, format!("cannot decode the {what}: there is no answer")));
        };
        decode(&mut Decoder::new(&data, what)).map_err(Error::from)
    }
}

#[cfg(test)]
mod tests;
