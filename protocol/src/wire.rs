//! What peers say to each other, and in which bytes.
//!
//! Everything is CBOR through serde, in one canonical form: structs as maps in declaration order,
//! definite lengths, shortest integers, no trailing bytes. The decoder accepts only bytes that
//! re-encode to themselves, so every signed or hashed value has exactly one encoding.

pub mod envelope;
pub mod frame;
pub mod gossip;
pub mod message;
mod reason;
pub mod version;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use envelope::{Payload, RejectReason, ReplayWindow, open, open_in, seal, seal_in};
pub use gossip::Gossip;
pub use version::{Outdated, Versions};

/// Why bytes were not taken for a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// More bytes than this kind of value may have; nothing was parsed.
    #[error("expected at most {limit} bytes, got {got}")]
    TooLong {
        /// The bound from [`limits`](crate::limits).
        limit: usize,
        /// The length received.
        got: usize,
    },
    /// Not CBOR, or not of the expected shape.
    #[error("not the CBOR of the expected value")]
    Malformed,
    /// CBOR of the right shape, but not the one canonical encoding of it.
    #[error("not canonical")]
    NotCanonical,
}

/// The canonical CBOR of `value`.
///
/// # Panics
/// If a wire type has no CBOR form, which a test of every wire type excludes.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "wire types are plain data; writing to memory cannot fail")]
    serde_cbor::to_vec(value).expect("a wire type has a CBOR form")
}

/// Reads a value from its canonical CBOR of at most `limit` bytes.
///
/// # Errors
/// [`DecodeError`] if the bytes are too many, no CBOR, of another shape, or not canonical.
pub fn decode<T: DeserializeOwned + Serialize>(bytes: &[u8], limit: usize) -> Result<T, DecodeError> {
    if bytes.len() > limit {
        return Err(DecodeError::TooLong { limit, got: bytes.len() });
    }
    let value: T = serde_cbor::from_slice(bytes).map_err(|_| DecodeError::Malformed)?;
    if encode(&value) != bytes {
        return Err(DecodeError::NotCanonical);
    }
    Ok(value)
}
