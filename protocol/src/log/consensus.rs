//! Agreement among the candidates: OmniPaxos (Ng, Haridi, Carbone, `EuroSys` 2023) behind a narrow door.
//!
//! OmniPaxos refuses clusters of one, so a single candidate decides by writing to its storage. Its
//! messages carry sequence numbers and resynchronize after a gap, so the transport between candidates
//! may drop and reorder. It tolerates crashes of a minority, not lies: candidates are named by the
//! run's owner. A lying leader can get harmful decisions decided, and can have candidates decide
//! different logs, each with its own vote and so with a certificate.
//!
//! Entries that every candidate has decided, and for which a snapshot is on disk, are trimmed from the storage: nobody asks
//! for them any more. A candidate that has lost its disk does, and is not answered: it fetches a snapshot and the
//! certified log, as any peer does, and takes its place behind those.

use std::collections::BTreeMap;
use std::time::Duration;

use omnipaxos::ballot_leader_election::Ballot;
use omnipaxos::messages::Message;
use omnipaxos::messages::ballot_leader_election::{BLEMessage, HeartbeatMsg};
use omnipaxos::messages::sequence_paxos::{Compaction, PaxosMessage, PaxosMsg};
use omnipaxos::storage::{Storage, StorageOp, StorageResult};
use omnipaxos::util::{LogEntry, NodeId};
use omnipaxos::{ClusterConfig, OmniPaxos, OmniPaxosConfig, ServerConfig};
use serde_bytes::ByteBuf;

use super::storage::LogBytes;
use crate::id::PeerId;
use crate::limits::{BALLOT_JUMP_MAX, ELECTION_TICKS, RPC_BYTES_MAX};
use crate::spec::RunSpec;
use crate::time::Instant;
use crate::wire::{DecodeError, RejectReason};

/// Consensus ticks before an unanswered message is sent again.
const RESEND_TICKS: u64 = 20;
/// Messages the library buffers before they are drained, which happens after every call.
const BUFFER_MESSAGES: usize = 4096;

/// A candidate's part in consensus.
pub struct Consensus<S: Storage<LogBytes>> {
    candidates: Vec<PeerId>,
    me: usize,
    config: OmniPaxosConfig,
    /// A second handle of what `kind` uses.
    storage: S,
    kind: Kind<S>,
    /// Candidates that this one does not take for leaders, the last it ceased to trust last.
    distrusted: Vec<PeerId>,
    /// The ballots of those that other candidates are content to be led by.
    content: BTreeMap<PeerId, Ballot>,
    /// Entries handed out through [`poll_decided`](Self::poll_decided).
    handed_out: usize,
    next_tick: Instant,
}

enum Kind<S: Storage<LogBytes>> {
    /// The only candidate: writing is deciding.
    Alone(S),
    Cluster(Box<OmniPaxos<LogBytes, S>>),
}

impl<S: Storage<LogBytes>> Kind<S> {
    fn new(config: &OmniPaxosConfig, storage: S) -> Result<Self, ConsensusError> {
        if config.cluster_config.nodes.len() == 1 {
            return Ok(Self::Alone(storage));
        }
        let paxos = config.clone().build(storage);
        Ok(Self::Cluster(Box::new(paxos.map_err(|error| ConsensusError::Config(format!("{error:?}")))?)))
    }
}

/// Why consensus could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// This peer is not among the spec's candidates.
    #[error("expected a candidate of the run spec, got {0}")]
    NotACandidate(PeerId),
    /// What it remembers cannot be read or written.
    #[error("use the storage of consensus: {0}")]
    Storage(String),
    /// The library refused its configuration.
    #[error("consensus configuration refused: {0}")]
    Config(String),
}

