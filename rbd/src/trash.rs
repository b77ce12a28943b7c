//! The trash of a pool: images that have no name any more and wait for removal or restoration.
//!
//! Object `rbd_trash`, omap key `id_ID`, value: version 2 struct of u8 source, string name, timestamp of the deletion,
//! timestamp until which removal is deferred, u8 state (from version 2 on).
//!
//! Moving an image there: add the entry (state moving), remove the id object, remove the directory entry, set the state
//! to normal, tell watchers. The entry names the image, so that a move that was cut off can be completed.
//!
//! Reference: `src/cls/rbd/cls_rbd_types.cc`, `src/librbd/trash/`, `src/librbd/trash_watcher/Types.cc`.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};
use rados::error::ResultExt;
use rados::{IoCtx, Result, WriteOp};

use crate::directory;
use crate::types::{ImageId, Timestamp};

/// The trash object.
pub const TRASH_OBJECT: &str = "rbd_trash";
/// Entries asked for at once.
const PAGE_ENTRIES: u64 = 1024;
/// How long watchers may take to answer.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);

/// Who moved an image to the trash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrashSource {
    /// A user.
    User,
    /// Mirroring: the primary image is gone.
    Mirroring,
    /// A migration.
    Migration,
    /// A removal in progress.
    Removing,
    /// A user who removed an image that still has clones.
    UserParent,
    /// Of a kind that this program does not know.
    Unknown(u8),
}

/// What happens to an image in the trash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrashState {
    /// Nothing.
    Normal,
    /// It is being moved there.
    Moving,
    /// It is being removed.
    Removing,
    /// It is being restored.
    Restoring,
    /// Something that this program does not know.
    Unknown(u8),
}

/// An image in the trash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrashImage {
    /// Who moved it there.
    pub source: TrashSource,
    /// The name it had.
    pub name: String,
    /// When it was moved.
    pub deletion_time: Timestamp,
    /// Until when it shall not be removed.
    pub deferment_end_time: Timestamp,
    /// What happens to it.
    pub state: TrashState,
}

impl TrashState {
    fn wire(self) -> u8 {
        match self {
            TrashState::Normal => 0,
            TrashState::Moving => 1,
            TrashState::Removing => 2,
            TrashState::Restoring => 3,
            TrashState::Unknown(other) => other,
        }
    }

    fn from_wire(wire: u8) -> TrashState {
        match wire {
            0 => TrashState::Normal,
            1 => TrashState::Moving,
            2 => TrashState::Removing,
            3 => TrashState::Restoring,
            other => TrashState::Unknown(other),
        }
    }
}

impl TrashSource {
    fn wire(self) -> u8 {
        match self {
            TrashSource::User => 0,
            TrashSource::Mirroring => 1,
            TrashSource::Migration => 2,
            TrashSource::Removing => 3,
            TrashSource::UserParent => 4,
            TrashSource::Unknown(other) => other,
        }
    }

    fn from_wire(wire: u8) -> TrashSource {
        match wire {
            0 => TrashSource::User,
            1 => TrashSource::Mirroring,
            2 => TrashSource::Migration,
            3 => TrashSource::Removing,
            4 => TrashSource::UserParent,
            other => TrashSource::Unknown(other),
        }
    }
}

impl Encode for TrashImage {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(2, 1, |e| {
            e.u8(self.source.wire()).string(&self.name).value(&self.deletion_time);
            e.value(&self.deferment_end_time).u8(self.state.wire());
        });
    }
}

impl Decode for TrashImage {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        d.versioned("trash entry", 2, |d, version| {
            Ok(TrashImage {
                source: TrashSource::from_wire(d.u8()?),
                name: d.string()?,
                deletion_time: Timestamp::decode(d)?,
                deferment_end_time: Timestamp::decode(d)?,
                state: if version >= 2 { TrashState::from_wire(d.u8()?) } else { TrashState::Normal },
            })
        })
    }
}

fn id_alone(id: &ImageId) -> Bytes {
    let mut e = Encoder::new();
    e.string(&id.0);
    e.finish()
}

/// All images in the trash.
pub async fn list(ioctx: &IoCtx) -> Result<BTreeMap<ImageId, TrashImage>> {
    let mut images = BTreeMap::new();
    loop {
        let mut e = Encoder::new();
        e.string(images.keys().next_back().map_or("", |id: &ImageId| &id.0)).u64(PAGE_ENTRIES);
        let output = ioctx.exec(TRASH_OBJECT, "rbd", "trash_list", e.finish()).await.optional();
        let Some(output) = output.context("cannot list the trash")? else {
            return Ok(images);
        };
        let page =
            Decoder::new(&output, "trash").seq(10, |d| Ok((ImageId(d.string()?), TrashImage::decode(d)?)))?;
        let end = (page.len() as u64) < PAGE_ENTRIES;
        images.extend(page);
        if end {
            return Ok(images);
        }
    }
}

