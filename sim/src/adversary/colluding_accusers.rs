//! Validator that accuses whom its accomplices accuse, so that where two of them are asked they are a quorum. Of all others it
//! says what it finds, and is not contradicted.

use iota_protocol::Hash;
use iota_protocol::miner::Action;

use super::false_accuser::accuses;
use super::forgery::own_verdict;
use super::{Behaviour, Emission, Means};

/// One miner in so many is accused: whom, all accomplices derive from its name.
const VICTIMS: u8 = 3;

pub(super) struct ColludingAccusers;

impl Behaviour for ColludingAccusers {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        let victim = own_verdict(means, &action)
            .is_some_and(|announce| Hash::of(&announce.verdict.subject.peer.0).0[0].is_multiple_of(VICTIMS));
        if victim { accuses(means, action) } else { vec![Emission::Act(action)] }
    }
}
