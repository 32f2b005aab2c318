//! What several adversaries do: change tensors, pretend to have worked, and sign other messages than their machine's.
//!
//! Where engines compute with names only, a changed tensor is another name of the same size.

use iota_model::OptimizerState;
use iota_protocol::merge::partition_range;
use iota_protocol::miner::outbox::tag;
use iota_protocol::miner::{Action, Job, JobDone};
use iota_protocol::spec::TrainingMode;
use iota_protocol::validation::{Finding, Subject, Verdict};
use iota_protocol::wire::message::{ManifestAnnounce, MergeMessage, PeerRecord, Topic, VerdictAnnounce};
use iota_protocol::wire::{Payload, encode, open_in, seal_in};
use iota_protocol::{Epoch, Hash, SampleId, StageIndex};

use super::numbers::Form;
use super::{Emission, Means};
use crate::blobs::Blob;
use crate::costs::{activation_bytes, partition_bytes};
use crate::host::ALL_VERSIONS;
use crate::trainer::Compute;

/// The loss that somebody who computed nothing reports, in millionths of a nat.
const GUESSED_LOSS_MICRO: i64 = 1_000_000;

/// A stored partition, changed and stored under `tag`; its name is a function of what `change` makes of the values.
pub(super) fn altered(
    means: &mut Means<'_>,
    hash: Hash,
    tag: &str,
    change: impl FnOnce(Vec<f64>) -> Vec<f64>,
) -> Hash {
    let form = Form::of(means.compute, means.spec);
    altered_bytes(means, hash, tag, |bytes| Some(form.write(&change(form.read(bytes)?))))
}

/// The same with the bytes of the partition. Nothing leaves another name of the same size.
pub(super) fn altered_bytes(
    means: &mut Means<'_>,
    hash: Hash,
    tag: &str,
    change: impl FnOnce(&[u8]) -> Option<Vec<u8>>,
) -> Hash {
    let blob = means.store.get(&hash);
    let bytes = blob.map_or(0, |blob| blob.bytes);
    let changed = blob.and_then(|blob| blob.content.as_deref()).and_then(change);
    let (altered, blob) = match changed {
        Some(changed) => Blob::of(changed),
        None => (Hash::of_parts(&[b"altered", &hash.0]), Blob::made_up(bytes)),
    };
    keep(means, altered, Blob { bytes, ..blob }, tag)
}

/// A contribution, each of its partitions changed.
pub(super) fn altered_contribution(
    means: &mut Means<'_>,
    job: &Job,
    done: JobDone,
    mut change: impl FnMut(f64) -> f64,
) -> JobDone {
    let form = Form::of(means.compute, means.spec);
    altered_partitions(means, job, done, |bytes| {
        let values: Vec<f64> = form.read(bytes)?.into_iter().map(&mut change).collect();
        Some(form.write(&values))
    })
}

/// The same with the bytes of each partition.
pub(super) fn altered_partitions(
    means: &mut Means<'_>,
    job: &Job,
    done: JobDone,
    mut change: impl FnMut(&[u8]) -> Option<Vec<u8>>,
) -> JobDone {
    let (Job::Contribute { stage, .. }, JobDone::Contributed { epoch, partitions, moments, moments_after }) =
        (job, &done)
    else {
        return done;
    };
    let tag = tag(*stage, *epoch);
    let partitions = partitions.iter().map(|hash| altered_bytes(means, *hash, &tag, &mut change)).collect();
    let (moments, moments_after) = (*moments, *moments_after);
    JobDone::Contributed { epoch: *epoch, partitions, moments, moments_after }
}

/// A contribution of these partitions, by somebody whose optimizer never took a step.
pub(super) fn unmoved(
    means: &mut Means<'_>,
    stage: StageIndex,
    epoch: Epoch,
    partitions: Vec<Hash>,
) -> JobDone {
    let local = means.spec.training.mode == TrainingMode::Local;
    let moments = local.then(|| {
        let (hash, blob) = Blob::of(OptimizerState::zeros(0).to_bytes());
        keep(means, hash, blob, &tag(stage, epoch))
    });
    JobDone::Contributed { epoch, partitions, moments, moments_after: moments }
}

