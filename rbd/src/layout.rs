//! Where the bytes of an image lie: the arithmetic of striping, and the names of data objects.
//!
//! An image is cut into stripe units of `stripe_unit` bytes, which are dealt out in turn to the `stripe_count` objects
//! of an object set, until those objects are full (`object_size` bytes); then comes the next object set:
//!
//! ```text
//! block  = offset / stripe_unit          (number of the stripe unit)
//! stripe = block / stripe_count          (row)
//! column = block % stripe_count
//! set    = stripe / (object_size / stripe_unit)
//! object = set * stripe_count + column
//! offset in the object = (stripe % (object_size / stripe_unit)) * stripe_unit + offset % stripe_unit
//! ```
//!
//! Invariants: `stripe_unit` divides `object_size`; neither it nor `stripe_count` is 0. Within one object, offsets grow
//! with image offsets, so what an image of a given size uses of an object is a prefix of it.
//!
//! Reference: `src/osdc/Striper.cc`. Everything here is pure.

use rados::{Error, Extent, PoolId, Result};

use crate::types::{ImageId, ObjectNumber};

/// Sizes of data objects that librbd creates, as powers of two.
pub const ORDERS: std::ops::RangeInclusive<u8> = 12..=25;
/// The longest image id.
pub const IMAGE_ID_LENGTH_MAX: usize = 14;

/// How an image is cut into objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    object_size: u64,
    stripe_unit: u64,
    stripe_count: u64,
}

/// A run of bytes that is contiguous both in the image and in one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The object.
    pub object: ObjectNumber,
    /// First byte within the object.
    pub object_offset: u64,
    /// First byte within the image.
    pub image_offset: u64,
    /// Number of bytes, never 0.
    pub length: u64,
}

/// What a range of an image covers of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectExtent {
    /// The object.
    pub object: ObjectNumber,
    /// The range within the object.
    pub extent: Extent,
    /// The ranges of the image that it holds, in the order of the object's bytes.
    pub image: Vec<Extent>,
}

impl Layout {
    /// A layout of objects of `1 << order` bytes. EINVAL when the three do not fit together.
    pub fn new(order: u8, stripe_unit: u64, stripe_count: u64) -> Result<Layout> {
        let refuse = |why: String| Err(Error::new(libc::EINVAL, format!("cannot lay out an image: {why}")));
        if !(9..=32).contains(&order) {
            return refuse(format!("objects of 2^{order} bytes are not supported"));
        }
        let object_size = 1u64 << order;
        if stripe_unit == 0 || !object_size.is_multiple_of(stripe_unit) {
            return refuse(format!(
                "a stripe unit of {stripe_unit} bytes does not divide {object_size} bytes"
            ));
        }
        // The bound keeps every product below far from overflow.
        if stripe_count == 0 || stripe_count > u64::from(u32::MAX) {
            return refuse(format!("a stripe count of {stripe_count} is not supported"));
        }
        Ok(Layout { object_size, stripe_unit, stripe_count })
    }

    /// The usual layout: one object after the other, each of `1 << order` bytes.
    pub fn simple(order: u8) -> Result<Layout> {
        let stripe_unit = 1u64.checked_shl(u32::from(order)).unwrap_or(0);
        Layout::new(order, stripe_unit, 1)
    }

    /// Bytes per object.
    pub fn object_size(&self) -> u64 {
        self.object_size
    }

    /// Bytes per stripe unit.
    pub fn stripe_unit(&self) -> u64 {
        self.stripe_unit
    }

    /// Objects per object set.
    pub fn stripe_count(&self) -> u64 {
        self.stripe_count
    }

    /// Bytes per object set.
    pub fn period(&self) -> u64 {
        self.object_size * self.stripe_count
    }

    /// Number of objects that an image of `size` bytes is made of.
    pub fn object_count(&self, size: u64) -> u64 {
        let sets = size.div_ceil(self.period());
        let rest = size % self.period();
        let unused = if rest > 0 && rest < self.stripe_count * self.stripe_unit {
            self.stripe_count - rest.div_ceil(self.stripe_unit)
        } else {
            0
        };
        sets * self.stripe_count - unused
    }

    /// The smallest runs of which `image` is made, in the order of the image's bytes.
    pub fn pieces(&self, image: Extent) -> impl Iterator<Item = Piece> + use<> {
        let layout = *self;
        let (mut offset, end) = (image.offset, image.end());
        std::iter::from_fn(move || {
            if offset >= end {
                return None;
            }
            let (object, object_offset) = layout.locate(offset);
            let length = (layout.stripe_unit - offset % layout.stripe_unit).min(end - offset);
            let piece = Piece { object, object_offset, image_offset: offset, length };
            offset += length;
            Some(piece)
        })
    }

