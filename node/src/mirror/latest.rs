//! [`Latest`]: the pointer to the latest checkpoint, and moving it.

use std::time::Instant;

use bytes::Bytes;
use object_store::{ObjectMeta, ObjectStore as _, PutMode, PutOptions, UpdateVersion};
use serde::{Deserialize, Serialize};

use super::error::{MirrorError, Operation};
use super::folder::{Swap, swap_latest};
use super::layout;
use super::objects::length;
use super::store::{Access, Mirror};
use crate::blobs::Hash32;

/// The number of the pointer's format.
const FORMAT: u32 = 1;
/// Greatest pointer that is read, in bytes. One has about 180.
const LATEST_BYTES_MAX: u64 = 4096;

/// What the pointer says: the latest checkpoint that the mirror has whole. In JSON, hashes are hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "LatestFile", try_from = "LatestFile")]
pub struct Latest {
    /// The run whose checkpoint it is.
    pub run: Hash32,
    /// The checkpoint's epoch.
    pub epoch: u32,
    /// The hash of its manifest.
    pub manifest: Hash32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LatestFile {
    format: u32,
    run: String,
    epoch: u32,
    manifest: String,
}

impl From<Latest> for LatestFile {
    fn from(latest: Latest) -> Self {
        let (run, manifest) = (hex::encode(latest.run), hex::encode(latest.manifest));
        Self { format: FORMAT, run, epoch: latest.epoch, manifest }
    }
}

impl TryFrom<LatestFile> for Latest {
    type Error = String;

    fn try_from(file: LatestFile) -> Result<Self, String> {
        if file.format != FORMAT {
            return Err(format!("expected format {FORMAT}, got {}", file.format));
        }
        let hash = |text: &str| {
            layout::parse_hash(text).ok_or_else(|| format!("expected 64 hexadecimal digits, got {text:?}"))
        };
        Ok(Self { run: hash(&file.run)?, epoch: file.epoch, manifest: hash(&file.manifest)? })
    }
}

/// Which pointer was read, so that only this one is replaced. Pointers of the same content are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatestVersion {
    content: Hash32,
    /// The store's own name for the version, which its comparison needs.
    e_tag: Option<String>,
}

/// What became of an attempt to move the pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moved {
    /// The pointer says what was asked.
    Yes,
    /// Somebody else moved it first, to somewhere else.
    Lost,
}

impl Mirror {
    /// Reads the pointer, and which one it is; nothing if there was never one. Nothing that it says has been checked. Cancel-safe.
    ///
    /// # Errors
    /// The store's troubles, and [`MirrorError::Unreadable`] for a pointer of another format.
    pub async fn latest(&self) -> Result<Option<(Latest, LatestVersion)>, MirrorError> {
        let access = self.access(Operation::Latest, layout::latest());
        access.persist(|| access.latest_once()).await
    }

    /// Moves the pointer, if it is still the one that was read; without one, if there is still none. Of several that move
    /// it from the same place at once, one succeeds. Those that move it to the same place have all succeeded.
    ///
    /// All that the new pointer names has to be in the mirror before; for the manifest itself, that is checked.
    ///
    /// In a bucket, the store compares. In a folder, a lock makes comparing and replacing one step for all processes of
    /// the machine.
    ///
    /// Dropped halfway, the pointer may be moved or not, and nothing in between; the next [`latest`](Self::latest) tells.
    ///
    /// # Errors
    /// The store's troubles, and [`MirrorError::Missing`] if the manifest is not there.
    pub async fn move_latest(&self, from: Option<LatestVersion>, to: &Latest) -> Result<Moved, MirrorError> {
        let manifest = self.access(Operation::Move, layout::manifest(to.epoch, &to.manifest));
        let there = || async { manifest.look().await?.map(drop).ok_or_else(|| manifest.missing()) };
        manifest.persist(there).await?;
        let access = self.access(Operation::Move, layout::latest());
        access.persist(|| self.move_once(&access, from.as_ref(), to)).await
    }

