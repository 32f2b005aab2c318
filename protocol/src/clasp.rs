//! Which miners raise the loss of what passes through them: contribution assessment from losses by path (CLASP, IOTA primer,
//! section "CLASP"; the primer compares means per miner, here one least-squares fit looks at all stages at once).
//!
//! ```text
//! loss of a sample = mean + Σ over stages of effect(stage, the miner its path went through) + noise
//! ```
//! with effects of a stage's miners that sum to zero. A mean per miner blames the honest for whom they shared paths with;
//! the fit does not, so long as paths are mixed. Where they are not, what cannot be told apart has a large standard error
//! and is not flagged.
//!
//! Losses fall as training goes on. [`detrend`] takes that out first: it subtracts the running median of losses near in time.
//!
//! Arithmetic is + − × ÷ √ and `libm`, in one order: the same bytes on every platform.

use std::fmt;

use crate::quantiles::{median, student};

/// Added to the diagonal of the normal equations, as a share of the number of samples: effects that no sample tells apart
/// come out with an enormous standard error, instead of as anything.
const RIDGE: f64 = 1e-9;
/// Miners of all stages together, at most: the fit costs the cube of their number, and 1024 take about a second.
pub const MINERS_MAX: usize = 1024;

/// The loss of a sample and whom it went through.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// For each stage the place of the miner among those of the stage.
    pub path: Vec<usize>,
    /// The loss at the tail, in nats per token.
    pub loss: f64,
}

/// What a miner adds to the loss of a sample, beside the mean of its stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Effect {
    /// Samples that went through it.
    pub samples: usize,
    /// The estimate, in nats per token.
    pub effect: f64,
    /// Its standard error.
    pub error: f64,
}

impl Effect {
    /// How many standard errors the effect is above zero.
    #[must_use]
    pub fn score(&self) -> f64 {
        if self.error > 0.0 { self.effect / self.error } else { 0.0 }
    }
}

/// Why nothing can be attributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaspError {
    /// A path has another number of stages than the run.
    #[error("expected a path through {expected} stages, got {got}")]
    Stages {
        /// Stages of the run.
        expected: usize,
        /// Stages of the path.
        got: usize,
    },
    /// A path names a miner that its stage does not have.
    #[error("expected one of {miners} miners, got number {got}")]
    Miner {
        /// Miners of the stage.
        miners: usize,
        /// The number in the path.
        got: usize,
    },
    /// A loss is no number.
    #[error("expected finite losses, got one that is not")]
    Loss,
    /// There are more miners than a fit can take.
    #[error("expected at most {MINERS_MAX} miners in all stages, got {got}")]
    TooMany {
        /// How many there are.
        got: usize,
    },
    /// There are not enough samples to say how much losses scatter.
    #[error("expected more than {needed} samples, got {got}")]
    TooFew {
        /// What a fit needs.
        needed: usize,
        /// How many there are.
        got: usize,
    },
}

/// Subtracts from each loss the median of the `window` losses around it, in the order given. What is left is beside zero.
///
/// The window has to be long beside the samples on which a change of loss shows, and is cut at both ends.
pub fn detrend(records: &mut [Record], window: usize) {
    let losses: Vec<f64> = records.iter().map(|record| record.loss).collect();
    let half = window / 2;
    for (at, record) in records.iter_mut().enumerate() {
        let near = at.saturating_sub(half)..losses.len().min(at + half + 1);
        record.loss -= median(losses.get(near).unwrap_or_default().to_vec());
    }
}

