//! Object maps: two bits per data object that tell whether it exists and whether it changed since the last snapshot.
//!
//! The map of an image's head lies in `rbd_object_map.ID`, that of a snapshot in `rbd_object_map.ID.SNAP` (16 hex
//! digits), in the header's pool. The bytes (`BitVector<2>`):
//!
//! ```text
//! u32 14 | u8 1 | u8 1 | u32 8 | u64 number of objects        header, a blob
//! ceil(n / 4) bytes, first object in the top two bits          data
//! u32 length | u32 CRC of the header | u32 k | k × u32 CRC     footer, a blob; one CRC per 4096 bytes of data
//! ```
//!
//! The CRCs are CRC-32C with seed 0 and no inversion, the first over the header without its length. An empty footer
//! means that there are none; the class methods take and give maps so.
//!
//! Invariants:
//! * Bits behind the last object are zero.
//! * One class method call per operation: within one operation an OSD does not see its own earlier writes, so two
//!   updates of the same block in one would lose the first.
//! * A map that is flagged invalid in the header ([`crate::ImageFlags`]) is never believed; this module does not know
//!   the flags, its callers do.
//!
//! Reference: `src/common/bit_vector.hpp`, `src/cls/rbd/cls_rbd.cc` (`object_map_*`), `src/librbd/object_map/`.

use std::ops::Range;

use bytes::Bytes;
use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};
use rados::error::ResultExt;
use rados::{Error, IoCtx, Result, SnapId, WriteOp};

use crate::header_update::assert_locked;
use crate::types::{ImageId, ObjectNumber};

/// Images of more objects have no object map.
pub const OBJECT_COUNT_MAX: u64 = 256_000_000;
/// Objects that one update may span, as librbd bounds it.
const UPDATE_OBJECTS_MAX: u64 = 256 << 10;
/// Bytes of data that one CRC covers.
const BLOCK_BYTES: usize = 4096;
/// Ranges from which on writing a map whole is cheaper than updating it range by range, in objects per range.
const SAVE_OBJECTS_PER_RANGE: u64 = 4096;

/// What a map says of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectState {
    /// There is no such object.
    NonExistent = 0,
    /// It exists (with fast-diff: and was written since the last snapshot).
    Exists = 1,
    /// It is being removed and may or may not exist.
    Pending = 2,
    /// It exists and was not written since the last snapshot.
    ExistsClean = 3,
}

impl ObjectState {
    fn from_bits(bits: u8) -> ObjectState {
        match bits & 3 {
            0 => ObjectState::NonExistent,
            1 => ObjectState::Exists,
            2 => ObjectState::Pending,
            _ => ObjectState::ExistsClean,
        }
    }

    /// True unless there is surely no such object.
    pub fn may_exist(self) -> bool {
        self != ObjectState::NonExistent
    }
}

/// An object map in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct ObjectMap {
    bits: Vec<u8>,
    objects: u64,
}

impl std::fmt::Debug for ObjectMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sample: String = self.iter().take(64).map(|state| char::from(b'0' + state as u8)).collect();
        write!(f, "ObjectMap({} objects: {sample}{})", self.objects, if self.objects > 64 { "…" } else { "" })
    }
}

/// A run of objects to be set to one state, as one `object_map_update` call does it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapUpdate {
    /// Object numbers.
    pub objects: Range<u64>,
    /// The state to set.
    pub state: ObjectState,
    /// Only objects in this state are changed; [`ObjectState::Exists`] includes [`ObjectState::ExistsClean`].
    pub current: Option<ObjectState>,
}

impl ObjectMap {
    /// A map of so many objects, none of which exists.
    pub fn new(objects: u64) -> ObjectMap {
        ObjectMap { bits: vec![0; data_bytes(objects)], objects }
    }

    /// Number of objects.
    pub fn len(&self) -> u64 {
        self.objects
    }

    /// True for the map of an image without a byte.
    pub fn is_empty(&self) -> bool {
        self.objects == 0
    }

    /// The state of an object; `NonExistent` for one behind the end.
    pub fn get(&self, object: ObjectNumber) -> ObjectState {
        if object.0 >= self.objects {
            return ObjectState::NonExistent;
        }
        let byte = self.bits[(object.0 / 4) as usize];
        ObjectState::from_bits(byte >> shift(object.0))
    }

