//! Reductions of several peers' vectors to one.
//!
//! The caller passes the parts in PeerId order; every owner of a partition computes in that order and gets
//! the same bits. Sums of the weighted mean are `f32`, one addition after the other: adding in another order would
//! round differently. The others compute in `f64` and round once.

use crate::{flat::round_to_f32, frame::first_non_finite};

/// Picks how parts are reduced.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Reducer {
    /// `Σ wᵢ xᵢ / Σ wᵢ`: each weight is first divided by the sum of all in `f64` and rounded to `f32`, then
    /// the products are added in order in `f32`.
    #[default]
    WeightedMean,
    /// The weighted geometric mean of the magnitudes, with the sign of the heavier side.
    ///
    /// The IOTA documents speak of a geometric mean, which is undefined for numbers of both signs. Here an
    /// element's sign is the one with the larger sum of weights; equal sums give 0. The magnitude is `exp(Σ
    /// wᵢ ln|xᵢ| / Σ wᵢ)` over the parts that agree with the sign, times their share of the weight, so that
    /// dissent shrinks the result. Parts that are 0 side with nobody. Logarithms are taken in `f64` in pure
    /// Rust and the result is rounded to `f32` once.
    GeometricMean,
    /// Of each element the smallest and the largest parts are left out, the weighted mean is of the rest (Yin, Chen,
    /// Ramchandran & Bartlett 2018, "Byzantine-Robust Distributed Learning", definition 2).
    TrimmedMean {
        /// Share of the parts that is left out at either end, rounded down; of *n* parts one or two are left in any case.
        trim: f64,
    },
    /// Of each element the median of all parts, of an even number the mean of the middle two (the same paper,
    /// definition 1). Every part counts the same, whatever its weight: who claims more work has no more say.
    Median,
    /// The weighted mean of parts whose Euclidean norm is scaled down to the median of all norms where it is above that.
    /// One part moves the result by no more than an ordinary one does, in whatever direction.
    ClippedMean,
}

/// Says why nothing was reduced.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReduceError {
    /// There is nothing to reduce.
    #[error("no parts to reduce, expected at least one")]
    Empty,
    /// A part differs in length from the first.
    #[error("part {part} has {got} elements, expected {expected}")]
    Length {
        /// Index of the part in the caller's order.
        part: usize,
        /// Its length.
        got: usize,
        /// The length of the first part.
        expected: usize,
    },
    /// A part holds NaN or infinity.
    #[error("part {part} element {index} is {value}, expected a finite number")]
    NonFinite {
        /// Index of the part in the caller's order.
        part: usize,
        /// Position in the part.
        index: usize,
        /// The number.
        value: f32,
    },
    /// A weight is not a positive number.
    #[error("part {part} has weight {weight}, expected a finite number above 0")]
    Weight {
        /// Index of the part in the caller's order.
        part: usize,
        /// Its weight.
        weight: f64,
    },
    /// Finite parts whose reduction overflows.
    #[error("reduced element {index} is {value}, expected a finite number")]
    Overflow {
        /// Position in the result.
        index: usize,
        /// The number.
        value: f32,
    },
}

/// Reduces weighted parts, in the given order, to one vector.
///
/// # Errors
/// When there are no parts, lengths differ, a weight is not positive, or a number is not finite.
pub fn reduce(parts: &[(f64, &[f32])], reducer: Reducer) -> Result<Vec<f32>, ReduceError> {
    let total = check(parts)?;
    let reduced = match reducer {
        Reducer::WeightedMean => weighted_mean(parts, total),
        robust => combine(parts, robust).into_iter().map(round_to_f32).collect(),
    };
    match first_non_finite(&reduced) {
        None => Ok(reduced),
        Some((index, value)) => Err(ReduceError::Overflow { index, value }),
    }
}

/// Checks all parts and returns the sum of their weights, added in order.
fn check(parts: &[(f64, &[f32])]) -> Result<f64, ReduceError> {
    let expected = parts.first().ok_or(ReduceError::Empty)?.1.len();
    let mut total = 0.0;
    for (part, (weight, values)) in parts.iter().enumerate() {
        if values.len() != expected {
            return Err(ReduceError::Length { part, got: values.len(), expected });
        }
        total += weight;
        // A sum that overflows is blamed on the weight that overflowed it.
        if !(weight.is_finite() && *weight > 0.0 && total.is_finite()) {
            return Err(ReduceError::Weight { part, weight: *weight });
        }
        if let Some((index, value)) = first_non_finite(values) {
            return Err(ReduceError::NonFinite { part, index, value });
        }
    }
    Ok(total)
}

fn weighted_mean(parts: &[(f64, &[f32])], total: f64) -> Vec<f32> {
    let mut sum = vec![0.0_f32; parts[0].1.len()];
    for (weight, values) in parts {
        let share = round_to_f32(weight / total);
        for (sum, value) in sum.iter_mut().zip(*values) {
            *sum += share * value;
        }
    }
    sum
}

