//! What a leader pays that all others deposed: a cost in throughput, for it held up everybody's.
//!
//! A candidate that ceases to take another for a leader, since that one leaves undone what should be decided (ADR 0042), signs so
//! and shows it in its records. Votes of a majority of the candidates stand in the log as one decision ([`Decision::Depose`]),
//! and whoever folds it charges the leader what the run does in [`DEPOSED_EPOCHS`] epochs:
//!
//! ```text
//! charge = DEPOSED_EPOCHS × samples of an epoch × stages,   samples, in the epoch of its stage that is under way
//! ```
//! That goes off its score ([`scores`](crate::scores)) while that epoch is in the window. Nobody can tell a leader that is deaf
//! on purpose from one whose connection or disk is broken, so it costs no place, and nobody is barred for it: a leader that
//! cannot lead may step down, by leaving, before the others lose patience.
//!
//! A vote counts for [`NO_CONFIDENCE_EPOCHS`] epochs of the head stage, and not for a deposition before it, so that none is used
//! twice.
//!
//! [`Decision::Depose`]: crate::wire::message::Decision::Depose

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::id::{Epoch, Identity, PeerId, RunId};
use crate::limits::{DEPOSED_EPOCHS, NO_CONFIDENCE_EPOCHS, WIRE_VERSION_FIRST};
use crate::spec::RunSpec;
use crate::wire::encode;
use crate::wire::envelope::signed_bytes;

/// A candidate's word that another does not lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfidence {
    /// Whose word it is.
    pub voter: PeerId,
    /// Who leads and leaves undone what should be decided.
    pub leader: PeerId,
    /// The version of the head stage when the voter lost its patience.
    pub epoch: Epoch,
    /// By the voter: Ed25519 over `iota/v1/no-confidence`, NUL, the run's id and the encoding of (`leader`, `epoch`).
    pub signature: ByteBuf,
}

fn vote_bytes(run: RunId, leader: PeerId, epoch: Epoch) -> Vec<u8> {
    signed_bytes(WIRE_VERSION_FIRST, "no-confidence", run, &encode(&(leader, epoch)))
}

impl NoConfidence {
    /// Signs that `leader` does not lead.
    #[must_use]
    pub fn sign(identity: &Identity, run: RunId, leader: PeerId, epoch: Epoch) -> Self {
        let signature = ByteBuf::from(identity.sign(&vote_bytes(run, leader, epoch)));
        Self { voter: identity.peer(), leader, epoch, signature }
    }

    /// Whether the voter has signed it, in this run.
    #[must_use]
    pub fn verifies(&self, run: RunId) -> bool {
        self.voter.verifies(&vote_bytes(run, self.leader, self.epoch), &self.signature)
    }

    /// Whether it counts while the head stage is at `version`, if its leader was deposed last when that stage was at `deposed`.
    #[must_use]
    pub fn counts(&self, version: Epoch, deposed: Option<Epoch>) -> bool {
        let fresh = self.epoch <= version && version.0 - self.epoch.0 <= NO_CONFIDENCE_EPOCHS;
        fresh && deposed.is_none_or(|deposed| self.epoch > deposed)
    }
}

/// Whether these are votes of a majority of the candidates against `leader`, in the order of the voters.
#[must_use]
pub fn is_majority(spec: &RunSpec, leader: PeerId, votes: &[NoConfidence]) -> bool {
    let ordered = votes.is_sorted_by(|one, next| one.voter < next.voter);
    let entitled = |vote: &NoConfidence| {
        vote.leader == leader && vote.voter != leader && spec.candidate_index(vote.voter).is_some()
    };
    ordered && votes.iter().all(entitled) && votes.len() > spec.orchestrator.candidates.len() / 2
}

