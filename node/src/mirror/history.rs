//! The log of a run, in parts that candidates write before they let go of them. They are kept for good.

use bytes::Bytes;
use object_store::path::Path;

use super::error::{MirrorError, Operation};
use super::layout;
use super::objects::Existing;
use super::store::Mirror;
use crate::blobs::Hash32;

/// Names a part of a run's log. Its bytes are a control update, which proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPart {
    /// The run.
    pub run: Hash32,
    /// Index of its first entry.
    pub first: u64,
    /// Index after its last entry.
    pub next: u64,
    /// Hash of its bytes.
    pub hash: Hash32,
}

impl Mirror {
    /// Writes a part of a run's log. Cancel-safe, as [`put`](Self::put) is.
    ///
    /// # Errors
    /// The store's troubles.
    pub async fn put_log(
        &self,
        run: Hash32,
        first: u64,
        next: u64,
        bytes: Bytes,
    ) -> Result<LogPart, MirrorError> {
        let part = LogPart { run, first, next, hash: *blake3::hash(&bytes).as_bytes() };
        self.put_object(layout::log_part(&part), part.hash, bytes, Existing::Spares).await?;
        Ok(part)
    }

    /// Reads a part of a run's log, as [`get`](Self::get) reads a blob. Cancel-safe.
    ///
    /// # Errors
    /// The store's troubles, and a part that is missing, too large or damaged.
    pub async fn log(&self, part: &LogPart, bytes_max: u64) -> Result<Bytes, MirrorError> {
        self.get_object(layout::log_part(part), part.hash, bytes_max).await
    }

    /// Lists the parts of a run's log by their first entry. Several candidates may have written the same entries, with other
    /// signatures. Other names are passed over. Cancel-safe.
    ///
    /// # Errors
    /// The store's troubles.
    pub async fn log_parts(&self, run: Hash32) -> Result<Vec<LogPart>, MirrorError> {
        let access = self.access(Operation::List, Path::from_iter([layout::LOG, &hex::encode(run)]));
        let listed = access.persist(|| access.list(|meta| layout::parse_log_part(&meta.location)));
        let mut parts = listed.await?;
        parts.sort_unstable();
        Ok(parts)
    }
}
