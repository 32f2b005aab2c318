//! Validator that approves whatever it is asked about, at once, and replays nothing.

use iota_protocol::miner::Action;
use iota_protocol::validation::{Finding, Subject};

use super::forgery::{judged, number_after};
use super::{Behaviour, Emission, Means};

#[derive(Default)]
pub(super) struct LazyApprover {
    sequence: u64,
}

impl LazyApprover {
    fn approvals(&mut self, means: &Means<'_>) -> Vec<Emission> {
        let (me, state) = (means.identity.peer(), means.peer.state());
        let asked = state.challenges().iter().filter(|challenge| challenge.awaited().any(|peer| peer == me));
        let subjects: Vec<Subject> = asked.map(|challenge| challenge.subject).collect();
        let mut approve = |subject| {
            self.sequence = number_after(means, self.sequence);
            judged(means, self.sequence, subject, Finding::Matches)
        };
        subjects.into_iter().map(&mut approve).collect()
    }
}

impl Behaviour for LazyApprover {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        match action {
            // The first that a check does, and the last.
            Action::Fetch { .. } => self.approvals(means),
            action => vec![Emission::Act(action)],
        }
    }

    fn wakes(&mut self, means: &mut Means<'_>) -> Vec<Emission> {
        self.approvals(means)
    }
}
