//! Tensors that are hashes of what they were computed from: equal work has equal names, and any difference in what was
//! merged shows in the weights.

use std::collections::BTreeSet;
use std::sync::Arc;

use iota_protocol::difference::Difference;
use iota_protocol::miner::outbox::{state_tag, tag};
use iota_protocol::miner::{Job, JobDone, Sketched};
use iota_protocol::spec::TrainingMode;
use iota_protocol::wire::message::StateOffer;
use iota_protocol::{Epoch, Hash, RunSpec, SampleId, StageIndex, moments};

use super::Trainer;
use crate::blobs::{Blob, BlobStore};
use crate::costs::{Costs, activation_bytes, partition_bytes};
use crate::random::Random;

/// Elements that a contribution is compared by.
const SKETCHED: usize = 64;
/// The loss every sample has, in millionths of a nat.
const LOSS_MICRO: i64 = 1_000_000;

/// An engine without numbers.
#[derive(Clone, Debug)]
pub struct CostTrainer {
    spec: Arc<RunSpec>,
    activation_bytes: u64,
    partition_bytes: u64,
    partitions: usize,
    vector_bytes: u64,
    weights: Hash,
    accumulated: BTreeSet<SampleId>,
    /// Samples since the last inner step.
    unspent: u32,
    /// The moments' name when the epoch began, and now.
    moments: [Hash; 2],
}

impl CostTrainer {
    /// An engine that holds nothing yet.
    #[must_use]
    pub fn new(spec: &Arc<RunSpec>, costs: &Costs) -> Self {
        Self {
            spec: Arc::clone(spec),
            activation_bytes: activation_bytes(spec),
            partition_bytes: partition_bytes(spec, costs.parameters),
            partitions: spec.partitions(costs.parameters),
            vector_bytes: costs.parameters as u64 * 4,
            weights: Hash::default(),
            accumulated: BTreeSet::new(),
            unspent: 0,
            moments: [moments::fresh(); 2],
        }
    }

    /// Begins an epoch, with the moments that it has.
    fn take(&mut self, weights: Hash) {
        self.weights = weights;
        self.accumulated.clear();
        self.unspent = 0;
        self.moments[0] = self.moments[1];
    }

    /// Begins an epoch with the moments of the last one's beginning.
    fn reset(&mut self) {
        self.moments[1] = self.moments[0];
        self.take(self.weights);
    }

    fn step(&mut self) {
        self.unspent = 0;
        let samples: Vec<u8> = self.accumulated.iter().flat_map(|sample| sample.0.to_le_bytes()).collect();
        self.moments[1] = Hash::of_parts(&[b"moments", &self.moments[1].0, &samples]);
    }

    /// Bytes of the moments that the epoch began with.
    fn moments_bytes(&self) -> u64 {
        if self.moments[0] == moments::fresh() { moments::bytes_max(0) as u64 } else { self.vector_bytes * 2 }
    }

    fn accumulate(&mut self, sample: SampleId) {
        assert!(self.accumulated.insert(sample), "sample {sample} accumulated twice");
        self.unspent += 1;
    }

    /// What a pass of this sample makes of `input`.
    fn tensor(&self, what: &[u8], sample: SampleId, input: Option<Hash>) -> Hash {
        Hash::of_parts(&[what, &self.weights.0, &sample.0.to_le_bytes(), &input.unwrap_or_default().0])
    }

    fn weights_done(&self, stage: StageIndex, version: Epoch) -> JobDone {
        JobDone::Weights { stage, version, hash: self.weights }
    }

    fn contribution(&self, partition: usize) -> Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"contribution").update(&self.weights.0).update(&(partition as u64).to_le_bytes());
        for sample in &self.accumulated {
            hasher.update(&sample.0.to_le_bytes());
        }
        Hash(*hasher.finalize().as_bytes())
    }
}

/// The name of what honest owners merge from these contributions.
#[must_use]
pub fn merged(inputs: &[(iota_protocol::PeerId, u32, Hash)]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"merged");
    for (peer, weight, hash) in inputs {
        hasher.update(&peer.0).update(&weight.to_le_bytes()).update(&hash.0);
    }
    Hash(*hasher.finalize().as_bytes())
}

/// The name of a stage's initial weights.
#[must_use]
pub fn initial(stage: StageIndex) -> Hash {
    Hash::of(&stage.0.to_le_bytes())
}

/// The name of the weights after a merge that started from `base`.
#[must_use]
pub fn applied(base: Hash, partitions: &[Hash]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"weights").update(&base.0);
    for partition in partitions {
        hasher.update(&partition.0);
    }
    Hash(*hasher.finalize().as_bytes())
}

impl Trainer for CostTrainer {
    fn perform(&mut self, stage: StageIndex, job: &Job, store: &mut BlobStore) -> JobDone {
        self.try_perform(stage, job, store).unwrap_or_else(|full| JobDone::Failed(full.to_string()))
    }
}

