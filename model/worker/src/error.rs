//! Why a job could not be done.

use iota_model::codec::CodecError;
use iota_model::optimizer::MomentsError;
use iota_model::outer::OuterError;
use iota_model::reduce::ReduceError;
use iota_model::{EngineError, FrameError};
use iota_protocol::{Epoch, Hash, SampleId, StageIndex};

use crate::blobs::KeepError;

/// Says why a job could not be done; becomes the text of a
/// [`JobDone::Failed`](iota_protocol::miner::JobDone::Failed).
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkError {
    #[error("no stage is held")]
    NoStage,
    #[error("holds stage {stage} version {version}, expected {expected_stage} and {expected_version}")]
    OtherStage { stage: StageIndex, version: Epoch, expected_stage: StageIndex, expected_version: Epoch },
    #[error("this node has no corpus")]
    NoCorpus,
    #[error("blob {0} is not here")]
    Missing(Hash),
    #[error("blob {expected} is damaged: its bytes hash to {got}")]
    Damaged { expected: Hash, got: Hash },
    #[error("contribution has {got} partitions, expected {expected}")]
    Partitions { got: usize, expected: usize },
    #[error(
        "partition element {index} is {value}, expected a magnitude of at most {limit:e}: no inner steps lead there"
    )]
    Unreachable { index: usize, value: f32, limit: f64 },
    #[error(transparent)]
    State(#[from] StateError),
    #[error("loss of sample {sample} is {loss}: training diverged")]
    Diverged { sample: SampleId, loss: f32 },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Reduce(#[from] ReduceError),
    #[error(transparent)]
    Outer(#[from] OuterError),
    #[error(transparent)]
    Moments(#[from] MomentsError),
    #[error(transparent)]
    Keep(#[from] KeepError),
}

/// Says why bytes are no state of a stage.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// They are no numbers and a count.
    #[error("state has {got} bytes, expected weights and outer state in f32 and a step count")]
    Truncated {
        /// How many there are.
        got: usize,
    },
    /// They are fewer numbers than the stage has weights.
    #[error("state holds {got} numbers, expected at least {expected}")]
    Short {
        /// How many there are.
        got: usize,
        /// Parameters of the stage.
        expected: usize,
    },
    /// They are other weights.
    #[error("weights have hash {got}, expected {expected}")]
    Weights {
        /// Hash of those that are there.
        got: Hash,
        /// Hash of those that were asked for.
        expected: Hash,
    },
    /// The rest is no state of the run's outer optimizer.
    #[error(transparent)]
    Outer(#[from] OuterError),
}
