//! A synchronous swarm computes what one process computes.
//!
//! The swarm's arithmetic is the control's up to the order of additions: replicas sum their own samples first, and a
//! pipeline returns gradients in the order in which samples come back. With one miner per stage and one sample in
//! flight the order is the same, and so are the bits.

use std::collections::BTreeMap;

use crate::support::{Run, Swarm, tiny};
use iota_model::data::Corpus;
use iota_model::flat::StageLayout;
use iota_model::outer::OuterState;
use iota_model::{Device, StageEngine, StageInput, StageSelect, build_engine, weights_hash};
use iota_node::bridge::{engine_config, model_config, outer_config, outer_learning_rate};
use iota_node::control;
use iota_node::corpus::open_corpus;
use iota_protocol::spec::TrainingMode;
use iota_protocol::{Epoch, Hash, RunSpec};

/// Relative difference of the final validation loss. A sum of f32 in another order differs by about 1e-7, and
/// `AdamW` magnifies that where gradients are small. Measured: 1.4e-8 and less.
const TOLERANCE: f64 = 1e-6;
const EPOCHS: u32 = 4;

fn spec(stages: u16, miners: u16) -> RunSpec {
    let mut spec = tiny(TrainingMode::Synchronous, stages, miners, EPOCHS);
    if miners == 1 {
        spec.pipeline.window = 1;
    }
    spec
}

/// Runs the swarm and the control; returns the run.
fn compare(spec: &RunSpec) -> Run {
    let run = Swarm::start(spec, &[]).finish();
    run.assert_every_sample_merged();
    let control =
        control::train(&run.spec, None, Device::Cpu, |_, _| {}).expect("the control trains").trained;
    let (swarm, control) = (run.loss_nats(), control.loss_nats);
    let difference = ((swarm - control) / control).abs();
    assert!(difference <= TOLERANCE, "swarm {swarm}, control {control}, relative difference {difference:e}");
    assert!(control < 5.5, "it learned something: {control}");
    run
}

/// Hashes of every stage's weights at every version, from one engine for the whole model.
fn whole_model_hashes(spec: &RunSpec) -> BTreeMap<(u16, u32), Hash> {
    let corpus = open_corpus(spec, None).expect("the built-in corpus");
    let model = model_config(spec);
    let mut engine = build_engine(&engine_config(spec, StageSelect::Whole), &Device::Cpu).expect("a CPU");
    let layouts: Vec<StageLayout> = (0..model.stages).map(|stage| StageLayout::of(&model, stage)).collect();
    let mut states: Vec<OuterState> = layouts
        .iter()
        .enumerate()
        .map(|(stage, layout)| outer_config(spec, stage).init(layout.len()))
        .collect();
    let mut weights = engine.weights().expect("weights");
    let mut hashes = BTreeMap::new();
    for version in 0..=spec.training.epochs {
        let mut start = 0;
        for (stage, layout) in (0_u16..).zip(&layouts) {
            let hash = Hash(weights_hash(&weights[start..start + layout.len()]));
            hashes.insert((stage, version), hash);
            start += layout.len();
        }
        if version == spec.training.epochs {
            break;
        }
        let gradient = mean_gradient(spec, &corpus, engine.as_mut(), version);
        let mut start = 0;
        for (stage, (layout, state)) in layouts.iter().zip(&mut states).enumerate() {
            let range = start..start + layout.len();
            let rate = outer_learning_rate(spec, Epoch(version));
            outer_config(spec, stage)
                .step(state, layout.parameters(), &mut weights[range.clone()], &gradient[range], rate)
                .expect("a step");
            start += layout.len();
        }
        engine.clear_gradient();
        engine.load_weights(&weights).expect("weights");
    }
    hashes
}

#[expect(clippy::cast_precision_loss, reason = "a count of samples, far below 2^24")]
fn mean_gradient(spec: &RunSpec, corpus: &Corpus, engine: &mut dyn StageEngine, epoch: u32) -> Vec<f32> {
    let count = spec.training.samples_per_epoch;
    let first = u64::from(epoch) * u64::from(count);
    for sample in first..first + u64::from(count) {
        let batch = corpus.sample(spec.seed, sample, spec.training.sequences_per_sample as usize);
        engine.forward_loss(StageInput::Tokens(batch.clone()), &batch).expect("a loss");
    }
    let sum = engine.gradient_sum().expect("a gradient");
    sum.into_iter().map(|element| element / count as f32).collect()
}

#[test]
fn one_miner_has_the_bits_of_one_process_at_every_version() {
    let run = compare(&spec(1, 1));
    assert_eq!(run.agreed_weights(), whole_model_hashes(&run.spec));
}

#[test]
fn three_stages_with_one_sample_in_flight_have_the_bits_of_one_process() {
    let run = compare(&spec(3, 1));
    assert_eq!(run.agreed_weights(), whole_model_hashes(&run.spec));
}

#[test]
fn two_replicas_end_where_one_process_does() {
    compare(&spec(1, 2)).agreed_weights();
}

#[test]
fn three_stages_of_two_replicas_end_where_one_process_does() {
    compare(&spec(3, 2)).agreed_weights();
}