    /// What `image` covers of each object, in the order in which the image first reaches them.
    pub fn object_extents(&self, image: Extent) -> Vec<ObjectExtent> {
        let mut extents: Vec<ObjectExtent> = Vec::new();
        let mut last_set: Vec<usize> = Vec::new();
        for piece in self.pieces(image) {
            // Only objects of the set being filled can grow, and a set has at most `stripe_count` of them.
            let known = last_set.iter().copied().find(|&i| extents[i].object == piece.object);
            let image_extent = Extent::new(piece.image_offset, piece.length);
            match known {
                Some(i) => {
                    extents[i].extent.length += piece.length;
                    match extents[i].image.last_mut() {
                        Some(last) if last.end() == piece.image_offset => last.length += piece.length,
                        _ => extents[i].image.push(image_extent),
                    }
                }
                None => {
                    let set = piece.object.0 / self.stripe_count;
                    last_set.retain(|&i| extents[i].object.0 / self.stripe_count == set);
                    last_set.push(extents.len());
                    extents.push(ObjectExtent {
                        object: piece.object,
                        extent: Extent::new(piece.object_offset, piece.length),
                        image: vec![image_extent],
                    });
                }
            }
        }
        extents
    }

    /// The ranges of the image that `extent` of an object holds, in the order of the object's bytes.
    pub fn image_extents(&self, object: ObjectNumber, extent: Extent) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        let mut offset = extent.offset;
        while offset < extent.end() {
            let length = (self.stripe_unit - offset % self.stripe_unit).min(extent.end() - offset);
            let image_offset = self.image_offset(object, offset);
            match extents.last_mut() {
                Some(last) if last.end() == image_offset => last.length += length,
                _ => extents.push(Extent::new(image_offset, length)),
            }
            offset += length;
        }
        extents
    }

    /// The image offset of one byte of an object.
    pub fn image_offset(&self, object: ObjectNumber, offset: u64) -> u64 {
        let rows = self.object_size / self.stripe_unit;
        let (set, column) = (object.0 / self.stripe_count, object.0 % self.stripe_count);
        let stripe = set * rows + offset / self.stripe_unit;
        (stripe * self.stripe_count + column) * self.stripe_unit + offset % self.stripe_unit
    }

    /// The object, and the offset in it, of one byte of the image.
    pub fn locate(&self, offset: u64) -> (ObjectNumber, u64) {
        let rows = self.object_size / self.stripe_unit;
        let block = offset / self.stripe_unit;
        let (stripe, column) = (block / self.stripe_count, block % self.stripe_count);
        let (set, row) = (stripe / rows, stripe % rows);
        (ObjectNumber(set * self.stripe_count + column), row * self.stripe_unit + offset % self.stripe_unit)
    }

    /// How many bytes of an object an image (or an overlap with a parent) of `size` bytes uses: always its first ones.
    pub fn used_bytes(&self, object: ObjectNumber, size: u64) -> u64 {
        let rows = self.object_size / self.stripe_unit;
        let (set, column) = (object.0 / self.stripe_count, object.0 % self.stripe_count);
        let Some(rest) = size.checked_sub(set.saturating_mul(self.period())) else {
            return 0;
        };
        if rest >= self.period() {
            return self.object_size;
        }
        let row_bytes = self.stripe_count * self.stripe_unit;
        let full_rows = (rest / row_bytes).min(rows);
        let in_row = (rest % row_bytes).saturating_sub(column * self.stripe_unit).min(self.stripe_unit);
        full_rows * self.stripe_unit + in_row
    }
}

/// Name of an image's header object.
pub fn header_object(image: &ImageId) -> String {
    format!("rbd_header.{image}")
}

/// Name of the object that holds the id of the image called `name`.
pub fn id_object(name: &str) -> String {
    format!("rbd_id.{name}")
}

/// Prefix of the names of an image's data objects; `header_pool` is given when they lie in a pool of their own.
pub fn object_prefix(image: &ImageId, header_pool: Option<PoolId>) -> String {
    match header_pool {
        Some(pool) => format!("rbd_data.{pool}.{image}"),
        None => format!("rbd_data.{image}"),
    }
}

/// Name of a data object.
pub fn data_object(prefix: &str, object: ObjectNumber) -> String {
    format!("{prefix}.{:016x}", object.0)
}

