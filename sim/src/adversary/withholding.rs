//! Peer that takes what is pushed to it, says so, and never sends anything on.

use iota_protocol::PeerId;
use iota_protocol::miner::Action;
use iota_protocol::wire::frame::{PushAck, PushHeader};

use super::{Behaviour, Emission, Means};

pub(super) struct Withholding;

impl Behaviour for Withholding {
    fn is_pushed(&mut self, means: &mut Means<'_>, _: PeerId, _: &PushHeader) -> Option<PushAck> {
        Some(PushAck::Accepted(means.spec.pipeline.credits))
    }

    fn acts(&mut self, _: &mut Means<'_>, action: Action) -> Vec<Emission> {
        match action {
            Action::Push { .. } => Vec::new(),
            action => vec![Emission::Act(action)],
        }
    }
}
