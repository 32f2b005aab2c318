//! Blobs that a validator fetches for one purpose.

use std::collections::{BTreeMap, VecDeque};

use crate::id::{Epoch, Hash, PeerId, StageIndex};
use crate::limits::PARTITION_BYTES_MAX;
use crate::miner::Context;
use crate::miner::outbox::{state_tag, tag};

/// Blobs fetched at once.
const FETCHES_AT_ONCE: usize = 16;
/// How often a blob is asked of all who may have it.
const FETCH_TRIES: usize = 3;

/// A blob to fetch.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    hash: Hash,
    providers: Vec<PeerId>,
    limit: usize,
    deliver: bool,
    state: bool,
    tries: usize,
}

impl Wanted {
    /// A tensor.
    pub(super) fn new(hash: Hash, providers: Vec<PeerId>) -> Self {
        Self { hash, providers, limit: PARTITION_BYTES_MAX, deliver: false, state: false, tries: 0 }
    }

    /// A part of a stage's state.
    pub(super) fn part(hash: Hash, providers: Vec<PeerId>) -> Self {
        Self { state: true, ..Self::new(hash, providers) }
    }

    /// The same, of at most this many bytes.
    pub(super) const fn limited(mut self, limit: usize) -> Self {
        self.limit = limit;
        self
    }

    /// Something that is read here.
    pub(super) fn read(hash: Hash, providers: Vec<PeerId>, limit: usize) -> Self {
        Self { deliver: true, ..Self::new(hash, providers).limited(limit) }
    }
}

/// Blobs under way.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    waiting: VecDeque<Wanted>,
    pub(super) in_flight: BTreeMap<u64, Wanted>,
    pub(super) delivered: Option<Vec<u8>>,
    failed: bool,
}

impl Fetches {
    pub(super) fn of(wanted: impl IntoIterator<Item = Wanted>) -> Self {
        Self { waiting: wanted.into_iter().collect(), ..Self::default() }
    }

    /// Starts what there is room for. Blobs are kept for this epoch of a stage.
    pub(super) fn start(&mut self, cx: &mut Context<'_>, stage: StageIndex, epoch: Epoch) {
        while self.in_flight.len() < FETCHES_AT_ONCE && !self.failed {
            let Some(wanted) = self.waiting.pop_front() else { break };
            let tag = if wanted.state { state_tag(stage, epoch) } else { tag(stage, epoch) };
            let providers = wanted.providers.clone();
            let id = cx.out.fetch_mirrored(wanted.hash, providers, wanted.limit, wanted.deliver, tag);
            self.in_flight.insert(id, wanted);
        }
    }

    pub(super) fn ended(&mut self, id: u64, bytes: Option<&[u8]>) {
        let Some(mut wanted) = self.in_flight.remove(&id) else { return };
        match bytes {
            Some(bytes) if wanted.deliver => self.delivered = Some(bytes.to_vec()),
            Some(_) => {}
            None => {
                wanted.tries += 1;
                self.failed |= wanted.tries >= FETCH_TRIES;
                // Another first, if there is one.
                let turn = 1.min(wanted.providers.len());
                wanted.providers.rotate_left(turn);
                self.waiting.push_back(wanted);
            }
        }
    }

    /// Asks for nothing more; what is under way still comes.
    pub(super) const fn give_up(&mut self) {
        self.failed = true;
    }

    /// Whether all are here, or one cannot be had.
    pub(super) fn ended_as(&self) -> Option<bool> {
        if self.failed {
            // What is under way still is waited for: it comes under a tag that is let go of at the end.
            return self.in_flight.is_empty().then_some(false);
        }
        (self.waiting.is_empty() && self.in_flight.is_empty()).then_some(true)
    }
}
