//! A peer at the entry that upgrades the run, and at entries that its program cannot decode.

use std::sync::Arc;

use iota_protocol::log::certificate::{Certificate, chain_hash, chain_start, vote_bytes};
use iota_protocol::log::{LogBytes, MemoryStorage};
use iota_protocol::miner::{Action, Notice};
use iota_protocol::peer::{Peer, Roles};
use iota_protocol::run_state::StateEvent;
use iota_protocol::spec::{Candidate, OrchestratorSpec};
use iota_protocol::wire::frame::{Direction, PushAck, PushHeader, PushRefusal};
use iota_protocol::wire::message::{ControlUpdate, Decision, Entry, PeerRecord, Request, Topic};
use iota_protocol::wire::{Outdated, RejectReason, Versions, decode, encode, open_in, seal_in};
use iota_protocol::{Epoch, Hash, Identity, Instant, LogIndex, RunSpec, SampleId, StageIndex};
use serde_bytes::ByteBuf;

type TestPeer = Peer<MemoryStorage<LogBytes>>;

const NOW: Instant = Instant::from_nanos(1_000_000_000);
const NEW: Versions = Versions::new(1, 2);

fn identity(i: u8) -> Identity {
    Identity::from_secret([i; 32])
}

/// The run of a single candidate, peer 1.
fn spec() -> RunSpec {
    let candidates = vec![Candidate { peer: identity(1).peer(), priority: 0 }];
    RunSpec { orchestrator: OrchestratorSpec { candidates }, ..RunSpec::default() }
}

/// Peer 2, a miner.
fn miner(versions: Versions) -> TestPeer {
    let (roles, storage) = (Roles { miner: true, validator: false }, MemoryStorage::default());
    let parameters = vec![100; usize::from(spec().pipeline.stages)];
    Peer::new(Arc::new(spec()), identity(2), roles, &parameters, 1, storage).speaking(versions)
}

fn decided(decision: Decision) -> Vec<u8> {
    encode(&Entry { proposer: identity(1).peer(), decision })
}

/// An entry of a kind that no program here knows, as one of a later version looks to an older one.
fn unknown() -> Vec<u8> {
    let entry = decided(Decision::Finish);
    let at = entry.windows(6).position(|bytes| bytes == b"finish").expect("its name");
    [&entry[..at], b"novice", &entry[at + 6..]].concat()
}

/// A control message with these entries from the start of the log.
fn certified(entries: &[Vec<u8>]) -> Vec<u8> {
    let run = spec().run_id();
    let chain = entries.iter().fold(chain_start(run), |chain, entry| chain_hash(chain, Hash::of(entry)));
    let index = LogIndex(entries.len() as u64 - 1);
    let signature = identity(1).sign(&vote_bytes(run, index, chain));
    let certificate = Certificate { index, chain, signatures: vec![(0, ByteBuf::from(signature))] };
    let entries = entries.iter().cloned().map(ByteBuf::from).collect();
    encode(&ControlUpdate { first: LogIndex(0), entries, beyond: Vec::new(), certificate })
}

fn actions(peer: &mut TestPeer) -> Vec<Action> {
    std::iter::from_fn(|| peer.poll_action()).collect()
}

/// Versions of the envelopes among these actions.
fn written(actions: &[Action]) -> Vec<u16> {
    let version = |action: &Action| match action {
        Action::Publish { topic: Topic::Records, bytes } => {
            open_in::<PeerRecord>(Versions::new(1, 9), spec().run_id(), bytes)
                .map(|(_, version, _)| version)
                .ok()
        }
        _ => None,
    };
    actions.iter().filter_map(version).collect()
}

#[test]
fn a_peer_writes_the_version_in_use_and_announces_what_it_speaks() {
    let mut peer = miner(NEW);
    peer.handle_timeout(NOW);
    let records = actions(&mut peer);
    assert_eq!(written(&records), [1]);
    let announced = records.iter().find_map(|action| match action {
        Action::Publish { topic: Topic::Records, bytes } => {
            open_in::<PeerRecord>(Versions::FIRST, spec().run_id(), bytes).ok()
        }
        _ => None,
    });
    assert_eq!(announced.expect("an old program reads it").2.wire_version_max, 2);

    peer.handle_gossip(NOW, Topic::Control, &certified(&[decided(Decision::Upgrade { version: 2 })]))
        .expect("certified");
    let later = NOW + spec().timing.heartbeat.duration();
    peer.handle_timeout(later);
    assert_eq!(written(&actions(&mut peer)), [2]);
    assert_eq!((peer.state().wire_version(), peer.outdated()), (2, None));
}

