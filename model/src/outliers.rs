//! Which of several peers' vectors stand out from the rest.
//!
//! Miners of a stage that work on samples of the same text come to contributions of similar length that agree in direction, if only
//! a little. One that is many times longer or shorter than the others, that points nowhere or to the other side, or that is the
//! same as another's to the last bit is likely no work. That proves nothing, and changes nothing in what is merged: it says at whom to look first.

use crate::reduce::median;

/// Vectors among which one can stand out.
const PARTS_MIN: usize = 3;
/// Elements that are looked at of each vector, evenly spaced: a few percent of a cosine show in as many.
const ELEMENTS_MAX: usize = 1 << 16;
/// How many times longer or shorter than the median length a vector is that stands out.
const LENGTH_FACTOR: f64 = 4.0;
/// A vector points nowhere whose cosine with the sum of the others is below so many standard deviations of that of random
/// directions, 1/√n in n dimensions: one in a thousand random vectors has more.
const NOWHERE_DEVIATIONS: f64 = 3.0;
/// It stands out by that where the median of these cosines is above so many.
const SOMEWHERE_DEVIATIONS: f64 = 6.0;

/// One of several peers' vectors.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a, T> {
    /// Its numbers.
    pub values: &'a [T],
    /// How much went into it, above 0. Its length may grow with that, or shrink: as with the optimizer steps that led there, or with the
    /// root of the number of gradients that it is the mean of.
    pub work: f64,
}

