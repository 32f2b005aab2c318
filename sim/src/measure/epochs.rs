//! When each epoch of each stage opened, was planned, merged and applied.

use std::collections::{BTreeMap, BTreeSet};

use iota_protocol::run_state::Plan;
use iota_protocol::{Epoch, Instant, PeerId, StageIndex};

use super::roofline::MergeBound;
use crate::network::HostIndex;

/// One epoch of one stage.
#[derive(Clone, Debug, Default)]
pub(super) struct EpochTimes {
    pub(super) opened: Instant,
    /// When the plan that stands was decided.
    pub(super) planned: Option<Instant>,
    /// Plans given up.
    pub(super) aborts: u32,
    pub(super) merged: Option<Instant>,
    /// When the last submitter held the next weights.
    pub(super) applied: Option<Instant>,
    pub(super) members: usize,
    pub(super) submitters: BTreeSet<PeerId>,
    pub(super) samples: u64,
    pub(super) bound: MergeBound,
    /// When each host finished its last sample.
    pub(super) last_finished: BTreeMap<HostIndex, Instant>,
}

/// Every epoch of every stage.
pub(super) type Epochs = BTreeMap<(StageIndex, Epoch), EpochTimes>;

impl EpochTimes {
    /// Takes the plan that now stands.
    pub(super) fn plan(&mut self, at: Instant, plan: Option<&Plan>, bound: MergeBound) {
        self.planned = Some(at);
        self.bound = bound;
        self.submitters =
            plan.iter().flat_map(|plan| &plan.submitters).map(|submission| submission.peer).collect();
    }

    /// Seconds from opening to the plan.
    pub(super) fn training_seconds(&self) -> Option<f64> {
        self.planned.map(|planned| planned.since(self.opened).as_secs_f64())
    }

    /// Seconds from the plan to the decision.
    pub(super) fn reduce_seconds(&self) -> Option<f64> {
        Some(self.merged?.since(self.planned?).as_secs_f64())
    }

    /// Seconds from the plan to the last submitter's new weights.
    pub(super) fn merge_seconds(&self) -> Option<f64> {
        Some(self.applied?.max(self.merged?).since(self.planned?).as_secs_f64())
    }

    /// Seconds by which the last replica finished after the median one.
    pub(super) fn straggling_seconds(&self) -> f64 {
        let mut ends: Vec<Instant> = self.last_finished.values().copied().collect();
        ends.sort_unstable();
        let median = ends.get(ends.len().saturating_sub(1) / 2);
        median.zip(ends.last()).map_or(0.0, |(median, last)| last.since(*median).as_secs_f64())
    }
}

/// A stretch of time.
pub(super) type Span = (Instant, Instant);

/// The times in which at least one of these spans was under way, ascending and apart.
pub(super) fn union(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    let mut united: Vec<Span> = Vec::new();
    for (from, to) in spans {
        match united.last_mut() {
            Some((_, reached)) if *reached >= from => *reached = to.max(*reached),
            _ => united.push((from, to)),
        }
    }
    united
}

/// How long these spans are together.
pub(super) fn seconds(spans: &[Span]) -> f64 {
    spans.iter().map(|(from, to)| to.since(*from).as_secs_f64()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_spans_count_once() {
        let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
        let spans = vec![(at(5), at(9)), (at(1), at(3)), (at(2), at(4)), (at(6), at(7))];
        let united = union(spans);
        assert_eq!(united, [(at(1), at(4)), (at(5), at(9))]);
        assert_eq!(seconds(&united), 7.0);
    }
}
