//! The one fixed order of a stage's parameters.
//!
//! Parameters, gradients and optimizer moments are all visible as flat `f32` vectors. The order is the order
//! of this file: embedding, decoder of the incoming cut, blocks by index, encoder of the outgoing cut, final
//! norm, output head. Merges, hashes and checkpoints work on it, so it is part of what peers agree on.
//!
//! Paths are the names that other tools use for a Llama; only the two bottleneck matrices have names of ours.

use std::ops::Range;

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use crate::config::ModelConfig;

/// Role of a parameter: decides its initial value, its decay and its orientation on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterKind {
    /// A table `[V, C]`, one row per token; stored as it is.
    Embedding,
    /// A matrix `[in, out]` applied as `x W`; stored transposed.
    Linear,
    /// The gain of an RMSNorm, `[C]`; starts at 1 and is never decayed.
    Norm,
}

/// Describes one parameter of a stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Name within the whole model, for instance `model.layers.3.self_attn.q_proj.weight`.
    pub path: String,
    /// Shape in memory.
    pub shape: Vec<usize>,
    /// Role.
    pub kind: ParameterKind,
    /// Place in the stage's flat vector.
    pub range: Range<usize>,
}

/// The parameters of one stage in their fixed order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageLayout {
    parameters: Vec<Parameter>,
}

impl StageLayout {
    /// Lists the parameters of stage `stage`.
    ///
    /// # Panics
    /// When `stage` is not below the number of stages.
    #[must_use]
    pub fn of(config: &ModelConfig, stage: usize) -> Self {
        assert!(stage < config.stages, "stage {stage} of {}", config.stages);
        let (width, last) = (config.width, config.stages - 1);
        let mut layout = Self { parameters: Vec::new() };
        if stage == 0 {
            let shape = vec![config.vocab_size, width];
            layout.push("model.embed_tokens.weight".to_owned(), shape, ParameterKind::Embedding);
        }
        if let (Some(narrow), true) = (config.bottleneck, stage > 0) {
            layout.linear(format!("model.cuts.{}.decoder.weight", stage - 1), narrow, width);
        }
        for layer in config.cut()[stage].clone() {
            layout.block(config, layer);
        }
        if let (Some(narrow), true) = (config.bottleneck, stage < last) {
            layout.linear(format!("model.cuts.{stage}.encoder.weight"), width, narrow);
        }
        if stage == last {
            layout.push("model.norm.weight".to_owned(), vec![width], ParameterKind::Norm);
            layout.linear("lm_head.weight".to_owned(), width, config.vocab_size);
        }
        layout
    }

    /// Lists the parameters of several stages in a row, with ranges within the concatenation of their flat
    /// vectors.
    ///
    /// # Panics
    /// When a stage is not below the number of stages.
    #[must_use]
    pub fn concatenated(config: &ModelConfig, stages: Range<usize>) -> Vec<Parameter> {
        let mut all: Vec<Parameter> = Vec::new();
        for stage in stages {
            let start = all.last().map_or(0, |parameter| parameter.range.end);
            all.extend(Self::of(config, stage).parameters.into_iter().map(|parameter| {
                let range = start + parameter.range.start..start + parameter.range.end;
                Parameter { range, ..parameter }
            }));
        }
        all
    }

    /// Returns the parameters in order; their ranges tile `0..len`.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Returns the length of the flat vector.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parameters.last().map_or(0, |parameter| parameter.range.end)
    }

    /// Says whether the stage has no parameters; no valid config makes such a stage.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn block(&mut self, config: &ModelConfig, layer: usize) {
        let (width, hidden) = (config.width, config.hidden);
        let kv_width = config.kv_heads * config.head_size();
        let at = |name: &str| format!("model.layers.{layer}.{name}.weight");
        self.push(at("input_layernorm"), vec![width], ParameterKind::Norm);
        self.linear(at("self_attn.q_proj"), width, width);
        self.linear(at("self_attn.k_proj"), width, kv_width);
        self.linear(at("self_attn.v_proj"), width, kv_width);
        self.linear(at("self_attn.o_proj"), width, width);
        self.push(at("post_attention_layernorm"), vec![width], ParameterKind::Norm);
        self.linear(at("mlp.gate_proj"), width, hidden);
        self.linear(at("mlp.up_proj"), width, hidden);
        self.linear(at("mlp.down_proj"), hidden, width);
    }

    fn linear(&mut self, path: String, inputs: usize, outputs: usize) {
        self.push(path, vec![inputs, outputs], ParameterKind::Linear);
    }

    fn push(&mut self, path: String, shape: Vec<usize>, kind: ParameterKind) {
        let start = self.len();
        let range = start..start + shape.iter().product::<usize>();
        self.parameters.push(Parameter { path, shape, kind, range });
    }
}