/// Indices of those of `parts` that stand out, ascending; none of fewer than three, or if they have not equally many numbers.
///
/// Cosines are between the vector and the sum of the others, all scaled to length one, so that a long one does not hide others.
#[must_use]
pub fn outliers<T: Copy + Into<f64> + PartialEq>(parts: &[Part<'_, T>]) -> Vec<usize> {
    let len = parts.first().map_or(0, |part| part.values.len());
    if parts.len() < PARTS_MIN || len == 0 || parts.iter().any(|part| part.values.len() != len) {
        return Vec::new();
    }
    let step = len.div_ceil(ELEMENTS_MAX);
    let looked_at = |values: &[T]| values.iter().step_by(step).map(|value| (*value).into()).collect();
    let vectors: Vec<Vec<f64>> = parts.iter().map(|part| looked_at(part.values)).collect();
    let lengths: Vec<f64> = vectors.iter().map(|vector| dot(vector, vector).sqrt()).collect();
    let middle = median(lengths.clone());
    if middle == 0.0 {
        // Nothing was learned here: of an embedding, rows that no text has.
        return Vec::new();
    }
    let usual_work = median(parts.iter().map(|part| part.work).collect());
    let cosines = cosines(&vectors, &lengths);
    let usual = median(cosines.clone());
    let deviation = 1.0 / (vectors[0].len() as f64).sqrt();
    let stands_out = |index: &usize| {
        let (length, cosine, part) = (lengths[*index], cosines[*index], &parts[*index]);
        // Who did much less than most, or much more, may differ by as much.
        let leeway = (part.work / usual_work).max(usual_work / part.work);
        let factor = LENGTH_FACTOR * leeway;
        let is_like_others = length <= middle * factor && length * factor >= middle;
        let is_elsewhere =
            cosine < NOWHERE_DEVIATIONS * deviation && usual > SOMEWHERE_DEVIATIONS * leeway * deviation;
        let mut others = parts.iter().enumerate().filter(|(other, _)| other != index);
        let is_copied = length > 0.0 && others.any(|(_, other)| other.values == part.values);
        !is_like_others || is_elsewhere || is_copied
    };
    (0..parts.len()).filter(stands_out).collect()
}

/// The cosine between each vector and the sum of the others, of length one each; 0 of one that has none.
fn cosines(vectors: &[Vec<f64>], lengths: &[f64]) -> Vec<f64> {
    let mut sum = vec![0.0; vectors[0].len()];
    for (vector, length) in vectors.iter().zip(lengths).filter(|(_, length)| **length > 0.0) {
        sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += value / length);
    }
    let square = dot(&sum, &sum);
    let cosine = |(vector, length): (&Vec<f64>, &f64)| {
        if *length == 0.0 {
            return 0.0;
        }
        // Of the sum without the vector itself, which has length one.
        let along = dot(vector, &sum) / length;
        let others = (square - 2.0 * along + 1.0).max(0.0).sqrt();
        if others == 0.0 { 0.0 } else { (along - 1.0) / others }
    };
    vectors.iter().zip(lengths).map(cosine).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flat::{Normal, round_to_f32};

    const LEN: usize = 2000;
    const NONE: [usize; 0] = [];

    /// Directions that agree in part, as gradients of different samples do.
    fn honest(count: u64) -> Vec<Vec<f32>> {
        let common = noise(0);
        let part = |seed| common.iter().zip(noise(seed)).map(|(common, own)| 0.5 * common + own).collect();
        (1..=count).map(part).collect()
    }

    fn noise(seed: u64) -> Vec<f32> {
        let mut normal = Normal::new(seed, "noise");
        (0..LEN).map(|_| round_to_f32(normal.sample())).collect()
    }

    fn found(parts: &[Vec<f32>]) -> Vec<usize> {
        outliers(&parts.iter().map(|values| Part { values, work: 3.0 }).collect::<Vec<_>>())
    }

    fn with(bad: &[Vec<f32>]) -> Vec<Vec<f32>> {
        [honest(5), bad.to_vec()].concat()
    }

    fn scaled(part: &[f32], factor: f32) -> Vec<f32> {
        part.iter().map(|value| value * factor).collect()
    }

    #[test]
    fn vectors_that_agree_in_part_do_not_stand_out() {
        for count in 1..12 {
            assert_eq!(found(&honest(count)), NONE, "{count}");
        }
        let lengths: Vec<_> = honest(7).iter().zip(1_u8..).map(|(v, n)| scaled(v, f32::from(n))).collect();
        assert_eq!(found(&lengths[1..]), NONE, "from a half to twice the median");
    }

    #[test]
    fn what_is_no_work_stands_out() {
        let sixth = honest(6).remove(5);
        assert_eq!(found(&with(&[vec![0.0; LEN]])), [5], "nothing");
        assert_eq!(found(&with(&[noise(99)])), [5], "noise");
        assert_eq!(found(&with(&[scaled(&sixth, -1.0)])), [5], "the contrary");
        assert_eq!(found(&with(&[scaled(&sixth, 10.0)])), [5], "too much of it");
        assert_eq!(found(&with(&[scaled(&sixth, 1e30)])), [5], "far too much");
        assert_eq!(found(&with(&[honest(1).remove(0)])), [0, 5], "a copy, and what it is of");
        assert_eq!(found(&with(&[noise(98), noise(98)])), [5, 6], "the same noise twice");
        assert_eq!(found(&with(&[noise(98), vec![0.0; LEN], noise(97)])), [5, 6, 7]);
    }

    #[test]
    fn who_did_less_may_be_shorter_or_longer_by_as_much_and_points_less_clearly() {
        let standing = |last: &[f32], work: f64| {
            let others = honest(6);
            let mut parts: Vec<_> = others.iter().map(|values| Part { values, work: 8.0 }).collect();
            parts.push(Part { values: last, work });
            outliers(&parts)
        };
        let last = honest(7).remove(6);
        for work in [1.0, 64.0] {
            for factor in [1.0 / 16.0, 16.0] {
                assert_eq!(standing(&scaled(&last, factor), work), NONE, "{work} {factor}");
                assert_eq!(standing(&scaled(&last, factor), 8.0), [6], "{factor}");
            }
            for factor in [1.0 / 64.0, 64.0, 0.0] {
                assert_eq!(standing(&scaled(&last, factor), work), [6], "{work} {factor}");
            }
        }
        assert_eq!(standing(&noise(99), 8.0), [6]);
        assert_eq!(standing(&noise(99), 1.0 / 8.0), NONE, "a sixty-fourth of the work is hardly a direction");
    }

    #[test]
    fn where_directions_tell_nothing_nobody_stands_out_by_them() {
        let unrelated: Vec<_> = (1..=6).map(noise).collect();
        assert_eq!(found(&unrelated), NONE);
        let few: Vec<Vec<f32>> = honest(6).iter().map(|vector| vector[..4].to_vec()).collect();
        let mut turned = few.clone();
        turned[0] = scaled(&few[0], -1.0);
        assert_eq!(found(&turned), NONE, "four numbers are no direction");
        assert_eq!(found(&vec![vec![0.0; LEN]; 6]), NONE, "nothing was learned");
        assert_eq!(found(&[vec![1.0], vec![1.0, 2.0], vec![3.0]]), NONE, "not equally many numbers");
    }
}
