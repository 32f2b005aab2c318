//! K stages times M replicas in synchronous mode train like one process with the same global batch.

use iota_model::{
    AdamWConfig, ModelConfig, StageEngine, StageInput, StageSelect,
    flat::StageLayout,
    outer::{OuterConfig, OuterState, stage_clip},
    reduce::{Reducer, reduce},
};

use crate::support::{Stages, assert_same_bits, batch, engine, largest_difference, model};

const SAMPLES: u64 = 6;
const EPOCHS: u64 = 3;
const LEARNING_RATE: f64 = 1e-2;

/// One stage's outer optimizer, as each of its peers runs it.
struct Outer {
    config: OuterConfig,
    layout: StageLayout,
    state: OuterState,
}

impl Outer {
    fn new(model: &ModelConfig, stage: usize) -> Self {
        let layout = StageLayout::of(model, stage);
        // Small enough that every step is clipped, so the clip is tested too.
        let clip_norm = stage_clip(0.05, layout.len(), model.total_parameter_count());
        let config = OuterConfig::AdamW { adamw: AdamWConfig::default(), clip_norm };
        Self { state: config.init(layout.len()), config, layout }
    }

    fn step(&mut self, weights: &mut [f32], gradient: &[f32]) {
        let layout = self.layout.parameters();
        self.config.step(&mut self.state, layout, weights, gradient, LEARNING_RATE).unwrap();
    }
}

fn mean_gradient(engine: &mut dyn StageEngine) -> (f64, Vec<f32>) {
    let samples = engine.accumulated_samples();
    let sum = engine.gradient_sum().unwrap();
    (samples as f64, sum.iter().map(|value| value / samples as f32).collect())
}

/// Trains one whole engine on every sample and returns its weights.
fn train_whole(model: &ModelConfig) -> Vec<f32> {
    let mut whole = engine(model, StageSelect::Whole);
    let mut outers: Vec<Outer> = (0..model.stages).map(|stage| Outer::new(model, stage)).collect();
    for epoch in 0..EPOCHS {
        for sample in 0..SAMPLES {
            let batch = batch(model, epoch * SAMPLES + sample + 1, 2);
            whole.forward_loss(StageInput::Tokens(batch.clone()), &batch).unwrap();
        }
        let (_, gradient) = mean_gradient(whole.as_mut());
        let mut weights = whole.weights().unwrap();
        let mut start = 0;
        for outer in &mut outers {
            let range = start..start + outer.layout.len();
            start = range.end;
            outer.step(&mut weights[range.clone()], &gradient[range]);
        }
        whole.load_weights(&weights).unwrap();
        whole.clear_gradient();
    }
    whole.weights().unwrap()
}

/// Trains replicas on disjoint shares of the samples, merges every epoch, and returns one replica's weights.
fn train_replicas(model: &ModelConfig, replicas: u64) -> Vec<f32> {
    let mut swarm: Vec<Stages> = (0..replicas).map(|_| Stages::new(model)).collect();
    let mut outers: Vec<Outer> = (0..model.stages).map(|stage| Outer::new(model, stage)).collect();
    for epoch in 0..EPOCHS {
        for sample in 0..SAMPLES {
            let batch = batch(model, epoch * SAMPLES + sample + 1, 2);
            swarm[usize::try_from(sample % replicas).unwrap()].train(sample, &batch);
        }
        for (stage, outer) in outers.iter_mut().enumerate() {
            let parts: Vec<(f64, Vec<f32>)> =
                swarm.iter_mut().map(|replica| mean_gradient(replica.engines[stage].as_mut())).collect();
            let parts: Vec<(f64, &[f32])> =
                parts.iter().map(|(weight, part)| (*weight, part.as_slice())).collect();
            let merged = reduce(&parts, Reducer::WeightedMean).unwrap();
            let mut weights = swarm[0].engines[stage].weights().unwrap();
            outer.step(&mut weights, &merged);
            for replica in &mut swarm {
                replica.engines[stage].load_weights(&weights).unwrap();
                replica.engines[stage].clear_gradient();
            }
        }
    }
    swarm[0].weights()
}

#[test]
fn one_replica_equals_the_whole() {
    for model in [model(1, None), model(3, None), model(3, Some(5))] {
        assert_same_bits(&train_replicas(&model, 1), &train_whole(&model), "weight");
    }
}

#[test]
fn several_replicas_equal_the_whole_up_to_rounding() {
    for model in [model(1, None), model(3, None), model(3, Some(5))] {
        let whole = train_whole(&model);
        for replicas in [2, 3] {
            // The samples' gradients are added in another order, so the mean gradient is off by about 2^-23
            // of its largest summand. AdamW divides by the root of the second moment: where the summands
            // cancel almost entirely, that error is a visible share of one step of size 1e-2.
            let difference = largest_difference(&train_replicas(&model, replicas), &whole);
            assert!(
                f64::from(difference) < 1e-2 * LEARNING_RATE,
                "{replicas} replicas differ by {difference}"
            );
        }
    }
}
