//! The rating of peers that are ranked in matches: Weng and Lin, "A Bayesian approximation method for online ranking"
//! (JMLR 12, 2011), algorithm 4, the Plackett-Luce model.
//!
//! A peer's skill is believed to be normal, with mean μ and deviation σ. After a match in which each has a rank,
//!
//! ```text
//! σᵢ  ← √(σᵢ² + τ²)                          c   = √Σ (σᵢ² + β²)
//! S_q = Σ over s with rank ≥ that of q of exp(μ_s / c)      A_q = peers of q's rank      p_iq = exp(μᵢ / c) / S_q
//! Ω   = 1/Aᵢ − Σ p_iq / A_q                  Δ   = Σ p_iq (1 − p_iq) / A_q        over q with rank ≤ that of i
//! μᵢ  ← μᵢ + σᵢ²/c · Ω                       σᵢ  ← σᵢ √max(1 − σᵢ/c · σᵢ²/c² · Δ, κ)
//! ```
//! Without ties this is what `openskill` 6.1.3 computes, which Templar rates with. With ties it is not: there each of *k* who tie
//! gets *k* times the 1/A above, that is, more than a win takes from those it beats, so peers rise by being missing together.
//! Here, as in the paper, Σ Ω = 0 with ties or without.

use serde::{Deserialize, Serialize};

/// Spread of a performance around its skill, as in Templar.
const BETA: f64 = 7.0;
/// What σ grows by from match to match, so that a rating never freezes.
const TAU: f64 = 0.1;
/// Least share of σ² that a match leaves.
const KAPPA: f64 = 1e-4;

/// What is believed of a peer's skill.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rating {
    /// The mean.
    pub mu: f64,
    /// The standard deviation.
    pub sigma: f64,
}

impl Rating {
    /// Of whom nothing is known.
    pub const NEW: Self = Self { mu: 25.0, sigma: 25.0 / 3.0 };

    /// What the skill exceeds with 99.9 %; zero of whom nothing is known.
    #[must_use]
    pub fn ordinal(&self) -> f64 {
        self.mu - 3.0 * self.sigma
    }
}

/// The ratings after a match of players with these ratings and ranks, of which the lowest is best and equal ones are ties. Takes
/// time in the square of their number.
#[must_use]
pub fn rate(players: &[(Rating, usize)]) -> Vec<Rating> {
    let before: Vec<(Rating, usize)> = players
        .iter()
        .map(|(rating, rank)| {
            let sigma = libm::sqrt(rating.sigma * rating.sigma + TAU * TAU);
            (Rating { sigma, ..*rating }, *rank)
        })
        .collect();
    let c = libm::sqrt(before.iter().map(|(rating, _)| rating.sigma * rating.sigma + BETA * BETA).sum());
    // Only differences count; taking out the greatest keeps exponentials within range.
    let greatest = before.iter().map(|(rating, _)| rating.mu).fold(f64::NEG_INFINITY, f64::max);
    let worth: Vec<f64> = before.iter().map(|(rating, _)| libm::exp((rating.mu - greatest) / c)).collect();
    let sums: Vec<f64> = before
        .iter()
        .map(|(_, rank)| {
            let behind = before.iter().zip(&worth).filter(|((_, other), _)| other >= rank);
            behind.map(|(_, worth)| worth).sum::<f64>().max(f64::MIN_POSITIVE)
        })
        .collect();
    let ties: Vec<f64> = before
        .iter()
        .map(|(_, rank)| before.iter().filter(|(_, other)| other == rank).map(|_| 1.0).sum())
        .collect();
    let of_one = |((rating, rank), (worth, tied)): (&(Rating, usize), (&f64, &f64))| {
        let (mut omega, mut delta) = (1.0 / tied, 0.0);
        for ((_, other), (sum, tied)) in before.iter().zip(sums.iter().zip(&ties)) {
            if other <= rank {
                let p = worth / sum;
                omega -= p / tied;
                delta += p * (1.0 - p) / tied;
            }
        }
        let variance = rating.sigma * rating.sigma;
        let shrunk = 1.0 - rating.sigma / c * variance / (c * c) * delta;
        Rating { mu: rating.mu + variance / c * omega, sigma: rating.sigma * libm::sqrt(shrunk.max(KAPPA)) }
    };
    before.iter().zip(worth.iter().zip(&ties)).map(of_one).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn player() -> impl Strategy<Value = (Rating, usize)> {
        (-40.0..60.0, 0.5..9.0, 0_usize..6).prop_map(|(mu, sigma, rank)| (Rating { mu, sigma }, rank))
    }

    /// Σ Ω of a match, from what it did to the means.
    fn balance(before: &[(Rating, usize)], after: &[Rating]) -> f64 {
        let gain = |((before, _), after): (&(Rating, usize), &Rating)| {
            (after.mu - before.mu) / (before.sigma * before.sigma + TAU * TAU)
        };
        before.iter().zip(after).map(gain).sum()
    }

    proptest! {
        #[test]
        fn what_some_gain_others_lose_with_ties_or_without(players in proptest::collection::vec(player(), 1..12)) {
            prop_assert!(balance(&players, &rate(&players)).abs() < 1e-12);
        }

        #[test]
        fn the_order_of_players_does_not_matter(players in proptest::collection::vec(player(), 2..12)) {
            let forth = rate(&players);
            let mut back = rate(&players.iter().rev().copied().collect::<Vec<_>>());
            back.reverse();
            for (a, b) in forth.iter().zip(&back) {
                prop_assert!((a.mu - b.mu).abs() < 1e-9 && (a.sigma - b.sigma).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn whoever_wins_rises_and_is_better_known() {
        let [winner, loser] = rate(&[(Rating::NEW, 0), (Rating::NEW, 1)])[..] else { panic!("two players") };
        assert!(winner.mu > 25.0 && loser.mu < 25.0);
        assert!(winner.sigma < Rating::NEW.sigma && winner.ordinal() > Rating::NEW.ordinal());
        assert_eq!(Rating::NEW.ordinal(), 0.0);
        let tied = rate(&[(Rating::NEW, 3); 2]);
        assert!(
            tied.iter().all(|rating| rating.mu == 25.0),
            "equals that tie learn nothing of who is better"
        );
    }

    #[test]
    fn a_match_of_one_or_of_those_far_apart_is_finite() {
        let alone = rate(&[(Rating::NEW, 0)]);
        assert!((alone[0].mu - 25.0).abs() < 1e-12);
        let far = [(Rating { mu: 1e6, sigma: 1.0 }, 1), (Rating { mu: -1e6, sigma: 1.0 }, 0)];
        assert!(rate(&far).iter().all(|rating| rating.mu.is_finite() && rating.sigma > 0.0));
    }
}
