//! Optimizers against the textbook in `f64`.

use iota_model::{
    AdamWConfig, OptimizerState, StageInput, StageSelect,
    flat::{Parameter, ParameterKind},
    outer::{OuterConfig, OuterError, OuterState, norm, stage_clip},
};

use crate::support::{assert_same_bits, batch, engine, model};

/// AdamW as in Loshchilov and Hutter 2019, algorithm 2, with a clip by global norm, all in `f64`.
struct Reference {
    adamw: AdamWConfig,
    clip_norm: f64,
    first: Vec<f64>,
    second: Vec<f64>,
    step: i32,
}

impl Reference {
    fn new(adamw: AdamWConfig, clip_norm: f64, length: usize) -> Self {
        Self { adamw, clip_norm, first: vec![0.0; length], second: vec![0.0; length], step: 0 }
    }

    fn step(
        &mut self,
        weights: &mut [f64],
        gradient: &[f64],
        learning_rate: f64,
        decayed: impl Fn(usize) -> bool,
    ) {
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.adamw;
        self.step += 1;
        let norm = gradient.iter().map(|value| value * value).sum::<f64>().sqrt();
        let clip = if norm > self.clip_norm { self.clip_norm / norm } else { 1.0 };
        for index in 0..weights.len() {
            let gradient = gradient[index] * clip;
            self.first[index] = beta1 * self.first[index] + (1.0 - beta1) * gradient;
            self.second[index] = beta2 * self.second[index] + (1.0 - beta2) * gradient * gradient;
            let first = self.first[index] / (1.0 - beta1.powi(self.step));
            let second = self.second[index] / (1.0 - beta2.powi(self.step));
            let decay = if decayed(index) { weight_decay } else { 0.0 };
            weights[index] -= learning_rate * (first / (second.sqrt() + eps) + decay * weights[index]);
        }
    }
}

fn close(got: &[f32], expected: &[f64], what: &str) {
    for (index, (got, expected)) in got.iter().zip(expected).enumerate() {
        // A dozen roundings of 2^-24 each per step and a few steps: 1e-5 of a number near 1.
        let allowed = 1e-5 * expected.abs().max(0.1);
        assert!((f64::from(*got) - expected).abs() < allowed, "{what} {index}: {got}, expected {expected}");
    }
}

fn layout() -> Vec<Parameter> {
    let entry = |path: &str, kind, range: std::ops::Range<usize>| Parameter {
        path: path.to_owned(),
        shape: vec![range.len()],
        kind,
        range,
    };
    vec![entry("norm", ParameterKind::Norm, 0..2), entry("matrix", ParameterKind::Linear, 2..5)]
}

