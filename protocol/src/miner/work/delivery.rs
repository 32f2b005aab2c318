//! What an epoch's samples owe to the neighbours: activations to the stage below, gradients to the one above.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{EpochWork, Passage, Step};
use crate::id::{Hash, PeerId, SampleId, StageIndex};
use crate::limits::RETRY_PAUSE_MIN;
use crate::miner::{Context, backed_off};
use crate::run_state::{RunState, Stage};
use crate::time::Instant;
use crate::wire::frame::{Direction, PushAck};

/// Part of an epoch's deadline that an activation may be out before it is pushed again. A receiver that lost it with its
/// process says so by its incarnation; this is for what was lost otherwise. One that is only slow answers at once.
pub(super) const PATIENCE_PARTS: u32 = 4;

/// Something owed to a neighbour: a gradient until it is taken, an activation until its gradient is back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Debt {
    in_flight: Option<u64>,
    retry_at: Instant,
    pause: Duration,
    /// Times it was taken.
    taken: u32,
}

impl Debt {
    /// Whether it was taken and is not on its way once more.
    pub(super) const fn is_paid(&self) -> bool {
        self.in_flight.is_none() && self.taken > 0
    }
}

impl EpochWork {
    /// Sends activations again that the stage below has dealt to somebody else, because whoever took them is gone, or that
    /// were taken for an epoch that starts over below. That holds for finished samples too, and for epochs that are
    /// settled here but not below.
    pub(in crate::miner) fn follow_below(&mut self, state: &RunState) {
        let Some(below) = self.unsettled_below(state) else { return };
        let Some(deal) = below.deal(self.epoch) else { return };
        let opened = below.epoch(self.epoch).map(|training| training.opened);
        self.owe_sent(Instant::ZERO, |sample, passage| {
            passage.taken_by != deal.owner(sample) || passage.taken_in != opened
        });
    }

    /// Sends activations again that `peer` had taken and has forgotten; after a pause, in which the connection to the process
    /// that took them is closed.
    pub(in crate::miner) fn send_again(&mut self, now: Instant, state: &RunState, peer: PeerId) {
        if self.unsettled_below(state).is_some() {
            self.owe_sent(now + RETRY_PAUSE_MIN, |_, passage| passage.taken_by == Some(peer));
        }
    }

    /// Owes the stage above every gradient, unless it has settled this epoch: which of them it has is not known.
    pub(in crate::miner) fn return_again(&mut self, state: &RunState) {
        let above = self.stage.0.checked_sub(1).and_then(|above| state.stage(StageIndex(above)));
        if above.is_none_or(|above| above.version > self.epoch) {
            return;
        }
        let finished = self.samples.iter().filter(|(_, passage)| passage.input_gradient.is_some());
        for sample in finished.map(|(sample, _)| *sample).collect::<Vec<_>>() {
            self.owe(Direction::Backward, sample);
        }
    }

