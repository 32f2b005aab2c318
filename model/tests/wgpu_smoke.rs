//! WebGPU computes what the CPU does; needs an adapter, software ones included (Debian:
//! `mesa-vulkan-drivers`).
#![cfg(feature = "wgpu")]
#![expect(
    clippy::unwrap_used,
    reason = "unit tests are exempt by configuration, helpers of integration tests are not"
)]

use iota_model::{
    AdamWConfig, DType, Device, EngineConfig, MatmulPrecision, ModelConfig, StageEngine, StageInput,
    StageSelect, TokenBatch, build_engine, compare::Sums,
};

fn config(stage: StageSelect) -> EngineConfig {
    let model = ModelConfig {
        vocab_size: 13,
        context: 8,
        width: 24,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        hidden: 20,
        rope_base: 10_000.0,
        norm_eps: 1e-5,
        init_std: 0.2,
        seed: 11,
        bottleneck: Some(5),
        stages: 3,
    };
    let adamw = AdamWConfig::default();
    EngineConfig {
        model,
        stage,
        activation_dtype: DType::F32,
        matmul_precision: MatmulPrecision::High,
        adamw,
        clip_norm: 1.0,
    }
}

fn batch() -> TokenBatch {
    let inputs = (0..16).map(|index| index * 5 % 13).collect();
    let targets = (1..17).map(|index| index * 5 % 13).collect();
    TokenBatch { inputs, targets, sequences: 2, context: 8 }
}

#[expect(clippy::cast_possible_truncation, reason = "a loss of a few nats")]
fn train(engine: &mut dyn StageEngine) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let initial = engine.weights().unwrap();
    let loss = engine.forward_loss(StageInput::Tokens(batch()), &batch()).unwrap().loss;
    let mut gradient = engine.gradient_sum().unwrap();
    gradient.push(loss);
    engine.inner_step(1e-2).unwrap();
    let after = engine.evaluate_loss(StageInput::Tokens(batch()), &batch()).unwrap();
    (initial, gradient, vec![after as f32])
}

fn close(left: &[f32], right: &[f32], allowed: f32) {
    assert_eq!(left.len(), right.len());
    for (index, (left, right)) in left.iter().zip(right).enumerate() {
        assert!((left - right).abs() <= allowed, "{index}: {left} and {right}");
    }
}

#[test]
fn wgpu_trains_like_the_cpu() {
    let mut cpu = build_engine(&config(StageSelect::Whole), &Device::Cpu).unwrap();
    let mut gpu = build_engine(&config(StageSelect::Whole), &Device::Wgpu(0)).unwrap();
    let (cpu_initial, cpu_gradient, cpu_after) = train(cpu.as_mut());
    let (gpu_initial, gpu_gradient, gpu_after) = train(gpu.as_mut());
    assert_eq!(cpu_initial, gpu_initial, "initial weights have the same bits on every backend");
    // Sums are taken in another order: some hundred roundings of 2^-24 of numbers near 1.
    close(&cpu_gradient, &gpu_gradient, 1e-4);
    close(&cpu_after, &gpu_after, 1e-3);
}

/// TF32 would make each product differ by 1e-4 and more.
#[test]
fn wgpu_in_the_highest_precision_is_within_roundings_of_the_cpu() {
    let highest = EngineConfig { matmul_precision: MatmulPrecision::Highest, ..config(StageSelect::Whole) };
    for tokens in [1, 7, 16] {
        let whole = batch();
        let (sequences, context) = if tokens == 16 { (2, 8) } else { (1, tokens) };
        let batch = TokenBatch {
            inputs: whole.inputs[..tokens].to_vec(),
            targets: whole.targets[..tokens].to_vec(),
            sequences,
            context,
        };
        let [cpu, gpu] = [Device::Cpu, Device::Wgpu(0)].map(|device| {
            let mut engine = build_engine(&highest, &device).unwrap();
            engine.forward_loss(StageInput::Tokens(batch.clone()), &batch).unwrap();
            engine.gradient_sum().unwrap()
        });
        let error = Sums::of(&cpu, &gpu).comparison().relative_error;
        assert!(error < 2e-6, "{error:e} with {tokens} tokens");
    }
}

#[test]
fn stages_on_wgpu_pass_frames_to_stages_on_the_cpu() {
    let mut head = build_engine(&config(StageSelect::Stage(0)), &Device::Wgpu(0)).unwrap();
    let mut body = build_engine(&config(StageSelect::Stage(1)), &Device::Cpu).unwrap();
    let mut tail = build_engine(&config(StageSelect::Stage(2)), &Device::Wgpu(0)).unwrap();
    let wire = head.forward(0, StageInput::Tokens(batch())).unwrap();
    let wire = body.forward(0, StageInput::Activation(wire)).unwrap();
    let output = tail.forward_loss(StageInput::Activation(wire), &batch()).unwrap();
    let gradient = body.backward(0, output.input_gradient.unwrap()).unwrap().unwrap();
    assert_eq!(head.backward(0, gradient).unwrap(), None);
    let mut whole = build_engine(&config(StageSelect::Whole), &Device::Cpu).unwrap();
    let expected = whole.forward_loss(StageInput::Tokens(batch()), &batch()).unwrap().loss;
    close(&[output.loss], &[expected], 1e-4);
    let gradients: Vec<f32> =
        [head, body, tail].iter_mut().flat_map(|engine| engine.gradient_sum().unwrap()).collect();
    close(&gradients, &whole.gradient_sum().unwrap(), 1e-4);
}

#[test]
fn adapters_that_do_not_exist_are_refused() {
    let error = build_engine(&config(StageSelect::Whole), &Device::Wgpu(99)).err().unwrap().to_string();
    assert!(error.starts_with("device wgpu:99 was not found, expected an index below "), "{error}");
}
