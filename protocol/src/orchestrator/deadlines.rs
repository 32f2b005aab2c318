//! How long an epoch, a merge and the way to the next epoch may take before somebody is taken for late.
//!
//! | deadline | follows from | at least | at most |
//! |---|---|---|---|
//! | epoch | its samples, over what the miners of its slowest stage say they do in a second | `timing.epoch_deadline` | [`DEADLINE_STRETCH_MAX`] times that |
//! | merge | the median of its stage's last merges, as this candidate saw them | `timing.merge_deadline` | the same |
//! | ready | the median of the times after which replicas had the weights of those merges | `timing.ready_grace` | the same |
//!
//! all times [`DEADLINE_SLACK`]. A run's owner need not know how long an epoch of its model takes on machines that it has not seen:
//! with a deadline below that nobody would ever be in time. What is measured only ever adds to what the spec gives, so
//! that the start of a run, when nothing is, has no other rules. Miners that understate their speed delay by [`DEADLINE_STRETCH_MAX`]
//! at most; who overstates it brings it down to what the spec gives, and no lower.

use std::time::Duration;

use crate::id::{Epoch, PeerId, StageIndex};
use crate::limits::{DEADLINE_SLACK, DEADLINE_STRETCH_MAX};
use crate::peer::book::Book;
use crate::run_state::{RunState, Training};

/// How long an epoch may take from when all stages are in it, of which it has taken `taken`: what the spec gives is not
/// looked beyond sooner, since that costs in proportion to the swarm.
pub(super) fn epoch(state: &RunState, book: &Book, training: &Training, taken: Duration) -> Duration {
    let least = state.spec().timing.epoch_deadline.duration();
    if taken < least {
        return least;
    }
    let samples = f64::from(state.spec().training.samples_per_epoch);
    let stages = state.spec().stages().filter_map(|stage| speed(state, book, stage, training.epoch));
    let slowest = stages.min_by(f64::total_cmp);
    within(least, slowest.and_then(|speed| Duration::try_from_secs_f64(samples / speed).ok()))
}

/// How long a merge may take in a stage where one usually takes `usual`.
pub(super) fn merge(state: &RunState, usual: Option<Duration>) -> Duration {
    within(state.spec().timing.merge_deadline.duration(), usual)
}

/// How long replicas are waited for in a stage where one [usually](super::readiness) takes so long.
pub(super) fn ready(state: &RunState, usual: Option<Duration>) -> Duration {
    within(state.spec().timing.ready_grace.duration(), usual)
}

/// Samples per second of a stage's miners that work on `epoch`, or of all if it is not in that; nothing if none of them has
/// said how fast it is.
fn speed(state: &RunState, book: &Book, index: StageIndex, epoch: Epoch) -> Option<f64> {
    let training = state.stage(index)?.training().filter(|training| training.epoch == epoch);
    let works = |peer: &PeerId| training.is_none_or(|training| training.deal.is_live(*peer));
    let known =
        state.replicas(index).filter(works).filter_map(|peer| Some(book.speed(peer, index)?.newest()));
    let sum: f64 = known.sum();
    (sum > 0.0).then_some(sum / 1000.0)
}

/// A deadline of which the spec says how long it is at least, for what is expected to take so long.
fn within(least: Duration, expected: Option<Duration>) -> Duration {
    expected.map_or(least, |expected| {
        expected.saturating_mul(DEADLINE_SLACK).clamp(least, least.saturating_mul(DEADLINE_STRETCH_MAX))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_grows_with_what_is_expected_within_what_the_spec_allows() {
        let second = Duration::from_secs(1);
        let cases = [
            (None, 10),
            (Some(1), 10),
            (Some(3), 12),
            (Some(39), 156),
            (Some(41), 160),
            (Some(1 << 40), 160),
        ];
        for (expected, deadline) in cases {
            let expected = expected.map(Duration::from_secs);
            assert_eq!(within(second * 10, expected), second * deadline, "{expected:?}");
        }
    }
}
