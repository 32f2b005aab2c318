//! A peer: all its roles behind one door. The unit that drivers drive.
//!
//! Calling order: feed inputs through `handle_*`, then drain [`Peer::poll_action`] until it is empty, then
//! sleep until the next input or [`Peer::deadline`], whichever comes first, and call
//! [`Peer::handle_timeout`]. Inputs may be handled several at a time before draining.
//!
//! Long, since it is the list of all doors; what is behind them is in the files of the roles.

pub mod admission;
pub mod arrival;
pub mod book;
pub mod candidate;
pub mod departure;
mod history;
pub mod room;
pub mod scope;
pub mod speed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use omnipaxos::storage::Storage;

use crate::gauntlet::evaluation::Evaluation;
use crate::id::{Epoch, Hash, Identity, PeerId, StageIndex};
use crate::join::{Credential, Refusal, Role};
use crate::limits::{FORGET_SILENCES, RPC_BYTES_MAX, TRANSFER_DEADLINE};
use crate::log::snapshot::Snapshots;
use crate::log::{DecidedLog, LogBytes, Snapshot};
use crate::merge::evidence::SignedReport;
use crate::miner::{Action, Context, JobDone, Miner, Notice, Outbox};
use crate::run_state::RunState;
use crate::spec::RunSpec;
use crate::time::Instant;
use crate::validation::Verdict;
use crate::validator::Validator;
use crate::wire::frame::{PushAck, PushHeader, PushRefusal};
use crate::wire::gossip::{Gossip, HashedManifest, MergeNews, Opened};
use crate::wire::message::{ControlUpdate, MergeMessage, PeerRecord, Request, Response, StateOffer, Topic};
use crate::wire::{Outdated, Payload, RejectReason, ReplayWindow, Versions, decode};

use admission::{Occupancy, suits};
use arrival::{Arrival, Step};
use book::Book;
use candidate::Candidate;
use departure::{Awaits, awaits};
use history::Anchor;
use room::{DiskUse, Room};
use scope::Scope;

/// Parts of a heartbeat after which a newcomer hears of those it works with: many who come at once are answered at once.
const SOON_PARTS: u32 = 4;
/// Time without any input or timeout after which this process must have been stopped: a laptop lid, a
/// debugger, an overloaded host. Everybody else would look silent.
const PAUSE: Duration = Duration::from_secs(1);

/// What a peer does in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    /// Asks for a miner's place.
    pub miner: bool,
    /// Validates. A peer has one engine, so one that asks for a miner's place does not.
    pub validator: bool,
}

/// Where a peer can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// libp2p multiaddresses.
    pub multiaddrs: Vec<String>,
    /// Socket addresses of the data plane.
    pub data: Vec<String>,
}

/// What earlier processes of a peer left on its disk.
#[derive(Clone, Debug, Default)]
pub struct Remains {
    /// Certified entries from the first on, or from the one on that names the snapshot.
    pub log: Option<ControlUpdate>,
    /// What the last [`Action::KeepSnapshot`] said.
    pub snapshot: Option<Snapshot>,
    /// What the last [`Action::Remember`] said.
    pub state: Option<StateOffer>,
    /// Tags of the blobs kept, or their beginnings; those of one epoch need be named once.
    pub tags: BTreeSet<String>,
}

/// What a request under way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Consensus(PeerId),
    Log(PeerId),
    Snapshot,
    State,
}

/// How far a peer is with leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Stays,
    Begun,
    Awaits(Awaits),
    Left,
}

/// A peer of a run.
pub struct Peer<S: Storage<LogBytes>> {
    me: PeerId,
    spec: Arc<RunSpec>,
    roles: Roles,
    room: Room,
    versions: Versions,
    addresses: Addresses,
    credential: Option<Credential>,
    /// Whether the spec lets it in with that. A signature may have to be checked for it, and neither changes.
    entitled: Result<(), Refusal>,
    log: DecidedLog,
    snapshots: Snapshots,
    /// What is being fetched to begin the log with.
    anchor: Option<Anchor>,
    state: RunState,
    book: Book,
    scope: Scope,
    /// Entries of the log that the scope follows; nothing before the first look.
    scoped: Option<u64>,
    replay: ReplayWindow,
    candidate: Option<Candidate<S>>,
    miner: Option<Miner>,
    validator: Option<Validator>,
    out: Outbox,
    asked: BTreeMap<u64, Asked>,
    sequence: u64,
    /// Number of the first record since its miner last forgot what it had taken.
    incarnation: u64,
    now: Instant,
    record_due: Instant,
    /// Whether somebody may have entries that are missing here.
    behind: bool,
    /// As a candidate: its entries when it last looked whether others have more.
    lacked_from: Option<u64>,
    log_fetch_due: Instant,
    log_fetch_turn: usize,
    /// Who was last heard in a version that is newer than all spoken here, and so has a log that says why.
    newer: Option<PeerId>,
    outdated: Option<Outdated>,
    leader: Option<PeerId>,
    told_finish: bool,
    leave: Leave,
    arrival: Arrival,
    /// Its place among those who wait for one, as far as it was told.
    queued: Option<usize>,
    /// Why it gets no place, as far as it knows.
    refused: Option<Refusal>,
}

