//! Modes, peers and images of mirroring, and their encodings.
//!
//! | value | version | fields |
//! |---|---|---|
//! | [`MirrorPeer`] | 2 | string uuid, string site name, string client name, i64 -1 (once a pool), then from version 2 on: u8 direction, string mirror uuid, timestamp last seen |
//! | [`MirrorImage`] | 2 | string global id, u8 state, then from version 2 on: u8 mode |
//!
//! Reference: `src/cls/rbd/cls_rbd_types.cc`.

use std::fmt;

use rados::encoding::{Decode, DecodeError, Decoder, Encode, Encoder};

use crate::types::{ImageId, Timestamp};

/// What one image is called on every site: a uuid that is the same everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GlobalImageId(pub String);

impl fmt::Display for GlobalImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl AsRef<str> for GlobalImageId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for ImageId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Which images of a pool or namespace are mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MirrorMode {
    /// None.
    Disabled,
    /// Those that are enabled one by one.
    Image,
    /// All that have a journal.
    Pool,
    /// None here, but namespaces may be mirrored (from Ceph 20 on).
    InitOnly,
    /// Of a kind that this program does not know, as encoded.
    Unknown(u32),
}

impl MirrorMode {
    /// The mode encoded as `wire`.
    pub fn from_wire(wire: u32) -> MirrorMode {
        match wire {
            0 => MirrorMode::Disabled,
            1 => MirrorMode::Image,
            2 => MirrorMode::Pool,
            3 => MirrorMode::InitOnly,
            wire => MirrorMode::Unknown(wire),
        }
    }

    /// As encoded.
    pub fn to_wire(self) -> u32 {
        match self {
            MirrorMode::Disabled => 0,
            MirrorMode::Image => 1,
            MirrorMode::Pool => 2,
            MirrorMode::InitOnly => 3,
            MirrorMode::Unknown(wire) => wire,
        }
    }

    /// True when images may be mirrored.
    pub fn is_enabled(self) -> bool {
        matches!(self, MirrorMode::Image | MirrorMode::Pool)
    }
}

impl fmt::Display for MirrorMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MirrorMode::Disabled => f.write_str("disabled"),
            MirrorMode::Image => f.write_str("image"),
            MirrorMode::Pool => f.write_str("pool"),
            MirrorMode::InitOnly => f.write_str("init-only"),
            MirrorMode::Unknown(wire) => write!(f, "unknown ({wire})"),
        }
    }
}

/// Which way data flows between us and a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerDirection {
    /// From the peer to us.
    Rx,
    /// From us to the peer.
    Tx,
    /// Both ways.
    RxTx,
    /// Of a kind that this program does not know, as encoded.
    Unknown(u8),
}

impl PeerDirection {
    /// The direction encoded as `wire`.
    pub fn from_wire(wire: u8) -> PeerDirection {
        match wire {
            0 => PeerDirection::Rx,
            1 => PeerDirection::Tx,
            2 => PeerDirection::RxTx,
            wire => PeerDirection::Unknown(wire),
        }
    }

    /// As encoded.
    pub fn to_wire(self) -> u8 {
        match self {
            PeerDirection::Rx => 0,
            PeerDirection::Tx => 1,
            PeerDirection::RxTx => 2,
            PeerDirection::Unknown(wire) => wire,
        }
    }

    /// True when we pull from this peer.
    pub fn receives(self) -> bool {
        matches!(self, PeerDirection::Rx | PeerDirection::RxTx)
    }

    /// True when this peer pulls from us.
    pub fn transmits(self) -> bool {
        matches!(self, PeerDirection::Tx | PeerDirection::RxTx)
    }
}

/// Another site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorPeer {
    /// Names it here: in mirror-snapshots, in the monitors' config-key store, on the command line.
    pub uuid: String,
    /// Which way data flows.
    pub direction: PeerDirection,
    /// What it is called.
    pub site_name: String,
    /// The client name to connect to it with; empty when we do not pull from it.
    pub client_name: String,
    /// The mirror uuid of its pool; empty as long as it has not been in touch.
    pub mirror_uuid: String,
    /// When its daemon was last in touch; zero for never.
    pub last_seen: Timestamp,
}

impl Encode for MirrorPeer {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(2, 1, |e| {
            e.string(&self.uuid).string(&self.site_name).string(&self.client_name).i64(-1);
            e.u8(self.direction.to_wire()).string(&self.mirror_uuid).value(&self.last_seen);
        });
    }
}

