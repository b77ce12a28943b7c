//! Figures: what was measured for each of the two daemons, and what was to be reached.
//!
//! A figure of one daemon is the median of its measurements. Durations and rates alike are compared as ours divided by
//! Ceph's.

use serde::Serialize;

/// One of the two daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Who {
    /// Ours.
    Ours,
    /// Ceph's own.
    Ceph,
}

impl Who {
    /// Whose turn is it: `turns` for each, in an order that gives neither the better half of a drift.
    pub fn alternate(turns: usize) -> Vec<Who> {
        let pair = |turn: usize| {
            if turn.is_multiple_of(2) { [Who::Ours, Who::Ceph] } else { [Who::Ceph, Who::Ours] }
        };
        (0..turns).flat_map(pair).collect()
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Who::Ours => "ours",
            Who::Ceph => "Ceph's",
        })
    }
}

/// What is to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Ours divided by Ceph's is at least this.
    RatioAtLeast(f64),
    /// Ours divided by Ceph's is at most this.
    RatioAtMost(f64),
    /// Ours is at least this, whatever Ceph's is.
    AtLeast(f64),
    /// Ours is at most this, whatever Ceph's is.
    AtMost(f64),
    /// Nothing: it is told because it explains another figure.
    Told,
}

/// What is measured. The name tells a figure from the others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Measure {
    /// What it is, in words.
    pub name: &'static str,
    /// In what it is measured.
    pub unit: &'static str,
    /// What is to be reached.
    pub target: Target,
}

/// All measurements of one figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What was measured.
    #[serde(flatten)]
    pub measure: Measure,
    /// Of our daemon, in the order of time.
    pub ours: Vec<f64>,
    /// Of Ceph's.
    pub ceph: Vec<f64>,
}

impl Figure {
    /// The median of ours.
    pub fn ours(&self) -> Option<f64> {
        median(&self.ours)
    }

    /// The median of Ceph's.
    pub fn ceph(&self) -> Option<f64> {
        median(&self.ceph)
    }

    /// Ours divided by Ceph's.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.ours()? / self.ceph()?).filter(|ratio| ratio.is_finite())
    }

    /// Whether the target was reached; `None` when there is none, or too little was measured.
    pub fn reached(&self) -> Option<bool> {
        match self.measure.target {
            Target::RatioAtLeast(least) => Some(self.ratio()? >= least),
            Target::RatioAtMost(most) => Some(self.ratio()? <= most),
            Target::AtLeast(least) => Some(self.ours()? >= least),
            Target::AtMost(most) => Some(self.ours()? <= most),
            Target::Told => None,
        }
    }
}

/// The figures so far, in the order in which they first came.
#[derive(Debug, Default)]
pub struct Results {
    figures: Vec<Figure>,
}

impl Results {
    /// Adds a measurement.
    pub fn add(&mut self, measure: Measure, who: Who, value: f64) {
        println!("             {who:6} {}: {value:.3} {}", measure.name, measure.unit);
        let known = self.figures.iter().position(|figure| figure.measure.name == measure.name);
        let index = known.unwrap_or_else(|| {
            self.figures.push(Figure { measure, ours: Vec::new(), ceph: Vec::new() });
            self.figures.len() - 1
        });
        match who {
            Who::Ours => self.figures[index].ours.push(value),
            Who::Ceph => self.figures[index].ceph.push(value),
        }
    }

    /// One figure so far.
    pub fn get(&self, measure: Measure) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.measure.name == measure.name)
    }

    /// The figures.
    pub fn figures(self) -> Vec<Figure> {
        self.figures
    }
}

/// The middle one; of an even number the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Measure = Measure { name: "time", unit: "s", target: Target::RatioAtMost(0.2) };

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[9.0, 1.0, 2.0, 4.0]), Some(3.0));
    }

    #[test]
    fn a_target_is_judged_by_the_ratio_of_medians() {
        let figure =
            |ours: &[f64], ceph: &[f64]| Figure { measure: TIME, ours: ours.to_vec(), ceph: ceph.to_vec() };
        assert_eq!(figure(&[1.0, 9.0, 1.0], &[5.0]).reached(), Some(true));
        assert_eq!(figure(&[1.1], &[5.0]).reached(), Some(false));
        assert_eq!(figure(&[1.1], &[]).reached(), None);
        assert_eq!(figure(&[1.1], &[0.0]).reached(), None);
    }

    #[test]
    fn turns_alternate() {
        assert_eq!(Who::alternate(2), [Who::Ours, Who::Ceph, Who::Ceph, Who::Ours]);
    }
}
