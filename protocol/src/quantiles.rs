//! Medians, and quantiles by which thresholds follow from false-positive rates.
//!
//! [`clasp`](crate::clasp) takes its own from here, and so do the thresholds that replays are held to.

/// The middle of some numbers, of an even number the mean of the middle two; zero of none.
#[must_use]
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), middle.checked_sub(1).and_then(|below| values.get(below))) {
        (Some(upper), Some(lower)) if values.len().is_multiple_of(2) => (lower + upper) / 2.0,
        (Some(value), _) => *value,
        (None, _) => 0.0,
    }
}

/// Probability that a standard normal number is above `z`.
#[must_use]
pub fn normal_tail(z: f64) -> f64 {
    libm::erfc(z / core::f64::consts::SQRT_2) / 2.0
}

/// The number that a standard normal one exceeds with this `probability`, at most one half.
#[must_use]
pub fn normal(probability: f64) -> f64 {
    let probability = probability.clamp(1e-300, 0.5);
    // The tail falls with z; halving finds the last bit of it.
    let (mut low, mut high) = (0.0, 40.0);
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        if normal_tail(middle) > probability { low = middle } else { high = middle }
    }
    high
}

/// The number that Student's t of so many degrees of freedom, at least 1, exceeds with this `probability`, by the approximation
/// of Wallace, "Bounds on normal approximations to Student's and the chi-square distributions" (1959).
#[must_use]
pub fn student(probability: f64, freedom: f64) -> f64 {
    let stretched = normal(probability) * (8.0 * freedom + 3.0) / (8.0 * freedom + 1.0);
    libm::sqrt(freedom * libm::expm1(stretched * stretched / freedom))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_tables() {
        for (probability, z) in [(0.5, 0.0), (0.05, 1.644_854), (0.01, 2.326_348), (1e-4, 3.719_016)] {
            assert!((normal(probability) - z).abs() < 1e-6, "{probability}");
            assert!((normal_tail(z) - probability).abs() < 1e-6, "{z}");
        }
        // Abramowitz and Stegun, table 26.10.
        for (probability, freedom, t) in [(0.025, 10.0, 2.228), (0.005, 20.0, 2.845), (5e-4, 30.0, 3.646)] {
            assert!((student(probability, freedom) / t - 1.0).abs() < 0.005, "{probability} {freedom}");
        }
    }
}
