//! What writes of an image become on its objects.
//!
//! Reference: `src/librbd/io/ImageRequest.cc` (clipping, `prune_object_extents`), `src/librbd/journal/Replay.cc`
//! (`clipped_io`). Everything here is pure.

use bytes::{Bytes, BytesMut};
use rados::Extent;
use rbd::{ImageHeader, Layout, ObjectNumber};

use super::delta::ObjectDelta;

/// What an image looks like between two maintenance operations, as far as writes are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    /// Size in bytes: what lies behind it is not written.
    pub size: u64,
    /// How the image is cut into objects.
    pub layout: Layout,
    /// Bytes from its start that may come from a parent.
    pub parent_overlap: u64,
}

/// A change of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Write(u64, Bytes),
    Zero(Extent),
    Empty,
}

impl Part {
    /// The bytes of the object that it changes.
    pub fn extent(&self) -> Extent {
        match self {
            Part::Write(offset, data) => Extent::new(*offset, data.len() as u64),
            Part::Zero(extent) => *extent,
            Part::Empty => Extent::new(0, u64::MAX),
        }
    }

    /// Makes it the last word of `delta`.
    pub fn merge_into(self, delta: &mut ObjectDelta) {
        match self {
            Part::Write(offset, data) => delta.write(offset, data),
            Part::Zero(extent) => delta.zero(extent),
            Part::Empty => delta.empty(),
        }
    }
}

impl Shape {
    /// The shape of an image's head.
    pub fn of(header: &ImageHeader) -> Shape {
        Shape {
            size: header.size,
            layout: header.layout,
            parent_overlap: header.parent.as_ref().map_or(0, |parent| parent.overlap),
        }
    }

    /// Bytes of an object that may come from the parent while the object does not exist.
    pub fn overlap(&self, object: ObjectNumber) -> u64 {
        self.layout.used_bytes(object, self.parent_overlap)
    }

    /// The part of a range that lies within the image; `None` when there is none.
    pub fn clip(&self, extent: Extent) -> Option<Extent> {
        let length = self.size.checked_sub(extent.offset)?.min(extent.length);
        (length > 0).then_some(Extent::new(extent.offset, length))
    }

    /// What a write of `data` becomes.
    pub fn write(&self, extent: Extent, data: Bytes) -> impl Iterator<Item = (ObjectNumber, Part)> + use<> {
        let extent = Extent::new(extent.offset, extent.length.min(data.len() as u64));
        let clipped = self.clip(extent).unwrap_or(Extent::new(0, 0));
        self.layout.pieces(clipped).map(move |piece| {
            let from = (piece.image_offset - clipped.offset) as usize;
            let data = data.slice(from..from + piece.length as usize);
            (piece.object, Part::Write(piece.object_offset, data))
        })
    }

    /// What a repeated pattern becomes. Zeros become zeros of the objects, which take no space.
    pub fn write_same(
        &self,
        extent: Extent,
        pattern: &Bytes,
    ) -> impl Iterator<Item = (ObjectNumber, Part)> + use<> {
        let clipped = self.clip(extent).unwrap_or(Extent::new(0, 0));
        let length = pattern.len() as u64;
        let zero = pattern.iter().all(|byte| *byte == 0);
        // One buffer, of which every piece is a slice.
        let longest = self.layout.stripe_unit().min(clipped.length) + length;
        let repeated = if zero { Bytes::new() } else { repeat(pattern, longest) };
        self.layout.pieces(clipped).map(move |piece| {
            let part = if zero {
                Part::Zero(Extent::new(piece.object_offset, piece.length))
            } else {
                let phase = ((piece.image_offset - clipped.offset) % length) as usize;
                Part::Write(piece.object_offset, repeated.slice(phase..phase + piece.length as usize))
            };
            (piece.object, part)
        })
    }

