//! What a contribution alone does to the loss: on the samples that its miner was to train on, and on random ones.
//!
//! ```text
//! θ'          = θ − rate × clip × contribution      θ: the base weights of the epoch
//! improvement = (mean L(θ) − mean L(θ')) / mean L(θ)         over samples
//! indicator   = +1 if own − random > margin × its standard error, −1 otherwise
//! ```
//! A contribution that was trained on the miner's samples improves those more than it improves random ones. Templar asks for more
//! than nothing, which a contribution that has nothing to do with either passes half of the time, by chance; a margin
//! in standard errors says how often it does: 16 % at one.

/// The loss of one sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// At the base weights, in nats per token.
    pub before: f64,
    /// With the contribution applied.
    pub after: f64,
}

/// How much lower losses are, relative to what they were.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Improvement {
    /// Mean of the differences, relative to the mean loss before.
    pub share: f64,
    /// Its standard error, as a ratio of two means.
    pub error: f64,
}

/// Why losses say nothing of a contribution, or say that it is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LossError {
    /// There are not enough to tell how much they scatter.
    #[error("expected the losses of at least 2 samples, got {got}")]
    TooFew {
        /// How many there are.
        got: usize,
    },
    /// A loss at the base weights is none: the evaluator's fault.
    #[error("expected losses above zero at the base weights, got one that is not")]
    Before,
    /// A loss with the contribution is no number: the contribution's.
    #[error("expected finite losses with the contribution, got one that is not")]
    After,
}

impl Improvement {
    /// From the losses of samples, in any order that is the same for all who compute it.
    ///
    /// # Errors
    /// [`LossError`] if there are fewer than two, or one is no number.
    pub fn of(losses: &[Loss]) -> Result<Self, LossError> {
        if losses.len() < 2 {
            return Err(LossError::TooFew { got: losses.len() });
        }
        if losses.iter().any(|loss| !(loss.before.is_finite() && loss.before > 0.0)) {
            return Err(LossError::Before);
        }
        if losses.iter().any(|loss| !loss.after.is_finite()) {
            return Err(LossError::After);
        }
        let count: f64 = losses.iter().map(|_| 1.0).sum();
        let before = losses.iter().map(|loss| loss.before).sum::<f64>() / count;
        let share = losses.iter().map(|loss| loss.before - loss.after).sum::<f64>() / count / before;
        let rest = |loss: &Loss| loss.before - loss.after - share * loss.before;
        let squares: f64 = losses.iter().map(|loss| rest(loss) * rest(loss)).sum();
        let error = libm::sqrt(squares / (count - 1.0) / count) / before;
        // Sums of numbers near the greatest there are overflow.
        if share.is_finite() && error.is_finite() { Ok(Self { share, error }) } else { Err(LossError::After) }
    }
}

/// What a contribution does on both kinds of data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gains {
    /// On samples that its miner was dealt.
    pub own: Improvement,
    /// On samples that nobody was dealt.
    pub random: Improvement,
}

impl Gains {
    /// Whether the own data improve more than random ones: +1 if by more than `margin` standard errors, −1 otherwise.
    #[must_use]
    pub fn indicator(&self, margin: f64) -> f64 {
        let error = libm::sqrt(self.own.error * self.own.error + self.random.error * self.random.error);
        if self.own.share - self.random.share > margin * error { 1.0 } else { -1.0 }
    }
}

/// What contributions of these norms are multiplied by before they are evaluated, so that none is longer than `most` times their
/// median: whoever scales up what it has gains nothing from there on.
///
/// Templar has `most = 1`, per tensor. Its miners do equal work; here who is twice as fast is dealt twice as much, and its
/// contribution is longer by right.
#[must_use]
pub fn clip(norms: &[f64], most: f64) -> Vec<f64> {
    let mut sorted: Vec<f64> = norms.iter().copied().filter(|norm| norm.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let longest = most * sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
    let factor = |norm: &f64| if *norm > longest { longest / norm } else { 1.0 };
    norms.iter().map(factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(pairs: &[(f64, f64)]) -> Vec<Loss> {
        pairs.iter().map(|&(before, after)| Loss { before, after }).collect()
    }

    fn gains(own: f64, random: f64, error: f64) -> Gains {
        Gains { own: Improvement { share: own, error }, random: Improvement { share: random, error } }
    }

    #[test]
    fn an_improvement_is_relative_and_has_the_error_of_a_ratio() {
        let even = Improvement::of(&losses(&[(4.0, 3.6), (2.0, 1.8), (6.0, 5.4)])).unwrap();
        assert!((even.share - 0.1).abs() < 1e-12 && even.error < 1e-12, "the same share of each: {even:?}");
        // Differences 0.5 and 0.1 around 0.3: a deviation of √0.08, over √2, over 2.
        let uneven = Improvement::of(&losses(&[(2.0, 1.5), (2.0, 1.9)])).unwrap();
        assert!((uneven.share - 0.15).abs() < 1e-12);
        assert!((uneven.error - (0.08_f64 / 2.0).sqrt() / 2.0).abs() < 1e-12, "{uneven:?}");
    }

    #[test]
    fn what_says_nothing_is_told_from_what_says_harm() {
        let of = |pairs: &[(f64, f64)]| Improvement::of(&losses(pairs)).unwrap_err();
        assert_eq!(of(&[(1.0, 1.0)]), LossError::TooFew { got: 1 });
        assert_eq!(of(&[(1.0, 1.0), (0.0, 1.0)]), LossError::Before);
        assert_eq!(of(&[(1.0, 1.0), (f64::NAN, 1.0)]), LossError::Before);
        assert_eq!(of(&[(1.0, 1.0), (1.0, f64::INFINITY)]), LossError::After);
        assert_eq!(of(&[(1.0, f64::MAX), (1.0, f64::MAX)]), LossError::After);
    }

    #[test]
    fn the_indicator_wants_more_than_chance_gives() {
        assert_eq!(gains(0.05, 0.02, 0.01).indicator(1.0), 1.0);
        assert_eq!(gains(0.03, 0.02, 0.01).indicator(1.0), -1.0, "less than √2 errors of 0.01");
        assert_eq!(gains(0.03, 0.02, 0.01).indicator(0.0), 1.0);
        assert_eq!(gains(0.0, 0.0, 0.0).indicator(0.0), -1.0, "a contribution of zeros");
        assert_eq!(gains(0.02, 0.05, 0.01).indicator(0.0), -1.0);
    }

    #[test]
    fn only_what_is_longer_than_others_by_more_than_allowed_is_clipped() {
        assert_eq!(clip(&[1.0, 2.0, 3.0, 100.0, 2.0], 2.0), [1.0, 1.0, 1.0, 0.04, 1.0]);
        assert_eq!(clip(&[1.0, 1.0, f64::INFINITY], 1.0)[2], 0.0);
        assert!(clip(&[], 1.0).is_empty());
        assert_eq!(clip(&[0.0, 0.0, 5.0], 2.0), [1.0, 1.0, 0.0]);
    }
}
