//! Peer that reports the same wrong result as its accomplices where all owners of a partition are accomplices, and the
//! right one where an honest owner would differ. What they add is drawn from the run's seed, which they all know.

use iota_protocol::miner::outbox::tag;
use iota_protocol::miner::{Job, JobDone};
use iota_protocol::{Hash, PartitionIndex, PeerId, StageIndex};

use super::forgery::altered;
use super::{Behaviour, Kind, Means};
use crate::random::Random;

pub(super) struct ColludingOwners;

/// The owners of a partition in the merge under way.
fn owners(means: &Means<'_>, stage: StageIndex, partition: PartitionIndex) -> Vec<PeerId> {
    let plan = means.peer.state().stage(stage).and_then(|stage| stage.plan());
    plan.and_then(|(_, plan)| plan.owners.get(partition.0 as usize)).cloned().unwrap_or_default()
}

/// A wrong result on which accomplices agree without a word, since it is a function of the right one and of the run.
pub(super) fn agreed_lie(means: &mut Means<'_>, job: &Job, honest: Hash) -> Hash {
    let Job::Reduce { stage, epoch, partition, .. } = job else { return honest };
    let purpose = format!("collusion in stage {stage} epoch {epoch} partition {}", partition.0);
    let mut shared = Random::new(means.spec.seed, &purpose);
    altered(means, honest, &tag(*stage, *epoch), |values| {
        values.iter().map(|value| value + shared.normal()).collect()
    })
}

impl Behaviour for ColludingOwners {
    fn computed(&mut self, means: &mut Means<'_>, job: &Job, done: JobDone) -> JobDone {
        let JobDone::Reduced { stage, partition, merged: Ok(honest), outliers } = done else { return done };
        let owners = owners(means, stage, partition);
        let among_us = owners.iter().all(|owner| means.is_accomplice(Kind::ColludingOwners, *owner));
        let merged = if among_us { agreed_lie(means, job, honest) } else { honest };
        JobDone::Reduced { stage, partition, merged: Ok(merged), outliers }
    }
}