    /// Sets the state of an object; one behind the end is ignored.
    pub fn set(&mut self, object: ObjectNumber, state: ObjectState) {
        if object.0 < self.objects {
            let byte = &mut self.bits[(object.0 / 4) as usize];
            *byte = *byte & !(3 << shift(object.0)) | (state as u8) << shift(object.0);
        }
    }

    /// The states of all objects, in order.
    pub fn iter(&self) -> impl Iterator<Item = ObjectState> + '_ {
        (0..self.objects).map(|object| self.get(ObjectNumber(object)))
    }

    /// Changes the number of objects; new ones do not exist.
    pub fn resize(&mut self, objects: u64) {
        self.bits.resize(data_bytes(objects), 0);
        self.objects = objects;
        self.clear_spare_bits();
    }

    /// Number of objects that may exist.
    pub fn count_existing(&self) -> u64 {
        self.iter().filter(|state| state.may_exist()).count() as u64
    }

    /// What taking a snapshot does to the map of the head, with fast-diff: everything is clean now.
    pub fn snap_add(&mut self) {
        for object in (0..self.objects).map(ObjectNumber) {
            if self.get(object) == ObjectState::Exists {
                self.set(object, ObjectState::ExistsClean);
            }
        }
    }

    /// What removing the snapshot before this one (whose map is `removed`) does to this map, with fast-diff: what was
    /// changed there was changed here.
    pub fn snap_remove(&mut self, removed: &ObjectMap) {
        for object in (0..self.objects).map(ObjectNumber) {
            let changed = object.0 >= removed.len() || removed.get(object) == ObjectState::Exists;
            if self.get(object) == ObjectState::ExistsClean && changed {
                self.set(object, ObjectState::Exists);
            }
        }
    }

    /// What `update` does.
    pub fn update(&mut self, update: &MapUpdate) {
        for object in (update.objects.start..update.objects.end.min(self.objects)).map(ObjectNumber) {
            let state = self.get(object);
            let applies = match update.current {
                None => true,
                Some(ObjectState::Exists) => matches!(state, ObjectState::Exists | ObjectState::ExistsClean),
                Some(current) => state == current,
            };
            if applies {
                self.set(object, update.state);
            }
        }
    }

    /// The fewest updates that make `self` into `target`, which has as many objects. Ascending and disjoint.
    pub fn updates_to(&self, target: &ObjectMap) -> Vec<MapUpdate> {
        debug_assert_eq!(self.objects, target.objects, "maps of one image have one size");
        let mut updates = Vec::new();
        let mut object = 0;
        while object < self.objects.min(target.objects) {
            // Whole equal bytes, that is four equal objects, are passed over at once.
            let byte = (object / 4) as usize;
            if object % 4 == 0 && self.bits[byte] == target.bits[byte] {
                object += 4;
                continue;
            }
            let state = target.get(ObjectNumber(object));
            if self.get(ObjectNumber(object)) != state {
                coalesce(&mut updates, object, state, |between| {
                    between.clone().all(|o| target.get(ObjectNumber(o)) == state)
                });
            }
            object += 1;
        }
        updates
    }

    fn clear_spare_bits(&mut self) {
        let spare = (self.bits.len() as u64 * 4 - self.objects) * 2;
        if let Some(last) = self.bits.last_mut() {
            *last &= 0xffu8.checked_shl(spare as u32).unwrap_or(0);
        }
    }

    /// The encoding with CRCs, as it lies in the object.
    pub fn to_object(&self) -> Bytes {
        let mut e = self.encoder();
        let blocks = self.bits.chunks(BLOCK_BYTES);
        e.u32(8 + 4 * blocks.len() as u32).u32(crc(&self.header())).u32(blocks.len() as u32);
        for block in blocks {
            e.u32(crc(block));
        }
        e.finish()
    }

    fn header(&self) -> Bytes {
        let mut e = Encoder::new();
        e.versioned(1, 1, |e| {
            e.u64(self.objects);
        });
        e.finish()
    }

    fn encoder(&self) -> Encoder {
        let mut e = Encoder::new();
        e.blob(&self.header()).raw(&self.bits);
        e
    }
}

