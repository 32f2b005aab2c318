//! Learning rates as pure functions of the step, so that peers agree on them without talking.

use serde::{Deserialize, Serialize};

/// Describes a learning rate over time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Schedule {
    /// Linear warm-up, then the peak for ever.
    Constant {
        /// Rate after the warm-up.
        peak: f64,
        /// Steps of the warm-up; step 0 already has a rate above zero.
        warmup_steps: u64,
    },
    /// Linear warm-up, then half a cosine down to `final_factor * peak` (Loshchilov and Hutter 2017, no
    /// restarts).
    Cosine {
        /// Rate at the end of the warm-up.
        peak: f64,
        /// Steps of the warm-up.
        warmup_steps: u64,
        /// Step at which the rate reaches its end and stays there.
        total_steps: u64,
        /// The end rate as a share of the peak.
        final_factor: f64,
    },
}

impl Schedule {
    /// Returns the learning rate of step `step`, the first step being 0.
    #[must_use]
    pub fn learning_rate(&self, step: u64) -> f64 {
        match *self {
            Self::Constant { peak, warmup_steps } => peak * warmup(step, warmup_steps),
            Self::Cosine { peak, warmup_steps, total_steps, final_factor } => {
                if step < warmup_steps {
                    return peak * warmup(step, warmup_steps);
                }
                let span = total_steps.saturating_sub(warmup_steps).max(1);
                let progress = ((step - warmup_steps) as f64 / span as f64).min(1.0);
                let cosine = 0.5 * (1.0 + libm::cos(std::f64::consts::PI * progress));
                peak * (final_factor + (1.0 - final_factor) * cosine)
            }
        }
    }
}

fn warmup(step: u64, warmup_steps: u64) -> f64 {
    if step < warmup_steps { (step + 1) as f64 / warmup_steps as f64 } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warmup_rises_in_equal_steps_to_the_peak() {
        let schedule = Schedule::Constant { peak: 2.0, warmup_steps: 4 };
        let rates: Vec<f64> = (0..6).map(|step| schedule.learning_rate(step)).collect();
        assert_eq!(rates, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]);
    }

    #[test]
    fn cosine_passes_its_middle_and_stays_at_its_end() {
        let schedule = Schedule::Cosine { peak: 1.0, warmup_steps: 10, total_steps: 110, final_factor: 0.1 };
        assert_eq!(schedule.learning_rate(9), 1.0);
        assert_eq!(schedule.learning_rate(10), 1.0);
        // Halfway the cosine is zero up to its last bit, so the rate is the mean of both ends.
        assert!((schedule.learning_rate(60) - 0.55).abs() < 1e-12);
        assert_eq!(schedule.learning_rate(110), 0.1);
        assert_eq!(schedule.learning_rate(u64::MAX), 0.1);
    }
}
