//! Reading checkpoints: finding one, verifying it, pulling its weights.

use std::path::{Path, PathBuf};

use iota_model::OptimizerState;
use iota_model::checkpoint::{self, Checkpoint, CheckpointError};
use iota_model::optimizer::MomentsError;
use iota_model::outer::OuterState;
use iota_protocol::limits::PARTITION_BYTES_MAX;
use iota_protocol::moments::bytes_max;
use iota_protocol::wire::message::StateOffer;
use iota_protocol::{Hash, PeerId, RunSpec, StageIndex};
use iota_worker::bridge;
use iota_worker::{StateError, read_state};

use super::manifest::{MANIFEST_BYTES_MAX, Manifest, ManifestError};
use crate::mirror::{Mirror, MirrorError};

/// Which checkpoint of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that the pointer names.
    Latest,
    /// The one of this epoch.
    Epoch(u32),
}

impl std::str::FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "latest" => Ok(Self::Latest),
            _ => text
                .parse()
                .map(Self::Epoch)
                .map_err(|_| format!("expected `latest` or the number of an epoch, got `{text}`")),
        }
    }
}

/// A checkpoint that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Hash of its manifest.
    pub hash: Hash,
    /// The manifest, whose parts fit each other.
    pub manifest: Manifest,
}

/// Why a checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is none, or not this one.
    #[error("expected {expected} in the mirror, got {got}")]
    None {
        /// What was asked for.
        expected: String,
        /// What is there.
        got: String,
    },
    /// The store's troubles, and bytes of another hash.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// The manifest is none.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The state of a stage does not fit the spec.
    #[error("stage {stage}: {source}")]
    State {
        /// Which stage.
        stage: u16,
        /// What is wrong.
        source: StateError,
    },
    /// The moments of an inner optimizer do not fit the spec.
    #[error("moments of stage {stage}: {source}")]
    Moments {
        /// Which stage.
        stage: u16,
        /// What is wrong.
        source: MomentsError,
    },
    /// The files cannot be written.
    #[error(transparent)]
    Files(#[from] CheckpointError),
}

/// What was verified of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Blobs read.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Miners whose inner optimizer's moments are among them.
    pub moments: u64,
    /// Miners whose moments are named and not there: they said that they had brought them.
    pub moments_missing: u64,
}

/// Finds a checkpoint. Of several manifests of an epoch, which runs leave that were resumed from an earlier one, the latest
/// one's run goes first.
///
/// # Errors
/// When it is not there or cannot be read.
pub async fn find(mirror: &Mirror, which: Which) -> Result<Found, ReadError> {
    let latest = mirror.latest().await?.map(|(latest, _)| latest);
    let listed = || async {
        let epochs = mirror.manifests().await?.into_iter().map(|(epoch, _)| epoch.to_string());
        let epochs: Vec<String> = epochs.collect();
        let text = if epochs.is_empty() {
            "none".to_owned()
        } else {
            format!("those of epochs {}", epochs.join(", "))
        };
        Ok::<_, ReadError>(text)
    };
    match (which, latest) {
        (Which::Latest, Some(latest)) => read(mirror, latest.epoch, Hash(latest.manifest)).await,
        (Which::Latest, None) => {
            Err(ReadError::None { expected: "a checkpoint".to_owned(), got: listed().await? })
        }
        (Which::Epoch(epoch), latest) => {
            let mut found = Vec::new();
            for (_, hash) in mirror.manifests().await?.into_iter().filter(|(of, _)| *of == epoch) {
                found.push(read(mirror, epoch, Hash(hash)).await?);
            }
            let run = latest.map(|latest| latest.run);
            let own = found.iter().position(|found| Some(found.manifest.run.0) == run).unwrap_or(0);
            if found.is_empty() {
                let expected = format!("the checkpoint of epoch {epoch}");
                return Err(ReadError::None { expected, got: listed().await? });
            }
            Ok(found.swap_remove(own))
        }
    }
}

async fn read(mirror: &Mirror, epoch: u32, hash: Hash) -> Result<Found, ReadError> {
    let bytes = mirror.manifest(epoch, hash.0, MANIFEST_BYTES_MAX).await?;
    Ok(Found { hash, manifest: Manifest::from_bytes(&bytes)? })
}

/// All checkpoints, oldest first; those whose manifest cannot be read, with the reason.
///
/// # Errors
/// The store's troubles.
pub async fn all(mirror: &Mirror) -> Result<Vec<(u32, Hash, Result<Manifest, ReadError>)>, ReadError> {
    let mut listed = Vec::new();
    for (epoch, hash) in mirror.manifests().await? {
        let found = read(mirror, epoch, Hash(hash)).await;
        listed.push((epoch, Hash(hash), found.map(|found| found.manifest)));
    }
    Ok(listed)
}

