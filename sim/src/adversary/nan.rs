//! Peer that contributes not-a-numbers of the right length.

use iota_protocol::miner::{Job, JobDone};

use super::forgery::altered_contribution;
use super::{Behaviour, Means};

pub(super) struct Nan;

impl Behaviour for Nan {
    fn computed(&mut self, means: &mut Means<'_>, job: &Job, done: JobDone) -> JobDone {
        altered_contribution(means, job, done, |_| f64::NAN)
    }
}
