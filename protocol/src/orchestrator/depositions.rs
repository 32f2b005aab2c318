//! Which leaders are to be [charged](crate::no_confidence) for not leading.

use std::collections::BTreeMap;

use crate::id::PeerId;
use crate::no_confidence::{NoConfidence, is_majority};
use crate::peer::book::Book;
use crate::run_state::RunState;
use crate::wire::message::Decision;

/// Leaders against whom a majority of the candidates has voted.
pub(super) fn decisions(state: &RunState, book: &Book) -> Vec<Decision> {
    let candidates = &state.spec().orchestrator.candidates;
    let voters = candidates.iter().map(|candidate| candidate.peer);
    let votes = voters.filter_map(|voter| book.record(voter)?.no_confidence.as_ref());
    let counts = |vote: &&NoConfidence| state.counts_against(vote) && vote.verifies(state.spec().run_id());
    let mut by_leader: BTreeMap<PeerId, Vec<NoConfidence>> = BTreeMap::new();
    for vote in votes.filter(counts) {
        by_leader.entry(vote.leader).or_default().push(vote.clone());
    }
    let by_leader = by_leader.into_iter().map(|(leader, mut votes)| {
        votes.sort_by_key(|vote| vote.voter);
        (leader, votes)
    });
    by_leader
        .filter(|(leader, votes)| is_majority(state.spec(), *leader, votes))
        .map(|(leader, votes)| Decision::Depose { leader, votes })
        .collect()
}
