//! Statuses of mirrored images: what `rbd mirror image status` and `rbd mirror pool status` print.
//!
//! A daemon writes the status of each copy to its own cluster under the empty mirror uuid, and to the primary's cluster
//! under its own mirror uuid. The OSD stores with it which client wrote it (name and address, "instance"); a status is
//! *up* as long as that client watches `rbd_mirroring`, so a daemon must watch that object through the same connection
//! that it writes statuses with, and its statuses go down by themselves when it dies.
//!
//! | value | version | fields |
//! |---|---|---|
//! | site status, as sent | 1 when the mirror uuid is empty, else 2 (compatible with nothing older) | from 2 on: string mirror uuid; u8 state, string description, timestamp last update, bool up |
//! | image status, as answered | 2 | the local site's fields as in 1, bool whether they are valid, u32 count and remote sites' fields as in 2 |
//! | instance (`entity_inst_t`) | none | entity name, entity address |
//!
//! Reference: `src/cls/rbd/cls_rbd_types.cc`, `src/cls/rbd/cls_rbd.cc` (`image_status_*`),
//! `src/tools/rbd_mirror/MirrorStatusWatcher.cc`.

use std::collections::BTreeMap;
use std::fmt;

use rados::Result;
use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};
use rados::entity::{EntityAddress, EntityName};
use rados::error::ResultExt;

use super::types::{GlobalImageId, MirrorImage, MirrorPeer};
use super::{Mirroring, PAGE_ENTRIES};
use crate::types::{ImageId, Timestamp};

/// What a daemon is doing for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StatusState {
    /// Nothing is known.
    Unknown,
    /// It stopped because of an error.
    Error,
    /// It is copying the image for the first time.
    Syncing,
    /// It is starting.
    StartingReplay,
    /// It keeps the copy current.
    Replaying,
    /// It is stopping.
    StoppingReplay,
    /// It has nothing to do: the image is primary, or it was told to stop.
    Stopped,
    /// Of a kind that this program does not know, as encoded.
    Other(u8),
}

impl StatusState {
    /// The state encoded as `wire`.
    pub fn from_wire(wire: u8) -> StatusState {
        match wire {
            0 => StatusState::Unknown,
            1 => StatusState::Error,
            2 => StatusState::Syncing,
            3 => StatusState::StartingReplay,
            4 => StatusState::Replaying,
            5 => StatusState::StoppingReplay,
            6 => StatusState::Stopped,
            wire => StatusState::Other(wire),
        }
    }

    /// As encoded.
    pub fn to_wire(self) -> u8 {
        match self {
            StatusState::Unknown => 0,
            StatusState::Error => 1,
            StatusState::Syncing => 2,
            StatusState::StartingReplay => 3,
            StatusState::Replaying => 4,
            StatusState::StoppingReplay => 5,
            StatusState::Stopped => 6,
            StatusState::Other(wire) => wire,
        }
    }
}

impl fmt::Display for StatusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StatusState::Unknown => "unknown",
            StatusState::Error => "error",
            StatusState::Syncing => "syncing",
            StatusState::StartingReplay => "starting_replay",
            StatusState::Replaying => "replaying",
            StatusState::StoppingReplay => "stopping_replay",
            StatusState::Stopped => "stopped",
            StatusState::Other(wire) => return write!(f, "unknown ({wire})"),
        })
    }
}

/// The status of an image as one site tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteStatus {
    /// Mirror uuid of the site; empty for the site that is asked.
    pub mirror_uuid: String,
    /// What its daemon is doing.
    pub state: StatusState,
    /// The same in words, with JSON for programs.
    pub description: String,
    /// When it was written. The OSD sets it.
    pub last_update: Timestamp,
    /// Whether its daemon is alive. The OSD tells.
    pub up: bool,
}

impl SiteStatus {
    /// A status to be written: of this site when `mirror_uuid` is empty, else of the site with that uuid.
    pub fn new(
        mirror_uuid: impl Into<String>,
        state: StatusState,
        description: impl Into<String>,
    ) -> SiteStatus {
        SiteStatus {
            mirror_uuid: mirror_uuid.into(),
            state,
            description: description.into(),
            last_update: Timestamp::default(),
            up: false,
        }
    }

