//! Small models for the unit tests.

use crate::config::ModelConfig;

/// Returns a model of three stages that a debug build trains in milliseconds.
pub(crate) fn tiny() -> ModelConfig {
    ModelConfig {
        vocab_size: 11,
        context: 6,
        width: 16,
        layers: 3,
        heads: 4,
        kv_heads: 2,
        hidden: 20,
        rope_base: 10_000.0,
        norm_eps: 1e-5,
        init_std: 0.05,
        seed: 7,
        bottleneck: Some(5),
        stages: 3,
    }
}
