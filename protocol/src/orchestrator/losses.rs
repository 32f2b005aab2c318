//! Merges that were lost with everybody who had what they merged.
//!
//! A merge is decided on when its owners agree on its result, whose bytes only they have for a moment: whoever applies it
//! fetches them, and a mirror gets them later. If all who have them die in that moment, their stage would wait for ever.
//! Then the merge is passed over after the fact: one epoch's work of one stage is lost, and not the run.

use std::collections::BTreeMap;

use crate::id::{Epoch, PeerId, StageIndex};
use crate::limits::{LOST_SILENCES, SLOW_SILENCES};
use crate::peer::book::Book;
use crate::run_state::{Phase, RunState, Stage};
use crate::time::Instant;
use crate::wire::message::{Decision, WeightsRecord};

/// Stages none of whose miners can get the weights they need, with the merge that they lack, and since when.
#[derive(Debug, Default)]
pub(super) struct Losses {
    lacking: BTreeMap<StageIndex, (Loss, Instant)>,
}

/// A merge that a stage's miners lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Loss {
    epoch: Epoch,
    /// Whether each part of it was merged by somebody who has a place in the stage still and is heard.
    served: bool,
}

impl Losses {
    /// Notes who lacks what.
    pub(super) fn observe(&mut self, now: Instant, state: &RunState, book: &Book) {
        for (index, stage) in state.spec().stages().zip(state.stages()) {
            match lost(now, state, book, index, stage) {
                Some(loss) => {
                    let known = self.lacking.entry(index).or_insert((loss, now));
                    if known.0 != loss {
                        *known = (loss, now);
                    }
                }
                None => drop(self.lacking.remove(&index)),
            }
        }
    }

    /// Starts all waits anew.
    pub(super) fn restart(&mut self, now: Instant) {
        self.lacking.values_mut().for_each(|(_, since)| *since = now);
    }

    /// What is to be passed over.
    pub(super) fn decisions(&self, now: Instant, state: &RunState, book: &Book) -> Vec<Decision> {
        let silence = book.ordinary_silence(state.spec().timing.eviction.duration());
        let lost = self.lacking.iter().filter(|(_, (loss, since))| {
            now.since(*since) >= silence * if loss.served { SLOW_SILENCES } else { LOST_SILENCES }
        });
        lost.map(|(stage, (loss, _))| Decision::Undo { stage: *stage, epoch: loss.epoch }).collect()
    }
}