/// Number of the data object called `name`, if it is one of those with this prefix.
pub fn data_object_number(prefix: &str, name: &str) -> Option<ObjectNumber> {
    let digits = name.strip_prefix(prefix)?.strip_prefix('.')?;
    let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if digits.len() != 16 || !digits.bytes().all(lower_hex) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok().map(ObjectNumber)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Deals out bytes one by one, as the text at the head of this file says, with counters instead of arithmetic.
    fn oracle(layout: &Layout, size: u64) -> Vec<(u64, u64)> {
        let mut places = Vec::new();
        let (mut set, mut fill) = (0u64, vec![0u64; layout.stripe_count as usize]);
        'image: loop {
            for column in 0..layout.stripe_count {
                for _ in 0..layout.stripe_unit {
                    if places.len() as u64 == size {
                        break 'image;
                    }
                    places.push((set * layout.stripe_count + column, fill[column as usize]));
                    fill[column as usize] += 1;
                }
            }
            if fill.iter().all(|&bytes| bytes == layout.object_size) {
                set += 1;
                fill.fill(0);
            }
        }
        places
    }

    /// Tiny layouts (made past the checks of `Layout::new`), so that an image spans many object sets.
    fn layouts() -> impl Strategy<Value = (Layout, u64)> {
        (1u64..5, 1u64..6, 1u64..5, 0u64..300).prop_map(|(rows, stripe_unit, stripe_count, size)| {
            (Layout { object_size: rows * stripe_unit, stripe_unit, stripe_count }, size)
        })
    }

    proptest! {
        #[test]
        fn agrees_with_the_oracle((layout, size) in layouts(), a in 0u64..300, b in 0u64..300) {
            let places = oracle(&layout, size);
            for (offset, &(object, in_object)) in places.iter().enumerate() {
                prop_assert_eq!(layout.locate(offset as u64), (ObjectNumber(object), in_object));
                prop_assert_eq!(layout.image_offset(ObjectNumber(object), in_object), offset as u64);
            }
            let mut used: BTreeMap<u64, u64> = BTreeMap::new();
            for &(object, _) in &places {
                *used.entry(object).or_default() += 1;
            }
            prop_assert_eq!(layout.object_count(size), used.keys().next_back().map_or(0, |last| last + 1));
            for object in 0..layout.object_count(size) + 3 {
                let expected = used.get(&object).copied().unwrap_or(0);
                prop_assert_eq!(layout.used_bytes(ObjectNumber(object), size), expected);
            }

            let (from, to) = (a.min(b).min(size), a.max(b).min(size));
            let range = Extent::new(from, to - from);
            let mut covered: BTreeMap<(u64, u64), u64> = BTreeMap::new();
            for extent in layout.object_extents(range) {
                prop_assert_eq!(&layout.image_extents(extent.object, extent.extent), &extent.image);
                let mut in_object = extent.extent.offset;
                for image in extent.image {
                    for offset in image.offset..image.end() {
                        prop_assert!(covered.insert((extent.object.0, in_object), offset).is_none());
                        in_object += 1;
                    }
                }
                prop_assert_eq!(in_object, extent.extent.end());
            }
            let expected: BTreeMap<(u64, u64), u64> =
                (from..to).map(|offset| (places[offset as usize], offset)).collect();
            prop_assert_eq!(covered, expected);
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        assert!(Layout::new(22, 3000, 2).is_err());
        assert!(Layout::new(22, 0, 1).is_err());
        assert!(Layout::new(22, 1 << 23, 1).is_err());
        assert!(Layout::new(22, 1 << 16, 0).is_err());
        assert!(Layout::new(64, 1 << 16, 1).is_err());
        assert!(Layout::simple(255).is_err());
        let layout = Layout::simple(22).unwrap();
        assert_eq!(layout.object_count(0), 0);
        assert_eq!(layout.object_count((4 << 20) + 1), 2);
    }

    #[test]
    fn names() {
        let id = ImageId("10ab".into());
        assert_eq!(header_object(&id), "rbd_header.10ab");
        let prefix = object_prefix(&id, Some(PoolId(3)));
        let name = data_object(&prefix, ObjectNumber(0x1f));
        assert_eq!(name, "rbd_data.3.10ab.000000000000001f");
        assert_eq!(data_object_number(&prefix, &name), Some(ObjectNumber(0x1f)));
        assert_eq!(data_object_number(&object_prefix(&id, None), &name), None);
        assert_eq!(data_object_number(&prefix, "rbd_data.3.10ab.000000000000001F"), None);
        assert_eq!(data_object_number(&prefix, "rbd_data.3.10ab.+00000000000001f"), None);
    }
}
