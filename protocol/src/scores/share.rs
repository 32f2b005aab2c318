//! How what is paid out is divided.

use std::cmp::Reverse;

/// A share of all that is paid out, in parts of 10¹⁸: additions are exact, and what rounding leaves over is far below the
/// smallest weight that a chain can express.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u64);

impl Share {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// All.
    pub const WHOLE: Self = Self(1_000_000_000_000_000_000);

    /// A fraction from 0 to 1, rounded to a part; what is outside is taken for the nearer end.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "a number without fraction, at most 10^18")]
    #[expect(clippy::cast_sign_loss, reason = "not below zero")]
    pub fn of(fraction: f64) -> Self {
        Self((fraction.clamp(0.0, 1.0) * 1e18).round() as u64)
    }

    /// Its parts of 10¹⁸.
    #[must_use]
    pub const fn parts(self) -> u64 {
        self.0
    }

    /// The fraction, for a report.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a report")]
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / 1e18
    }

    /// What is left of the whole without these; nothing if they are more.
    #[must_use]
    pub fn beside(shares: impl IntoIterator<Item = Self>) -> Self {
        let rest = |rest: u64, share: Self| rest.saturating_sub(share.0);
        Self(shares.into_iter().fold(Self::WHOLE.0, rest))
    }
}

