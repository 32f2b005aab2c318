//! A problem whose loss is known in closed form.
//!
//! Stage *s* holds θ ∈ ℝᵈ and loses ½ ‖θ − θ*‖² / d nats on every token, where θ* is drawn from the run's seed. The
//! gradient of sample *i* is θ − θ* + ε, ε ~ N(0, 0.1²) drawn from (seed, stage, i): it depends on nothing but the
//! weights and the sample. With learning rate η and batch *B*, whoever computes it,
//!
//! ```text
//! θ' − θ* = (1 − η) (θ − θ*) − η mean(ε over B)
//! ```
//!
//! so one process that follows this line is the oracle of a whole swarm in synchronous mode, and any gradient that was
//! left out, counted twice or tampered with shows as a difference.

use std::collections::BTreeSet;
use std::sync::Arc;

use iota_model::reduce::combine;
use iota_protocol::difference::Difference;
use iota_protocol::merge::partition_range;
use iota_protocol::miner::outbox::{state_tag, tag};
use iota_protocol::miner::{Job, JobDone, Tensor};
use iota_protocol::spec::TrainingMode;
use iota_protocol::wire::message::StateOffer;
use iota_protocol::{Epoch, Hash, PeerId, RunSpec, SampleId, StageIndex, moments};
use iota_worker::bridge;
use iota_worker::compare::{difference, sketch_of};

use super::Trainer;
use crate::blobs::{Blob, BlobStore};
use crate::costs::{Costs, activation_bytes, partition_bytes};
use crate::random::Random;

/// Learning rate η of inner steps, and of the outer step in synchronous mode.
pub const LEARNING_RATE: f64 = 0.2;
/// Standard deviation of a sample's noise.
pub const NOISE: f64 = 0.1;

/// θ* of a stage.
#[must_use]
pub fn optimum(seed: u64, stage: StageIndex, len: usize) -> Vec<f64> {
    let mut random = Random::new(seed, &format!("toy optimum of stage {stage}"));
    (0..len).map(|_| random.normal()).collect()
}

/// ε of a sample.
#[must_use]
pub fn noise(seed: u64, stage: StageIndex, sample: SampleId, len: usize) -> Vec<f64> {
    let mut random = Random::new(seed, &format!("toy noise of stage {stage} sample {sample}"));
    (0..len).map(|_| NOISE * random.normal()).collect()
}

/// ½ ‖θ − θ*‖² / d.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a small length")]
pub fn excess(theta: &[f64], optimum: &[f64]) -> f64 {
    let square: f64 = theta.iter().zip(optimum).map(|(a, b)| (a - b) * (a - b)).sum();
    0.5 * square / theta.len() as f64
}

/// An engine that trains the toy problem.
#[derive(Clone, Debug)]
pub struct ToyTrainer {
    spec: Arc<RunSpec>,
    len: usize,
    activation_bytes: u64,
    partition_bytes: u64,
    optimum: Vec<f64>,
    /// The weights the epoch started from.
    base: Vec<f64>,
    theta: Vec<f64>,
    /// Sum of gradients since the last inner step.
    gradient: Vec<f64>,
    unspent: u32,
    accumulated: BTreeSet<SampleId>,
    /// Inner steps taken when the epoch began, and now. Plain gradient descent has no other state: in place of moments it
    /// names their count, which is 0 in fresh ones too.
    steps: [u64; 2],
}

impl ToyTrainer {
    /// An engine that holds nothing yet.
    #[must_use]
    pub fn new(spec: &Arc<RunSpec>, costs: &Costs) -> Self {
        let zeros = vec![0.0; costs.parameters];
        Self {
            len: costs.parameters,
            activation_bytes: activation_bytes(spec),
            partition_bytes: partition_bytes(spec, costs.parameters),
            spec: Arc::clone(spec),
            optimum: zeros.clone(),
            base: zeros.clone(),
            theta: zeros.clone(),
            gradient: zeros,
            unspent: 0,
            accumulated: BTreeSet::new(),
            steps: [0; 2],
        }
    }

