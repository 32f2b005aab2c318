//! The one-process control: the run of a spec without a swarm, on the same samples and the same model.
//!
//! - `synchronous`: each epoch sums the gradients of its samples in order and takes one outer `AdamW` step per stage,
//!   clipped as a stage clips. The swarm does the same arithmetic up to the order of additions.
//! - `local`: plain `AdamW` on one big batch. An epoch's samples are cut into *H* equal steps, so the control takes
//!   `epochs × H` steps under the swarm's own schedule, each on as many samples as all replicas of a stage
//!   together spend on one inner step: equal tokens, equal number of steps, no drift between replicas. It is what
//!   `DiLoCo` is usually compared with, and a bound that local steps should come close to.
//!
//! Its time excludes building the model and validation, as the swarm's does.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use iota_model::data::Corpus;
use iota_model::flat::StageLayout;
use iota_model::outer::{OuterConfig, OuterState};
use iota_model::{Device, StageEngine, StageInput, StageSelect};
use iota_protocol::spec::TrainingMode;
use iota_protocol::{Epoch, RunSpec};
use serde::{Deserialize, Serialize};

use crate::bridge::{engine_config, learning_rate, model_config, outer_config, outer_learning_rate};
use crate::corpus::open_corpus;
use crate::error::CliError;
use crate::evaluation::{bug, build, mean_loss, tokens_per_sample, validation_batches};
use crate::report::Trained;

/// A line of the control's output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ControlEvent {
    /// An epoch is trained.
    Epoch {
        /// Which.
        epoch: u32,
        /// Its mean training loss in nats per token.
        loss: f64,
    },
    /// All epochs are trained and the model is measured.
    Done(ControlReport),
}

/// What the control found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlReport {
    /// Its result and speed.
    #[serde(flatten)]
    pub trained: Trained,
    /// Mean training loss of each epoch in nats per token.
    pub losses: Vec<f64>,
}

/// Trains the run of `spec` and measures the result; `tell` hears the loss of each epoch.
///
/// # Errors
/// The corpus or the device is not there, or training diverged.
pub fn train(
    spec: &RunSpec,
    data: Option<&Path>,
    device: Device,
    mut tell: impl FnMut(u32, f64),
) -> Result<ControlReport, CliError> {
    let corpus = open_corpus(spec, data)?;
    let mut engine = build(&engine_config(spec, StageSelect::Whole), device)?;
    let mut outer = outer_steps(spec);
    let mut losses = Vec::new();
    let start = Instant::now();
    for epoch in (0..spec.training.epochs).map(Epoch) {
        let loss = match spec.training.mode {
            TrainingMode::Synchronous => {
                let loss = accumulate(spec, &corpus, engine.as_mut(), samples(spec, epoch, 0, 1))?;
                step_outer(&mut outer, engine.as_mut(), outer_learning_rate(spec, epoch))?;
                loss
            }
            TrainingMode::Local => local_epoch(spec, &corpus, engine.as_mut(), epoch)?,
        };
        tell(epoch.0, loss);
        losses.push(loss);
    }
    let seconds = start.elapsed().as_secs_f64();
    let loss = mean_loss(engine.as_mut(), &validation_batches(spec, &corpus))?;
    let samples = u64::from(spec.training.epochs) * u64::from(spec.training.samples_per_epoch);
    let trained = Trained {
        loss_nats: loss.nats,
        bits_per_byte: loss.bits_per_byte,
        tokens: samples * tokens_per_sample(spec),
        seconds,
    };
    Ok(ControlReport { trained, losses })
}

/// The samples of part `part` of `parts` of an epoch.
fn samples(spec: &RunSpec, epoch: Epoch, part: u64, parts: u64) -> Range<u64> {
    let count = u64::from(spec.training.samples_per_epoch);
    let first = u64::from(epoch.0) * count;
    first + count * part / parts..first + count * (part + 1) / parts
}

/// One epoch of big-batch steps; returns its mean loss.
fn local_epoch(
    spec: &RunSpec,
    corpus: &Corpus,
    engine: &mut dyn StageEngine,
    epoch: Epoch,
) -> Result<f64, CliError> {
    let (steps, mut sum) = (spec.training.inner_steps, 0.0);
    for step in 0..steps {
        let range = samples(spec, epoch, u64::from(step), u64::from(steps));
        if range.is_empty() {
            continue;
        }
        #[expect(clippy::cast_precision_loss, reason = "samples of an epoch are at most 2^20")]
        let weight = (range.end - range.start) as f64;
        sum += weight * accumulate(spec, corpus, engine, range)?;
        engine.inner_step(learning_rate(spec, epoch, step)).map_err(bug)?;
    }
    Ok(sum / f64::from(spec.training.samples_per_epoch))
}

