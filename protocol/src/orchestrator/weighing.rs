//! Whether samples are dealt by what miners say of their speed.
//!
//! What a miner says of its speed nobody can check, and it is worth lying about: who is dealt more earns more. What shows is
//! whether epochs get shorter by believing it. So a run tries both, in all stages at once since each waits for the others, and
//! keeps to what was better:
//!
//! ```text
//! evenly 2 ─▶ by speed 2 ─▶ not longer? ─ yes ─▶ by speed 16, 32, … 256 ─▶ evenly 2 ─▶ not longer? …
//!                                  └────── no ──▶ evenly 16, 32, 64 ───────▶ by speed 2 ─▶ not longer? …
//! ```
//! Epochs that are compared follow each other, so that what else makes them longer or shorter, such as miners that come and go,
//! seldom lies between. Who overstates its speed slows the run down until it is not believed any more; then nobody is, for a
//! while, or until a liar has contradicted itself and is [gone](super::doubts).

use std::collections::{BTreeMap, VecDeque};

use super::waits::in_step;
use crate::id::{Epoch, StageIndex};
use crate::run_state::{Phase, RunState};
use crate::time::Instant;

/// Epochs of each kind that are compared. The shortest of them counts: what makes an epoch longer than its deal does is chance.
const COMPARED: usize = 2;
/// How much longer epochs dealt by speed may be than even ones.
const LONGER_MAX: f64 = 1.1;
/// How much longer they may be than when they were last compared, before they are again.
const SLOWER_MAX: f64 = 1.25;
/// Epochs for which a run keeps to what was better at first, and at most: twice as many each time it is the same. Where speed is
/// believed a liar shows as soon as it comes; where it is not, nothing shows that it is gone.
const KEPT_MIN: u32 = 16;
const KEPT_BELIEVED_MAX: u32 = 256;
const KEPT_EVEN_MAX: u32 = 64;

/// Epochs whose way is remembered: stages are an epoch apart at most.
const WAYS_KEPT: usize = 4;
/// The stage whose epochs are timed. It has an epoch's last gradients.
const TIMED: StageIndex = StageIndex(0);

/// What this candidate has seen, and how it would deal.
#[derive(Debug, Default)]
pub(super) struct Weighing {
    known: Known,
    /// Whether these epochs are dealt evenly, in all stages alike.
    ways: BTreeMap<Epoch, bool>,
    /// The epoch under way: since when all stages are in it, and whether it was dealt evenly.
    begun: Option<(Epoch, Instant, bool)>,
}

/// How long epochs took, in seconds, and what follows.
#[derive(Debug)]
struct Known {
    /// The last epochs of each kind.
    even: VecDeque<f64>,
    by_speed: VecDeque<f64>,
    /// Whether speed is believed, but for epochs that test what it is worth.
    believed: bool,
    /// Whether epochs were longer for believing it when that was tested last.
    doubted: bool,
    /// Whether the other kind is tried.
    testing: bool,
    /// The first epoch after what is done now.
    until: Epoch,
    /// How long what is better is kept to.
    kept: u32,
    /// The shortest epoch by speed when it was last compared.
    least: f64,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            even: VecDeque::new(),
            by_speed: VecDeque::new(),
            believed: false,
            doubted: false,
            testing: false,
            until: after(Epoch(0), COMPARED),
            kept: KEPT_MIN,
            least: f64::INFINITY,
        }
    }
}

impl Known {
    const fn is_even(&self) -> bool {
        self.believed == self.testing
    }

    /// Takes how long an epoch took that was dealt evenly or not. Where speeds are the same it may be even though it was not to be.
    fn took(&mut self, epoch: Epoch, is_even: bool, seconds: f64) {
        let took = if is_even { &mut self.even } else { &mut self.by_speed };
        took.push_back(seconds);
        if took.len() > COMPARED {
            took.pop_front();
        }
        let next = epoch.next();
        if self.testing {
            let tested = if self.believed { &self.even } else { &self.by_speed };
            if next >= self.until && tested.len() >= COMPARED {
                self.compare(next);
            }
        } else if next >= self.until || self.is_slower() {
            self.test(next);
        }
    }

