//! How long the replicas of a stage take until they say that they have the weights of a merge.
//!
//! Once one replica has them the others are waited for, for as long as is usual: `timing.ready_grace`, or [`DEADLINE_SLACK`]
//! times the median of what replicas took for the stage's last merges. Those count, too, that came after the next epoch had opened
//! without them, or had not come when it ended: else a stage that is slower than the spec expects would never be found to be. It
//! is a median over replicas, the lower of two in the middle, so that fewer than a majority who say it late on purpose do not hold
//! their stage up.
//!
//! [`DEADLINE_SLACK`]: crate::limits::DEADLINE_SLACK

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::id::{Epoch, PeerId, StageIndex};
use crate::limits::MERGES_REMEMBERED;
use crate::peer::book::Book;
use crate::run_state::{RunState, Stage};
use crate::time::Instant;

/// What is known of each stage.
#[derive(Debug, Default)]
pub(super) struct Readiness {
    stages: BTreeMap<StageIndex, Known>,
}

#[derive(Debug)]
struct Known {
    /// The version that its last merge led to.
    version: Epoch,
    /// When that was seen to be decided.
    since: Instant,
    /// Replicas that had the version before then, and have not said that they have this one.
    awaited: BTreeSet<PeerId>,
    /// How long those took that have, for each of the last merges.
    took: VecDeque<Vec<Duration>>,
}

impl Readiness {
    /// Notes who has said that it has the newest weights. After a merge this looks at all replicas of its stage, later at those
    /// that are missing.
    pub(super) fn observe(&mut self, now: Instant, state: &RunState, book: &Book) {
        for (index, stage) in state.spec().stages().zip(state.stages()) {
            let version = stage.version;
            // What was merged before this candidate looked was decided at a time that it does not know.
            let fresh = || Known { version, since: now, awaited: BTreeSet::new(), took: VecDeque::new() };
            let known = self.stages.entry(index).or_insert_with(fresh);
            if known.version != version {
                known.begin(now, state, book, index, stage);
            }
            if !is_merged(stage) {
                // Passed over, or undone: there is nothing to fetch.
                known.awaited.clear();
            }
            known.look(now, state, book, index);
        }
    }

    /// Forgets a merge of which replicas are missing: this candidate was away meanwhile, and knows only who was quick.
    pub(super) fn handle_pause(&mut self) {
        for known in self.stages.values_mut().filter(|known| !known.awaited.is_empty()) {
            known.awaited.clear();
            known.took.pop_back();
        }
    }

    /// How long a replica of the stage usually takes; nothing if none was seen to.
    pub(super) fn usual(&self, stage: StageIndex) -> Option<Duration> {
        let known = self.stages.get(&stage)?;
        // While some are missing, those that are not are the quick ones.
        let complete = known.took.len().saturating_sub(usize::from(!known.awaited.is_empty()));
        let mut took: Vec<Duration> = known.took.iter().take(complete).flatten().copied().collect();
        let middle = took.len().checked_sub(1)? / 2;
        Some(*took.select_nth_unstable(middle).1)
    }
}

impl Known {
    /// The stage has come to another version. Who is missing still took at least until now.
    fn begin(&mut self, now: Instant, state: &RunState, book: &Book, index: StageIndex, stage: &Stage) {
        if let Some(times) = self.took.back_mut() {
            let missing = self.awaited.iter().filter(|peer| state.stage_of(**peer) == Some(index));
            times.extend(missing.map(|_| now.since(self.since)));
        }
        let version = stage.version;
        (self.version, self.since) = (version, now);
        self.awaited = state.replicas(index).filter(|peer| lacks(book, *peer, index, version)).collect();
        if is_merged(stage) {
            self.took.push_back(Vec::new());
        }
        if self.took.len() > MERGES_REMEMBERED {
            self.took.pop_front();
        }
    }

    /// Looks who of the missing has come, or has lost its place.
    fn look(&mut self, now: Instant, state: &RunState, book: &Book, index: StageIndex) {
        let Self { version, since, awaited, took } = self;
        awaited.retain(|peer| {
            let ready = has(book, *peer, index, *version);
            if let Some(times) = took.back_mut().filter(|_| ready) {
                times.push(now.since(*since));
            }
            !ready && state.stage_of(*peer) == Some(index)
        });
    }
}

/// Whether the newest version of a stage has come about by a merge.
fn is_merged(stage: &Stage) -> bool {
    stage
        .closed
        .back()
        .is_some_and(|closed| closed.training.epoch.next() == stage.version && !closed.partitions.is_empty())
}

/// Whether a replica says that it has this version of its stage's weights, or a later one.
fn has(book: &Book, peer: PeerId, stage: StageIndex, version: Epoch) -> bool {
    book.weights(peer).is_some_and(|held| held.stage == stage && held.version >= version)
}

/// Whether a replica says that it has the version of its stage's weights before this one.
fn lacks(book: &Book, peer: PeerId, stage: StageIndex, version: Epoch) -> bool {
    book.weights(peer).is_some_and(|held| held.stage == stage && held.version.next() == version)
}
