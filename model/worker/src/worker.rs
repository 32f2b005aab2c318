//! Performs jobs, one at a time.

use std::sync::Arc;

use bytes::Bytes;
use iota_model::checkpoint::Checkpoint;
use iota_model::codec::Codec;
use iota_model::data::Corpus;
use iota_model::reduce::reduce;
use iota_model::{Device, Frame, OptimizerState, StageInput, TokenBatch};
use iota_protocol::limits::PARTITION_BYTES_MAX;
use iota_protocol::merge::partition_range;
use iota_protocol::miner::outbox::{state_tag, tag};
use iota_protocol::miner::{Applied, Job, JobDone};
use iota_protocol::wire::message::StateOffer;
use iota_protocol::{Epoch, Hash, PartitionIndex, PeerId, RunSpec, SampleId, StageIndex, moments};

use crate::blobs::{Blobs, blob, whole_blob};
use crate::bridge;
use crate::compare::{compare_blobs, contribution_of, sketch};
use crate::error::WorkError;
use crate::stage::HeldStage;

/// Bytes of one blob of a snapshot. Small enough to resume, large enough to stream.
const SNAPSHOT_PART_BYTES: usize = 4 << 20;
const _: () =
    assert!(SNAPSHOT_PART_BYTES <= PARTITION_BYTES_MAX, "a part of a state is fetched like a partition");

/// Performs the jobs of one miner on one device.
pub struct Worker {
    spec: Arc<RunSpec>,
    device: Device,
    corpus: Option<Arc<Corpus>>,
    stage: Option<HeldStage>,
    /// The version of the stage held whose moments were kept last.
    moments_kept: Option<Epoch>,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let held = self.stage.as_ref().map(|stage| (stage.index, stage.version));
        f.debug_struct("Worker").field("held", &held).finish_non_exhaustive()
    }
}

/// What a job is called in an error.
const fn name(job: &Job) -> &'static str {
    match job {
        Job::Initialise { .. } => "build the engine",
        Job::Load { .. } => "load the state of the stage",
        Job::Snapshot { .. } => "write the state of the stage",
        Job::Reset => "return to the epoch's first weights",
        Job::Forward { .. } => "forward a sample",
        Job::Loss { .. } => "compute a loss",
        Job::Backward { .. } => "backward a sample",
        Job::InnerStep { .. } => "take an inner step",
        Job::Contribute { .. } => "write the contribution",
        Job::Reduce { .. } => "reduce a partition",
        Job::Apply { .. } => "take the outer step",
        Job::Compare { .. } => "compare tensors",
        Job::Sketch { .. } => "read a contribution",
        Job::Losses { .. } => "compute losses",
    }
}

impl Worker {
    /// A worker that holds no stage yet. Only miners of the head and the tail need the corpus.
    #[must_use]
    pub const fn new(spec: Arc<RunSpec>, device: Device, corpus: Option<Arc<Corpus>>) -> Self {
        Self { spec, device, corpus, stage: None, moments_kept: None }
    }

    /// Does a job; one that cannot be done is [`JobDone::Failed`] with the reason.
    pub fn perform(&mut self, job: &Job, blobs: &mut dyn Blobs) -> JobDone {
        self.try_perform(job, blobs)
            .unwrap_or_else(|reason| JobDone::Failed(format!("{}: {reason}", name(job))))
    }

    /// The stage held, its version, and its weights as the last merge left them; nothing if none is held.
    #[must_use]
    pub fn weights(&self) -> Option<(StageIndex, Epoch, &[f32])> {
        self.stage.as_ref().map(|stage| (stage.index, stage.version, stage.base.as_slice()))
    }