/// The merge without which no miner of a waiting stage gets the newest weights, if nobody at all is heard of who has them. Who
/// merged a part of it serves that while it has its place; with the place it lets go of it. Where miners lack different ones
/// it is the newest: whoever lacks an older one gets the state from the others.
fn lost(now: Instant, state: &RunState, book: &Book, index: StageIndex, stage: &Stage) -> Option<Loss> {
    let newest = |held: WeightsRecord| held.stage == index && held.version == stage.version;
    let eviction = state.spec().timing.eviction.duration();
    let is_gone = |peer: &PeerId| !book.is_there(now, *peer, eviction);
    let held = book.records().any(|(peer, record)| record.weights.is_some_and(newest) && !is_gone(&peer));
    if held || !matches!(stage.phase, Phase::Waiting) {
        return None;
    }
    let lacks = state.replicas(index).map(|peer| {
        let lacks = book.record(peer).and_then(|record| record.lacks);
        lacks.filter(|lacks| lacks.stage == index).map(|lacks| lacks.epoch)
    });
    // All of them: one that lacks nothing is still on its way.
    let epoch = lacks.collect::<Option<Vec<Epoch>>>()?.into_iter().max()?;
    let plan = stage.closed_epoch(epoch).map(|closed| &closed.plan);
    // Of a merge so old that its owners are not remembered only the mirror could have a copy.
    let serves = |owner: &PeerId| !is_gone(owner) && state.replicas(index).any(|replica| replica == *owner);
    let served = plan.is_some_and(|plan| plan.owners.iter().all(|owners| owners.iter().any(serves)));
    Some(Loss { epoch, served })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{Hash, LogIndex};
    use crate::orchestrator::tests::{apply, record};
    use crate::run_state::{Closed, Plan, Training};
    use crate::samples::Deal;
    use crate::spec::{Candidate, OrchestratorSpec, RunSpec};
    use crate::wire::message::{EvictReason, LackRecord, PeerRecord};

    const STAGE: StageIndex = StageIndex(0);
    const MINERS: [PeerId; 2] = [PeerId([1; 32]), PeerId([2; 32])];
    /// Who alone has merged a part of it, and is not heard of.
    const OWNER: PeerId = PeerId([3; 32]);
    const BASE: Hash = Hash([7; 32]);

    /// Two miners of a stage that has merged epoch 3 with a third one.
    fn merged() -> RunState {
        let candidates = vec![Candidate { peer: PeerId([255; 32]), priority: 0 }];
        let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
        spec.pipeline.stages = 1;
        let mut state = RunState::new(Arc::new(spec), &[10]);
        for peer in [MINERS[0], MINERS[1], OWNER] {
            apply(&mut state, Decision::Admit { peer, stage: STAGE });
        }
        let deal = Deal::new(Hash::default(), STAGE, Epoch(3), 36..48, &[(MINERS[0], 1)]);
        let training =
            Training { epoch: Epoch(3), base: BASE, opened: LogIndex(0), deal, attempt: 0, cut_off: false };
        let plan = Plan {
            attempt: 0,
            seed: Hash::default(),
            submitters: Vec::new(),
            owners: vec![MINERS.to_vec(), vec![OWNER]],
        };
        state.stages_mut()[0].version = Epoch(4);
        state.stages_mut()[0].closed.push_back(Closed { training, plan, partitions: vec![Hash([9; 32])] });
        state
    }

    fn heard(weights: [u32; 2], lacks: [Option<u32>; 2]) -> Book {
        let mut book = Book::default();
        for (peer, (version, lacks)) in MINERS.into_iter().zip(weights.into_iter().zip(lacks)) {
            let weights = Some(WeightsRecord { stage: STAGE, version: Epoch(version), hash: BASE });
            let lacks = lacks.map(|epoch| LackRecord { stage: STAGE, epoch: Epoch(epoch) });
            let record = PeerRecord { weights, lacks, ..record() };
            book.insert(Instant::from_nanos(1), peer, Arc::new(record)).expect("a valid record");
        }
        book
    }

    /// The book of [`heard`], in which the third miner lacks the merge too; it is heard or not.
    fn with_owner(mut book: Book, is_heard: bool) -> Book {
        let lacks = Some(LackRecord { stage: STAGE, epoch: Epoch(3) });
        let record = PeerRecord { lacks, ..record() };
        book.insert(Instant::from_nanos(1), OWNER, Arc::new(record)).expect("a valid record");
        if is_heard {
            return book;
        }
        let later = Instant::from_nanos(1) + RunSpec::default().timing.eviction.duration() * 2;
        for miner in MINERS {
            let record = book.record(miner).expect("a record").clone();
            let record = PeerRecord { sequence: record.sequence + 1, ..record };
            book.insert(later, miner, Arc::new(record)).expect("a valid record");
        }
        book
    }

    #[test]
    fn a_merge_that_everybody_lacks_is_passed_over_after_a_while() {
        for (is_heard, silences) in [(false, LOST_SILENCES), (true, SLOW_SILENCES)] {
            let mut state = merged();
            let book = with_owner(heard([3, 3], [Some(3), Some(3)]), is_heard);
            let mut losses = Losses::default();
            let eviction = state.spec().timing.eviction.duration();
            let start = Instant::from_nanos(1) + eviction * if is_heard { 0 } else { 2 };
            losses.observe(start, &state, &book);
            let later = start + eviction * silences;
            assert_eq!(losses.decisions(start + eviction * (silences - 1), &state, &book), []);
            let undo = Decision::Undo { stage: STAGE, epoch: Epoch(3) };
            assert_eq!(losses.decisions(later, &state, &book), std::slice::from_ref(&undo));
            assert_eq!(apply(&mut state, undo.clone()).len(), 1);
            let stage = &state.stages()[0];
            assert_eq!((stage.version, stage.merge_of(Epoch(3))), (Epoch(4), Some((BASE, [].as_slice()))));
            assert_eq!(apply(&mut state, undo), [], "once");
        }
    }

    #[test]
    fn nothing_is_passed_over_while_somebody_has_it_or_is_still_looking() {
        let mut state = merged();
        let of = |state: &RunState, book: &Book| {
            lost(Instant::from_nanos(1), state, book, STAGE, &state.stages()[0])
        };
        let loss = |served| Some(Loss { epoch: Epoch(3), served });
        let all = with_owner(heard([3, 3], [Some(3), Some(3)]), true);
        assert_eq!(of(&state, &all), loss(true), "its owner is there");
        let newest = with_owner(heard([4, 3], [Some(3), Some(3)]), true);
        assert_eq!(of(&state, &newest), None, "one has the newest weights");
        let looking = with_owner(heard([3, 3], [Some(3), None]), true);
        assert_eq!(of(&state, &looking), None, "one is still looking");
        let older = with_owner(heard([3, 2], [Some(3), Some(2)]), true);
        assert_eq!(of(&state, &older), loss(true), "what the other lacks comes along");
        apply(&mut state, Decision::Evict { peer: OWNER, reason: EvictReason::Left, evidence: None });
        assert_eq!(of(&state, &all), loss(false), "its owner is there, but has no place any more");
    }
}
