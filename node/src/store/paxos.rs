//! A candidate's consensus state on disk: OmniPaxos' storage trait over redb.
//!
//! Each call is one transaction, and `write_atomically` is one for all its operations, so a crash leaves
//! the state before or after a call and never between. The log's keys are absolute indices: trimming
//! removes a prefix and moves no entry.

use std::error::Error;
use std::marker::PhantomData;
use std::sync::Arc;

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::storage::{Entry, StopSign, Storage, StorageOp, StorageResult};
use redb::{Database, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::database::Store;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("paxos_log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("paxos_meta");

const PROMISE: &str = "promise";
const ACCEPTED: &str = "accepted";
const DECIDED: &str = "decided";
const COMPACTED: &str = "compacted";
const TRIMMED: &str = "trimmed";
const STOP_SIGN: &str = "stop_sign";
const SNAPSHOT: &str = "snapshot";

/// Creates the tables, so that later reads find them.
pub(super) fn create_tables(write: &WriteTransaction) -> Result<(), redb::Error> {
    write.open_table(LOG)?;
    write.open_table(META)?;
    Ok(())
}

/// OmniPaxos' storage in a [`Store`]; clones share it.
pub struct PaxosStorage<T> {
    database: Arc<Database>,
    entries: PhantomData<fn() -> T>,
}

impl<T> std::fmt::Debug for PaxosStorage<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PaxosStorage").finish_non_exhaustive()
    }
}

impl<T> Clone for PaxosStorage<T> {
    fn clone(&self) -> Self {
        Self { database: Arc::clone(&self.database), entries: PhantomData }
    }
}

impl<T> PaxosStorage<T> {
    /// Uses the consensus tables of a store. A store holds one consensus state.
    #[must_use]
    pub fn new(store: &Store) -> Self {
        Self { database: store.database(), entries: PhantomData }
    }
}

/// The open tables of one write transaction.
struct Tables<'t> {
    log: Table<'t, u64, &'static [u8]>,
    meta: Table<'t, &'static str, &'static [u8]>,
}

impl Tables<'_> {
    fn set(&mut self, key: &'static str, value: &impl Serialize) -> StorageResult<()> {
        self.meta.insert(key, encode(value)?.as_slice())?;
        Ok(())
    }

    fn clear(&mut self, key: &'static str) -> StorageResult<()> {
        self.meta.remove(key)?;
        Ok(())
    }

    fn trimmed(&self) -> StorageResult<u64> {
        match self.meta.get(TRIMMED)? {
            Some(bytes) => decode(bytes.value()),
            None => Ok(0),
        }
    }

    fn next_index(&self) -> StorageResult<u64> {
        let trimmed = self.trimmed()?;
        let after_last = self.log.last()?.map(|(index, _)| index.value() + 1);
        Ok(after_last.unwrap_or(trimmed).max(trimmed))
    }

    fn append<T: Serialize>(&mut self, entries: &[T]) -> StorageResult<()> {
        for (index, entry) in (self.next_index()?..).zip(entries) {
            self.log.insert(index, encode(entry)?.as_slice())?;
        }
        Ok(())
    }

    fn append_on_prefix<T: Serialize>(&mut self, from: usize, entries: &[T]) -> StorageResult<()> {
        let from = wide(from)?;
        self.log.retain_in(from.., |_, _| false)?;
        let next = self.next_index()?;
        if next != from {
            return Err(format!("append at {from}, but the log ends at {next}").into());
        }
        self.append(entries)
    }

    fn trim(&mut self, index: usize) -> StorageResult<()> {
        let index = wide(index)?;
        if index > self.trimmed()? {
            self.log.retain_in(..index, |_, _| false)?;
            self.set(TRIMMED, &index)?;
        }
        Ok(())
    }

    fn apply<T>(&mut self, operation: StorageOp<T>) -> StorageResult<()>
    where
        T: Entry + Serialize,
    {
        match operation {
            StorageOp::AppendEntry(entry) => self.append(&[entry]),
            StorageOp::AppendEntries(entries) => self.append(&entries),
            StorageOp::AppendOnPrefix(from, entries) => self.append_on_prefix(from, &entries),
            StorageOp::SetPromise(ballot) => self.set(PROMISE, &ballot),
            StorageOp::SetDecidedIndex(index) => self.set(DECIDED, &wide(index)?),
            StorageOp::SetAcceptedRound(ballot) => self.set(ACCEPTED, &ballot),
            StorageOp::SetCompactedIdx(index) => self.set(COMPACTED, &wide(index)?),
            StorageOp::Trim(index) => self.trim(index),
            StorageOp::SetStopsign(Some(stop)) => self.set(STOP_SIGN, &stop),
            StorageOp::SetStopsign(None) => self.clear(STOP_SIGN),
            StorageOp::SetSnapshot(Some(snapshot)) => self.set(SNAPSHOT, &snapshot),
            StorageOp::SetSnapshot(None) => self.clear(SNAPSHOT),
        }
    }
}

