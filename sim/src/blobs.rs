//! The blobs a host holds, by hash, each kept alive by tags.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use iota_protocol::Hash;
use iota_protocol::peer::room::DiskUse;

/// A blob: its size, and its bytes where anybody reads them. Made-up tensors have a size only.
#[derive(Clone, Debug)]
pub struct Blob {
    /// How much it occupies and moves.
    pub bytes: u64,
    /// What it says.
    pub content: Option<Bytes>,
}

impl Blob {
    /// A blob with content, and its hash.
    #[must_use]
    pub fn of(content: impl Into<Bytes>) -> (Hash, Self) {
        let content = content.into();
        (Hash::of(&content), Self { bytes: content.len() as u64, content: Some(content) })
    }

    /// A blob of which only hash and size matter.
    #[must_use]
    pub const fn made_up(bytes: u64) -> Self {
        Self { bytes, content: None }
    }
}

/// The disk is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for {asked} bytes: {used} of {quota} used")]
pub struct DiskFull {
    asked: u64,
    used: u64,
    quota: u64,
}

/// What a host has on disk.
#[derive(Clone, Debug)]
pub struct BlobStore {
    blobs: BTreeMap<Hash, (Blob, u32)>,
    tags: BTreeMap<String, BTreeSet<Hash>>,
    used: u64,
    quota: u64,
    most: u64,
}

impl BlobStore {
    /// An empty disk of `quota` bytes.
    #[must_use]
    pub const fn new(quota: u64) -> Self {
        Self { blobs: BTreeMap::new(), tags: BTreeMap::new(), used: 0, quota, most: 0 }
    }

    /// The blob with this hash.
    #[must_use]
    pub fn get(&self, hash: &Hash) -> Option<&Blob> {
        self.blobs.get(hash).map(|(blob, _)| blob)
    }

    /// The content of a blob that has one.
    #[must_use]
    pub fn content(&self, hash: &Hash) -> Option<&[u8]> {
        self.get(hash)?.content.as_deref()
    }

    /// Whether it is here.
    #[must_use]
    pub fn contains(&self, hash: &Hash) -> bool {
        self.blobs.contains_key(hash)
    }

    /// Whether a blob of `bytes` is here or has room.
    #[must_use]
    pub fn fits(&self, hash: &Hash, bytes: u64) -> bool {
        self.contains(hash) || self.used.saturating_add(bytes) <= self.quota
    }

    /// Keeps a blob as long as a tag names it.
    ///
    /// # Errors
    /// [`DiskFull`] if it is new and there is no room; then nothing changes.
    pub fn keep(&mut self, hash: Hash, blob: Blob, tag: &str) -> Result<(), DiskFull> {
        if !self.blobs.contains_key(&hash) {
            let used = self.used.saturating_add(blob.bytes);
            if used > self.quota {
                return Err(DiskFull { asked: blob.bytes, used: self.used, quota: self.quota });
            }
            self.used = used;
            self.most = self.most.max(used);
            self.blobs.insert(hash, (blob, 0));
        }
        let tagged = match self.tags.get_mut(tag) {
            Some(hashes) => hashes,
            None => self.tags.entry(tag.to_owned()).or_default(),
        };
        if tagged.insert(hash)
            && let Some((_, references)) = self.blobs.get_mut(&hash)
        {
            *references += 1;
        }
        Ok(())
    }

    /// Lets go of everything whose tags all start with `prefix`.
    pub fn release(&mut self, prefix: &str) {
        let tags: Vec<String> = self
            .tags
            .range(prefix.to_owned()..)
            .map(|(tag, _)| tag)
            .take_while(|tag| tag.starts_with(prefix))
            .cloned()
            .collect();
        for hash in tags.iter().filter_map(|tag| self.tags.remove(tag)).flatten() {
            let Some((blob, references)) = self.blobs.get_mut(&hash) else { continue };
            *references -= 1;
            if *references == 0 {
                self.used -= blob.bytes;
                self.blobs.remove(&hash);
            }
        }
    }

    /// All tags.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.tags.keys().map(String::as_str)
    }

    /// Bytes held.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// The most bytes ever held.
    #[must_use]
    pub const fn most(&self) -> u64 {
        self.most
    }

    /// Bytes it can hold.
    #[must_use]
    pub const fn quota(&self) -> u64 {
        self.quota
    }

    /// What a peer is told of it: all of it is for its blobs.
    #[must_use]
    pub const fn disk_use(&self) -> DiskUse {
        DiskUse { kept: self.used, quota: Some(self.quota), free: u64::MAX, size: u64::MAX }
    }

    /// Whether less than half of it is used.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.used < self.quota / 2
    }

    /// Blobs held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blobs.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// Changes the size of the disk. What is held stays.
    pub const fn set_quota(&mut self, quota: u64) {
        self.quota = quota;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_lives_as_long_as_one_of_its_tags() {
        let mut store = BlobStore::new(100);
        let (hash, blob) = Blob::of(b"twice tagged".to_vec());
        let size = blob.bytes;
        assert_eq!(store.keep(hash, blob.clone(), "e/0/1/"), Ok(()));
        assert_eq!(store.keep(hash, blob, "e/0/2/"), Ok(()));
        assert_eq!((store.used(), store.len()), (size, 1));
        store.release("e/0/1/");
        assert_eq!(store.content(&hash), Some(b"twice tagged".as_slice()));
        store.release("e/0/");
        assert!(store.is_empty() && store.used() == 0 && store.tags().next().is_none());
        assert_eq!(store.most(), size);
    }

    #[test]
    fn a_full_disk_takes_nothing_new_and_keeps_what_it_has() {
        let mut store = BlobStore::new(100);
        let hash = |n: u8| Hash::of(&[n]);
        assert_eq!(store.keep(hash(1), Blob::made_up(60), "a"), Ok(()));
        let full = DiskFull { asked: 60, used: 60, quota: 100 };
        assert_eq!(store.keep(hash(2), Blob::made_up(60), "b"), Err(full));
        assert_eq!(store.keep(hash(1), Blob::made_up(60), "b"), Ok(()), "already here");
        assert_eq!((store.used(), store.len()), (60, 1));
    }
}
