//! Why miners lose their places.

use serde::{Deserialize, Serialize};

/// Why a miner lost its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EvictReason {
    /// No record for `timing.eviction`, or longer.
    Silent,
    /// It left: its record no longer asks for a miner's place.
    Left,
    /// Its contribution's bytes are there and no valid partition.
    InvalidContribution,
    /// Its merged partition differs from what two others computed from the same inputs.
    WrongMerge,
    /// Validators replayed its epoch, and it is not what the miner committed to.
    FailedReplay,
    /// Nobody could get what replays of its epochs need, several times in a row.
    Unproven,
    /// It does too little of its stage's work, by the run's `scores.kick`.
    LowScore,
    /// It signed two messages under one number.
    Equivocation,
    /// It said that it is faster than it may say, knowing that.
    OverstatedSpeed,
}

impl EvictReason {
    /// Whether it was proven to have cheated, or to compute wrongly, and gets no place again.
    #[must_use]
    pub const fn is_proven(self) -> bool {
        match self {
            Self::InvalidContribution
            | Self::WrongMerge
            | Self::FailedReplay
            | Self::Equivocation
            | Self::OverstatedSpeed => true,
            Self::Silent | Self::Left | Self::Unproven | Self::LowScore => false,
        }
    }

    /// Its name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Left => "left",
            Self::InvalidContribution => "invalid contribution",
            Self::WrongMerge => "wrong merge",
            Self::FailedReplay => "failed replay",
            Self::Unproven => "unproven",
            Self::LowScore => "low score",
            Self::Equivocation => "equivocation",
            Self::OverstatedSpeed => "overstated speed",
        }
    }
}

impl std::fmt::Display for EvictReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
