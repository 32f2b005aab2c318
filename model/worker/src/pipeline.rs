//! A whole pipeline in this process: one miner in each stage, which train as those of a run do and commit to what they did.
//!
//! What a validator is given can so be made without a swarm, and gone through again on another device:
//! [`calibration`](crate::calibration) measures how far apart the two are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use iota_model::Device;
use iota_model::data::Corpus;
use iota_protocol::miner::{Job, JobDone};
use iota_protocol::receipts::order::{BadReceipts, Step, replay};
use iota_protocol::receipts::{Receipt, Received};
use iota_protocol::spec::TrainingMode;
use iota_protocol::wire::message::StateOffer;
use iota_protocol::{Epoch, Hash, RunSpec, SampleId, StageIndex};

use crate::blobs::{Blobs, KeepError};
use crate::worker::Worker;

/// Says why a pipeline did not go on.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A job could not be done.
    #[error("{0}")]
    Failed(String),
    /// A job gave what another job gives.
    #[error("an engine gave {0:?}, which is no result of its job")]
    Unexpected(Box<JobDone>),
    /// These receipts cannot be gone through again.
    #[error(transparent)]
    Receipts(#[from] BadReceipts),
}

impl From<JobDone> for PipelineError {
    fn from(done: JobDone) -> Self {
        match done {
            JobDone::Failed(reason) => Self::Failed(reason),
            other => Self::Unexpected(Box::new(other)),
        }
    }
}

/// The blobs of all miners.
#[derive(Clone, Debug, Default)]
pub struct Memory(BTreeMap<Hash, Bytes>);

impl Memory {
    /// Keeps bytes under their hash.
    pub fn insert(&mut self, bytes: Bytes) -> Hash {
        let hash = Hash::of(&bytes);
        self.0.insert(hash, bytes);
        hash
    }

    /// Lets go of bytes, and returns whether they were here.
    pub fn remove(&mut self, hash: Hash) -> bool {
        self.0.remove(&hash).is_some()
    }
}

impl Blobs for Memory {
    fn blob(&self, hash: Hash) -> Option<Bytes> {
        self.0.get(&hash).cloned()
    }

    fn keep(&mut self, bytes: Bytes, _: &str) -> Result<Hash, KeepError> {
        Ok(self.insert(bytes))
    }

    fn publish(&mut self, blobs: Vec<Bytes>, _: &str) -> Result<Vec<Hash>, KeepError> {
        Ok(blobs.into_iter().map(|bytes| self.insert(bytes)).collect())
    }
}

/// What a miner commits to at the end of an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Commitment {
    /// Its stage.
    pub stage: StageIndex,
    /// The epoch.
    pub epoch: Epoch,
    /// Of all samples, in ascending order.
    pub receipts: Vec<Receipt>,
    /// The partitions of its contribution.
    pub partitions: Vec<Hash>,
    /// The inner optimizer's moments that the epoch started from.
    pub moments: Option<Hash>,
    /// Those that it ended with.
    pub moments_after: Option<Hash>,
    /// The state that the epoch started from; none of initial weights, which anybody can build.
    pub start: Option<StateOffer>,
}

/// A commitment gone through again.
#[derive(Debug)]
pub struct Replayed {
    /// What comes of the receipts.
    pub commitment: Commitment,
    /// What each step gave.
    pub steps: Vec<(Step, JobDone)>,
}

/// The receipts of a miner that added the gradients of each inner step in the order of `key`.
#[must_use]
pub fn reordered(mut receipts: Vec<Receipt>, key: impl Fn(&Receipt) -> u64) -> Vec<Receipt> {
    let mut turns: Vec<usize> = (0..receipts.len()).collect();
    turns.sort_by_key(|index| (receipts[*index].gradient_step, key(&receipts[*index])));
    for (turn, index) in (0..).zip(turns) {
        receipts[index].turn = turn;
    }
    receipts
}

struct Miner {
    worker: Worker,
    start: Option<StateOffer>,
    steps: u32,
    unspent: bool,
    turns: u32,
    receipts: BTreeMap<SampleId, Receipt>,
}

/// Where a sample is: on its way to a stage, with what that stage is given.
#[derive(Clone, Copy)]
enum Place {
    Up(StageIndex, Option<Hash>),
    Down(StageIndex, Hash),
}

/// One miner in each stage of a run, and all blobs.
pub struct Pipeline {
    spec: Arc<RunSpec>,
    corpus: Arc<Corpus>,
    /// What the miners published, and what else is put there.
    pub blobs: Memory,
    miners: Vec<Miner>,
    random: u64,
}

impl std::fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("blobs", &self.blobs.0.len()).finish_non_exhaustive()
    }
}

