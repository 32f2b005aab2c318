//! When a miner that leaves may go: once that costs nobody anything.
//!
//! ```text
//!            says so                 merged          settled by all        held by others
//!  member ───────────▶ in its epoch ────────▶ idle ────────────────▶ idle ────────────────▶ evicted: left
//!                      handles its samples,   sends its activations  offers its state       its process ends
//!                      submits, merges        and gradients again
//! ```
//! The leader and the one that leaves look at the same things: the one to decide, the other to say what it waits for. Who
//! says for ever that it leaves gains nothing. In its epoch it is held to the deadlines of all, after that it goes as soon
//! as others hold what it holds, and whoever keeps a stage's only weights to itself can do so without a word.

use std::fmt;

use crate::id::{Epoch, PeerId, StageIndex};
use crate::peer::book::Book;
use crate::run_state::{Phase, RunState};

/// Miners beside the one that leaves that are to hold its stage's newest weights, if the stage has so many: with a single
/// one, its next death would take them along.
const SUCCESSORS: usize = 2;

/// What a miner that leaves waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaits {
    /// The merge of an epoch that it has a part in.
    Merge(StageIndex, Epoch),
    /// That another stage settles the epoch too: a neighbour that starts again needs its activations and gradients once more.
    Neighbours(StageIndex, Epoch),
    /// That others hold the newest weights of its stage.
    Successors(StageIndex),
    /// The decision that it has left.
    Decision,
}

impl fmt::Display for Awaits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Merge(stage, epoch) => write!(f, "the merge of epoch {epoch} of stage {stage}"),
            Self::Neighbours(stage, epoch) => write!(f, "stage {stage} to settle epoch {epoch}"),
            Self::Successors(stage) => write!(f, "others to hold the newest weights of stage {stage}"),
            Self::Decision => f.write_str("the decision that it has left"),
        }
    }
}

/// What `peer`, which has a place and leaves, waits for.
#[must_use]
pub fn awaits(state: &RunState, book: &Book, peer: PeerId) -> Awaits {
    let place = state.stage_of(peer).and_then(|index| Some((index, state.stage(index)?)));
    let Some((index, stage)) = place else { return Awaits::Decision };
    if let Some(training) = stage.training().filter(|training| training.deal.is_live(peer)) {
        return Awaits::Merge(index, training.epoch);
    }
    let stages = || state.spec().stages().zip(state.stages());
    let owned = stages().find_map(|(index, stage)| {
        let (training, plan) = stage.plan()?;
        let owns = plan.owners.iter().any(|owners| owners.contains(&peer));
        owns.then_some(Awaits::Merge(index, training.epoch))
    });
    let behind = stages().find(|(_, other)| other.version < stage.version);
    let behind = behind.map(|(index, other)| Awaits::Neighbours(index, other.version));
    // Those who train without it have the weights that they started from.
    let waits = matches!(stage.phase, Phase::Waiting);
    let alone = (waits && !is_held(state, book, index)).then_some(Awaits::Successors(index));
    owned.or(behind).or(alone).unwrap_or(Awaits::Decision)
}

/// Whether the newest weights of `stage` can be had from the spec, from a checkpoint, or from enough miners that stay.
fn is_held(state: &RunState, book: &Book, stage: StageIndex) -> bool {
    let Some(version) = state.stage(stage).map(|stage| stage.version) else { return true };
    let checkpoint = state.checkpoint().map(|checkpoint| checkpoint.epoch);
    if version.0 == state.spec().start.epoch || checkpoint == Some(version) {
        return true;
    }
    let staying = || state.replicas(stage).filter(|peer| !book.leaves(*peer));
    let holds = |peer: &PeerId| {
        book.weights(*peer).is_some_and(|weights| (weights.stage, weights.version) == (stage, version))
    };
    staying().filter(holds).count() >= staying().count().clamp(1, SUCCESSORS)
}
