//! What no image exceeds: numbers that the header of a remote image names are judged here, before anything is sized by
//! them. A remote cluster may be broken, or somebody else's by now.
//!
//! | number | limit | why no image has more |
//! |---|---|---|
//! | bytes per object | 2^12 to 2^25 | librbd creates no others (`validate_layout`) |
//! | stripe unit | 512 bytes at least | the same (`src/librbd/image/CreateRequest.cc`) |
//! | stripe units per object set | 2^20 | 4 MiB objects cut to the smallest units and dealt to 128 objects at a time |
//! | objects, with an object map | 256 000 000 | the object class refuses more; 976 TiB of 4 MiB objects |
//! | objects, without one | 2^32 | 16 PiB of 4 MiB objects |
//! | metadata, image state | 64 MiB each | a million entries |
//!
//! Sizes are those of the head and of every snapshot.

use rados::{Error, Result};

use crate::header::ImageHeader;
use crate::layout::{Layout, ORDERS};
use crate::object_map::OBJECT_COUNT_MAX;
use crate::types::Features;

/// Bytes of metadata of an image, or of an image state.
pub const METADATA_BYTES_MAX: u64 = 64 << 20;
/// Objects of an image without an object map.
const OBJECTS_MAX: u64 = 1 << 32;
const STRIPE_UNIT_MIN: u64 = 512;
const UNITS_PER_SET_MAX: u64 = 1 << 20;

/// EFBIG when a number in the header exceeds what an image can have.
pub fn judge(header: &ImageHeader) -> Result<()> {
    let refuse = |why: String| {
        let what = format!("cannot use image {}: {why}", header.id);
        Err(Error::new(libc::EFBIG, what))
    };
    let layout = &header.layout;
    if !ORDERS.contains(&header.order) {
        return refuse(format!("its objects of 2^{} bytes are of a size that no image has", header.order));
    }
    let units = layout.period() / layout.stripe_unit();
    if layout.stripe_unit() < STRIPE_UNIT_MIN || units > UNITS_PER_SET_MAX {
        let (unit, count) = (layout.stripe_unit(), layout.stripe_count());
        return refuse(format!("it is striped by {unit} bytes over {count} objects as no image is"));
    }
    let sizes = header.snapshots.values().map(|snapshot| snapshot.image_size).chain([header.size]);
    for size in sizes {
        judge_size(layout, header.features, size).or_else(|error| refuse(error.to_string()))?;
    }
    let metadata: usize = header.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if metadata as u64 > METADATA_BYTES_MAX {
        return refuse(format!("it has more than {METADATA_BYTES_MAX} bytes of metadata"));
    }
    Ok(())
}

/// EFBIG when no image with these features and cut so can have a size of `size` bytes.
pub fn judge_size(layout: &Layout, features: Features, size: u64) -> Result<()> {
    let objects_max = if features.has(Features::OBJECT_MAP) { OBJECT_COUNT_MAX } else { OBJECTS_MAX };
    let objects = layout.object_count(size);
    if objects <= objects_max {
        return Ok(());
    }
    let what =
        format!("{size} bytes are {objects} objects and more than the {objects_max} that are possible");
    Err(Error::new(libc::EFBIG, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_judged_by_the_number_of_objects() {
        let layout = Layout::simple(22).unwrap();
        let (with_map, without) = (Features::OBJECT_MAP, Features(0));
        assert!(judge_size(&layout, with_map, OBJECT_COUNT_MAX << 22).is_ok());
        for size in [(OBJECT_COUNT_MAX << 22) + 1, 1 << 62, u64::MAX] {
            assert!(judge_size(&layout, with_map, size).is_err_and(|error| error.is(libc::EFBIG)));
        }
        assert!(judge_size(&layout, without, 1 << 54).is_ok());
        assert!(judge_size(&layout, without, 1 << 62).is_err());
        assert!(judge_size(&Layout::simple(25).unwrap(), without, 1 << 57).is_ok());
    }
}