impl Pipeline {
    /// Builds the run's initial weights on `device`. `order` draws in which order samples overtake each other.
    ///
    /// # Errors
    /// [`PipelineError::Failed`] if the device is not there or the model does not fit it.
    pub fn new(
        spec: Arc<RunSpec>,
        corpus: Arc<Corpus>,
        device: Device,
        order: u64,
    ) -> Result<Self, PipelineError> {
        let mut blobs = Memory::default();
        let miner = |stage| {
            let mut worker = Worker::new(Arc::clone(&spec), device, Some(Arc::clone(&corpus)));
            let done = worker.perform(&Job::Initialise { stage }, &mut blobs);
            let JobDone::Weights { .. } = done else { return Err(done.into()) };
            Ok(Miner { worker, start: None, steps: 0, unspent: false, turns: 0, receipts: BTreeMap::new() })
        };
        let miners = spec.stages().map(miner).collect::<Result<_, PipelineError>>()?;
        Ok(Self { spec, corpus, blobs, miners, random: order.max(1) })
    }

    /// The run.
    #[must_use]
    pub const fn spec(&self) -> &Arc<RunSpec> {
        &self.spec
    }

    /// Trains an epoch, of which at most a window's samples are under way; returns what each stage's miner commits to.
    ///
    /// # Errors
    /// A job failed, or training diverged.
    pub fn epoch(&mut self, epoch: Epoch) -> Result<Vec<Commitment>, PipelineError> {
        let samples = u64::from(self.spec.training.samples_per_epoch);
        let first = u64::from(epoch.0) * samples;
        let start = Place::Up(StageIndex(0), None);
        let mut open: BTreeMap<SampleId, Place> =
            (first..first + samples).map(|sample| (SampleId(sample), start)).collect();
        let window = usize::from(self.spec.pipeline.window);
        let mut in_flight = BTreeSet::new();
        while !open.is_empty() {
            let can =
                |(sample, _): &(&SampleId, &Place)| in_flight.contains(*sample) || in_flight.len() < window;
            let ready: Vec<(SampleId, Place)> =
                open.iter().filter(can).map(|(sample, place)| (*sample, *place)).collect();
            let (sample, place) = ready[self.draw(ready.len())];
            in_flight.insert(sample);
            match self.advance(epoch, sample, place)? {
                Some(place) => drop(open.insert(sample, place)),
                None => {
                    open.remove(&sample);
                    in_flight.remove(&sample);
                }
            }
        }
        let stages: Vec<StageIndex> = self.spec.stages().collect();
        stages.into_iter().map(|stage| self.contribute(stage, epoch)).collect()
    }

    /// Takes each stage's contribution for the merged vector, and the outer step.
    ///
    /// # Errors
    /// A job failed.
    pub fn merge(&mut self, commitments: &[Commitment]) -> Result<(), PipelineError> {
        for Commitment { stage, epoch, partitions, .. } in commitments {
            let apply = Job::Apply { stage: *stage, epoch: *epoch, partitions: partitions.clone() };
            let done = self.perform(*stage, &apply);
            let JobDone::Weights { stage, version, hash } = done else { return Err(done.into()) };
            let done = self.perform(stage, &Job::Snapshot { stage, version, hash });
            let JobDone::Snapshot(offer) = done else { return Err(done.into()) };
            let miner = self.miner(stage);
            (miner.start, miner.steps, miner.turns) = (Some(offer), 0, 0);
            miner.receipts.clear();
        }
        Ok(())
    }

    /// A worker on `device` that holds what this commitment's epoch started from.
    ///
    /// # Errors
    /// [`PipelineError::Failed`] if what it needs is not among the blobs.
    pub fn validator(&mut self, of: &Commitment, device: Device) -> Result<Worker, PipelineError> {
        let mut worker = Worker::new(Arc::clone(&self.spec), device, Some(Arc::clone(&self.corpus)));
        let load = of.start.as_ref().map(|start| Job::Load {
            stage: start.stage,
            version: start.version,
            weights: start.weights,
            parts: start.parts.clone(),
            moments: of.moments,
        });
        for job in [Some(Job::Initialise { stage: of.stage }), load].into_iter().flatten() {
            let done = worker.perform(&job, &mut self.blobs);
            let JobDone::Weights { .. } = done else { return Err(done.into()) };
        }
        Ok(worker)
    }

    /// Goes through a miner's epoch again on `device`, as a validator does.
    ///
    /// # Errors
    /// The receipts cannot be gone through, or a job failed.
    pub fn replay(&mut self, of: &Commitment, device: Device) -> Result<Replayed, PipelineError> {
        let mut worker = self.validator(of, device)?;
        let mut steps = Vec::new();
        for step in replay(&self.spec, of.stage, &of.receipts)? {
            let job = step.job(of.epoch, &of.receipts);
            let job =
                job.ok_or_else(|| PipelineError::Failed(format!("{step:?} has nothing to start from")))?;
            match worker.perform(&job, &mut self.blobs) {
                JobDone::Failed(reason) => return Err(PipelineError::Failed(reason)),
                done => steps.push((step, done)),
            }
        }
        let samples = u32::try_from(of.receipts.len()).unwrap_or(u32::MAX);
        let contribute = Job::Contribute { stage: of.stage, epoch: of.epoch, samples };
        let done = worker.perform(&contribute, &mut self.blobs);
        let JobDone::Contributed { partitions, moments, moments_after, .. } = done else {
            return Err(done.into());
        };
        Ok(Replayed { commitment: Commitment { partitions, moments, moments_after, ..of.clone() }, steps })
    }