/// Reads every blob of a checkpoint and checks that they make up states of the run's stages, with the weights named. Moments that
/// are not there are counted: a run goes on without them.
///
/// # Errors
/// The first thing found wrong.
pub async fn verify(mirror: &Mirror, manifest: &Manifest) -> Result<Verified, ReadError> {
    let spec = manifest.spec()?;
    let mut verified = Verified::default();
    for offer in manifest.offers() {
        let (_, read) = state(mirror, &spec, &offer).await?;
        verified.blobs += read.blobs;
        verified.bytes += read.bytes;
    }
    for (stage, entry) in manifest.moments() {
        match moments(mirror, &spec, stage, entry.hash).await {
            Ok(moments) => {
                verified.blobs += 1;
                verified.bytes += moments.to_bytes().len() as u64;
                verified.moments += 1;
            }
            Err(ReadError::Mirror(MirrorError::Missing { .. })) => verified.moments_missing += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(verified)
}

/// Writes a checkpoint into `folder` as safetensors: for each stage its weights and, if it has moments, the outer
/// optimizer's; those of inner optimizers in a folder below `inner` for each miner whose are there; and the whole model. Returns the
/// files.
///
/// # Errors
/// What is wrong with the checkpoint, or that a file cannot be written. Files are whole or not there.
pub async fn pull(mirror: &Mirror, manifest: &Manifest, folder: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let spec = manifest.spec()?;
    let model = bridge::model_config(&spec);
    let mut files = Vec::new();
    for offer in manifest.offers() {
        let ((weights, outer), _) = state(mirror, &spec, &offer).await?;
        let stage = Some(offer.stage.as_usize());
        let version = u64::from(offer.version.0);
        files.push(Checkpoint { model: model.clone(), stage, version, weights }.save(folder)?);
        if let OuterState::AdamW(moments) = outer {
            files.push(checkpoint::save_optimizer(folder, &model, offer.stage.as_usize(), &moments)?);
        }
    }
    for (stage, entry) in manifest.moments() {
        match moments(mirror, &spec, stage, entry.hash).await {
            Ok(moments) => {
                let folder = folder.join("inner").join(entry.peer.to_string());
                files.push(checkpoint::save_optimizer(&folder, &model, stage.as_usize(), &moments)?);
            }
            Err(ReadError::Mirror(MirrorError::Missing { .. })) => {}
            Err(error) => return Err(error),
        }
    }
    files.push(checkpoint::assemble(folder)?);
    Ok(files)
}

/// The moments of `peer` that go with the checkpoint which `spec`'s run goes on from, and their stage; nothing if the run starts anew,
/// or the checkpoint has none of this peer.
///
/// # Errors
/// They are not there, or do not fit.
pub async fn moments_of(
    mirror: &Mirror,
    spec: &RunSpec,
    peer: PeerId,
) -> Result<Option<(StageIndex, OptimizerState)>, ReadError> {
    match spec.start.moments_of(peer) {
        Some(saved) => Ok(Some((saved.stage, moments(mirror, spec, saved.stage, saved.hash).await?))),
        None => Ok(None),
    }
}

/// Moments of one stage.
async fn moments(
    mirror: &Mirror,
    spec: &RunSpec,
    stage: StageIndex,
    hash: Hash,
) -> Result<OptimizerState, ReadError> {
    let parameters = bridge::model_config(spec).parameter_count(stage.as_usize());
    let bytes = mirror.get(hash.0, bytes_max(parameters) as u64).await?;
    OptimizerState::from_bytes(&bytes, parameters)
        .map_err(|source| ReadError::Moments { stage: stage.0, source })
}

/// The state of one stage.
async fn state(
    mirror: &Mirror,
    spec: &RunSpec,
    offer: &StateOffer,
) -> Result<((Vec<f32>, OuterState), Verified), ReadError> {
    let mut bytes = Vec::new();
    for part in &offer.parts {
        bytes.extend_from_slice(&mirror.get(part.0, PARTITION_BYTES_MAX as u64).await?);
    }
    let (blobs, length) = (offer.parts.len() as u64, bytes.len() as u64);
    let verified = Verified { blobs, bytes: length, ..Verified::default() };
    let state = read_state(spec, offer.stage, &bytes, offer.weights);
    Ok((state.map_err(|source| ReadError::State { stage: offer.stage.0, source })?, verified))
}