    /// [`weights`](Self::weights) as they are written to disk.
    #[must_use]
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        let stage = self.stage.as_ref()?;
        Some(Checkpoint {
            model: bridge::model_config(&self.spec),
            stage: Some(stage.index.as_usize()),
            version: u64::from(stage.version.0),
            weights: stage.base.clone(),
        })
    }

    fn try_perform(&mut self, job: &Job, blobs: &mut dyn Blobs) -> Result<JobDone, WorkError> {
        match job {
            Job::Initialise { stage } => self.initialise(*stage),
            Job::Load { stage, version, weights, parts, moments } => {
                self.load(*stage, *version, *weights, parts, *moments, blobs)
            }
            Job::Snapshot { stage, version, hash } => self.snapshot(*stage, *version, *hash, blobs),
            Job::Reset => self.held()?.reset().map(|()| JobDone::Reset),
            Job::Forward { epoch, sample, input } => self.forward(*epoch, *sample, *input, blobs),
            Job::Loss { epoch, sample, input } => self.loss(*epoch, *sample, *input, blobs),
            Job::Backward { epoch, sample, gradient } => self.backward(*epoch, *sample, *gradient, blobs),
            Job::InnerStep { epoch, step } => {
                let rate = bridge::learning_rate(&self.spec, *epoch, *step);
                self.held()?.inner_step(rate)?;
                Ok(JobDone::Stepped { epoch: *epoch })
            }
            Job::Contribute { stage, epoch, .. } => self.contribute(*stage, *epoch, blobs),
            Job::Reduce { stage, epoch, partition, inputs } => {
                self.reduce(*stage, *epoch, *partition, inputs, blobs)
            }
            Job::Apply { stage, epoch, partitions } => self.apply(*stage, *epoch, partitions, blobs),
            Job::Compare { pairs, kind } => {
                compare_blobs(&self.spec, *kind, pairs, blobs).map(JobDone::Compared)
            }
            Job::Sketch { stage, plan, partitions } => {
                sketch(&self.spec, *stage, *plan, partitions, blobs).map(JobDone::Sketched)
            }
            Job::Losses { samples, contribution } => {
                self.losses(samples, contribution.as_ref(), blobs).map(JobDone::Losses)
            }
        }
    }

    fn held(&mut self) -> Result<&mut HeldStage, WorkError> {
        self.stage.as_mut().ok_or(WorkError::NoStage)
    }

    fn initialise(&mut self, index: StageIndex) -> Result<JobDone, WorkError> {
        // The old engine's memory is needed for the new one.
        (self.stage, self.moments_kept) = (None, None);
        let stage = HeldStage::build(&self.spec, index, &self.device)?;
        Ok(self.stage.insert(stage).done())
    }

    fn snapshot(
        &mut self,
        stage: StageIndex,
        version: Epoch,
        weights: Hash,
        blobs: &mut dyn Blobs,
    ) -> Result<JobDone, WorkError> {
        let is_kept = self.moments_kept == Some(version);
        let held = self.held()?;
        if let Some(moments) = held.moments.as_ref().filter(|_| !is_kept) {
            blobs.keep_moments(stage, version, moments)?;
        }
        let state = Bytes::from(held.state());
        let parts = (0..state.len())
            .step_by(SNAPSHOT_PART_BYTES)
            .map(|start| state.slice(start..state.len().min(start + SNAPSHOT_PART_BYTES)));
        let parts = blobs.publish(parts.collect(), &state_tag(stage, version))?;
        Ok(JobDone::Snapshot(StateOffer { stage, version, weights, parts }))
    }

    fn load(
        &mut self,
        index: StageIndex,
        version: Epoch,
        weights: Hash,
        parts: &[Hash],
        moments: Option<Hash>,
        blobs: &dyn Blobs,
    ) -> Result<JobDone, WorkError> {
        let mut state = Vec::new();
        for part in parts {
            state.extend_from_slice(&whole_blob(blobs, *part)?);
        }
        let named = moments.map(|hash| self.moments_of(index, hash, blobs)).transpose()?;
        let spec = Arc::clone(&self.spec);
        let stage = self.held()?;
        debug_assert_eq!(stage.index, index, "the protocol asks for the stage it holds");
        stage.load(&spec, &state, version, weights)?;
        // Only one that has just started: whoever has trained in this process has newer ones.
        let kept = || stage.is_fresh().then(|| blobs.moments(index, version)).flatten();
        if let Some(moments) = named.or_else(kept) {
            stage.take_moments(moments)?;
        }
        Ok(stage.done())
    }

    /// The moments with this name. The fresh ones need no blob.
    fn moments_of(
        &self,
        index: StageIndex,
        hash: Hash,
        blobs: &dyn Blobs,
    ) -> Result<OptimizerState, WorkError> {
        let parameters = bridge::model_config(&self.spec).parameter_count(index.as_usize());
        if hash == moments::fresh() {
            return Ok(OptimizerState::zeros(parameters));
        }
        Ok(OptimizerState::from_bytes(&whole_blob(blobs, hash)?, parameters)?)
    }

    fn forward(
        &mut self,
        epoch: Epoch,
        sample: SampleId,
        input: Option<Hash>,
        blobs: &mut dyn Blobs,
    ) -> Result<JobDone, WorkError> {
        let input = self.input(sample, input, blobs)?;
        let stage = self.held()?;
        stage.slots.insert(sample.0);
        let output = stage.engine.forward(sample.0, input)?;
        let output = blobs.keep(output.bytes, &tag(stage.index, epoch))?;
        Ok(JobDone::Forwarded { epoch, sample, output })
    }

    fn loss(
        &mut self,
        epoch: Epoch,
        sample: SampleId,
        input: Option<Hash>,
        blobs: &mut dyn Blobs,
    ) -> Result<JobDone, WorkError> {
        let input = self.input(sample, input, blobs)?;
        let targets = self.tokens(sample)?;
        let stage = self.held()?;
        let output = stage.engine.forward_loss(input, &targets)?;
        if !output.loss.is_finite() {
            return Err(WorkError::Diverged { sample, loss: output.loss });
        }
        let tag = tag(stage.index, epoch);
        let input_gradient = output.input_gradient.map(|frame| blobs.keep(frame.bytes, &tag)).transpose()?;
        #[expect(clippy::cast_possible_truncation, reason = "a loss of a few nats, in millionths")]
        let loss_micro = (f64::from(output.loss) * 1e6).round() as i64;
        Ok(JobDone::Finished { epoch, sample, input_gradient, loss_micro: Some(loss_micro) })
    }

    fn backward(
        &mut self,
        epoch: Epoch,
        sample: SampleId,
        gradient: Hash,
        blobs: &mut dyn Blobs,
    ) -> Result<JobDone, WorkError> {
        let gradient = self.frame(gradient, blobs)?;
        let stage = self.held()?;
        stage.slots.remove(&sample.0);
        let output = stage.engine.backward(sample.0, gradient)?;
        let tag = tag(stage.index, epoch);
        let input_gradient = output.map(|frame| blobs.keep(frame.bytes, &tag)).transpose()?;
        Ok(JobDone::Finished { epoch, sample, input_gradient, loss_micro: None })
    }

    fn contribute(
        &mut self,
        index: StageIndex,
        epoch: Epoch,
        blobs: &mut dyn Blobs,
    ) -> Result<JobDone, WorkError> {
        let (mode, codec) = (self.spec.training.mode, self.codec());
        let after = self.held()?.moments_now()?;
        // Before the contribution counts: a process that starts again may find its merge done.
        if let Some(moments) = &after {
            blobs.keep_moments(index, epoch.next(), moments)?;
            self.moments_kept = Some(epoch.next());
        }
        let moments_after = after.map(|moments| Hash(moments.hash()));
        let held = self.held()?;
        let before = held.moments.as_ref().map(|moments| Bytes::from(moments.to_bytes()));
        let moments = before.as_deref().map(Hash::of);
        let flat = held.contribution(mode)?;
        let count = self.spec.partitions(flat.len());
        let encoded =
            (0..count).map(|i| codec.encode(&flat[partition_range(i, count, flat.len())]).map(Bytes::from));
        let mut published = encoded.collect::<Result<Vec<_>, _>>()?;
        published.extend(before);
        let mut partitions = blobs.publish(published, &tag(index, epoch))?;
        partitions.truncate(count);
        Ok(JobDone::Contributed { epoch, partitions, moments, moments_after })
    }

    fn reduce(
        &self,
        index: StageIndex,
        epoch: Epoch,
        partition: PartitionIndex,
        inputs: &[(PeerId, u32, Hash)],
        blobs: &mut dyn Blobs,
    ) -> Result<JobDone, WorkError> {
        let parameters = bridge::model_config(&self.spec).parameter_count(index.as_usize());
        let range = partition_range(partition.0 as usize, self.spec.partitions(parameters), parameters);
        let (codec, limit) = (self.codec(), bridge::contribution_max(&self.spec, epoch));
        let mut parts = Vec::new();
        for (peer, weight, hash) in inputs {
            match reachable(codec, &blob(blobs, *hash)?, range.len(), limit) {
                Ok(values) => parts.push((f64::from(*weight), values)),
                Err(error) => {
                    tracing::warn!(peer = %peer.short(), %error, "contribution is no valid partition");
                    let (merged, outliers) = (Err(*peer), Vec::new());
                    return Ok(JobDone::Reduced { stage: index, partition, merged, outliers });
                }
            }
        }
        let reducer = bridge::reducer(&self.spec.merge);
        let views: Vec<(f64, &[f32])> =
            parts.iter().map(|(weight, values)| (*weight, values.as_slice())).collect();
        let merged = Bytes::from(codec.encode(&reduce(&views, reducer)?)?);
        let hash = Hash::of(&merged);
        blobs.publish(vec![merged], &tag(index, epoch))?;
        let outliers = bridge::outliers(&self.spec, inputs, &views);
        Ok(JobDone::Reduced { stage: index, partition, merged: Ok(hash), outliers })
    }

    fn apply(
        &mut self,
        index: StageIndex,
        epoch: Epoch,
        partitions: &[Hash],
        blobs: &dyn Blobs,
    ) -> Result<JobDone, WorkError> {
        let (codec, spec) = (self.codec(), Arc::clone(&self.spec));
        let limit = bridge::contribution_max(&spec, epoch);
        let stage = self.held()?;
        if stage.index != index || stage.version != epoch {
            let (stage, version) = (stage.index, stage.version);
            return Err(WorkError::OtherStage {
                stage,
                version,
                expected_stage: index,
                expected_version: epoch,
            });
        }
        let count = stage.base.len();
        let mut merged = Vec::with_capacity(count);
        for (i, hash) in partitions.iter().enumerate() {
            let range = partition_range(i, partitions.len(), count);
            match reachable(codec, &blob(blobs, *hash)?, range.len(), limit) {
                Ok(values) => merged.extend(values),
                // No reduction of contributions comes to that: whoever agreed on it lied. All replicas see so alike.
                Err(error) => {
                    tracing::warn!(stage = index.0, epoch = epoch.0, partition = i, %error, "merged partition is none, it changes nothing");
                    merged.resize(range.end, 0.0);
                }
            }
        }
        let earlier = stage.is_idle().then(|| blobs.moments(index, epoch.next())).flatten();
        stage.apply(&spec, epoch, (!partitions.is_empty()).then_some(&merged))?;
        // Its inner steps of this epoch were taken by an earlier process.
        if let Some(moments) = earlier {
            stage.take_moments(moments)?;
        }
        Ok(stage.done())
    }

    /// Losses with the weights held, or with a contribution taken from them; the weights held are as before then.
    fn losses(
        &mut self,
        samples: &[SampleId],
        contribution: Option<&Applied>,
        blobs: &dyn Blobs,
    ) -> Result<Vec<f64>, WorkError> {
        let batches = samples.iter().map(|sample| self.tokens(*sample)).collect::<Result<Vec<_>, _>>()?;
        let index = self.held()?.index;
        let applied = contribution
            .map(|applied| {
                let flat = contribution_of(&self.spec, index, &applied.partitions, blobs)??;
                Ok::<_, WorkError>((flat, applied.rate_ppm))
            })
            .transpose()?;
        self.held()?.losses(&batches, applied.as_ref().map(|(flat, rate_ppm)| (flat.as_slice(), *rate_ppm)))
    }

    fn codec(&self) -> Codec {
        bridge::codec(self.spec.merge.codec)
    }

    /// The activation, or at the head the tokens.
    fn input(
        &self,
        sample: SampleId,
        input: Option<Hash>,
        blobs: &dyn Blobs,
    ) -> Result<StageInput, WorkError> {
        match input {
            Some(hash) => self.frame(hash, blobs).map(StageInput::Activation),
            None => self.tokens(sample).map(StageInput::Tokens),
        }
    }

    fn tokens(&self, sample: SampleId) -> Result<TokenBatch, WorkError> {
        let corpus = self.corpus.as_ref().ok_or(WorkError::NoCorpus)?;
        Ok(corpus.sample(self.spec.seed, sample.0, self.spec.training.sequences_per_sample as usize))
    }

    fn frame(&self, hash: Hash, blobs: &dyn Blobs) -> Result<Frame, WorkError> {
        let dtype = bridge::dtype(self.spec.pipeline.activation_dtype);
        Ok(Frame::new(dtype, bridge::activation_shape(&self.spec), blob(blobs, hash)?)?)
    }
}

/// The numbers of a partition, if none is larger than inner steps can make it.
fn reachable(codec: Codec, bytes: &[u8], len: usize, limit: f64) -> Result<Vec<f32>, WorkError> {
    let values = codec.decode(bytes, len)?;
    match values.iter().enumerate().find(|(_, value)| f64::from(value.abs()) > limit) {
        None => Ok(values),
        Some((index, &value)) => Err(WorkError::Unreachable { index, value, limit }),
    }
}
