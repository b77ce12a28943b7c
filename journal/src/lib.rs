//! Journal mode: the journal of an image as Ceph stores it, and what a mirror does with it: read entries in order, apply
//! them to the copy, commit the position.

pub mod bootstrap;
pub mod event;
pub mod local_tag;
pub mod types;
