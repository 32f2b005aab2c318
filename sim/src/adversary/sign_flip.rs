//! Peer that contributes the negative of what it computed: it climbs.

use iota_protocol::miner::{Job, JobDone};

use super::forgery::altered_contribution;
use super::{Behaviour, Means};
use crate::trainer::toy::to_bytes;

pub(super) struct SignFlip;

impl Behaviour for SignFlip {
    fn computed(&mut self, means: &mut Means<'_>, job: &Job, done: JobDone) -> JobDone {
        altered_contribution(means, job, done, |values| {
            to_bytes(&values.iter().map(|value| -value).collect::<Vec<_>>())
        })
    }
}
