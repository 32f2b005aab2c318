//! Signed envelopes: who said it, in which run, how recently.
//!
//! ```text
//! Envelope = { version: u16, sender: bytes[32], payload: bytes, signature: bytes[64] }
//! signature = ed25519(sender, "iota/v1/" ‖ kind ‖ 0x00 ‖ run id ‖ payload)
//! ```
//! The kind and the run are signed but not sent: the topic says the kind, the receiver knows its run.
//! A signature made for one kind or run therefore verifies for no other.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{DecodeError, decode, encode};
use crate::id::{Identity, PeerId, RunId};
use crate::limits::{BOOK_PEERS_MAX, GOSSIP_BYTES_MAX, WIRE_VERSION};

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
    /// Another version of the wire format.
    #[error("expected wire version {WIRE_VERSION}, got {0}")]
    Version(u16),
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
    /// A field contradicts another or the run's spec.
    #[error("inconsistent: {0}")]
    Inconsistent(&'static str),
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
            Self::Version(_) => "version",
            Self::Signature => "signature",
            Self::Replay { .. } => "replay",
            Self::Stale => "stale",
            Self::NotEntitled => "not_entitled",
            Self::Inconsistent(_) => "inconsistent",
            Self::Full(_) => "full",
            Self::Certificate => "certificate",
        }
    }

    /// Whether an honest sender or relay can cause this: then it costs nobody's reputation.
    #[must_use]
    pub const fn is_innocent(&self) -> bool {
        matches!(self, Self::Replay { .. } | Self::Stale | Self::NotEntitled | Self::Full(_))
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
pub fn signed_bytes(kind: &str, run: RunId, payload: &[u8]) -> Vec<u8> {
    [b"iota/v1/", kind.as_bytes(), b"\0", &run.0, payload].concat()
}

/// Signs `value` as `identity` in `run` and returns the envelope's bytes.
#[must_use]
pub fn seal<T: Payload>(identity: &Identity, run: RunId, value: &T) -> Vec<u8> {
    let payload = encode(value);
    let signature = identity.sign(&signed_bytes(T::KIND, run, &payload));
    encode(&Envelope {
        version: WIRE_VERSION,
        sender: identity.peer(),
        payload: ByteBuf::from(payload),
        signature: ByteBuf::from(signature),
    })
}

/// Verifies an envelope of at most [`GOSSIP_BYTES_MAX`] bytes and returns its sender and content.
///
/// The caller still has to ask a [`ReplayWindow`] about the message number.
///
/// # Errors
/// [`RejectReason`] if it is undecodable, of another version, or the signature does not verify.
pub fn open<T: Payload>(run: RunId, bytes: &[u8]) -> Result<(PeerId, T), RejectReason> {
    let envelope: Envelope = decode(bytes, GOSSIP_BYTES_MAX)?;
    if envelope.version != WIRE_VERSION {
        return Err(RejectReason::Version(envelope.version));
    }
    if !envelope.sender.verifies(&signed_bytes(T::KIND, run, &envelope.payload), &envelope.signature) {
        return Err(RejectReason::Signature);
    }
    Ok((envelope.sender, decode(&envelope.payload, GOSSIP_BYTES_MAX)?))
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