/// What of a message a candidate handles that has decided so many entries and trimmed so many of them.
fn fitting(mut message: Message<LogBytes>, decided: usize, trimmed: usize) -> Option<Message<LogBytes>> {
    let Message::SequencePaxos(PaxosMessage { msg, .. }) = &mut message else { return Some(message) };
    let fits = match msg {
        // Entries that are decided here are not written again: they may be trimmed. The leader sends those of them that came
        // here from a snapshot, since it cannot know that they did.
        PaxosMsg::AcceptSync(sync) => {
            let log = &mut sync.log_sync;
            let known = decided.saturating_sub(log.sync_idx);
            let reaches = known <= log.suffix.len();
            if reaches {
                log.suffix.drain(..known);
                log.sync_idx += known;
            }
            reaches
        }
        // From one that lacks what was trimmed.
        PaxosMsg::Prepare(prepare) => prepare.decided_idx >= trimmed,
        PaxosMsg::Promise(promise) => promise.decided_idx >= trimmed,
        // What may be trimmed here, only this candidate knows.
        PaxosMsg::Compaction(_) => false,
        _ => true,
    };
    fits.then_some(message)
}

/// What of a message of a candidate is handled that is not to lead: its heartbeats are those of one that has the lowest ballot and is not
/// content with any leader, and a ballot of its that not enough others are content with is not prepared for.
fn followed(
    mut message: Message<LogBytes>,
    is_followed: impl Fn(Ballot) -> bool,
) -> Option<Message<LogBytes>> {
    match &mut message {
        Message::BLE(BLEMessage { msg: HeartbeatMsg::Reply(reply), .. }) => {
            reply.ballot.n = 0;
            reply.happy = false;
            Some(message)
        }
        Message::SequencePaxos(PaxosMessage { msg: PaxosMsg::Prepare(prepare), .. }) => {
            is_followed(prepare.n).then_some(message)
        }
        _ => Some(message),
    }
}

/// Numbers of the ballots that a message claims.
fn ballots(message: &Message<LogBytes>) -> impl Iterator<Item = u32> {
    let claimed = match message {
        Message::BLE(BLEMessage { msg: HeartbeatMsg::Reply(reply), .. }) => {
            [Some(reply.ballot.n), Some(reply.leader.n)]
        }
        Message::SequencePaxos(PaxosMessage { msg: PaxosMsg::Prepare(prepare), .. }) => {
            [Some(prepare.n.n), None]
        }
        _ => [None, None],
    };
    claimed.into_iter().flatten()
}

/// Trims the entries before `index` and takes them for decided.
fn forget<S: Storage<LogBytes>>(storage: &mut S, index: usize) -> StorageResult<()> {
    let decided = storage.get_decided_idx()?.max(index);
    storage.write_atomically(vec![
        StorageOp::Trim(index),
        StorageOp::SetCompactedIdx(index),
        StorageOp::SetDecidedIndex(decided),
    ])
}

/// OmniPaxos numbers its nodes from 1.
const fn node_id(index: usize) -> NodeId {
    index as NodeId + 1
}

impl<S: Storage<LogBytes> + Clone> Consensus<S> {
    /// The part of `peer` in the consensus of `spec`, continuing from what `storage` remembers. Clones of a storage that
    /// remembers anything share it.
    ///
    /// # Errors
    /// [`ConsensusError`] if `peer` is no candidate.
    pub fn new(spec: &RunSpec, peer: PeerId, storage: S) -> Result<Self, ConsensusError> {
        let me = spec.candidate_index(peer).ok_or(ConsensusError::NotACandidate(peer))?;
        let candidates: Vec<_> =
            spec.orchestrator.candidates.iter().map(|candidate| candidate.peer).collect();
        let config = OmniPaxosConfig {
            cluster_config: ClusterConfig {
                configuration_id: 1,
                nodes: (0..candidates.len()).map(node_id).collect(),
                flexible_quorum: None,
            },
            server_config: ServerConfig {
                pid: node_id(me),
                election_tick_timeout: u64::from(ELECTION_TICKS),
                resend_message_tick_timeout: RESEND_TICKS,
                buffer_size: BUFFER_MESSAGES,
                leader_priority: spec
                    .orchestrator
                    .candidates
                    .get(me)
                    .map_or(0, |candidate| candidate.priority),
                ..ServerConfig::default()
            },
        };
        let kind = Kind::new(&config, storage.clone())?;
        let (distrusted, content) = (Vec::new(), BTreeMap::new());
        let (handed_out, next_tick) = (0, Instant::ZERO);
        Ok(Self { candidates, me, config, storage, kind, distrusted, content, handed_out, next_tick })
    }