    fn encode_fields(&self, e: &mut Encoder, version: u8) {
        if version >= 2 {
            e.string(&self.mirror_uuid);
        }
        e.u8(self.state.to_wire()).string(&self.description).value(&self.last_update).bool(self.up);
    }

    fn decode_fields(d: &mut Decoder<'_>, version: u8) -> std::result::Result<Self, DecodeError> {
        Ok(SiteStatus {
            mirror_uuid: if version >= 2 { d.string()? } else { String::new() },
            state: StatusState::from_wire(d.u8()?),
            description: d.string()?,
            last_update: Timestamp::decode(d)?,
            up: d.bool()?,
        })
    }
}

impl Encode for SiteStatus {
    fn encode(&self, e: &mut Encoder) {
        let version = if self.mirror_uuid.is_empty() { 1 } else { 2 };
        e.versioned(version, version, |e| self.encode_fields(e, version));
    }
}

impl Decode for SiteStatus {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        d.versioned("MirrorImageSiteStatus", 2, SiteStatus::decode_fields)
    }
}

/// The status of an image as every site tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MirrorImageStatus {
    /// The site that was asked.
    pub local: Option<SiteStatus>,
    /// Sites that pull from it.
    pub remotes: Vec<SiteStatus>,
}

/// Bytes that the fields of a remote site take at least.
const REMOTE_STATUS_BYTES_MIN: usize = 4 + 1 + 4 + 8 + 1;

impl Encode for MirrorImageStatus {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(2, 1, |e| {
            let absent = SiteStatus::new("", StatusState::Unknown, "");
            self.local.as_ref().unwrap_or(&absent).encode_fields(e, 1);
            e.bool(self.local.is_some());
            e.seq(&self.remotes, |e, remote| remote.encode_fields(e, 2));
        });
    }
}

impl Decode for MirrorImageStatus {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        d.versioned("MirrorImageStatus", 2, |d, version| {
            let local = SiteStatus::decode_fields(d, 1)?;
            if version < 2 {
                return Ok(MirrorImageStatus { local: Some(local), remotes: Vec::new() });
            }
            let local = d.bool()?.then_some(local);
            let remotes = d.seq(REMOTE_STATUS_BYTES_MIN, |d| SiteStatus::decode_fields(d, 2))?;
            Ok(MirrorImageStatus { local, remotes })
        })
    }
}

/// The client that wrote a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StatusInstance {
    /// Its name; the number is the global id that the manager's service map knows it by.
    pub name: EntityName,
    /// Its address.
    pub address: EntityAddress,
}

impl Decode for StatusInstance {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        Ok(StatusInstance { name: EntityName::decode(d)?, address: EntityAddress::decode(d)? })
    }
}

impl Mirroring {
    /// Writes the status of an image. Nothing happens when the image is not enabled here.
    pub async fn status_set(&self, global_id: &GlobalImageId, status: &SiteStatus) -> Result<()> {
        let set = self.write("mirror_image_status_set", |e| e.string(&global_id.0).value(status)).await;
        set.context(format!("cannot set the mirroring status of image {global_id}"))
    }

    /// Removes every status of an image; no error when there is none.
    pub async fn status_remove(&self, global_id: &GlobalImageId) -> Result<()> {
        let removed = self.write("mirror_image_status_remove", |e| e.string(&global_id.0)).await;
        removed.context(format!("cannot remove the mirroring status of image {global_id}"))
    }

    /// Removes the statuses whose daemon is gone. A daemon does so when it starts.
    pub async fn status_remove_down(&self) -> Result<()> {
        match self.write("mirror_image_status_remove_down", |e| e).await {
            Err(e) if e.is_not_found() => Ok(()),
            removed => removed.context("cannot remove the mirroring statuses of daemons that are gone"),
        }
    }

