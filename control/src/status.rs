//! Status of images and pools, as `rbd mirror image status` and `rbd mirror pool status|info` tell it.
//!
//! A whole pool is told of from a few lists, whatever its number of images.
//!
//! Reference: `src/librbd/mirror/GetStatusRequest.cc`, `src/librbd/api/Mirror.cc` (`image_status_summary`),
//! `src/tools/rbd/Utils.cc` (`populate_unknown_mirror_image_site_statuses`).

use std::collections::{BTreeMap, BTreeSet};

use bootstrap::site_name;
use futures::{StreamExt, TryStreamExt};
use rados::error::ResultExt;
use rados::{Error, Result};
use rbd::mirroring::{
    MirrorImage, MirrorImageMode, MirrorImageStatus, MirrorMode, MirrorPeer, Mirroring, PeerDirection,
    SiteStatus, StatusInstance, StatusState,
};
use rbd::types::{ImageId, Timestamp};
use rbd::{ImageHeader, directory};

use crate::daemons::Daemons;
use crate::info::{info, read_journal_role, snapshot_role};
use crate::pool::Pool;
use crate::report::{
    Health, ImageInfo, ImageStatus, PeerInfo, PoolInfo, PoolStatus, PrimarySnapshot, Role, SiteReport,
    StateCount,
};

const STATUS_NOT_FOUND: &str = "status not found";

impl Pool {
    /// Mirroring of the pool or namespace. With `attributes`, how its peers are reached is told, too: EPERM or EACCES
    /// when this client may not see that.
    pub async fn info(&self, attributes: bool) -> Result<PoolInfo> {
        let (mirroring, pool_mirroring) = (self.mirroring(), self.pool_mirroring());
        let (mode, mirror_uuid, remote_namespace, site_name) = futures::try_join!(
            mirroring.mode(),
            pool_mirroring.uuid(),
            mirroring.remote_namespace(),
            site_name(self.cluster())
        )?;
        let mut peers = Vec::new();
        if self.namespace().is_empty() {
            for peer in self.peers().list().await? {
                let attributes = match attributes {
                    true => self.peers().attributes(&peer.uuid).await?,
                    false => None,
                };
                peers.push(peer_info(peer, attributes));
            }
        }
        Ok(PoolInfo { mode, site_name, mirror_uuid, remote_namespace, peers })
    }

    /// How mirroring of the pool or namespace goes; with `images`, of each of its images, too. EINVAL when it is not
    /// enabled.
    pub async fn status(&self, images: bool) -> Result<PoolStatus> {
        self.require_mirroring().await?;
        // A namespace has no peers of its own.
        let peers = self.pool_mirroring().peers().await?;
        let states = self.mirroring().status_summary(&peers).await?;
        let daemons = Daemons::read(self.cluster(), self.id()).await?;
        let image_health = states.keys().map(|state| image_health(*state)).max().unwrap_or(Health::Ok);
        let images = match images {
            true => Some(self.image_statuses(&peers, &daemons).await?),
            false => None,
        };
        Ok(PoolStatus {
            health: image_health.max(daemons.health),
            daemon_health: daemons.health,
            image_health,
            states: states.into_iter().map(|(state, images)| StateCount { state, images }).collect(),
            daemons: daemons.daemons,
            images,
        })
    }

    /// How mirroring of an image goes. EINVAL when it is not mirrored.
    pub async fn image_status(&self, name: &str) -> Result<ImageStatus> {
        let id = directory::id_of(self.ioctx(), name).await?;
        let (mirroring, pool_mirroring) = (self.mirroring(), self.pool_mirroring());
        let (mirror, peers) = futures::try_join!(mirroring.image(&id), pool_mirroring.peers())?;
        let info = self.info_of(name, &id, mirror).await?;
        self.require_enabled(&info)?;
        let Some(global_id) = info.global_id.clone() else {
            return Err(Error::new(
                libc::EINVAL,
                format!("image '{}' has no global id", self.image_spec(name)),
            ));
        };
        let (status, instance) =
            futures::try_join!(mirroring.status(&global_id), mirroring.status_instance(&global_id))?;
        let daemons = match instance {
            Some(_) => Daemons::read(self.cluster(), self.id()).await?,
            None => Daemons { daemons: Vec::new(), health: Health::Unknown },
        };
        let snapshots = match (info.role, info.mode) {
            (Role::Primary, Some(MirrorImageMode::Snapshot)) => {
                primary_snapshots(&ImageHeader::read(self.ioctx(), &id).await?)
            }
            _ => Vec::new(),
        };
        Ok(ImageStatus { snapshots, ..assemble(info, status, &peers, instance.as_ref(), &daemons) })
    }

    /// Fails with EINVAL unless mirroring of the pool or namespace is enabled.
    pub(crate) async fn require_mirroring(&self) -> Result<()> {
        match self.mirroring().mode().await? {
            MirrorMode::Disabled => {
                Err(Error::new(libc::EINVAL, format!("mirroring is not enabled in {self}")))
            }
            _ => Ok(()),
        }
    }

    /// Fails with EINVAL unless the image is mirrored.
    pub(crate) fn require_enabled(&self, info: &ImageInfo) -> Result<()> {
        if info.is_enabled() {
            return Ok(());
        }
        let what = format!("mirroring is not enabled on image '{}'", self.image_spec(&info.name));
        Err(Error::new(libc::EINVAL, what))
    }

