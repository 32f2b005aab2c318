//! What happened, one line for each change of state.
//!
//! ```text
//! time        host stage epoch what     details
//! 4.112093s   3    1     0     opened   4 members
//! ```
//! - *time*: virtual, in seconds;
//! - *host*: the host that changed or knows of the change, by number;
//! - *stage*, *epoch*: what it is about, `-` if it is about none;
//! - *what*: `started`, `stopped`, `fault`, `leader`, `admitted`, `moved`, `evicted`, `opened`, `released`, `cut-off`,
//!   `skipped`, `undone`, `planned`, `reassigned`, `aborted`, `merged`, `snapshot`, `skipped-ahead`, `diverged`, `upgraded`, `outdated`, `finished`, `weights`, `failed` or
//!   `refused`;
//! - *details*: the rest, for people.
//!
//! Columns are separated by tabs. The trace hash is BLAKE3 over all lines, each with its line feed: equal hashes are
//! equal runs.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io;
use std::rc::Rc;

use iota_protocol::miner::Notice;
use iota_protocol::run_state::StateEvent;
use iota_protocol::{Epoch, Hash, PeerId, StageIndex};

use crate::observe::{Observation, Observer, Seconds, Seen, Violation};

/// A trace. Clones share one, so that it can be read after the world has taken the other as its observer.
#[derive(Clone)]
pub struct Trace(Rc<RefCell<Lines>>);

struct Lines {
    hasher: blake3::Hasher,
    count: u64,
    /// The newest lines.
    kept: VecDeque<String>,
    keep: usize,
    sink: Option<Box<dyn io::Write>>,
    failed: Option<io::Error>,
}

impl Trace {
    /// A trace that remembers its last `keep` lines.
    #[must_use]
    pub fn keeping(keep: usize) -> Self {
        Self::new(keep, None)
    }

    /// A trace that writes all lines, and remembers its last `keep`.
    #[must_use]
    pub fn writing(sink: Box<dyn io::Write>, keep: usize) -> Self {
        Self::new(keep, Some(sink))
    }

    fn new(keep: usize, sink: Option<Box<dyn io::Write>>) -> Self {
        let hasher = blake3::Hasher::new();
        Self(Rc::new(RefCell::new(Lines {
            hasher,
            count: 0,
            kept: VecDeque::new(),
            keep,
            sink,
            failed: None,
        })))
    }

    /// The hash over all lines so far.
    #[must_use]
    pub fn hash(&self) -> Hash {
        Hash(*self.0.borrow().hasher.finalize().as_bytes())
    }

    /// How many lines there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.borrow().count
    }

    /// The newest lines, oldest first, as many as it was asked to keep.
    #[must_use]
    pub fn last(&self) -> Vec<String> {
        self.0.borrow().kept.iter().cloned().collect()
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// The first error that writing met, after which nothing was written.
    pub fn flush(&self) -> io::Result<()> {
        let mut lines = self.0.borrow_mut();
        if let Some(error) = lines.failed.take() {
            return Err(error);
        }
        lines.sink.as_mut().map_or(Ok(()), io::Write::flush)
    }
}

impl Lines {
    fn add(&mut self, line: String) {
        self.hasher.update(line.as_bytes()).update(b"\n");
        self.count += 1;
        if let Some(Err(error)) = self.sink.as_mut().map(|sink| writeln!(sink, "{line}")) {
            (self.sink, self.failed) = (None, Some(error));
        }
        if self.keep > 0 {
            if self.kept.len() == self.keep {
                self.kept.pop_front();
            }
            self.kept.push_back(line);
        }
    }
}

impl Observer for Trace {
    fn observe(&mut self, seen: &Observation<'_>) -> Result<(), Violation> {
        let Some(change) = change(&seen.seen) else { return Ok(()) };
        let mut line = format!("{}\t{}\t", Seconds(seen.at), seen.host);
        let (stage, epoch) = change.place.map_or((None, None), |(stage, epoch)| (Some(stage), epoch));
        // Writing to a string cannot fail.
        let _ = match stage {
            Some(stage) => write!(line, "{stage}\t"),
            None => write!(line, "-\t"),
        };
        let _ = match epoch {
            Some(epoch) => write!(line, "{epoch}\t"),
            None => write!(line, "-\t"),
        };
        let _ = write!(line, "{}\t{}", change.what, change.details);
        self.0.borrow_mut().add(line);
        Ok(())
    }
}

/// A line without its time and host.
struct Change {
    place: Option<(StageIndex, Option<Epoch>)>,
    what: &'static str,
    details: String,
}

