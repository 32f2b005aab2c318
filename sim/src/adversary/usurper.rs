//! Peer that, as a candidate, claims the highest ballot in every heartbeat, has the others prepare for it, and never leads.

use iota_protocol::PeerId;
use iota_protocol::limits::RPC_BYTES_MAX;
use iota_protocol::log::LogBytes;
use iota_protocol::miner::Action;
use iota_protocol::wire::{decode, encode};
use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message;
use omnipaxos::messages::ballot_leader_election::{BLEMessage, HeartbeatMsg};
use omnipaxos::messages::sequence_paxos::{PaxosMessage, PaxosMsg, Prepare};

use super::malicious_minority::{own_bundle, send};
use super::{Behaviour, Emission, Means};

/// A ballot number that no honest candidate reaches.
const BALLOT_NUMBER: u32 = 1_000_000;

pub(super) struct Usurper;

/// The same heartbeat with the highest ballot; nothing if it is none.
fn claim(bytes: &[u8]) -> Option<Vec<u8>> {
    match decode(bytes, RPC_BYTES_MAX) {
        Ok(Message::<LogBytes>::BLE(BLEMessage { from, to, msg: HeartbeatMsg::Reply(mut reply) })) => {
            reply.ballot.n = BALLOT_NUMBER;
            reply.leader = reply.ballot;
            reply.happy = true;
            let claim = BLEMessage { from, to, msg: HeartbeatMsg::Reply(reply) };
            Some(encode(&Message::<LogBytes>::BLE(claim)))
        }
        _ => None,
    }
}

/// The first message of a leader that has been elected.
fn prepare(means: &Means<'_>, to: PeerId) -> Option<Vec<u8>> {
    let node = |peer| means.spec.candidate_index(peer).map(|index| index as u64 + 1);
    let (from, to) = (node(means.identity.peer())?, node(to)?);
    let n = Ballot { config_id: 1, n: BALLOT_NUMBER, priority: 0, pid: from };
    let prepare = Prepare { n, decided_idx: 0, n_accepted: Ballot::default(), accepted_idx: 0 };
    let message = PaxosMessage { from, to, msg: PaxosMsg::Prepare(prepare) };
    Some(encode(&Message::<LogBytes>::SequencePaxos(message)))
}

impl Behaviour for Usurper {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        let Some((id, to, mut bundle)) = own_bundle(&action) else { return vec![Emission::Act(action)] };
        for message in &mut bundle.messages {
            if let Some(claim) = claim(message) {
                *message = claim.into();
            }
        }
        bundle.messages.extend(prepare(means, to).map(Into::into));
        send(id, to, bundle)
    }
}
