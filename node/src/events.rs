//! What a node reports while it runs: one JSON object per line in `<data-dir>/events.jsonl`.
//!
//! The log is for programs (`up` follows it, `jq` reads it); people read the log on stderr. A line is
//! `{"t_ms": …, "event": "…", …}` with `t_ms` in Unix milliseconds. Fields may be added; a reader skips
//! lines it does not know.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use iota_protocol::{Hash, PeerId};
use serde::{Deserialize, Serialize};

/// Name of the event log in a node's data folder.
pub const EVENTS_FILE: &str = "events.jsonl";
/// Name of the file that holds the events before those.
pub const OLDER_EVENTS_FILE: &str = "events.1.jsonl";
/// Most bytes of both files together, unless told otherwise: some hundred thousand events.
pub const EVENTS_BYTES_MAX: u64 = 64 << 20;

/// Longest line a reader keeps while it waits for its end.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Bytes of lines that wait until there is room for them. A miner that does nothing else for a day reports less.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// Something a node did or learned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum NodeEvent {
    /// All listeners are bound. The first event of every node.
    Started {
        /// Who it is.
        peer: PeerId,
        /// Where others dial it, each ending in `/p2p/…`.
        multiaddrs: Vec<String>,
        /// Socket addresses of its data plane.
        data_addresses: Vec<String>,
        /// Where `/health` and `/metrics` are, if served.
        http: Option<String>,
    },
    /// Another candidate leads.
    Leader {
        /// The orchestrator from now on.
        peer: PeerId,
    },
    /// This candidate does not take another for a leader any more.
    Distrusted {
        /// The other candidate.
        peer: PeerId,
        /// Why, for people.
        why: String,
        /// The file that proves it, for `iota-node verify-proof`, if it is something that the candidate signed.
        proof: Option<PathBuf>,
    },
    /// This node was assigned to a stage, its first or another.
    Admitted {
        /// The stage.
        stage: u16,
    },
    /// An epoch opened.
    EpochOpened {
        /// Its stage.
        stage: u16,
        /// Its number, which is also the version of the weights it starts from.
        epoch: u32,
        /// Replicas that take part.
        members: u32,
        /// Samples it covers.
        samples: u32,
    },
    /// How far this node is; at most a few per second.
    Progress {
        /// Its stage.
        stage: u16,
        /// The open epoch.
        epoch: u32,
        /// Samples it has finished in this epoch.
        done: u32,
        /// Samples it was assigned in this epoch.
        assigned: u32,
        /// Tokens it has trained on since it started.
        tokens_total: u64,
        /// Mean loss of the epoch so far in nats per token, at the tail.
        loss: Option<f64>,
        /// What it is doing: a word for people.
        phase: String,
    },
    /// A merge was planned.
    MergePlanned {
        /// Its stage.
        stage: u16,
        /// Its epoch.
        epoch: u32,
        /// Zero for the first plan of the epoch.
        attempt: u32,
        /// Replicas whose contributions are merged.
        submitters: u32,
    },
    /// A merge was decided.
    MergeClosed {
        /// Its stage.
        stage: u16,
        /// Its epoch.
        epoch: u32,
        /// From the plan to the outcome.
        seconds: f64,
        /// Bytes this node fetched for it.
        bytes_fetched: u64,
        /// Mean training loss of the epoch in nats per token, from the tail's manifests.
        loss: Option<f64>,
        /// Samples that went into it.
        samples: u32,
    },
    /// A merge, and those of its stage after it, were passed over after the fact: everybody who had what was merged is gone.
    Undone {
        /// The stage.
        stage: u16,
        /// The epoch.
        epoch: u32,
    },
    /// The state of every stage at this version is in the mirror.
    Checkpointed {
        /// The version.
        epoch: u32,
    },
    /// This node holds new weights.
    WeightsReady {
        /// Its stage.
        stage: u16,
        /// Their version: the epoch they start.
        version: u32,
        /// Hash of the flat vector.
        hash: Hash,
    },
    /// A peer lost its membership.
    Evicted {
        /// Which.
        peer: PeerId,
        /// Why.
        reason: String,
    },
    /// A check of a miner's epoch is concluded.
    Checked {
        /// The stage.
        stage: u16,
        /// The epoch.
        epoch: u32,
        /// The miner.
        peer: PeerId,
        /// What it has shown: `passed`, `unproven`, or `failed` and what is wrong.
        outcome: String,
    },
    /// This validator has seen that samples which went through a miner end with a higher loss than those of its stage's
    /// others. Nothing follows from it by itself.
    Suspected {
        /// The stage.
        stage: u16,
        /// The newest epoch looked at.
        epoch: u32,
        /// The miner.
        peer: PeerId,
        /// Samples of it that were looked at.
        samples: u64,
        /// What it adds to the loss of a sample, in nats per token.
        effect: f64,
        /// How many standard errors that is.
        errors: f64,
    },
    /// A peer validates no more.
    Dismissed {
        /// Which.
        peer: PeerId,
        /// Why.
        reason: String,
    },
    /// A first contribution of this process counts. Seconds since it started; the steps before it are missing where they
    /// were not taken.
    Joined {
        /// To the first word of another peer.
        connected_seconds: Option<f64>,
        /// To its place.
        admitted_seconds: Option<f64>,
        /// To the newest weights of its stage.
        ready_seconds: Option<f64>,
        /// To the merge with its contribution.
        counted_seconds: Option<f64>,
    },
    /// This node leaves, and waits for something before it ends.
    Leaving {
        /// What it waits for: words for people.
        awaits: String,
    },
    /// A peer was released from an epoch; its samples moved.
    Released {
        /// The stage.
        stage: u16,
        /// The epoch.
        epoch: u32,
        /// Which peer.
        peer: PeerId,
        /// Why.
        reason: String,
    },
    /// Messages were refused.
    Refused {
        /// Kind of the message.
        kind: String,
        /// Why.
        reason: String,
        /// How many since this node started.
        count: u64,
    },
    /// Bytes moved since this node started.
    Traffic {
        /// Gossip received.
        gossip_in: u64,
        /// Gossip sent.
        gossip_out: u64,
        /// Requests and responses received.
        rpc_in: u64,
        /// Requests and responses sent.
        rpc_out: u64,
        /// Activations and gradients received.
        push_in: u64,
        /// Activations and gradients sent.
        push_out: u64,
        /// Blobs fetched.
        blobs_in: u64,
        /// Blobs served.
        blobs_out: u64,
    },
    /// There is more or less room on this node's disk than before.
    Room {
        /// `enough`, `near` its end, or `full`.
        room: String,
        /// Bytes that this node keeps.
        kept_bytes: u64,
        /// The most it may keep, if there is a limit.
        quota_bytes: Option<u64>,
        /// Bytes free on the file system.
        free_bytes: u64,
    },
    /// The run is over for this node. Its last event.
    Finished {
        /// The stage it held, if it was a miner.
        stage: Option<u16>,
        /// Version of its weights.
        version: u32,
        /// Their hash.
        hash: Option<Hash>,
        /// The file it wrote them to.
        checkpoint: Option<PathBuf>,
    },
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimedEvent {
    /// Unix milliseconds.
    pub t_ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: NodeEvent,
}

