//! Weights on disk as safetensors, one file per stage or one for the model.
//!
//! Names and orientation are those of published Llama checkpoints (`[out, in]` matrices), so an assembled
//! model without bottlenecks loads elsewhere. The metadata key `iota` holds a JSON object with the model
//! config, the stage, the version and the hash of the flat weights; `format` is there because other loaders
//! insist on it. The header's key order is not fixed, so two files of equal weights may differ in bytes:
//! compare the hash.
//!
//! A file is written beside its final name, synced and renamed, so a reader sees the old one or the new one.

mod disk;

use std::{
    fs,
    path::{Path, PathBuf},
};

use safetensors::SafeTensors;

use crate::{
    checkpoint::disk::{Header, from_disk, hex_hash, io_error, malformed, to_disk},
    config::{ConfigError, ModelConfig},
    flat::{Parameter, StageLayout},
    optimizer::OptimizerState,
};

/// Name of the file of a whole model.
pub const MODEL_FILE: &str = "model.safetensors";

/// Weights of one stage or of the whole model, with what identifies them.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The network.
    pub model: ModelConfig,
    /// The stage; none for the whole model.
    pub stage: Option<usize>,
    /// Version of the weights: outer steps since the start, the lowest of the stages for a whole model.
    pub version: u64,
    /// Flat weights in layout order; a whole model concatenates its stages.
    pub weights: Vec<f32>,
}

/// Says why a checkpoint was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("checkpoint {path} cannot be {action}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// `read` or `written`.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The bytes are not safetensors, or lack our metadata.
    #[error("checkpoint {path} is malformed: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The model config in the metadata breaks a rule.
    #[error("checkpoint {path} holds a broken config: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The rule.
        source: ConfigError,
    },
    /// A tensor is missing or has another shape or type.
    #[error("checkpoint {path} has {name} as {got}, expected {expected}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is there.
        got: String,
        /// What the config asks for.
        expected: String,
    },
    /// The weights are not those that were saved.
    #[error("checkpoint {path} has weights of hash {got}, expected {expected}")]
    Hash {
        /// The file.
        path: PathBuf,
        /// Hash of the weights read.
        got: String,
        /// Hash in the metadata.
        expected: String,
    },
    /// Weights or moments in memory do not fit the model.
    #[error("{what} has {got} elements, expected {expected}")]
    Length {
        /// Which vector.
        what: &'static str,
        /// Its length.
        got: usize,
        /// Parameters of the model or stage.
        expected: usize,
    },
    /// The file is of another model or part than the caller's.
    #[error("checkpoint {path} is of {got}, expected {expected}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What it holds.
        got: String,
        /// What was asked for.
        expected: String,
    },
}

/// Returns the name of a stage's file.
#[must_use]
pub fn stage_file(stage: usize) -> String {
    format!("stage-{stage}.safetensors")
}

/// Returns the name of the file of a stage's optimizer state.
#[must_use]
pub fn optimizer_file(stage: usize) -> String {
    format!("stage-{stage}.optimizer.safetensors")
}

impl Checkpoint {
    /// Writes the checkpoint into a folder and returns the file: [`stage_file`] or [`MODEL_FILE`].
    ///
    /// # Errors
    /// When the config or stage is broken, the weights have another length, or the file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<PathBuf, CheckpointError> {
        let path = folder.join(self.stage.map_or(MODEL_FILE.to_owned(), stage_file));
        let layout = layout_of(&path, &self.model, self.stage)?;
        check_length("weights", &self.weights, &layout)?;
        let tensors = layout
            .iter()
            .map(|parameter| to_disk(parameter.path.clone(), parameter, &self.weights))
            .collect();
        self.header().write(&path, tensors)?;
        Ok(path)
    }

    /// Reads one file and checks names, shapes and hash against the config in its metadata.
    ///
    /// # Errors
    /// When the file cannot be read or is not what it says.
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let bytes = fs::read(path).map_err(|source| io_error(path, "read", source))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| malformed(path, &error))?;
        let header = Header::read(path, &bytes)?;
        let layout = layout_of(path, &header.model, header.stage)?;
        let mut weights =
            Vec::with_capacity(layout.last().map_or(0, |parameter| parameter.range.end).min(bytes.len()));
        for parameter in &layout {
            weights.extend(from_disk(path, &tensors, &parameter.path, parameter)?);
        }
        header.check_hash(path, &weights)?;
        Ok(Self { model: header.model, stage: header.stage, version: header.version, weights })
    }

    /// Reads the whole model from a folder: from its stages when all are there, else from [`MODEL_FILE`].
    ///
    /// # Errors
    /// When neither is there, or the stages are not of one model.
    pub fn load_folder(folder: &Path) -> Result<Self, CheckpointError> {
        let first = folder.join(stage_file(0));
        if !first.exists() {
            return Self::load(&folder.join(MODEL_FILE));
        }
        let mut whole = Self::load(&first)?;
        let files: Vec<PathBuf> =
            (1..whole.model.stages).map(|stage| folder.join(stage_file(stage))).collect();
        let model_file = folder.join(MODEL_FILE);
        if !files.iter().all(|file| file.exists()) && model_file.exists() {
            return Self::load(&model_file);
        }
        whole.expect(&first, &whole.model, Some(0))?;
        whole.stage = None;
        for (stage, file) in (1..).zip(files) {
            let next = Self::load(&file)?;
            next.expect(&file, &whole.model, Some(stage))?;
            whole.version = whole.version.min(next.version);
            whole.weights.extend(next.weights);
        }
        Ok(whole)
    }

    /// Reads the whole model from a folder, or from the file of a whole model.
    ///
    /// # Errors
    /// As [`Checkpoint::load`] and [`Checkpoint::load_folder`], or when the file is of one stage only.
    pub fn load_model(path: &Path) -> Result<Self, CheckpointError> {
        let whole = if path.is_dir() { Self::load_folder(path)? } else { Self::load(path)? };
        whole.expect(path, &whole.model, None)?;
        Ok(whole)
    }

    /// Returns the part of one stage of a whole model.
    ///
    /// # Panics
    /// When this is the checkpoint of one stage, or the stage does not exist.
    #[must_use]
    pub fn stage_weights(&self, stage: usize) -> &[f32] {
        assert!(self.stage.is_none(), "only a whole model has several stages");
        let start: usize = (0..stage).map(|before| self.model.parameter_count(before)).sum();
        &self.weights[start..start + self.model.parameter_count(stage)]
    }

    fn expect(&self, path: &Path, model: &ModelConfig, stage: Option<usize>) -> Result<(), CheckpointError> {
        let part = |stage: Option<usize>| {
            stage.map_or("the whole model".to_owned(), |stage| format!("stage {stage}"))
        };
        if self.model != *model {
            let (got, expected) = (format!("{:?}", self.model), format!("{model:?}"));
            return Err(CheckpointError::Mismatch { path: path.to_owned(), got, expected });
        }
        if self.stage != stage {
            let (got, expected) = (part(self.stage), part(stage));
            return Err(CheckpointError::Mismatch { path: path.to_owned(), got, expected });
        }
        Ok(())
    }

    fn header(&self) -> Header {
        Header {
            model: self.model.clone(),
            stage: self.stage,
            version: self.version,
            hash: hex_hash(&self.weights),
        }
    }
}