impl<S: Storage<LogBytes> + Clone> Peer<S> {
    /// A peer of `spec`'s run.
    ///
    /// `parameters` holds the length of each stage's flat vector. `storage` is what consensus remembers, used
    /// only if the spec names this peer as a candidate. `sequence` has to be no smaller than any number this identity used
    /// before: under one that it uses twice, it would [equivocate](crate::equivocation), and be evicted for it. Microseconds
    /// of wall time serve, or what was [written down](Self::numbered) if that is more.
    #[must_use]
    pub fn new(
        spec: Arc<RunSpec>,
        identity: Identity,
        roles: Roles,
        parameters: &[usize],
        sequence: u64,
        storage: S,
    ) -> Self {
        let (me, run) = (identity.peer(), spec.run_id());
        let validates = roles.validator && !roles.miner;
        let roles = Roles { validator: validates, ..roles };
        Self {
            me,
            roles,
            room: Room::default(),
            versions: Versions::PROGRAM,
            addresses: Addresses::default(),
            credential: None,
            entitled: spec.entitles(run, me, None),
            log: DecidedLog::new(&spec),
            snapshots: Snapshots::default(),
            anchor: None,
            state: RunState::new(Arc::clone(&spec), parameters),
            book: Book::default(),
            scope: Scope::default(),
            scoped: None,
            replay: ReplayWindow::default(),
            candidate: Candidate::new(&spec, identity.clone(), storage),
            miner: roles.miner.then(|| Miner::new(me, Arc::clone(&spec), sequence)),
            validator: validates.then(|| Validator::new(me, Arc::clone(&spec), sequence)),
            out: Outbox::new(identity, run),
            asked: BTreeMap::new(),
            sequence,
            incarnation: 0,
            now: Instant::ZERO,
            record_due: Instant::ZERO,
            behind: false,
            lacked_from: None,
            log_fetch_due: Instant::ZERO,
            log_fetch_turn: 0,
            newer: None,
            outdated: None,
            leader: None,
            told_finish: false,
            leave: Leave::Stays,
            arrival: Arrival::default(),
            queued: None,
            refused: None,
            spec,
        }
    }

    /// The peer as a program that speaks these wire versions would run it; [`Versions::PROGRAM`] unless told otherwise.
    #[must_use]
    pub const fn speaking(mut self, versions: Versions) -> Self {
        self.versions = versions;
        self
    }

    /// The peer as one that shows this to be let in; nothing unless told otherwise.
    #[must_use]
    pub fn showing(mut self, credential: Option<Credential>) -> Self {
        self.entitled = self.spec.entitles(self.log.electorate().run(), self.me, credential.as_ref());
        self.credential = credential;
        self
    }

    /// The peer as one that takes a snapshot every so many entries; [`SNAPSHOT_EVERY_ENTRIES`] unless told otherwise. Leaders
    /// decide when, so peers of a run need not agree.
    ///
    /// [`SNAPSHOT_EVERY_ENTRIES`]: crate::limits::SNAPSHOT_EVERY_ENTRIES
    #[must_use]
    pub fn with_snapshots_every(mut self, entries: u64) -> Self {
        self.snapshots.set_every(entries);
        self
    }

    /// Takes over what earlier processes left, before anything else is handled. Blobs that nobody needs any more are let
    /// go of.
    ///
    /// # Errors
    /// [`RejectReason`] if the log is damaged or another run's. Everything else was taken over; the log will be fetched
    /// from others.
    pub fn recover(&mut self, remains: Remains) -> Result<(), RejectReason> {
        let Remains { log, snapshot, state, tags } = remains;
        match &mut self.miner {
            Some(miner) => miner.recover(&mut self.out, state, tags),
            None => tags.into_iter().for_each(|tag| self.out.release(tag)),
        }
        log.map_or(Ok(()), |update| self.recover_log(update, snapshot))
    }

    /// Why this peer has stopped, if it has: the run uses a wire version that its program does not speak. It takes no
    /// further part and its process should end.
    #[must_use]
    pub const fn outdated(&self) -> Option<Outdated> {
        self.outdated
    }

    /// This peer.
    #[must_use]
    pub const fn id(&self) -> PeerId {
        self.me
    }

    /// The fold of the log.
    #[must_use]
    pub const fn state(&self) -> &RunState {
        &self.state
    }

    /// The verified log.
    #[must_use]
    pub const fn log(&self) -> &DecidedLog {
        &self.log
    }