fn data_bytes(objects: u64) -> usize {
    objects.div_ceil(4) as usize
}

fn shift(object: u64) -> u32 {
    6 - 2 * (object % 4) as u32
}

/// CRC-32C as Ceph computes it: seed 0, no inversion.
fn crc(bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!0, bytes)
}

/// Appends one object to ascending updates: to the last one when it has the same state, does not grow too long, and
/// what lies between may be set too.
fn coalesce(
    updates: &mut Vec<MapUpdate>,
    object: u64,
    state: ObjectState,
    may_span: impl Fn(Range<u64>) -> bool,
) {
    if let Some(last) = updates.last_mut() {
        let short = object - last.objects.start < UPDATE_OBJECTS_MAX;
        if last.state == state && short && may_span(last.objects.end..object) {
            last.objects.end = object + 1;
            return;
        }
    }
    updates.push(MapUpdate { objects: object..object + 1, state, current: None });
}

/// The fewest updates that set each of `objects` to its state. They may come in any order; of an object that comes
/// twice, the last state counts. Objects that are not named are never changed.
pub fn coalesced(objects: impl IntoIterator<Item = (ObjectNumber, ObjectState)>) -> Vec<MapUpdate> {
    let sorted: std::collections::BTreeMap<ObjectNumber, ObjectState> = objects.into_iter().collect();
    let mut updates = Vec::new();
    for (object, state) in sorted {
        coalesce(&mut updates, object.0, state, |between| between.is_empty());
    }
    updates
}

impl Encode for ObjectMap {
    /// The encoding without CRCs, as the class methods take it.
    fn encode(&self, e: &mut Encoder) {
        e.raw(&self.encoder().finish()).u32(0);
    }
}

impl Decode for ObjectMap {
    /// Reads a map with or without CRCs, and checks those that are there.
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        let header = d.blob()?;
        let objects =
            Decoder::new(header, "object map header").versioned("object map header", 1, |d, _| d.u64())?;
        // The bound also keeps a lying count from wrapping when it becomes a number of bytes.
        if objects > OBJECT_COUNT_MAX {
            return Err(d.invalid(format!("{objects} objects are more than the {OBJECT_COUNT_MAX} possible")));
        }
        let bits = d.raw(data_bytes(objects))?;
        let footer = d.blob()?;
        if !footer.is_empty() {
            check_crcs(header, bits, footer)?;
        }
        let mut map = ObjectMap { bits: bits.to_vec(), objects };
        map.clear_spare_bits();
        Ok(map)
    }
}

fn check_crcs(header: &[u8], bits: &[u8], footer: &[u8]) -> std::result::Result<(), DecodeError> {
    let mut d = Decoder::new(footer, "object map footer");
    if d.u32()? != crc(header) {
        return Err(d.invalid("the CRC of the header does not match"));
    }
    let (blocks, count) = (bits.chunks(BLOCK_BYTES), d.count(4)?);
    if count != blocks.len() {
        return Err(d.invalid(format!("there are {count} CRCs for {} blocks", blocks.len())));
    }
    for (number, block) in blocks.enumerate() {
        if d.u32()? != crc(block) {
            return Err(d.invalid(format!("the CRC of block {number} does not match")));
        }
    }
    Ok(())
}

/// Name of the object that holds a map.
pub fn object_map_object(image: &ImageId, snap: SnapId) -> String {
    if snap.is_head() {
        format!("rbd_object_map.{image}")
    } else {
        format!("rbd_object_map.{image}.{:016x}", snap.0)
    }
}

/// The object map of an image's head or of one of its snapshots. Cheap to make; does no I/O by itself.
///
/// librbd holds a class lock on the object of the head's map as long as it holds the image's exclusive lock; through
/// [`ObjectMapObject::asserting_lock`] changes of the head's map fail with EBUSY unless this client holds it.
#[derive(Debug, Clone)]
pub struct ObjectMapObject {
    ioctx: IoCtx,
    object: String,
    assert_lock: bool,
}

