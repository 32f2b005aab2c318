//! A fault to try on a swarm of one's own: a miner that contributes, merges or sends on the negative of what it computed.

use bytes::Bytes;
use iota_protocol::miner::outbox::tag;
use iota_protocol::miner::{Job, JobDone};
use iota_protocol::spec::WireDtype;
use iota_protocol::wire::frame::PushHeader;
use iota_protocol::{Epoch, Hash, Identity, StageIndex};
use iota_worker::Blobs;

use super::vault::Vault;

/// What a poisoned miner spoils.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Poison {
    /// Its contributions.
    Contribution,
    /// The partitions that it merges as their owner.
    Merge,
    /// The activations and gradients that it sends on, while it commits to those that it computed.
    Push,
}

impl Poison {
    /// What the job gave with its sign flipped, in its place, if it is what this poison spoils; anything else as it is.
    pub(super) fn spoil(self, job: &Job, done: JobDone, codec: WireDtype, blobs: &mut dyn Blobs) -> JobDone {
        match (self, job, done) {
            (
                Self::Contribution,
                Job::Contribute { stage, .. },
                JobDone::Contributed { epoch, partitions, moments, moments_after },
            ) => flipped(&partitions, *stage, epoch, codec, blobs).map_or_else(
                || JobDone::Failed("poison a contribution that is not here".to_owned()),
                |partitions| JobDone::Contributed { epoch, partitions, moments, moments_after },
            ),
            (
                Self::Merge,
                Job::Reduce { epoch, .. },
                JobDone::Reduced { stage, partition, merged: Ok(hash), outliers },
            ) => flipped(&[hash], stage, *epoch, codec, blobs)
                .and_then(|hashes| hashes.first().copied())
                .map_or_else(
                    || JobDone::Failed("poison a merged partition that is not here".to_owned()),
                    |hash| JobDone::Reduced { stage, partition, merged: Ok(hash), outliers },
                ),
            (_, _, done) => done,
        }
    }
}

/// The negatives of blobs, published for the epoch; nothing if one of them is not here.
fn flipped(
    hashes: &[Hash],
    stage: StageIndex,
    epoch: Epoch,
    codec: WireDtype,
    blobs: &mut dyn Blobs,
) -> Option<Vec<Hash>> {
    let bytes = hashes.iter().map(|hash| blobs.blob(*hash).map(|bytes| negative(&bytes, codec)));
    let bytes = bytes.collect::<Option<Vec<Bytes>>>()?;
    blobs.publish(bytes, &tag(stage, epoch)).ok()
}

/// The push of the negative of what was to be sent, signed as well; as it is, if that is not here.
pub(super) async fn other_push(vault: &Vault, identity: &Identity, header: PushHeader) -> PushHeader {
    let Some(computed) = vault.get(header.hash).await else { return header };
    let other = negative(&computed, header.dtype);
    let hash = Hash::of(&other);
    vault.keep(hash, other, &tag(header.stage, header.epoch)).await;
    PushHeader { hash, ..header }.signed(identity)
}

/// Numbers with their signs flipped: the highest bit of the last byte of each.
fn negative(bytes: &[u8], codec: WireDtype) -> Bytes {
    let width = match codec {
        WireDtype::F32 => 4,
        WireDtype::Bf16 => 2,
    };
    let mut flipped = bytes.to_vec();
    for number in flipped.chunks_exact_mut(width) {
        if let Some(last) = number.last_mut() {
            *last ^= 0x80;
        }
    }
    Bytes::from(flipped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_flipped_in_both_encodings() {
        let numbers = [1.5_f32, -2.0, 0.25];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let back: Vec<f32> = negative(&bytes, WireDtype::F32)
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect();
        assert_eq!(back, [-1.5, 2.0, -0.25]);
        // The upper halves of the same numbers.
        let half: Vec<u8> =
            numbers.iter().flat_map(|number| number.to_le_bytes().into_iter().skip(2)).collect();
        let back: Vec<f32> = negative(&half, WireDtype::Bf16)
            .chunks_exact(2)
            .map(|bytes| f32::from_le_bytes([0, 0, bytes[0], bytes[1]]))
            .collect();
        assert_eq!(back, [-1.5, 2.0, -0.25]);
    }
}
