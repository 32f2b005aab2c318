//! What a candidate's consensus must remember, and the volatile form of it for tests and simulation.
//!
//! A candidate that forgets what it promised can help to decide two different entries for one index,
//! so the node keeps this in its embedded store; [`MemoryStorage`] is for peers that never restart. Its clones share nothing.

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::macros::Entry;
use omnipaxos::storage::{Entry as EntryTrait, StopSign, Storage, StorageOp, StorageResult};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

/// The canonical bytes of an [`Entry`](crate::wire::message::Entry), which is all consensus knows of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Entry)]
pub struct LogBytes(pub ByteBuf);

/// Storage in memory.
#[derive(Clone, Debug)]
pub struct MemoryStorage<T: EntryTrait> {
    log: Vec<T>,
    promise: Option<Ballot>,
    accepted_round: Option<Ballot>,
    decided: usize,
    compacted: usize,
    snapshot: Option<T::Snapshot>,
    stop_sign: Option<StopSign>,
}

impl<T: EntryTrait> Default for MemoryStorage<T> {
    fn default() -> Self {
        Self {
            log: Vec::new(),
            promise: None,
            accepted_round: None,
            decided: 0,
            compacted: 0,
            snapshot: None,
            stop_sign: None,
        }
    }
}

impl<T: EntryTrait> Storage<T> for MemoryStorage<T> {
    fn write_atomically(&mut self, ops: Vec<StorageOp<T>>) -> StorageResult<()> {
        for op in ops {
            match op {
                StorageOp::AppendEntry(entry) => self.append_entry(entry)?,
                StorageOp::AppendEntries(entries) => self.append_entries(entries)?,
                StorageOp::AppendOnPrefix(from, entries) => self.append_on_prefix(from, entries)?,
                StorageOp::SetPromise(ballot) => self.set_promise(ballot)?,
                StorageOp::SetDecidedIndex(index) => self.set_decided_idx(index)?,
                StorageOp::SetAcceptedRound(ballot) => self.set_accepted_round(ballot)?,
                StorageOp::SetCompactedIdx(index) => self.set_compacted_idx(index)?,
                StorageOp::Trim(index) => self.trim(index)?,
                StorageOp::SetStopsign(sign) => self.set_stopsign(sign)?,
                StorageOp::SetSnapshot(snapshot) => self.set_snapshot(snapshot)?,
            }
        }
        Ok(())
    }

    fn append_entry(&mut self, entry: T) -> StorageResult<()> {
        self.log.push(entry);
        Ok(())
    }

    fn append_entries(&mut self, entries: Vec<T>) -> StorageResult<()> {
        self.log.extend(entries);
        Ok(())
    }

    fn append_on_prefix(&mut self, from_idx: usize, entries: Vec<T>) -> StorageResult<()> {
        self.log.truncate(from_idx.saturating_sub(self.compacted));
        self.append_entries(entries)
    }

    fn set_promise(&mut self, n_prom: Ballot) -> StorageResult<()> {
        self.promise = Some(n_prom);
        Ok(())
    }

    fn set_decided_idx(&mut self, ld: usize) -> StorageResult<()> {
        self.decided = ld;
        Ok(())
    }

    fn get_decided_idx(&self) -> StorageResult<usize> {
        Ok(self.decided)
    }

    fn set_accepted_round(&mut self, na: Ballot) -> StorageResult<()> {
        self.accepted_round = Some(na);
        Ok(())
    }

    fn get_accepted_round(&self) -> StorageResult<Option<Ballot>> {
        Ok(self.accepted_round)
    }

    fn get_entries(&self, from: usize, to: usize) -> StorageResult<Vec<T>> {
        let (from, to) = (from.saturating_sub(self.compacted), to.saturating_sub(self.compacted));
        Ok(self.log.get(from..to).map(<[T]>::to_vec).unwrap_or_default())
    }

    fn get_log_len(&self) -> StorageResult<usize> {
        Ok(self.log.len())
    }

    fn get_suffix(&self, from: usize) -> StorageResult<Vec<T>> {
        Ok(self.log.get(from.saturating_sub(self.compacted)..).map(<[T]>::to_vec).unwrap_or_default())
    }

    fn get_promise(&self) -> StorageResult<Option<Ballot>> {
        Ok(self.promise)
    }

    fn set_stopsign(&mut self, s: Option<StopSign>) -> StorageResult<()> {
        self.stop_sign = s;
        Ok(())
    }

    fn get_stopsign(&self) -> StorageResult<Option<StopSign>> {
        Ok(self.stop_sign.clone())
    }

    fn trim(&mut self, idx: usize) -> StorageResult<()> {
        let count = idx.saturating_sub(self.compacted).min(self.log.len());
        self.log.drain(..count);
        Ok(())
    }

    fn set_compacted_idx(&mut self, idx: usize) -> StorageResult<()> {
        self.compacted = idx;
        Ok(())
    }

    fn get_compacted_idx(&self) -> StorageResult<usize> {
        Ok(self.compacted)
    }

    fn set_snapshot(&mut self, snapshot: Option<T::Snapshot>) -> StorageResult<()> {
        self.snapshot = snapshot;
        Ok(())
    }

    fn get_snapshot(&self) -> StorageResult<Option<T::Snapshot>> {
        Ok(self.snapshot.clone())
    }
}
