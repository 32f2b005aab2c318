//! The kernels in plain tensor operations, for any backend; what `cpu.rs` is tested against.

use burn::tensor::{Int, Tensor, activation, backend::Backend};

use crate::transformer::{Batch, Tables};

/// As [`Kernels::rms_norm`].
pub(super) fn rms_norm_forward<B: Backend>(x: Tensor<B, 2>, gain: Tensor<B, 1>, eps: f64) -> Tensor<B, 2> {
    let scale = inverse_root_mean_square(x.clone(), eps); // [N, 1]
    x * scale * gain.unsqueeze() // [N, C]
}

/// Returns the gradients of the rows and the gain.
///
/// # Shapes
/// `x, output: [N, C]`, `gain: [C]` → `[N, C]`, `[C]`.
pub(super) fn rms_norm_backward<B: Backend>(
    x: Tensor<B, 2>,
    gain: Tensor<B, 1>,
    eps: f64,
    output: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 1>) {
    let scale = inverse_root_mean_square(x.clone(), eps); // [N, 1]
    let unit = x * scale.clone(); // [N, C]
    let gain_gradient = (output.clone() * unit.clone()).sum_dim(0).squeeze_dim(0); // [C]
    let scaled = output * gain.unsqueeze(); // [N, C]
    let along = (scaled.clone() * unit.clone()).mean_dim(1); // [N, 1]
    ((scaled - unit * along) * scale, gain_gradient)
}

/// As [`Kernels::rotate`].
pub(super) fn rotate_forward<B: Backend>(x: Tensor<B, 2>, batch: Batch, tables: &Tables<B>) -> Tensor<B, 4> {
    let [_, channels] = x.dims();
    let size = 2 * tables.half();
    let x = x.reshape([batch.sequences, batch.context, channels / size, size]); // [B, T, heads, D]
    turn(x.swap_dims(1, 2), tables.cosine(), tables.sine()) // [B, heads, T, D]
}

/// Returns the gradient of the rows: the same turn the other way.
///
/// # Shapes
/// `output: [B, heads, T, D]` → `[B*T, heads*D]`.
pub(super) fn rotate_backward<B: Backend>(
    output: Tensor<B, 4>,
    batch: Batch,
    tables: &Tables<B>,
) -> Tensor<B, 2> {
    let [_, heads, _, size] = output.dims();
    let turned = turn(output, tables.cosine(), tables.sine().neg()); // [B, heads, T, D]
    turned.swap_dims(1, 2).reshape([batch.rows(), heads * size])
}

pub(super) fn rows_to_heads<B: Backend>(x: Tensor<B, 2>, batch: Batch, heads: usize) -> Tensor<B, 4> {
    let [_, channels] = x.dims();
    x.reshape([batch.sequences, batch.context, heads, channels / heads]).swap_dims(1, 2)
}

pub(super) fn heads_to_rows<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 2> {
    let [sequences, heads, context, size] = x.dims();
    x.swap_dims(1, 2).reshape([sequences * context, heads * size])
}

/// As [`Kernels::causal_softmax`].
pub(super) fn causal_softmax_forward<B: Backend>(
    scores: Tensor<B, 4>,
    scale: f64,
    tables: &Tables<B>,
) -> Tensor<B, 4> {
    activation::softmax(scores * scale + tables.mask(), 3)
}

/// Returns the gradient of the scores from the softmax's own output.
///
/// # Shapes
/// `weights, output: [B, G, R*T, T]` → `[B, G, R*T, T]`.
pub(super) fn causal_softmax_backward<B: Backend>(
    weights: Tensor<B, 4>,
    scale: f64,
    output: Tensor<B, 4>,
) -> Tensor<B, 4> {
    let mean = (weights.clone() * output.clone()).sum_dim(3); // [B, G, R*T, 1]
    weights * (output - mean) * scale
}

/// As [`Kernels::gated`].
pub(super) fn gated_forward<B: Backend>(gate: Tensor<B, 2>, up: Tensor<B, 2>) -> Tensor<B, 2> {
    activation::silu(gate) * up
}

/// Returns the gradients of gate and up.
///
/// # Shapes
/// All `[N, F]`.
pub(super) fn gated_backward<B: Backend>(
    gate: Tensor<B, 2>,
    up: Tensor<B, 2>,
    output: Tensor<B, 2>,
) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let sigmoid = activation::sigmoid(gate.clone());
    let up_gradient = output.clone() * gate.clone() * sigmoid.clone();
    // silu'(g) = s (1 + g (1 - s)) with s the sigmoid of g.
    let slope = sigmoid.clone() * (gate * (sigmoid.neg() + 1.0) + 1.0);
    (output * up * slope, up_gradient)
}

/// As [`Kernels::cross_entropy`].
pub(super) fn cross_entropy_forward<B: Backend>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
) -> Tensor<B, 1> {
    let log_probabilities = activation::log_softmax(logits, 1); // [N, V]
    log_probabilities.gather(1, targets.unsqueeze_dim(1)).mean().neg() // [1]
}

/// Returns the gradient of the logits: softmax minus the target, over the rows.
///
/// # Shapes
/// `logits: [N, V]`, `targets: [N]`, `output: [1]` → `[N, V]`.
pub(super) fn cross_entropy_backward<B: Backend>(
    logits: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    output: Tensor<B, 1>,
) -> Tensor<B, 2> {
    let [rows, vocabulary] = logits.dims();
    let hits = targets.one_hot::<2>(vocabulary).float(); // [N, V]
    (activation::softmax(logits, 1) - hits) * (output / rows as f64).unsqueeze() // [N, V]
}

fn inverse_root_mean_square<B: Backend>(x: Tensor<B, 2>, eps: f64) -> Tensor<B, 2> {
    ((x.clone() * x).mean_dim(1) + eps).sqrt().recip() // [N, 1]
}

/// Turns channel `i` with channel `i + D/2`.
///
/// # Shapes
/// `x: [B, heads, T, D]`, `cosine, sine: [T, D/2]` → `[B, heads, T, D]`.
fn turn<B: Backend>(x: Tensor<B, 4>, cosine: Tensor<B, 2>, sine: Tensor<B, 2>) -> Tensor<B, 4> {
    let half = x.dims()[3] / 2;
    let (cosine, sine) = (cosine.unsqueeze(), sine.unsqueeze()); // [1, 1, T, D/2]
    let first = x.clone().narrow(3, 0, half); // [B, heads, T, D/2]
    let second = x.narrow(3, half, half); // [B, heads, T, D/2]
    let turned_first: Tensor<B, 4> = first.clone() * cosine.clone() - second.clone() * sine.clone();
    let turned_second = second * cosine + first * sine;
    Tensor::cat(vec![turned_first, turned_second], 3) // [B, heads, T, D]
}