/// What each miner of each stage adds to the loss. `miners` says how many each stage has.
///
/// # Errors
/// [`ClaspError`] if the records do not fit, or are too few.
pub fn attribute(records: &[Record], miners: &[usize]) -> Result<Vec<Vec<Effect>>, ClaspError> {
    let columns = Columns::new(miners)?;
    if records.len() <= columns.count {
        return Err(ClaspError::TooFew { needed: columns.count, got: records.len() });
    }
    let mut normal = Symmetric::zero(columns.count);
    let mut right = vec![0.0; columns.count];
    let mut samples: Vec<Vec<usize>> = miners.iter().map(|count| vec![0; *count]).collect();
    for record in records {
        if !record.loss.is_finite() {
            return Err(ClaspError::Loss);
        }
        let row = columns.row(&record.path)?;
        for (stage, miner) in samples.iter_mut().zip(&record.path) {
            stage.get_mut(*miner).into_iter().for_each(|count| *count += 1);
        }
        for (i, x) in &row {
            right.get_mut(*i).into_iter().for_each(|sum| *sum += x * record.loss);
            row.iter().filter(|(j, _)| j <= i).for_each(|(j, y)| normal.add(*i, *j, x * y));
        }
    }
    let ridge = RIDGE * real(records.len());
    (0..columns.count).for_each(|i| normal.add(i, i, ridge));
    let factor = normal.factor();
    let fitted = factor.solve(&right);

    let mut squares = 0.0;
    for record in records {
        let expected: f64 = columns.row(&record.path)?.iter().map(|(i, x)| x * at(&fitted, *i)).sum();
        squares += (record.loss - expected) * (record.loss - expected);
    }
    let variance = squares / real(records.len() - columns.count);
    let effects = samples.into_iter().enumerate().map(|(stage, counts)| {
        let of_one = |(miner, samples): (usize, usize)| {
            let contrast = columns.contrast(stage, miner);
            let effect = contrast.iter().zip(&fitted).map(|(c, a)| c * a).sum();
            let spread: f64 = contrast.iter().zip(factor.solve(&contrast)).map(|(c, s)| c * s).sum();
            Effect { samples, effect, error: libm::sqrt(variance * spread) }
        };
        counts.into_iter().enumerate().map(of_one).collect()
    });
    Ok(effects.collect())
}

/// Above how many standard errors a miner is flagged, so that among `miners` honest ones any is with this probability:
/// each may be with a `miners`-th of it (Bonferroni). Standard errors of few samples are themselves uncertain: the threshold is
/// that of Student's t with as many degrees of freedom as `samples` leave.
#[must_use]
pub fn threshold(false_positives: f64, miners: &[usize], samples: usize) -> f64 {
    let unknown = 1 + miners.iter().map(|miners| miners.saturating_sub(1)).sum::<usize>();
    let freedom = real(samples.saturating_sub(unknown).max(1));
    student(false_positives / real(miners.iter().sum::<usize>().max(1)), freedom)
}

/// A fit's columns: the mean, and for each stage all miners but the last, who has minus the sum of the others.
struct Columns<'a> {
    miners: &'a [usize],
    first: Vec<usize>,
    count: usize,
}

impl<'a> Columns<'a> {
    fn new(miners: &'a [usize]) -> Result<Self, ClaspError> {
        let all: usize = miners.iter().sum();
        if all > MINERS_MAX {
            return Err(ClaspError::TooMany { got: all });
        }
        let mut count = 1;
        let mut first = Vec::with_capacity(miners.len());
        for of_stage in miners {
            first.push(count);
            count += of_stage.saturating_sub(1);
        }
        Ok(Self { miners, first, count })
    }

    /// The columns of a path that are not zero.
    fn row(&self, path: &[usize]) -> Result<Vec<(usize, f64)>, ClaspError> {
        if path.len() != self.miners.len() {
            return Err(ClaspError::Stages { expected: self.miners.len(), got: path.len() });
        }
        let mut row = vec![(0, 1.0)];
        for ((miner, miners), first) in path.iter().zip(self.miners).zip(&self.first) {
            match miner + 1 {
                next if next < *miners => row.push((first + miner, 1.0)),
                next if next == *miners => row.extend((0..*miner).map(|other| (first + other, -1.0))),
                _ => return Err(ClaspError::Miner { miners: *miners, got: *miner }),
            }
        }
        Ok(row)
    }

    /// The effect of one miner as a sum of columns.
    fn contrast(&self, stage: usize, miner: usize) -> Vec<f64> {
        let mut contrast = vec![0.0; self.count];
        let (first, miners) = (at(&self.first, stage), at(self.miners, stage));
        let (columns, value) = if miner + 1 < miners {
            (first + miner..first + miner + 1, 1.0)
        } else {
            (first..first + miner, -1.0)
        };
        contrast.get_mut(columns).into_iter().flatten().for_each(|column| *column = value);
        contrast
    }
}

/// The lower half of a symmetric matrix, row by row.
#[derive(Clone)]
struct Symmetric {
    size: usize,
    values: Vec<f64>,
}

impl Symmetric {
    fn zero(size: usize) -> Self {
        Self { size, values: vec![0.0; size * (size + 1) / 2] }
    }

