//! Peer that reduces every partition wrongly while it has an accomplice in its stage, in the same way as the accomplice:
//! in a dispute with one honest owner the two would be a majority of three, and the honest owner would be evicted.

use iota_protocol::miner::{Job, JobDone};

use super::colluding_owners::agreed_lie;
use super::{Behaviour, Kind, Means};

pub(super) struct Framers;

impl Behaviour for Framers {
    fn computed(&mut self, means: &mut Means<'_>, job: &Job, done: JobDone) -> JobDone {
        let JobDone::Reduced { stage, partition, merged: Ok(honest), outliers } = done else { return done };
        let pair =
            means.peer.state().replicas(stage).filter(|peer| means.is_accomplice(Kind::Framers, *peer));
        let merged = if pair.count() > 1 { agreed_lie(means, job, honest) } else { honest };
        JobDone::Reduced { stage, partition, merged: Ok(merged), outliers }
    }
}
