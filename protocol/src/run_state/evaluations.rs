//! Merges whose contributions validators evaluate, where scores are by the loss.
//!
//! ```text
//! MergeOutcome ─▶ open, evaluators drawn ─▶ Evaluate, Evaluate, … ─▶ rated, one epoch after another
//!                                      └─ its blobs are gone ──────▶ rated by what was heard
//! ```

use super::{Closed, RunState, StateEvent};
use crate::gauntlet::evaluation::{Evaluated, Evaluating, Evaluation};
use crate::id::{PeerId, RunId, StageIndex};
use crate::limits::BLOB_EPOCHS_KEPT;
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

    /// Has a merge that closed evaluated, if that is how this run scores.
    pub(super) fn have_evaluated(&mut self, closed: &Closed) {
        if self.spec.scores.by != ScoredBy::Loss {
            return;
        }
        let submitters: Vec<PeerId> =
            closed.plan.submitters.iter().map(|submission| submission.peer).collect();
        let (training, plan) = (&closed.training, closed.plan.seed);
        let validators = self.checks.validators.iter().copied();
        let spec = &self.spec.scores;
        let evaluating =
            Evaluating::draw(spec, training.epoch, training.base, plan, submitters, validators);
        self.checks.evaluating.push_back(evaluating);
    }

    pub(super) fn evaluate(&mut self, run: RunId, evaluation: &Evaluation) -> Option<Vec<StateEvent>> {
        let mut open = self.checks.evaluating.iter_mut();
        let evaluating = open.find(|evaluating| evaluating.awaits(evaluation))?;
        if !evaluation.verifies(run) {
            return None;
        }
        evaluating.take(evaluation);
        let mut events = vec![StateEvent::Evaluated(evaluation.epoch, evaluation.evaluator)];
        events.extend(self.rate());
        Some(events)
    }

    /// Rates those who contributed to merges of which all evaluations have come, or can come no more. One epoch after another,
    /// since what is known of a miner follows from the order.
    pub(super) fn rate(&mut self) -> Vec<StateEvent> {
        let version = self.stage(StageIndex(0)).map(|stage| stage.version).unwrap_or_default();
        let finished = self.finished;
        let is_due = |evaluating: &mut Evaluating| {
            let kept = evaluating.epoch.0.saturating_add(BLOB_EPOCHS_KEPT) >= version.0;
            finished || !kept || evaluating.awaited().next().is_none()
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
