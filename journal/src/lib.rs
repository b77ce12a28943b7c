//! Journal mode: the journal of an image as Ceph stores it, and what a mirror does with it: read entries in order, apply
//! them to the copy, commit the position.
#![forbid(unsafe_code)]

pub mod codec;
pub mod event;
pub mod metadata;
pub mod types;
