//! Links a mirror-snapshot of the primary to this site, when it was made before the primary's pool knew this site as a peer
//! (or knew it under another uuid). The primary keeps a snapshot until all peers that it is linked to have copied it.
//!
//! No class method adds a peer, so the record of the snapshot is rewritten, with all of its other bytes as they are. The
//! write holds only for the version of the header object at which the record was read: no change by others is lost. What it
//! sets is what the snapshot would say had it been made now. A record, the omap value of `snapshot_%016x` in the header
//! (`cls_rbd_snap`), begins so:
//!
//! | field | bytes |
//! |---|---|
//! | version, oldest compatible version, length of what follows | u8 8, u8 8, u32 |
//! | id, name, image size, protection status, flags | u64, string, u64, u8, u64 |
//! | namespace: version, oldest compatible version, length of what follows | u8, u8, u32 |
//! | its type, state, whether it is complete | u32, u8, u8 |
//! | uuids of peers | u32 and strings |
//!
//! Reference: `src/cls/rbd/cls_rbd.h`, `src/cls/rbd/cls_rbd_types.h`. A record of another version is refused.

use bytes::Bytes;
use rados::encoding::{Decode, DecodeError, Decoder, Encoder};
use rados::error::ResultExt;
use rados::{Error, ReadAnswer, ReadSub, Result, SnapId, WriteOp, WriteSub};
use rbd::encodings::namespace_type;
use rbd::header_update::HeaderUpdate;
use rbd::image::Image;
use rbd::layout::header_object;
use rbd::mirroring::Mirroring;
use rbd::watch_notify::notify_header_update;
use rbd::{MirrorSnapshotState, Snapshot};

use crate::begin::{ATTEMPTS_MAX, is_changed, unless_changed};

/// The version of the record that is understood.
const RECORD_VERSION: u8 = 8;
/// Bytes of a struct's version, oldest compatible version and length.
const HEAD_BYTES: usize = 6;

/// Links the complete mirror-snapshot `snap` of `image` to the peer `peer_uuid` of its pool. False when that is not (or no
/// longer) a peer that the pool sends to, or when the snapshot is gone: nothing is linked then. Repeatable.
pub async fn link_to_peer(image: &Image, snap: SnapId, peer_uuid: &str) -> Result<bool> {
    let what = || {
        format!(
            "cannot link mirror-snapshot {snap} of the remote image '{}' to this site: take a new one at the remote site with \
             'rbd mirror image snapshot'",
            image.name()
        )
    };
    if !is_peer(image, peer_uuid).await.context(what())?
        || !add_peer(image, snap, peer_uuid).await.context(what())?
    {
        return Ok(false);
    }
    // A peer that was removed meanwhile would keep the snapshot for good.
    let linked = is_peer(image, peer_uuid).await.context(what())?;
    if !linked {
        let update = HeaderUpdate::of(image.id()).unlink_peer(snap, peer_uuid);
        update.apply(image.header_ioctx()).await.optional().context(what())?;
    }
    // Nobody is waited for: a client that misses it reads the header anew before it removes a snapshot.
    let (ioctx, id) = (image.header_ioctx().clone(), image.id().clone());
    tokio::spawn(async move { notify_header_update(&ioctx, &id).await });
    Ok(linked)
}

async fn is_peer(image: &Image, peer_uuid: &str) -> Result<bool> {
    let peers = Mirroring::new(&image.header_ioctx().with_namespace("")).peers().await?;
    Ok(peers.iter().any(|peer| peer.uuid == peer_uuid && peer.direction.transmits()))
}

