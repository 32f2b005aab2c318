//! Two messages under one number: what no peer may sign, and how candidates notice who does.
//!
//! A peer numbers its messages of a kind, and no number twice. Whoever tells some peers this and others that signs both, under
//! one number if each is to be taken for the newest. The two envelopes prove it to anybody, by their signatures alone.
//! A candidate's votes are such messages, too: the number of one is the index of the entry up to which it names the log, and
//! who signs two logs up to one entry has shown two histories to others, or tried to.
//!
//! ```text
//!  equivocator ── 7: a ──▶ one half ──┐
//!       │                             ├─▶ candidate: 7: a, then 7: b of the same peer: refused as a replay, and kept
//!       └──────── 7: b ──▶ the other ─┘
//! ```
//! The second one is refused like any replay, which is nobody's fault who passed it on. **Invariant:** a message that comes again
//! in the same bytes proves nothing, so that no relay can have its author accused.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::id::{PeerId, RunId};
use crate::limits::{
    EQUIVOCATION_BYTES_MAX, EQUIVOCATIONS_MAX, WATCHED_BYTES_MAX, WATCHED_MESSAGES_MAX, WATCHED_VOTES_MAX,
};
use crate::log::Vote;
use crate::log::certificate::VOTE_KIND;
use crate::merge::evidence::Evidence;
use crate::run_state::RunState;
use crate::validation::DismissReason;
use crate::wire::gossip::Signed;
use crate::wire::message::{Decision, EvictReason, MergeMessage, PeerRecord};
use crate::wire::{Payload, RejectReason, Versions, decode, open_in};

/// The kinds of signed messages, each with numbers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageKind {
    /// [`PeerRecord`].
    Record,
    /// [`MergeMessage`].
    Merge,
    /// [`Vote`], numbered by its entry. It has no envelope; its bytes are its canonical CBOR.
    Vote,
}

impl MessageKind {
    /// Its name, as signatures cover it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Record => PeerRecord::KIND,
            Self::Merge => MergeMessage::KIND,
            Self::Vote => VOTE_KIND,
        }
    }

    /// Newest messages of a peer that are kept to compare others with.
    const fn kept_max(self) -> usize {
        match self {
            Self::Record | Self::Merge => WATCHED_MESSAGES_MAX,
            Self::Vote => WATCHED_VOTES_MAX,
        }
    }
}

/// Two messages of one peer, kind and number that differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Equivocation {
    /// Of which kind they are; envelopes do not say.
    pub kind: MessageKind,
    /// Their envelopes, in any order.
    pub messages: [ByteBuf; 2],
}

/// Why two messages are no equivocation of a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EquivocationError {
    /// One does not open: its signature is wrong, or it is of another kind or run.
    #[error("message {0}: {1}")]
    Message(usize, RejectReason),
    /// One is of another peer.
    #[error("message {0}: expected one of the accused, got one of {1}")]
    Sender(usize, PeerId),
    /// They have different numbers.
    #[error("expected messages of one number, got {0} and {1}")]
    Number(u64, u64),
    /// They say the same.
    #[error("expected messages that differ, got number {0} twice")]
    Same(u64),
}

impl Equivocation {
    /// Checks that `accused` signed both in `run`, in any version up to `version`. Returns their number.
    ///
    /// # Errors
    /// [`EquivocationError`] says what they lack.
    pub fn check(&self, run: RunId, version: u16, accused: PeerId) -> Result<u64, EquivocationError> {
        match self.kind {
            MessageKind::Record => self.differ::<PeerRecord>(run, version, accused),
            MessageKind::Merge => self.differ::<MergeMessage>(run, version, accused),
            MessageKind::Vote => self.contradict(run, accused),
        }
    }

    /// Two votes differ if they name two logs. Which candidate each says it is of, no signature covers.
    fn contradict(&self, run: RunId, accused: PeerId) -> Result<u64, EquivocationError> {
        let open = |index: usize, bytes: &ByteBuf| {
            let opened = decode::<Vote>(bytes, EQUIVOCATION_BYTES_MAX).map_err(RejectReason::from);
            let signed = opened.and_then(|vote| {
                if vote.is_of(run, accused) { Ok(vote) } else { Err(RejectReason::Signature) }
            });
            signed.map_err(|reason| EquivocationError::Message(index, reason))
        };
        let [first, second] = &self.messages;
        let (first, second) = (open(0, first)?, open(1, second)?);
        differ((first.index.0, first.chain), (second.index.0, second.chain))
    }

    /// What differs has to be what was signed: one payload may be signed twice, in two versions too.
    fn differ<T: Payload + PartialEq>(
        &self,
        run: RunId,
        version: u16,
        accused: PeerId,
    ) -> Result<u64, EquivocationError> {
        let versions = Versions::up_to(version);
        let open = |index: usize, envelope: &ByteBuf| {
            let opened = open_in::<T>(versions, run, envelope);
            let (sender, _, message) = opened.map_err(|reason| EquivocationError::Message(index, reason))?;
            if sender == accused { Ok(message) } else { Err(EquivocationError::Sender(index, sender)) }
        };
        let [first, second] = &self.messages;
        let (first, second) = (open(0, first)?, open(1, second)?);
        differ((first.sequence(), &first), (second.sequence(), &second))
    }
}

/// The number of two messages that have the same and say different things.
fn differ<T: PartialEq>(first: (u64, T), second: (u64, T)) -> Result<u64, EquivocationError> {
    let (number, other) = (first.0, second.0);
    if number != other {
        return Err(EquivocationError::Number(number, other));
    }
    if first.1 == second.1 { Err(EquivocationError::Same(number)) } else { Ok(number) }
}

