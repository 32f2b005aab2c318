//! The object-safe face of the model: frames in, frames out, flat vectors for everything that is merged.
//!
//! A caller picks an implementation with [`crate::device::build_engine`] and drives it from one thread. Calls
//! that belong to one sample share a `slot`:
//!
//! ```text
//! head   forward(slot, tokens) ───────wire──────▶ … backward(slot, gradient) → None
//! body     forward(slot, wire) ───────wire──────▶ … backward(slot, gradient) → Some(gradient)
//! tail       forward_loss(wire, targets) → loss and the gradient of the wire, at once
//! ```
//!
//! Gradients accumulate in call order. One backward pass is one *sample*, whatever its number of sequences;
//! its loss is the mean over its tokens, so samples of equal size weigh the same.

use crate::{
    config::{ConfigError, ModelConfig},
    device::DeviceError,
    frame::{DType, Frame, FrameError},
    optimizer::{AdamWConfig, OptimizerState},
};

/// Says what an engine computes and how it trains.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineConfig {
    /// The network.
    pub model: ModelConfig,
    /// The part of it that this engine holds.
    pub stage: StageSelect,
    /// Type of the frames that cross a cut; [`StageSelect::Whole`] never rounds between its stages.
    pub activation_dtype: DType,
    /// How exact matrix products are.
    pub matmul_precision: MatmulPrecision,
    /// The inner optimizer.
    pub adamw: AdamWConfig,
    /// Largest global norm of the mean gradient in an inner step; infinity never clips.
    pub clip_norm: f64,
}

/// Picks a part of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageSelect {
    /// One stage, counted from 0.
    Stage(usize),
    /// All stages in one process, bottlenecks included: what a pipeline is compared with.
    Whole,
}

/// How exact matrix products of `f32` are, under the names of PyTorch's `set_float32_matmul_precision`.
///
/// The CPU computes the same with both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatmulPrecision {
    /// A GPU may round factors to TF32, which has 11 bits, and is faster for it. Sums are `f32`.
    High,
    /// Factors keep the 24 bits of `f32`, so that devices differ by the order of their sums only.
    Highest,
}

/// Token ids of one sample and the ids that follow them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    /// Ids, `sequences * context` of them, one sequence after the other.
    pub inputs: Vec<u32>,
    /// For each input the id that follows it.
    pub targets: Vec<u32>,
    /// Number of sequences, `B`.
    pub sequences: usize,
    /// Tokens of each sequence, `T`.
    pub context: usize,
}

/// What enters a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum StageInput {
    /// Tokens, at the head and for a whole model.
    Tokens(TokenBatch),
    /// The wire of the stage before, `[B, T, wire width]`.
    Activation(Frame),
}

/// Result of a tail's forward and backward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct LossOutput {
    /// Mean cross-entropy in nats per token.
    pub loss: f32,
    /// Tokens the mean is taken over.
    pub tokens: usize,
    /// Gradient of the incoming wire; none when the engine starts from tokens.
    pub input_gradient: Option<Frame>,
}

/// Result of an inner step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Global norm of the mean gradient before clipping.
    pub gradient_norm: f64,
    /// Whether the norm was above the limit.
    pub clipped: bool,
    /// Samples the mean was taken over.
    pub samples: u64,
}

/// Describes an engine to people and to logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageInfo {
    /// What it holds.
    pub stage: StageSelect,
    /// Stages of the model.
    pub stages: usize,
    /// Parameters it holds.
    pub parameters: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Name of the tensor library's backend.
    pub backend: String,
    /// Name of the device.
    pub device: String,
    /// Takes tokens.
    pub is_head: bool,
    /// Computes the loss.
    pub is_tail: bool,
}

/// Says why an engine refused a call; the engine is unchanged then, unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model config breaks a rule.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The stage does not exist.
    #[error("stage {got} does not exist, expected a stage below {stages}")]
    Stage {
        /// The stage asked for.
        got: usize,
        /// Stages of the model.
        stages: usize,
    },
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Bytes are not the frame they claim to be, or not finite.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A method that this part of the pipeline does not have.
    #[error("{operation} was called on {stage}, expected {expected}")]
    Role {
        /// The method.
        operation: &'static str,
        /// What the engine holds.
        stage: String,
        /// What has the method.
        expected: &'static str,
    },
    /// Tokens where an activation belongs or the other way round.
    #[error("input is {got}, expected {expected}")]
    Input {
        /// What came.
        got: &'static str,
        /// What the stage takes.
        expected: &'static str,
    },
    /// A frame of another type than the run's.
    #[error("{what} is {got}, expected {expected}")]
    DType {
        /// Which frame.
        what: &'static str,
        /// Its type.
        got: DType,
        /// The run's type.
        expected: DType,
    },
    /// A frame or batch of another shape.
    #[error("{what} has shape {got:?}, expected {expected}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// The shape, in words.
        expected: String,
    },
    /// A flat vector or token list of another length.
    #[error("{what} has {got} elements, expected {expected}")]
    Length {
        /// Which vector.
        what: &'static str,
        /// Its length.
        got: usize,
        /// The length it should have.
        expected: usize,
    },
    /// A token id outside the vocabulary.
    #[error("{what} {index} is {got}, expected an id below {vocab_size}")]
    Token {
        /// Which list.
        what: &'static str,
        /// Position in the list.
        index: usize,
        /// The id.
        got: u32,
        /// Number of ids.
        vocab_size: usize,
    },
    /// A number that should be finite is not.
    #[error("{what} {index} is {value}, expected a finite number")]
    NonFinite {
        /// Which vector.
        what: &'static str,
        /// Position in it.
        index: usize,
        /// The number.
        value: f32,
    },
    /// The loss or gradient overflowed; the pass was dropped and nothing accumulated.
    #[error("{what} is {value}, expected a finite number")]
    Diverged {
        /// What overflowed.
        what: &'static str,
        /// Its value.
        value: f32,
    },
    /// The backward pass did not reach all that took part in the forward pass; nothing accumulated.
    #[error(
        "backward left {missing} of {expected} gradients out, expected all: a fault of the tensor library"
    )]
    MissingGradient {
        /// Gradients that are not there.
        missing: usize,
        /// Gradients that should be.
        expected: usize,
    },
    /// No forward pass is waiting under this slot.
    #[error("slot {slot} holds no forward pass")]
    UnknownSlot {
        /// The slot.
        slot: u64,
    },
    /// A forward pass is already waiting under this slot.
    #[error("slot {slot} already holds a forward pass")]
    SlotInUse {
        /// The slot.
        slot: u64,
    },
    /// A step without gradients.
    #[error("no gradient has been accumulated, expected at least one sample")]
    NoGradient,
    /// A learning rate or clip norm that makes no step.
    #[error("{what} is {got}, expected {expected}")]
    Number {
        /// Which number.
        what: &'static str,
        /// Its value.
        got: f64,
        /// The range, in words.
        expected: &'static str,
    },
    /// The tensor library failed; after this the engine should be built anew.
    #[error("backend failed: {message}")]
    Backend {
        /// What it said.
        message: String,
    },
}

