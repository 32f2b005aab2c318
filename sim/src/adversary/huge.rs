//! Peer that contributes finite numbers so large that what is computed from them is not finite.

use iota_protocol::miner::{Job, JobDone};

use super::forgery::altered_contribution;
use super::{Behaviour, Means};

/// The largest number: a weighted mean of contributions stays finite, a sum over the samples that follow does not.
const HUGE: f64 = f64::MAX;

pub(super) struct Huge;

impl Behaviour for Huge {
    fn computed(&mut self, means: &mut Means<'_>, job: &Job, done: JobDone) -> JobDone {
        altered_contribution(means, job, done, |value| value.signum() * HUGE)
    }
}
