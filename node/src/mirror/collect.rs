//! Deleting what nothing names any more.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStoreExt as _};

use super::error::{MirrorError, Operation};
use super::folder::sweep;
use super::layout;
use super::objects::age;
use super::store::Mirror;
use crate::blobs::Hash32;

/// What a collection deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Manifests.
    pub manifests: u64,
    /// Blobs.
    pub blobs: u64,
    /// Files that interrupted writes left, of a mirror that is a folder.
    pub leftovers: u64,
    /// The sizes of manifests and blobs, in bytes.
    pub bytes: u64,
}

impl Mirror {
    /// Deletes manifests, then blobs, that were written at least `older_than` ago and are not to be kept. What the pointer
    /// names is kept in any case. Objects of other names are left alone.
    ///
    /// The age protects an upload in progress: its blobs are there before the manifest that names them. So it has
    /// to exceed [`reuse_for`](super::MirrorConfig::reuse_for) by more than a checkpoint's upload takes and the clocks of the
    /// store and of this machine differ. Then it does not matter who else writes meanwhile.
    ///
    /// Manifests go first, so that a collection that ends halfway leaves blobs that nothing names, and no name without its
    /// blob. Cancel-safe in this sense.
    ///
    /// # Errors
    /// The store's troubles. What was deleted before stays deleted; the next collection takes the rest.
    pub async fn collect(
        &self,
        keep_blobs: &BTreeSet<Hash32>,
        keep_manifests: &BTreeSet<Hash32>,
        older_than: Duration,
    ) -> Result<Collected, MirrorError> {
        let latest = self.latest().await?.map(|(latest, _)| latest.manifest);
        let old_manifest = |meta: ObjectMeta| {
            let (_, hash) = layout::parse_manifest(&meta.location)?;
            let kept = keep_manifests.contains(&hash) || latest == Some(hash);
            (!kept && age(&meta) >= older_than).then_some(meta)
        };
        let old_blob = |meta: ObjectMeta| {
            let hash = layout::parse_blob(&meta.location)?;
            (!keep_blobs.contains(&hash) && age(&meta) >= older_than).then_some(meta)
        };
        let (manifests, manifest_bytes) = self.delete_below(layout::CHECKPOINTS, old_manifest).await?;
        let (blobs, blob_bytes) = self.delete_below(layout::BLOBS, old_blob).await?;
        let leftovers = self.sweep_folder(older_than).await?;
        Ok(Collected { manifests, blobs, leftovers, bytes: manifest_bytes + blob_bytes })
    }

    /// Deletes what `old` picks below a name. Returns how many objects, and their bytes.
    async fn delete_below(
        &self,
        name: &str,
        old: impl Fn(ObjectMeta) -> Option<ObjectMeta>,
    ) -> Result<(u64, u64), MirrorError> {
        let access = self.access(Operation::Collect, Path::from(name));
        let picked = access.persist(|| access.list(&old)).await?;
        let delete = |meta: ObjectMeta| async move {
            self.delete(&meta).await?;
            Ok(meta.size)
        };
        let deleting: Vec<_> = picked.into_iter().map(delete).collect();
        futures::stream::iter(deleting)
            .buffer_unordered(self.inner.concurrency)
            .try_fold((0, 0), |(count, bytes), size| async move { Ok((count + 1, bytes + size)) })
            .await
    }

    async fn delete(&self, meta: &ObjectMeta) -> Result<(), MirrorError> {
        let access = self.access(Operation::Collect, meta.location.clone());
        let delete = || async {
            match access.call(0, access.inner.store.delete(&access.path)).await {
                // Another collector was here, or an answer was lost.
                Err(MirrorError::Missing { .. }) => Ok(()),
                result => result,
            }
        };
        access.persist(delete).await
    }

    async fn sweep_folder(&self, older_than: Duration) -> Result<u64, MirrorError> {
        let Some(folder) = self.folder() else { return Ok(0) };
        let access = self.access(Operation::Collect, Path::from(layout::BLOBS));
        let sweep = || {
            let folder = folder.clone();
            access.block(move || sweep(&folder, older_than))
        };
        access.persist(sweep).await
    }
}
