//! The operations of the network, each with its own derivative.
//!
//! Tensor libraries compose the element-wise ones of many passes over memory, which on a processor cost more than
//! the matrix products; and they choose how exact the matrix products are, which here the run does. [`Kernels`] is what the network calls; on an autodiff backend it records one node per call
//! (`autodiff.rs`). [`Derivatives`] is what a plain backend offers for the way back. The default methods are
//! the textbook in tensor operations (`textbook.rs`) and serve GPUs; `cpu.rs` replaces them with loops over
//! slices, `cube.rs` the exact matrix product of GPUs.

mod autodiff;
mod cpu;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod cube;
mod textbook;

use burn::tensor::{Int, Tensor, backend::Backend};

use crate::{
    engine::MatmulPrecision,
    transformer::{Batch, Tables},
};

/// Forward passes.
pub(crate) trait Kernels: Backend {
    /// Matrix product, with the derivatives as exact as itself.
    ///
    /// # Shapes
    /// `lhs: [.., M, K]`, `rhs: [.., K, N]` → `[.., M, N]`, all with the same leading dimensions.
    fn matmul<const D: usize>(
        lhs: Tensor<Self, D>,
        rhs: Tensor<Self, D>,
        precision: MatmulPrecision,
    ) -> Tensor<Self, D>;

