//! Who hears what: the gossip topics that a peer listens to, and the one its own records belong on.
//!
//! ```text
//!                      candidates   without a place   miner of stage k
//! control              hear         hear              hears
//! records              hear, speak  hear, speak       hears
//! records/j            hear all     hear all          hears j = k-1, k, k+1; speaks j = k
//! merge/j              hear all     -                 hears and speaks j = k, and j of which it owns a partition
//! ```
//! So what a miner hears grows with its own stage and those beside it, with whom it works, and not with the swarm.
//! Candidates hear everything: they admit, evict, plan and judge. A peer without a place may get one in any stage.
//! ADR 0013 has the reasons and the counts.

use std::collections::BTreeSet;

use crate::id::{PeerId, StageIndex};
use crate::miner::Outbox;
use crate::run_state::RunState;
use crate::spec::ScoredBy;
use crate::wire::message::Topic;

/// The topics that a peer listens to.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    topics: BTreeSet<Topic>,
}

impl Scope {
    /// Whether the peer listens to `topic`.
    #[must_use]
    pub fn hears(&self, topic: Topic) -> bool {
        self.topics.contains(&topic)
    }

    /// Joins and leaves topics as the state says. `merging` are stages of which the peer owns partitions under merge.
    pub(super) fn follow(
        &mut self,
        me: PeerId,
        state: &RunState,
        merging: impl Iterator<Item = StageIndex>,
        out: &mut Outbox,
    ) {
        let wanted = wanted(me, state, merging);
        self.topics.difference(&wanted).for_each(|topic| out.unsubscribe(*topic));
        wanted.difference(&self.topics).for_each(|topic| out.subscribe(*topic));
        self.topics = wanted;
    }
}

fn wanted(me: PeerId, state: &RunState, merging: impl Iterator<Item = StageIndex>) -> BTreeSet<Topic> {
    let stages = || state.spec().stages();
    if is_candidate(me, state) {
        return Topic::all(stages()).collect();
    }
    let mut topics: BTreeSet<Topic> = [Topic::Control, Topic::Records].into();
    match state.stage_of(me) {
        Some(place) => {
            let beside = stages().filter(|stage| stage.0.abs_diff(place.0) <= 1);
            topics.extend(beside.map(Topic::StageRecords));
            topics.insert(Topic::Merge(place));
        }
        None => {
            topics.extend(stages().map(Topic::StageRecords));
            if state.spec().scores.by == ScoredBy::Loss && state.validators().contains(&me) {
                // Who committed first is what evaluators tell copies by.
                topics.extend(stages().map(Topic::Merge));
            }
        }
    }
    topics.extend(merging.flat_map(|stage| [Topic::StageRecords(stage), Topic::Merge(stage)]));
    topics
}

/// Where a peer's own record belongs. When the run is over, everybody tells everybody, since each leaves when it has
/// heard that nobody needs it any more.
pub(super) fn record_topic(me: PeerId, state: &RunState) -> Topic {
    match state.stage_of(me) {
        Some(place) if !is_candidate(me, state) && !state.finished() => Topic::StageRecords(place),
        _ => Topic::Records,
    }
}

fn is_candidate(me: PeerId, state: &RunState) -> bool {
    state.spec().candidate_index(me).is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{Hash, Identity, LogIndex};
    use crate::miner::Action;
    use crate::spec::{Candidate, RunSpec};
    use crate::wire::message::{Decision, Entry};

    const MINER: PeerId = PeerId([2; 32]);
    const CANDIDATE: PeerId = PeerId([1; 32]);

    fn state(place: Option<u16>) -> RunState {
        let mut spec = RunSpec::default();
        spec.orchestrator.candidates = vec![Candidate { peer: CANDIDATE, priority: 0 }];
        (spec.pipeline.stages, spec.model.layers) = (5, 5);
        let mut state = RunState::new(Arc::new(spec), &[10; 5]);
        if let Some(stage) = place.map(StageIndex) {
            let decision = Decision::Admit { peer: MINER, stage };
            let entry = Entry { proposer: CANDIDATE, decision };
            state.apply(LogIndex(0), Hash::default(), Some(&entry));
        }
        state
    }

    fn names(topics: &BTreeSet<Topic>) -> Vec<String> {
        topics.iter().map(|topic| topic.name()).collect()
    }

    #[test]
    fn a_miner_hears_its_stage_and_those_beside_it() {
        let topics = wanted(MINER, &state(Some(3)), std::iter::empty());
        let expected = ["control", "records", "records/2", "records/3", "records/4", "merge/3"];
        assert_eq!(names(&topics), expected);
        assert_eq!(record_topic(MINER, &state(Some(3))), Topic::StageRecords(StageIndex(3)));
    }

    #[test]
    fn an_owner_of_another_stages_partition_hears_that_stage_until_its_merge_is_over() {
        let (mut scope, state) = (Scope::default(), state(Some(0)));
        let mut out = Outbox::new(Identity::from_secret([2; 32]), state.spec().run_id());
        scope.follow(MINER, &state, std::iter::once(StageIndex(4)), &mut out);
        assert!(scope.hears(Topic::Merge(StageIndex(4))) && scope.hears(Topic::StageRecords(StageIndex(4))));
        while out.pop().is_some() {}
        scope.follow(MINER, &state, std::iter::empty(), &mut out);
        let left: Vec<Action> = std::iter::from_fn(|| out.pop()).collect();
        let both = [Topic::StageRecords(StageIndex(4)), Topic::Merge(StageIndex(4))];
        assert_eq!(left, both.map(Action::Unsubscribe));
    }

    #[test]
    fn candidates_hear_everything_and_peers_without_a_place_all_records() {
        let state = state(None);
        assert_eq!(wanted(CANDIDATE, &state, std::iter::empty()).len(), 2 + 2 * 5);
        let topics = wanted(MINER, &state, std::iter::empty());
        assert_eq!(topics.len(), 2 + 5);
        assert!(!topics.iter().any(|topic| matches!(topic, Topic::Merge(_))));
        assert_eq!(record_topic(MINER, &state), Topic::Records);
        assert_eq!(record_topic(CANDIDATE, &state), Topic::Records);
    }
}
