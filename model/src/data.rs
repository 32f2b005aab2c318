//! Training data: windows of a byte corpus, chosen by number.
//!
//! Sample *i* of a run is a pure function of (seed, *i*, corpus), so peers that hold the same corpus need no
//! server to agree on who trains on what. The last part of the corpus is kept for validation and never
//! sampled.

use std::{
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use memmap2::Mmap;
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};

use crate::engine::TokenBatch;

/// Says why a corpus cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CorpusError {
    /// The file cannot be opened or mapped.
    #[error("corpus {path} cannot be read: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A part of the corpus is shorter than one window.
    #[error("the {part} part of the corpus has {got} bytes, expected at least {expected} (context + 1)")]
    TooSmall {
        /// `training` or `validation`.
        part: &'static str,
        /// Bytes it has.
        got: usize,
        /// Bytes of one window.
        expected: usize,
    },
    /// The share kept for validation is not in `0..1`.
    #[error("validation fraction is {got}, expected at least 0 and below 1")]
    Fraction {
        /// The share.
        got: f64,
    },
}

/// A byte corpus in memory or mapped from a file; clones share the bytes.
#[derive(Clone, Debug)]
pub struct Corpus {
    bytes: Arc<Source>,
    hash: Arc<OnceLock<[u8; 32]>>,
    context: usize,
    training: usize,
}

#[derive(Debug)]
enum Source {
    Memory(Vec<u8>),
    Mapped(Mmap),
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

impl Corpus {
    /// Takes bytes in memory, with windows of `context` tokens and the last `validation_fraction` kept apart.
    ///
    /// # Errors
    /// When the fraction is out of range or a part that is used is shorter than a window.
    pub fn from_bytes(bytes: Vec<u8>, context: usize, validation_fraction: f64) -> Result<Self, CorpusError> {
        Self::new(Source::Memory(bytes), context, validation_fraction)
    }

    /// Maps a file.
    ///
    /// # Errors
    /// When the file cannot be read, and as [`Corpus::from_bytes`].
    pub fn open(path: &Path, context: usize, validation_fraction: f64) -> Result<Self, CorpusError> {
        let map = File::open(path).and_then(|file| map_file(&file));
        let map = map.map_err(|source| CorpusError::Unreadable { path: path.to_owned(), source })?;
        Self::new(Source::Mapped(map), context, validation_fraction)
    }

    fn new(source: Source, context: usize, validation_fraction: f64) -> Result<Self, CorpusError> {
        if !(0.0..1.0).contains(&validation_fraction) {
            return Err(CorpusError::Fraction { got: validation_fraction });
        }
        let length = source.bytes().len();
        let validation = share(length, validation_fraction);
        let training = length - validation;
        let expected = context.saturating_add(1);
        if training < expected {
            return Err(CorpusError::TooSmall { part: "training", got: training, expected });
        }
        if validation_fraction > 0.0 && validation < expected {
            return Err(CorpusError::TooSmall { part: "validation", got: validation, expected });
        }
        Ok(Self { bytes: Arc::new(source), hash: Arc::default(), context, training })
    }

    /// Returns the bytes of both parts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.bytes().len()
    }

    /// Says whether there are no bytes; no corpus that was built is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes that are sampled for training.
    #[must_use]
    pub fn training_len(&self) -> usize {
        self.training
    }

    /// Returns the BLAKE3 hash of all bytes; the first call reads them.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        *self.hash.get_or_init(|| *blake3::hash(self.bytes.bytes()).as_bytes())
    }

    /// Returns training sample `index`: `sequences` windows at places drawn from a ChaCha20 stream keyed by
    /// `BLAKE3("iota-model sample" ‖ seed ‖ index)`. Windows may overlap; every start is equally likely up to
    /// 2⁻⁶⁴.
    #[must_use]
    pub fn sample(&self, seed: u64, index: u64, sequences: usize) -> TokenBatch {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"iota-model sample").update(&seed.to_le_bytes()).update(&index.to_le_bytes());
        let mut stream = ChaCha20Rng::from_seed(*hasher.finalize().as_bytes());
        let starts = self.training - self.context;
        let windows = (0..sequences).map(|_| scale(stream.next_u64(), starts));
        self.batch(windows)
    }

    /// Returns `batches` batches of evenly spaced validation windows; none when nothing was kept apart.
    #[must_use]
    pub fn validation_batches(&self, batches: usize, sequences: usize) -> Vec<TokenBatch> {
        let part: Range<usize> = self.training..self.len();
        let windows = batches.saturating_mul(sequences);
        if part.len() <= self.context || windows == 0 {
            return Vec::new();
        }
        let last = part.len() - self.context - 1;
        // The first window starts the part, the last one ends it.
        let start = |window: usize| part.start + last * window / (windows - 1).max(1);
        (0..batches)
            .map(|batch| self.batch((batch * sequences..(batch + 1) * sequences).map(start)))
            .collect()
    }

    fn batch(&self, starts: impl Iterator<Item = usize>) -> TokenBatch {
        let bytes = self.bytes.bytes();
        let mut batch =
            TokenBatch { inputs: Vec::new(), targets: Vec::new(), sequences: 0, context: self.context };
        for start in starts {
            let end = start + self.context;
            batch.inputs.extend(bytes[start..end].iter().copied().map(u32::from));
            batch.targets.extend(bytes[start + 1..=end].iter().copied().map(u32::from));
            batch.sequences += 1;
        }
        batch
    }
}

/// Returns the part of `length` that a fraction takes, rounded down.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the fraction is in 0..1, so the product is in 0..=length"
)]
fn share(length: usize, fraction: f64) -> usize {
    ((length as f64 * fraction) as usize).min(length)
}

/// Scales a random word to `0..below`: the upper half of the 128-bit product (Lemire 2019, without
/// rejection).
#[expect(clippy::cast_possible_truncation, reason = "the upper half is below `below`, which is a usize")]
fn scale(word: u64, below: usize) -> usize {
    ((u128::from(word) * below as u128) >> 64) as usize
}

/// Maps a file for reading.
#[expect(unsafe_code, reason = "a memory map has no safe constructor, and corpora may exceed memory")]
fn map_file(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and private to this crate. Another process that truncates the file while
    // it is mapped can end this one with a bus error; a corpus is an input that nobody writes during a run.
    unsafe { Mmap::map(file) }
}