/// Combines weighted parts of one length, at least one, in the given order and in `f64`: what [`reduce`] rounds.
///
/// # Panics
/// If there are no parts, or a part is shorter than the first.
#[must_use]
pub fn combine<T: Copy + Into<f64>>(parts: &[(f64, &[T])], reducer: Reducer) -> Vec<f64> {
    let factors = match reducer {
        Reducer::ClippedMean => clip_factors(parts),
        _ => vec![1.0; parts.len()],
    };
    let mut column = Vec::with_capacity(parts.len());
    let mut element = |index: usize| {
        column.clear();
        let scaled = parts.iter().zip(&factors);
        column.extend(scaled.map(|((weight, values), factor)| (*weight, values[index].into() * factor)));
        if reducer == Reducer::Median {
            column.iter_mut().for_each(|(weight, _)| *weight = 1.0);
        }
        match reducer {
            Reducer::WeightedMean | Reducer::ClippedMean => mean(&column),
            Reducer::GeometricMean => geometric(&column),
            Reducer::TrimmedMean { trim } => trimmed(&mut column, trim),
            // All but the middle one or two are left out.
            Reducer::Median => trimmed(&mut column, 0.5),
        }
    };
    (0..parts[0].1.len()).map(&mut element).collect()
}

/// `Σ wᵢ xᵢ / Σ wᵢ` of (weight, value) pairs.
fn mean(column: &[(f64, f64)]) -> f64 {
    let total: f64 = column.iter().map(|(weight, _)| weight).sum();
    column.iter().map(|(weight, value)| weight / total * value).sum()
}

fn geometric(column: &[(f64, f64)]) -> f64 {
    let (mut positive, mut negative) = (Side::default(), Side::default());
    let mut total = 0.0;
    for &(weight, value) in column {
        total += weight;
        if value > 0.0 {
            positive.add(weight, value);
        } else if value < 0.0 {
            negative.add(weight, -value);
        }
    }
    if positive.weight == negative.weight {
        return 0.0;
    }
    let (sign, side) = if positive.weight > negative.weight { (1.0, positive) } else { (-1.0, negative) };
    sign * libm::exp(side.log_sum / side.weight) * (side.weight / total)
}

/// The mean without the smallest and the largest values; of equal values the first is smaller.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a small count"
)]
fn trimmed(column: &mut [(f64, f64)], trim: f64) -> f64 {
    column.sort_by(|a, b| a.1.total_cmp(&b.1));
    let dropped = ((column.len() as f64 * trim) as usize).min((column.len() - 1) / 2);
    mean(&column[dropped..column.len() - dropped])
}

/// The middle of some numbers, at least one; of an even number the mean of the middle two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) }
}

/// What each part is multiplied with, so that no norm is above the median.
fn clip_factors<T: Copy + Into<f64>>(parts: &[(f64, &[T])]) -> Vec<f64> {
    let square = |value: f64| value * value;
    let norm = |values: &[T]| values.iter().map(|value| square((*value).into())).sum::<f64>().sqrt();
    let norms: Vec<f64> = parts.iter().map(|(_, values)| norm(values)).collect();
    let bound = median(norms.clone());
    norms.into_iter().map(|norm| if norm > bound { bound / norm } else { 1.0 }).collect()
}

/// The parts of one sign.
#[derive(Default)]
struct Side {
    weight: f64,
    log_sum: f64,
}

