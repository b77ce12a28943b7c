//! Journal mode: images with the journaling feature, replayed entry by entry. A copy is judged by content, at its head
//! and at every user snapshot, when everything that the primary has committed was replayed.

mod copies;
mod crashes;
mod failover;
mod prefix;
mod replay;
mod stage;
mod turns;
