//! Who loses its place: the silent, those who say that they are gone, those who leave once that costs nothing, and those
//! whose score is too low.

use std::collections::BTreeMap;
use std::time::Duration;

use super::balance::Parting;
use super::holders;
use crate::id::{PeerId, StageIndex};
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
    /// decided, so it keeps its place for as long as a proposal may take before it is `repeat`ed.
    pub(super) fn decisions(
        &mut self,
        now: Instant,
        listening_since: Instant,
        state: &RunState,
        book: &Book,
        repeat: Duration,
    ) -> Vec<Decision> {
        let eviction = state.spec().timing.eviction.duration();
        let listened = now.since(listening_since);
        self.leaving.retain(|peer, _| state.stage_of(*peer).is_some() && book.leaves(*peer));
        let mut reason = |peer: PeerId| {
            if book.silence(now, peer).unwrap_or(listened).min(listened) >= book.patience(peer, eviction) {
                return Some(EvictReason::Silent);
            }
            let record = book.record(peer)?;
            let mut free = || {
                let since = *self.leaving.entry(peer).or_insert(now);
                now.since(since) >= repeat && awaits(state, book, peer) == Awaits::Decision
            };
            (!record.miner || record.leaving && free()).then_some(EvictReason::Left)
        };
        let members = state.members().keys();
        members
            .filter_map(|&peer| Some(Decision::Evict { peer, reason: reason(peer)?, evidence: None }))
            .collect()
    }
}

/// How a stage that waits parts with a member whose score is too low, if it has one: once all stages have settled what
/// it was dealt, and others hold the weights that the stage goes on from.
pub(super) fn kick(state: &RunState, book: &Book, index: StageIndex) -> Option<Parting> {
    let peer = state.to_kick(index)?;
    if !holders(state, book, index).any(|holder| holder != peer && !book.leaves(holder)) {
        return None;
    }
    let versions = state.versions();
    let settled = versions.iter().all(|version| Some(version) >= versions.get(index.as_usize()));
    Some(if settled {
        Parting::Decide(Decision::Evict { peer, reason: EvictReason::LowScore, evidence: None })
    } else {
        Parting::Wait
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{Epoch, Hash, StageIndex};
    use crate::orchestrator::tests::{apply, record};
    use crate::spec::{Candidate, KickPolicy, OrchestratorSpec, RunSpec, ScoresSpec};
    use crate::wire::message::{PeerRecord, Submission, WeightsRecord};

    const START: Instant = Instant::from_nanos(1);
    const REPEAT: Duration = Duration::from_secs(2);
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
        let early = departures.decisions(START, START, state, book, REPEAT);
        [departures.decisions(START + REPEAT, START, state, book, REPEAT), early]
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
        say(&mut book, START + REPEAT, OTHER, 3, true);
        assert_eq!(awaits(&state, &book, LEAVER), Awaits::Successors(TOP), "the other leaves too");
        state.stages_mut().iter_mut().for_each(|stage| stage.version = Epoch(0));
        assert_eq!(awaits(&state, &book, LEAVER), Awaits::Decision, "anybody can build the first weights");
    }

    #[test]
    fn a_low_score_costs_the_place_when_all_stages_have_settled_and_others_hold_the_weights() {
        let mut state = waiting(3);
        let mut spec = state.spec().clone();
        spec.scores =
            ScoresSpec { kick: KickPolicy::Threshold, kick_grace: 1, window: 4, ..ScoresSpec::default() };
        state = RunState::new(Arc::new(spec), &[10; 2]);
        for (peer, stage) in [(LEAVER, TOP), (OTHER, TOP), (BELOW, TAIL)] {
            apply(&mut state, Decision::Admit { peer, stage });
        }
        let members = vec![(LEAVER, 1), (OTHER, 1)];
        let (stage, epoch) = (TOP, Epoch(0));
        apply(&mut state, Decision::OpenEpoch { stage, epoch, base: Hash::default(), members });
        let submission = Submission {
            peer: OTHER,
            manifest: Hash::default(),
            samples: 32,
            loss_micro: None,
            moments_after: None,
        };
        apply(&mut state, Decision::MergePlan { stage, epoch, attempt: 0, submitters: vec![submission] });
        let partitions = vec![Hash::default(); state.stages()[0].partitions];
        apply(
            &mut state,
            Decision::MergeOutcome { stage, epoch, attempt: 0, partitions, outliers: Vec::new() },
        );
        let mut book = Book::default();
        say(&mut book, START, LEAVER, 1, false);
        assert_eq!(kick(&state, &book, TOP), None, "it alone has the weights");
        say(&mut book, START, OTHER, 1, false);
        assert_eq!(kick(&state, &book, TOP), Some(Parting::Wait), "the other stage needs what it was dealt");
        state.stages_mut()[1].version = Epoch(1);
        let evict = Decision::Evict { peer: LEAVER, reason: EvictReason::LowScore, evidence: None };
        assert_eq!(kick(&state, &book, TOP), Some(Parting::Decide(evict)));
        assert_eq!(kick(&state, &book, TAIL), None, "it is alone there");
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