/// What a deposed leader is charged, in samples.
#[must_use]
pub fn charge(spec: &RunSpec) -> u32 {
    let epoch = spec.training.samples_per_epoch.saturating_mul(u32::from(spec.pipeline.stages));
    epoch.saturating_mul(DEPOSED_EPOCHS)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::StageIndex;
    use crate::orchestrator::tests::apply;
    use crate::run_state::{RunState, StateEvent};
    use crate::spec::{Candidate, OrchestratorSpec};
    use crate::wire::message::Decision;

    fn candidate(i: u8) -> Identity {
        Identity::from_secret([i; 32])
    }

    fn leader() -> PeerId {
        candidate(1).peer()
    }

    /// A run of one stage with candidates 1, 2 and 3, of whom the first mines.
    fn run() -> RunState {
        let candidates = [1, 2, 3].map(|i| Candidate { peer: candidate(i).peer(), priority: 0 }).to_vec();
        let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
        spec.pipeline.stages = 1;
        let mut state = RunState::new(Arc::new(spec), &[10]);
        apply(&mut state, Decision::Admit { peer: leader(), stage: StageIndex(0) });
        state
    }

    fn votes(state: &RunState, voters: &[u8], epoch: u32) -> Vec<NoConfidence> {
        let run = state.spec().run_id();
        let vote = |i: &u8| NoConfidence::sign(&candidate(*i), run, leader(), Epoch(epoch));
        let mut votes: Vec<NoConfidence> = voters.iter().map(vote).collect();
        votes.sort_by_key(|vote| vote.voter);
        votes
    }

    fn depose(state: &mut RunState, votes: Vec<NoConfidence>) -> Vec<StateEvent> {
        apply(state, Decision::Depose { leader: leader(), votes })
    }

    fn held_up(state: &RunState) -> u64 {
        let rows = state.scores().table(&state.spec().scores, &state.versions());
        rows.iter().find(|row| row.peer == leader()).map_or(0, |row| row.held_up)
    }

    #[test]
    fn a_majority_charges_a_leader_once_for_one_loss_of_patience() {
        let mut state = run();
        let both = votes(&state, &[2, 3], 0);
        assert_eq!(depose(&mut state, both.clone()), [StateEvent::Deposed(leader())]);
        assert_eq!(held_up(&state), u64::from(charge(state.spec())));
        assert_eq!(state.stage_of(leader()), Some(StageIndex(0)), "it keeps its place");
        assert_eq!(depose(&mut state, both), [], "the same votes");
        let later = votes(&state, &[2, 3], 1);
        assert_eq!(depose(&mut state, later.clone()), [], "of an epoch that has not come");
        state.stages_mut()[0].version = Epoch(1);
        assert_eq!(depose(&mut state, later), [StateEvent::Deposed(leader())]);
    }

    #[test]
    fn less_than_a_majority_and_votes_that_do_not_hold_charge_nobody() {
        let mut state = run();
        let (one, both) = (votes(&state, &[2], 0), votes(&state, &[2, 3], 0));
        assert_eq!(depose(&mut state, one.clone()), []);
        assert_eq!(depose(&mut state, [one.clone(), one.clone()].concat()), [], "one voter twice");
        let with_itself = votes(&state, &[1, 2], 0);
        assert_eq!(depose(&mut state, with_itself), [], "the accused has no vote");
        let stranger = votes(&state, &[2, 9], 0);
        assert_eq!(depose(&mut state, stranger), [], "no candidate");
        let mut backwards = both.clone();
        backwards.reverse();
        assert_eq!(depose(&mut state, backwards), []);
        let mut forged = both;
        forged[0].signature[3] ^= 1;
        assert_eq!(depose(&mut state, forged), []);
        assert_eq!(held_up(&state), 0);
    }

    #[test]
    fn a_vote_counts_for_some_epochs_and_not_for_what_came_before_a_deposition() {
        let vote = NoConfidence::sign(&candidate(2), run().spec().run_id(), leader(), Epoch(5));
        let last = Epoch(5 + NO_CONFIDENCE_EPOCHS);
        assert!(vote.counts(Epoch(5), None) && vote.counts(last, None));
        assert!(!vote.counts(Epoch(4), None) && !vote.counts(last.next(), None));
        assert!(vote.counts(Epoch(6), Some(Epoch(4))) && !vote.counts(Epoch(6), Some(Epoch(5))));
    }

    #[test]
    fn deposed_leaders_are_part_of_the_state_that_a_snapshot_names() {
        let mut state = run();
        let both = votes(&state, &[2, 3], 0);
        depose(&mut state, both.clone());
        let mut read = run().read(&state.to_bytes()).expect("a state of this run");
        assert_eq!(read.to_bytes(), state.to_bytes());
        assert_eq!(depose(&mut read, both), [], "it knows that these votes have counted");
    }
}
