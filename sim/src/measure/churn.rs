//! Who went, when that was noticed, when their work went on elsewhere; who came, and when they first counted.

use std::collections::{BTreeMap, BTreeSet};

use iota_protocol::{Epoch, Instant, PeerId, SampleId, StageIndex};

use crate::network::HostIndex;

/// A member whose process ended without having left.
#[derive(Clone, Debug)]
pub(super) struct Loss {
    pub(super) host: HostIndex,
    pub(super) peer: PeerId,
    pub(super) stage: StageIndex,
    pub(super) at: Instant,
    /// The samples dealt to it, all of which others have to do: its contribution is gone with it.
    pub(super) samples: BTreeSet<SampleId>,
    pub(super) epoch: Option<Epoch>,
    /// When it lost its place.
    pub(super) evicted: Option<Instant>,
    /// When another host finished one of its samples.
    pub(super) rerouted: Option<Instant>,
    /// When its process was there again.
    pub(super) returned: Option<Instant>,
}

/// A leader that went.
#[derive(Clone, Debug)]
pub(super) struct Election {
    pub(super) leader: PeerId,
    pub(super) at: Instant,
    /// When another candidate led.
    pub(super) elected: Option<Instant>,
}

/// Everybody who went or came.
#[derive(Clone, Debug, Default)]
pub(super) struct Churn {
    pub(super) losses: Vec<Loss>,
    pub(super) elections: Vec<Election>,
    /// Processes that have not been counted in a merge yet.
    pub(super) starting: BTreeMap<PeerId, (HostIndex, Instant)>,
    /// Host, when it started, when it first was in a merge that was decided.
    pub(super) joins: Vec<(HostIndex, Instant, Instant)>,
}

impl Churn {
    pub(super) fn started(&mut self, at: Instant, host: HostIndex, peer: PeerId) {
        self.starting.insert(peer, (host, at));
        let open = self.losses.iter_mut().filter(|loss| loss.host == host && loss.returned.is_none());
        open.for_each(|loss| loss.returned = Some(at));
    }

    pub(super) fn evicted(&mut self, at: Instant, peer: PeerId) {
        let open = |loss: &&mut Loss| loss.peer == peer && loss.evicted.is_none() && loss.returned.is_none();
        self.losses.iter_mut().filter(open).for_each(|loss| loss.evicted = Some(at));
    }

    pub(super) fn finished(
        &mut self,
        at: Instant,
        host: HostIndex,
        stage: StageIndex,
        epoch: Epoch,
        sample: SampleId,
    ) {
        for loss in &mut self.losses {
            let theirs = loss.host != host && loss.stage == stage && loss.epoch == Some(epoch);
            if theirs && loss.rerouted.is_none() && loss.samples.contains(&sample) {
                loss.rerouted = Some(at);
            }
        }
    }

    pub(super) fn leads(&mut self, at: Instant, leader: PeerId) {
        let open = |election: &&mut Election| election.elected.is_none() && election.leader != leader;
        self.elections.iter_mut().filter(open).for_each(|election| election.elected = Some(at));
    }

    pub(super) fn merged(&mut self, at: Instant, submitters: &BTreeSet<PeerId>) {
        for peer in submitters {
            if let Some((host, since)) = self.starting.remove(peer) {
                self.joins.push((host, since, at));
            }
        }
    }

    /// Spans in which a member was gone and held its place.
    pub(super) fn vacancies(&self, end: Instant) -> Vec<(Instant, Instant)> {
        let until = |loss: &Loss| loss.evicted.or(loss.returned).unwrap_or(end);
        self.losses.iter().map(|loss| (loss.at, until(loss))).collect()
    }
}
