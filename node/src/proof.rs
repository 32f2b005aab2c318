//! Why a miner or validator lost its place for good, in one file that anybody can check on any machine, without the swarm.
//!
//! ```text
//! file  = "iota/proof/1\n" ‖ canonical CBOR of Proof
//! Proof = { spec, peer, snapshot?, log, blobs }
//! ```
//! The log ends with the decision that took the peer's place, under a certificate of the candidates, and begins where the
//! node's does. So the checks of the run are made once more by folding it: who owned which partition of which plan, and whether
//! the evidence in that decision holds. The blobs are what the evidence is about, each named by a hash in the log: manifests
//! by plans, inputs by manifests.

mod blobs;
mod check;
mod collect;
mod signed_twice;

use iota_protocol::equivocation::EquivocationError;
use iota_protocol::log::{DecidedLog, Snapshot};
use iota_protocol::run_state::{RunState, StateEvent};
use iota_protocol::spec::SpecError;
use iota_protocol::validation::{Finding, Subject};
use iota_protocol::wire::message::{ControlUpdate, Decision};
use iota_protocol::wire::{DecodeError, RejectReason, decode, encode};
use iota_protocol::{Hash, PeerId, RunSpec};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::blobs::DataError;
use crate::history::{Diverged, Fold};
use crate::store::StoreError;

pub use check::{Outcome, check};
pub use collect::collect;
pub use signed_twice::SignedTwice;

/// What a proof begins with; the number counts its formats.
const MAGIC: &[u8] = b"iota/proof/1\n";

/// All that it takes to check why a peer lost its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// The run.
    pub spec: RunSpec,
    /// Who lost its place.
    pub peer: PeerId,
    /// What the log begins with, if not with its first entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// The log up to and with the entry that took its place.
    pub log: ControlUpdate,
    /// Manifests, and inputs of what was disputed: those that are known.
    pub blobs: Vec<ByteBuf>,
}

/// Why there is no proof, or no usable one.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The bytes are no proof of this format.
    #[error("expected a file that begins with `iota/proof/1` or `iota/signed-twice/1`, got {0} other bytes")]
    Magic(usize),
    /// The bytes after that are none.
    #[error("expected the canonical CBOR of a proof: {0}")]
    Decode(#[from] DecodeError),
    /// The spec is none.
    #[error("expected a valid run spec: {0}")]
    Spec(#[from] SpecError),
    /// The log is not what the candidates signed.
    #[error("expected a log with a certificate of the run's candidates: {0}")]
    Log(#[from] RejectReason),
    /// An entry names another state than the entries before it lead to.
    #[error(transparent)]
    Diverged(#[from] Diverged),
    /// The log does not say that the peer lost its place for good.
    #[error("expected a log in which {0} loses its place for good, got none that says so")]
    Innocent(PeerId),
    /// Two messages are no proof by themselves.
    #[error(transparent)]
    Signed(#[from] EquivocationError),
    /// The node's folder has no log.
    #[error("expected a folder in which a node has run, got one without a log")]
    NoLog,
    /// The node's database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The node's blobs.
    #[error(transparent)]
    Blobs(#[from] DataError),
}

/// The entry that took a peer's place for good, and what was known then.
#[derive(Debug)]
struct Conviction {
    /// Entries up to and with it.
    entries: usize,
    /// The state before it.
    before: RunState,
    /// The decision.
    decision: Decision,
    /// Why.
    reason: String,
    /// What validators found of the work that was last judged.
    findings: Vec<(Subject, PeerId, Finding)>,
}

impl Proof {
    /// The bytes of its file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [MAGIC, &encode(self)].concat()
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`ProofError`] if it is none. What it says is not checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ProofError> {
        let body = bytes.strip_prefix(MAGIC).ok_or(ProofError::Magic(bytes.len()))?;
        Ok(decode(body, body.len())?)
    }

    /// The log, after its certificate was checked, and the state before its first entry.
    fn open_log(&self) -> Result<(DecidedLog, Fold), ProofError> {
        open_log(&self.spec, self.snapshot.as_ref(), self.log.clone())
    }
}

/// Checks the file of a proof, of either kind.
///
/// # Errors
/// [`ProofError`] if it is none, is damaged, or does not show what it says.
pub fn verify(bytes: &[u8]) -> Result<Outcome, ProofError> {
    match SignedTwice::from_bytes(bytes)? {
        Some(signed) => signed.check(),
        None => check(&Proof::from_bytes(bytes)?),
    }
}

/// Checks the certificate of a log that begins with a snapshot, or with its first entry.
fn open_log(
    spec: &RunSpec,
    snapshot: Option<&Snapshot>,
    update: ControlUpdate,
) -> Result<(DecidedLog, Fold), ProofError> {
    let mut log = DecidedLog::new(spec);
    let certified = log.electorate().certify(update)?;
    let fold = Fold::new(std::sync::Arc::new(spec.clone()));
    let Some(snapshot) = snapshot else {
        log.extend(&certified)?;
        return Ok((log, fold));
    };
    let (log, named) = log.anchored(snapshot.chain, &certified)?;
    let state = fold.state().read(&snapshot.state)?;
    let whole = Hash::of(&snapshot.state) == named && state.applied() == log.first() as u64;
    let fold = Fold::from_state(state);
    if whole { Ok((log, fold)) } else { Err(RejectReason::Inconsistent("snapshot").into()) }
}

/// Folds a log, and finds where `peer` last lost its place for good, as a miner or as a validator.
fn convicted(log: &DecidedLog, fold: Fold, peer: PeerId) -> Result<Conviction, ProofError> {
    let (mut last, mut findings) = (None, Vec::new());
    let mut seen = fold.clone();
    for index in log.first()..log.len() {
        let Some((entry, chain)) = log.entry(index) else { break };
        for event in seen.apply(chain, entry.as_ref())? {
            let reason = match event {
                StateEvent::Judged(subject, validator, finding) => {
                    findings.push((subject, validator, finding));
                    continue;
                }
                StateEvent::Evicted(of, reason) if of == peer && reason.is_proven() => reason.to_string(),
                StateEvent::Dismissed(of, reason) if of == peer && reason.is_proven() => reason.to_string(),
                _ => continue,
            };
            last = Some((index, reason, findings.len()));
        }
    }
    let (convicting, reason, known) = last.ok_or(ProofError::Innocent(peer))?;
    findings.truncate(known);
    let mut before = fold;
    for index in log.first()..convicting {
        let Some((entry, chain)) = log.entry(index) else { break };
        before.apply(chain, entry.as_ref())?;
    }
    let decision = log.entry(convicting).and_then(|(entry, _)| Some(entry?.decision));
    let decision = decision.ok_or(ProofError::Innocent(peer))?;
    let before = before.state().clone();
    Ok(Conviction { entries: convicting + 1, before, decision, reason, findings })
}

#[cfg(test)]
mod tests;
