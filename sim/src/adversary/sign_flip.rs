//! Peer that contributes the negative of what it computed: it climbs.

use iota_protocol::miner::{Job, JobDone};

use super::forgery::altered_contribution;
use super::{Behaviour, Means};

pub(super) struct SignFlip;

impl Behaviour for SignFlip {
    fn computed(&mut self, means: &mut Means<'_>, job: &Job, done: JobDone) -> JobDone {
        altered_contribution(means, job, done, |value| -value)
    }
}