/// Returns the initial flat weights of a stage: the same bits on every machine and backend.
///
/// Norm gains are 1. A matrix is normal(0, `init_std`), drawn by Box–Muller in `f64` from a ChaCha20 stream
/// whose key is `BLAKE3("iota-model init" ‖ seed ‖ path)`, so a parameter's values depend on nothing but the
/// run's seed and the parameter's name. Logarithm and cosine are the `libm` crate's, pure Rust: a platform's
/// own may differ in the last bit.
///
/// # Panics
/// When `stage` is not below the number of stages.
#[must_use]
pub fn initial_weights(config: &ModelConfig, stage: usize) -> Vec<f32> {
    let layout = StageLayout::of(config, stage);
    let mut flat = Vec::with_capacity(layout.len());
    for parameter in layout.parameters() {
        match parameter.kind {
            ParameterKind::Norm => flat.extend(parameter.range.clone().map(|_| 1.0)),
            ParameterKind::Embedding | ParameterKind::Linear => {
                let mut normal = Normal::new(config.seed, &parameter.path);
                flat.extend(parameter.range.clone().map(|_| round_to_f32(normal.sample() * config.init_std)));
            }
        }
    }
    flat
}

/// Rounds to the nearest single.
#[expect(clippy::cast_possible_truncation, reason = "rounding to the nearest single is the point")]
pub(crate) fn round_to_f32(value: f64) -> f32 {
    value as f32
}

/// A stream of standard normal numbers.
pub(crate) struct Normal {
    stream: ChaCha20Rng,
}

impl Normal {
    pub(crate) fn new(seed: u64, path: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"iota-model init").update(&seed.to_le_bytes()).update(path.as_bytes());
        Self { stream: ChaCha20Rng::from_seed(*hasher.finalize().as_bytes()) }
    }

    /// Draws one number, wasting the sine half of Box–Muller to keep the draw stateless.
    pub(crate) fn sample(&mut self) -> f64 {
        let radius = (-2.0 * libm::log(1.0 - self.uniform())).sqrt();
        radius * libm::cos(std::f64::consts::TAU * self.uniform())
    }

    /// Draws from `[0, 1)` with 53 random bits.
    fn uniform(&mut self) -> f64 {
        (self.stream.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny;

    #[test]
    fn ranges_tile_the_flat_vector_and_paths_are_unique() {
        let config = tiny();
        let mut paths = std::collections::BTreeSet::new();
        for stage in 0..config.stages {
            let layout = StageLayout::of(&config, stage);
            let mut end = 0;
            for parameter in layout.parameters() {
                assert_eq!(parameter.range.start, end);
                end = parameter.range.end;
                assert_eq!(parameter.range.len(), parameter.shape.iter().product::<usize>());
                assert!(paths.insert(parameter.path.clone()), "{} occurs twice", parameter.path);
            }
            assert_eq!(end, config.parameter_count(stage));
        }
    }

    #[test]
    fn initial_weights_depend_on_seed_and_path_only() {
        let config = tiny();
        let uncut = ModelConfig { stages: 1, bottleneck: None, ..config.clone() };
        let find = |config: &ModelConfig, stage: usize, path: &str| {
            let layout = StageLayout::of(config, stage);
            let parameter = layout.parameters().iter().find(|parameter| parameter.path == path).unwrap();
            initial_weights(config, stage)[parameter.range.clone()].to_vec()
        };
        let path = "model.layers.2.mlp.up_proj.weight";
        let weights = find(&config, 2, path);
        assert_eq!(weights, find(&uncut, 0, path), "the cut does not change a parameter");
        assert_ne!(weights, find(&config, 2, "model.layers.2.mlp.gate_proj.weight"));
        assert_ne!(weights, find(&ModelConfig { seed: config.seed + 1, ..config.clone() }, 2, path));
    }

    #[test]
    fn initial_weights_have_the_same_bits_on_every_machine() {
        let hash =
            |stage| blake3::Hash::from_bytes(crate::hash::weights_hash(&initial_weights(&tiny(), stage)));
        let hashes: Vec<String> = (0..3).map(|stage| hash(stage).to_hex()[..16].to_owned()).collect();
        // Written by this test on x86-64; a change of any of them starts every run anew.
        assert_eq!(hashes, ["a14f0e23bf0ba74c", "ee0ba6ad965d32c6", "f5c6b851f6fe00bd"]);
    }

    #[test]
    fn initial_matrices_have_the_asked_spread_and_norms_are_one() {
        let config = ModelConfig { width: 128, vocab_size: 256, heads: 4, kv_heads: 4, ..tiny() };
        let layout = StageLayout::of(&config, 0);
        let flat = initial_weights(&config, 0);
        let embedding = &flat[layout.parameters()[0].range.clone()];
        let mean_square =
            embedding.iter().map(|value| f64::from(value * value)).sum::<f64>() / embedding.len() as f64;
        // 32768 draws: the standard error of the spread is 0.4 %, so 2 % is five of them.
        assert!((mean_square.sqrt() / config.init_std - 1.0).abs() < 0.02, "{}", mean_square.sqrt());
        let norm =
            layout.parameters().iter().find(|parameter| parameter.kind == ParameterKind::Norm).unwrap();
        assert!(flat[norm.range.clone()].iter().all(|gain| *gain == 1.0));
    }
}
