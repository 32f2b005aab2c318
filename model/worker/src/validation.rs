//! What every model of a run is measured on, and how.

use iota_model::data::Corpus;
use iota_model::{EngineError, StageEngine, StageInput, TokenBatch};
use iota_protocol::RunSpec;

/// Validation batches of one measurement. With the built-in spec: 32 × 8 windows of 128 tokens, whose standard
/// error is about a hundredth of a nat.
const VALIDATION_BATCHES: usize = 32;

/// The batches that every model of the run is measured on.
#[must_use]
pub fn validation_batches(spec: &RunSpec, corpus: &Corpus) -> Vec<TokenBatch> {
    corpus.validation_batches(VALIDATION_BATCHES, spec.training.sequences_per_sample as usize)
}

/// Mean loss of `engine`, a whole model, over all tokens of `batches`, in nats per token.
///
/// # Errors
/// The device failed, or the engine holds only a stage.
pub fn mean_loss(engine: &mut dyn StageEngine, batches: &[TokenBatch]) -> Result<f64, EngineError> {
    let (mut sum, mut tokens) = (0.0, 0.0);
    for batch in batches {
        #[expect(clippy::cast_precision_loss, reason = "tokens of a batch are far below 2^52")]
        let weight = batch.targets.len() as f64;
        sum += weight * engine.evaluate_loss(StageInput::Tokens(batch.clone()), batch)?;
        tokens += weight;
    }
    Ok(sum / tokens)
}