/// The share of each score: the whole without `burn`, in proportion, none above `cap`. What one would have above it goes to those
/// below it, in proportion again. What is left when all have `cap`, or if nobody has a score, goes to nobody, as do the parts
/// that rounding down leaves over. So [`Share::beside`] all of them is what is burned: `burn` or more.
///
/// The largest score is capped first. What is left over a sum of scores that is left only grows by that, so the first that needs no
/// cap is the last that has to be looked at.
pub(super) fn split(scores: &[u64], burn: Share, cap: Share) -> Vec<Share> {
    let mut order: Vec<(usize, u64)> = scores.iter().copied().enumerate().collect();
    order.sort_by_key(|(_, score)| Reverse(*score));
    let mut left = u128::from(Share::beside([burn]).0);
    let mut total: u128 = scores.iter().map(|score| u128::from(*score)).sum();
    let mut capped = 0;
    for (_, score) in &order {
        let score = u128::from(*score);
        if left.saturating_mul(score) <= u128::from(cap.0).saturating_mul(total) {
            break;
        }
        (left, total) = (left.saturating_sub(u128::from(cap.0)), total - score);
        capped += 1;
    }
    let mut shares = vec![Share::NONE; scores.len()];
    for (place, (miner, score)) in order.into_iter().enumerate() {
        let exact = left.saturating_mul(u128::from(score)) / total.max(1);
        let share = if place < capped { cap } else { Share(u64::try_from(exact).unwrap_or(u64::MAX)) };
        shares.get_mut(miner).into_iter().for_each(|slot| *slot = share);
    }
    shares
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Shares as fractions of a thousand, rounded.
    fn thousandths(scores: &[u64], burn: f64, cap: f64) -> Vec<u64> {
        let shares = split(scores, Share::of(burn), Share::of(cap));
        shares.into_iter().map(|share| (share.0 + Share::WHOLE.0 / 2000) / (Share::WHOLE.0 / 1000)).collect()
    }

    #[test]
    fn shares_are_in_proportion_to_scores() {
        assert_eq!(thousandths(&[30, 0, 10], 0.0, 1.0), [750, 0, 250]);
        assert_eq!(thousandths(&[30, 0, 10], 0.8, 1.0), [150, 0, 50], "a fifth is left of the burn");
        assert_eq!(split(&[1, 1, 1], Share::NONE, Share::WHOLE), [Share(333_333_333_333_333_333); 3]);
        assert_eq!(split(&[1], Share::NONE, Share::WHOLE), [Share::WHOLE]);
    }

    #[test]
    fn what_is_above_the_cap_goes_to_those_below_it() {
        assert_eq!(thousandths(&[10, 60, 30], 0.0, 0.5), [125, 500, 375], "6 : 3 : 1, then half for 3 : 1");
        // 0.6 is cut to 0.4; of 0.6 that are left 30 : 10 would give 0.45, which is cut as well.
        assert_eq!(thousandths(&[10, 60, 30], 0.0, 0.4), [200, 400, 400]);
        // Of the half that is not burned 6 : 3 : 1 would give 0.3, 0.15 and 0.05.
        assert_eq!(thousandths(&[10, 60, 30], 0.5, 0.2), [100, 200, 200]);
    }

    #[test]
    fn what_nobody_may_have_is_burned() {
        let burned =
            |scores: &[u64], burn, cap| Share::beside(split(scores, Share::of(burn), Share::of(cap)));
        assert_eq!(burned(&[60, 30, 10], 0.0, 0.3), Share::of(0.1), "all three are capped");
        assert_eq!(burned(&[60, 0, 0], 0.0, 0.3), Share::of(0.7));
        assert_eq!(burned(&[0, 0], 0.25, 1.0), Share::WHOLE, "nobody has a score");
        assert_eq!(burned(&[], 0.0, 1.0), Share::WHOLE);
        assert_eq!(burned(&[5, 5], 1.0, 1.0), Share::WHOLE);
    }

    #[test]
    fn a_fraction_becomes_the_nearest_part() {
        assert_eq!(
            [Share::of(0.1), Share::of(1.0), Share::of(7.0)].map(Share::parts),
            [100_000_000_000_000_000, 1_000_000_000_000_000_000, 1_000_000_000_000_000_000]
        );
        assert_eq!([Share::of(-1.0), Share::of(f64::NAN)], [Share::NONE; 2]);
        assert_eq!(Share::of(0.25).as_f64().to_bits(), 0.25_f64.to_bits());
    }

    prop_compose! {
        fn fraction()(thousandth in 0_u32..=1000) -> f64 { f64::from(thousandth) / 1000.0 }
    }

    fn scores() -> impl Strategy<Value = Vec<u64>> {
        proptest::collection::vec(prop_oneof![Just(0), 1..10_u64, 0..(1_u64 << 55)], 0..40)
    }

    proptest! {
        #[test]
        fn shares_and_burn_are_the_whole_and_none_is_above_the_cap(scores in scores(), burn in fraction(), cap in 1_u32..=1000) {
            let (burn, cap) = (Share::of(burn), Share::of(f64::from(cap) / 1000.0));
            let shares = split(&scores, burn, cap);
            let paid: u64 = shares.iter().map(|share| share.0).sum();
            let burned = Share::beside(shares.iter().copied());
            prop_assert_eq!(paid + burned.0, Share::WHOLE.0);
            prop_assert!(burned >= burn);
            prop_assert!(shares.iter().all(|share| *share <= cap), "{:?}", shares);
            let below = scores.iter().zip(&shares).any(|(score, share)| *score > 0 && *share < cap);
            if below {
                prop_assert!(burned.0 - burn.0 <= scores.len() as u64, "only rounding is burned beside: {:?}", burned);
            }
        }

        #[test]
        fn shares_below_the_cap_are_in_proportion(scores in scores(), burn in fraction(), cap in 1_u32..=1000) {
            let cap = Share::of(f64::from(cap) / 1000.0);
            let shares = split(&scores, Share::of(burn), cap);
            let free: Vec<_> = scores.iter().zip(&shares).filter(|(score, share)| **score > 0 && **share < cap).collect();
            for pair in free.windows(2) {
                let [(a, x), (b, y)] = pair else { unreachable!("pairs") };
                // Each share is less than one part below what is exact.
                let (cross, across) = (u128::from(x.0) * u128::from(**b), u128::from(y.0) * u128::from(**a));
                prop_assert!(cross.abs_diff(across) <= u128::from(**a.max(b)), "{pair:?}");
            }
        }

        #[test]
        fn who_has_more_never_gets_less(
            scores in scores(), at in any::<prop::sample::Index>(), more in 1..(1_u64 << 54), burn in fraction(), cap in fraction(),
        ) {
            prop_assume!(!scores.is_empty());
            let at = at.index(scores.len());
            let (burn, cap) = (Share::of(burn), Share::of(cap));
            let mut raised = scores.clone();
            raised[at] += more;
            let (before, after) = (split(&scores, burn, cap), split(&raised, burn, cap));
            prop_assert!(before[at] <= after[at]);
            let others = before.iter().zip(&after).enumerate().filter(|(other, _)| *other != at);
            for (other, (before, after)) in others {
                prop_assert!(after <= before, "{other}");
            }
        }

        #[test]
        fn the_order_of_scores_does_not_matter(scores in scores(), turn in 0_usize..40, burn in fraction(), cap in fraction()) {
            let turn = turn % scores.len().max(1);
            let mut turned = scores.clone();
            turned.rotate_left(turn);
            let mut shares = split(&scores, Share::of(burn), Share::of(cap));
            shares.rotate_left(turn);
            prop_assert_eq!(split(&turned, Share::of(burn), Share::of(cap)), shares);
        }
    }
}
