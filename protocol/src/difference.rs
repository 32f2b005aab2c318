//! How far tensors that a validator computed are from those that a miner named, in whole numbers that can be signed and put
//! into messages.
//!
//! The same arithmetic gives the same bits and so the same names; there is nothing to measure then. Another machine, or
//! another order of sums, gives numbers beside it. The numbers here are what rules tell honest differences from others by.

use serde::{Deserialize, Serialize};

/// One, in millionths.
pub const ONE_PPM: u32 = 1_000_000;

/// How far tensors are from those they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Difference {
    /// Numbers can be compared.
    Measured(Measured),
    /// What the miner named is no tensor of this kind: it has another length, or a number in it is not finite.
    Incomparable {
        /// Index of the pair.
        pair: u32,
    },
}

/// How far tensors are from each other: of several pairs the worst of each number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// `|ours − theirs| / |ours|` in Euclidean norms, in millionths, rounded up: zero only if they are equal. What is no
    /// number or too large for the type is its largest value.
    pub relative_error_ppm: u32,
    /// Cosine of the angle between them in millionths, from −1 000 000 to 1 000 000, to the nearest; the least if it is no
    /// number.
    pub cosine_ppm: i32,
    /// The smaller norm over the greater in millionths, from 0 to 1 000 000, to the nearest; 0 if it is no number.
    pub norm_ratio_ppm: u32,
    /// Index of the pair with the largest relative error; of equal ones the first.
    pub worst: u32,
}

impl Measured {
    /// What `pair` of vectors gives.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "casts of floats saturate, and that is what is wanted"
    )]
    pub fn new(pair: usize, relative_error: f64, cosine: f64, norm_ratio: f64) -> Self {
        let one = f64::from(ONE_PPM);
        let relative_error = if relative_error.is_nan() { f64::INFINITY } else { relative_error };
        let cosine = if cosine.is_nan() { -1.0 } else { cosine.clamp(-1.0, 1.0) };
        let norm_ratio = if norm_ratio.is_nan() { 0.0 } else { norm_ratio.clamp(0.0, 1.0) };
        Self {
            relative_error_ppm: libm::ceil(relative_error * one) as u32,
            cosine_ppm: libm::round(cosine * one) as i32,
            norm_ratio_ppm: libm::round(norm_ratio * one) as u32,
            worst: index(pair),
        }
    }
}

impl Difference {
    /// That of tensors that are equal, or of none.
    pub const NONE: Self = Self::Measured(Measured {
        relative_error_ppm: 0,
        cosine_ppm: ONE_PPM.cast_signed(),
        norm_ratio_ppm: ONE_PPM,
        worst: 0,
    });

    /// What a pair is whose bytes are no tensors of the same kind.
    #[must_use]
    pub fn incomparable(pair: usize) -> Self {
        Self::Incomparable { pair: index(pair) }
    }

    /// The difference of both together: each number the worse one. Nothing is worse than what cannot be compared.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Incomparable { .. }, _) => self,
            (_, Self::Incomparable { .. }) => other,
            (Self::Measured(a), Self::Measured(b)) => Self::Measured(Measured {
                relative_error_ppm: a.relative_error_ppm.max(b.relative_error_ppm),
                cosine_ppm: a.cosine_ppm.min(b.cosine_ppm),
                norm_ratio_ppm: a.norm_ratio_ppm.min(b.norm_ratio_ppm),
                worst: if b.relative_error_ppm > a.relative_error_ppm { b.worst } else { a.worst },
            }),
        }
    }
}

fn index(pair: usize) -> u32 {
    u32::try_from(pair).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{decode, encode};

    fn measured(pair: usize, relative_error: f64, cosine: f64, norm_ratio: f64) -> Difference {
        Difference::Measured(Measured::new(pair, relative_error, cosine, norm_ratio))
    }

    #[test]
    fn only_equal_tensors_have_no_error() {
        assert_eq!(measured(0, 0.0, 1.0, 1.0), Difference::NONE);
        let tiny = Measured::new(3, 1e-12, 1.0, 1.0);
        let expected =
            Measured { relative_error_ppm: 1, cosine_ppm: 1_000_000, norm_ratio_ppm: 1_000_000, worst: 3 };
        assert_eq!(tiny, expected);
        let halves = Measured::new(0, 0.25, -0.5, 0.75);
        let expected =
            Measured { relative_error_ppm: 250_000, cosine_ppm: -500_000, norm_ratio_ppm: 750_000, worst: 0 };
        assert_eq!(halves, expected);
    }

    #[test]
    fn what_is_no_number_is_as_bad_as_can_be() {
        let worst = Measured {
            relative_error_ppm: u32::MAX,
            cosine_ppm: -1_000_000,
            norm_ratio_ppm: 0,
            worst: u32::MAX,
        };
        assert_eq!(Measured::new(usize::MAX, f64::NAN, f64::NAN, f64::NAN), worst);
        let infinite = Measured::new(usize::MAX, f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY);
        assert_eq!(infinite, worst);
    }

    #[test]
    fn of_several_pairs_each_number_is_the_worst_and_the_first_of_equals_is_named() {
        let all = [measured(0, 0.1, 0.5, 0.9), measured(1, 0.3, 0.9, 0.9), measured(2, 0.3, 0.9, 0.4)];
        let together = all.into_iter().fold(Difference::NONE, Difference::and);
        assert_eq!(together, measured(1, 0.3, 0.5, 0.4));
        let bad = Difference::incomparable(4);
        assert_eq!(together.and(bad).and(Difference::incomparable(5)), bad);
        assert_eq!(bad.and(together), bad);
    }

    #[test]
    fn a_difference_reads_back_from_its_bytes() {
        for difference in [Difference::NONE, measured(2, 3.5, -0.25, 0.5), Difference::incomparable(7)] {
            assert_eq!(decode(&encode(&difference), 128), Ok(difference));
        }
    }
}
