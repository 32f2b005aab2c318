//! The blobs of a proof, for a worker that computes once more what they are the inputs of.

use std::collections::BTreeMap;

use bytes::Bytes;
use iota_protocol::Hash;
use iota_worker::{Blobs, KeepError};

/// Blobs in memory.
#[derive(Debug, Default)]
pub(super) struct Known(BTreeMap<Hash, Bytes>);

impl Known {
    /// These bytes, each by its own hash.
    pub(super) fn new<'a>(blobs: impl Iterator<Item = &'a [u8]>) -> Self {
        Self(blobs.map(|bytes| (Hash::of(bytes), Bytes::copy_from_slice(bytes))).collect())
    }

    pub(super) fn get(&self, hash: Hash) -> Option<&Bytes> {
        self.0.get(&hash)
    }
}

impl Blobs for Known {
    fn blob(&self, hash: Hash) -> Option<Bytes> {
        self.0.get(&hash).cloned()
    }

    fn keep(&mut self, bytes: Bytes, _tag: &str) -> Result<Hash, KeepError> {
        let hash = Hash::of(&bytes);
        self.0.insert(hash, bytes);
        Ok(hash)
    }

    fn publish(&mut self, blobs: Vec<Bytes>, tag: &str) -> Result<Vec<Hash>, KeepError> {
        blobs.into_iter().map(|bytes| self.keep(bytes, tag)).collect()
    }
}