    /// Who leads, as this candidate sees it, once the leader has finished its prepare phase.
    #[must_use]
    pub fn leader(&self) -> Option<PeerId> {
        match &self.kind {
            Kind::Alone(_) => self.candidates.first().copied(),
            Kind::Cluster(paxos) => {
                let (node, accepting) = paxos.get_current_leader()?;
                self.candidate(node).filter(|_| accepting)
            }
        }
    }

    /// Who is to lead, as this candidate sees it: the last that it promised to follow.
    #[must_use]
    pub fn elected(&self) -> Option<PeerId> {
        match &self.kind {
            Kind::Alone(_) => self.candidates.first().copied(),
            Kind::Cluster(paxos) => self.candidate(paxos.get_promise().pid),
        }
    }

    /// The candidate of this number in the library.
    fn candidate(&self, node: NodeId) -> Option<PeerId> {
        let index = usize::try_from(node.checked_sub(1)?).ok()?;
        self.candidates.get(index).copied()
    }

    /// Ceases to take `peer` for a leader. Once all candidates that are heard do, one of them takes over: the library asks that nobody
    /// who is heard is content with a leader. Until then nothing changes: `peer` can follow and vote as before, and is followed, by a new
    /// ballot too, as long as enough others are content with it to make a majority with it.
    ///
    /// Fewer than half of the candidates are distrusted at a time; one more takes the place of the first.
    ///
    /// Returns whether that is new.
    pub fn distrust(&mut self, peer: PeerId) -> bool {
        let most = (self.candidates.len() - 1) / 2;
        let named = self.others().any(|other| other == peer);
        if !named || most == 0 || self.distrusted.contains(&peer) {
            return false;
        }
        if self.distrusted.len() >= most {
            self.distrusted.remove(0);
        }
        self.distrusted.push(peer);
        true
    }

