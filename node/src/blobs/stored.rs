//! [`DiskBlobs`]: the blobs that a node has left on its disk.

use std::path::Path;

use bytes::Bytes;
use iota_protocol::Hash;
use iroh_blobs::api::Store;

use super::plane::{DataError, Storage, open_store};

/// The blobs of a node that does not run. Nothing of them is served, and nothing collected.
#[derive(Debug)]
pub struct DiskBlobs(Store);

impl DiskBlobs {
    /// Opens the directory.
    ///
    /// # Errors
    /// When it cannot be used.
    pub async fn open(path: &Path) -> Result<Self, DataError> {
        open_store(&Storage::Disk(path.to_owned()), None).await.map(Self)
    }

    /// A blob's bytes, if it is there and complete.
    pub async fn get(&self, hash: Hash) -> Option<Bytes> {
        let hash = iroh_blobs::Hash::from_bytes(hash.0);
        let is_here = self.0.has(hash).await.unwrap_or(false);
        if is_here { self.0.get_bytes(hash).await.ok() } else { None }
    }

    /// Closes the directory.
    pub async fn close(self) {
        if let Err(error) = self.0.shutdown().await {
            tracing::warn!(%error, "blobs closed uncleanly");
        }
    }
}
