//! Validator that says of all honest work it is asked about that it differs, to take its miner's place.

use iota_protocol::miner::Action;
use iota_protocol::validation::{Fault, Finding};

use super::forgery::{judged, own_verdict};
use super::{Behaviour, Emission, Means};

pub(super) struct FalseAccuser;

/// A verdict in place of the machine's own, if that approves.
pub(super) fn accuses(means: &Means<'_>, action: Action) -> Vec<Emission> {
    match own_verdict(means, &action) {
        Some(announce) if announce.verdict.finding == Finding::Matches => {
            let finding = Finding::Differs(Fault::Contribution);
            vec![judged(means, announce.sequence, announce.verdict.subject, finding)]
        }
        _ => vec![Emission::Act(action)],
    }
}

impl Behaviour for FalseAccuser {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        accuses(means, action)
    }
}