    /// What peers say of themselves.
    #[must_use]
    pub const fn book(&self) -> &Book {
        &self.book
    }

    /// How much room its disk has.
    #[must_use]
    pub const fn room(&self) -> Room {
        self.room
    }

    /// The highest number it has given a message. A driver writes down [more than that](crate::limits::MESSAGE_NUMBERS_AHEAD)
    /// before it is reached, and starts the next process of this identity there, or later.
    #[must_use]
    pub fn numbered(&self) -> u64 {
        let miner = self.miner.as_ref().map_or(0, Miner::numbered);
        let validator = self.validator.as_ref().map_or(0, Validator::numbered);
        self.sequence.max(miner).max(validator)
    }

    /// The gossip topics it listens to.
    #[must_use]
    pub const fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The miner, if this peer is one.
    #[must_use]
    pub const fn miner(&self) -> Option<&Miner> {
        self.miner.as_ref()
    }

    /// The validator, if this peer is one.
    #[must_use]
    pub const fn validator(&self) -> Option<&Validator> {
        self.validator.as_ref()
    }

    /// Who leads, as far as this peer knows; only candidates know.
    #[must_use]
    pub const fn leader(&self) -> Option<PeerId> {
        self.leader
    }

    /// The leader's or a stand-by's view of redundant work, if this peer is a candidate.
    #[must_use]
    pub fn orchestrator(&self) -> Option<&crate::orchestrator::Orchestrator> {
        self.candidate.as_ref().map(Candidate::orchestrator)
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        // Parts report deadlines that have passed while they wait for something else; those are no reason to wake.
        let ahead = |deadline: &Instant| *deadline > self.now;
        let parts = [
            self.miner.as_ref().and_then(Miner::deadline),
            self.validator.as_ref().and_then(Validator::deadline),
            self.candidate.as_ref().map(Candidate::deadline),
        ];
        let soonest = parts.into_iter().flatten().filter(ahead).min();
        soonest.map_or(self.record_due, |deadline| deadline.min(self.record_due))
    }

    /// Takes this peer's own addresses, for its records.
    pub fn handle_addresses(&mut self, now: Instant, addresses: Addresses) {
        if self.addresses != addresses {
            self.addresses = addresses;
            self.record_due = now;
        }
    }

    /// Leaves politely: the peer finishes the epoch that it has a part in, takes none in another, and
    /// [has left](Self::has_left) when it is told that its place is free.
    pub fn leave(&mut self, now: Instant) {
        if self.leave == Leave::Stays {
            self.leave = Leave::Begun;
            self.record_due = now;
            self.handle_timeout(now);
        }
    }

    /// Says that the peer is gone, whatever it had begun. Its process should end.
    pub fn quit(&mut self, now: Instant) {
        self.roles = Roles { miner: false, validator: false };
        self.record_due = now;
        self.handle_timeout(now);
    }

    /// How far it has come since its process started.
    #[must_use]
    pub const fn arrival(&self) -> &Arrival {
        &self.arrival
    }

    /// Its place among those who wait for one, from 1, if the run is full and a candidate names it.
    #[must_use]
    pub const fn queued(&self) -> Option<usize> {
        self.queued
    }

    /// Why it gets no place, if it wants one, has none, and knows why.
    #[must_use]
    pub const fn refused(&self) -> Option<&Refusal> {
        self.refused.as_ref()
    }

    /// What the peer waits for before it has left, if it leaves.
    #[must_use]
    pub const fn leaves(&self) -> Option<Awaits> {
        match self.leave {
            Leave::Awaits(awaits) => Some(awaits),
            Leave::Begun => Some(Awaits::Decision),
            Leave::Stays | Leave::Left => None,
        }
    }

    /// Whether the peer left politely and nobody needs it any more. Its process should end.
    #[must_use]
    pub fn has_left(&self) -> bool {
        self.leave == Leave::Left
    }

    /// Takes what there is on this peer's disk. A miner whose room ends leaves, one that has none stops and is gone at once;
    /// both ask for a place again when there is room.
    pub fn handle_disk(&mut self, now: Instant, disk: &DiskUse) {
        let room = self.room.after(disk);
        if std::mem::replace(&mut self.room, room) != room {
            self.out.notice(Notice::Room(room, *disk));
            self.record_due = now;
            self.with_miner(now, |miner, cx| miner.handle_room(cx, room));
            self.pump(now);
        }
    }

    /// Takes a gossiped message.
    ///
    /// # Errors
    /// [`RejectReason`] says why it must not be believed or forwarded.
    pub fn handle_gossip(&mut self, now: Instant, topic: Topic, bytes: &[u8]) -> Result<(), RejectReason> {
        match Gossip::open(self.log.electorate(), self.versions, topic, bytes) {
            Ok(gossip) if self.candidate.is_some() => self.handle_opened(now, &gossip.keeping(bytes)),
            Ok(gossip) => self.handle_opened(now, &gossip),
            Err(reason) => {
                self.take_foreign(now, &reason);
                Err(reason)
            }
        }
    }