#[test]
fn a_peer_that_does_not_speak_the_decided_version_stops_there_and_takes_nothing_after_it_for_void() {
    let admit = Decision::Admit { peer: identity(2).peer(), stage: StageIndex(0) };
    let entries = [unknown(), decided(Decision::Upgrade { version: 2 }), unknown(), decided(admit)];
    let (mut old, mut new) = (miner(Versions::FIRST), miner(NEW));
    for peer in [&mut old, &mut new] {
        peer.handle_gossip(NOW, Topic::Control, &certified(&entries)).expect("certified");
    }
    assert_eq!((new.state().applied(), new.outdated()), (4, None));

    let outdated = Outdated { decided: 2, spoken: Versions::FIRST };
    assert_eq!(
        (old.state().applied(), old.outdated()),
        (2, Some(outdated)),
        "the first unknown one was void to all"
    );
    let notices: Vec<Action> = actions(&mut old);
    let expected = [Notice::State(StateEvent::Upgraded(2)), Notice::Outdated(outdated)];
    assert_eq!(notices, expected.map(Action::Notice), "and nothing else is done");

    let later = NOW + spec().timing.heartbeat.duration() * 2;
    old.handle_timeout(later);
    let refused =
        old.handle_request(later, identity(3).peer(), 1, &encode(&Request::Log { from: LogIndex(0) }));
    assert_eq!(refused, Err(RejectReason::NotEntitled));
    assert_eq!(actions(&mut old), [], "it has stopped");
}

#[test]
fn a_candidate_that_does_not_speak_the_version_signs_no_certificate_of_it() {
    let run = spec().run_id();
    let mut storage = MemoryStorage::<LogBytes>::default();
    for entry in [unknown(), decided(Decision::Upgrade { version: 2 })] {
        use omnipaxos::storage::Storage;
        storage.append_entry(LogBytes(ByteBuf::from(entry))).expect("memory");
        storage.set_decided_idx(storage.get_log_len().expect("memory")).expect("memory");
    }
    let candidate = |versions, storage| {
        let (roles, parameters) =
            (Roles { miner: false, validator: false }, vec![100; usize::from(spec().pipeline.stages)]);
        let mut peer =
            Peer::new(Arc::new(spec()), identity(1), roles, &parameters, 1, storage).speaking(versions);
        peer.handle_timeout(NOW);
        peer
    };
    let old = candidate(Versions::FIRST, storage.clone());
    assert_eq!((old.outdated().map(|why| why.decided), old.log().certified()), (Some(2), 0));
    let new = candidate(NEW, storage);
    assert_eq!((new.outdated(), new.log().certified()), (None, 2));
    assert_ne!(new.log().chain(2), Some(chain_start(run)));
}

#[test]
fn whoever_is_heard_in_a_newer_version_is_asked_for_the_log_that_says_why() {
    let mut old = miner(Versions::FIRST);
    old.handle_timeout(NOW);
    let record = PeerRecord { miner: true, log_length: 1, wire_version_max: 2, ..PeerRecord::new(1) };
    let (sender, run) = (identity(3).peer(), spec().run_id());
    actions(&mut old);
    let heard = old.handle_gossip(NOW, Topic::Records, &seal_in(2, &identity(3), run, &record));
    assert_eq!(heard, Err(RejectReason::Version { sender, got: 2, spoken: Versions::FIRST }));
    let asked: Vec<_> = actions(&mut old)
        .into_iter()
        .filter_map(|action| match action {
            Action::Request { to, bytes, .. } => Some((to, decode::<Request>(&bytes, 1000))),
            _ => None,
        })
        .collect();
    assert_eq!(asked, [(sender, Ok(Request::Log { from: LogIndex(0) }))]);
}

#[test]
fn a_push_of_a_version_not_spoken_may_be_tried_again() {
    let header = PushHeader {
        version: 2,
        run: spec().run_id(),
        direction: Direction::Forward,
        stage: StageIndex(1),
        epoch: Epoch(0),
        sample: SampleId(0),
        dtype: spec().pipeline.activation_dtype,
        shape: [1; 3],
        hash: Hash::default(),
        nonce: 1,
        signature: ByteBuf::new(),
    };
    let ack = miner(Versions::FIRST).handle_push(NOW, identity(3).peer(), &header);
    assert_eq!(ack, PushAck::Refused(PushRefusal::Version));
    assert!(PushRefusal::Version.is_passing());
    assert_ne!(miner(NEW).handle_push(NOW, identity(3).peer(), &header), ack);
}
