//! Peer that reduces a partition wrongly where its accomplice will be asked to settle the dispute, so that two of three
//! are liars and the honest owner is evicted for a wrong merge.
//!
//! The further owner of a disputed partition is known before anybody reports: the first miner of the stage, in peer
//! order, that is no owner yet.

use iota_protocol::PeerId;
use iota_protocol::miner::{Job, JobDone};

use super::colluding_owners::{agreed_lie, owners};
use super::{Behaviour, Kind, Means};

pub(super) struct Framers;

/// Whether liars among the owners, with the one asked to settle, are more than the honest.
fn wins(means: &Means<'_>, owners: &[PeerId], next: Option<PeerId>) -> bool {
    let asked = if owners.len() == 2 { next } else { None };
    let liars =
        owners.iter().chain(&asked).filter(|owner| means.is_accomplice(Kind::Framers, **owner)).count();
    liars * 2 > owners.len() + usize::from(asked.is_some())
}

impl Behaviour for Framers {
    fn computed(&mut self, means: &mut Means<'_>, job: &Job, done: JobDone) -> JobDone {
        let JobDone::Reduced { stage, partition, merged: Ok(honest) } = done else { return done };
        let owners = owners(means, stage, partition);
        let next = means.peer.state().replicas(stage).find(|peer| !owners.contains(peer));
        let merged = if wins(means, &owners, next) { agreed_lie(means, job, honest) } else { honest };
        JobDone::Reduced { stage, partition, merged: Ok(merged) }
    }
}