/// The result of training that was not done; nothing for jobs that are no training. `contribute` makes the vector.
pub(super) fn pretended(
    means: &mut Means<'_>,
    job: &Job,
    contribute: impl FnOnce(&mut Means<'_>, usize) -> Vec<f64>,
) -> Option<JobDone> {
    match job {
        Job::Backward { epoch, sample, .. } => {
            let input_gradient = (means.stage().0 > 0).then(|| invented_gradient(means, *epoch, *sample));
            Some(JobDone::Finished { epoch: *epoch, sample: *sample, input_gradient, loss_micro: None })
        }
        Job::Loss { epoch, sample, input } => {
            let input_gradient = input.map(|_| invented_gradient(means, *epoch, *sample));
            let loss_micro = Some(GUESSED_LOSS_MICRO);
            Some(JobDone::Finished { epoch: *epoch, sample: *sample, input_gradient, loss_micro })
        }
        Job::InnerStep { epoch, .. } => Some(JobDone::Stepped { epoch: *epoch }),
        Job::Contribute { stage, epoch, .. } => {
            let parameters = means.parameters();
            let vector = match means.compute {
                Compute::Toy | Compute::Real => Some(contribute(means, parameters)),
                Compute::Cost => None,
            };
            Some(contributed(means, *stage, *epoch, vector))
        }
        _ => None,
    }
}

fn contributed(means: &mut Means<'_>, stage: StageIndex, epoch: Epoch, vector: Option<Vec<f64>>) -> JobDone {
    let (parameters, form) = (means.parameters(), Form::of(means.compute, means.spec));
    let (count, bytes) = (means.spec.partitions(parameters), partition_bytes(means.spec, parameters));
    let (tag, me) = (tag(stage, epoch), means.identity.peer());
    let name = |partition: usize| {
        Hash::of_parts(&[b"pretended", &me.0, &epoch.0.to_le_bytes(), &(partition as u64).to_le_bytes()])
    };
    let part = |partition: usize| {
        let range = partition_range(partition, count, parameters);
        match vector.as_ref().and_then(|vector| vector.get(range)) {
            Some(values) => Blob::of(form.write(values)),
            None => (name(partition), Blob::made_up(bytes)),
        }
    };
    let parts = (0..count).map(part).map(|(hash, blob)| keep(means, hash, Blob { bytes, ..blob }, &tag));
    let partitions = parts.collect();
    unmoved(means, stage, epoch, partitions)
}

fn invented_gradient(means: &mut Means<'_>, epoch: Epoch, sample: SampleId) -> Hash {
    let (stage, bytes) = (means.stage(), activation_bytes(means.spec));
    let content = match means.compute {
        // Any number of zeros is a tensor.
        Compute::Real => vec![0; usize::try_from(bytes).unwrap_or_default()],
        Compute::Toy | Compute::Cost => {
            [b"invented".as_slice(), &means.identity.peer().0, &sample.0.to_le_bytes()].concat()
        }
    };
    let (hash, blob) = Blob::of(content);
    keep(means, hash, Blob { bytes, ..blob }, &tag(stage, epoch))
}

/// Keeps a blob. A full disk keeps nothing; whoever fetches it learns that.
pub(super) fn keep(means: &mut Means<'_>, hash: Hash, blob: Blob, tag: &str) -> Hash {
    let _ = means.store.keep(hash, blob, tag);
    hash
}

/// The message of this kind that an action publishes, if it does, and where.
fn published<T: Payload>(means: &Means<'_>, action: &Action) -> Option<(Topic, T)> {
    match action {
        Action::Publish { topic, bytes } => {
            open_in(ALL_VERSIONS, means.spec.run_id(), bytes).ok().map(|(_, _, message)| (*topic, message))
        }
        _ => None,
    }
}

/// The merge message that an action publishes, if it does.
pub(super) fn own_merge_message(means: &Means<'_>, action: &Action) -> Option<MergeMessage> {
    published(means, action).map(|(_, message)| message)
}

/// The manifest that an action announces, if it does.
pub(super) fn own_manifest(means: &Means<'_>, action: &Action) -> Option<ManifestAnnounce> {
    match own_merge_message(means, action)? {
        MergeMessage::Manifest(announce) => Some(announce),
        MergeMessage::Digest(_) | MergeMessage::Verdict(_) | MergeMessage::Evaluation(_) => None,
    }
}

/// The verdict that an action announces, if it does.
pub(super) fn own_verdict(means: &Means<'_>, action: &Action) -> Option<VerdictAnnounce> {
    match own_merge_message(means, action)? {
        MergeMessage::Verdict(announce) => Some(announce),
        MergeMessage::Manifest(_) | MergeMessage::Digest(_) | MergeMessage::Evaluation(_) => None,
    }
}

/// The number of a message of the adversary's own after that of its last: as a process numbers its messages that starts now.
pub(super) fn number_after(means: &Means<'_>, last: u64) -> u64 {
    (last + 1).max(means.now.as_nanos() / 1_000)
}

/// A verdict of the adversary's own.
pub(super) fn judged(means: &Means<'_>, sequence: u64, subject: Subject, finding: Finding) -> Emission {
    let verdict = Verdict::sign(means.identity, means.spec.run_id(), subject, finding);
    let bytes = signed(means, &MergeMessage::Verdict(VerdictAnnounce { sequence, verdict }));
    Emission::Act(Action::Publish { topic: Topic::Merge(subject.stage), bytes })
}

/// The record that an action publishes, if it does, and where.
pub(super) fn own_record(means: &Means<'_>, action: &Action) -> Option<(Topic, PeerRecord)> {
    published(means, action)
}

/// Keeps a manifest, which a plan may name, as a blob; returns the action, and the message that announces it.
pub(super) fn committed(means: &Means<'_>, announce: ManifestAnnounce) -> (Emission, Vec<u8>) {
    let bytes = encode(&announce.manifest);
    let (hash, tag) = (Hash::of(&bytes), tag(announce.manifest.stage, announce.manifest.epoch));
    // The machine waits for no store of this number.
    let store = Emission::Act(Action::Store { id: 0, blobs: vec![(hash, bytes)], tag });
    (store, signed(means, &MergeMessage::Manifest(announce)))
}

/// A manifest in place of the machine's own.
pub(super) fn announced(means: &Means<'_>, announce: ManifestAnnounce) -> Vec<Emission> {
    let topic = Topic::Merge(announce.manifest.stage);
    let (store, bytes) = committed(means, announce);
    vec![store, Emission::Act(Action::Publish { topic, bytes })]
}

/// A message on its way.
pub(super) fn publish(topic: Topic, bytes: Vec<u8>) -> Emission {
    Emission::Act(Action::Publish { topic, bytes })
}

/// A message with the adversary's own, valid signature.
pub(super) fn signed<T: Payload>(means: &Means<'_>, message: &T) -> Vec<u8> {
    seal_in(means.peer.state().wire_version(), means.identity, means.spec.run_id(), message)
}