    /// Takes a gossiped message whose signatures were checked. A candidate notices who equivocates if it
    /// [keeps its bytes](Gossip::keeping).
    ///
    /// # Errors
    /// [`RejectReason`] says why it must not be believed or forwarded.
    pub fn handle_opened(&mut self, now: Instant, gossip: &Gossip) -> Result<(), RejectReason> {
        if let Err(reason) = gossip.check_version(self.versions) {
            self.take_foreign(now, &reason);
            return Err(reason);
        }
        self.arrival.note(now, Step::Connected);
        if let (Some(candidate), Some(signed)) = (&mut self.candidate, gossip.signed()) {
            candidate.watch(&self.state, signed);
        }
        match &gossip.0 {
            Opened::Control(certified) => self.take_update(certified)?,
            Opened::Record(sender, record) => {
                self.take_record(now, *sender, record)?;
                if self.candidate.is_none() && now < self.record_due {
                    // Nothing that a miner does at once depends on records.
                    self.fetch_log(now);
                    return Ok(());
                }
            }
            Opened::Merge(sender, sequence, news) => {
                self.replay.accept_number(*sender, MergeMessage::KIND, *sequence)?;
                self.take_merge_message(*sender, news)?;
                let merging = self.miner.as_ref().is_some_and(Miner::is_merging);
                if self.candidate.is_none() && !merging && now < self.record_due {
                    // Only candidates and owners act on what is said of merges.
                    return Ok(());
                }
            }
        }
        self.pump(now);
        Ok(())
    }

    /// Somebody speaks a version that is newer than all spoken here: its log may say that the run does.
    fn take_foreign(&mut self, now: Instant, reason: &RejectReason) {
        if let RejectReason::Version { sender, got, .. } = reason
            && *got > self.versions.newest()
        {
            (self.newer, self.behind) = (Some(*sender), true);
            self.fetch_log(now);
        }
    }

    fn take_record(
        &mut self,
        now: Instant,
        sender: PeerId,
        record: &Arc<PeerRecord>,
    ) -> Result<(), RejectReason> {
        let known = self.book.record(sender);
        // What it showed before is not looked at again: whoever is in the book is let in by the spec.
        if known.is_none_or(|known| known.credential != record.credential) {
            self.spec.entitles(self.log.electorate().run(), sender, record.credential.as_ref())?;
        }
        let seen = known.map(|known| known.sequence);
        match seen {
            // The newest record says itself what was accepted; the window remembers those who were forgotten.
            Some(seen) if record.sequence <= seen => {
                return Err(RejectReason::Replay { got: record.sequence, seen });
            }
            Some(_) if self.book.is_flooded(now, sender, self.spec.timing.heartbeat.duration()) => {
                return Err(RejectReason::Flood);
            }
            Some(_) => {}
            None => self.replay.accept(sender, &**record)?,
        }
        self.behind |= record.log_length > self.log.len() as u64;
        let news = self.book.insert(now, sender, Arc::clone(record))?;
        if let Some(candidate) = self.candidate.as_mut().filter(|_| news.standing) {
            candidate.handle_news();
        }
        if news.addresses {
            self.out.addresses(sender);
        }
        if news.forgot {
            self.out.disconnect(sender);
            self.with_miner(now, |miner, cx| miner.handle_forgetful(cx, sender));
        }
        let placed = |peer| self.state.stage_of(peer).is_some();
        if news.addresses && (self.candidate.is_some() || !placed(self.me) || placed(sender)) {
            // Somebody new is here; it should hear of us before our next heartbeat. One who has no place yet works with
            // nobody, and the candidates' answer is enough: that of all miners would be as many as there are.
            self.record_due = self.record_due.min(now + self.spec.timing.heartbeat.duration() / SOON_PARTS);
        }
        Ok(())
    }

    fn take_merge_message(&mut self, sender: PeerId, news: &MergeNews) -> Result<(), RejectReason> {
        match news {
            MergeNews::Manifest(submitted) => self.take_manifest(sender, submitted),
            MergeNews::Digest(signed) => self.take_digest(sender, signed),
            MergeNews::Verdict(verdict) => self.take_verdict(verdict),
            MergeNews::Evaluation(evaluation) => self.take_evaluation(evaluation),
        }
    }

    /// Takes a verdict whose signatures were checked.
    fn take_verdict(&mut self, verdict: &Verdict) -> Result<(), RejectReason> {
        if self.state.stage(verdict.subject.stage).is_none() {
            return Err(RejectReason::Inconsistent("stage"));
        }
        // Its validator may know more of the log, or less: neither is anybody's fault.
        if !self.state.validators().contains(&verdict.validator) {
            return Err(RejectReason::NotEntitled);
        }
        if !self.state.takes(verdict) {
            return Err(RejectReason::Stale);
        }
        if let Some(candidate) = &mut self.candidate {
            candidate.orchestrator_mut().handle_verdict(verdict.clone());
        }
        Ok(())
    }

