//! What candidates do with a checkpoint that was decided: look, write the manifest, move the pointer, let go of old ones.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use iota_protocol::limits::GOSSIP_BYTES_MAX;
use iota_protocol::run_state::Checkpoint;
use iota_protocol::spec::MirrorSpec;
use iota_protocol::wire::decode;
use iota_protocol::wire::message::StateOffer;
use iota_protocol::{Hash, RunSpec};

use super::manifest::{MANIFEST_BYTES_MAX, Manifest};
use crate::mirror::{Collected, Latest, Mirror, MirrorError, Moved};

/// Questions to the store at once.
const LOOKS_AT_ONCE: usize = 16;
/// How often the pointer is tried again when somebody else moved it. All candidates move it to the same place, once for
/// each checkpoint.
const MOVES_MAX: u32 = 8;
/// Age from which what no kept manifest names is deleted: three times [`REUSE_FOR`], so that an upload in progress, and
/// what it found there and counts on, stays.
const COLLECT_AFTER: Duration = Duration::from_secs(3 * 3600);
/// For how long a blob in the store spares its upload; see [`MirrorConfig`](crate::mirror::MirrorConfig).
pub(crate) const REUSE_FOR: Duration = Duration::from_secs(3600);

/// What became of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The pointer names it, or a newer one of this run.
    Yes {
        /// What was let go of.
        collected: Collected,
    },
    /// The pointer names a checkpoint of a run that is neither this one nor one that this one was resumed from.
    Foreign(Latest),
}

/// Why a checkpoint was not kept.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The store's troubles.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// A blob that the log says is there is not.
    #[error("{what} of stage {stage} is not in the mirror")]
    Incomplete {
        /// Which.
        what: String,
        /// Of which stage.
        stage: usize,
    },
    /// The pointer was moved by others each time.
    #[error("the pointer was moved by others {MOVES_MAX} times in a row")]
    Outrun,
}

/// Sees that everything of `checkpoint` is in the mirror, writes its manifest, moves the pointer to it and deletes what no
/// kept checkpoint names. Doing it twice, or at several peers at once, is harmless.
///
/// # Errors
/// The store's troubles, and blobs that are missing. Then nothing has moved.
pub async fn keep(mirror: &Mirror, spec: &RunSpec, checkpoint: &Checkpoint) -> Result<Kept, KeepError> {
    let mut offers = Vec::new();
    for (stage, hash) in checkpoint.stages.iter().enumerate() {
        let incomplete = |what: &str| KeepError::Incomplete { what: what.to_owned(), stage };
        let bytes = match mirror.get(hash.0, GOSSIP_BYTES_MAX as u64).await {
            Err(MirrorError::Missing { .. }) => return Err(incomplete("the offer")),
            bytes => bytes?,
        };
        let offer: StateOffer =
            decode(&bytes, GOSSIP_BYTES_MAX).map_err(|_| incomplete("an offer that can be read"))?;
        look(mirror, stage, &offer.parts).await?;
        offers.push(offer);
    }
    let manifest = Manifest::new(spec, checkpoint, &offers);
    let bytes = Bytes::from(manifest.to_bytes());
    let hash = mirror.put_manifest(manifest.epoch, bytes).await?;
    let to = Latest { run: manifest.run.0, epoch: manifest.epoch, manifest: hash };
    if let Some(other) = advance(mirror, spec, &to).await? {
        return Ok(Kept::Foreign(other));
    }
    Ok(Kept::Yes { collected: collect(mirror, &spec.mirror).await? })
}

/// Whether all parts are there.
async fn look(mirror: &Mirror, stage: usize, parts: &[Hash]) -> Result<(), KeepError> {
    let look = |part: Hash| async move {
        if mirror.has(part.0).await? {
            return Ok(());
        }
        Err(KeepError::Incomplete { what: format!("part {part}"), stage })
    };
    // Collected, since the compiler cannot see that a stream which holds the closure may go to another thread.
    let looks: Vec<_> = parts.iter().copied().map(look).collect();
    futures::stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE).try_collect().await
}

