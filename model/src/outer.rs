//! Outer optimizers: one step of a whole stage on its merged vector, in plain Rust.
//!
//! Every peer of a stage takes this step by itself and must end with the same bits, so the arithmetic is
//! `f32` additions, multiplications, divisions and square roots in index order, which IEEE 754 defines
//! exactly; the only powers are repeated multiplications. Norms are summed in `f64` in index order.
//!
//! - [`OuterConfig::AdamW`]: the synchronous mode. The merged vector is the mean gradient of one global
//!   batch.
//! - [`OuterConfig::Nesterov`]: the local mode (DiLoCo, Douillard et al. 2023, algorithm 1). The merged
//!   vector is the mean pseudo-gradient `start - end` of the peers' inner steps.

use serde::{Deserialize, Serialize};

use crate::{
    flat::{Parameter, ParameterKind, round_to_f32},
    frame::first_non_finite,
    optimizer::{AdamWConfig, OptimizerState},
};

/// Picks the outer optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum OuterConfig {
    /// AdamW after clipping by norm.
    AdamW {
        /// Moments and decay.
        adamw: AdamWConfig,
        /// Largest norm of the merged gradient.
        clip_norm: f64,
    },
    /// Stochastic gradient descent with Nesterov momentum.
    Nesterov {
        /// Share of the buffer kept per step.
        momentum: f64,
    },
}

/// State of an outer optimizer.
#[derive(Clone, Debug, PartialEq)]
pub enum OuterState {
    /// The moments of AdamW.
    AdamW(OptimizerState),
    /// The momentum buffer.
    Nesterov {
        /// One number per parameter.
        momentum: Vec<f32>,
        /// Steps taken.
        step: u64,
    },
}

/// Says why an outer step was not taken; weights and state are unchanged.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OuterError {
    /// Two vectors that belong together differ in length.
    #[error("{what} has {got} elements, expected {expected}")]
    Length {
        /// Which vector.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length of the weights.
        expected: usize,
    },
    /// The merged vector holds NaN or infinity.
    #[error("merged gradient {index} is {value}, expected a finite number")]
    NonFinite {
        /// Position in the vector.
        index: usize,
        /// The number.
        value: f32,
    },
    /// The state belongs to the other optimizer.
    #[error("outer state is of {got}, expected {expected}")]
    Kind {
        /// The state's optimizer.
        got: &'static str,
        /// The config's optimizer.
        expected: &'static str,
    },
}

impl OuterConfig {
    /// Returns the state before the first step.
    #[must_use]
    pub fn init(&self, parameters: usize) -> OuterState {
        match self {
            Self::AdamW { .. } => OuterState::AdamW(OptimizerState::zeros(parameters)),
            Self::Nesterov { .. } => OuterState::Nesterov { momentum: vec![0.0; parameters], step: 0 },
        }
    }

    /// Takes one step: changes `weights` and `state` by the merged vector.
    ///
    /// `layout` lists the parameters of the stage in order; it decides what is decayed.
    ///
    /// # Errors
    /// When lengths differ, the state is of the other optimizer, or the gradient is not finite.
    pub fn step(
        &self,
        state: &mut OuterState,
        layout: &[Parameter],
        weights: &mut [f32],
        gradient: &[f32],
        learning_rate: f64,
    ) -> Result<(), OuterError> {
        let expected = weights.len();
        check_length("merged gradient", gradient.len(), expected)?;
        check_length("layout", layout.last().map_or(0, |parameter| parameter.range.end), expected)?;
        if let Some((index, value)) = first_non_finite(gradient) {
            return Err(OuterError::NonFinite { index, value });
        }
        match (self, state) {
            (Self::AdamW { adamw, clip_norm }, OuterState::AdamW(moments)) => {
                check_length("first moment", moments.first_moment.len(), expected)?;
                check_length("second moment", moments.second_moment.len(), expected)?;
                let scale = clip_scale(gradient, *clip_norm);
                moments.step += 1;
                for parameter in layout {
                    let rates = AdamWRates::new(adamw, learning_rate, scale, parameter.kind, moments.step);
                    rates.step(parameter, moments, weights, gradient);
                }
                Ok(())
            }
            (Self::Nesterov { momentum: kept }, OuterState::Nesterov { momentum, step }) => {
                check_length("momentum", momentum.len(), expected)?;
                *step += 1;
                nesterov_step(momentum, weights, gradient, round_to_f32(*kept), round_to_f32(learning_rate));
                Ok(())
            }
            (Self::AdamW { .. }, OuterState::Nesterov { .. }) => {
                Err(OuterError::Kind { got: "nesterov", expected: "adamw" })
            }
            (Self::Nesterov { .. }, OuterState::AdamW(_)) => {
                Err(OuterError::Kind { got: "adamw", expected: "nesterov" })
            }
        }
    }
}

