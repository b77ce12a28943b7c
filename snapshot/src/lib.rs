//! Snapshot mode: plan the delta, copy it, commit it.
pub mod ids;
pub mod plan;
pub mod budget;
pub mod checksum;
pub mod copier;
pub mod diff;
pub mod object_copy;
pub mod object_map_sync;
pub mod object_plan;
pub mod ranges;
pub mod snapset;
pub mod steps;
#[cfg(test)]
mod sim;
pub mod apply;
pub mod begin;
pub mod commit;
pub mod sizes;
