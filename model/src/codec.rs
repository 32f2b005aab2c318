//! Bytes of a contribution's partitions.
//!
//! A partition has no header: both sides know its length from the merge plan and its codec from the run spec,
//! so a peer cannot make another allocate by claiming a size.

use serde::{Deserialize, Serialize};

use crate::frame::{bf16_bytes, f32_from_bf16_bytes, f32_from_bytes, first_non_finite, little_endian_bytes};

/// Picks how the numbers of a partition become bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Codec {
    /// Little-endian singles: exact.
    #[default]
    F32,
    /// The upper half of a single, rounded to nearest, ties to even: 8 significant bits.
    Bf16,
}

/// Says why a partition cannot be encoded or decoded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CodecError {
    /// The bytes are not of the partition's length.
    #[error("partition has {got} bytes, expected {expected}")]
    Length {
        /// Bytes there are.
        got: usize,
        /// Bytes the partition takes.
        expected: usize,
    },
    /// A number is NaN or infinite, before encoding or after rounding.
    #[error("partition element {index} is {value}, expected a finite number")]
    NonFinite {
        /// Position in the partition.
        index: usize,
        /// The number.
        value: f32,
    },
}

impl Codec {
    /// Returns the bytes of a partition of `elements` numbers, saturating.
    #[must_use]
    pub fn encoded_length(self, elements: usize) -> usize {
        match self {
            Self::F32 => elements.saturating_mul(4),
            Self::Bf16 => elements.saturating_mul(2),
        }
    }

    /// Encodes a partition.
    ///
    /// # Errors
    /// When a number is not finite, or rounds to infinity: the largest singles have no bf16.
    pub fn encode(self, values: &[f32]) -> Result<Vec<u8>, CodecError> {
        check_finite(values)?;
        match self {
            Self::F32 => Ok(little_endian_bytes(values).into_owned()),
            Self::Bf16 => {
                let bytes = bf16_bytes(values);
                check_finite(&f32_from_bf16_bytes(&bytes))?;
                Ok(bytes)
            }
        }
    }

    /// Decodes a partition of `elements` numbers; the length is checked before anything is allocated.
    ///
    /// # Errors
    /// When the length differs or a number is not finite.
    pub fn decode(self, bytes: &[u8], elements: usize) -> Result<Vec<f32>, CodecError> {
        let expected = self.encoded_length(elements);
        if bytes.len() != expected {
            return Err(CodecError::Length { got: bytes.len(), expected });
        }
        let values = match self {
            Self::F32 => f32_from_bytes(bytes),
            Self::Bf16 => f32_from_bf16_bytes(bytes),
        };
        check_finite(&values)?;
        Ok(values)
    }
}

fn check_finite(values: &[f32]) -> Result<(), CodecError> {
    match first_non_finite(values) {
        None => Ok(()),
        Some((index, value)) => Err(CodecError::NonFinite { index, value }),
    }
}
