//! A peer: all its roles behind one door. The unit that drivers drive.
//!
//! Calling order: feed inputs through `handle_*`, then drain [`Peer::poll_action`] until it is empty, then
//! sleep until the next input or [`Peer::deadline`], whichever comes first, and call
//! [`Peer::handle_timeout`]. Inputs may be handled several at a time before draining.
//!
//! Long, since it is the list of all doors; what is behind them is in the files of the roles.

pub mod book;
mod candidate;
pub mod room;
pub mod scope;
pub mod speed;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use omnipaxos::storage::Storage;

use crate::id::{Identity, LogIndex, PeerId};
use crate::limits::{HEAD_REPEAT, LOG_RANGE_BYTES_MAX, RPC_BYTES_MAX, TRANSFER_DEADLINE};
use crate::log::certificate::Certified;
use crate::log::decided::Extended;
use crate::log::{DecidedLog, LogBytes};
use crate::miner::{Action, Context, JobDone, Miner, Notice, Outbox};
use crate::run_state::{RunState, StateEvent};
use crate::spec::RunSpec;
use crate::time::Instant;
use crate::wire::frame::{PushAck, PushHeader, PushRefusal};
use crate::wire::gossip::{Gossip, HashedManifest, MergeNews, Opened};
use crate::wire::message::{
    ControlUpdate, DigestReport, MergeMessage, PeerRecord, Request, Response, StateOffer, Topic,
};
use crate::wire::{Outdated, Payload, RejectReason, ReplayWindow, Versions, decode};

use book::Book;
use candidate::Candidate;
use room::{DiskUse, Room};
use scope::Scope;

/// Silence of a peer that is no member, in evictions, after which its record is forgotten.
const FORGET_EVICTIONS: u32 = 10;
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
    /// Validates.
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
    /// Certified entries from the first on.
    pub log: Option<ControlUpdate>,
    /// What the last [`Action::Remember`] said.
    pub state: Option<StateOffer>,
    /// Tags of the blobs kept, or their beginnings; those of one epoch need be named once.
    pub tags: BTreeSet<String>,
}

/// What a request under way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Consensus(PeerId),
    Log,
    State,
}

/// A peer of a run.
pub struct Peer<S: Storage<LogBytes>> {
    me: PeerId,
    spec: Arc<RunSpec>,
    roles: Roles,
    room: Room,
    /// Whether its last record asked for, or kept, a miner's place.
    asked_for_place: bool,
    versions: Versions,
    addresses: Addresses,
    log: DecidedLog,
    state: RunState,
    book: Book,
    scope: Scope,
    /// Entries of the log that the scope follows; nothing before the first look.
    scoped: Option<u64>,
    replay: ReplayWindow,
    candidate: Option<Candidate<S>>,
    miner: Option<Miner>,
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
}

