//! What one stage is doing, and its newest merges.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Hash, LogIndex, PeerId};
use crate::limits::{CLOSED_EPOCHS_KEPT, OUTCOMES_KEPT_MAX};
use crate::samples::Deal;
use crate::validation::outliers_max;
use crate::wire::message::Submission;

/// An epoch under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Its number.
    pub epoch: Epoch,
    /// Hash of the weights it started from.
    pub base: Hash,
    /// The log entry that opened it: its identity, since an epoch can be opened again after its stage emptied.
    pub opened: LogIndex,
    /// Who handles which sample.
    pub deal: Deal,
    /// Number of the next merge plan.
    pub attempt: u16,
    /// Whether members should submit what they have.
    pub cut_off: bool,
}

/// A merge under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its number within the epoch.
    pub attempt: u16,
    /// Chain hash after the entry that decided it, from which its owners and its checks are drawn.
    pub seed: Hash,
    /// Whose contributions, in [`PeerId`] order.
    pub submitters: Vec<Submission>,
    /// Owners of each partition, first those drawn, then those added.
    pub owners: Vec<Vec<PeerId>>,
}

impl Plan {
    /// Whether it has a contribution of `peer`.
    #[must_use]
    pub fn has(&self, peer: PeerId) -> bool {
        self.submitters.iter().any(|submission| submission.peer == peer)
    }

    /// Whether the contributions of these may be said to stand out: they are a few of its submitters, in the order of their keys.
    #[must_use]
    pub fn may_have_outliers(&self, peers: &[PeerId]) -> bool {
        peers.len() <= outliers_max(self.submitters.len())
            && peers.is_sorted_by(|a, b| a < b)
            && peers.iter().all(|peer| self.has(*peer))
    }
}

/// A merge that is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Closed {
    /// The epoch, with its final deal.
    pub training: Training,
    /// The plan that was carried out.
    pub plan: Plan,
    /// The merged partitions; none if the epoch was passed over, or undone.
    pub partitions: Vec<Hash>,
}

/// What leads from one version of a stage's weights to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The epoch, which is also the version that it starts from.
    pub epoch: Epoch,
    /// Hash of those weights.
    pub base: Hash,
    /// The merged partitions; none if the epoch was passed over.
    pub partitions: Vec<Hash>,
}

/// What a stage is doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// For miners with the right weights, or for nothing more if it has finished its last epoch.
    Waiting,
    /// An epoch.
    Training(Training),
    /// A merge.
    Merging(Training, Plan),
}

/// A stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Merges done; also the version of the weights and the number of the current or next epoch.
    pub version: Epoch,
    /// What it is doing.
    pub phase: Phase,
    /// The newest merges done, and those in dispute, oldest first.
    pub closed: VecDeque<Closed>,
    /// With a mirror: the merges done since the newest checkpoint, oldest first, to get from its state to the newest.
    pub outcomes: VecDeque<Outcome>,
    /// Partitions of its flat vector.
    pub partitions: usize,
    /// Its version when it last gave a miner to another stage.
    pub gave: Option<Epoch>,
    /// Its version when it last took one from another stage.
    pub took: Option<Epoch>,
    /// Number of the first merge plan when the epoch opens. An epoch that opens again counts on, so that nothing said of
    /// an earlier plan is taken for one of the new.
    pub attempt: u16,
}

impl Stage {
    /// The epoch under way, training or merging.
    #[must_use]
    pub const fn training(&self) -> Option<&Training> {
        match &self.phase {
            Phase::Waiting => None,
            Phase::Training(training) | Phase::Merging(training, _) => Some(training),
        }
    }

    /// The merge under way.
    #[must_use]
    pub const fn plan(&self) -> Option<(&Training, &Plan)> {
        match &self.phase {
            Phase::Merging(training, plan) => Some((training, plan)),
            _ => None,
        }
    }

    /// The merges lately done, oldest first, and then the one under way.
    pub fn merges(&self) -> impl Iterator<Item = (&Training, &Plan)> {
        self.closed.iter().map(|closed| (&closed.training, &closed.plan)).chain(self.plan())
    }

    /// The merge of this epoch, under way or lately done.
    #[must_use]
    pub fn merge(&self, epoch: Epoch) -> Option<(&Training, &Plan)> {
        let merging = self.plan().filter(|(training, _)| training.epoch == epoch);
        merging.or_else(|| self.closed_epoch(epoch).map(|closed| (&closed.training, &closed.plan)))
    }