fn gradients(step: usize) -> Vec<f32> {
    (0..5).map(|index| ((index + 3 * step) as f32).sin() * 0.3).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

#[test]
fn outer_adamw_matches_the_textbook() {
    let adamw = AdamWConfig { weight_decay: 0.2, ..AdamWConfig::default() };
    let config = OuterConfig::AdamW { adamw, clip_norm: 0.4 };
    let mut state = config.init(5);
    let mut weights = vec![1.0, -0.5, 0.25, 0.8, -1.0];
    let mut reference = Reference::new(adamw, 0.4, 5);
    let mut expected = wide(&weights);
    for step in 0..5 {
        config.step(&mut state, &layout(), &mut weights, &gradients(step), 0.05).unwrap();
        reference.step(&mut expected, &wide(&gradients(step)), 0.05, |index| index >= 2);
    }
    close(&weights, &expected, "weight");
    assert_eq!(state.steps(), 5);
}

/// The largest update that `AdamW` makes of one weight with these gradients, at a rate of 1.
fn largest_update(adamw: AdamWConfig, gradients: impl Iterator<Item = f32>) -> f64 {
    let config = OuterConfig::AdamW { adamw, clip_norm: f64::MAX };
    let layout =
        [Parameter { path: "gain".to_owned(), shape: vec![1], kind: ParameterKind::Norm, range: 0..1 }];
    let mut state = config.init(1);
    let update = |gradient: f32| {
        let mut weight = [0.0];
        config.step(&mut state, &layout, &mut weight, &[gradient], 1.0).unwrap();
        f64::from(weight[0].abs())
    };
    gradients.map(update).fold(0.0, f64::max)
}

#[test]
fn no_gradients_move_a_weight_further_than_the_largest_update_and_growing_ones_nearly_so_far() {
    // A thousand roundings of 2^-24 each.
    let rounded = 1.0001;
    for (beta1, beta2) in [(0.9_f32, 0.95_f32), (0.9, 0.999), (0.0, 0.75), (0.8, 0.7)] {
        let (wide1, wide2) = (f64::from(beta1), f64::from(beta2));
        let adamw = AdamWConfig { beta1: wide1, beta2: wide2, eps: 1e-30, weight_decay: 0.0 };
        let limit = adamw.update_max();
        let spiky = (0..2000).map(|step| (step as f32).sin().powi(21));
        let seldom = (0..2000).map(|step| if step % 400 == 399 { 1.0 } else { 0.0 });
        let constant = (0..2000).map(|_| 1.0);
        for update in
            [largest_update(adamw, spiky), largest_update(adamw, seldom), largest_update(adamw, constant)]
        {
            assert!(update > 0.1 && update <= limit * rounded, "{beta1} {beta2}: {update} of {limit}");
        }
        let growth = if beta1 > 0.0 { beta2 / beta1 } else { 10.0 };
        let first = if growth > 1.0 { 1e-18 } else { 1e18 };
        let growing = (0..2000).map(|step| first * growth.powi(step));
        let growing = growing.take_while(|gradient| (9e-19..=1.1e18).contains(gradient));
        // After so many steps without a gradient that nothing is left of the corrections of the start.
        let update = largest_update(adamw, std::iter::repeat_n(0.0, 10_000).chain(growing));
        assert!(update >= 0.99 * limit && update <= limit * rounded, "{beta1} {beta2}: {update} of {limit}");
    }
    for (beta1, beta2) in [(0.9, 0.81), (0.9, 0.5), (0.9, 1.0), (1.0, 1.0)] {
        let limit = AdamWConfig { beta1, beta2, ..AdamWConfig::default() }.update_max();
        assert!(limit > 1e6, "{beta1} {beta2}: {limit}");
    }
}

#[test]
fn outer_nesterov_matches_the_textbook() {
    let config = OuterConfig::Nesterov { momentum: 0.9 };
    let mut state = config.init(5);
    let mut weights = vec![1.0, -0.5, 0.25, 0.8, -1.0];
    let mut expected = wide(&weights);
    let mut buffer = [0.0; 5];
    for step in 0..5 {
        config.step(&mut state, &layout(), &mut weights, &gradients(step), 0.7).unwrap();
        for (index, gradient) in wide(&gradients(step)).into_iter().enumerate() {
            buffer[index] = 0.9 * buffer[index] + gradient;
            expected[index] -= 0.7 * (gradient + 0.9 * buffer[index]);
        }
    }
    close(&weights, &expected, "weight");
}

#[test]
fn outer_step_without_gradient_keeps_the_weights() {
    let config = OuterConfig::Nesterov { momentum: 0.9 };
    let (mut state, mut weights) = (config.init(5), vec![0.1; 5]);
    config.step(&mut state, &layout(), &mut weights, &[0.0; 5], 0.7).unwrap();
    assert_same_bits(&weights, &[0.1; 5], "weight");
}

#[test]
fn outer_state_survives_a_round_trip_through_flat_vectors() {
    let configs = [
        OuterConfig::AdamW { adamw: AdamWConfig::default(), clip_norm: 1.0 },
        OuterConfig::Nesterov { momentum: 0.9 },
    ];
    for config in configs {
        let (mut state, mut weights) = (config.init(5), vec![0.1; 5]);
        config.step(&mut state, &layout(), &mut weights, &gradients(1), 0.7).unwrap();
        let copy = OuterState::from_flat(&config, 5, &state.to_flat(), state.steps()).unwrap();
        assert_eq!(copy, state);
        assert!(OuterState::from_flat(&config, 4, &state.to_flat(), 1).is_err());
    }
}

#[test]
fn outer_step_refuses_what_does_not_fit_and_changes_nothing() {
    let config = OuterConfig::Nesterov { momentum: 0.9 };
    let (mut state, mut weights) = (config.init(5), vec![0.1; 5]);
    let mut bad = gradients(0);
    bad[3] = f32::NAN;
    let error = config.step(&mut state, &layout(), &mut weights, &bad, 0.7).unwrap_err();
    assert_eq!(error.to_string(), "merged gradient 3 is NaN, expected a finite number");
    let error = config.step(&mut state, &layout(), &mut weights, &[0.0; 4], 0.7).unwrap_err();
    assert_eq!(error.to_string(), "merged gradient has 4 elements, expected 5");
    let mut other = OuterState::AdamW(OptimizerState::zeros(5));
    let error = config.step(&mut other, &layout(), &mut weights, &[0.0; 5], 0.7).unwrap_err();
    assert_eq!(error, OuterError::Kind { got: "adamw", expected: "nesterov" });
    assert_eq!((state, weights), (config.init(5), vec![0.1; 5]));
}

#[test]
fn inner_adamw_matches_the_textbook() {
    let model = model(3, Some(5));
    let mut config = crate::support::engine_config(&model, StageSelect::Whole);
    config.clip_norm = 0.5;
    let mut whole = iota_model::build_engine(&config, &iota_model::Device::Cpu).unwrap();
    let layout = iota_model::flat::StageLayout::concatenated(&model, 0..3);
    let norms: Vec<bool> = layout
        .iter()
        .flat_map(|parameter| parameter.range.clone().map(|_| parameter.kind == ParameterKind::Norm))
        .collect();
    let mut expected = wide(&whole.weights().unwrap());
    let mut reference = Reference::new(config.adamw, config.clip_norm, expected.len());
    for step in 0..4 {
        for sample in 0..2 {
            let batch = batch(&model, 2 * step + sample + 1, 1);
            whole.forward_loss(StageInput::Tokens(batch.clone()), &batch).unwrap();
        }
        let mean: Vec<f64> = wide(&whole.gradient_sum().unwrap()).iter().map(|sum| sum / 2.0).collect();
        let report = whole.inner_step(1e-2).unwrap();
        let mean_norm = mean.iter().map(|value| value * value).sum::<f64>().sqrt();
        assert!((report.gradient_norm - mean_norm).abs() < 1e-9 * mean_norm);
        assert_eq!((report.clipped, report.samples), (mean_norm > 0.5, 2));
        reference.step(&mut expected, &mean, 1e-2, |index| !norms[index]);
    }
    close(&whole.weights().unwrap(), &expected, "weight");
    let state = whole.inner_state().unwrap();
    close(&state.first_moment, &reference.first, "first moment");
    assert_eq!(state.step, 4);
    assert_eq!(whole.accumulated_samples(), 0);
}

#[test]
fn stage_clips_add_up_to_the_clip_of_the_model() {
    let clips = [stage_clip(1.5, 100, 1000), stage_clip(1.5, 300, 1000), stage_clip(1.5, 600, 1000)];
    let together = clips.iter().map(|clip| clip * clip).sum::<f64>().sqrt();
    assert!((together - 1.5).abs() < 1e-12);
    assert_eq!(norm(&[3.0, 4.0]), 5.0);
    let model = model(1, None);
    assert_eq!(engine(&model, StageSelect::Whole).info().parameters, model.total_parameter_count());
}
