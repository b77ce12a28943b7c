//! Whole scenarios on two real clusters, driven with the stock `rbd` and `ceph` as an operator would, and judged by
//! content: of the newest complete mirror-snapshot of the copy, of its head, and of its user snapshots.
//!
//! All share one pair of clusters, which ends with this process, and take turns on it: each has its own pool and its own
//! daemons.

mod accidents;
mod basics;
mod broken;
mod clones;
mod common;
mod content;
mod crashes;
mod erasure;
mod failover;
mod flush;
mod full;
mod journal;
mod lifecycle;
mod object_maps;
mod outages;
mod removal_rounds;
mod removals;
mod repairs;
mod snapshots;
mod standstills;
mod turns;
