//! Which contributions are copies of others, and whose.
//!
//! Two contributions of one epoch have much in common: the direction in which the loss falls. What is particular to one is what
//! is left when that is taken out:
//!
//! ```text
//! u = sketch / ‖sketch‖       m = median of all u, element by element       r = u − (u·m / m·m) m
//! similarity of two = r·r' / (‖r‖ ‖r'‖)
//! ```
//! where a sketch is the same drawn elements of each contribution. What was trained on different samples has similarities about
//! zero, with a deviation of 1/√elements if nothing else is shared; a copy has one, whatever it is multiplied by; and one that is
//! hidden under noise ν times as long as what is particular to it has 1/√(1 + ν²). A median, not a mean, since one contribution of
//! enormous noise must not be what all others are measured by.
//!
//! The copy is the one whose manifest came later, its first one of the epoch and the one that was merged. If nobody knows which, none is
//! taken for one. A manifest names a contribution by
//! hash before its bytes can be had, so nobody copies what was not committed to.
//!
//! Templar counts how many indices of the largest elements two contributions share ([`index_overlap`]), with thresholds that were
//! set by hand, since how much honest ones share depends on the model; changing a part of the indices, with no cost, passes.

use std::collections::BTreeSet;

use crate::id::{Hash, PeerId};
use crate::quantiles::median;

/// Fewest contributions that similarities can be told of: with fewer, the median is one of them.
pub const SKETCHES_MIN: usize = 4;

/// What is compared of a contribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Sketch {
    /// Whose it is.
    pub peer: PeerId,
    /// When it committed, if that is known.
    pub committed: Option<Committed>,
    /// Name of its bytes.
    pub content: Hash,
    /// Drawn elements, the same of each contribution.
    pub elements: Vec<f64>,
}

/// When a miner committed to its contribution, by the places of its manifests among all of the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The place of its first one, whatever that named.
    pub first: u64,
    /// The place of the one that was merged.
    pub last: u64,
}

impl Committed {
    /// Whether this one is the earlier beyond doubt. Who commits anew, since samples of others came to it, may have been copied
    /// meanwhile.
    const fn is_before(self, other: Self) -> bool {
        self.first < other.first && self.last < other.last
    }
}

/// Those who committed to what another had committed to before, or to what is more similar to it than `most`.
#[must_use]
pub fn copies(sketches: &[Sketch], most: f64) -> BTreeSet<PeerId> {
    let vectors: Vec<&[f64]> = sketches.iter().map(|sketch| sketch.elements.as_slice()).collect();
    let particular = particular(&vectors);
    let mut copies = BTreeSet::new();
    for (a, of_a) in sketches.iter().zip(&particular) {
        for (b, of_b) in sketches.iter().zip(&particular) {
            let same = a.content == b.content || similarity(of_a, of_b) > most;
            let before = matches!((a.committed, b.committed), (Some(a), Some(b)) if a.is_before(b));
            if before && a.peer != b.peer && same {
                copies.insert(b.peer);
            }
        }
    }
    copies
}

/// What is particular to each vector, with a norm of one; zeros for those that are not numbers or have nothing, and for all if there are
/// fewer than [`SKETCHES_MIN`] or not all are as long as the first.
#[must_use]
pub fn particular(vectors: &[&[f64]]) -> Vec<Vec<f64>> {
    let len = vectors.first().map_or(0, |vector| vector.len());
    if vectors.len() < SKETCHES_MIN || vectors.iter().any(|vector| vector.len() != len) {
        return vectors.iter().map(|vector| vec![0.0; vector.len()]).collect();
    }
    let units: Vec<Vec<f64>> = vectors.iter().map(|vector| unit(vector)).collect();
    let common: Vec<f64> = (0..len)
        .map(|place| median(units.iter().filter_map(|unit| unit.get(place).copied()).collect()))
        .collect();
    let square = dot(&common, &common);
    let without = |vector: &Vec<f64>| {
        let share = if square > 0.0 { dot(vector, &common) / square } else { 0.0 };
        let rest: Vec<f64> =
            vector.iter().zip(&common).map(|(value, common)| value - share * common).collect();
        unit(&rest)
    };
    units.iter().map(without).collect()
}

/// Cosine of two vectors of [`particular`].
#[must_use]
pub fn similarity(a: &[f64], b: &[f64]) -> f64 {
    dot(a, b)
}

