//! What a miner computes: the protocol names a [`Job`](iota_protocol::miner::Job), the model crate has the numbers, and this
//! crate is between them.
//!
//! The program and the simulator both perform jobs with a [`Worker`]; they differ in where blobs are kept, which is the
//! [`Blobs`] they bring. No clock, no thread and no I/O is in here.
//!
//! Reading order: [`bridge`] turns the words of a run spec into those of the model, [`corpus`] and [`validation`] say what a
//! run learns from and is measured on, `stage` is what a miner holds, [`compare`] what a validator
//! asks, [`worker`] does the jobs. [`pipeline`] is a run's stages in one process, and [`calibration`] measures with it how far
//! apart devices are.

pub mod bridge;
pub mod calibration;
pub mod compare;
pub mod corpus;
pub mod pipeline;
pub mod validation;

mod error;
mod stage;

pub mod blobs;
pub mod worker;

pub use blobs::{Blobs, KeepError};
pub use error::StateError;
pub use stage::read_state;
pub use worker::Worker;
