//! Everything drawn: streams of one seed, kept apart by their purpose so that drawing for one changes no other.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng as _};

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The stream of `seed` for `purpose`.
    #[must_use]
    pub fn new(seed: u64, purpose: &str) -> Self {
        let key = blake3::Hasher::new_derive_key("iota-sim 2026 random stream")
            .update(&seed.to_le_bytes())
            .update(purpose.as_bytes())
            .finalize();
        Self(ChaCha8Rng::from_seed(*key.as_bytes()))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `0..below`.
    ///
    /// # Panics
    /// If `below` is zero.
    pub fn below(&mut self, below: usize) -> usize {
        assert!(below > 0, "nothing to draw from");
        // The bias of a remainder of 64 bits is far below anything a simulation resolves.
        #[expect(clippy::cast_possible_truncation, reason = "below a usize")]
        let drawn = (self.bits() % below as u64) as usize;
        drawn
    }

    /// A number in `[0, 1)`, uniform.
    #[expect(clippy::cast_precision_loss, reason = "53 bits")]
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number in `[from, to)`, uniform.
    pub fn between(&mut self, from: f64, to: f64) -> f64 {
        from + self.unit() * (to - from)
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.unit() < probability
    }

    /// A number from the exponential distribution of mean 1.
    pub fn exponential(&mut self) -> f64 {
        -libm::log(1.0 - self.unit())
    }

    /// A number from the standard normal distribution (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        libm::sqrt(2.0 * self.exponential()) * libm::cos(core::f64::consts::TAU * self.unit())
    }

    /// A number from the Weibull distribution; below shape 1 most lives are short and some very long.
    pub fn weibull(&mut self, scale: f64, shape: f64) -> f64 {
        scale * libm::pow(self.exponential(), 1.0 / shape)
    }

    /// A duration between two others, uniform.
    pub fn duration(&mut self, from: Duration, to: Duration) -> Duration {
        Duration::from_secs_f64(self.between(from.as_secs_f64(), to.as_secs_f64()))
    }

    /// `count` different numbers in `0..of`, ascending; all of them if there are fewer.
    pub fn distinct(&mut self, count: usize, of: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..of).collect();
        for i in 0..count.min(of) {
            let j = i + self.below(of - i);
            all.swap(i, j);
        }
        all.truncate(count);
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purpose_has_its_own_stream() {
        let first = |seed, purpose| Random::new(seed, purpose).bits();
        assert_eq!(first(1, "links"), first(1, "links"));
        assert_ne!(first(1, "links"), first(1, "faults"));
        assert_ne!(first(1, "links"), first(2, "links"));
    }

    #[test]
    fn distributions_have_the_means_they_are_named_for() {
        let (mut random, n) = (Random::new(1, "test"), 40_000);
        let mut mean =
            |draw: fn(&mut Random) -> f64| (0..n).map(|_| draw(&mut random)).sum::<f64>() / n as f64;
        // Standard errors are below 0.01; six of them.
        assert!((mean(Random::unit) - 0.5).abs() < 0.01);
        assert!((mean(Random::exponential) - 1.0).abs() < 0.03);
        assert!(mean(Random::normal).abs() < 0.03);
        assert!((mean(|r| r.normal().powi(2)) - 1.0).abs() < 0.05);
        // Γ(1 + 1/2) = √π / 2.
        assert!((mean(|r| r.weibull(1.0, 2.0)) - 0.886_227).abs() < 0.02);
    }

    #[test]
    fn distinct_numbers_are_distinct() {
        let mut random = Random::new(3, "test");
        let drawn = random.distinct(5, 9);
        assert!(drawn.len() == 5 && drawn.windows(2).all(|pair| pair[0] < pair[1]) && drawn[4] < 9);
        assert_eq!(random.distinct(9, 3), [0, 1, 2]);
    }
}
