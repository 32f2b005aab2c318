//! What a process leaves in its data folder for the next one, and how that one takes it over.
//!
//! | what | where | written |
//! |---|---|---|
//! | whose folder it is | `node.redb` | once, at the first start |
//! | consensus state of a candidate | `node.redb` | before anything is said that rests on it |
//! | certified log, and the snapshot it begins with | `node.redb` | as it comes |
//! | message numbers that may be used | `node.redb` | before they are |
//! | which state of a stage is kept | `node.redb` | when its blobs are on disk |
//! | blobs and their tags | `blobs/` | states, contributions and what receipts name before they are announced |
//!
//! `node.redb` and the blob store's tables are transactional, so a process may end at any instant. What comes out damaged
//! all the same, after a power failure or on a bad disk, is noticed by its hash, and had from other peers again.

use iota_protocol::limits::MESSAGE_NUMBERS_AHEAD;
use iota_protocol::log::{Certificate, Snapshot};
use iota_protocol::peer::Remains;
use iota_protocol::wire::message::{ControlUpdate, StateOffer};
use iota_protocol::wire::{decode, encode};
use iota_protocol::{LogIndex, PeerId, RunId};
use serde_bytes::ByteBuf;

use crate::blobs::{DataError, DataPlane};
use crate::driver::NodePeer;
use crate::driver::vault::without_blobs;
use crate::store::{Store, StoreError};

/// Where it stands whose folder it is.
const OWNER_KEY: &str = "owner";
/// Where it stands below which number none is free for a message.
const NUMBERS_KEY: &str = "message numbers";
/// Where the state of a stage is named whose blobs are kept.
const STATE_KEY: &str = "stage state";

/// Why a data folder cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoveryError {
    /// The folder of another peer or another run.
    #[error(
        "node.redb belongs to {found}, expected {expected}: choose another folder, or delete this one if that run is over"
    )]
    Foreign {
        /// Who may use it.
        expected: String,
        /// Whose it is.
        found: String,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The blob store failed.
    #[error(transparent)]
    Blobs(#[from] DataError),
}

/// Makes the folder this peer's in this run. Promises made in one run, or by one peer, bind no other.
///
/// # Errors
/// [`RecoveryError::Foreign`] if it is another's already.
pub(crate) fn claim(store: &Store, run: RunId, peer: PeerId) -> Result<(), RecoveryError> {
    let expected = format!("peer {peer} in run {run}");
    match store.get(OWNER_KEY)? {
        None => Ok(store.put(OWNER_KEY, expected.as_bytes())?),
        Some(found) if found == expected.as_bytes() => Ok(()),
        Some(found) => {
            Err(RecoveryError::Foreign { expected, found: String::from_utf8_lossy(&found).into_owned() })
        }
    }
}

/// The number before the first message of this process: what the clock says, but none that an earlier process of this folder
/// may have used. A clock that was set back would have a peer sign two messages under one number.
///
/// # Errors
/// When the disk fails.
pub(crate) fn first_number(store: &Store, clock: u64) -> Result<u64, StoreError> {
    let written =
        store.get(NUMBERS_KEY)?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes);
    let first = clock.max(written);
    write_numbers(store, first)?;
    Ok(first)
}

/// Writes down that numbers after `used` may be used; returns up to which.
///
/// # Errors
/// When the disk fails; then what was written down before stands.
pub(crate) fn write_numbers(store: &Store, used: u64) -> Result<u64, StoreError> {
    let written = used.saturating_add(MESSAGE_NUMBERS_AHEAD);
    store.put(NUMBERS_KEY, &written.to_le_bytes())?;
    Ok(written)
}

/// Writes down what the log begins with, and lets go of the entries it stands for.
///
/// # Errors
/// When the disk fails; then the log is what it was.
pub(crate) fn keep_snapshot(store: &Store, snapshot: &Snapshot) -> Result<(), StoreError> {
    store.begin_log(snapshot.entries, &encode(snapshot))
}

/// Writes down that the blobs of this state are on disk.
///
/// # Errors
/// When the disk fails; then the state written down before stands.
pub(crate) fn remember(store: &Store, state: &StateOffer) -> Result<(), StoreError> {
    store.put(STATE_KEY, &encode(state))
}

