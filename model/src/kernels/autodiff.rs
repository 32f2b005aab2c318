//! One graph node per kernel: the forward pass keeps its inputs, the backward pass calls [`Derivatives`].

use burn::{
    backend::{
        Autodiff,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind, unary},
        },
    },
    tensor::{Int, Tensor, TensorPrimitive, backend::Backend, ops::FloatTensor},
};

use super::{Derivatives, Kernels};
use crate::{
    engine::MatmulPrecision,
    transformer::{Batch, Tables},
};

impl<B: Derivatives, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
    fn matmul<const D: usize>(
        lhs: Tensor<Self, D>,
        rhs: Tensor<Self, D>,
        precision: MatmulPrecision,
    ) -> Tensor<Self, D> {
        if precision == MatmulPrecision::High {
            return lhs.matmul(rhs);
        }
        let (lhs, rhs) = (primitive(lhs), primitive(rhs));
        let parents = [lhs.node.clone(), rhs.node.clone()];
        let (lhs, rhs) = (float(lhs.primitive), float(rhs.primitive));
        let output = primitive(B::matmul_highest::<D>(lhs.clone(), rhs.clone()));
        float(match MatmulHighest.prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((lhs, rhs), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        })
    }

    fn rms_norm(x: Tensor<Self, 2>, gain: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 2> {
        let (x, gain) = (primitive(x), primitive(gain));
        let parents = [x.node.clone(), gain.node.clone()];
        let (x, gain) = (float(x.primitive), float(gain.primitive));
        let output = primitive(B::rms_norm_forward(x.clone(), gain.clone(), eps));
        float(match RmsNorm.prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((x, gain, eps), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        })
    }

    fn rotate(x: Tensor<Self, 2>, batch: Batch, tables: &Tables<Self>) -> Tensor<Self, 4> {
        let (x, tables) = (primitive(x), tables.inner());
        let output = primitive(B::rotate_forward(float(x.primitive), batch, &tables));
        float(match Rotate.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((batch, tables), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        })
    }

    fn split_heads(x: Tensor<Self, 2>, batch: Batch, heads: usize) -> Tensor<Self, 4> {
        let x = primitive(x);
        let output = primitive(B::rows_to_heads(float(x.primitive), batch, heads));
        float(match SplitHeads.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        })
    }

    fn merge_heads(x: Tensor<Self, 4>) -> Tensor<Self, 2> {
        let [sequences, heads, context, _] = x.dims();
        let x = primitive(x);
        let output = primitive(B::heads_to_rows(float(x.primitive)));
        float(match MergeHeads.prepare::<C>([x.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((Batch { sequences, context }, heads), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        })
    }

    fn causal_softmax(scores: Tensor<Self, 4>, scale: f64, tables: &Tables<Self>) -> Tensor<Self, 4> {
        let (scores, tables) = (primitive(scores), tables.inner());
        let weights = B::causal_softmax_forward(float(scores.primitive), scale, &tables);
        let output = primitive(weights.clone());
        float(match CausalSoftmax.prepare::<C>([scores.node]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((weights, scale), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        })
    }

    fn gated(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        let (gate, up) = (primitive(gate), primitive(up));
        let parents = [gate.node.clone(), up.node.clone()];
        let (gate, up) = (float(gate.primitive), float(up.primitive));
        let output = primitive(B::gated_forward(gate.clone(), up.clone()));
        float(match Gated.prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((gate, up), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        })
    }

    fn cross_entropy(logits: Tensor<Self, 2>, targets: Tensor<Self, 1, Int>) -> Tensor<Self, 1> {
        let (logits, targets) = (primitive(logits), targets.inner());
        let parents = [logits.node.clone()];
        let logits = float(logits.primitive);
        let output = primitive(B::cross_entropy_forward(logits.clone(), targets.clone()));
        float(match CrossEntropy.prepare::<C>(parents).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((logits, targets), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        })
    }
}

/// Unwraps a tensor.
fn primitive<A: Backend, const D: usize>(tensor: Tensor<A, D>) -> FloatTensor<A> {
    tensor.into_primitive().tensor()
}

/// Wraps a primitive.
fn float<A: Backend, const D: usize>(primitive: FloatTensor<A>) -> Tensor<A, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

#[derive(Debug)]
struct MatmulHighest<const D: usize>;

impl<B: Derivatives, const D: usize> Backward<B, 2> for MatmulHighest<D> {
    type State = (Tensor<B, D>, Tensor<B, D>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let output = float::<B, D>(grads.consume::<B>(&ops.node));
        let (lhs, rhs) = ops.state;
        let [lhs_node, rhs_node] = ops.parents;
        if let Some(node) = lhs_node {
            grads.register::<B>(node.id, primitive(B::matmul_highest(output.clone(), rhs.transpose())));
        }
        if let Some(node) = rhs_node {
            grads.register::<B>(node.id, primitive(B::matmul_highest(lhs.transpose(), output)));
        }
    }
}

#[derive(Debug)]
struct RmsNorm;

impl<B: Derivatives> Backward<B, 2> for RmsNorm {
    type State = (Tensor<B, 2>, Tensor<B, 1>, f64);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let output = float(grads.consume::<B>(&ops.node));
        let (x, gain, eps) = ops.state;
        let (x_gradient, gain_gradient) = B::rms_norm_backward(x, gain, eps, output);
        let [x, gain] = ops.parents;
        if let Some(node) = x {
            grads.register::<B>(node.id, primitive(x_gradient));
        }
        if let Some(node) = gain {
            grads.register::<B>(node.id, primitive(gain_gradient));
        }
    }
}

#[derive(Debug)]
struct Rotate;

impl<B: Derivatives> Backward<B, 1> for Rotate {
    type State = (Batch, Tables<B>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (batch, tables) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |output| {
            primitive(B::rotate_backward(float(output), batch, &tables))
        });
    }
}

