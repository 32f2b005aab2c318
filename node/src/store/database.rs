//! The database file: named values and the decided log, from its first entry on or from a snapshot.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

/// Name of the file in the data directory.
const FILE: &str = "node.redb";
/// Version of the tables below; a file of another version is refused rather than misread.
const FORMAT: &[u8] = b"iota-node store 1";
/// Where the version is kept.
const FORMAT_KEY: &str = "format";
/// Where it stands how many entries the snapshot stands for.
const LOG_FIRST_KEY: &str = "log first";
/// Where the snapshot is.
const LOG_SNAPSHOT_KEY: &str = "log snapshot";
/// Memory redb may use to cache pages. The working set is the end of the log.
const CACHE_BYTES: usize = 16 * 1024 * 1024;

const ABOUT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("about");
const STATE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("state");
const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log_entries");
const CERTIFICATES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log_certificates");

/// Why the store failed. Every variant names the file.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the file open.
    #[error("open {}: another process uses this data directory", path.display())]
    InUse {
        /// The database file.
        path: PathBuf,
    },
    /// The file is not a store of this version, or is damaged.
    #[error("open {}: not a usable store: {reason}", path.display())]
    Corrupt {
        /// The database file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk failed.
    #[error("use {}: {reason}", path.display())]
    Io {
        /// The database file or its folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The log must grow by one entry at a time.
    #[error("append to the log in {}: expected index {expected}, got {got}", path.display())]
    Gap {
        /// The database file.
        path: PathBuf,
        /// The next free index.
        expected: u64,
        /// The index of the entry that was offered.
        got: u64,
    },
}

/// One decided entry as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRecord {
    /// Position in the log, from 0.
    pub index: u64,
    /// The entry's bytes.
    pub entry: Vec<u8>,
    /// The bytes of the certificate that proves the decision.
    pub certificate: Vec<u8>,
}

/// The open database; cheap to clone.
#[derive(Clone)]
pub struct Store {
    path: PathBuf,
    database: Arc<Database>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store in a data directory, creating both if they are missing.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it open, [`StoreError::Corrupt`] when the file is
    /// something else, [`StoreError::Io`] when the disk fails.
    pub fn open(data_dir: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(data_dir)
            .map_err(|error| StoreError::Io { path: data_dir.to_path_buf(), reason: error.to_string() })?;
        let path = data_dir.join(FILE);
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(&path)
            .map_err(|error| open_error(&path, error))?;
        let store = Self { path, database: Arc::new(database) };
        store.check_format()?;
        Ok(store)
    }

