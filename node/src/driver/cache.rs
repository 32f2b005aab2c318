//! Recently used blobs in memory, so that the hot path does not wait for the disk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use iota_protocol::Hash;

/// Bytes kept. Holds the activations in flight of a busy miner; everything is in the store as well.
const BYTES_MAX: usize = 256 << 20;

/// A cache that forgets the oldest first; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    blobs: BTreeMap<Hash, Bytes>,
    order: VecDeque<Hash>,
    bytes: usize,
}

impl Cache {
    /// Keeps a blob for a while.
    pub(crate) fn insert(&self, hash: Hash, bytes: Bytes) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let size = bytes.len();
        if inner.blobs.insert(hash, bytes).is_some() {
            return;
        }
        inner.bytes += size;
        inner.order.push_back(hash);
        while inner.bytes > BYTES_MAX {
            let Some(oldest) = inner.order.pop_front() else { break };
            if let Some(gone) = inner.blobs.remove(&oldest) {
                inner.bytes -= gone.len();
            }
        }
    }

    /// A blob, if it is still here.
    pub(crate) fn get(&self, hash: Hash) -> Option<Bytes> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).blobs.get(&hash).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_first_and_memory_is_bounded() {
        let cache = Cache::default();
        let blob = Bytes::from(vec![0; BYTES_MAX / 4]);
        let hash = |i: u8| Hash::of(&[i]);
        for i in 0..6 {
            cache.insert(hash(i), blob.clone());
        }
        assert!(cache.get(hash(0)).is_none() && cache.get(hash(1)).is_none());
        assert!((2..6).all(|i| cache.get(hash(i)).is_some()));
    }
}
