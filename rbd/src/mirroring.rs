//! What a pool (or namespace) knows about its mirroring: mode, peers, images, statuses, and the daemons' bookkeeping.
//!
//! All of it lives in the omaps of two objects per namespace, which only the object class `rbd` reads and writes:
//!
//! | object | key | value |
//! |---|---|---|
//! | `rbd_mirroring` | `mirror_uuid` | the uuid, bare |
//! | | `mirror_mode` | u32 |
//! | | `remote_namespace` | string (OSDs from 20 on) |
//! | | `mirror_peer_UUID` | [`MirrorPeer`] |
//! | | `image_ID` | [`MirrorImage`] |
//! | | `global_GLOBALID` | string: the image's id |
//! | | `status_global_GLOBALID` | status of the copy here, with the instance that wrote it |
//! | | `remote_status_global_GLOBALID_MIRRORUUID` | status as the daemon of another site reports it |
//! | `rbd_mirror_leader` | `instance_ID` | nothing: a running daemon |
//! | | `image_map_GLOBALID` | [`ImageMapEntry`] |
//!
//! Everybody who changes mode, peers or images notifies the watchers of `rbd_mirroring` ([`notify`]). The daemons' lock
//! on `rbd_mirror_leader` is a [`crate::managed_lock::ManagedLock`].
//!
//! Reads of a pool where mirroring was never enabled find no object; the methods here answer what that means (disabled,
//! nothing, none) and not ENOENT. All methods are cancel-safe; whether a change whose future was dropped took effect is
//! unknown.
//!
//! Reference: `src/cls/rbd/cls_rbd.cc` (methods `mirror_*`), `src/cls/rbd/cls_rbd_client.cc`, `src/include/rbd_types.h`.

mod daemons;
pub mod notify;
mod status;
mod types;

use std::collections::BTreeMap;

use bytes::Bytes;
use rados::encoding::{Decode, DecodeError, Decoder, Encoder};
use rados::error::ResultExt;
use rados::{Error, IoCtx, Result};

use crate::types::ImageId;

pub use daemons::{ImageMapEntry, MirrorDaemons};
pub use notify::{MirroringEvent, MirroringNotification, MirroringWatch};
pub use status::{MirrorImageStatus, SiteStatus, StatusInstance, StatusState};
pub use types::{
    GlobalImageId, MirrorImage, MirrorImageMode, MirrorImageState, MirrorMode, MirrorPeer, PeerDirection,
};

/// The object that holds a namespace's mirroring.
pub const MIRRORING_OBJECT: &str = "rbd_mirroring";
/// The object on which the daemons of a namespace agree.
pub const LEADER_OBJECT: &str = "rbd_mirror_leader";
/// Entries asked for at once when something is listed.
const PAGE_ENTRIES: u64 = 1024;

const CLASS: &str = "rbd";

/// The mirroring of one pool or namespace.
#[derive(Debug, Clone)]
pub struct Mirroring {
    ioctx: IoCtx,
}

impl Mirroring {
    /// The mirroring of the pool and namespace of `ioctx`.
    pub fn new(ioctx: &IoCtx) -> Mirroring {
        Mirroring { ioctx: ioctx.clone() }
    }

    /// The pool and namespace.
    pub fn ioctx(&self) -> &IoCtx {
        &self.ioctx
    }

    /// The mirror uuid: by which the namespace is known to its peers. `None` when mirroring was never enabled.
    pub async fn uuid(&self) -> Result<Option<String>> {
        let found = self.read("mirror_uuid_get", |e| e, |d| d.string()).await;
        found.context("cannot read the mirror uuid").optional()
    }

    /// Sets the mirror uuid. EINVAL while mirroring is enabled.
    pub async fn set_uuid(&self, mirror_uuid: &str) -> Result<()> {
        let set = self.write("mirror_uuid_set", |e| e.string(mirror_uuid)).await;
        set.context(format!("cannot set the mirror uuid to '{mirror_uuid}'"))
    }

    /// Which images are mirrored.
    pub async fn mode(&self) -> Result<MirrorMode> {
        let found = self.read("mirror_mode_get", |e| e, |d| Ok(MirrorMode::from_wire(d.u32()?))).await;
        Ok(found.context("cannot read the mirroring mode").optional()?.unwrap_or(MirrorMode::Disabled))
    }

    /// Sets which images are mirrored. EINVAL when there is no mirror uuid yet; EBUSY when peers are still registered
    /// while it is to be disabled.
    pub async fn set_mode(&self, mode: MirrorMode) -> Result<()> {
        let set = self.write("mirror_mode_set", |e| e.u32(mode.to_wire())).await;
        set.context(format!("cannot set the mirroring mode to {mode}"))
    }

    /// The peer's namespace that this one is mirrored with, where one was set and the OSDs know of such a thing; the
    /// namespace of the same name otherwise.
    pub async fn remote_namespace(&self) -> Result<String> {
        match self.read("mirror_remote_namespace_get", |e| e, |d| d.string()).await {
            Ok(namespace) => Ok(namespace),
            Err(e) if e.is_not_found() || e.is(libc::EOPNOTSUPP) => Ok(self.ioctx.namespace().to_string()),
            Err(e) => Err(e.context("cannot read the remote namespace of mirroring")),
        }
    }

