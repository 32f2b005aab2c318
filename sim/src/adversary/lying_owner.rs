//! Peer that reduces its partitions wrongly, each liar in its own way, and serves what it reports.

use iota_protocol::miner::outbox::tag;
use iota_protocol::miner::{Job, JobDone};

use super::forgery::altered;
use super::{Behaviour, Means};
use crate::random::Random;

pub(super) struct LyingOwner;

impl Behaviour for LyingOwner {
    fn computed(&mut self, means: &mut Means<'_>, job: &Job, done: JobDone) -> JobDone {
        let (Job::Reduce { stage, epoch, partition, .. }, JobDone::Reduced { merged: Ok(honest), .. }) =
            (job, &done)
        else {
            return done;
        };
        let mut random = Random::new(means.random.bits(), "lie");
        let wrong = altered(means, *honest, &tag(*stage, *epoch), |values| {
            values.iter().map(|value| value + random.normal()).collect()
        });
        let (stage, partition) = (*stage, *partition);
        JobDone::Reduced { stage, partition, merged: Ok(wrong), outliers: Vec::new() }
    }
}
