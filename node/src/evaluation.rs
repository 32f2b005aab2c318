//! A whole model in one process: loaded from a checkpoint, measured on text, sampled.

use std::fs;
use std::path::Path;

use iota_model::checkpoint::{Checkpoint, CheckpointError};
use iota_model::data::Corpus;
use iota_model::generate::{GenerateError, GenerateOptions, generate};
use iota_model::tokenizer::ByteTokenizer;
use iota_model::{
    DType, Device, EngineConfig, EngineError, MatmulPrecision, ModelConfig, StageEngine, StageSelect,
    TokenBatch, build_engine,
};
use iota_protocol::RunSpec;
pub use iota_worker::validation::validation_batches;
use serde::{Deserialize, Serialize};

use crate::error::CliError;

/// Windows of one batch when a text is measured.
const EVAL_SEQUENCES: usize = 8;

/// Mean cross-entropy of a text under a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loss {
    /// Nats per token.
    pub nats: f64,
    /// Bits per byte of text; a token is a byte.
    pub bits_per_byte: f64,
}

impl Loss {
    /// The loss of `nats` per token.
    #[must_use]
    pub fn from_nats(nats: f64) -> Self {
        Self { nats, bits_per_byte: nats / std::f64::consts::LN_2 }
    }
}

/// A whole model on a device.
pub struct Whole {
    model: ModelConfig,
    engine: Box<dyn StageEngine>,
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Whole").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Whole {
    /// Loads the model in the folder `checkpoint`, from its stages or from one file.
    ///
    /// # Errors
    /// The files cannot be read or are no checkpoint, or the device is not there.
    pub fn open(checkpoint: &Path, device: Device) -> Result<Self, CliError> {
        let Checkpoint { model, weights, .. } =
            Checkpoint::load_model(checkpoint).map_err(|e| unusable(checkpoint, e))?;
        let config = EngineConfig {
            model: model.clone(),
            stage: StageSelect::Whole,
            activation_dtype: DType::F32,
            matmul_precision: MatmulPrecision::High,
            adamw: iota_model::AdamWConfig::default(),
            clip_norm: f64::INFINITY,
        };
        let mut engine = build(&config, device)?;
        engine.load_weights(&weights).map_err(bug)?;
        Ok(Self { model, engine })
    }

    /// The loss on a text file, cut into windows that do not overlap, and the number of tokens.
    ///
    /// # Errors
    /// The file cannot be read or is shorter than a window.
    pub fn loss_of_file(&mut self, path: &Path) -> Result<(Loss, usize), CliError> {
        let bytes = fs::read(path).map_err(|error| CliError::file("read", path, error))?;
        let batches = windows(&bytes, self.model.context);
        if batches.is_empty() {
            return Err(CliError::Content {
                path: path.to_owned(),
                expected: format!("a text of at least {} bytes", self.model.context + 1),
                got: format!("{} bytes", bytes.len()),
            });
        }
        let tokens = batches.iter().map(|batch| batch.targets.len()).sum();
        Ok((mean_loss(self.engine.as_mut(), &batches)?, tokens))
    }

    /// The loss on the run's validation batches.
    ///
    /// # Errors
    /// The device failed.
    pub fn validation_loss(&mut self, spec: &RunSpec, corpus: &Corpus) -> Result<Loss, CliError> {
        mean_loss(self.engine.as_mut(), &validation_batches(spec, corpus))
    }

    /// The text that continues `prompt`.
    ///
    /// # Errors
    /// The prompt is empty, an option is out of range, or the device failed.
    pub fn continue_text(&mut self, prompt: &str, options: &GenerateOptions) -> Result<String, CliError> {
        let tokens =
            generate(self.engine.as_mut(), &ByteTokenizer.encode(prompt), options).map_err(|error| {
                let refuse = |option: &str, expected: &str, got: String| CliError::Option {
                    option: option.to_owned(),
                    expected: expected.to_owned(),
                    got,
                };
                match error {
                    GenerateError::EmptyPrompt => {
                        refuse("--prompt", "at least one character", "none".to_owned())
                    }
                    GenerateError::Option { what, got, expected } => {
                        refuse(&format!("--{}", what.replace(' ', "-")), expected, got.to_string())
                    }
                    GenerateError::Engine(error) => bug(error),
                }
            })?;
        Ok(ByteTokenizer.decode(&tokens))
    }
}

/// Says why a checkpoint cannot be loaded: not there, or not what it should be.
pub(crate) fn unusable(checkpoint: &Path, error: CheckpointError) -> CliError {
    match error {
        CheckpointError::Io { path, source, .. } => CliError::file("read", path, source),
        other => CliError::Content {
            path: checkpoint.to_owned(),
            expected: "a checkpoint of a whole model".to_owned(),
            got: other.to_string(),
        },
    }
}

/// Builds an engine, telling a device that is not there from a bug.
///
/// # Errors
/// The device is not compiled in, absent or broken.
pub fn build(config: &EngineConfig, device: Device) -> Result<Box<dyn StageEngine>, CliError> {
    build_engine(config, &device).map_err(|error| match error {
        EngineError::Device(reason) => CliError::Device { reason: reason.to_string() },
        other => bug(other),
    })
}

/// Tokens that one sample trains on.
#[must_use]
pub fn tokens_per_sample(spec: &RunSpec) -> u64 {
    u64::from(spec.training.sequences_per_sample) * u64::from(spec.model.context)
}

/// Mean loss of `engine`, a whole model, over all tokens of `batches`.
///
/// # Errors
/// The device failed.
pub fn mean_loss(engine: &mut dyn StageEngine, batches: &[TokenBatch]) -> Result<Loss, CliError> {
    iota_worker::validation::mean_loss(engine, batches).map(Loss::from_nats).map_err(bug)
}

/// Cuts `bytes` into windows of `context` tokens and their successors; a rest shorter than a window is left out.
fn windows(bytes: &[u8], context: usize) -> Vec<TokenBatch> {
    let ids: Vec<u32> = bytes.iter().map(|&byte| u32::from(byte)).collect();
    let starts: Vec<usize> =
        (0..ids.len().saturating_sub(1) / context).map(|window| window * context).collect();
    let batch = |starts: &[usize]| {
        let part = |shift: usize| {
            starts.iter().flat_map(|&start| &ids[start + shift..start + shift + context]).copied().collect()
        };
        TokenBatch { inputs: part(0), targets: part(1), sequences: starts.len(), context }
    };
    starts.chunks(EVAL_SEQUENCES).map(batch).collect()
}

/// An engine failure that no input of the user explains.
pub(crate) fn bug(error: impl std::fmt::Display) -> CliError {
    CliError::Bug(format!("compute: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_tile_the_text_and_each_target_follows_its_input() {
        let text: Vec<u8> = (0..32).collect();
        let batches = windows(&text, 3);
        assert_eq!(batches.iter().map(|batch| batch.sequences).collect::<Vec<_>>(), [8, 2]);
        let inputs: Vec<u32> = batches.iter().flat_map(|batch| batch.inputs.clone()).collect();
        let targets: Vec<u32> = batches.iter().flat_map(|batch| batch.targets.clone()).collect();
        assert_eq!(inputs, (0..30).collect::<Vec<_>>());
        assert_eq!(targets, (1..31).collect::<Vec<_>>());
        assert!(windows(&text[..3], 3).is_empty());
    }
}
