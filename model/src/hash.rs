//! Names of weights by content.

use crate::frame::little_endian_bytes;

/// Returns the BLAKE3 hash of a flat vector, taken over its little-endian `f32` bytes.
///
/// Equal hashes mean equal bits: a negative zero and a zero, or two different NaN, hash differently.
#[must_use]
pub fn weights_hash(flat: &[f32]) -> [u8; 32] {
    *blake3::hash(&little_endian_bytes(flat)).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_of_the_little_endian_bytes() {
        let expected = blake3::hash(&[0, 0, 128, 63, 0, 0, 0, 128]);
        assert_eq!(weights_hash(&[1.0, -0.0]), *expected.as_bytes());
        assert_ne!(weights_hash(&[1.0, 0.0]), *expected.as_bytes());
    }
}
