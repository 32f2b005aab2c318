//! Peer that contributes a hundred times what it computed, to have the mean follow it alone.

use iota_protocol::miner::{Job, JobDone};

use super::forgery::altered_contribution;
use super::{Behaviour, Means};

/// How many times.
const SCALE: f64 = 100.0;

pub(super) struct Scaled;

impl Behaviour for Scaled {
    fn computed(&mut self, means: &mut Means<'_>, job: &Job, done: JobDone) -> JobDone {
        altered_contribution(means, job, done, |value| value * SCALE)
    }
}
