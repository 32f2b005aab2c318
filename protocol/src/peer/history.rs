//! How a peer comes by the log: by gossip, by asking for what it lacks, and from a snapshot where others no longer have that.

use std::sync::Arc;

use omnipaxos::storage::Storage;
use serde_bytes::ByteBuf;

use super::{Asked, Peer, SOON_PARTS};
use crate::id::{Hash, LogIndex, PeerId};
use crate::limits::{LOG_RANGE_BYTES_MAX, LOG_REQUEST_PAUSE, SNAPSHOT_BYTES_MAX};
use crate::log::certificate::Certified;
use crate::log::decided::Extended;
use crate::log::snapshot::named;
use crate::log::{DecidedLog, LogBytes, Snapshot};
use crate::miner::Notice;
use crate::run_state::StateEvent;
use crate::time::Instant;
use crate::wire::message::{ControlUpdate, Decision, Entry, Request, Response, SnapshotOffer};
use crate::wire::{Outdated, RejectReason};

/// A log that begins with a snapshot of which not all bytes are here.
#[derive(Debug)]
pub(super) struct Anchor {
    from: PeerId,
    log: DecidedLog,
    /// Chain hash before the log.
    chain: Hash,
    /// Hash of the state.
    state: Hash,
    /// Its length in bytes.
    length: usize,
    bytes: Vec<u8>,
}

impl<S: Storage<LogBytes> + Clone> Peer<S> {
    /// Takes certified entries.
    pub(super) fn take_update(&mut self, certified: &Certified) -> Result<(), RejectReason> {
        if let Some(candidate) = &mut self.candidate {
            // A candidate hears of decisions from consensus; the certificate is what it may lack.
            candidate.handle_certificate(&self.state, certified);
            if candidate.lacks() {
                // An earlier process has trimmed more than it left of the log. These take the place of what is gone.
                if self.log.extend(certified)? != Extended::Gap {
                    candidate.resume_at(self.log.len());
                    self.apply_log();
                }
                return Ok(());
            }
            self.log.set_certificate(certified.update().certificate.clone());
            self.advance();
            return Ok(());
        }
        match self.log.extend(certified)? {
            Extended::By(_) => self.apply_log(),
            Extended::Gap => (self.behind, self.log_fetch_due) = (true, Instant::ZERO),
        }
        Ok(())
    }

    pub(super) fn apply_log(&mut self) {
        while self.outdated.is_none()
            && let Ok(index) = usize::try_from(self.state.applied())
        {
            let Some((entry, chain)) = self.log.entry(index) else { break };
            let index = LogIndex(index as u64);
            self.compare(index, entry.as_ref());
            let events = self.state.apply(index, chain, entry.as_ref());
            self.keep_proof(entry.as_ref().filter(|_| !events.is_empty()));
            for event in events {
                if let StateEvent::Admitted(peer, stage) | StateEvent::Moved(peer, stage) = &event
                    && *peer != self.me
                    && self.state.stage_of(self.me) == Some(*stage)
                {
                    // It has to hear who holds the weights of its stage.
                    let soon = self.now + self.spec.timing.heartbeat.duration() / SOON_PARTS;
                    self.record_due = self.record_due.min(soon);
                }
                if let StateEvent::Merged(stage, epoch, ..) = &event {
                    self.note_merged(*stage, *epoch);
                }
                if let (StateEvent::EpochOpened(stage, ..), Some(candidate)) = (&event, &mut self.candidate) {
                    candidate.orchestrator_mut().handle_opened(*stage);
                }
                if let (StateEvent::Checkpointed(_), Some(_), Some(checkpoint)) =
                    (&event, &self.candidate, self.state.checkpoint())
                {
                    self.out.checkpoint(checkpoint.clone());
                }
                self.out.notice(Notice::State(event));
            }
            self.follow_version();
        }
        self.advance();
    }

    /// Keeps what it takes to repeat what a miner lost its place for.
    fn keep_proof(&mut self, entry: Option<&Entry>) {
        if let Some(Decision::Evict { peer, evidence: Some(evidence), reason }) =
            entry.map(|entry| &entry.decision)
            && let Ok(reports) = self.state.check_evidence(*peer, *reason, evidence)
        {
            self.with_miner(self.now, |miner, cx| miner.keep_proof(cx, *peer, evidence, &reports));
        }
    }

    /// Compares the state that an entry names with the one that the entries before it led to here.
    fn compare(&mut self, index: LogIndex, entry: Option<&Entry>) {
        let Some(name) = named(index, entry) else { return };
        let chain = usize::try_from(index.0).ok().and_then(|len| self.log.chain(len));
        let Some(chain) = chain.filter(|_| !self.state.finished()) else { return };
        let snapshot = Snapshot { entries: index.0, chain, state: self.state.to_bytes() };
        if !self.snapshots.compare(snapshot, name) {
            self.out.notice(Notice::Diverged(index));
        }
    }

