//! Miner that computes from gradients of its own making. It claims that its neighbours sent them: under their signatures of what they
//! did send, or under its own, as if it were on the path. Its replays match.

use iota_protocol::miner::outbox::tag;
use iota_protocol::miner::{Action, Job};
use iota_protocol::receipts::{Hop, Receipt, Received, decode_receipts, encode_receipts, merkle_root};
use iota_protocol::wire::frame::Direction;
use iota_protocol::wire::message::{Manifest, ManifestAnnounce};
use iota_protocol::{Epoch, Hash};

use super::forgery::{altered_bytes, announced, keep, own_manifest};
use super::numbers::Form;
use super::{Behaviour, Emission, Means};
use crate::blobs::Blob;
use crate::trainer::Compute;

pub(super) struct Fabricator;

impl Behaviour for Fabricator {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        if let Action::Compute(Job::Backward { epoch, sample, gradient }) = action {
            let gradient = fabricated(means, epoch, gradient);
            return vec![Emission::Act(Action::Compute(Job::Backward { epoch, sample, gradient }))];
        }
        let Some(ManifestAnnounce { sequence, mut manifest }) = own_manifest(means, &action) else {
            return vec![Emission::Act(action)];
        };
        if !claim(means, &mut manifest) {
            return vec![Emission::Act(action)];
        }
        announced(means, ManifestAnnounce { sequence, manifest })
    }
}

/// A gradient in place of the one that was sent: its negative, or whatever is not the same.
fn fabricated(means: &mut Means<'_>, epoch: Epoch, gradient: Hash) -> Hash {
    let (form, real) = (Form::Wire(means.spec.pipeline.activation_dtype), means.compute == Compute::Real);
    let tag = tag(means.stage(), epoch);
    altered_bytes(means, gradient, &tag, |bytes| {
        if !real {
            return Some([bytes, b"fabricated"].concat());
        }
        let values: Vec<f64> = form.read(bytes)?.iter().map(|value| -value).collect();
        Some(form.write(&values))
    })
}

/// Has a manifest commit to receipts that name the fabricated gradients; whether there are any.
fn claim(means: &mut Means<'_>, manifest: &mut Manifest) -> bool {
    let honest = means.store.content(&manifest.receipts).map(decode_receipts);
    let Some(Ok(mut receipts)) = honest else { return false };
    if receipts.iter().all(|receipt| receipt.output_gradient.is_none()) {
        return false;
    }
    receipts.iter_mut().for_each(|receipt| claim_one(means, manifest, receipt));
    manifest.receipt_root = merkle_root(&receipts);
    let (hash, blob) = Blob::of(encode_receipts(&receipts));
    manifest.receipts = keep(means, hash, blob, &tag(manifest.stage, manifest.epoch));
    true
}

fn claim_one(means: &mut Means<'_>, manifest: &Manifest, receipt: &mut Receipt) {
    let Some(received) = &mut receipt.output_gradient else { return };
    received.hash = fabricated(means, manifest.epoch, received.hash);
    if manifest.epoch.0 % 2 == 1 {
        let (direction, stage, epoch) = (Direction::Backward, manifest.stage, manifest.epoch);
        let hop = Hop { direction, stage, epoch, sample: receipt.sample };
        let signature = hop.sign(means.identity, means.spec.run_id(), received.nonce, received.hash);
        *received = Received { from: means.identity.peer(), signature, ..received.clone() };
    }
}