impl CostTrainer {
    #[expect(clippy::too_many_lines, reason = "one short arm for each job")]
    fn try_perform(
        &mut self,
        member: StageIndex,
        job: &Job,
        store: &mut BlobStore,
    ) -> Result<JobDone, crate::blobs::DiskFull> {
        let mut keep =
            |hash: Hash, bytes: u64, tag: &str| store.keep(hash, Blob::made_up(bytes), tag).map(|()| hash);
        let activation = self.activation_bytes;
        Ok(match job {
            Job::Initialise { stage } => {
                self.moments = [moments::fresh(); 2];
                self.take(initial(*stage));
                self.weights_done(*stage, Epoch(0))
            }
            Job::Load { stage, version, weights, moments, .. } => {
                self.moments[1] = moments.unwrap_or(self.moments[0]);
                self.take(*weights);
                self.weights_done(*stage, *version)
            }
            Job::Snapshot { stage, version, hash } => {
                let part = Hash::of_parts(&[b"state", &hash.0]);
                keep(part, self.vector_bytes * 2, &state_tag(*stage, *version))?;
                JobDone::Snapshot(StateOffer {
                    stage: *stage,
                    version: *version,
                    weights: *hash,
                    parts: vec![part],
                })
            }
            Job::Reset => {
                self.reset();
                JobDone::Reset
            }
            Job::Forward { epoch, sample, input } => {
                let output = self.tensor(b"activation", *sample, *input);
                keep(output, activation, &tag(member, *epoch))?;
                JobDone::Forwarded { epoch: *epoch, sample: *sample, output }
            }
            Job::Loss { epoch, sample, input } => {
                let gradient = input.map(|input| self.tensor(b"gradient", *sample, Some(input)));
                let input_gradient =
                    gradient.map(|hash| keep(hash, activation, &tag(member, *epoch))).transpose()?;
                self.accumulate(*sample);
                let loss_micro = Some(LOSS_MICRO);
                JobDone::Finished { epoch: *epoch, sample: *sample, input_gradient, loss_micro }
            }
            Job::Backward { epoch, sample, gradient } => {
                let upward = (member.0 > 0).then(|| self.tensor(b"gradient", *sample, Some(*gradient)));
                let input_gradient =
                    upward.map(|hash| keep(hash, activation, &tag(member, *epoch))).transpose()?;
                self.accumulate(*sample);
                JobDone::Finished { epoch: *epoch, sample: *sample, input_gradient, loss_micro: None }
            }
            Job::InnerStep { epoch, step } => {
                assert!(self.unspent > 0, "a step needs a gradient");
                assert!(*step < self.spec.training.inner_steps, "the schedule has such a step");
                self.step();
                JobDone::Stepped { epoch: *epoch }
            }
            Job::Contribute { stage, epoch, samples } => {
                assert_eq!(self.accumulated.len(), *samples as usize, "what is claimed was accumulated");
                if self.spec.training.mode == TrainingMode::Local {
                    assert_eq!(self.unspent, 0, "every gradient is in a step");
                }
                let bytes = self.partition_bytes;
                let parts = (0..self.partitions)
                    .map(|partition| keep(self.contribution(partition), bytes, &tag(*stage, *epoch)));
                let partitions = parts.collect::<Result<_, _>>()?;
                let local = self.spec.training.mode == TrainingMode::Local;
                let moments = local
                    .then(|| keep(self.moments[0], self.moments_bytes(), &tag(*stage, *epoch)))
                    .transpose()?;
                let moments_after = local.then_some(self.moments[1]);
                JobDone::Contributed { epoch: *epoch, partitions, moments, moments_after }
            }
            Job::Reduce { stage, epoch, partition, inputs } => {
                let hash = keep(merged(inputs), self.partition_bytes, &tag(*stage, *epoch))?;
                let (stage, partition) = (*stage, *partition);
                JobDone::Reduced { stage, partition, merged: Ok(hash), outliers: Vec::new() }
            }
            Job::Apply { stage, epoch, partitions } => {
                let passed_over = partitions.is_empty();
                self.take(if passed_over { self.weights } else { applied(self.weights, partitions) });
                self.weights_done(*stage, epoch.next())
            }
            Job::Compare { pairs, .. } => JobDone::Compared(compare(pairs)),
            Job::Sketch { partitions, .. } => {
                // Names have no numbers: what two contributions share is nothing, or all.
                let mut random = Random::new(0, &format!("sketch of {partitions:?}"));
                let elements = (0..SKETCHED).map(|_| random.normal()).collect();
                JobDone::Sketched(Some(Sketched { norm: 1.0, elements }))
            }
            Job::Losses { samples, contribution } => {
                let factor = if contribution.is_some() { 0.99 } else { 1.0 };
                JobDone::Losses(vec![factor; samples.len()])
            }
        })
    }
}

/// Names are equal or have nothing in common.
fn compare(pairs: &[(Hash, Hash)]) -> Difference {
    let unlike = pairs.iter().position(|(ours, theirs)| ours != theirs);
    unlike.map_or(Difference::NONE, Difference::incomparable)
}
