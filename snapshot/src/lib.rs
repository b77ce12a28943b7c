//! Snapshot mode: plan a round, begin it, commit it; what lies between is the crate `deep_copy`.
pub mod begin;
pub mod commit;
pub mod history;
pub mod link;
pub mod plan;
pub mod point;
pub mod prune;
