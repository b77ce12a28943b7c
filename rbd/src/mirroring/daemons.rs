//! The bookkeeping of the daemons of one pool or namespace, in the object `rbd_mirror_leader`: which daemons run, and
//! which of them mirrors which image. The leader writes both.
//!
//! | value | version | fields |
//! |---|---|---|
//! | [`ImageMapEntry`] | 1 | string instance id, timestamp, blob |
//!
//! An instance id is a client's global id in decimal.
//!
//! Reference: `src/cls/rbd/cls_rbd.cc` (`mirror_instances_*`, `mirror_image_map_*`),
//! `src/tools/rbd_mirror/Instances.cc`, `src/tools/rbd_mirror/image_map/`.

use std::collections::BTreeMap;

use bytes::Bytes;
use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};
use rados::error::ResultExt;
use rados::{IoCtx, Result, WriteOp, WriteSub};

use super::types::GlobalImageId;
use super::{LEADER_OBJECT, list_method, read_method, write_method};
use crate::types::Timestamp;

/// Which daemon mirrors an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMapEntry {
    /// The daemon; empty when none does yet.
    pub instance_id: String,
    /// When that was decided.
    pub mapped: Timestamp,
    /// What the policy that decided it keeps for itself.
    pub data: Bytes,
}

impl Encode for ImageMapEntry {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(1, 1, |e| {
            e.string(&self.instance_id).value(&self.mapped).blob(&self.data);
        });
    }
}

impl Decode for ImageMapEntry {
    fn decode(d: &mut Decoder<'_>) -> std::result::Result<Self, DecodeError> {
        d.versioned("MirrorImageMap", 1, |d, _| {
            Ok(ImageMapEntry {
                instance_id: d.string()?,
                mapped: Timestamp::decode(d)?,
                data: Bytes::copy_from_slice(d.blob()?),
            })
        })
    }
}

/// The bookkeeping of one pool or namespace.
#[derive(Debug, Clone)]
pub struct MirrorDaemons {
    ioctx: IoCtx,
}

impl MirrorDaemons {
    /// Of the pool and namespace of `ioctx`.
    pub fn new(ioctx: &IoCtx) -> MirrorDaemons {
        MirrorDaemons { ioctx: ioctx.clone() }
    }

    /// Creates the object unless it is there, so that it can be watched and locked.
    pub async fn create(&self) -> Result<()> {
        let created = self
            .ioctx
            .write(WriteOp::new(LEADER_OBJECT).with(WriteSub::Create { exclusive: false }).despite_full())
            .await;
        created.map(drop).context(format!("cannot create object '{LEADER_OBJECT}'"))
    }

    /// The daemons that are registered.
    pub async fn instances(&self) -> Result<Vec<String>> {
        let listed = read_method(
            &self.ioctx,
            LEADER_OBJECT,
            "mirror_instances_list",
            |e| e,
            |d| d.seq(4, |d| d.string()),
        )
        .await;
        Ok(listed.context("cannot list the mirroring daemons").optional()?.unwrap_or_default())
    }

    /// Registers a daemon; no error when it is registered.
    pub async fn instance_add(&self, instance_id: &str) -> Result<()> {
        let added =
            write_method(&self.ioctx, LEADER_OBJECT, "mirror_instances_add", |e| e.string(instance_id)).await;
        added.context(format!("cannot register mirroring daemon {instance_id}"))
    }

    /// Strikes out a daemon; no error when it is not registered.
    pub async fn instance_remove(&self, instance_id: &str) -> Result<()> {
        match write_method(&self.ioctx, LEADER_OBJECT, "mirror_instances_remove", |e| e.string(instance_id))
            .await
        {
            Err(e) if e.is_not_found() => Ok(()),
            removed => removed.context(format!("cannot strike out mirroring daemon {instance_id}")),
        }
    }

    /// Which daemon mirrors which image.
    pub async fn image_map(&self) -> Result<BTreeMap<GlobalImageId, ImageMapEntry>> {
        let entry = |d: &mut Decoder<'_>| Ok((GlobalImageId(d.string()?), ImageMapEntry::decode(d)?));
        let listed = list_method(&self.ioctx, LEADER_OBJECT, "mirror_image_map_list", 10, entry).await;
        listed.context("cannot read which daemon mirrors which image")
    }

    /// Writes which daemon mirrors an image.
    pub async fn image_map_set(&self, global_id: &GlobalImageId, entry: &ImageMapEntry) -> Result<()> {
        let set = write_method(&self.ioctx, LEADER_OBJECT, "mirror_image_map_update", |e| {
            e.string(&global_id.0).value(entry)
        })
        .await;
        set.context(format!("cannot write which daemon mirrors image {global_id}"))
    }

    /// Strikes out an image; no error when it is not in the map.
    pub async fn image_map_remove(&self, global_id: &GlobalImageId) -> Result<()> {
        let removed =
            write_method(&self.ioctx, LEADER_OBJECT, "mirror_image_map_remove", |e| e.string(&global_id.0))
                .await;
        removed.context(format!("cannot strike image {global_id} out of the image map"))
    }
}