    /// From `next` on, the other kind is tried.
    fn test(&mut self, next: Epoch) {
        self.testing = true;
        self.until = after(next, COMPARED);
        if self.believed { self.even.clear() } else { self.by_speed.clear() }
    }

    fn compare(&mut self, next: Epoch) {
        self.least = shortest(&self.by_speed);
        let believed = self.by_speed.is_empty() || self.least <= shortest(&self.even) * LONGER_MAX;
        let most = if believed { KEPT_BELIEVED_MAX } else { KEPT_EVEN_MAX };
        self.kept = if believed == self.believed { (self.kept * 2).min(most) } else { KEPT_MIN };
        (self.believed, self.doubted, self.testing) = (believed, !believed, false);
        self.until = Epoch(next.0.saturating_add(self.kept));
    }

    /// Whether something has made epochs by speed longer.
    fn is_slower(&self) -> bool {
        self.believed && self.by_speed.len() >= COMPARED && shortest(&self.by_speed) > self.least * SLOWER_MAX
    }
}

fn shortest(took: &VecDeque<f64>) -> f64 {
    took.iter().copied().fold(f64::INFINITY, f64::min)
}

fn after(epoch: Epoch, epochs: usize) -> Epoch {
    Epoch(epoch.0.saturating_add(u32::try_from(epochs).unwrap_or(u32::MAX)))
}

impl Weighing {
    /// Notes how long epochs take, and settles how those are dealt that stages wait to open.
    pub(super) fn observe(&mut self, now: Instant, state: &RunState) {
        let Some(timed) = state.stage(TIMED) else { return };
        match &timed.phase {
            Phase::Training(training) if in_step(state, training.epoch) => {
                if self.begun.is_none_or(|(epoch, ..)| epoch != training.epoch) {
                    self.begun = Some((training.epoch, now, is_dealt_evenly(state, training.epoch)));
                }
            }
            Phase::Merging(training, _) => {
                let begun = self.begun.take().filter(|(epoch, ..)| *epoch == training.epoch);
                if let Some((epoch, since, is_even)) = begun {
                    self.known.took(epoch, is_even, now.since(since).as_secs_f64());
                }
            }
            Phase::Waiting | Phase::Training(_) => {}
        }
        for stage in state.stages().iter().filter(|stage| matches!(stage.phase, Phase::Waiting)) {
            self.ways.entry(stage.version).or_insert(self.known.is_even());
        }
        while self.ways.len() > WAYS_KEPT {
            self.ways.pop_first();
        }
    }

    /// Somebody who said too much is gone: whether the others do is tried again.
    pub(super) fn handle_liar_gone(&mut self, state: &RunState) {
        if self.known.doubted {
            let next = state.stage(TIMED).map(|timed| timed.version.next());
            self.known.test(next.unwrap_or_default());
        }
    }

    /// Whether claims of speed have failed their last test, and none is under way.
    pub(super) const fn is_doubted(&self) -> bool {
        self.known.doubted && !self.known.testing
    }

    /// Whether all members of a stage get the same share of an epoch, whatever they say.
    pub(super) fn is_even(&self, epoch: Epoch) -> bool {
        self.ways.get(&epoch).copied().unwrap_or_else(|| self.known.is_even())
    }
}

