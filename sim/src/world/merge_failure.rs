//! Miners that crash while they merge.
//!
//! When a merge is decided on follows from what the swarm does, so these faults wait for the decision and not for a time.
//! Nothing that cannot be had again is lost: nobody has computed a partition of the merge yet, and those who do not
//! crash hold the weights that it starts from.

use std::time::Duration;

use iota_protocol::{Epoch, StageIndex};

use super::{Event, World};
use crate::faults::{Fault, MergeFailure};
use crate::network::HostIndex;
use crate::observe::Seen;

impl World {
    /// Somebody knows that a merge was decided on.
    pub(super) fn planned(&mut self, stage: StageIndex, epoch: Epoch) {
        let due = |failure: &mut MergeFailure| (failure.stage, failure.epoch) == (stage, epoch);
        for failure in self.merge_failures.extract_if(.., due) {
            self.queue.push(Duration::ZERO, Event::MergeFails(failure));
        }
    }

    /// Lets a share of those who merge crash.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a small count"
    )]
    pub(super) fn merge_fails(&mut self, failure: &MergeFailure) {
        let stage = self.best_informed().and_then(|peer| peer.state().stage(failure.stage));
        let Some((_, plan)) = stage.and_then(|stage| stage.plan()) else { return };
        let candidates = self.spec.orchestrator.candidates.len();
        let miners: Vec<HostIndex> = plan
            .submitters
            .iter()
            .filter_map(|submission| self.index_of(submission.peer))
            .filter(|host| *host >= candidates)
            .collect();
        let count = (failure.share * plan.submitters.len() as f64).round() as usize;
        for victim in self.random.distinct(count.min(miners.len()), miners.len()) {
            let victim = miners[victim];
            self.show(victim, Seen::Fault(&Fault::Crash(victim)));
            self.stop(victim);
            self.queue.push(failure.away, Event::Restart(victim));
        }
    }
}
