//! A candidate's part: consensus, certificates, and, while it leads, proposals.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use omnipaxos::storage::Storage;
use serde_bytes::ByteBuf;

use super::book::Book;
use crate::equivocation::{Equivocation, MessageKind};
use crate::id::{Hash, Identity, LogIndex, PeerId};
use crate::limits::{
    CONSENSUS_BUNDLE_MAX, CONSENSUS_TICK, LOG_GOSSIP_BYTES_MAX, PROPOSAL_GATHER, WIRE_VERSION_FIRST,
};
use crate::log::certificate::{Certified, Electorate};
use crate::log::snapshot::Snapshots;
use crate::log::{Certifier, Consensus, DecidedLog, LogBytes, Vote};
use crate::miner::Outbox;
use crate::no_confidence::NoConfidence;
use crate::orchestrator::{Orchestrator, Room};
use crate::pace::{Smoothed, consensus_tick, election_round};
use crate::run_state::RunState;
use crate::spec::RunSpec;
use crate::time::Instant;
use crate::wire::envelope::signed_bytes;
use crate::wire::gossip::Signed;
use crate::wire::message::{ConsensusBundle, Decision, Entry, Request, Topic};
use crate::wire::{RejectReason, encode};

/// Consensus messages kept for a candidate that does not take them. OmniPaxos resynchronizes after a loss.
const QUEUE_MAX: usize = 1024;
/// Newest entries voted for after a restart; older ones are covered by the certificate of newer ones.
const VOTES_AFTER_RESTART: usize = 64;

/// Why a candidate does not take another for a leader any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// It has signed two messages under one number: these.
    Equivocates(Box<Equivocation>),
    /// It left undone, while it led, what this one would have decided.
    Undone(Box<Decision>),
}

impl fmt::Display for Distrust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equivocates(signed) => {
                write!(
                    f,
                    "it has signed two different messages of kind {} under one number",
                    signed.kind.name()
                )
            }
            Self::Undone(decision) => {
                write!(f, "it leads and leaves this undone for long: ")?;
                match &**decision {
                    Decision::Admit { peer, .. } => write!(f, "admit {peer}"),
                    Decision::Evict { peer, reason, .. } => write!(f, "evict {peer}: {reason}"),
                    Decision::Dismiss { peer, reason, .. } => write!(f, "dismiss {peer}: {reason}"),
                    Decision::OpenEpoch { stage, epoch, .. } => {
                        write!(f, "open epoch {epoch} of stage {stage}")
                    }
                    Decision::Judge(verdict) => write!(f, "take the verdict of {}", verdict.validator),
                    other => write!(f, "{other:?}"),
                }
            }
        }
    }
}

/// What is to be sent to another candidate. One request is under way at a time, which keeps order.
#[derive(Debug, Default)]
struct Lane {
    messages: VecDeque<ByteBuf>,
    /// Votes to send. A vote goes out even if its entry is certified here already: the other may lack just this one.
    votes: BTreeMap<LogIndex, Vote>,
    /// Votes sent whose entry is not certified here.
    sent: BTreeMap<LogIndex, Vote>,
    /// When those are sent again.
    again_due: Instant,
    in_flight: bool,
    /// When the one under way was sent; nothing if its round trip says nothing.
    sent_at: Option<Instant>,
    round_trip: Option<Smoothed>,
    lost: bool,
}

/// What only the owner of a key can compute: its signature is the same each time, and nobody else can make it.
fn lot(spec: &RunSpec, identity: &Identity) -> Hash {
    Hash::of(&identity.sign(&signed_bytes(WIRE_VERSION_FIRST, "lot", spec.run_id(), &[])))
}

/// A candidate.
pub(super) struct Candidate<S: Storage<LogBytes>> {
    identity: Identity,
    consensus: Consensus<S>,
    certifier: Certifier,
    orchestrator: Orchestrator,
    lanes: BTreeMap<PeerId, Lane>,
    /// Entries voted for, or left to the certificate of newer ones.
    voted: usize,
    /// Entries that each of the others has decided, by its votes.
    decided: BTreeMap<PeerId, u64>,
    /// Entries that a snapshot on disk stands for.
    kept: u64,
    /// Entries certified and published.
    published: u64,
    /// Sizes of the entries proposed as leader and not decided.
    pending: VecDeque<usize>,
    /// Whom it has ceased to trust, to be told.
    distrusts: Vec<(PeerId, Distrust)>,
    /// Its last vote against a leader.
    no_confidence: Option<NoConfidence>,
    /// Whether it led when it last looked.
    led: bool,
    /// Whether something changed that proposals depend on, other than time.
    news: bool,
    /// When time alone is a reason to look again.
    look_due: Instant,
    /// Until when news are gathered before they are looked at.
    gathers_until: Instant,
}

