//! What a miner's work is worth: a fold of the log, so that every peer computes the same scores, byte for byte.
//!
//! After the IOTA primer (arXiv 2507.17766, incentives), where the score of a miner is the sum over epochs *n* of
//! `S(n) × w(t(n))`: the backward passes of an epoch, none if its check failed, times a weight that is 1 up to an age and 0
//! beyond it.
//!
//! ```text
//! score = max(0, Σ samples − penalty × Σ unprocessed − Σ held up)     over the epochs with age ≤ scores.window
//!       = 0                                                           if the check of any of them failed
//! age   = version of the stage − epoch                    of the newest merge: 1
//! ```
//! A sample is counted where its contribution was merged: it went forward and backward there. Where we depart from the primer:
//!
//! - **Age is in epochs of the stage.** The log has no clock. IOTA's is ten hours; an epoch that is passed over ages others too.
//! - **An epoch that nobody checked counts.** Who is checked is drawn afterwards, so it stands for those drawn. In IOTA's code of
//!   2025 only what a validator replayed counted, by one point for each merge, whatever the number of passes.
//! - **A failed check costs the window**, not the one epoch: who was caught once was not caught before. The score stays at zero
//!   until that epoch is out of the window, and then is what was done since.
//! - **A sample that was dealt and not processed costs** `scores.penalty_unprocessed` samples. IOTA's documents name such a penalty
//!   and no number; its code takes 3 points for each activation that is missing.
//! - **A leader that all others deposed** is charged what everybody waited for it ([`no_confidence`](crate::no_confidence)), if it mines.
//! - **A sample of one stage is worth as much as one of any other**, though stages differ in what a sample costs them: the tail
//!   computes the loss, the head has no gradient to send back.
//!
//! Who lost its place, or moved, keeps its score until its work is out of the window. A merge that is undone counts for nothing.
//!
//! With `scores.by = "loss"`, in runs of one stage, the score is what evaluators found that contributions do to the loss
//! ([`gauntlet`](crate::gauntlet)), and samples are counted beside it. A failed check costs it all the same.
//!
//! Samples are integers, so the order of inputs between two merges of a stage changes nothing. Numbers of the spec that are
//! fractions are rounded once, to millionths or [parts of a share](Share).

mod export;
mod kick;
mod share;
mod table;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::gauntlet::{Found, Gauntlet, Settings};
use crate::id::{Epoch, PeerId, StageIndex};
use crate::limits::{SAMPLES_PER_EPOCH_MAX, SCORED_MINERS_MAX};
use crate::spec::ScoresSpec;
use crate::wire::message::EvictReason;

pub use export::{Incentive, ScoresExport};
pub use kick::Place;
pub use share::Share;
pub use table::{Failure, Row};

/// What a miner did in one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// The miner.
    pub peer: PeerId,
    /// Samples of its that were merged.
    pub samples: u32,
    /// Samples that it was dealt and did not process.
    pub unprocessed: u32,
}

impl Work {
    /// The work of a member that was `dealt` samples when its epoch closed, and in whose contribution are `samples`: 0 if it made
    /// none. What it says beyond what it was dealt does not count.
    #[must_use]
    pub fn of(peer: PeerId, samples: u32, dealt: u32) -> Self {
        let samples = samples.min(dealt);
        Self { peer, samples, unprocessed: dealt - samples }
    }
}

/// What was proved against a miner, the lightest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Penalty {
    /// Its contribution's bytes are there and no valid partition.
    InvalidContribution,
    /// Its merged partition differs from what two others computed from the same inputs.
    WrongMerge,
    /// It signed two messages under one number.
    Equivocation,
    /// It claimed to be faster than it may.
    OverstatedSpeed,
    /// A validator that did its work again came to something else.
    FailedReplay,
}

impl Penalty {
    /// What an eviction for this reason proves. Silence and leaving prove nothing: slow is not dishonest.
    #[must_use]
    pub const fn of(reason: EvictReason) -> Option<Self> {
        match reason {
            EvictReason::Silent | EvictReason::Left | EvictReason::Unproven | EvictReason::LowScore => None,
            EvictReason::InvalidContribution => Some(Self::InvalidContribution),
            EvictReason::WrongMerge => Some(Self::WrongMerge),
            EvictReason::Equivocation => Some(Self::Equivocation),
            EvictReason::OverstatedSpeed => Some(Self::OverstatedSpeed),
            EvictReason::FailedReplay => Some(Self::FailedReplay),
        }
    }
}

/// What is known of an epoch's work, in the order in which one outweighs the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    #[default]
    Unchecked,
    Unproven,
    Validated,
    Failed(Penalty),
}

/// What is remembered of a miner's work in an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Worked {
    samples: u32,
    unprocessed: u32,
    /// Samples that everybody could have done while it led, and did not lead.
    #[serde(default, skip_serializing_if = "is_nothing")]
    held_up: u32,
    verdict: Verdict,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
const fn is_nothing(samples: &u32) -> bool {
    *samples == 0
}

/// Miners of a stage that lost their place for their score while it was at one version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kicks {
    version: Epoch,
    count: u32,
}

