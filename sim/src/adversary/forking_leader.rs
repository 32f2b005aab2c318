//! Peer that, as leader, sends other entries to every second candidate, and votes for what each of them decides.
//!
//! Consensus tolerates crashes, not lies: a majority that decides holds the leader itself. With three candidates each
//! of the other two decides alone with the liar, and the liar's two votes make two certificates.

use std::collections::BTreeSet;

use iota_protocol::limits::RPC_BYTES_MAX;
use iota_protocol::log::certificate::{chain_hash, chain_start};
use iota_protocol::log::{LogBytes, Vote};
use iota_protocol::miner::Action;
use iota_protocol::wire::{decode, encode};
use iota_protocol::{Hash, LogIndex, PeerId};
use omnipaxos::messages::Message;
use omnipaxos::messages::sequence_paxos::PaxosMsg;

use super::malicious_minority::{own_bundle, send, vote};
use super::{Behaviour, Emission, Means};

#[derive(Default)]
pub(super) struct ForkingLeader {
    /// Entries in whose place the deceived were sent others.
    forked: BTreeSet<Hash>,
}

/// What is sent in place of an entry: one that everybody skips.
fn other(entry: Hash) -> Vec<u8> {
    [b"skipped ".as_slice(), &entry.0].concat()
}

impl ForkingLeader {
    /// The same message with other entries.
    fn fork(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let Ok(Message::<LogBytes>::SequencePaxos(mut message)) = decode(bytes, RPC_BYTES_MAX) else {
            return None;
        };
        let entries = match &mut message.msg {
            PaxosMsg::AcceptDecide(accept) => &mut accept.entries,
            PaxosMsg::AcceptSync(sync) => &mut sync.log_sync.suffix,
            _ => return None,
        };
        for entry in entries {
            let honest = Hash::of(&entry.0);
            self.forked.insert(honest);
            *entry = LogBytes(other(honest).into());
        }
        Some(encode(&Message::SequencePaxos(message)))
    }

    /// A vote for the history that the deceived see.
    fn forked_vote(&self, means: &Means<'_>, honest: &Vote) -> Option<Vote> {
        let LogIndex(last) = honest.index;
        let mut chain = chain_start(means.spec.run_id());
        for index in 0..=usize::try_from(last).ok()? {
            let entry = Hash::of(means.peer.log().entry_bytes(index)?);
            let seen = if self.forked.contains(&entry) { Hash::of(&other(entry)) } else { entry };
            chain = chain_hash(chain, seen);
        }
        vote(means, honest.index, chain)
    }
}

/// Whether a candidate is shown the other history.
fn is_deceived(means: &Means<'_>, peer: PeerId) -> bool {
    means.spec.candidate_index(peer).is_some_and(|index| index % 2 == 1)
}

impl Behaviour for ForkingLeader {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        let Some((id, to, mut bundle)) = own_bundle(&action).filter(|(_, to, _)| is_deceived(means, *to))
        else {
            return vec![Emission::Act(action)];
        };
        for message in &mut bundle.messages {
            if let Some(other) = self.fork(message) {
                *message = other.into();
            }
        }
        bundle.votes = bundle.votes.iter().filter_map(|honest| self.forked_vote(means, honest)).collect();
        send(id, to, bundle)
    }
}
