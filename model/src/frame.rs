//! Tensors at the crate's edge: raw little-endian bytes with a dtype and a shape.
//!
//! A [`Frame`] is what crosses a cut between two stages. It holds no tensor of any backend, so it can be
//! hashed, sent and kept by code that knows nothing about devices.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use half::bf16;
use serde::{Deserialize, Serialize};

/// Type of the elements of a [`Frame`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// IEEE 754 single precision, 4 bytes.
    F32,
    /// The upper half of a single, 2 bytes; conversion rounds to nearest, ties to even.
    Bf16,
}

impl DType {
    /// Returns the bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// A dense row-major tensor as little-endian bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// Type of the elements.
    pub dtype: DType,
    /// Length of every dimension, slowest first.
    pub shape: Vec<usize>,
    /// The elements.
    pub bytes: Bytes,
}

/// Says why bytes are not a frame.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// The byte length contradicts dtype and shape.
    #[error("frame of {dtype} {shape:?} has {got} bytes, expected {expected}")]
    Length {
        /// Type of the elements.
        dtype: DType,
        /// The shape that was claimed.
        shape: Vec<usize>,
        /// Bytes the shape asks for.
        expected: usize,
        /// Bytes there are.
        got: usize,
    },
    /// The product of the dimensions does not fit in memory's address range.
    #[error("frame shape {shape:?} has more elements than can be addressed")]
    Overflow {
        /// The shape that was claimed.
        shape: Vec<usize>,
    },
    /// An element is NaN or infinite.
    #[error("frame element {index} is {value}, expected a finite number")]
    NonFinite {
        /// Index in row-major order.
        index: usize,
        /// The element.
        value: f32,
    },
}

impl Frame {
    /// Wraps bytes after checking their length against the dtype and the shape.
    ///
    /// # Errors
    /// When the length differs from the product of the shape times the element size.
    pub fn new(dtype: DType, shape: Vec<usize>, bytes: Bytes) -> Result<Self, FrameError> {
        let expected = byte_length(dtype, &shape)?;
        if bytes.len() != expected {
            return Err(FrameError::Length { dtype, shape, expected, got: bytes.len() });
        }
        Ok(Self { dtype, shape, bytes })
    }

    /// Encodes numbers, rounding to nearest even when `dtype` is narrower than `f32`.
    ///
    /// # Errors
    /// When the number of values differs from the product of the shape.
    pub fn from_f32(values: &[f32], shape: Vec<usize>, dtype: DType) -> Result<Self, FrameError> {
        let bytes = match dtype {
            DType::F32 => Bytes::from(little_endian_bytes(values).into_owned()),
            DType::Bf16 => Bytes::from(bf16_bytes(values)),
        };
        Self::new(dtype, shape, bytes)
    }

    /// Decodes the elements; exact for both dtypes.
    ///
    /// # Errors
    /// When public fields were changed so that the length no longer fits.
    pub fn to_f32(&self) -> Result<Vec<f32>, FrameError> {
        let expected = byte_length(self.dtype, &self.shape)?;
        if self.bytes.len() != expected {
            let (dtype, shape, got) = (self.dtype, self.shape.clone(), self.bytes.len());
            return Err(FrameError::Length { dtype, shape, expected, got });
        }
        Ok(match self.dtype {
            DType::F32 => f32_from_bytes(&self.bytes),
            DType::Bf16 => f32_from_bf16_bytes(&self.bytes),
        })
    }

    /// Returns the number of elements that the shape asks for, saturating.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1, |product, length| product.saturating_mul(*length))
    }

    /// Checks that every element is finite.
    ///
    /// # Errors
    /// Names the first element that is NaN or infinite.
    pub fn check_finite(&self) -> Result<(), FrameError> {
        match first_non_finite(&self.to_f32()?) {
            None => Ok(()),
            Some((index, value)) => Err(FrameError::NonFinite { index, value }),
        }
    }
}

/// Returns the first element that is NaN or infinite, with its index.
pub(crate) fn first_non_finite(values: &[f32]) -> Option<(usize, f32)> {
    values.iter().copied().enumerate().find(|(_, value)| !value.is_finite())
}

/// Views numbers as little-endian bytes; copies only on big-endian machines.
pub(crate) fn little_endian_bytes(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

/// Decodes little-endian singles; a trailing partial element is dropped, so callers check the length first.
pub(crate) fn f32_from_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect()
}

/// Encodes as bf16, rounding to nearest even.
pub(crate) fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect()
}

/// Decodes little-endian bf16; a trailing partial element is dropped, so callers check the length first.
pub(crate) fn f32_from_bf16_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<2>().0.iter().map(|chunk| bf16::from_le_bytes(*chunk).to_f32()).collect()
}

fn byte_length(dtype: DType, shape: &[usize]) -> Result<usize, FrameError> {
    let length = shape.iter().try_fold(dtype.size(), |product, length| product.checked_mul(*length));
    length.ok_or_else(|| FrameError::Overflow { shape: shape.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_do_not_fit_the_shape_are_refused() {
        let error = Frame::new(DType::Bf16, vec![2, 3], Bytes::from_static(&[0; 11])).unwrap_err();
        assert_eq!(error.to_string(), "frame of bf16 [2, 3] has 11 bytes, expected 12");
        let error = Frame::new(DType::F32, vec![usize::MAX, 2], Bytes::new()).unwrap_err();
        assert!(matches!(error, FrameError::Overflow { .. }));
    }

    #[test]
    fn bf16_rounds_to_nearest_even() {
        // 1 + 2^-8 lies halfway between 1 and 1 + 2^-7: the even mantissa is 1.
        let frame = Frame::from_f32(
            &[1.0 + f32::powi(2.0, -8), 1.0 + 3.0 * f32::powi(2.0, -8)],
            vec![2],
            DType::Bf16,
        )
        .unwrap();
        assert_eq!(frame.to_f32().unwrap(), [1.0, 1.0 + f32::powi(2.0, -6)]);
    }

    #[test]
    fn non_finite_elements_are_named() {
        let frame = Frame::from_f32(&[0.0, f32::INFINITY], vec![2], DType::F32).unwrap();
        assert_eq!(
            frame.check_finite().unwrap_err().to_string(),
            "frame element 1 is inf, expected a finite number"
        );
    }
}