/// Joins the stage files of a folder into [`MODEL_FILE`] and returns its path.
///
/// # Errors
/// When a stage is missing or the stages are not of one model.
pub fn assemble(folder: &Path) -> Result<PathBuf, CheckpointError> {
    Checkpoint::load_folder(folder)?.save(folder)
}

/// Writes a stage's optimizer state beside its weights and returns the file.
///
/// # Errors
/// When the state does not fit the stage or the file cannot be written.
pub fn save_optimizer(
    folder: &Path,
    model: &ModelConfig,
    stage: usize,
    state: &OptimizerState,
) -> Result<PathBuf, CheckpointError> {
    let path = folder.join(optimizer_file(stage));
    let layout = layout_of(&path, model, Some(stage))?;
    check_length("first moment", &state.first_moment, &layout)?;
    check_length("second moment", &state.second_moment, &layout)?;
    let moments = [("first_moment", &state.first_moment), ("second_moment", &state.second_moment)];
    let tensors = moments
        .iter()
        .flat_map(|(kind, flat)| {
            layout.iter().map(move |parameter| to_disk(format!("{kind}.{}", parameter.path), parameter, flat))
        })
        .collect();
    let hash = hex_hash(&[state.first_moment.as_slice(), &state.second_moment].concat());
    Header { model: model.clone(), stage: Some(stage), version: state.step, hash }.write(&path, tensors)?;
    Ok(path)
}

/// Reads a stage's optimizer state; its step is the version in the file's metadata.
///
/// # Errors
/// When the file cannot be read or is of another model or stage.
pub fn load_optimizer(
    path: &Path,
    model: &ModelConfig,
    stage: usize,
) -> Result<OptimizerState, CheckpointError> {
    let bytes = fs::read(path).map_err(|source| io_error(path, "read", source))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| malformed(path, &error))?;
    let header = Header::read(path, &bytes)?;
    let identity =
        Checkpoint { model: header.model.clone(), stage: header.stage, version: 0, weights: Vec::new() };
    identity.expect(path, model, Some(stage))?;
    let layout = layout_of(path, model, Some(stage))?;
    let read = |kind: &str| -> Result<Vec<f32>, CheckpointError> {
        let mut flat = Vec::new();
        for parameter in &layout {
            flat.extend(from_disk(path, &tensors, &format!("{kind}.{}", parameter.path), parameter)?);
        }
        Ok(flat)
    };
    let (first_moment, second_moment) = (read("first_moment")?, read("second_moment")?);
    header.check_hash(path, &[first_moment.as_slice(), &second_moment].concat())?;
    Ok(OptimizerState { first_moment, second_moment, step: header.version })
}

/// Lists the parameters of a checkpoint in flat order.
fn layout_of(
    path: &Path,
    model: &ModelConfig,
    stage: Option<usize>,
) -> Result<Vec<Parameter>, CheckpointError> {
    model.validate().map_err(|source| CheckpointError::Config { path: path.to_owned(), source })?;
    match stage {
        Some(stage) if stage >= model.stages => {
            let (got, expected) = (format!("stage {stage}"), format!("a stage below {}", model.stages));
            Err(CheckpointError::Mismatch { path: path.to_owned(), got, expected })
        }
        Some(stage) => Ok(StageLayout::of(model, stage).parameters().to_vec()),
        None => Ok(StageLayout::concatenated(model, 0..model.stages)),
    }
}

fn check_length(what: &'static str, values: &[f32], layout: &[Parameter]) -> Result<(), CheckpointError> {
    let expected = layout.last().map_or(0, |parameter| parameter.range.end);
    if values.len() == expected {
        Ok(())
    } else {
        Err(CheckpointError::Length { what, got: values.len(), expected })
    }
}
