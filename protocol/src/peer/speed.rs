//! How fast a peer is in its stage, and how sure that is.

use std::collections::VecDeque;

use crate::id::{Epoch, StageIndex};

/// Measurements remembered of each peer, one of each version of its weights.
const REMEMBERED: usize = 16;
/// With fewer, measurements say nothing of how much they scatter.
const SCATTER_MIN: usize = 3;
/// Standard errors within which the true mean lies almost surely, if there are many measurements: all stages are compared
/// with each other in every epoch, and a difference that chance makes once in twenty times would be seen all the time.
const ERRORS: f64 = 3.0;
/// How much wider that is for few measurements, whose scatter is itself uncertain: 1 + this ÷ degrees of freedom. For two of
/// them that makes nine standard errors, about what Student's t has at a probability of 1 %.
const FEW: f64 = 4.0;

/// What a peer measured of its speed in one stage. It outlives the peer's process: one that has just started has measured
/// nothing.
#[derive(Clone, Debug)]
pub struct Speed {
    stage: StageIndex,
    version: Epoch,
    newest: f64,
    measured: VecDeque<f64>,
}

impl Speed {
    /// A first measurement.
    #[must_use]
    pub fn new(stage: StageIndex, version: Epoch, speed: f64) -> Self {
        Self { stage, version, newest: speed, measured: [speed].into() }
    }

    /// Takes what it said with weights of this version. Measurements in one stage say nothing of another.
    pub fn measure(&mut self, stage: StageIndex, version: Epoch, speed: f64) {
        if stage != self.stage {
            *self = Self::new(stage, version, speed);
        }
        self.newest = speed;
        if version != self.version {
            self.version = version;
            self.measured.push_back(speed);
            if self.measured.len() > REMEMBERED {
                self.measured.pop_front();
            }
        }
    }

    /// The stage it was measured in.
    #[must_use]
    pub const fn stage(&self) -> StageIndex {
        self.stage
    }

    /// The newest measurement, in thousandths of a sample per second.
    #[must_use]
    pub const fn newest(&self) -> f64 {
        self.newest
    }

    /// Mean of the measurements.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.measured.iter().sum::<f64>() / self.count()
    }

    /// How far from the mean the true one may be; the mean itself while there are too few measurements to tell.
    #[must_use]
    pub fn doubt(&self) -> f64 {
        let (mean, freedom) = (self.mean(), self.count() - 1.0);
        if self.measured.len() < SCATTER_MIN {
            return mean;
        }
        let squares: f64 = self.measured.iter().map(|speed| (speed - mean).powi(2)).sum();
        ERRORS * (1.0 + FEW / freedom) * (squares / freedom / self.count()).sqrt()
    }

    #[expect(clippy::cast_precision_loss, reason = "a few")]
    fn count(&self) -> f64 {
        self.measured.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGE: StageIndex = StageIndex(1);

    #[test]
    fn what_was_measured_often_is_more_certain() {
        let mut speed = Speed::new(STAGE, Epoch(0), 90.0);
        assert_eq!((speed.mean(), speed.doubt()), (90.0, 90.0));
        speed.measure(STAGE, Epoch(1), 110.0);
        assert_eq!((speed.mean(), speed.doubt()), (100.0, 100.0));
        speed.measure(STAGE, Epoch(2), 100.0);
        // Nine standard errors, of three with a deviation of 10.
        assert!((speed.doubt() - 9.0 * 10.0 / 3.0_f64.sqrt()).abs() < 1e-9);
        for version in 3..40 {
            speed.measure(STAGE, Epoch(version), 100.0 + f64::from(version % 2));
        }
        assert!(speed.doubt() < 0.5 && (speed.mean() - 100.5).abs() < 1e-9);
    }

    #[test]
    fn one_version_counts_once_and_another_stage_begins_anew() {
        let mut speed = Speed::new(STAGE, Epoch(4), 10.0);
        speed.measure(STAGE, Epoch(4), 30.0);
        assert_eq!((speed.newest(), speed.mean()), (30.0, 10.0));
        speed.measure(StageIndex(2), Epoch(4), 50.0);
        assert_eq!((speed.stage(), speed.mean()), (StageIndex(2), 50.0));
    }
}
