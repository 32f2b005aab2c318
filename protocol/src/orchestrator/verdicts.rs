//! Who validates, and what validators found, on its way into the log.

use std::collections::BTreeMap;
use std::time::Duration;

use super::checkpoints::is_trained;
use crate::gauntlet::evaluation::Evaluation;
use crate::id::{Epoch, PeerId};
use crate::join::Role;
use crate::limits::VALIDATORS_MAX;
use crate::peer::admission::{Occupancy, suits};
use crate::peer::book::Book;
use crate::run_state::RunState;
use crate::time::Instant;
use crate::validation::{DismissReason, Subject, Verdict};
use crate::wire::message::Decision;

/// Verdicts heard that are not decided.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    heard: BTreeMap<(Subject, PeerId), Verdict>,
    evaluations: BTreeMap<(Epoch, PeerId), Evaluation>,
    /// Validators proposed and not decided.
    enlisting: BTreeMap<PeerId, Instant>,
    /// Since when all epochs of the run are done.
    trained_since: Option<Instant>,
}

impl Verdicts {
    /// Takes a verdict whose signature was checked, and that the log [takes](RunState::takes).
    pub(super) fn handle(&mut self, verdict: Verdict) {
        self.heard.insert((verdict.subject, verdict.validator), verdict);
    }

    /// Takes an evaluation whose signature was checked, and that the log [waits](RunState::awaits) for.
    pub(super) fn handle_evaluation(&mut self, evaluation: Evaluation) {
        self.evaluations.insert((evaluation.epoch, evaluation.evaluator), evaluation);
    }

    /// Forgets what is decided or came too late.
    pub(super) fn observe(&mut self, now: Instant, state: &RunState) {
        self.heard.retain(|_, verdict| state.takes(verdict));
        self.evaluations.retain(|_, evaluation| state.awaits(evaluation));
        if is_trained(state) {
            self.trained_since.get_or_insert(now);
        }
    }

    /// Whether the end of the run waits for checks of its last epochs. Not for ever: a check that comes too late harms
    /// nobody, since there is nothing left to be part of.
    pub(super) fn delay_the_end(&self, now: Instant, state: &RunState) -> bool {
        let checks = state.challenges().iter().any(|challenge| challenge.awaited().next().is_some());
        let asked = checks || state.evaluating().any(|evaluating| evaluating.awaited().next().is_some());
        let patience = state.spec().timing.epoch_deadline.duration();
        asked && self.trained_since.is_some_and(|since| now.since(since) < patience)
    }

    /// Validators that were proposed less than `repeat` ago, which the state does not show yet.
    pub(super) fn enlisting(&mut self, now: Instant, state: &RunState, repeat: Duration) -> Vec<PeerId> {
        let undecided = |peer: &PeerId| !state.validators().contains(peer);
        self.enlisting.retain(|peer, at| undecided(peer) && now.since(*at) < repeat);
        self.enlisting.keys().copied().collect()
    }

    /// Enlists those who offer to validate, dismisses those who are gone, and puts verdicts into the log.
    pub(super) fn decisions(
        &mut self,
        now: Instant,
        listening_since: Instant,
        state: &RunState,
        book: &Book,
        occupancy: &mut Occupancy,
    ) -> Vec<Decision> {
        let eviction = state.spec().timing.eviction.duration();
        let listened = now.since(listening_since);
        let reason = |peer: PeerId| {
            if book.silence(now, peer).unwrap_or(listened).min(listened) >= book.patience(peer, eviction) {
                return Some(DismissReason::Silent);
            }
            book.record(peer).filter(|record| !offers(record)).map(|_| DismissReason::Left)
        };
        let validators = state.validators().iter();
        let dismiss =
            |&peer: &PeerId| Some(Decision::Dismiss { peer, reason: reason(peer)?, evidence: None });
        let mut decisions: Vec<Decision> = validators.filter_map(dismiss).collect();
        let room = VALIDATORS_MAX.saturating_sub(state.validators().len());
        let new = book.records().filter(|(peer, record)| {
            let trusted = !state.dismissal(*peer).is_some_and(DismissReason::is_proven);
            offers(record)
                && trusted
                && suits(state, *peer, record.credential.as_ref(), Role::Validator).is_ok()
                && book.is_there(now, *peer, eviction)
                && !state.validators().contains(peer)
        });
        for (peer, _) in new.take(room) {
            if occupancy.has_room_for(state, book, peer).is_ok() {
                occupancy.take(peer, book);
                self.enlisting.entry(peer).or_insert(now);
                decisions.push(Decision::Enlist { peer });
            }
        }
        decisions.extend(self.heard.values().cloned().map(Decision::Judge));
        decisions.extend(self.evaluations.values().cloned().map(Decision::Evaluate));
        decisions
    }
}

/// Whether a peer offers to validate.
fn offers(record: &crate::wire::message::PeerRecord) -> bool {
    record.validator && !record.leaving
}