/// The trash entry of an image; `None` when it is not there.
pub async fn get(ioctx: &IoCtx, id: &ImageId) -> Result<Option<TrashImage>> {
    let output = ioctx.exec(TRASH_OBJECT, "rbd", "trash_get", id_alone(id)).await.optional();
    let Some(output) = output.context(format!("cannot look up image {id} in the trash"))? else {
        return Ok(None);
    };
    Ok(Some(TrashImage::from_bytes(&output, "trash entry")?))
}

/// Adds an entry; one that is there stays as it is.
pub async fn add(ioctx: &IoCtx, id: &ImageId, image: &TrashImage) -> Result<()> {
    let mut e = Encoder::new();
    e.string(&id.0).value(image);
    // A removal begins with this, which frees space, and may have to create the object.
    let op = WriteOp::new(TRASH_OBJECT).exec("rbd", "trash_add", e.finish()).despite_full();
    match ioctx.write(op).await {
        Err(error) if error.is(libc::EEXIST) => Ok(()),
        other => other.map(drop).context(format!("cannot add image {id} to the trash")),
    }
}

/// Removes an entry (not the image). It is no error when there is none.
pub async fn remove_entry(ioctx: &IoCtx, id: &ImageId) -> Result<()> {
    let removed = ioctx.exec_write(TRASH_OBJECT, "rbd", "trash_remove", id_alone(id)).await.optional();
    removed.map(drop).context(format!("cannot remove image {id} from the trash"))
}

/// Changes the state of an entry from `expected` to `state`; it is no error when it is in that state. ENOENT when there
/// is no entry, ESTALE when it is in another state.
pub async fn set_state(ioctx: &IoCtx, id: &ImageId, state: TrashState, expected: TrashState) -> Result<()> {
    let mut e = Encoder::new();
    e.string(&id.0).u8(state.wire()).u8(expected.wire());
    let set = ioctx.exec_write(TRASH_OBJECT, "rbd", "trash_state_set", e.finish()).await;
    set.context(format!("cannot set the state of image {id} in the trash to {state:?}"))
}

/// Moves an image to the trash and tells watchers. `deferment` is for how long it shall not be removed. Disabling
/// mirroring and getting hold of the exclusive lock come before and are the caller's. May be repeated after a failure.
pub async fn move_image(
    ioctx: &IoCtx,
    id: &ImageId,
    name: &str,
    source: TrashSource,
    deferment: Duration,
) -> Result<()> {
    move_image_at(ioctx, id, name, source, Timestamp::now(), deferment).await
}

/// As [`move_image`]; `now` is the present by whichever clock the end of the deferment will be judged by.
pub async fn move_image_at(
    ioctx: &IoCtx,
    id: &ImageId,
    name: &str,
    source: TrashSource,
    now: Timestamp,
    deferment: Duration,
) -> Result<()> {
    let seconds = u32::try_from(deferment.as_secs()).unwrap_or(u32::MAX);
    let mut entry = TrashImage {
        source,
        name: name.to_string(),
        deletion_time: now,
        deferment_end_time: now.plus_seconds(seconds),
        state: TrashState::Moving,
    };
    add(ioctx, id, &entry).await?;
    directory::remove_id_object(ioctx, name, id).await?;
    directory::remove(ioctx, name, id).await?;
    set_state(ioctx, id, TrashState::Normal, TrashState::Moving).await?;
    entry.state = TrashState::Normal;
    notify_added(ioctx, id, &entry).await;
    Ok(())
}

/// Tells watchers of the trash (daemons that remove what lies there) of a new entry. They also look by themselves, so
/// that a failure is only logged.
async fn notify_added(ioctx: &IoCtx, id: &ImageId, image: &TrashImage) {
    const IMAGE_ADDED: u32 = 0;
    let mut e = Encoder::new();
    e.versioned(1, 1, |e| {
        e.u32(IMAGE_ADDED).string(&id.0).value(image);
    });
    notify(ioctx, id, e.finish()).await;
}

/// Tells watchers of the trash that an image is gone.
pub(crate) async fn notify_removed(ioctx: &IoCtx, id: &ImageId) {
    const IMAGE_REMOVED: u32 = 1;
    let mut e = Encoder::new();
    e.versioned(1, 1, |e| {
        e.u32(IMAGE_REMOVED).string(&id.0);
    });
    notify(ioctx, id, e.finish()).await;
}

async fn notify(ioctx: &IoCtx, id: &ImageId, payload: Bytes) {
    if let Err(error) = ioctx.notify(TRASH_OBJECT, payload, NOTIFY_TIMEOUT).await {
        tracing::debug!(image = %id, "nobody was told of a change of the trash: {error}");
    }
}