fn change(seen: &Seen<'_>) -> Option<Change> {
    let line = |what, details: String| Some(Change { place: None, what, details });
    match seen {
        Seen::Started => line("started", String::new()),
        Seen::Stopped => line("stopped", String::new()),
        Seen::Fault(fault) => line("fault", fault.to_string()),
        Seen::Notice(Notice::Leader(Some(leader))) => line("leader", leader.short()),
        Seen::Notice(Notice::Leader(None)) => line("leader", "none".to_owned()),
        Seen::Notice(Notice::Distrusts(peer, why)) => line("distrusts", format!("{}: {why}", peer.short())),
        Seen::Notice(Notice::Snapshot(entries)) => line("skipped-ahead", format!("{entries} entries")),
        Seen::Notice(Notice::Diverged(index)) => line("diverged", format!("entry {index}")),
        Seen::Notice(Notice::Outdated(why)) => line("outdated", why.to_string()),
        Seen::Notice(Notice::Leaving(awaits)) => line("leaving", awaits.to_string()),
        Seen::Notice(Notice::Queued(place)) => line("queued", format!("{place:?}")),
        Seen::Notice(Notice::Refused(refusal)) => line("refused", refusal.to_string()),
        Seen::Notice(Notice::Arrived(arrival)) => line("arrived", format!("{:?}", arrival.counted)),
        Seen::Notice(Notice::Left) => line("left", String::new()),
        Seen::Notice(Notice::Room(room, _)) => line("room", room.to_string()),
        Seen::Notice(Notice::Checked(subject, finding)) => Some(Change {
            place: Some((subject.stage, Some(subject.epoch))),
            what: "found",
            details: format!("{}: {finding}", subject.peer.short()),
        }),
        Seen::Notice(Notice::Evaluated(epoch, seen, of)) => Some(Change {
            place: Some((StageIndex(0), Some(*epoch))),
            what: "evaluated",
            details: format!("{seen} of {of} contributions"),
        }),
        Seen::Notice(Notice::Suspected(suspicion)) => Some(Change {
            place: Some((suspicion.stage, Some(suspicion.epoch))),
            what: "suspects",
            details: format!("{}: {:+.3} nats", suspicion.peer.short(), suspicion.effect),
        }),
        Seen::Notice(Notice::JobFailed(why)) => line("failed", why.clone()),
        Seen::Notice(Notice::WeightsReady(stage, version, hash)) => {
            Some(Change { place: Some((*stage, Some(*version))), what: "weights", details: hash.to_string() })
        }
        Seen::Notice(Notice::State(event)) => Some(decided(event)),
        Seen::Rejected(Some(sender), reason) => line("refused", format!("{}: {reason}", sender.short())),
        Seen::Rejected(None, reason) => line("refused", reason.to_string()),
        Seen::Done(..) => None,
    }
}

fn shown(peers: &[PeerId]) -> String {
    let peers: Vec<String> = peers.iter().map(|peer| peer.short()).collect();
    peers.join(" ")
}