    /// The stage below, unless it has settled this epoch and needs nothing of it any more.
    fn unsettled_below<'a>(&self, state: &'a RunState) -> Option<&'a Stage> {
        state.stage(StageIndex(self.stage.0 + 1)).filter(|below| below.version <= self.epoch)
    }

    /// Owes those activations once more that somebody has taken and that are `wanted` again, from `at` on.
    fn owe_sent(&mut self, at: Instant, wanted: impl Fn(SampleId, &Passage) -> bool) {
        let again = self.samples.iter().filter(|(sample, passage)| {
            let sent = passage.output.is_some() && passage.step != Step::Lost && passage.taken_by.is_some();
            sent && wanted(**sample, passage)
        });
        for sample in again.map(|(sample, _)| *sample).collect::<Vec<_>>() {
            self.owe_from(at, Direction::Forward, sample);
        }
    }

    pub(super) fn owe(&mut self, direction: Direction, sample: SampleId) {
        self.owe_from(Instant::ZERO, direction, sample);
    }

    fn owe_from(&mut self, at: Instant, direction: Direction, sample: SampleId) {
        let debt = self.debts.entry((direction, sample)).or_default();
        if debt.in_flight.is_none() {
            *debt = Debt { retry_at: at, ..Debt::default() };
        }
    }

    /// What can be sent now, to whom: the debts whose receiver is known, in reach of credit, and not
    /// being tried already. What lacks credit is asked for again after a pause, even if it was never sent.
    pub(in crate::miner) fn deliveries(
        &mut self,
        cx: &Context<'_>,
        credit: &mut BTreeMap<PeerId, u16>,
    ) -> Vec<(Direction, SampleId, Hash, PeerId)> {
        let deal = |stage: Option<u16>| {
            stage.and_then(|s| cx.state.stage(StageIndex(s))).and_then(|s| s.deal(self.epoch))
        };
        let (above, below) = (deal(self.stage.0.checked_sub(1)), deal(self.stage.0.checked_add(1)));
        let mut ready = Vec::new();
        for ((direction, sample), debt) in &mut self.debts {
            let Some(passage) = self.samples.get(sample) else { continue };
            let (deal, hash) = match direction {
                Direction::Forward => (below, passage.output),
                Direction::Backward => (above, passage.input_gradient),
            };
            let (Some(to), Some(hash)) = (deal.and_then(|deal| deal.owner(*sample)), hash) else { continue };
            if debt.in_flight.is_some() || cx.now < debt.retry_at {
                continue;
            }
            if *direction == Direction::Forward && !spend(credit, to, debt) {
                debt.pause = backed_off(debt.pause);
                debt.retry_at = cx.now + debt.pause;
                continue;
            }
            ready.push((*direction, *sample, hash, to));
        }
        ready
    }

    /// A push is under way.
    pub(in crate::miner) fn sending(
        &mut self,
        state: &RunState,
        direction: Direction,
        sample: SampleId,
        id: u64,
        to: PeerId,
    ) {
        if let Some(debt) = self.debts.get_mut(&(direction, sample)) {
            debt.in_flight = Some(id);
        }
        if let (Direction::Forward, Some(passage)) = (direction, self.samples.get_mut(&sample)) {
            let below = state.stage(StageIndex(self.stage.0 + 1));
            passage.taken_by = Some(to);
            passage.taken_in =
                below.and_then(|below| below.epoch(self.epoch)).map(|training| training.opened);
        }
    }

    /// A push has ended: taken, refused, or without an answer.
    pub(in crate::miner) fn delivered(
        &mut self,
        now: Instant,
        direction: Direction,
        sample: SampleId,
        to: PeerId,
        ack: Option<PushAck>,
    ) {
        let Some(debt) = self.debts.get_mut(&(direction, sample)) else { return };
        let moved = direction == Direction::Forward
            && self.samples.get(&sample).is_some_and(|passage| passage.taken_by != Some(to));
        let retry = match ack {
            Some(PushAck::Accepted(_)) => moved,
            Some(PushAck::Refused(refusal)) => refusal.is_passing(),
            None => true,
        };
        if retry {
            debt.in_flight = None;
            debt.pause = backed_off(debt.pause);
            debt.retry_at = now + debt.pause;
            return;
        }
        if let (Direction::Forward, Some(PushAck::Accepted(_))) = (direction, ack) {
            debt.in_flight = None;
            debt.retry_at = now + self.patience * (1 << debt.taken.min(8));
            debt.taken += 1;
            return;
        }
        self.debts.remove(&(direction, sample));
        let refused = matches!(ack, Some(PushAck::Refused(_)));
        if let (true, Direction::Forward, Some(passage)) = (refused, direction, self.samples.get_mut(&sample))
            && passage.step == Step::Sent
        {
            passage.step = Step::Lost;
        }
    }

    /// When the next try of something owed is due.
    pub(in crate::miner) fn deadline(&self) -> Option<Instant> {
        let waiting =
            self.debts.values().filter(|debt| debt.in_flight.is_none() && debt.retry_at > Instant::ZERO);
        waiting.map(|debt| debt.retry_at).min()
    }
}

/// Takes one credit for `to`. A receiver without credit is asked again after the debt's pause, since
/// its next answer is what brings news of its credit.
fn spend(credit: &mut BTreeMap<PeerId, u16>, to: PeerId, debt: &Debt) -> bool {
    match credit.get_mut(&to) {
        None => true,
        Some(0) => debt.pause >= RETRY_PAUSE_MIN,
        Some(left) => {
            *left -= 1;
            true
        }
    }
}