    /// Whether this candidate leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.leader() == self.candidates.get(self.me).copied()
    }

    /// The other candidates.
    pub fn others(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.candidates.iter().enumerate().filter(|(index, _)| *index != self.me).map(|(_, peer)| *peer)
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    #[must_use]
    pub const fn deadline(&self) -> Instant {
        self.next_tick
    }

    /// Lets time pass: elections, resends. The next tick is `tick` later.
    pub fn handle_timeout(&mut self, now: Instant, tick: Duration) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + tick;
        if let Kind::Cluster(paxos) = &mut self.kind {
            paxos.tick();
        }
    }

    /// Takes a message from another candidate.
    ///
    /// # Errors
    /// [`RejectReason`] if it is undecodable, or not from `from` to this candidate.
    pub fn handle_message(&mut self, from: PeerId, bytes: &[u8]) -> Result<(), RejectReason> {
        let Kind::Cluster(paxos) = &mut self.kind else { return Err(RejectReason::NotEntitled) };
        if bytes.len() > RPC_BYTES_MAX {
            return Err(DecodeError::TooLong { limit: RPC_BYTES_MAX, got: bytes.len() }.into());
        }
        let message: Message<LogBytes> = serde_cbor::from_slice(bytes).map_err(|_| DecodeError::Malformed)?;
        let sender =
            self.candidates.iter().position(|peer| *peer == from).ok_or(RejectReason::NotEntitled)?;
        if message.get_sender() != node_id(sender) || message.get_receiver() != node_id(self.me) {
            return Err(RejectReason::Inconsistent("consensus sender or receiver"));
        }
        if ballots(&message).any(|n| n.saturating_sub(paxos.get_promise().n) > BALLOT_JUMP_MAX) {
            return Err(RejectReason::Inconsistent("consensus ballot"));
        }
        if let Message::BLE(BLEMessage { msg: HeartbeatMsg::Reply(reply), .. }) = &message {
            self.content.remove(&from);
            self.content.extend(reply.happy.then_some((from, reply.leader)));
        }
        let is_followed = |ballot: Ballot| {
            let trusted = self.content.iter().filter(|(peer, _)| !self.distrusted.contains(peer));
            let content = trusted.filter(|(_, leader)| **leader == ballot).count();
            content + 1 > self.candidates.len() / 2
        };
        let distrusted = self.distrusted.contains(&from);
        let message = if distrusted { followed(message, is_followed) } else { Some(message) };
        let fits = |message| fitting(message, paxos.get_decided_idx(), paxos.get_compacted_idx());
        if let Some(message) = message.and_then(fits) {
            paxos.handle_incoming(message);
        }
        Ok(())
    }

    /// Entries trimmed.
    #[must_use]
    pub fn trimmed(&self) -> usize {
        match &self.kind {
            Kind::Alone(storage) => storage.get_compacted_idx().unwrap_or(0),
            Kind::Cluster(paxos) => paxos.get_compacted_idx(),
        }
    }

    /// Trims the entries before `index`, all of which every candidate has decided.
    pub fn trim(&mut self, index: usize) {
        if index <= self.trimmed() || index > self.handed_out {
            return;
        }
        match &mut self.kind {
            Kind::Alone(storage) => {
                // What stays now goes another time.
                let _ = forget(storage, index);
            }
            // The library lets only a leader trim, and asks no vote of it; this is what it sends its followers then.
            Kind::Cluster(paxos) => paxos.handle_incoming(Message::SequencePaxos(PaxosMessage {
                from: node_id(self.me),
                to: node_id(self.me),
                msg: PaxosMsg::Compaction(Compaction::Trim(index)),
            })),
        }
    }

    /// Whether entries before `len` were trimmed that were not handed out: they have to be had from others.
    #[must_use]
    pub fn lacks(&self) -> bool {
        self.trimmed() > self.handed_out
    }

    /// Whether everything proposed here so far is decided, so that the next proposal follows the last decision.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        match &self.kind {
            Kind::Alone(_) => true,
            Kind::Cluster(paxos) => {
                paxos.get_accepted_idx() == paxos.get_decided_idx() && paxos.get_batched_len() == 0
            }
        }
    }

    /// Goes on after the first `len` entries, which are known from elsewhere to be decided.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn resume_at(&mut self, len: usize) -> Result<(), ConsensusError> {
        let failed = |error: Box<dyn std::error::Error>| ConsensusError::Storage(error.to_string());
        let decided = match &self.kind {
            Kind::Alone(storage) => storage.get_decided_idx().map_err(failed)?,
            Kind::Cluster(paxos) => paxos.get_decided_idx(),
        };
        if decided < len {
            // Whatever it had accepted instead was not decided.
            forget(&mut self.storage, len).map_err(failed)?;
            self.kind = Kind::new(&self.config, self.storage.clone())?;
        }
        self.handed_out = self.handed_out.max(len);
        Ok(())
    }

    /// Tells consensus that messages to or from `peer` may have been lost.
    pub fn handle_reconnected(&mut self, peer: PeerId) {
        if let (Kind::Cluster(paxos), Some(index)) =
            (&mut self.kind, self.candidates.iter().position(|p| *p == peer))
        {
            paxos.reconnected(node_id(index));
        }
    }

    /// Proposes an entry. Without a leader it is dropped; the proposer tries again as long as it matters.
    pub fn propose(&mut self, entry: Vec<u8>) {
        let entry = LogBytes(ByteBuf::from(entry));
        match &mut self.kind {
            Kind::Alone(storage) => {
                let decided = storage.get_log_len().and_then(|len| {
                    let trimmed = storage.get_compacted_idx()?;
                    storage.append_entry(entry)?;
                    storage.set_decided_idx(trimmed + len + 1)
                });
                if let Err(error) = decided {
                    panic!("the only candidate cannot write its log: {error}");
                }
            }
            // Refused only during a reconfiguration, which never happens here.
            Kind::Cluster(paxos) => drop(paxos.append(entry)),
        }
    }

    /// Messages to other candidates since the last call, by receiver.
    pub fn poll_messages(&mut self) -> BTreeMap<PeerId, Vec<ByteBuf>> {
        let mut by_receiver: BTreeMap<PeerId, Vec<ByteBuf>> = BTreeMap::new();
        let Kind::Cluster(paxos) = &mut self.kind else { return by_receiver };
        let mut messages = Vec::new();
        paxos.take_outgoing_messages(&mut messages);
        for message in messages {
            let index = usize::try_from(message.get_receiver().saturating_sub(1)).unwrap_or(usize::MAX);
            if let (Some(peer), Ok(bytes)) = (self.candidates.get(index), serde_cbor::to_vec(&message)) {
                by_receiver.entry(*peer).or_default().push(ByteBuf::from(bytes));
            }
        }
        by_receiver
    }

    /// Entries decided since the last call, in order.
    pub fn poll_decided(&mut self) -> Vec<Vec<u8>> {
        if self.lacks() {
            return Vec::new();
        }
        let entries: Vec<Vec<u8>> = match &self.kind {
            Kind::Alone(storage) => {
                let decided = storage.get_decided_idx().unwrap_or(0);
                let entries = storage.get_entries(self.handed_out, decided).unwrap_or_default();
                entries.into_iter().map(|entry| entry.0.into_vec()).collect()
            }
            Kind::Cluster(paxos) => paxos
                .read_decided_suffix(self.handed_out)
                .unwrap_or_default()
                .into_iter()
                .filter_map(|entry| match entry {
                    LogEntry::Decided(entry) => Some(entry.0.into_vec()),
                    _ => None,
                })
                .collect(),
        };
        self.handed_out += entries.len();
        entries
    }
}

