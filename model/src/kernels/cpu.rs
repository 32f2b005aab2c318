//! The kernels as loops over contiguous rows, for the processor.
//!
//! Sums run in [`LANES`] partial sums, added in a fixed order at the end: the compiler turns them into vector
//! instructions, and the result depends on the row only, not on threads or on how the network is cut. The
//! exponential is a polynomial of basic operations, so it has the same bits on every machine with IEEE 754
//! singles.

use burn::tensor::{Int, Tensor, TensorData, TensorPrimitive};
use burn_flex::{Flex, FlexDevice, FlexTensor};

use super::Derivatives;
use crate::{
    flat::round_to_f32,
    transformer::{Batch, Tables},
};

/// Partial sums of a row: two vectors of eight, so that one addition need not wait for the one before.
const LANES: usize = 16;

impl Derivatives for Flex {
    fn rms_norm_forward(x: Tensor<Self, 2>, gain: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 2> {
        let [rows, width] = x.dims();
        let (x, gain) = (contiguous(x), contiguous(gain));
        let (x, gain) = (slice(&x), slice(&gain));
        let mut output = Vec::with_capacity(rows * width);
        for row in x.chunks_exact(width) {
            let scale = row_scale(row, eps);
            output.extend(row.iter().zip(gain).map(|(value, gain)| value * scale * gain));
        }
        tensor(output, [rows, width])
    }

    fn rms_norm_backward(
        x: Tensor<Self, 2>,
        gain: Tensor<Self, 1>,
        eps: f64,
        output: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 1>) {
        let [rows, width] = x.dims();
        let (x, gain, output) = (contiguous(x), contiguous(gain), contiguous(output));
        let (x, gain, output) = (slice(&x), slice(&gain), slice(&output));
        let (mut x_gradient, mut gain_gradient) = (Vec::with_capacity(rows * width), vec![0.0; width]);
        let mut scaled = vec![0.0; width];
        for (row, output) in x.chunks_exact(width).zip(output.chunks_exact(width)) {
            let scale = row_scale(row, eps);
            for ((scaled, output), gain) in scaled.iter_mut().zip(output).zip(gain) {
                *scaled = output * gain;
            }
            for ((sum, output), value) in gain_gradient.iter_mut().zip(output).zip(row) {
                *sum += output * (value * scale);
            }
            let along = dot(&scaled, row) * scale * scale / width as f32;
            x_gradient.extend(scaled.iter().zip(row).map(|(scaled, value)| (scaled - value * along) * scale));
        }
        (tensor(x_gradient, [rows, width]), tensor(gain_gradient, [width]))
    }

    fn rotate_forward(x: Tensor<Self, 2>, batch: Batch, tables: &Tables<Self>) -> Tensor<Self, 4> {
        let [_, channels] = x.dims();
        let half = tables.half();
        let heads = channels / (2 * half);
        let x = contiguous(x);
        let (cosine, sine) = (contiguous(tables.cosine()), contiguous(tables.sine()));
        let (x, cosine, sine) = (slice(&x), slice(&cosine), slice(&sine));
        let mut output = Vec::with_capacity(x.len());
        for sequence in x.chunks_exact(batch.context * channels) {
            for head in 0..heads {
                for (position, row) in sequence.chunks_exact(channels).enumerate() {
                    let (first, second) = row[2 * half * head..2 * half * (head + 1)].split_at(half);
                    let angles = cosine[position * half..].iter().zip(&sine[position * half..]);
                    let pairs = first.iter().zip(second).zip(angles);
                    output.extend(
                        pairs.clone().map(|((first, second), (cosine, sine))| first * cosine - second * sine),
                    );
                    output.extend(
                        pairs.map(|((first, second), (cosine, sine))| second * cosine + first * sine),
                    );
                }
            }
        }
        tensor(output, [batch.sequences, heads, batch.context, 2 * half])
    }

    fn rotate_backward(output: Tensor<Self, 4>, batch: Batch, tables: &Tables<Self>) -> Tensor<Self, 2> {
        let [_, heads, _, size] = output.dims();
        let (half, channels) = (size / 2, heads * size);
        let output = contiguous(output);
        let (cosine, sine) = (contiguous(tables.cosine()), contiguous(tables.sine()));
        let (output, cosine, sine) = (slice(&output), slice(&cosine), slice(&sine));
        let mut gradient = vec![0.0; output.len()];
        let sequences = gradient.chunks_exact_mut(batch.context * channels);
        for (gradient, output) in sequences.zip(output.chunks_exact(batch.context * channels)) {
            for (head, output) in output.chunks_exact(batch.context * size).enumerate() {
                for (position, output) in output.chunks_exact(size).enumerate() {
                    let start = position * channels + head * size;
                    let (to_first, to_second) = gradient[start..start + size].split_at_mut(half);
                    let (first, second) = output.split_at(half);
                    let angles = cosine[position * half..].iter().zip(&sine[position * half..]);
                    let targets = to_first.iter_mut().zip(to_second);
                    for (((to_first, to_second), (first, second)), (cosine, sine)) in
                        targets.zip(first.iter().zip(second)).zip(angles)
                    {
                        *to_first = first * cosine + second * sine;
                        *to_second = second * cosine - first * sine;
                    }
                }
            }
        }
        tensor(gradient, [batch.rows(), channels])
    }

    fn rows_to_heads(x: Tensor<Self, 2>, batch: Batch, heads: usize) -> Tensor<Self, 4> {
        let [_, channels] = x.dims();
        let size = channels / heads;
        let x = contiguous(x);
        let mut output = Vec::with_capacity(batch.rows() * channels);
        for sequence in slice(&x).chunks_exact(batch.context * channels) {
            for start in (0..channels).step_by(size) {
                for row in sequence.chunks_exact(channels) {
                    output.extend_from_slice(&row[start..start + size]);
                }
            }
        }
        tensor(output, [batch.sequences, heads, batch.context, size])
    }

    fn heads_to_rows(x: Tensor<Self, 4>) -> Tensor<Self, 2> {
        let [sequences, heads, context, size] = x.dims();
        let x = contiguous(x);
        let mut output = Vec::with_capacity(sequences * heads * context * size);
        for sequence in slice(&x).chunks_exact(heads * context * size) {
            for position in 0..context {
                for head in sequence.chunks_exact(context * size) {
                    output.extend_from_slice(&head[position * size..(position + 1) * size]);
                }
            }
        }
        tensor(output, [sequences * context, heads * size])
    }

    fn causal_softmax_forward(scores: Tensor<Self, 4>, scale: f64, _: &Tables<Self>) -> Tensor<Self, 4> {
        let [_, _, _, context] = scores.dims();
        let scale = round_to_f32(scale);
        let mut scores = contiguous(scores);
        for (index, row) in scores.storage_mut::<f32>().chunks_exact_mut(context).enumerate() {
            let (seen, future) = row.split_at_mut(index % context + 1);
            softmax(seen, scale);
            future.fill(0.0);
        }
        wrap(scores)
    }

    fn causal_softmax_backward(
        weights: Tensor<Self, 4>,
        scale: f64,
        output: Tensor<Self, 4>,
    ) -> Tensor<Self, 4> {
        let [_, _, _, context] = weights.dims();
        let scale = round_to_f32(scale);
        let (weights, mut gradient) = (contiguous(weights), contiguous(output));
        let rows = gradient.storage_mut::<f32>().chunks_exact_mut(context);
        for (index, (row, weights)) in rows.zip(slice(&weights).chunks_exact(context)).enumerate() {
            let (seen, future) = row.split_at_mut(index % context + 1);
            let mean = dot(seen, weights);
            for (value, weight) in seen.iter_mut().zip(weights) {
                *value = weight * (*value - mean) * scale;
            }
            future.fill(0.0);
        }
        wrap(gradient)
    }

    fn gated_forward(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let shape = gate.dims();
        let (gate, up) = (contiguous(gate), contiguous(up));
        let pairs = slice(&gate).iter().zip(slice(&up));
        tensor(pairs.map(|(gate, up)| gate * sigmoid(*gate) * up).collect(), shape)
    }

    fn gated_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        output: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        let shape = gate.dims();
        let (gate, up, output) = (contiguous(gate), contiguous(up), contiguous(output));
        let (gate, up, output) = (slice(&gate), slice(&up), slice(&output));
        let (mut gate_gradient, mut up_gradient) = (vec![0.0; gate.len()], vec![0.0; gate.len()]);
        let targets = gate_gradient.iter_mut().zip(&mut up_gradient);
        for (((to_gate, to_up), (gate, up)), output) in targets.zip(gate.iter().zip(up)).zip(output) {
            let sigmoid = sigmoid(*gate);
            *to_up = output * (gate * sigmoid);
            *to_gate = output * up * (sigmoid * (1.0 + gate * (1.0 - sigmoid)));
        }
        (tensor(gate_gradient, shape), tensor(up_gradient, shape))
    }

