//! A simulated RADOS for this crate's tests: objects with snapshots as an OSD keeps them, behind the same seam as
//! librados.
//!
//! Agrees with `PrimaryLogPG` (`make_writeable`, `_delete_oid`, `find_object_context`, `trim_object`, and the write
//! operations' `modified_ranges`) for replicated pools without cache tiers.

mod backend;
mod object;

pub use backend::{Crash, SimBackend};
pub use object::SimObject;
