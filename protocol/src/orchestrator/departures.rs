//! Who loses its place: the silent, those who say that they are gone, and those who leave once that costs nothing.

use std::collections::BTreeMap;

use crate::id::PeerId;
use crate::limits::PROPOSAL_REPEAT;
use crate::peer::book::Book;
use crate::peer::departure::{Awaits, awaits};
use crate::run_state::RunState;
use crate::time::Instant;
use crate::wire::message::{Decision, EvictReason};

/// Members that leave, and since when this candidate knows.
#[derive(Debug, Default)]
pub(super) struct Departures {
    leaving: BTreeMap<PeerId, Instant>,
}

impl Departures {
    /// Evicts who has to go. A member is silent only since this candidate listens: one that has just started, or was cut
    /// off, has heard nobody. One that leaves may be named by an epoch that was proposed before that was known and is not
    /// decided, so it keeps its place for as long as a proposal may take.
    pub(super) fn decisions(
        &mut self,
        now: Instant,
        listening_since: Instant,
        state: &RunState,
        book: &Book,
    ) -> Vec<Decision> {
        let eviction = state.spec().timing.eviction.duration();
        let listened = now.since(listening_since);
        self.leaving.retain(|peer, _| state.stage_of(*peer).is_some() && book.leaves(*peer));
        let mut reason = |peer: PeerId| {
            if book.silence(now, peer).unwrap_or(listened).min(listened) >= eviction {
                return Some(EvictReason::Silent);
            }
            let record = book.record(peer)?;
            let mut free = || {
                let since = *self.leaving.entry(peer).or_insert(now);
                now.since(since) >= PROPOSAL_REPEAT && awaits(state, book, peer) == Awaits::Decision
            };
            (!record.miner || record.leaving && free()).then_some(EvictReason::Left)
        };
        let members = state.members().keys();
        members
            .filter_map(|&peer| Some(Decision::Evict { peer, reason: reason(peer)?, evidence: None }))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{Epoch, Hash, StageIndex};
    use crate::orchestrator::tests::{apply, record};
    use crate::spec::{Candidate, OrchestratorSpec, RunSpec};
    use crate::wire::message::{PeerRecord, WeightsRecord};

    const START: Instant = Instant::from_nanos(1);
    const LEAVER: PeerId = PeerId([1; 32]);
    const OTHER: PeerId = PeerId([2; 32]);
    const BELOW: PeerId = PeerId([3; 32]);
    const TOP: StageIndex = StageIndex(0);
    const TAIL: StageIndex = StageIndex(1);

    /// Two stages at this version, the first of the leaver and another.
    fn waiting(version: u32) -> RunState {
        let candidates = vec![Candidate { peer: PeerId([255; 32]), priority: 0 }];
        let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
        spec.pipeline.stages = 2;
        let mut state = RunState::new(Arc::new(spec), &[10; 2]);
        for (peer, stage) in [(LEAVER, TOP), (OTHER, TOP), (BELOW, TAIL)] {
            apply(&mut state, Decision::Admit { peer, stage });
        }
        state.stages_mut().iter_mut().for_each(|stage| stage.version = Epoch(version));
        state
    }

    fn say(book: &mut Book, now: Instant, peer: PeerId, version: u32, leaving: bool) {
        let sequence = now.as_nanos();
        let weights = Some(WeightsRecord { stage: TOP, version: Epoch(version), hash: Hash::default() });
        let record = PeerRecord { sequence, miner: true, leaving, weights, ..record() };
        book.insert(now, peer, Arc::new(record)).expect("a valid record");
    }

    /// What is decided of the leaver when this candidate has known of it for a while, and at once.
    fn decided(state: &RunState, book: &Book) -> [Vec<Decision>; 2] {
        let mut departures = Departures::default();
        let early = departures.decisions(START, START, state, book);
        [departures.decisions(START + PROPOSAL_REPEAT, START, state, book), early]
    }

    #[test]
    fn a_leaver_goes_when_nobody_needs_it_and_no_epoch_may_have_been_proposed_with_it() {
        let state = waiting(3);
        let mut book = Book::default();
        say(&mut book, START, LEAVER, 3, true);
        say(&mut book, START, OTHER, 3, false);
        let evict = Decision::Evict { peer: LEAVER, reason: EvictReason::Left, evidence: None };
        assert_eq!(decided(&state, &book), [vec![evict], vec![]]);
    }

    #[test]
    fn a_leaver_in_an_epoch_stays_until_every_stage_has_settled_it() {
        let mut state = waiting(3);
        let mut book = Book::default();
        say(&mut book, START, LEAVER, 3, true);
        say(&mut book, START, OTHER, 3, false);
        let members = vec![(LEAVER, 1), (OTHER, 1)];
        let open = Decision::OpenEpoch { stage: TOP, epoch: Epoch(3), base: Hash::default(), members };
        apply(&mut state, open);
        assert_eq!(awaits(&state, &book, LEAVER), Awaits::Merge(TOP, Epoch(3)));
        assert_eq!(decided(&state, &book), [vec![], vec![]]);
        apply(&mut state, Decision::Release { stage: TOP, epoch: Epoch(3), peer: LEAVER });
        assert_eq!(awaits(&state, &book, LEAVER), Awaits::Decision, "others do its samples");
        state.stages_mut()[1].version = Epoch(2);
        assert_eq!(awaits(&state, &book, LEAVER), Awaits::Neighbours(TAIL, Epoch(2)));
        assert_eq!(decided(&state, &book), [vec![], vec![]]);
    }

    #[test]
    fn the_last_to_hold_a_stages_weights_stays_until_others_hold_them() {
        let mut state = waiting(3);
        let mut book = Book::default();
        say(&mut book, START, LEAVER, 3, true);
        say(&mut book, START, OTHER, 2, false);
        assert_eq!(awaits(&state, &book, LEAVER), Awaits::Successors(TOP), "the other has older ones");
        say(&mut book, START + PROPOSAL_REPEAT, OTHER, 3, true);
        assert_eq!(awaits(&state, &book, LEAVER), Awaits::Successors(TOP), "the other leaves too");
        state.stages_mut().iter_mut().for_each(|stage| stage.version = Epoch(0));
        assert_eq!(awaits(&state, &book, LEAVER), Awaits::Decision, "anybody can build the first weights");
    }

    #[test]
    fn one_that_is_gone_is_not_waited_for() {
        let state = waiting(3);
        let mut book = Book::default();
        let gone = PeerRecord { leaving: true, ..record() };
        book.insert(START, LEAVER, Arc::new(gone)).expect("a valid record");
        let evict = vec![Decision::Evict { peer: LEAVER, reason: EvictReason::Left, evidence: None }];
        assert_eq!(decided(&state, &book), [evict.clone(), evict]);
    }
}
