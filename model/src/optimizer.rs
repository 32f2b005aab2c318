//! AdamW on the device, one tensor per parameter (Loshchilov and Hutter 2019, algorithm 2).
//!
//! Departure: the global norm of the mean gradient is clipped first (Pascanu et al. 2013). The norm is the
//! root of per-parameter sums of squares, added in layout order in `f64` on the host.

use std::borrow::Cow;

use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::flat::ParameterKind;
use crate::frame::{f32_from_bytes, little_endian_bytes};

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

    /// Returns the largest magnitude that `m̂ / √v̂` can have, whatever the gradients were and after however many steps;
    /// infinite where there is none, unless `beta1² < beta2 < 1`.
    ///
    /// With *q* = β₁²/β₂ it is (1 − β₁) / √((1 − β₂)(1 − q)). By Cauchy and Schwarz |mₜ| ≤ (1 − β₁) √(Σ qⁱ) √(vₜ / (1 − β₂)), the sum over
    /// *t* terms; the corrections of the start at zero make that no larger, since (1 − qᵗ)(1 − β₂ᵗ) ≤ (1 − β₁ᵗ)². Gradients that grow by β₂/β₁ in each
    /// step come as close to it as one likes. Kingma and Ba 2015, section 2.1, give two special cases.
    #[must_use]
    pub fn update_max(&self) -> f64 {
        let Self { beta1, beta2, .. } = *self;
        if beta1 * beta1 < beta2 && beta2 < 1.0 {
            (1.0 - beta1) / ((1.0 - beta2) * (1.0 - beta1 * beta1 / beta2)).sqrt()
        } else {
            f64::INFINITY
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

    /// Returns the state in the one form by which it is hashed: both moments in little-endian `f32`, then the step
    /// count in 8 bytes. Before the first step the moments are zeros and left out, so that fresh moments of any
    /// stage have the same bytes.
    ///
    /// On disk it is a safetensors file instead, see [`checkpoint`](crate::checkpoint), whose header says what it
    /// belongs to and which has no one form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.parts().concat()
    }

    /// Returns the BLAKE3 hash of [`to_bytes`](Self::to_bytes) without making them.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for part in self.parts() {
            hasher.update(&part);
        }
        *hasher.finalize().as_bytes()
    }

    fn parts(&self) -> [Cow<'_, [u8]>; 3] {
        let moments = |values| if self.step == 0 { Cow::default() } else { little_endian_bytes(values) };
        let steps = self.step.to_le_bytes().to_vec();
        [moments(&self.first_moment), moments(&self.second_moment), Cow::Owned(steps)]
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote, for a stage of `parameters`. The length is checked before
    /// anything is allocated, the numbers when an engine takes them.
    ///
    /// # Errors
    /// When the bytes are of another length than a state with this step count.
    pub fn from_bytes(bytes: &[u8], parameters: usize) -> Result<Self, MomentsError> {
        let wrong = |expected| MomentsError { got: bytes.len(), expected };
        let whole = parameters.saturating_mul(8).saturating_add(8);
        let (moments, steps) = bytes.split_last_chunk::<8>().ok_or_else(|| wrong(whole))?;
        let step = u64::from_le_bytes(*steps);
        match (step, moments.len()) {
            (0, 0) => Ok(Self::zeros(parameters)),
            (0, _) => Err(wrong(8)),
            (_, length) if length == parameters.saturating_mul(8) => {
                let (first, second) = moments.split_at(length / 2);
                Ok(Self { first_moment: f32_from_bytes(first), second_moment: f32_from_bytes(second), step })
            }
            _ => Err(wrong(whole)),
        }
    }
}

/// Says that bytes are no optimizer state of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("optimizer state has {got} bytes, expected {expected}")]
pub struct MomentsError {
    /// Bytes there are.
    pub got: usize,
    /// Bytes a state of the stage with this step count takes.
    pub expected: usize,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_reads_back_from_its_bytes_and_has_their_hash() {
        let state =
            OptimizerState { first_moment: vec![1.0, -2.0], second_moment: vec![0.5, 0.0], step: 258 };
        let bytes = state.to_bytes();
        let expected = [0, 0, 128, 63, 0, 0, 0, 192, 0, 0, 0, 63, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(bytes, expected);
        assert_eq!(state.hash(), *blake3::hash(&bytes).as_bytes());
        assert_eq!(OptimizerState::from_bytes(&bytes, 2), Ok(state));
    }

    #[test]
    fn fresh_moments_have_one_form_at_every_length() {
        for parameters in [1, 7] {
            let fresh = OptimizerState::zeros(parameters);
            assert_eq!(fresh.to_bytes(), [0; 8]);
            assert_eq!(OptimizerState::from_bytes(&[0; 8], parameters), Ok(fresh));
        }
        let long = [0; 8 + 2 * 8];
        assert_eq!(OptimizerState::from_bytes(&long, 2), Err(MomentsError { got: 24, expected: 8 }));
    }

    #[test]
    fn bytes_of_another_length_are_refused() {
        let bytes = OptimizerState { step: 3, ..OptimizerState::zeros(2) }.to_bytes();
        for (parameters, expected) in [(1, 16), (3, 32), (usize::MAX, usize::MAX)] {
            let error = OptimizerState::from_bytes(&bytes, parameters).unwrap_err();
            assert_eq!(error, MomentsError { got: 24, expected });
        }
        let error = OptimizerState::from_bytes(&bytes[..7], 2).unwrap_err();
        assert_eq!(error.to_string(), "optimizer state has 7 bytes, expected 24");
    }
}