    /// Takes an evaluation whose signatures were checked.
    fn take_evaluation(&mut self, evaluation: &Evaluation) -> Result<(), RejectReason> {
        if !self.state.validators().contains(&evaluation.evaluator) {
            return Err(RejectReason::NotEntitled);
        }
        if !self.state.awaits(evaluation) {
            return Err(RejectReason::Stale);
        }
        if let Some(candidate) = &mut self.candidate {
            candidate.orchestrator_mut().handle_evaluation(evaluation.clone());
        }
        Ok(())
    }

    fn take_manifest(&mut self, sender: PeerId, submitted: &Arc<HashedManifest>) -> Result<(), RejectReason> {
        let manifest = &submitted.manifest;
        if sender != manifest.peer {
            return Err(RejectReason::Inconsistent("manifest of another peer"));
        }
        let stage = self.state.stage(manifest.stage).ok_or(RejectReason::Inconsistent("stage"))?;
        if manifest.epoch < stage.version {
            return Err(RejectReason::Stale);
        }
        if self.state.stage_of(sender) != Some(manifest.stage) {
            return Err(RejectReason::NotEntitled);
        }
        if manifest.partitions.len() != stage.partitions {
            return Err(RejectReason::Inconsistent("number of partitions"));
        }
        if let Some(miner) = &mut self.miner {
            miner.handle_manifest(Arc::clone(submitted));
        }
        self.with_validator(self.now, |validator, cx| validator.handle_manifest(cx, submitted));
        if let Some(candidate) = &mut self.candidate {
            candidate.orchestrator_mut().handle_manifest(Arc::clone(submitted));
        }
        Ok(())
    }

    fn take_digest(&mut self, sender: PeerId, signed: &Arc<SignedReport>) -> Result<(), RejectReason> {
        let report = &signed.report;
        let stage = self.state.stage(report.stage).ok_or(RejectReason::Inconsistent("stage"))?;
        if !report.is_in_order(stage.partitions) {
            return Err(RejectReason::Inconsistent("partitions of a report"));
        }
        if report.epoch < stage.version {
            return Err(RejectReason::Stale);
        }
        let plan = stage
            .plan()
            .filter(|(training, plan)| training.epoch == report.epoch && plan.attempt == report.attempt);
        let (_, plan) = plan.ok_or(RejectReason::Stale)?;
        // Candidates judge by owners alone. Whether to pass a digest on, its stage tells nearly as well and at once.
        let passes = self.candidate.is_none() && self.state.stage_of(sender) == Some(report.stage);
        if !passes && !plan.owners.iter().any(|owners| owners.contains(&sender)) {
            return Err(RejectReason::NotEntitled);
        }
        if let Some(candidate) = &mut self.candidate {
            candidate.orchestrator_mut().handle_digest(sender, signed);
        }
        Ok(())
    }

    /// Takes a request; the answer comes as [`Action::Respond`] with the same ticket.
    ///
    /// # Errors
    /// [`RejectReason`] if it is none; then there is no answer.
    pub fn handle_request(
        &mut self,
        now: Instant,
        from: PeerId,
        ticket: u64,
        bytes: &[u8],
    ) -> Result<(), RejectReason> {
        if self.outdated.is_some() {
            return Err(RejectReason::NotEntitled);
        }
        match decode(bytes, RPC_BYTES_MAX)? {
            Request::Consensus(bundle) => {
                let candidate = self.candidate.as_mut().ok_or(RejectReason::NotEntitled)?;
                candidate.handle_bundle(&self.state, from, bundle)?;
                self.out.answer(ticket, &Response::Done);
            }
            Request::Log { from } => self.out.answer(ticket, &self.answer_log(from)),
            Request::Snapshot { state, offset } => {
                self.out.answer(ticket, &self.answer_snapshot(state, offset));
            }
            Request::State { stage, version } => {
                let may = self.state.stage_of(from) == Some(stage) || self.state.validators().contains(&from);
                let miner = self.miner.as_mut().filter(|_| may);
                let mut cx = Context { now, state: &self.state, book: &self.book, out: &mut self.out };
                match miner {
                    Some(miner) => miner.handle_state_request(&mut cx, from, ticket, stage, version),
                    None => cx.out.respond(ticket, None),
                }
            }
        }
        self.pump(now);
        Ok(())
    }