    /// True when the OSDs know of remote namespaces, and of the mode init-only, which came with them.
    pub async fn supports_remote_namespace(&self) -> Result<bool> {
        match self.read("mirror_remote_namespace_get", |e| e, |d| d.string()).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(true),
            Err(e) if e.is(libc::EOPNOTSUPP) => Ok(false),
            Err(e) => Err(e.context("cannot tell whether the OSDs know of remote namespaces")),
        }
    }

    /// Sets the peer's namespace. EINVAL while mirroring is enabled, EOPNOTSUPP when the OSDs know no such thing.
    pub async fn set_remote_namespace(&self, namespace: &str) -> Result<()> {
        let set = self.write("mirror_remote_namespace_set", |e| e.string(namespace)).await;
        set.context(format!("cannot set the remote namespace of mirroring to '{namespace}'"))
    }

    /// The peers.
    pub async fn peers(&self) -> Result<Vec<MirrorPeer>> {
        let peers = self.read("mirror_peer_list", |e| e, |d| d.seq(6, MirrorPeer::decode)).await;
        Ok(peers.context("cannot list the mirroring peers").optional()?.unwrap_or_default())
    }

    /// Registers a peer. EINVAL when mirroring is disabled or the peer incomplete, ESTALE when its uuid and EEXIST when
    /// its site name or mirror uuid is taken.
    pub async fn peer_add(&self, peer: &MirrorPeer) -> Result<()> {
        let added = self.write("mirror_peer_add", |e| e.value(peer)).await;
        added.context(format!("cannot add mirroring peer '{}'", peer.site_name))
    }

    /// Strikes out a peer; no error when there is none of this uuid.
    pub async fn peer_remove(&self, uuid: &str) -> Result<()> {
        let removed = self.write("mirror_peer_remove", |e| e.string(uuid)).await;
        removed.context(format!("cannot remove mirroring peer {uuid}"))
    }

    /// Tells this cluster that the site `site_name`, with the mirror uuid `mirror_uuid`, pulls from it: a daemon does so
    /// to its remote, whose peer table then shows who copies it. EINVAL when mirroring is disabled there.
    pub async fn peer_ping(&self, site_name: &str, mirror_uuid: &str) -> Result<()> {
        let direction = PeerDirection::Tx.to_wire();
        let pinged =
            self.write("mirror_peer_ping", |e| e.string(site_name).string(mirror_uuid).u8(direction)).await;
        pinged.context(format!("cannot announce site '{site_name}' in the peer table"))
    }

    /// Sets the client name by which a peer is reached; ENOENT when there is no such peer.
    pub async fn peer_set_client(&self, uuid: &str, client_name: &str) -> Result<()> {
        let set = self.write("mirror_peer_set_client", |e| e.string(uuid).string(client_name)).await;
        set.context(format!("cannot set the client name of mirroring peer {uuid}"))
    }

    /// Sets the site name of a peer; ENOENT when there is no such peer, EEXIST when another one has that name.
    pub async fn peer_set_site_name(&self, uuid: &str, site_name: &str) -> Result<()> {
        let set = self.write("mirror_peer_set_cluster", |e| e.string(uuid).string(site_name)).await;
        set.context(format!("cannot set the site name of mirroring peer {uuid}"))
    }

    /// Sets which way data flows between us and a peer; ENOENT when there is no such peer.
    pub async fn peer_set_direction(&self, uuid: &str, direction: PeerDirection) -> Result<()> {
        let set = self.write("mirror_peer_set_direction", |e| e.string(uuid).u8(direction.to_wire())).await;
        set.context(format!("cannot set the direction of mirroring peer {uuid}"))
    }

    /// Every image that has mirroring metadata, in whichever state: its id and its global id.
    pub async fn image_ids(&self) -> Result<BTreeMap<ImageId, GlobalImageId>> {
        let entry = |d: &mut Decoder<'_>| Ok((ImageId(d.string()?), GlobalImageId(d.string()?)));
        self.list("mirror_image_list", 8, entry).await.context("cannot list the mirrored images")
    }

    /// Every image that has mirroring metadata, with its metadata. The list is consistent image by image: one that goes
    /// away while it is made may be missing.
    pub async fn images(&self) -> Result<BTreeMap<ImageId, MirrorImage>> {
        let entries = match self.ioctx.omap_all(MIRRORING_OBJECT, "image_").await {
            Ok(entries) => entries,
            Err(e) if e.is_not_found() => return Ok(BTreeMap::new()),
            Err(e) => return Err(e.context("cannot list the mirrored images")),
        };
        let mut images = BTreeMap::new();
        for (key, value) in entries {
            let id = ImageId(key.trim_start_matches("image_").to_string());
            let image = MirrorImage::from_bytes(&value, "MirrorImage").map_err(Error::from);
            images.insert(id, image.context(format!("cannot read the mirroring metadata '{key}'"))?);
        }
        Ok(images)
    }

    /// An image's mirroring metadata; `None` when it is not mirrored.
    pub async fn image(&self, image: &ImageId) -> Result<Option<MirrorImage>> {
        let found = self.read("mirror_image_get", |e| e.string(&image.0), MirrorImage::decode).await;
        found.context(format!("cannot read the mirroring metadata of image {image}")).optional()
    }

    /// The image with this global id here; `None` when there is none.
    pub async fn image_id(&self, global_id: &GlobalImageId) -> Result<Option<ImageId>> {
        let found = self
            .read("mirror_image_get_image_id", |e| e.string(&global_id.0), |d| Ok(ImageId(d.string()?)))
            .await;
        found.context(format!("cannot look for the image with global id {global_id}")).optional()
    }

    /// Sets an image's mirroring metadata. EEXIST when another image has its global id, EINVAL when the global id is to
    /// change, ENOENT when a state of disabling comes too late.
    pub async fn image_set(&self, image: &ImageId, mirror: &MirrorImage) -> Result<()> {
        let set = self.write("mirror_image_set", |e| e.string(&image.0).value(mirror)).await;
        set.context(format!("cannot set mirroring of image {image} to {}", mirror.state))
    }

    /// Removes an image's mirroring metadata and statuses. EBUSY unless its state is disabling, ENOENT when there is
    /// none.
    pub async fn image_remove(&self, image: &ImageId) -> Result<()> {
        let removed = self.write("mirror_image_remove", |e| e.string(&image.0)).await;
        removed.context(format!("cannot remove the mirroring metadata of image {image}"))
    }

    /// Calls a method that reads and decodes its output.
    async fn read<T>(
        &self,
        method: &str,
        input: impl FnOnce(&mut Encoder) -> &mut Encoder,
        decode: impl FnOnce(&mut Decoder<'_>) -> std::result::Result<T, DecodeError>,
    ) -> Result<T> {
        read_method(&self.ioctx, MIRRORING_OBJECT, method, input, decode).await
    }

    /// Calls a method that writes.
    async fn write(&self, method: &str, input: impl FnOnce(&mut Encoder) -> &mut Encoder) -> Result<()> {
        write_method(&self.ioctx, MIRRORING_OBJECT, method, input).await
    }

    /// Calls a listing method until it has nothing more; `entry` reads one key and value.
    async fn list<K: Ord + AsRef<str>, V>(
        &self,
        method: &str,
        entry_bytes_min: usize,
        entry: impl Fn(&mut Decoder<'_>) -> std::result::Result<(K, V), DecodeError>,
    ) -> Result<BTreeMap<K, V>> {
        list_method(&self.ioctx, MIRRORING_OBJECT, method, entry_bytes_min, entry).await
    }
}

async fn read_method<T>(
    ioctx: &IoCtx,
    object: &str,
    method: &str,
    input: impl FnOnce(&mut Encoder) -> &mut Encoder,
    decode: impl FnOnce(&mut Decoder<'_>) -> std::result::Result<T, DecodeError>,
) -> Result<T> {
    let output = ioctx.exec(object, CLASS, method, encode(input)).await?;
    Ok(decode(&mut Decoder::new(&output, "the answer of a mirroring method"))?)
}

async fn write_method(
    ioctx: &IoCtx,
    object: &str,
    method: &str,
    input: impl FnOnce(&mut Encoder) -> &mut Encoder,
) -> Result<()> {
    ioctx.exec_write(object, CLASS, method, encode(input)).await
}

/// Lists page by page. The input of such a method is the key to start after and the most entries to return; the output
/// is a map. A missing object holds nothing.
async fn list_method<K: Ord + AsRef<str>, V>(
    ioctx: &IoCtx,
    object: &str,
    method: &str,
    entry_bytes_min: usize,
    entry: impl Fn(&mut Decoder<'_>) -> std::result::Result<(K, V), DecodeError>,
) -> Result<BTreeMap<K, V>> {
    let mut all = BTreeMap::new();
    loop {
        let after = all.last_key_value().map_or(String::new(), |(key, _): (&K, &V)| key.as_ref().to_string());
        let page = read_method(
            ioctx,
            object,
            method,
            |e| e.string(&after).u64(PAGE_ENTRIES),
            |d| d.seq(entry_bytes_min, &entry),
        );
        let page = match page.await {
            Ok(page) => page,
            Err(e) if e.is_not_found() => return Ok(all),
            Err(e) => return Err(e),
        };
        // A page that brings nothing new would otherwise be asked for over and over.
        let (before, full) = (all.len(), page.len() as u64 >= PAGE_ENTRIES);
        all.extend(page);
        if !full || all.len() == before {
            return Ok(all);
        }
    }
}

fn encode(input: impl FnOnce(&mut Encoder) -> &mut Encoder) -> Bytes {
    let mut e = Encoder::new();
    input(&mut e);
    e.finish()
}

#[cfg(test)]
mod tests;
