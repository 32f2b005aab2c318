//! The corpus that needs no file.

use iota_model::data::{Corpus, CorpusError};
use iota_protocol::RunSpec;

/// Generates the built-in corpus of `spec`: everyone who has the spec has the same text.
///
/// # Errors
/// The text is too short for its windows.
///
/// # Panics
/// If the spec asks for more bytes than can be addressed.
pub fn builtin_corpus(spec: &RunSpec) -> Result<Corpus, CorpusError> {
    let Ok(bytes) = usize::try_from(spec.data.builtin_bytes.0) else {
        panic!("a corpus of {} fits no memory here", spec.data.builtin_bytes);
    };
    let text = iota_fixtures::corpus::generate(spec.seed, bytes);
    Corpus::from_bytes(text.into_bytes(), spec.model.context as usize, spec.data.validation_fraction)
}
