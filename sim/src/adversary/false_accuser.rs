//! Validator that says of all honest work it is asked about that it differs, to take its miner's place. Of what it is drawn to
//! read it says so unasked.

use std::collections::BTreeSet;

use iota_protocol::miner::Action;
use iota_protocol::validation::{Fault, Finding, Subject};

use super::forgery::{judged, number_after, own_verdict};
use super::{Behaviour, Emission, Means};

/// Verdicts of an accuser's own.
#[derive(Default)]
pub(super) struct Accusations {
    sequence: u64,
    /// Whom it has accused though nobody asked.
    unasked: BTreeSet<Subject>,
}

impl Accusations {
    /// A verdict in place of the machine's own, if that approves.
    pub(super) fn in_place(&mut self, means: &Means<'_>, action: Action) -> Vec<Emission> {
        match own_verdict(means, &action) {
            Some(announce) if announce.verdict.finding == Finding::Matches => {
                vec![self.accuse(means, announce.verdict.subject, Fault::Contribution)]
            }
            _ => vec![Emission::Act(action)],
        }
    }

    /// Verdicts on the submissions of these, of those that it is drawn to read.
    pub(super) fn unasked(
        &mut self,
        means: &Means<'_>,
        is_victim: impl Fn(&Subject) -> bool,
    ) -> Vec<Emission> {
        let (me, state) = (means.identity.peer(), means.peer.state());
        let mut accused = Vec::new();
        for (index, stage) in state.spec().stages().zip(state.stages()) {
            for (training, plan) in stage.merges() {
                if state.reads(me, index, training.epoch) {
                    let subject = |submission| Subject::of(index, training.epoch, submission);
                    accused.extend(plan.submitters.iter().map(subject).filter(&is_victim));
                }
            }
        }
        accused.retain(|subject| self.unasked.insert(*subject));
        accused.into_iter().map(|subject| self.accuse(means, subject, Fault::Receipts)).collect()
    }

    fn accuse(&mut self, means: &Means<'_>, subject: Subject, fault: Fault) -> Emission {
        self.sequence = number_after(means, self.sequence);
        judged(means, self.sequence, subject, Finding::Differs(fault))
    }
}

#[derive(Default)]
pub(super) struct FalseAccuser(Accusations);

impl Behaviour for FalseAccuser {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        self.0.in_place(means, action)
    }

    fn wakes(&mut self, means: &mut Means<'_>) -> Vec<Emission> {
        self.0.unasked(means, |_| true)
    }
}
