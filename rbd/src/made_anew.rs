//! What tells others that a copy was made anew.
//!
//! Ceph's daemon fulfils a request for a resync by removing the copy and making another one. A copy that is brought in line
//! in place looks like the one before to those who want to know whether that was done: ceph-csi keeps the image's
//! time of creation in its internal metadata (`.rbd.image.creation_time`), and asks for a resync as long as the two agree.
//! So a copy that has been resynced gets a new time of creation, and loses its internal metadata, which mirroring
//! neither copies nor removes.

use rados::WriteSub;
use rados::encoding::Encode;

use crate::header::ImageHeader;
use crate::header_update::HeaderUpdate;
use crate::types::Timestamp;

/// How the keys of internal metadata begin, those of the requests for a resync among them.
const INTERNAL_PREFIX: &str = ".rbd";

/// Keys of the internal metadata of an image.
pub fn internal_metadata(header: &ImageHeader) -> impl Iterator<Item = &String> {
    header.metadata.keys().filter(|key| key.starts_with(INTERNAL_PREFIX))
}

/// Adds to a change of the header that the image was made anew. The internal metadata `but` is left to the caller.
pub fn made_anew(update: HeaderUpdate, header: &ImageHeader, but: Option<&str>) -> HeaderUpdate {
    let now = Timestamp::now().max(header.created.plus_seconds(1));
    let keys = internal_metadata(header).filter(|key| Some(key.as_str()) != but);
    let update = keys.fold(update, |update, key| update.remove_metadata(key));
    update.with(WriteSub::OmapSet(vec![("create_timestamp".into(), now.to_bytes())]))
}