    fn miner(&mut self, stage: StageIndex) -> &mut Miner {
        &mut self.miners[stage.as_usize()]
    }

    fn perform(&mut self, stage: StageIndex, job: &Job) -> JobDone {
        self.miners[stage.as_usize()].worker.perform(job, &mut self.blobs)
    }

    /// xorshift64*.
    fn draw(&mut self, below: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        usize::try_from((self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below as u64)
            .unwrap_or_default()
    }

    /// A sample's next hop; returns where it is then.
    fn advance(
        &mut self,
        epoch: Epoch,
        sample: SampleId,
        place: Place,
    ) -> Result<Option<Place>, PipelineError> {
        let tail = self.spec.pipeline.stages - 1;
        match place {
            Place::Up(stage, input) if stage.0 == tail => {
                self.received(stage, sample, input);
                let done = self.perform(stage, &Job::Loss { epoch, sample, input });
                self.finished(stage, epoch, done)
            }
            Place::Up(stage, input) => {
                self.received(stage, sample, input);
                let done = self.perform(stage, &Job::Forward { epoch, sample, input });
                let JobDone::Forwarded { output, .. } = done else { return Err(done.into()) };
                self.receipt(stage, sample).output = Some(output);
                Ok(Some(Place::Up(StageIndex(stage.0 + 1), Some(output))))
            }
            Place::Down(stage, gradient) => {
                self.receipt(stage, sample).output_gradient = Some(Received::unsigned(gradient));
                let done = self.perform(stage, &Job::Backward { epoch, sample, gradient });
                self.finished(stage, epoch, done)
            }
        }
    }

    fn receipt(&mut self, stage: StageIndex, sample: SampleId) -> &mut Receipt {
        let miner = self.miner(stage);
        let steps = miner.steps;
        let entry = miner.receipts.entry(sample);
        entry.or_insert_with(|| Receipt { inner_step: steps, ..Receipt::new(sample) })
    }

    fn received(&mut self, stage: StageIndex, sample: SampleId, input: Option<Hash>) {
        self.receipt(stage, sample).input = input.map(Received::unsigned);
    }

    fn finished(
        &mut self,
        stage: StageIndex,
        epoch: Epoch,
        done: JobDone,
    ) -> Result<Option<Place>, PipelineError> {
        let JobDone::Finished { sample, input_gradient, loss_micro, .. } = done else {
            return Err(done.into());
        };
        let miner = self.miner(stage);
        let (steps, turn) = (miner.steps, miner.turns);
        (miner.turns, miner.unspent) = (turn + 1, true);
        let receipt = self.receipt(stage, sample);
        (receipt.input_gradient, receipt.loss_micro) = (input_gradient, loss_micro);
        (receipt.gradient_step, receipt.turn) = (steps, turn);
        let training = &self.spec.training;
        let due =
            u64::from(turn + 1) * u64::from(training.inner_steps) / u64::from(training.samples_per_epoch);
        if due > u64::from(steps) {
            self.step(stage, epoch)?;
        }
        let up = stage.0.checked_sub(1).map(StageIndex);
        Ok(up.zip(input_gradient).map(|(stage, gradient)| Place::Down(stage, gradient)))
    }

    fn step(&mut self, stage: StageIndex, epoch: Epoch) -> Result<(), PipelineError> {
        let miner = &self.miners[stage.as_usize()];
        if self.spec.training.mode != TrainingMode::Local || !miner.unspent {
            return Ok(());
        }
        let step = miner.steps;
        let done = self.perform(stage, &Job::InnerStep { epoch, step });
        let JobDone::Stepped { .. } = done else { return Err(done.into()) };
        let miner = self.miner(stage);
        (miner.steps, miner.unspent) = (step + 1, false);
        Ok(())
    }

    fn contribute(&mut self, stage: StageIndex, epoch: Epoch) -> Result<Commitment, PipelineError> {
        self.step(stage, epoch)?;
        let samples = self.spec.training.samples_per_epoch;
        let done = self.perform(stage, &Job::Contribute { stage, epoch, samples });
        let JobDone::Contributed { partitions, moments, moments_after, .. } = done else {
            return Err(done.into());
        };
        let miner = self.miner(stage);
        let (receipts, start) = (miner.receipts.values().cloned().collect(), miner.start.clone());
        Ok(Commitment { stage, epoch, receipts, partitions, moments, moments_after, start })
    }
}
