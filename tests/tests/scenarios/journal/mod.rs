//! Journal mode: images with the journaling feature, replayed entry by entry. A copy is judged by content, at its head
//! and at every user snapshot, when everything that the primary has committed was replayed.

mod away;
mod broken;
mod copies;
mod crashes;
mod crowd;
mod damage;
mod demoted;
mod disconnect;
mod failover;
mod following;
mod handover;
mod lifecycle;
mod outages;
mod prefix;
mod replay;
pub mod stage;
mod stock;
mod turns;
mod two_way;

pub use stage::{clients, newest};
