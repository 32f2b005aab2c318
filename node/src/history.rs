//! The log of a run, read from its mirror alone: every entry is proven by the candidates' signatures.

use std::sync::Arc;

use iota_protocol::log::DecidedLog;
use iota_protocol::log::decided::Extended;
use iota_protocol::run_state::{RunState, StateEvent};
use iota_protocol::wire::message::{ControlUpdate, Decision, Entry};
use iota_protocol::wire::{DecodeError, RejectReason, decode};
use iota_protocol::{Hash, LogIndex, RunId, RunSpec};

use crate::bridge::model_config;
use crate::mirror::{Mirror, MirrorError};

/// Greatest part that is read: a thousand entries of the greatest size.
const PART_BYTES_MAX: u64 = 256 << 20;

/// Why a log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The store's troubles.
    #[error(transparent)]
    Mirror(#[from] MirrorError),
    /// Nothing is there.
    #[error(
        "the mirror has no part of the log of run {0}: candidates write it when the log is cut, and when the run ends"
    )]
    None(RunId),
    /// A part is missing.
    #[error("the log in the mirror is not whole: expected entry {expected}, got {got}")]
    Gap {
        /// The first entry that is missing.
        expected: u64,
        /// The first one after it that is there.
        got: u64,
    },
    /// A part cannot be read.
    #[error("the part of the log from entry {first} on: {reason}")]
    Malformed {
        /// Its first entry.
        first: u64,
        /// What is wrong.
        reason: DecodeError,
    },
    /// A part is not what the candidates signed.
    #[error("the part of the log from entry {first} on: {reason}")]
    Refused {
        /// Its first entry.
        first: u64,
        /// What is wrong.
        reason: RejectReason,
    },
}

/// An entry that names another state than the one that the entries before it lead to.
#[derive(Debug, thiserror::Error)]
#[error(
    "entry {index} of the log names the state {named}, expected {found}, which the entries before it lead to"
)]
pub struct Diverged {
    /// The entry.
    pub index: u64,
    /// The state that it names.
    pub named: Hash,
    /// The state that the entries before it lead to.
    pub found: Hash,
}

/// The state of a run, from entry to entry, compared with each state that the log names.
#[derive(Clone, Debug)]
pub struct Fold {
    state: RunState,
    checked: usize,
}

impl Fold {
    /// The state before the first entry.
    #[must_use]
    pub fn new(spec: Arc<RunSpec>) -> Self {
        let model = model_config(&spec);
        let parameters: Vec<usize> = (0..model.stages).map(|stage| model.parameter_count(stage)).collect();
        Self { state: RunState::new(spec, &parameters), checked: 0 }
    }

    /// The state after the entries that a snapshot stands for.
    #[must_use]
    pub const fn from_state(state: RunState) -> Self {
        Self { state, checked: 0 }
    }

    /// Applies the next entry; returns what it changed.
    ///
    /// # Errors
    /// [`Diverged`] if it names another state.
    pub fn apply(&mut self, chain: Hash, entry: Option<&Entry>) -> Result<Vec<StateEvent>, Diverged> {
        let index = self.state.applied();
        if let Some(Decision::Snapshot { entries, state }) = entry.map(|entry| &entry.decision)
            && *entries == index
        {
            let found = Hash::of(&self.state.to_bytes());
            if found != *state {
                return Err(Diverged { index, named: *state, found });
            }
            self.checked += 1;
        }
        Ok(self.state.apply(LogIndex(index), chain, entry))
    }

    /// The state now.
    #[must_use]
    pub const fn state(&self) -> &RunState {
        &self.state
    }

    /// States that were compared.
    #[must_use]
    pub const fn checked(&self) -> usize {
        self.checked
    }

    /// The state at the end.
    #[must_use]
    pub fn into_state(self) -> RunState {
        self.state
    }
}

/// Reads and checks the log of the run of `spec`, from its first entry to the last one that is in the mirror.
///
/// # Errors
/// [`HistoryError`].
pub async fn read(mirror: &Mirror, spec: &RunSpec) -> Result<DecidedLog, HistoryError> {
    let mut log = DecidedLog::new(spec);
    let parts = mirror.log_parts(spec.run_id().0).await?;
    for part in parts {
        let len = log.len() as u64;
        if part.first > len {
            return Err(HistoryError::Gap { expected: len, got: part.first });
        }
        if part.next <= len {
            continue;
        }
        let first = part.first;
        let bytes = mirror.log(&part, PART_BYTES_MAX).await?;
        let update: ControlUpdate =
            decode(&bytes, bytes.len()).map_err(|reason| HistoryError::Malformed { first, reason })?;
        let refused = |reason| HistoryError::Refused { first, reason };
        let certified = log.electorate().certify(update).map_err(refused)?;
        if log.extend(&certified).map_err(refused)? == Extended::Gap {
            return Err(HistoryError::Gap { expected: len, got: certified.update().first.0 });
        }
    }
    if log.is_empty() { Err(HistoryError::None(spec.run_id())) } else { Ok(log) }
}
