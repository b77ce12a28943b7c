//! What a pool and its remote counterpart know of each other, kept current.
//!
//! Every now and then the remote's peer table is told our site name and mirror uuid (`mirror_peer_ping`: thus `rbd
//! mirror pool info` over there shows who pulls from it, and when it was last in touch) and read for the uuid under
//! which it knows us: primary snapshots name the peers that have yet to copy them by that uuid.
//!
//! Reference: `src/tools/rbd_mirror/RemotePoolPoller.cc`.

use std::sync::Arc;
use std::time::Duration;

use rados::{ErrorClass, IoCtx, Result};
use rbd::mirroring::{MirrorPeer, Mirroring, PeerDirection};
use tokio::time::sleep;

/// How often the remote is told of us.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// What the remote pool is to us, and we to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotePool {
    /// Its mirror uuid.
    pub mirror_uuid: Arc<str>,
    /// The uuid under which its peer table knows us; empty when it does not.
    pub peer_uuid: Arc<str>,
}

/// Pings the remote once. `None` when mirroring is not enabled there.
pub async fn ping(remote: &IoCtx, site_name: &str, local_mirror_uuid: &str) -> Result<Option<RemotePool>> {
    let mirroring = Mirroring::new(remote);
    let Some(mirror_uuid) = mirroring.uuid().await?.filter(|uuid| !uuid.is_empty()) else {
        return Ok(None);
    };
    match mirroring.peer_ping(site_name, local_mirror_uuid).await {
        Ok(()) => {}
        Err(e) if e.class() == ErrorClass::Fenced => return Err(e),
        // The table may know us all the same.
        Err(e) => tracing::warn!("{e}"),
    }
    let peers = mirroring.peers().await?;
    let peer = own_entry(&peers, site_name, local_mirror_uuid);
    let peer_uuid = peer.map_or("", |peer| &peer.uuid);
    Ok(Some(RemotePool { mirror_uuid: mirror_uuid.into(), peer_uuid: peer_uuid.into() }))
}

/// Pings until the remote pool is something else to us than `known`. A pool that is gone, or in which mirroring is not
/// enabled, is waited for: the statuses of the images say so meanwhile. Failures are logged, unless the connection is of
/// no use any more. Cancel-safe.
pub async fn watch(
    remote: &IoCtx,
    site_name: &str,
    local_mirror_uuid: &str,
    known: &RemotePool,
) -> Result<RemotePool> {
    loop {
        sleep(PING_INTERVAL).await;
        match ping(remote, site_name, local_mirror_uuid).await {
            Ok(None) => {}
            Ok(Some(answer)) if answer == *known => {}
            Ok(Some(answer)) => return Ok(answer),
            Err(e) if e.class() == ErrorClass::Fenced => return Err(e),
            Err(e) => tracing::warn!("cannot ping the peer's pool: {e}; trying again"),
        }
    }
}

/// Our entry in a peer table: by our mirror uuid, else by our site name. Entries that only receive are not about us.
fn own_entry<'a>(peers: &'a [MirrorPeer], site_name: &str, mirror_uuid: &str) -> Option<&'a MirrorPeer> {
    let sending = || peers.iter().filter(|peer| peer.direction != PeerDirection::Rx);
    let by_uuid = sending().find(|peer| peer.mirror_uuid == mirror_uuid);
    by_uuid.or_else(|| sending().rfind(|peer| peer.site_name == site_name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rbd::types::Timestamp;

    fn peer(uuid: &str, direction: PeerDirection, site_name: &str, mirror_uuid: &str) -> MirrorPeer {
        MirrorPeer {
            uuid: uuid.into(),
            direction,
            site_name: site_name.into(),
            client_name: String::new(),
            mirror_uuid: mirror_uuid.into(),
            last_seen: Timestamp::default(),
        }
    }

    #[test]
    fn our_entry_is_found_by_uuid_then_by_name() {
        let table = [
            peer("1", PeerDirection::Rx, "us", "m"),
            peer("2", PeerDirection::RxTx, "us", ""),
            peer("3", PeerDirection::Tx, "other", "m"),
        ];
        let found = |name, uuid| own_entry(&table, name, uuid).map(|peer| peer.uuid.as_str());
        assert_eq!(found("us", "m"), Some("3"));
        assert_eq!(found("us", "n"), Some("2"));
        assert_eq!(found("nobody", "n"), None);
    }
}