impl ObjectMapObject {
    /// The map of `image` at `snap`; `ioctx` is the header's.
    pub fn new(ioctx: &IoCtx, image: &ImageId, snap: SnapId) -> ObjectMapObject {
        ObjectMapObject { ioctx: ioctx.clone(), object: object_map_object(image, snap), assert_lock: false }
    }

    /// Every change asserts that this client holds the class lock on the map.
    pub fn asserting_lock(mut self, assert: bool) -> ObjectMapObject {
        self.assert_lock = assert;
        self
    }

    /// Name of the object.
    pub fn name(&self) -> &str {
        &self.object
    }

    /// Reads the map. ENOENT when there is none (or an empty object), EINVAL or EBADMSG when it is corrupt.
    pub async fn load(&self) -> Result<ObjectMap> {
        let what = || format!("cannot load object map '{}'", self.object);
        let bytes =
            self.ioctx.exec(&self.object, "rbd", "object_map_load", Bytes::new()).await.context(what())?;
        ObjectMap::from_bytes(&bytes, "object map").map_err(Error::from).context(what())
    }

    /// Writes the map, whatever was there; creates the object when needed.
    pub async fn save(&self, map: &ObjectMap) -> Result<()> {
        self.change("save", "object_map_save", map.to_bytes()).await
    }

    /// Changes the number of objects; new ones get `state`. Creates the object when needed. When shrinking, ESTALE
    /// when one behind the new end has another state than that.
    pub async fn resize(&self, objects: u64, state: ObjectState) -> Result<()> {
        let mut e = Encoder::new();
        e.u64(objects).u8(state as u8);
        self.change("resize", "object_map_resize", e.finish()).await
    }

    /// Applies one update. ENOENT when there is no map, ERANGE when it is too small.
    pub async fn update(&self, update: &MapUpdate) -> Result<()> {
        let mut e = Encoder::new();
        e.u64(update.objects.start).u64(update.objects.end).u8(update.state as u8);
        e.bool(update.current.is_some());
        if let Some(current) = update.current {
            e.u8(current as u8);
        }
        self.change("update", "object_map_update", e.finish()).await
    }

    /// Makes the stored map, known to be `stored`, equal to `target`: by as few updates as it takes, or whole. Only
    /// for a map that nobody else changes. Not atomic: when it fails or is dropped half-way, each object has either
    /// its old or its new state.
    pub async fn store(&self, stored: &ObjectMap, target: &ObjectMap) -> Result<()> {
        if stored.len() != target.len() {
            return self.save(target).await;
        }
        let updates = stored.updates_to(target);
        if updates.len() as u64 > 1 + target.len() / SAVE_OBJECTS_PER_RANGE {
            return self.save(target).await;
        }
        for update in &updates {
            self.update(update).await?;
        }
        Ok(())
    }

    /// Marks everything in the head's map as clean, as taking a snapshot does with fast-diff.
    pub async fn snap_add(&self) -> Result<()> {
        self.change("clean", "object_map_snap_add", Bytes::new()).await
    }

    /// Takes over what changed in the map of a snapshot that is being removed, the one before this.
    pub async fn snap_remove(&self, removed: &ObjectMap) -> Result<()> {
        self.change("merge a removed snapshot's into", "object_map_snap_remove", removed.to_bytes()).await
    }

    /// Writes the bytes of `from`'s map as this one, unseen.
    pub async fn copy_from(&self, from: &ObjectMapObject) -> Result<()> {
        let map = from.load().await?;
        self.save(&map).await
    }

    /// Removes the map; it is no error when there is none.
    pub async fn remove(&self) -> Result<()> {
        let removed = self.ioctx.remove(&self.object).await.optional();
        removed.map(drop).context(format!("cannot remove object map '{}'", self.object))
    }

    async fn change(&self, verb: &str, method: &str, input: Bytes) -> Result<()> {
        let mut op = WriteOp::new(self.object.clone());
        if self.assert_lock {
            op = assert_locked(op, "", "");
        }
        let written = self.ioctx.write(op.exec("rbd", method, input)).await;
        written.map(drop).context(format!("cannot {verb} object map '{}'", self.object))
    }
}

#[cfg(test)]
mod tests;
