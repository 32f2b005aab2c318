//! Means, percentiles and 95 % confidence intervals.

use serde::{Deserialize, Serialize};

/// Normal quantile of a two-sided 95 % interval.
const Z_95: f64 = 1.959_964;

/// Student's t quantiles of a two-sided 95 % interval, for 1 to 30 degrees of freedom.
const T_95: [f64; 30] = [
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
];

/// A count as a real number.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "counts and sizes are below 2^53")]
pub const fn real(count: u64) -> f64 {
    count as f64
}

/// Rounded to millionths, which is what reports write: shorter to read, and the same after a round trip through text.
#[must_use]
pub fn rounded(value: f64) -> f64 {
    // An empty sum is -0; adding zero takes its sign off.
    let rounded = libm::round(value * 1e6) / 1e6 + 0.0;
    if rounded.is_finite() { rounded } else { 0.0 }
}

/// `part / whole`, zero if there is no whole.
#[must_use]
pub fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { rounded(part / whole) } else { 0.0 }
}

/// The arithmetic mean; zero of nothing.
#[must_use]
pub fn mean(values: &[f64]) -> f64 {
    ratio(values.iter().sum(), real(values.len() as u64))
}

/// The value below or at which a share `p` of all values lie (nearest rank); zero of nothing.
#[must_use]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within a slice")]
pub fn percentile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = libm::ceil(p * real(sorted.len() as u64)) as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// How values are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Their median.
    pub p50: f64,
    /// The value that 99 % do not exceed.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Distribution {
    /// Of these values.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        Self {
            count: values.len() as u64,
            mean: mean(values),
            p50: rounded(percentile(values, 0.5)),
            p99: rounded(percentile(values, 0.99)),
            max: rounded(percentile(values, 1.0)),
        }
    }
}

/// A mean and the 95 % confidence interval around it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
    /// Independent runs it is from.
    pub runs: u64,
}

impl Estimate {
    /// From one value per independent run, by Student's t. A single run has an interval of no width, which says nothing.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let (n, centre) = (values.len() as u64, mean(values));
        let squares: f64 = values.iter().map(|value| (value - centre) * (value - centre)).sum();
        let half = if n > 1 { t_95(n - 1) * libm::sqrt(squares / real(n - 1) / real(n)) } else { 0.0 };
        Self { mean: centre, low: rounded(centre - half), high: rounded(centre + half), runs: n }
    }

    /// From `successes` among `trials` independent trials, by the score interval of Wilson (1927), which keeps its
    /// coverage near 0 and 1 where Student's does not.
    #[must_use]
    pub fn of_fraction(successes: u64, trials: u64) -> Self {
        let n = real(trials.max(1));
        let share = real(successes) / n;
        let (z2, scale) = (Z_95 * Z_95, 1.0 + Z_95 * Z_95 / n);
        let centre = (share + z2 / (2.0 * n)) / scale;
        let half = Z_95 / scale * libm::sqrt(share * (1.0 - share) / n + z2 / (4.0 * n * n));
        let (low, high) = ((centre - half).max(0.0), (centre + half).min(1.0));
        Self { mean: rounded(share), low: rounded(low), high: rounded(high), runs: trials }
    }

    /// Whether the interval contains `value`, to the millionth that intervals are written with.
    #[must_use]
    pub fn contains(&self, value: f64) -> bool {
        (self.low - 1e-6..=self.high + 1e-6).contains(&value)
    }
}

/// The t quantile; beyond the table by the first term of its expansion around the normal quantile.
fn t_95(freedom: u64) -> f64 {
    let index = usize::try_from(freedom).unwrap_or(usize::MAX).saturating_sub(1);
    T_95.get(index).copied().unwrap_or_else(|| Z_95 + 2.37 / real(freedom))
}

/// The exponent *b* of the power law *y = a xᵇ* through points, by least squares of the logarithms.
#[must_use]
pub fn exponent(points: &[(f64, f64)]) -> f64 {
    let logs: Vec<(f64, f64)> = points
        .iter()
        .filter(|(x, y)| *x > 0.0 && *y > 0.0)
        .map(|(x, y)| (libm::log(*x), libm::log(*y)))
        .collect();
    let n = real(logs.len() as u64).max(1.0);
    let (x0, y0) = (
        logs.iter().map(|point| point.0).sum::<f64>() / n,
        logs.iter().map(|point| point.1).sum::<f64>() / n,
    );
    let covariance: f64 = logs.iter().map(|(x, y)| (x - x0) * (y - y0)).sum();
    let variance: f64 = logs.iter().map(|(x, _)| (x - x0) * (x - x0)).sum();
    if variance > 0.0 { rounded(covariance / variance) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_the_textbooks() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        // s = 1.5811, t(4) = 2.776: half = 2.776 × 1.5811 / √5 = 1.9629.
        assert!((estimate.high - 4.962_9).abs() < 1e-3 && (estimate.low - 1.037_1).abs() < 1e-3);
        let wilson = Estimate::of_fraction(8, 10);
        // Wilson's interval for 8 of 10.
        assert!((wilson.low - 0.4902).abs() < 1e-3 && (wilson.high - 0.9433).abs() < 1e-3, "{wilson:?}");
        assert!(Estimate::of_fraction(10, 10).contains(1.0));
        assert!((t_95(60) - 2.000).abs() < 2e-3, "beyond the table");
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|p| percentile(&values, p)), [1.0, 3.0, 5.0, 5.0]);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn a_power_law_has_its_exponent() {
        let points: Vec<(f64, f64)> = [10.0, 20.0, 80.0].map(|x: f64| (x, 3.0 * x.powf(1.5))).to_vec();
        assert!((exponent(&points) - 1.5).abs() < 1e-6);
    }
}