impl Decode for MirrorPeer {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.versioned("MirrorPeer", 2, |d, version| {
            let (uuid, site_name, client_name, _pool) = (d.string()?, d.string()?, d.string()?, d.i64()?);
            let mut peer = MirrorPeer {
                uuid,
                direction: PeerDirection::RxTx,
                site_name,
                client_name,
                mirror_uuid: String::new(),
                last_seen: Timestamp::default(),
            };
            if version >= 2 {
                peer.direction = PeerDirection::from_wire(d.u8()?);
                peer.mirror_uuid = d.string()?;
                peer.last_seen = Timestamp::decode(d)?;
            }
            Ok(peer)
        })
    }
}

/// How an image is mirrored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MirrorImageMode {
    /// By its journal.
    Journal,
    /// By mirror-snapshots.
    Snapshot,
    /// In a way that this program does not know, as encoded.
    Unknown(u8),
}

impl MirrorImageMode {
    /// The mode encoded as `wire`.
    pub fn from_wire(wire: u8) -> MirrorImageMode {
        match wire {
            0 => MirrorImageMode::Journal,
            1 => MirrorImageMode::Snapshot,
            wire => MirrorImageMode::Unknown(wire),
        }
    }

    /// As encoded.
    pub fn to_wire(self) -> u8 {
        match self {
            MirrorImageMode::Journal => 0,
            MirrorImageMode::Snapshot => 1,
            MirrorImageMode::Unknown(wire) => wire,
        }
    }
}

impl fmt::Display for MirrorImageMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MirrorImageMode::Journal => f.write_str("journal"),
            MirrorImageMode::Snapshot => f.write_str("snapshot"),
            MirrorImageMode::Unknown(wire) => write!(f, "unknown ({wire})"),
        }
    }
}

/// Where an image is between being mirrored and not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MirrorImageState {
    /// Mirroring is being taken away; its metadata goes next.
    Disabling,
    /// It is mirrored.
    Enabled,
    /// It is not mirrored.
    Disabled,
    /// A copy of it is being created.
    Creating,
    /// Of a kind that this program does not know, as encoded.
    Unknown(u32),
}

impl MirrorImageState {
    /// The state encoded as `wire`.
    pub fn from_wire(wire: u32) -> MirrorImageState {
        match wire {
            0 => MirrorImageState::Disabling,
            1 => MirrorImageState::Enabled,
            2 => MirrorImageState::Disabled,
            3 => MirrorImageState::Creating,
            wire => MirrorImageState::Unknown(wire),
        }
    }

    /// As encoded.
    pub fn to_wire(self) -> u32 {
        match self {
            MirrorImageState::Disabling => 0,
            MirrorImageState::Enabled => 1,
            MirrorImageState::Disabled => 2,
            MirrorImageState::Creating => 3,
            MirrorImageState::Unknown(wire) => wire,
        }
    }
}

impl fmt::Display for MirrorImageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MirrorImageState::Disabling => f.write_str("disabling"),
            MirrorImageState::Enabled => f.write_str("enabled"),
            MirrorImageState::Disabled => f.write_str("disabled"),
            MirrorImageState::Creating => f.write_str("creating"),
            MirrorImageState::Unknown(wire) => write!(f, "unknown ({wire})"),
        }
    }
}

/// An image's mirroring metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorImage {
    /// How it is mirrored.
    pub mode: MirrorImageMode,
    /// What it is called on every site.
    pub global_id: GlobalImageId,
    /// Where it is between being mirrored and not.
    pub state: MirrorImageState,
}

impl Encode for MirrorImage {
    fn encode(&self, e: &mut Encoder) {
        e.versioned(2, 1, |e| {
            // States fit a byte here; only notifications carry them in four.
            e.string(&self.global_id.0).u8(self.state.to_wire() as u8).u8(self.mode.to_wire());
        });
    }
}

impl Decode for MirrorImage {
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.versioned("MirrorImage", 2, |d, version| {
            let global_id = GlobalImageId(d.string()?);
            let state = MirrorImageState::from_wire(d.u8()?.into());
            let mode =
                if version >= 2 { MirrorImageMode::from_wire(d.u8()?) } else { MirrorImageMode::Journal };
            Ok(MirrorImage { mode, global_id, state })
        })
    }
}
