//! Introducing two sites to each other, as `rbd mirror pool peer …` does.
//!
//! ```text
//! site a: create_token ──token──▶ site b: Import::open ─▶ (copy the mode) ─▶ Import::register
//!   user client.rbd-mirror-peer             user client.rbd-mirror-peer, with rx-tx
//!                                           peer b in the pool of a,     with rx-tx
//!                                           peer a in the pool of b
//! ```
//!
//! What is stored, all of it readable by stock tools:
//!
//! | where | key | value |
//! |---|---|---|
//! | config-key store | `rbd/mirror/site_name` | name of this site ([`site`]) |
//! | | `rbd/mirror/peer_client_id` | id of the user that peers connect as ([`user`]) |
//! | | `rbd/mirror/peer/POOL-ID/PEER-UUID` | monitors and key of a peer ([`attributes`]) |
//! | cephx | `client.rbd-mirror-peer` | the user |
//! | `rbd_mirroring` of the pool | `mirror_peer_UUID` | the peer ([`peers`]) |
//!
//! Secrets are held in a [`Secret`], which neither prints nor compares in public, and are written to files that only
//! their owner may read. Every error carries the error number that `rbd` exits with.
//!
//! Reference: `src/librbd/api/Mirror.cc`, `src/tools/rbd/action/MirrorPool.cc`.
#![forbid(unsafe_code)]

pub mod attributes;
pub mod connect;
pub mod import;
pub mod peers;
mod secret;
pub mod site;
pub mod token;
pub mod user;

pub use attributes::PeerAttributes;
pub use connect::{PeerConnector, RemotePeer};
pub use import::{Import, ImportDirection, ImportOptions, Imported};
pub use secret::Secret;
pub use site::{set_site_name, site_name};
pub use token::{Token, create_token};