    /// Returns a named value.
    ///
    /// # Errors
    /// When the disk fails or the file is damaged.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|database| {
            let table = database.begin_read()?.open_table(STATE)?;
            Ok(table.get(key)?.map(|value| value.value().to_vec()))
        })
    }

    /// Sets a named value.
    ///
    /// # Errors
    /// When the disk fails; then the old value stands.
    pub fn put(&self, key: &str, value: &[u8]) -> Result<(), StoreError> {
        self.read(|database| {
            let write = database.begin_write()?;
            write.open_table(STATE)?.insert(key, value)?;
            Ok(write.commit()?)
        })
    }

    /// Appends decided entries, all or none. Entries the log already has are skipped.
    ///
    /// # Errors
    /// [`StoreError::Gap`] when an entry does not follow the last one, or when the disk fails.
    pub fn append_log(&self, records: &[LogRecord]) -> Result<(), StoreError> {
        let mut gap = None;
        self.read(|database| {
            let write = database.begin_write()?;
            {
                let mut entries = write.open_table(ENTRIES)?;
                let mut certificates = write.open_table(CERTIFICATES)?;
                let mut next = next_index(&write.open_table(STATE)?, &entries)?;
                for record in records {
                    if record.index > next {
                        gap = Some((next, record.index));
                        return Ok(());
                    }
                    if record.index == next {
                        entries.insert(record.index, record.entry.as_slice())?;
                        certificates.insert(record.index, record.certificate.as_slice())?;
                        next += 1;
                    }
                }
            }
            Ok(write.commit()?)
        })?;
        match gap {
            None => Ok(()),
            Some((expected, got)) => Err(StoreError::Gap { path: self.path.clone(), expected, got }),
        }
    }

    /// Begins the log with a snapshot instead of its first `first` entries, which are forgotten.
    ///
    /// # Errors
    /// When the disk fails; then the log is what it was.
    pub fn begin_log(&self, first: u64, snapshot: &[u8]) -> Result<(), StoreError> {
        self.read(|database| {
            let write = database.begin_write()?;
            {
                let mut state = write.open_table(STATE)?;
                state.insert(LOG_FIRST_KEY, first.to_le_bytes().as_slice())?;
                state.insert(LOG_SNAPSHOT_KEY, snapshot)?;
                write.open_table(ENTRIES)?.retain_in(..first, |_, _| false)?;
                write.open_table(CERTIFICATES)?.retain_in(..first, |_, _| false)?;
            }
            Ok(write.commit()?)
        })
    }

    /// Returns how many entries the snapshot stands for that the log begins with.
    ///
    /// # Errors
    /// When the disk fails or the file is damaged.
    pub fn log_first(&self) -> Result<u64, StoreError> {
        self.read(|database| first_index(&database.begin_read()?.open_table(STATE)?))
    }

    /// Returns the snapshot that the log begins with, if it does.
    ///
    /// # Errors
    /// When the disk fails or the file is damaged.
    pub fn log_snapshot(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.get(LOG_SNAPSHOT_KEY)
    }

    /// Forgets the decided entries, and the snapshot.
    ///
    /// # Errors
    /// When the disk fails; then all of them are still there.
    pub fn clear_log(&self) -> Result<(), StoreError> {
        self.read(|database| {
            let write = database.begin_write()?;
            {
                let mut state = write.open_table(STATE)?;
                state.remove(LOG_FIRST_KEY)?;
                state.remove(LOG_SNAPSHOT_KEY)?;
            }
            write.open_table(ENTRIES)?.retain(|_, _| false)?;
            write.open_table(CERTIFICATES)?.retain(|_, _| false)?;
            Ok(write.commit()?)
        })
    }

    /// Returns the index of the next entry.
    ///
    /// # Errors
    /// When the disk fails or the file is damaged.
    pub fn log_len(&self) -> Result<u64, StoreError> {
        self.read(|database| {
            let read = database.begin_read()?;
            next_index(&read.open_table(STATE)?, &read.open_table(ENTRIES)?)
        })
    }

    /// Returns the entries of a range from its start on, until one more would exceed `bytes_max`; at
    /// least one if the range has any.
    ///
    /// # Errors
    /// When the disk fails or the file is damaged.
    pub fn log(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<LogRecord>, StoreError> {
        self.read(|database| {
            let read = database.begin_read()?;
            let certificates = read.open_table(CERTIFICATES)?;
            let mut records = Vec::new();
            let mut bytes: usize = 0;
            for item in read.open_table(ENTRIES)?.range(range)? {
                let (index, entry) = item?;
                let certificate = certificates.get(index.value())?;
                let record = LogRecord {
                    index: index.value(),
                    entry: entry.value().to_vec(),
                    certificate: certificate.map(|c| c.value().to_vec()).unwrap_or_default(),
                };
                bytes = bytes.saturating_add(record.entry.len() + record.certificate.len());
                if bytes > bytes_max && !records.is_empty() {
                    break;
                }
                records.push(record);
            }
            Ok(records)
        })
    }

    pub(super) fn database(&self) -> Arc<Database> {
        Arc::clone(&self.database)
    }

    /// Creates the tables of a new file and checks the version of an old one.
    fn check_format(&self) -> Result<(), StoreError> {
        let found = self.read(|database| {
            let write = database.begin_write()?;
            let found = {
                let mut about = write.open_table(ABOUT)?;
                let found = about.get(FORMAT_KEY)?.map(|format| format.value().to_vec());
                if found.is_none() {
                    about.insert(FORMAT_KEY, FORMAT)?;
                }
                found
            };
            write.open_table(STATE)?;
            write.open_table(ENTRIES)?;
            write.open_table(CERTIFICATES)?;
            super::paxos::create_tables(&write)?;
            write.commit()?;
            Ok(found)
        })?;
        match found {
            Some(found) if found != FORMAT => Err(StoreError::Corrupt {
                path: self.path.clone(),
                reason: format!(
                    "expected format {:?}, got {:?}",
                    String::from_utf8_lossy(FORMAT),
                    String::from_utf8_lossy(&found)
                ),
            }),
            _ => Ok(()),
        }
    }

    fn read<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        work(&self.database).map_err(|error| use_error(&self.path, &error))
    }
}

