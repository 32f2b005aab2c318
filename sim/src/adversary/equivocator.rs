//! Peer that tells one half of the swarm something else than the other: two manifests, and two records, each pair under
//! one message number, so that whoever has one refuses the other as a replay. But each half passes on what it was told, and
//! candidates that hear both have what it takes to evict it, or to dismiss it if it is a validator.

use iota_protocol::Hash;
use iota_protocol::miner::Action;
use iota_protocol::miner::outbox::tag;
use iota_protocol::wire::message::Topic;

use super::forgery::{altered, committed, own_manifest, own_record, signed};
use super::{Behaviour, Emission, Means};

pub(super) struct Equivocator;

fn to_halves(topic: Topic, even: Vec<u8>, odd: Vec<u8>) -> [Emission; 2] {
    [(even, false), (odd, true)].map(|(bytes, odd)| Emission::PublishToHalf { topic, bytes, odd })
}

impl Behaviour for Equivocator {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        if let Some(announce) = own_manifest(means, &action) {
            let mut other = announce.clone();
            let tag = tag(announce.manifest.stage, announce.manifest.epoch);
            for partition in &mut other.manifest.partitions {
                *partition =
                    altered(means, *partition, &tag, |values| values.iter().map(|value| -value).collect());
            }
            let topic = Topic::Merge(announce.manifest.stage);
            let ((_, even), (store, odd)) = (committed(means, announce), committed(means, other));
            return std::iter::once(store).chain(to_halves(topic, even, odd)).collect();
        }
        if let Some((topic, record)) = own_record(means, &action) {
            let mut other = record.clone();
            other.speed_milli = record.speed_milli / 2;
            // Of a validator there is nothing else.
            other.tokens = record.tokens.saturating_add(1);
            other.weights = record.weights.map(|mut weights| {
                weights.hash = Hash::of(b"other weights");
                weights
            });
            return to_halves(topic, signed(means, &record), signed(means, &other)).into();
        }
        vec![Emission::Act(action)]
    }
}