/// Milliseconds since the Unix epoch.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Appends events to a node's log. Every line is written at once, so a reader sees whole lines or the start of one. Those
/// for which the disk has no room wait for it.
///
/// A file that has half of the bytes that the log may take becomes [`OLDER_EVENTS_FILE`], in place of the one before.
#[derive(Debug)]
pub struct EventLog {
    folder: PathBuf,
    file: File,
    length: u64,
    bytes_max: u64,
    /// What was not written yet, from the middle of a line on if the disk took the start of it.
    waiting: Vec<u8>,
}

impl EventLog {
    /// The folder that it is in.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens the log in `data_dir` for appending. Its files take `bytes_max` together.
    ///
    /// # Errors
    /// What the system said about creating it.
    pub fn open(data_dir: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = open_events(data_dir)?;
        let length = file.metadata()?.len();
        let mut last = [b'\n'];
        if let Some(end) = length.checked_sub(1) {
            file.read_exact_at(&mut last, end)?;
        }
        // An earlier process may have ended in the middle of a line.
        let waiting = if last == [b'\n'] { Vec::new() } else { vec![b'\n'] };
        Ok(Self { folder: data_dir.to_owned(), file, length, bytes_max, waiting })
    }

    /// Whether some events wait for room.
    #[must_use]
    pub const fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Appends `event` with the current time, after those that wait.
    ///
    /// # Errors
    /// What the system said about writing it. It waits then, unless too many do already.
    pub fn write(&mut self, event: NodeEvent) -> io::Result<()> {
        let mut line = serde_json::to_vec(&TimedEvent { t_ms: unix_ms(), event })?;
        line.push(b'\n');
        let is_whole = self.waiting.is_empty() && self.length > 0;
        let is_long = self.length + line.len() as u64 > self.bytes_max / 2;
        let begun = if is_whole && is_long { self.begin_file() } else { Ok(()) };
        if self.waiting.len() + line.len() <= WAITING_BYTES_MAX {
            self.waiting.extend(line);
        }
        self.flush().and(begun)
    }

