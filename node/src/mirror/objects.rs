//! Objects that never change: blobs, and manifests of checkpoints; parts of logs, too.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::StreamExt as _;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore as _, PutMode, PutOptions};
use tokio::time::timeout;

use super::error::{MirrorError, Operation};
use super::layout;
use super::parts::PART_BYTES;
use super::store::{Access, Mirror};
use crate::blobs::Hash32;

/// What became of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The bytes were sent, and the store has them.
    Written,
    /// The store had an object of this name and size already; nothing was sent.
    Present,
}

/// What an object of the same name and size means to a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    Spares,
    IsDamaged,
}

impl Mirror {
    /// Writes a blob, unless the mirror has it: asks first, so that peers that hold the same bytes share the work. An object
    /// of another size is damaged, and is written over.
    ///
    /// Cancel-safe: dropped halfway, it leaves either the whole blob or none. Parts of a large blob may stay behind, where
    /// nobody takes them for a blob.
    ///
    /// # Errors
    /// The store's troubles, and [`MirrorError::Damaged`] if the bytes are not those of the hash.
    pub async fn put(&self, hash: Hash32, bytes: Bytes) -> Result<Put, MirrorError> {
        self.put_object(layout::blob(&hash), hash, bytes, Existing::Spares).await
    }

    /// Writes a blob over whatever has its name. For a blob that was read and found damaged: of the right size, it spares
    /// every [`put`](Self::put) its upload. Cancel-safe, as that is.
    ///
    /// # Errors
    /// As of [`put`](Self::put).
    pub async fn mend(&self, hash: Hash32, bytes: Bytes) -> Result<(), MirrorError> {
        let put = self.put_object(layout::blob(&hash), hash, bytes, Existing::IsDamaged).await;
        put.map(drop)
    }

    /// Returns whether the mirror has an object by the name of a blob. Only [`get`](Self::get) says whether it is the blob.
    /// Cancel-safe.
    ///
    /// # Errors
    /// The store's troubles.
    pub async fn has(&self, hash: Hash32) -> Result<bool, MirrorError> {
        let access = self.access(Operation::Has, layout::blob(&hash));
        access.persist(|| async { Ok(access.look().await?.is_some()) }).await
    }

    /// Reads a blob of up to `bytes_max` bytes and checks it. Holds as much memory as the blob is long, and none for one that
    /// is too long. Bytes of another hash are read once more, in case they were hurt on their way. Cancel-safe.
    ///
    /// # Errors
    /// The store's troubles, and a blob that is missing, too large or damaged.
    pub async fn get(&self, hash: Hash32, bytes_max: u64) -> Result<Bytes, MirrorError> {
        self.get_object(layout::blob(&hash), hash, bytes_max).await
    }

    /// Writes the manifest of a checkpoint and returns its hash. What it names has to be there before. Cancel-safe, as
    /// [`put`](Self::put) is.
    ///
    /// # Errors
    /// The store's troubles.
    pub async fn put_manifest(&self, epoch: u32, bytes: Bytes) -> Result<Hash32, MirrorError> {
        let hash = *blake3::hash(&bytes).as_bytes();
        self.put_object(layout::manifest(epoch, &hash), hash, bytes, Existing::Spares).await?;
        Ok(hash)
    }

    /// Reads the manifest of a checkpoint, as [`get`](Self::get) reads a blob. Cancel-safe.
    ///
    /// # Errors
    /// The store's troubles, and a manifest that is missing, too large or damaged.
    pub async fn manifest(&self, epoch: u32, hash: Hash32, bytes_max: u64) -> Result<Bytes, MirrorError> {
        self.get_object(layout::manifest(epoch, &hash), hash, bytes_max).await
    }

    /// Lists the manifests by epoch and hash, in this order. Other names are passed over. Cancel-safe.
    ///
    /// # Errors
    /// The store's troubles.
    pub async fn manifests(&self) -> Result<Vec<(u32, Hash32)>, MirrorError> {
        let access = self.access(Operation::List, Path::from(layout::CHECKPOINTS));
        let listed = access.persist(|| access.list(|meta| layout::parse_manifest(&meta.location)));
        let mut manifests = listed.await?;
        manifests.sort_unstable();
        Ok(manifests)
    }

    pub(super) async fn put_object(
        &self,
        path: Path,
        hash: Hash32,
        bytes: Bytes,
        existing: Existing,
    ) -> Result<Put, MirrorError> {
        let _pending = self.inner.health.upload();
        // The semaphore is never closed, so this waits and does not fail.
        let _permit = self.inner.uploads.acquire().await;
        let access = self.access(Operation::Put, path);
        let put = access.persist(|| access.put_once(hash, &bytes, existing)).await?;
        match put {
            Put::Present => self.inner.metrics.spared(),
            Put::Written => {
                self.inner.metrics.uploaded(length(&bytes));
                self.inner.health.uploaded(length(&bytes));
            }
        }
        Ok(put)
    }

