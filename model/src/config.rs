//! The shape of the network and how it is cut into pipeline stages.
//!
//! One [`ModelConfig`] is shared by every peer of a run: it fixes every parameter's path, shape, place in the
//! flat vector and initial value, so two peers that agree on it agree on the bytes of the first weights.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::flat::StageLayout;

/// Largest vocabulary, context or width: eight times what models have, and the product of two is far below
/// 2⁶⁴.
const SIZE_MAX: usize = 1 << 20;

/// Most blocks: with [`SIZE_MAX`] it keeps the number of parameters below 2⁶⁴, whatever a file claims.
const LAYERS_MAX: usize = 1 << 12;

/// Describes a decoder-only transformer of the Llama family (Touvron et al. 2023) cut into stages.
///
/// Departure from the family: with [`ModelConfig::bottleneck`] every cut between two stages narrows the
/// residual stream, see the file `bottleneck.rs`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Number of token ids, `V`.
    pub vocab_size: usize,
    /// Longest sequence in tokens, `T`.
    pub context: usize,
    /// Channels of the residual stream, `C`.
    pub width: usize,
    /// Transformer blocks of all stages together.
    pub layers: usize,
    /// Query heads, `H`; `width` is a multiple of it and the head size `D = C / H` is even.
    pub heads: usize,
    /// Key and value heads, each shared by `heads / kv_heads` query heads (Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Channels inside the feed-forward part.
    pub hidden: usize,
    /// Base of the rotary wavelengths (Su et al. 2021); 10 000 in the paper.
    pub rope_base: f64,
    /// Added to the mean square before its root in RMSNorm.
    pub norm_eps: f64,
    /// Standard deviation of the initial matrices.
    pub init_std: f64,
    /// Seed of the initial weights.
    pub seed: u64,
    /// Channels that cross a cut; `None` sends the whole stream and leaves a plain Llama.
    pub bottleneck: Option<usize>,
    /// Pipeline stages, `K`.
    pub stages: usize,
}

/// Says which rule a [`ModelConfig`] breaks.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A size is zero.
    #[error("model {name} is 0, expected at least 1")]
    Zero {
        /// The field's name.
        name: &'static str,
    },
    /// A size is beyond what its products with other sizes can be addressed for.
    #[error("model {name} is {got}, expected at most {largest}")]
    TooLarge {
        /// The field's name.
        name: &'static str,
        /// Its value.
        got: usize,
        /// The limit.
        largest: usize,
    },
    /// One size does not divide another.
    #[error("model {whole_name} {whole} is not a multiple of {part_name} {part}")]
    NotMultiple {
        /// The field that should be a multiple.
        whole_name: &'static str,
        /// Its value.
        whole: usize,
        /// The field that should divide it.
        part_name: &'static str,
        /// Its value.
        part: usize,
    },
    /// Rotary positions turn pairs of channels, so the head size is even.
    #[error("model head size {got} (width / heads) is odd, expected an even number")]
    OddHead {
        /// The head size.
        got: usize,
    },
    /// Fewer blocks than stages.
    #[error("model has {layers} layers for {stages} stages, expected at least one layer per stage")]
    TooFewLayers {
        /// Blocks of the model.
        layers: usize,
        /// Pipeline stages.
        stages: usize,
    },
    /// A bottleneck wider than the stream compresses nothing.
    #[error("model bottleneck {got} exceeds the width {width}")]
    WideBottleneck {
        /// Channels asked for.
        got: usize,
        /// Channels of the stream.
        width: usize,
    },
    /// A real number is out of its range.
    #[error("model {name} is {got}, expected {expected}")]
    Number {
        /// The field's name.
        name: &'static str,
        /// Its value.
        got: f64,
        /// The range, in words.
        expected: &'static str,
    },
}

