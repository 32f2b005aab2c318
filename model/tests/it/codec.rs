//! Partitions survive their codecs, and bytes of any other length or value are refused.

use iota_model::codec::{Codec, CodecError};
use proptest::prelude::*;

/// Every number that is neither NaN nor infinite, of either sign.
fn finite() -> impl Strategy<Value = f32> {
    use prop::num::f32::{NEGATIVE, NORMAL, POSITIVE, SUBNORMAL, ZERO};
    POSITIVE | NEGATIVE | NORMAL | SUBNORMAL | ZERO
}

const CODECS: [Codec; 2] = [Codec::F32, Codec::Bf16];

proptest! {
    #[test]
    fn f32_is_exact(values in prop::collection::vec(finite(), 0..50)) {
        let bytes = Codec::F32.encode(&values).unwrap();
        prop_assert_eq!(bytes.len(), Codec::F32.encoded_length(values.len()));
        let decoded = Codec::F32.decode(&bytes, values.len()).unwrap();
        prop_assert!(decoded.iter().zip(&values).all(|(left, right)| left.to_bits() == right.to_bits()));
    }

    #[test]
    fn bf16_is_within_its_last_bit_and_stable(values in prop::collection::vec(-1e30_f32..1e30, 0..50)) {
        let bytes = Codec::Bf16.encode(&values).unwrap();
        let decoded = Codec::Bf16.decode(&bytes, values.len()).unwrap();
        for (got, value) in decoded.iter().zip(&values) {
            // Eight significant bits, rounded to nearest: half of 2^-7; numbers this side of 1e-38 are
            // normal.
            prop_assert!((got - value).abs() <= value.abs() / 256.0 + f32::MIN_POSITIVE);
        }
        prop_assert_eq!(Codec::Bf16.encode(&decoded).unwrap(), bytes, "encoding again changes nothing");
    }

    #[test]
    fn decoding_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), elements in 0_usize..20) {
        for codec in CODECS {
            match codec.decode(&bytes, elements) {
                Ok(values) => prop_assert!(values.len() == elements && values.iter().all(|value| value.is_finite())),
                Err(CodecError::Length { got, expected }) => prop_assert!(got == bytes.len() && got != expected),
                Err(CodecError::NonFinite { index, value }) => prop_assert!(index < elements && !value.is_finite()),
            }
        }
    }
}

#[test]
fn claimed_sizes_do_not_allocate() {
    for codec in CODECS {
        let error = codec.decode(&[0; 8], usize::MAX).unwrap_err();
        assert_eq!(error, CodecError::Length { got: 8, expected: usize::MAX });
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused_both_ways() {
    let error = Codec::F32.encode(&[0.0, f32::NAN]).unwrap_err();
    assert_eq!(error.to_string(), "partition element 1 is NaN, expected a finite number");
    let error = Codec::Bf16.encode(&[f32::MAX]).unwrap_err();
    assert_eq!(error.to_string(), "partition element 0 is inf, expected a finite number");
    let error = Codec::Bf16.decode(&[0x80, 0x7F], 1).unwrap_err();
    assert_eq!(error.to_string(), "partition element 0 is inf, expected a finite number");
}
