//! What each miner has, and why.

use super::share::split;
use super::{Penalty, Scores, Share, Verdict, Worked, oldest};
use crate::gauntlet::{Settings, Standing};
use crate::id::{Epoch, PeerId, StageIndex};
use crate::spec::{ScoredBy, ScoresSpec};

/// A sample in the unit of scores.
const MICRO: u64 = 1_000_000;
/// Highest score, in millionths of a sample: more than samples, epochs and stages of a run can make, and little enough that
/// the products of a division into shares stay below 2¹²⁸.
const SCORE_MICRO_MAX: u64 = 1 << 55;

/// Something that was proved against a miner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failure {
    /// The stage.
    pub stage: StageIndex,
    /// The epoch.
    pub epoch: Epoch,
    /// What.
    pub why: Penalty,
}

/// What one miner has. All counts are over the window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// The miner.
    pub peer: PeerId,
    /// Epochs whose work counts.
    pub epochs: u32,
    /// Those of them that a validator found right.
    pub validated: u32,
    /// Epochs that nobody could check: they are none of [`epochs`](Self::epochs).
    pub unproven: u32,
    /// What was proved against it, by stage and epoch. With any, its score is zero.
    pub failures: Vec<Failure>,
    /// Samples merged, of epochs that did not fail.
    pub samples: u64,
    /// Samples that it was dealt and did not process, of the same epochs.
    pub unprocessed: u64,
    /// Samples that everybody could have done while it led and did not lead.
    pub held_up: u64,
    /// What evaluators found of its contributions, if scores are by the loss and one was evaluated.
    pub standing: Option<Standing>,
    /// Its score, in millionths of a sample, or by the loss in millionths of a rating's point.
    pub score_micro: u64,
    /// What it gets.
    pub share: Share,
}

impl Row {
    /// Epochs that were checked, with either result.
    #[must_use]
    pub fn checked(&self) -> u32 {
        self.validated.saturating_add(u32::try_from(self.failures.len()).unwrap_or(u32::MAX))
    }

    /// Adds up records of a miner, which are in the window.
    pub(super) fn of<'a>(
        spec: &ScoresSpec,
        peer: PeerId,
        records: impl Iterator<Item = (&'a (StageIndex, Epoch), &'a Worked)>,
    ) -> Self {
        let mut row = Self { peer, ..Self::default() };
        for (&(stage, epoch), worked) in records {
            row.held_up += u64::from(worked.held_up);
            if let Verdict::Failed(why) = worked.verdict {
                row.failures.push(Failure { stage, epoch, why });
                continue;
            }
            if worked.verdict == Verdict::Unproven {
                row.unproven += 1;
                continue;
            }
            row.epochs += u32::from(worked.samples > 0 || worked.unprocessed > 0);
            row.validated += u32::from(worked.verdict == Verdict::Validated);
            row.samples += u64::from(worked.samples);
            row.unprocessed += u64::from(worked.unprocessed);
        }
        if row.failures.is_empty() {
            row.score_micro = row.work_micro(spec).saturating_sub(row.held_up.saturating_mul(MICRO));
        }
        row
    }

    /// What its work is worth, in millionths of a sample, whatever was proved against it and whomever it held up.
    pub(super) fn work_micro(&self, spec: &ScoresSpec) -> u64 {
        let earned = self.samples.saturating_mul(MICRO).min(SCORE_MICRO_MAX);
        earned.saturating_sub(self.unprocessed.saturating_mul(micro(spec.penalty_unprocessed)))
    }
}

/// A number of the spec in millionths, rounded.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a number without fraction; above the range it is the largest"
)]
#[expect(clippy::cast_sign_loss, reason = "a valid spec has none below zero")]
pub(super) fn micro(number: f64) -> u64 {
    (number * 1e6).round() as u64
}

impl Scores {
    /// What each miner has that is remembered with anything in the window, in [`PeerId`] order. `now` has the version of each
    /// stage, head first.
    #[must_use]
    pub fn table(&self, spec: &ScoresSpec, now: &[Epoch]) -> Vec<Row> {
        let rows = self.miners.iter().map(|(peer, epochs)| {
            let counting = epochs.iter().filter(|((stage, epoch), _)| in_window(spec, *stage, *epoch, now));
            Row::of(spec, *peer, counting)
        });
        let rows = rows.map(|row| if spec.by == ScoredBy::Loss { self.by_loss(row) } else { row });
        let says =
            |row: &Row| row.epochs > 0 || row.unproven > 0 || row.held_up > 0 || !row.failures.is_empty();
        let mut rows: Vec<Row> = rows.filter(says).collect();
        let scores: Vec<u64> = rows.iter().map(|row| row.score_micro).collect();
        for (row, share) in rows.iter_mut().zip(split(&scores, Share::of(spec.burn), Share::of(spec.cap))) {
            row.share = share;
        }
        rows
    }
}

impl Scores {
    /// The same with a score by the loss. Who held others up as a leader has as much of it as it has left of its samples.
    fn by_loss(&self, row: Row) -> Row {
        let standing = self.gauntlet.standing(row.peer).copied();
        let score = standing.map_or(0.0, |standing| standing.score(&Settings::default()));
        let left = u128::from(row.samples.saturating_sub(row.held_up));
        let whole = u128::from(micro(score).min(SCORE_MICRO_MAX));
        let parts = if row.held_up == 0 { whole } else { whole * left / u128::from(row.samples.max(1)) };
        let score_micro =
            if row.failures.is_empty() { u64::try_from(parts).unwrap_or(SCORE_MICRO_MAX) } else { 0 };
        Row { standing, score_micro, ..row }
    }
}

/// Whether what was done in `epoch` of `stage` counts with stages at the versions `now`.
pub(super) fn in_window(spec: &ScoresSpec, stage: StageIndex, epoch: Epoch, now: &[Epoch]) -> bool {
    now.get(stage.as_usize()).is_some_and(|version| epoch >= oldest(spec, *version))
}