#[cfg(test)]
mod tests {
    use omnipaxos::messages::ballot_leader_election::HeartbeatReply;
    use omnipaxos::messages::sequence_paxos::Prepare;

    use super::*;
    use crate::Identity;
    use crate::limits::CONSENSUS_TICK;
    use crate::log::MemoryStorage;
    use crate::spec::{Candidate, OrchestratorSpec};

    type Member = Consensus<MemoryStorage<LogBytes>>;

    struct Cluster {
        members: Vec<Member>,
        peers: Vec<PeerId>,
        dead: Vec<bool>,
        now: Instant,
        logs: Vec<Vec<Vec<u8>>>,
    }

    impl Cluster {
        fn of(n: u8) -> Self {
            let peers: Vec<_> = (1..=n).map(|i| Identity::from_secret([i; 32]).peer()).collect();
            let candidates = peers
                .iter()
                .zip((0..u32::from(n)).rev())
                .map(|(&peer, priority)| Candidate { peer, priority })
                .collect();
            let spec = RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() };
            let members = peers
                .iter()
                .map(|&peer| Consensus::new(&spec, peer, MemoryStorage::default()).expect("candidate"))
                .collect();
            let n = usize::from(n);
            Self { members, peers, dead: vec![false; n], now: Instant::ZERO, logs: vec![Vec::new(); n] }
        }

        fn step(&mut self) {
            self.now = self.now + CONSENSUS_TICK;
            for i in 0..self.members.len() {
                if self.dead[i] {
                    continue;
                }
                self.members[i].handle_timeout(self.now, CONSENSUS_TICK);
                for (to, messages) in self.members[i].poll_messages() {
                    let j = self.peers.iter().position(|peer| *peer == to).expect("known");
                    for message in messages.iter().filter(|_| !self.dead[j]) {
                        self.members[j]
                            .handle_message(self.peers[i], message)
                            .expect("own messages are accepted");
                    }
                }
                let decided = self.members[i].poll_decided();
                self.logs[i].extend(decided);
            }
        }

        fn run_until(&mut self, steps: usize, done: impl Fn(&Self) -> bool) -> bool {
            (0..steps).any(|_| {
                self.step();
                done(self)
            })
        }

