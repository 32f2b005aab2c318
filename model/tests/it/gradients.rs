//! Gradients are those of the loss, and following them works.

use iota_model::{ModelConfig, StageEngine, StageInput, StageSelect, TokenBatch, flat::StageLayout};

use crate::support::{Stages, batch, engine, model};

/// Length of the steps: short against the weights, long against the rounding of the loss.
const STEP: f32 = 0.001;

fn loss_at(engine: &mut dyn StageEngine, batch: &TokenBatch, weights: &[f32]) -> f64 {
    engine.load_weights(weights).unwrap();
    engine.evaluate_loss(StageInput::Tokens(batch.clone()), batch).unwrap()
}

fn check_against_differences(model: &ModelConfig) {
    let mut engine = engine(model, StageSelect::Whole);
    let batch = batch(model, 4, 3);
    let weights = engine.weights().unwrap();
    engine.forward_loss(StageInput::Tokens(batch.clone()), &batch).unwrap();
    let gradient = engine.gradient_sum().unwrap();
    for parameter in StageLayout::concatenated(model, 0..model.stages) {
        let slope = &gradient[parameter.range.clone()];
        let norm = slope.iter().map(|value| value * value).sum::<f32>().sqrt();
        assert!(norm > 1e-4, "{} takes part: norm {norm}", parameter.path);
        // A step along the parameter's own gradient changes the loss by the gradient's norm per unit of
        // length.
        let moved = |length: f32| {
            let mut moved = weights.clone();
            for (weight, slope) in moved[parameter.range.clone()].iter_mut().zip(slope) {
                *weight += length * slope / norm;
            }
            moved
        };
        let ahead = loss_at(engine.as_mut(), &batch, &moved(STEP));
        let measured = (ahead - loss_at(engine.as_mut(), &batch, &moved(-STEP))) / (2.0 * f64::from(STEP));
        // The loss, near 3, is rounded to 2.4e-7, which makes 2e-4 of the quotient; the rest is curvature,
        // above all where a step crosses the kink of a decoder's ReLU.
        let norm = f64::from(norm);
        let allowed = 0.01 * norm + 2e-4;
        assert!(
            (measured - norm).abs() < allowed,
            "{}: {measured} measured, {norm} computed",
            parameter.path
        );
    }
}

#[test]
fn gradients_match_finite_differences_in_every_parameter() {
    check_against_differences(&model(1, None));
    check_against_differences(&model(3, Some(5)));
}

#[test]
fn gradients_match_finite_differences_without_shared_key_heads() {
    check_against_differences(&ModelConfig { kv_heads: 4, ..model(1, None) });
}

#[test]
fn one_batch_is_learned_by_heart() {
    let model = model(3, Some(5));
    let mut stages = Stages::new(&model);
    let batch = TokenBatch {
        inputs: vec![0, 3, 1, 4, 1, 5, 9, 2, 1, 2, 7, 1, 8, 2, 8, 1],
        targets: vec![3, 1, 4, 1, 5, 9, 2, 6, 2, 7, 1, 8, 2, 8, 1, 8],
        sequences: 2,
        context: 8,
    };
    let first = stages.train(0, &batch);
    assert!(first > 2.0, "an untrained model guesses among 13 ids, ln 13 = 2.56: {first}");
    for _ in 0..150 {
        stages.inner_step(1e-2);
        stages.train(0, &batch);
    }
    stages.inner_step(1e-2);
    let last = stages.train(0, &batch);
    assert!(last < 0.05, "{last}");
}

#[test]
fn uniform_logits_cost_the_logarithm_of_the_vocabulary() {
    let model = model(1, None);
    let mut engine = engine(&model, StageSelect::Whole);
    let mut weights = engine.weights().unwrap();
    let layout = StageLayout::of(&model, 0);
    let head = layout.parameters().last().unwrap();
    assert_eq!(head.path, "lm_head.weight");
    weights[head.range.clone()].fill(0.0);
    let loss = loss_at(engine.as_mut(), &batch(&model, 1, 2), &weights);
    assert!((loss - 13_f64.ln()).abs() < 1e-6, "{loss}");
}
