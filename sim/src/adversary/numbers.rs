//! Contributions as numbers, in the form in which a run's engines write them.

use iota_protocol::RunSpec;
use iota_protocol::spec::WireDtype;
use iota_worker::bridge::codec;

use crate::trainer::{Compute, toy};

/// How a partition is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Doubles of the toy problem.
    Toy,
    /// As nodes write it.
    Wire(WireDtype),
}

impl Form {
    /// The form of these engines' partitions. Those that compute with names only write none, so any will do.
    pub(super) const fn of(compute: Compute, spec: &RunSpec) -> Self {
        match compute {
            Compute::Real => Self::Wire(spec.merge.codec),
            Compute::Toy | Compute::Cost => Self::Toy,
        }
    }

    /// The numbers of a partition; nothing if it is none.
    pub(super) fn read(self, bytes: &[u8]) -> Option<Vec<f64>> {
        match self {
            Self::Toy => toy::from_bytes(bytes),
            Self::Wire(dtype) => {
                let values = codec(dtype).decode(bytes, bytes.len() / dtype.bytes()).ok()?;
                Some(values.into_iter().map(f64::from).collect())
            }
        }
    }

    /// A partition of these numbers, which an engine would refuse to write if one is not finite. Finite ones beyond the range
    /// become the largest that there is.
    pub(super) fn write(self, values: &[f64]) -> Vec<u8> {
        let Self::Wire(dtype) = self else { return toy::to_bytes(values) };
        let most = match dtype {
            WireDtype::F32 => f32::MAX,
            // The largest with sixteen bits.
            WireDtype::Bf16 => f32::from_bits(0x7f7f_0000),
        };
        let single = |value: &f64| {
            let within = value.clamp(-f64::from(most), f64::from(most));
            #[expect(
                clippy::cast_possible_truncation,
                reason = "within the range of a single, or not a number"
            )]
            let single = within as f32;
            single.to_bits()
        };
        let bits = values.iter().map(single);
        match dtype {
            WireDtype::F32 => bits.flat_map(u32::to_le_bytes).collect(),
            // The upper half; rounding is of no matter to a forger.
            WireDtype::Bf16 => bits
                .flat_map(|bits| {
                    let [_, _, low, high] = bits.to_le_bytes();
                    [low, high]
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_reads_what_it_writes_and_nothing_else() {
        let values = [1.5, -2.0, 0.0];
        for form in [Form::Toy, Form::Wire(WireDtype::F32), Form::Wire(WireDtype::Bf16)] {
            let bytes = form.write(&values);
            assert_eq!(form.read(&bytes).as_deref(), Some(&values[..]), "{form:?}");
            assert_eq!(form.read(&bytes[1..]), None, "{form:?}");
            assert_eq!(form.read(&form.write(&[f64::NAN])), None, "{form:?}");
            let huge = form.read(&form.write(&[f64::MAX])).expect("it is finite");
            assert!(huge[0] > 1e38, "{form:?}");
        }
    }
}