#[derive(Debug)]
struct SplitHeads;

impl<B: Derivatives> Backward<B, 1> for SplitHeads {
    type State = ();

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        unary::<B, _>(ops.parents, ops.node, grads, |output| primitive(B::heads_to_rows(float(output))));
    }
}

#[derive(Debug)]
struct MergeHeads;

impl<B: Derivatives> Backward<B, 1> for MergeHeads {
    type State = (Batch, usize);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (batch, heads) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |output| {
            primitive(B::rows_to_heads(float(output), batch, heads))
        });
    }
}

#[derive(Debug)]
struct CausalSoftmax;

impl<B: Derivatives> Backward<B, 1> for CausalSoftmax {
    type State = (Tensor<B, 4>, f64);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (weights, scale) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |output| {
            primitive(B::causal_softmax_backward(weights, scale, float(output)))
        });
    }
}

#[derive(Debug)]
struct Gated;

impl<B: Derivatives> Backward<B, 2> for Gated {
    type State = (Tensor<B, 2>, Tensor<B, 2>);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        let output = float(grads.consume::<B>(&ops.node));
        let (gate, up) = ops.state;
        let (gate_gradient, up_gradient) = B::gated_backward(gate, up, output);
        let [gate, up] = ops.parents;
        if let Some(node) = gate {
            grads.register::<B>(node.id, primitive(gate_gradient));
        }
        if let Some(node) = up {
            grads.register::<B>(node.id, primitive(up_gradient));
        }
    }
}

#[derive(Debug)]
struct CrossEntropy;

impl<B: Derivatives> Backward<B, 1> for CrossEntropy {
    type State = (Tensor<B, 2>, Tensor<B, 1, Int>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (logits, targets) = ops.state;
        unary::<B, _>(ops.parents, ops.node, grads, |output| {
            primitive(B::cross_entropy_backward(logits, targets, float(output)))
        });
    }
}

#[cfg(test)]
mod tests {
    use burn::{backend::autodiff::checkpoint::strategy::NoCheckpointing, tensor::TensorData};
    use burn_flex::{Flex, FlexDevice};

    use super::*;

