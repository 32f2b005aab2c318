//! The log as a finished or killed process kept it on disk.

use std::path::Path;

use iota_node::store::{LogRecord, Store};
use iota_protocol::limits::ENTRY_BYTES_MAX;
use iota_protocol::wire::decode;
use iota_protocol::wire::message::{Decision, Entry};

/// Certified entries of the process whose folder is `folder`. It must have ended.
pub(crate) fn stored_entries(folder: &Path) -> Vec<Vec<u8>> {
    let store = Store::open(folder).expect("the store of a process that ended");
    let length = store.log_len().expect("a readable log");
    let records = store.log(0..length, usize::MAX).expect("a readable log");
    let entries: Vec<Vec<u8>> = records.into_iter().map(|LogRecord { entry, .. }| entry).collect();
    assert_eq!(entries.len() as u64, length);
    entries
}

/// The decision in an entry.
pub(crate) fn decision(entry: &[u8]) -> Decision {
    decode::<Entry>(entry, ENTRY_BYTES_MAX).expect("a decided entry").decision
}