    /// Scales every row to a root mean square of 1, then by a gain (Zhang and Sennrich 2019).
    ///
    /// # Shapes
    /// `x: [N, C]`, `gain: [C]` → `[N, C]`.
    fn rms_norm(x: Tensor<Self, 2>, gain: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 2>;

    /// Turns channel pairs by an angle that grows with the position (Su et al. 2021, eq. 34) and puts heads
    /// first.
    ///
    /// # Shapes
    /// `x: [B*T, heads*D]` → `[B, heads, T, D]`.
    fn rotate(x: Tensor<Self, 2>, batch: Batch, tables: &Tables<Self>) -> Tensor<Self, 4>;

    /// Puts heads first.
    ///
    /// # Shapes
    /// `x: [B*T, heads*D]` → `[B, heads, T, D]`.
    fn split_heads(x: Tensor<Self, 2>, batch: Batch, heads: usize) -> Tensor<Self, 4>;

    /// Puts rows first again, as the inverse of [`Kernels::split_heads`].
    ///
    /// # Shapes
    /// `x: [B, heads, T, D]` → `[B*T, heads*D]`.
    fn merge_heads(x: Tensor<Self, 4>) -> Tensor<Self, 2>;

    /// Softmax of scaled scores over the past and present.
    ///
    /// # Shapes
    /// `scores: [B, G, R*T, T]` → `[B, G, R*T, T]`, row `r` being position `r mod T`.
    fn causal_softmax(scores: Tensor<Self, 4>, scale: f64, tables: &Tables<Self>) -> Tensor<Self, 4>;

    /// `silu(gate) * up` (Shazeer 2020).
    ///
    /// # Shapes
    /// `gate: [N, F]`, `up: [N, F]` → `[N, F]`.
    fn gated(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2>;

    /// Mean cross-entropy in nats per row.
    ///
    /// # Shapes
    /// `logits: [N, V]`, `targets: [N]` → `[1]`.
    fn cross_entropy(logits: Tensor<Self, 2>, targets: Tensor<Self, 1, Int>) -> Tensor<Self, 1>;
}

/// Forward and backward passes outside a graph.
pub(crate) trait Derivatives: Backend {
    /// As [`Kernels::matmul`] with [`MatmulPrecision::Highest`]; here for backends that have no other.
    fn matmul_highest<const D: usize>(lhs: Tensor<Self, D>, rhs: Tensor<Self, D>) -> Tensor<Self, D> {
        lhs.matmul(rhs)
    }

    /// As [`Kernels::rms_norm`].
    fn rms_norm_forward(x: Tensor<Self, 2>, gain: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 2> {
        textbook::rms_norm_forward(x, gain, eps)
    }

    /// Returns the gradients of the rows and the gain.
    ///
    /// # Shapes
    /// `x, output: [N, C]`, `gain: [C]` → `[N, C]`, `[C]`.
    fn rms_norm_backward(
        x: Tensor<Self, 2>,
        gain: Tensor<Self, 1>,
        eps: f64,
        output: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 1>) {
        textbook::rms_norm_backward(x, gain, eps, output)
    }

    /// As [`Kernels::rotate`].
    fn rotate_forward(x: Tensor<Self, 2>, batch: Batch, tables: &Tables<Self>) -> Tensor<Self, 4> {
        textbook::rotate_forward(x, batch, tables)
    }

    /// Returns the gradient of the rows: the same turn the other way.
    ///
    /// # Shapes
    /// `output: [B, heads, T, D]` → `[B*T, heads*D]`.
    fn rotate_backward(output: Tensor<Self, 4>, batch: Batch, tables: &Tables<Self>) -> Tensor<Self, 2> {
        textbook::rotate_backward(output, batch, tables)
    }

    /// As [`Kernels::split_heads`], and the derivative of [`Kernels::merge_heads`].
    fn rows_to_heads(x: Tensor<Self, 2>, batch: Batch, heads: usize) -> Tensor<Self, 4> {
        textbook::rows_to_heads(x, batch, heads)
    }

    /// As [`Kernels::merge_heads`], and the derivative of [`Kernels::split_heads`].
    fn heads_to_rows(x: Tensor<Self, 4>) -> Tensor<Self, 2> {
        textbook::heads_to_rows(x)
    }

    /// As [`Kernels::causal_softmax`].
    fn causal_softmax_forward(scores: Tensor<Self, 4>, scale: f64, tables: &Tables<Self>) -> Tensor<Self, 4> {
        textbook::causal_softmax_forward(scores, scale, tables)
    }

    /// Returns the gradient of the scores from the softmax's own output.
    ///
    /// # Shapes
    /// `weights, output: [B, G, R*T, T]` → `[B, G, R*T, T]`.
    fn causal_softmax_backward(
        weights: Tensor<Self, 4>,
        scale: f64,
        output: Tensor<Self, 4>,
    ) -> Tensor<Self, 4> {
        textbook::causal_softmax_backward(weights, scale, output)
    }

    /// As [`Kernels::gated`].
    fn gated_forward(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        textbook::gated_forward(gate, up)
    }

    /// Returns the gradients of gate and up.
    ///
    /// # Shapes
    /// All `[N, F]`.
    fn gated_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        output: Tensor<Self, 2>,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        textbook::gated_backward(gate, up, output)
    }

    /// As [`Kernels::cross_entropy`].
    fn cross_entropy_forward(logits: Tensor<Self, 2>, targets: Tensor<Self, 1, Int>) -> Tensor<Self, 1> {
        textbook::cross_entropy_forward(logits, targets)
    }

    /// Returns the gradient of the logits: softmax minus the target, over the rows.
    ///
    /// # Shapes
    /// `logits: [N, V]`, `targets: [N]`, `output: [1]` → `[N, V]`.
    fn cross_entropy_backward(
        logits: Tensor<Self, 2>,
        targets: Tensor<Self, 1, Int>,
        output: Tensor<Self, 1>,
    ) -> Tensor<Self, 2> {
        textbook::cross_entropy_backward(logits, targets, output)
    }
}

/// A plain backend's forward passes are its own.
macro_rules! plain_kernels {
    ($backend:ty) => {
        impl Kernels for $backend {
            fn matmul<const D: usize>(
                lhs: Tensor<Self, D>,
                rhs: Tensor<Self, D>,
                precision: MatmulPrecision,
            ) -> Tensor<Self, D> {
                match precision {
                    MatmulPrecision::High => lhs.matmul(rhs),
                    MatmulPrecision::Highest => Self::matmul_highest(lhs, rhs),
                }
            }

            fn rms_norm(x: Tensor<Self, 2>, gain: Tensor<Self, 1>, eps: f64) -> Tensor<Self, 2> {
                Self::rms_norm_forward(x, gain, eps)
            }

            fn rotate(x: Tensor<Self, 2>, batch: Batch, tables: &Tables<Self>) -> Tensor<Self, 4> {
                Self::rotate_forward(x, batch, tables)
            }

            fn split_heads(x: Tensor<Self, 2>, batch: Batch, heads: usize) -> Tensor<Self, 4> {
                Self::rows_to_heads(x, batch, heads)
            }

            fn merge_heads(x: Tensor<Self, 4>) -> Tensor<Self, 2> {
                Self::heads_to_rows(x)
            }

            fn causal_softmax(scores: Tensor<Self, 4>, scale: f64, tables: &Tables<Self>) -> Tensor<Self, 4> {
                Self::causal_softmax_forward(scores, scale, tables)
            }

            fn gated(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
                Self::gated_forward(gate, up)
            }

            fn cross_entropy(logits: Tensor<Self, 2>, targets: Tensor<Self, 1, Int>) -> Tensor<Self, 1> {
                Self::cross_entropy_forward(logits, targets)
            }
        }
    };
}

plain_kernels!(burn_flex::Flex);

#[cfg(feature = "cuda")]
impl Derivatives for burn_cuda::Cuda<f32, i32> {
    fn matmul_highest<const D: usize>(lhs: Tensor<Self, D>, rhs: Tensor<Self, D>) -> Tensor<Self, D> {
        cube::matmul_highest(lhs, rhs)
    }
}
#[cfg(feature = "cuda")]
plain_kernels!(burn_cuda::Cuda<f32, i32>);

#[cfg(feature = "wgpu")]
impl Derivatives for burn_wgpu::Wgpu<f32, i32> {
    fn matmul_highest<const D: usize>(lhs: Tensor<Self, D>, rhs: Tensor<Self, D>) -> Tensor<Self, D> {
        cube::matmul_highest(lhs, rhs)
    }
}
#[cfg(feature = "wgpu")]
plain_kernels!(burn_wgpu::Wgpu<f32, i32>);