/// Moves the pointer forward. Returns what it names if that is not ours to replace.
async fn advance(mirror: &Mirror, spec: &RunSpec, to: &Latest) -> Result<Option<Latest>, KeepError> {
    for _ in 0..MOVES_MAX {
        let from = match mirror.latest().await? {
            Some((latest, _)) if latest.run == to.run && latest.epoch >= to.epoch => return Ok(None),
            Some((latest, _)) if !is_ours(mirror, spec, &latest, to).await? => return Ok(Some(latest)),
            from => from.map(|(_, version)| version),
        };
        if mirror.move_latest(from, to).await? == Moved::Yes {
            return Ok(None);
        }
    }
    Err(KeepError::Outrun)
}

/// Whether this run may move a pointer on: from its own checkpoints, and once from those of the run it was resumed from,
/// which has ended: as long as the pointer has not named one of its own.
async fn is_ours(mirror: &Mirror, spec: &RunSpec, latest: &Latest, to: &Latest) -> Result<bool, KeepError> {
    if latest.run == to.run {
        return Ok(true);
    }
    if spec.start.checkpoint.is_none() {
        return Ok(false);
    }
    for (epoch, hash) in mirror.manifests().await? {
        if epoch < to.epoch && epoch > spec.start.epoch {
            let bytes = mirror.manifest(epoch, hash, MANIFEST_BYTES_MAX).await?;
            if Manifest::from_bytes(&bytes).is_ok_and(|manifest| manifest.run.0 == to.run) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Which of these epochs' checkpoints are kept: the newest, and of the older ones every so many.
fn retained(spec: &MirrorSpec, epochs: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
    let mut epochs: Vec<u32> = epochs.into_iter().collect();
    epochs.sort_unstable();
    epochs.dedup();
    let newest = epochs.len().saturating_sub(spec.keep as usize);
    let kept = epochs.iter().enumerate().filter(|(place, epoch)| {
        let numbered = spec.keep_every > 0
            && (**epoch / spec.checkpoint_epochs).is_multiple_of(spec.keep_every)
            && epoch.is_multiple_of(spec.checkpoint_epochs);
        *place >= newest || numbered
    });
    kept.map(|(_, epoch)| *epoch).collect()
}

/// Deletes old checkpoints, and blobs that none of the kept ones names.
async fn collect(mirror: &Mirror, spec: &MirrorSpec) -> Result<Collected, KeepError> {
    let manifests = mirror.manifests().await?;
    let epochs = retained(spec, manifests.iter().map(|(epoch, _)| *epoch));
    let (mut blobs, mut kept) = (BTreeSet::new(), BTreeSet::new());
    for (epoch, hash) in manifests {
        if !epochs.contains(&epoch) {
            continue;
        }
        let bytes = mirror.manifest(epoch, hash, MANIFEST_BYTES_MAX).await?;
        // One that cannot be read is of a newer program; what it names is unknown, so nothing is deleted.
        let Ok(manifest) = Manifest::from_bytes(&bytes) else { return Ok(Collected::default()) };
        kept.insert(hash);
        for stage in &manifest.stages {
            blobs.insert(stage.offer.0);
            blobs.extend(stage.parts.iter().map(|part| part.0));
            blobs.extend(stage.moments.iter().map(|moments| moments.hash.0));
        }
    }
    Ok(mirror.collect(&blobs, &kept, COLLECT_AFTER).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_kept_and_every_so_many_of_the_others() {
        let spec = MirrorSpec { keep: 2, keep_every: 3, checkpoint_epochs: 4, ..MirrorSpec::default() };
        let kept = retained(&spec, (1..=9).map(|number| number * 4).chain([37]));
        assert_eq!(kept, [12, 24, 36, 37].into());
        let spec = MirrorSpec { keep_every: 0, ..spec };
        assert_eq!(retained(&spec, [4, 8, 12, 16]), [12, 16].into());
        assert_eq!(retained(&spec, [4]), [4].into());
    }
}
