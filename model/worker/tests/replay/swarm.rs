//! A pipeline of workers with one miner in each stage, which writes receipts as miners do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use iota_model::Device;
use iota_model::data::Corpus;
use iota_protocol::miner::{Job, JobDone};
use iota_protocol::receipts::Receipt;
use iota_protocol::spec::{Bottleneck, TrainingMode};
use iota_protocol::wire::message::StateOffer;
use iota_protocol::{Epoch, Hash, RunSpec, SampleId, StageIndex};
use iota_worker::corpus::builtin_corpus;
use iota_worker::{Blobs, KeepError, Worker};

pub(crate) const STAGES: u16 = 3;
/// Samples of an epoch: more than fit the window, several in each inner step.
const SAMPLES: u64 = 12;
/// Inner steps of an epoch.
const INNER_STEPS: u32 = 3;
/// Samples that the head keeps in flight.
const WINDOW: usize = 5;

/// A model that trains in no time, and has several partitions in every stage.
pub(crate) fn spec(mode: TrainingMode) -> RunSpec {
    let mut spec: RunSpec = toml::from_str(iota_fixtures::BUILTIN_SPEC).expect("a spec");
    (spec.model.width, spec.model.hidden, spec.model.context) = (32, 64, 16);
    spec.model.bottleneck = Bottleneck::Width(8);
    spec.data.builtin_bytes.0 = 64 << 10;
    (spec.training.mode, spec.training.inner_steps) = (mode, INNER_STEPS);
    (spec.pipeline.stages, spec.merge.partitions_min) = (STAGES, 4);
    spec
}

/// All blobs of all miners.
#[derive(Clone, Default)]
pub(crate) struct Memory(BTreeMap<Hash, Bytes>);

impl Memory {
    pub(crate) fn insert(&mut self, bytes: Bytes) -> Hash {
        let hash = Hash::of(&bytes);
        self.0.insert(hash, bytes);
        hash
    }

    pub(crate) fn remove(&mut self, hash: Hash) {
        assert!(self.0.remove(&hash).is_some(), "it was here");
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

/// What a miner commits to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Commitment {
    pub(crate) stage: StageIndex,
    pub(crate) epoch: Epoch,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) partitions: Vec<Hash>,
    pub(crate) moments: Option<Hash>,
    pub(crate) moments_after: Option<Hash>,
    /// The state that the epoch started from; none of initial weights, which anybody can build.
    pub(crate) start: Option<StateOffer>,
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
    Up(usize, Option<Hash>),
    Down(usize, Hash),
}

pub(crate) struct Swarm {
    pub(crate) spec: Arc<RunSpec>,
    pub(crate) corpus: Arc<Corpus>,
    pub(crate) blobs: Memory,
    miners: Vec<Miner>,
    random: u64,
}

impl Swarm {
    pub(crate) fn new(mode: TrainingMode, seed: u64) -> Self {
        let spec = Arc::new(spec(mode));
        let corpus = Arc::new(builtin_corpus(&spec).expect("a long enough text"));
        let mut blobs = Memory::default();
        let miners = (0..STAGES).map(|stage| {
            let mut worker = Worker::new(Arc::clone(&spec), Device::Cpu, Some(Arc::clone(&corpus)));
            worker.perform(&Job::Initialise { stage: StageIndex(stage) }, &mut blobs);
            let receipts = BTreeMap::new();
            Miner { worker, start: None, steps: 0, unspent: false, turns: 0, receipts }
        });
        let miners = miners.collect();
        Self { spec, corpus, blobs, miners, random: seed }
    }

    /// Trains an epoch, in an order that the seed gives; returns what each stage's miner commits to.
    pub(crate) fn epoch(&mut self, epoch: Epoch) -> Vec<Commitment> {
        let first = u64::from(epoch.0) * SAMPLES;
        let mut open: BTreeMap<SampleId, Place> =
            (first..first + SAMPLES).map(|sample| (SampleId(sample), Place::Up(0, None))).collect();
        let mut in_flight = BTreeSet::new();
        while !open.is_empty() {
            let can = |sample: &&SampleId| in_flight.contains(*sample) || in_flight.len() < WINDOW;
            let ready: Vec<SampleId> = open.keys().filter(can).copied().collect();
            let sample = ready[self.draw(ready.len())];
            in_flight.insert(sample);
            match self.advance(epoch, sample, open[&sample]) {
                Some(place) => drop(open.insert(sample, place)),
                None => {
                    open.remove(&sample);
                    in_flight.remove(&sample);
                }
            }
        }
        (0..usize::from(STAGES)).map(|stage| self.contribute(stage, epoch)).collect()
    }

