//! What stands for the beginning of a log, so that a log does not grow for ever.
//!
//! Now and then an entry names the state that all entries before it lead to ([`Decision::Snapshot`]). Every peer holds that
//! state when it applies the entry, so it compares, keeps the bytes, and some entries later lets go of what they stand
//! for. A peer that lacks those fetches the bytes and the rest of the log instead: the certificate of the rest proves the
//! entry, and the entry the bytes.
//!
//! ```text
//!  entries   0 … k-1 │ k: Snapshot { entries: k, state } │ k+1 …            certified
//!            let go  └───────────── kept, and served ──────────────────────────┘
//! ```
//!
//! Where the bytes differ from what the entry names, the leader lies or programs disagree. Such a log is worth no
//! certificate: candidates do not vote for the entry, nor for any after it.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{Hash, LogIndex};
use crate::limits::SNAPSHOT_EVERY_ENTRIES;
use crate::wire::message::{Decision, Entry};

/// The state after some entries.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// How many.
    pub entries: u64,
    /// Chain hash after them.
    pub chain: Hash,
    /// [Canonical bytes](crate::run_state::RunState::to_bytes) of the state.
    #[serde(with = "serde_bytes")]
    pub state: Vec<u8>,
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot").field("entries", &self.entries).finish_non_exhaustive()
    }
}

/// The state that the entry at `index` names, if it names the one before it.
#[must_use]
pub fn named(index: LogIndex, entry: Option<&Entry>) -> Option<Hash> {
    match entry?.decision {
        Decision::Snapshot { entries, state } if entries == index.0 => Some(state),
        _ => None,
    }
}

/// The snapshots of a peer.
#[derive(Debug)]
pub struct Snapshots {
    every: u64,
    /// What the log begins with.
    base: Option<Arc<Snapshot>>,
    /// Newer ones, oldest first.
    newer: VecDeque<Arc<Snapshot>>,
    diverged: Option<LogIndex>,
}

impl Default for Snapshots {
    fn default() -> Self {
        Self { every: SNAPSHOT_EVERY_ENTRIES, base: None, newer: VecDeque::new(), diverged: None }
    }
}

impl Snapshots {
    /// Takes one every so many entries.
    pub const fn set_every(&mut self, entries: u64) {
        self.every = entries;
    }

    /// Whether a leader should propose one, `applied` entries after the start and `last` before the newest.
    #[must_use]
    pub const fn is_due(&self, applied: u64, last: u64) -> bool {
        applied.saturating_sub(last) >= self.every
    }

    /// What the log begins with, if not with its first entry.
    #[must_use]
    pub const fn base(&self) -> Option<&Arc<Snapshot>> {
        self.base.as_ref()
    }

    /// The first entry that names a state other than the one found here.
    #[must_use]
    pub const fn diverged(&self) -> Option<LogIndex> {
        self.diverged
    }

    /// Begins with this one.
    pub fn begin_with(&mut self, base: Arc<Snapshot>) {
        (self.base, self.diverged) = (Some(base), None);
        self.newer.clear();
    }

    /// The state before an entry that names one was found to be `snapshot`; returns whether it is the one.
    pub fn compare(&mut self, snapshot: Snapshot, named: Hash) -> bool {
        let same = Hash::of(&snapshot.state) == named;
        if !same {
            self.diverged = self.diverged.or(Some(LogIndex(snapshot.entries)));
        } else if self.base.as_ref().is_none_or(|base| snapshot.entries > base.entries) {
            self.newer.push_back(Arc::new(snapshot));
        }
        same
    }

    /// Goes on to the newest one that lies so far back that hardly anybody lacks what is before it; returns it.
    pub fn advance(&mut self, certified: u64) -> Option<Arc<Snapshot>> {
        let old = |snapshot: &Arc<Snapshot>| snapshot.entries.saturating_add(self.every / 2) < certified;
        let count = self.newer.iter().take_while(|snapshot| old(snapshot)).count();
        let base = self.newer.drain(..count).next_back()?;
        self.base = Some(Arc::clone(&base));
        Some(base)
    }

    /// The kept one whose state has this hash.
    #[must_use]
    pub fn find(&self, state: Hash) -> Option<&Arc<Snapshot>> {
        self.base.iter().find(|snapshot| Hash::of(&snapshot.state) == state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(entries: u64) -> Snapshot {
        Snapshot { entries, chain: Hash([1; 32]), state: entries.to_le_bytes().to_vec() }
    }

    fn name(snapshot: &Snapshot) -> Hash {
        Hash::of(&snapshot.state)
    }

    #[test]
    fn the_log_begins_with_the_newest_that_lies_far_enough_back() {
        let mut snapshots = Snapshots::default();
        snapshots.set_every(10);
        assert!(snapshots.is_due(25, 15) && !snapshots.is_due(24, 15));
        for entries in [10, 20, 30] {
            assert!(snapshots.compare(at(entries), name(&at(entries))));
        }
        assert_eq!(snapshots.advance(15), None, "the first is too new");
        assert_eq!(snapshots.advance(26).map(|base| base.entries), Some(20));
        assert_eq!(snapshots.base().map(|base| base.entries), Some(20));
        assert!(snapshots.find(name(&at(20))).is_some() && snapshots.find(name(&at(10))).is_none());
        assert_eq!(snapshots.advance(27), None);
    }

    #[test]
    fn another_state_than_the_named_one_is_never_begun_with() {
        let mut snapshots = Snapshots::default();
        assert!(!snapshots.compare(at(10), Hash([9; 32])));
        assert_eq!((snapshots.diverged(), snapshots.advance(u64::MAX)), (Some(LogIndex(10)), None));
    }
}
