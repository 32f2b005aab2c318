//! The weights that an epoch started from, and which replica has them.

use super::fetches::Wanted;
use crate::id::{Epoch, Hash, PeerId, StageIndex};
use crate::limits::TRANSFER_DEADLINE;
use crate::miner::{Context, Job};
use crate::run_state::RunState;
use crate::time::Instant;
use crate::wire::message::StateOffer;

/// How often each replica is asked for the weights, at least, and for how many deadlines of a request. One that serves as many as it can
/// refuses, and has room again after one of them.
const STATE_TRIES: u32 = 2;
/// The first pause, after each has refused once, is this part of a request's deadline; each is twice the one before, up to a deadline.
const PAUSE_PARTS: u32 = 8;

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

/// One replica after another is asked for the weights, and after a pause all of them again.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Search {
    asked: usize,
    /// Since when.
    begun: Option<Instant>,
    /// How many were asked when it last paused, and how often it did.
    paused: (usize, u32),
    /// Until when the last one is waited for, or the pause lasts.
    until: Option<Instant>,
}

impl Search {
    /// Asks the next one if none is waited for, of `holders` who are not `me`; false if all were asked often enough.
    pub(super) fn pump(&mut self, cx: &mut Context<'_>, me: PeerId, base: &Base, holders: &[PeerId]) -> bool {
        if self.until.is_some_and(|until| cx.now < until) {
            return true;
        }
        let others: Vec<PeerId> = holders.iter().copied().filter(|holder| *holder != me).collect();
        let place = self.asked.checked_rem(others.len()).unwrap_or_default();
        let Some(holder) = others.get(place) else { return false };
        let begun = *self.begun.get_or_insert(cx.now);
        let (asked, pauses) = self.paused;
        if place == 0 && self.asked > asked {
            if pauses + 1 >= STATE_TRIES && cx.now.since(begun) >= TRANSFER_DEADLINE * STATE_TRIES {
                return false;
            }
            self.paused = (self.asked, pauses + 1);
            self.until = Some(cx.now + TRANSFER_DEADLINE / (PAUSE_PARTS >> pauses.min(PAUSE_PARTS.ilog2())));
            return true;
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::id::{Identity, LogIndex, RunId};
    use crate::miner::Outbox;
    use crate::peer::book::Book;
    use crate::spec::RunSpec;
    use crate::wire::message::{Decision, Entry};

    const STAGE: StageIndex = StageIndex(0);
    const START: Instant = Instant::from_nanos(1_000_000_000);

    /// After how many seconds of a search each of two replicas is asked that refuse at once, and when it is given up.
    fn asked() -> (Vec<u64>, u64) {
        let me = Identity::from_secret([1; 32]);
        let mut state = RunState::new(Arc::new(RunSpec::default()), &[10; 3]);
        let replicas = [PeerId([2; 32]), PeerId([3; 32])];
        for peer in replicas {
            let entry = Entry { proposer: me.peer(), decision: Decision::Admit { peer, stage: STAGE } };
            state.apply(LogIndex(state.applied()), Hash::default(), Some(&entry));
        }
        let (book, validator) = (Book::default(), me.peer());
        let mut out = Outbox::new(me, RunId([0; 32]));
        let base = Base { stage: STAGE, epoch: Epoch(3), hash: Hash::default() };
        let (mut search, mut asked) = (Search::default(), Vec::new());
        for second in 0.. {
            let now = START + Duration::from_secs(second);
            let mut cx = Context { now, state: &state, book: &book, out: &mut out };
            loop {
                let goes_on = search.pump(&mut cx, validator, &base, &replicas);
                if !goes_on {
                    return (asked, second);
                }
                if cx.out.pop().is_none() {
                    break;
                }
                asked.push(second);
                search.refused();
            }
        }
        unreachable!("it is given up")
    }

    #[test]
    fn replicas_that_have_no_room_are_asked_again_until_they_have() {
        let (asked, given_up) = asked();
        assert_eq!(asked, [0, 0, 2, 2, 5, 5, 10, 10, 20, 20]);
        assert_eq!(given_up, 20);
    }

    #[test]
    fn where_nobody_is_there_to_ask_nothing_is_waited_for() {
        let me = Identity::from_secret([1; 32]);
        let (state, book) = (RunState::new(Arc::new(RunSpec::default()), &[10; 3]), Book::default());
        let validator = me.peer();
        let mut out = Outbox::new(me, RunId([0; 32]));
        let mut cx = Context { now: START, state: &state, book: &book, out: &mut out };
        let base = Base { stage: STAGE, epoch: Epoch(3), hash: Hash::default() };
        assert!(!Search::default().pump(&mut cx, validator, &base, &[validator]));
    }
}