    /// Takes the answer to a request, or that there is none.
    ///
    /// # Errors
    /// [`RejectReason`] if the answer is not one.
    pub fn handle_response(
        &mut self,
        now: Instant,
        id: u64,
        bytes: Option<&[u8]>,
    ) -> Result<(), RejectReason> {
        let Some(asked) = self.asked.remove(&id) else { return Ok(()) };
        let response = bytes.map(|bytes| decode::<Response>(bytes, RPC_BYTES_MAX)).transpose();
        match asked {
            Asked::Consensus(peer) => {
                if let Some(candidate) = &mut self.candidate {
                    candidate.handle_delivered(now, peer, matches!(response, Ok(Some(Response::Done))));
                }
            }
            Asked::Log(from) => self.take_log(from, response.as_ref().ok().and_then(Option::as_ref))?,
            Asked::Snapshot => self.take_part(response.as_ref().ok().and_then(Option::as_ref))?,
            Asked::State => {
                let offer = match &response {
                    Ok(Some(Response::State(offer))) => Some(offer.clone()),
                    _ => None,
                };
                self.with_validator(now, |validator, cx| validator.handle_state_offer(cx, offer.clone()));
                self.with_miner(now, |miner, cx| miner.handle_state_offer(cx, offer));
            }
        }
        self.pump(now);
        response.map(drop).map_err(RejectReason::from)
    }

    /// Takes a pushed tensor whose payload passed [`check_payload`](crate::wire::frame::check_payload).
    pub fn handle_push(&mut self, now: Instant, from: PeerId, header: &PushHeader) -> PushAck {
        if !self.versions.speaks(header.version) {
            return PushAck::Refused(PushRefusal::Version);
        }
        let mut ack = PushAck::Refused(PushRefusal::WrongStage);
        self.with_miner(now, |miner, cx| ack = miner.handle_push(cx, from, header));
        self.pump(now);
        ack
    }

    /// Takes the end of a push: the receiver's answer, or that there was none.
    pub fn handle_push_result(&mut self, now: Instant, id: u64, to: PeerId, ack: Option<PushAck>) {
        self.with_miner(now, |miner, cx| miner.handle_push_result(cx, id, to, ack));
        self.pump(now);
    }

    /// Takes the end of a store: whether the blobs survive the process.
    pub fn handle_stored(&mut self, now: Instant, id: u64, kept: bool) {
        self.with_miner(now, |miner, cx| miner.handle_stored(cx, id, kept));
        self.pump(now);
    }

    /// Takes the end of [`Action::KeepSnapshot`]: the snapshot of so many entries is on disk.
    pub fn handle_snapshot_kept(&mut self, now: Instant, entries: u64) {
        if let Some(candidate) = &mut self.candidate {
            candidate.handle_snapshot_kept(entries);
        }
        self.pump(now);
    }

    /// Takes the end of [`Action::Mirror`]: whether all of the state is in the mirror.
    pub fn handle_mirrored(&mut self, now: Instant, id: u64, there: bool) {
        self.with_miner(now, |miner, cx| miner.handle_mirrored(cx, id, there));
        self.pump(now);
    }

    /// Takes the end of [`Action::MirrorMoments`]: the hash of the moments, if they are in the mirror.
    pub fn handle_moments_mirrored(&mut self, now: Instant, id: u64, hash: Option<Hash>) {
        self.with_miner(now, |miner, cx| miner.handle_moments_mirrored(cx, id, hash));
        self.pump(now);
    }

    /// Takes the end of a fetch: the blob is in the store (with its bytes, if they were asked for, else
    /// empty), or could not be had.
    pub fn handle_fetched(&mut self, now: Instant, id: u64, bytes: Option<&[u8]>) {
        self.with_miner(now, |miner, cx| miner.handle_fetched(cx, id, bytes));
        self.with_validator(now, |validator, cx| validator.handle_fetched(cx, id, bytes));
        self.pump(now);
    }

    /// Takes the result of the engine's job.
    pub fn handle_job_done(&mut self, now: Instant, done: JobDone) {
        if self.validator.is_some() {
            self.with_validator(now, |validator, cx| validator.handle_job_done(cx, done));
        } else {
            self.with_miner(now, |miner, cx| miner.handle_job_done(cx, done));
        }
        self.pump(now);
    }

    /// A connection to `peer` was made; messages to it may have been lost before.
    pub fn handle_connected(&mut self, now: Instant, peer: PeerId) {
        self.arrival.note(now, Step::Connected);
        if let Some(candidate) = &mut self.candidate {
            candidate.handle_connected(peer);
        }
        self.pump(now);
    }