/// What a candidate keeps of what miners, validators and other candidates signed: the newest messages of each, by their
/// numbers.
///
/// Memory is bounded: [`WATCHED_MESSAGES_MAX`] messages of a peer and kind, [`WATCHED_VOTES_MAX`] votes, [`WATCHED_BYTES_MAX`]
/// bytes in all. Messages beyond [`EQUIVOCATION_BYTES_MAX`] are not looked at, since two of them may not fit an entry.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    messages: BTreeMap<(PeerId, MessageKind), BTreeMap<u64, Watched>>,
    /// Whose and under which number, in the order in which they came.
    order: BTreeMap<u64, ((PeerId, MessageKind), u64)>,
    bytes: usize,
    arrivals: u64,
    /// Whom two messages convict.
    convicted: BTreeMap<PeerId, Equivocation>,
    /// Entries of the log when it was last looked who has a place.
    looked: u64,
}

#[derive(Debug)]
struct Watched {
    arrival: u64,
    envelope: Arc<[u8]>,
}

impl Watch {
    /// Takes a message whose signature was checked, whether or not it is refused for anything else. Whether it convicts its
    /// sender, who was not convicted before.
    pub(crate) fn note(&mut self, state: &RunState, signed: Signed<'_>) -> bool {
        let Signed { sender, kind, number, envelope } = signed;
        let watched = has_part(state, sender) && !self.convicted.contains_key(&sender);
        if !watched || envelope.len() > EQUIVOCATION_BYTES_MAX {
            return false;
        }
        let of = (sender, kind);
        let Some(known) = self.messages.get(&of).and_then(|messages| messages.get(&number)) else {
            self.keep(of, number, envelope);
            return false;
        };
        if known.envelope == *envelope || self.convicted.len() >= EQUIVOCATIONS_MAX {
            return false;
        }
        let messages = [&known.envelope, envelope].map(|bytes| ByteBuf::from(bytes.to_vec()));
        let equivocation = Equivocation { kind, messages };
        let convicts = state.check_equivocation(sender, &equivocation).is_ok();
        if convicts {
            self.convicted.insert(sender, equivocation);
            self.forget(sender);
        }
        convicts
    }

    /// Two messages of this peer that convict it, if there are.
    pub(crate) fn conviction(&self, peer: PeerId) -> Option<&Equivocation> {
        self.convicted.get(&peer)
    }

    /// Evictions and dismissals of those who are convicted, and have a part in the run still.
    pub(crate) fn decisions(&self, state: &RunState) -> Vec<Decision> {
        let mut decisions = Vec::new();
        for (&peer, equivocation) in &self.convicted {
            if state.stage_of(peer).is_some() {
                let evidence = Some(Evidence::Equivocation(equivocation.clone()));
                decisions.push(Decision::Evict { peer, reason: EvictReason::Equivocation, evidence });
            }
            if state.validators().contains(&peer) {
                let (reason, evidence) = (DismissReason::Equivocation, Some(equivocation.clone()));
                decisions.push(Decision::Dismiss { peer, reason, evidence });
            }
        }
        decisions
    }

    /// Forgets those who have no part any more.
    pub(crate) fn observe(&mut self, state: &RunState) {
        if std::mem::replace(&mut self.looked, state.applied()) == state.applied() {
            return;
        }
        let gone = |peer: &PeerId| !has_part(state, *peer);
        let forgotten: Vec<PeerId> = self.messages.keys().map(|(peer, _)| *peer).filter(gone).collect();
        forgotten.into_iter().for_each(|peer| self.forget(peer));
        self.convicted.retain(|peer, _| !gone(peer));
    }

    /// Keeps a message, if it is among the newest of its sender; of all senders together those that came last.
    fn keep(&mut self, of: (PeerId, MessageKind), number: u64, envelope: &Arc<[u8]>) {
        self.arrivals += 1;
        let watched = Watched { arrival: self.arrivals, envelope: Arc::clone(envelope) };
        self.bytes += envelope.len();
        self.order.insert(self.arrivals, (of, number));
        let messages = self.messages.entry(of).or_default();
        messages.insert(number, watched);
        if messages.len() > of.1.kept_max()
            && let Some(oldest) = messages.keys().next().copied()
        {
            self.remove(of, oldest);
        }
        while self.bytes > WATCHED_BYTES_MAX
            && let Some((of, number)) = self.order.values().next().copied()
        {
            self.remove(of, number);
        }
    }

    fn forget(&mut self, peer: PeerId) {
        for of in [MessageKind::Record, MessageKind::Merge, MessageKind::Vote].map(|kind| (peer, kind)) {
            while let Some(number) = self.messages.get(&of).and_then(|kept| kept.keys().next().copied()) {
                self.remove(of, number);
            }
        }
    }

    fn remove(&mut self, of: (PeerId, MessageKind), number: u64) {
        let Entry::Occupied(mut messages) = self.messages.entry(of) else { return };
        if let Some(watched) = messages.get_mut().remove(&number) {
            self.bytes -= watched.envelope.len();
            self.order.remove(&watched.arrival);
        }
        if messages.get().is_empty() {
            messages.remove();
        }
    }
}

/// Whether a peer has a place, validates, or is a candidate: there is something to lose.
fn has_part(state: &RunState, peer: PeerId) -> bool {
    let named = state.spec().candidate_index(peer).is_some();
    named || state.stage_of(peer).is_some() || state.validators().contains(&peer)
}

#[cfg(test)]
mod tests;