/// Computes one part of the network; object safe, driven from one thread.
///
/// Wrong lengths, shapes, types and slots are errors; a wrong call never panics. Same seed, machine and
/// thread count give the same bits on the CPU backend.
pub trait StageEngine: Send {
    /// Describes the engine.
    fn info(&self) -> StageInfo;

    /// Passes one sample forward and keeps what its backward pass needs under `slot`.
    ///
    /// # Shapes
    /// Tokens `[B, T]` or wire `[B, T, b]` → wire `[B, T, b]`.
    ///
    /// # Errors
    /// At a tail or whole model, when the slot is in use, or when the input does not fit.
    fn forward(&mut self, slot: u64, input: StageInput) -> Result<Frame, EngineError>;

    /// Passes one sample forward to the loss and backward at once, and accumulates its gradients.
    ///
    /// # Errors
    /// Away from the tail, or when input or targets do not fit, or when the loss is not finite.
    fn forward_loss(&mut self, input: StageInput, targets: &TokenBatch) -> Result<LossOutput, EngineError>;

    /// Passes the gradient of a slot's output backward, accumulates gradients and frees the slot.
    ///
    /// Returns the gradient of the slot's input, or none at the head. A slot that was forwarded before an
    /// inner step yields the gradient at the weights it was forwarded with.
    ///
    /// # Errors
    /// When no forward pass waits under the slot or the gradient does not fit; the slot is kept then. When
    /// the input gradient overflows; the slot is freed then and nothing accumulates.
    fn backward(&mut self, slot: u64, output_gradient: Frame) -> Result<Option<Frame>, EngineError>;

    /// Frees a slot whose gradient will not come; an unknown slot is fine.
    fn discard(&mut self, slot: u64);

    /// Returns the number of slots that wait for a gradient.
    fn in_flight(&self) -> usize;

    /// Passes one sample forward without keeping anything.
    ///
    /// # Errors
    /// As [`StageEngine::forward`], slots aside.
    fn evaluate_forward(&mut self, input: StageInput) -> Result<Frame, EngineError>;

    /// Returns the mean loss in nats per token without keeping anything.
    ///
    /// # Errors
    /// As [`StageEngine::forward_loss`].
    fn evaluate_loss(&mut self, input: StageInput, targets: &TokenBatch) -> Result<f64, EngineError>;

    /// Returns the `V` logits after the last position of the first sequence.
    ///
    /// # Errors
    /// Away from the tail, or when the input does not fit.
    fn logits(&mut self, input: StageInput) -> Result<Vec<f32>, EngineError>;

    /// Returns the samples whose gradients are accumulated.
    fn accumulated_samples(&self) -> u64;

    /// Returns the sum of the accumulated gradients in layout order; zeros when there is none.
    ///
    /// # Errors
    /// When the device fails.
    fn gradient_sum(&mut self) -> Result<Vec<f32>, EngineError>;

    /// Drops the accumulated gradients.
    fn clear_gradient(&mut self);

    /// Takes one AdamW step on the mean of the accumulated gradients, clipped by norm, and drops them.
    ///
    /// The norm is that of this engine's parameters; [`crate::outer::stage_clip`] gives a stage its share of
    /// the model's limit.
    ///
    /// # Errors
    /// When nothing is accumulated, the rate is not finite, or the gradient norm is not finite; the gradients
    /// stay.
    fn inner_step(&mut self, learning_rate: f64) -> Result<StepReport, EngineError>;

    /// Returns the weights in layout order; a whole model concatenates its stages.
    ///
    /// # Errors
    /// When the device fails.
    fn weights(&mut self) -> Result<Vec<f32>, EngineError>;

    /// Replaces the weights; accumulated gradients and optimizer state stay.
    ///
    /// # Errors
    /// When the length differs or a weight is not finite.
    fn load_weights(&mut self, flat: &[f32]) -> Result<(), EngineError>;

    /// Returns the inner optimizer's state in layout order.
    ///
    /// # Errors
    /// When the device fails.
    fn inner_state(&mut self) -> Result<OptimizerState, EngineError>;

    /// Replaces the inner optimizer's state.
    ///
    /// # Errors
    /// When a length differs, a moment is not finite, or a second moment is negative.
    fn load_inner_state(&mut self, state: &OptimizerState) -> Result<(), EngineError>;
}
