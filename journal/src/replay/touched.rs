//! The bytes that were changed since the marker was written: they tell whether entries may be applied once more.
//!
//! A replay that begins anew applies again what lies behind the marker. That changes nothing as long as no byte was changed
//! twice there: each already holds what the one entry that names it makes of it. So the marker need not be rewritten at a
//! barrier, but only before a byte is changed a second time.
//!
//! Invariants: `earlier` and `current` are each disjoint, and together too unless the marker is to be written before the
//! next change. There are no more than [`EXTENTS_MAX`] extents: one more counts as changed twice.
//!
//! Everything here is pure.

use std::collections::BTreeMap;

use rados::Extent;
use rbd::ObjectNumber;

/// Extents that are remembered.
const EXTENTS_MAX: usize = 4096;

/// Disjoint extents: where each begins, and its end.
type Extents = BTreeMap<(ObjectNumber, u64), u64>;

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Touched {
    /// Of epochs that are over.
    earlier: Extents,
    /// Of the present one. Not kept up any more when `repeated`.
    current: Extents,
    /// The present epoch must not be applied once more when it is over: something in it was changed twice, or cannot be
    /// told by extents.
    repeated: bool,
}

impl Touched {
    /// True when nothing was changed since the marker was written.
    pub fn is_empty(&self) -> bool {
        self.earlier.is_empty() && self.current.is_empty() && !self.repeated
    }

    /// Notes a change in the present epoch. Answers whether the marker must be written before it is made: an earlier epoch
    /// changed some of these bytes.
    pub fn change(&mut self, object: ObjectNumber, extent: Extent) -> bool {
        if self.repeated || overlaps(&self.current, object, extent) || self.is_full() {
            self.repeat();
        } else {
            self.current.insert((object, extent.offset), extent.end());
        }
        overlaps(&self.earlier, object, extent)
    }

    /// The present epoch does what must not be done again once it is over.
    pub fn repeat(&mut self) {
        self.repeated = true;
        self.current.clear();
    }

    /// The present epoch is over. Answers whether the marker must be written before anything else is changed.
    pub fn end_epoch(&mut self) -> bool {
        self.earlier.extend(std::mem::take(&mut self.current));
        std::mem::take(&mut self.repeated)
    }

    /// The marker tells of all epochs that are over.
    pub fn marked(&mut self) {
        self.earlier.clear();
    }

    fn is_full(&self) -> bool {
        self.earlier.len() + self.current.len() >= EXTENTS_MAX
    }
}

/// Whether some bytes of `extent` are in `extents`.
fn overlaps(extents: &Extents, object: ObjectNumber, extent: Extent) -> bool {
    // They are disjoint: if one overlaps, then the last one that begins before the end does.
    let before_end = extents.range((object, 0)..(object, extent.end())).next_back();
    before_end.is_some_and(|(_, end)| *end > extent.offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ObjectNumber = ObjectNumber(1);
    const B: ObjectNumber = ObjectNumber(2);

    #[test]
    fn bytes_that_were_changed_once_may_be_changed_so_again() {
        let mut touched = Touched::default();
        assert!(touched.is_empty());
        for block in [3, 1, 2, 0] {
            assert!(!touched.change(A, Extent::new(block * 8, 8)));
            assert!(!touched.change(B, Extent::new(block * 8 + 4, 4)));
            assert!(!touched.end_epoch());
        }
        assert!(touched.change(B, Extent::new(3, 2)));
        assert!(!touched.change(A, Extent::new(32, 1)));
        touched.marked();
        assert!(!touched.is_empty());
        assert!(!touched.end_epoch());
        assert!(touched.change(B, Extent::new(4, 1)));
    }

    #[test]
    fn an_epoch_that_changes_a_byte_twice_is_not_applied_again() {
        let mut touched = Touched::default();
        assert!(!touched.change(A, Extent::new(8, 8)));
        assert!(!touched.change(A, Extent::new(15, 100)));
        assert!(touched.end_epoch());
        touched.marked();
        assert!(touched.is_empty());
        touched.repeat();
        assert!(touched.end_epoch());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut touched = Touched::default();
        let mut epochs = 0;
        loop {
            assert!(!touched.change(A, Extent::new(epochs * 2, 1)));
            epochs += 1;
            if touched.end_epoch() {
                break;
            }
        }
        assert_eq!(epochs as usize, EXTENTS_MAX + 1);
    }
}