impl<S: Storage<LogBytes> + Clone> Candidate<S> {
    /// The candidate of this identity, if the spec names it.
    pub(super) fn new(spec: &RunSpec, identity: Identity, storage: S) -> Option<Self> {
        let me = u16::try_from(spec.candidate_index(identity.peer())?).ok()?;
        let consensus = Consensus::new(spec, identity.peer(), storage).ok()?;
        Some(Self {
            lanes: consensus.others().map(|peer| (peer, Lane::default())).collect(),
            consensus,
            certifier: Certifier::new(Electorate::new(spec), me),
            orchestrator: Orchestrator::new(lot(spec, &identity)),
            identity,
            voted: 0,
            decided: BTreeMap::new(),
            kept: 0,
            published: 0,
            pending: VecDeque::new(),
            distrusts: Vec::new(),
            no_confidence: None,
            led: false,
            news: true,
            look_due: Instant::ZERO,
            gathers_until: Instant::ZERO,
        })
    }

    pub(super) fn leader(&self) -> Option<PeerId> {
        self.consensus.leader()
    }

    pub(super) fn deadline(&self) -> Instant {
        let gathered = (self.led && self.news).then_some(self.gathers_until);
        gathered.map_or(self.consensus.deadline(), |gathered| gathered.min(self.consensus.deadline()))
    }

    pub(super) const fn orchestrator(&self) -> &Orchestrator {
        &self.orchestrator
    }

    pub(super) const fn orchestrator_mut(&mut self) -> &mut Orchestrator {
        self.news = true;
        &mut self.orchestrator
    }

    /// Something changed that proposals depend on.
    pub(super) const fn handle_news(&mut self) {
        self.news = true;
    }

    /// Compares a message with others of its sender. A candidate that says two things is not to lead any more.
    pub(super) fn watch(&mut self, state: &RunState, signed: Signed<'_>) {
        if self.orchestrator.watch(state, signed) {
            self.news = true;
            let sender = signed.sender;
            let conviction =
                self.orchestrator.conviction(sender).filter(|_| self.lanes.contains_key(&sender));
            if let Some(conviction) = conviction {
                self.consensus.distrust(sender);
                self.distrusts.push((sender, Distrust::Equivocates(Box::new(conviction.clone()))));
            }
        }
    }

    /// Whom this candidate has ceased to trust since the last call, and why.
    pub(super) fn poll_distrusts(&mut self) -> Vec<(PeerId, Distrust)> {
        std::mem::take(&mut self.distrusts)
    }

    /// Its vote against a leader that is not deposed yet, as long as it counts.
    pub(super) fn no_confidence(&self, state: &RunState) -> Option<NoConfidence> {
        self.no_confidence.clone().filter(|vote| state.counts_against(vote))
    }

    /// Compares votes whose signatures were checked with others of the same candidates.
    fn watch_votes(&mut self, state: &RunState, votes: impl IntoIterator<Item = Vote>) {
        for vote in votes {
            let Some(sender) = self.certifier.electorate().candidate(vote.candidate) else { continue };
            let (kind, number, envelope) = (MessageKind::Vote, vote.index.0, encode(&vote).into());
            self.watch(state, Signed { sender, kind, number, envelope: &envelope });
        }
    }

    /// Takes a certificate that was made elsewhere.
    pub(super) fn handle_certificate(&mut self, state: &RunState, certified: &Certified) {
        self.certifier.adopt(certified);
        self.watch_votes(state, certified.update().certificate.votes());
    }

    /// Takes another candidate's messages and votes.
    pub(super) fn handle_bundle(
        &mut self,
        state: &RunState,
        from: PeerId,
        bundle: ConsensusBundle,
    ) -> Result<(), RejectReason> {
        if !self.lanes.contains_key(&from) {
            return Err(RejectReason::NotEntitled);
        }
        if let Some(newest) = bundle.votes.iter().map(|vote| vote.index.0.saturating_add(1)).max() {
            let decided = self.decided.entry(from).or_default();
            *decided = newest.max(*decided);
        }
        // Votes first: whatever else a bundle holds, they are signed.
        for vote in bundle.votes {
            self.certifier.handle(from, vote.clone())?;
            self.watch_votes(state, [vote]);
        }
        bundle.messages.iter().try_for_each(|message| self.consensus.handle_message(from, message))
    }

