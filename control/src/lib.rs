//! What an operator asks of mirroring, natively: the library behind `rbd-mirrorctl`.
//!
//! Everything begins with a [`Pool`] (or one of its namespaces). Its methods do what the subcommands of `rbd mirror` do,
//! with the same effect on the cluster, object by object, and the same refusals; they print nothing and answer with plain
//! values ([`report`]). Errors carry the error number that `rbd` exits with.
//!
//! | module | holds |
//! |---|---|
//! | [`pool`] | the handle, and what an operator sets |
//! | [`report`] | what is answered |
//! | [`schedule`] | schedules of mirror-snapshots |
//! | [`verify`] | proving that a copy equals its primary |
//!
//! Reference: `src/librbd/api/Mirror.cc`, `src/librbd/mirror/`, `src/tools/rbd/action/Mirror*.cc`.
#![forbid(unsafe_code)]

mod bulk;
pub mod config;
pub mod daemons;
mod demote;
mod disable;
mod enable;
mod info;
mod journaled;
mod mode;
mod own_journal;
mod peers;
pub mod pool;
mod primary;
mod promote;
mod promotion_plan;
pub mod report;
pub mod schedule;
mod session;
mod status;
pub mod verify;
mod wishes;

pub use bulk::{Done, PoolOutcome, Progress};
pub use config::Quiesce;
pub use pool::{Options, Pool};
pub use promote::{ContinuesFrom, Promotion};
pub use report::{
    Daemon, Health, ImageInfo, ImageStatus, PeerInfo, PoolInfo, PoolStatus, PrimarySnapshot, Role,
    SiteReport, StateCount,
};
pub use schedule::{Interval, Level, Schedule, ScheduledImage, Schedules};