    /// What a discard becomes. With a granularity only what is aligned to it goes, but for the ends of objects when it is
    /// as large as they are.
    pub fn discard(
        &self,
        extent: Extent,
        granularity: u32,
    ) -> impl Iterator<Item = (ObjectNumber, Part)> + use<> {
        let (clipped, layout) = (self.clip(extent).unwrap_or(Extent::new(0, 0)), self.layout);
        let object_size = layout.object_size();
        let granularity = u64::from(granularity).min(object_size);
        // One object set after the other: a discard may be of a whole image.
        let sets = by_object_set(layout, clipped).flat_map(move |part| layout.object_extents(part));
        sets.filter_map(move |piece| {
            let (mut from, mut to) = (piece.extent.offset, piece.extent.end());
            if granularity > 0 && (granularity < object_size || to < object_size) {
                from = from.next_multiple_of(granularity);
                to -= to % granularity;
            }
            if from == 0 && to == object_size {
                Some((piece.object, Part::Empty))
            } else {
                (from < to).then(|| (piece.object, Part::Zero(Extent::new(from, to - from))))
            }
        })
    }
}

/// A range of an image, cut where one object set ends and the next one begins.
fn by_object_set(layout: Layout, range: Extent) -> impl Iterator<Item = Extent> {
    let (mut offset, end) = (range.offset, range.end());
    std::iter::from_fn(move || {
        let from = offset;
        offset = (from - from % layout.period()).saturating_add(layout.period()).min(end);
        (from < end).then(|| Extent::new(from, offset - from))
    })
}

fn repeat(pattern: &[u8], length: u64) -> Bytes {
    let mut repeated = BytesMut::with_capacity(length as usize + pattern.len());
    while (repeated.len() as u64) < length {
        repeated.extend_from_slice(pattern);
    }
    repeated.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(size: u64, layout: Layout) -> Shape {
        Shape { size, layout, parent_overlap: 0 }
    }

    /// The bytes of an image of objects that hold 255 everywhere, after `parts`.
    fn image(shape: &Shape, parts: impl IntoIterator<Item = (ObjectNumber, Part)>) -> Vec<u8> {
        let mut image = vec![255; shape.size as usize];
        for (object, part) in parts {
            let object_size = shape.layout.object_size();
            let (at, data) = match part {
                Part::Write(offset, data) => (offset, data),
                Part::Zero(extent) => (extent.offset, vec![0; extent.length as usize].into()),
                Part::Empty => (0, vec![0; object_size as usize].into()),
            };
            assert!(at + data.len() as u64 <= object_size && !data.is_empty());
            for (offset, byte) in (at..).zip(data) {
                let place = shape.layout.image_offset(object, offset);
                if place < shape.size {
                    image[place as usize] = byte;
                }
            }
        }
        image
    }

    fn layouts() -> impl Strategy<Value = Layout> {
        prop_oneof![
            Just(Layout::simple(9).expect("a layout")),
            Just(Layout::new(9, 128, 3).expect("a layout"))
        ]
    }

    proptest! {
        #[test]
        fn bytes_land_where_they_belong(
            layout in layouts(),
            size in 0u64..8000,
            offset in 0u64..9000,
            pattern in prop::collection::vec(any::<u8>(), 1..40),
            times in 0u64..80,
        ) {
            let shape = shape(size, layout);
            let extent = Extent::new(offset, times * pattern.len() as u64);
            let data = repeat(&pattern, extent.length).slice(..extent.length as usize);
            let mut expected = vec![255u8; size as usize];
            for (place, byte) in (offset..size).zip(&data) {
                expected[place as usize] = *byte;
            }
            prop_assert_eq!(image(&shape, shape.write(extent, data)), expected.clone());
            prop_assert_eq!(image(&shape, shape.write_same(extent, &pattern.into())), expected);
        }

        #[test]
        fn a_discard_takes_what_is_aligned(
            layout in layouts(),
            size in 0u64..8000,
            offset in 0u64..9000,
            length in 0u64..5000,
            granularity in prop_oneof![Just(0u32), Just(64), Just(512), Just(4096)],
        ) {
            let shape = shape(size, layout);
            let discarded = image(&shape, shape.discard(Extent::new(offset, length), granularity));
            let step = u64::from(granularity).clamp(1, 512);
            for (place, byte) in (0u64..).zip(discarded) {
                let (object, at) = layout.locate(place);
                let block = at - at % step..at - at % step + step;
                let in_block = |at: u64| {
                    let place = layout.image_offset(object, at);
                    place >= offset && place < (offset + length).min(size)
                };
                let tail = step == 512 && (at..512).all(in_block);
                prop_assert_eq!(byte == 0, block.clone().all(in_block) || tail, "byte {}", place);
            }
        }
    }
}
