//! Snapshot mode: plan the delta, copy it, commit it.
pub mod apply;
pub mod begin;
pub mod budget;
pub mod checksum;
pub mod commit;
pub mod copier;
pub mod diff;
pub mod ids;
pub mod object_copy;
pub mod object_map_sync;
pub mod object_plan;
pub mod plan;
pub mod ranges;
#[cfg(test)]
mod sim;
pub mod sizes;
pub mod snapset;
pub mod steps;
