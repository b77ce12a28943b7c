//! Enabling and disabling features of an image.
//!
//! Maps that are enabled promise nothing: they are flagged as invalid until somebody rebuilds them (`rbd object-map
//! rebuild`), as librbd leaves them.
//!
//! Those who have the image open learn of it from a notification, which is the caller's to send, once for all he does:
//! [`crate::watch_notify::notify_header_update`]. The journal and mirroring of the image are the caller's, too.
//!
//! Reference: `src/librbd/operation/EnableFeaturesRequest.cc`, `DisableFeaturesRequest.cc`.

use rados::{Result, SnapId};

use crate::header::ImageHeader;
use crate::header_update::HeaderUpdate;
use crate::image::Image;
use crate::object_map::ObjectMap;
use crate::types::{Features, ImageFlags};

/// Flags of object maps.
const MAP_FLAGS: ImageFlags = ImageFlags(ImageFlags::OBJECT_MAP_INVALID.0 | ImageFlags::FAST_DIFF_INVALID.0);

/// Disables `disable` and enables `enable`, as far as they are not yet. May be repeated after it was cut off.
pub async fn update(image: &Image, header: &ImageHeader, disable: Features, enable: Features) -> Result<()> {
    let unmapped = disable.has(Features::OBJECT_MAP);
    let disable = Features(disable.0 & header.features.0);
    let enable = enable.without(header.features).without(disable);
    let changed = disable.with(enable);
    let ioctx = image.header_ioctx();
    let snaps: Vec<SnapId> = header.snapshots.keys().copied().chain([SnapId::HEAD]).collect();
    if enable.has(Features::OBJECT_MAP) {
        for snap in &snaps {
            let objects = header.layout.object_count(header.size_at(*snap).unwrap_or(0));
            image.object_map(*snap).save(&ObjectMap::new(objects)).await?;
            HeaderUpdate::of(image.id()).set_flags(MAP_FLAGS, MAP_FLAGS, *snap).apply(ioctx).await?;
        }
    } else if enable.has(Features::FAST_DIFF) {
        let flag = ImageFlags::FAST_DIFF_INVALID;
        for snap in &snaps {
            HeaderUpdate::of(image.id()).set_flags(flag, flag, *snap).apply(ioctx).await?;
        }
    }
    if changed != Features(0) {
        HeaderUpdate::of(image.id()).set_features(enable, changed).apply(ioctx).await?;
    }
    // Even if the feature is gone already: what follows may have been cut off.
    if unmapped {
        for snap in &snaps {
            HeaderUpdate::of(image.id()).set_flags(ImageFlags(0), MAP_FLAGS, *snap).apply(ioctx).await?;
            image.object_map(*snap).remove().await?;
        }
    }
    Ok(())
}