    /// Lets time pass.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.pump(now);
    }

    /// The next thing for the driver to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.out.pop()
    }

    fn with_miner(&mut self, now: Instant, handle: impl FnOnce(&mut Miner, &mut Context<'_>)) {
        if let Some(miner) = self.miner.as_mut().filter(|_| self.outdated.is_none()) {
            handle(miner, &mut Context { now, state: &self.state, book: &self.book, out: &mut self.out });
        }
    }

    fn with_validator(&mut self, now: Instant, handle: impl FnOnce(&mut Validator, &mut Context<'_>)) {
        if let Some(validator) = self.validator.as_mut().filter(|_| self.outdated.is_none()) {
            handle(validator, &mut Context { now, state: &self.state, book: &self.book, out: &mut self.out });
        }
    }

    /// Everything that follows from the inputs so far.
    fn pump(&mut self, now: Instant) {
        if self.outdated.is_some() {
            return;
        }
        let pause = PAUSE.max(self.spec.timing.heartbeat.duration() * 2);
        if now.since(self.now) > pause && self.now > Instant::ZERO {
            self.book.handle_pause(now);
            if let Some(candidate) = &mut self.candidate {
                candidate.handle_pause(now);
            }
        }
        self.now = self.now.max(now);
        self.arrival.start(now);
        self.pump_candidate(now);
        // What a miner says may be decided at once, if its own process leads alone, and be a reason to say more.
        while self.outdated.is_none() {
            let applied = self.state.applied();
            self.pump_roles(now);
            self.pump_candidate(now);
            if self.state.applied() == applied {
                break;
            }
        }
        for id in self.out.take_state_requests() {
            self.asked.insert(id, Asked::State);
        }
    }

    /// What follows for every role but the candidate's.
    fn pump_roles(&mut self, now: Instant) {
        self.fetch_log(now);
        self.with_miner(now, |miner, cx| miner.pump(cx));
        self.with_validator(now, |validator, cx| validator.pump(cx));
        for (message, envelope) in self.out.take_own() {
            // Our own messages do not come back by gossip. They are never news to the replay window.
            let _ = self.take_merge_message(self.me, &MergeNews::new(message, &envelope));
        }
        self.follow_scope();
        self.follow_arrival(now);
        self.follow_leave();
        if self.state.finished() && !std::mem::replace(&mut self.told_finish, true) {
            // Peers stay until everybody knows that the run is over.
            self.record_due = now;
        }
        if now >= self.record_due || self.miner.as_mut().is_some_and(Miner::take_news) {
            self.publish_record(now);
        }
    }

    /// Looks how far a miner has come that joins, and which place it has among those who wait for one.
    fn follow_arrival(&mut self, now: Instant) {
        let Some(miner) = &self.miner else { return };
        let Some(place) = self.state.stage_of(self.me) else {
            let candidates = self.spec.orchestrator.candidates.iter();
            let mut told = candidates.filter_map(|candidate| self.book.record(candidate.peer));
            let place = told.find_map(|record| record.queue.iter().position(|peer| *peer == self.me));
            let queued = place.map(|place| place + 1);
            if std::mem::replace(&mut self.queued, queued) != queued {
                self.out.notice(Notice::Queued(queued));
            }
            return;
        };
        self.queued = None;
        self.arrival.note(now, Step::Admitted);
        let version = self.state.stage(place).map(|stage| stage.version);
        if miner.weights().is_some_and(|held| held.stage == place && Some(held.version) == version) {
            self.arrival.note(now, Step::Ready);
        }
    }

    /// Looks why a peer gets no place that wants one.
    fn follow_admission(&mut self) {
        let wanted = match self.roles {
            Roles { miner: true, .. } => Some(Role::Miner),
            Roles { validator: true, .. } => Some(Role::Validator),
            Roles { miner: false, validator: false } => None,
        };
        let placed = self.state.stage_of(self.me).is_some() || self.state.validators().contains(&self.me);
        let waits = wanted.filter(|_| !placed && self.leave == Leave::Stays && !self.state.finished());
        let refused = waits.and_then(|wanted| self.refusal(wanted).err());
        if self.refused != refused {
            self.refused.clone_from(&refused);
            refused.into_iter().for_each(|refusal| self.out.notice(Notice::Refused(refusal)));
        }
    }

    fn refusal(&self, wanted: Role) -> Result<(), Refusal> {
        self.entitled.clone()?;
        suits(&self.state, self.me, self.credential.as_ref(), wanted)?;
        Occupancy::of(&self.state, &self.book, []).has_room_for(&self.state, &self.book, self.me)
    }

    /// Notes the first merge that counts a contribution of this process.
    fn note_merged(&mut self, stage: StageIndex, epoch: Epoch) {
        let closed = self.state.stage(stage).and_then(|stage| stage.closed_epoch(epoch));
        let counts = closed.is_some_and(|closed| closed.plan.has(self.me));
        if counts && self.arrival.note(self.now, Step::Counted) {
            self.out.notice(Notice::Arrived(self.arrival));
        }
    }

    /// Looks what a peer that leaves waits for.
    fn follow_leave(&mut self) {
        if matches!(self.leave, Leave::Stays | Leave::Left) {
            return;
        }
        let leave = match self.state.stage_of(self.me) {
            Some(_) if self.miner.is_some() => Leave::Awaits(awaits(&self.state, &self.book, self.me)),
            _ => Leave::Left,
        };
        if std::mem::replace(&mut self.leave, leave) != leave {
            self.out.notice(match leave {
                Leave::Awaits(awaits) => Notice::Leaving(awaits),
                Leave::Stays | Leave::Begun | Leave::Left => Notice::Left,
            });
        }
    }

    /// Joins and leaves gossip topics as decisions say.
    fn follow_scope(&mut self) {
        if self.scoped.replace(self.state.applied()) != Some(self.state.applied()) {
            let merging = self.miner.iter().flat_map(Miner::merging);
            self.scope.follow(self.me, &self.state, merging, &mut self.out);
        }
    }

    /// Runs consensus and, as leader, the orchestrator, until neither has anything new.
    fn pump_candidate(&mut self, now: Instant) {
        loop {
            let Some(candidate) = &mut self.candidate else { return };
            let decided = candidate.poll_decided(now, &mut self.log);
            let leader = candidate.leader();
            if leader != self.leader {
                self.leader = leader;
                self.out.notice(Notice::Leader(leader));
            }
            for (peer, why) in candidate.poll_distrusts() {
                self.out.notice(Notice::Distrusts(peer, why));
            }
            let proposed =
                !decided && candidate.propose(now, self.me, &self.state, &self.book, &self.snapshots);
            if decided {
                self.apply_log();
                if self.outdated.is_some() {
                    // Votes for what was decided stay here: a certificate of an upgrade says that a majority speaks it.
                    return;
                }
                self.vote();
            } else if !proposed {
                break;
            }
        }
        let Some(candidate) = &mut self.candidate else { return };
        candidate.publish(&mut self.log, &mut self.out);
        for (peer, id) in candidate.send(now, &mut self.out) {
            self.asked.insert(id, Asked::Consensus(peer));
        }
    }

    fn vote(&mut self) {
        if let Some(candidate) = &mut self.candidate {
            candidate.vote(&self.log, self.snapshots.diverged());
        }
    }

    /// How fast it says it is: as it has measured, within its limit.
    fn speed_milli(&self) -> u32 {
        self.miner.as_ref().map_or(0, Miner::speed_milli).min(self.state.speed_max(self.me))
    }

    fn publish_record(&mut self, now: Instant) {
        let heartbeat = self.spec.timing.heartbeat.duration();
        self.record_due = now + heartbeat;
        self.sequence += 1;
        if self.miner.as_mut().is_some_and(Miner::take_forgot) {
            self.incarnation = self.sequence;
        }
        let share =
            self.miner.as_ref().and_then(Miner::progress).map(|(_, _, share)| share).unwrap_or_default();
        let record = PeerRecord {
            sequence: self.sequence,
            incarnation: self.incarnation,
            miner: self.roles.miner && self.room != Room::Full,
            leaving: self.leave != Leave::Stays || self.room == Room::Near,
            validator: self.roles.validator,
            credential: self.credential.clone(),
            multiaddrs: self.addresses.multiaddrs.clone(),
            data_addresses: self.addresses.data.clone(),
            log_length: self.log.certified(),
            weights: self.miner.as_ref().and_then(Miner::has),
            done: share.done,
            assigned: share.dealt,
            credits: self.miner.as_ref().map_or(0, Miner::credits),
            speed_milli: self.speed_milli(),
            tokens: self.miner.as_ref().map_or(0, Miner::tokens),
            mirror: self.miner.as_ref().and_then(Miner::mirror),
            lacks: self.miner.as_ref().and_then(Miner::lacks),
            queue: self.orchestrator().map(|mind| mind.queue(&self.state)).unwrap_or_default(),
            no_confidence: self.candidate.as_ref().and_then(|candidate| candidate.no_confidence(&self.state)),
            wire_version_max: self.versions.newest(),
        };
        self.out.publish(scope::record_topic(self.me, &self.state), &record);
        // Ours is within the limits unless the host has more addresses than a record may carry.
        let news = self.book.insert(now, self.me, Arc::new(record));
        if let Some(candidate) = self.candidate.as_mut().filter(|_| news.is_ok_and(|news| news.standing)) {
            candidate.handle_news();
        }
        self.follow_admission();
        let forget = self.book.ordinary_silence(self.spec.timing.eviction.duration()) * FORGET_SILENCES;
        let state = &self.state;
        let forgotten =
            self.book.forget(now, forget.max(TRANSFER_DEADLINE), |peer| state.stage_of(peer).is_some());
        for (peer, sequence) in forgotten {
            // Overtaken only if nothing of this peer was accepted since.
            let _ = self.replay.accept_number(peer, PeerRecord::KIND, sequence);
            self.out.forget(peer);
        }
    }
}
