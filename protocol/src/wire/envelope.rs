//! Signed envelopes: who said it, in which run, how recently.
//!
//! ```text
//! Envelope = { version: u16, sender: bytes[32], payload: bytes, signature: bytes[64] }
//! signature = ed25519(sender, "iota/v" ‖ version ‖ "/" ‖ kind ‖ 0x00 ‖ run id ‖ payload)
//! ```
//! The envelope is the same in all versions, so that whoever does not speak the payload's still knows who said it.
//! The kind and the run are signed but not sent: the topic says the kind, the receiver knows its run.
//! A signature made for one kind or run therefore verifies for no other.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{DecodeError, Versions, decode, encode};
use crate::id::{Identity, PeerId, RunId};
use crate::join::Refusal;
use crate::limits::{BOOK_PEERS_MAX, GOSSIP_BYTES_MAX, WIRE_VERSION_FIRST};

/// A value that travels signed.
pub trait Payload: Serialize + DeserializeOwned {
    /// Separates the signatures of one kind of message from those of every other.
    const KIND: &'static str;

    /// The sender's message number, which only ever grows.
    fn sequence(&self) -> u64;
}

/// Why a message from a peer was refused. Counts against the sender, except where noted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RejectReason {
    /// The bytes are no canonical message of the expected kind.
    #[error("undecodable message: {0}")]
    Decode(#[from] DecodeError),
    /// A version of the wire format that is not spoken here. Not held against the sender: the run may have gone on to it.
    #[error("expected wire version {spoken}, got {got}")]
    Version {
        /// Who wrote it: the signature was checked.
        sender: PeerId,
        /// The message's version.
        got: u16,
        /// What is spoken here.
        spoken: Versions,
    },
    /// The signature does not fit sender, kind, run and payload. A message of another run ends here.
    #[error("signature does not verify for this run and kind")]
    Signature,
    /// A message number that is not above the last one. Not held against the relaying peer.
    #[error("replayed or overtaken message {got}, already at {seen}")]
    Replay {
        /// Number of the message.
        got: u64,
        /// Highest number accepted from this sender.
        seen: u64,
    },
    /// About an epoch that is over. Not held against the sender.
    #[error("stale: about an epoch that is over")]
    Stale,
    /// The sender has no part in what it speaks about.
    #[error("sender has no part in this")]
    NotEntitled,
    /// The run's spec does not let the sender in. Nobody honest asks where it can look that up itself, and nobody relays it.
    #[error("sender may not join: {0}")]
    NotAdmitted(#[from] Refusal),
    /// A field contradicts another or the run's spec.
    #[error("inconsistent: {0}")]
    Inconsistent(&'static str),
    /// The sender says far more than anybody has to say. Not held against who relays it: it may have heard less of it.
    #[error("more records of one sender than anybody needs")]
    Flood,
    /// A bounded table is full.
    #[error("no room: {0}")]
    Full(&'static str),
    /// A certificate without valid signatures of a majority of the candidates.
    #[error("certificate does not verify")]
    Certificate,
}

impl RejectReason {
    /// A short name for metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Decode(DecodeError::TooLong { .. }) => "too_long",
            Self::Decode(DecodeError::Malformed) => "malformed",
            Self::Decode(DecodeError::NotCanonical) => "not_canonical",
            Self::Version { .. } => "version",
            Self::Signature => "signature",
            Self::Replay { .. } => "replay",
            Self::Stale => "stale",
            Self::NotEntitled => "not_entitled",
            Self::NotAdmitted(_) => "not_admitted",
            Self::Inconsistent(_) => "inconsistent",
            Self::Flood => "flood",
            Self::Full(_) => "full",
            Self::Certificate => "certificate",
        }
    }

    /// Whether an honest sender or relay can cause this: then it costs nobody's reputation.
    #[must_use]
    pub const fn is_innocent(&self) -> bool {
        matches!(
            self,
            Self::Version { .. }
                | Self::Replay { .. }
                | Self::Stale
                | Self::NotEntitled
                | Self::Flood
                | Self::Full(_)
        )
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    version: u16,
    sender: PeerId,
    payload: ByteBuf,
    signature: ByteBuf,
}

/// The bytes a signature of kind `kind` in `run` covers.
#[must_use]
pub fn signed_bytes(version: u16, kind: &str, run: RunId, payload: &[u8]) -> Vec<u8> {
    [format!("iota/v{version}/{kind}\0").as_bytes(), &run.0, payload].concat()
}

/// Signs `value` as `identity` in `run`, in the version in which runs start. See [`seal_in`].
#[must_use]
pub fn seal<T: Payload>(identity: &Identity, run: RunId, value: &T) -> Vec<u8> {
    seal_in(WIRE_VERSION_FIRST, identity, run, value)
}

/// Signs `value`, written in `version`, as `identity` in `run` and returns the envelope's bytes.
#[must_use]
pub fn seal_in<T: Payload>(version: u16, identity: &Identity, run: RunId, value: &T) -> Vec<u8> {
    let payload = encode(value);
    let signature = identity.sign(&signed_bytes(version, T::KIND, run, &payload));
    encode(&Envelope {
        version,
        sender: identity.peer(),
        payload: ByteBuf::from(payload),
        signature: ByteBuf::from(signature),
    })
}

/// Verifies an envelope in a version that this program speaks and returns its sender and content. See [`open_in`].
///
/// # Errors
/// As [`open_in`].
pub fn open<T: Payload>(run: RunId, bytes: &[u8]) -> Result<(PeerId, T), RejectReason> {
    open_in(Versions::PROGRAM, run, bytes).map(|(sender, _, value)| (sender, value))
}

/// Verifies an envelope of at most [`GOSSIP_BYTES_MAX`] bytes in one of `versions` and returns its sender, its version
/// and its content.
///
/// The caller still has to ask a [`ReplayWindow`] about the message number.
///
/// # Errors
/// [`RejectReason`] if it is undecodable, the signature does not verify, or it is of another version.
pub fn open_in<T: Payload>(
    versions: Versions,
    run: RunId,
    bytes: &[u8],
) -> Result<(PeerId, u16, T), RejectReason> {
    let Envelope { version, sender, payload, signature } = decode(bytes, GOSSIP_BYTES_MAX)?;
    if !sender.verifies(&signed_bytes(version, T::KIND, run, &payload), &signature) {
        return Err(RejectReason::Signature);
    }
    if !versions.speaks(version) {
        return Err(RejectReason::Version { sender, got: version, spoken: versions });
    }
    Ok((sender, version, decode(&payload, GOSSIP_BYTES_MAX)?))
}

/// The highest message number accepted from each sender, for each kind of message.
#[derive(Clone, Debug, Default)]
pub struct ReplayWindow {
    seen: BTreeMap<(PeerId, &'static str), u64>,
}

impl ReplayWindow {
    /// Accepts a message of `sender` if its number is above all before it.
    ///
    /// # Errors
    /// [`RejectReason::Replay`] otherwise, [`RejectReason::Full`] for a new sender beyond the bound.
    pub fn accept<T: Payload>(&mut self, sender: PeerId, value: &T) -> Result<(), RejectReason> {
        self.accept_number(sender, T::KIND, value.sequence())
    }

    /// Accepts a message of `sender` and of this kind by its number alone.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub fn accept_number(
        &mut self,
        sender: PeerId,
        kind: &'static str,
        got: u64,
    ) -> Result<(), RejectReason> {
        let full = self.seen.len() >= BOOK_PEERS_MAX * 4;
        match self.seen.entry((sender, kind)) {
            Entry::Occupied(occupied) if got <= *occupied.get() => {
                Err(RejectReason::Replay { got, seen: *occupied.get() })
            }
            Entry::Vacant(_) if full => Err(RejectReason::Full("senders")),
            entry => {
                *entry.or_default() = got;
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        sequence: u64,
        text: String,
    }

    impl Payload for Note {
        const KIND: &'static str = "note";

        fn sequence(&self) -> u64 {
            self.sequence
        }
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Other {
        sequence: u64,
        text: String,
    }

    impl Payload for Other {
        const KIND: &'static str = "other";

        fn sequence(&self) -> u64 {
            self.sequence
        }
    }

    const RUN: RunId = RunId([9; 32]);

    fn note(sequence: u64) -> Note {
        Note { sequence, text: "hello".to_owned() }
    }

    #[test]
    fn an_envelope_opens_for_its_kind_and_run_only() {
        let identity = Identity::from_secret([3; 32]);
        let bytes = seal(&identity, RUN, &note(1));
        assert_eq!(open::<Note>(RUN, &bytes), Ok((identity.peer(), note(1))));
        assert_eq!(open::<Note>(RunId([8; 32]), &bytes), Err(RejectReason::Signature));
        assert_eq!(open::<Other>(RUN, &bytes), Err(RejectReason::Signature));
    }

    #[test]
    fn every_single_changed_byte_is_refused() {
        let bytes = seal(&Identity::from_secret([3; 32]), RUN, &note(1));
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 1;
            assert!(open::<Note>(RUN, &bad).is_err(), "byte {i}");
        }
        assert!(open::<Note>(RUN, &[bytes.as_slice(), &[0]].concat()).is_err(), "trailing byte");
        assert!(open::<Note>(RUN, &bytes[..bytes.len() - 1]).is_err(), "truncated");
    }

    #[test]
    fn a_message_of_a_version_not_spoken_names_its_sender_and_costs_nothing() {
        let identity = Identity::from_secret([3; 32]);
        let bytes = seal_in(2, &identity, RUN, &note(1));
        let (sender, spoken) = (identity.peer(), Versions::FIRST);
        let refused = RejectReason::Version { sender, got: 2, spoken };
        assert!(refused.is_innocent());
        assert_eq!(open_in::<Note>(spoken, RUN, &bytes), Err(refused));
        assert_eq!(open_in(Versions::new(1, 2), RUN, &bytes), Ok((sender, 2, note(1))));
        let relabelled = seal(&identity, RUN, &note(1))
            .windows(8)
            .position(|bytes| bytes == b"\x67version")
            .map(|at| {
                let mut bytes = seal(&identity, RUN, &note(1));
                bytes[at + 8] = 2;
                bytes
            })
            .expect("the version is there");
        let opened = open_in::<Note>(Versions::new(1, 2), RUN, &relabelled);
        assert_eq!(opened, Err(RejectReason::Signature), "the version is signed");
    }

    #[test]
    fn a_number_is_accepted_once_and_never_backwards() {
        let (mut window, peer) = (ReplayWindow::default(), PeerId([1; 32]));
        assert_eq!(window.accept(peer, &note(5)), Ok(()));
        assert_eq!(window.accept(peer, &note(5)), Err(RejectReason::Replay { got: 5, seen: 5 }));
        assert_eq!(window.accept(peer, &note(4)), Err(RejectReason::Replay { got: 4, seen: 5 }));
        assert_eq!(
            window.accept(peer, &Other { sequence: 1, text: String::new() }),
            Ok(()),
            "kinds are counted apart"
        );
        assert_eq!(window.accept(PeerId([2; 32]), &note(1)), Ok(()), "senders are counted apart");
    }
}