    /// A snapshot of this many entries is on disk.
    pub(super) fn handle_snapshot_kept(&mut self, entries: u64) {
        self.kept = self.kept.max(entries);
        self.trim();
    }

    /// Trims what no candidate will ask for. A candidate that says it has decided what it has not harms itself.
    fn trim(&mut self) {
        let others = self.lanes.keys().map(|peer| self.decided.get(peer).copied().unwrap_or(0));
        let entries = others.fold(self.kept, u64::min);
        if let Ok(entries) = usize::try_from(entries) {
            self.consensus.trim(entries);
        }
    }

    /// Goes on after the first `len` entries, which were had from elsewhere.
    pub(super) fn resume_at(&mut self, len: usize) {
        // A disk that fails now fails at the next decision, too, and ends the process then.
        let _ = self.consensus.resume_at(len);
        self.voted = self.voted.max(len);
    }

    /// Whether consensus cannot hand out entries, since it has trimmed those before them.
    pub(super) fn lacks(&self) -> bool {
        self.consensus.lacks()
    }

    /// A bundle was taken, or lost.
    pub(super) fn handle_delivered(&mut self, now: Instant, peer: PeerId, taken: bool) {
        let Some(lane) = self.lanes.get_mut(&peer) else { return };
        lane.in_flight = false;
        let sent_at = lane.sent_at.take();
        if !taken {
            lane.lost = true;
            lane.votes.append(&mut lane.sent);
            return;
        }
        if let Some(sent_at) = sent_at {
            lane.round_trip = Some(Smoothed::with(lane.round_trip, now.since(sent_at)));
        }
        if std::mem::take(&mut lane.lost) {
            self.consensus.handle_reconnected(peer);
        }
    }

    /// This process was not running for a while: what is under way took longer than its round trip.
    pub(super) fn handle_pause(&mut self, now: Instant) {
        self.lanes.values_mut().for_each(|lane| lane.sent_at = None);
        self.orchestrator_mut().handle_pause(now);
    }

    /// The round trip to the last of the others that, nearest first, make up a majority.
    fn round_trip(&self) -> Option<Smoothed> {
        let mut known: Vec<Smoothed> = self.lanes.values().filter_map(|lane| lane.round_trip).collect();
        known.sort_unstable_by_key(|round_trip| round_trip.ordinary());
        let others = self.lanes.len().div_ceil(2);
        others.checked_sub(1).and_then(|last| known.get(last).copied())
    }

    pub(super) fn handle_connected(&mut self, peer: PeerId) {
        if self.lanes.contains_key(&peer) {
            self.consensus.handle_reconnected(peer);
        }
    }

    /// Moves newly decided entries into the log. Returns whether there were any.
    pub(super) fn poll_decided(&mut self, now: Instant, log: &mut DecidedLog) -> bool {
        if now >= self.consensus.deadline() {
            let round_trip = self.round_trip();
            self.consensus.handle_timeout(now, consensus_tick(round_trip));
            self.orchestrator.handle_round_trip(round_trip);
        }
        let decided = self.consensus.poll_decided();
        let any = !decided.is_empty();
        self.news |= any;
        self.pending.drain(..decided.len().min(self.pending.len()));
        for entry in decided {
            log.push_decided(entry);
        }
        any
    }

    /// Votes for entries that were decided and applied, but for none from `diverged` on.
    pub(super) fn vote(&mut self, log: &DecidedLog, diverged: Option<LogIndex>) {
        let len = log.len();
        for entries in self.voted.max(len.saturating_sub(VOTES_AFTER_RESTART)) + 1..=len {
            let index = LogIndex(entries as u64 - 1);
            let Some(chain) = log.chain(entries).filter(|_| diverged.is_none_or(|from| index < from)) else {
                continue;
            };
            let vote = self.certifier.vote(&self.identity, index, chain);
            for lane in self.lanes.values_mut() {
                lane.votes.insert(index, vote.clone());
            }
        }
        self.voted = len;
        self.trim();
    }