impl ModelConfig {
    /// Checks every rule that the rest of the crate relies on.
    ///
    /// # Errors
    /// Returns the first broken rule, with the value and what was expected.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("context", self.context),
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("hidden", self.hidden),
            ("stages", self.stages),
            ("bottleneck", self.bottleneck.unwrap_or(1)),
        ];
        for (name, size) in sizes {
            if size == 0 {
                return Err(ConfigError::Zero { name });
            }
            let largest = if name == "layers" { LAYERS_MAX } else { SIZE_MAX };
            if size > largest {
                return Err(ConfigError::TooLarge { name, got: size, largest });
            }
        }
        check_multiple(("width", self.width), ("heads", self.heads))?;
        check_multiple(("heads", self.heads), ("kv_heads", self.kv_heads))?;
        if self.head_size() % 2 == 1 {
            return Err(ConfigError::OddHead { got: self.head_size() });
        }
        if self.layers < self.stages {
            return Err(ConfigError::TooFewLayers { layers: self.layers, stages: self.stages });
        }
        if self.wire_width() > self.width {
            return Err(ConfigError::WideBottleneck { got: self.wire_width(), width: self.width });
        }
        check_number("rope_base", self.rope_base, self.rope_base > 1.0, "a finite number above 1")?;
        check_number("norm_eps", self.norm_eps, self.norm_eps > 0.0, "a finite number above 0")?;
        check_number("init_std", self.init_std, self.init_std > 0.0, "a finite number above 0")
    }

    /// Returns the blocks of each stage, in order.
    ///
    /// With three stages or more the two ends, which also hold the embedding and the output head, get fewer
    /// blocks than the middle when every stage still has one: `layers / stages - 1`, as in IOTA's balanced
    /// splits, when that quotient is at least 3. Blocks left over go one by one to the middle, first stage
    /// first.
    ///
    /// # Panics
    /// When the config has no stages or fewer layers than stages, which [`ModelConfig::validate`] refuses.
    #[must_use]
    pub fn cut(&self) -> Vec<Range<usize>> {
        assert!(self.stages > 0 && self.layers >= self.stages, "validated: a layer per stage");
        let sizes = self.stage_sizes();
        let mut start = 0;
        let mut ranges = Vec::with_capacity(sizes.len());
        for size in sizes {
            ranges.push(start..start + size);
            start += size;
        }
        assert_eq!(start, self.layers, "the stages hold every layer once");
        ranges
    }

    /// Returns the number of parameters of one stage.
    ///
    /// # Panics
    /// When `stage` is not below [`ModelConfig::stages`].
    #[must_use]
    pub fn parameter_count(&self, stage: usize) -> usize {
        StageLayout::of(self, stage).len()
    }

    /// Returns the number of parameters of all stages.
    #[must_use]
    pub fn total_parameter_count(&self) -> usize {
        (0..self.stages).map(|stage| self.parameter_count(stage)).sum()
    }

    /// Returns the channels of an activation that crosses a cut.
    #[must_use]
    pub fn wire_width(&self) -> usize {
        self.bottleneck.unwrap_or(self.width)
    }

    /// Returns the channels of one head, `D`.
    #[must_use]
    pub fn head_size(&self) -> usize {
        self.width / self.heads
    }

    fn stage_sizes(&self) -> Vec<usize> {
        let (layers, stages) = (self.layers, self.stages);
        let even = layers / stages;
        if stages < 3 {
            // The first stages take the remainder: the last one also computes the output head.
            return (0..stages).map(|stage| even + usize::from(stage < layers % stages)).collect();
        }
        let end = if even >= 3 { even - 1 } else { even };
        let (inner, middle) = (layers - 2 * end, stages - 2);
        let mut sizes = vec![end];
        sizes.extend((0..middle).map(|stage| inner / middle + usize::from(stage < inner % middle)));
        sizes.push(end);
        sizes
    }
}

fn check_multiple(whole: (&'static str, usize), part: (&'static str, usize)) -> Result<(), ConfigError> {
    if whole.1.is_multiple_of(part.1) {
        return Ok(());
    }
    Err(ConfigError::NotMultiple { whole_name: whole.0, whole: whole.1, part_name: part.0, part: part.1 })
}

fn check_number(
    name: &'static str,
    got: f64,
    holds: bool,
    expected: &'static str,
) -> Result<(), ConfigError> {
    if got.is_finite() && holds { Ok(()) } else { Err(ConfigError::Number { name, got, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny;

    fn sizes(layers: usize, stages: usize) -> Vec<usize> {
        let config = ModelConfig { layers, stages, ..tiny() };
        config.cut().into_iter().map(|range| range.len()).collect()
    }

    #[test]
    fn ends_hold_fewer_blocks_than_the_middle_when_there_are_enough() {
        assert_eq!(sizes(16, 3), [4, 8, 4]);
        assert_eq!(sizes(50, 5), [9, 11, 11, 10, 9]);
    }

    #[test]
    fn every_stage_holds_a_block_and_no_block_is_lost() {
        for stages in 1..8 {
            for layers in stages..40 {
                let cut = sizes(layers, stages);
                assert!(cut.iter().all(|size| *size > 0), "{layers} layers, {stages} stages: {cut:?}");
                assert_eq!(cut.iter().sum::<usize>(), layers);
            }
        }
    }

    #[test]
    fn broken_configs_are_refused_with_the_value() {
        let cases = [
            (ModelConfig { heads: 0, ..tiny() }, "model heads is 0, expected at least 1"),
            (ModelConfig { heads: 3, kv_heads: 3, ..tiny() }, "model width 16 is not a multiple of heads 3"),
            (
                ModelConfig { heads: 16, kv_heads: 16, ..tiny() },
                "model head size 1 (width / heads) is odd, expected an even number",
            ),
            (
                ModelConfig { layers: 2, stages: 3, ..tiny() },
                "model has 2 layers for 3 stages, expected at least one layer per stage",
            ),
            (ModelConfig { bottleneck: Some(17), ..tiny() }, "model bottleneck 17 exceeds the width 16"),
            (
                ModelConfig { init_std: f64::NAN, ..tiny() },
                "model init_std is NaN, expected a finite number above 0",
            ),
        ];
        for (config, message) in cases {
            assert_eq!(config.validate().unwrap_err().to_string(), message);
        }
        assert_eq!(tiny().validate(), Ok(()));
    }
}
