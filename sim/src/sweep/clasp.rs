//! How many samples it takes until a miner that harms training is named by the losses alone.
//!
//! The experiment of the IOTA primer: five stages of five miners, each sample takes a random path, its loss is drawn from a
//! normal distribution of mean 4.5 and deviation 0.2. Where one bad miner is on the path, both are larger by a share.
//!
//! With *n* samples over stages of *m* miners, a miner whose samples lose *δ* more has in a balanced fit the effect
//! *δ (1 − 1/m)* with the variance *σ² (m − 1)/n*, so that it is flagged above *z* standard errors with the probability
//!
//! ```text
//! power = Φ( δ √(n (m − 1)) / (σ m) − z )
//! ```
//! The rest is what this leaves out: paths are drawn, so not balanced; the bad one's losses scatter more; *σ* is estimated.

use iota_protocol::clasp::{Record, attribute, threshold};
use iota_protocol::quantiles::normal_tail;

use super::{Curve, Method, Point, Sweep};
use crate::measure::statistics::{Estimate, real, rounded};
use crate::random::Random;

/// Stages, and miners of each, as in the primer.
const STAGES: usize = 5;
const MINERS: usize = 5;
/// Mean and deviation of an honest path's loss, as in the primer.
const MEAN: f64 = 4.5;
const DEVIATION: f64 = 0.2;
/// By how much a bad miner raises both.
const SHARES: [f64; 3] = [0.10, 0.03, 0.01];
/// Probability that of all honest miners any is flagged.
const FALSE_POSITIVES: f64 = 0.01;
/// Experiments of each seed.
const TRIALS: u64 = 200;
/// Samples in the window that is looked at.
pub const SAMPLES: [f64; 8] = [30.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0];

/// Whom one experiment flags: the bad miner, and any honest one.
fn flagged(random: &mut Random, samples: usize, share: f64) -> (bool, bool) {
    let bad = (random.below(STAGES), random.below(MINERS));
    let record = |random: &mut Random| {
        let path: Vec<usize> = (0..STAGES).map(|_| random.below(MINERS)).collect();
        let factor = if path.get(bad.0) == Some(&bad.1) { 1.0 + share } else { 1.0 };
        let loss = (MEAN + DEVIATION * random.normal()) * factor;
        Record { path, loss }
    };
    let records: Vec<Record> = (0..samples).map(|_| record(random)).collect();
    // Too few samples flag nobody.
    let Ok(effects) = attribute(&records, &[MINERS; STAGES]) else { return (false, false) };
    let least = threshold(FALSE_POSITIVES, &[MINERS; STAGES], samples);
    let mut found = (false, false);
    for (stage, effects) in effects.iter().enumerate() {
        for (miner, effect) in effects.iter().enumerate() {
            let flagged = effect.score() > least;
            if share > 0.0 && (stage, miner) == bad {
                found.0 |= flagged;
            } else {
                found.1 |= flagged;
            }
        }
    }
    found
}

/// Probability that theory gives a bad miner of this share to be flagged.
fn power(samples: f64, share: f64) -> f64 {
    let miners = real(MINERS as u64);
    let shift = share * MEAN * libm::sqrt(samples * (miners - 1.0)) / (DEVIATION * miners);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number from 1 on")]
    let least = threshold(FALSE_POSITIVES, &[MINERS; STAGES], samples as usize);
    rounded(normal_tail(least - shift))
}

/// How often a bad miner is named, and an honest one is, over the samples looked at.
#[must_use]
pub fn sweep(samples: &[f64], seeds: &[u64]) -> Sweep {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole numbers from 1 on")]
    let count = |samples: f64| samples as usize;
    let trials = TRIALS * seeds.len() as u64;
    let found = |samples: f64, share: f64| {
        let of_seed = |seed: &u64| {
            let mut random = Random::new(*seed, &format!("clasp {samples} {share}"));
            (0..TRIALS).map(move |_| flagged(&mut random, count(samples), share)).collect::<Vec<_>>()
        };
        seeds.iter().flat_map(of_seed).collect::<Vec<_>>()
    };
    let share_of = |hits: usize| Estimate::of_fraction(hits as u64, trials);
    let mut curves = Vec::new();
    for share in SHARES {
        let point = |samples: &f64| {
            let hits = found(*samples, share).iter().filter(|(bad, _)| *bad).count();
            Point::new(*samples, share_of(hits), Some(power(*samples, share)))
        };
        let name = format!("a miner that adds {:.0} % is named", share * 100.0);
        let theory = "Φ(δ √(n (m − 1)) / (σ m) − z)";
        let points = samples.iter().map(point).collect();
        curves.push(Curve::new(&name, "share of experiments", theory, Method::Wilson, points));
    }
    let point = |samples: &f64| {
        let hits = found(*samples, 0.0).iter().filter(|(_, honest)| *honest).count();
        Point::new(*samples, share_of(hits), Some(FALSE_POSITIVES))
    };
    let points = samples.iter().map(point).collect();
    let name = "any honest miner is named, all being honest";
    curves.push(Curve::new(name, "share of experiments", "the rate asked for", Method::Wilson, points));
    Sweep {
        title: "Miners named by losses alone (CLASP)".to_owned(),
        parameter: "samples looked at".to_owned(),
        setting: format!(
            "{STAGES} stages of {MINERS} miners, loss of mean {MEAN} and deviation {DEVIATION}; flagged above {:.2} standard errors, more with few samples",
            threshold(FALSE_POSITIVES, &[MINERS; STAGES], usize::MAX)
        ),
        curves,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_experiment_of_the_primer_names_the_bad_miner_and_nobody_else() {
        let sweep = sweep(&[200.0], &[0]);
        let mean = |curve: usize| sweep.curves[curve].points[0].measured.mean;
        assert!(mean(0) > 0.99, "ten percent more loss: {}", mean(0));
        assert!(mean(2) < 0.2, "one percent takes more than 200 samples: {}", mean(2));
        assert!(mean(3) < 0.05, "honest ones: {}", mean(3));
    }

    #[test]
    fn theory_gives_half_where_the_shift_is_the_threshold() {
        let miners = real(MINERS as u64);
        for samples in [30, 1000] {
            let least = threshold(FALSE_POSITIVES, &[MINERS; STAGES], samples);
            let samples = real(samples as u64);
            let share = least * DEVIATION * miners / (MEAN * libm::sqrt(samples * (miners - 1.0)));
            assert!((power(samples, share) - 0.5).abs() < 1e-9, "{samples}");
        }
    }
}
