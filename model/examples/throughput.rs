//! Measures training speed.
//!
//! `cargo run --release -p iota-model --example throughput -- [cpu|cuda:N|wgpu:N] [steps] [small|large]
//! [high|highest]`
//!
//! Prints tokens per second of forward and backward passes of a whole model and of its stages one after the
//! other, and the time of an optimizer step. Set `RAYON_NUM_THREADS` to choose the processor's threads.
//! `throughput.py` beside it does the same in PyTorch. `small` is the model of the built-in run, `large` one that
//! fills a GPU. `highest` keeps matrix products from being rounded to TF32.

use std::{error::Error, time::Instant};

use iota_model::{
    AdamWConfig, DType, Device, EngineConfig, MatmulPrecision, ModelConfig, StageInput, StageSelect,
    TokenBatch, build_engine, weights_hash,
};

/// Sequences of one sample.
const SEQUENCES: usize = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let device: Device = arguments.next().unwrap_or_else(|| "cpu".to_owned()).parse()?;
    let steps: u32 = arguments.next().unwrap_or_else(|| "20".to_owned()).parse()?;
    let size = arguments.next().unwrap_or_else(|| "small".to_owned());
    let model = match size.as_str() {
        "small" => small(),
        "large" => large(),
        other => return Err(format!("size is {other:?}, expected small or large").into()),
    };
    let precision = arguments.next().unwrap_or_else(|| "high".to_owned());
    let matmul_precision = match precision.as_str() {
        "high" => MatmulPrecision::High,
        "highest" => MatmulPrecision::Highest,
        other => return Err(format!("precision is {other:?}, expected high or highest").into()),
    };
    let config = EngineConfig {
        model,
        stage: StageSelect::Whole,
        activation_dtype: DType::F32,
        matmul_precision,
        adamw: AdamWConfig::default(),
        clip_norm: 1.0,
    };
    whole(&config, &device, steps)?;
    stages(&config, &device, steps)
}

fn small() -> ModelConfig {
    ModelConfig {
        vocab_size: 256,
        context: 128,
        width: 128,
        layers: 6,
        heads: 4,
        kv_heads: 2,
        hidden: 344,
        rope_base: 10_000.0,
        norm_eps: 1e-5,
        init_std: 0.02,
        seed: 1,
        bottleneck: Some(32),
        stages: 3,
    }
}

fn large() -> ModelConfig {
    ModelConfig {
        context: 1024,
        width: 1024,
        layers: 12,
        heads: 16,
        kv_heads: 8,
        hidden: 2736,
        bottleneck: Some(256),
        ..small()
    }
}

/// Returns a sample whose ids follow a simple rule.
fn sample(model: &ModelConfig, index: u32) -> TokenBatch {
    let id = |position: usize| {
        let rest = u32::try_from(position % 256).unwrap_or_default();
        (rest * rest + 7 * index) % 256
    };
    let tokens = SEQUENCES * model.context;
    let (inputs, targets) = ((0..tokens).map(id).collect(), (1..=tokens).map(id).collect());
    TokenBatch { inputs, targets, sequences: SEQUENCES, context: model.context }
}

#[expect(clippy::print_stdout, reason = "the result is the program's output")]
fn whole(config: &EngineConfig, device: &Device, steps: u32) -> Result<(), Box<dyn Error>> {
    let model = &config.model;
    let mut engine = build_engine(config, device)?;
    let info = engine.info();
    println!("{} parameters on {} ({})", info.parameters, info.device, info.backend);
    let mut run =
        |index: u32| engine.forward_loss(StageInput::Tokens(sample(model, index)), &sample(model, index));
    run(0)?;
    let (start, mut tokens, mut loss) = (Instant::now(), 0, 0.0);
    for index in 0..steps {
        let output = run(index)?;
        tokens += output.tokens;
        loss = output.loss;
    }
    println!("whole: {:.0} tokens/s, last loss {loss:.3}", tokens as f64 / start.elapsed().as_secs_f64());
    engine.inner_step(1e-3)?;
    // The same for any number of threads on one machine.
    println!("weights after a step: {}", blake3::Hash::from_bytes(weights_hash(&engine.weights()?)));
    // On a GPU the first step also compiles its kernels.
    engine.forward_loss(StageInput::Tokens(sample(model, steps)), &sample(model, steps))?;
    let start = Instant::now();
    engine.inner_step(1e-3)?;
    engine.weights()?;
    println!("optimizer step, and reading the weights: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the result is the program's output")]
fn stages(config: &EngineConfig, device: &Device, steps: u32) -> Result<(), Box<dyn Error>> {
    let engine =
        |stage| build_engine(&EngineConfig { stage: StageSelect::Stage(stage), ..config.clone() }, device);
    let (mut head, mut body, mut tail) = (engine(0)?, engine(1)?, engine(2)?);
    let (start, mut tokens) = (Instant::now(), 0);
    for index in 0..steps {
        let batch = sample(&config.model, index);
        let wire = head.forward(0, StageInput::Tokens(batch.clone()))?;
        let wire = body.forward(0, StageInput::Activation(wire))?;
        let output = tail.forward_loss(StageInput::Activation(wire), &batch)?;
        let gradient = output.input_gradient.ok_or("the tail returns a gradient")?;
        let gradient = body.backward(0, gradient)?.ok_or("the body returns a gradient")?;
        head.backward(0, gradient)?;
        tokens += output.tokens;
    }
    println!("stages in turn: {:.0} tokens/s", tokens as f64 / start.elapsed().as_secs_f64());
    Ok(())
}