    /// Lets go of entries that a snapshot stands for.
    fn advance(&mut self) {
        let Some(base) = self.snapshots.advance(self.log.certified()) else { return };
        if let Ok(first) = usize::try_from(base.entries) {
            self.log.forget(first);
            self.out.keep_snapshot(base);
        }
    }

    /// Writes in the version that was decided, or stops. Entries after the one that decided it may be of kinds that this
    /// program cannot decode and others can: to take them for void would be to hold another state than theirs.
    fn follow_version(&mut self) {
        let decided = self.state.wire_version();
        if decided > self.versions.newest() {
            let outdated = Outdated { decided, spoken: self.versions };
            self.outdated = Some(outdated);
            self.out.notice(Notice::Outdated(outdated));
        } else {
            self.out.set_version(decided);
        }
    }

    /// Takes over the log that an earlier process kept, from its first entry on or from a snapshot.
    pub(super) fn recover_log(
        &mut self,
        update: ControlUpdate,
        snapshot: Option<Snapshot>,
    ) -> Result<(), RejectReason> {
        let certified = self.log.electorate().certify(update)?;
        if let Some(snapshot) = snapshot {
            let (log, state) = self.log.anchored(snapshot.chain, &certified)?;
            if Hash::of(&snapshot.state) != state || snapshot.entries != log.first() as u64 {
                return Err(RejectReason::Inconsistent("snapshot"));
            }
            // A candidate's consensus has kept the entries, and has them voted for.
            let log = if self.candidate.is_some() { log.after(log.first(), snapshot.chain) } else { log };
            self.begin_with(snapshot, log)?;
        } else if certified.update().first > LogIndex(0) {
            return Err(RejectReason::Inconsistent("beginning of the log"));
        } else if self.candidate.is_none() {
            self.take_update(&certified)?;
        }
        self.out.forget_history();
        Ok(())
    }

    /// Goes on from a snapshot that is proven by this log, which begins after it.
    fn begin_with(&mut self, snapshot: Snapshot, log: DecidedLog) -> Result<(), RejectReason> {
        let state = self.state.read(&snapshot.state)?;
        if state.applied() != snapshot.entries {
            return Err(RejectReason::Inconsistent("entries of a snapshot"));
        }
        let snapshot = Arc::new(snapshot);
        (self.state, self.log) = (state, log);
        self.snapshots.begin_with(Arc::clone(&snapshot));
        self.out.keep_snapshot(snapshot);
        if let Some(candidate) = &mut self.candidate {
            candidate.resume_at(self.log.len());
        }
        self.follow_version();
        self.apply_log();
        Ok(())
    }

    /// What this peer has of the log from `from` on.
    pub(super) fn answer_log(&self, from: LogIndex) -> Response {
        if let Some(update) = self.log.range(from, LOG_RANGE_BYTES_MAX) {
            return Response::Log(update);
        }
        let base = self.snapshots.base().filter(|base| from.0 < base.entries);
        let offer = base.and_then(|base| {
            let update = self.log.range(LogIndex(base.entries), LOG_RANGE_BYTES_MAX)?;
            Some(SnapshotOffer { chain: base.chain, bytes: base.state.len() as u64, update })
        });
        offer.map_or(Response::Unavailable, Response::Snapshot)
    }

    /// A part of the state that the log here begins with.
    pub(super) fn answer_snapshot(&self, state: Hash, offset: u64) -> Response {
        let part = usize::try_from(offset).ok().and_then(|offset| {
            let rest = self.snapshots.find(state)?.state.get(offset..)?;
            Some(rest.get(..LOG_RANGE_BYTES_MAX).unwrap_or(rest))
        });
        part.map_or(Response::Unavailable, |part| Response::Part(ByteBuf::from(part)))
    }

    /// Takes what another peer has of the log.
    pub(super) fn take_log(&mut self, from: PeerId, response: Option<&Response>) -> Result<(), RejectReason> {
        match response {
            Some(Response::Log(update)) => {
                self.take_update(&self.log.electorate().certify(update.clone())?)?;
                // More may be waiting behind what one message holds.
                (self.behind, self.log_fetch_due) = (true, Instant::ZERO);
            }
            Some(Response::Snapshot(offer)) => self.take_offer(from, offer)?,
            _ => self.newer = None,
        }
        Ok(())
    }

