//! Peer that, as a candidate, votes for another history than was decided, and sends garbage with every bundle.

use iota_protocol::limits::RPC_BYTES_MAX;
use iota_protocol::log::Vote;
use iota_protocol::log::certificate::vote_bytes;
use iota_protocol::miner::Action;
use iota_protocol::wire::message::{ConsensusBundle, Request};
use iota_protocol::wire::{decode, encode};
use iota_protocol::{Hash, LogIndex, PeerId};

use super::{Behaviour, Emission, Means};

/// Votes for entries that do not exist, in each bundle.
const VOTES_AHEAD: u64 = 16;

pub(super) struct MaliciousMinority;

/// The bundle for another candidate that an action sends, if it does.
pub(super) fn own_bundle(action: &Action) -> Option<(u64, PeerId, ConsensusBundle)> {
    let Action::Request { id, to, bytes } = action else { return None };
    match decode(bytes, RPC_BYTES_MAX) {
        Ok(Request::Consensus(bundle)) => Some((*id, *to, bundle)),
        _ => None,
    }
}

/// A bundle in place of the machine's own.
pub(super) fn send(id: u64, to: PeerId, bundle: ConsensusBundle) -> Vec<Emission> {
    let bytes = encode(&Request::Consensus(bundle));
    vec![Emission::Act(Action::Request { id, to, bytes })]
}

/// A valid signature of this candidate under a history.
pub(super) fn vote(means: &Means<'_>, index: LogIndex, chain: Hash) -> Option<Vote> {
    let candidate = u16::try_from(means.spec.candidate_index(means.identity.peer())?).ok()?;
    let signature = means.identity.sign(&vote_bytes(means.spec.run_id(), index, chain)).to_vec().into();
    Some(Vote { candidate, index, chain, signature })
}

impl Behaviour for MaliciousMinority {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        let Some((id, to, mut bundle)) = own_bundle(&action) else { return vec![Emission::Act(action)] };
        let votes = std::mem::take(&mut bundle.votes).into_iter();
        let other = |vote: &Vote| Hash::of_parts(&[b"another history", &vote.chain.0]);
        bundle.votes = votes.filter_map(|honest| vote(means, honest.index, other(&honest))).collect();
        for _ in 0..VOTES_AHEAD {
            let (index, chain) = (LogIndex(u64::MAX - 1), Hash::of(&means.random.bits().to_le_bytes()));
            bundle.votes.extend(vote(means, index, chain));
        }
        bundle.messages.push(Hash::of(&means.random.bits().to_le_bytes()).0.to_vec().into());
        send(id, to, bundle)
    }
}