    /// Batches, M, K and N: smaller than a tile, single rows and columns, off the grid of tiles, on it, several tiles.
    const SIZES: [[usize; 4]; 8] = [
        [1, 1, 1, 1],
        [1, 1, 70, 33],
        [3, 33, 70, 1],
        [1, 5, 1, 7],
        [2, 19, 45, 23],
        [1, 64, 64, 64],
        [4, 64, 16, 128],
        [2, 130, 257, 201],
    ];

    /// Which operands are transposed views, as keys and the operands of derivatives are.
    const VIEWS: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

    /// Numbers between -1 and 1 that follow no rule.
    fn numbers(length: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..length).map(|_| next()).collect()
    }

    /// Returns a product and the gradients of both operands.
    fn product<B: Derivatives>(
        device: &B::Device,
        [batches, m, k, n]: [usize; 4],
        [lhs_view, rhs_view]: [bool; 2],
        precision: MatmulPrecision,
    ) -> [Vec<f32>; 3] {
        type Graph<B> = Autodiff<B, NoCheckpointing>;
        let leaf = |rows: usize, columns: usize, is_view: bool, seed: u32| {
            let shape = if is_view { [1, batches, columns, rows] } else { [1, batches, rows, columns] };
            let data = TensorData::new(numbers(batches * rows * columns, seed), shape);
            Tensor::<Graph<B>, 4>::from_data(data, device).require_grad()
        };
        let view = |leaf: &Tensor<Graph<B>, 4>, is_view: bool| {
            if is_view { leaf.clone().transpose() } else { leaf.clone() }
        };
        let (lhs, rhs) = (leaf(m, k, lhs_view, 1), leaf(k, n, rhs_view, 2));
        let product = Graph::<B>::matmul(view(&lhs, lhs_view), view(&rhs, rhs_view), precision);
        let gradients = (product.clone() * leaf(m, n, false, 3)).backward();
        [product.inner(), lhs.grad(&gradients).unwrap(), rhs.grad(&gradients).unwrap()]
            .map(|tensor| tensor.into_data().to_vec().unwrap())
    }

    /// Returns all products of [`SIZES`] and [`VIEWS`].
    fn products<B: Derivatives>(device: &B::Device, precision: MatmulPrecision) -> Vec<[Vec<f32>; 3]> {
        let cases = SIZES.into_iter().flat_map(|sizes| VIEWS.map(|views| (sizes, views)));
        cases.map(|(sizes, views)| product::<B>(device, sizes, views, precision)).collect()
    }

    #[test]
    fn products_on_the_cpu_have_the_same_bits_with_either_precision() {
        let [high, highest] = [MatmulPrecision::High, MatmulPrecision::Highest]
            .map(|precision| products::<Flex>(&FlexDevice, precision));
        assert_eq!(high, highest);
    }

    /// Holds that products of the highest precision differ from the CPU's by the order of their sums only.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    fn check_against_cpu<B: Derivatives>(device: &B::Device) {
        let expected = products::<Flex>(&FlexDevice, MatmulPrecision::Highest);
        let got = products::<B>(device, MatmulPrecision::Highest);
        for (case, (expected, got)) in expected.iter().zip(&got).enumerate() {
            for (expected, got) in expected.iter().zip(got) {
                let error = crate::compare::Sums::of(expected, got).comparison().relative_error;
                // At most 257 roundings of 2^-24 that follow no rule, √257 × 2^-24; TF32 would make it 3e-4.
                let (sizes, views) = (SIZES[case / VIEWS.len()], VIEWS[case % VIEWS.len()]);
                assert!(error < 1e-6, "{error:e} with {sizes:?}, transposed {views:?}");
            }
        }
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn products_of_the_highest_precision_on_wgpu_are_those_of_the_cpu() {
        check_against_cpu::<burn_wgpu::Wgpu<f32, i32>>(&burn_wgpu::WgpuDevice::default());
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn products_of_the_highest_precision_on_cuda_are_those_of_the_cpu() {
        check_against_cpu::<burn_cuda::Cuda<f32, i32>>(&burn_cuda::CudaDevice::default());
    }
}
