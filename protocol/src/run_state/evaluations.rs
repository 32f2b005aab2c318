//! Merges whose contributions validators evaluate, where scores are by the loss.
//!
//! ```text
//! MergeOutcome ─▶ open, evaluators drawn ─▶ Evaluate, Evaluate, … ─▶ rated, one epoch after another
//!                                      └─ EVALUATION_EPOCHS later ─▶ rated by what was heard
//! ```

use super::{Closed, RunState, StateEvent};
use crate::gauntlet::draw::Draw;
use crate::gauntlet::evaluated_share;
use crate::gauntlet::evaluation::{Evaluated, Evaluating, Evaluation};
use crate::id::{PeerId, RunId, StageIndex};
use crate::limits::EVALUATION_EPOCHS;
use crate::spec::ScoredBy;
use crate::validation::DismissReason;

impl RunState {
    /// Merges whose evaluations have not all come, oldest first.
    pub fn evaluating(&self) -> impl DoubleEndedIterator<Item = &Evaluating> {
        self.checks.evaluating.iter()
    }

    /// Whether the log waits for this evaluation.
    #[must_use]
    pub fn awaits(&self, evaluation: &Evaluation) -> bool {
        self.evaluating().any(|evaluating| evaluating.awaits(evaluation))
    }

    /// Has a merge that closed evaluated, if that is how this run scores and it is drawn.
    pub(super) fn have_evaluated(&mut self, closed: &Closed) {
        if self.spec.scores.by != ScoredBy::Loss {
            return;
        }
        let submitters: Vec<PeerId> =
            closed.plan.submitters.iter().map(|submission| submission.peer).collect();
        let (training, plan) = (&closed.training, closed.plan.seed);
        let miners = u32::try_from(submitters.len()).unwrap_or(u32::MAX);
        if !Draw::new(plan).is_evaluated(evaluated_share(&self.spec, miners)) {
            return;
        }
        let validators = self.checks.validators.iter().copied();
        let spec = &self.spec.scores;
        let evaluating = Evaluating::draw(spec, training.epoch, training.base, plan, submitters, validators);
        self.checks.evaluating.push_back(evaluating);
    }

    pub(super) fn evaluate(&mut self, run: RunId, evaluation: &Evaluation) -> Option<Vec<StateEvent>> {
        let mut open = self.checks.evaluating.iter_mut();
        let evaluating = open.find(|evaluating| evaluating.awaits(evaluation))?;
        if !evaluation.verifies(run) {
            return None;
        }
        evaluating.take(evaluation);
        Some(vec![StateEvent::Evaluated(evaluation.epoch, evaluation.evaluator)])
    }