/// Whether all stages have dealt an epoch evenly, as far as is remembered.
fn is_dealt_evenly(state: &RunState, epoch: Epoch) -> bool {
    state.stages().iter().all(|stage| {
        let under_way = stage.training().filter(|training| training.epoch == epoch);
        let training = under_way.or_else(|| stage.closed_epoch(epoch).map(|closed| &closed.training));
        training.is_none_or(|training| training.deal.is_even())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of 200 epochs are dealt by speed if even ones take as long as `even` says and others as `by_speed` does.
    fn by_speed(even: impl Fn(u32) -> f64, by_speed: impl Fn(u32) -> f64) -> Vec<u32> {
        let mut known = Known::default();
        let mut dealt = Vec::new();
        for epoch in 0..200 {
            let is_even = known.is_even();
            known.took(Epoch(epoch), is_even, if is_even { even(epoch) } else { by_speed(epoch) });
            if !is_even {
                dealt.push(epoch);
            }
        }
        dealt
    }

    fn all_but(even: &[u32]) -> Vec<u32> {
        (0..200).filter(|epoch| !even.contains(epoch)).collect()
    }

    #[test]
    fn speed_is_believed_while_epochs_are_not_longer_for_it() {
        let all = all_but(&[0, 1, 20, 21, 54, 55, 120, 121]);
        assert_eq!(by_speed(|_| 10.0, |_| 6.0), all);
        assert_eq!(by_speed(|_| 10.0, |_| 10.5), all, "as long is not longer");
        let hiccups = |epoch: u32| if epoch.is_multiple_of(3) { 40.0 } else { 8.0 };
        assert_eq!(by_speed(|_| 10.0, hiccups), all, "chance is not the deal's fault");
    }

    #[test]
    fn who_makes_epochs_longer_is_believed_more_and_more_seldom() {
        let dealt = by_speed(|_| 10.0, |_| 24.0);
        assert_eq!(dealt, [2, 3, 36, 37, 102, 103, 168, 169]);
    }

    #[test]
    fn claims_are_doubted_after_a_test_that_they_failed_and_not_while_they_are_tested() {
        let (mut known, mut doubted) = (Known::default(), Vec::new());
        for epoch in 0..40 {
            known.took(Epoch(epoch), known.is_even(), if known.is_even() { 10.0 } else { 24.0 });
            if known.doubted && !known.testing {
                doubted.push(epoch);
            }
        }
        // Dealt by speed are 2, 3, 36 and 37. What is known after an epoch is used from the next on.
        let expected: Vec<u32> = (3..35).chain(37..40).collect();
        assert_eq!(doubted, expected);
        known.test(Epoch(40));
        assert!(!known.is_even(), "a liar is gone");
        (40..42).for_each(|epoch| known.took(Epoch(epoch), false, 8.0));
        assert!(known.believed && !known.doubted);
    }

    #[test]
    fn it_is_believed_again_when_the_liar_is_gone() {
        let dealt = by_speed(|_| 10.0, |epoch| if epoch < 10 { 24.0 } else { 8.0 });
        assert_eq!(dealt[..6], [2, 3, 36, 37, 38, 39]);
        assert!(dealt.len() > 150, "{}", dealt.len());
    }

    #[test]
    fn a_liar_that_comes_later_is_noticed_at_once() {
        let dealt = by_speed(|_| 10.0, |epoch| if epoch < 100 { 8.0 } else { 24.0 });
        let later: Vec<u32> = dealt.into_iter().filter(|epoch| *epoch >= 100).collect();
        assert_eq!(later, [100, 101, 120, 121, 154, 155]);
    }

    #[test]
    fn what_makes_all_epochs_longer_is_not_the_deals_fault() {
        let slower = |epoch: u32, took: f64| if epoch < 40 { took } else { took * 3.0 };
        let dealt = by_speed(|epoch| slower(epoch, 10.0), |epoch| slower(epoch, 8.0));
        // It is looked at once more, in epochs 42 and 43.
        assert_eq!(dealt.iter().filter(|epoch| (40..=60).contains(*epoch)).count(), 19);
        assert!(dealt.len() > 180, "{}", dealt.len());
    }

    #[test]
    fn equal_speeds_are_no_test() {
        let mut known = Known::default();
        (0..100).for_each(|epoch| known.took(Epoch(epoch), true, 10.0));
        assert!(!known.is_even(), "whoever says that it is faster is believed first");
    }
}
