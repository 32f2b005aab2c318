//! Behaviour of the model crate through its public face, on the CPU; one binary, so it links once.
//!
//! Unless a test says otherwise equality is of bits: the CPU backend computes every matrix product with the
//! same order of additions however the network is cut and however many threads there are.
#![expect(
    clippy::unwrap_used,
    reason = "unit tests are exempt by configuration, helpers of integration tests are not"
)]

mod bottleneck;
mod checkpoints;
mod codec;
mod corpus;
mod engine_errors;
mod generation;
mod gradients;
mod optimizers;
mod pipeline;
mod replicas;
mod support;
