//! How long each stage has been at what it does, as this candidate saw it.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::id::{Epoch, LogIndex, StageIndex};
use crate::limits::MERGES_REMEMBERED;
use crate::run_state::{Phase, RunState, Stage, Training};
use crate::time::Instant;

/// What a stage has been doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Waiting(Epoch),
    Training(LogIndex, u16),
    Merging(LogIndex, u16),
}

/// How an epoch gets on in a stage.
#[derive(Clone, Copy, Debug)]
struct Progress {
    doing: Doing,
    /// Since when all stages are in the epoch.
    since: Instant,
    /// Members in it.
    live: usize,
    /// How far it has got.
    done: u64,
    /// When.
    at: Instant,
    /// How long the first step took.
    first: Option<Duration>,
}

/// The waits of all stages.
#[derive(Debug, Default)]
pub(super) struct Waits {
    doing: BTreeMap<StageIndex, (Doing, Instant)>,
    progress: BTreeMap<StageIndex, Progress>,
    /// Epochs that a stage beside has settled already, by the entries that opened them, and since when.
    overtaken: BTreeMap<StageIndex, (LogIndex, Instant)>,
    /// How long the last merges of each stage took.
    merges: BTreeMap<StageIndex, VecDeque<Duration>>,
}

impl Waits {
    /// Notes what each stage does now. `done` is a number that changes whenever a stage's epoch gets on.
    pub(super) fn observe(
        &mut self,
        now: Instant,
        state: &RunState,
        done: impl Fn(StageIndex, &Training) -> u64,
    ) {
        let mut dealt_anew = false;
        for (index, stage) in state.spec().stages().zip(state.stages()) {
            let doing = match &stage.phase {
                Phase::Waiting => Doing::Waiting(stage.version),
                Phase::Training(training) => Doing::Training(training.opened, training.attempt),
                Phase::Merging(training, plan) => Doing::Merging(training.opened, plan.attempt),
            };
            let entry = self.doing.entry(index).or_insert((doing, now));
            // No stage can do an epoch before all others are in it. Those that wait for one are not late.
            let alone = matches!(&stage.phase, Phase::Training(training) if !in_step(state, training.epoch));
            if let (Doing::Merging(..), Doing::Waiting(_)) = (entry.0, doing) {
                let merges = self.merges.entry(index).or_default();
                merges.push_back(now.since(entry.1));
                if merges.len() > MERGES_REMEMBERED {
                    merges.pop_front();
                }
            }
            if entry.0 != doing || alone {
                *entry = (doing, now);
            }
            match &stage.phase {
                Phase::Training(training) => {
                    let live = training.deal.live().count();
                    let fresh = Progress {
                        doing,
                        since: now,
                        live,
                        done: done(index, training),
                        at: now,
                        first: None,
                    };
                    dealt_anew |= self.note_progress(index, fresh, alone);
                }
                _ => drop(self.progress.remove(&index)),
            }
            let settled = |training: &&Training| state.settled_beside(index, training.epoch);
            match stage.training().filter(settled).map(|training| training.opened) {
                None => drop(self.overtaken.remove(&index)),
                Some(opened) if self.overtaken.get(&index).is_some_and(|known| known.0 == opened) => {}
                Some(opened) => drop(self.overtaken.insert(index, (opened, now))),
            }
        }
        if dealt_anew {
            // Who takes samples over has as long for them, and so have the other stages, which wait for it.
            let training = self.doing.values_mut().filter(|(doing, _)| matches!(doing, Doing::Training(..)));
            training.for_each(|(_, since)| *since = now);
        }
    }

    /// Notes how an epoch that all stages are in gets on. Returns whether somebody is in it no more, and others do what it was dealt.
    fn note_progress(&mut self, index: StageIndex, fresh: Progress, alone: bool) -> bool {
        let known = self.progress.entry(index).or_insert(fresh);
        if known.doing != fresh.doing || alone {
            *known = fresh;
            return false;
        }
        let dealt_anew = fresh.live < known.live;
        known.live = fresh.live;
        if known.done != fresh.done {
            known.first.get_or_insert(fresh.at.since(known.since));
            (known.done, known.at) = (fresh.done, fresh.at);
        }
        dealt_anew
    }

    /// Whether nothing gets done any more in any stage that trains: for `patience`, and for as long as it took until
    /// the first got something done.
    pub(super) fn is_still(&self, now: Instant, patience: Duration) -> bool {
        self.progress.values().all(|progress| {
            let still = now.since(progress.at);
            still >= patience && progress.first.is_some_and(|first| still >= first)
        })
    }

    /// Starts all waits anew.
    pub(super) fn restart(&mut self, now: Instant) {
        for progress in self.progress.values_mut() {
            progress.at = now;
        }
        for since in self.doing.values_mut().map(|(_, since)| since) {
            *since = now;
        }
        for (_, since) in self.overtaken.values_mut() {
            *since = now;
        }
    }

    /// How long a stage has been at what it does.
    pub(super) fn waited(&self, now: Instant, stage: StageIndex) -> Duration {
        self.doing.get(&stage).map_or(Duration::ZERO, |(_, since)| now.since(*since))
    }

    /// The median of the stage's last merges: one that waited for a dead owner says nothing of the next.
    pub(super) fn usual_merge(&self, stage: StageIndex) -> Option<Duration> {
        let mut merges: Vec<Duration> = self.merges.get(&stage)?.iter().copied().collect();
        merges.sort_unstable();
        merges.get(merges.len() / 2).copied()
    }

    /// For how long a stage beside this one has had its epoch settled.
    pub(super) fn overtaken(&self, now: Instant, stage: StageIndex) -> Duration {
        self.overtaken.get(&stage).map_or(Duration::ZERO, |(_, since)| now.since(*since))
    }

    /// Whether a stage beside this one has settled its epoch, and for `patience` nothing more got done here: what is not on
    /// its way from there will never come.
    pub(super) fn is_stalled(&self, now: Instant, stage: StageIndex, patience: Duration) -> bool {
        let still = self.progress.get(&stage).map_or(Duration::ZERO, |progress| now.since(progress.at));
        self.overtaken(now, stage).min(still) >= patience
    }
}

/// Whether every stage is in `epoch` or past it.
pub(super) fn in_step(state: &RunState, epoch: Epoch) -> bool {
    let reached = |stage: &Stage| {
        stage.version > epoch || stage.training().is_some_and(|training| training.epoch == epoch)
    };
    state.stages().iter().all(reached)
}
