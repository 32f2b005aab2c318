//! Peer that claims to be the fastest by far, so that most samples are dealt to it.

use iota_protocol::miner::Action;

use super::forgery::{own_record, signed};
use super::{Behaviour, Emission, Means};

pub(super) struct SpeedLiar;

impl Behaviour for SpeedLiar {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        let Some((topic, mut record)) = own_record(means, &action) else {
            return vec![Emission::Act(action)];
        };
        record.speed_milli = u32::MAX;
        let bytes = signed(means, &record);
        vec![Emission::Act(Action::Publish { topic, bytes })]
    }
}
