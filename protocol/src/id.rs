//! Names of things: peers, hashes, stages, epochs, samples, and the key that speaks for a peer.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why an id could not be read from text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 hexadecimal digits, got `{got}`")]
pub struct ParseIdError {
    got: String,
}

/// Defines a 32-byte name: a byte string in CBOR, hexadecimal text for people.
macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub [u8; 32]);

        impl PartialOrd for $name {
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        /// The order of the bytes. Names are uniform, so the first eight nearly always tell, without a call.
        impl Ord for $name {
            fn cmp(&self, other: &Self) -> Ordering {
                let head = |name: &Self| {
                    let [a, b, c, d, e, f, g, h, ..] = name.0;
                    u64::from_be_bytes([a, b, c, d, e, f, g, h])
                };
                head(self).cmp(&head(other)).then_with(|| self.0.cmp(&other.0))
            }
        }

        impl $name {
            /// The first eight hexadecimal digits: enough to tell peers apart in a log line.
            #[must_use]
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseIdError { got: text.to_owned() })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&self.0)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
                } else {
                    let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
                    let array = <[u8; 32]>::try_from(bytes.as_slice())
                        .map_err(|_| de::Error::invalid_length(bytes.len(), &"32 bytes"))?;
                    Ok(Self(array))
                }
            }
        }
    };
}

bytes32! {
    /// A peer: its ed25519 public key, which is also its libp2p and its iroh identity.
    ///
    /// The order of peer ids is the order of every reduction.
    PeerId
}

bytes32! {
    /// A BLAKE3 hash: the name of a blob, a weights vector, a manifest or a log position.
    Hash
}

bytes32! {
    /// A run: the hash of its spec's canonical encoding, so peers with different specs never mix.
    RunId
}

impl Hash {
    /// The BLAKE3 hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The BLAKE3 hash of the concatenation of `parts`.
    #[must_use]
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// Defines an integer name.
macro_rules! index {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

index! {
    /// A stage of the pipeline, counted from the head.
    StageIndex(u16)
}
index! {
    /// An epoch of a stage. The weights an epoch starts from have the same number as their version.
    Epoch(u32)
}
index! {
    /// A sample: the unit that travels the pipeline, a fixed group of windows of the corpus.
    SampleId(u64)
}
index! {
    /// A partition of a stage's flat parameter vector.
    PartitionIndex(u32)
}
index! {
    /// A position in the decided log, counted from zero.
    LogIndex(u64)
}

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl StageIndex {
    /// This stage as an index into a list of stages.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

/// The secret key that speaks for a peer.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
}

impl Identity {
    /// The identity of a 32-byte ed25519 secret.
    #[must_use]
    pub fn from_secret(secret: [u8; 32]) -> Self {
        Self { key: SigningKey::from_bytes(&secret) }
    }

    /// The public name of this identity.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        PeerId(self.key.verifying_key().to_bytes())
    }

    /// Signs `message` (ed25519, RFC 8032; deterministic).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.peer().short())
    }
}

impl PeerId {
    /// Whether it is a public key that signatures can be checked with: a point of the curve, of no small order.
    #[must_use]
    pub fn is_key(&self) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| !key.is_weak())
    }

    /// Whether `signature` over `message` was made by this peer, by the strict rules that leave one
    /// valid signature per message and key.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(signature) = Signature::from_slice(signature) else { return false };
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_its_message_and_key_only() {
        let (a, b) = (Identity::from_secret([1; 32]), Identity::from_secret([2; 32]));
        let signature = a.sign(b"message");
        assert!(a.peer().verifies(b"message", &signature));
        assert!(!a.peer().verifies(b"massage", &signature));
        assert!(!b.peer().verifies(b"message", &signature));
        assert!(!a.peer().verifies(b"message", &signature[..63]));
    }

    #[test]
    fn ids_are_ordered_by_their_bytes() {
        let id = |first: u8, last: u8| {
            let mut bytes = [7; 32];
            (bytes[0], bytes[31]) = (first, last);
            PeerId(bytes)
        };
        let mut ids = [id(2, 0), id(1, 9), id(1, 0), id(0, 255)];
        ids.sort_unstable();
        assert_eq!(ids, [id(0, 255), id(1, 0), id(1, 9), id(2, 0)]);
    }

    #[test]
    fn ids_read_back_from_their_text() {
        let id = Hash::of(b"x");
        assert_eq!(id.to_string().parse::<Hash>(), Ok(id));
        assert!("12".parse::<Hash>().is_err());
    }
}
