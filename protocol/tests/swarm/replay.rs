//! What an engine did in an epoch, beside what the receipts of its miner say it did.

use std::collections::BTreeMap;

use iota_protocol::receipts::order::{Step, replay, waiting_max};
use iota_protocol::receipts::{decode_receipts, merkle_root};
use iota_protocol::wire::decode;
use iota_protocol::wire::message::Manifest;
use iota_protocol::{Hash, RunSpec, StageIndex};

/// Something that changes what is contributed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Did {
    Gradient(u64),
    Step(u32),
}

/// What an engine did since its epoch began.
#[derive(Default)]
pub(crate) struct Order {
    /// Inner steps taken.
    pub(crate) steps: u32,
    /// Steps taken before each forward pass.
    forwards: BTreeMap<u64, u32>,
    /// In order.
    did: Vec<Did>,
}

impl Order {
    pub(crate) fn forward(&mut self, sample: u64) {
        self.forwards.insert(sample, self.steps);
    }

    pub(crate) fn gradient(&mut self, sample: u64) {
        self.did.push(Did::Gradient(sample));
    }

    pub(crate) fn step(&mut self, number: u32) {
        self.did.push(Did::Step(number));
        self.steps += 1;
    }

    /// Of blobs that a miner has stored: if a manifest is among them, its receipts give this order back.
    pub(crate) fn check(&self, spec: &RunSpec, blobs: &[(Hash, Vec<u8>)]) {
        let manifest = blobs.iter().find_map(|(_, bytes)| decode::<Manifest>(bytes, bytes.len()).ok());
        let Some(manifest) = manifest else { return };
        let receipts = blobs.iter().find(|(hash, _)| *hash == manifest.receipts).expect("stored together");
        let receipts = decode_receipts(&receipts.1).expect("they are receipts");
        assert_eq!(merkle_root(&receipts), manifest.receipt_root);
        let steps = replay(spec, manifest.stage, &receipts).expect("an honest miner wrote them");
        let mut again = Self::default();
        for step in &steps {
            match *step {
                Step::Forward(index) => again.forward(receipts[index].sample.0),
                Step::Backward(index) => again.gradient(receipts[index].sample.0),
                Step::Loss(index) => {
                    again.forward(receipts[index].sample.0);
                    again.gradient(receipts[index].sample.0);
                }
                Step::InnerStep(number) => again.step(number),
            }
        }
        assert_eq!(again.did, self.did, "gradients are added and steps taken in the same order");
        for (sample, steps) in again.forwards {
            assert_eq!(self.forwards.get(&sample), Some(&steps), "sample {sample} went forward");
        }
        if manifest.stage == StageIndex(0) {
            assert!(waiting_max(&steps) <= usize::from(spec.pipeline.window), "no more wait than did");
        }
    }
}