    fn cross_entropy_forward(logits: Tensor<Self, 2>, targets: Tensor<Self, 1, Int>) -> Tensor<Self, 1> {
        let [rows, width] = logits.dims();
        let (logits, targets) = (contiguous(logits), indices(targets));
        let mut total = 0.0;
        for (row, target) in slice(&logits).chunks_exact(width).zip(targets) {
            let highest = highest(row);
            let sum: f64 = row.iter().map(|logit| f64::from(exp(logit - highest))).sum();
            total += libm::log(sum) + f64::from(highest) - f64::from(row[target]);
        }
        tensor(vec![round_to_f32(total / rows as f64)], [1])
    }

    fn cross_entropy_backward(
        logits: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
        output: Tensor<Self, 1>,
    ) -> Tensor<Self, 2> {
        let [rows, width] = logits.dims();
        let share = slice(&contiguous(output))[0] / rows as f32;
        let (mut gradient, targets) = (contiguous(logits), indices(targets));
        for (row, target) in gradient.storage_mut::<f32>().chunks_exact_mut(width).zip(targets) {
            softmax(row, 1.0);
            row[target] -= 1.0;
            row.iter_mut().for_each(|value| *value *= share);
        }
        wrap(gradient)
    }
}

/// Returns a tensor whose storage is its elements in row-major order.
fn contiguous<const D: usize>(tensor: Tensor<Flex, D>) -> FlexTensor {
    tensor.into_primitive().tensor().to_contiguous()
}