    fn row(&self, i: usize) -> &[f64] {
        let start = i * (i + 1) / 2;
        self.values.get(start..=start + i).unwrap_or_default()
    }

    fn add(&mut self, i: usize, j: usize, value: f64) {
        self.values.get_mut(i * (i + 1) / 2 + j).into_iter().for_each(|sum| *sum += value);
    }

    /// Its Cholesky factor, for a matrix that is positive definite.
    fn factor(self) -> Factor {
        let mut lower = Self::zero(self.size);
        for i in 0..self.size {
            for j in 0..=i {
                let known: f64 = lower.row(i).iter().zip(lower.row(j)).take(j).map(|(a, b)| a * b).sum();
                let rest = at(self.row(i), j) - known;
                // The ridge keeps the diagonal above zero; rounding may not.
                let value =
                    if i == j { libm::sqrt(rest.max(f64::MIN_POSITIVE)) } else { rest / at(lower.row(j), j) };
                lower.add(i, j, value);
            }
        }
        Factor(lower)
    }
}

/// A lower triangle *L* for *L Lᵀ*.
struct Factor(Symmetric);

impl Factor {
    /// *x* with *L Lᵀ x = right*.
    fn solve(&self, right: &[f64]) -> Vec<f64> {
        let Self(lower) = self;
        let mut x: Vec<f64> = Vec::with_capacity(lower.size);
        for i in 0..lower.size {
            let known: f64 = lower.row(i).iter().zip(&x).map(|(l, x)| l * x).sum();
            x.push((at(right, i) - known) / at(lower.row(i), i));
        }
        for i in (0..lower.size).rev() {
            let value = at(&x, i) / at(lower.row(i), i);
            x.get_mut(i).into_iter().for_each(|x| *x = value);
            for (x, l) in x.iter_mut().zip(lower.row(i)).take(i) {
                *x -= l * value;
            }
        }
        x
    }
}

/// A value that is there.
fn at<T: Copy + Default>(values: &[T], index: usize) -> T {
    values.get(index).copied().unwrap_or_default()
}

