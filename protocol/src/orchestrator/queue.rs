//! Who waits for a place, in the order in which they began to ask.
//!
//! A place in the queue belongs to a key: one that reconnects, or whose process starts again, has the place that it had, if
//! it is heard again in time. While it is silent it is passed over. Every candidate keeps the queue, so that a new leader
//! has it; one that has just started begins a new one.

use std::collections::BTreeMap;

use crate::id::PeerId;
use crate::join::Role;
use crate::limits::{QUEUE_SILENCES, QUEUE_TOLD_MAX, REPLICAS_MAX};
use crate::peer::admission::suits;
use crate::peer::book::Book;
use crate::run_state::RunState;
use crate::time::Instant;

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: BTreeMap<PeerId, Waiting>,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Instant,
    heard: Instant,
}

impl Queue {
    /// Notes who asks.
    pub(super) fn observe(&mut self, now: Instant, state: &RunState, book: &Book) {
        let eviction = state.spec().timing.eviction.duration();
        let heard = |peer: PeerId| book.is_there(now, peer, eviction);
        for (peer, _) in book.records().filter(|(peer, _)| asks(state, book, *peer) && heard(*peer)) {
            self.waiting.entry(peer).or_insert(Waiting { since: now, heard: now }).heard = now;
        }
        // By what is ordinary and not by its own records: one that sends them late keeps its place no longer for it.
        let keeps = book.ordinary_silence(eviction) * QUEUE_SILENCES;
        let kept = |waiting: &Waiting| now.since(waiting.heard) < keeps;
        self.waiting.retain(|peer, waiting| {
            let gone = book.record(*peer).is_some() && !asks(state, book, *peer);
            !gone && state.stage_of(*peer).is_none() && kept(waiting)
        });
    }

    /// Everybody who waits, the first first; peers that began to ask at once in the order of their keys.
    pub(super) fn in_order(&self) -> Vec<PeerId> {
        let mut order: Vec<PeerId> = self.waiting.keys().copied().collect();
        order.sort_by_key(|peer| self.waiting.get(peer).map(|waiting| waiting.since));
        order
    }

    /// The first who wait, if no stage has room.
    pub(super) fn told(&self, state: &RunState) -> Vec<PeerId> {
        if state.spec().stages().any(|stage| state.replicas(stage).count() < REPLICAS_MAX) {
            return Vec::new();
        }
        let mut order = self.in_order();
        order.truncate(QUEUE_TOLD_MAX);
        order
    }
}

/// Whether `peer` asks for a place and may have one.
fn asks(state: &RunState, book: &Book, peer: PeerId) -> bool {
    let asks = book.record(peer).filter(|record| record.miner && !record.leaving);
    let may = asks.is_some_and(|record| suits(state, peer, record.credential.as_ref(), Role::Miner).is_ok());
    may && !state.is_barred(peer) && state.stage_of(peer).is_none()
}