    /// Goes on in a new file, or in the same if there can be none.
    fn begin_file(&mut self) -> io::Result<()> {
        match std::fs::rename(self.folder.join(EVENTS_FILE), self.folder.join(OLDER_EVENTS_FILE)) {
            // It was renamed before, and no new one could be opened.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        (self.file, self.length) = (open_events(&self.folder)?, 0);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            match self.file.write(&self.waiting) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.waiting.drain(..written);
                    self.length += written as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn open_events(folder: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).read(true).append(true).open(folder.join(EVENTS_FILE))
}

/// Follows a log that another process writes. Events are missed only if two files were begun since the last look.
#[derive(Debug)]
pub struct EventTail {
    folder: PathBuf,
    /// The file that is read, from where on it was not read yet.
    file: Option<File>,
    partial: Vec<u8>,
}

impl EventTail {
    /// Starts at the beginning of the log in `data_dir`, which need not exist yet.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self { folder: data_dir.to_owned(), file: None, partial: Vec::new() }
    }

    /// Returns the events appended since the last call. Lines of another shape are skipped.
    ///
    /// # Errors
    /// What the system said about reading; a log that does not exist yet is empty.
    pub fn poll(&mut self) -> io::Result<Vec<TimedEvent>> {
        if self.file.is_none() {
            self.file = existing(&self.folder.join(OLDER_EVENTS_FILE))?;
        }
        let newest = existing(&self.folder.join(EVENTS_FILE))?;
        // Looked up before the rest of the file at hand is read, to which nothing is appended once there is a newer one.
        if let Some(file) = &mut self.file {
            file.read_to_end(&mut self.partial)?;
        }
        let is_other = |file: &File, newest: &File| Ok::<_, io::Error>(identity(file)? != identity(newest)?);
        if let Some(mut newest) = newest
            && self.file.as_ref().map_or(Ok(true), |file| is_other(file, &newest))?
        {
            newest.read_to_end(&mut self.partial)?;
            self.file = Some(newest);
        }
        let whole = self.partial.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let lines: Vec<u8> = self.partial.drain(..whole).collect();
        if self.partial.len() > LINE_BYTES_MAX {
            self.partial.clear();
        }
        Ok(lines.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }
}

fn existing(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a file keeps when it is renamed.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    let about = file.metadata()?;
    Ok((about.dev(), about.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_sees_each_event_once_and_waits_for_the_end_of_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut tail = EventTail::new(dir.path());
        assert_eq!(tail.poll().unwrap(), [], "no log yet");

        let mut log = EventLog::open(dir.path(), EVENTS_BYTES_MAX).unwrap();
        let opened = NodeEvent::EpochOpened { stage: 1, epoch: 2, members: 3, samples: 4 };
        log.write(opened.clone()).unwrap();
        log.file.write_all(b"{\"event\":\"of the future\"}\n{\"t_ms\":5,\"event\":\"admi").unwrap();
        let events: Vec<_> = tail.poll().unwrap().into_iter().map(|timed| timed.event).collect();
        assert_eq!(events, [opened]);

        log.file.write_all(b"tted\",\"stage\":2}\n").unwrap();
        assert_eq!(tail.poll().unwrap(), [TimedEvent { t_ms: 5, event: NodeEvent::Admitted { stage: 2 } }]);
        assert_eq!(tail.poll().unwrap(), []);
    }

    #[test]
    fn the_line_that_an_earlier_process_did_not_end_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(EVENTS_FILE), b"{\"t_ms\":1,\"event\":\"adm").unwrap();
        let mut log = EventLog::open(dir.path(), EVENTS_BYTES_MAX).unwrap();
        log.write(NodeEvent::Admitted { stage: 3 }).unwrap();
        assert!(!log.is_behind());
        drop(log);
        EventLog::open(dir.path(), EVENTS_BYTES_MAX)
            .unwrap()
            .write(NodeEvent::Admitted { stage: 4 })
            .unwrap();
        let events: Vec<_> =
            EventTail::new(dir.path()).poll().unwrap().into_iter().map(|timed| timed.event).collect();
        assert_eq!(events, [3, 4].map(|stage| NodeEvent::Admitted { stage }));
        let lines = std::fs::read_to_string(dir.path().join(EVENTS_FILE)).unwrap();
        assert_eq!(lines.lines().count(), 3);
    }

    #[test]
    fn a_log_takes_no_more_than_it_may_and_a_tail_misses_nothing_of_it() {
        let dir = tempfile::tempdir().unwrap();
        const BYTES_MAX: u64 = 1000;
        let size = |name: &str| std::fs::metadata(dir.path().join(name)).map_or(0, |about| about.len());
        let mut early = EventTail::new(dir.path());
        let (mut seen, mut written) = (Vec::new(), Vec::new());
        let mut log = EventLog::open(dir.path(), BYTES_MAX).unwrap();
        for stage in 0..105 {
            if stage % 30 == 0 {
                log = EventLog::open(dir.path(), BYTES_MAX).unwrap();
            }
            log.write(NodeEvent::Admitted { stage }).unwrap();
            written.push(NodeEvent::Admitted { stage });
            assert!(size(EVENTS_FILE) + size(OLDER_EVENTS_FILE) <= BYTES_MAX);
            if stage % 3 == 0 {
                seen.extend(early.poll().unwrap().into_iter().map(|timed| timed.event));
            }
        }
        seen.extend(early.poll().unwrap().into_iter().map(|timed| timed.event));
        assert_eq!(seen, written);
        let late: Vec<_> = EventTail::new(dir.path()).poll().unwrap();
        let late: Vec<_> = late.into_iter().map(|timed| timed.event).collect();
        assert!(late.len() > 10 && written.ends_with(&late), "both files, the older first: {late:?}");
    }

    #[test]
    fn a_line_is_flat_json_tagged_with_its_kind() {
        let event = NodeEvent::WeightsReady { stage: 0, version: 3, hash: Hash([0xab; 32]) };
        let text = serde_json::to_string(&TimedEvent { t_ms: 9, event: event.clone() }).unwrap();
        let hash = "ab".repeat(32);
        assert_eq!(
            text,
            format!(r#"{{"t_ms":9,"event":"weights_ready","stage":0,"version":3,"hash":"{hash}"}}"#)
        );
        assert_eq!(serde_json::from_str::<TimedEvent>(&text).unwrap().event, event);
    }
}
