//! Reductions of several peers' vectors to one.
//!
//! The caller passes the parts in PeerId order; every owner of a partition computes in that order and gets
//! the same bits. Sums are `f32`, one addition after the other: adding in another order would round
//! differently.

use serde::{Deserialize, Serialize};

use crate::{flat::round_to_f32, frame::first_non_finite};

/// Picks how parts are reduced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
        Reducer::GeometricMean => geometric_mean(parts, total),
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

fn geometric_mean(parts: &[(f64, &[f32])], total: f64) -> Vec<f32> {
    (0..parts[0].1.len()).map(|index| geometric_element(parts, total, index)).collect()
}

fn geometric_element(parts: &[(f64, &[f32])], total: f64, index: usize) -> f32 {
    let (mut positive, mut negative) = (Side::default(), Side::default());
    for (weight, values) in parts {
        let value = f64::from(values[index]);
        if value > 0.0 {
            positive.add(*weight, value);
        } else if value < 0.0 {
            negative.add(*weight, -value);
        }
    }
    if positive.weight == negative.weight {
        return 0.0;
    }
    let (sign, side) = if positive.weight > negative.weight { (1.0, positive) } else { (-1.0, negative) };
    round_to_f32(sign * libm::exp(side.log_sum / side.weight) * (side.weight / total))
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
