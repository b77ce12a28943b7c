//! Notifications on the object `rbd_mirroring`: who changes mode or images tells the daemons, so that they need not poll.
//!
//! Layout: versioned struct (1, 1): u32 kind, then
//!
//! | kind | fields |
//! |---|---|
//! | 0, mode updated | u32 mode |
//! | 1, image updated | u32 state, string image id, string global id |
//!
//! Kinds that this program does not know are answered and passed over, as librbd does.
//!
//! A daemon's watch on this object is also what keeps the statuses up that it writes through the same connection.
//!
//! Reference: `src/librbd/MirroringWatcher.cc`, `src/librbd/mirroring_watcher/Types.cc`,
//! `src/tools/rbd_mirror/MirrorStatusWatcher.cc`.

use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};
use rados::error::ResultExt;
use rados::{Error, IoCtx, Result, Watch, WatchEvent};

use super::types::{GlobalImageId, MirrorImageState, MirrorMode};
use super::{MIRRORING_OBJECT, Mirroring};
use crate::types::ImageId;
use crate::watch_notify::{NOTIFY_TIMEOUT, WATCH_TIMEOUT};

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirroringNotification {
    /// The mode of the pool or namespace.
    ModeUpdated(MirrorMode),
    /// The mirroring of an image.
    ImageUpdated {
        /// Its new state.
        state: MirrorImageState,
        /// The image.
        image: ImageId,
        /// Its global id.
        global_id: GlobalImageId,
    },
    /// Something that this program does not know, as encoded.
    Unknown(u32),
}

impl Encode for MirroringNotification {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| match self {
            MirroringNotification::ModeUpdated(mode) => {
                e.u32(0).u32(mode.to_wire());
            }
            MirroringNotification::ImageUpdated { state, image, global_id } => {
                e.u32(1).u32(state.to_wire()).string(&image.0).string(&global_id.0);
            }
            MirroringNotification::Unknown(kind) => {
                e.u32(*kind);
            }
        });
    }
}

impl Decode for MirroringNotification {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        d.versioned("mirroring notification", 1, |d, _| match d.u32()? {
            0 => Ok(MirroringNotification::ModeUpdated(MirrorMode::from_wire(d.u32()?))),
            1 => Ok(MirroringNotification::ImageUpdated {
                state: MirrorImageState::from_wire(d.u32()?),
                image: ImageId(d.string()?),
                global_id: GlobalImageId(d.string()?),
            }),
            kind => Ok(MirroringNotification::Unknown(kind)),
        })
    }
}

/// What a [`MirroringWatch`] hears.
#[derive(Debug)]
pub enum MirroringEvent {
    /// Somebody told of a change.
    Changed(MirroringNotification),
    /// The watch broke: changes may be missed, and our statuses are down.
    Lost(Error),
    /// The watch is registered again: read afresh what it is about. Statuses are up again.
    Restored,
}

/// A watch on `rbd_mirroring`. Every notification is answered before it is passed on, but only while somebody waits for
/// the next event: whoever changes something waits up to 5 s for that.
pub struct MirroringWatch {
    watch: Watch,
}

impl MirroringWatch {
    /// Next event; `None` when the watch is gone for good. Cancel-safe.
    pub async fn next(&mut self) -> Option<MirroringEvent> {
        loop {
            match self.watch.next().await? {
                WatchEvent::Notify { payload, answer, .. } => {
                    drop(answer);
                    match MirroringNotification::from_bytes(&payload, "mirroring notification") {
                        Ok(notification) => return Some(MirroringEvent::Changed(notification)),
                        Err(e) => tracing::warn!("ignoring a notification on '{MIRRORING_OBJECT}': {e}"),
                    }
                }
                WatchEvent::Lost(error) => return Some(MirroringEvent::Lost(error)),
                WatchEvent::Restored { .. } => return Some(MirroringEvent::Restored),
            }
        }
    }

    /// Unregisters and waits until the cluster has forgotten the watch.
    pub async fn unregister(self) -> Result<()> {
        self.watch.unregister().await
    }
}

impl Mirroring {
    /// Watches for changes. ENOENT when mirroring was never enabled here.
    pub async fn watch(&self) -> Result<MirroringWatch> {
        let watch = self.ioctx().watch(MIRRORING_OBJECT, WATCH_TIMEOUT).await;
        Ok(MirroringWatch { watch: watch.context("cannot watch for changes of mirroring")? })
    }

    /// Tells the daemons that the mode changed.
    pub async fn notify_mode(&self, mode: MirrorMode) -> Result<()> {
        notify(self.ioctx(), &MirroringNotification::ModeUpdated(mode)).await
    }

    /// Tells the daemons that the mirroring of an image changed.
    pub async fn notify_image(
        &self,
        state: MirrorImageState,
        image: &ImageId,
        global_id: &GlobalImageId,
    ) -> Result<()> {
        let (image, global_id) = (image.clone(), global_id.clone());
        notify(self.ioctx(), &MirroringNotification::ImageUpdated { state, image, global_id }).await
    }
}

/// A watcher that does not answer does not make it fail.
async fn notify(ioctx: &IoCtx, notification: &MirroringNotification) -> Result<()> {
    let notified = ioctx.notify(MIRRORING_OBJECT, notification.to_bytes(), NOTIFY_TIMEOUT).await;
    notified.map(drop).context("cannot tell the daemons of a change of mirroring")
}