    fn take(&mut self, base: Vec<f64>) {
        self.steps[0] = self.steps[1];
        self.theta.clone_from(&base);
        self.base = base;
        self.gradient = vec![0.0; self.len];
        self.unspent = 0;
        self.accumulated.clear();
    }

    fn build(&mut self, stage: StageIndex) {
        self.optimum = optimum(self.spec.seed, stage, self.len);
    }

    fn accumulate(&mut self, stage: StageIndex, sample: SampleId) {
        assert!(self.accumulated.insert(sample), "sample {sample} accumulated twice");
        let noise = noise(self.spec.seed, stage, sample, self.len);
        for (i, epsilon) in noise.iter().enumerate() {
            self.gradient[i] += self.theta[i] - self.optimum[i] + epsilon;
        }
        self.unspent += 1;
    }

    fn mean_gradient(&self) -> Vec<f64> {
        self.gradient.iter().map(|sum| sum / f64::from(self.unspent.max(1))).collect()
    }

    fn step(&mut self) {
        for (theta, gradient) in
            self.theta.iter_mut().zip(self.gradient.iter().map(|sum| sum / f64::from(self.unspent.max(1))))
        {
            *theta -= LEARNING_RATE * gradient;
        }
        self.gradient.fill(0.0);
        self.unspent = 0;
        self.steps[1] += 1;
    }

    /// What this miner did in the epoch: θ_base − θ in local mode, the mean gradient in synchronous mode.
    fn contribution(&self) -> Vec<f64> {
        match self.spec.training.mode {
            TrainingMode::Local => self.base.iter().zip(&self.theta).map(|(a, b)| a - b).collect(),
            TrainingMode::Synchronous => self.mean_gradient(),
        }
    }

    fn apply(&mut self, merged: &[f64]) {
        let rate = match self.spec.training.mode {
            TrainingMode::Local => 1.0,
            TrainingMode::Synchronous => LEARNING_RATE,
        };
        let next = self.base.iter().zip(merged).map(|(base, merged)| base - rate * merged).collect();
        self.take(next);
    }

    fn weights_done(&self, stage: StageIndex, version: Epoch) -> JobDone {
        JobDone::Weights { stage, version, hash: Hash::of(&to_bytes(&self.base)) }
    }

    fn excess(&self) -> f64 {
        excess(&self.theta, &self.optimum)
    }
}