/// The index after the last entry, or after those that the snapshot stands for.
fn next_index(
    state: &impl ReadableTable<&'static str, &'static [u8]>,
    entries: &impl ReadableTable<u64, &'static [u8]>,
) -> Result<u64, redb::Error> {
    let after_last = entries.last()?.map_or(0, |(index, _)| index.value() + 1);
    Ok(after_last.max(first_index(state)?))
}

/// The index after the entries that the snapshot stands for.
fn first_index(state: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<u64, redb::Error> {
    let first = state.get(LOG_FIRST_KEY)?;
    Ok(first.and_then(|first| first.value().try_into().ok()).map_or(0, u64::from_le_bytes))
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    let path = path.to_path_buf();
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse { path },
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() != std::io::ErrorKind::InvalidData =>
        {
            StoreError::Io { path, reason: error.to_string() }
        }
        error => StoreError::Corrupt { path, reason: error.to_string() },
    }
}

fn use_error(path: &Path, error: &redb::Error) -> StoreError {
    let path = path.to_path_buf();
    let reason = error.to_string();
    match error {
        redb::Error::Io(_) | redb::Error::PreviousIo | redb::Error::DatabaseClosed => {
            StoreError::Io { path, reason }
        }
        _ => StoreError::Corrupt { path, reason },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: u64) -> LogRecord {
        LogRecord { index, entry: vec![1; 10], certificate: index.to_le_bytes().to_vec() }
    }

    #[test]
    fn values_and_the_log_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.put("k", b"old").unwrap();
        store.put("k", b"new").unwrap();
        store.append_log(&[record(0), record(1)]).unwrap();
        store.append_log(&[record(1), record(2)]).unwrap();
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.get("k").unwrap(), Some(b"new".to_vec()));
        assert_eq!(store.get("other").unwrap(), None);
        assert_eq!(store.log_len().unwrap(), 3);
        let all = store.log(0..10, usize::MAX).unwrap();
        assert_eq!(all, [record(0), record(1), record(2)]);
    }

    #[test]
    fn a_gap_in_the_log_is_refused_and_nothing_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let error = store.append_log(&[record(0), record(2)]).unwrap_err();
        assert!(matches!(error, StoreError::Gap { expected: 1, got: 2, .. }));
        assert_eq!(store.log_len().unwrap(), 0);
    }

    #[test]
    fn a_log_range_stops_at_the_byte_limit_but_makes_progress() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.append_log(&[record(0), record(1), record(2)]).unwrap();
        assert_eq!(store.log(0..3, 40).unwrap(), [record(0), record(1)]);
        assert_eq!(store.log(1..3, 1).unwrap(), [record(1)]);
    }

    #[test]
    fn a_log_that_begins_with_a_snapshot_goes_on_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.append_log(&[record(0), record(1), record(2)]).unwrap();
        store.begin_log(2, b"two").unwrap();
        assert_eq!((store.log_len().unwrap(), store.log(0..9, usize::MAX).unwrap()), (3, vec![record(2)]));
        store.begin_log(7, b"seven").unwrap();
        assert_eq!((store.log_first().unwrap(), store.log_len().unwrap()), (7, 7), "all before it are gone");
        store.append_log(&[record(2), record(7)]).unwrap();
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.log_snapshot().unwrap(), Some(b"seven".to_vec()));
        assert_eq!(store.log(0..9, usize::MAX).unwrap(), [record(7)]);
        store.clear_log().unwrap();
        assert_eq!((store.log_snapshot().unwrap(), store.log_len().unwrap()), (None, 0));
    }

    #[test]
    fn a_second_opener_is_told_that_the_directory_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let _open = Store::open(folder.path()).unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }));
        assert!(error.to_string().contains("node.redb"));
    }

    #[test]
    fn a_file_that_is_no_store_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), vec![7; 8192]).unwrap();
        let error = Store::open(folder.path()).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("node.redb"));
    }

    #[test]
    fn a_store_of_another_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store
            .read(|database| {
                let write = database.begin_write()?;
                write.open_table(ABOUT)?.insert(FORMAT_KEY, &b"other"[..])?;
                Ok(write.commit()?)
            })
            .unwrap();
        drop(store);
        let error = Store::open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("got \"other\""), "{error}");
    }
}