    /// Takes each stage's contribution for the merged vector, and the outer step.
    pub(crate) fn merge(&mut self, commitments: &[Commitment]) {
        for Commitment { stage, epoch, partitions, .. } in commitments {
            let apply = Job::Apply { stage: *stage, epoch: *epoch, partitions: partitions.clone() };
            let done = self.perform(stage.as_usize(), &apply);
            let JobDone::Weights { stage, version, hash } = done else { panic!("{done:?}") };
            let done = self.perform(stage.as_usize(), &Job::Snapshot { stage, version, hash });
            let JobDone::Snapshot(offer) = done else { panic!("{done:?}") };
            let miner = &mut self.miners[stage.as_usize()];
            (miner.start, miner.steps, miner.turns) = (Some(offer), 0, 0);
            miner.receipts.clear();
        }
    }

    fn perform(&mut self, stage: usize, job: &Job) -> JobDone {
        self.miners[stage].worker.perform(job, &mut self.blobs)
    }

    /// xorshift64*.
    fn draw(&mut self, below: usize) -> usize {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        usize::try_from((self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % below as u64)
            .expect("below")
    }

    /// A sample's next hop; returns where it is then.
    fn advance(&mut self, epoch: Epoch, sample: SampleId, place: Place) -> Option<Place> {
        let tail = usize::from(STAGES) - 1;
        match place {
            Place::Up(stage, input) if stage == tail => {
                self.received(stage, sample, input);
                let done = self.perform(stage, &Job::Loss { epoch, sample, input });
                self.finished(stage, epoch, &done)
            }
            Place::Up(stage, input) => {
                self.received(stage, sample, input);
                let done = self.perform(stage, &Job::Forward { epoch, sample, input });
                let JobDone::Forwarded { output, .. } = done else { panic!("{done:?}") };
                self.receipt(stage, sample).output = Some(output);
                Some(Place::Up(stage + 1, Some(output)))
            }
            Place::Down(stage, gradient) => {
                self.receipt(stage, sample).output_gradient = Some(gradient);
                let done = self.perform(stage, &Job::Backward { epoch, sample, gradient });
                self.finished(stage, epoch, &done)
            }
        }
    }

    fn receipt(&mut self, stage: usize, sample: SampleId) -> &mut Receipt {
        self.miners[stage].receipts.get_mut(&sample).expect("it was received")
    }

    fn received(&mut self, stage: usize, sample: SampleId, input: Option<Hash>) {
        let miner = &mut self.miners[stage];
        let receipt = Receipt {
            sample,
            upstream: None,
            downstream: None,
            input,
            output: None,
            output_gradient: None,
            input_gradient: None,
            loss_micro: None,
            inner_step: miner.steps,
            gradient_step: 0,
            turn: 0,
        };
        miner.receipts.insert(sample, receipt);
    }

    fn finished(&mut self, stage: usize, epoch: Epoch, done: &JobDone) -> Option<Place> {
        let JobDone::Finished { sample, input_gradient, loss_micro, .. } = *done else { panic!("{done:?}") };
        let miner = &mut self.miners[stage];
        let (steps, turn) = (miner.steps, miner.turns);
        (miner.turns, miner.unspent) = (turn + 1, true);
        let receipt = self.receipt(stage, sample);
        (receipt.input_gradient, receipt.loss_micro) = (input_gradient, loss_micro);
        (receipt.gradient_step, receipt.turn) = (steps, turn);
        if u64::from(turn + 1) * u64::from(INNER_STEPS) / SAMPLES > u64::from(steps) {
            self.step(stage, epoch);
        }
        Some(Place::Down(stage.checked_sub(1)?, input_gradient?))
    }

    fn step(&mut self, stage: usize, epoch: Epoch) {
        if self.spec.training.mode == TrainingMode::Local && self.miners[stage].unspent {
            let step = self.miners[stage].steps;
            assert_eq!(self.perform(stage, &Job::InnerStep { epoch, step }), JobDone::Stepped { epoch });
            (self.miners[stage].steps, self.miners[stage].unspent) = (step + 1, false);
        }
    }

    fn contribute(&mut self, stage: usize, epoch: Epoch) -> Commitment {
        self.step(stage, epoch);
        let (index, samples) =
            (StageIndex(u16::try_from(stage).expect("few")), u32::try_from(SAMPLES).expect("few"));
        let done = self.perform(stage, &Job::Contribute { stage: index, epoch, samples });
        let JobDone::Contributed { partitions, moments, moments_after, .. } = done else {
            panic!("{done:?}")
        };
        let miner = &self.miners[stage];
        let (receipts, start) = (miner.receipts.values().cloned().collect(), miner.start.clone());
        Commitment { stage: index, epoch, receipts, partitions, moments, moments_after, start }
    }
}
