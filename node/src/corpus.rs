//! The corpus of a run: generated from its seed, or a file whose hash the spec names.

use std::path::Path;
use std::sync::Arc;

use iota_model::data::Corpus;
use iota_protocol::spec::DataSource;
use iota_protocol::{Hash, RunSpec};

use crate::error::CliError;

/// Opens the corpus of `spec`; `file` is the local copy of a corpus file.
///
/// # Errors
/// The spec says `file` and none is given, or its content is another one; or the text is too short.
pub fn open_corpus(spec: &RunSpec, file: Option<&Path>) -> Result<Arc<Corpus>, CliError> {
    match (spec.data.source, file) {
        (DataSource::Builtin, None) => builtin(spec),
        (DataSource::File, Some(path)) => from_file(spec, path),
        (DataSource::Builtin, Some(path)) => Err(CliError::Option {
            option: "--data".to_owned(),
            expected: "no file, since the spec says data.source = \"builtin\"".to_owned(),
            got: path.display().to_string(),
        }),
        (DataSource::File, None) => Err(CliError::Option {
            option: "--data".to_owned(),
            expected: "the corpus file, since the spec says data.source = \"file\"".to_owned(),
            got: "nothing".to_owned(),
        }),
    }
}

fn builtin(spec: &RunSpec) -> Result<Arc<Corpus>, CliError> {
    if usize::try_from(spec.data.builtin_bytes.0).is_err() {
        return Err(CliError::Option {
            option: "data.builtin_bytes".to_owned(),
            expected: "a size that fits this machine's memory".to_owned(),
            got: spec.data.builtin_bytes.to_string(),
        });
    }
    let corpus = iota_worker::corpus::builtin_corpus(spec);
    corpus.map(Arc::new).map_err(|error| CliError::Bug(format!("use the built-in corpus: {error}")))
}

/// Opens the file after checking that it is the one the spec names.
fn from_file(spec: &RunSpec, path: &Path) -> Result<Arc<Corpus>, CliError> {
    let got = hash_file(path)?;
    if let Some(expected) = spec.data.hash.filter(|expected| *expected != got) {
        let [expected, got] = [expected, got].map(|hash| format!("BLAKE3 {hash}"));
        return Err(CliError::Content { path: path.to_owned(), expected, got });
    }
    Corpus::open(path, spec.model.context as usize, spec.data.validation_fraction).map(Arc::new).map_err(
        |error| CliError::Content {
            path: path.to_owned(),
            expected: "a corpus".to_owned(),
            got: error.to_string(),
        },
    )
}

/// The hash that a spec names a file by.
///
/// # Errors
/// The file cannot be read.
pub fn hash_file(path: &Path) -> Result<Hash, CliError> {
    let mut hasher = blake3::Hasher::new();
    let file = std::fs::File::open(path).map_err(|error| CliError::file("read", path, error))?;
    hasher.update_reader(file).map_err(|error| CliError::file("read", path, error))?;
    Ok(Hash(*hasher.finalize().as_bytes()))
}
