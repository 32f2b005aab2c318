//! How far a vector is from one that should be the same.
//!
//! All sums are taken in `f64`, element by element in order, so the same two vectors compare alike on every machine; an `f32`
//! squared is exact in `f64` and does not overflow.

use std::ops::AddAssign;

/// Holds the sums from which two vectors of one length are compared. A vector that comes in parts is added part by part.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    ours: f64,
    theirs: f64,
    product: f64,
    difference: f64,
}

/// Says how far `theirs` is from `ours`.
///
/// By a relative error *e* both other numbers are bounded, `cosine ≥ √(1 − e²)` and `norm_ratio ≥ 1 − e`, but not the other
/// way round. They tell one kind of difference from another: a vector that was scaled keeps its cosine, one whose sign was
/// flipped its norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// `|ours − theirs| / |ours|` in Euclidean norms, at least 0. Two zero vectors differ by 0; anything else differs from a
    /// zero vector of ours by infinity.
    pub relative_error: f64,
    /// Cosine of the angle between them, in −1..=1. Two zero vectors have 1; a zero vector has 0 with any other.
    pub cosine: f64,
    /// The smaller norm over the greater, in 0..=1. Two zero vectors have 1; a zero vector has 0 with any other.
    pub norm_ratio: f64,
}

impl Sums {
    /// Returns the sums of two vectors of the same length.
    ///
    /// # Shapes
    /// Both are `[n]`.
    ///
    /// # Panics
    /// When the lengths differ.
    #[must_use]
    pub fn of<T: Copy + Into<f64>>(ours: &[T], theirs: &[T]) -> Self {
        assert_eq!(ours.len(), theirs.len(), "vectors of different lengths are not compared");
        let mut sums = Self::default();
        for (ours, theirs) in ours.iter().zip(theirs) {
            let (ours, theirs): (f64, f64) = ((*ours).into(), (*theirs).into());
            sums.ours += ours * ours;
            sums.theirs += theirs * theirs;
            sums.product += ours * theirs;
            sums.difference += (ours - theirs) * (ours - theirs);
        }
        sums
    }

    /// Returns how far the vectors are from each other.
    #[must_use]
    pub fn comparison(&self) -> Comparison {
        let (ours, theirs) = (self.ours.sqrt(), self.theirs.sqrt());
        let (smaller, greater) = (ours.min(theirs), ours.max(theirs));
        if greater == 0.0 {
            return Comparison { relative_error: 0.0, cosine: 1.0, norm_ratio: 1.0 };
        }
        let cosine = if smaller == 0.0 { 0.0 } else { (self.product / ours / theirs).clamp(-1.0, 1.0) };
        Comparison { relative_error: self.difference.sqrt() / ours, cosine, norm_ratio: smaller / greater }
    }
}

impl AddAssign for Sums {
    /// Adds the part that follows.
    fn add_assign(&mut self, part: Self) {
        self.ours += part.ours;
        self.theirs += part.theirs;
        self.product += part.product;
        self.difference += part.difference;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compared(ours: &[f32], theirs: &[f32]) -> Comparison {
        Sums::of(ours, theirs).comparison()
    }

    #[test]
    fn numbers_by_hand() {
        // |(3, 4)| = 5, |(0, 5)| = 5, |(3, −1)|² = 10, product 20.
        let Comparison { relative_error, cosine, norm_ratio } = compared(&[3.0, 4.0], &[0.0, 5.0]);
        assert!((relative_error - 10_f64.sqrt() / 5.0).abs() < 1e-15, "{relative_error}");
        assert!((cosine - 0.8).abs() < 1e-15, "{cosine}");
        assert_eq!(norm_ratio, 1.0);
        // |(6, 8)| = 10: the same direction at twice the length.
        let doubled = Comparison { relative_error: 1.0, cosine: 1.0, norm_ratio: 0.5 };
        assert_eq!(compared(&[3.0, 4.0], &[6.0, 8.0]), doubled);
        let flipped = Comparison { relative_error: 2.0, cosine: -1.0, norm_ratio: 1.0 };
        assert_eq!(compared(&[3.0, 4.0], &[-3.0, -4.0]), flipped);
        let across = Comparison { relative_error: 2_f64.sqrt(), cosine: 0.0, norm_ratio: 1.0 };
        assert_eq!(compared(&[1.0, 0.0], &[0.0, 1.0]), across);
    }

    #[test]
    fn zero_vectors_are_alike_and_far_from_all_others() {
        let same = Comparison { relative_error: 0.0, cosine: 1.0, norm_ratio: 1.0 };
        assert_eq!(compared(&[0.0, -0.0], &[0.0, 0.0]), same);
        assert_eq!(compared(&[], &[]), same);
        let nothing_came = Comparison { relative_error: 1.0, cosine: 0.0, norm_ratio: 0.0 };
        assert_eq!(compared(&[3.0, 4.0], &[0.0, 0.0]), nothing_came);
        let from_nothing = Comparison { relative_error: f64::INFINITY, cosine: 0.0, norm_ratio: 0.0 };
        assert_eq!(compared(&[0.0, 0.0], &[3.0, 4.0]), from_nothing);
    }

    #[test]
    fn the_largest_and_smallest_singles_compare() {
        let doubled = Comparison { relative_error: 1.0, cosine: 1.0, norm_ratio: 0.5 };
        for value in [f32::MAX / 2.0, f32::MIN_POSITIVE] {
            assert_eq!(compared(&[value; 4], &[value * 2.0; 4]), doubled);
        }
        assert!(compared(&[f32::MAX], &[f32::MIN_POSITIVE]).relative_error > 0.999);
    }

    #[test]
    fn parts_make_up_the_whole() {
        let (ours, theirs) = ([1.0, 2.0, -3.0, 4.0], [1.5, 2.0, 3.0, -4.0]);
        let mut sums = Sums::default();
        for part in [0..1, 1..1, 1..4] {
            sums += Sums::of(&ours[part.clone()], &theirs[part]);
        }
        assert_eq!(sums, Sums::of(&ours, &theirs));
    }

    #[test]
    #[should_panic(expected = "different lengths")]
    fn vectors_of_different_lengths_are_a_fault_of_the_caller() {
        let _ = Sums::of(&[1.0_f32], &[1.0, 2.0]);
    }
}
