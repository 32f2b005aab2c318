//! The weights that an epoch started from, and which replica has them.

use super::fetches::Wanted;
use crate::id::{Epoch, Hash, PeerId, StageIndex};
use crate::limits::TRANSFER_DEADLINE;
use crate::miner::{Context, Job};
use crate::run_state::RunState;
use crate::time::Instant;
use crate::wire::message::StateOffer;

/// How often each replica is asked for the weights.
const STATE_TRIES: usize = 2;

/// The weights with which an epoch of a stage began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) stage: StageIndex,
    pub(super) epoch: Epoch,
    pub(super) hash: Hash,
}

impl Base {
    /// Whether an offer is one of these weights.
    pub(super) fn is_offered(&self, offer: &StateOffer) -> bool {
        (offer.stage, offer.version, offer.weights) == (self.stage, self.epoch, self.hash)
            && !offer.parts.is_empty()
    }

    /// The parts of an offer, which these may have.
    pub(super) fn parts(offer: &StateOffer, holders: &[PeerId]) -> Vec<Wanted> {
        offer.parts.iter().map(|part| Wanted::part(*part, holders.to_vec())).collect()
    }
}

/// One replica after another is asked for the weights.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Search {
    asked: usize,
    /// Until when the last one is waited for.
    until: Option<Instant>,
}

impl Search {
    /// Asks the next one if none is waited for, of `holders` who are not `me`; false if all were asked.
    pub(super) fn pump(&mut self, cx: &mut Context<'_>, me: PeerId, base: &Base, holders: &[PeerId]) -> bool {
        if self.until.is_some_and(|until| cx.now < until) {
            return true;
        }
        let others: Vec<PeerId> = holders.iter().copied().filter(|holder| *holder != me).collect();
        if self.asked >= STATE_TRIES * others.len() {
            return false;
        }
        let Some(holder) = others.get(self.asked % others.len().max(1)) else { return false };
        cx.out.request_state(*holder, base.stage, base.epoch);
        (self.asked, self.until) = (self.asked + 1, Some(cx.now + TRANSFER_DEADLINE));
        true
    }

    /// The one that was asked does not have them.
    pub(super) const fn refused(&mut self) {
        self.until = None;
    }

    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.until
    }
}

/// The job that comes next on the way to these weights, and whether it is the last. `built` is the stage that the engine is built
/// for.
pub(super) fn load(
    stage: StageIndex,
    built: Option<StageIndex>,
    offer: Option<&StateOffer>,
    moments: Option<Hash>,
) -> (Job, bool) {
    match offer {
        // The initial weights anybody can build.
        None => (Job::Initialise { stage }, true),
        Some(_) if built != Some(stage) => (Job::Initialise { stage }, false),
        Some(StateOffer { version, weights, parts, .. }) => {
            let (version, weights, parts) = (*version, *weights, parts.clone());
            (Job::Load { stage, version, weights, parts, moments }, true)
        }
    }
}

/// Those who may have what belongs to a stage, others than `miner` first: what it says of itself is what is checked.
pub(super) fn holders(state: &RunState, stage: StageIndex, miner: Option<PeerId>) -> Vec<PeerId> {
    let mut holders: Vec<PeerId> = state.replicas(stage).collect();
    holders.sort_by_key(|peer| Some(*peer) == miner);
    holders
}
