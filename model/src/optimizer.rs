//! AdamW on the device, one tensor per parameter (Loshchilov and Hutter 2019, algorithm 2).
//!
//! Departure: the global norm of the mean gradient is clipped first (Pascanu et al. 2013). The norm is the
//! root of per-parameter sums of squares, added in layout order in `f64` on the host.

use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::flat::ParameterKind;

/// Describes AdamW apart from its learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Memory of the mean gradient.
    pub beta1: f64,
    /// Memory of the mean squared gradient.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay of matrices, per step and unit of learning rate; norm gains are not decayed.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// Returns the usual choice for language models: 0.9, 0.95, 1e-8, 0.1.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
    }
}

impl AdamWConfig {
    /// Returns the decay of a parameter of this kind.
    pub(crate) fn decay_of(&self, kind: ParameterKind) -> f64 {
        match kind {
            ParameterKind::Embedding | ParameterKind::Linear => self.weight_decay,
            ParameterKind::Norm => 0.0,
        }
    }

    /// Returns `1 - beta^step` for both moments, which undoes their start at zero.
    pub(crate) fn bias_corrections(&self, step: u64) -> (f64, f64) {
        let step = i32::try_from(step).unwrap_or(i32::MAX);
        (1.0 - self.beta1.powi(step), 1.0 - self.beta2.powi(step))
    }
}

/// The moments of AdamW as flat vectors in layout order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OptimizerState {
    /// Running mean of the gradient, one per parameter.
    pub first_moment: Vec<f32>,
    /// Running mean of the squared gradient, one per parameter.
    pub second_moment: Vec<f32>,
    /// Steps taken.
    pub step: u64,
}

impl OptimizerState {
    /// Returns the state before the first step.
    #[must_use]
    pub fn zeros(parameters: usize) -> Self {
        Self { first_moment: vec![0.0; parameters], second_moment: vec![0.0; parameters], step: 0 }
    }
}

/// The moments of one parameter on the device.
#[derive(Clone, Debug)]
pub(crate) struct Moments<B: Backend> {
    pub(crate) first: Tensor<B, 1>,
    pub(crate) second: Tensor<B, 1>,
}

/// What one AdamW step needs besides the tensors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepSize {
    pub(crate) learning_rate: f64,
    pub(crate) decay: f64,
    /// Factor from the accumulated gradient to the clipped mean gradient.
    pub(crate) gradient_scale: f64,
    /// From [`AdamWConfig::bias_corrections`].
    pub(crate) corrections: (f64, f64),
}

/// Takes one AdamW step on one parameter and returns its new value.
///
/// # Shapes
/// All tensors are `[n]`.
pub(crate) fn adamw_step<B: Backend>(
    config: &AdamWConfig,
    size: StepSize,
    weight: Tensor<B, 1>,
    gradient: Tensor<B, 1>,
    moments: &mut Moments<B>,
) -> Tensor<B, 1> {
    let gradient = gradient * size.gradient_scale;
    let first = moments.first.clone() * config.beta1 + gradient.clone() * (1.0 - config.beta1);
    let second = moments.second.clone() * config.beta2 + gradient.clone() * gradient * (1.0 - config.beta2);
    *moments = Moments { first: first.clone(), second: second.clone() };
    let (first_correction, second_correction) = size.corrections;
    let root = (second * second_correction.recip()).sqrt() + config.eps;
    let update = first / root * (size.learning_rate / first_correction);
    weight * (1.0 - size.learning_rate * size.decay) - update
}