/// Views the elements of a contiguous tensor.
fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor.storage()
}

/// Wraps a tensor again.
fn wrap<const D: usize>(tensor: FlexTensor) -> Tensor<Flex, D> {
    Tensor::from_primitive(TensorPrimitive::Float(tensor))
}

/// Makes a tensor of row-major elements.
fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<Flex, D> {
    Tensor::from_data(TensorData::new(values, shape), &FlexDevice)
}

/// Reads ids, which the engine has checked against the vocabulary.
fn indices(targets: Tensor<Flex, 1, Int>) -> impl Iterator<Item = usize> {
    let targets: Vec<i32> = targets.into_data().iter::<i32>().collect();
    targets.into_iter().map(|target| usize::try_from(target).expect("ids are checked"))
}

/// Returns the factor that brings a row's root mean square to 1.
fn row_scale(row: &[f32], eps: f64) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + round_to_f32(eps)).sqrt()
}

/// Multiplies two rows up to the length of the shorter.
fn dot(left: &[f32], right: &[f32]) -> f32 {
    let length = left.len().min(right.len());
    let (left, left_rest) = left[..length].as_chunks::<LANES>();
    let (right, right_rest) = right[..length].as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (left, right) in left.iter().zip(right) {
        for ((lane, left), right) in lanes.iter_mut().zip(left).zip(right) {
            *lane += left * right;
        }
    }
    let rest: f32 = left_rest.iter().zip(right_rest).map(|(left, right)| left * right).sum();
    lanes.iter().sum::<f32>() + rest
}

/// Returns the largest element.
fn highest(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces a row by the softmax of its multiple.
fn softmax(row: &mut [f32], scale: f32) {
    let highest = highest(row) * scale;
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = exp(*value * scale - highest);
            *lane += *value;
        }
    }
    let mut sum: f32 = lanes.iter().sum();
    for value in rest {
        *value = exp(*value * scale - highest);
        sum += *value;
    }
    let inverse = 1.0 / sum;
    row.iter_mut().for_each(|value| *value *= inverse);
}

