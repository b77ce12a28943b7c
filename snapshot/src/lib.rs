//! Snapshot mode: plan the delta, copy it, commit it.
pub mod ids;
pub mod plan;
