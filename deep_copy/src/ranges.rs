//! Sets of byte ranges within one object.
//!
//! Invariant: ranges are ascending, never empty, and neither overlap nor touch. No arithmetic overflows, whatever a
//! cluster answered: an end beyond `u64::MAX` is cut there.

use rados::Extent;

/// A set of bytes of one object, kept as ranges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RangeSet {
    /// `(start, end)`, half open.
    ranges: Vec<(u64, u64)>,
}

impl RangeSet {
    /// The bytes below `end`.
    pub fn below(end: u64) -> Self {
        RangeSet { ranges: if end > 0 { vec![(0, end)] } else { Vec::new() } }
    }

    /// The bytes of all `extents`, in any order.
    pub fn from_extents(extents: &[Extent]) -> Self {
        let mut ranges: Vec<(u64, u64)> = extents
            .iter()
            .map(|e| (e.offset, e.offset.saturating_add(e.length)))
            .filter(|(a, b)| a < b)
            .collect();
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
        for (start, end) in ranges {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        RangeSet { ranges: merged }
    }

    /// True when no byte is in it.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of bytes in it.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(a, b)| b - a).sum()
    }

    /// Number of ranges.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Its ranges, ascending.
    pub fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.ranges.iter().map(|&(a, b)| Extent::new(a, b - a))
    }

    /// The bytes that are in both.
    pub fn intersection(&self, other: &RangeSet) -> RangeSet {
        let (mut i, mut j) = (0, 0);
        let mut ranges = Vec::new();
        while let (Some(&(a, b)), Some(&(c, d))) = (self.ranges.get(i), other.ranges.get(j)) {
            let (start, end) = (a.max(c), b.min(d));
            if start < end {
                ranges.push((start, end));
            }
            if b <= d { i += 1 } else { j += 1 }
        }
        RangeSet { ranges }
    }

    /// The bytes that are not in `other`.
    pub fn without(&self, other: &RangeSet) -> RangeSet {
        let mut ranges = Vec::new();
        let mut j = 0;
        for &(mut start, end) in &self.ranges {
            while other.ranges.get(j).is_some_and(|&(_, d)| d <= start) {
                j += 1;
            }
            let mut k = j;
            while let Some(&(c, d)) = other.ranges.get(k) {
                if c >= end {
                    break;
                }
                if start < c {
                    ranges.push((start, c));
                }
                start = start.max(d);
                k += 1;
            }
            if start < end {
                ranges.push((start, end));
            }
        }
        RangeSet { ranges }
    }

    /// The same bytes, and those of all gaps that are shorter than `gap_bytes`.
    pub fn bridged(&self, gap_bytes: u64) -> RangeSet {
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(self.ranges.len());
        for &(start, end) in &self.ranges {
            match merged.last_mut() {
                Some(last) if start - last.1 < gap_bytes => last.1 = end,
                _ => merged.push((start, end)),
            }
        }
        RangeSet { ranges: merged }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set() -> impl Strategy<Value = Vec<Extent>> {
        prop::collection::vec((0u64..60, 0u64..12).prop_map(|(o, l)| Extent::new(o, l)), 0..8)
    }

    fn bytes(set: &RangeSet) -> BTreeSet<u64> {
        set.extents().flat_map(|e| e.offset..e.end()).collect()
    }

    fn naive(extents: &[Extent]) -> BTreeSet<u64> {
        extents.iter().flat_map(|e| e.offset..e.end()).collect()
    }

    proptest! {
        #[test]
        fn agrees_with_sets_of_numbers(a in set(), b in set(), gap in 0u64..5) {
            let (x, y) = (RangeSet::from_extents(&a), RangeSet::from_extents(&b));
            let (p, q) = (naive(&a), naive(&b));
            prop_assert_eq!(bytes(&x), p.clone());
            prop_assert_eq!(bytes(&x.intersection(&y)), &p & &q);
            prop_assert_eq!(bytes(&x.without(&y)), &p - &q);
            prop_assert_eq!(x.bytes(), p.len() as u64);
            let bridged = x.bridged(gap);
            prop_assert!(bytes(&bridged).is_superset(&p));
            let ends: Vec<_> = bridged.extents().collect();
            prop_assert!(ends.windows(2).all(|w| w[1].offset - w[0].end() >= gap.max(1)));
        }
    }

    #[test]
    fn survives_nonsense() {
        let set = RangeSet::from_extents(&[Extent::new(u64::MAX - 1, 10), Extent::new(5, u64::MAX)]);
        assert_eq!(set.intersection(&RangeSet::below(10)).bytes(), 5);
    }
}
