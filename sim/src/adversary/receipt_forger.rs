//! Peer that commits to receipts of work that was never done: invented samples and hashes, a Merkle root that fits no
//! receipts, or more samples than it was dealt. Which of them changes from epoch to epoch.

use iota_protocol::miner::{Action, Job, JobDone};
use iota_protocol::receipts::{Receipt, Received, encode_receipts, merkle_root};
use iota_protocol::samples::sample_set_hash;
use iota_protocol::wire::message::{Manifest, ManifestAnnounce};
use iota_protocol::{Hash, SampleId};

use super::forgery::{announced, own_manifest, pretended};
use super::{Behaviour, Emission, Means};

pub(super) struct ReceiptForger {
    /// What it begins with.
    first: u64,
}

impl ReceiptForger {
    pub(super) fn boxed(seed: u64) -> Box<dyn Behaviour> {
        Box::new(Self { first: seed % 3 })
    }

    fn forge(&self, manifest: &mut Manifest) {
        match (self.first + u64::from(manifest.epoch.0)) % 3 {
            0 => {
                let receipts: Vec<_> = (0..u64::from(manifest.samples)).map(invented).collect();
                let samples: Vec<_> = receipts.iter().map(|receipt| receipt.sample).collect();
                manifest.sample_set = sample_set_hash(&samples);
                manifest.receipt_root = merkle_root(&receipts);
                manifest.receipts = Hash::of(&encode_receipts(&receipts));
            }
            1 => manifest.receipt_root = Hash::of(b"no receipts"),
            _ => manifest.samples = manifest.samples.saturating_mul(2),
        }
    }
}

fn invented(number: u64) -> Receipt {
    let hash = Hash::of_parts(&[b"invented", &number.to_le_bytes()]);
    let received = Some(Received::unsigned(hash));
    Receipt {
        input: received.clone(),
        output: Some(hash),
        output_gradient: received,
        input_gradient: Some(hash),
        ..Receipt::new(SampleId(number))
    }
}

impl Behaviour for ReceiptForger {
    fn shirks(&mut self, means: &mut Means<'_>, job: &Job) -> Option<JobDone> {
        pretended(means, job, |_, len| vec![0.0; len])
    }

    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        let Some(ManifestAnnounce { sequence, mut manifest }) = own_manifest(means, &action) else {
            return vec![Emission::Act(action)];
        };
        self.forge(&mut manifest);
        announced(means, ManifestAnnounce { sequence, manifest })
    }
}
