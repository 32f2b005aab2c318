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
use crate::transformer::{Batch, Tables};

impl<B: Derivatives, C: CheckpointStrategy> Kernels for Autodiff<B, C> {
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