impl Side {
    fn add(&mut self, weight: f64, magnitude: f64) {
        self.weight += weight;
        self.log_sum += weight * libm::log(magnitude);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(parts: &[(f64, &[f32])]) -> Vec<f32> {
        reduce(parts, Reducer::WeightedMean).unwrap()
    }

    fn geometric(parts: &[(f64, f32)]) -> f32 {
        let values: Vec<[f32; 1]> = parts.iter().map(|part| [part.1]).collect();
        let parts: Vec<(f64, &[f32])> =
            parts.iter().zip(&values).map(|(part, value)| (part.0, &value[..])).collect();
        reduce(&parts, Reducer::GeometricMean).unwrap()[0]
    }

    #[test]
    fn weighted_mean_divides_by_the_sum_of_weights() {
        assert_eq!(mean(&[(1.0, &[4.0, 0.0]), (3.0, &[0.0, 8.0])]), [1.0, 6.0]);
        assert_eq!(mean(&[(7.0, &[0.1, -3.5])]), [0.1, -3.5], "one part is returned unchanged");
    }

    #[test]
    fn weighted_mean_adds_in_the_given_order() {
        let (big, one) = (f32::powi(2.0, 26), 1.0);
        let forward = mean(&[(1.0, &[big]), (1.0, &[one]), (1.0, &[-big]), (1.0, &[one])]);
        let sorted = mean(&[(1.0, &[big]), (1.0, &[-big]), (1.0, &[one]), (1.0, &[one])]);
        // 2^24 + 1/4 rounds to 2^24, so the first small part is lost unless the big ones cancel first.
        assert_eq!((forward[0], sorted[0]), (0.25, 0.5));
    }

    #[test]
    fn geometric_mean_follows_the_heavier_sign_and_shrinks_with_dissent() {
        // exp and log round once each, hence one part in 2^23.
        let near = |got: f32, expected: f32| {
            assert!((got - expected).abs() <= expected.abs() * f32::EPSILON, "{got}")
        };
        near(geometric(&[(1.0, 2.0), (1.0, 8.0)]), 4.0);
        near(geometric(&[(1.0, -2.0), (1.0, -8.0)]), -4.0);
        near(geometric(&[(1.0, 2.0), (1.0, 8.0), (2.0, 0.0)]), 2.0);
        near(geometric(&[(3.0, -2.0), (1.0, 8.0)]), -1.5);
        assert_eq!(geometric(&[(1.0, 2.0), (1.0, -2.0)]), 0.0);
        assert_eq!(geometric(&[(1.0, 0.0), (1.0, -0.0)]), 0.0);
    }

    /// Three honest parts near (1, −2), and one that says something else.
    fn beside_a_liar(reducer: Reducer, lie: [f32; 2]) -> Vec<f32> {
        let honest = [[1.0, -2.0], [1.1, -1.9], [0.9, -2.1]];
        let mut parts: Vec<(f64, &[f32])> = honest.iter().map(|part| (2.0, &part[..])).collect();
        parts.push((6.0, &lie));
        reduce(&parts, reducer).unwrap()
    }

    #[test]
    fn a_part_of_absurd_size_or_sign_moves_a_robust_result_no_further_than_honest_parts_are_apart() {
        for lie in [[3e38, 3e38], [-3e38, 3e38], [-1.0, 2.0], [0.0, 0.0]] {
            for reducer in [Reducer::Median, Reducer::TrimmedMean { trim: 0.25 }] {
                let [x, y] = beside_a_liar(reducer, lie)[..] else { panic!("two elements") };
                assert!(
                    (0.9..=1.1).contains(&x) && (-2.1..=-1.9).contains(&y),
                    "{reducer:?} {lie:?}: {x} {y}"
                );
            }
        }
    }

    #[test]
    fn a_clipped_mean_is_at_most_the_median_norm_long() {
        let long = beside_a_liar(Reducer::ClippedMean, [3e38, 0.0]);
        let norm = long[0].hypot(long[1]);
        // Norms are √5, √4.82, √5.22 and the lie's: the median is the mean of √5 and √5.22.
        assert!(norm <= f32::midpoint(5.0_f32.sqrt(), 5.22_f32.sqrt()), "{norm}");
        assert!(long[0] > 1.1, "half of the weight still points where the liar does: {long:?}");
        let equal = reduce(&[(1.0, &[3.0, 4.0]), (3.0, &[5.0, 0.0])], Reducer::ClippedMean).unwrap();
        assert_eq!(equal, [4.5, 1.0], "of equal norms none is clipped");
    }

    #[test]
    fn a_trimmed_mean_leaves_a_share_of_the_parts_out_at_either_end() {
        let values = [[7.0], [1.0], [2.0], [100.0], [-50.0]];
        let parts: Vec<(f64, &[f32])> = values.iter().map(|part| (1.0, &part[..])).collect();
        let trimmed = |trim| reduce(&parts, Reducer::TrimmedMean { trim }).unwrap()[0];
        assert_eq!([trimmed(0.0), trimmed(0.19)], [12.0, 12.0], "fewer than one part");
        assert_eq!(trimmed(0.2), 10.0 / 3.0);
        assert_eq!([trimmed(0.4), trimmed(0.49)], [2.0, 2.0], "the median is left");
        let two = reduce(&parts[..2], Reducer::TrimmedMean { trim: 0.49 }).unwrap();
        assert_eq!(two, [4.0], "of two parts none is left out");
    }

    #[test]
    fn a_median_counts_parts_and_not_their_weights() {
        let reduced = |parts: &[(f64, &[f32])]| reduce(parts, Reducer::Median).unwrap();
        assert_eq!(reduced(&[(1.0, &[1.0]), (1.0, &[2.0]), (1e6, &[9.0])]), [2.0]);
        assert_eq!(reduced(&[(1.0, &[1.0]), (1e6, &[2.0])]), [1.5]);
    }

    #[test]
    fn bad_parts_are_named() {
        let message = |parts: &[(f64, &[f32])]| reduce(parts, Reducer::WeightedMean).unwrap_err().to_string();
        assert_eq!(message(&[]), "no parts to reduce, expected at least one");
        assert_eq!(message(&[(1.0, &[1.0]), (1.0, &[1.0, 2.0])]), "part 1 has 2 elements, expected 1");
        assert_eq!(
            message(&[(1.0, &[1.0, 2.0]), (1.0, &[1.0, f32::NAN])]),
            "part 1 element 1 is NaN, expected a finite number"
        );
        assert_eq!(message(&[(0.0, &[1.0])]), "part 0 has weight 0, expected a finite number above 0");
        assert_eq!(message(&[(f64::MAX, &[1.0]), (f64::MAX, &[1.0])]).split(' ').nth(1), Some("1"));
    }
}