    pub(super) async fn get_object(
        &self,
        path: Path,
        hash: Hash32,
        bytes_max: u64,
    ) -> Result<Bytes, MirrorError> {
        let _permit = self.inner.downloads.acquire().await;
        let access = self.access(Operation::Get, path);
        let bytes = access.persist(|| access.read_checked(hash, bytes_max)).await?;
        self.inner.metrics.downloaded(length(&bytes));
        self.inner.health.downloaded(length(&bytes));
        Ok(bytes)
    }
}

impl Access<'_> {
    async fn put_once(&self, hash: Hash32, bytes: &Bytes, existing: Existing) -> Result<Put, MirrorError> {
        self.check(hash, bytes).await?;
        let mode = match self.look().await? {
            None => PutMode::Create,
            Some(meta) if existing == Existing::Spares && self.spares(&meta, bytes) => {
                return Ok(Put::Present);
            }
            Some(_) => PutMode::Overwrite,
        };
        if length(bytes) > PART_BYTES {
            self.put_parts(bytes).await?;
            return Ok(Put::Written);
        }
        self.inner.rate.wait_for(length(bytes)).await;
        let options = PutOptions::from(mode);
        let request = self.inner.store.put_opts(&self.path, bytes.clone().into(), options);
        if self.call_or_conflict(length(bytes), request).await?.is_some() {
            return Ok(Put::Written);
        }
        // Another was faster; or the store only says that another is at it, and it may fail.
        match self.look().await? {
            Some(meta) if meta.size == length(bytes) => Ok(Put::Present),
            _ => Err(self.unavailable("somebody else is writing it".to_owned())),
        }
    }

    /// Whether an object that is there saves us the upload. One that is old might just be collected.
    fn spares(&self, meta: &ObjectMeta, bytes: &Bytes) -> bool {
        meta.size == length(bytes) && age(meta) < self.inner.reuse_for
    }

    async fn read_checked(&self, hash: Hash32, bytes_max: u64) -> Result<Bytes, MirrorError> {
        let first = self.read(bytes_max).await?.0;
        if self.check(hash, &first).await.is_ok() {
            return Ok(first);
        }
        drop(first);
        let second = self.read(bytes_max).await?.0;
        self.check(hash, &second).await?;
        Ok(second)
    }

    async fn check(&self, expected: Hash32, bytes: &Bytes) -> Result<(), MirrorError> {
        let got = hash_of(bytes).await;
        if got == expected {
            return Ok(());
        }
        Err(MirrorError::Damaged { operation: self.operation, object: self.object(), expected, got })
    }

    /// Reads an object whole, as it is, with what the store says of it.
    pub(super) async fn read(&self, bytes_max: u64) -> Result<(Bytes, ObjectMeta), MirrorError> {
        let Some(meta) = self.look().await? else { return Err(self.absent().await) };
        // A size that is no `usize` is above all that could be accepted.
        let size = usize::try_from(meta.size).ok().filter(|_| meta.size <= bytes_max);
        let Some(size) = size else {
            let (operation, object) = (self.operation, self.object());
            return Err(MirrorError::TooLarge { operation, object, got: meta.size, limit: bytes_max });
        };
        let bytes = self.read_parts(&meta, size).await?;
        Ok((bytes, meta))
    }

    /// Says why there is no object. The first question is answered without words, so that a missing bucket looks like
    /// a missing object; this one is not.
    async fn absent(&self) -> MirrorError {
        match self.call(0, self.inner.store.get_opts(&self.path, Default::default())).await {
            Ok(_) => self.unavailable("somebody else is writing it".to_owned()),
            Err(error) => error,
        }
    }

    /// Lists what is below the path and keeps what `keep` makes of it.
    pub(super) async fn list<T>(
        &self,
        keep: impl Fn(ObjectMeta) -> Option<T>,
    ) -> Result<Vec<T>, MirrorError> {
        let limit = self.limit(0);
        let mut listed = self.inner.store.list(Some(&self.path));
        let mut kept = Vec::new();
        // The limit is one for each page of the list, not for the whole.
        loop {
            match timeout(limit, listed.next()).await {
                Ok(Some(Ok(meta))) => kept.extend(keep(meta)),
                Ok(Some(Err(error))) => return Err(self.failed(&error)),
                Ok(None) => return Ok(kept),
                Err(_) => return Err(self.unavailable(format!("no answer within {limit:?}"))),
            }
        }
    }
}

/// Hashes bytes, many of them where nobody else waits meanwhile.
async fn hash_of(bytes: &Bytes) -> Hash32 {
    if length(bytes) > PART_BYTES {
        let bytes = bytes.clone();
        let hashing = tokio::task::spawn_blocking(move || *blake3::hash(&bytes).as_bytes());
        // It fails only as the runtime ends, and then nobody else waits.
        if let Ok(hash) = hashing.await {
            return hash;
        }
    }
    *blake3::hash(bytes).as_bytes()
}

/// How long ago an object was written, by the store's clock then and ours now.
pub(super) fn age(meta: &ObjectMeta) -> Duration {
    let written = SystemTime::from(meta.last_modified);
    // A store whose clock is ahead of ours has written it just now.
    SystemTime::now().duration_since(written).unwrap_or_default()
}

pub(super) fn length(bytes: &Bytes) -> u64 {
    // On every platform there is, a length fits.
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
