//! The network: embedding, blocks of attention and feed-forward, output head.
//!
//! References
//! - Attention Is All You Need, Vaswani et al. 2017: scaled dot-product attention (sec. 3.2), residual
//!   stream.
//! - Root Mean Square Layer Normalization, Zhang and Sennrich 2019.
//! - RoFormer: rotary position embedding, Su et al. 2021, sec. 3.2.2.
//! - GLU Variants Improve Transformer, Shazeer 2020: SwiGLU.
//! - GQA, Ainslie et al. 2023: key and value heads shared by groups of query heads.
//! - LLaMA, Touvron et al. 2023: this combination, pre-norm, no biases, untied head.
//!
//! Departures
//! - Rotary pairs are channel `i` with `i + D/2` rather than `2i` with `2i + 1`: the convention of the
//!   published Llama checkpoints, so exported weights mean the same elsewhere. The two differ by a fixed
//!   permutation.
//! - Heads that share a key head are stacked along the time axis, so keys and values are never repeated in
//!   memory.
//! - Every matrix starts from the same spread, without the depth-dependent scale of GPT-2.
//!
//! Dimensions: `B` sequences, `T` positions, `C` channels of the stream, `H` query heads, `G` key and value
//! heads, `D = C / H` channels of a head, `F` hidden channels, `V` token ids. The stream is kept as `[B*T,
//! C]`, so every linear map is one matrix product.

use burn::{
    module::{Module, Param},
    tensor::{
        Int, Tensor, TensorData,
        backend::{AutodiffBackend, Backend},
    },
};

use crate::{
    config::ModelConfig, engine::MatmulPrecision, flat::round_to_f32, kernels::Kernels, stage::Source,
};

/// Sequences and positions of the batch in hand: `B` and `T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) sequences: usize,
    pub(crate) context: usize,
}

impl Batch {
    /// Rows of the stream, `B*T`.
    pub(crate) fn rows(self) -> usize {
        self.sequences * self.context
    }
}

/// Constants that depend on the positions only, computed once per device and sequence length.
#[derive(Clone, Debug)]
pub(crate) struct Tables<B: Backend> {
    /// Cosines of the rotary angles, `[T, D/2]`.
    cosine: Tensor<B, 2>,
    /// Sines of the rotary angles, `[T, D/2]`.
    sine: Tensor<B, 2>,
    /// Added to the scores: 0 for the past and present, very negative for the future, `[1, 1, H/G*T, T]`.
    mask: Tensor<B, 4>,
}

impl<B: Backend> Tables<B> {
    pub(crate) fn new(config: &ModelConfig, context: usize, device: &B::Device) -> Self {
        let half = config.head_size() / 2;
        let angle = |position: usize, pair: usize| {
            position as f64 * config.rope_base.powf(-(pair as f64) / half as f64)
        };
        let table = |function: fn(f64) -> f64| {
            let values: Vec<f32> = (0..context)
                .flat_map(|position| (0..half).map(move |pair| (position, pair)))
                .map(|(position, pair)| round_to_f32(function(angle(position, pair))))
                .collect();
            Tensor::from_data(TensorData::new(values, [context, half]), device)
        };
        let group = config.heads / config.kv_heads;
        let mask: Vec<f32> = (0..group * context)
            .flat_map(|row| (0..context).map(move |column| if column > row % context { MASKED } else { 0.0 }))
            .collect();
        let mask = Tensor::from_data(TensorData::new(mask, [1, 1, group * context, context]), device);
        Self { cosine: table(f64::cos), sine: table(f64::sin), mask }
    }

    pub(crate) fn cosine(&self) -> Tensor<B, 2> {
        self.cosine.clone()
    }

    pub(crate) fn sine(&self) -> Tensor<B, 2> {
        self.sine.clone()
    }

    pub(crate) fn mask(&self) -> Tensor<B, 4> {
        self.mask.clone()
    }

    /// Channel pairs of a head, `D/2`.
    pub(crate) fn half(&self) -> usize {
        self.cosine.dims()[1]
    }
}

impl<B: AutodiffBackend> Tables<B> {
    /// Returns the same tables outside the graph.
    pub(crate) fn inner(&self) -> Tables<B::InnerBackend> {
        Tables { cosine: self.cosine().inner(), sine: self.sine().inner(), mask: self.mask().inner() }
    }
}

/// Added to the score of a future position: its exponential is 0 in `f32`, and no sum of it overflows.
const MASKED: f32 = -1e30;

/// Token embedding: a row of a table for each id.
#[derive(Module, Debug)]
pub(crate) struct Embedding<B: Backend> {
    weight: Param<Tensor<B, 2>>, // [V, C]
}

impl<B: Backend> Embedding<B> {
    pub(crate) fn load(source: &mut Source<'_, B>) -> Self {
        Self { weight: source.take() }
    }

    /// Looks up the rows of token ids.
    ///
    /// # Shapes
    /// `tokens: [B*T]` → `[B*T, C]`.
    pub(crate) fn forward(&self, tokens: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.weight.val().select(0, tokens)
    }
}

/// A linear map without bias.
#[derive(Module, Debug)]
pub(crate) struct Linear<B: Backend> {
    weight: Param<Tensor<B, 2>>, // [in, out]
    #[module(skip)]
    precision: MatmulPrecision,
}

