//! Deep copy: the data of an image from one cluster to another, snapshot by snapshot, exactly.
//!
//! Snapshot mode copies its rounds with it, journal mode its first copies.
pub mod apply;
pub mod budget;
pub mod checksum;
pub mod copier;
pub mod diff;
pub mod ids;
pub mod local_maps;
pub mod map_trust;
pub mod object_copy;
pub mod object_map_sync;
pub mod object_plan;
pub mod pair;
pub mod ranges;
#[cfg(test)]
mod sim;
pub mod sizes;
pub mod snapset;
pub mod steps;
