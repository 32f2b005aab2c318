//! Peer that, as leader, is deaf to every third peer: it never hears their records and commitments, so it never admits
//! them, never plans a merge with them, and evicts those that have a place as silent.
//!
//! A leader proposes a function of what it hears, so that this is all a censor needs, and nothing it says is invalid.

use iota_protocol::wire::Gossip;
use iota_protocol::{Hash, PeerId};

use super::{Behaviour, Means};

/// One in so many is not heard.
const VICTIMS: u8 = 3;

pub(super) struct Censor;

/// Whether a censor is deaf to `peer`.
fn is_victim(peer: PeerId) -> bool {
    Hash::of(&peer.0).0[0].is_multiple_of(VICTIMS)
}

impl Behaviour for Censor {
    fn hears(&mut self, means: &mut Means<'_>, gossip: &Gossip) -> bool {
        let candidate = |peer| means.spec.candidate_index(peer).is_some();
        gossip.sender().is_none_or(|sender| candidate(sender) || !is_victim(sender))
    }
}