    /// The epoch of this number, under way or lately closed.
    #[must_use]
    pub fn epoch(&self, epoch: Epoch) -> Option<&Training> {
        let current = self.training().filter(|training| training.epoch == epoch);
        current.or_else(|| self.closed_epoch(epoch).map(|closed| &closed.training))
    }

    /// Its deal.
    #[must_use]
    pub fn deal(&self, epoch: Epoch) -> Option<&Deal> {
        self.epoch(epoch).map(|training| &training.deal)
    }

    /// Waits for members, since the last one is gone. A plan may have been proposed under the epoch's newest number.
    pub(super) fn empty(&mut self) {
        self.attempt = self.training().map_or(self.attempt, |training| training.attempt.saturating_add(1));
        self.phase = Phase::Waiting;
    }

    /// Goes on to the next version. `remembers` says whether the outcome is kept until the next checkpoint, `disputed` which merges
    /// are remembered though they are long done.
    pub(super) fn settle(&mut self, closed: Closed, remembers: bool, disputed: &[Epoch]) {
        self.version = closed.training.epoch.next();
        if remembers {
            let (epoch, base) = (closed.training.epoch, closed.training.base);
            self.outcomes.push_back(Outcome { epoch, base, partitions: closed.partitions.clone() });
            while self.outcomes.len() > OUTCOMES_KEPT_MAX {
                self.outcomes.pop_front();
            }
        }
        self.phase = Phase::Waiting;
        self.attempt = 0;
        self.closed.push_back(closed);
        let mut older = self.closed.len().saturating_sub(CLOSED_EPOCHS_KEPT);
        self.closed.retain(|closed| {
            let is_old = older > 0;
            older = older.saturating_sub(1);
            !is_old || disputed.contains(&closed.training.epoch)
        });
    }

    /// What the merge of `epoch` started from, and what it merged, if that is remembered.
    #[must_use]
    pub fn merge_of(&self, epoch: Epoch) -> Option<(Hash, &[Hash])> {
        let closed =
            self.closed_epoch(epoch).map(|closed| (closed.training.base, closed.partitions.as_slice()));
        let outcome = || self.outcomes.iter().find(|outcome| outcome.epoch == epoch);
        closed.or_else(|| outcome().map(|outcome| (outcome.base, outcome.partitions.as_slice())))
    }

    /// Passes over the merge of `epoch` and those after it; returns whether there was something to pass over. Only a stage
    /// that waits can: one that trains has members with the newest weights.
    pub(super) fn undo(&mut self, epoch: Epoch) -> bool {
        let merge = self.merge_of(epoch).filter(|(_, partitions)| !partitions.is_empty());
        let Some((base, _)) = merge.filter(|_| matches!(self.phase, Phase::Waiting)) else { return false };
        for closed in self.closed.iter_mut().filter(|closed| closed.training.epoch >= epoch) {
            (closed.training.base, closed.partitions) = (base, Vec::new());
        }
        for outcome in self.outcomes.iter_mut().filter(|outcome| outcome.epoch >= epoch) {
            (outcome.base, outcome.partitions) = (base, Vec::new());
        }
        true
    }

    /// The outcome of `epoch`, if it is remembered and starts from the weights that hash to `base`.
    #[must_use]
    pub fn outcome(&self, epoch: Epoch, base: Hash) -> Option<&Outcome> {
        self.outcomes.iter().find(|outcome| outcome.epoch == epoch && outcome.base == base)
    }

    /// Whether the newest version can be had from the one that hashes to `base`.
    #[must_use]
    pub fn leads_on(&self, version: Epoch, base: Hash) -> bool {
        version < self.version && self.outcome(version, base).is_some()
    }

    /// Whether all merges from that of `epoch` to the newest are still remembered.
    #[must_use]
    pub fn remembers_since(&self, epoch: Epoch) -> bool {
        (epoch.0..self.version.0).all(|epoch| self.closed_epoch(Epoch(epoch)).is_some())
    }

    /// The merge that closed `epoch`, if it is still remembered.
    #[must_use]
    pub fn closed_epoch(&self, epoch: Epoch) -> Option<&Closed> {
        self.closed.iter().find(|closed| closed.training.epoch == epoch)
    }
}
