//! The numbers of the IOTA swarm: a transformer cut into stages, its optimizers, and everything done to flat
//! vectors.
//!
//! This crate computes; it knows no peers, network, clock or async runtime. A node talks to it through
//! [`engine::StageEngine`], frames in and frames out; everything that peers have to agree on bit for bit
//! (outer steps, reductions, hashes) is plain Rust on flat `f32` slices in one fixed order.
//!
//! Reading order: [`config`] and [`flat`] say what the parameters are, `transformer` and `bottleneck` what
//! the network does with them, [`engine`] how it is driven; the rest stands alone.

pub mod config;
pub mod flat;
pub mod frame;

mod bottleneck;
mod checks;
mod kernels;
mod stage;
mod transformer;

pub mod device;
pub mod engine;
pub mod optimizer;
mod trainer;
mod visit;

pub mod codec;
pub mod compare;
pub mod hash;
pub mod outer;
pub mod outliers;
pub mod reduce;
pub mod schedule;

pub mod checkpoint;
pub mod data;
pub mod generate;
pub mod tokenizer;

#[cfg(test)]
mod testing;

pub use config::{ConfigError, ModelConfig};
pub use device::{Device, build_engine};
pub use engine::{
    EngineConfig, EngineError, LossOutput, MatmulPrecision, StageEngine, StageInfo, StageInput, StageSelect,
    StepReport, TokenBatch,
};
pub use frame::{DType, Frame, FrameError};
pub use hash::weights_hash;
pub use optimizer::{AdamWConfig, OptimizerState};