/// A count as a number.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
const fn real(count: usize) -> f64 {
    count as f64
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, effect, error } = self;
        write!(f, "{effect:+.4} ± {error:.4} ({:+.1} standard errors, {samples} samples)", self.score())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look drawn and are the same on every machine: a Weyl sequence.
    fn noise(index: usize) -> f64 {
        let unit = (real(index + 1) * 0.618_033_988_749_894_9).fract();
        (unit - 0.5) * 0.4
    }

    /// Every path through these stages in turn, `times` over.
    fn paths(miners: &[usize], times: usize) -> Vec<Vec<usize>> {
        let all: usize = miners.iter().product();
        let path = |number: usize| {
            let mut rest = number;
            let step = |count: &usize| (rest % count, rest /= count).0;
            miners.iter().map(step).collect()
        };
        (0..all * times).map(|number| path(number % all)).collect()
    }

    fn records(miners: &[usize], times: usize, loss: impl Fn(usize, &[usize]) -> f64) -> Vec<Record> {
        let records = paths(miners, times).into_iter().enumerate();
        records.map(|(index, path)| Record { loss: loss(index, &path), path }).collect()
    }

    #[test]
    fn effects_without_noise_are_found_as_they_were_put_in() {
        let miners = [3, 2];
        let truth = [[0.3, -0.1, -0.2].as_slice(), &[0.05, -0.05]];
        let records = records(&miners, 2, |_, path| 4.5 + truth[0][path[0]] + truth[1][path[1]]);
        let found = attribute(&records, &miners).unwrap();
        for (stage, effects) in truth.iter().enumerate() {
            for (miner, effect) in effects.iter().enumerate() {
                let found = found[stage][miner];
                assert!((found.effect - effect).abs() < 1e-6, "stage {stage} miner {miner}: {found}");
                assert_eq!(found.samples, records.len() / miners[stage]);
            }
        }
    }

    #[test]
    fn standard_errors_are_those_of_a_difference_of_means() {
        // With one stage of two miners the effect is half the difference of the means.
        let records = records(&[2], 200, |index, _| noise(index));
        let found = attribute(&records, &[2]).unwrap();
        let of = |miner: usize| {
            records
                .iter()
                .filter(move |record| record.path == [miner])
                .map(|record| record.loss)
                .collect::<Vec<_>>()
        };
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / real(losses.len());
        let (first, second) = (of(0), of(1));
        let squares = |losses: &[f64]| losses.iter().map(|loss| (loss - mean(losses)).powi(2)).sum::<f64>();
        let pooled = (squares(&first) + squares(&second)) / real(records.len() - 2);
        let error = (pooled * (1.0 / real(first.len()) + 1.0 / real(second.len()))).sqrt() / 2.0;
        assert!((found[0][0].effect - (mean(&first) - mean(&second)) / 2.0).abs() < 1e-9);
        assert!((found[0][0].error - error).abs() < 1e-9, "{} {error}", found[0][0]);
    }

    #[test]
    fn who_shares_paths_with_a_bad_one_is_not_blamed() {
        let miners = [4, 4];
        // Miner 0 of the second stage works mostly behind the bad miner 2 of the first.
        let mixed =
            records(&miners, 40, |index, path| 4.5 + noise(index) + if path[0] == 2 { 0.5 } else { 0.0 });
        let skewed: Vec<Record> = mixed
            .into_iter()
            .enumerate()
            .filter(|(index, record)| record.path[1] != 0 || record.path[0] == 2 || index % 5 == 0)
            .map(|(_, record)| record)
            .collect();
        let losses = |miner| {
            let through = skewed.iter().filter(|record| record.path[1] == miner);
            let losses: Vec<f64> = through.map(|record| record.loss).collect();
            losses.iter().sum::<f64>() / real(losses.len())
        };
        assert!(losses(0) > losses(1) + 0.1, "by its mean it looks bad");
        let found = attribute(&skewed, &miners).unwrap();
        let flagged = threshold(0.001, &miners, skewed.len());
        assert!(found[0][2].score() > flagged, "{}", found[0][2]);
        assert!(found[1].iter().all(|effect| effect.score() < flagged), "{:?}", found[1]);
    }

    #[test]
    fn what_cannot_be_told_apart_is_not_flagged() {
        // The bad miner 0 of the first stage always sends to miner 0 of the second.
        let path = |index: usize| vec![index % 3, index % 3];
        let records: Vec<Record> = (0..300)
            .map(|index| Record {
                path: path(index),
                loss: noise(index) + if index % 3 == 0 { 0.5 } else { 0.0 },
            })
            .collect();
        let found = attribute(&records, &[3, 3]).unwrap();
        assert!(found.iter().flatten().all(|effect| effect.score() < 1.0), "{found:?}");
    }

    #[test]
    fn a_falling_loss_is_taken_out() {
        let slope = |index: usize| 9.0 - 6.0 * real(index) / 2000.0;
        let mut falling = records(&[4], 500, |index, path| {
            slope(index) + noise(index) + if path[0] == 1 { 0.05 } else { 0.0 }
        });
        let before = attribute(&falling, &[4]).unwrap();
        detrend(&mut falling, 65);
        let after = attribute(&falling, &[4]).unwrap();
        assert!(before[0][1].score() < 1.0, "lost in the trend: {}", before[0][1]);
        assert!(after[0][1].score() > 4.0, "{}", after[0][1]);
    }

    #[test]
    fn thresholds_are_those_of_students_t() {
        // Tables give 4.2968 for 0.1 % at 9 degrees of freedom, 3.1737 at 100.
        for (samples, t) in [(11, 4.2968), (102, 3.1737)] {
            assert!((threshold(0.002, &[2], samples) - t).abs() < 0.02, "{samples}");
        }
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let record = |path: &[usize], loss| Record { path: path.to_vec(), loss };
        let good = vec![record(&[0, 1], 1.0); 9];
        let with = |last: Record| [good.clone(), vec![last]].concat();
        let of = |records: &[Record]| attribute(records, &[2, 2]).unwrap_err();
        assert_eq!(of(&with(record(&[0], 1.0))), ClaspError::Stages { expected: 2, got: 1 });
        assert_eq!(of(&with(record(&[0, 2], 1.0))), ClaspError::Miner { miners: 2, got: 2 });
        assert_eq!(of(&with(record(&[0, 1], f64::NAN))), ClaspError::Loss);
        assert_eq!(of(&good[..3]), ClaspError::TooFew { needed: 3, got: 3 });
        assert_eq!(attribute(&good, &[MINERS_MAX, 1]), Err(ClaspError::TooMany { got: MINERS_MAX + 1 }));
    }
}
