//! Two messages that a peer signed under one number, in a file of their own.
//!
//! ```text
//! file        = "iota/signed-twice/1\n" ‖ canonical CBOR of SignedTwice
//! SignedTwice = { spec, peer, signed }
//! ```
//! A candidate that notices such a pair writes this at once. The log carries it, too, if the peer has a place to lose. Of a
//! candidate that has none, or that has shown others another log, this is all there is, and it takes no log to check it.

use std::path::{Path, PathBuf};

use iota_protocol::equivocation::Equivocation;
use iota_protocol::limits::WIRE_VERSION;
use iota_protocol::wire::{decode, encode};
use iota_protocol::{PeerId, RunSpec};
use serde::{Deserialize, Serialize};

use super::{Outcome, ProofError};

/// What the file begins with; the number counts its formats.
const MAGIC: &[u8] = b"iota/signed-twice/1\n";

/// What a peer signed under one number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedTwice {
    /// The run.
    pub spec: RunSpec,
    /// Who signed both.
    pub peer: PeerId,
    /// What it signed.
    pub signed: Equivocation,
}

impl SignedTwice {
    /// Writes its file into a folder, and says where it is.
    ///
    /// # Errors
    /// What the system said about writing it.
    pub fn write(&self, folder: &Path) -> std::io::Result<PathBuf> {
        let path = folder.join(format!("signed-twice-{}.proof", self.peer));
        std::fs::write(&path, [MAGIC, &encode(self)].concat())?;
        Ok(path)
    }

    /// Reads a file; nothing if it is of another kind.
    ///
    /// # Errors
    /// [`ProofError::Decode`] if it is damaged. What it says is not checked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Option<Self>, ProofError> {
        let body = bytes.strip_prefix(MAGIC);
        Ok(body.map(|body| decode(body, body.len())).transpose()?)
    }

    /// Checks both signatures, and that they contradict each other.
    ///
    /// # Errors
    /// [`ProofError`] if they do not.
    pub fn check(&self) -> Result<Outcome, ProofError> {
        self.spec.validate()?;
        let run = self.spec.run_id();
        let number = self.signed.check(run, WIRE_VERSION, self.peer)?;
        Ok(Outcome::Proved(run, describe(self.peer, &self.signed, number)))
    }
}

/// What two such messages show.
pub(super) fn describe(peer: PeerId, signed: &Equivocation, number: u64) -> String {
    format!(
        "peer {peer} signed two different messages of kind {} under the number {number}",
        signed.kind.name()
    )
}