/// The logistic function.
#[inline]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Returns `e^x` to within two units in the last place between -87 and 88, and its value at the nearer end
/// beyond.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; the series of `e^r` up to `r^7` is off by less than `2^-27`, and
/// `2^n` is written into the exponent bits. No branches, so a loop of it becomes vector instructions.
#[inline]
fn exp(x: f32) -> f32 {
    /// Adding and taking away 1.5 * 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts: the first has few bits, so its product with n is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + coefficient;
    }
    // The low bits of `rounded` are those of n; the bias of the exponent is 127.
    sum * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::ModelConfig, kernels::textbook, testing::tiny};

    const BATCH: Batch = Batch { sequences: 2, context: 21 };

    /// Numbers that follow no rule, none of them special.
    fn numbers<const D: usize>(shape: [usize; D], phase: f32) -> Tensor<Flex, D> {
        let length: usize = shape.iter().product();
        tensor((0..length).map(|index| (index as f32 * 1.37 + phase).sin() * 3.0).collect(), shape)
    }

    fn tables() -> Tables<Flex> {
        let config = ModelConfig { width: 24, context: BATCH.context, heads: 4, kv_heads: 2, ..tiny() };
        Tables::new(&config, BATCH.context, &FlexDevice)
    }

    fn close<const D: usize>(got: Tensor<Flex, D>, expected: Tensor<Flex, D>) {
        assert_eq!(got.dims(), expected.dims());
        let (got, expected) = (contiguous(got), contiguous(expected));
        for (index, (got, expected)) in slice(&got).iter().zip(slice(&expected)).enumerate() {
            // Sums of at most 42 numbers near 3 in another order, and exponentials off by 2 units in the last
            // place.
            assert!(
                (got - expected).abs() < 1e-5 * expected.abs().max(1.0),
                "{index}: {got}, expected {expected}"
            );
        }
    }

    #[test]
    fn rms_norm_is_the_textbooks() {
        let (x, gain, output) = (numbers([42, 37], 0.0), numbers([37], 1.0), numbers([42, 37], 2.0));
        close(
            Flex::rms_norm_forward(x.clone(), gain.clone(), 1e-5),
            textbook::rms_norm_forward(x.clone(), gain.clone(), 1e-5),
        );
        let got = Flex::rms_norm_backward(x.clone(), gain.clone(), 1e-5, output.clone());
        let expected = textbook::rms_norm_backward(x, gain, 1e-5, output);
        close(got.0, expected.0);
        close(got.1 / 42.0, expected.1 / 42.0);
    }

    #[test]
    fn rotation_is_the_textbooks_and_its_derivative_turns_back() {
        let x = numbers([BATCH.rows(), 24], 0.0);
        let turned = Flex::rotate_forward(x.clone(), BATCH, &tables());
        close(turned.clone(), textbook::rotate_forward(x.clone(), BATCH, &tables()));
        close(
            Flex::rotate_backward(turned.clone(), BATCH, &tables()),
            textbook::rotate_backward(turned.clone(), BATCH, &tables()),
        );
        close(Flex::rotate_backward(turned, BATCH, &tables()), x);
    }

    #[test]
    fn heads_are_split_and_merged_as_in_the_textbook() {
        let x = numbers([BATCH.rows(), 24], 0.0);
        let heads = Flex::rows_to_heads(x.clone(), BATCH, 4);
        close(heads.clone(), textbook::rows_to_heads(x.clone(), BATCH, 4));
        close(Flex::heads_to_rows(heads.clone()), x.clone());
        close(textbook::heads_to_rows(heads), x);
    }

    #[test]
    fn causal_softmax_is_the_textbooks() {
        let shape = [2, 2, 2 * BATCH.context, BATCH.context];
        let (scores, output) = (numbers(shape, 0.0), numbers(shape, 1.0));
        let weights = Flex::causal_softmax_forward(scores.clone(), 0.7, &tables());
        close(weights.clone(), textbook::causal_softmax_forward(scores, 0.7, &tables()));
        close(
            Flex::causal_softmax_backward(weights.clone(), 0.7, output.clone()),
            textbook::causal_softmax_backward(weights, 0.7, output),
        );
    }

    #[test]
    fn gate_is_the_textbooks() {
        let (gate, up, output) = (numbers([7, 37], 0.0), numbers([7, 37], 1.0), numbers([7, 37], 2.0));
        close(
            Flex::gated_forward(gate.clone(), up.clone()),
            textbook::gated_forward(gate.clone(), up.clone()),
        );
        let got = Flex::gated_backward(gate.clone(), up.clone(), output.clone());
        let expected = textbook::gated_backward(gate, up, output);
        close(got.0, expected.0);
        close(got.1, expected.1);
    }

    #[test]
    fn cross_entropy_is_the_textbooks() {
        let logits = numbers([5, 37], 0.0);
        let targets = Tensor::from_data(TensorData::from([0_i32, 36, 7, 7, 20]), &FlexDevice);
        let output = tensor(vec![0.8], [1]);
        close(
            Flex::cross_entropy_forward(logits.clone(), targets.clone()),
            textbook::cross_entropy_forward(logits.clone(), targets.clone()),
        );
        close(
            Flex::cross_entropy_backward(logits.clone(), targets.clone(), output.clone()),
            textbook::cross_entropy_backward(logits, targets, output),
        );
    }

    #[test]
    fn exponential_is_within_two_units_in_the_last_place() {
        for step in -87_000..=88_000_i32 {
            let x = step as f32 / 1000.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2.0 * f64::from(f32::EPSILON), "{x}: {error}");
        }
        assert_eq!((exp(-1e30), exp(0.0), exp(1e30)), (exp(-87.0), 1.0, exp(88.0)));
        assert!(exp(f32::NAN).is_nan());
    }
}