impl<B: Kernels> Linear<B> {
    pub(crate) fn load(source: &mut Source<'_, B>) -> Self {
        Self { weight: source.take(), precision: source.matmul_precision() }
    }

    /// Maps every row.
    ///
    /// # Shapes
    /// `x: [N, in]` → `[N, out]`.
    pub(crate) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        B::matmul(x, self.weight.val(), self.precision)
    }
}

/// Scales every row to a root mean square of 1, then by a learned gain (Zhang and Sennrich 2019).
#[derive(Module, Debug)]
pub(crate) struct RmsNorm<B: Backend> {
    gain: Param<Tensor<B, 1>>, // [C]
    eps: f64,
}

impl<B: Kernels> RmsNorm<B> {
    pub(crate) fn load(source: &mut Source<'_, B>, eps: f64) -> Self {
        Self { gain: source.take(), eps }
    }

    /// Normalises every row.
    ///
    /// # Shapes
    /// `x: [N, C]` → `[N, C]`.
    pub(crate) fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        B::rms_norm(x, self.gain.val(), self.eps)
    }
}

/// Causal self-attention (Vaswani et al. 2017, sec. 3.2) with rotary positions and shared key heads.
#[derive(Module, Debug)]
pub(crate) struct Attention<B: Backend> {
    query: Linear<B>,  // [C, H*D]
    key: Linear<B>,    // [C, G*D]
    value: Linear<B>,  // [C, G*D]
    output: Linear<B>, // [H*D, C]
    heads: usize,
    kv_heads: usize,
    #[module(skip)]
    precision: MatmulPrecision,
}

impl<B: Kernels> Attention<B> {
    fn load(config: &ModelConfig, source: &mut Source<'_, B>) -> Self {
        Self {
            query: Linear::load(source),
            key: Linear::load(source),
            value: Linear::load(source),
            output: Linear::load(source),
            heads: config.heads,
            kv_heads: config.kv_heads,
            precision: source.matmul_precision(),
        }
    }

    /// Mixes positions: each takes a weighted mean of the values at itself and before.
    ///
    /// # Shapes
    /// `x: [B*T, C]` → `[B*T, C]`.
    fn forward(&self, x: Tensor<B, 2>, batch: Batch, tables: &Tables<B>) -> Tensor<B, 2> {
        let head_size = x.dims()[1] / self.heads;
        let group_rows = self.heads / self.kv_heads * batch.context;

        let query = B::rotate(self.query.forward(x.clone()), batch, tables); // [B, H, T, D]
        let query = query.reshape([batch.sequences, self.kv_heads, group_rows, head_size]); // [B, G, H/G*T, D]
        let key = B::rotate(self.key.forward(x.clone()), batch, tables); // [B, G, T, D]
        let value = B::split_heads(self.value.forward(x), batch, self.kv_heads); // [B, G, T, D]

        let scores = B::matmul(query, key.swap_dims(2, 3), self.precision); // [B, G, H/G*T, T]
        let weights = B::causal_softmax(scores, (head_size as f64).sqrt().recip(), tables); // [B, G, H/G*T, T]
        let mixed = B::matmul(weights, value, self.precision); // [B, G, H/G*T, D]

        let mixed = mixed.reshape([batch.sequences, self.heads, batch.context, head_size]); // [B, H, T, D]
        let mixed = B::merge_heads(mixed); // [B*T, C]
        self.output.forward(mixed)
    }
}

/// Gated feed-forward part: `(silu(x W_gate) * x W_up) W_down` (Shazeer 2020).
#[derive(Module, Debug)]
pub(crate) struct SwiGlu<B: Backend> {
    gate: Linear<B>, // [C, F]
    up: Linear<B>,   // [C, F]
    down: Linear<B>, // [F, C]
}

impl<B: Kernels> SwiGlu<B> {
    fn load(source: &mut Source<'_, B>) -> Self {
        Self { gate: Linear::load(source), up: Linear::load(source), down: Linear::load(source) }
    }

    /// Maps every row.
    ///
    /// # Shapes
    /// `x: [N, C]` → `[N, C]`.
    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let hidden = B::gated(self.gate.forward(x.clone()), self.up.forward(x)); // [N, F]
        self.down.forward(hidden)
    }
}

/// One transformer block: attention and feed-forward, each normalised before and added to the stream after.
#[derive(Module, Debug)]
pub(crate) struct Block<B: Backend> {
    attention_norm: RmsNorm<B>,
    attention: Attention<B>,
    feed_forward_norm: RmsNorm<B>,
    feed_forward: SwiGlu<B>,
}

impl<B: Kernels> Block<B> {
    pub(crate) fn load(config: &ModelConfig, source: &mut Source<'_, B>) -> Self {
        Self {
            attention_norm: RmsNorm::load(source, config.norm_eps),
            attention: Attention::load(config, source),
            feed_forward_norm: RmsNorm::load(source, config.norm_eps),
            feed_forward: SwiGlu::load(source),
        }
    }

    /// Passes the stream through the block.
    ///
    /// # Shapes
    /// `x: [B*T, C]` → `[B*T, C]`.
    pub(crate) fn forward(&self, x: Tensor<B, 2>, batch: Batch, tables: &Tables<B>) -> Tensor<B, 2> {
        let x = x.clone() + self.attention.forward(self.attention_norm.forward(x), batch, tables);
        x.clone() + self.feed_forward.forward(self.feed_forward_norm.forward(x))
    }
}
