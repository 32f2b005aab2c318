//! Small models, batches and pipelines of engines.

use iota_model::{
    AdamWConfig, DType, Device, EngineConfig, Frame, MatmulPrecision, ModelConfig, StageEngine, StageInput,
    StageSelect, TokenBatch, build_engine,
};

/// A model small enough that a test takes milliseconds, with shared key heads and uneven sizes.
pub(crate) fn model(stages: usize, bottleneck: Option<usize>) -> ModelConfig {
    ModelConfig {
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
        bottleneck,
        stages,
    }
}

pub(crate) fn engine(model: &ModelConfig, stage: StageSelect) -> Box<dyn StageEngine> {
    build_engine(&engine_config(model, stage), &Device::Cpu).unwrap()
}

pub(crate) fn engine_config(model: &ModelConfig, stage: StageSelect) -> EngineConfig {
    EngineConfig {
        model: model.clone(),
        stage,
        activation_dtype: DType::F32,
        matmul_precision: MatmulPrecision::High,
        adamw: AdamWConfig::default(),
        clip_norm: f64::INFINITY,
    }
}

/// Tokens that follow no rule, the same for the same seed.
pub(crate) fn batch(model: &ModelConfig, seed: u64, sequences: usize) -> TokenBatch {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u32::try_from(state % model.vocab_size as u64).unwrap()
    };
    let mut batch = TokenBatch { inputs: Vec::new(), targets: Vec::new(), sequences, context: model.context };
    for _ in 0..sequences {
        let window: Vec<u32> = (0..=model.context).map(|_| next()).collect();
        batch.inputs.extend(&window[..model.context]);
        batch.targets.extend(&window[1..]);
    }
    batch
}

/// The stages of a model, each in its own engine.
pub(crate) struct Stages {
    pub(crate) engines: Vec<Box<dyn StageEngine>>,
}

impl Stages {
    pub(crate) fn new(model: &ModelConfig) -> Self {
        Self { engines: (0..model.stages).map(|stage| engine(model, StageSelect::Stage(stage))).collect() }
    }

    /// Takes one sample forward and back through all stages, and returns its loss.
    pub(crate) fn train(&mut self, slot: u64, batch: &TokenBatch) -> f32 {
        let (tail, others) = self.engines.split_last_mut().unwrap();
        let mut input = StageInput::Tokens(batch.clone());
        for engine in others.iter_mut() {
            input = StageInput::Activation(engine.forward(slot, input).unwrap());
        }
        let output = tail.forward_loss(input, batch).unwrap();
        let mut gradient = output.input_gradient;
        for engine in others.iter_mut().rev() {
            gradient = engine.backward(slot, gradient.unwrap()).unwrap();
        }
        assert_eq!(gradient, None, "the head returns no gradient");
        output.loss
    }

    /// Returns the frames between the stages without training.
    pub(crate) fn activations(&mut self, batch: &TokenBatch) -> Vec<Frame> {
        let mut input = StageInput::Tokens(batch.clone());
        let mut frames = Vec::new();
        let last = self.engines.len() - 1;
        for engine in &mut self.engines[..last] {
            let frame = engine.evaluate_forward(input).unwrap();
            frames.push(frame.clone());
            input = StageInput::Activation(frame);
        }
        frames
    }

    pub(crate) fn gradient_sum(&mut self) -> Vec<f32> {
        self.engines.iter_mut().flat_map(|engine| engine.gradient_sum().unwrap()).collect()
    }

    pub(crate) fn weights(&mut self) -> Vec<f32> {
        self.engines.iter_mut().flat_map(|engine| engine.weights().unwrap()).collect()
    }

    pub(crate) fn inner_step(&mut self, learning_rate: f64) {
        for engine in &mut self.engines {
            engine.inner_step(learning_rate).unwrap();
        }
    }
}

/// Compares bits, so that a zero and a negative zero differ and the message names the first place.
pub(crate) fn assert_same_bits(left: &[f32], right: &[f32], what: &str) {
    assert_eq!(left.len(), right.len(), "length of {what}");
    let differs = left.iter().zip(right).position(|(left, right)| left.to_bits() != right.to_bits());
    if let Some(index) = differs {
        panic!("{what} {index}: {} and {}", left[index], right[index]);
    }
}

/// Returns the largest difference.
pub(crate) fn largest_difference(left: &[f32], right: &[f32]) -> f32 {
    assert_eq!(left.len(), right.len());
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}
