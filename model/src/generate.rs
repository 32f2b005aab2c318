//! Text from a trained model, one token at a time.

use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use crate::engine::{EngineError, StageEngine, StageInput, TokenBatch};

/// Describes how tokens are picked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Tokens to add.
    pub tokens: usize,
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Picks among this many likeliest tokens only; none picks among all.
    pub top_k: Option<usize>,
    /// Seed of the draws: same seed, weights and machine, same text.
    pub seed: u64,
}

/// Says why nothing was generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// There is nothing to continue.
    #[error("the prompt is empty, expected at least one token")]
    EmptyPrompt,
    /// An option is out of range.
    #[error("{what} is {got}, expected {expected}")]
    Option {
        /// Which option.
        what: &'static str,
        /// Its value.
        got: f64,
        /// The range, in words.
        expected: &'static str,
    },
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Continues a prompt and returns the new tokens.
///
/// The model sees the last [`crate::StageInfo::context`] tokens at each step; nothing is cached between
/// steps.
///
/// # Errors
/// When the prompt is empty, an option is out of range, or the engine is not a whole model.
pub fn generate(
    engine: &mut dyn StageEngine,
    prompt: &[u32],
    options: &GenerateOptions,
) -> Result<Vec<u32>, GenerateError> {
    check(prompt, options)?;
    let context = engine.info().context;
    let mut stream = ChaCha20Rng::seed_from_u64(options.seed);
    let mut tokens = prompt.to_vec();
    for _ in 0..options.tokens {
        let window = tokens[tokens.len().saturating_sub(context)..].to_vec();
        let length = window.len();
        let batch = TokenBatch { inputs: window, targets: Vec::new(), sequences: 1, context: length };
        let logits = engine.logits(StageInput::Tokens(batch))?;
        tokens.push(pick(&logits, options, &mut stream));
    }
    Ok(tokens.split_off(prompt.len()))
}

fn check(prompt: &[u32], options: &GenerateOptions) -> Result<(), GenerateError> {
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt);
    }
    let got = options.temperature;
    if !(got.is_finite() && got >= 0.0) {
        return Err(GenerateError::Option {
            what: "temperature",
            got,
            expected: "a finite number, at least 0",
        });
    }
    if options.top_k == Some(0) {
        return Err(GenerateError::Option { what: "top k", got: 0.0, expected: "at least 1" });
    }
    Ok(())
}

/// Picks a token by its logit.
fn pick(logits: &[f32], options: &GenerateOptions, stream: &mut ChaCha20Rng) -> u32 {
    let mut ranked: Vec<(u32, f64)> = (0..).zip(logits.iter().map(|logit| f64::from(*logit))).collect();
    // Likeliest first; the sort is stable, so equal logits keep the order of their ids.
    ranked.sort_by(|left, right| right.1.total_cmp(&left.1));
    ranked.truncate(options.top_k.unwrap_or(ranked.len()));
    let (likeliest, highest) = ranked[0];
    if options.temperature == 0.0 {
        return likeliest;
    }
    let weight = |logit: f64| ((logit - highest) / options.temperature).exp();
    let total: f64 = ranked.iter().map(|(_, logit)| weight(*logit)).sum();
    // 53 random bits make a number in 0..1.
    let mut rest = (stream.next_u64() >> 11) as f64 / (1_u64 << 53) as f64 * total;
    for (token, logit) in &ranked {
        rest -= weight(*logit);
        if rest < 0.0 {
            return *token;
        }
    }
    likeliest
}