/// Adds the gradients of the samples in `range`, in order; returns their mean loss.
fn accumulate(
    spec: &RunSpec,
    corpus: &Corpus,
    engine: &mut dyn StageEngine,
    range: Range<u64>,
) -> Result<f64, CliError> {
    let sequences = spec.training.sequences_per_sample as usize;
    #[expect(clippy::cast_precision_loss, reason = "samples of an epoch are at most 2^20")]
    let count = (range.end - range.start).max(1) as f64;
    let mut sum = 0.0;
    for index in range {
        let batch = corpus.sample(spec.seed, index, sequences);
        let output = engine.forward_loss(StageInput::Tokens(batch.clone()), &batch).map_err(bug)?;
        sum += f64::from(output.loss);
    }
    Ok(sum / count)
}

/// One stage of the whole model and its outer optimizer.
struct OuterStep {
    range: Range<usize>,
    layout: StageLayout,
    config: OuterConfig,
    state: OuterState,
}

/// The outer step of every stage, on slices of the whole model's flat vector.
fn outer_steps(spec: &RunSpec) -> Vec<OuterStep> {
    let model = model_config(spec);
    let mut start = 0;
    let step = |stage| {
        let layout = StageLayout::of(&model, stage);
        let range = start..start + layout.len();
        start = range.end;
        let config = outer_config(spec, stage);
        let state = config.init(layout.len());
        OuterStep { range, layout, config, state }
    };
    (0..model.stages).map(step).collect()
}

/// Steps every stage with the mean of the accumulated gradients.
fn step_outer(
    stages: &mut [OuterStep],
    engine: &mut dyn StageEngine,
    learning_rate: f64,
) -> Result<(), CliError> {
    let mut weights = engine.weights().map_err(bug)?;
    let mut gradient = engine.gradient_sum().map_err(bug)?;
    #[expect(clippy::cast_precision_loss, reason = "samples of an epoch are at most 2^20")]
    let samples = engine.accumulated_samples() as f32;
    gradient.iter_mut().for_each(|element| *element /= samples);
    for stage in stages {
        let (weights, gradient) = (&mut weights[stage.range.clone()], &gradient[stage.range.clone()]);
        stage
            .config
            .step(&mut stage.state, stage.layout.parameters(), weights, gradient, learning_rate)
            .map_err(bug)?;
    }
    engine.clear_gradient();
    engine.load_weights(&weights).map_err(bug)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small(mode: TrainingMode) -> RunSpec {
        let mut spec = RunSpec::default();
        let model = &mut spec.model;
        (model.context, model.width, model.layers, model.heads, model.kv_heads, model.hidden) =
            (16, 16, 3, 2, 1, 32);
        model.bottleneck = iota_protocol::spec::Bottleneck::Width(8);
        spec.data.builtin_bytes = iota_protocol::time::ByteCount(64 << 10);
        let training = &mut spec.training;
        (training.mode, training.epochs, training.samples_per_epoch) = (mode, 4, 5);
        (training.sequences_per_sample, training.inner_steps, training.learning_rate) = (2, 3, 0.01);
        spec
    }

    #[test]
    fn the_parts_of_an_epoch_cover_its_samples_once() {
        let spec = small(TrainingMode::Local);
        let parts: Vec<u64> = (0..3).flat_map(|part| samples(&spec, Epoch(2), part, 3)).collect();
        assert_eq!(parts, (10..15).collect::<Vec<_>>());
    }

    #[test]
    fn both_modes_learn_and_report_each_epoch() {
        for mode in [TrainingMode::Synchronous, TrainingMode::Local] {
            let mut told = Vec::new();
            let report =
                train(&small(mode), None, Device::Cpu, |epoch, loss| told.push((epoch, loss))).unwrap();
            assert_eq!(told.len(), 4);
            assert_eq!(report.losses.len(), 4);
            assert_eq!(report.trained.tokens, 4 * 5 * 2 * 16);
            assert!(report.losses[3] < report.losses[0], "{:?}", report.losses);
            assert!(
                report.trained.loss_nats < 5.5,
                "below that of a uniform guess: {}",
                report.trained.loss_nats
            );
        }
    }
}
