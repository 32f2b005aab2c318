//! The spec of a run that goes on from a checkpoint.

use iota_protocol::spec::StartSpec;
use iota_protocol::{Hash, RunSpec};

use super::manifest::ManifestError;
use super::read::Found;

/// Why a run cannot go on from a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The spec in the manifest is none.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// It has trained all its epochs.
    #[error(
        "the checkpoint is of epoch {epoch}, and the run has {epochs} epochs: give it more with `--epochs`"
    )]
    Finished {
        /// Of the checkpoint.
        epoch: u32,
        /// Of the run.
        epochs: u32,
    },
}

/// The spec of the run that goes on from `found` in the mirror at `url`, with `epochs` in all if that is to change. Its
/// candidates are still those of the run that it goes on from.
///
/// # Errors
/// When there is nothing to go on with.
pub fn resumed(found: &Found, url: &str, epochs: Option<u32>) -> Result<RunSpec, ResumeError> {
    let mut spec = found.manifest.spec()?;
    let lineage = spec.lineage();
    spec.training.epochs = epochs.unwrap_or(spec.training.epochs);
    let epoch = found.manifest.epoch;
    if epoch >= spec.training.epochs {
        return Err(ResumeError::Finished { epoch, epochs: spec.training.epochs });
    }
    url.clone_into(&mut spec.mirror.url);
    let stages: Vec<Hash> = found.manifest.stages.iter().map(|stage| stage.offer).collect();
    let saved = found.manifest.moments().map(|(stage, entry)| entry.saved(stage));
    let moments = saved.collect();
    spec.start = StartSpec { epoch, lineage: Some(lineage), checkpoint: Some(found.hash), stages, moments };
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoints::manifest::tests::manifest;

    fn found() -> Found {
        let (manifest, _) = manifest("s3://bucket/run");
        Found { hash: Hash::of(&manifest.to_bytes()), manifest }
    }

    #[test]
    fn a_resumed_run_is_another_run_of_the_same_lineage() {
        let spec = resumed(&found(), "file:///copy", None).expect("a spec");
        spec.validate().expect("a valid spec");
        assert_ne!(spec.run_id(), found().manifest.run);
        assert_eq!(spec.lineage(), found().manifest.spec().expect("a spec").lineage());
        assert_eq!((spec.start.epoch, spec.start.checkpoint), (8, Some(found().hash)));
        assert_eq!(spec.mirror.url, "file:///copy");
        assert_eq!(spec.start.moments.len(), 1, "of the one miner in the manifest");
    }

    #[test]
    fn a_finished_run_goes_on_only_with_more_epochs() {
        let mut finished = found();
        finished.manifest.epoch = 24;
        let refused = resumed(&finished, "file:///copy", None).expect_err("finished").to_string();
        assert!(refused.contains("epoch 24") && refused.contains("24 epochs"), "{refused}");
        assert!(resumed(&finished, "file:///copy", Some(30)).is_ok());
    }
}
