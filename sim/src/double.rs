//! Hosts that count as honest and break one rule each, to show that the checker of that rule notices.

use iota_protocol::Hash;
use iota_protocol::limits::ADDRESSES_MAX;
use iota_protocol::miner::{Action, Job, JobDone};
use iota_protocol::wire::message::{MergeMessage, PeerRecord, Topic};
use iota_protocol::wire::{open_in, seal_in};

use crate::adversary::{Behaviour, Emission, Means};
use crate::host::ALL_VERSIONS;

/// What is broken in a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Double {
    /// It starts with an empty disk, whatever it had decided before.
    LosesItsLog,
    /// It names the weights after a merge wrongly.
    MisnamesWeights,
    /// It reduces partitions to something else.
    MisreducesPartitions,
    /// It counts the first sample of an epoch again instead of the next.
    RepeatsSamples,
    /// It reports other digests than it reduced.
    MisreportsDigests,
    /// It publishes records that break a limit.
    ExceedsRecords,
    /// It lets go of no blob.
    KeepsBlobs,
    /// It never says that it has submitted.
    HidesSubmissions,
    /// Its engine fails to reduce.
    FailsToReduce,
}

impl Double {
    /// The behaviour of such a host.
    #[must_use]
    pub fn behaviour(self) -> Box<dyn Behaviour> {
        Box::new(Broken { double: self, first: None })
    }
}

struct Broken {
    double: Double,
    /// The first sample finished, to be finished again.
    first: Option<iota_protocol::SampleId>,
}

impl Broken {
    fn republish(&self, means: &Means<'_>, topic: Topic, bytes: &[u8]) -> Option<Vec<u8>> {
        let (run, version) = (means.spec.run_id(), means.peer.state().wire_version());
        match (self.double, topic) {
            (Double::ExceedsRecords, Topic::Records | Topic::StageRecords(_)) => {
                let (_, _, mut record) = open_in::<PeerRecord>(ALL_VERSIONS, run, bytes).ok()?;
                record.multiaddrs = vec![String::new(); ADDRESSES_MAX + 1];
                Some(seal_in(version, means.identity, run, &record))
            }
            (Double::MisreportsDigests, Topic::Merge(_)) => {
                let (_, _, mut message) = open_in::<MergeMessage>(ALL_VERSIONS, run, bytes).ok()?;
                if let MergeMessage::Digest(report) = &mut message {
                    report.merged.iter_mut().for_each(|(_, hash)| *hash = Hash::of(&hash.0));
                }
                Some(seal_in(version, means.identity, run, &message))
            }
            _ => None,
        }
    }

    fn hides(&self, means: &Means<'_>, topic: Topic, bytes: &[u8]) -> bool {
        let manifest = |(_, _, message)| matches!(message, MergeMessage::Manifest(_));
        self.double == Double::HidesSubmissions
            && matches!(topic, Topic::Merge(_))
            && open_in::<MergeMessage>(ALL_VERSIONS, means.spec.run_id(), bytes).is_ok_and(manifest)
    }
}

impl Behaviour for Broken {
    fn computed(&mut self, _means: &mut Means<'_>, job: &Job, done: JobDone) -> JobDone {
        match (self.double, job, done) {
            (Double::MisnamesWeights, Job::Apply { .. }, JobDone::Weights { stage, version, hash }) => {
                JobDone::Weights { stage, version, hash: Hash::of(&hash.0) }
            }
            (Double::MisreducesPartitions, _, JobDone::Reduced { stage, partition, merged, outliers }) => {
                let merged = merged.map(|hash| Hash::of(&hash.0));
                JobDone::Reduced { stage, partition, merged, outliers }
            }
            (Double::FailsToReduce, Job::Reduce { .. }, _) => JobDone::Failed("a broken engine".to_owned()),
            (Double::RepeatsSamples, _, JobDone::Finished { epoch, sample, input_gradient, loss_micro }) => {
                let sample = *self.first.get_or_insert(sample);
                JobDone::Finished { epoch, sample, input_gradient, loss_micro }
            }
            (_, _, done) => done,
        }
    }

    fn acts(&mut self, means: &mut Means<'_>, action: Action) -> Vec<Emission> {
        match action {
            Action::Release { .. } if self.double == Double::KeepsBlobs => Vec::new(),
            Action::Publish { topic, bytes } if self.hides(means, topic, &bytes) => Vec::new(),
            Action::Publish { topic, bytes } => {
                let bytes = self.republish(means, topic, &bytes).unwrap_or(bytes);
                vec![Emission::Act(Action::Publish { topic, bytes })]
            }
            action => vec![Emission::Act(action)],
        }
    }
}