/// Share of the `count` largest elements by size that two vectors have at the same places: what Templar compares.
#[must_use]
pub fn index_overlap(a: &[f64], b: &[f64], count: usize) -> f64 {
    let largest = |vector: &[f64]| -> BTreeSet<usize> {
        let mut places: Vec<(usize, f64)> = vector.iter().map(|value| value.abs()).enumerate().collect();
        places.sort_by(|(i, a), (j, b)| b.total_cmp(a).then(i.cmp(j)));
        places.into_iter().take(count).map(|(place, _)| place).collect()
    };
    let (a, b) = (largest(a), largest(b));
    let real = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    if a.is_empty() { 0.0 } else { real(a.intersection(&b).count()) / real(a.len()) }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The vector with a norm of one; zeros if it has none.
fn unit(vector: &[f64]) -> Vec<f64> {
    // Scaled by its largest element first: squares of large numbers overflow.
    let largest = vector.iter().map(|value| value.abs()).fold(0.0, f64::max);
    let scaled: Vec<f64> = vector.iter().map(|value| value / largest).collect();
    let norm = libm::sqrt(dot(&scaled, &scaled));
    if norm.is_finite() && norm > 0.0 {
        scaled.iter().map(|value| value / norm).collect()
    } else {
        vec![0.0; vector.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: usize = 400;

    /// Numbers that look drawn and are the same on every machine.
    fn noise(number: u8, place: usize) -> f64 {
        let bytes = Hash::of(&[u64::from(number), place as u64].map(u64::to_le_bytes).concat()).0;
        f64::from(u16::from_le_bytes([bytes[0], bytes[1]])) / 32768.0 - 1.0
    }

    /// A contribution of miner `number`: a direction that all share, and as much of its own.
    fn contribution(number: u8) -> Vec<f64> {
        (0..LEN).map(|place| noise(0, place) + noise(number, place)).collect()
    }

    fn sketch(number: u8, elements: Vec<f64>) -> Sketch {
        let bytes: Vec<u8> = elements.iter().flat_map(|value| value.to_le_bytes()).collect();
        let content = Hash::of(&bytes);
        Sketch { peer: PeerId([number; 32]), committed: at(number), content, elements }
    }

    fn at(place: u8) -> Option<Committed> {
        Some(Committed { first: place.into(), last: place.into() })
    }

    fn honest() -> Vec<Sketch> {
        (1..=8).map(|number| sketch(number, contribution(number))).collect()
    }

    fn found(further: Sketch) -> Vec<u8> {
        let sketches = [honest(), vec![further]].concat();
        copies(&sketches, 0.5).into_iter().map(|peer| peer.0[0]).collect()
    }

    #[test]
    fn honest_contributions_are_no_copies_though_they_point_the_same_way() {
        assert!(copies(&honest(), 0.5).is_empty());
        let [first, second] = [contribution(1), contribution(2)];
        let cosine = dot(&unit(&first), &unit(&second));
        assert!(cosine > 0.4, "they have much in common: {cosine}");
    }

    #[test]
    fn who_committed_later_is_the_copy_and_the_author_is_none() {
        assert_eq!(found(sketch(9, contribution(4))), [9]);
        let scaled = contribution(4).iter().map(|value| 3.0 * value).collect();
        assert_eq!(found(sketch(9, scaled)), [9]);
        let masked =
            contribution(4).iter().enumerate().map(|(i, value)| value + 0.8 * noise(77, i)).collect();
        assert_eq!(found(sketch(9, masked)), [9]);
    }

    #[test]
    fn where_nobody_knows_who_was_first_nobody_is_a_copy() {
        let of_four = |committed| found(Sketch { committed, ..sketch(9, contribution(4)) });
        assert!(of_four(at(4)).is_empty(), "at the same time");
        assert!(of_four(None).is_empty(), "its manifest was not heard");
        let early = |first, last| of_four(Some(Committed { first, last }));
        assert!(early(0, 12).is_empty(), "it had committed before, to whatever it was");
        assert!(early(5, 4).is_empty());
        assert_eq!(early(5, 12), [9]);
    }

    #[test]
    fn the_same_bytes_are_a_copy_among_however_few() {
        let pair = [sketch(1, contribution(1)), sketch(2, contribution(1))];
        assert_eq!(copies(&pair, 0.5), BTreeSet::from([PeerId([2; 32])]));
        let pair = [sketch(1, contribution(1)), sketch(2, contribution(2))];
        assert!(copies(&pair, 0.5).is_empty());
    }

    #[test]
    fn one_enormous_contribution_or_one_without_numbers_makes_nobody_a_copy() {
        for wild in [1e300, f64::INFINITY, f64::NAN, 0.0] {
            let elements = (0..LEN).map(|place| wild * noise(88, place)).collect();
            assert!(found(sketch(9, elements)).is_empty(), "{wild}");
        }
        assert!(found(sketch(9, vec![1.0; 3])).is_empty(), "of another length");
    }

    #[test]
    fn indices_are_shared_by_copies_and_by_chance() {
        let first = contribution(1);
        assert_eq!(index_overlap(&first, &first, 40), 1.0);
        assert!(index_overlap(&first, &contribution(2), 40) > 0.1, "more than the 40 of 400 of chance");
        assert_eq!(index_overlap(&[], &[], 4), 0.0);
    }
}
