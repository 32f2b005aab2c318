//! How far a peer's weights are from those that everybody should hold, in outer steps.
//!
//! ```text
//! steps = interquartile mean over elements of |ours − theirs| / max(mean |step| of the element, 10⁻⁹)
//! score = (1 − min(steps, 3) / 3)^2.5
//! ```
//! as in Templar. There the elements are the same in every window and public, so that whoever holds no weights copies them; here they
//! are drawn after peers have committed ([`Draw::elements`](super::draw::Draw::elements)). Replicas whose weights have the same hash
//! are zero steps behind and need no elements.

/// Steps behind at which the score is zero.
pub const STEPS_MAX: f64 = 3.0;
/// Least step of an element that a distance is divided by.
const STEP_MIN: f64 = 1e-9;

/// One element of the weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Element {
    /// Its value in the weights of the version.
    pub ours: f64,
    /// Its value at the peer.
    pub theirs: f64,
    /// Mean size of its last steps.
    pub step: f64,
}

/// How many outer steps the elements are apart; zero of none, infinite where they are no numbers.
#[must_use]
pub fn steps_behind(elements: &[Element]) -> f64 {
    let distance = |element: &Element| {
        let steps = (element.ours - element.theirs).abs() / element.step.max(STEP_MIN);
        if steps.is_nan() { f64::INFINITY } else { steps }
    };
    let mut distances: Vec<f64> = elements.iter().map(distance).collect();
    distances.sort_by(f64::total_cmp);
    let cut = distances.len() / 4;
    let (mut sum, mut count) = (0.0, 0.0);
    for steps in distances.iter().skip(cut).take(distances.len() - 2 * cut) {
        sum += steps;
        count += 1.0;
    }
    if count > 0.0 { sum / count } else { 0.0 }
}

/// What so many steps leave of a score: 1 at none, 0 from [`STEPS_MAX`] on.
#[must_use]
pub fn score(steps: f64) -> f64 {
    // Steps that are no number are as many as can be.
    let left = if steps < STEPS_MAX { 1.0 - steps.max(0.0) / STEPS_MAX } else { 0.0 };
    left * left * libm::sqrt(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind(steps: f64) -> Element {
        Element { ours: 1.0, theirs: 1.0 - 0.01 * steps, step: 0.01 }
    }

    #[test]
    fn one_wild_element_in_four_changes_nothing() {
        let elements = [behind(2.0), behind(2.0), behind(1e9), behind(2.0)];
        assert!((steps_behind(&elements) - 2.0).abs() < 1e-9);
        assert_eq!(steps_behind(&[]), 0.0);
    }

    #[test]
    fn weights_that_are_no_numbers_are_out_of_step() {
        let nan = Element { theirs: f64::NAN, ..behind(0.0) };
        assert_eq!(score(steps_behind(&[nan; 4])), 0.0);
        assert_eq!(score(f64::NAN), 0.0);
    }

    #[test]
    fn the_score_falls_from_one_to_zero_at_three_steps() {
        assert_eq!(score(0.0), 1.0);
        assert!((score(1.0) - (2.0_f64 / 3.0).powf(2.5)).abs() < 1e-12);
        assert_eq!(score(3.0), 0.0);
        assert_eq!(score(7.0), 0.0);
    }

    #[test]
    fn an_element_that_does_not_move_tells_copies_apart_from_others() {
        let still = |theirs| Element { ours: 1.0, theirs, step: 0.0 };
        assert_eq!(score(steps_behind(&[still(1.0); 8])), 1.0);
        assert_eq!(score(steps_behind(&[still(0.9); 8])), 0.0);
    }
}