        fn leader(&self) -> Option<usize> {
            (0..self.members.len()).find(|&i| !self.dead[i] && self.members[i].is_leader())
        }
    }

    #[test]
    fn a_single_candidate_decides_alone() {
        let mut cluster = Cluster::of(1);
        cluster.members[0].propose(b"a".to_vec());
        cluster.step();
        assert_eq!(cluster.logs[0], [b"a".to_vec()]);
        assert!(cluster.members[0].is_leader());
    }

    #[test]
    fn three_candidates_decide_one_log_and_survive_their_leader() {
        let mut cluster = Cluster::of(3);
        assert!(cluster.run_until(100, |c| c.leader().is_some()), "no leader");
        let first = cluster.leader().expect("leader");
        cluster.members[first].propose(b"a".to_vec());
        assert!(
            cluster.run_until(100, |c| c.logs.iter().all(|log| log.len() == 1)),
            "not decided everywhere"
        );

        cluster.dead[first] = true;
        assert!(
            cluster.run_until(49, |c| c.leader().is_some()),
            "no new leader within five seconds of ticks"
        );
        let second = cluster.leader().expect("leader");
        assert_ne!(first, second);
        cluster.members[second].propose(b"b".to_vec());
        let alive = |c: &Cluster| (0..3).filter(|&i| !c.dead[i]).all(|i| c.logs[i].len() == 2);
        assert!(cluster.run_until(100, alive), "not decided by the survivors");
        assert!(
            cluster
                .logs
                .iter()
                .enumerate()
                .filter(|(i, _)| *i != first)
                .all(|(_, log)| *log == [b"a".to_vec(), b"b".to_vec()])
        );
    }

    #[test]
    fn messages_from_outsiders_and_garbage_are_refused() {
        let mut cluster = Cluster::of(3);
        let peers = cluster.peers.clone();
        let outsider = PeerId([9; 32]);
        assert_eq!(
            cluster.members[0].handle_message(peers[1], b"garbage"),
            Err(RejectReason::Decode(DecodeError::Malformed))
        );
        cluster.members[1].handle_timeout(CONSENSUS_TICK_AT, CONSENSUS_TICK);
        for _ in 0..20 {
            let next = cluster.members[1].deadline();
            cluster.members[1].handle_timeout(next, CONSENSUS_TICK);
        }
        let messages = cluster.members[1].poll_messages();
        let to_first = &messages[&peers[0]][0];
        assert_eq!(cluster.members[0].handle_message(outsider, to_first), Err(RejectReason::NotEntitled));
        assert!(matches!(
            cluster.members[0].handle_message(peers[2], to_first),
            Err(RejectReason::Inconsistent(_))
        ));
        assert!(matches!(
            cluster.members[2].handle_message(peers[1], to_first),
            Err(RejectReason::Inconsistent(_))
        ));
    }

    /// A cluster of three in which so many of the two that follow do not trust the leader, after a while; and who led first.
    fn after_distrust(by: usize) -> (Cluster, usize) {
        let mut cluster = Cluster::of(3);
        assert!(cluster.run_until(100, |c| c.leader().is_some()), "no leader");
        let first = cluster.leader().expect("leader");
        let peer = cluster.peers[first];
        for follower in (0..3).filter(|&i| i != first).take(by) {
            assert_eq!(cluster.members[follower].elected(), Some(peer));
            assert!(cluster.members[follower].distrust(peer));
            assert!(!cluster.members[follower].distrust(peer), "it is known");
        }
        cluster.run_until(100, |_| false);
        (cluster, first)
    }

    #[test]
    fn a_leader_whom_all_others_distrust_follows_another_and_one_that_is_trusted_by_some_stays() {
        let (mut cluster, first) = after_distrust(1);
        assert_eq!(cluster.leader(), Some(first), "one of two is content with it");
        cluster.members[first].propose(b"a".to_vec());
        assert!(cluster.run_until(100, |c| c.logs.iter().all(|log| log.len() == 1)), "all follow it");

        let (mut cluster, first) = after_distrust(2);
        let second = cluster.leader().expect("leader");
        assert_ne!(second, first);
        cluster.members[second].propose(b"a".to_vec());
        assert!(cluster.run_until(100, |c| c.logs.iter().all(|log| log.len() == 1)), "all follow the other");
    }

    #[test]
    fn who_distrusts_a_leader_that_others_follow_catches_up_with_it_after_an_absence() {
        let (mut cluster, first) = after_distrust(1);
        let peer = cluster.peers[first];
        let absent =
            (0..3).find(|&i| cluster.members[i].distrusted.contains(&peer)).expect("one distrusts it");
        cluster.dead[absent] = true;
        cluster.members[first].propose(b"a".to_vec());
        let others = |c: &Cluster| (0..3).filter(|&i| i != absent).all(|i| c.logs[i].len() == 1);
        assert!(cluster.run_until(100, others), "a majority is there");
        cluster.dead[absent] = false;
        for other in (0..3).filter(|&i| i != absent) {
            let (one, two) = (cluster.peers[absent], cluster.peers[other]);
            cluster.members[absent].handle_reconnected(two);
            cluster.members[other].handle_reconnected(one);
        }
        assert!(cluster.run_until(200, |c| c.logs.iter().all(|log| log.len() == 1)), "it is not left behind");
        assert_eq!(cluster.leader(), Some(first), "one of two is content with it");
        assert_eq!(cluster.members[absent].distrusted, [peer]);
    }

    #[test]
    fn trust_is_lost_in_fewer_than_half_of_the_candidates_at_a_time() {
        let distrusted = |n: u8| {
            let mut cluster = Cluster::of(n);
            let peers = cluster.peers.clone();
            let lost = peers.iter().filter(|peer| cluster.members[0].distrust(**peer)).count();
            (lost, cluster.members[0].distrusted.clone())
        };
        assert_eq!(distrusted(1), (0, vec![]));
        assert_eq!(distrusted(2), (0, vec![]), "it could decide nothing without the other");
        let peers = Cluster::of(5).peers;
        assert_eq!(distrusted(4), (3, vec![peers[3]]), "never itself, and the last one only");
        assert_eq!(distrusted(5), (4, vec![peers[3], peers[4]]));
        assert!(!Cluster::of(3).members[0].distrust(PeerId([9; 32])), "no candidate");
    }

    #[test]
    fn a_ballot_far_above_all_that_were_promised_is_refused() {
        let mut cluster = Cluster::of(3);
        assert!(cluster.run_until(100, |c| c.leader().is_some()), "no leader");
        let (from, to) = (cluster.peers[1], node_id(0));
        let mut claim = |n: u32| {
            let ballot = Ballot { config_id: 1, n, priority: 0, pid: node_id(1) };
            let prepare =
                Prepare { n: ballot, decided_idx: 0, n_accepted: Ballot::default(), accepted_idx: 0 };
            let msg = PaxosMsg::Prepare(prepare);
            let paxos = Message::<LogBytes>::SequencePaxos(PaxosMessage { from: node_id(1), to, msg });
            let reply = HeartbeatReply { round: 1, ballot, leader: ballot, happy: true };
            let heartbeat = BLEMessage { from: node_id(1), to, msg: HeartbeatMsg::Reply(reply) };
            let bytes = serde_cbor::to_vec(&Message::<LogBytes>::BLE(heartbeat)).expect("encodable");
            let answer = cluster.members[0].handle_message(from, &bytes);
            let bytes = serde_cbor::to_vec(&paxos).expect("encodable");
            assert_eq!(cluster.members[0].handle_message(from, &bytes), answer);
            answer
        };
        let refused = Err(RejectReason::Inconsistent("consensus ballot"));
        assert_eq!(claim(u32::MAX), refused, "the next election would have no number");
        assert_eq!(claim(BALLOT_JUMP_MAX + 100), refused);
        assert_eq!(claim(BALLOT_JUMP_MAX), Ok(()));
        assert_eq!(claim(BALLOT_JUMP_MAX + 100), Ok(()), "from the last one promised");
    }

    const CONSENSUS_TICK_AT: Instant = Instant::from_nanos(1);
}