    /// The status of an image; `None` when nobody wrote one.
    pub async fn status(&self, global_id: &GlobalImageId) -> Result<Option<MirrorImageStatus>> {
        let found =
            self.read("mirror_image_status_get", |e| e.string(&global_id.0), MirrorImageStatus::decode).await;
        found.context(format!("cannot read the mirroring status of image {global_id}")).optional()
    }

    /// Every mirrored image with its status, as far as one was written.
    pub async fn statuses(&self) -> Result<BTreeMap<ImageId, (MirrorImage, Option<MirrorImageStatus>)>> {
        let mut all = BTreeMap::new();
        loop {
            let after = all.last_key_value().map_or(String::new(), |(ImageId(id), _)| id.clone());
            let (images, mut statuses) = match self.statuses_page(&after).await {
                Ok(page) => page,
                Err(e) if e.is_not_found() => return Ok(all),
                Err(e) => return Err(e.context("cannot list the mirroring statuses")),
            };
            let (before, full) = (all.len(), images.len() as u64 >= PAGE_ENTRIES);
            for (id, image) in images {
                let status = statuses.remove(&id);
                all.insert(id, (image, status));
            }
            if !full || all.len() == before {
                return Ok(all);
            }
        }
    }

    async fn statuses_page(
        &self,
        after: &str,
    ) -> Result<(BTreeMap<ImageId, MirrorImage>, BTreeMap<ImageId, MirrorImageStatus>)> {
        self.read(
            "mirror_image_status_list",
            |e| e.string(after).u64(PAGE_ENTRIES),
            |d| {
                let images = d.seq(10, |d| Ok((ImageId(d.string()?), MirrorImage::decode(d)?)))?;
                let statuses = d.seq(10, |d| Ok((ImageId(d.string()?), MirrorImageStatus::decode(d)?)))?;
                Ok((images.into_iter().collect(), statuses.into_iter().collect()))
            },
        )
        .await
    }

    /// Number of images in each state. With `peers`, the statuses of the sites that pull from here count, too.
    pub async fn status_summary(&self, peers: &[MirrorPeer]) -> Result<BTreeMap<StatusState, u32>> {
        let found = self
            .read(
                "mirror_image_status_get_summary",
                |e| e.seq(peers, |e, peer| peer.encode(e)),
                |d| d.seq(5, |d| Ok((StatusState::from_wire(d.u8()?), d.u32()?))),
            )
            .await;
        let found = found.context("cannot sum up the mirroring statuses").optional()?;
        Ok(found.unwrap_or_default().into_iter().collect())
    }

    /// The client that wrote the local status of an image; `None` when there is none or that client is gone.
    pub async fn status_instance(&self, global_id: &GlobalImageId) -> Result<Option<StatusInstance>> {
        match self.read("mirror_image_instance_get", |e| e.string(&global_id.0), StatusInstance::decode).await
        {
            Err(e) if e.is(libc::ESTALE) => Ok(None),
            found => found.context(format!("cannot tell which daemon mirrors image {global_id}")).optional(),
        }
    }

    /// The client that wrote the local status, of every image for which there is one and it is alive.
    pub async fn status_instances(&self) -> Result<BTreeMap<ImageId, StatusInstance>> {
        // Images without an instance are left out, so a page may be short of entries without being the last one.
        let mut all = BTreeMap::new();
        let images = self.image_ids().await?;
        let ids: Vec<&ImageId> = images.keys().collect();
        let mut after = String::new();
        for page in ids.chunks(PAGE_ENTRIES as usize) {
            let entry = |d: &mut Decoder<'_>| Ok((ImageId(d.string()?), StatusInstance::decode(d)?));
            let found = self
                .read(
                    "mirror_image_instance_list",
                    |e| e.string(&after).u64(page.len() as u64),
                    |d| d.seq(14, entry),
                )
                .await;
            all.extend(
                found
                    .context("cannot list which daemons mirror which images")
                    .optional()?
                    .unwrap_or_default(),
            );
            after = page.last().map_or(String::new(), |id| id.0.clone());
        }
        Ok(all)
    }
}