impl OuterState {
    /// Returns the steps taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        match self {
            Self::AdamW(moments) => moments.step,
            Self::Nesterov { step, .. } => *step,
        }
    }

    /// Returns the state as one flat vector: the two moments one after the other, or the momentum buffer.
    #[must_use]
    pub fn to_flat(&self) -> Vec<f32> {
        match self {
            Self::AdamW(moments) => [moments.first_moment.as_slice(), &moments.second_moment].concat(),
            Self::Nesterov { momentum, .. } => momentum.clone(),
        }
    }

    /// Rebuilds a state from [`OuterState::to_flat`] and [`OuterState::steps`].
    ///
    /// # Errors
    /// When the length is not that of the optimizer's state for `parameters` parameters.
    pub fn from_flat(
        config: &OuterConfig,
        parameters: usize,
        flat: &[f32],
        step: u64,
    ) -> Result<Self, OuterError> {
        match config {
            OuterConfig::AdamW { .. } => {
                check_length("outer state", flat.len(), parameters.saturating_mul(2))?;
                let (first, second) = flat.split_at(parameters);
                let (first_moment, second_moment) = (first.to_vec(), second.to_vec());
                Ok(Self::AdamW(OptimizerState { first_moment, second_moment, step }))
            }
            OuterConfig::Nesterov { .. } => {
                check_length("outer state", flat.len(), parameters)?;
                Ok(Self::Nesterov { momentum: flat.to_vec(), step })
            }
        }
    }
}

/// Returns a stage's share of the model's clip norm, `clip * sqrt(stage / total)`.
///
/// With gradients of equal size everywhere, clipping each stage at its share clips the model at `clip`.
/// IOTA's miner does the same, since no peer sees the norm of the whole model.
#[must_use]
pub fn stage_clip(clip: f64, stage_parameters: usize, total_parameters: usize) -> f64 {
    clip * (stage_parameters as f64 / total_parameters as f64).sqrt()
}

/// Returns the Euclidean norm, squares summed in index order in `f64`.
#[must_use]
pub fn norm(values: &[f32]) -> f64 {
    values.iter().fold(0.0, |sum, value| sum + f64::from(*value) * f64::from(*value)).sqrt()
}

/// Returns the factor that brings a vector's norm down to `limit`, or 1.
fn clip_scale(gradient: &[f32], limit: f64) -> f64 {
    let norm = norm(gradient);
    if norm > limit { limit / norm } else { 1.0 }
}

/// The numbers of one AdamW step, rounded to `f32` once.
struct AdamWRates {
    scale: f32,
    beta1: f32,
    beta2: f32,
    fresh1: f32,
    fresh2: f32,
    rate: f32,
    second_correction: f32,
    eps: f32,
    keep: f32,
}

impl AdamWRates {
    fn new(adamw: &AdamWConfig, learning_rate: f64, scale: f64, kind: ParameterKind, step: u64) -> Self {
        let first_correction = 1.0 - power(adamw.beta1, step);
        let second_correction = 1.0 - power(adamw.beta2, step);
        Self {
            scale: round_to_f32(scale),
            beta1: round_to_f32(adamw.beta1),
            beta2: round_to_f32(adamw.beta2),
            fresh1: round_to_f32(1.0 - adamw.beta1),
            fresh2: round_to_f32(1.0 - adamw.beta2),
            rate: round_to_f32(learning_rate / first_correction),
            second_correction: round_to_f32(1.0 / second_correction),
            eps: round_to_f32(adamw.eps),
            keep: round_to_f32(1.0 - learning_rate * adamw.decay_of(kind)),
        }
    }

    fn step(
        &self,
        parameter: &Parameter,
        moments: &mut OptimizerState,
        weights: &mut [f32],
        gradient: &[f32],
    ) {
        let range = parameter.range.clone();
        let first = moments.first_moment[range.clone()].iter_mut();
        let second = moments.second_moment[range.clone()].iter_mut();
        let pairs = weights[range.clone()].iter_mut().zip(&gradient[range]);
        for (((weight, gradient), first), second) in pairs.zip(first).zip(second) {
            let gradient = gradient * self.scale;
            *first = self.beta1 * *first + self.fresh1 * gradient;
            *second = self.beta2 * *second + self.fresh2 * (gradient * gradient);
            let root = (*second * self.second_correction).sqrt() + self.eps;
            *weight = self.keep * *weight - self.rate * (*first / root);
        }
    }
}

/// `buffer = kept * buffer + g; weight -= rate * (g + kept * buffer)`.
fn nesterov_step(buffer: &mut [f32], weights: &mut [f32], gradient: &[f32], kept: f32, rate: f32) {
    for ((weight, gradient), buffer) in weights.iter_mut().zip(gradient).zip(buffer) {
        *buffer = kept * *buffer + gradient;
        *weight -= rate * (gradient + kept * *buffer);
    }
}

/// Returns `base^exponent` by squaring: the same bits everywhere, which the standard library does not
/// promise.
fn power(base: f64, exponent: u64) -> f64 {
    let (mut result, mut square, mut rest) = (1.0, base, exponent);
    while rest > 0 {
        if rest % 2 == 1 {
            result *= square;
        }
        square *= square;
        rest /= 2;
    }
    result
}

fn check_length(what: &'static str, got: usize, expected: usize) -> Result<(), OuterError> {
    if got == expected { Ok(()) } else { Err(OuterError::Length { what, got, expected }) }
}
