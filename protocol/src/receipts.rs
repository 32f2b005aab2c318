//! Receipts: what a miner says it did with each sample, and the root it commits to. [`order`] reads back from them in which
//! order it did, [`received`] has what its neighbours signed.

pub mod order;
pub mod received;

pub use received::{Hop, Received};

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, Hash, PeerId, SampleId, StageIndex};
use crate::limits::RECEIPTS_BYTES_MAX;
use crate::miner::JobDone;
use crate::wire::frame::Direction;
use crate::wire::{DecodeError, decode, encode};

/// One sample's passage through one miner. Every hash names a blob that stays fetchable until the epoch is settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// The sample.
    pub sample: SampleId,
    /// Activation received; none at the head, whose input is the sample itself.
    pub input: Option<Received>,
    /// Activation sent on; none at the tail.
    pub output: Option<Hash>,
    /// Gradient received; none at the tail.
    pub output_gradient: Option<Received>,
    /// Gradient sent back; none at the head.
    pub input_gradient: Option<Hash>,
    /// The sample's loss in millionths of a nat; at the tail only.
    pub loss_micro: Option<i64>,
    /// Inner optimizer steps taken before its forward pass: with the epoch, the weights version it saw.
    pub inner_step: u32,
    /// Inner optimizer steps taken before its gradient was added, after its backward pass or at the tail its loss: which
    /// step the gradient is in. Zero in `synchronous` mode.
    pub gradient_step: u32,
    /// How many gradients the miner had added in this epoch before this one: the place in the sum.
    pub turn: u32,
}

impl Receipt {
    /// The receipt of a sample of which nothing has come or gone yet.
    #[must_use]
    pub const fn new(sample: SampleId) -> Self {
        Self {
            sample,
            input: None,
            output: None,
            output_gradient: None,
            input_gradient: None,
            loss_micro: None,
            inner_step: 0,
            gradient_step: 0,
            turn: 0,
        }
    }

    /// Which way the activation or gradient goes that a job computed, its name, and the one that stands here in its place; nothing
    /// if one of them has none.
    #[must_use]
    pub fn beside(&self, done: &JobDone) -> Option<(Direction, Hash, Hash)> {
        match *done {
            JobDone::Forwarded { output, .. } => Some((Direction::Forward, output, self.output?)),
            JobDone::Finished { input_gradient, .. } => {
                Some((Direction::Backward, input_gradient?, self.input_gradient?))
            }
            _ => None,
        }
    }

    /// What its miner, of `stage`, received in `epoch`, each over its hop.
    pub fn received(&self, stage: StageIndex, epoch: Epoch) -> impl Iterator<Item = (Hop, &Received)> {
        let hop = move |direction| Hop { direction, stage, epoch, sample: self.sample };
        let activation = self.input.iter().map(move |received| (hop(Direction::Forward), received));
        activation
            .chain(self.output_gradient.iter().map(move |received| (hop(Direction::Backward), received)))
    }

    /// What its miner sent, and which way.
    pub fn sent(&self) -> impl Iterator<Item = (Direction, Hash)> {
        let gradient = self.input_gradient.map(|hash| (Direction::Backward, hash));
        self.output.map(|hash| (Direction::Forward, hash)).into_iter().chain(gradient)
    }

    /// Who was sent what a job computed: whoever the other tensor came from.
    #[must_use]
    pub fn sent_to(&self, done: &JobDone) -> Option<PeerId> {
        let other = match done {
            JobDone::Forwarded { .. } => &self.output_gradient,
            JobDone::Finished { .. } => &self.input,
            _ => return None,
        };
        other.as_ref().map(|received| received.from)
    }
}

/// The receipts of one miner and epoch, in sample order, as one blob.
#[must_use]
pub fn encode_receipts(receipts: &[Receipt]) -> Vec<u8> {
    encode(&receipts)
}

/// Reads a receipts blob.
///
/// # Errors
/// [`DecodeError`] if it is none.
pub fn decode_receipts(bytes: &[u8]) -> Result<Vec<Receipt>, DecodeError> {
    decode(bytes, RECEIPTS_BYTES_MAX)
}

/// Merkle root of the receipts (RFC 6962 section 2.1, with BLAKE3): leaf `H(0x00 ‖ receipt)`, node
/// `H(0x01 ‖ left ‖ right)`, split at the largest power of two below the count; the empty list is `H("")`.
#[must_use]
pub fn merkle_root(receipts: &[Receipt]) -> Hash {
    let leaves: Vec<Hash> =
        receipts.iter().map(|receipt| Hash::of_parts(&[&[0], &encode(receipt)])).collect();
    root(&leaves)
}

fn root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => Hash::of(b""),
        [leaf] => *leaf,
        _ => {
            let split = leaves.len().next_power_of_two() / 2;
            let (left, right) = leaves.split_at(split);
            Hash::of_parts(&[&[1], &root(left).0, &root(right).0])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SAMPLES_PER_EPOCH_MAX;

    fn receipt(sample: u64) -> Receipt {
        let gradient = Received {
            from: PeerId([2; 32]),
            hash: Hash::of(b"g"),
            nonce: 1,
            signature: serde_bytes::ByteBuf::from([3; 64]),
        };
        Receipt {
            output: Some(Hash::of(b"o")),
            output_gradient: Some(gradient),
            ..Receipt::new(SampleId(sample))
        }
    }

    #[test]
    fn the_receipts_of_the_largest_epoch_may_be_read() {
        let hash = Hash::of(b"tensor");
        let received = || {
            let signature = serde_bytes::ByteBuf::from([0; 64]);
            Some(Received { from: PeerId([2; 32]), hash, nonce: u64::MAX, signature })
        };
        let largest = Receipt {
            sample: SampleId(u64::MAX),
            input: received(),
            output: Some(hash),
            output_gradient: received(),
            input_gradient: Some(hash),
            loss_micro: Some(i64::MIN),
            inner_step: u32::MAX,
            gradient_step: u32::MAX,
            turn: u32::MAX,
        };
        let all = encode(&largest).len() as u64 * SAMPLES_PER_EPOCH_MAX;
        assert!(all < RECEIPTS_BYTES_MAX as u64, "{all}");
    }

    #[test]
    fn the_root_depends_on_every_receipt_and_on_their_order() {
        for n in 0..9 {
            let receipts: Vec<_> = (0..n).map(receipt).collect();
            let expected = merkle_root(&receipts);
            for i in 0..receipts.len() {
                let mut changed = receipts.clone();
                changed[i].inner_step = 1;
                assert_ne!(merkle_root(&changed), expected);
                changed[i] = Receipt { turn: 1, ..receipts[i].clone() };
                assert_ne!(merkle_root(&changed), expected);
            }
            assert_ne!(merkle_root(&[receipts.as_slice(), &[receipt(n)]].concat()), expected);
            assert_eq!(decode_receipts(&encode_receipts(&receipts)), Ok(receipts));
        }
        assert_ne!(merkle_root(&[receipt(0), receipt(1)]), merkle_root(&[receipt(1), receipt(0)]));
    }
}