impl<T> PaxosStorage<T> {
    fn meta<V: DeserializeOwned>(&self, key: &str) -> StorageResult<Option<V>> {
        let table = self.database.begin_read()?.open_table(META)?;
        match table.get(key)? {
            Some(bytes) => Ok(Some(decode(bytes.value())?)),
            None => Ok(None),
        }
    }

    fn index(&self, key: &str) -> StorageResult<usize> {
        Ok(usize::try_from(self.meta::<u64>(key)?.unwrap_or(0))?)
    }
}

impl<T> Storage<T> for PaxosStorage<T>
where
    T: Entry + Serialize + DeserializeOwned,
{
    fn write_atomically(&mut self, operations: Vec<StorageOp<T>>) -> StorageResult<()> {
        // A transaction that is dropped without a commit leaves no trace.
        let write = self.database.begin_write()?;
        {
            let mut tables = Tables { log: write.open_table(LOG)?, meta: write.open_table(META)? };
            for operation in operations {
                tables.apply(operation)?;
            }
        }
        write.commit()?;
        Ok(())
    }

    fn append_entry(&mut self, entry: T) -> StorageResult<()> {
        self.write_atomically(vec![StorageOp::AppendEntry(entry)])
    }

    fn append_entries(&mut self, entries: Vec<T>) -> StorageResult<()> {
        if entries.is_empty() {
            return Ok(());
        }
        self.write_atomically(vec![StorageOp::AppendEntries(entries)])
    }

    fn append_on_prefix(&mut self, from: usize, entries: Vec<T>) -> StorageResult<()> {
        self.write_atomically(vec![StorageOp::AppendOnPrefix(from, entries)])
    }

    fn set_promise(&mut self, ballot: Ballot) -> StorageResult<()> {
        self.write_atomically(vec![StorageOp::SetPromise(ballot)])
    }

    fn set_decided_idx(&mut self, index: usize) -> StorageResult<()> {
        self.write_atomically(vec![StorageOp::SetDecidedIndex(index)])
    }

    fn get_decided_idx(&self) -> StorageResult<usize> {
        self.index(DECIDED)
    }

    fn set_accepted_round(&mut self, ballot: Ballot) -> StorageResult<()> {
        self.write_atomically(vec![StorageOp::SetAcceptedRound(ballot)])
    }

    fn get_accepted_round(&self) -> StorageResult<Option<Ballot>> {
        self.meta(ACCEPTED)
    }

    fn get_entries(&self, from: usize, to: usize) -> StorageResult<Vec<T>> {
        let table = self.database.begin_read()?.open_table(LOG)?;
        let mut entries = Vec::new();
        for item in table.range(wide(from)?..wide(to)?)? {
            entries.push(decode(item?.1.value())?);
        }
        // All of the interval or nothing, as the trait asks.
        if entries.len() != to.saturating_sub(from) {
            entries.clear();
        }
        Ok(entries)
    }

    fn get_log_len(&self) -> StorageResult<usize> {
        let trimmed = self.index(TRIMMED)?;
        let table = self.database.begin_read()?.open_table(LOG)?;
        let Some((last, _)) = table.last()? else {
            return Ok(0);
        };
        Ok(usize::try_from(last.value())? + 1 - trimmed)
    }

    fn get_suffix(&self, from: usize) -> StorageResult<Vec<T>> {
        let end = self.index(TRIMMED)? + self.get_log_len()?;
        self.get_entries(from, end.max(from))
    }

    fn get_promise(&self) -> StorageResult<Option<Ballot>> {
        self.meta(PROMISE)
    }

    fn set_stopsign(&mut self, stop: Option<StopSign>) -> StorageResult<()> {
        self.write_atomically(vec![StorageOp::SetStopsign(stop)])
    }

    fn get_stopsign(&self) -> StorageResult<Option<StopSign>> {
        self.meta(STOP_SIGN)
    }

    fn trim(&mut self, index: usize) -> StorageResult<()> {
        self.write_atomically(vec![StorageOp::Trim(index)])
    }

    fn set_compacted_idx(&mut self, index: usize) -> StorageResult<()> {
        self.write_atomically(vec![StorageOp::SetCompactedIdx(index)])
    }

    fn get_compacted_idx(&self) -> StorageResult<usize> {
        self.index(COMPACTED)
    }

    fn set_snapshot(&mut self, snapshot: Option<T::Snapshot>) -> StorageResult<()> {
        self.write_atomically(vec![StorageOp::SetSnapshot(snapshot)])
    }

    fn get_snapshot(&self) -> StorageResult<Option<T::Snapshot>> {
        self.meta(SNAPSHOT)
    }
}