/// False when there is no such complete mirror-snapshot.
async fn add_peer(image: &Image, snap: SnapId, peer_uuid: &str) -> Result<bool> {
    let key = format!("snapshot_{:016x}", snap.0);
    for _ in 0..ATTEMPTS_MAX {
        // The header first: the write fails if anything changed since.
        let header = image.read_header().await?;
        let mirror = header.snapshots.get(&snap).and_then(Snapshot::mirror);
        let Some(mirror) = mirror.filter(|mirror| mirror.complete) else { return Ok(false) };
        if mirror.mirror_peer_uuids.contains(peer_uuid) {
            return Ok(true);
        }
        let read = ReadSub::OmapGetByKeys(vec![key.clone()]);
        let object = header_object(image.id());
        let ReadAnswer::Omap(page) = image.header_ioctx().read_one(&object, SnapId::HEAD, read).await? else {
            return Err(Error::new(libc::EBADMSG, "its record cannot be read"));
        };
        let Some((_, stored)) = page.entries.into_iter().find(|(found, _)| *found == key) else { continue };
        let record = with_peer(&stored, peer_uuid).map_err(Error::from)?;
        let op = WriteOp::new(object).with(WriteSub::OmapSet(vec![(key.clone(), record)]));
        match image.header_ioctx().write(unless_changed(op, &header)).await {
            Ok(_) => {
                tracing::info!(image = %image.id(), "linked mirror-snapshot {snap} to this site");
                return Ok(true);
            }
            Err(error) if is_changed(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Error::new(libc::EAGAIN, "others keep changing the image"))
}

/// The record `stored` with one more peer.
fn with_peer(stored: &[u8], peer_uuid: &str) -> std::result::Result<Bytes, DecodeError> {
    let mut d = Decoder::new(stored, "snapshot record");
    let (version, compat) = (d.u8()?, d.u8()?);
    if version != RECORD_VERSION || compat != RECORD_VERSION {
        return Err(
            d.invalid(format!("it has version {version} (compatible with {compat}), not {RECORD_VERSION}"))
        );
    }
    let length = d.u32()? as usize;
    let fields = d.raw(length)?;
    let mut d = Decoder::new(fields, "snapshot record");
    d.u64()?;
    d.string()?;
    d.raw(8 + 1 + 8)?;
    let namespace_at = length - d.left();
    d.raw(2)?;
    let namespace_length = d.u32()?;
    if d.u32()? != namespace_type::MIRROR {
        return Err(d.invalid("it is no mirror-snapshot"));
    }
    MirrorSnapshotState::decode(&mut d)?;
    d.bool()?;
    let peers_at = length - d.left();
    let peers = d.u32()?;
    for _ in 0..peers {
        d.string()?;
    }
    let behind_peers = length - d.left();

    let added = 4 + peer_uuid.len() as u32;
    let mut e = Encoder::new();
    e.u8(version).u8(compat).u32(length as u32 + added);
    e.raw(&fields[..namespace_at + 2]).u32(namespace_length + added);
    e.raw(&fields[namespace_at + HEAD_BYTES..peers_at]).u32(peers + 1);
    e.raw(&fields[peers_at + 4..behind_peers]).string(peer_uuid).raw(&fields[behind_peers..]);
    Ok(e.finish())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rados::encoding::Encode;
    use rbd::{MirrorSnapshot, SnapshotNamespace};

    fn record(version: u8, peers: &[&str]) -> Bytes {
        let mirror = MirrorSnapshot {
            state: MirrorSnapshotState::Primary,
            complete: true,
            mirror_peer_uuids: peers.iter().map(|peer| peer.to_string()).collect(),
            primary_mirror_uuid: String::new(),
            primary_snap_id: SnapId(3),
            last_copied_object_number: 9,
            snap_seqs: [(SnapId(1), SnapId(2))].into(),
        };
        let mut e = Encoder::new();
        e.versioned(version, version, |e| {
            e.u64(7).string("snap").u64(4096).u8(2).u64(1);
            SnapshotNamespace::Mirror(mirror).encode(e);
            e.u32(1600).u32(5).u32(3).u8(1).u64(77);
        });
        e.finish()
    }

    #[test]
    fn one_peer_is_added_and_all_else_stays() {
        assert_eq!(with_peer(&record(8, &[]), "us").unwrap(), record(8, &["us"]));
        assert_eq!(with_peer(&record(8, &["a", "b"]), "us").unwrap(), record(8, &["a", "b", "us"]));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(with_peer(&record(9, &[]), "us").is_err());
        let mut e = Encoder::new();
        e.versioned(8, 8, |e| {
            e.u64(7).string("snap").u64(4096).u8(2).u64(1);
            SnapshotNamespace::User.encode(e);
            e.u32(1600).u32(5).u32(3).u8(0);
        });
        assert!(with_peer(&e.finish(), "us").is_err());
        let whole = record(8, &["a"]);
        for end in 0..whole.len() {
            assert!(with_peer(&whole[..end], "us").is_err(), "{end} bytes");
        }
    }
}
