//! What becomes of the beginning of the log: candidates write it to the mirror, if the run has one, and then everybody lets
//! go of it on the disk.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use iota_protocol::log::{Certificate, Snapshot};
use iota_protocol::wire::message::ControlUpdate;
use iota_protocol::wire::{decode, encode};
use iota_protocol::{Hash, LogIndex, RunId};
use serde_bytes::ByteBuf;

use crate::mirror::{LogPart, Mirror, MirrorError};
use crate::store::{LogRecord, Store, StoreError};

/// Entries of one part of the log in the mirror.
const PART_ENTRIES: u64 = 1024;
/// Pause before a part that could not be written is tried again.
const PAUSE: Duration = Duration::from_secs(30);

/// How far the log has gone to the mirror, and what waits for it.
#[derive(Debug)]
pub(super) struct History {
    /// Whether this node writes to a mirror.
    writes: bool,
    /// Entries that are in the mirror, or that this node never had.
    written: u64,
    /// Entries that have to be.
    wanted: u64,
    under_way: bool,
    /// What the log begins with in memory, as long as that is not on disk.
    snapshot: Option<Arc<Snapshot>>,
}

impl History {
    /// The history of a node on whose disk the log begins after `first` entries.
    pub(super) const fn new(writes: bool, first: u64) -> Self {
        Self { writes, written: first, wanted: first, under_way: false, snapshot: None }
    }

    /// The log begins with this snapshot now.
    pub(super) fn begin_with(&mut self, snapshot: Arc<Snapshot>) {
        self.wanted = self.wanted.max(snapshot.entries);
        self.snapshot = Some(snapshot);
    }

    /// The run is over after so many entries.
    pub(super) fn finish(&mut self, entries: u64) {
        self.wanted = self.wanted.max(entries);
    }

    /// The entries to write to the mirror now.
    pub(super) fn next(&mut self) -> Option<std::ops::Range<u64>> {
        let due = self.writes && !self.under_way && self.written < self.wanted;
        due.then(|| {
            self.under_way = true;
            self.written..self.wanted
        })
    }

    /// A write has ended; the entries before `written` are in the mirror.
    pub(super) fn ended(&mut self, written: u64) {
        self.under_way = false;
        self.written = self.written.max(written);
    }

    /// The snapshot to put on disk now.
    pub(super) fn due(&mut self) -> Option<Arc<Snapshot>> {
        self.snapshot.take_if(|snapshot| !self.writes || snapshot.entries <= self.written)
    }

    /// Whether nothing has to go to the mirror.
    pub(super) const fn is_idle(&self) -> bool {
        !self.writes || self.written >= self.wanted
    }
}

/// Why a part of the log was not written to the mirror.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Mirror(#[from] MirrorError),
}

/// Writes entries to the mirror; returns the index after the last one that is there. A failure is returned after a pause.
pub(super) async fn write(mirror: Mirror, store: Store, run: RunId, entries: std::ops::Range<u64>) -> u64 {
    let mut from = entries.start;
    while from < entries.end {
        let part = from..entries.end.min(from + PART_ENTRIES);
        match write_part(&mirror, &store, run, part.clone()).await {
            Ok(()) => from = part.end,
            Err(error) => {
                tracing::warn!(first = part.start, next = part.end, %error, "log not mirrored, trying again");
                tokio::time::sleep(PAUSE).await;
                break;
            }
        }
    }
    from
}

async fn write_part(
    mirror: &Mirror,
    store: &Store,
    run: RunId,
    part: std::ops::Range<u64>,
) -> Result<(), WriteError> {
    let there = |known: &LogPart| known.first <= part.start && known.next >= part.end;
    if mirror.log_parts(run.0).await?.iter().any(there) {
        return Ok(());
    }
    // Whoever has these entries writes them; a node that went on from a snapshot never had them.
    let Some(update) = proven(store, part.clone())? else { return Ok(()) };
    mirror.put_log(run.0, part.start, part.end, Bytes::from(encode(&update))).await?;
    Ok(())
}

/// Entries of the log on disk with their proof; nothing if not all of them are there.
fn proven(store: &Store, part: std::ops::Range<u64>) -> Result<Option<ControlUpdate>, StoreError> {
    let records = store.log(part.clone(), usize::MAX)?;
    let complete = records.len() as u64 == part.end.saturating_sub(part.start);
    let Some(last) = records.last().filter(|_| complete) else { return Ok(None) };
    let Ok(certificate) = decode::<Certificate>(&last.certificate, last.certificate.len()) else {
        return Ok(None);
    };
    let beyond = store.log(part.end..certificate.index.0.saturating_add(1), usize::MAX)?;
    let hash = |record: &LogRecord| Hash::of(&record.entry);
    Ok(Some(ControlUpdate {
        first: LogIndex(part.start),
        beyond: beyond.iter().map(hash).collect(),
        entries: records.into_iter().map(|record| ByteBuf::from(record.entry)).collect(),
        certificate,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(entries: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot { entries, chain: Hash::default(), state: Vec::new() })
    }

    #[test]
    fn without_a_mirror_the_disk_lets_go_at_once() {
        let mut history = History::new(false, 0);
        history.begin_with(snapshot(10));
        assert_eq!((history.next(), history.due().map(|due| due.entries)), (None, Some(10)));
        assert!(history.due().is_none() && history.is_idle());
    }

    #[test]
    fn with_a_mirror_the_disk_lets_go_of_what_is_there() {
        let mut history = History::new(true, 5);
        history.begin_with(snapshot(10));
        assert_eq!((history.next(), history.next()), (Some(5..10), None), "one write at a time");
        assert!(history.due().is_none());
        history.begin_with(snapshot(20));
        history.ended(8);
        assert_eq!(history.next(), Some(8..20), "from where the last one ended");
        history.ended(20);
        assert_eq!(history.due().map(|due| due.entries), Some(20));
        history.finish(27);
        assert!(!history.is_idle());
        assert_eq!(history.next(), Some(20..27));
        history.ended(27);
        assert!(history.is_idle());
    }
}
