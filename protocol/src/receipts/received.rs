//! What a neighbour sent, under the neighbour's signature.
//!
//! The connection shows to its receiver who sent a tensor, and to nobody else. The signature that comes with each push shows it to
//! anybody: a miner cannot send on something else than it commits to, nor compute from something else than it was sent.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::id::{Epoch, Hash, Identity, PeerId, RunId, SampleId, StageIndex};
use crate::limits::WIRE_VERSION_FIRST;
use crate::wire::encode;
use crate::wire::envelope::signed_bytes;
use crate::wire::frame::Direction;

/// One hop of a sample, from a stage to its neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// Which way.
    pub direction: Direction,
    /// The receiving stage.
    pub stage: StageIndex,
    /// The epoch.
    pub epoch: Epoch,
    /// The sample.
    pub sample: SampleId,
}

impl Hop {
    /// The stage that sends; none if there is none on that side.
    #[must_use]
    pub fn sender(&self) -> Option<StageIndex> {
        let sender = match self.direction {
            Direction::Forward => self.stage.0.checked_sub(1),
            Direction::Backward => self.stage.0.checked_add(1),
        };
        sender.map(StageIndex)
    }

    /// The bytes that the sender of `hash` signs, in every version of the wire format:
    /// `"iota/v1/push\0" ‖ run id ‖ CBOR [direction, stage, epoch, sample, nonce, hash]`.
    #[must_use]
    pub fn signed_bytes(&self, run: RunId, nonce: u64, hash: Hash) -> Vec<u8> {
        let Self { direction, stage, epoch, sample } = self;
        let statement = encode(&(direction, stage, epoch, sample, nonce, hash));
        signed_bytes(WIRE_VERSION_FIRST, "push", run, &statement)
    }

    /// Signs what is sent. `nonce` is that of the [manifest](crate::wire::message::Manifest) to come.
    #[must_use]
    pub fn sign(&self, identity: &Identity, run: RunId, nonce: u64, hash: Hash) -> ByteBuf {
        ByteBuf::from(identity.sign(&self.signed_bytes(run, nonce, hash)))
    }
}

/// A tensor that was received, and what its sender signed of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Received {
    /// Who sent it.
    pub from: PeerId,
    /// The tensor.
    pub hash: Hash,
    /// Which of the sender's tries at the epoch it is of.
    pub nonce: u64,
    /// ed25519 over [`Hop::signed_bytes`].
    pub signature: ByteBuf,
}

impl Received {
    /// A tensor that stayed within one process, where nobody signs.
    #[must_use]
    pub fn unsigned(hash: Hash) -> Self {
        Self { from: PeerId::default(), hash, nonce: 0, signature: ByteBuf::new() }
    }

    /// Whether its sender has signed that it sent this over this hop.
    #[must_use]
    pub fn verifies(&self, run: RunId, hop: &Hop) -> bool {
        self.from.verifies(&hop.signed_bytes(run, self.nonce, self.hash), &self.signature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: RunId = RunId([7; 32]);
    const HOP: Hop =
        Hop { direction: Direction::Forward, stage: StageIndex(1), epoch: Epoch(2), sample: SampleId(3) };

    #[test]
    fn a_signature_is_of_one_tensor_sender_try_run_and_hop() {
        let sender = Identity::from_secret([1; 32]);
        let hash = Hash::of(b"tensor");
        let signature = HOP.sign(&sender, RUN, 5, hash);
        let received = Received { from: sender.peer(), hash, nonce: 5, signature };
        assert!(received.verifies(RUN, &HOP));
        assert!(!received.verifies(RunId([8; 32]), &HOP));
        for hop in [
            Hop { direction: Direction::Backward, ..HOP },
            Hop { stage: StageIndex(2), ..HOP },
            Hop { epoch: Epoch(3), ..HOP },
            Hop { sample: SampleId(4), ..HOP },
        ] {
            assert!(!received.verifies(RUN, &hop));
        }
        let other = Identity::from_secret([2; 32]).peer();
        for forged in [
            Received { from: other, ..received.clone() },
            Received { hash: Hash::of(b"other"), ..received.clone() },
            Received { nonce: 6, ..received.clone() },
            Received { signature: ByteBuf::new(), ..received },
        ] {
            assert!(!forged.verifies(RUN, &HOP));
        }
    }
}