/// Hands the peer what an earlier process left. What is damaged and can be had from others is dropped, and said.
///
/// # Errors
/// When the disk fails.
pub(crate) async fn recover(
    peer: &mut NodePeer,
    store: &Store,
    plane: &DataPlane,
) -> Result<(), RecoveryError> {
    let remains = Remains {
        log: kept_log(store)?,
        snapshot: kept_snapshot(store)?,
        state: kept_state(store)?,
        tags: without_blobs(plane.tags().await?),
    };
    if let Some(state) = &remains.state {
        tracing::info!(stage = %state.stage, version = %state.version, "found the state of a stage");
    }
    let entries = remains.log.as_ref().map_or(0, |log| log.entries.len());
    match peer.recover(remains) {
        Ok(()) if entries > 0 => tracing::info!(entries, "found the log"),
        Ok(()) => {}
        Err(error) => drop_log(store, &error)?,
    }
    Ok(())
}

/// The state last written down, if it can be read.
fn kept_state(store: &Store) -> Result<Option<StateOffer>, StoreError> {
    let Some(bytes) = store.get(STATE_KEY)? else { return Ok(None) };
    let state = decode(&bytes, bytes.len());
    Ok(state.inspect_err(|error| tracing::warn!(%error, "the state in the data folder is damaged")).ok())
}

/// The snapshot that the log begins with, if it does and can be read.
fn kept_snapshot(store: &Store) -> Result<Option<Snapshot>, StoreError> {
    let Some(bytes) = store.log_snapshot()? else { return Ok(None) };
    let snapshot = decode(&bytes, bytes.len());
    Ok(snapshot
        .inspect_err(|error| tracing::warn!(%error, "the snapshot in the data folder is damaged"))
        .ok())
}

/// The entries kept, proven by their newest certificate, if there are any and it can be read.
fn kept_log(store: &Store) -> Result<Option<ControlUpdate>, StoreError> {
    let records = store.log(0..u64::MAX, usize::MAX)?;
    let (Some(first), Some(last)) = (records.first(), records.last()) else { return Ok(None) };
    let first = LogIndex(first.index);
    let certificate: Certificate = match decode(&last.certificate, last.certificate.len()) {
        Ok(certificate) => certificate,
        Err(error) => return drop_log(store, &error).map(|()| None),
    };
    let entries = records.into_iter().map(|record| ByteBuf::from(record.entry)).collect();
    Ok(Some(ControlUpdate { first, entries, beyond: Vec::new(), certificate }))
}

/// Lets go of a log that is damaged: other peers have it.
fn drop_log(store: &Store, error: &impl std::fmt::Display) -> Result<(), StoreError> {
    tracing::warn!(%error, "the log in the data folder is damaged, fetching it anew");
    store.clear_log()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LogRecord;

    #[test]
    fn a_folder_is_one_peers_in_one_run() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (run, peer) = (RunId([1; 32]), PeerId([2; 32]));
        claim(&store, run, peer).unwrap();
        claim(&store, run, peer).unwrap();
        for (run, peer) in [(RunId([3; 32]), peer), (run, PeerId([3; 32]))] {
            let refused = claim(&store, run, peer).unwrap_err().to_string();
            assert!(refused.contains("expected peer") && refused.contains("another folder"), "{refused}");
        }
    }

    #[test]
    fn a_clock_that_was_set_back_has_no_number_used_twice() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(first_number(&store, 5_000_000).unwrap(), 5_000_000);
        let ahead = 5_000_000 + MESSAGE_NUMBERS_AHEAD;
        for clock in [5_000_000, 0, 4_999_999] {
            let first = first_number(&store, clock).unwrap();
            assert!(first >= ahead, "{clock}: {first}");
        }
        let written = write_numbers(&store, 9_000_000_000).unwrap();
        assert_eq!(first_number(&store, 1).unwrap(), written, "a process that used many");
        assert_eq!(first_number(&store, u64::MAX / 2).unwrap(), u64::MAX / 2, "the clock, if it is later");
    }

    #[test]
    fn a_log_that_cannot_be_read_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(kept_log(&store).unwrap().is_none());
        store.append_log(&[LogRecord { index: 0, entry: vec![1], certificate: vec![2, 3] }]).unwrap();
        assert!(kept_log(&store).unwrap().is_none());
        assert_eq!(store.log_len().unwrap(), 0);
    }

    #[test]
    fn a_state_that_cannot_be_read_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        store.put(STATE_KEY, &[7; 9]).unwrap();
        assert_eq!(kept_state(&store).unwrap(), None);
    }
}
