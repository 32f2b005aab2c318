//! Peer that publishes a stream of valid messages, each newer than the last, and of garbage.
//!
//! Its own machine's messages are numbered anew, so that they are not refused as older than its stream.

use iota_protocol::miner::Action;
use iota_protocol::wire::message::{DigestReport, MergeMessage, PeerRecord, Topic};
use iota_protocol::{Epoch, Hash};

use super::forgery::{own_merge_message, own_record, publish, signed};
use super::{Behaviour, Emission, Means};

/// Messages of each kind whenever it wakes, which is at least once per heartbeat.
const AT_ONCE: usize = 5;
/// Bytes of a message of garbage.
const GARBAGE_BYTES: usize = 512;

#[derive(Default)]
pub(super) struct Flooder {
    sequence: u64,
    record: Option<(Topic, PeerRecord)>,
}

impl Flooder {
    fn number(&mut self, least: u64) -> u64 {
        self.sequence = (self.sequence + 1).max(least);
        self.sequence
    }

    fn valid_record(&mut self, means: &Means<'_>) -> Option<Emission> {
        let (topic, mut record) = self.record.clone()?;
        record.sequence = self.number(0);
        Some(publish(topic, signed(means, &record)))
    }

    fn empty_digest(&mut self, means: &Means<'_>) -> Emission {
        let stage = means.stage();
        let version = means.peer.state().stage(stage).map_or(Epoch(0), |stage| stage.version);
        let report = DigestReport {
            sequence: self.number(0),
            stage,
            epoch: version,
            attempt: 0,
            merged: Vec::new(),
            faults: Vec::new(),
        };
        publish(Topic::Merge(stage), signed(means, &MergeMessage::Digest(report)))
    }
}

fn garbage(means: &mut Means<'_>) -> Emission {
    let words = (0..GARBAGE_BYTES / size_of::<Hash>()).map(|_| Hash::of(&means.random.bits().to_le_bytes()));
    let bytes = words.flat_map(|word| word.0).collect();
    let topics: Vec<Topic> = Topic::all(means.spec.stages()).collect();
    publish(topics[means.random.below(topics.len())], bytes)
}

impl Behaviour for Flooder {
    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        if let Some((topic, mut record)) = own_record(means, &action) {
            record.sequence = self.number(record.sequence);
            let bytes = signed(means, &record);
            self.record = Some((topic, record));
            return vec![publish(topic, bytes)];
        }
        if let Some(mut message) = own_merge_message(means, &action) {
            let stage = message.stage();
            let sequence = match &mut message {
                MergeMessage::Manifest(announce) => &mut announce.sequence,
                MergeMessage::Digest(report) => &mut report.sequence,
                MergeMessage::Verdict(announce) => &mut announce.sequence,
                MergeMessage::Evaluation(announce) => &mut announce.sequence,
            };
            *sequence = self.number(*sequence);
            return vec![publish(Topic::Merge(stage), signed(means, &message))];
        }
        vec![Emission::Act(action)]
    }

    fn wakes(&mut self, means: &mut Means<'_>) -> Vec<Emission> {
        let mut stream = Vec::new();
        for _ in 0..AT_ONCE {
            stream.extend(self.valid_record(means));
            stream.push(self.empty_digest(means));
            stream.push(garbage(means));
        }
        stream
    }
}