/// The work of all miners that may count. Part of the state of a run.
///
/// Memory is bounded: a record goes when its epoch is out of the window, a miner with its last record, and there are at most
/// [`SCORED_MINERS_MAX`] miners. One beyond that is not scored until another is forgotten.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    miners: BTreeMap<PeerId, BTreeMap<(StageIndex, Epoch), Worked>>,
    kicks: BTreeMap<StageIndex, Kicks>,
    #[serde(default, skip_serializing_if = "Gauntlet::is_new")]
    gauntlet: Gauntlet,
}

/// The oldest epoch of a stage at `version` whose work counts. The step decay `w` of the primer is 1 from there on.
const fn oldest(spec: &ScoresSpec, version: Epoch) -> Epoch {
    Epoch(version.0.saturating_sub(spec.window))
}

impl Scores {
    /// The merge of `epoch` closed. `work` names each member at most once: who submitted, and who was dealt samples and did
    /// not. Forgets what is out of the window.
    pub fn merged(
        &mut self,
        spec: &ScoresSpec,
        stage: StageIndex,
        epoch: Epoch,
        work: impl IntoIterator<Item = Work>,
    ) {
        self.forget(stage, oldest(spec, epoch.next()));
        let samples_max = u32::try_from(SAMPLES_PER_EPOCH_MAX).unwrap_or(u32::MAX);
        let work: BTreeMap<PeerId, Work> = work.into_iter().map(|work| (work.peer, work)).collect();
        for Work { peer, samples, unprocessed } in work.into_values() {
            if samples == 0 && unprocessed == 0 {
                continue;
            }
            if let Some(worked) = self.record(stage, epoch, peer) {
                (worked.samples, worked.unprocessed) =
                    (samples.min(samples_max), unprocessed.min(samples_max));
            }
        }
    }

    /// The merges of `from` and later epochs of the stage were passed over after the fact. What was done for them counts for
    /// nothing; what was proved against somebody still does, and who was held up by whom.
    pub fn undone(&mut self, stage: StageIndex, from: Epoch) {
        self.miners.retain(|_, epochs| {
            epochs.retain(|&(of, epoch), worked| {
                if of != stage || epoch < from || matches!(worked.verdict, Verdict::Failed(_)) {
                    return true;
                }
                *worked = Worked { held_up: worked.held_up, ..Worked::default() };
                worked.held_up > 0
            });
            !epochs.is_empty()
        });
    }

    /// Evaluators have said what the contributions to a merge do to the loss.
    pub fn evaluated(&mut self, found: &BTreeMap<PeerId, Found>) {
        self.gauntlet.close(&Settings::default(), found);
    }

    /// Whether anything that `peer` did may still count.
    #[must_use]
    pub fn remembers(&self, peer: PeerId) -> bool {
        self.miners.contains_key(&peer)
    }

    /// A validator found the work of `peer` right. Nothing if that is not remembered.
    pub fn validated(&mut self, stage: StageIndex, epoch: Epoch, peer: PeerId) {
        let worked = self.miners.get_mut(&peer).and_then(|epochs| epochs.get_mut(&(stage, epoch)));
        if let Some(worked) = worked {
            worked.verdict = worked.verdict.max(Verdict::Validated);
        }
    }

    /// Nobody could check the work of `peer`: it counts for nothing, and is no failure. Nothing if that is not remembered.
    pub fn unproven(&mut self, stage: StageIndex, epoch: Epoch, peer: PeerId) {
        let worked = self.miners.get_mut(&peer).and_then(|epochs| epochs.get_mut(&(stage, epoch)));
        if let Some(worked) = worked {
            worked.verdict = worked.verdict.max(Verdict::Unproven);
        }
    }

    /// Something was proved against `peer`. Its epoch may have been merged by now, or be under way, but is no later one: that would
    /// be remembered for too long.
    pub fn failed(&mut self, stage: StageIndex, epoch: Epoch, peer: PeerId, why: Penalty) {
        if let Some(worked) = self.record(stage, epoch, peer) {
            worked.verdict = worked.verdict.max(Verdict::Failed(why));
        }
    }

    /// `peer` led and did not lead, and was deposed while its stage was in `epoch`, or waited for it: it held so many samples up. No
    /// later epoch, like that of a failure.
    pub fn deposed(&mut self, stage: StageIndex, epoch: Epoch, peer: PeerId, samples: u32) {
        if let Some(worked) = self.record(stage, epoch, peer) {
            worked.held_up = worked.held_up.saturating_add(samples);
        }
    }

    /// The record of an epoch, made if there is none; nothing if there is no room for a further miner.
    fn record(&mut self, stage: StageIndex, epoch: Epoch, peer: PeerId) -> Option<&mut Worked> {
        if self.miners.len() >= SCORED_MINERS_MAX && !self.miners.contains_key(&peer) {
            return None;
        }
        Some(self.miners.entry(peer).or_default().entry((stage, epoch)).or_default())
    }

    /// Drops what was done for `stage` before its epoch `oldest`, and the miners of whom nothing is left.
    fn forget(&mut self, stage: StageIndex, oldest: Epoch) {
        self.miners.retain(|_, epochs| {
            while let Some((&of, _)) = epochs.range((stage, Epoch(0))..(stage, oldest)).next() {
                epochs.remove(&of);
            }
            !epochs.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
