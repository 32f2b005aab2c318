//! The inner optimizer's moments as peers name them.
//!
//! In `local` mode a contribution depends on the moments of AdamW that the miner's epoch started from, which nobody but the
//! miner has. So each manifest names two states of them: the one the epoch started from, a blob that is kept as long as the
//! contribution, and the one after the last inner step, which is the start of the miner's next epoch. Whoever goes through
//! an epoch again starts from the first, has to arrive at the second, and finds it named in the next manifest. Merge plans
//! name the second, so that nobody starts from others unnoticed.
//!
//! ```text
//! manifest of epoch 4:   moments a ──── inner steps ───▶ moments_after b
//! manifest of epoch 5:   moments b ──── inner steps ───▶ moments_after c
//! ```
//! A blob holds first moments, second moments (both little-endian f32, in the order of the weights) and the number of
//! steps taken (u64), as a state holds those of an outer optimizer. Moments that have taken no step are zeros, and are
//! written as the step count alone: they have one name at every stage of every run, [`fresh`], and need no blob. A miner
//! starts from them when it begins with a stage, in its first epoch or when it has lost what it had on disk; whether that is
//! so is for whoever knows its history to say.
//!
//! **What it costs:** 8 bytes per parameter of the stage, epoch and miner, on the disk of the miner for as long as the blobs
//! of an epoch stay, and as much memory while they are written; sent only to whoever asks. In `synchronous` mode, where
//! inner steps are not taken, there are none.

use crate::id::Hash;

/// Bytes of the step count.
const STEPS_BYTES: usize = 8;

/// The name of moments that have taken no step.
#[must_use]
pub fn fresh() -> Hash {
    Hash::of(&[0; STEPS_BYTES])
}

/// Bytes of the moments of a stage of `parameters`, at most; saturating.
#[must_use]
pub const fn bytes_max(parameters: usize) -> usize {
    parameters.saturating_mul(2 * size_of::<f32>()).saturating_add(STEPS_BYTES)
}
