//! Members that are dealt samples and hand in nothing.
//!
//! An epoch waits for such a member until its deadlines, and every stage with it. The first time may be the network's fault, so
//! it has no effect. Who does it again right after is left out of one epoch, and of twice as many each further time; whatever
//! it hands in makes that good. It keeps its place, its weights and its part in merges: that nothing came of it is no proof that
//! it cheats.

use std::collections::BTreeMap;

use crate::id::{Epoch, PeerId, StageIndex};
use crate::run_state::{Closed, RunState};

/// Epochs that a member is left out of at most.
const LEFT_OUT_MAX: u32 = 32;

/// Who handed in nothing, how often in a row, and when last.
#[derive(Debug, Default)]
pub(super) struct Lapses {
    /// The version of each stage up to which its epochs are counted.
    counted: BTreeMap<StageIndex, Epoch>,
    by: BTreeMap<(StageIndex, PeerId), Lapse>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lapse {
    times: u32,
    last: Epoch,
}

impl Lapse {
    /// The first epoch that it may take part in again.
    fn until(self) -> u32 {
        let left_out =
            self.times.checked_sub(2).map_or(0, |more| 1_u32.checked_shl(more).unwrap_or(u32::MAX));
        self.last.0.saturating_add(1).saturating_add(left_out.min(LEFT_OUT_MAX))
    }
}

impl Lapses {
    /// Counts the epochs that were merged since it was last called. Those that nobody handed in anything for are not counted.
    pub(super) fn observe(&mut self, state: &RunState) {
        for (index, stage) in state.spec().stages().zip(state.stages()) {
            let counted = self.counted.insert(index, stage.version).unwrap_or_default();
            for closed in stage.closed.iter().filter(|closed| closed.training.epoch >= counted) {
                self.count(index, closed);
            }
        }
        // Who was away for longer than anybody is left out begins anew.
        self.by.retain(|(stage, _), lapse| {
            let version = state.stage(*stage).map_or(0, |stage| stage.version.0);
            version <= lapse.until().saturating_add(LEFT_OUT_MAX)
        });
    }

    fn count(&mut self, stage: StageIndex, closed: &Closed) {
        let Closed { training, plan, .. } = closed;
        for peer in training.deal.members() {
            let submission = plan.submitters.iter().find(|submission| submission.peer == peer);
            // Whoever was released had samples until then; of the others some may have been dealt none.
            let idle = training.deal.is_live(peer) && training.deal.samples_of(peer).is_empty();
            if submission.is_some_and(|submission| submission.samples > 0) {
                self.by.remove(&(stage, peer));
            } else if !idle {
                let lapse = self.by.entry((stage, peer)).or_insert(Lapse { times: 0, last: training.epoch });
                *lapse = Lapse { times: lapse.times.saturating_add(1), last: training.epoch };
            }
        }
    }

    /// Those of `peers` who may take part in an epoch of `stage`; all, if it were nobody.
    pub(super) fn partaking(&self, stage: StageIndex, epoch: Epoch, peers: Vec<PeerId>) -> Vec<PeerId> {
        let partakes =
            |peer: &PeerId| self.by.get(&(stage, *peer)).is_none_or(|lapse| epoch.0 >= lapse.until());
        let partaking: Vec<PeerId> = peers.iter().copied().filter(partakes).collect();
        if partaking.is_empty() { peers } else { partaking }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{Hash, LogIndex};
    use crate::run_state::{Plan, Training};
    use crate::samples::Deal;
    use crate::spec::{Candidate, OrchestratorSpec, RunSpec};
    use crate::wire::message::Submission;

    const STAGE: StageIndex = StageIndex(0);
    const MINERS: [PeerId; 3] = [PeerId([1; 32]), PeerId([2; 32]), PeerId([3; 32])];

    /// A stage that has merged this epoch, which was dealt to all and for which these handed in so many samples.
    fn merged(epoch: u32, submitted: &[(PeerId, u32)], released: Option<PeerId>) -> RunState {
        let candidates = vec![Candidate { peer: PeerId([255; 32]), priority: 0 }];
        let mut spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
        spec.pipeline.stages = 1;
        let mut state = RunState::new(Arc::new(spec), &[10]);
        let members = MINERS.map(|peer| (peer, 1));
        let mut deal = Deal::new(Hash::default(), STAGE, Epoch(epoch), 0..12, &members);
        released.map(|peer| deal.release(peer));
        let base = Hash::default();
        let training =
            Training { epoch: Epoch(epoch), base, opened: LogIndex(0), deal, attempt: 0, cut_off: false };
        let submission = |(peer, samples): &(PeerId, u32)| Submission {
            peer: *peer,
            manifest: base,
            samples: *samples,
            loss_micro: None,
            moments_after: None,
        };
        let submitters = submitted.iter().map(submission).collect();
        let plan = Plan { attempt: 0, seed: base, submitters, owners: Vec::new() };
        let stage = &mut state.stages_mut()[0];
        stage.version = Epoch(epoch + 1);
        stage.closed.push_back(Closed { training, plan, partitions: Vec::new() });
        state
    }

    #[test]
    fn who_hands_in_nothing_again_and_again_is_left_out_of_more_and_more_epochs() {
        let [present, absent, empty] = MINERS;
        let mut lapses = Lapses::default();
        let mut dealt = Vec::new();
        for epoch in 0..20 {
            let partaking = lapses.partaking(STAGE, Epoch(epoch), MINERS.to_vec());
            assert!(partaking.contains(&present));
            if partaking.contains(&absent) {
                assert!(partaking.contains(&empty), "no samples are as good as no submission");
                dealt.push(epoch);
                let state =
                    merged(epoch, &[(present, 12), (empty, 0)], Some(absent).filter(|_| epoch % 2 == 0));
                lapses.observe(&state);
                // A second look counts nothing twice.
                lapses.observe(&state);
            }
        }
        assert_eq!(dealt, [0, 1, 3, 6, 11]);
    }

    #[test]
    fn what_is_handed_in_makes_it_good() {
        let [a, b, c] = MINERS;
        let mut lapses = Lapses::default();
        lapses.observe(&merged(0, &[(a, 6)], None));
        lapses.observe(&merged(1, &[(a, 6)], None));
        assert_eq!(lapses.partaking(STAGE, Epoch(2), MINERS.to_vec()), [a]);
        assert_eq!(lapses.partaking(STAGE, Epoch(2), vec![b, c]), [b, c], "better than nobody");
        assert_eq!(lapses.partaking(StageIndex(1), Epoch(2), vec![a, b]), [a, b], "of another stage");
        lapses.observe(&merged(3, &[(a, 6), (b, 1)], None));
        assert_eq!(lapses.partaking(STAGE, Epoch(4), MINERS.to_vec()), [a, b]);
        lapses.observe(&merged(4, &[(a, 6)], None));
        assert_eq!(lapses.partaking(STAGE, Epoch(5), vec![a, b]), [a, b], "once more is once");
    }
}