fn decided(event: &StateEvent) -> Change {
    let (stage, epoch, what, details) = match event {
        StateEvent::Admitted(peer, stage) => (Some(stage), None, "admitted", peer.short()),
        StateEvent::Moved(peer, stage) => (Some(stage), None, "moved", peer.short()),
        StateEvent::Deposed(peer) => (None, None, "deposed", peer.short()),
        StateEvent::SpeedLimited(peer, speed) => {
            (None, None, "speed-limited", format!("{} {speed} / 1000 s", peer.short()))
        }
        StateEvent::Evicted(peer, reason) => (None, None, "evicted", format!("{} {reason}", peer.short())),
        StateEvent::EpochOpened(stage, epoch, members) => {
            (Some(stage), Some(epoch), "opened", format!("{members} members"))
        }
        StateEvent::Released(stage, epoch, peer) => (Some(stage), Some(epoch), "released", peer.short()),
        StateEvent::Skipped(stage, epoch) => (Some(stage), Some(epoch), "skipped", String::new()),
        StateEvent::Undone(stage, epoch) => (Some(stage), Some(epoch), "undone", String::new()),
        StateEvent::CutOff(stage, epoch) => (Some(stage), Some(epoch), "cut-off", String::new()),
        StateEvent::Planned(stage, epoch, attempt, submitters) => {
            (Some(stage), Some(epoch), "planned", format!("attempt {attempt}, {submitters} submitters"))
        }
        StateEvent::Reassigned(stage, epoch, partition, owner) => (
            Some(stage),
            Some(epoch),
            "reassigned",
            format!("partition {} to {}", partition.0, owner.short()),
        ),
        StateEvent::Aborted(stage, epoch, lost) => (Some(stage), Some(epoch), "aborted", shown(lost)),
        StateEvent::StoodOut(stage, epoch, peers) => (Some(stage), Some(epoch), "stands-out", shown(peers)),
        StateEvent::Merged(stage, epoch, samples, loss) => {
            let loss = loss.map(|loss| format!(", loss {loss:.6}")).unwrap_or_default();
            (Some(stage), Some(epoch), "merged", format!("{samples} samples{loss}"))
        }
        StateEvent::Enlisted(peer) => (None, None, "enlisted", peer.short()),
        StateEvent::Dismissed(peer, reason) => {
            (None, None, "dismissed", format!("{} {reason}", peer.short()))
        }
        StateEvent::Judged(subject, validator, finding) => {
            let details = format!("{} by {}: {finding}", subject.peer.short(), validator.short());
            (Some(&subject.stage), Some(&subject.epoch), "judged", details)
        }
        StateEvent::Checked(subject, outcome) => {
            let details = format!("{} {outcome}", subject.peer.short());
            (Some(&subject.stage), Some(&subject.epoch), "checked", details)
        }
        StateEvent::Evaluated(epoch, evaluator) => (None, Some(epoch), "said", evaluator.short()),
        StateEvent::Rated(epoch) => (None, Some(epoch), "rated", String::new()),
        StateEvent::Checkpointed(epoch) => (None, Some(epoch), "checkpointed", String::new()),
        StateEvent::Snapshot(entries) => (None, None, "snapshot", format!("of {entries} entries")),
        StateEvent::Upgraded(version) => (None, None, "upgraded", format!("to wire version {version}")),
        StateEvent::Finished => (None, None, "finished", String::new()),
    };
    Change { place: stage.map(|stage| (*stage, epoch.copied())), what, details }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use iota_protocol::RunSpec;

    use super::*;
    use crate::faults::Fault;
    use crate::trainer::Compute;
    use crate::world::{Ending, Setup, World};

    fn traced(change: impl Fn(&mut Setup), seed: u64) -> (Hash, u64, Vec<String>) {
        let mut spec = RunSpec::default();
        (spec.pipeline.stages, spec.training.epochs, spec.training.samples_per_epoch) = (2, 2, 8);
        let mut setup = Setup::new(spec, seed, 3, 6);
        setup.costs.parameters = 100;
        change(&mut setup);
        let trace = Trace::keeping(5);
        let mut world = World::new(setup);
        world.watch(Box::new(trace.clone()));
        let ending = world.run(Duration::from_secs(300));
        assert!(matches!(ending, Ending::Finished(_)), "{ending:?}");
        (trace.hash(), trace.count(), trace.last())
    }

    #[test]
    fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
        let crash = |setup: &mut Setup| {
            let at = Duration::from_secs(3);
            setup.schedule = vec![(at, Fault::CrashLeader(at)), (at, Fault::DropGossip(0.05))];
        };
        let toy = |setup: &mut Setup| setup.compute = Compute::Toy;
        let home = |setup: &mut Setup| {
            let link = crate::network::Link { reachable: true, ..crate::network::Link::HOME };
            setup.hosts.iter_mut().for_each(|host| host.link = link);
        };
        let setups: [&dyn Fn(&mut Setup); 4] = [&|_| (), &crash, &toy, &home];
        let mut hashes = std::collections::BTreeSet::new();
        for change in setups {
            for seed in [1, 2] {
                let first = traced(change, seed);
                assert_eq!(first, traced(change, seed));
                hashes.insert(first.0);
            }
        }
        assert_eq!(hashes.len(), 8, "no two of these runs are equal");
    }

    #[test]
    fn lines_have_their_columns_and_all_can_be_written() {
        #[derive(Clone, Default)]
        struct Shared(Rc<RefCell<Vec<u8>>>);
        impl io::Write for Shared {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.borrow_mut().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (hash, count, last) = traced(|_| (), 1);
        assert!(last.len() == 5 && last.iter().all(|line| line.split('\t').count() == 6), "{last:?}");

        let written = Shared::default();
        let trace = Trace::writing(Box::new(written.clone()), 0);
        for line in ["a", "b"] {
            trace.0.borrow_mut().add(line.to_owned());
        }
        trace.flush().expect("memory");
        assert_eq!(written.0.borrow().as_slice(), b"a\nb\n");
        assert_eq!((trace.count(), trace.hash()), (2, Hash::of(b"a\nb\n")));
        assert!(count > 100 && hash != trace.hash());
    }
}
