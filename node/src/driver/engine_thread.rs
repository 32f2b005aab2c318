//! The engine on its own thread: takes the protocol's jobs, speaks tensors.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use iota_model::checkpoint::Checkpoint;
use iota_model::codec::Codec;
use iota_model::data::Corpus;
use iota_model::flat::{Parameter, StageLayout};
use iota_model::outer::{OuterConfig, OuterState};
use iota_model::reduce::{Reducer, reduce};
use iota_model::{
    Device, Frame, StageEngine, StageInput, StageSelect, TokenBatch, build_engine, weights_hash,
};
use iota_protocol::limits::PARTITION_BYTES_MAX;
use iota_protocol::merge::partition_range;
use iota_protocol::miner::outbox::{state_tag, tag};
use iota_protocol::miner::{Job, JobDone};
use iota_protocol::spec::{ReducerName, TrainingMode, WireDtype};
use iota_protocol::wire::message::StateOffer;
use iota_protocol::{Epoch, Hash, PartitionIndex, PeerId, RunSpec, SampleId, StageIndex};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::vault::Vault;
use crate::bridge;

/// Bytes of one blob of a snapshot. Small enough to resume, large enough to stream.
const SNAPSHOT_PART_BYTES: usize = 4 << 20;
/// Niceness of the engine's thread: a third of the share of a thread at zero, when both want the same core.
#[cfg(target_os = "linux")]
const ENGINE_NICENESS: i32 = 5;
const _: () =
    assert!(SNAPSHOT_PART_BYTES <= PARTITION_BYTES_MAX, "a part of a state is fetched like a partition");

/// Something for the engine's thread.
pub(crate) enum Order {
    /// A job of the protocol.
    Job(Job),
    /// Write the weights to a folder; answers with the file.
    Checkpoint(PathBuf, oneshot::Sender<Result<PathBuf, String>>),
}

/// What the engine's thread needs.
pub(crate) struct EngineSetup {
    pub(crate) spec: Arc<RunSpec>,
    pub(crate) device: Device,
    pub(crate) corpus: Option<Arc<Corpus>>,
    pub(crate) vault: Vault,
    pub(crate) runtime: Handle,
}

/// Starts the thread. It ends when the sender of orders is dropped.
///
/// # Errors
/// What the system said about starting a thread.
pub(crate) fn start(
    setup: EngineSetup,
) -> std::io::Result<(mpsc::UnboundedSender<Order>, mpsc::UnboundedReceiver<JobDone>, thread::JoinHandle<()>)>
{
    // The protocol has at most one job under way, so neither queue grows.
    let (orders, mut inbox) = mpsc::unbounded_channel();
    let (outbox, results) = mpsc::unbounded_channel();
    let thread = thread::Builder::new().name("engine".to_owned()).spawn(move || {
        yield_to_network();
        let mut worker = Worker { setup, stage: None };
        while let Some(order) = inbox.blocking_recv() {
            match order {
                Order::Job(job) => {
                    let done = worker
                        .work(&job)
                        .unwrap_or_else(|reason| JobDone::Failed(format!("{}: {reason}", name(&job))));
                    if outbox.send(done).is_err() {
                        break;
                    }
                }
                Order::Checkpoint(folder, answer) => drop(answer.send(worker.checkpoint(&folder))),
            }
        }
    })?;
    Ok((orders, results, thread))
}

/// Lowers this thread's priority, and with it that of the compute threads it will start: a message that
/// waits for a core delays a peer, a tensor that waits delays nobody else.
fn yield_to_network() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, ENGINE_NICENESS) {
        tracing::debug!(%error, "engine keeps its priority");
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
    }
}

type Outcome<T> = Result<T, String>;

struct Worker {
    setup: EngineSetup,
    stage: Option<Stage>,
}

/// The stage held: the engine trains on from `base`, which only a merge changes.
struct Stage {
    index: StageIndex,
    version: Epoch,
    engine: Box<dyn StageEngine>,
    layout: Vec<Parameter>,
    base: Vec<f32>,
    outer_config: OuterConfig,
    outer: OuterState,
    slots: BTreeSet<u64>,
}

impl Stage {
    fn hash(&self) -> Hash {
        Hash(weights_hash(&self.base))
    }

    fn done(&self) -> JobDone {
        JobDone::Weights { stage: self.index, version: self.version, hash: self.hash() }
    }