/// Numbers as bytes, little endian.
#[must_use]
pub fn to_bytes(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Numbers from bytes, little endian; nothing if they are no whole number of finite numbers.
#[must_use]
pub fn from_bytes(bytes: &[u8]) -> Option<Vec<f64>> {
    let (values, rest) = bytes.as_chunks::<8>();
    let values: Vec<f64> = values.iter().map(|value| f64::from_le_bytes(*value)).collect();
    (rest.is_empty() && values.iter().all(|value| value.is_finite())).then_some(values)
}

/// Contributions combined as the run's spec says, in the order given; an owner's part of the merge.
///
/// # Errors
/// The submitter whose bytes are no partition of `len` numbers.
pub fn reduce(
    spec: &RunSpec,
    inputs: &[(PeerId, u32, Hash)],
    store: &BlobStore,
    len: usize,
) -> Result<(Vec<f64>, Vec<PeerId>), PeerId> {
    let part = |&(peer, weight, hash): &(PeerId, u32, Hash)| {
        let values = store.content(&hash).and_then(from_bytes).filter(|values| values.len() == len);
        values.map(|values| (f64::from(weight), values)).ok_or(peer)
    };
    let parts = inputs.iter().map(part).collect::<Result<Vec<_>, _>>()?;
    let views: Vec<(f64, &[f64])> = parts.iter().map(|(weight, values)| (*weight, &values[..])).collect();
    Ok((combine(&views, bridge::reducer(&spec.merge)), bridge::outliers(spec, inputs, &views)))
}

impl Trainer for ToyTrainer {
    fn perform(&mut self, stage: StageIndex, job: &Job, store: &mut BlobStore) -> JobDone {
        self.try_perform(stage, job, store).unwrap_or_else(|full| JobDone::Failed(full.to_string()))
    }

    fn excess_loss(&self) -> Option<f64> {
        Some(excess(&self.base, &self.optimum))
    }
}

/// An activation: the sample, and what the stages above lose on it.
fn activation(stage: StageIndex, sample: SampleId, loss: f64) -> Vec<u8> {
    [stage.0.to_le_bytes().as_slice(), &sample.0.to_le_bytes(), &loss.to_le_bytes()].concat()
}

/// The loss in an activation or its gradient; nothing if it is of another kind, stage or sample than `like`.
fn activation_loss(bytes: &[u8], like: &[u8]) -> Option<f64> {
    let ((kind, loss), (expected, _)) = (bytes.split_last_chunk::<8>()?, like.split_last_chunk::<8>()?);
    let loss = f64::from_le_bytes(*loss);
    (kind == expected && loss.is_finite()).then_some(loss)
}

/// What the stages above lose, from their activation.
fn loss_above(store: &BlobStore, input: Option<Hash>) -> f64 {
    let bytes = input.and_then(|hash| store.content(&hash)?.last_chunk::<8>().copied());
    bytes.map_or(0.0, f64::from_le_bytes)
}

impl ToyTrainer {
    #[expect(clippy::too_many_lines, reason = "one short arm for each job")]
    fn try_perform(
        &mut self,
        member: StageIndex,
        job: &Job,
        store: &mut BlobStore,
    ) -> Result<JobDone, crate::blobs::DiskFull> {
        Ok(match job {
            Job::Initialise { stage } => {
                self.build(*stage);
                self.steps = [0; 2];
                self.take(vec![0.0; self.len]);
                self.weights_done(*stage, Epoch(0))
            }
            Job::Load { stage, version, weights, parts, moments } => {
                let bytes: Vec<u8> =
                    parts.iter().filter_map(|part| store.content(part)).flatten().copied().collect();
                let base = from_bytes(&bytes).filter(|_| Hash::of(&bytes) == *weights);
                match base.zip(self.steps_of(store, *moments)) {
                    Some((base, steps)) => {
                        self.build(*stage);
                        self.steps = [steps; 2];
                        self.take(base);
                        self.weights_done(*stage, *version)
                    }
                    None => JobDone::Failed("the state is not what was offered".to_owned()),
                }
            }
            Job::Snapshot { stage, version, hash } => {
                let part = keep(store, to_bytes(&self.base), None, &state_tag(*stage, *version))?;
                JobDone::Snapshot(StateOffer {
                    stage: *stage,
                    version: *version,
                    weights: *hash,
                    parts: vec![part],
                })
            }
            Job::Reset => {
                self.steps[1] = self.steps[0];
                self.take(self.base.clone());
                JobDone::Reset
            }
            Job::Forward { epoch, sample, input } => {
                let loss = loss_above(store, *input) + self.excess();
                let bytes = activation(member, *sample, loss);
                let output = keep(store, bytes, Some(self.activation_bytes), &tag(member, *epoch))?;
                JobDone::Forwarded { epoch: *epoch, sample: *sample, output }
            }
            Job::Loss { epoch, sample, input } => {
                let loss = loss_above(store, *input) + self.excess();
                let input_gradient = input.map(|_| self.keep_gradient(store, member, *epoch, *sample));
                self.accumulate(member, *sample);
                JobDone::Finished {
                    epoch: *epoch,
                    sample: *sample,
                    input_gradient: input_gradient.transpose()?,
                    loss_micro: Some(micro(loss)),
                }
            }
            Job::Backward { epoch, sample, .. } => {
                let upward = (member.0 > 0).then(|| self.keep_gradient(store, member, *epoch, *sample));
                self.accumulate(member, *sample);
                let input_gradient = upward.transpose()?;
                JobDone::Finished { epoch: *epoch, sample: *sample, input_gradient, loss_micro: None }
            }
            Job::InnerStep { epoch, .. } => {
                self.step();
                JobDone::Stepped { epoch: *epoch }
            }
            Job::Contribute { stage, epoch, samples } => {
                assert_eq!(self.accumulated.len(), *samples as usize, "what is claimed was accumulated");
                let (whole, count) = (self.contribution(), self.spec.partitions(self.len));
                let parts = (0..count).map(|partition| {
                    let range = partition_range(partition, count, self.len);
                    keep(store, to_bytes(&whole[range]), Some(self.partition_bytes), &tag(*stage, *epoch))
                });
                let partitions = parts.collect::<Result<_, _>>()?;
                let local = self.spec.training.mode == TrainingMode::Local;
                let [before, after] = self.steps.map(|steps| steps.to_le_bytes().to_vec());
                let moments = local.then(|| keep(store, before, None, &tag(*stage, *epoch))).transpose()?;
                let moments_after = local.then(|| Hash::of(&after));
                JobDone::Contributed { epoch: *epoch, partitions, moments, moments_after }
            }
            Job::Reduce { stage, epoch, partition, inputs } => {
                let count = self.spec.partitions(self.len);
                let len = partition_range(partition.0 as usize, count, self.len).len();
                let (merged, outliers) = match reduce(&self.spec, inputs, store, len) {
                    Ok((merged, outliers)) => {
                        let (bytes, tag) = (to_bytes(&merged), tag(*stage, *epoch));
                        (Ok(keep(store, bytes, Some(self.partition_bytes), &tag)?), outliers)
                    }
                    Err(peer) => (Err(peer), Vec::new()),
                };
                JobDone::Reduced { stage: *stage, partition: *partition, merged, outliers }
            }
            Job::Apply { stage, epoch, partitions } if partitions.is_empty() => {
                self.take(self.base.clone());
                self.weights_done(*stage, epoch.next())
            }
            Job::Apply { stage, epoch, partitions } => {
                let part = |(index, hash)| {
                    let len = partition_range(index, partitions.len(), self.len).len();
                    let values = from_bytes(store.content(hash)?).filter(|values| values.len() == len);
                    // One that is none changes nothing.
                    Some(values.unwrap_or_else(|| vec![0.0; len]))
                };
                match partitions.iter().enumerate().map(part).collect::<Option<Vec<_>>>() {
                    Some(merged) => {
                        self.apply(&merged.concat());
                        self.weights_done(*stage, epoch.next())
                    }
                    None => JobDone::Failed("a merged partition is not here".to_owned()),
                }
            }
            Job::Compare { pairs, kind } => match self.compare(pairs, *kind, store) {
                Some(difference) => JobDone::Compared(difference),
                None => JobDone::Failed("a tensor to compare is none, or not here".to_owned()),
            },
            Job::Sketch { plan, partitions, .. } => match self.contribution_of(partitions, store) {
                Some(flat) => JobDone::Sketched(flat.map(|flat| sketch_of(&flat, *plan))),
                None => JobDone::Failed("a partition is not here".to_owned()),
            },
            Job::Losses { samples, contribution } => {
                let applied = contribution.as_ref().map(|applied| {
                    let flat = self.contribution_of(&applied.partitions, store).flatten()?;
                    Some((flat, f64::from(applied.rate_ppm) / 1e6))
                });
                let theta = match applied {
                    None => Some(self.base.clone()),
                    Some(None) => None,
                    Some(Some((flat, rate))) => {
                        Some(self.base.iter().zip(&flat).map(|(base, of)| base - rate * of).collect())
                    }
                };
                match theta {
                    Some(theta) => JobDone::Losses(self.losses(member, &theta, samples)),
                    None => JobDone::Failed("a contribution is none, or not here".to_owned()),
                }
            }
        })
    }

    /// The step count with this name, or that of the epoch's beginning; nothing if it is none.
    fn steps_of(&self, store: &BlobStore, moments: Option<Hash>) -> Option<u64> {
        match moments {
            None => Some(self.steps[0]),
            Some(hash) if hash == moments::fresh() => Some(0),
            Some(hash) => Some(u64::from_le_bytes(store.content(&hash)?.try_into().ok()?)),
        }
    }

    /// ½ ‖θ − θ* + ε‖² / d of each sample, whose gradient is what [`accumulate`](Self::accumulate) adds, over d.
    fn losses(&self, stage: StageIndex, theta: &[f64], samples: &[SampleId]) -> Vec<f64> {
        let loss = |sample: &SampleId| {
            let noise = noise(self.spec.seed, stage, *sample, self.len);
            let optimum: Vec<f64> =
                self.optimum.iter().zip(noise).map(|(best, noise)| best - noise).collect();
            excess(theta, &optimum)
        };
        samples.iter().map(loss).collect()
    }

    /// All of a contribution, or nothing in it if it is none; nothing if a blob is not here.
    fn contribution_of(&self, partitions: &[Hash], store: &BlobStore) -> Option<Option<Vec<f64>>> {
        let bytes = partitions.iter().map(|hash| store.content(hash)).collect::<Option<Vec<_>>>()?;
        let numbers = bytes.into_iter().map(from_bytes).collect::<Option<Vec<_>>>();
        Some(numbers.map(|parts| parts.concat()).filter(|flat| flat.len() == self.len))
    }

    /// How far tensors of others are from ours; nothing if ours are none, or a blob is not here.
    fn compare(&self, pairs: &[(Hash, Hash)], kind: Tensor, store: &BlobStore) -> Option<Difference> {
        let count = self.spec.partitions(self.len);
        if matches!(kind, Tensor::Contribution { .. }) && pairs.len() != count {
            return None;
        }
        let vectors = pairs.iter().enumerate().map(|(index, (ours, theirs))| {
            let ours = store.content(ours)?;
            let numbers = |bytes| match kind {
                Tensor::Activation => activation_loss(bytes, ours).map(|loss| vec![loss]),
                Tensor::Contribution { .. } => {
                    let len = partition_range(index, count, self.len).len();
                    from_bytes(bytes).filter(|values| values.len() == len)
                }
            };
            Some((numbers(ours)?, numbers(store.content(theirs)?)))
        });
        difference(kind, vectors.map(|pair| pair.ok_or(()))).ok()
    }

    fn keep_gradient(
        &self,
        store: &mut BlobStore,
        stage: StageIndex,
        epoch: Epoch,
        sample: SampleId,
    ) -> Result<Hash, crate::blobs::DiskFull> {
        let bytes = [b"gradient".as_slice(), &activation(stage, sample, self.excess())].concat();
        keep(store, bytes, Some(self.activation_bytes), &tag(stage, epoch))
    }
}

/// Keeps `content`, which moves and occupies `bytes`, or as much as it is.
fn keep(
    store: &mut BlobStore,
    content: Vec<u8>,
    bytes: Option<u64>,
    tag: &str,
) -> Result<Hash, crate::blobs::DiskFull> {
    let (hash, blob) = Blob::of(content);
    let bytes = bytes.unwrap_or(blob.bytes);
    store.keep(hash, Blob { bytes, ..blob }, tag).map(|()| hash)
}

#[expect(clippy::cast_possible_truncation, reason = "saturating cast of a loss")]
fn micro(nats: f64) -> i64 {
    (nats * 1e6) as i64
}
