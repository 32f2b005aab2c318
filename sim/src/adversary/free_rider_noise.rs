//! Peer that does no work and contributes small noise, which no check of length or finiteness tells from a gradient.

use iota_protocol::miner::{Job, JobDone};

use super::forgery::pretended;
use super::{Behaviour, Means};

/// Standard deviation of the noise, of the order of a late epoch's gradient.
const NOISE: f64 = 0.01;

pub(super) struct FreeRiderNoise;

impl Behaviour for FreeRiderNoise {
    fn shirks(&mut self, means: &mut Means<'_>, job: &Job) -> Option<JobDone> {
        pretended(means, job, |means, len| (0..len).map(|_| NOISE * means.random.normal()).collect())
    }
}