fn wide(index: usize) -> StorageResult<u64> {
    Ok(u64::try_from(index)?)
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, Box<dyn Error>> {
    Ok(serde_cbor::to_vec(value)?)
}

fn decode<V: DeserializeOwned>(bytes: &[u8]) -> Result<V, Box<dyn Error>> {
    Ok(serde_cbor::from_slice(bytes)?)
}

#[cfg(test)]
mod tests {
    use omnipaxos::storage::NoSnapshot;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct Number(u64);

    impl Entry for Number {
        type Snapshot = NoSnapshot;
    }

    fn numbers(range: std::ops::Range<u64>) -> Vec<Number> {
        range.map(Number).collect()
    }

    fn open(folder: &tempfile::TempDir) -> PaxosStorage<Number> {
        PaxosStorage::new(&Store::open(folder.path()).unwrap())
    }

    #[test]
    fn a_restart_forgets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let promise = Ballot::with(1, 7, 3, 2);
        let mut storage = open(&folder);
        assert_eq!(storage.get_promise().unwrap(), None);
        storage.append_entries(numbers(0..3)).unwrap();
        storage
            .write_atomically(vec![
                StorageOp::SetPromise(promise),
                StorageOp::SetAcceptedRound(promise),
                StorageOp::AppendOnPrefix(2, numbers(20..24)),
                StorageOp::SetDecidedIndex(4),
            ])
            .unwrap();
        drop(storage);
        let storage = open(&folder);
        assert_eq!(storage.get_promise().unwrap(), Some(promise));
        assert_eq!(storage.get_accepted_round().unwrap(), Some(promise));
        assert_eq!(storage.get_decided_idx().unwrap(), 4);
        assert_eq!(storage.get_log_len().unwrap(), 6);
        let log = [numbers(0..2), numbers(20..24)].concat();
        assert_eq!(storage.get_suffix(0).unwrap(), log);
        assert_eq!(storage.get_entries(1, 3).unwrap(), log[1..3]);
        assert_eq!(storage.get_entries(4, 7).unwrap(), [], "not all of it exists");
    }

    #[test]
    fn a_failed_batch_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut storage = open(&folder);
        let batch = vec![
            StorageOp::AppendEntry(Number(1)),
            StorageOp::SetDecidedIndex(1),
            StorageOp::AppendOnPrefix(9, numbers(0..1)),
        ];
        storage.write_atomically(batch).unwrap_err();
        assert_eq!(storage.get_log_len().unwrap(), 0);
        assert_eq!(storage.get_decided_idx().unwrap(), 0);
    }

    #[test]
    fn indices_stay_absolute_after_a_trim() {
        let folder = tempfile::tempdir().unwrap();
        let mut storage = open(&folder);
        storage.append_entries(numbers(0..5)).unwrap();
        storage.trim(3).unwrap();
        storage.set_compacted_idx(3).unwrap();
        assert_eq!(storage.get_log_len().unwrap(), 2);
        assert_eq!(storage.get_suffix(3).unwrap(), numbers(3..5));
        storage.trim(5).unwrap();
        storage.append_entry(Number(5)).unwrap();
        drop(storage);
        let storage = open(&folder);
        assert_eq!(storage.get_suffix(5).unwrap(), numbers(5..6));
        assert_eq!(storage.get_compacted_idx().unwrap(), 3);
    }
}