    /// Back to `base`, with nothing under way.
    fn reset(&mut self) -> Outcome<()> {
        for slot in std::mem::take(&mut self.slots) {
            self.engine.discard(slot);
        }
        self.engine.clear_gradient();
        self.engine.load_weights(&self.base).map_err(text)
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Worker {
    fn work(&mut self, job: &Job) -> Outcome<JobDone> {
        match job {
            Job::Initialise { stage } => self.initialise(*stage),
            Job::Load { stage, version, weights, parts } => self.load(*stage, *version, *weights, parts),
            Job::Snapshot { stage, version, hash } => self.snapshot(*stage, *version, *hash),
            Job::Reset => self.held()?.reset().map(|()| JobDone::Reset),
            Job::Forward { epoch, sample, input } => self.forward(*epoch, *sample, *input),
            Job::Loss { epoch, sample, input } => self.loss(*epoch, *sample, *input),
            Job::Backward { epoch, sample, gradient } => self.backward(*epoch, *sample, *gradient),
            Job::InnerStep { epoch, step } => {
                let rate = bridge::learning_rate(&self.setup.spec, *epoch, *step);
                self.held()?.engine.inner_step(rate).map_err(text)?;
                Ok(JobDone::Stepped { epoch: *epoch })
            }
            Job::Contribute { stage, epoch, .. } => self.contribute(*stage, *epoch),
            Job::Reduce { stage, epoch, partition, inputs } => {
                self.reduce(*stage, *epoch, *partition, inputs)
            }
            Job::Apply { stage, epoch, partitions } => self.apply(*stage, *epoch, partitions),
        }
    }

    fn held(&mut self) -> Outcome<&mut Stage> {
        self.stage.as_mut().ok_or_else(|| "no stage is held".to_owned())
    }

    fn initialise(&mut self, index: StageIndex) -> Outcome<JobDone> {
        let spec = &self.setup.spec;
        let config = bridge::engine_config(spec, StageSelect::Stage(index.as_usize()));
        // The old engine's memory is needed for the new one.
        self.stage = None;
        let mut engine = build_engine(&config, &self.setup.device).map_err(text)?;
        let base = engine.weights().map_err(text)?;
        let outer_config = bridge::outer_config(spec, index.as_usize());
        let stage = Stage {
            index,
            version: Epoch(0),
            layout: StageLayout::of(&config.model, index.as_usize()).parameters().to_vec(),
            outer: outer_config.init(base.len()),
            outer_config,
            engine,
            base,
            slots: BTreeSet::new(),
        };
        let done = stage.done();
        self.stage = Some(stage);
        Ok(done)
    }

    /// State on the wire: weights, outer optimizer state (both little-endian f32), its step count (u64).
    fn snapshot(&mut self, index: StageIndex, version: Epoch, hash: Hash) -> Outcome<JobDone> {
        let stage = self.held()?;
        let mut state: Vec<u8> = bytemuck::cast_slice(&stage.base).to_vec();
        state.extend_from_slice(bytemuck::cast_slice(&stage.outer.to_flat()));
        state.extend_from_slice(&stage.outer.steps().to_le_bytes());
        let parts = Bytes::from(state);
        let parts = (0..parts.len())
            .step_by(SNAPSHOT_PART_BYTES)
            .map(|start| parts.slice(start..parts.len().min(start + SNAPSHOT_PART_BYTES)));
        let parts = self.publish(parts.collect(), &state_tag(index, version))?;
        Ok(JobDone::Snapshot(StateOffer { stage: index, version, weights: hash, parts }))
    }

    fn load(&mut self, index: StageIndex, version: Epoch, weights: Hash, parts: &[Hash]) -> Outcome<JobDone> {
        let mut state = Vec::new();
        for part in parts {
            state.extend_from_slice(&self.blob(*part)?);
        }
        let stage = self.held()?;
        let count = stage.base.len();
        let body =
            state.len().checked_sub(8).filter(|len| len.is_multiple_of(4)).ok_or("state is truncated")?;
        let (numbers, steps) = state.split_at(body);
        let numbers: Vec<f32> = bytemuck::pod_collect_to_vec(numbers);
        let steps = u64::from_le_bytes(steps.try_into().map_err(text)?);
        if numbers.len() < count {
            return Err(format!("state holds {} numbers, expected at least {count}", numbers.len()));
        }
        let (base, outer) = numbers.split_at(count);
        let got = Hash(weights_hash(base));
        if got != weights {
            return Err(format!("weights have hash {got}, expected {weights}"));
        }
        stage.outer = OuterState::from_flat(&stage.outer_config, count, outer, steps).map_err(text)?;
        stage.base = base.to_vec();
        stage.version = version;
        debug_assert_eq!(stage.index, index, "the protocol asks for the stage it holds");
        stage.reset()?;
        Ok(stage.done())
    }

    fn forward(&mut self, epoch: Epoch, sample: SampleId, input: Option<Hash>) -> Outcome<JobDone> {
        let input = self.input(sample, input)?;
        let stage = self.held()?;
        stage.slots.insert(sample.0);
        let output = stage.engine.forward(sample.0, input).map_err(text)?;
        let tag = tag(stage.index, epoch);
        let output = self.setup.vault.keep_blocking(output.bytes, &tag);
        Ok(JobDone::Forwarded { epoch, sample, output })
    }

    fn loss(&mut self, epoch: Epoch, sample: SampleId, input: Option<Hash>) -> Outcome<JobDone> {
        let input = self.input(sample, input)?;
        let targets = self.tokens(sample)?;
        let stage = self.held()?;
        let output = stage.engine.forward_loss(input, &targets).map_err(text)?;
        if !output.loss.is_finite() {
            return Err(format!("loss of sample {sample} is {}: training diverged", output.loss));
        }
        let tag = tag(stage.index, epoch);
        let input_gradient =
            output.input_gradient.map(|frame| self.setup.vault.keep_blocking(frame.bytes, &tag));
        #[expect(clippy::cast_possible_truncation, reason = "a loss of a few nats, in millionths")]
        let loss_micro = (f64::from(output.loss) * 1e6).round() as i64;
        Ok(JobDone::Finished { epoch, sample, input_gradient, loss_micro: Some(loss_micro) })
    }

    fn backward(&mut self, epoch: Epoch, sample: SampleId, gradient: Hash) -> Outcome<JobDone> {
        let gradient = self.frame(gradient)?;
        let stage = self.held()?;
        stage.slots.remove(&sample.0);
        let output = stage.engine.backward(sample.0, gradient).map_err(text)?;
        let tag = tag(stage.index, epoch);
        let input_gradient = output.map(|frame| self.setup.vault.keep_blocking(frame.bytes, &tag));
        Ok(JobDone::Finished { epoch, sample, input_gradient, loss_micro: None })
    }

    /// In `synchronous` mode the mean gradient; in `local` mode how far the inner steps went, as start − end.
    fn contribute(&mut self, index: StageIndex, epoch: Epoch) -> Outcome<JobDone> {
        let (mode, codec) = (self.setup.spec.training.mode, self.codec());
        let stage = self.held()?;
        let flat = match mode {
            TrainingMode::Synchronous => {
                let samples = stage.engine.accumulated_samples().max(1);
                #[expect(clippy::cast_precision_loss, reason = "a count of samples, far below 2^24")]
                let count = samples as f32;
                let sum = stage.engine.gradient_sum().map_err(text)?;
                sum.into_iter().map(|gradient| gradient / count).collect::<Vec<_>>()
            }
            TrainingMode::Local => {
                let end = stage.engine.weights().map_err(text)?;
                stage.base.iter().zip(end).map(|(start, end)| start - end).collect()
            }
        };
        let count = self.setup.spec.partitions(flat.len());
        let encoded =
            (0..count).map(|i| codec.encode(&flat[partition_range(i, count, flat.len())]).map(Bytes::from));
        let encoded: Vec<Bytes> = encoded.collect::<Result<_, _>>().map_err(text)?;
        let partitions = self.publish(encoded, &tag(index, epoch))?;
        Ok(JobDone::Contributed { epoch, partitions })
    }

    fn reduce(
        &mut self,
        index: StageIndex,
        epoch: Epoch,
        partition: PartitionIndex,
        inputs: &[(PeerId, u32, Hash)],
    ) -> Outcome<JobDone> {
        let spec = &self.setup.spec;
        let parameters = bridge::model_config(spec).parameter_count(index.as_usize());
        let range = partition_range(partition.0 as usize, spec.partitions(parameters), parameters);
        let codec = self.codec();
        let mut parts = Vec::new();
        for (peer, weight, hash) in inputs {
            match codec.decode(&self.blob(*hash)?, range.len()) {
                Ok(values) => parts.push((f64::from(*weight), values)),
                Err(error) => {
                    tracing::warn!(peer = %peer.short(), %error, "contribution is no valid partition");
                    return Ok(JobDone::Reduced { stage: index, partition, merged: Err(*peer) });
                }
            }
        }
        let reducer = match spec.merge.reducer {
            ReducerName::WeightedMean => Reducer::WeightedMean,
            ReducerName::GeometricMean => Reducer::GeometricMean,
        };
        let views: Vec<(f64, &[f32])> =
            parts.iter().map(|(weight, values)| (*weight, values.as_slice())).collect();
        let merged = codec.encode(&reduce(&views, reducer).map_err(text)?).map_err(text)?;
        let merged = self.publish(vec![Bytes::from(merged)], &tag(index, epoch))?;
        let merged = merged.first().copied().ok_or("nothing was stored")?;
        Ok(JobDone::Reduced { stage: index, partition, merged: Ok(merged) })
    }

    fn apply(&mut self, index: StageIndex, epoch: Epoch, partitions: &[Hash]) -> Outcome<JobDone> {
        let codec = self.codec();
        let rate = bridge::outer_learning_rate(&self.setup.spec, epoch);
        let count = self.held()?.base.len();
        let mut merged = Vec::with_capacity(count);
        for (i, hash) in partitions.iter().enumerate() {
            let range = partition_range(i, partitions.len(), count);
            merged.extend(codec.decode(&self.blob(*hash)?, range.len()).map_err(text)?);
        }
        let stage = self.held()?;
        if stage.index != index || stage.version != epoch {
            return Err(format!(
                "holds stage {} version {}, expected {index} and {epoch}",
                stage.index, stage.version
            ));
        }
        if !partitions.is_empty() {
            let (outer, base) = (&mut stage.outer, &mut stage.base);
            stage.outer_config.step(outer, &stage.layout, base, &merged, rate).map_err(text)?;
        }
        stage.version = epoch.next();
        stage.reset()?;
        Ok(stage.done())
    }

    fn checkpoint(&mut self, folder: &std::path::Path) -> Outcome<PathBuf> {
        let model = bridge::model_config(&self.setup.spec);
        let stage = self.held()?;
        std::fs::create_dir_all(folder).map_err(text)?;
        let checkpoint = Checkpoint {
            model,
            stage: Some(stage.index.as_usize()),
            version: u64::from(stage.version.0),
            weights: stage.base.clone(),
        };
        checkpoint.save(folder).map_err(text)
    }

    fn codec(&self) -> Codec {
        match self.setup.spec.merge.codec {
            WireDtype::F32 => Codec::F32,
            WireDtype::Bf16 => Codec::Bf16,
        }
    }

    /// The activation, or at the head the tokens.
    fn input(&self, sample: SampleId, input: Option<Hash>) -> Outcome<StageInput> {
        match input {
            Some(hash) => self.frame(hash).map(StageInput::Activation),
            None => self.tokens(sample).map(StageInput::Tokens),
        }
    }

    fn tokens(&self, sample: SampleId) -> Outcome<TokenBatch> {
        let spec = &self.setup.spec;
        let corpus = self.setup.corpus.as_ref().ok_or("this node has no corpus")?;
        Ok(corpus.sample(spec.seed, sample.0, spec.training.sequences_per_sample as usize))
    }

    fn frame(&self, hash: Hash) -> Outcome<Frame> {
        let spec = &self.setup.spec;
        let model = bridge::model_config(spec);
        let shape = vec![spec.training.sequences_per_sample as usize, model.context, model.wire_width()];
        Frame::new(bridge::dtype(spec.pipeline.activation_dtype), shape, self.blob(hash)?).map_err(text)
    }

    fn blob(&self, hash: Hash) -> Outcome<Bytes> {
        self.setup
            .runtime
            .block_on(self.setup.vault.get(hash))
            .ok_or_else(|| format!("blob {hash} is not here"))
    }

    /// Stores blobs that others will fetch, and returns when they can.
    fn publish(&self, blobs: Vec<Bytes>, tag: &str) -> Outcome<Vec<Hash>> {
        let vault = &self.setup.vault;
        let all = futures::future::try_join_all(blobs.into_iter().map(|bytes| vault.publish(bytes, tag)));
        self.setup.runtime.block_on(all).map_err(text)
    }
}