    async fn move_once(
        &self,
        access: &Access<'_>,
        from: Option<&LatestVersion>,
        to: &Latest,
    ) -> Result<Moved, MirrorError> {
        let bytes = access.encode(to)?;
        let swap = match self.folder() {
            None => access.swap_object(from, bytes.clone()).await?,
            Some(folder) => access.swap_file(folder, from, bytes.clone()).await?,
        };
        if swap == Swap::Done {
            return Ok(Moved::Yes);
        }
        // Either somebody was faster, or it was ourselves and the answer got lost, or the store only says that another
        // is at it.
        match access.read_version().await? {
            Some((_, found)) if found.content == *blake3::hash(&bytes).as_bytes() => Ok(Moved::Yes),
            found if found.as_ref().map(|(_, version)| version) == from => {
                Err(access.unavailable("somebody else is moving it".to_owned()))
            }
            _ => Ok(Moved::Lost),
        }
    }
}

impl Access<'_> {
    async fn latest_once(&self) -> Result<Option<(Latest, LatestVersion)>, MirrorError> {
        let Some((bytes, version)) = self.read_version().await? else { return Ok(None) };
        let latest = serde_json::from_slice(&bytes).map_err(|error| self.unreadable(&error))?;
        Ok(Some((latest, version)))
    }

    async fn read_version(&self) -> Result<Option<(Bytes, LatestVersion)>, MirrorError> {
        match self.read(LATEST_BYTES_MAX).await {
            Ok((bytes, meta)) => Ok(Some((bytes.clone(), version(&bytes, meta)))),
            Err(MirrorError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn swap_object(&self, from: Option<&LatestVersion>, bytes: Bytes) -> Result<Swap, MirrorError> {
        let update = |from: &LatestVersion| {
            PutMode::Update(UpdateVersion { e_tag: from.e_tag.clone(), version: None })
        };
        let options = PutOptions::from(from.map_or(PutMode::Create, update));
        let size = length(&bytes);
        let request = self.inner.store.put_opts(&self.path, bytes.into(), options);
        let moved = self.call_or_conflict(size, request).await?;
        Ok(moved.map_or(Swap::Other, |_| Swap::Done))
    }

    async fn swap_file(
        &self,
        folder: std::path::PathBuf,
        from: Option<&LatestVersion>,
        bytes: Bytes,
    ) -> Result<Swap, MirrorError> {
        let expected = from.map(|version| version.content);
        let deadline = Instant::now() + self.inner.patience;
        let blocking = move || swap_latest(&folder, expected, &bytes, deadline);
        self.block(blocking).await
    }

    fn encode(&self, latest: &Latest) -> Result<Bytes, MirrorError> {
        let mut text = serde_json::to_vec(latest).map_err(|error| self.unreadable(&error))?;
        text.push(b'\n');
        Ok(text.into())
    }

    fn unreadable(&self, error: &serde_json::Error) -> MirrorError {
        let (operation, object) = (self.operation, self.object());
        MirrorError::Unreadable { operation, object, reason: error.to_string() }
    }
}

fn version(bytes: &Bytes, meta: ObjectMeta) -> LatestVersion {
    LatestVersion { content: *blake3::hash(bytes).as_bytes(), e_tag: meta.e_tag }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATEST: Latest = Latest { run: [1; 32], epoch: 7, manifest: [0xab; 32] };

    #[test]
    fn the_pointer_is_small_json() {
        let text = serde_json::to_string(&LATEST).unwrap();
        let (run, manifest) = ("01".repeat(32), "ab".repeat(32));
        let expected = format!(r#"{{"format":1,"run":"{run}","epoch":7,"manifest":"{manifest}"}}"#);
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Latest>(&text).unwrap(), LATEST);
    }

    #[test]
    fn other_formats_and_half_hashes_are_refused() {
        let text = serde_json::to_string(&LATEST).unwrap();
        let refused = |text: &str| serde_json::from_str::<Latest>(text).unwrap_err().to_string();
        assert_eq!(refused(&text.replace("\"format\":1", "\"format\":2")), "expected format 1, got 2");
        assert_eq!(
            refused(&text.replace(&"ab".repeat(32), "abc")),
            "expected 64 hexadecimal digits, got \"abc\""
        );
    }
}