    /// Rates those who contributed to merges of which all evaluations have come, or can come no more. One epoch after another,
    /// since what is known of a miner follows from the order.
    pub(super) fn rate(&mut self) -> Vec<StateEvent> {
        let version = self.stage(StageIndex(0)).map(|stage| stage.version).unwrap_or_default();
        let finished = self.finished;
        let is_due = |evaluating: &mut Evaluating| {
            let late = evaluating.epoch.0.saturating_add(EVALUATION_EPOCHS) < version.0;
            finished || late || evaluating.awaited().next().is_none()
        };
        let mut events = Vec::new();
        while let Some(evaluating) = self.checks.evaluating.pop_front_if(is_due) {
            let Evaluated { found, wrong } = evaluating.evaluated(&self.spec.validation);
            self.scores.evaluated(&found);
            events.push(StateEvent::Rated(evaluating.epoch));
            for validator in wrong {
                events.extend(self.dismiss(validator, DismissReason::WrongVerdict).into_iter().flatten());
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::gauntlet::evaluation::{Measured, Said};
    use crate::id::{Epoch, Hash, Identity, LogIndex};
    use crate::spec::{Candidate, OrchestratorSpec, RunSpec, ScoresSpec, TrainingMode};
    use crate::wire::message::{Decision, Entry, Submission};

    const MINERS: [PeerId; 2] = [PeerId([1; 32]), PeerId([2; 32])];
    const EPOCHS: u32 = 20;

    fn validators() -> [Identity; 4] {
        [11, 12, 13, 14].map(|secret| Identity::from_secret([secret; 32]))
    }

    /// A run of one stage with its validators and miners.
    fn run(by: ScoredBy) -> RunState {
        let mut spec = RunSpec {
            orchestrator: OrchestratorSpec { candidates: vec![Candidate { peer: MINERS[0], priority: 0 }] },
            scores: ScoresSpec { by, evaluation_cost: 10.0, ..ScoresSpec::default() },
            ..RunSpec::default()
        };
        (spec.pipeline.stages, spec.training.mode, spec.training.epochs) = (1, TrainingMode::Local, EPOCHS);
        let mut state = RunState::new(Arc::new(spec), &[1000]);
        for peer in validators().map(|identity| identity.peer()) {
            apply(&mut state, Decision::Enlist { peer });
        }
        for peer in MINERS {
            apply(&mut state, Decision::Admit { peer, stage: StageIndex(0) });
        }
        state
    }

    fn apply(state: &mut RunState, decision: Decision) -> Vec<StateEvent> {
        let index = LogIndex(state.applied());
        state.apply(index, Hash::of(&index.0.to_le_bytes()), Some(&Entry { proposer: MINERS[0], decision }))
    }

    /// Merges an epoch; what that changed.
    fn merge(state: &mut RunState, epoch: u32) -> Vec<StateEvent> {
        let (stage, epoch, attempt) = (StageIndex(0), Epoch(epoch), 0);
        let members = MINERS.map(|peer| (peer, 1)).to_vec();
        apply(state, Decision::OpenEpoch { stage, epoch, base: Hash([9; 32]), members });
        let submission = |peer| Submission {
            peer,
            manifest: Hash::default(),
            samples: 32,
            loss_micro: None,
            moments_after: None,
        };
        let submitters = MINERS.map(submission).to_vec();
        apply(state, Decision::MergePlan { stage, epoch, attempt, submitters });
        let partitions = vec![Hash::default(); state.stages()[0].partitions];
        apply(state, Decision::MergeOutcome { stage, epoch, attempt, partitions, outliers: Vec::new() })
    }

    /// What those who are asked say of the merge of `epoch`, each that the miners improve the loss by these shares, in thousandths.
    fn evaluations(state: &RunState, epoch: u32, random: [i64; 2]) -> Vec<Evaluation> {
        let evaluating = state.evaluating().find(|open| open.epoch == Epoch(epoch)).expect("it is open");
        assert_eq!(evaluating.drawn, MINERS);
        let said = |share: i64| {
            let random = share * 1_000_000;
            Said::Measured(Measured { own: 2 * random, own_error: 1000, random, random_error: 1000 })
        };
        let said: Vec<_> = MINERS.into_iter().zip(random.map(said)).collect();
        let by = |asked| {
            let signer = validators().into_iter().find(|signer| signer.peer() == asked).expect("a validator");
            Evaluation::sign(&signer, state.spec().run_id(), Epoch(epoch), evaluating.plan, said.clone())
        };
        evaluating.awaited().map(by).collect()
    }

    fn scores(state: &RunState) -> BTreeMap<PeerId, u64> {
        let rows = state.scores().table(&state.spec().scores, &state.versions());
        rows.into_iter().map(|row| (row.peer, row.score_micro)).collect()
    }

    #[test]
    fn a_merge_is_rated_with_its_last_evaluation_and_who_improves_the_loss_comes_to_a_score() {
        let mut state = run(ScoredBy::Loss);
        for epoch in 0..EPOCHS {
            merge(&mut state, epoch);
            let evaluations = evaluations(&state, epoch, [20, -5]);
            assert_eq!(evaluations.len(), 3, "of four validators");
            for (at, evaluation) in evaluations.into_iter().enumerate() {
                let mut expected = vec![StateEvent::Evaluated(Epoch(epoch), evaluation.evaluator)];
                expected.extend((at == 2).then_some(StateEvent::Rated(Epoch(epoch))));
                assert_eq!(apply(&mut state, Decision::Evaluate(evaluation)), expected);
            }
            assert_eq!(state.evaluating().count(), 0);
        }
        let scores = scores(&state);
        assert!(scores[&MINERS[0]] > 5_000_000, "{scores:?}");
        assert_eq!(scores[&MINERS[1]], 0, "as many samples, and harm");
        let bytes = state.to_bytes();
        assert_eq!(state.read(&bytes).expect("it is one").to_bytes(), bytes);
    }

    #[test]
    fn evaluations_that_nobody_waits_for_and_forged_ones_are_void() {
        let mut state = run(ScoredBy::Loss);
        merge(&mut state, 0);
        let right = evaluations(&state, 0, [1, 1]).remove(0);
        let asked: Vec<PeerId> = state.evaluating().flat_map(|open| open.awaited()).collect();
        let unasked = validators().into_iter().find(|other| !asked.contains(&other.peer())).expect("one");
        let (said, plan, id) = (right.said.clone(), right.plan, state.spec().run_id());
        let forged = Evaluation { evaluator: asked[1], ..right.clone() };
        let turned =
            Evaluation { said: said.iter().map(|(peer, _)| (*peer, Said::Copy)).collect(), ..right.clone() };
        let late = Evaluation { epoch: Epoch(1), ..right.clone() };
        let unasked = Evaluation::sign(&unasked, id, Epoch(0), plan, said);
        for void in [forged, turned, late, unasked] {
            assert_eq!(apply(&mut state, Decision::Evaluate(void.clone())), [], "{void:?}");
        }
        assert_eq!(apply(&mut state, Decision::Evaluate(right.clone())).len(), 1);
        assert_eq!(apply(&mut state, Decision::Evaluate(right)), [], "said twice");
    }

    #[test]
    fn merges_are_rated_in_order_and_none_waits_for_ever() {
        let mut state = run(ScoredBy::Loss);
        let rated = |events: Vec<StateEvent>| {
            let of = |event| if let StateEvent::Rated(epoch) = event { Some(epoch.0) } else { None };
            events.into_iter().filter_map(of).collect::<Vec<_>>()
        };
        merge(&mut state, 0);
        let first = evaluations(&state, 0, [1, 1]);
        merge(&mut state, 1);
        for evaluation in evaluations(&state, 1, [1, 1]) {
            assert_eq!(rated(apply(&mut state, Decision::Evaluate(evaluation))), [] as [u32; 0]);
        }
        // Two have not answered: one is replaced, and then gone with all who could replace it.
        let [answered, silent @ ..] = &first[..] else { panic!("three are asked") };
        apply(&mut state, Decision::Evaluate(answered.clone()));
        let silent: Vec<PeerId> = silent.iter().map(|evaluation| evaluation.evaluator).collect();
        let reason = DismissReason::Silent;
        assert_eq!(
            rated(apply(&mut state, Decision::Dismiss { peer: silent[0], reason, evidence: None })),
            [] as [u32; 0]
        );
        assert_eq!(state.evaluating().next().map(|open| open.awaited().count()), Some(2));
        assert_eq!(
            rated(apply(&mut state, Decision::Dismiss { peer: silent[1], reason, evidence: None })),
            [] as [u32; 0]
        );
        let others: Vec<PeerId> = state.evaluating().flat_map(|open| open.awaited()).collect();
        let [other] = others[..] else { panic!("one is left: {others:?}") };
        assert_eq!(
            rated(apply(&mut state, Decision::Dismiss { peer: other, reason, evidence: None })),
            [0, 1]
        );

        // Somebody validates again, and never answers.
        apply(&mut state, Decision::Enlist { peer: other });
        for epoch in 2..2 + EVALUATION_EPOCHS {
            assert_eq!(rated(merge(&mut state, epoch)), [] as [u32; 0]);
        }
        assert_eq!(rated(merge(&mut state, 2 + EVALUATION_EPOCHS)), [2]);
    }

    #[test]
    fn nothing_is_evaluated_where_scores_are_of_samples_and_without_validators_all_is_unseen() {
        let mut state = run(ScoredBy::Samples);
        assert_eq!(merge(&mut state, 0).len(), 1);
        assert_eq!(state.evaluating().count(), 0);
        assert_eq!(scores(&state), MINERS.map(|peer| (peer, 32_000_000)).into());

        let mut state = run(ScoredBy::Loss);
        for peer in validators().map(|identity| identity.peer()) {
            apply(&mut state, Decision::Dismiss { peer, reason: DismissReason::Left, evidence: None });
        }
        assert_eq!(merge(&mut state, 0).last(), Some(&StateEvent::Rated(Epoch(0))));
        assert_eq!(scores(&state), MINERS.map(|peer| (peer, 0)).into());
    }
}
