//! What the owner loop has done with the mirror: states and partitions brought there, checkpoints kept, blobs had from
//! there that no peer serves.
//!
//! All of it runs in tasks of its own. A mirror that is down makes them fail late, and nobody waits for them.

use bytes::Bytes;
use iota_protocol::run_state::Checkpoint;
use iota_protocol::wire::encode;
use iota_protocol::wire::message::StateOffer;
use iota_protocol::{Epoch, Hash, PeerId, RunSpec, StageIndex};
use std::sync::Arc;
use std::time::Duration;

use super::moments::MomentsFolder;
use super::vault::Vault;
use crate::checkpoints::{KeepError, Kept, keep};
use crate::mirror::{Mirror, MirrorError};

/// Pause before a checkpoint that could not be kept is tried again.
const KEEP_PAUSE: Duration = Duration::from_secs(30);

/// Brings a state to the mirror: its parts from number `first` on, and then the offer. Returns whether all of it is there.
pub(super) async fn bring_state(mirror: &Mirror, vault: &Vault, state: &StateOffer, first: usize) -> bool {
    let brought = try_bring_state(mirror, vault, state, first).await;
    match &brought {
        Ok(()) => tracing::debug!(stage = %state.stage, version = %state.version, "state mirrored"),
        Err(error) => {
            tracing::warn!(stage = %state.stage, version = %state.version, %error, "state not mirrored");
        }
    }
    brought.is_ok()
}

async fn try_bring_state(
    mirror: &Mirror,
    vault: &Vault,
    state: &StateOffer,
    first: usize,
) -> Result<(), BringError> {
    let (before, after) = state.parts.split_at(first.min(state.parts.len()));
    for part in after.iter().chain(before) {
        bring(mirror, vault, *part).await?;
    }
    let offer = encode(state);
    mirror.put(Hash::of(&offer).0, Bytes::from(offer)).await?;
    Ok(())
}

/// Brings blobs to the mirror as far as it takes them.
pub(super) async fn bring_blobs(mirror: &Mirror, vault: &Vault, blobs: &[Hash]) {
    for blob in blobs {
        if let Err(error) = bring(mirror, vault, *blob).await {
            tracing::debug!(%blob, %error, "partition not mirrored");
        }
    }
}

/// Brings the moments that were kept at this version to the mirror; returns their hash if they are there.
pub(super) async fn bring_moments(
    mirror: &Mirror,
    folder: MomentsFolder,
    stage: StageIndex,
    version: Epoch,
) -> Option<Hash> {
    let read =
        tokio::task::spawn_blocking(move || folder.read(stage, version).map(|moments| moments.to_bytes()));
    let Some(bytes) = read.await.ok().flatten().map(Bytes::from) else {
        tracing::warn!(%stage, %version, "moments not mirrored: they are not on disk any more");
        return None;
    };
    let hash = Hash::of(&bytes);
    match mirror.put(hash.0, bytes).await {
        Ok(_) => Some(hash),
        Err(error) => {
            tracing::warn!(%stage, %version, %error, "moments not mirrored");
            None
        }
    }
}

/// Why a blob was not brought.
#[derive(Debug, thiserror::Error)]
enum BringError {
    #[error("blob {0} is not here any more")]
    Gone(Hash),
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// Brings one blob. It is read in any case, and sent only if the mirror lacks it.
async fn bring(mirror: &Mirror, vault: &Vault, blob: Hash) -> Result<(), BringError> {
    let bytes = vault.get(blob).await.ok_or(BringError::Gone(blob))?;
    mirror.put(blob.0, bytes).await?;
    Ok(())
}

/// Gets a blob from a peer or else from the mirror, kept under `tag`.
pub(super) async fn fetch(
    mirror: Option<&Mirror>,
    vault: &Vault,
    hash: Hash,
    limit: usize,
    providers: &[PeerId],
    tag: &str,
) -> Option<Bytes> {
    let fetched = vault.fetch(hash, limit, providers, tag).await;
    let error = match fetched {
        Ok(bytes) => return Some(bytes),
        Err(error) => error,
    };
    tracing::debug!(%error, "blob not fetched from peers");
    let bytes = mirror?.get(hash.0, limit as u64).await;
    let bytes = bytes.inspect_err(|error| tracing::debug!(%error, "nor from the mirror")).ok()?;
    let kept = vault.publish(bytes.clone(), tag).await;
    kept.inspect_err(|error| tracing::warn!(%error, "blob not stored")).ok()?;
    Some(bytes)
}

/// The checkpoints that this candidate has to see to: the newest only, one at a time.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    due: Option<Checkpoint>,
    under_way: Option<Checkpoint>,
}

impl Keeping {
    /// Takes a checkpoint that was decided.
    pub(super) fn take(&mut self, checkpoint: Checkpoint) {
        self.due = Some(checkpoint);
    }

    /// The checkpoint to see to now.
    pub(super) fn next(&mut self) -> Option<Checkpoint> {
        if self.under_way.is_some() {
            return None;
        }
        self.under_way = self.due.take();
        self.under_way.clone()
    }

    /// The one under way is seen to, or has to be tried again unless there is a newer one.
    pub(super) fn ended(&mut self, done: bool) {
        let checkpoint = self.under_way.take();
        if !done && self.due.is_none() {
            self.due = checkpoint;
        }
    }

    /// Whether nothing is left to do.
    pub(super) const fn is_idle(&self) -> bool {
        self.due.is_none() && self.under_way.is_none()
    }
}

/// Keeps a checkpoint. Returns whether it need not be tried again; a failure is returned after a pause.
pub(super) async fn keep_checkpoint(mirror: Mirror, spec: Arc<RunSpec>, checkpoint: Checkpoint) -> bool {
    let epoch = checkpoint.epoch;
    match keep(&mirror, &spec, &checkpoint).await {
        Ok(Kept::Yes { collected }) => {
            tracing::info!(%epoch, deleted = collected.blobs, "checkpoint kept");
            true
        }
        Ok(Kept::Foreign(latest)) => {
            let run = hex::encode(latest.run);
            tracing::error!(%epoch, run, at = latest.epoch, "another run writes to this mirror: its pointer was left as it is");
            true
        }
        Err(error @ KeepError::Incomplete { .. }) => {
            // Whoever said that it is there was wrong. The next checkpoint may be better.
            tracing::warn!(%epoch, %error, "checkpoint not kept");
            true
        }
        Err(error) => {
            tracing::warn!(%epoch, %error, "checkpoint not kept, trying again");
            tokio::time::sleep(KEEP_PAUSE).await;
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(epoch: u32) -> Checkpoint {
        Checkpoint { epoch: Epoch(epoch), stages: Vec::new(), moments: Vec::new(), decided: None }
    }

    #[test]
    fn of_several_checkpoints_only_the_newest_is_kept_and_one_at_a_time() {
        let mut keeping = Keeping::default();
        assert!(keeping.is_idle());
        (4..20).for_each(|epoch| keeping.take(checkpoint(epoch)));
        assert_eq!(keeping.next(), Some(checkpoint(19)));
        keeping.take(checkpoint(20));
        assert_eq!(keeping.next(), None);
        keeping.ended(false);
        assert_eq!(keeping.next(), Some(checkpoint(20)), "the older one is not worth another try");
        keeping.ended(false);
        assert_eq!(keeping.next(), Some(checkpoint(20)), "the newest is");
        keeping.ended(true);
        assert!(keeping.is_idle() && keeping.next().is_none());
    }
}
