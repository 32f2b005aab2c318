//! Whether those who break the rules are found, and nobody else.
//!
//! Found is a peer against which something was proved: it lost its place for bytes that are no contribution, a merge that
//! others contradict or a replay that differs, was dismissed for a wrong verdict, or signed two messages
//! under one number; or one that a majority of the candidates deposed. Who was only silent, or proved nothing, is not found. An honest peer counts
//! as wronged if it lost its place for anything but silence and leaving, or was deposed: what is no proof counts against the swarm, not for it.
//!
//! ```text
//! precision = found / (found + wronged)     recall = found / (found + missed)     F1 = 2 found / (2 found + missed + wronged)
//! ```
//! Missed is who broke a rule and was not found. Adversaries that had no occasion to break one count as honest.

use std::ops::Add;

use crate::measure::statistics::{Estimate, percentile, ratio, real};
use crate::random::Random;

/// Samples of the bootstrap: the error of its quantiles is then below what their two digits show.
const RESAMPLES: usize = 2000;
/// What they are drawn from.
const RESAMPLE_SEED: u64 = 7;

/// Who was found in some runs, and who should have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Peers that broke a rule and were found.
    pub found: u64,
    /// Peers that broke a rule and were not.
    pub missed: u64,
    /// Peers that broke none.
    pub honest: u64,
    /// Those of them that lost their place, or were dismissed, for anything but silence and leaving.
    pub wronged: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            found: self.found + other.found,
            missed: self.missed + other.missed,
            honest: self.honest + other.honest,
            wronged: self.wronged + other.wronged,
        }
    }
}

impl Counts {
    /// Of these runs together.
    #[must_use]
    pub fn sum(runs: impl IntoIterator<Item = Self>) -> Self {
        runs.into_iter().fold(Self::default(), Add::add)
    }

    /// Peers that broke a rule.
    #[must_use]
    pub const fn misbehaved(&self) -> u64 {
        self.found + self.missed
    }

    /// The harmonic mean of precision and recall; zero if nobody was found.
    #[must_use]
    pub fn f1(&self) -> f64 {
        ratio(real(2 * self.found), real(2 * self.found + self.missed + self.wronged))
    }
}

/// How well those who break the rules are told from those who do not, with 95 % intervals. Peers of one run are no
/// independent trials, as the intervals of Wilson take them to be; the one of F1 takes runs of one seed together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// All counts together.
    pub counts: Counts,
    /// Share of those punished who broke a rule, with Wilson's interval.
    pub precision: Estimate,
    /// Share of those who broke a rule that were found, with Wilson's interval.
    pub recall: Estimate,
    /// F1, with the percentile interval of a bootstrap over seeds.
    pub f1: Estimate,
    /// Share of honest peers that were punished, with Wilson's interval.
    pub wronged: Estimate,
}

impl Detection {
    /// From the counts of each seed.
    #[must_use]
    pub fn of(by_seed: &[Counts]) -> Self {
        let counts = Counts::sum(by_seed.iter().copied());
        let Counts { found, honest, wronged, .. } = counts;
        Self {
            counts,
            precision: Estimate::of_fraction(found, found + wronged),
            recall: Estimate::of_fraction(found, counts.misbehaved()),
            f1: f1(by_seed),
            wronged: Estimate::of_fraction(wronged, honest),
        }
    }
}

/// F1 of all seeds together, and where it lies in 95 % of as many seeds drawn from these with replacement.
fn f1(by_seed: &[Counts]) -> Estimate {
    let mut random = Random::new(RESAMPLE_SEED, "bootstrap over seeds");
    let mut resample = || {
        let drawn = (0..by_seed.len()).map(|_| by_seed[random.below(by_seed.len())]);
        Counts::sum(drawn).f1()
    };
    let resampled: Vec<f64> = (0..RESAMPLES).map(|_| resample()).collect();
    Estimate {
        mean: Counts::sum(by_seed.iter().copied()).f1(),
        low: percentile(&resampled, 0.025),
        high: percentile(&resampled, 0.975),
        runs: by_seed.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Counts = Counts { found: 4, missed: 0, honest: 16, wronged: 0 };
    const BAD: Counts = Counts { found: 1, missed: 3, honest: 16, wronged: 1 };

    #[test]
    fn f1_is_the_harmonic_mean_of_precision_and_recall() {
        let detection = Detection::of(&[GOOD, BAD]);
        let (precision, recall) = (5.0 / 6.0, 5.0 / 8.0);
        assert!((detection.precision.mean - precision).abs() < 1e-6);
        assert!((detection.recall.mean - recall).abs() < 1e-6);
        assert!((detection.f1.mean - 2.0 * precision * recall / (precision + recall)).abs() < 1e-6);
        assert!((detection.wronged.mean - 1.0 / 32.0).abs() < 1e-6);
    }

    #[test]
    fn the_bootstrap_spans_seeds_that_differ_and_nothing_if_they_do_not() {
        let same = Detection::of(&[BAD; 4]).f1;
        assert_eq!((same.low, same.high), (BAD.f1(), BAD.f1()));
        // Of two seeds a quarter of all draws is one of them twice.
        let two = Detection::of(&[GOOD, BAD]).f1;
        assert_eq!((two.low, two.high), (BAD.f1(), GOOD.f1()));
        let seeds = [[GOOD; 8].as_slice(), &[BAD; 8]].concat();
        let many = Detection::of(&seeds).f1;
        assert!(BAD.f1() < many.low && many.low < many.mean && many.mean < many.high && many.high < 1.0);
        assert_eq!(many, Detection::of(&seeds).f1, "from one seed");
    }

    #[test]
    fn nobody_found_is_zero() {
        assert_eq!(Counts { missed: 4, honest: 16, ..Counts::default() }.f1(), 0.0);
    }
}