    /// The mirroring of the pool itself, where the peers are.
    pub(crate) fn pool_mirroring(&self) -> Mirroring {
        Mirroring::new(&self.ioctx().with_namespace(""))
    }

    /// Every image that is mirrored and has a name, by name.
    async fn image_statuses(&self, peers: &[MirrorPeer], daemons: &Daemons) -> Result<Vec<ImageStatus>> {
        let mirroring = self.mirroring();
        let (names, statuses, instances) = futures::try_join!(
            directory::list(self.ioctx()),
            mirroring.statuses(),
            mirroring.status_instances()
        )?;
        let named: Vec<_> =
            names.iter().filter_map(|(name, id)| Some((name, id, statuses.get(id)?))).collect();
        let one =
            |(name, id, (mirror, status)): (&String, &ImageId, &(MirrorImage, Option<MirrorImageStatus>))| {
                let (name, id, mirror, status) = (name.clone(), id.clone(), mirror.clone(), status.clone());
                let instance = instances.get(&id);
                async move {
                    let role = self.role_for_status(&id, &mirror).await?;
                    let info = info(&name, &id, Some(mirror), role);
                    Ok::<_, Error>(assemble(info, status, peers, instance, daemons))
                }
            };
        let statuses = futures::stream::iter(named.into_iter().map(one));
        statuses.buffered(self.options().images_in_flight.max(1)).try_collect().await
    }

    /// The role of an image; unknown for one that cannot be read right now, as one that is being removed.
    async fn role_for_status(&self, id: &ImageId, mirror: &MirrorImage) -> Result<(Role, String)> {
        let role = match mirror.mode {
            MirrorImageMode::Journal => read_journal_role(self.ioctx(), id).await,
            _ => ImageHeader::read(self.ioctx(), id).await.map(|header| snapshot_role(&header)),
        };
        Ok(role.optional()?.unwrap_or((Role::Unknown, String::new())))
    }
}

fn peer_info(peer: MirrorPeer, attributes: Option<bootstrap::PeerAttributes>) -> PeerInfo {
    PeerInfo {
        uuid: peer.uuid,
        direction: peer.direction,
        site_name: peer.site_name,
        mirror_uuid: peer.mirror_uuid,
        client_name: peer.client_name,
        last_seen: peer.last_seen,
        attributes,
    }
}

fn image_health(state: StatusState) -> Health {
    match state {
        StatusState::Replaying | StatusState::Stopped => Health::Ok,
        StatusState::Error => Health::Error,
        _ => Health::Warning,
    }
}

/// Primary mirror-snapshots, oldest first.
pub(crate) fn primary_snapshots(header: &ImageHeader) -> Vec<PrimarySnapshot> {
    let primary = |snapshot: &rbd::Snapshot| {
        let mirror = snapshot.mirror().filter(|mirror| mirror.state.is_primary())?;
        Some(PrimarySnapshot {
            id: snapshot.id,
            name: snapshot.name.clone(),
            demoted: mirror.state.is_demoted(),
            complete: mirror.complete,
            timestamp: snapshot.timestamp,
            mirror_peer_uuids: mirror.mirror_peer_uuids.iter().cloned().collect(),
        })
    };
    header.snapshots.values().filter_map(primary).collect()
}

/// Puts together what is known of an image. Sites that the peer table knows and that told nothing are named; those that
/// it does not know are left out.
fn assemble(
    info: ImageInfo,
    status: Option<MirrorImageStatus>,
    peers: &[MirrorPeer],
    instance: Option<&StatusInstance>,
    daemons: &Daemons,
) -> ImageStatus {
    let MirrorImageStatus { local, remotes } = status.unwrap_or_default();
    let only_sends = !peers.is_empty() && peers.iter().all(|peer| peer.direction == PeerDirection::Tx);
    let local = (!only_sends).then(|| report("", None, local));
    let daemon = match &local {
        Some(local) if local.up => {
            instance.and_then(|instance| daemons.by_instance(&instance.name.number.to_string())).cloned()
        }
        _ => None,
    };
    let mut missing: BTreeSet<&str> = BTreeSet::new();
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    for peer in peers.iter().filter(|peer| !peer.mirror_uuid.is_empty()) {
        if peer.direction != PeerDirection::Tx {
            missing.insert(&peer.mirror_uuid);
        }
        if !peer.site_name.is_empty() {
            names.insert(&peer.mirror_uuid, &peer.site_name);
        }
    }
    let mut peer_sites = Vec::new();
    for site in remotes {
        if missing.remove(site.mirror_uuid.as_str()) {
            let uuid = site.mirror_uuid.clone();
            peer_sites.push(report(&uuid, names.get(uuid.as_str()).copied(), Some(site)));
        }
    }
    peer_sites.extend(missing.iter().map(|uuid| report(uuid, names.get(uuid).copied(), None)));
    ImageStatus { info, local, daemon, peer_sites, snapshots: Vec::new() }
}

fn report(mirror_uuid: &str, site_name: Option<&str>, told: Option<SiteStatus>) -> SiteReport {
    let site_name = site_name.map(str::to_string);
    match told {
        Some(status) => SiteReport {
            mirror_uuid: mirror_uuid.to_string(),
            site_name,
            up: status.up,
            state: status.state,
            description: status.description,
            last_update: status.last_update,
        },
        None => SiteReport {
            mirror_uuid: mirror_uuid.to_string(),
            site_name,
            up: false,
            state: StatusState::Unknown,
            description: STATUS_NOT_FOUND.to_string(),
            last_update: Timestamp::default(),
        },
    }
}