impl<S: Storage<LogBytes>> Peer<S> {
    /// A peer of `spec`'s run.
    ///
    /// `parameters` holds the length of each stage's flat vector. `storage` is what consensus remembers, used
    /// only if the spec names this peer as a candidate. `sequence` has to be larger than any number this
    /// identity used before; microseconds of wall time serve.
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
        Self {
            me,
            roles,
            room: Room::default(),
            asked_for_place: roles.miner,
            versions: Versions::PROGRAM,
            addresses: Addresses::default(),
            log: DecidedLog::new(&spec),
            state: RunState::new(Arc::clone(&spec), parameters),
            book: Book::default(),
            scope: Scope::default(),
            scoped: None,
            replay: ReplayWindow::default(),
            candidate: Candidate::new(&spec, identity.clone(), storage),
            miner: roles.miner.then(|| Miner::new(me, Arc::clone(&spec), sequence)),
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
            spec,
        }
    }

    /// The peer as a program that speaks these wire versions would run it; [`Versions::PROGRAM`] unless told otherwise.
    #[must_use]
    pub const fn speaking(mut self, versions: Versions) -> Self {
        self.versions = versions;
        self
    }

    /// Takes over what earlier processes left, before anything else is handled. Blobs that nobody needs any more are let
    /// go of.
    ///
    /// # Errors
    /// [`RejectReason`] if the log is damaged or another run's. Everything else was taken over; the log will be fetched
    /// from others.
    pub fn recover(&mut self, remains: Remains) -> Result<(), RejectReason> {
        let Remains { log, state, tags } = remains;
        match &mut self.miner {
            Some(miner) => miner.recover(&mut self.out, state, tags),
            None => tags.into_iter().for_each(|tag| self.out.release(tag)),
        }
        // A candidate's consensus has kept the log.
        let Some(update) = log.filter(|_| self.candidate.is_none()) else { return Ok(()) };
        self.take_update(&self.log.electorate().certify(update)?)?;
        self.out.forget_history();
        Ok(())
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
        let parts =
            [self.miner.as_ref().and_then(Miner::deadline), self.candidate.as_ref().map(Candidate::deadline)];
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

    /// Stops asking for a miner's place: the peer leaves politely.
    pub fn leave(&mut self, now: Instant) {
        self.roles.miner = false;
        self.record_due = now;
        self.handle_timeout(now);
    }

    /// Takes what there is on this peer's disk. A miner that runs out of room stops and gives its place up as one that
    /// leaves, and asks for one again when there is room.
    pub fn handle_disk(&mut self, now: Instant, disk: &DiskUse) {
        let room = self.room.after(disk);
        if std::mem::replace(&mut self.room, room) != room {
            self.out.notice(Notice::Room(room, *disk));
            self.with_miner(now, |miner, cx| miner.handle_room(cx, room));
            self.pump(now);
        }
    }

    /// Whether it wants a miner's place: with little room it keeps the one it has until its epoch is over.
    fn wants_place(&self) -> bool {
        self.roles.miner
            && match self.room {
                Room::Enough => true,
                Room::Near => is_at_work(&self.state, self.me),
                Room::Full => false,
            }
    }

    /// Takes a gossiped message.
    ///
    /// # Errors
    /// [`RejectReason`] says why it must not be believed or forwarded.
    pub fn handle_gossip(&mut self, now: Instant, topic: Topic, bytes: &[u8]) -> Result<(), RejectReason> {
        match Gossip::open(self.log.electorate(), self.versions, topic, bytes) {
            Ok(gossip) => self.handle_opened(now, &gossip),
            Err(reason) => {
                self.take_foreign(now, &reason);
                Err(reason)
            }
        }
    }

    /// Takes a gossiped message whose signatures were checked.
    ///
    /// # Errors
    /// [`RejectReason`] says why it must not be believed or forwarded.
    pub fn handle_opened(&mut self, now: Instant, gossip: &Gossip) -> Result<(), RejectReason> {
        if let Err(reason) = gossip.check_version(self.versions) {
            self.take_foreign(now, &reason);
            return Err(reason);
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
        match self.book.record(sender).map(|known| known.sequence) {
            // The newest record says itself what was accepted; the window remembers those who were forgotten.
            Some(seen) if record.sequence <= seen => {
                return Err(RejectReason::Replay { got: record.sequence, seen });
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
            MergeNews::Digest(report) => self.take_digest(sender, report),
        }
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
        if let Some(candidate) = &mut self.candidate {
            candidate.orchestrator_mut().handle_manifest(Arc::clone(submitted));
        }
        Ok(())
    }

    fn take_digest(&mut self, sender: PeerId, report: &DigestReport) -> Result<(), RejectReason> {
        let stage = self.state.stage(report.stage).ok_or(RejectReason::Inconsistent("stage"))?;
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
        let partitions = stage.partitions;
        if let Some(candidate) = &mut self.candidate {
            candidate.orchestrator_mut().handle_digest(sender, report, partitions);
        }
        Ok(())
    }

    /// Takes certified entries.
    fn take_update(&mut self, certified: &Certified) -> Result<(), RejectReason> {
        if let Some(candidate) = &mut self.candidate {
            // A candidate hears of decisions from consensus; the certificate is what it may lack.
            candidate.certifier_mut().adopt(certified);
            self.log.set_certificate(certified.update().certificate.clone());
            return Ok(());
        }
        match self.log.extend(certified)? {
            Extended::By(_) => self.apply_log(),
            Extended::Gap => (self.behind, self.log_fetch_due) = (true, Instant::ZERO),
        }
        Ok(())
    }

    fn apply_log(&mut self) {
        while self.outdated.is_none()
            && let Ok(index) = usize::try_from(self.state.applied())
        {
            let Some((entry, chain)) = self.log.entry(index) else { break };
            for event in self.state.apply(LogIndex(index as u64), chain, entry.as_ref()) {
                if let StateEvent::Admitted(peer, stage) | StateEvent::Moved(peer, stage) = &event
                    && *peer != self.me
                    && self.state.stage_of(self.me) == Some(*stage)
                {
                    // It has to hear who holds the weights of its stage.
                    let soon = self.now + self.spec.timing.heartbeat.duration() / SOON_PARTS;
                    self.record_due = self.record_due.min(soon);
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
                candidate.handle_bundle(from, bundle)?;
                self.out.answer(ticket, &Response::Done);
            }
            Request::Log { from } => {
                let response =
                    self.log.range(from, LOG_RANGE_BYTES_MAX).map_or(Response::Unavailable, Response::Log);
                self.out.answer(ticket, &response);
            }
            Request::State { stage, version } => {
                let member = self.state.stage_of(from) == Some(stage);
                let miner = self.miner.as_mut().filter(|_| member);
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
                    candidate.handle_delivered(peer, matches!(response, Ok(Some(Response::Done))));
                }
            }
            Asked::Log => {
                if let Ok(Some(Response::Log(update))) = &response {
                    self.take_update(&self.log.electorate().certify(update.clone())?)?;
                    // More may be waiting behind what one message holds.
                    (self.behind, self.log_fetch_due) = (true, Instant::ZERO);
                } else {
                    self.newer = None;
                }
            }
            Asked::State => {
                let offer = match &response {
                    Ok(Some(Response::State(offer))) => Some(offer.clone()),
                    _ => None,
                };
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

    /// Takes the end of [`Action::Mirror`]: whether all of the state is in the mirror.
    pub fn handle_mirrored(&mut self, now: Instant, id: u64, there: bool) {
        self.with_miner(now, |miner, cx| miner.handle_mirrored(cx, id, there));
        self.pump(now);
    }

    /// Takes the end of a fetch: the blob is in the store (with its bytes, if they were asked for, else
    /// empty), or could not be had.
    pub fn handle_fetched(&mut self, now: Instant, id: u64, bytes: Option<&[u8]>) {
        self.with_miner(now, |miner, cx| miner.handle_fetched(cx, id, bytes));
        self.pump(now);
    }

    /// Takes the result of the engine's job.
    pub fn handle_job_done(&mut self, now: Instant, done: JobDone) {
        self.with_miner(now, |miner, cx| miner.handle_job_done(cx, done));
        self.pump(now);
    }

    /// A connection to `peer` was made; messages to it may have been lost before.
    pub fn handle_connected(&mut self, now: Instant, peer: PeerId) {
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

    /// Everything that follows from the inputs so far.
    fn pump(&mut self, now: Instant) {
        if self.outdated.is_some() {
            return;
        }
        let pause = PAUSE.max(self.spec.timing.heartbeat.duration() * 2);
        if now.since(self.now) > pause && self.now > Instant::ZERO {
            self.book.handle_pause(now);
            if let Some(candidate) = &mut self.candidate {
                candidate.orchestrator_mut().handle_pause(now);
            }
        }
        self.now = self.now.max(now);
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
        for message in self.out.take_own() {
            // Our own messages do not come back by gossip. They are never news to the replay window.
            let _ = self.take_merge_message(self.me, &message.into());
        }
        self.follow_scope();
        if self.state.finished() && !std::mem::replace(&mut self.told_finish, true) {
            // Peers stay until everybody knows that the run is over.
            self.record_due = now;
        }
        if self.wants_place() != self.asked_for_place {
            self.record_due = now;
        }
        if now >= self.record_due || self.miner.as_mut().is_some_and(Miner::take_news) {
            self.publish_record(now);
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
            let proposed = !decided && candidate.propose(now, self.me, &self.state, &self.book);
            if decided {
                self.apply_log();
                if self.outdated.is_some() {
                    // Votes for what was decided stay here: a certificate of an upgrade says that a majority speaks it.
                    return;
                }
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

    /// A candidate learns what is decided from consensus. Where that has lost something and nothing more is decided, it would
    /// not notice: if other candidates have had more entries for a while, it asks the leader for all that it lacks.
    fn resume_consensus(&mut self, now: Instant) {
        if !self.behind || now < self.log_fetch_due {
            return;
        }
        let have = self.log.len() as u64;
        let ahead = |peer| self.book.record(peer).is_some_and(|record| record.log_length > have);
        self.behind = self.spec.orchestrator.candidates.iter().any(|candidate| ahead(candidate.peer));
        self.log_fetch_due = now + self.spec.timing.heartbeat.duration() * 2;
        let stands_still = self.lacked_from.replace(have) == Some(have);
        if let (Some(candidate), Some(leader)) = (&mut self.candidate, self.leader)
            && self.behind
            && stands_still
        {
            candidate.handle_connected(leader);
        }
    }

    /// Asks for missing entries when somebody says it has more.
    fn fetch_log(&mut self, now: Instant) {
        if self.candidate.is_some() {
            return self.resume_consensus(now);
        }
        if !self.behind || now < self.log_fetch_due || self.asked.values().any(|asked| *asked == Asked::Log) {
            return;
        }
        let have = self.log.len() as u64;
        let ahead = self.book.records().filter(|(_, record)| record.log_length > have).map(|(peer, _)| peer);
        let ahead: Vec<PeerId> = ahead.chain(self.newer).collect();
        self.behind = !ahead.is_empty();
        // In turn, so that one that only says so holds nothing up.
        self.log_fetch_turn = self.log_fetch_turn.wrapping_add(1);
        let Some(&peer) = ahead.get(self.log_fetch_turn % ahead.len().max(1)) else { return };
        self.log_fetch_due = now + HEAD_REPEAT;
        let id = self.out.request(peer, &Request::Log { from: LogIndex(have) });
        self.asked.insert(id, Asked::Log);
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
        self.asked_for_place = self.wants_place();
        let record = PeerRecord {
            sequence: self.sequence,
            incarnation: self.incarnation,
            miner: self.asked_for_place,
            validator: self.roles.validator,
            multiaddrs: self.addresses.multiaddrs.clone(),
            data_addresses: self.addresses.data.clone(),
            log_length: self.log.certified(),
            weights: self.miner.as_ref().and_then(Miner::has),
            done: share.done,
            assigned: share.dealt,
            credits: self.miner.as_ref().map_or(0, Miner::credits),
            speed_milli: self.miner.as_ref().map_or(0, Miner::speed_milli),
            tokens: self.miner.as_ref().map_or(0, Miner::tokens),
            mirror: self.miner.as_ref().and_then(Miner::mirror),
            lacks: self.miner.as_ref().and_then(Miner::lacks),
            wire_version_max: self.versions.newest(),
        };
        self.out.publish(scope::record_topic(self.me, &self.state), &record);
        // Ours is within the limits unless the host has more addresses than a record may carry.
        let news = self.book.insert(now, self.me, Arc::new(record));
        if let Some(candidate) = self.candidate.as_mut().filter(|_| news.is_ok_and(|news| news.standing)) {
            candidate.handle_news();
        }
        let forget = self.spec.timing.eviction.duration() * FORGET_EVICTIONS;
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

/// Whether `peer` has a part in the epoch of its stage that is under way.
fn is_at_work(state: &RunState, peer: PeerId) -> bool {
    let stage = state.stage_of(peer).and_then(|stage| state.stage(stage));
    stage.is_some_and(|stage| {
        let owns = |owners: &Vec<PeerId>| owners.contains(&peer);
        stage.training().is_some_and(|training| training.deal.is_live(peer))
            || stage.plan().is_some_and(|(_, plan)| plan.owners.iter().any(owns))
    })
}