    /// As leader, proposes what should be decided. Returns whether anything was proposed.
    pub(super) fn propose(
        &mut self,
        now: Instant,
        me: PeerId,
        state: &RunState,
        book: &Book,
        snapshots: &Snapshots,
    ) -> bool {
        let leads = self.consensus.is_leader();
        if leads && !self.led {
            self.orchestrator.handle_leadership(now);
            self.pending.clear();
        }
        self.led = leads;
        if !leads {
            if now >= self.look_due {
                self.look_due = now + CONSENSUS_TICK;
                let elected = self.consensus.elected().filter(|elected| *elected != me);
                let undone = self.orchestrator.follow(now, state, book, elected);
                if let (Some(undone), Some(elected)) = (undone, elected)
                    && self.consensus.distrust(elected)
                {
                    self.distrusts.push((elected, Distrust::Undone(Box::new(undone))));
                    let (run, epoch) = (state.spec().run_id(), state.head_version());
                    self.no_confidence = Some(NoConfidence::sign(&self.identity, run, elected, epoch));
                }
            }
            return false;
        }
        if now < self.look_due && !(self.news && now >= self.gathers_until) {
            return false;
        }
        self.news = false;
        self.gathers_until = now + PROPOSAL_GATHER;
        self.look_due = now + CONSENSUS_TICK;
        // The log of a run that is over names the state that it led to, for whoever audits it.
        let last = state.snapshot() + 1 < state.applied() && self.orchestrator.is_over(now, state, book);
        if (snapshots.is_due(state.applied(), state.snapshot()) || last) && !state.finished() {
            // It names the state before it, so nothing may come in between.
            let settled = self.consensus.is_settled();
            if settled {
                let (entries, state) = (state.applied(), Hash::of(&state.to_bytes()));
                let decision = Decision::Snapshot { entries, state };
                self.consensus.propose(encode(&Entry { proposer: me, decision }));
            }
            return settled;
        }
        let room = Room::beside(self.pending.iter().copied());
        let decisions = self.orchestrator.propose(now, state, book, room);
        let any = !decisions.is_empty();
        for decision in decisions {
            let entry = encode(&Entry { proposer: me, decision });
            self.pending.push_back(entry.len());
            self.consensus.propose(entry);
        }
        any
    }

    /// Publishes newly certified entries as leader. A new leader starts at the head: what the old one did not
    /// publish, peers fetch when records show that they lack it.
    pub(super) fn publish(&mut self, log: &mut DecidedLog, out: &mut Outbox) {
        if let Some(certificate) = self.certifier.latest() {
            log.set_certificate(certificate.clone());
        }
        let Some(certified) = log.certificate().map(|certificate| certificate.index.0 + 1) else { return };
        for lane in self.lanes.values_mut() {
            lane.sent.retain(|index, _| index.0 >= certified);
        }
        if !self.consensus.is_leader() {
            self.published = certified;
            return;
        }
        let mut from = self.published;
        let range = |from| log.range(LogIndex(from), LOG_GOSSIP_BYTES_MAX);
        while let Some(update) = (from < certified).then(|| range(from)).flatten() {
            from = update.next().map_or(u64::MAX, |next| next.0);
            out.publish_raw(Topic::Control, encode(&update));
        }
        self.published = certified;
    }

    /// Sends what is queued for other candidates; returns to whom, and the requests' numbers.
    pub(super) fn send(&mut self, now: Instant, out: &mut Outbox) -> Vec<(PeerId, u64)> {
        for (peer, messages) in self.consensus.poll_messages() {
            if let Some(lane) = self.lanes.get_mut(&peer) {
                lane.messages.extend(messages);
                while lane.messages.len() > QUEUE_MAX {
                    lane.messages.pop_front();
                    lane.lost = true;
                }
            }
        }
        let mut sent = Vec::new();
        let again_due = now + election_round(self.round_trip());
        for (peer, lane) in &mut self.lanes {
            if now >= lane.again_due {
                lane.votes.append(&mut lane.sent);
            }
            let vote = !lane.votes.is_empty();
            if lane.in_flight || !vote && lane.messages.is_empty() {
                continue;
            }
            let count = lane.messages.len().min(CONSENSUS_BUNDLE_MAX);
            let mut bundle =
                ConsensusBundle { messages: lane.messages.drain(..count).collect(), votes: Vec::new() };
            if vote {
                for _ in 0..CONSENSUS_BUNDLE_MAX {
                    let Some((index, vote)) = lane.votes.pop_first() else { break };
                    lane.sent.insert(index, vote.clone());
                    bundle.votes.push(vote);
                }
                lane.again_due = again_due;
            }
            lane.in_flight = true;
            lane.sent_at = Some(now);
            sent.push((*peer, out.request(*peer, &Request::Consensus(bundle))));
        }
        sent
    }
}
