//! Whether samples are dealt by what miners say of their speed.
//!
//! What a miner says of its speed nobody can check, and it is worth lying about: who is dealt more earns more. What shows is
//! whether epochs get shorter by believing it. So each stage starts with epochs of equal shares, and shares go by speed for
//! as long as epochs are not longer for it. Who overstates its speed slows its stage down until it is not believed any more; then
//! nobody in the stage is, for a while.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::waits::in_step;
use crate::id::{Epoch, LogIndex, StageIndex};
use crate::run_state::{Phase, RunState, Training};
use crate::time::Instant;

/// Epochs of each kind that are compared at least, and remembered at most. The shortest of them counts: what makes an epoch
/// longer than its deal does is chance.
const COMPARED_MIN: usize = 2;
const REMEMBERED_MAX: usize = 4;
/// How much longer epochs dealt by speed may be than even ones.
const LONGER_MAX: f64 = 1.1;
/// Even epochs before speed is believed again, and how many they become when it was no better each time.
const EVEN_EPOCHS: u32 = 16;
const EVEN_EPOCHS_MAX: u32 = 256;
/// Epochs after which an even one shows again how long such a one takes.
const LOOK_EPOCHS: u32 = 64;

/// What is known of all stages.
#[derive(Debug, Default)]
pub(super) struct Weighing {
    stages: BTreeMap<StageIndex, Known>,
}

/// How long a stage's epochs took, in seconds of all members together, so that a stage that grows is not taken for one that
/// became faster.
#[derive(Debug)]
struct Known {
    /// The epoch under way: the entry that opened it, and since when all stages are in it.
    begun: Option<(LogIndex, Instant)>,
    even: VecDeque<f64>,
    by_speed: VecDeque<f64>,
    /// The last even epoch.
    looked: Epoch,
    /// The first epoch in which speed is believed again.
    even_until: Epoch,
    /// How long it is not believed the next time.
    pause: u32,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            begun: None,
            even: VecDeque::new(),
            by_speed: VecDeque::new(),
            looked: Epoch(0),
            even_until: Epoch(0),
            pause: EVEN_EPOCHS,
        }
    }
}

impl Known {
    /// Takes how long an epoch took.
    fn took(&mut self, epoch: Epoch, is_even: bool, work: f64) {
        let took = if is_even { &mut self.even } else { &mut self.by_speed };
        took.push_back(work);
        if took.len() > REMEMBERED_MAX {
            took.pop_front();
        }
        if is_even {
            self.looked = epoch;
            return;
        }
        let least = |took: &VecDeque<f64>| took.iter().copied().fold(f64::INFINITY, f64::min);
        if self.by_speed.len() >= COMPARED_MIN && self.even.len() >= COMPARED_MIN {
            if least(&self.by_speed) <= least(&self.even) * LONGER_MAX {
                self.pause = EVEN_EPOCHS;
            } else {
                self.even_until = Epoch(epoch.0.saturating_add(1).saturating_add(self.pause));
                self.pause = self.pause.saturating_mul(2).min(EVEN_EPOCHS_MAX);
                self.by_speed.clear();
            }
        }
    }

    fn is_even(&self, epoch: Epoch) -> bool {
        self.even.len() < COMPARED_MIN
            || epoch < self.even_until
            || epoch.0 >= self.looked.0.saturating_add(LOOK_EPOCHS)
    }
}

impl Weighing {
    /// Notes how long epochs take.
    pub(super) fn observe(&mut self, now: Instant, state: &RunState) {
        for (index, stage) in state.spec().stages().zip(state.stages()) {
            let known = self.stages.entry(index).or_default();
            match &stage.phase {
                Phase::Training(training) if in_step(state, training.epoch) => {
                    if known.begun.is_none_or(|(opened, _)| opened != training.opened) {
                        known.begun = Some((training.opened, now));
                    }
                }
                Phase::Merging(training, _) => {
                    let begun = known.begun.take().filter(|(opened, _)| *opened == training.opened);
                    if let Some((_, since)) = begun {
                        known.took(training.epoch, training.deal.is_even(), work(training, now.since(since)));
                    }
                }
                Phase::Waiting | Phase::Training(_) => {}
            }
        }
    }

    /// Whether all members of `stage` get the same share of an epoch, whatever they say.
    pub(super) fn is_even(&self, stage: StageIndex, epoch: Epoch) -> bool {
        self.stages.get(&stage).is_none_or(|known| known.is_even(epoch))
    }
}

/// Seconds of an epoch's members together.
fn work(training: &Training, took: Duration) -> f64 {
    let members = u32::try_from(training.deal.members().count()).unwrap_or(u32::MAX);
    took.as_secs_f64() * f64::from(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of 200 epochs are dealt by speed if even ones take as long as `even` says and others as `by_speed` does.
    fn by_speed(even: impl Fn(u32) -> f64, by_speed: impl Fn(u32) -> f64) -> Vec<u32> {
        let mut known = Known::default();
        let mut dealt = Vec::new();
        for epoch in 0..200 {
            let is_even = known.is_even(Epoch(epoch));
            known.took(Epoch(epoch), is_even, if is_even { even(epoch) } else { by_speed(epoch) });
            if !is_even {
                dealt.push(epoch);
            }
        }
        dealt
    }

    #[test]
    fn speed_is_believed_while_epochs_are_not_longer_for_it() {
        let all = (2..200).filter(|epoch| ![65, 129, 193].contains(epoch)).collect::<Vec<_>>();
        // One after each look, which an even epoch takes.
        assert_eq!(by_speed(|_| 10.0, |_| 6.0), all);
        assert_eq!(by_speed(|_| 10.0, |_| 10.5), all, "as long is not longer");
        let hiccups = |epoch: u32| if epoch % 3 == 0 { 40.0 } else { 8.0 };
        assert_eq!(by_speed(|_| 10.0, hiccups), all, "chance is not the deal's fault");
    }

    #[test]
    fn who_makes_epochs_longer_is_believed_more_and_more_seldom() {
        let dealt = by_speed(|_| 10.0, |_| 24.0);
        assert_eq!(dealt, [2, 3, 20, 21, 54, 55, 120, 121]);
    }

    #[test]
    fn it_is_believed_again_when_the_liar_is_gone() {
        let dealt = by_speed(|_| 10.0, |epoch| if epoch < 10 { 24.0 } else { 8.0 });
        assert_eq!(&dealt[..4], [2, 3, 20, 21]);
        assert!(dealt.len() > 170, "{}", dealt.len());
    }

    #[test]
    fn an_even_epoch_is_looked_at_anew_from_time_to_time() {
        // All epochs become longer for another reason; those dealt by speed stay the shorter ones.
        let slower = |epoch: u32, took: f64| if epoch < 30 { took } else { took * 3.0 };
        let dealt = by_speed(|epoch| slower(epoch, 10.0), |epoch| slower(epoch, 8.0));
        assert!(dealt.len() > 150, "{}", dealt.len());
    }
}
