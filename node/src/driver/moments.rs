//! The inner optimizer's state on disk: a folder for each version, of which the two newest stay. The newest may be one
//! whose weights were not noted yet when the process ended; it starts again from the version before then.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iota_model::OptimizerState;
use iota_model::checkpoint::{load_optimizer, optimizer_file, save_optimizer};
use iota_protocol::{Epoch, RunSpec, StageIndex};
use iota_worker::bridge::model_config;

/// Versions whose moments stay.
const VERSIONS_KEPT: usize = 2;

/// Where a process keeps its moments.
#[derive(Clone, Debug)]
pub(crate) struct MomentsFolder {
    folder: PathBuf,
    spec: Arc<RunSpec>,
}

impl MomentsFolder {
    /// Moments below `data_dir`.
    pub(crate) fn new(data_dir: &Path, spec: Arc<RunSpec>) -> Self {
        Self { folder: data_dir.join("moments"), spec }
    }

    /// Writes the moments of a version, and lets go of those before the last.
    ///
    /// # Errors
    /// Why they could not be written.
    pub(crate) fn keep(
        &self,
        stage: StageIndex,
        version: Epoch,
        moments: &OptimizerState,
    ) -> Result<(), String> {
        let folder = self.of(version);
        let written = fs::create_dir_all(&folder).map_err(|error| error.to_string()).and_then(|()| {
            let model = model_config(&self.spec);
            save_optimizer(&folder, &model, stage.as_usize(), moments).map_err(|error| error.to_string())
        });
        written.map_err(|error| format!("keep moments in {}: {error}", folder.display()))?;
        let mut versions = self.versions();
        versions.sort_unstable();
        for old in versions.iter().rev().skip(VERSIONS_KEPT) {
            // What stays now goes another time.
            let _ = fs::remove_dir_all(self.of(*old));
        }
        Ok(())
    }

    /// The moments of a version, if they are here and whole.
    pub(super) fn read(&self, stage: StageIndex, version: Epoch) -> Option<OptimizerState> {
        let file = self.of(version).join(optimizer_file(stage.as_usize()));
        if !file.exists() {
            return None;
        }
        let read = load_optimizer(&file, &model_config(&self.spec), stage.as_usize());
        read.inspect_err(|error| tracing::warn!(%error, "inner optimizer starts anew")).ok()
    }

    /// Whether none were ever kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.versions().is_empty()
    }

    fn of(&self, version: Epoch) -> PathBuf {
        self.folder.join(version.0.to_string())
    }

    fn versions(&self) -> Vec<Epoch> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().filter_map(Result::ok);
        entries.filter_map(|entry| Some(Epoch(entry.file_name().to_str()?.parse().ok()?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAGE: StageIndex = StageIndex(0);

    fn moments(spec: &RunSpec, step: u64) -> OptimizerState {
        let parameters = model_config(spec).parameter_count(0);
        OptimizerState { step, first_moment: vec![-0.5; parameters], ..OptimizerState::zeros(parameters) }
    }

    #[test]
    fn the_two_newest_versions_stay_and_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let spec = Arc::new(RunSpec::default());
        let kept = MomentsFolder::new(dir.path(), Arc::clone(&spec));
        for (version, step) in [(8, 1), (9, 2), (12, 3)] {
            kept.keep(STAGE, Epoch(version), &moments(&spec, step)).unwrap();
        }
        assert_eq!(kept.read(STAGE, Epoch(8)), None);
        assert_eq!(kept.read(STAGE, Epoch(9)), Some(moments(&spec, 2)));
        assert_eq!(kept.read(STAGE, Epoch(12)), Some(moments(&spec, 3)));
        assert_eq!(kept.read(StageIndex(1), Epoch(12)), None, "another stage");
        let file = dir.path().join("moments/12").join(optimizer_file(0));
        let mut bytes = fs::read(&file).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&file, bytes).unwrap();
        assert_eq!(kept.read(STAGE, Epoch(12)), None);
    }
}
