//! What is told of mirroring: plain values, for programs to serialize and for people to be shown.
//!
//! Fields are named after those of `rbd … --format json` where there is such a field. Times are as the OSDs set them.

use std::fmt;

use bootstrap::PeerAttributes;
use rados::SnapId;
use rbd::mirroring::{
    GlobalImageId, MirrorImageMode, MirrorImageState, MirrorMode, PeerDirection, StatusState,
};
use rbd::types::{ImageId, Timestamp};
use serde::{Serialize, Serializer};

/// Who may write to an image, as its newest mirror-snapshot or journal tag tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// This site may.
    Primary,
    /// Another site may.
    NonPrimary,
    /// None may: it was demoted and not promoted since.
    Orphan,
    /// Nothing tells: it was never mirrored, or is being made.
    Unknown,
}

/// An image and its mirroring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// Its name.
    pub name: String,
    /// Its id.
    #[serde(serialize_with = "display")]
    pub id: ImageId,
    /// What it is called on every site; `None` when it is not mirrored.
    #[serde(serialize_with = "display_option")]
    pub global_id: Option<GlobalImageId>,
    /// How it is mirrored; `None` when it is not.
    #[serde(serialize_with = "display_option")]
    pub mode: Option<MirrorImageMode>,
    /// Where it is between being mirrored and not.
    #[serde(serialize_with = "display")]
    pub state: MirrorImageState,
    /// Who may write to it.
    pub role: Role,
    /// Mirror uuid of the site that may; empty when that is not another one.
    pub primary_mirror_uuid: String,
}

impl ImageInfo {
    /// True when it is mirrored, and neither being made so nor otherwise.
    pub fn is_enabled(&self) -> bool {
        self.state == MirrorImageState::Enabled
    }

    /// True when this site may write to it.
    pub fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }
}

/// What one site tells of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SiteReport {
    /// Mirror uuid of the site; empty for this one.
    pub mirror_uuid: String,
    /// Its name, when the peer table knows it.
    pub site_name: Option<String>,
    /// Whether its daemon is alive.
    pub up: bool,
    /// What its daemon is doing.
    #[serde(serialize_with = "display")]
    pub state: StatusState,
    /// The same in words, with JSON for programs behind it.
    pub description: String,
    /// When it was told; zero for never.
    #[serde(serialize_with = "seconds")]
    pub last_update: Timestamp,
}

impl SiteReport {
    /// The state as `rbd` prints it: `up+replaying`.
    pub fn label(&self) -> String {
        format!("{}+{}", if self.up { "up" } else { "down" }, self.state)
    }
}

/// A mirror-snapshot of a primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrimarySnapshot {
    /// Its id.
    #[serde(serialize_with = "snap")]
    pub id: SnapId,
    /// Its name.
    pub name: String,
    /// Whether it ended the time as primary.
    pub demoted: bool,
    /// Whether all of it is stored.
    pub complete: bool,
    /// When it was made.
    #[serde(serialize_with = "seconds")]
    pub timestamp: Timestamp,
    /// Peers that have not copied it yet.
    pub mirror_peer_uuids: Vec<String>,
}

/// An image, its mirroring and what every site tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageStatus {
    /// The image.
    #[serde(flatten)]
    pub info: ImageInfo,
    /// What this site tells; `None` when this site only sends.
    pub local: Option<SiteReport>,
    /// The daemon that mirrors it here, when it is alive and known.
    pub daemon: Option<Daemon>,
    /// What the other sites tell.
    pub peer_sites: Vec<SiteReport>,
    /// Mirror-snapshots, oldest first, of an image that is primary in snapshot mode. Not told of whole pools.
    pub snapshots: Vec<PrimarySnapshot>,
}

/// How well something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Health {
    /// Well.
    Ok,
    /// Nothing is known.
    Unknown,
    /// Something is to be looked at.
    Warning,
    /// Something does not work.
    Error,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Health::Ok => "OK",
            Health::Unknown => "UNKNOWN",
            Health::Warning => "WARNING",
            Health::Error => "ERROR",
        })
    }
}

/// A running mirror daemon, as the manager's service map tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Daemon {
    /// Its key in the service map.
    pub service_id: String,
    /// By which mirrored images refer to it; empty when it tells nothing of this pool.
    pub instance_id: String,
    /// The user that it runs as.
    pub client_id: String,
    /// The machine that it runs on.
    pub hostname: String,
    /// Version of Ceph.
    pub ceph_version: String,
    /// Whether it leads the daemons of this pool.
    pub leader: bool,
    /// How well it is.
    pub health: Health,
    /// What is to be looked at.
    pub callouts: Vec<String>,
}

impl Daemon {
    /// As `rbd` names it beside an image: `CLIENT-ID on HOST`.
    pub fn description(&self) -> String {
        let name = if self.client_id.is_empty() { &self.service_id } else { &self.client_id };
        if self.hostname.is_empty() { name.clone() } else { format!("{name} on {}", self.hostname) }
    }
}

/// A peer of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerInfo {
    /// Its uuid here.
    pub uuid: String,
    /// Which way data flows.
    #[serde(serialize_with = "direction")]
    pub direction: PeerDirection,
    /// Its name.
    pub site_name: String,
    /// The mirror uuid of its pool; empty as long as it has not been in touch.
    pub mirror_uuid: String,
    /// The client that we are there.
    pub client_name: String,
    /// When its daemon was last in touch; zero for never.
    #[serde(serialize_with = "seconds")]
    pub last_seen: Timestamp,
    /// How it is reached, when that was asked for. Never serialized: it holds a key.
    #[serde(skip)]
    pub attributes: Option<PeerAttributes>,
}

/// A direction as the command line spells it.
pub fn direction_name(direction: PeerDirection) -> &'static str {
    match direction {
        PeerDirection::Rx => "rx-only",
        PeerDirection::Tx => "tx-only",
        PeerDirection::RxTx => "rx-tx",
        PeerDirection::Unknown(_) => "unknown",
    }
}

/// The mirroring of a pool or namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolInfo {
    /// Which images are mirrored.
    #[serde(serialize_with = "display")]
    pub mode: MirrorMode,
    /// Name of this site.
    pub site_name: String,
    /// By which the pool is known to its peers; `None` when mirroring is not enabled there.
    pub mirror_uuid: Option<String>,
    /// The peers' namespace that it is mirrored with.
    pub remote_namespace: String,
    /// Peers; those of a namespace are its pool's, and not repeated here.
    pub peers: Vec<PeerInfo>,
}

/// How mirroring of a pool or namespace goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolStatus {
    /// The worse of the two below.
    pub health: Health,
    /// Of the daemons.
    pub daemon_health: Health,
    /// Of the images.
    pub image_health: Health,
    /// Number of images in each state.
    pub states: Vec<StateCount>,
    /// The daemons.
    pub daemons: Vec<Daemon>,
    /// The images by name, when they were asked for.
    pub images: Option<Vec<ImageStatus>>,
}

/// Number of images in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StateCount {
    /// The state.
    #[serde(serialize_with = "display")]
    pub state: StatusState,
    /// How many.
    pub images: u32,
}

fn display<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn display_option<T: fmt::Display, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

pub(crate) fn seconds<S: Serializer>(value: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u32(value.seconds)
}

pub(crate) fn snap<S: Serializer>(value: &SnapId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(value.0)
}

fn direction<S: Serializer>(value: &PeerDirection, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(direction_name(*value))
}
