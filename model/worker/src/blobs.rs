//! Where a worker's tensors are kept.

use bytes::Bytes;
use iota_protocol::Hash;

/// A blob was not kept; the text says why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeepError(pub String);

/// Bytes by hash. Whoever drives the protocol keeps them as its
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
}
