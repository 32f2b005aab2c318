//! Where a worker's tensors are kept.

use bytes::Bytes;
use iota_model::OptimizerState;
use iota_protocol::{Epoch, Hash, StageIndex};

use crate::error::WorkError;

/// A blob was not kept; the text says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeepError(pub String);

/// Bytes by hash, and the inner optimizer's state, which nobody else asks for. Whoever drives the protocol keeps them as its
/// [`Action`](iota_protocol::miner::Action)s say: a tag holds a blob until the protocol releases the tag.
pub trait Blobs {
    /// The blob with this hash, if it is here.
    fn blob(&self, hash: Hash) -> Option<Bytes>;

    /// Keeps a tensor that is pushed to one peer, under `tag`. It need not be on disk when this returns.
    ///
    /// # Errors
    /// [`KeepError`] if there is no room.
    fn keep(&mut self, bytes: Bytes, tag: &str) -> Result<Hash, KeepError>;

    /// Keeps blobs that others will fetch, under `tag`, and returns when they can.
    ///
    /// # Errors
    /// [`KeepError`] if one of them cannot be kept.
    fn publish(&mut self, blobs: Vec<Bytes>, tag: &str) -> Result<Vec<Hash>, KeepError>;

    /// Keeps the inner optimizer's state from which this version of a stage is trained on, and returns when it survives the
    /// process. Whoever keeps nothing starts with fresh moments. That is for a process's own training: whoever goes through
    /// another's epoch is told which moments to take, and should keep none of them here.
    ///
    /// # Errors
    /// [`KeepError`] if it cannot be kept.
    fn keep_moments(
        &mut self,
        _stage: StageIndex,
        _version: Epoch,
        _moments: &OptimizerState,
    ) -> Result<(), KeepError> {
        Ok(())
    }

    /// The inner optimizer's state that was kept for this version of a stage.
    fn moments(&self, _stage: StageIndex, _version: Epoch) -> Option<OptimizerState> {
        None
    }
}

/// A blob that has to be here.
pub(crate) fn blob(blobs: &dyn Blobs, hash: Hash) -> Result<Bytes, WorkError> {
    blobs.blob(hash).ok_or(WorkError::Missing(hash))
}

/// A blob whose bytes are its own for certain: those that a disk kept through a crash may not be what they were.
pub(crate) fn whole_blob(blobs: &dyn Blobs, hash: Hash) -> Result<Bytes, WorkError> {
    let bytes = blob(blobs, hash)?;
    let got = Hash::of(&bytes);
    if got == hash { Ok(bytes) } else { Err(WorkError::Damaged { expected: hash, got }) }
}
