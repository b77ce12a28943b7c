//! Journal mode: the journal of an image as Ceph stores it, and what a mirror does with it: read entries in order, apply
//! them to the copy, commit the position.
#![forbid(unsafe_code)]

pub mod append;
pub mod bootstrap;
pub mod budget;
pub mod codec;
pub mod commit;
pub mod entry;
pub mod event;
pub mod first_copy;
pub mod image_journal;
pub mod local_tag;
pub mod metadata;
pub mod promotion;
pub mod replay;
pub mod tail;
pub mod trim;
pub mod types;
pub mod watch;

pub use commit::Committer;
pub use metadata::Journal;
pub use tail::{Batch, Entry, Tail, TailError, TailOptions};
