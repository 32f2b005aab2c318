//! Validator that accuses whom its accomplices accuse, so that where two of them are asked they are a quorum. Of all others it
//! says what it finds, and is not contradicted.

use iota_protocol::Hash;
use iota_protocol::miner::Action;
use iota_protocol::validation::Subject;

use super::false_accuser::Accusations;
use super::forgery::own_verdict;
use super::{Behaviour, Emission, Means};

/// One miner in so many is accused: whom, all accomplices derive from its name.
const VICTIMS: u8 = 3;

#[derive(Default)]
pub(super) struct ColludingAccusers(Accusations);

fn is_victim(subject: &Subject) -> bool {
    Hash::of(&subject.peer.0).0[0].is_multiple_of(VICTIMS)
}

impl Behaviour for ColludingAccusers {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        let accused =
            own_verdict(means, &action).is_some_and(|announce| is_victim(&announce.verdict.subject));
        if accused { self.0.in_place(means, action) } else { vec![Emission::Act(action)] }
    }

    fn wakes(&mut self, means: &mut Means<'_>) -> Vec<Emission> {
        self.0.unasked(means, is_victim)
    }
}