    /// Begins to fetch the snapshot that a peer's log begins with.
    fn take_offer(&mut self, from: PeerId, offer: &SnapshotOffer) -> Result<(), RejectReason> {
        let certified = self.log.electorate().certify(offer.update.clone())?;
        let (log, state) = self.log.anchored(offer.chain, &certified)?;
        let length = usize::try_from(offer.bytes).unwrap_or(usize::MAX);
        if log.first() <= self.log.len() || length > SNAPSHOT_BYTES_MAX {
            return Err(RejectReason::Inconsistent("snapshot"));
        }
        // Of one that was under way, what is here of the same state stays.
        let bytes = self.anchor.take().filter(|anchor| anchor.state == state).map(|anchor| anchor.bytes);
        let bytes = bytes.unwrap_or_default();
        self.anchor = Some(Anchor { from, log, chain: offer.chain, state, length, bytes });
        self.fetch_part();
        Ok(())
    }

    fn fetch_part(&mut self) {
        let Some(anchor) = &self.anchor else { return };
        let request = Request::Snapshot { state: anchor.state, offset: anchor.bytes.len() as u64 };
        let id = self.out.request(anchor.from, &request);
        self.asked.insert(id, Asked::Snapshot);
    }

    /// Takes a part of the snapshot, or that there is none: then the log is asked for again, from somebody else.
    pub(super) fn take_part(&mut self, response: Option<&Response>) -> Result<(), RejectReason> {
        let Some(mut anchor) = self.anchor.take() else { return Ok(()) };
        let Some(Response::Part(part)) = response else {
            // What has come is kept for the next one who offers the same.
            self.anchor = Some(anchor);
            return Ok(());
        };
        if part.is_empty() || part.len() > anchor.length.saturating_sub(anchor.bytes.len()) {
            return Err(RejectReason::Inconsistent("length of a snapshot"));
        }
        anchor.bytes.extend_from_slice(part);
        if anchor.bytes.len() < anchor.length {
            self.anchor = Some(anchor);
            self.fetch_part();
            return Ok(());
        }
        if Hash::of(&anchor.bytes) != anchor.state {
            return Err(RejectReason::Inconsistent("hash of a snapshot"));
        }
        if anchor.log.first() <= self.log.len() {
            return Ok(());
        }
        let entries = anchor.log.first() as u64;
        self.out.notice(Notice::Snapshot(entries));
        self.begin_with(Snapshot { entries, chain: anchor.chain, state: anchor.bytes }, anchor.log)?;
        (self.behind, self.log_fetch_due) = (true, Instant::ZERO);
        Ok(())
    }

    /// Asks for missing entries when somebody says it has more.
    pub(super) fn fetch_log(&mut self, now: Instant) {
        if !self.behind || now < self.log_fetch_due {
            return;
        }
        let asked = |asked: &Asked| matches!(asked, Asked::Log(_) | Asked::Snapshot);
        if self.candidate.is_some() && !self.resume_consensus(now) || self.asked.values().any(asked) {
            return;
        }
        let have = self.log.len() as u64;
        let ahead = self.book.records().filter(|(_, record)| record.log_length > have).map(|(peer, _)| peer);
        let ahead: Vec<PeerId> = ahead.chain(self.newer).collect();
        self.behind = !ahead.is_empty();
        // In turn, so that one that only says so holds nothing up.
        self.log_fetch_turn = self.log_fetch_turn.wrapping_add(1);
        let Some(&peer) = ahead.get(self.log_fetch_turn % ahead.len().max(1)) else { return };
        self.log_fetch_due = self.log_fetch_due.max(now + LOG_REQUEST_PAUSE);
        let id = self.out.request(peer, &Request::Log { from: LogIndex(have) });
        self.asked.insert(id, Asked::Log(peer));
    }

    /// A candidate learns what is decided from consensus. Where that has lost something and nothing more is decided, it would
    /// not notice: if other candidates have had more entries for a while, it asks the leader for all that it lacks. Returns
    /// whether it should ask as others do, too: the entries may be gone.
    fn resume_consensus(&mut self, now: Instant) -> bool {
        let have = self.log.len() as u64;
        let ahead = |peer| self.book.record(peer).is_some_and(|record| record.log_length > have);
        let lacks = self.candidate.as_ref().is_some_and(|candidate| candidate.lacks());
        self.behind =
            lacks || self.spec.orchestrator.candidates.iter().any(|candidate| ahead(candidate.peer));
        self.log_fetch_due = now + self.spec.timing.heartbeat.duration() * 2;
        let stands_still = self.lacked_from.replace(have) == Some(have) && self.behind;
        if let (Some(candidate), Some(leader)) = (&mut self.candidate, self.leader)
            && stands_still
        {
            candidate.handle_connected(leader);
        }
        stands_still || lacks
    }
}
